"""How an error falls with the amount of data: err(N) = E + A·N^−b, with intervals."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

EXPONENTS = np.geomspace(0.05, 3.0, 200)  # what is tried for b


class Interval(NamedTuple):
    """An estimate with the ends of its interval, NaN of one seed."""

    value: float
    low: float
    high: float


class ScalingFit(NamedTuple):
    """What was fitted.

    Attributes:
        floor: E, the error that no amount of data removes.
        coefficient: A.
        exponent: b.
        told: whether the data tells the exponent: its interval lies within those that were tried,
            and that of A above 0. One seed does not tell it.
    """

    floor: Interval
    coefficient: Interval
    exponent: Interval
    told: bool


def fit_scaling(
    sizes: ArrayLike,
    errors: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> ScalingFit:
    """Least squares: for each b of a grid E and A have a closed form, and the best b wins.

    Intervals are percentile bootstraps over seeds, each of which keeps its errors at all sizes
    together; with few seeds they are too narrow, and one seed has none. With three sizes nothing
    checks the form itself.

    Args:
        sizes: N ``[m]``, at least three, positive and different.
        errors: ``[seeds, m]``, finite, of a seed at least.
        level: of the intervals.
        resamples, seed: of the bootstrap.

    Raises:
        ValueError: fewer than three sizes, or shapes that do not fit.

    Source: the form after Hoffmann et al., arXiv 2203.15556, eq. 2, in one variable.

    >>> n = np.array([10, 40, 160, 640])
    >>> fit = fit_scaling(n, [0.1 + 2 * n**-0.5, 0.1 + 2 * n**-0.5])
    >>> [round(x.value, 2) for x in fit[:3]]
    [0.1, 2.0, 0.5]
    """
    n, y = np.asarray(sizes, dtype=float), np.asarray(errors, dtype=float)
    if len(set(n)) < 3 or not (n > 0).all():
        raise ValueError(f"a scaling fit needs three different positive sizes; got {n.tolist()}")
    if y.ndim != 2 or not len(y) or y.shape[1] != len(n) or not np.isfinite(y).all():
        raise ValueError(f"errors must be [seeds, {len(n)}] and finite; got {y.shape}")
    scale = np.exp(np.log(n).mean())  # of columns of like size
    columns = (n / scale) ** -EXPONENTS[:, None]
    designs = np.stack([np.ones_like(columns), columns], -1)  # [exponents, m, 2]
    inverses = np.linalg.pinv(designs)
    rest = np.eye(len(n)) - designs @ inverses

    def fits(means: NDArray) -> NDArray:
        """E, A and b of each row of errors ``[rows, m]``."""
        squares = (np.einsum("bij,rj->bri", rest, means) ** 2).sum(-1)
        best = squares.argmin(0)
        ends = np.einsum("rij,rj->ri", inverses[best], means)
        b = EXPONENTS[best]
        return np.stack([ends[:, 0], ends[:, 1] * scale**b, b])

    value = fits(y.mean(0, keepdims=True))[:, 0]
    low = high = np.full(3, np.nan)  # every resample of one seed is that seed
    if len(y) > 1:
        draws = np.random.default_rng(seed).integers(len(y), size=(resamples, len(y)))
        tails = [(1 - level) / 2, (1 + level) / 2]
        low, high = np.quantile(fits(y[draws].mean(1)), tails, axis=1)
    floor, coefficient, exponent = (Interval(*map(float, ends)) for ends in zip(value, low, high))
    inside = EXPONENTS[0] < exponent.low and exponent.high < EXPONENTS[-1]
    return ScalingFit(floor, coefficient, exponent, bool(inside and coefficient.low > 0))
