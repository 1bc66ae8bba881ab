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
LOST = {"diverged": "with it", "diverged_without": "without it"}  # seeds of the two sides


class Cells(NamedTuple):
    """The cells of a run or of one of its variants.

    Attributes:
        scores: (loss, data) → score of each seed ``[seeds]``, NaN where training diverged. Returns
            where the target agent is not the better one.
        pairs: of each kind of data.
        scaled: whether these are scores, and not returns.
    """

    scores: Mapping[tuple[str, str], NDArray]
    pairs: Mapping[str, int]
    scaled: bool = True


def cells_of(cells: Iterable[Mapping], anchors: Mapping, pairs: Mapping[str, int]) -> Cells:
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
        high > low,
    )


def effects(run: Cells, variants: Mapping[str, Cells]) -> list[dict[str, Any]]:
    """Score of a variant minus that of the run, paired over seeds, with 95 % t-intervals.

    A seed that diverged on one side counts as the worst run that any loss finished on that kind of
    data, with the setting or without. So do all seeds of a loss that diverged in all its trials.

    Returns:
        a row for each variant, kind of data and loss, one for all losses on a kind of data where
        there are several of both, and last one for all of them together, of the seeds' mean
        differences: ``setting``, ``value``, ``data``, ``loss``, ``difference``, ``low``, ``high``,
        ``seeds`` that are compared, how many of them ``diverged`` with the setting and
        ``diverged_without`` it, and ``why`` there is no difference (``None``): with or without the
        setting no loss finished on that kind of data, one seed is too few, or only one of the two
        has scores. A variant of the last kind has one row.
    """
    rows = []
    for name, variant in variants.items():
        setting, _, value = name.partition("=")
        here = {"setting": setting, "value": value}
        if variant.scaled != run.scaled:
            which = "with it" if run.scaled else "without it"
            why = f"{which} the target agent is no better than the original, so there are no scores"
            nothing = _mean(np.array([])) | dict.fromkeys(LOST, 0) | {"why": why}
            rows.append(here | {"data": ALL, "loss": ALL} | nothing)
            continue
        differences, single = {}, []
        for loss, data in [key for key in variant.scores if key in run.scores]:
            difference, lost = _paired((loss, data), variant.scores, run.scores)
            differences[loss, data] = difference
            single.append(here | {"data": data, "loss": loss} | _mean(difference) | lost)
        rows += single
        kinds = dict.fromkeys(data for _, data in differences)
        for kind in (*(kinds if 1 < len(kinds) < len(differences) else ()), ALL):
            of = [d for (_, data), d in differences.items() if kind in (data, ALL)]
            of = [difference for difference in of if np.isfinite(difference).any()]
            if len(of) > 1:
                seeds = min(map(len, of))
                together = _mean(np.mean([difference[:seeds] for difference in of], axis=0))
                parts = [row for row in single if kind in (row["data"], ALL)]
                lost = {side: sum(row[side] for row in parts) for side in LOST}
                rows.append(here | {"data": kind, "loss": ALL} | together | lost)
    return rows


def scaling(run: Cells, variants: Mapping[str, Cells]) -> list[dict[str, Any]]:
    """err(N) = E + A·N^−b of each loss and kind of data, err = 1 − score, N pairs.

    Returns:
        a row for each that finished the same seeds at three sizes or more, two seeds at least, if
        there are scores:
        ``data``, ``loss``, ``sizes``, ``seeds``, ``errors`` (the mean at each size), ``told``, and
        ``floor``, ``coefficient`` and ``exponent`` with ``_low`` and ``_high``.
    """
    if not run.scaled:  # returns, of which 1 is no end of the scale
        return []
    runs = [run, *(cells for name, cells in variants.items() if name.startswith("pairs="))]
    rows = []
    for loss, data in run.scores:
        # A kind with a number of its own, as base+pairs:32, has one size whatever is varied.
        sizes = {c.pairs[data]: c.scores[loss, data] for c in runs if (loss, data) in c.scores}
        had = dict(sorted(sizes.items()))
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


def _paired(
    key: tuple[str, str], scores: Mapping[tuple[str, str], NDArray], before: Mapping
) -> tuple[NDArray, dict[str, int]]:
    """Differences ``[seeds]`` of a loss on a kind of data, and how many seeds diverged."""
    both = scores, before
    seeds = min((len(own[key]) for own in both if len(own[key])), default=0)
    # No seed at all: every setting diverged in tuning.
    sides = [own[key][:seeds] if len(own[key]) else np.full(seeds, np.nan) for own in both]
    lost = dict(zip(LOST, (int(np.isnan(side).sum()) for side in sides), strict=True))
    kind = [np.concatenate([of for (_, d), of in own.items() if d == key[1]]) for own in both]
    if not all(np.isfinite(runs).any() for runs in kind):
        return np.full(seeds, np.nan), lost  # with or without the setting nothing was measured
    worst = np.nanmin(np.concatenate(kind))
    one, other = (np.where(np.isnan(side), worst, side) for side in sides)
    return one - other, lost


def _mean(differences: NDArray) -> dict[str, Any]:
    known = differences[np.isfinite(differences)]
    found: dict[str, Any] = dict.fromkeys(("difference", "low", "high"))
    why = "one seed is too few" if len(known) else "every training diverged"
    if len(known) > 1:
        mean, _, low, high = mean_of(known.tolist())
        found, why = {"difference": mean, "low": low, "high": high}, ""
    return found | {"seeds": len(known), "why": why}
