"""Where policies act: what is asked of a batch of simulations, and any task behind it.

:class:`Environment` is all that pools and returns ask for. The shipped robots have it. A task of
one's own is put behind it by :func:`make_environment`: a batch of Gymnasium's or TorchRL's as it
is, and anything else in parallel processes.

Actions are in units of the range that the environment gives, −1 to 1, and clipped to it; an action
without a range is passed on as it is.
"""

import os
import sys
import time
from collections.abc import Mapping
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from torchmpo.control.processes import Processes
from torchmpo.control.tasks import (
    GYMNASIUM,
    Spaces,
    is_own_task,
    maker,
    makes_batches,
    spaces_of_gymnasium,
    spaces_of_torchrl,
)
from torchmpo.objectives.fingerprint import Unknowable, fingerprint, is_installed
from torchmpo.runs.errors import UserError, nearest
from torchmpo.runs.own_code import own_code_raised
from torchmpo.runs.seeding import derive_seed
from torchmpo_envs import TASKS, Hopper, Walker2d

# Gymnasium's own that batched physics gives step by step.
BATCHED = {f"{GYMNASIUM}Hopper-v5": Hopper, f"{GYMNASIUM}Walker2d-v5": Walker2d}
ROBOTS_AT_ONCE, OTHERS_AT_ONCE = 512, 64  # simulations in a batch
SPEED_SECONDS = 1.0  # for which simulations in processes are timed
_RUNNING: dict[tuple[str, int], Processes] = {}  # until the end of the program


