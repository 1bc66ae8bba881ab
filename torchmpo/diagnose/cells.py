"""The cells of a diagnosis on disk: a file for each loss and kind of data.

A file remembers what it was made of, so that going on with a run cannot mix results of one loss
with those of another of the same name.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from torchmpo.control.grids import nothing_to_tune
from torchmpo.control.pools import PoolConfig
from torchmpo.control.rollouts import FileRows
from torchmpo.diagnose.effects import cells_of
from torchmpo.diagnose.schemas import Cell
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.fingerprint import Unknowable
from torchmpo.objectives.fingerprint import made_of as digest
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.resolve import is_own
from torchmpo.runs.errors import UserError, one_line
from torchmpo.runs.files import slug, write_atomic
from torchmpo.runs.json_files import read_json


def cell_path(out: Path, loss: str, data: str) -> Path:
    """The file of one cell."""
    return out / "cells" / f"{slug(f'{loss}__{data}')}.json"


def read_cell(path: Path) -> dict:
    """A cell that was finished.

    Raises:
        UserError: the file is damaged, or not a cell.
    """
    return read_json(path, Cell)


def seed_scores(out: Path) -> dict[tuple[str, str], NDArray[np.float64]]:
    """The scores of a run's finished cells, by loss and kind of data: ``[seeds]`` each.

    NaN is a seed that diverged, and all of them where a loss diverged at every setting that was
    tried; the original agent scores 0 and the target 1. Where the target is not the better one,
    these are returns.
    """
    anchors = json.loads((out / "anchors.json").read_text())
    cells = (json.loads(path.read_text()) for path in sorted(out.glob("cells/*.json")))
    found = cells_of(cells, anchors, {}).scores
    seeds: dict[str, int] = {}
    for (_, data), own in found.items():
        seeds[data] = max(seeds.get(data, 1), len(own))
    lost = {key: np.full(seeds[key[1]], np.nan) for key, own in found.items() if not len(own)}
    return {**found, **lost}


def write_cell(path: Path, cell: Mapping) -> None:
    """The whole file or none."""
    write_atomic(path, json.dumps(cell) + "\n")


def made_of(name: str, objective: Objective | MirrorObjective | None, pool: PoolConfig) -> dict:
    """What else a cell depends on than the settings of its run; of a baseline, the pool alone.

    Returns:
        ``"pool"``, the key of the trajectories (agents, physics, settings); of those from a file,
        whose key says nothing of these, ``"world"``, agents and physics by name; ``"source"``, a
        digest of the text of one's own function or of the files of a saved objective, ``None`` for
        a loss of this package; and of one's own function ``"fingerprint"``, a digest of all that
        it is made of, or else ``"unknowable"``, why it has none.
    """
    made: dict = {"pool": pool.key(), "source": None}
    if isinstance(pool.rollouts, FileRows):
        made["world"] = pool.world()
    if objective is None:
        return made
    if not is_own(name) or isinstance(objective, MirrorObjective):
        return made | {"source": digest(name, objective)}
    try:
        made["fingerprint"] = digest(name, objective)
    except Unknowable as error:
        made["unknowable"] = one_line(error)
    try:  # all that older versions looked at
        text = inspect.getsource(inspect.unwrap(objective.function)).encode()
        made["source"] = hashlib.blake2b(text, digest_size=8).hexdigest()
    except (OSError, TypeError):  # of a callable instance, a partial
        pass
    return made


def check_cell(
    path: Path, cell: Mapping, loss: str, data: str, grid: Sequence[Mapping], made: Mapping
) -> None:
    """Refuse a finished cell that is not of what would be run now.

    Args:
        cell: from `read_cell`. One of a loss of this package that has no ``made_of`` is older than
            this check, and so is one of a file that has no ``world``: it is believed.
        grid: settings that would be tried.
        made: from `made_of`, as it would be now.

    Raises:
        UserError: it is of something else, or nobody can tell.
    """
    if (cell["loss"], cell["data"]) != (loss, data):
        raise UserError(f"{path} is of {cell['loss']} on {cell['data']}, not of {loss} on {data}")
    then = cell.get("made_of", {"pool": made["pool"], "source": None})
    if then["pool"] != made["pool"]:
        what = "other agents, another environment or another version of the physics"
        if made["pool"].startswith("file-"):
            what = "another file of pairs"
        raise UserError(f"{path} was made with {what}: choose another --out")
    world = made.get("world", {})
    if changed := [name for name, was in then.get("world", {}).items() if world.get(name) != was]:
        raise UserError(
            f"{path} was made with another {', '.join(changed)}: put it back, or choose another "
            "--out"
        )
    if reason := made.get("unknowable") or then.get("unknowable"):
        raise UserError(
            f"nobody can tell whether {loss} has changed since {path} was made ({reason}): delete "
            "that file and --resume"
        )
    by = "fingerprint" if "fingerprint" in then else "source"
    if then[by] is None and (is_own(loss) or made["source"]):
        raise UserError(f"{path} does not say of what {loss} was made: delete it and --resume")
    if then[by] != made.get(by):
        raise UserError(f"{loss} has changed since {path} was made: delete that file and --resume")
    if _tried(cell["grid"]) != _tried(grid):
        raise UserError(
            f"{path} was tuned over other settings than are given now: delete it and --resume"
        )


def _tried(grid: Sequence[Mapping]) -> list[Mapping]:
    return [grid[0]] if nothing_to_tune(grid) else list(grid)
