"""Comparing losses over few seeds: paired differences, scores, bootstrap intervals and ranks.

The conventions are those of Agarwal et al., *Deep Reinforcement Learning at the Edge of the
Statistical Precipice* (2021, arXiv:2108.13264) and of their library rliable: a *run* is one seed,
its score the mean over its episodes, normalised so that the original agent is 0 and the target
agent 1; runs are summed up by their mean and their interquartile mean, losses compared by the
probability of improvement, and intervals are percentile bootstraps over runs. The anchors count as
known.

Where data kinds are pooled, rliable resamples each by itself. Here seed k has the same minibatches
on every kind, and the flips of one noisy kind are among those of the next, so its scores on
different kinds rise and fall together (correlations of 0.4 between noisy kinds in the committed
runs): seeds are resampled with their scores on all kinds.

**Percentile bootstraps of few seeds are too narrow.** Of 4,000 sets of normal runs, nominal 95 %
intervals contained the truth in:

============================  =====  =====  =====  =====  =====
seeds                             3      5     10     20     40
============================  =====  =====  =====  =====  =====
mean, bootstrap                76 %   84 %   91 %   92 %   93 %
interquartile mean             76 %   90 %   94 %   94 %   94 %
probability of improvement     76 %   89 %   93 %   94 %   94 %
mean, Student's t              95 %   95 %   95 %   95 %   95 %
two equal losses told apart    10 %    5 %    2 %    1 %    1 %
============================  =====  =====  =====  =====  =====

So read "score" at five seeds as an interval of about 84 %; "return", beside it in a
leaderboard, has Student's t, which holds its level for normal runs, however few. Ranks rest on the
last line: two losses are told apart where their intervals do not overlap, which errs about once in
twenty at five seeds and more rarely beyond, for each pair of losses; among eleven there are 55
pairs. Two losses whose runs do
not overlap at all get a probability of improvement of 1 with the interval [1, 1], however few the
runs: a bootstrap cannot see what was never drawn.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import bootstrap, trim_mean


class Mean(NamedTuple):
    """A mean over independent seeds with its standard error and 95 % interval."""

    mean: float
    se: float
    low: float
    high: float


def mean_of(values: Sequence[float]) -> Mean:
    """Mean ± s.e. and 95 % t-interval of independent values (at least two)."""
    from scipy.stats import t

    x = torch.as_tensor(values, dtype=torch.float64)
    mean, se = float(x.mean()), float(x.std() / math.sqrt(len(x)))
    half = float(t.ppf(0.975, len(x) - 1)) * se
    return Mean(mean, se, mean - half, mean + half)


def compare(scores: Mapping[str, Sequence[float]]) -> dict:
    """Mean score of each objective, and of the first minus each other one, paired by seed.

    Args:
        scores: objective → one score per seed (the same seeds in the same order for all), the one
            to be judged first. NaN where a training diverged.

    Returns:
        ``{"objectives": {name: {mean, se, low, high, diverged}}, "differences": {…}}``, made of
        python numbers, ready for JSON; numbers are ``None`` where NaN leaves nothing to say.
    """
    first, *others = scores
    failed = {name: sum(map(math.isnan, values)) for name, values in scores.items()}

    def summary(values: Sequence[float], diverged: int) -> dict:
        numbers = dict.fromkeys(Mean._fields) if diverged else mean_of(values)._asdict()
        return {**numbers, "diverged": diverged}

    objectives = {name: summary(values, failed[name]) for name, values in scores.items()}
    differences = {}
    for other in others:
        paired = [a - b for a, b in zip(scores[first], scores[other], strict=True)]
        differences[other] = summary(paired, sum(map(math.isnan, paired)))
    return {"objectives": objectives, "differences": differences}


def verdict(comparison: Mapping) -> str:
    """One honest line per rival: better, worse, or no improvement shown."""
    lines = []
    for name, difference in comparison["differences"].items():
        if difference["diverged"]:
            lines.append(f"vs {name}: not comparable, {difference['diverged']} trainings diverged")
            continue
        if difference["low"] > 0:
            word = "improvement"
        elif difference["high"] < 0:
            word = "worse"
        else:
            word = "no improvement (the interval contains 0)"
        lines.append(
            f"vs {name}: {word}, {difference['mean']:+.0f} "
            f"[{difference['low']:+.0f}, {difference['high']:+.0f}]"
        )
    return "\n".join(lines)


def table(comparison: Mapping) -> str:
    """Mean ± s.e. per objective and paired difference with its 95 % interval, as text."""
    width = max(map(len, comparison["objectives"]))
    lines = [f"{'objective':<{width}}  {'return':>16}   first minus this one, 95 % interval"]
    for name, own in comparison["objectives"].items():
        value = (
            f"{own['diverged']} diverged"
            if own["diverged"]
            else f"{own['mean']:8.0f} ± {own['se']:<5.0f}"
        )
        line = f"{name:<{width}}  {value:>16}"
        if (d := comparison["differences"].get(name)) and not d["diverged"]:
            line += f"   {d['mean']:+.0f} [{d['low']:+.0f}, {d['high']:+.0f}]"
        lines.append(line.rstrip())
    return "\n".join(lines)


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
    """Percentile bootstrap interval of a statistic of runs; too narrow for few, see the module.

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


def ranks(intervals: Mapping[str, tuple[float, float]]) -> dict[str, dict[str, int]]:
    """Ranks from 1, the highest, with ties where intervals overlap or touch.

    Args:
        intervals: name → low and high. NaN stands for an interval nothing is known of: it overlaps
            all others.

    Returns:
        name → ``best``, one more than the intervals wholly above; ``worst``, the number of
        intervals not wholly below; and ``rank``, the one to print: the best. Overlap is not
        transitive, so a rank does not name a group.

    >>> ranks({"a": (4.0, 6.0), "b": (2.0, 5.0), "c": (1.0, 3.0)})["c"]
    {'best': 2, 'worst': 3, 'rank': 2}
    """
    result = {}
    for name, (low, high) in intervals.items():
        best = 1 + sum(other_low > high for other_low, _ in intervals.values())
        worst = len(intervals) - sum(other_high < low for _, other_high in intervals.values())
        result[name] = {"best": best, "worst": worst, "rank": best}
    return result
