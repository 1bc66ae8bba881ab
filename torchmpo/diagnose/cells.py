"""The cells of a diagnosis on disk: a file for each loss and kind of data.

A file remembers what it was made of, so that going on with a run cannot mix results of one loss
with those of another of the same name.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torchmpo.control.grids import nothing_to_tune
from torchmpo.control.pools import PoolConfig
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.command import read_json
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import slug, write_atomic

KEYS = {"loss", "data", "grid", "tuning", "best", "returns", "curves", "margins"}


def cell_path(out: Path, loss: str, data: str) -> Path:
    """The file of one cell."""
    return out / "cells" / f"{slug(f'{loss}__{data}')}.json"


def read_cell(path: Path) -> dict:
    """A cell that was finished.

    Raises:
        UserError: the file is damaged, or not a cell.
    """
    cell = read_json(path)
    if not isinstance(cell, dict) or KEYS - cell.keys():
        raise UserError(f"{path} is not a cell: delete it and --resume")
    return cell


def write_cell(path: Path, cell: Mapping) -> None:
    """The whole file or none."""
    write_atomic(path, json.dumps(cell) + "\n")


def made_of(name: str, objective: Objective | MirrorObjective, pool: PoolConfig) -> dict:
    """What else a cell depends on than the settings of its run.

    Returns:
        ``"pool"``, the key of the trajectories (agents, physics, settings); ``"source"``, a hash of
        the text of one's own function or of the files of a saved objective, ``None`` for a loss of
        this package. What a function calls is not looked into.
    """
    source = None
    if isinstance(objective, Objective) and ":" in name:
        try:
            source = inspect.getsource(inspect.unwrap(objective.function)).encode()
        except (OSError, TypeError):  # without a text, say from a compiled module
            source = None
    elif Path(name).is_dir():
        files = [p for p in sorted(Path(name).iterdir()) if p.suffix in (".json", ".safetensors")]
        source = b"".join(p.read_bytes() for p in files if p.name != "card.json")
    digest = source and hashlib.blake2b(source, digest_size=8).hexdigest()
    return {"pool": pool.key(), "source": digest}


def check_cell(
    path: Path, cell: Mapping, loss: str, data: str, grid: Sequence[Mapping], made: Mapping
) -> None:
    """Refuse a finished cell that is not of what would be run now.

    Args:
        cell: from `read_cell`. One without ``made_of`` is older than this check.
        grid: settings that would be tried.
        made: from `made_of`, as it would be now.

    Raises:
        UserError: it is of something else.
    """
    if (cell["loss"], cell["data"]) != (loss, data):
        raise UserError(f"{path} is of {cell['loss']} on {cell['data']}, not of {loss} on {data}")
    then = cell.get("made_of", made)
    if then["pool"] != made["pool"]:
        what = "other agents or another version of the physics"
        if made["pool"].startswith("file-"):
            what = "another file of pairs"
        raise UserError(f"{path} was made with {what}: choose another --out")
    if then["source"] != made["source"]:
        raise UserError(f"{loss} has changed since {path} was made: delete that file and --resume")
    if _tried(cell["grid"]) != _tried(grid):
        raise UserError(
            f"{path} was tuned over other settings than are given now: delete it and --resume"
        )


def _tried(grid: Sequence[Mapping]) -> list[Mapping]:
    return [grid[0]] if nothing_to_tune(grid) else list(grid)
