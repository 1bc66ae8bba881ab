"""Summaries of runs as rliable defines them, and their percentile bootstrap intervals."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, trim_mean

NAN = math.nan


def interquartile_mean(*strata: ArrayLike, axis: int = -1) -> Any:
    """Mean of the middle half of all runs: ⌊n/4⌋ of n are dropped at each end, as in rliable.

    Args:
        strata: scores ``[..., runs]``, pooled when several are given. A stratum of more runs
            weighs more.
        axis: of the runs.

    Returns:
        ``[...]``, a number for a list of scores.

    >>> float(interquartile_mean([0.0, 1.0, 2.0, 3.0, 100.0]))
    2.0
    """
    return trim_mean(np.concatenate(strata, axis=axis), 0.25, axis=axis)


def diverged_as_worst(runs: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    """The same runs, where one that diverged counts as the worst that anyone finished.

    Args:
        runs: by loss, on one kind of data, ``[runs]``; what is not finite diverged.

    >>> diverged_as_worst({"dpo": [1.0, math.nan], "ipo": [3.0, 2.0]})["dpo"].tolist()
    [1.0, 1.0]
    """
    arrays = {name: np.asarray(own, dtype=np.float64) for name, own in runs.items()}
    worst = min((r for own in arrays.values() for r in own[np.isfinite(own)]), default=NAN)
    return {name: np.where(np.isfinite(own), own, worst) for name, own in arrays.items()}


def mean_score(*strata: ArrayLike, axis: int = -1) -> Any:
    """Mean over strata of the mean over runs: every stratum counts the same.

    Args:
        strata: scores ``[..., runs]``, as many runs as each has.
        axis: of the runs.
    """
    return np.mean([np.asarray(stratum).mean(axis) for stratum in strata], axis=0)


def probability_of_improvement(x: ArrayLike, y: ArrayLike, axis: int = -1) -> Any:
    """P(X > Y) + ½ P(X = Y) for a run X of one loss and a run Y of another.

    This is Mann and Whitney's U over the number of pairs.

    Args:
        x, y: scores ``[..., runs]``, as many runs as each has.
        axis: of the runs.

    Returns:
        ``[...]`` in [0, 1].

    >>> float(probability_of_improvement([1.0, 3.0], [1.0, 2.0]))  # one tie, two wins of four
    0.625
    """
    x, y = np.moveaxis(np.asarray(x), axis, -1), np.moveaxis(np.asarray(y), axis, -1)
    return 0.5 + 0.5 * np.sign(x[..., :, None] - y[..., None, :]).mean((-2, -1))


def bootstrap_interval(
    *strata: ArrayLike,
    statistic: Callable[..., Any],
    level: float = 0.95,
    paired: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of runs; too narrow for few, see the package.

    Runs are drawn with replacement: in each stratum by itself, as for two losses that are compared,
    or the same runs in all strata. The interval depends on the scores and on ``seed``, not on the
    order of the runs.

    Args:
        strata: scores ``[runs]``, as many runs as each has.
        paired: a run has a place in every stratum, as a seed has on several kinds of data, and
            keeps its scores together.
        statistic: called as ``statistic(*strata, axis=-1)`` with all resamples at once, each
            stratum ``[resamples, runs]``.
        level: of the interval, in (0, 1).
        resamples: how many.
        seed: of the resamples.

    Returns:
        low and high; both NaN where a stratum has fewer than two runs or a score is not finite.
    """
    runs = [np.asarray(stratum, dtype=float) for stratum in strata]
    if any(len(r) < 2 or not np.isfinite(r).all() for r in runs):
        return NAN, NAN
    runs = list(np.array(runs)[:, np.lexsort(runs)]) if paired else [np.sort(r) for r in runs]
    interval = bootstrap(
        runs,
        statistic,
        paired=paired,
        n_resamples=resamples,
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
