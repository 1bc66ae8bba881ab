"""What a changed setting does to each loss, seed by seed, and how errors fall with data."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchmpo.runs.files import write_atomic
from torchmpo.statistics import mean_of
from torchmpo.statistics.scaling import fit_scaling

ALL = "all"  # losses, or kinds of data


class Cells(NamedTuple):
    """The cells of a run or of one of its variants.

    Attributes:
        scores: (loss, data) → score of each seed ``[seeds]``, NaN where training diverged. Returns
            where the target agent is not the better one.
        pairs: per data set.
    """

    scores: Mapping[tuple[str, str], NDArray]
    pairs: int


def cells_of(cells: Iterable[Mapping], anchors: Mapping, pairs: int) -> Cells:
    """Scores from the files of a folder."""
    low, high = (float(np.mean(anchors[agent])) for agent in ("original", "target"))
    unit = high - low if high > low else 1.0
    zero = low if high > low else 0.0
    return Cells(
        {
            (cell["loss"], cell["data"]): np.array(
                [np.nan if row is None else (np.mean(row) - zero) / unit for row in cell["returns"]]
            )
            for cell in cells
        },
        pairs,
    )


def effects(run: Cells, variants: Mapping[str, Cells]) -> list[dict[str, Any]]:
    """Score of a variant minus that of the run, paired over seeds, with 95 % t-intervals.

    Returns:
        a row for each variant, kind of data and loss, one for all losses on a kind of data where
        there are several of both, and last one for all of them together, of the seeds' mean
        differences: ``setting``, ``value``, ``data``, ``loss``, ``difference``,
        ``low``, ``high``, ``seeds`` that both finished, and ``diverged``, of the variant. ``None``
        where fewer than two are left.
    """
    rows = []
    for name, variant in variants.items():
        setting, _, value = name.partition("=")
        differences = {
            key: _paired(scores, run.scores[key])
            for key, scores in variant.scores.items()
            if len(scores) and len(run.scores.get(key, ()))  # else all settings diverged in tuning
        }
        for (loss, data), difference in differences.items():
            lost = int(np.isnan(variant.scores[loss, data]).sum())
            row = {"setting": setting, "value": value, "data": data, "loss": loss}
            rows.append(row | _mean(difference) | {"diverged": lost})
        kinds = dict.fromkeys(data for _, data in differences)
        single = rows[-len(differences) :]
        for kind in (*(kinds if 1 < len(kinds) < len(differences) else ()), ALL):
            own = [d for (_, data), d in differences.items() if kind in (data, ALL)]
            seeds = min(map(len, own), default=0)
            if len(own) > 1 and seeds:
                lost = sum(row["diverged"] for row in single if kind in (row["data"], ALL))
                row = {"setting": setting, "value": value, "data": kind, "loss": ALL}
                together = np.mean([difference[:seeds] for difference in own], axis=0)
                rows.append(row | _mean(together) | {"diverged": lost})
    return rows


def scaling(run: Cells, variants: Mapping[str, Cells]) -> list[dict[str, Any]]:
    """err(N) = E + A·N^−b of each loss and kind of data, err = 1 − score, N pairs.

    Returns:
        a row for each that finished the same seeds at three sizes or more, two seeds at least:
        ``data``, ``loss``, ``sizes``, ``seeds``, ``errors`` (the mean at each size), ``told``, and
        ``floor``, ``coefficient`` and ``exponent`` with ``_low`` and ``_high``.
    """
    sizes = {run.pairs: run}
    sizes |= {cells.pairs: cells for name, cells in variants.items() if name.startswith("pairs=")}
    ordered, rows = dict(sorted(sizes.items())), []
    for loss, data in run.scores:
        had = {n: c.scores[loss, data] for n, c in ordered.items() if (loss, data) in c.scores}
        if len(had) < 3:
            continue
        seeds = min(map(len, had.values()))
        errors = 1 - np.stack([scores[:seeds] for scores in had.values()], axis=1)
        errors = errors[np.isfinite(errors).all(1)]
        if len(errors) < 2:
            continue
        fit = fit_scaling(list(had), errors)
        row: dict[str, Any] = {"data": data, "loss": loss, "sizes": list(had), "seeds": len(errors)}
        row |= {"errors": errors.mean(0).tolist(), "told": fit.told}
        for name in ("floor", "coefficient", "exponent"):
            value, low, high = getattr(fit, name)
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return rows


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a CSV file; lists by blanks, numbers to six digits, nothing for ``None``."""
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _text(value) for key, value in row.items()} for row in rows)
    write_atomic(path, table.getvalue())


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(str(_text(item)) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else value


def _paired(one: NDArray, other: NDArray) -> NDArray:
    seeds = min(len(one), len(other))
    return one[:seeds] - other[:seeds]


def _mean(differences: NDArray) -> dict[str, Any]:
    known = differences[np.isfinite(differences)]
    found: dict[str, Any] = dict.fromkeys(("difference", "low", "high"))
    if len(known) > 1:
        mean, _, low, high = mean_of(known.tolist())
        found = {"difference": mean, "low": low, "high": high}
    return found | {"seeds": len(known)}
