"""Batched MuJoCo locomotion tasks as TorchRL environments, and the agents trained on them."""

from pathlib import Path

from torchmpo_envs.ant import Ant, ThreeLeggedAnt

__all__ = ["EXPERTS", "TASKS", "Ant", "ThreeLeggedAnt", "expert_path"]

TASKS = {"ant": Ant, "tla": ThreeLeggedAnt}
EXPERTS = ("ant_original", "tla_target")


def expert_path(name: str) -> Path:
    """The safetensors file of a shipped agent; its card lies beside it as ``.json``.

    Raises:
        ValueError: ``name`` is not one of ``EXPERTS``.
    """
    if name not in EXPERTS:
        raise ValueError(f"no agent {name!r} is shipped; choose from {', '.join(EXPERTS)}")
    return Path(__file__).parent / "experts" / f"{name}.safetensors"
