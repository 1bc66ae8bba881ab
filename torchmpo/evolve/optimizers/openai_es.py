"""OpenAI-ES, by EvoTorch's functional PGPE."""

import torch
from evotorch.algorithms.functional import pgpe, pgpe_ask, pgpe_tell
from evotorch.algorithms.functional.funcadam import AdamState
from evotorch.algorithms.functional.funcpgpe import PGPEState
from torch import Tensor

from torchmpo.evolve.optimizers.protocol import SearchConfig, State, shape_fitness
from torchmpo.runs.seeding import derive_seed


class OpenAIES:
    """OpenAI-ES: one step of Adam along

        ∇ ≈ 1/(2σN) Σ_i ε_i (F(ζ + σε_i) − F(ζ − σε_i)),   N antithetic pairs

    With a fixed σ and Adam, EvoTorch's PGPE is this method; its gradient is σ² times as large,
    which Adam ignores. Then σ decays.

    Source: Salimans et al. 2017, arXiv 1703.03864; arXiv 2411.06568, eq. 12 and appendix I.
    """

    def __init__(self, config: SearchConfig):
        self.config = config

    def start(self, centre: Tensor) -> State:
        """See :class:`Optimizer`."""
        return self._tensors(self._fresh(centre))

    def ask(self, state: State, generation: int) -> Tensor:
        """ζ + σε₀, ζ − σε₀, ζ + σε₁, …"""
        # EvoTorch draws from torch's global generator, which is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.config.seed, "perturbations", generation))
            return pgpe_ask(self._pgpe(state), popsize=self.config.population)

    def tell(self, state: State, generation: int, members: Tensor, fitness: Tensor) -> State:
        """See :class:`Optimizer`."""
        shaped = shape_fitness(fitness, self.config.fitness_shaping)
        new = self._tensors(pgpe_tell(self._pgpe(state), members, shaped))
        return new | {"stdev": new["stdev"] * self.config.sigma_decay}

    def sigma(self, state: State) -> float:
        """See :class:`Optimizer`."""
        return float(state["stdev"][0])

    def _fresh(self, centre: Tensor) -> PGPEState:
        return pgpe(
            center_init=centre.clone(),
            center_learning_rate=torch.tensor(self.config.learning_rate, dtype=centre.dtype),
            stdev_learning_rate=torch.tensor(0.0),
            stdev_init=self.config.sigma,
            objective_sense="max",
            ranking_method="raw",  # shape_fitness has ranked already
            optimizer="adam",
            symmetric=True,
        )

    def _pgpe(self, state: State) -> PGPEState:
        fresh = self._fresh(state["centre"])
        adam = _adam(fresh)._replace(
            center=state["centre"], m=state["m"], v=state["v"], t=state["t"]
        )
        return fresh._replace(optimizer_state=adam, stdev=state["stdev"])

    def _tensors(self, pgpe_state: PGPEState) -> State:
        adam = _adam(pgpe_state)
        tensors = {"centre": adam.center, "m": adam.m, "v": adam.v, "t": adam.t}
        return tensors | {"stdev": pgpe_state.stdev}


def _adam(state: PGPEState) -> AdamState:
    assert isinstance(state.optimizer_state, AdamState)
    return state.optimizer_state
