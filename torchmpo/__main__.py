"""One program for all commands: ``torchmpo evolve …`` is ``python -m torchmpo.evolve …``."""
