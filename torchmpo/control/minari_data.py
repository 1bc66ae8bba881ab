"""Data sets of Minari as preference data, and preference data as one of them."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from torchmpo.control.minari_pairs import PAIRS, action_range, minari_arrays
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.runs.errors import UserError, missing_package, one_line

if TYPE_CHECKING:
    from minari import MinariDataset


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
    return PreferenceDataset(**minari_arrays(dataset, pairs, seed=seed))


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
    bounds = action_range(done, dataset_id)
    time = data.observation.shape[1]
    buffers = [
        _buffer(EpisodeBuffer, index, row, time, *bounds) for index, row in enumerate(_rows(data))
    ]
    spaces = {"observation_space": seen, "action_space": done}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "(`\\w+` is set to|env_spec is) None"
            )  # who made it, and by what
            made = create(dataset_id, buffers, env=environment, **spaces, **about)
    except ValueError as error:
        raise UserError(f"{dataset_id}: {one_line(error)}") from error
    noted = ("chosen", "rejected", "lists", "preference_probs", "rewards", "begins")
    known = {name: getattr(data, name) for name in noted}
    pairs = {name: value.tolist() for name, value in known.items() if value is not None}
    made.storage.update_metadata({PAIRS: pairs})
    return made


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
