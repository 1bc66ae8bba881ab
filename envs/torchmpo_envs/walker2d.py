"""Gymnasium's Walker2d-v5."""

import torch
from torch import Tensor

from torchmpo_envs.hopper import Hopper


class Walker2d(Hopper):
    """Walk forward on two legs, each like the hopper's one; observed, paid and started like it.

    reward = dx/dt + 1[healthy] − 10⁻³·‖a‖², with 17 observations (positions but x, velocities
    clipped to ±10) and 6 actions. An episode terminates once the torso leaves 0.8 < z < 2 or leans
    by 1 rad. With ``integrator="RK4"`` it is ``gymnasium.make("Walker2d-v5")`` step by step. No
    agents of it are shipped.
    """

    model_file = "walker2d_v5.xml"
    healthy_range, max_angle = (0.8, 2.0), 1.0

    def _healthy(self) -> Tensor:
        low, high = self.healthy_range
        height, angle = self._physics.qpos[:, 1], self._physics.qpos[:, 2]
        # The sum is finite exactly if every entry is.
        finite = torch.isfinite(self._physics.qpos.sum(-1) + self._physics.qvel.sum(-1))
        return finite & (height > low) & (height < high) & (angle.abs() < self.max_angle)
