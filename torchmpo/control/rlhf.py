"""RLHF as a baseline: TorchRL's PPO on a learned reward, with KL to where it starts.

A policy starts from the original agent, acts with noise of its own, and is paid what a reward model
says of each step less λ·KL(π ‖ start) there. Nothing here reads the true reward.
"""

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchmpo.control.environments import make_environment
from torchmpo.control.policy import GaussianPolicy, gaussian_step_kl
from torchmpo.control.reward_models import RewardModel
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import derive_seed
from torchmpo_envs import TASKS

if TYPE_CHECKING:
    from torchmpo.control.testbed import Testbed, TestbedConfig

# What is tuned. A reward has a standard deviation of 1 over trajectories, per step; KL is in nats
# per step at the noise of acting.
GRID = [
    {"learning_rate": rate, "kl_coef": weight} for rate in (3e-5, 3e-4) for weight in (1.0, 30.0)
]
CRITIC_RATE = 1e-3  # the critic's learning rate, which falls to 0 too


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO, but for what is tuned.

    Args:
        steps: of the environment, in all (≥ 1); whole batches are made.
        num_envs: robots at once.
        horizon: steps of each robot in a batch.
        epochs: passes over a batch.
        minibatches: of an epoch.
        gamma, lmbda: of generalised advantage estimation.
        std: σ of actions while it learns, fixed.
        warm_up: share of the batches, at first, of which the critic alone learns.
        looks: policies that are kept on the way, evenly spread, the first and the last among them
            (≥ 2).
    """

    steps: int = 1_000_000
    num_envs: int = 256
    horizon: int = 32
    epochs: int = 4
    minibatches: int = 8
    gamma: float = 0.985
    lmbda: float = 0.95
    std: float = 0.1
    warm_up: float = 0.1
    looks: int = 8

    @staticmethod
    def of(steps: int) -> "PPOConfig":
        """Of so many steps in at least eight batches: few robots where there are few steps.

        >>> PPOConfig.of(2048).num_envs, PPOConfig.of(1_000_000).num_envs
        (8, 256)
        """
        horizon = PPOConfig.horizon
        return PPOConfig(steps, num_envs=max(1, min(PPOConfig.num_envs, steps // (8 * horizon))))


@dataclass(frozen=True)
class Optimised:
    """A training by PPO.

    Args:
        steps: of the environment until each policy that was kept, the first 0.
        policies: their parameters, ``{name: [looks, ...]}``.
        rewards: mean reward per step, learned and without the KL, of the batch before each; of the
            first, of the first batch.
    """

    steps: list[int]
    policies: dict[str, Tensor]
    rewards: list[float]


class _Actor(nn.Module):
    """Location and scale for TorchRL's distribution."""

    def __init__(self, policy: GaussianPolicy, std: float):
        super().__init__()
        self.policy, self.std = policy, std

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.policy(observation)
        return mean, torch.full_like(mean, self.std)


class _Critic(nn.Module):
    """Value of an observation, whitened with the policy's statistics."""

    def __init__(self, policy: GaussianPolicy, width: int = 64):
        super().__init__()
        self.whiten = policy.whiten
        layers = nn.Linear(policy.observation_size, width), nn.Tanh(), nn.Linear(width, width)
        self.net = nn.Sequential(*layers, nn.Tanh(), nn.Linear(width, 1))

    def forward(self, observation: Tensor) -> Tensor:
        return self.net(self.whiten(observation))


def check_rlhf(config: "TestbedConfig") -> None:
    """Refuse a testbed that PPO here cannot train on.

    Raises:
        UserError: which setting is wrong.
    """
    if config.policy != "gaussian":
        raise UserError("the baseline rlhf trains Gaussian policies: set policy to gaussian")
    if config.sample:  # PPO has a σ of its own, in training only
        raise UserError("the baseline rlhf is judged by its mean actions: set sample to false")
    if config.start != "original":
        raise UserError("the baseline rlhf goes on from the original agent: set start to original")
    if config.pool.task not in TASKS:
        raise UserError(
            f"the baseline rlhf trains in the shipped tasks, {', '.join(TASKS)}; got "
            f"{config.pool.task!r}"
        )


