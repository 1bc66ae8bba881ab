"""The tasks for everything that speaks Gymnasium, one robot at a time or a batch of them."""

from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from tensordict import TensorDict
from torch import Tensor

from torchmpo_envs.ant import Ant, ThreeLeggedAnt
from torchmpo_envs.base import BatchedMujocoEnv
from torchmpo_envs.hopper import Hopper

_TASKS = {"Hopper-v0": Hopper, "Ant-v0": Ant, "ThreeLeggedAnt-v0": ThreeLeggedAnt}
_FOREVER = 2**62  # steps; Gymnasium's TimeLimit truncates


class SingleEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One robot of :class:`torchmpo_envs.base.BatchedMujocoEnv` behind Gymnasium's interface.

    ``gymnasium.make("torchmpo_envs:torchmpo/Hopper-v0", render_mode="rgb_array")`` makes one, with
    a time limit of 1000 steps. Actions are clipped to [−1, 1]. ``reset`` takes
    ``options={"start_state": state}``, ``[nq + nv]``, to start there instead of in a random state.
    After the step that terminates it stands still, without reward, until it is reset. The ``info``
    of a step has the terms of the reward (``reward_forward``, ``reward_survive``, ``reward_ctrl``,
    and ``reward_leg`` of the three-legged ant), named as Gymnasium names them, and
    ``x_position``.

    Args:
        task: ``"Hopper-v0"``, ``"Ant-v0"`` or ``"ThreeLeggedAnt-v0"``.
        render_mode: None, or ``"rgb_array"``: pictures ``[480, 640, 3]``, uint8.
        **settings: of the task, such as ``integrator="RK4"``, ``xml_file="my.xml"`` or ``leg=1``.

    Raises:
        ValueError: unknown ``render_mode``; what the task refuses; in ``step``, an action of the
            wrong shape or not finite.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012, Gymnasium reads it from the class

    def __init__(self, task: str, *, render_mode: str | None = None, **settings: Any):
        settings = {"num_threads": 1} | settings
        self._env = _TASKS[task](1, max_steps=_FOREVER, dtype=torch.float64, **settings)
        self.metadata = self.metadata | {"render_fps": round(1 / self._env.dt)}
        self.render_mode = _checked(render_mode)
        self.observation_space, self.action_space = _spaces(self._env)

    @property
    def model(self) -> mujoco.MjModel:
        """The robot's model."""
        return self._env.model

    @property
    def data(self) -> mujoco.MjData:
        """The robot's state as MuJoCo's data, a copy, so that writing to it moves nothing."""
        return self._env.data()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        start = (options or {}).get("start_state")
        start = _start_state(self._env, self.np_random) if start is None else _tensor(start)
        state = self._env.reset(TensorDict({"start_state": start.unsqueeze(0)}, [1]))
        return _array(state["observation"])[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        batch = _tensor(action).unsqueeze(0)
        if batch.shape[1:] != self.action_space.shape:
            wanted, got = self.action_space.shape, tuple(batch.shape[1:])
            raise ValueError(f"an action must be of shape {wanted}; got {got}")
        state = self._env.step(TensorDict({"action": batch}, [1]))["next"]
        observation, reward = _array(state["observation"])[0], state["reward"].item()
        info = {name: value.item() for name, value in _info(self._env).items()}
        return observation, reward, bool(state["terminated"]), False, info

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A picture, with ``render_mode="rgb_array"``; otherwise None."""
        return None if self.render_mode is None else self._env.render().numpy()

    def close(self) -> None:
        if not self._env.is_closed:
            self._env.close()


class VectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A batch of robots behind Gymnasium's vector interface, on MuJoCo's own threads.

    ``gymnasium.make_vec("torchmpo_envs:torchmpo/Ant-v0", num_envs=64)`` makes one. It gives what a
    ``SyncVectorEnv`` of so many :class:`SingleEnv` gives, to the same bits: robot ``i`` is seeded
    by ``seed + i``, and the step after the one that ends an episode resets that robot, without
    reward.

    Args:
        task: as of :class:`SingleEnv`.
        num_envs: robots.
        max_episode_steps: an episode is truncated after so many; None for never.
        render_mode: None, or ``"rgb_array"``: a picture of each robot.
        **settings: of the task.

    Raises:
        ValueError: as of :class:`SingleEnv`; in ``reset``, not one seed for each robot.
    """

    metadata = {  # noqa: RUF012, Gymnasium reads it from the class
        "render_modes": ["rgb_array"],
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ):
        steps = max_episode_steps or _FOREVER
        self._env = _TASKS[task](num_envs, max_steps=steps, dtype=torch.float64, **settings)
        self.num_envs = num_envs
        self.metadata = self.metadata | {"render_fps": round(1 / self._env.dt)}
        self.render_mode = _checked(render_mode)
        self.single_observation_space, self.single_action_space = _spaces(self._env)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators = [np_random()[0] for _ in range(num_envs)]
        self._over = torch.zeros(num_envs, dtype=torch.bool)

    @property
    def model(self) -> mujoco.MjModel:
        """The model of every robot."""
        return self._env.model

    @property
    def data(self) -> mujoco.MjData:
        """The first robot's state as MuJoCo's data, a copy, so that writing to it moves nothing."""
        return self._env.data()

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start anew, all robots or those in ``options["reset_mask"]`` ``[num_envs]``, in random
        states or in ``options["start_state"]`` ``[num_envs, nq + nv]``."""
        options = options or {}
        mask = torch.ones(self.num_envs, dtype=torch.bool)
        if (given := options.get("reset_mask")) is not None:
            mask = torch.from_numpy(np.array(given, dtype=bool))
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None and len(seeds) != self.num_envs:
            raise ValueError(f"reset wants {self.num_envs} seeds; got {len(seeds)}")
        for robot, one in enumerate(seeds or ()):
            if one is not None and mask[robot]:
                self._generators[robot] = np_random(one)[0]
        start = options.get("start_state")
        observation = self._start(mask, None if start is None else _tensor(start))
        return _array(observation), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of each robot, or the reset of those whose episode ended in the last one."""
        again = self._over.clone()
        action = TensorDict({"action": _tensor(actions), "_step": ~again}, [self.num_envs])
        state = self._env._step(action)
        info: dict[str, Any] = {}
        for name, value in _info(self._env).items():
            info[name] = np.where(again, 0.0, _array(value))
            info[f"_{name}"] = _array(~again)
        observation = self._start(again) if again.any() else state["observation"]
        flags = [state[name].squeeze(-1).cpu() & ~again for name in ("terminated", "truncated")]
        self._over = flags[0] | flags[1]
        reward = _array(state["reward"].squeeze(-1))
        return _array(observation), reward, flags[0].numpy(), flags[1].numpy(), info

    def _start(self, mask: Tensor, start: Tensor | None = None) -> Tensor:
        """Reset the robots in ``mask``; the observations of all."""
        if start is None:
            start = torch.zeros(self.num_envs, self.model.nq + self.model.nv, dtype=torch.float64)
            for robot in mask.nonzero().flatten().tolist():
                start[robot] = _start_state(self._env, self._generators[robot])
        self._over &= ~mask
        state = TensorDict({"_reset": mask, "start_state": start}, [self.num_envs])
        return self._env._reset(state)["observation"]

    def render(self) -> tuple[np.ndarray, ...] | None:
        """A picture of each robot, with ``render_mode="rgb_array"``; otherwise None."""
        if self.render_mode is None:
            return None
        return tuple(self._env.render(robot).numpy() for robot in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        if not self._env.is_closed:
            self._env.close()


def _spaces(env: BatchedMujocoEnv) -> tuple[Box, Box]:
    """Of one robot's observations and actions."""
    # Finite, as some algorithms want: MuJoCo restarts a simulation that goes beyond.
    size, limit = env.observation_spec["observation"].shape[-1], float(mujoco.mjMAXVAL)
    return Box(-limit, limit, (size,), np.float64), Box(-1.0, 1.0, (env.model.nu,), np.float32)


def _checked(render_mode: str | None) -> str | None:
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode must be None or 'rgb_array'; got {render_mode!r}")
    return render_mode


def _start_state(env: BatchedMujocoEnv, draw: np.random.Generator) -> Tensor:
    generator = torch.Generator().manual_seed(int(draw.integers(2**62)))
    return env.start_states(1, generator)[0]


def _info(env: BatchedMujocoEnv) -> dict[str, Tensor]:
    return env.reward_terms() | {"x_position": env.state()[:, 0]}


def _tensor(values: Any) -> Tensor:
    """A copy, because torch takes neither a read-only array nor one that runs backwards."""
    if isinstance(values, Tensor):
        return values.double()
    return torch.from_numpy(np.array(values, dtype=np.float64))


def _array(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()


def register() -> None:
    """Tell Gymnasium the ids of the tasks, each with and without the namespace ``torchmpo/``.

    Gymnasium takes ``Ant-v0`` and ``Hopper-v0`` for old versions of its own robots and says so in a
    warning; the names with the namespace are free of it.
    """
    for name in _TASKS:
        for identifier in (name, f"torchmpo/{name}"):
            gymnasium.register(
                identifier,
                entry_point=f"{__name__}:{SingleEnv.__name__}",
                vector_entry_point=f"{__name__}:{VectorEnv.__name__}",
                max_episode_steps=1000,
                kwargs={"task": name},
            )
