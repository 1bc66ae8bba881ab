"""The parts of a robot's return: of what a pool records, and of episodes as they are run.

The reward of the shipped robots is velocity + healthiness − cost of control (− cost of a leg). All
but the velocity follow from recorded actions and lengths, and the velocity is what remains of the
return. So no pool needs to store them. While an episode is run, the environment tells them.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from torchmpo.runs.errors import UserError
from torchmpo_envs import TASKS

TASTE = {"tla": "leg", "ant": "velocity", "hopper": "velocity"}  # what two groups disagree about
# What the environments call them.
NAMES = {
    "reward_forward": "velocity",
    "reward_ctrl": "control",
    "reward_survive": "health",
    "reward_leg": "leg",
}
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


class EpisodeComponents:
    """Parts of the returns of a population's episodes; :meth:`add` is an ``on_reward``."""

    def __init__(self):
        self._sums: dict[Sequence[int], dict[str, Tensor]] = {}

    def add(self, members: Sequence[int], terms: Mapping[str, Tensor]) -> None:
        """Terms of a step's rewards, ``[members, episodes]``."""
        sums = self._sums.setdefault(members, {})
        for name, term in terms.items():
            sums[name] = sums.get(name, 0.0) + term

    def means(self, returns: Tensor) -> list[dict[str, float] | None]:
        """Means over episodes of each member, as in :func:`return_components`.

        Args:
            returns: ``[population, episodes]``; of a member with one that is not finite, ``None``.

        Returns:
            ``None`` also where the environment told nothing.
        """
        found: list[dict[str, float] | None] = [None] * len(returns)
        for members, sums in self._sums.items():
            for k, member in enumerate(members):
                if sums and returns[member].isfinite().all():
                    named = {NAMES.get(name, name): total[k] for name, total in sums.items()}
                    found[member] = {name: float(total.mean()) for name, total in named.items()}
        return found


def _squares(action: Tensor, of_step: Callable[[Tensor], Tensor]) -> Tensor:
    blocks = (block.double().clamp(-1.0, 1.0).square() for block in action.split(_ROWS))
    return torch.cat([of_step(block).sum(1) for block in blocks])
