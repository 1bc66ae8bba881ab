"""Pairs of trajectories of one's own: a file, or lists in Python, checked before they are used.

The layout of a file, ``.npz`` or ``.safetensors``, is that of
:class:`torchmpo.control.preferences.PreferenceDataset`, array by array.
"""

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from torchmpo.runs.errors import UserError, one_line

SUFFIXES = (".npz", ".safetensors")
MINARI = "minari:"  # how a kind of data names a data set of Minari
_WHOLE = ("lengths", "chosen", "rejected", "lists", "begins")
_REQUIRED = ("observation", "action", "lengths", "returns", "chosen", "rejected")
_OPTIONAL = ("preference_probs", "rewards", "lists", "begins")
_OF_TRAJECTORIES = ("lengths", "returns", "rewards", "begins")  # a number each


def file_of(kind: str) -> tuple[str, str]:
    """The file, or data set of Minari, that a kind of data begins with, if any, and the rest of it.

    >>> file_of("my+own/pairs.npz+noisy:0.1"), file_of("minari:a/b-v0"), file_of("noisy:0.1")
    (('my+own/pairs.npz', '+noisy:0.1'), ('minari:a/b-v0', ''), ('', 'noisy:0.1'))
    """
    found = re.match(rf"({MINARI}[^+]+|.+?\.(?:npz|safetensors))(?=$|\+)", kind)
    return (found[1], kind[found.end() :]) if found else ("", kind)


def read_pair_file(path: str) -> dict[str, Tensor]:
    """The arrays of a file, checked.

    Raises:
        UserError: it cannot be read, or something in it is not as it should be.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.endswith(".npz"):
            # NumPy leaves a damaged file open.
            with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
                arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        else:
            arrays = load_file(path)
    except (
        *(OSError, ValueError, TypeError, EOFError, NotImplementedError),
        *(BadZipFile, zlib.error, SafetensorError),
    ) as error:
        raise UserError(f"{path} is not a readable file of pairs: {one_line(error)}") from error
    try:
        return checked_arrays(arrays)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def write_pair_file(arrays: Mapping[str, Tensor | None], path: str | Path) -> None:
    """Write arrays as :func:`read_pair_file` reads them; the suffix says in which format.

    Raises:
        UserError: another suffix, or arrays that could not be read back.
    """
    from safetensors.torch import save_file

    if Path(path).suffix not in SUFFIXES:
        raise UserError(f"{path}: a file of pairs ends in {' or '.join(SUFFIXES)}")
    tensors = checked_arrays({n: torch.as_tensor(v) for n, v in arrays.items() if v is not None})
    if str(path).endswith(".npz"):
        arrays_of_numpy: dict[str, Any] = {name: value.numpy() for name, value in tensors.items()}
        np.savez(path, **arrays_of_numpy)
    else:
        save_file({name: value.contiguous() for name, value in tensors.items()}, str(path))


def checked_arrays(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays of pairs in the types that training wants.

    Args:
        arrays: ``observation [trajectories, time, n]``, ``action [trajectories, time, m]``,
            ``lengths`` and ``returns`` ``[trajectories]``, ``chosen`` and ``rejected`` ``[pairs]``,
            and perhaps ``preference_probs [pairs]``, ``lists [pairs, n]`` from the chosen
            trajectory to the rejected one, and ``rewards`` and ``begins`` ``[trajectories]``.

    Raises:
        UserError: what is missing or wrong, in a line.
    """
    if missing := [name for name in _REQUIRED if name not in arrays]:
        raise UserError(f"{', '.join(missing)} missing; pairs need {', '.join(_REQUIRED)}")
    if unknown := arrays.keys() - {*_REQUIRED, *_OPTIONAL}:
        raise UserError(f"{', '.join(sorted(unknown))}: there is no array of such a name")
    for name, value in arrays.items():
        whole = name in _WHOLE
        wrong = value.is_complex() or value.dtype == torch.bool
        if wrong or (whole and value.is_floating_point()):
            raise UserError(f"{name} must be {'whole' if whole else 'real'} numbers; {value.dtype}")
        size = {"observation": 3, "action": 3, "lists": 2}.get(name, 1)
        if value.ndim != size or not value.numel():
            raise UserError(f"{name} must have {size} dimensions; got shape {tuple(value.shape)}")
    found = {
        name: value.long() if name in _WHOLE else value.float() for name, value in arrays.items()
    }
    count, time = found["observation"].shape[:2]
    each = {name: (count,) for name in _OF_TRAJECTORIES if name in found}
    for name, shape in {"action": (count, time), **each}.items():
        have = tuple(found[name].shape[: len(shape)])
        if have != shape:
            raise UserError(f"{name} is of {have}, but observation of {(count, time)}")
    if not (int(found["lengths"].min()) > 0 and int(found["lengths"].max()) <= time):
        raise UserError(f"lengths must be between 1 and {time}, the time steps there are")
    begins = found.get("begins", torch.zeros(()))
    if not bool(((begins >= 0) & (begins < found["lengths"])).all()):
        raise UserError("begins must be from 0 to below lengths: a step at least has to count")
    pairs = len(found["chosen"])
    for name in ("rejected", "preference_probs", "lists"):
        if name in found and len(found[name]) != pairs:
            raise UserError(f"{name} has {len(found[name])} pairs, but chosen has {pairs}")
    for name in ("chosen", "rejected", "lists"):
        if name in found and not (int(found[name].min()) >= 0 and int(found[name].max()) < count):
            raise UserError(f"{name} must name trajectories, from 0 to {count - 1}")
    if bool((same := found["chosen"] == found["rejected"]).any()):
        raise UserError(f"pair {int(same.nonzero()[0])} compares a trajectory with itself")
    if "lists" in found:
        _check_lists(found)
    if "begins" in found:
        ranked = found.get("lists", torch.stack([found["chosen"], found["rejected"]], 1))
        begins = found["begins"][ranked]
        if bool((apart := (begins != begins[:, :1]).any(1)).any()):
            raise UserError(
                f"begins must be the same for all that are compared: in pair "
                f"{int(apart.nonzero()[0])} they are not"
            )
    probs = found.get("preference_probs")
    if probs is not None and not bool(((probs >= 0) & (probs <= 1)).all()):
        raise UserError("preference_probs must be between 0 and 1")
    for name in ("returns", "rewards"):
        if name in found and not bool(found[name].isfinite().all()):
            raise UserError(f"{name} must be finite")
    counted = torch.arange(time) < found["lengths"][:, None]
    for name in ("observation", "action"):
        if not bool((bad := ~found[name].isfinite().all(-1) & counted).any()):
            found[name] = torch.where(counted[..., None], found[name], 0.0)
            continue
        row, step = bad.nonzero()[0].tolist()
        raise UserError(f"{name} of trajectory {row} is not finite at step {step}")
    return found


