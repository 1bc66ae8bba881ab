"""A batch of MuJoCo simulations as one TorchRL environment.

Shapes: ``observation [num_envs, observation_size]``, ``action [num_envs, action_size]`` in [−1, 1]
(clipped if outside), ``reward``, ``done``, ``terminated``, ``truncated`` ``[num_envs, 1]``.
"""

from abc import abstractmethod
from pathlib import Path

import gymnasium
import mujoco
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from torchmpo_envs.physics import PHYSICS, start_physics
from torchmpo_envs.rendering import Renderer

INTEGRATORS = {
    "Euler": mujoco.mjtIntegrator.mjINT_EULER,
    "RK4": mujoco.mjtIntegrator.mjINT_RK4,
    "implicit": mujoco.mjtIntegrator.mjINT_IMPLICIT,
    "implicitfast": mujoco.mjtIntegrator.mjINT_IMPLICITFAST,
}


class BatchedMujocoEnv(EnvBase):
    """Base of the tasks: Gymnasium's model, batched physics, TorchRL's interface.

    A finished environment stands still (reward 0, ``done`` stays True) until it is reset, so a
    batch of episodes of unequal length costs only the steps it needs. ``reset`` takes two optional
    entries: ``_reset``, a mask of the environments to reset, and ``start_state``
    ``[num_envs, nq + nv]``, where to start instead of a random state.

    Args:
        num_envs: simulations in the batch.
        physics: back end; ``"threads"`` is ``mujoco.batch``, on the CPU and in float64; ``"warp"``
            is MuJoCo Warp, on ``device`` and in float32, see :mod:`torchmpo_envs.warp`.
        integrator: ``"implicitfast"`` (four times faster) or ``"RK4"`` (Gymnasium's), ``"Euler"``,
            ``"implicit"``.
        num_threads: of ``"threads"``; 0 takes every core. Results do not depend on it.
        max_steps: an episode is truncated after this many steps.
        seed: of the start states; None draws one.
        device: where the tensors are.
        dtype: of observations and rewards. States are given and told in float64 always.

    Raises:
        ImportError: ``physics="warp"`` where MuJoCo Warp is not installed.
        ValueError: unknown ``physics`` or ``integrator``, or sizes that are not positive; in
            ``step``, an action that is not finite; in ``reset``, a ``start_state`` of the wrong
            shape or not finite (MuJoCo would go on from its rest pose).
    """

    model_file: str  # in Gymnasium's assets
    frame_skip: int  # physics steps per environment step
    reset_noise: float  # of start states: half-width on positions, scale on velocities
    _finished: Tensor

    def __init__(
        self,
        num_envs: int = 512,
        *,
        physics: str = "threads",
        integrator: str = "implicitfast",
        num_threads: int = 0,
        max_steps: int = 1000,
        seed: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if physics not in PHYSICS:
            raise ValueError(f"physics must be one of {', '.join(PHYSICS)}; got {physics!r}")
        if integrator not in INTEGRATORS:
            names = ", ".join(INTEGRATORS)
            raise ValueError(f"integrator must be one of {names}; got {integrator!r}")
        if num_envs < 1 or max_steps < 1:
            raise ValueError(
                f"num_envs and max_steps must be positive; got {num_envs} and {max_steps}"
            )
        if num_threads < 0:
            raise ValueError(f"num_threads must not be negative; got {num_threads}")
        super().__init__(device=device, batch_size=[num_envs])
        assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
        model = mujoco.MjModel.from_xml_path(str(assets / self.model_file))
        model.opt.integrator = INTEGRATORS[integrator]
        self.model = model
        self.num_envs, self.max_steps, self.dtype = num_envs, max_steps, dtype
        self.dt = model.opt.timestep * self.frame_skip
        self._physics = start_physics(
            physics, model, num_envs, num_threads=num_threads, device=torch.device(device)
        )
        # Kept where the physics is; what a caller gets is on the environment's device.
        self._home = self._physics.qpos.device
        self._steps = torch.zeros(num_envs, dtype=torch.int64, device=self._home)
        self._finished = torch.ones(num_envs, dtype=torch.bool, device=self._home)
        self._renderer: Renderer | None = None
        self._start = torch.cat([torch.from_numpy(model.qpos0), torch.zeros(model.nv)])
        self._make_specs()
        self.set_seed(seed)

    def _make_specs(self) -> None:
        shape, device = (self.num_envs,), self.device
        observation_size = self._observation().shape[-1]
        self.observation_spec = Composite(
            observation=Unbounded((*shape, observation_size), device=device, dtype=self.dtype),
            shape=shape,
            device=device,
        )
        self.action_spec = Bounded(-1.0, 1.0, (*shape, self.model.nu), device, torch.float32)
        self.reward_spec = Unbounded((*shape, 1), device=device, dtype=self.dtype)
        flags = ("done", "terminated", "truncated")
        self.done_spec = Composite(
            {flag: Binary(1, shape=(*shape, 1), device=device, dtype=torch.bool) for flag in flags},
            shape=shape,
            device=device,
        )

    @abstractmethod
    def _observation(self) -> Tensor:
        """Observations of all environments, from the state of the physics and in its type."""

    @abstractmethod
    def _healthy(self) -> Tensor:
        """Whether each environment may go on: bool [num_envs]."""

    @abstractmethod
    def _reward(self, velocity: Tensor, action: Tensor, healthy: Tensor) -> Tensor:
        """Rewards [num_envs] from the forward velocity (units/s) and clipped action."""

    @abstractmethod
    def _position(self) -> Tensor:
        """Forward position of each robot [num_envs]: over a step it moves by velocity · dt."""

    def start_states(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` random start states ``[count, nq + nv]``, float64, on the CPU: the model's rest
        pose with uniform noise on positions and Gaussian noise on velocities (Hopper: uniform
        there too), as Gymnasium draws them."""
        uniform = torch.rand(count, self.model.nq, generator=generator, dtype=torch.float64)
        noise = torch.cat([2 * uniform - 1, self._velocity_noise(count, generator)], -1)
        return self._start + self.reset_noise * noise

    def _velocity_noise(self, count: int, generator: torch.Generator) -> Tensor:
        """What ``reset_noise`` scales on velocities: ``[count, nv]``, float64."""
        return torch.randn(count, self.model.nv, generator=generator, dtype=torch.float64)

    def state(self) -> Tensor:
        """A copy of the full state ``[num_envs, nq + nv]``, float64."""
        return torch.cat([self._physics.qpos, self._physics.qvel], -1).double()

    def render(
        self, index: int = 0, *, height: int = 480, width: int = 640, camera: str = "track"
    ) -> Tensor:
        """A picture of one environment as it is now, drawn off screen.

        Args:
            index: which environment.
            height, width: in pixels.
            camera: a camera of the model; ``"track"`` goes along with the robot.

        Returns:
            ``[height, width, 3]``, uint8, on the CPU.

        Raises:
            IndexError: no such environment.
            RuntimeError: OpenGL is missing; the message says what to install.
            ValueError: no such camera.
        """
        size = (height, width)
        if self._renderer is None or self._renderer.size != size:
            if self._renderer is not None:
                self._renderer.close()
            self._renderer = Renderer(self.model, height, width)
        position, velocity = self._physics.qpos[index], self._physics.qvel[index]
        return self._renderer.draw(position, velocity, camera)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Free what :meth:`render` took from the graphics card."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        super().close(raise_if_closed=raise_if_closed)

    def _reset(self, tensordict: TensorDictBase | None = None, **_) -> TensorDictBase:
        mask = torch.ones(self.num_envs, dtype=torch.bool, device=self._home)
        start = None
        if tensordict is not None:
            if (partial := tensordict.get("_reset", None)) is not None:
                mask = partial.reshape(self.num_envs).to(self._home)
            if (given := tensordict.get("start_state", None)) is not None:
                start = self._checked(given.to(self._home, torch.float64))[mask]
        if start is None:
            start = self.start_states(int(mask.sum()), self._generator).to(self._home)
        self._physics.set_state(start, mask)
        self._steps[mask] = 0
        self._finished[mask] = False
        # The environments outside the mask keep the flags of their last step.
        terminated = self._finished & ~self._healthy()
        return self._tensordict(terminated=terminated, truncated=self._steps >= self.max_steps)

    def _checked(self, states: Tensor) -> Tensor:
        shape = (self.num_envs, self.model.nq + self.model.nv)
        if states.shape != shape or not states.isfinite().all():
            raise ValueError(f"start_state must be finite and of shape {shape}")
        return states

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"].to(self._physics.qpos)
        if not torch.isfinite(action).all():
            raise ValueError("an action is not finite: the policy that chose it has diverged")
        action = action.clamp(-1.0, 1.0)
        moving = ~self._finished
        before = self._position().clone()
        self._physics.step(action, None if moving.all() else moving, self.frame_skip)
        healthy = self._healthy()
        velocity = (self._position() - before) / self.dt
        # Not a product: 0 · NaN of a simulation that diverged would be NaN.
        reward = torch.where(moving, self._reward(velocity, action, healthy), 0.0)
        self._steps += moving
        terminated, truncated = ~healthy, self._steps >= self.max_steps
        self._finished = terminated | truncated
        result = self._tensordict(terminated=terminated, truncated=truncated)
        return result.set("reward", reward.to(self.dtype).unsqueeze(-1).to(self.device))

    def _tensordict(self, *, terminated: Tensor, truncated: Tensor) -> TensorDict:
        entries = {
            "observation": self._observation().to(self.dtype),
            "terminated": terminated.unsqueeze(-1),
            "truncated": truncated.unsqueeze(-1),
            "done": (terminated | truncated).unsqueeze(-1),
        }
        return TensorDict(entries, self.batch_size, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
