"""Discover a loss by evolution: ``python -m torchmpo.evolve``.

:mod:`.search` is the outer loop, :mod:`.optimizers` how it moves, :mod:`.spaces` what a vector
means, :mod:`.fitness` what it is worth, :mod:`.workers` who computes that (here Ray comes in), and
:mod:`.comparison` whether what was found is better than tuned rivals (:mod:`.records` says what the
files of both hold). :mod:`.settings` are the
options of the command, :mod:`.setup` checks them and builds what they name, :mod:`.run` does the
work.

Imports any package but the other commands.
"""
