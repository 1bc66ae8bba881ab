"""Tables that are about several cells: effects of settings, scaling fits, over-optimisation."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchmpo.diagnose.cells import cell_path, read_cell
from torchmpo.diagnose.effects import Cells, cells_of, effects, scaling, write_table
from torchmpo.diagnose.schemas import Anchors, Statistics
from torchmpo.diagnose.setup import Setup
from torchmpo.diagnose.variants import folder
from torchmpo.runs.files import write_atomic
from torchmpo.runs.json_files import read_json
from torchmpo.statistics import mean_of

FILE = "comparisons.json"
TABLES = ("effects", "scaling", "overoptimisation")


def write_comparisons(setup: Setup, cells: Sequence[Mapping], out: Path) -> None:
    """``comparisons.json``, with a list of rows under each of ``TABLES`` that has any, and these
    as CSV files.

    Args:
        cells: of the run itself, those that are finished.
        out: its folder.
    """
    anchors = read_json(out / "anchors.json", Anchors)
    own = cells_of(cells, anchors, _pairs(out))
    others = {
        name: found
        for name, variant in setup.variants.items()
        if (found := _variant(variant, folder(out, name)))
    }
    found = {
        "effects": effects(own, others),
        "scaling": scaling(own, others),
        "overoptimisation": overoptimisation(cells, anchors),
    }
    for name in TABLES:
        path = out / f"{name}.csv"
        if found[name]:
            write_table(path, found[name])
        else:
            path.unlink(missing_ok=True)  # of a setting that is no longer varied
    found = {name: rows for name, rows in found.items() if rows}
    if found:
        write_atomic(out / FILE, json.dumps(found, allow_nan=False) + "\n")
    else:
        (out / FILE).unlink(missing_ok=True)


def overoptimisation(cells: Iterable[Mapping], anchors: Mapping) -> list[dict[str, Any]]:
    """Score against √KL: a row for each checkpoint of each cell, means over seeds.

    Returns:
        ``data``, ``loss``, ``epoch``, ``root_kl`` (the root of the mean KL(π ‖ start) per step),
        ``score`` with ``low`` and ``high``, the return where there are no scores; ``seeds``, those
        that came to the end, of which alone a row speaks, and how many ``diverged``; ``judged``,
        the score that a ``proxy:B`` judge would give, in the same units, and ``learned``, the
        reward of a step that a baseline has learned, or None.
    """
    rows = []
    for cell in cells:
        every = cell.get("checkpoints", ())
        paths = [path for path in every if path]
        scores, judged = (_scores(paths, anchors, name) for name in ("return", "judged"))
        for k in range(len(paths[0]["epoch"]) if paths else 0):
            here = scores[:, k]
            learned = [path["learned"][k] for path in paths if "learned" in path]
            ends = mean_of(here.tolist())._asdict() if len(here) > 1 else {}
            rows.append(
                {
                    "data": cell["data"],
                    "loss": cell["loss"],
                    "epoch": paths[0]["epoch"][k],
                    "root_kl": math.sqrt(max(0.0, np.mean([path["kl"][k] for path in paths]))),
                    "score": float(here.mean()),
                    "low": ends.get("low"),
                    "high": ends.get("high"),
                    "seeds": len(paths),
                    "diverged": len(every) - len(paths),
                    "judged": float(judged[:, k].mean()) if judged.size else None,
                    "learned": float(np.mean(learned)) if learned else None,
                }
            )
    return rows


def _scores(paths: Sequence[Mapping], anchors: Mapping, name: str) -> np.ndarray:
    """Returns on the way, or what a judge says of them, as scores: ``[seeds, checkpoints]``."""
    values = [path[name] for path in paths if name in path]
    rows = {"loss": "", "data": "", "returns": [[value] for path in values for value in path]}
    found = cells_of([rows], anchors, {}).scores["", ""]
    return found.reshape(len(values), -1) if values else np.empty((0, 0))


def _variant(setup: Setup, out: Path) -> Cells | None:
    """What is finished of a variant."""
    paths = [cell_path(out, loss, data) for data in setup.testbeds for loss in setup.objectives]
    cells = [read_cell(path) for path in paths if path.exists()]
    if not cells:
        return None
    return cells_of(cells, read_json(out / "anchors.json", Anchors), _pairs(out))


def _pairs(out: Path) -> dict[str, int]:
    """How many there are of each kind of data."""
    kinds = read_json(out / "statistics.json", Statistics)["kinds"]
    return {kind: found["pairs"] for kind, found in kinds.items()}
