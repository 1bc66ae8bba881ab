"""A batch of MuJoCo simulations as one TorchRL environment.

Physics is a boundary: no gradient passes it, and it works the same under ``torch.no_grad`` and
``torch.inference_mode``. Environments can be copied and pickled, with the state of every robot.

Shapes: ``observation [num_envs, observation_size]``, ``action [num_envs, action_size]`` in [−1, 1]
(clipped if outside), ``reward``, ``done``, ``terminated``, ``truncated`` ``[num_envs, 1]``.
"""

import math
from abc import abstractmethod
from functools import reduce
from operator import add
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
    ``[num_envs, nq + nv]``, where to start instead of a random state; TorchRL's transforms drop
    the second, and ``env.reset(start_state=…)`` passes through them. ``step`` takes ``_step``, a
    mask of the environments that move; the others stand still as they are, with reward 0, and that
    step does not count for them. So TorchRL's ``ConditionalSkip`` works.

    Args:
        num_envs: simulations in the batch.
        physics: back end; ``"threads"`` is ``mujoco.batch``, on the CPU and in float64; ``"warp"``
            is MuJoCo Warp, on ``device`` and in float32, see :mod:`torchmpo_envs.warp`.
        integrator: ``"implicitfast"`` (four times faster) or ``"RK4"`` (Gymnasium's), ``"Euler"``,
            ``"implicit"``.
        num_threads: of ``"threads"``; 0 takes every core. Results do not depend on it.
        max_steps: an episode is truncated after this many steps.
        xml_file: the robot's model, another than the task's own: a name without a folder is one of
            Gymnasium's, anything else a path. Its actuators must take −1 to 1.
        forward_reward_weight, healthy_reward, ctrl_cost_weight: factors of the reward's terms, see
            :meth:`reward_terms`; None for the task's own cost.
        seed: of the start states; None draws one.
        device: where the tensors are.
        dtype: of observations and rewards. States are given and told in float64 always.

    Raises:
        ImportError: ``physics="warp"`` where MuJoCo Warp is not installed.
        ValueError: unknown ``physics`` or ``integrator``, sizes that are not positive, weights that
            are not finite, or a model that does not fit; in ``step``, an action of the wrong shape
            or not finite; in ``reset``, a ``start_state`` of the wrong shape or not finite (MuJoCo
            would go on from its rest pose); in both, a mask of the wrong shape.
    """

    model_file: str  # in Gymnasium's assets
    control_cost: float  # the weight of ‖a‖²
    frame_skip: int  # physics steps per environment step
    reset_noise: float  # of start states: half-width on positions, scale on velocities
    _finished: Tensor

    @torch.inference_mode(False)  # what is made here is written to later, perhaps outside of it
    def __init__(
        self,
        num_envs: int = 512,
        *,
        physics: str = "threads",
        integrator: str = "implicitfast",
        num_threads: int = 0,
        max_steps: int = 1000,
        xml_file: str | Path | None = None,
        forward_reward_weight: float = 1.0,
        healthy_reward: float = 1.0,
        ctrl_cost_weight: float | None = None,
        seed: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if physics not in PHYSICS:
            raise ValueError(f"physics must be one of {', '.join(PHYSICS)}; got {physics!r}")
        if integrator not in INTEGRATORS:
            names = ", ".join(INTEGRATORS)
            raise ValueError(f"integrator must be one of {names}; got {integrator!r}")
        whole = isinstance(num_envs, int) and isinstance(max_steps, int)
        if not whole or num_envs < 1 or max_steps < 1:
            raise ValueError(
                f"num_envs and max_steps must be positive; got {num_envs!r} and {max_steps!r}"
            )
        if num_threads < 0:
            raise ValueError(f"num_threads must not be negative; got {num_threads}")
        control_cost = self.control_cost if ctrl_cost_weight is None else ctrl_cost_weight
        weights = (forward_reward_weight, healthy_reward, control_cost)
        if not all(map(math.isfinite, weights)):
            raise ValueError(f"the weights of the reward must be finite; got {weights}")
        model = _load(xml_file or self.model_file)
        super().__init__(device=device, batch_size=[num_envs])
        model.opt.integrator = INTEGRATORS[integrator]
        self.model = model
        self.forward_reward_weight, self.healthy_reward, self.control_cost = weights
        self.num_envs, self.max_steps, self.dtype = num_envs, max_steps, dtype
        self.dt = model.opt.timestep * self.frame_skip
        self._physics = start_physics(
            physics, model, num_envs, num_threads=num_threads, device=torch.device(device)
        )
        # Kept where the physics is; what a caller gets is on the environment's device.
        self._home = self._physics.qpos.device
        self._steps = torch.zeros(num_envs, dtype=torch.int64, device=self._home)
        self._finished = torch.ones(num_envs, dtype=torch.bool, device=self._home)
        self._terms: dict[str, Tensor] = {}
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
    def _position(self) -> Tensor:
        """Forward position of each robot [num_envs]: over a step it moves by velocity · dt."""

    def _reward_terms(self, velocity: Tensor, action: Tensor, healthy: Tensor) -> dict[str, Tensor]:
        """What is added up to rewards ``[num_envs]``, from the forward velocity (units/s) and the
        clipped action."""
        return {
            "reward_forward": self.forward_reward_weight * velocity,
            "reward_survive": self.healthy_reward * healthy.to(velocity),
            "reward_ctrl": -self.control_cost * action.square().sum(-1),
        }

    @property
    def observation_size(self) -> int:
        """Numbers in an observation."""
        return self.observation_spec["observation"].shape[-1]

    @property
    def action_size(self) -> int:
        """Numbers in an action."""
        return self.model.nu

    def reward_terms(self) -> dict[str, Tensor]:
        """The terms of the last step's rewards, ``[num_envs]`` each, of which they are the sum.

        ``reward_forward`` is the forward velocity, ``reward_survive`` 1 while healthy and
        ``reward_ctrl`` −‖a‖², each times its weight. A robot that did not move has zeros. Empty
        before the first step.
        """
        return dict(self._terms)

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

    @torch.inference_mode(False)
    @torch.no_grad()
    def fork(self, source: Tensor) -> None:
        """Let every robot go on as a copy of another one, as that one is now.

        All that physics and the end of an episode depend on is copied, the solver's warm start and
        the steps that are done among it: under the same actions the two go on to the same bits.

        Args:
            source: ``[num_envs]``, int64, whose copy each robot becomes; its own number for itself.

        Raises:
            ValueError: another shape, or a number that no robot has.
        """
        source = source.to(self._home)
        known = source.shape == (self.num_envs,) and not source.is_floating_point()
        if not known or not bool(((source >= 0) & (source < self.num_envs)).all()):
            raise ValueError(f"source must be {self.num_envs} numbers from 0 to num_envs − 1")
        self._physics.copy(source)
        self._steps, self._finished = self._steps[source], self._finished[source]
        self._terms = {name: term[source] for name, term in self._terms.items()}

    def data(self, index: int = 0) -> mujoco.MjData:
        """One robot as MuJoCo's data: a copy of its state, with all that follows from it."""
        data, physics = mujoco.MjData(self.model), self._physics
        data.qpos[:], data.qvel[:] = physics.qpos[index].cpu(), physics.qvel[index].cpu()
        data.ctrl[:] = physics.control[index].cpu()
        data.time = int(self._steps[index]) * self.dt
        mujoco.mj_forward(self.model, data)
        return data

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

    def __getstate__(self) -> dict:
        """All but what is on the graphics card."""
        return self.__dict__ | {"_renderer": None}

    @torch.inference_mode(False)
    @torch.no_grad()
    def _reset(
        self, tensordict: TensorDictBase | None = None, *, start_state: Tensor | None = None, **_
    ) -> TensorDictBase:
        mask = torch.ones(self.num_envs, dtype=torch.bool, device=self._home)
        if tensordict is not None:
            if (partial := tensordict.get("_reset", None)) is not None:
                mask = self._mask("_reset", partial)
            start_state = tensordict.get("start_state", start_state)
        if start_state is None:
            start = self.start_states(int(mask.sum()), self._generator).to(self._home)
        else:
            start = self._checked(start_state.to(self._home, torch.float64))[mask]
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

    def _mask(self, name: str, mask: Tensor) -> Tensor:
        if mask.numel() != self.num_envs:
            shapes = f"({self.num_envs},); got {tuple(mask.shape)}"
            raise ValueError(f"{name} must be of shape {shapes}")
        return mask.reshape(self.num_envs).to(self._home)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"]
        if not isinstance(action, Tensor) or action.is_complex():
            kind = action.dtype if isinstance(action, Tensor) else type(action).__name__
            raise ValueError(f"actions must be a tensor of real numbers; got {kind}")
        action = action.to(self._physics.qpos)
        shape = (self.num_envs, self.model.nu)
        if action.shape != shape:  # a broadcast one would move what it was not meant for
            raise ValueError(f"actions must be of shape {shape}; got {tuple(action.shape)}")
        moving = ~self._finished
        if (chosen := tensordict.get("_step", None)) is not None:
            chosen = self._mask("_step", chosen)
            moving &= chosen
            action = torch.where(chosen.unsqueeze(-1), action, 0.0)  # whatever the others say
        if not torch.isfinite(action).all():
            raise ValueError("an action is not finite: the policy that chose it has diverged")
        action = action.clamp(-1.0, 1.0)
        before = self._position().clone()
        self._physics.step(action, None if moving.all() else moving, self.frame_skip)
        healthy = self._healthy()
        velocity = (self._position() - before) / self.dt
        # Not a product: 0 · NaN of a simulation that diverged would be NaN.
        self._terms = {
            name: torch.where(moving, term, 0.0)
            for name, term in self._reward_terms(velocity, action, healthy).items()
        }
        reward = reduce(add, self._terms.values())
        self._steps += moving
        # One that has not moved yet is over only if it was.
        terminated = ~healthy & (moving | self._finished)
        truncated = self._steps >= self.max_steps
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


def _load(file: str | Path) -> mujoco.MjModel:
    """The model in one of Gymnasium's files, or at a path."""
    path = Path(file).expanduser()
    if str(file) == path.name:
        path = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / path
    if not path.is_file():
        raise ValueError(f"xml_file: there is no file {path}")
    model = mujoco.MjModel.from_xml_path(str(path))
    if model.nu == 0 or not (model.actuator_ctrlrange == (-1.0, 1.0)).all():
        raise ValueError(f"xml_file: the actuators of {path} must have the range −1 to 1")
    return model
