"""Comparing losses over few seeds: scores, bootstrap intervals, ranks and the leaderboard.

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

So read "score" at five seeds as an interval of about 84 %; the row's "return" has Student's t,
which holds its level for normal runs, however few. Ranks rest on the last line: two losses are told
apart where their intervals do not overlap, which errs about once in twenty at five seeds and more
rarely beyond, for each pair of losses; among eleven there are 55 pairs. Two losses whose runs do
not overlap at all get a probability of improvement of 1 with the interval [1, 1], however few the
runs: a bootstrap cannot see what was never drawn.
"""

import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, trim_mean

from torchmpo.files import write_atomic
from torchmpo.report import mean_of

NAN = math.nan
DECIMALS = 6  # of the written numbers: beyond them lie differences between machines


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


def leaderboard(
    cells: Iterable[Mapping[str, Any]], anchors: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Every loss on every data kind it was run on, with intervals, ranks and comparisons.

    A diverged seed counts as the worst run that any loss finished on that data kind, and is
    counted in "diverged": an interval takes it for a measured one, so read them together. So count
    all seeds of a loss that diverged under every setting, which leaves ``best`` empty. Where every
    seed of a cell diverged nothing was measured: "return" is empty, "score" and "iqm" are the worst
    score without an interval, and the loss ranks below all that finished a run. A number that
    cannot be had is ``None``: an interval from one seed, anything on a data kind on which no loss
    finished. A loss of which one seed was run is tied with all others that finished.

    Where the target agent is not better than the original, as on a task it was not made for or in
    episodes too short to tell them apart, there is no scale and all scores are ``None``. Ranks then
    are by the intervals of "return".

    Args:
        cells: any number, in any order, of one task: ``loss``, ``data``, ``task``, ``grid`` (the
            settings), ``tuning`` (a row for each setting tried; none where there was nothing to
            tune), ``best`` (index into the settings, −1 for none) and ``returns``
            ``[seed][episode]``, a seed being ``None`` (or holding a number that is not finite)
            where training diverged. Other entries are not read.
        anchors: returns per episode of the ``"original"`` and the ``"target"`` agent. A score is
            (R − R_original)/(R_target − R_original) with their means.

    Returns:
        python numbers, strings, lists and dictionaries, ready for JSON:
        ``task``; ``anchors`` (``mean``, ``se`` over episodes); ``scaled``, whether there are
        scores; ``rows``, sorted by data kind, rank and score (``return`` with Student's t,
        ``score`` with a bootstrap interval of the mean, ``iqm``, and ``rank`` within the data kind
        by the intervals of ``score``; ``trials`` is the number of settings tried, 0 where there was
        nothing to tune); ``overall``, sorted by interquartile mean, pooled over all data kinds on
        which any loss finished, by seeds (kinds of unequal numbers of seeds, each by itself), for
        the losses that have them all; and
        ``improvement`` by data kind, loss a and loss b: the probability ``p`` that a run of a beats
        one of b.

    Raises:
        ValueError: cells of two tasks, or two cells of one loss and data kind.
    """
    cells = sorted(cells, key=lambda cell: (cell["data"], cell["loss"]))
    keys = [(cell["data"], cell["loss"]) for cell in cells]
    if len(set(keys)) < len(keys):
        raise ValueError(f"two cells of one loss and data kind among {keys}")
    tasks = sorted({cell["task"] for cell in cells})
    if len(tasks) > 1:
        raise ValueError(f"a leaderboard is of one task, not of {', '.join(tasks)}")
    original, target = (_mean(anchors[agent])["mean"] for agent in ("original", "target"))
    scaled = -math.inf < original < target < math.inf
    low, high = (original, target) if scaled else (0.0, 1.0)

    kinds = sorted({data for data, _ in keys})
    rows, improvement = [], {}
    scores: dict[str, dict[str, NDArray]] = {}  # [data kind][loss]
    for kind in kinds:
        here = {cell["loss"]: cell for cell in cells if cell["data"] == kind}
        seeds = max(len(cell["returns"]) for cell in here.values())
        measured = {loss: _returns(cell, seeds) for loss, cell in here.items()}
        worst = min((r for runs in measured.values() for r in runs[np.isfinite(runs)]), default=NAN)
        filled = {loss: np.where(np.isfinite(r), r, worst) for loss, r in measured.items()}
        scores[kind] = {loss: (r - low) / (high - low) for loss, r in filled.items()}

        board = [
            _row(cell, measured[loss], filled[loss], scores[kind][loss])
            for loss, cell in here.items()
        ]
        alive = [row for row in board if row["diverged"] < row["seeds"]]
        by = "score" if scaled else "return"
        places = ranks({r["loss"]: (r[by]["low"], r[by]["high"]) for r in alive})
        last = {"best": len(alive) + 1, "worst": len(board), "rank": len(alive) + 1}
        for row in board:
            row["rank"] = places.get(row["loss"], last)
        board.sort(key=lambda row: (row["rank"]["rank"], -row["score"]["mean"]))
        if not scaled:  # so far, scores were returns
            for row in board:
                row["score"], row["iqm"] = (dict.fromkeys(row[k], NAN) for k in ("score", "iqm"))
        rows += board
        improvement[kind] = _improvements(scores[kind])

    compared = [
        kind for kind in kinds if np.isfinite(np.concatenate([*scores[kind].values()])).all()
    ]
    overall = [
        _pooled(loss, [scores[kind][loss] for kind in compared])
        for loss in sorted({loss for _, loss in keys})
        if scaled and compared and all(loss in scores[kind] for kind in compared)
    ]
    overall.sort(key=lambda row: -row["iqm"]["value"])
    return plain(
        {
            "task": tasks[0] if tasks else None,
            "scaled": scaled,
            "anchors": {agent: _mean(anchors[agent]) for agent in ("original", "target")},
            "rows": rows,
            "overall": overall,
            "improvement": improvement,
        }
    )


def write_leaderboard(board: Mapping[str, Any], folder: str | Path) -> None:
    """Write ``leaderboard.json`` (whole) and ``leaderboard.csv`` (its rows, one a line).

    Numbers are rounded to six decimals, hyper-parameters are not; keys are sorted. An empty field
    of the CSV is a number that could not be had, ``best`` is JSON.

    Args:
        board: from `leaderboard`.
        folder: must exist.
    """
    rounded = _rounded(board)
    text = json.dumps(rounded, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rounded["rows"]:
        numbers = [row[part][key] for part, key in _NUMBERS]
        best = json.dumps(row["best"], sort_keys=True)
        counts = [row[key] for key in _COUNTS]
        writer.writerow([rounded["task"], row["data"], row["loss"], *numbers, *counts, best])
    write_atomic(Path(folder) / "leaderboard.json", text + "\n")
    write_atomic(Path(folder) / "leaderboard.csv", table.getvalue())


_NUMBERS = [
    *(("rank", key) for key in ("rank", "best", "worst")),
    *(("score", key) for key in ("mean", "se", "low", "high")),
    *(("iqm", key) for key in ("value", "low", "high")),
    *(("return", key) for key in ("mean", "se", "low", "high")),
]
_COUNTS = ["seeds", "diverged", "episodes", "trials"]
_NAMES = ["rank", *("_".join(pair) for pair in _NUMBERS[1:])]
COLUMNS = ["task", "data", "loss", *_NAMES, *_COUNTS, "best"]


def _returns(cell: Mapping[str, Any], seeds: int) -> NDArray:
    """Mean return of every seed, NaN where training diverged; all ``seeds`` if none was run."""

    def mean(episodes: Sequence[float | None] | None) -> float:
        values = np.array(episodes or [NAN], dtype=float)  # None becomes NaN
        return float(values.mean()) if np.isfinite(values).all() else NAN

    return np.array([mean(episodes) for episodes in cell["returns"]] or [NAN] * max(seeds, 1))


def _row(
    cell: Mapping[str, Any], measured: NDArray, filled: NDArray, scores: NDArray
) -> dict[str, Any]:
    """A row but for its rank, from the seeds' returns with gaps, without, and normalised."""
    diverged = int(np.isnan(measured).sum())
    value = float(interquartile_mean(scores))
    if diverged == len(measured):
        student = dict.fromkeys(("mean", "se", "low", "high"), NAN)
        score = student | {"mean": value}
        iqm = {"value": value, "low": NAN, "high": NAN}
    else:
        one = _mean(filled) | {"low": NAN, "high": NAN}
        student = mean_of(filled.tolist())._asdict() if len(filled) > 1 else one
        score = _mean(scores) | _ends(scores, statistic=mean_score)
        iqm = {"value": value} | _ends(scores, statistic=interquartile_mean)
    return {
        "loss": cell["loss"],
        "data": cell["data"],
        "best": cell["grid"][cell["best"]] if cell["best"] >= 0 else None,
        "trials": len(cell["tuning"]),
        "seeds": len(measured),
        "episodes": max((len(episodes) for episodes in cell["returns"] if episodes), default=0),
        "diverged": diverged,
        "return": student,
        "score": score,
        "iqm": iqm,
    }


def _pooled(loss: str, strata: Sequence[NDArray]) -> dict[str, Any]:
    """One loss over all data kinds."""
    value = float(interquartile_mean(*strata))
    mean = float(mean_score(*strata))
    if paired := len({len(stratum) for stratum in strata}) == 1:
        se = _mean(np.mean(strata, axis=0))["se"]
    else:  # while seeds are being added
        se = math.hypot(*(_mean(stratum)["se"] for stratum in strata)) / len(strata)
    iqm = _ends(*strata, statistic=interquartile_mean, paired=paired)
    ends = _ends(*strata, statistic=mean_score, paired=paired)
    return {
        "loss": loss,
        "iqm": {"value": value} | iqm,
        "score": {"mean": mean, "se": se} | ends,
    }


def _improvements(scores: Mapping[str, NDArray]) -> dict[str, dict[str, dict[str, float]]]:
    """[loss a][loss b] for all ordered pairs; b over a is a over b turned round, exactly."""
    table: dict[str, dict[str, dict[str, float]]] = {loss: {} for loss in scores}
    for a, b in itertools.combinations(sorted(scores), 2):
        p = float(probability_of_improvement(scores[a], scores[b]))
        low, high = bootstrap_interval(scores[a], scores[b], statistic=probability_of_improvement)
        table[a][b] = {"p": p, "low": low, "high": high}
        table[b][a] = {"p": 1 - p, "low": 1 - high, "high": 1 - low}
    return table


def _ends(
    *strata: NDArray, statistic: Callable[..., Any], paired: bool = False
) -> dict[str, float]:
    """The interval under its names in the leaderboard."""
    low, high = bootstrap_interval(*strata, statistic=statistic, paired=paired)
    return {"low": low, "high": high}


def _mean(values: ArrayLike) -> dict[str, float]:
    """Mean and standard error, NaN where a single value has none."""
    x = np.asarray(values, dtype=float)
    se = float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else NAN
    return {"mean": float(x.mean()), "se": se}


def plain(value: Any) -> Any:
    """The same with ``None`` for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rounded(value: Any) -> Any:
    """The same with rounded numbers, except in ``best``: a setting must be fit to run again."""
    if isinstance(value, Mapping):
        return {k: v if k == "best" else _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, DECIMALS) if isinstance(value, float) else value
