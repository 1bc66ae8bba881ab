"""One trial: train policies under given objectives on preference data, then measure returns."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from torchmpo.fitness import evaluate_policies
from torchmpo.inner import InnerConfig, train_policies
from torchmpo.objective import MirrorObjective, Objective
from torchmpo.policy import GaussianPolicy, load_policy, stack_policies
from torchmpo.preferences import PoolConfig, PreferenceDataset, preference_data
from torchmpo.seeding import derive_seed

SIMULATIONS = 512  # at most this many at once in an evaluation


@dataclass(frozen=True)
class Trial:
    """Where objectives are tried: the task and its data, the policy, and the inner loop.

    It holds settings only. Policy and data are loaded when first used and never pickled, so each
    process maps the data from its files once.

    Args:
        pool: the task and its trajectories.
        data: kind of preference data, see :mod:`torchmpo.preferences`.
        inner: settings of training.
        policy_std: σ of the policies in training, from the original agent's mean (> 0).
        policy_std_kind: ``"fixed"`` or ``"learned"``.
        sample: whether evaluation draws actions instead of taking the mean.
        num_threads: of the physics; 0 takes every core. Results do not depend on it.
        cache_dir: where the data is, see :func:`torchmpo.preferences.preference_data`.
    """

    pool: PoolConfig = field(default_factory=PoolConfig)
    data: str = "base"
    inner: InnerConfig = field(default_factory=InnerConfig)
    policy_std: float = 0.4
    policy_std_kind: str = "fixed"
    sample: bool = False
    num_threads: int = 0
    cache_dir: str | None = None

    @cached_property
    def policy(self) -> GaussianPolicy:
        """The policy every training starts from: the original agent."""
        from torchmpo_envs import expert_path

        path = expert_path(self.pool.original)
        return load_policy(path, std=self.policy_std, std_kind=self.policy_std_kind)

    @cached_property
    def dataset(self) -> PreferenceDataset:
        """The preference pairs; built on first use anywhere."""
        watched = sys.stderr.isatty()
        with _one_torch_thread():
            return preference_data(self.pool, self.data, cache_dir=self.cache_dir, progress=watched)

    def train(
        self,
        objective: Objective | MirrorObjective,
        objective_params: Any,
        population: int,
        seed: int | Sequence[int],
    ) -> dict[str, Tensor]:
        """``population`` policies, each under its own row of ``objective_params``.

        Args:
            seed: one stream of minibatches for all, or one per member.
        """
        init = stack_policies(self.policy.trainable(), population)
        args = (self.policy, init, objective, objective_params, self.dataset, self.inner)
        return train_policies(*args, seed)

    def evaluate(self, params: dict[str, Tensor], episodes: int, seed: int) -> Tensor:
        """Returns ``[population, episodes]``; every member starts in the same states."""
        population = len(next(iter(params.values())))
        at_once = max(1, min(population, SIMULATIONS // episodes))
        env = self._environment(at_once * episodes)
        with _one_torch_thread():
            return evaluate_policies(env, self.policy, params, episodes, seed, sample=self.sample)

    @cached_property
    def _environments(self) -> dict:
        return {}

    def _environment(self, num_envs: int):
        from torchmpo_envs import TASKS

        if num_envs not in self._environments:
            self._environments[num_envs] = TASKS[self.pool.task](
                num_envs,
                integrator=self.pool.integrator,
                max_steps=self.pool.max_steps,
                num_threads=self.num_threads,
            )
        return self._environments[num_envs]

    def __getstate__(self) -> dict:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """The physics has its own threads; for tensors this small torch's only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class MirrorFitness:
    """F(ζ): mean return of policies trained under ``objective`` with parameters ζ.

    All members of a generation share minibatches and start states; another generation has others.
    """

    trial: Trial
    objective: MirrorObjective
    episodes: int
    seed: int

    def __call__(self, vectors: Tensor, generation: int) -> Tensor:
        """``[chunk, dim] → [chunk]``; NaN for a policy that diverged."""
        training = derive_seed(self.seed, "inner", generation)
        params = self.trial.train(self.objective, vectors, len(vectors), training)
        evaluation = derive_seed(self.seed, "episodes", generation)
        return self.trial.evaluate(params, self.episodes, evaluation).mean(1)
