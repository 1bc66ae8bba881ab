"""Trajectories on disk, rolled out once by the agents of a task.

A *pool* holds, for every start state, one trajectory of the original agent, one of the target agent
and one of either, drawn by a coin; or trajectories of agents between the two, see
:mod:`torchmpo.control.rollouts`. It is built on first use, named by a hash of all it follows from,
and mapped into memory.
"""

import functools
import hashlib
import json
import math
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmpo.control.agents import agent_of, agent_path, load_agent
from torchmpo.control.environments import (
    Environment,
    check_task,
    digest,
    make_environment,
    simulations,
    time_limit,
)
from torchmpo.control.forks import Fork, by_start, fork_step
from torchmpo.control.minari_pairs import minari_rows
from torchmpo.control.pair_files import MINARI, read_pair_file
from torchmpo.control.policy import GaussianPolicy
from torchmpo.control.restarts import Restarts
from torchmpo.control.rollouts import FileRows, LineRollouts, check_line, line_agents
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import held, slug, write_atomic
from torchmpo.runs.json_files import parse_json
from torchmpo.runs.seeding import generator
from torchmpo_envs import AGENTS, TASKS

ROLES = ("original", "target", "either")  # the three trajectories of every start state
FORMAT = 1  # of the files; goes into the key, so that stores of another format are not found
_COMPLETE = "pool.json"  # written last
version = functools.cache(metadata.version)  # which reads what the package says of itself each time
_PHYSICS = ("mujoco", "gymnasium")  # packages; another version gives other trajectories


@dataclass(frozen=True)
class PoolConfig:
    """Everything that a pool of trajectories follows from.

    Args:
        task: a name in ``torchmpo_envs.TASKS``, or one's own, see
            :mod:`torchmpo.control.environments`.
        pairs: start states; a pool has three trajectories for each.
        max_steps: time limit of an episode.
        behaviour_std: σ of the Gaussian from which the agents' actions are drawn (> 0).
        seed: of the start states and of the actions.
        integrator: of the physics.
        original, target: names in ``torchmpo_envs.EXPERTS``, or files of policies; empty for
            those of the task, ``torchmpo_envs.AGENTS``. On Hopper the original is the bad agent.
        rollouts: other trajectories than those of the two agents and of either; or a file.
        auto_reset: an episode that ends early is started again, so that every trajectory has
            ``max_steps`` steps.
        fork: share of ``max_steps``, in [0, 1), that the trajectories of a start state have in
            common, see :mod:`torchmpo.control.forks`.

    Raises:
        UserError: an unknown task or agent, a number out of its range, or rollouts of agents
            between two that have different architectures.
    """

    task: str = "tla"
    pairs: int = 1280
    max_steps: int = 1000
    behaviour_std: float = 0.1
    seed: int = 0
    integrator: str = "implicitfast"
    original: str = ""
    target: str = ""
    rollouts: LineRollouts | FileRows | None = None
    auto_reset: bool = False
    fork: float = 0.0

    def __post_init__(self):
        check_task(self.task)
        if self.pairs < 1 or self.max_steps < 1:
            raise UserError(
                f"pairs and max_steps must be at least 1; got {self.pairs} and {self.max_steps}"
            )
        if (limit := time_limit(self.task)) is not None and self.max_steps > limit:
            raise UserError(
                f"episode_steps must be at most {limit}, where {self.task} ends; "
                f"got {self.max_steps}"
            )
        if not self.behaviour_std > 0:
            raise UserError(f"behaviour_std must be positive; got {self.behaviour_std}")
        if not 0 <= self.fork < 1:
            raise UserError(f"fork must be in [0, 1); got {self.fork}")
        for role in ("original", "target"):
            agent = agent_of(self.task, role, getattr(self, role))
            object.__setattr__(self, role, agent)  # frozen, and still being made
        line = isinstance(self.rollouts, LineRollouts) and self.rollouts.between
        if line and not self.shipped:
            check_line(load_agent(self.original), load_agent(self.target))

    @property
    def shipped(self) -> bool:
        """Whether the task is a shipped robot with its own two agents."""
        return (self.original, self.target) == AGENTS.get(self.task)

    @property
    def rows(self) -> int:
        """Trajectories in the pool, of one's own making."""
        each = self.rollouts.per_start if isinstance(self.rollouts, LineRollouts) else len(ROLES)
        return each * self.pairs

    def world(self) -> dict[str, str]:
        """What policies act in and are measured by, wherever the trajectories are from.

        Returns:
            by name, a digest of a task of one's own and of each agent, and the versions of the
            physics.
        """
        found = {package: version(package) for package in _PHYSICS}
        for agent in (self.original, self.target):
            content = agent_path(agent).read_bytes()
            found[agent] = hashlib.blake2b(content, digest_size=8).hexdigest()
        own = digest(self.task)
        return found if own is None else found | {self.task: own}

    def key(self) -> str:
        """A hash of settings, agents' weights and physics: the name of the pool's folder.

        Of a file's trajectories, a hash of the file: they follow from nothing else. What policies
        are measured by is then in :meth:`world` alone.
        """
        if isinstance(self.rollouts, FileRows):
            drawn = f"-{self.pairs}-{self.seed}" if self.rollouts.path.startswith(MINARI) else ""
            return f"file-{self.rollouts.digest}{drawn}"
        digests = [
            hashlib.blake2b(agent_path(agent).read_bytes()).hexdigest()
            for agent in (self.original, self.target)
        ]
        penalty = getattr(TASKS.get(self.task), "default_penalty", None)
        # Other physics give other trajectories, and the noise is drawn batch by batch.
        versions = [version(package) for package in _PHYSICS]
        settings = asdict(self)
        for later in ("rollouts", "auto_reset", "fork"):  # as before there were others
            if not settings[later]:
                del settings[later]
        parts = [FORMAT, simulations(self.task), settings, digests, penalty, versions]
        if (own := digest(self.task)) is not None:
            parts.append(own)
        made_of = json.dumps(parts, sort_keys=True)
        return f"{slug(self.task)}-{hashlib.blake2b(made_of.encode(), digest_size=8).hexdigest()}"


