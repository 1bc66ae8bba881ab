"""Numbered checkpoints that survive a kill at any moment: tensors and JSON in one safetensors file.

One file, because one rename is atomic and two are not. Its metadata holds the JSON and a digest of
everything, so a damaged file is noticed, and the one before it is used.
"""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from torchmpo.runs.files import write_atomic
from torchmpo.runs.json_files import parse_json


class Checkpoint(NamedTuple):
    """What was saved: the number of steps done, tensors by name, and anything JSON can hold."""

    step: int
    tensors: dict[str, Tensor]
    info: Any


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint, *, keep: int = 3) -> None:
    """Write a checkpoint, then delete all but the newest ``keep`` (≥ 1)."""
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {  # clones: safetensors refuses tensors that share memory
        name: value.detach().cpu().contiguous().clone()
        for name, value in checkpoint.tensors.items()
    }
    info = json.dumps({"step": checkpoint.step, "info": checkpoint.info})
    metadata = {"checkpoint": json.dumps({"json": info, "digest": _digest(tensors, info)})}
    write_atomic(_path(folder, checkpoint.step), save(tensors, metadata=metadata))
    for old in _newest_first(folder)[keep:]:
        old.unlink(missing_ok=True)


def load_checkpoint(folder: str | Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or ``None``; warns of damaged ones it passes over."""
    for path in _newest_first(Path(folder)):
        try:
            return _read(path)
        except ValueError as error:
            # At this line whoever asks, so that it is told once.
            warnings.warn(f"{error}; going back to the one before it", stacklevel=1)
    return None


def _path(folder: Path, step: int) -> Path:
    return folder / f"{step:06d}.safetensors"


def _newest_first(folder: Path) -> list[Path]:
    files = folder.glob("*.safetensors") if folder.is_dir() else ()
    files = (file for file in files if file.stem.isdigit() and file.is_file())
    return sorted(files, key=lambda f: int(f.stem), reverse=True)


def _digest(tensors: dict[str, Tensor], info: str) -> str:
    digest = hashlib.blake2b(info.encode(), digest_size=16)
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            outer = parse_json((file.metadata() or {})["checkpoint"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if outer["digest"] != _digest(tensors, outer["json"]):
            raise ValueError("its digest does not match its content")
        inner = parse_json(outer["json"])
        return Checkpoint(inner["step"], tensors, inner["info"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint {path} is damaged ({error})") from error
