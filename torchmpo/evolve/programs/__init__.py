"""Losses as formulas, by genetic programming: ``python -m torchmpo.evolve --space program``.

:mod:`.grammar` draws and varies formulas, :mod:`.space` says what a vector of the search means,
:mod:`.interpreter` trains a population of them as one program, and :mod:`.genetic` moves.
"""
