"""Look at an objective, in pictures and as a formula: ``python -m torchmpo.show``.

:mod:`.run` draws it beside others, :mod:`.distill` fits the closed form nearest to it.

Imports any package but the other commands.
"""