def _check_lists(arrays: Mapping[str, Tensor]) -> None:
    lists = arrays["lists"]
    ends = torch.stack([arrays["chosen"], arrays["rejected"]], 1)
    if lists.shape[1] < 2 or not torch.equal(lists[:, [0, -1]], ends):
        raise UserError("lists must go from the chosen trajectory of each pair to its rejected one")
    ordered = lists.sort(1).values
    if bool((twice := (ordered[:, 1:] == ordered[:, :-1]).any(1)).any()):
        raise UserError(f"list {int(twice.nonzero()[0])} has a trajectory twice")


def padded(trajectories: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Trajectories of unequal lengths as arrays, with zeros after their ends.

    Args:
        trajectories: each with ``observation [time, n]``, ``action [time, m]`` and either
            ``return``, a number, or ``rewards [time]``.

    Raises:
        UserError: what is missing or wrong, with the number of the trajectory.
    """
    found: dict[str, list] = {"observation": [], "action": [], "lengths": [], "returns": []}
    if not isinstance(trajectories, Iterable):
        raise UserError(f"trajectories must be a list of mappings; got {trajectories!r}")
    for index, trajectory in enumerate(trajectories):
        if not isinstance(trajectory, Mapping):
            kind = type(trajectory).__name__
            raise UserError(f"trajectory {index} must be a mapping; got a {kind}")
        parts = {}
        for name in ("observation", "action"):
            if name not in trajectory:
                raise UserError(f"trajectory {index} has no {name}")
            parts[name] = _real(trajectory[name], f"{name} of trajectory {index}")
            if parts[name].ndim != 2 or not len(parts[name]):
                raise UserError(
                    f"{name} of trajectory {index} must be [time, size]; got "
                    f"{tuple(parts[name].shape)}"
                )
            widths = {part.shape[1] for part in (*found[name], parts[name])}
            if len(widths) > 1:
                raise UserError(
                    f"{name} of trajectory {index} has {parts[name].shape[1]} numbers a step, the "
                    f"first trajectory {found[name][0].shape[1]}"
                )
        steps = {name: len(part) for name, part in parts.items()}
        if "rewards" in trajectory:
            rewards = _real(trajectory["rewards"], f"rewards of trajectory {index}")
            steps["rewards"] = len(rewards) if rewards.ndim == 1 else 0
            value = rewards.sum()
        elif "return" in trajectory:
            value = _real(trajectory["return"], f"return of trajectory {index}")
        else:
            raise UserError(f"trajectory {index} has neither a return nor rewards")
        if len(set(steps.values())) > 1:
            raise UserError(f"trajectory {index} has unequal lengths: {steps}")
        if value.ndim or not value.isfinite():
            raise UserError(f"the return of trajectory {index} must be a finite number")
        for name, part in parts.items():
            found[name].append(part)
        found["lengths"].append(steps["action"])
        found["returns"].append(float(value))
    if not found["lengths"]:
        raise UserError("there are no trajectories")
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "observation": pad(found["observation"], batch_first=True),
        "action": pad(found["action"], batch_first=True),
        "lengths": torch.tensor(found["lengths"]),
        "returns": torch.tensor(found["returns"]),
    }


def array(value: Any, what: str) -> Tensor:
    """Numbers of the user's: lists, NumPy arrays of any strides, tensors.

    Args:
        what: it is, for messages.

    Raises:
        UserError: they are none, or not real.
    """
    try:
        # A copy of arrays: those that are read-only or have negative strides are no tensors.
        found = value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value).copy())
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{what} is not an array of numbers: {one_line(error)}") from error
    if found.is_complex() or found.dtype == torch.bool:
        raise UserError(f"{what} must be real numbers; got {found.dtype}")
    return found


def _real(value: Any, what: str) -> Tensor:
    return array(value, what).float()
