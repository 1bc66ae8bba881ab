"""Pairs of a Minari data set's episodes, as the arrays that a file of pairs has.

Nothing is downloaded: ``minari download ID`` does that. Actions are in units of the range that the
data set's action space gives, −1 to 1, as everywhere here.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torchmpo.control.pair_files import MINARI, array, checked_arrays, padded
from torchmpo.runs.errors import UserError, missing_package, one_line
from torchmpo.runs.seeding import generator

if TYPE_CHECKING:
    from minari import MinariDataset

PAIRS = "torchmpo_pairs"  # in the metadata of a data set that `to_minari` wrote


def minari_arrays(
    dataset: "str | MinariDataset", pairs: int | None = None, *, seed: int = 0
) -> dict[str, Tensor]:
    """Trajectories and pairs, see :func:`torchmpo.control.minari_data.from_minari`.

    Raises:
        UserError: as there.
    """
    found = opened(dataset)
    known, episodes = found.storage.metadata.get(PAIRS), int(found.storage.total_episodes)
    if known is not None and len(found) != episodes:  # pairs name all episodes by their numbers
        if pairs is None:
            raise UserError(
                f"{found.id} has been filtered, and its pairs are of all its episodes: say how "
                "many to draw, pairs=1000"
            )
        known = None
    if pairs is None and known is None:
        raise UserError(f"{found.id} has no pairs of its own: say how many to draw, pairs=1000")
    if known is not None and not _whole(known, episodes):
        raise UserError(
            f"{found.id}: what its metadata says of pairs is damaged; write it again with to_minari"
        )
    low, high = action_range(found.action_space, found.id)
    returns = [float(np.sum(_episode(found, k).rewards)) for k in range(len(found))]
    if pairs is not None:
        chosen, rejected = _drawn(torch.tensor(returns), pairs, seed, found.id)
        rewards = (known or {}).get("rewards")  # of an episode, whatever it is compared with
        known = {"chosen": chosen.tolist(), "rejected": rejected.tolist(), "rewards": rewards}
    assert known is not None
    lists = known.get("lists") or list(zip(known["chosen"], known["rejected"], strict=True))
    used = sorted({episode for row in lists for episode in row})
    place = {episode: row for row, episode in enumerate(used)}
    trajectories = []
    for index in used:
        episode = _episode(found, index)
        steps = len(episode.rewards)
        action = np.asarray(episode.actions, np.float64).reshape(steps, -1)
        observation = _flat(found.observation_space, episode.observations, found.id)[:steps]
        unit = np.where(np.isfinite(high - low), 2 * (action - low) / (high - low) - 1, action)
        trajectories.append({"observation": observation, "action": unit, "return": returns[index]})
    places = array([[place[episode] for episode in row] for row in lists], "pairs")
    arrays = {**padded(trajectories), "chosen": places[:, 0], "rejected": places[:, -1]}
    if places.shape[1] > 2:
        arrays["lists"] = places
    if (probs := known.get("preference_probs")) is not None:
        arrays["preference_probs"] = array(probs, "preference_probs")
    for name in ("rewards", "begins"):
        if (values := known.get(name)) is not None:
            arrays[name] = array([values[episode] for episode in used], name)
    return checked_arrays(arrays)


def _episode(dataset: "MinariDataset", index: int) -> Any:
    try:
        return dataset[index]
    except (OSError, KeyError, RuntimeError, AssertionError, ValueError) as error:  # of its file
        raise UserError(f"{dataset.id}: episode {index} is damaged: {one_line(error)}") from error


def _whole(known: Any, episodes: int) -> bool:
    """Whether the note of :func:`~torchmpo.control.minari_data.to_minari` is of these episodes."""
    try:
        lists = known.get("lists") or [*zip(known["chosen"], known["rejected"], strict=True)]
        inside = all(0 <= int(row) < episodes for of in lists for row in of)
        of_each = [values for name in ("rewards", "begins") if (values := known.get(name))]
        return bool(lists) and inside and all(len(values) == episodes for values in of_each)
    except (AttributeError, LookupError, TypeError, ValueError):
        return False


def minari_rows(kind: str, pairs: int, seed: int) -> dict[str, Tensor]:
    """The same for ``minari:ID``; ``pairs`` are drawn where the data set has none of its own.

    Raises:
        UserError: as there.
    """
    dataset = opened(kind.removeprefix(MINARI))
    own = PAIRS in dataset.storage.metadata
    return minari_arrays(dataset, None if own else pairs, seed=seed)


def minari_digest(kind: str) -> str:
    """Of the files of ``minari:ID``.

    Raises:
        UserError: there is no such data set.
    """
    folder = Path(opened(kind.removeprefix(MINARI)).storage.data_path)
    found = hashlib.blake2b(digest_size=8)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, hashlib.blake2b).digest())
    return found.hexdigest()


def opened(dataset: Any) -> "MinariDataset":
    """An id in Minari's local folder, the path of a data set, or an open one.

    Raises:
        UserError: there is none.
    """
    try:
        import h5py  # noqa: F401, what minari reads its files with
        import minari
    except ModuleNotFoundError as error:
        raise missing_package(error, "minari") from error
    if isinstance(dataset, minari.MinariDataset):
        return dataset
    folder = Path(dataset) / "data"
    try:
        return (
            minari.MinariDataset(folder) if folder.is_dir() else minari.load_dataset(str(dataset))
        )
    except (OSError, ValueError, KeyError, AssertionError, AttributeError, TypeError) as error:
        raise UserError(
            f"{dataset} is no data set of Minari on this machine ({one_line(error)}); "
            f"minari download {dataset}"
        ) from error


def action_range(space: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value of each action, infinite for none.

    Raises:
        UserError: the actions of the data set called ``name`` are no real numbers.
    """
    from gymnasium.spaces import Box

    if not isinstance(space, Box):
        raise UserError(f"{name} has actions of {space}: policies here act by real numbers (Box)")
    low, high = (np.asarray(bound, np.float64).reshape(-1) for bound in (space.low, space.high))
    return low, high


def _flat(space: Any, values: Any, name: str) -> np.ndarray:
    """Observations of an episode as numbers ``[time, size]``, in the order of Gymnasium's own."""
    from gymnasium.spaces import Box, Dict

    if isinstance(space, Dict):
        parts = [_flat(part, values[key], name) for key, part in space.spaces.items()]
        return np.concatenate(parts, 1)
    if not isinstance(space, Box):
        raise UserError(f"{name} has observations of {space}: they must be real numbers")
    return np.asarray(values, np.float32).reshape(len(values), -1)


def _drawn(returns: Tensor, pairs: int, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """The better and the worse episode of each pair."""
    count = len(returns)
    if count < 2 or pairs < 1 or bool((returns == returns[0]).all()):
        raise UserError(
            f"{name} has {count} episodes, all of one return, or no pair was asked for: there is "
            "nothing to compare"
        )
    draw = generator(seed, "minari pairs")
    first, second = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    while len(first) < pairs:  # those of equal returns are drawn again
        one = torch.randint(count, (pairs,), generator=draw)
        other = (one + 1 + torch.randint(count - 1, (pairs,), generator=draw)) % count
        differ = returns[one] != returns[other]
        first, second = torch.cat([first, one[differ]]), torch.cat([second, other[differ]])
    first, second = first[:pairs], second[:pairs]
    better = returns[first] > returns[second]
    return torch.where(better, first, second), torch.where(better, second, first)
