"""What training did to a policy: likelihoods, rankings, and where it goes.

A return says that a loss fell; these numbers are for the question why.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchmpo.control.policy import GaussianPolicy
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.metrics import flip_table

EVERY = 25  # steps between two states that are looked at
OF_DATA, OF_POLICY = 2000, 500  # states at most


class Visited:
    """States that policies see while they are evaluated; :meth:`look` is an ``on_step``."""

    def __init__(self, members: int):
        self.states: list[list[Tensor]] = [[] for _ in range(members)]

    def look(self, members: Sequence[int], step: int, obs: Tensor, alive: Tensor) -> None:
        """Keep one in so many states of the episodes that go on."""
        if step % EVERY == 0:
            for member, seen, going in zip(members, obs, alive):
                self.states[member].append(seen[going])

    def of(self, member: int) -> Tensor:
        """``[states, observation_size]``, evenly spread over the episodes."""
        return _spread(torch.cat(self.states[member]), OF_POLICY)


def behaviour(
    policy: GaussianPolicy,
    starts: dict[str, Tensor],
    params: dict[str, Tensor],
    visited: Visited,
    datasets: Sequence[PreferenceDataset],
    start_logps: Tensor,
    logps: Tensor,
) -> list[dict[str, float] | None]:
    """Of each member, what moved; ``None`` of one that diverged.

        chosen, rejected     how far the mean log-probability per token moved, nats
        learned, unlearned   share of pairs that are ranked right now and were not, and the reverse
        kl_to_start          mean KL(π ‖ start) at the states that π visits, nats per step
        distance             of these states from those of the data, by nearest neighbours in
                             whitened observations; 1 is as near as the data is to itself

    Args:
        policy: what the members have in common.
        starts, params: ``{name: [members, ...]}``, before and after training.
        visited: under ``params``.
        datasets: one for all, or one per member.
        start_logps, logps: ``[members, 2, pairs]``, of chosen and rejected trajectories, at the
            start of the preference phase and at the end.
    """
    found: list[dict[str, float] | None] = []
    for k in range(len(logps)):
        own = with_params(policy, {name: value[k] for name, value in params.items()})
        if own is None or not logps[k].isfinite().all():
            found.append(None)
            continue
        start = with_params(policy, {name: value[k] for name, value in starts.items()})
        assert start is not None
        moved = (logps[k] - start_logps[k]).mean(-1).tolist()
        before, now = (values[0] - values[1] for values in (start_logps[k], logps[k]))
        flips, states = flip_table(before, now), visited.of(k)
        data = datasets[k if len(datasets) > 1 else 0]
        with torch.no_grad():
            kl = float(own.kl_to(start, states).mean())
        one = {
            "chosen": moved[0],
            "rejected": moved[1],
            "learned": float(flips.wrong_right),
            "unlearned": float(flips.right_wrong),
            "kl_to_start": kl,
            "distance": distance(policy.whiten(states), policy.whiten(_states_of(data))),
        }
        found.append(one if all(map(math.isfinite, one.values())) else None)
    return found


def distance(states: Tensor, data: Tensor) -> float:
    """Mean distance to the nearest state of the data, over that of the data to itself.

    >>> data = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> distance(torch.tensor([[6.0]]), data)
    3.0
    """
    within = _distances(data[:OF_POLICY], data)
    within[within == 0] = math.inf  # itself
    nearest = within.min(1).values
    usual = nearest[nearest.isfinite()].mean()
    return float(_distances(states, data).min(1).values.mean() / usual)


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """``[first, second]``. Not by a matrix product, which leaves a state some way from itself."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def _states_of(data: PreferenceDataset) -> Tensor:
    """States of the trajectories in the pairs, evenly spread."""
    rows = torch.stack([data.chosen, data.rejected]).unique()
    steps = torch.arange(data.observation.shape[1])
    return _spread(data.observation[rows][steps < data.lengths[rows][:, None]], OF_DATA)


def _spread(values: Tensor, most: int) -> Tensor:
    return values[torch.linspace(0, len(values) - 1, min(most, len(values))).long()]


def with_params(policy: GaussianPolicy, params: dict[str, Tensor]) -> GaussianPolicy | None:
    """The policy with parameters of its own; None where one is not finite."""
    if not all(value.isfinite().all() for value in params.values()):
        return None
    own = copy.deepcopy(policy)
    own.load_state_dict(params, strict=False)
    return own
