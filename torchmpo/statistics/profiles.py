"""Performance profiles: the share of runs above a score, for every score."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap


def performance_profile(
    scores: ArrayLike,
    taus: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[NDArray, NDArray, NDArray]:
    """Share of runs whose score is above τ, the run-score distribution of rliable, with a band.

    The band is a pointwise percentile bootstrap over seeds, each with its scores on all kinds of
    data; rliable draws the runs of every kind by themselves.

    Args:
        scores: ``[runs, kinds]`` of one loss, finite.
        taus: ``[n]``.
        level: of the band, in (0, 1).
        resamples: how many.
        seed: of the resamples.

    Returns:
        share, low and high, each ``[n]`` in [0, 1]. Low and high are NaN for one run.

    >>> performance_profile([[0.2, 0.4], [0.6, 0.8]], [0.0, 0.4, 0.9])[0].tolist()
    [1.0, 0.5, 0.0]
    """
    scores, taus = np.asarray(scores, dtype=float), np.asarray(taus, dtype=float)
    above = (scores[:, :, None] > taus).mean(1).T  # [n, runs]
    share = above.mean(1)
    if above.shape[1] < 2:
        return share, np.full_like(share, np.nan), np.full_like(share, np.nan)
    interval = bootstrap(
        (above,),
        np.mean,
        axis=-1,
        n_resamples=resamples,
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return share, interval.low, interval.high
