"""What the name of a task stands for, and one simulation of a task of one's own.

A task is the name of a shipped robot, ``"gymnasium:ID"``, or ``"package.module:function"`` for a
function or class that makes an environment: one for each call, or where it has a parameter
``num_envs``, so many at once. This module is what a process that steps simulations imports; it
knows neither torch nor the shipped robots.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from torchmpo.runs.errors import UserError, nearest, one_line
from torchmpo.runs.own_code import names_code, own_code_raised

GYMNASIUM = "gymnasium:"


class Spaces(NamedTuple):
    """What a policy sees and does.

    Args:
        observation_size: numbers in an observation, flattened.
        low, high: ``[action_size]``, float64, the range of each action; infinite for none.
    """

    observation_size: int
    low: np.ndarray
    high: np.ndarray


class Simulation(Protocol):
    """One simulation of a task."""

    spaces: Spaces

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode that this seed decides; the observation ``[observation_size]``."""
        ...

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Observation, reward, and whether the episode is over; ``action [action_size]``."""
        ...


def is_own_task(task: str) -> bool:
    """Whether a task is not one of the shipped robots, by its name alone."""
    return task.startswith(GYMNASIUM) or names_code(task)


def maker(task: str) -> Callable[..., Any]:
    """The function that makes an environment of a task of one's own.

    Raises:
        UserError: it cannot be imported, or there is no such environment.
    """
    if task.startswith(GYMNASIUM):
        return _of_gymnasium(task)
    module_name, _, attribute = task.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise UserError(
            f"task {task!r} must be package.module:function, with dots, and without a path or .py"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"task {task!r}: cannot import {module_name!r}: {error} (modules are looked for in the "
            "current folder and in those of PYTHONPATH)"
        ) from error
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        raise own_code_raised(task, error) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise UserError(
            f"task {task!r}: {module_name} has no function {attribute!r}; "
            + nearest(attribute, known)
        )
    return function


def _of_gymnasium(task: str) -> Callable[..., Any]:
    import gymnasium

    name = task.removeprefix(GYMNASIUM)
    module, _, identifier = name.rpartition(":")
    try:
        if module:  # which registers it
            importlib.import_module(module)
        spec = gymnasium.spec(identifier)
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(f"task {task!r}: {one_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise own_code_raised(task, error) from error
    if spec.vector_entry_point is not None:
        return lambda num_envs: gymnasium.make_vec(
            name, num_envs, vectorization_mode="vector_entry_point"
        )
    return lambda: gymnasium.make(name, disable_env_checker=True)


def makes_batches(make: Callable[..., Any]) -> bool:
    """Whether a function makes many simulations at once: it has a parameter ``num_envs``."""
    made_by = make.__init__ if inspect.isclass(make) else make  # of TorchRL's classes, the truth
    try:
        return "num_envs" in inspect.signature(made_by).parameters
    except (TypeError, ValueError):  # of a function without a known signature
        return False


def simulation(task: str) -> Simulation:
    """One simulation of a task of one's own.

    Raises:
        UserError: what its code raises, or an environment that no policy here could act in.
    """
    import gymnasium

    make = maker(task)
    try:
        env = make()
    except Exception as error:
        raise own_code_raised(task, error) from error
    if isinstance(env, gymnasium.Env):
        return _GymnasiumSimulation(task, env)
    if hasattr(env, "action_spec"):
        return _TorchRLSimulation(task, env)
    raise UserError(
        f"task {task!r} made a {type(env).__name__}: it must make an environment of Gymnasium or "
        "of TorchRL"
    )


class _GymnasiumSimulation:
    """An environment of Gymnasium; observations are flattened."""

    def __init__(self, task: str, env: Any):
        self.env, self.flatten = env, _flattened(task, env.observation_space)
        self.spaces = spaces_of_gymnasium(task, env.observation_space, env.action_space)

    def reset(self, seed: int) -> np.ndarray:
        observation, _ = self.env.reset(seed=seed)
        return self.flatten(observation)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        space = self.env.action_space
        action = action.astype(space.dtype).reshape(space.shape)
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return self.flatten(observation), float(reward), bool(terminated or truncated)


def spaces_of_gymnasium(task: str, observations: Any, actions: Any) -> Spaces:
    """The sizes and ranges of one environment's spaces.

    Raises:
        UserError: observations that have no fixed size, or actions that are no real numbers.
    """
    from gymnasium.spaces import Box, flatdim

    if not isinstance(actions, Box):
        raise UserError(
            f"task {task!r} has actions of {actions}: policies here act by real numbers (Box)"
        )
    _flattened(task, observations)
    low, high = (_ends(bound) for bound in (actions.low, actions.high))
    return Spaces(flatdim(observations), low, high)


def _flattened(task: str, space: Any) -> Callable[[Any], np.ndarray]:
    """The function from an observation to float32 numbers."""
    from gymnasium.spaces import Box, flatten

    if not space.is_np_flattenable:
        raise UserError(f"task {task!r} has observations of no fixed size: {space}")
    if isinstance(space, Box):
        return lambda observation: np.asarray(observation, np.float32).reshape(-1)
    return lambda observation: np.asarray(flatten(space, observation), np.float32)


class _TorchRLSimulation:
    """An environment of TorchRL; the parts of an observation stand in the order of their names."""

    def __init__(self, task: str, env: Any):
        self.env = env
        if tuple(env.batch_size) not in ((), (1,)):
            raise UserError(
                f"task {task!r} made a batch of {tuple(env.batch_size)}: a function that makes "
                "many at once takes num_envs"
            )
        self.names, self.spaces = spaces_of_torchrl(task, env, 1)

    def reset(self, seed: int) -> np.ndarray:
        self.env.set_seed(seed)
        self.state = self.env.reset()
        return self._observation(self.state)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        import torch
        from torchrl.envs.utils import step_mdp

        spec = self.env.action_spec
        own = torch.from_numpy(action).to(spec.dtype).view(spec.shape)
        after = self.env.step(self.state.set(self.env.action_key, own))
        self.state = step_mdp(after)
        reward, done = after["next", self.env.reward_key], after["next", "done"]
        return self._observation(self.state), float(reward.sum()), bool(done.any())

    def _observation(self, state: Any) -> np.ndarray:
        parts = [np.asarray(state[name].detach().cpu(), np.float32) for name in self.names]
        return np.concatenate([part.reshape(-1) for part in parts])


def spaces_of_torchrl(task: str, env: Any, count: int) -> tuple[list[Any], Spaces]:
    """The names of observations in TorchRL's environment, and the spaces of one of ``count``.

    Raises:
        UserError: there are no observations of real numbers, or actions that are none.
    """
    leaves = env.observation_spec.items(True, True)
    real = {name: spec for name, spec in leaves if spec.dtype.is_floating_point}
    action = env.action_spec
    if not real:
        raise UserError(f"task {task!r} has no observation of real numbers")
    if not getattr(action, "dtype", None) or not action.dtype.is_floating_point:
        raise UserError(f"task {task!r} has actions of {action}: policies act by real numbers")
    names = sorted(real, key=str)
    size = sum(real[name].shape.numel() for name in names) // count
    actions = action.shape.numel() // count
    space = action.space
    bounds = [getattr(space, end, None) for end in ("low", "high")]
    low, high = (
        np.full(actions, limit) if bound is None else _ends(bound.cpu())[:actions]
        for bound, limit in zip(bounds, (-np.inf, np.inf), strict=True)
    )
    return names, Spaces(size, low, high)


def _ends(bound: Any) -> np.ndarray:
    """The ends of ranges, flat: infinite where they are the largest number of their type, by which
    TorchRL says that there are none.
    """
    bound = np.asarray(bound)
    ends = bound.astype(np.float64).reshape(-1)
    if not np.issubdtype(bound.dtype, np.floating):
        return ends
    return np.where(np.abs(ends) >= np.finfo(bound.dtype).max, np.copysign(np.inf, ends), ends)
