"""Where objectives are tried: train policies under them on preference data, measure returns.

A :class:`TestbedConfig` holds settings and nothing else. :func:`prepare` loads what they name into
:class:`Materials`, and gives a :class:`Testbed` for each of them, ready to train.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from torchmpo.control.agents import load_agent
from torchmpo.control.categorical import CategoricalPolicy
from torchmpo.control.environments import (
    can_begin_again,
    make_environment,
    simulations,
    sizes,
    speed,
    stepped_one_by_one,
)
from torchmpo.control.grids import DEFAULT_RATE
from torchmpo.control.inner_loop import InnerConfig, OnEpoch, train_policies
from torchmpo.control.kinds import parse_kind
from torchmpo.control.member_steps import warn_of_slow_precision
from torchmpo.control.pair_files import file_of
from torchmpo.control.policy import GaussianPolicy, stack_policies
from torchmpo.control.pools import PoolConfig, pool_of
from torchmpo.control.preferences import PreferenceDataset, choose_pairs
from torchmpo.control.returns import OnReward, OnStep, evaluate_policies
from torchmpo.control.rounds import OnData, Rounds, train_in_rounds
from torchmpo.control.settings import BINS, TestbedSettings
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import derive_seed
from torchmpo.runs.threads import one_torch_thread

# The task decides where training starts, how many pairs there are and whether episodes that end
# early are started again, as in arXiv 2411.06568.
# Of a task of one's own: from the original agent, and as many pairs as the ants have.
STARTS = {"tla": "original", "ant": "original", "hopper": "scratch"}
PAIRS = {"tla": 1280, "ant": 1280, "hopper": 5120}
AUTO_RESET = {"hopper": True}

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class TestbedConfig:
    """Everything that a testbed follows from.

    Args:
        pool: the task and its trajectories, as far as they do not follow from ``data``.
        data: kind of preference data, see :mod:`torchmpo.control.kinds`.
        inner: settings of training.
        policy: ``"gaussian"``, or ``"categorical"``: the discretised Gaussian at first, with
            log-probabilities of tokens.
        bins: per motor of a categorical policy (≥ 2).
        policy_std: σ of the policies in training, from the original agent's mean (> 0).
        policy_std_kind: ``"fixed"`` or ``"learned"``.
        sample: whether evaluation draws actions instead of taking the mean.
        num_threads: of the physics; 0 takes every core. Results do not depend on it.
        cache_dir: where trajectories are, see :func:`torchmpo.control.pools.pool_of`.
        start: ``"original"``, training goes on from the original agent, or ``"scratch"``, from
            random weights that a member's seed names.
        rounds: in how many parts the pairs are spent, see :mod:`torchmpo.control.rounds`.
        scale: what :meth:`Testbed.evaluate` gives: returns, where it is None, or the percentage of
            the way from the first of these returns to the second, higher one.

    Raises:
        UserError: another ``start`` or ``policy``, or fewer than two bins.
    """

    __test__ = False  # pytest would take it for a class of tests

    pool: PoolConfig = field(default_factory=PoolConfig)
    data: str = "base"
    inner: InnerConfig = field(default_factory=InnerConfig)
    policy: str = "gaussian"
    bins: int = BINS
    policy_std: float = 0.4
    policy_std_kind: str = "fixed"
    sample: bool = False
    num_threads: int = 0
    cache_dir: str | None = None
    start: str = "original"
    rounds: Rounds = field(default_factory=Rounds)
    scale: tuple[float, float] | None = None

    def __post_init__(self):
        if self.start not in ("original", "scratch"):
            raise UserError(f"start must be original or scratch; got {self.start!r}")
        if self.policy not in ("gaussian", "categorical"):
            raise UserError(f"policy must be gaussian or categorical; got {self.policy!r}")
        if self.bins < 2:
            raise UserError(f"bins must be at least 2; got {self.bins}")

    def on(self, data: str) -> "TestbedConfig":
        """The same with another kind of data.

        Raises:
            UserError: the loop of its rounds does not suit these data.
        """
        self.rounds.check(_known_pairs(self.pool, data), self.inner.minibatch_pairs, data)
        return replace(self, data=data)

    @property
    def data_pool(self) -> PoolConfig:
        """The pool that its pairs are chosen from."""
        return parse_kind(self.data).pool(self.pool)

    def load_policy(self) -> GaussianPolicy:
        """The original agent, with the σ of training."""
        original, kind = self.pool.original, self.policy_std_kind
        gaussian = load_agent(original, std=self.policy_std, std_kind=kind)
        if self.policy == "gaussian":
            return gaussian
        return CategoricalPolicy.discretised(gaussian, self.bins)


@dataclass(frozen=True)
class Materials:
    """What is loaded once and shared by testbeds that are prepared together.

    Args:
        policy: the original agent, with the σ of training. One object also means one compiled
            update, see :mod:`torchmpo.control.inner_loop`.
        trajectories: what pairs are chosen from, by the key of a pool and the names of
            :class:`~torchmpo.control.preferences.PreferenceDataset`, as in ``KEY/returns``.
        environments: those made so far, by number of simulations and threads.
    """

    policy: GaussianPolicy
    trajectories: Tensors
    environments: dict[tuple[int, int], Any] = field(default_factory=dict)

    def environment(self, config: TestbedConfig, num_envs: int) -> Any:
        """``num_envs`` simulations of the task."""
        key = num_envs, config.num_threads
        if key not in self.environments:
            self.environments[key] = make_environment(
                config.pool.task,
                num_envs,
                integrator=config.pool.integrator,
                max_steps=config.pool.max_steps,
                num_threads=config.num_threads,
            )
        return self.environments[key]


@dataclass(frozen=True)
class Testbed:
    """Settings with what they name: train policies under given objectives, then measure returns.

    Args:
        config: the settings.
        materials: what is shared with other testbeds.
        dataset: the preference pairs.
    """

    __test__ = False  # pytest would take it for a class of tests

    config: TestbedConfig
    materials: Materials
    dataset: PreferenceDataset

    @property
    def policy(self) -> GaussianPolicy:
        """What all policies have in common; training starts from it, or from fresh weights."""
        return self.materials.policy

    def changed(self, **settings: Any) -> "Testbed":
        """The same data and policy under other settings of training or evaluation.

        Args:
            **settings: of :class:`TestbedConfig`: inner, sample, start, num_threads, scale.

        Raises:
            ValueError: a setting that other data or another policy would follow from.
        """
        if loaded := settings.keys() - {"inner", "sample", "start", "num_threads", "scale"}:
            raise ValueError(f"{', '.join(sorted(loaded))}: prepare another testbed")
        return replace(self, config=replace(self.config, **settings))

    def train(
        self,
        objective: Objective | MirrorObjective,
        objective_params: Any,
        population: int,
        seed: int | Sequence[int],
        *,
        learning_rates: Tensor | None = None,
        on_epoch: OnEpoch | None = None,
        datasets: Sequence[PreferenceDataset] | None = None,
        on_data: OnData | None = None,
    ) -> Tensors:
        """``population`` policies, each under its own row of ``objective_params``.

        Args:
            seed: one stream of minibatches for all, or one per member.
            datasets: other data than ``dataset``, one per member.
            learning_rates, on_epoch: see :func:`torchmpo.control.inner_loop.train_policies`.
            on_data: called with the data of every round, one data set per member.
        """
        init = self.initial(population, seed)
        if self.config.rounds.count > 1:
            own: dict[str, Any] = {"learning_rates": learning_rates, "on_epoch": on_epoch}
            own |= {"datasets": datasets, "on_data": on_data}
            return train_in_rounds(self, objective, objective_params, init, seed, **own)
        if on_data is not None:
            on_data(list(datasets or [self.dataset] * population))
        data = self.dataset if datasets is None else datasets
        args = (self.policy, init, objective, objective_params, data, self.config.inner)
        return train_policies(*args, seed, learning_rates=learning_rates, on_epoch=on_epoch)

    def initial(self, population: int, seed: int | Sequence[int]) -> Tensors:
        """The policies that training starts from, ``{name: [population, ...]}``."""
        if self.config.start == "original":
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
            own = {"std": self.config.policy_std, "std_kind": self.config.policy_std_kind}
            return type(like)(**like.architecture() | own)

    def evaluate(
        self,
        params: Tensors,
        episodes: int,
        seed: int | Sequence[int],
        *,
        policy: GaussianPolicy | None = None,
        steps: int | None = None,
        on_step: OnStep | None = None,
        on_reward: OnReward | None = None,
    ) -> Tensor:
        """Returns ``[population, episodes]``, on the scale of the settings.

        Args:
            seed: of the start states that all members share, or one per member.
            policy: what the members have in common, if not :attr:`policy`.
            steps, on_step, on_reward: see
                :func:`torchmpo.control.returns.evaluate_policies`.
        """
        population = len(next(iter(params.values())))
        most = simulations(self.config.pool.task)
        at_once = max(1, min(population, most // episodes))
        env = self.materials.environment(self.config, at_once * episodes)
        with one_torch_thread():
            own = policy or self.policy
            how: dict[str, Any] = {"steps": steps, "on_step": on_step, "on_reward": on_reward}
            how |= {"sample": self.config.sample, "auto_reset": self.config.pool.auto_reset}
            returns = evaluate_policies(env, own, params, episodes, seed, **how)
        if self.config.scale is None:
            return returns
        low, high = self.config.scale
        return 100 * (returns - low) / (high - low)

    def agent_returns(
        self, role: str, episodes: int, seed: int, *, on_reward: OnReward | None = None
    ) -> Tensor:
        """Returns ``[episodes]`` of an agent that made the data.

        Args:
            role: ``"original"`` or ``"target"``.
            seed: of the start states.
            on_reward: see :meth:`evaluate`.
        """
        agent = load_agent(getattr(self.config.pool, role))
        params = stack_policies(agent.trainable(), 1)
        return self.evaluate(params, episodes, seed, policy=agent, on_reward=on_reward)[0]


def prepare(
    configs: Sequence[TestbedConfig], *, read: Callable[[], Tensors] | None = None
) -> list[Testbed]:
    """Load what testbeds need: one for each configuration. Those of one pool share trajectories.

    Those that differ in their data alone share a policy and simulations, too.

    Args:
        configs: of any tasks and kinds of data.
        read: where the trajectories come from; by default their pools, built on first use.

    Raises:
        UserError: an unknown kind of data, or what :func:`torchmpo.control.pools.pool_of` raises.
    """
    for config in configs:
        parse_kind(config.data)  # before anything is built
    alike = {replace(config, data=""): config for config in configs}
    for one in alike.values():
        if read is None and stepped_one_by_one(task := one.pool.task):
            print(speed(task, one.num_threads), file=sys.stderr, flush=True)
    with one_torch_thread():
        trajectories = _from_pools(configs) if read is None else read()
        of = {key: Materials(one.load_policy(), trajectories) for key, one in alike.items()}
        return [_over(config, of[replace(config, data="")]) for config in configs]


def prepare_fresh(
    testbeds: Sequence[Testbed], seed: int, *, cache_dir: str | None = None
) -> list[Testbed]:
    """The same kinds of data, of other trajectories with other flipped labels.

    Args:
        testbeds: prepared together.
        seed: of the trajectories and of the choice of pairs. A file has no other trajectories: of
            its pairs only the labels may be others, where they are drawn.
        cache_dir: where the trajectories are kept; by default where those of the testbeds are.
    """
    settings: dict[str, Any] = {} if cache_dir is None else {"cache_dir": cache_dir}
    configs = [
        replace(bed.config, pool=replace(bed.config.pool, seed=seed), **settings)
        for bed in testbeds
    ]
    with one_torch_thread():
        trajectories = _from_pools(configs)
        return [
            _over(config, replace(bed.materials, trajectories=trajectories))
            for bed, config in zip(testbeds, configs, strict=True)
        ]


def fresh_data(
    testbeds: Sequence[Testbed], seeds: Sequence[int], *, cache_dir: str | None = None
) -> list[list[PreferenceDataset]]:
    """Preference data of each kind and each seed, ``[kind][seed]``, see :func:`prepare_fresh`."""
    from tqdm import tqdm

    bar = tqdm(seeds, "fresh data", disable=not sys.stderr.isatty())
    by_seed = [prepare_fresh(testbeds, seed, cache_dir=cache_dir) for seed in bar]
    return [[bed.dataset for bed in beds] for beds in zip(*by_seed, strict=True)]


def _from_pools(configs: Sequence[TestbedConfig]) -> Tensors:
    found = {}
    for key, config in {config.data_pool.key(): config for config in configs}.items():
        show = sys.stderr.isatty()
        own: dict[str, Any] = {"cache_dir": config.cache_dir, "num_threads": config.num_threads}
        pool = pool_of(config.data_pool, progress=show, **own)
        found |= {f"{key}/{name}": value for name, value in pool.items()}
    return found


def _over(config: TestbedConfig, materials: Materials) -> Testbed:
    prefix = f"{config.data_pool.key()}/"
    pool = {
        name.removeprefix(prefix): value
        for name, value in materials.trajectories.items()
        if name.startswith(prefix)
    }
    return Testbed(config, materials, _matching(pool, config, materials.policy))


def _matching(pool: Tensors, config: TestbedConfig, policy: GaussianPolicy) -> PreferenceDataset:
    """The pairs, if they are of robots like this one."""
    data = choose_pairs(pool, config.pool, config.data)
    have = data.observation.shape[-1], data.action.shape[-1]
    want = policy.observation_size, policy.action_size
    if have != want:
        raise UserError(
            f"data {config.data!r} has observations of {have[0]} and actions of {have[1]} numbers; "
            f"policies on {config.pool.task} have {want[0]} and {want[1]}"
        )
    if len(data) < config.inner.minibatch_pairs:
        raise UserError(
            f"data {config.data!r} has {len(data)} pairs, fewer than one minibatch of "
            f"{config.inner.minibatch_pairs}"
        )
    config.rounds.check(len(data), config.inner.minibatch_pairs, config.data)
    if config.rounds.count > 1 and data.rewards is not None and data.rewards is pool.get("rewards"):
        raise UserError(
            f"data {config.data!r} has rewards, which nobody knows of the trajectories that rounds "
            "add: take one round, or leave rewards out of the file"
        )
    return data


def configure(settings: TestbedSettings, data: str, num_threads: int) -> TestbedConfig:
    """The testbed that a command's settings describe.

    Supervised epochs are left out of it: they are for losses with a reference only, see
    :func:`torchmpo.control.tuning.suited`.

    Args:
        settings: ``pairs``, ``start`` and ``auto_reset`` may be None, for the task's own.
        data: one kind of preference data.
        num_threads: of the physics.

    Raises:
        UserError: a setting out of its range.
    """
    auto_reset = settings.auto_reset
    if auto_reset is None:
        auto_reset = AUTO_RESET.get(settings.task, False)
    pool = PoolConfig(
        task=settings.task,
        # PoolConfig refuses a task of another name.
        pairs=PAIRS.get(settings.task, 1280) if settings.pairs is None else settings.pairs,
        max_steps=settings.episode_steps,
        behaviour_std=settings.behaviour_std,
        seed=settings.seed,
        original=settings.original or "",
        target=settings.target or "",
        auto_reset=auto_reset,
    )
    if auto_reset and not can_begin_again(settings.task):
        raise UserError(
            f"auto_reset: task {settings.task!r} makes its simulations as a batch, of which one "
            "alone cannot be started again; a function without num_envs makes them one by one"
        )
    names_of_rounds = ("reference_refresh", "loop", "extrapolation", "replay")
    rounds = Rounds(settings.rounds, **{n: getattr(settings, n) for n in names_of_rounds})
    pairs = _known_pairs(pool, data)
    rounds.check(pairs, settings.minibatch_pairs, data)
    if pairs is not None and pairs < settings.minibatch_pairs:
        raise UserError(
            f"pairs ({pairs}) must be at least minibatch_pairs ({settings.minibatch_pairs})"
        )
    names = {f.name for f in fields(InnerConfig)} - {"sft_epochs", "pairs_per_epoch"}
    training = {name: getattr(settings, name) for name in names}
    warn_of_slow_precision(settings.precision)
    if settings.learning_rate is None:  # every setting that is tried brings its own
        training["learning_rate"] = DEFAULT_RATE
    if not pool.shipped:
        _check_agents(pool, num_threads)
    return TestbedConfig(
        pool=pool,
        data=data,
        start=STARTS.get(settings.task, "original") if settings.start is None else settings.start,
        inner=InnerConfig(**training),
        policy=settings.policy,
        bins=settings.bins,
        policy_std=settings.policy_std,
        policy_std_kind=settings.policy_std_kind,
        sample=settings.sample,
        num_threads=num_threads,
        cache_dir=settings.cache_dir,
        rounds=rounds,
    )


def _known_pairs(pool: PoolConfig, data: str) -> int | None:
    """How many pairs there will be; None of a file, which has its own and is not read yet."""
    return None if file_of(data)[0] else pool.pairs


def _check_agents(pool: PoolConfig, num_threads: int) -> None:
    """See that both agents see and do what the task is made of."""
    want = sizes(pool.task, num_threads)
    for role, name in (("original", pool.original), ("target", pool.target)):
        agent = load_agent(name)
        have = agent.observation_size, agent.action_size
        if have != want:
            raise UserError(
                f"{role}: {name} takes observations of {have[0]} and gives actions of {have[1]} "
                f"numbers; on {pool.task} they are {want[0]} and {want[1]}"
            )
