"""Gymnasium's Ant-v5 without contact forces, and the ant that pays for using one leg."""

import torch
from torch import Tensor

from torchmpo_envs.base import BatchedMujocoEnv


class Ant(BatchedMujocoEnv):
    """Run forward on four legs.

    reward = dx/dt + 1[healthy] − ½‖a‖², with 27 observations (positions but x and y, velocities)
    and 8 actions. An episode terminates once the torso leaves 0.2 ≤ z ≤ 1.0. With
    ``integrator="RK4"`` it is ``gymnasium.make("Ant-v5", include_cfrc_ext_in_observation=False,
    contact_cost_weight=0)`` step by step.
    """

    model_file, frame_skip, reset_noise = "ant.xml", 5, 0.1
    healthy_range = (0.2, 1.0)
    control_cost = 0.5
    _torso = 1  # body 0 is the world

    def _observation(self) -> Tensor:
        return torch.cat([self._physics.qpos[:, 2:], self._physics.qvel], -1)

    def _position(self) -> Tensor:
        return self._physics.xpos[:, self._torso, 0]

    def _healthy(self) -> Tensor:
        low, high = self.healthy_range
        height = self._physics.qpos[:, 2]
        # The sum is finite exactly if every entry is; one reduction instead of one per entry.
        finite = torch.isfinite(self._physics.qpos.sum(-1) + self._physics.qvel.sum(-1))
        return finite & (height >= low) & (height <= high)


class ThreeLeggedAnt(Ant):
    """Run forward while one leg is costly to use: Ant's reward − penalty·(a_hip² + a_ankle²).

    Args:
        leg: the costly leg, 1 to 4, as the model names them.
        penalty: k, the weight of that leg's squared actions (the published description gives no
            formula; this form is reconstructed). The default is derived from the shipped original
            agent, whose card tells how.
        **kwargs: of :class:`BatchedMujocoEnv`.

    Raises:
        ValueError: no such leg, or a negative penalty.
    """

    default_penalty = 18.5

    def __init__(
        self, num_envs: int = 512, *, leg: int = 4, penalty: float = default_penalty, **kwargs
    ):
        if leg not in (1, 2, 3, 4):
            raise ValueError(f"leg must be 1, 2, 3 or 4; got {leg}")
        if not penalty >= 0:  # catches NaN too
            raise ValueError(f"penalty must not be negative; got {penalty}")
        super().__init__(num_envs, **kwargs)
        self.penalty = penalty
        # Actuators have no names and do not follow the order of the legs: find them by their joint.
        driven = [self.model.joint(int(joint)).name for joint in self.model.actuator_trnid[:, 0]]
        joints = [f"hip_{leg}", f"ankle_{leg}"]
        if not set(joints) <= set(driven):
            raise ValueError(f"xml_file: the model needs motors at {' and '.join(joints)}")
        self._leg_actions = [driven.index(joint) for joint in joints]

    def _reward_terms(self, velocity: Tensor, action: Tensor, healthy: Tensor) -> dict[str, Tensor]:
        leg_cost = action[:, self._leg_actions].square().sum(-1)
        terms = super()._reward_terms(velocity, action, healthy)
        return terms | {"reward_leg": -self.penalty * leg_cost}
