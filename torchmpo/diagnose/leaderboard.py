"""Every loss on every kind of data: scores with intervals, ranks and comparisons.

One relation is behind every verdict: a loss is *shown to be better* than another by the paired
differences of their seeds, corrected for the number of pairs (:mod:`torchmpo.statistics.pairwise`).
Ranks count it. The best losses are those of rank 1: no other loss is shown to be better.

A score is normalised so that the original agent is 0 and the target agent 1; the statistics and
what is to be thought of their intervals are in :mod:`torchmpo.statistics`.
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

from torchmpo.runs.files import write_atomic
from torchmpo.statistics import (
    NAN,
    bootstrap_interval,
    diverged_as_worst,
    interquartile_mean,
    mean_of,
    mean_score,
    paired_differences,
    probability_of_improvement,
    ranks,
)

DECIMALS = 6  # of the written numbers: beyond them lie differences between machines


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

    Ranks are by paired differences of the seeds' mean returns, so seed k of all losses is taken to
    have had the same minibatches and start states.

    Where the target agent is not better than the original, as on a task it was not made for or in
    episodes too short to tell them apart, there is no scale and all scores are ``None``. Ranks are
    the same.

    Args:
        cells: any number, in any order, of one task: ``loss``, ``data``, ``task``, ``grid`` (the
            settings), ``tuning`` (a row for each setting tried; none where there was nothing to
            tune), ``best`` (index into the settings, −1 for none) and ``returns``
            ``[seed][episode]``, a seed being ``None`` (or holding a number that is not finite)
            where training diverged. Other entries are not read.
        anchors: returns per episode of the ``"original"`` and the ``"target"`` agent, and of the
            ``"start"`` of training, if it was judged. A score is
            (R − R_original)/(R_target − R_original) with the agents' means.

    Returns:
        python numbers, strings, lists and dictionaries, ready for JSON:
        ``task``; ``anchors`` (``mean``, ``se`` over episodes); ``scaled``, whether there are
        scores; ``rows``, sorted by data kind, rank and score (``return`` with Student's t,
        ``score`` with a bootstrap interval of the mean, ``iqm``, and ``rank`` within the data
        kind, see `torchmpo.statistics.pairwise.ranks`; ``trials`` is the number of settings tried,
        0 where there was nothing to tune);
        ``overall``, sorted by interquartile mean, pooled over all data kinds on which any loss
        finished, by seeds (kinds of unequal numbers of seeds, each by itself), for the losses that
        have them all, with ``rank`` among these by their seeds' mean scores over the kinds;
        ``differences`` by data kind, higher loss and lower loss, of the seeds' mean returns, see
        `torchmpo.statistics.pairwise.paired_differences`, without losses that never finished, and
        ``overall_differences``, those of the mean scores;
        ``improvement`` by data kind, loss a and loss b: the probability ``p`` that a run of a beats
        one of b; and
        ``scores``, the matrix behind ``overall``: ``kinds``, and ``losses`` from loss to
        ``[runs][kinds]``, for the seeds that all these cells have.

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
    rows, improvement, differences = [], {}, {}
    scores: dict[str, dict[str, NDArray]] = {}  # [data kind][loss]
    for kind in kinds:
        here = {cell["loss"]: cell for cell in cells if cell["data"] == kind}
        seeds = max(len(cell["returns"]) for cell in here.values())
        measured = {loss: _returns(cell, seeds) for loss, cell in here.items()}
        filled = diverged_as_worst(measured)
        scores[kind] = {loss: (r - low) / (high - low) for loss, r in filled.items()}

        board = [
            _row(cell, measured[loss], filled[loss], scores[kind][loss])
            for loss, cell in here.items()
        ]
        alive = [row for row in board if row["diverged"] < row["seeds"]]
        differences[kind] = paired_differences({r["loss"]: filled[r["loss"]] for r in alive})
        places = ranks(differences[kind])
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
    pooled = [
        loss
        for loss in sorted({loss for _, loss in keys})
        if scaled and compared and all(loss in scores[kind] for kind in compared)
    ]
    seeds = min((len(scores[kind][loss]) for kind in compared for loss in pooled), default=0)
    matrix = {
        loss: np.stack([scores[kind][loss][:seeds] for kind in compared], axis=1) for loss in pooled
    }
    of_seeds = paired_differences({loss: values.mean(1) for loss, values in matrix.items()})
    places = ranks(of_seeds)
    overall = [
        _pooled(loss, [scores[kind][loss] for kind in compared]) | {"rank": places[loss]}
        for loss in pooled
    ]
    overall.sort(key=lambda row: -row["iqm"]["value"])
    return plain(
        {
            "task": tasks[0] if tasks else None,
            "scaled": scaled,
            "anchors": {
                agent: _mean(anchors[agent])
                for agent in ("original", "target", "start")
                if agent in anchors
            },
            "rows": rows,
            "overall": overall,
            "differences": differences,
            "overall_differences": of_seeds,
            "improvement": improvement,
            "scores": {
                "kinds": compared if pooled else [],
                "losses": {loss: values.tolist() for loss, values in matrix.items()},
            },
        }
    )


def write_leaderboard(board: Mapping[str, Any], folder: str | Path) -> None:
    """Write ``leaderboard.json``, ``leaderboard.csv`` (its rows) and ``scores.json`` (its scores).

    Numbers are rounded to six decimals, hyper-parameters are not; keys are sorted. An empty field
    of the CSV is a number that could not be had, ``best`` is JSON.

    Args:
        board: from `leaderboard`.
        folder: must exist.
    """
    rounded = _rounded(board)
    scores = json.dumps(rounded.pop("scores"), ensure_ascii=False, allow_nan=False)
    text = json.dumps(rounded, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rounded["rows"]:
        numbers = [row[part][key] for part, key in _NUMBERS]
        best = json.dumps(row["best"], sort_keys=True)
        counts = [row[key] for key in _COUNTS]
        writer.writerow([rounded["task"], row["data"], row["loss"], *numbers, *counts, best])
    write_atomic(Path(folder) / "scores.json", scores + "\n")
    write_atomic(Path(folder) / "leaderboard.json", text + "\n")
    write_atomic(Path(folder) / "leaderboard.csv", table.getvalue())


_NUMBERS = [
    *(("rank", key) for key in ("rank", "best", "worst")),
    *(("score", key) for key in ("mean", "se", "low", "high")),
    *(("iqm", key) for key in ("value", "low", "high")),
    *(("return", key) for key in ("mean", "se", "low", "high")),
]
_COST = ["labels", "environment_steps"]  # of a seed; older cells do not tell
_COUNTS = ["seeds", "diverged", "episodes", "trials", *_COST]
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
        **{name: _typical(cell.get(name, ())) for name in _COST},
        "return": student,
        "score": score,
        "iqm": iqm,
    }


def _typical(counts: Sequence[int | None]) -> float | None:
    """Their mean, or None where none is known."""
    known = [count for count in counts if count is not None]
    return sum(known) / len(known) if known else None


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
