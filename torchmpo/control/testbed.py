"""Where objectives are tried: train policies under them on preference data, measure returns."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchmpo.control.inner_loop import InnerConfig, OnEpoch, train_policies
from torchmpo.control.policy import GaussianPolicy, load_policy, stack_policies
from torchmpo.control.pools import PoolConfig, pool_of
from torchmpo.control.preferences import PreferenceDataset, choose_pairs, parse_kind
from torchmpo.control.returns import evaluate_policies
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import derive_seed

if TYPE_CHECKING:
    pass

SIMULATIONS = 512  # at most this many at once in an evaluation
# The task decides where training starts and how many pairs there are, as in arXiv 2411.06568.
STARTS = {"tla": "original", "ant": "original", "hopper": "scratch"}
PAIRS = {"tla": 1280, "ant": 1280, "hopper": 5120}

Tensors = dict[str, Tensor]
Source = Callable[[], Tensors]


@dataclass(frozen=True)
class Trial:
    """Where objectives are tried: the task and its data, the policy, and the inner loop.

    It holds settings only. Policy and data are loaded when first used and never pickled, so each
    process maps the data from its files once.

    Args:
        pool: the task and its trajectories.
        data: kind of preference data, see :mod:`torchmpo.control.preferences`.
        inner: settings of training.
        policy_std: σ of the policies in training, from the original agent's mean (> 0).
        policy_std_kind: ``"fixed"`` or ``"learned"``.
        sample: whether evaluation draws actions instead of taking the mean.
        num_threads: of the physics; 0 takes every core. Results do not depend on it.
        cache_dir: where the data is, see :func:`torchmpo.control.preferences.preference_data`.
        start: ``"original"``, training goes on from the original agent, or ``"scratch"``, from
            random weights that a member's seed names.
        source: where the trajectories of ``pool`` are read, if not from ``cache_dir``; no part of
            what the trial is.

    Raises:
        UserError: another ``start``.
    """

    pool: PoolConfig = field(default_factory=PoolConfig)
    data: str = "base"
    inner: InnerConfig = field(default_factory=InnerConfig)
    policy_std: float = 0.4
    policy_std_kind: str = "fixed"
    sample: bool = False
    num_threads: int = 0
    cache_dir: str | None = None
    start: str = "original"
    source: Source | None = field(default=None, compare=False, repr=False)

    def __post_init__(self):
        if self.start not in ("original", "scratch"):
            raise UserError(f"start must be original or scratch; got {self.start!r}")

    @cached_property
    def policy(self) -> GaussianPolicy:
        """The original agent, with the σ of training."""
        from torchmpo_envs import expert_path

        path = expert_path(self.pool.original)
        return load_policy(path, std=self.policy_std, std_kind=self.policy_std_kind)

    @cached_property
    def trajectories(self) -> Tensors:
        """What pairs are chosen from; built on first use anywhere."""
        if self.source is not None:
            return self.source()
        with _one_torch_thread():
            return pool_of(self.pool, cache_dir=self.cache_dir, progress=sys.stderr.isatty())

    @cached_property
    def dataset(self) -> PreferenceDataset:
        """The preference pairs."""
        parse_kind(self.data)  # before anything is built
        with _one_torch_thread():
            return choose_pairs(self.trajectories, self.pool, self.data)

    def train(
        self,
        objective: Objective | MirrorObjective,
        objective_params: Any,
        population: int,
        seed: int | Sequence[int],
        *,
        on_epoch: OnEpoch | None = None,
    ) -> dict[str, Tensor]:
        """``population`` policies, each under its own row of ``objective_params``.

        Args:
            seed: one stream of minibatches for all, or one per member.
            on_epoch: see :func:`torchmpo.control.inner_loop.train_policies`.
        """
        init = self._initial(population, seed)
        args = (self.policy, init, objective, objective_params, self.dataset, self.inner)
        return train_policies(*args, seed, on_epoch=on_epoch)

    def _initial(self, population: int, seed: int | Sequence[int]) -> dict[str, Tensor]:
        if self.start == "original":
            return stack_policies(self.policy.trainable(), population)
        if isinstance(seed, int):
            return stack_policies(self._random(seed).trainable(), population)
        members = [self._random(s).trainable() for s in seed]
        return {name: torch.stack([m[name] for m in members]) for name in members[0]}

    def _random(self, seed: int) -> GaussianPolicy:
        """Fresh weights; torch's global random state is left as it was."""
        like = self.policy
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "initial policy"))
            return GaussianPolicy(
                like.observation_size,
                like.action_size,
                like.hidden,
                mean=like.mean_kind,
                std=self.policy_std,
                std_kind=self.policy_std_kind,
            )

    def evaluate(
        self,
        params: dict[str, Tensor],
        episodes: int,
        seed: int,
        *,
        policy: GaussianPolicy | None = None,
    ) -> Tensor:
        """Returns ``[population, episodes]``; every member starts in the same states.

        Args:
            policy: what the members have in common, if not :attr:`policy`.
        """
        population = len(next(iter(params.values())))
        at_once = max(1, min(population, SIMULATIONS // episodes))
        env = self._environment(at_once * episodes)
        with _one_torch_thread():
            own = policy or self.policy
            return evaluate_policies(env, own, params, episodes, seed, sample=self.sample)

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

    def changed(self, **settings: Any) -> "Trial":
        """A trial with other settings of data or training, which shares what is loaded already."""
        if settings.get("pool", self.pool) != self.pool:
            settings = {"source": None} | settings
        other = dataclasses.replace(self, **settings)
        made_of = {
            "policy": ("pool", "policy_std", "policy_std_kind"),
            "_environments": ("pool", "num_threads"),
            "trajectories": ("pool", "cache_dir", "source"),
            "dataset": ("pool", "data", "cache_dir", "source"),
        }
        for name, settings_of in made_of.items():
            same = all(getattr(other, s) == getattr(self, s) for s in settings_of)
            if same and (name in self.__dict__ or name == "_environments"):
                other.__dict__[name] = getattr(self, name)
        return other

    def __getstate__(self) -> dict:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def trial_of(config: Any, **settings: Any) -> Trial:
    """The trial that a command's settings describe.

    Args:
        config: has the fields of ``InnerConfig``, those of ``PoolConfig`` (``max_steps`` called
            ``episode_steps``), the policy's, ``start`` and ``sample``, under the names the
            commands share; ``pairs`` and ``start`` may be None, for the task's own.
        **settings: the rest of :class:`Trial`: ``data``, ``num_threads``.

    Raises:
        UserError: a setting out of its range.
    """
    pool = PoolConfig(
        task=config.task,
        # PoolConfig refuses a task of another name.
        pairs=PAIRS.get(config.task, 1) if config.pairs is None else config.pairs,
        max_steps=config.episode_steps,
        behaviour_std=config.behaviour_std,
        seed=config.seed,
    )
    if pool.pairs < config.minibatch_pairs:
        raise UserError(
            f"pairs ({pool.pairs}) must be at least minibatch_pairs ({config.minibatch_pairs})"
        )
    names = [f.name for f in dataclasses.fields(InnerConfig)]
    return Trial(
        pool=pool,
        start=STARTS[config.task] if config.start is None else config.start,
        inner=InnerConfig(**{name: getattr(config, name) for name in names}),
        policy_std=config.policy_std,
        policy_std_kind=config.policy_std_kind,
        sample=config.sample,
        cache_dir=config.cache_dir,
        **settings,
    )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """The physics has its own threads; for tensors this small torch's only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
