"""Several objectives at once: which points no other one beats, and how much they cover together.

Higher is better in every objective.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pareto_front(points: ArrayLike) -> NDArray[np.bool_]:
    """Which points are dominated by no other: bool ``[points]``.

    A point is dominated by another that is at least as good in every objective and better in one.
    So of equal points none dominates another.

    Args:
        points: ``[points, objectives]``, finite.

    >>> pareto_front([[0.0, 3.0], [1.0, 1.0], [2.0, 1.0]]).tolist()
    [True, False, True]
    """
    points = np.asarray(points, dtype=float)
    at_least = (points[:, None] >= points).all(-1)
    better = (points[:, None] > points).any(-1)
    return np.logical_not((at_least & better).any(0))


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume of what lies between a reference and the points, each a corner of a box: ≥ 0.

    Of two sets, the one that dominates has the larger volume, and no other single number of this
    kind is known to have that property (Zitzler and Thiele, 1998).

    Args:
        points: ``[points, objectives]``, finite. One that does not exceed the reference in every
            objective adds nothing.
        reference: ``[objectives]``.

    >>> hypervolume([[1.0, 3.0], [2.0, 1.0]], [0.0, 0.0])
    4.0
    """
    sides = np.asarray(points, dtype=float) - np.asarray(reference, dtype=float)
    sides = sides[(sides > 0).all(1)]
    if not len(sides):
        return 0.0
    if sides.shape[1] == 1:
        return float(sides.max())
    # Slices along the last objective, from the top: each has the shadow of all that reach it.
    sides = sides[np.argsort(-sides[:, -1])]
    heights = sides[:, -1] - np.append(sides[1:, -1], 0.0)
    origin = np.zeros(sides.shape[1] - 1)
    return float(
        sum(h * hypervolume(sides[: i + 1, :-1], origin) for i, h in enumerate(heights) if h)
    )