def pool_of(
    config: PoolConfig,
    *,
    cache_dir: str | Path | None = None,
    progress: bool = True,
    num_threads: int = 0,
) -> dict[str, Tensor]:
    """The trajectories of :class:`PreferenceDataset`, by its names: ``config.rows`` rows.

    Of a file, also its pairs. ``num_threads`` is as of :func:`make_environment`.

    Raises:
        UserError: a damaged store or file, or too little disk.
    """
    if isinstance(config.rollouts, FileRows):
        if (path := config.rollouts.path).startswith(MINARI):
            return minari_rows(path, config.pairs, config.seed)
        return read_pair_file(path)
    folder = pool_folder(config, cache_dir)
    if not folder.exists():
        check_space([config], cache_dir)
        _build(config, folder, progress, num_threads)
    return _load(folder)


def pool_folder(config: PoolConfig, cache_dir: str | Path | None = None) -> Path:
    """Where the pool of ``config`` is, or will be."""
    default = os.environ.get("TORCHMPO_CACHE") or Path.home() / ".cache" / "torchmpo"
    return Path(cache_dir or default) / config.key()


def _build(config: PoolConfig, folder: Path, progress: bool, num_threads: int) -> None:
    """Roll the agents out and leave a complete pool at ``folder``, or nothing there."""
    from tensordict import MemoryMappedTensor
    from tqdm import tqdm

    count = config.rows
    agents = {}
    for role, agent in (("original", config.original), ("target", config.target)):
        agents[role] = load_agent(agent, std=config.behaviour_std, std_kind="fixed")
    act = _actors(config, agents)
    shapes = _shapes(config, agents["target"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(folder)
    partial = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    with held(partial), _removed_at_the_end(partial):
        pool = {
            name: MemoryMappedTensor.empty(
                shape, dtype=_DTYPES[name], filename=str(partial / f"{name}.memmap")
            )
            for name, shape in shapes.items()
        }
        pair, each = torch.arange(config.pairs), count // config.pairs
        start_of = pair.repeat(each)
        order, batch, fork = torch.arange(count), min(simulations(config.task), count), None
        if config.fork:
            order, batch = by_start(config.pairs, each), batch - batch % each
            fork = Fork(fork_step(config.fork, config.max_steps), each)
        settings = {"integrator": config.integrator, "max_steps": config.max_steps}
        env = make_environment(config.task, batch, num_threads=num_threads, **settings)
        start = env.start_states(config.pairs, generator(config.seed, "start states"))
        bar = tqdm(total=count, desc=f"{config.task} trajectories", disable=not progress)
        with bar:
            for first in range(0, count, batch):
                rows = order[first : first + batch]
                padded = order[torch.arange(first, first + batch).clamp(max=count - 1)]
                draw = generator(config.seed, "actions", first)
                shape = len(padded), env.action_size
                noise = functools.partial(torch.randn, shape, generator=draw)
                again = None
                if config.auto_reset:
                    starts = functools.partial(_starts_again, env, config, start_of[padded])
                    again = Restarts(env, starts)
                begin = start[start_of[padded]]
                part = roll_out(env, *act(padded), begin, noise, again, fork)
                for name, value in part.items():
                    pool[name][rows] = value[: len(rows)]
                bar.update(len(rows))
        files = {name: f"{name}.memmap" for name in shapes}
        card = {
            "config": asdict(config),
            "shapes": shapes,
            "crc32": {name: _crc32(partial / file) for name, file in files.items()},
        }
        write_atomic(partial / _COMPLETE, json.dumps(card, indent=2))
        try:
            os.rename(partial, folder)
        except OSError:
            # Another process finished the same pool first; any other failure is a real one.
            if not folder.exists():
                raise


def _starts_again(env: Environment, config: PoolConfig, pairs: Tensor, end: int) -> Tensor:
    """Where the trajectories of these pairs go on after so many ends."""
    return env.start_states(config.pairs, generator(config.seed, "restarts", end))[pairs]


_Act = Callable[[Tensor], Tensor]


def _actors(
    config: PoolConfig, agents: dict[str, GaussianPolicy]
) -> Callable[[Tensor], tuple[_Act, Tensor]]:
    """The function ``rows → (mean action of these rows by observation, σ)``."""
    original, target = agents["original"], agents["target"]
    std = target.log_std.exp()
    if isinstance(config.rollouts, LineRollouts):
        alphas = config.rollouts.alphas(config.pairs, config.seed)
        levels = config.rollouts.noise_levels(config.pairs, config.seed)
        return lambda rows: (
            line_agents(original, target, alphas[rows]),
            std * levels[rows][:, None],
        )
    is_target = made_by_target(config)[:, None]

    def of_either(rows: Tensor) -> tuple[_Act, Tensor]:
        return lambda obs: torch.where(is_target[rows], target(obs), original(obs)), std

    return of_either


def made_by_target(config: PoolConfig) -> Tensor:
    """Whether the target agent makes each row of a pool, by `ROLES`: bool ``[3·pairs]``."""
    coin = torch.rand(config.pairs, generator=generator(config.seed, "third agent")) < 0.5
    return torch.cat([torch.zeros_like(coin), torch.ones_like(coin), coin])


def _shapes(config: PoolConfig, agent: GaussianPolicy) -> dict[str, tuple[int, ...]]:
    count = config.rows
    return {
        "observation": (count, config.max_steps, agent.observation_size),
        "action": (count, config.max_steps, agent.action_size),
        "lengths": (count,),
        "returns": (count,),
    }


def check_space(
    configs: Sequence[PoolConfig], cache_dir: str | Path | None = None, *, pools: int = 1
) -> None:
    """See that there is room for the pools of ``configs`` that are not built yet.

    Args:
        pools: of the size of each, which are taken to be missing where the first one is.

    Raises:
        UserError: there is not.
    """
    missing = {
        folder: config
        for config in configs
        if not isinstance(config.rollouts, FileRows)
        and not (folder := pool_folder(config, cache_dir)).exists()
    }
    if not missing:
        return
    needed = 0
    for config in missing.values():
        shapes = _shapes(config, load_agent(config.target))
        needed += sum(math.prod(shape) * _DTYPES[name].itemsize for name, shape in shapes.items())
    needed *= pools
    folder = next(iter(missing))
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    if not place.is_dir():
        raise UserError(f"{place} is not a folder: trajectories cannot be kept there")
    if (free := shutil.disk_usage(place).free) < 1.1 * needed:
        raise UserError(
            f"the data needs {needed / 1e6:.0f} MB in {folder.parent} and {free / 1e6:.0f} MB are "
            "free: make room, use fewer pairs, or set TORCHMPO_CACHE to another disk"
        )


@contextmanager
def _removed_at_the_end(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # it has another name if all went well


def _clear_abandoned(folder: Path) -> None:
    """Remove what killed builds of this pool left; who builds it now holds its folder."""
    for partial in folder.parent.glob(f"{folder.name}.*.partial"):
        with suppress(FileNotFoundError), held(partial) as abandoned:
            if abandoned:
                shutil.rmtree(partial, ignore_errors=True)


@torch.no_grad()
def roll_out(
    env: Environment,
    mean_action: _Act,
    std: Tensor,
    start: Tensor,
    noise: Callable[[], Tensor],
    again: Restarts | None,
    fork: Fork | None = None,
) -> dict[str, Tensor]:
    """One episode in every simulation, from ``start``; or one after the other.

    Args:
        mean_action: observations ``[num_envs, …]`` → actions ``[num_envs, action_size]``.
        std: of the actions, ``[action_size]`` or ``[num_envs, action_size]``.
        noise: standard normal numbers for one step, ``[num_envs, action_size]``.
        again: starts what is over again; ``None`` leaves it as it is.
        fork: where simulations become copies of others; ``None`` for nowhere. The environment
            must be one of :func:`torchmpo.control.environments.can_fork`.

    Returns:
        ``observation``, ``action``, ``lengths`` and ``returns``, ``[num_envs, …]``, as
        :class:`~torchmpo.control.preferences.PreferenceDataset` has them.
    """
    from tensordict import TensorDict

    state: Any = env.reset(TensorDict({"start_state": start}, [env.num_envs]))
    shape = (env.num_envs, env.max_steps)
    observation = torch.zeros(*shape, state["observation"].shape[-1])
    actions = torch.zeros(*shape, std.shape[-1])
    lengths = torch.zeros(env.num_envs, dtype=torch.int64)
    returns = torch.zeros(env.num_envs)
    running = torch.ones(env.num_envs, dtype=torch.bool)
    for step in range(env.max_steps):
        if fork is not None and step == fork.step:
            source = fork.sources(running)
            env.fork(source)  # pyright: ignore[reportAttributeAccessIssue]
            state, running = state[source], running[source]
            for recorded in (observation, actions, lengths, returns):
                recorded.copy_(recorded[source])
            if again is not None:
                again.ends = again.ends[source]
        obs = state["observation"]
        mean = mean_action(obs)
        action = mean + std * noise()
        observation[:, step] = obs * running[:, None]
        actions[:, step] = action * running[:, None]
        lengths += running
        state = env.step(state.set("action", action))["next"]
        returns += state["reward"].squeeze(-1)
        if again is None:
            running &= ~state["done"].squeeze(-1)
        elif step + 1 < env.max_steps:
            state = again(state)
        if not running.any():
            break
    return {
        "observation": observation,
        "action": actions,
        "lengths": lengths,
        "returns": returns,
    }


_DTYPES = {
    "observation": torch.float32,
    "action": torch.float32,
    "lengths": torch.int64,
    "returns": torch.float32,
}


def _load(folder: Path) -> dict[str, Tensor]:
    """The memory-mapped tensors of a pool, after checking sizes and checksums."""
    from tensordict import MemoryMappedTensor

    try:
        card = parse_json((folder / _COMPLETE).read_bytes())
        shapes = {name: tuple(card["shapes"][name]) for name in _DTYPES}
        paths = {name: folder / f"{name}.memmap" for name in _DTYPES}
        for name, path in paths.items():
            expected = math.prod(shapes[name]) * _DTYPES[name].itemsize
            if path.stat().st_size != expected:
                raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {expected}")
        with ThreadPoolExecutor() as threads:
            for name, crc in zip(paths, threads.map(_crc32, paths.values()), strict=True):
                if crc != card["crc32"][name]:
                    raise ValueError(f"{paths[name].name} was altered")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the preference data in {folder} is damaged ({error}): delete that folder and run "
            "again to rebuild it"
        ) from error
    return {
        name: MemoryMappedTensor.from_filename(
            filename=str(path), dtype=_DTYPES[name], shape=torch.Size(shapes[name])
        )
        for name, path in paths.items()
    }


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return crc
