"""The parts of a robot's return, computed from what a pool records.

The reward of the shipped robots is velocity + healthiness − cost of control (− cost of a leg). All
but the velocity follow from recorded actions and lengths, and the velocity is what remains of the
return. So no pool needs to store them.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from torchmpo.runs.errors import UserError
from torchmpo_envs import TASKS

TASTE = {"tla": "leg", "ant": "velocity", "hopper": "velocity"}  # what two groups disagree about
_ROWS = 256  # trajectories read from disk at once


def effort(pool: Mapping[str, Tensor]) -> Tensor:
    """Σ_t ‖a_t‖² of each trajectory, of the actions as the actuators take them: ``[rows]``."""
    return _squares(pool["action"], lambda squares: squares.sum(-1))


def return_components(task: str, max_steps: int, pool: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parts of each trajectory's return, float64 ``[rows]``; they add up to it.

    Args:
        task: a robot of ``torchmpo_envs.TASKS``.
        max_steps: time limit of an episode. A robot that falls in exactly its last step is taken to
            have stood, which moves 1 from its velocity to its health.
        pool: ``action``, ``lengths``, ``returns``.

    Returns:
        ``velocity``, ``control``, ``health``, and on the three-legged ant ``leg``; costs are
        negative.

    Raises:
        UserError: nothing is known of the rewards of this task.
    """
    if task not in TASKS:
        raise UserError(f"the return of {task!r} has no known components; choose another judge")
    env = TASKS[task](1, max_steps=1)
    lengths = pool["lengths"]
    parts = {
        "control": -env.control_cost * effort(pool),
        "health": (lengths - (lengths < max_steps).long()).double(),
    }
    if leg := getattr(env, "_leg_actions", None):
        costs = _squares(pool["action"], lambda squares: squares[..., leg].sum(-1))
        parts["leg"] = -env.penalty * costs
    return {"velocity": pool["returns"].double() - sum(parts.values()), **parts}


def _squares(action: Tensor, of_step: Callable[[Tensor], Tensor]) -> Tensor:
    blocks = (block.double().clamp(-1.0, 1.0).square() for block in action.split(_ROWS))
    return torch.cat([of_step(block).sum(1) for block in blocks])