def optimise(
    testbed: "Testbed",
    reward: RewardModel,
    setting: dict[str, float],
    config: PPOConfig,
    seed: int,
) -> Optimised:
    """PPO from the original agent on a learned reward; torch's global random state is left alone.

    Args:
        testbed: its task and its policy.
        setting: ``learning_rate``, which falls to 0, and ``kl_coef``, λ ≥ 0.
        seed: of start states, actions, the critic's weights and minibatches.

    Raises:
        UserError: see :func:`check_rlhf`.
    """
    check_rlhf(testbed.config)
    pool = testbed.config.pool
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "rlhf"))
        env: Any = make_environment(
            pool.task,
            config.num_envs,
            max_steps=pool.max_steps,
            num_threads=testbed.config.num_threads,
            integrator=pool.integrator,
        )
        env.set_seed(derive_seed(seed, "rlhf starts") % 2**31)
        return _ppo(env, testbed.policy, reward, setting, config)


def _ppo(
    env: Any,
    start: GaussianPolicy,
    reward: RewardModel,
    setting: dict[str, float],
    config: PPOConfig,
) -> Optimised:
    from tensordict.nn import TensorDictModule
    from torchrl.collectors import Collector
    from torchrl.modules import IndependentNormal, ProbabilisticActor, ValueOperator
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    policy = copy.deepcopy(start)
    actor = ProbabilisticActor(
        TensorDictModule(_Actor(policy, config.std), ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )
    critic = ValueOperator(_Critic(policy), in_keys=["observation"])
    objective = ClipPPOLoss(
        actor,
        critic,
        clip_epsilon=0.2,
        entropy_bonus=False,
        critic_coeff=0.5,
        loss_critic_type="l2",
        normalize_advantage=True,
    )
    advantage = GAE(gamma=config.gamma, lmbda=config.lmbda, value_network=critic)
    parts = [*policy.layers.parameters()], [*critic.parameters()]
    rates = setting["learning_rate"], CRITIC_RATE
    groups = [{"params": own, "lr": rate} for own, rate in zip(parts, rates, strict=True)]
    optimizer = torch.optim.Adam(groups, eps=1e-5)
    size = config.num_envs * config.horizon
    batches = math.ceil(config.steps / size)
    looks = {round(k * batches / (config.looks - 1)) for k in range(config.looks)}
    kept: list[tuple[int, dict[str, Tensor]]] = [(0, _copy(policy))]
    rewards: list[float] = []
    log_std = torch.full((policy.action_size,), math.log(config.std))
    collector = Collector(
        env,
        actor,
        frames_per_batch=size,
        total_frames=batches * size,
        auto_register_policy_transforms=False,  # a policy without a state needs none
    )
    for done, batch in enumerate(collector, 1):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - (done - 1) / batches)
        with torch.no_grad():
            learned = reward.rewards(batch["observation"], batch["action"])
            away = gaussian_step_kl(batch["loc"], log_std, start(batch["observation"]), log_std)
            paid = (learned - setting["kl_coef"] * away) * (1 - config.gamma)  # values near 1
            batch["next", "reward"] = paid.unsqueeze(-1)
            advantage(batch)
        names = "observation", "action", "action_log_prob", "advantage", "value_target"
        rows = batch.reshape(-1).select(*names)
        for _ in range(config.epochs):
            for indices in torch.randperm(size).chunk(config.minibatches):
                losses = objective(rows[indices])
                loss = losses["loss_critic"]
                if done > config.warm_up * batches:
                    loss = loss + losses["loss_objective"]
                optimizer.zero_grad()
                loss.backward()
                for own in parts:
                    nn.utils.clip_grad_norm_(own, 0.5)
                optimizer.step()
        if done == 1 or done in looks:
            rewards.append(learned.mean().item())
        if done in looks:
            kept.append((done * size, _copy(policy)))
    collector.shutdown()
    policies = {name: torch.stack([own[name] for _, own in kept]) for name in kept[0][1]}
    # The first batch was made by the first policy; where it is also looked at, it counts for both.
    first = rewards if 1 not in looks else [rewards[0], *rewards]
    return Optimised([steps for steps, _ in kept], policies, first)


def _copy(policy: GaussianPolicy) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in policy.trainable().items()}
