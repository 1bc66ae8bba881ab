"""Preference data whose quality is a knob: pairs of trajectories with a known true return.

A *pool* holds, for every start state, one trajectory of the original agent, one of the target agent
and one of either, drawn by a coin. A *dataset* is a choice of pairs from a pool: which rows are
``chosen``, which ``rejected``. All kinds of data over one pool share its files.

====================  ==========================================================================
``base``              original against target, judged by their returns
``noisy:p``           base with every label flipped with probability p
``mixed``             each trajectory's agent drawn at random: ¼ target–target, ½ mixed, ¼ original
``bad_judge:η``       base pairs, judged by Bradley–Terry at temperature η (units of return)
====================  ==========================================================================

Source: arXiv 2411.06568, section 4.1.
"""

import hashlib
import json
import math
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from torchmpo.errors import UserError, nearest
from torchmpo.files import held
from torchmpo.policy import GaussianPolicy, load_policy
from torchmpo.seeding import generator

ROLES = ("original", "target", "either")  # the three trajectories of every start state
FORMAT = 1  # of the files; goes into the key, so that stores of another format are not found
_BATCH = 512  # simulations at once while a pool is built
_COMPLETE = "pool.json"  # written last


@dataclass(frozen=True)
class PoolConfig:
    """Everything that a pool of trajectories follows from.

    Args:
        task: a name in ``torchmpo_envs.TASKS``.
        pairs: start states; a pool has three trajectories for each.
        max_steps: time limit of an episode.
        behaviour_std: σ of the Gaussian from which the agents' actions are drawn (> 0).
        seed: of the start states and of the actions.
        integrator: of the physics.
        original, target: names in ``torchmpo_envs.EXPERTS``; empty for those of the task,
            ``torchmpo_envs.AGENTS``. On Hopper the original is the bad agent.

    Raises:
        UserError: an unknown task or agent, or a number out of its range.
    """

    task: str = "tla"
    pairs: int = 1280
    max_steps: int = 1000
    behaviour_std: float = 0.1
    seed: int = 0
    integrator: str = "implicitfast"
    original: str = ""
    target: str = ""

    def __post_init__(self):
        from torchmpo_envs import AGENTS, EXPERTS, TASKS

        if self.task not in TASKS:
            raise UserError(f"unknown task {self.task!r}: {nearest(self.task, TASKS)}")
        if self.pairs < 1 or self.max_steps < 1:
            raise UserError(
                f"pairs and max_steps must be at least 1; got {self.pairs} and {self.max_steps}"
            )
        if not self.behaviour_std > 0:
            raise UserError(f"behaviour_std must be positive; got {self.behaviour_std}")
        for role, agent in zip(("original", "target"), AGENTS[self.task], strict=True):
            agent = getattr(self, role) or agent
            if agent not in EXPERTS:
                raise UserError(f"no agent {agent!r} is shipped: {nearest(agent, EXPERTS)}")
            object.__setattr__(self, role, agent)  # frozen, and still being made

    def key(self) -> str:
        """A hash of settings, agents' weights and physics: the name of the pool's folder."""
        from torchmpo_envs import TASKS, expert_path

        digests = [
            hashlib.blake2b(expert_path(agent).read_bytes()).hexdigest()
            for agent in (self.original, self.target)
        ]
        penalty = getattr(TASKS[self.task], "default_penalty", None)
        # Other physics give other trajectories, and the noise is drawn batch by batch.
        versions = [version(package) for package in ("mujoco", "gymnasium")]
        parts = [FORMAT, _BATCH, asdict(self), digests, penalty, versions]
        made_of = json.dumps(parts, sort_keys=True)
        return f"{self.task}-{hashlib.blake2b(made_of.encode(), digest_size=8).hexdigest()}"


@dataclass(frozen=True)
class PreferenceDataset:
    """Pairs of trajectories, as rows of a pool.

    Args:
        observation: ``[trajectories, time, observation_size]``, float32, zero after the end.
        action: ``[trajectories, time, action_size]``, float32, as drawn: not clipped to the
            actuators' range, so that the Gaussian log-density of the recorded action is exact.
        lengths: ``[trajectories]``, int64, steps that count.
        returns: ``[trajectories]``, float32, undiscounted true returns.
        chosen, rejected: ``[pairs]``, int64, rows of the pool.
    """

    observation: Tensor
    action: Tensor
    lengths: Tensor
    returns: Tensor
    chosen: Tensor
    rejected: Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    def take(self, pairs: int) -> "PreferenceDataset":
        """The first ``pairs`` pairs.

        Raises:
            UserError: there are fewer.
        """
        if not 0 < pairs <= len(self):
            raise UserError(f"cannot take {pairs} pairs: the data has {len(self)}")
        return replace(self, chosen=self.chosen[:pairs], rejected=self.rejected[:pairs])


