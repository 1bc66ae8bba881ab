"""Batched MuJoCo locomotion tasks as TorchRL environments, and the agents trained on them.

Of :class:`Walker2d` no agents are shipped.

The same tasks are Gymnasium ids: ``torchmpo_envs:torchmpo/Hopper-v0``, ``…/Ant-v0`` and
``…/ThreeLeggedAnt-v0``.
"""

from pathlib import Path

from torchmpo_envs.ant import Ant, ThreeLeggedAnt
from torchmpo_envs.gymnasium import register
from torchmpo_envs.hopper import Hopper
from torchmpo_envs.walker2d import Walker2d

__all__ = [
    "AGENTS",
    "APART",
    "EXPERTS",
    "TASKS",
    "Ant",
    "Hopper",
    "ThreeLeggedAnt",
    "Walker2d",
    "expert_path",
]

TASKS = {"ant": Ant, "hopper": Hopper, "tla": ThreeLeggedAnt}
EXPERTS = ("ant_original", "tla_target", "tla_target_apart", "hopper_bad", "hopper_target")
# The worse and the better agent whose trajectories are compared in each task.
AGENTS = {
    "ant": ("ant_original", "tla_target"),
    "tla": ("ant_original", "tla_target"),
    "hopper": ("hopper_bad", "hopper_target"),
}
# A better agent that was trained from random weights, and not from the worse one.
APART = {"tla": "tla_target_apart", "hopper": "hopper_target"}

register()


def expert_path(name: str) -> Path:
    """The safetensors file of a shipped agent; its card lies beside it as ``.json``.

    Raises:
        ValueError: ``name`` is not one of ``EXPERTS``.
    """
    if name not in EXPERTS:
        raise ValueError(f"no agent {name!r} is shipped; choose from {', '.join(EXPERTS)}")
    return Path(__file__).parent / "experts" / f"{name}.safetensors"
