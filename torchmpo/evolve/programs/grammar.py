"""Which formulas a search may visit, and how it comes from one to another."""

import math
from collections.abc import Sequence
from random import Random

from torchmpo.evolve.programs.interpreter import LEVELS
from torchmpo.objectives.formulas.language import check_types, reads_policy
from torchmpo.objectives.formulas.ranges import has
from torchmpo.objectives.formulas.simplify import simplified
from torchmpo.objectives.formulas.vocabulary import (
    LEAVES,
    OPERATIONS,
    REAL,
    Expression,
    Interval,
    depth,
    nodes,
    size,
)

TRIES = 50  # of a variation, before another formula is varied
CONSTANT_SHARE = 0.25  # of the ends of random formulas
LARGEST = 1e4  # of the constants of a search


def tidy(value: float) -> float:
    """A constant with four digits: what is printed is what was trained.

    >>> tidy(0.123456)
    0.1235
    """
    return float(f"{max(-LARGEST, min(LARGEST, value)):.4g}")


def check_constants(expression: Expression) -> None:
    """Refuse a formula that a search would change: its constants are of at most ``LARGEST``.

    Raises:
        ValueError: one is larger.
    """
    numbers = [part for part in nodes(expression) if not isinstance(part, (str, tuple))]
    if any(abs(value) > LARGEST for value in numbers):
        raise ValueError(f"constants of a search lie between -{LARGEST:g} and {LARGEST:g}")


class Grammar:
    """The formulas of a search.

    Args:
        leaves: names of what they may read.
        most: nodes of a formula.
        require: properties that each of them has, see
            :func:`torchmpo.objectives.formulas.ranges.has`.
    """

    def __init__(self, leaves: Sequence[str], most: int, require: Sequence[str] = ()):
        self.leaves, self.most, self.require = list(leaves), most, list(require)

    def tidied(self, expression: Expression) -> Expression | None:
        """The same formula in fewer nodes and with tidy constants; None if it is not of these."""
        try:
            expression = _tidy(simplified(expression))
            if not reads_policy(expression):
                return None
            check_types(expression)
        except (ValueError, OverflowError, ZeroDivisionError):
            return None
        fits = size(expression) <= self.most and depth(expression) <= LEVELS
        known = {part for part in nodes(expression) if isinstance(part, str)} <= {*self.leaves}
        sound = all(has(expression, wanted) for wanted in self.require)
        return expression if fits and known and sound else None

    def random(self, rng: Random) -> Expression:
        """Any formula, most of them as large as may be."""
        while True:
            drawn = self._grow(rng, REAL, rng.randint(2, self.most), LEVELS)
            if (found := self.tidied(drawn)) is not None:
                return found

    def varied(self, expression: Expression, other: Expression, rng: Random) -> Expression | None:
        """A formula near the first one: a part of it is drawn anew, or is one of the other's.

        Returns:
            None if nothing came of ``TRIES`` tries.
        """
        for _ in range(TRIES):
            found = self.tidied(self._changed(expression, other, rng))
            if found is not None and found != expression:
                return found
        return None

    def retuned(self, expression: Expression, sigma: float, rng: Random) -> Expression | None:
        """The formula with other constants, each times e^(σ·ε); None if it has none to change."""

        def change(part: Expression) -> Expression:
            if isinstance(part, str):
                return part
            if not isinstance(part, tuple):
                return part * math.exp(sigma * rng.gauss(0, 1))
            return (part[0], *[change(argument) for argument in part[1:]])

        if not any(isinstance(part, float) for part in nodes(expression)):
            return None
        for _ in range(TRIES):
            found = self.tidied(change(expression))
            if found is not None and found != expression:
                return found
        return None

    def _changed(self, expression: Expression, other: Expression, rng: Random) -> Expression:
        places = list(nodes(expression))
        k = rng.randrange(len(places))
        old, kind = places[k], rng.random()
        if kind < 0.4:  # a part of the other one
            new = rng.choice(list(nodes(other)))
        elif kind < 0.6 and isinstance(old, tuple):  # the same arguments to another function
            same = [n for n, o in OPERATIONS.items() if len(o.takes) == len(old) - 1]
            new = (rng.choice(same), *old[1:])
        elif kind < 0.75 and isinstance(old, tuple):  # an argument alone
            new = rng.choice(old[1:])
        elif kind < 0.9:  # one more term
            term = self._grow(rng, REAL, 4, LEVELS)
            new = (rng.choice(["add", "sub", "mul"]), old, term)
        else:
            new = self._grow(rng, REAL, rng.randint(1, max(2, size(old) + 2)), LEVELS)
        return _replaced(expression, k, new)[0]

    def _grow(self, rng: Random, wanted: Interval, budget: int, levels: int) -> Expression:
        """An expression that lies in an interval, of about so many nodes and levels."""
        if budget > 1 and levels > 1:
            fit = [name for name, o in OPERATIONS.items() if _inside(o.gives, wanted)]
            fit = [name for name in fit if len(OPERATIONS[name].takes) < budget]
            if fit:
                name = rng.choice(fit)
                takes = OPERATIONS[name].takes
                left = budget - 1
                first = left if len(takes) == 1 else rng.randint(1, left - 1)
                shares = (first, left - first)
                return (
                    name,
                    *[
                        self._grow(rng, kind, share, levels - 1)
                        for kind, share in zip(takes, shares, strict=False)
                    ],
                )
        ends = [name for name in self.leaves if _inside(LEAVES[name].range, wanted)]
        if not ends or rng.random() < CONSTANT_SHARE:
            return _constant(rng, wanted)
        return rng.choice(ends)


def _inside(inner: Interval, outer: Interval) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _constant(rng: Random, wanted: Interval) -> float:
    low, high = wanted
    if math.isfinite(low) and math.isfinite(high):
        return tidy(rng.uniform(low, high))
    size = tidy(math.exp(rng.gauss(0, 1.5)))
    return -size if high <= 0 or (low < 0 and rng.random() < 0.5) else size


def _tidy(expression: Expression) -> Expression:
    if isinstance(expression, tuple):
        return (expression[0], *map(_tidy, expression[1:]))
    if isinstance(expression, float) and not math.isfinite(expression):
        raise ValueError("a constant is not finite")
    return tidy(expression) if isinstance(expression, float) else expression


def _replaced(expression: Expression, k: int, new: Expression) -> tuple[Expression, int]:
    """The expression with its k-th node replaced, and how many nodes are still to be passed."""
    if k == 0:
        return new, -1
    k -= 1
    if not isinstance(expression, tuple):
        return expression, k
    parts = list(expression)
    for i in range(1, len(parts)):
        if k < 0:
            break
        parts[i], k = _replaced(parts[i], k, new)
    return tuple(parts), k
