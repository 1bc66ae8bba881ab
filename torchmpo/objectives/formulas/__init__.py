"""Losses as short formulas: expressions over log-probabilities, read from text and never executed.

:mod:`.vocabulary` is what formulas are made of, :mod:`.language` reads and writes them, and
:mod:`.formula` makes a loss of one.
"""

from torchmpo.objectives.formulas.formula import Formula
from torchmpo.objectives.formulas.language import parse, text

__all__ = ["Formula", "parse", "text"]