@runtime_checkable
class Environment(Protocol):
    """A batch of simulations of one task; in each, an episode from its start to its end.

    One with a method ``reward_terms``, as
    :meth:`torchmpo_envs.base.BatchedMujocoEnv.reward_terms`, has its terms reported. Those of
    :func:`can_fork` have :meth:`torchmpo_envs.base.BatchedMujocoEnv.fork`.

    Args:
        num_envs: simulations in the batch.
        max_steps: an episode is over after so many; it may be set before a reset.
        observation_size, action_size: numbers in an observation and in an action.
    """

    num_envs: int
    max_steps: int

    @property
    def observation_size(self) -> int: ...

    @property
    def action_size(self) -> int: ...

    def start_states(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` random starts ``[count, …]``, in whatever form ``reset`` takes them."""
        ...

    def reset(self, tensordict: Any) -> Any:
        """Begin an episode in each simulation, from its row of ``start_state``.

        Where ``_reset`` ``[num_envs, 1]`` is there, only in those that it marks. No more than
        :func:`can_begin_again` asks for it.

        Returns:
            ``observation [num_envs, observation_size]``, float32.
        """
        ...

    def step(self, tensordict: Any) -> Any:
        """One step under ``action [num_envs, action_size]``. What is over stands still.

        Returns:
            under ``next``: ``observation``, and ``reward`` and ``done`` ``[num_envs, 1]``.
        """
        ...


def check_task(task: str) -> None:
    """Refuse what can be no task, by its name alone: nothing is imported.

    Raises:
        UserError: it is none.
    """
    if task in TASKS or is_own_task(task):
        return
    module, dot, function = task.removesuffix(".py").rpartition(".")
    if dot and ":" not in task:
        hint = f"a task of your own has a colon: did you mean '{module}:{function}'?"
    else:
        hint = nearest(task, TASKS)
    raise UserError(f"unknown task {task!r}: {hint}")


def make_environment(
    task: str,
    num_envs: int,
    *,
    max_steps: int = 1000,
    num_threads: int = 0,
    integrator: str = "implicitfast",
) -> Environment:
    """``num_envs`` simulations of a task.

    Args:
        task: a shipped robot, ``"gymnasium:ID"`` or ``"package.module:function"``.
        num_threads: of the physics, or processes where simulations are stepped one by one; 0 takes
            every core. Results do not depend on it.
        integrator: of the physics of a shipped robot.

    Raises:
        UserError: there is no such task, its code raises, or no policy here could act in it.
    """
    check_task(task)
    settings: dict[str, Any] = {"max_steps": max_steps, "num_threads": num_threads}
    if task in TASKS:
        return TASKS[task](num_envs, integrator=integrator, **settings)
    if task in BATCHED:
        settings["max_steps"] = min(max_steps, time_limit(task) or max_steps)  # as of other ids
        return BATCHED[task](num_envs, integrator="RK4", **settings)
    make = maker(task)
    if not makes_batches(make):
        count = num_threads or len(os.sched_getaffinity(0))
        return _Separate(_processes(task, count), num_envs, max_steps)
    try:
        made = make(num_envs=num_envs)
    except Exception as error:
        raise own_code_raised(task, error) from error
    return _adapted(task, made, num_envs, max_steps)


def time_limit(task: str) -> int | None:
    """After how many steps an episode of a batch of Gymnasium's is over, as its id says."""
    if task not in BATCHED:
        return None
    import gymnasium

    return gymnasium.spec(task.removeprefix(GYMNASIUM)).max_episode_steps


def simulations(task: str) -> int:
    """How many simulations of a task are best stepped at once."""
    return ROBOTS_AT_ONCE if task in TASKS or task in BATCHED else OTHERS_AT_ONCE


def stepped_one_by_one(task: str) -> bool:
    """Whether the simulations of a task are stepped in processes, for want of a batch."""
    return task not in {**TASKS, **BATCHED} and not makes_batches(maker(task))


def can_begin_again(task: str) -> bool:
    """Whether one simulation of a task can be reset while the others go on."""
    return task in {**TASKS, **BATCHED} or stepped_one_by_one(task)


def can_fork(task: str) -> bool:
    """Whether the state of a task's simulations can be copied from one to another."""
    return task in TASKS or task in BATCHED


def sizes(task: str, num_threads: int = 0) -> tuple[int, int]:
    """Numbers in an observation and in an action of a task.

    Raises:
        UserError: as of :func:`make_environment`.
    """
    check_task(task)
    separate = stepped_one_by_one(task)
    # Simulations in processes are made when they are reset; these processes are used again.
    count, threads = (OTHERS_AT_ONCE, num_threads) if separate else (1, 1)
    env = make_environment(task, count, max_steps=1, num_threads=threads)
    return env.observation_size, env.action_size


@cache  # what is imported once does not change any more
def digest(task: str) -> str | None:
    """What a task of one's own follows from, besides its name; None for a shipped robot.

    Of code, a digest of its text and of the text of its own modules that it names. Of one of
    Gymnasium's ids, a digest of all that was registered, and the versions of the installed packages
    that it is from.
    """
    if task in TASKS:
        return None
    if task in BATCHED:  # what is registered is not what runs
        return _versioned("gymnasium")
    make = maker(task)  # an unknown id is told in a line, and a module of its own is imported
    packages: list[str] = []
    if task.startswith(GYMNASIUM):
        try:
            make, packages = _registered(task)
        except Exception as error:  # of a module that is imported, or a name that it does not have
            raise own_code_raised(task, error) from error
    try:
        return " ".join([*packages, fingerprint(make)])
    except Unknowable as error:
        raise UserError(f"task {task!r}: nobody could tell when it changes ({error})") from error


def _registered(task: str) -> tuple[partial, list[str]]:
    """What one of Gymnasium's ids is made of, to be digested and not to be called.

    Returns:
        the functions that make the environment and its wrappers, with their arguments and the time
        limit; and the installed packages that they are from, with their versions.
    """
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    spec = gymnasium.spec(task.rpartition(":")[2])
    entries: list[Any] = [spec.vector_entry_point or spec.entry_point]  # as `maker` chooses
    entries += [wrapper.entry_point for wrapper in spec.additional_wrappers]
    makers = [load_env_creator(entry) if isinstance(entry, str) else entry for entry in entries]
    around = [wrapper.kwargs for wrapper in spec.additional_wrappers]
    packages = {package for make in makers if (package := _installed_package(make))}
    # Around `dict`, because the package of the function in a partial is read, installed or not.
    made = partial(dict, *makers, spec.kwargs, spec.max_episode_steps, *around)
    return made, sorted(map(_versioned, packages))


def _installed_package(make: Any) -> str | None:
    """The package that a function is from; None for a module of one's own."""
    while isinstance(make, partial):
        make = make.func
    file = getattr(sys.modules.get(make.__module__), "__file__", None)
    return make.__module__.partition(".")[0] if file is None or is_installed(file) else None


def _versioned(package: str) -> str:
    """A package, by which its modules are imported, with its version."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # it may be distributed under another name
        names = packages_distributions().get(package, [])
        return " ".join([package, *map(version, names)])


def speed(task: str, num_threads: int = 0) -> str:
    """How fast a task is stepped in processes, beside the bare environment: a line."""
    env, count = make_environment(task, OTHERS_AT_ONCE, num_threads=num_threads), OTHERS_AT_ONCE
    assert isinstance(env, _Separate)
    starts = env.start_states(count, torch.Generator().manual_seed(0))
    state = env.reset(TensorDict({"start_state": starts}, [count]))
    action, steps, begin = torch.zeros(count, env.action_size), 0, time.perf_counter()
    while (seconds := time.perf_counter() - begin) < SPEED_SECONDS:
        steps += int((~env.over).sum())
        state = env.step(state.set("action", action))["next"]
        if env.over.all():
            state = env.reset(TensorDict({"start_state": starts}, [count]))
    count = env.processes.count
    return (
        f"{task}: {steps / seconds:,.0f} steps/s in {count} process{'es' if count > 1 else ''}; "
        f"the bare environment alone: {env.processes.bare_speed():,.0f}"
    )


def _processes(task: str, count: int) -> Processes:
    """One set of processes for all batches of a task: only one of them steps at a time."""
    key = task, count
    if key not in _RUNNING or _RUNNING[key].closed:
        _RUNNING[key] = Processes(task, count)
    return _RUNNING[key]


class _Own:
    """A batch of a task of one's own behind :class:`Environment`. Its start states are seeds."""

    def __init__(self, num_envs: int, max_steps: int, spaces: Spaces):
        self.num_envs, self.max_steps, self.spaces = num_envs, max_steps, spaces
        self.observation_size, self.action_size = spaces.observation_size, len(spaces.low)
        self.over = torch.ones(num_envs, dtype=torch.bool)
        self.steps = 0

    def start_states(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(2**31 - 1, (count, 1), generator=generator)

    def reset(self, tensordict: Any) -> Any:
        seeds = tensordict["start_state"].flatten().tolist()
        if (marked := tensordict.get("_reset", None)) is not None:
            begins = marked.view(-1)
            seeds = [seed if own else None for seed, own in zip(seeds, begins.tolist())]
            self.over &= ~begins
        else:
            self.over, self.steps = torch.zeros(self.num_envs, dtype=torch.bool), 0
        return TensorDict({"observation": self._numbers(self._begin(seeds))}, [self.num_envs])

    def step(self, tensordict: Any) -> Any:
        moving = ~self.over
        action = self._own_units(tensordict["action"].double().numpy())
        observation, reward, over = self._advance(action, moving.numpy())
        reward, over = self._numbers(reward).view(-1), torch.as_tensor(over).view(-1).bool()
        observation = self._numbers(observation)
        finite = reward.isfinite() & observation.isfinite().all(-1)
        self.steps += 1
        # What was over is over still, whatever an environment that goes on says of it.
        self.over = self.over | over | ~finite | (self.steps >= self.max_steps)
        entries = {
            "observation": torch.where(finite[:, None], observation, 0.0),
            "reward": torch.where(moving & finite, reward, 0.0).unsqueeze(-1),
            "done": self.over.unsqueeze(-1),
        }
        return tensordict.set("next", TensorDict(entries, [self.num_envs]))

    def _own_units(self, action: np.ndarray) -> np.ndarray:
        """From −1 to 1 to the environment's own range."""
        low, high = self.spaces.low, self.spaces.high
        bounded = np.isfinite(low) & np.isfinite(high)
        with np.errstate(invalid="ignore"):  # of infinite bounds, which are not taken
            scaled = low + (np.clip(action, -1.0, 1.0) + 1) / 2 * (high - low)
        return np.where(bounded, scaled, np.clip(action, low, high))

    def _numbers(self, values: Any) -> Tensor:
        values = values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))
        return values.detach().cpu().float()

    def _begin(self, seeds: list[int | None]) -> Any:
        """Reset every simulation that has a seed, by it; observations of all."""
        raise NotImplementedError

    def _advance(self, action: np.ndarray, moving: np.ndarray) -> tuple[Any, Any, Any]:
        """Observations, rewards, and which are over; of those that do not move, anything."""
        raise NotImplementedError


class _Separate(_Own):
    """Simulations in processes."""

    def __init__(self, processes: Processes, num_envs: int, max_steps: int):
        super().__init__(num_envs, max_steps, processes.spaces)
        self.processes = processes

    def _begin(self, seeds: list[int | None]) -> Any:
        return self.processes.reset(seeds)

    def _advance(self, action: np.ndarray, moving: np.ndarray) -> tuple[Any, Any, Any]:
        return self.processes.step(action, moving)


class _GymnasiumBatch(_Own):
    """A ``VectorEnv`` of Gymnasium. It may reset what is over; that is not looked at."""

    def __init__(self, task: str, env: Any, max_steps: int):
        one = spaces_of_gymnasium(task, env.single_observation_space, env.single_action_space)
        if len(env.single_observation_space.shape or ()) == 0:
            raise UserError(
                f"task {task!r} has observations of {env.single_observation_space}: of a batch "
                "they must be an array (Box)"
            )
        super().__init__(env.num_envs, max_steps, one)
        self.env = env

    def _begin(self, seeds: list[int | None]) -> Any:
        return self._flat(self.env.reset(seed=seeds)[0])

    def _advance(self, action: np.ndarray, moving: np.ndarray) -> tuple[Any, Any, Any]:
        space = self.env.action_space
        observation, reward, terminated, truncated, _ = self.env.step(
            action.astype(space.dtype).reshape(space.shape)
        )
        return self._flat(observation), reward, np.logical_or(terminated, truncated)

    def _flat(self, observation: Any) -> np.ndarray:
        return np.asarray(observation, np.float32).reshape(self.num_envs, -1)


class _TorchRLBatch(_Own):
    """A batch of TorchRL's. It has one seed: simulations differ, also where their seeds do not."""

    def __init__(self, task: str, env: Any, max_steps: int):
        num_envs = env.batch_size.numel()
        self.names, one = spaces_of_torchrl(task, env, num_envs)
        super().__init__(num_envs, max_steps, one)
        self.env = env

    @torch.no_grad()
    def _begin(self, seeds: list[int | None]) -> Any:
        self.env.set_seed(derive_seed(*(seed for seed in seeds if seed is not None)) % 2**31)
        self.state = self.env.reset()
        return self._observation(self.state)

    @torch.no_grad()
    def _advance(self, action: np.ndarray, moving: np.ndarray) -> tuple[Any, Any, Any]:
        from torchrl.envs.utils import step_mdp

        spec = self.env.action_spec
        own = torch.from_numpy(action).to(spec.device, spec.dtype).view(spec.shape)
        after = self.env.step(self.state.set(self.env.action_key, own))
        self.state = step_mdp(after)
        reward, done = after["next", self.env.reward_key], after["next", "done"]
        over = done.view(self.num_envs, -1).any(1).cpu()
        return self._observation(self.state), reward.view(self.num_envs, -1).sum(1), over

    def _observation(self, state: Mapping) -> Tensor:
        return torch.cat([state[name].reshape(self.num_envs, -1) for name in self.names], 1)


def _adapted(task: str, made: Any, num_envs: int, max_steps: int) -> Environment:
    """A batch that somebody's function has made."""
    import gymnasium
    from torchrl.envs import EnvBase

    count = getattr(made, "num_envs", None)
    if isinstance(made, EnvBase):
        count = made.batch_size.numel()
    elif not isinstance(made, (Environment, gymnasium.vector.VectorEnv)):
        raise UserError(
            f"task {task!r} made a {type(made).__name__}: a function with num_envs must make a "
            "VectorEnv of Gymnasium or a batch of TorchRL"
        )
    if count != num_envs:
        raise UserError(f"task {task!r} was asked for {num_envs} environments and made {count}")
    if isinstance(made, Environment):
        made.max_steps = max_steps
        return made
    batch = _TorchRLBatch if isinstance(made, EnvBase) else _GymnasiumBatch
    return batch(task, made, max_steps)
