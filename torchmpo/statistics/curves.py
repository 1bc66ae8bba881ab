"""What a learning curve says in a number: how far it went, how soon, and what it left over."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Drift(NamedTuple):
    """How far a curve went from its start.

    Attributes:
        size: the largest change from the first value, with its sign.
        time: the part of the curve, in [0, 1], after which it had first gone half as far; NaN for a
            curve that never left its start.
    """

    size: float
    time: float


def drift(curve: Sequence[float]) -> Drift:
    """The drift of one quantity in training.

    Args:
        curve: values at equal distances, at least two; straight lines between them.

    Returns:
        NaNs where a value is not finite.

    >>> drift([1.0, 0.0, -3.0, -3.0, -2.0])  # −1 is half as far as −3, half way from 0 to it
    Drift(size=-4.0, time=0.3333333333333333)
    """
    if not all(map(math.isfinite, curve)):
        return Drift(math.nan, math.nan)
    changes = [value - curve[0] for value in curve]
    size = max(changes, key=abs)
    if size == 0:
        return Drift(0.0, math.nan)
    gone = [change / size for change in changes]
    k = next(k for k, share in enumerate(gone) if share >= 0.5)
    part = (0.5 - gone[k - 1]) / (gone[k] - gone[k - 1])
    return Drift(size, (k - 1 + part) / (len(curve) - 1))


def area_over(curve: Sequence[float], top: float = 1.0) -> float:
    """The mean distance of a learning curve from the best there is; 0 for one that starts there.

    Args:
        curve: values at equal distances, at least two; straight lines between them.
        top: the best value.

    >>> area_over([0.0, 1.0, 1.0])
    0.25
    """
    below = [top - value for value in curve]
    return (sum(below) - (below[0] + below[-1]) / 2) / (len(below) - 1)