def bradley_terry(first: Tensor, second: Tensor, *, temperature: float, uniform: Tensor) -> Tensor:
    """Whether a Bradley–Terry judge prefers the first trajectory: bool ``[pairs]``.

    P(first chosen) = σ((R₁ − R₂)/η)

    Args:
        first, second: returns ``[pairs]``.
        temperature: η ≥ 0 in units of return; 0 is the judge that always picks the better one.
        uniform: ``[pairs]``, draws from [0, 1) that decide.

    Raises:
        UserError: η is negative or not a number.

    Source: arXiv 2411.06568, section 4.1.
    """
    if not temperature >= 0:
        raise UserError(f"the judge's temperature must not be negative; got {temperature}")
    if temperature == 0:
        return first >= second
    return uniform < torch.sigmoid((first - second) / temperature)


def preference_data(
    config: PoolConfig, kind: str, *, cache_dir: str | Path | None = None, progress: bool = True
) -> PreferenceDataset:
    """Preference pairs of one kind; their pool is built on first use and read from disk after.

    Args:
        config: what the pool follows from.
        kind: ``"base"``, ``"noisy:0.3"``, ``"mixed"`` or ``"bad_judge:1000"``.
        cache_dir: folder of the pools; by default ``$TORCHMPO_CACHE`` or ``~/.cache/torchmpo``.
        progress: show a progress bar while building.

    Raises:
        UserError: an unknown kind, a damaged store, or too little disk.
    """
    parse_kind(kind)
    return choose_pairs(pool_of(config, cache_dir=cache_dir, progress=progress), config, kind)


def pool_of(
    config: PoolConfig, *, cache_dir: str | Path | None = None, progress: bool = True
) -> dict[str, Tensor]:
    """The trajectories of :class:`PreferenceDataset`, by its names: ``3 × pairs`` rows.

    Raises:
        UserError: a damaged store, or too little disk.
    """
    folder = pool_folder(config, cache_dir)
    if not folder.exists():
        check_space(config, cache_dir)
        _build(config, folder, progress)
    return _load(folder)


def choose_pairs(pool: dict[str, Tensor], config: PoolConfig, kind: str) -> PreferenceDataset:
    """Preference pairs of one kind among the trajectories of a pool, which are not copied.

    Raises:
        UserError: an unknown kind.
    """
    select = parse_kind(kind)
    chosen, rejected = select(pool["returns"].view(len(ROLES), -1), config.seed)
    return PreferenceDataset(**pool, chosen=chosen, rejected=rejected)


def pool_folder(config: PoolConfig, cache_dir: str | Path | None = None) -> Path:
    """Where the pool of ``config`` is, or will be."""
    default = os.environ.get("TORCHMPO_CACHE") or Path.home() / ".cache" / "torchmpo"
    return Path(cache_dir or default) / config.key()


Select = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def parse_kind(kind: str) -> Select:
    """The function ``(returns [3, pairs], seed) → (chosen, rejected)`` that a kind stands for.

    Raises:
        UserError: an unknown kind, or its number missing, superfluous or out of range.
    """
    name, _, number = kind.partition(":")
    if name not in _KINDS:
        raise UserError(f"unknown data {kind!r}: {nearest(name, _KINDS)}")
    select, example = _KINDS[name]
    if example is None:
        if number:
            raise UserError(f"data {name!r} takes no number; got {kind!r}")
        return select
    try:
        value = float(number)
    except ValueError:
        raise UserError(f"data {name!r} needs a number, as in '{name}:{example}'") from None
    if not 0 <= value < math.inf or (name == "noisy" and value > 1):
        raise UserError(f"the number of {kind!r} is out of range, try '{name}:{example}'")
    return lambda returns, seed: select(returns, seed, value)


def _base(returns: Tensor, seed: int, temperature: float = 0.0) -> tuple[Tensor, Tensor]:
    pairs = returns.shape[1]
    return _judge(returns, torch.arange(pairs), torch.arange(pairs) + pairs, seed, temperature)


def _noisy(returns: Tensor, seed: int, flip_prob: float) -> tuple[Tensor, Tensor]:
    chosen, rejected = _base(returns, seed)
    # One uniform draw per pair decides at every flip_prob: the flips at 0.1 are among those at 0.2.
    flip = torch.rand(len(chosen), generator=generator(seed, "flips")) < flip_prob
    return torch.where(flip, rejected, chosen), torch.where(flip, chosen, rejected)


