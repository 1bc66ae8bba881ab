"""Gymnasium's Hopper-v5."""

import torch
from torch import Tensor

from torchmpo_envs.base import BatchedMujocoEnv


class Hopper(BatchedMujocoEnv):
    """Hop forward on one leg.

    reward = dx/dt + 1[healthy] − 10⁻³·‖a‖², with 11 observations (positions but x, velocities
    clipped to ±10) and 3 actions: the torques of thigh, leg and foot. An episode terminates once
    the torso sinks to z ≤ 0.7, leans by 0.2 rad or more, or a state but x and z leaves (−100, 100).
    With ``integrator="RK4"`` it is ``gymnasium.make("Hopper-v5")`` step by step.
    """

    model_file, frame_skip, reset_noise = "hopper.xml", 4, 5e-3
    control_cost = 1e-3
    max_observed_velocity = 10.0
    min_height, max_angle, max_state = 0.7, 0.2, 100.0

    def _observation(self) -> Tensor:
        limit = self.max_observed_velocity
        return torch.cat([self._physics.qpos[:, 1:], self._physics.qvel.clamp(-limit, limit)], -1)

    def _position(self) -> Tensor:
        return self._physics.qpos[:, 0]

    def _healthy(self) -> Tensor:
        height, angle = self._physics.qpos[:, 1], self._physics.qpos[:, 2]
        upright = (height > self.min_height) & (angle.abs() < self.max_angle)
        # A maximum is NaN if any entry is, and NaN is not below the bound.
        others = torch.cat([self._physics.qpos[:, 2:], self._physics.qvel], -1)
        return upright & (others.abs().amax(-1) < self.max_state)

    def _velocity_noise(self, count: int, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(count, self.model.nv, generator=generator, dtype=torch.float64)
        return 2 * uniform - 1
