"""The tasks one simulation at a time, for everything that speaks Gymnasium."""

from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
from gymnasium.spaces import Box
from tensordict import TensorDict

from torchmpo_envs.ant import Ant, ThreeLeggedAnt
from torchmpo_envs.hopper import Hopper

_TASKS = {"Hopper-v0": Hopper, "Ant-v0": Ant, "ThreeLeggedAnt-v0": ThreeLeggedAnt}
_FOREVER = 2**62  # steps; Gymnasium's TimeLimit truncates


class SingleEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One robot of :class:`torchmpo_envs.base.BatchedMujocoEnv` behind Gymnasium's interface.

    ``gymnasium.make("torchmpo_envs:torchmpo/Hopper-v0", render_mode="rgb_array")`` makes one, with
    a time limit of 1000 steps. Actions are clipped to [−1, 1]. ``reset`` takes
    ``options={"start_state": state}``, ``[nq + nv]``, to start there instead of in a random state.
    After the step that terminates it stands still, without reward, until it is reset.

    Args:
        task: ``"Hopper-v0"``, ``"Ant-v0"`` or ``"ThreeLeggedAnt-v0"``.
        render_mode: None, or ``"rgb_array"``: pictures ``[480, 640, 3]``, uint8.
        **settings: of the task, such as ``integrator="RK4"`` or ``leg=1``.

    Raises:
        ValueError: unknown ``render_mode``; what the task refuses; in ``step``, an action of the
            wrong shape or not finite.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012, Gymnasium reads it from the class

    def __init__(self, task: str, *, render_mode: str | None = None, **settings: Any):
        settings = {"num_threads": 1} | settings
        self._env = _TASKS[task](1, max_steps=_FOREVER, dtype=torch.float64, **settings)
        self.metadata = self.metadata | {"render_fps": round(1 / self._env.dt)}
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array'; got {render_mode!r}")
        self.render_mode = render_mode
        # Finite, as some algorithms want: MuJoCo restarts a simulation that goes beyond.
        size, limit = self._env.observation_spec["observation"].shape[-1], float(mujoco.mjMAXVAL)
        self.observation_space = Box(-limit, limit, (size,), np.float64)
        self.action_space = Box(-1.0, 1.0, (self._env.model.nu,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        start = (options or {}).get("start_state")
        if start is None:
            draw = torch.Generator().manual_seed(int(self.np_random.integers(2**62)))
            start = self._env.start_states(1, draw)[0]
        start = torch.as_tensor(start, dtype=torch.float64).unsqueeze(0)
        state = self._env.reset(TensorDict({"start_state": start}, [1]))
        return state["observation"][0].numpy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        batch = torch.as_tensor(action).unsqueeze(0)
        if batch.shape[1:] != (self._env.model.nu,):
            wanted, got = (self._env.model.nu,), tuple(batch.shape[1:])
            raise ValueError(f"an action must be of shape {wanted}; got {got}")
        state = self._env.step(TensorDict({"action": batch}, [1]))["next"]
        observation, reward = state["observation"][0].numpy(), state["reward"].item()
        return observation, reward, bool(state["terminated"]), False, {}

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A picture, with ``render_mode="rgb_array"``; otherwise None."""
        return None if self.render_mode is None else self._env.render().numpy()

    def close(self) -> None:
        if not self._env.is_closed:
            self._env.close()


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
                max_episode_steps=1000,
                kwargs={"task": name},
            )