def _mixed(returns: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    # The second trajectory's agent was drawn by a coin when the pool was built.
    pairs = returns.shape[1]
    target = torch.rand(pairs, generator=generator(seed, "mixed")) < 0.5
    first = torch.arange(pairs) + pairs * target
    return _judge(returns, first, torch.arange(pairs) + 2 * pairs, seed, temperature=0.0)


def _judge(returns, first, second, seed, temperature) -> tuple[Tensor, Tensor]:
    flat = returns.flatten()
    uniform = torch.rand(len(first), generator=generator(seed, "judge"))
    prefers_first = bradley_terry(
        flat[first], flat[second], temperature=temperature, uniform=uniform
    )
    return torch.where(prefers_first, first, second), torch.where(prefers_first, second, first)


# name → (selection, example of its number)
_KINDS: dict[str, tuple[Callable, str | None]] = {
    "base": (_base, None),
    "noisy": (_noisy, "0.3"),
    "mixed": (_mixed, None),
    "bad_judge": (_base, "1000"),
}


def _build(config: PoolConfig, folder: Path, progress: bool) -> None:
    """Roll the agents out and leave a complete pool at ``folder``, or nothing there."""
    from tensordict import MemoryMappedTensor
    from tqdm import tqdm

    from torchmpo_envs import TASKS, expert_path

    count = len(ROLES) * config.pairs
    agents = {}
    for role, agent in (("original", config.original), ("target", config.target)):
        agents[role] = load_policy(expert_path(agent), std=config.behaviour_std, std_kind="fixed")
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
        pair = torch.arange(config.pairs)
        start_of = pair.repeat(len(ROLES))
        is_target = made_by_target(config)
        batch = min(_BATCH, count)
        env = TASKS[config.task](batch, integrator=config.integrator, max_steps=config.max_steps)
        start = env.start_states(config.pairs, generator(config.seed, "start states"))
        bar = tqdm(total=count, desc=f"{config.task} trajectories", disable=not progress)
        with bar:
            for first in range(0, count, batch):
                rows = torch.arange(first, min(first + batch, count))
                padded = torch.arange(first, first + batch).clamp(max=count - 1)
                noise = generator(config.seed, "actions", first)
                part = _roll_out(env, agents, start[start_of[padded]], is_target[padded], noise)
                for name, value in part.items():
                    pool[name][rows] = value[: len(rows)]
                bar.update(len(rows))
        files = {name: f"{name}.memmap" for name in shapes}
        card = {
            "config": asdict(config),
            "shapes": shapes,
            "crc32": {name: _crc32(partial / file) for name, file in files.items()},
        }
        (partial / _COMPLETE).write_text(json.dumps(card, indent=2))
        try:
            os.rename(partial, folder)
        except OSError:
            # Another process finished the same pool first; any other failure is a real one.
            if not folder.exists():
                raise


def made_by_target(config: PoolConfig) -> Tensor:
    """Whether the target agent makes each row of a pool, by `ROLES`: bool ``[3·pairs]``."""
    coin = torch.rand(config.pairs, generator=generator(config.seed, "third agent")) < 0.5
    return torch.cat([torch.zeros_like(coin), torch.ones_like(coin), coin])


def _shapes(config: PoolConfig, agent: GaussianPolicy) -> dict[str, tuple[int, ...]]:
    count = len(ROLES) * config.pairs
    return {
        "observation": (count, config.max_steps, agent.observation_size),
        "action": (count, config.max_steps, agent.action_size),
        "lengths": (count,),
        "returns": (count,),
    }


def check_space(config: PoolConfig, cache_dir: str | Path | None = None) -> None:
    """See that there is room for the pool of ``config``, if it is not built yet.

    Raises:
        UserError: there is not.
    """
    from torchmpo_envs import expert_path

    folder = pool_folder(config, cache_dir)
    if folder.exists():
        return
    shapes = _shapes(config, load_policy(expert_path(config.target)))
    needed = sum(math.prod(shape) * _DTYPES[name].itemsize for name, shape in shapes.items())
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
def _roll_out(env, agents, start, is_target, noise) -> dict[str, Tensor]:
    """One episode in every simulation; rows of ``is_target`` follow the target agent."""
    from tensordict import TensorDict

    state = env.reset(TensorDict({"start_state": start}, env.batch_size))
    std = agents["target"].log_std.exp()
    shape = (env.num_envs, env.max_steps)
    observation = torch.zeros(*shape, agents["target"].observation_size)
    actions = torch.zeros(*shape, agents["target"].action_size)
    lengths = torch.zeros(env.num_envs, dtype=torch.int64)
    returns = torch.zeros(env.num_envs)
    running = torch.ones(env.num_envs, dtype=torch.bool)
    for step in range(env.max_steps):
        obs = state["observation"]
        mean = torch.where(is_target[:, None], agents["target"](obs), agents["original"](obs))
        action = mean + std * torch.randn(mean.shape, generator=noise)
        observation[:, step] = obs * running[:, None]
        actions[:, step] = action * running[:, None]
        lengths += running
        state = env.step(state.set("action", action))["next"]
        returns += state["reward"].squeeze(-1)
        running &= ~state["done"].squeeze(-1)
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
        card = json.loads((folder / _COMPLETE).read_text())
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
