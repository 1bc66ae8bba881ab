"""How a search moves: OpenAI-ES (:mod:`.openai_es`) or CMA-ES (:mod:`.cmaes`).

Both are pure functions of an explicit state, the interface of :mod:`.protocol`.
"""

from torchmpo.evolve.optimizers.cmaes import CMAES
from torchmpo.evolve.optimizers.protocol import (
    OPTIMIZERS,
    Optimizer,
    SearchConfig,
    State,
    shape_fitness,
)

__all__ = [
    "CMAES",
    "OPTIMIZERS",
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
    # Here, because EvoTorch imports Ray, pandas and SciPy, which takes longer than torch itself.
    from torchmpo.evolve.optimizers.openai_es import OpenAIES

    return OpenAIES(config)
