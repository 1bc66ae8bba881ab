"""Reward models: a Bradley–Terry model of who is preferred, from pairs of trajectories.

A trajectory's return is the sum over its steps of a small network's output r(s, a), and the first
of two is preferred with probability σ(R₁ − R₂). An ensemble is a population of such networks,
trained at once, each from weights of its own and on pairs in an order of its own; what it says of a
step is their mean, or the least of them, which is careful where they disagree.

Shapes: E members, ``obs [..., observation_size]``, ``action [..., action_size]``.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import logsigmoid

from torchmpo.control.policy import GaussianPolicy
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import derive_seed, generator

if TYPE_CHECKING:
    from torchmpo.control.preferences import PreferenceDataset

COMBINATIONS = ("mean", "worst")


@dataclass(frozen=True)
class RewardConfig:
    """Settings of a reward model.

    Args:
        members: networks in the ensemble (≥ 1).
        combine: ``"mean"``, or ``"worst"``: the least of what the members say of a step.
        hidden: width of the two hidden layers.
        margin_coef: m ≥ 0: the chosen return is to be ahead by m times the difference of the two
            true returns, in units of its mean size, as in Llama 2's margin loss; 0 for none. It
            reads more than labels.
        epochs: passes over the pairs that are trained on.
        minibatch_pairs: pairs per update.
        learning_rate: Adam's step size.
        steps_per_trajectory: drawn per trajectory and update.
        held_out: share of the pairs that accuracy is measured on, in (0, 1).

    Raises:
        UserError: a setting out of its range.
    """

    members: int = 4
    combine: str = "mean"
    hidden: int = 64
    margin_coef: float = 0.0
    epochs: int = 5
    minibatch_pairs: int = 16
    learning_rate: float = 1e-3
    steps_per_trajectory: int = 100
    held_out: float = 0.1

    def __post_init__(self):
        for name in ("members", "hidden", "epochs", "minibatch_pairs", "steps_per_trajectory"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.combine not in COMBINATIONS:
            raise UserError(
                f"combine must be one of {', '.join(COMBINATIONS)}; got {self.combine!r}"
            )
        if not self.learning_rate > 0 or not self.margin_coef >= 0 or not 0 < self.held_out < 1:
            raise UserError(
                "learning_rate must be positive, margin_coef not negative, held_out in (0, 1); got "
                f"{self.learning_rate}, {self.margin_coef} and {self.held_out}"
            )


@dataclass(frozen=True)
class RewardModel:
    """A trained ensemble.

    Args:
        policy: whose statistics observations are whitened with.
        network: the architecture of a member.
        params: ``{name: [E, ...]}``.
        combine: see :class:`RewardConfig`.
        shift, scale: rewards are (r − shift)/scale. Pairs say little of a constant that is added to
            every reward, and a negative one makes it better to fall early: the trajectory that was
            trained on with the lowest mean reward has 0, and their standard deviation is 1.
        accuracy: share of the held-out pairs that it ranks as their labels do, by returns that are
            combined.
        member_accuracies: the same of each member.
    """

    policy: GaussianPolicy
    network: nn.Module
    params: dict[str, Tensor]
    combine: str = "mean"
    shift: float = 0.0
    scale: float = 1.0
    accuracy: float = float("nan")
    member_accuracies: tuple[float, ...] = ()

    @torch.no_grad()
    def member_rewards(self, obs: Tensor, action: Tensor) -> Tensor:
        """r of each member as it was trained, ``[E, ...]``."""
        given = _inputs(self.policy, obs, action)
        return vmap(lambda own: functional_call(self.network, own, given))(self.params).squeeze(-1)

    def rewards(self, obs: Tensor, action: Tensor) -> Tensor:
        """The reward of each step, moved and scaled, ``[...]``."""
        found = self.member_rewards(obs, action)
        found = found.mean(0) if self.combine == "mean" else found.amin(0)
        return (found - self.shift) / self.scale

    def returns(self, data: "PreferenceDataset", rows: Tensor) -> Tensor:
        """Sums of rewards over the steps of trajectories, ``[rows]``."""
        sums = []
        for part in rows.split(32):
            rewards = self.rewards(data.observation[part], data.action[part])
            time = torch.arange(rewards.shape[1])
            sums.append(torch.where(time < data.lengths[part, None], rewards, 0.0).sum(1))
        return torch.cat(sums)


def _inputs(policy: GaussianPolicy, obs: Tensor, action: Tensor) -> Tensor:
    """Whitened observations, and actions as the motors take them."""
    return torch.cat([policy.whiten(obs), action.clamp(-1.0, 1.0)], -1)


def train_reward_model(
    data: "PreferenceDataset", policy: GaussianPolicy, config: RewardConfig, seed: int
) -> RewardModel:
    """A reward model of pairs; torch's global random state is left as it was.

    Args:
        data: pairs, of which a part is held out; those that share a trajectory with one held out
            are not trained on.
        policy: see :class:`RewardModel`; its parameters are not looked at.
        seed: of the weights, the order of pairs, the steps and what is held out.

    Raises:
        UserError: there are too few pairs to hold any out.
    """
    train, held_out = _split(data, config, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "reward model"))
        networks = [_network(policy, config.hidden) for _ in range(config.members)]
    params = {n: p.detach().clone() for n, p in stack_module_state(networks)[0].items()}
    optimizer = torch.optim.Adam(params.values(), lr=config.learning_rate)  # each for itself
    network, draw = networks[0], generator(seed, "reward model pairs")
    first, counted = data.first, data.counted  # what a pair shares says nothing of who is better
    weight = counted / counted.max()
    gaps = data.returns[data.chosen] - data.returns[data.rejected]
    margins = config.margin_coef * gaps / gaps.abs().mean().clamp(min=1e-8)

    def loss(own: dict[str, Tensor], given: Tensor, weights: Tensor, margin: Tensor) -> Tensor:
        # Of the steps drawn, the sum that all steps are expected to have, over the longest episode.
        returns = functional_call(network, own, given).mean((-2, -1)) * weights
        return -logsigmoid(returns[0] - returns[1] - margin).mean()

    size = min(config.minibatch_pairs, len(train))
    for _ in range(config.epochs):
        orders = torch.stack([torch.randperm(len(train), generator=draw) for _ in networks])
        for batch in orders[:, : len(train) // size * size].split(size, 1):
            pairs = train[batch]  # [E, B]
            rows = torch.stack([data.chosen[pairs], data.rejected[pairs]], 1)  # [E, 2, B]
            uniform = torch.rand(*rows.shape, config.steps_per_trajectory, generator=draw)
            step = first[rows][..., None] + (uniform * counted[rows][..., None]).long()
            at = rows[..., None], step
            given = _inputs(policy, data.observation[at], data.action[at])
            slopes = vmap(grad(loss))(params, given, weight[rows], margins[pairs])
            for name, value in params.items():
                value.grad = slopes[name]
            optimizer.step()
    for value in params.values():
        value.grad = None
    model = RewardModel(policy, network, params, config.combine)
    alone = [
        replace(model, params={name: p[k : k + 1] for name, p in params.items()})
        for k in range(config.members)
    ]
    used = torch.unique(torch.cat([data.chosen[train], data.rejected[train]]))
    means = model.returns(data, used) / data.lengths[used]
    return replace(
        model,
        shift=means.min().item(),
        scale=means.std().clamp(min=1e-8).item(),
        accuracy=_accuracy(model, data, held_out),
        member_accuracies=tuple(_accuracy(one, data, held_out) for one in alone),
    )


def _network(policy: GaussianPolicy, hidden: int) -> nn.Module:
    inputs = policy.observation_size + policy.action_size
    layers = nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()
    return nn.Sequential(*layers, nn.Linear(hidden, 1))


def _split(data: "PreferenceDataset", config: RewardConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs to train on, and pairs held out, which share no trajectory with those."""
    order = torch.randperm(len(data), generator=generator(seed, "held-out pairs"))
    held_out = order[: max(1, round(config.held_out * len(data)))]
    seen = torch.cat([data.chosen[held_out], data.rejected[held_out]])
    rest = order[len(held_out) :]
    shares = torch.isin(data.chosen[rest], seen) | torch.isin(data.rejected[rest], seen)
    if shares.all():
        raise UserError(
            f"a reward model needs pairs to hold out: of {len(data)}, {len(held_out)} were, and "
            "none is left that shares no trajectory with them"
        )
    return rest[~shares], held_out


def _accuracy(model: RewardModel, data: "PreferenceDataset", pairs: Tensor) -> float:
    """Share of pairs whose chosen trajectory has the higher return; of equal ones, half."""
    ahead = model.returns(data, data.chosen[pairs]) - model.returns(data, data.rejected[pairs])
    return ((ahead.sign() + 1) / 2).mean().item()
