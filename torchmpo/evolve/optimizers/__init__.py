"""How a search moves: OpenAI-ES (:mod:`.openai_es`), CMA-ES (:mod:`.cmaes`) or SNES (:mod:`.snes`).

All are pure functions of an explicit state, the interface of :mod:`.protocol`.
"""

from torchmpo.evolve.optimizers.cmaes import CMAES
from torchmpo.evolve.optimizers.protocol import (
    OPTIMIZERS,
    Optimizer,
    SearchConfig,
    State,
    shape_fitness,
)
from torchmpo.evolve.optimizers.snes import SNES

__all__ = [
    "CMAES",
    "OPTIMIZERS",
    "SNES",
    "Optimizer",
    "SearchConfig",
    "State",
    "optimizer_of",
    "shape_fitness",
]


def optimizer_of(config: SearchConfig) -> Optimizer:
    """The optimizer that ``config`` names."""
    if config.optimizer == "cmaes":
        return CMAES(config)
    if config.optimizer == "snes":
        return SNES(config)
    # Here, because EvoTorch is slow to import, and settings are checked without it.
    from torchmpo.evolve.optimizers.openai_es import OpenAIES

    return OpenAIES(config)
