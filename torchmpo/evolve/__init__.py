"""Discover a loss by evolution: ``python -m torchmpo.evolve``.

:mod:`.search` is the outer loop, :mod:`.optimizers` how it moves, :mod:`.spaces` what a vector
means, :mod:`.fitness` what it is worth, :mod:`.workers` who computes that (here Ray comes in), and
:mod:`.comparison` whether what was found is better than tuned rivals. :mod:`.settings` and
:mod:`.setup` are what a run is told and what that means, :mod:`.run` does it.

Imports any package but the other commands.
"""
