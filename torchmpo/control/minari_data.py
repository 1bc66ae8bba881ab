"""Data sets of Minari as preference data, and preference data as one of them.

Nothing is downloaded: ``minari download ID`` does that. Actions are in units of the range that the
data set's action space gives, −1 to 1, as everywhere here.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torchmpo.control.preferences import PreferenceDataset
from torchmpo.runs.errors import UserError, missing_package, one_line
from torchmpo.runs.seeding import generator

if TYPE_CHECKING:
    from minari import MinariDataset

PAIRS = "torchmpo_pairs"  # in the metadata of a data set that `to_minari` wrote


def from_minari(
    dataset: "str | MinariDataset", pairs: int | None = None, *, seed: int = 0
) -> PreferenceDataset:
    """Pairs of a data set's episodes.

    Episodes are paired at random, each with another one; start states are not equal. The one with
    the higher return is chosen. A data set that :func:`to_minari` wrote has its own pairs, which
    are taken where ``pairs`` is None.

    Args:
        dataset: an id in Minari's local folder, the path of such a data set, or an open one.
        pairs: how many; an episode may be in several of them.
        seed: of the choice.

    Raises:
        UserError: there is no such data set, it has no pairs of its own and ``pairs`` is None, its
            actions are no real numbers, or all of its episodes have one return.
    """
    found = _opened(dataset)
    known = found.storage.metadata.get(PAIRS)
    if pairs is None and known is None:
        raise UserError(f"{found.id} has no pairs of its own: say how many to draw, pairs=1000")
    low, high = _range(found.action_space, found.id)
    returns = [float(np.sum(episode.rewards)) for episode in found]
    if pairs is not None:
        chosen, rejected = _drawn(torch.tensor(returns), pairs, seed, found.id)
        known = {"chosen": chosen.tolist(), "rejected": rejected.tolist()}
    assert known is not None
    lists = known.get("lists") or list(zip(known["chosen"], known["rejected"], strict=True))
    used = sorted({episode for row in lists for episode in row})
    place = {episode: row for row, episode in enumerate(used)}
    trajectories = []
    for index in used:
        episode = found[index]
        steps = len(episode.rewards)
        action = np.asarray(episode.actions, np.float64).reshape(steps, -1)
        observation = _flat(found.observation_space, episode.observations, found.id)[:steps]
        unit = np.where(np.isfinite(high - low), 2 * (action - low) / (high - low) - 1, action)
        trajectories.append({"observation": observation, "action": unit, "return": returns[index]})
    places = [[place[episode] for episode in row] for row in lists]
    return PreferenceDataset.from_trajectories(trajectories, places, known.get("preference_probs"))


def to_minari(
    data: PreferenceDataset,
    dataset_id: str,
    *,
    environment: str | None = None,
    low: Any = -1.0,
    high: Any = 1.0,
    **about: Any,
) -> "MinariDataset":
    """Write trajectories, and the pairs among them, as a new data set.

    What preference data does not have is filled in: a trajectory's return stands as the reward of
    its last step, its last observation is there twice, and an episode counts as terminated where it
    ended before the longest one can.

    Args:
        dataset_id: as ``"walker2d/pairs-v0"``; it is made in Minari's local folder.
        environment: a Gymnasium id to note in it, whose spaces it then has.
        low, high: the range of the actuators, numbers or ``[action_size]``, where there is no
            ``environment``.
        **about: what Minari notes besides: ``author``, ``algorithm_name``, ``description``, ….

    Raises:
        UserError: there is such a data set, or the environment has other sizes.
    """
    try:
        import gymnasium
        from gymnasium.spaces import Box
        from minari import create_dataset_from_buffers as create
        from minari.data_collector import EpisodeBuffer
    except ModuleNotFoundError as error:
        raise missing_package(error, "minari") from error
    sizes = data.observation.shape[-1], data.action.shape[-1]
    seen = Box(-np.inf, np.inf, (sizes[0],), np.float32)
    ends = [np.broadcast_to(np.asarray(end, np.float32), sizes[1:]) for end in (low, high)]
    done = Box(ends[0], ends[1], dtype=np.float32)
    if environment is not None:
        env = gymnasium.make(environment)
        if (env.observation_space.shape, env.action_space.shape) != ((sizes[0],), (sizes[1],)):
            raise UserError(
                f"{environment} has observations of {env.observation_space.shape} and actions of "
                f"{env.action_space.shape}; the data has {sizes[0]} and {sizes[1]} numbers"
            )
        done = env.action_space
    bounds = _range(done, dataset_id)
    time = data.observation.shape[1]
    buffers = [
        _buffer(EpisodeBuffer, index, row, time, *bounds) for index, row in enumerate(_rows(data))
    ]
    spaces = {"observation_space": seen, "action_space": done}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`\\w+` is set to None")  # who made it, and by what
            made = create(dataset_id, buffers, env=environment, **spaces, **about)
    except ValueError as error:
        raise UserError(f"{dataset_id}: {one_line(error)}") from error
    known = {"chosen": data.chosen.tolist(), "rejected": data.rejected.tolist()}
    if data.lists is not None:
        known["lists"] = data.lists.tolist()
    if data.preference_probs is not None:
        known["preference_probs"] = data.preference_probs.tolist()
    made.storage.update_metadata({PAIRS: known})
    return made


def _opened(dataset: Any) -> "MinariDataset":
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
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise UserError(
            f"{dataset} is no data set of Minari on this machine ({one_line(error)}); "
            f"minari download {dataset}"
        ) from error


def _range(space: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each action, infinite for none."""
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


def _rows(data: PreferenceDataset) -> Sequence[Mapping[str, Any]]:
    """Trajectories one by one, without what is after their ends."""
    return [
        {"observation": seen[:steps], "action": done[:steps], "return": value, "steps": int(steps)}
        for seen, done, steps, value in zip(
            data.observation, data.action, data.lengths, data.returns, strict=True
        )
    ]


def _buffer(
    kind: Any, index: int, row: Mapping[str, Any], time: int, low: np.ndarray, high: np.ndarray
) -> Any:
    """An episode as Minari takes it."""
    steps, action = row["steps"], row["action"].double().numpy()
    action = np.where(np.isfinite(high - low), low + (action + 1) / 2 * (high - low), action)
    observation = row["observation"].numpy()
    rewards, last = np.zeros(steps), np.zeros(steps, bool)
    rewards[-1], last[-1] = float(row["return"]), True
    early = steps < time
    return kind(
        id=index,
        observations=np.concatenate([observation, observation[-1:]]).astype(np.float32),
        actions=action.astype(np.float32),
        rewards=rewards,
        terminations=last & early,
        truncations=last & (not early),
        infos={},
    )
