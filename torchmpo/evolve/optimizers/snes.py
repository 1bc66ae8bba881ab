"""Separable natural evolution strategies as functions of an explicit state."""

import math

import torch
from torch import Tensor

from torchmpo.evolve.optimizers.protocol import SearchConfig, State, by_member, shape_fitness
from torchmpo.runs.seeding import generator


class SNES:
    """Members are drawn from N(m, diag s²), and both are learned, s for every coordinate:

        m ← m + s·Σ_i u_i z_i        s ← s·exp(η/2·Σ_i u_i (z_i² − 1)),   η = (3 + ln d)/(5√d)

    with the utilities u by rank, sum 0. So a coordinate that does not matter keeps its scale, and
    one along which the fitness changes fast gets a small one. For any number of dimensions: memory
    grows with population × dim.

    Members of equal fitness share the utilities of their ranks. A generation without two different
    ranks changes nothing.

    Source: Wierstra et al. 2014, Natural evolution strategies, section 5 and table 1 (utilities).
    """

    def __init__(self, config: SearchConfig):
        self.config = config

    def start(self, centre: Tensor) -> State:
        """See :class:`Optimizer`."""
        return {"centre": centre.clone(), "stdev": torch.full_like(centre, self.config.sigma)}

    def ask(self, state: State, generation: int) -> Tensor:
        """See :class:`Optimizer`."""
        return state["centre"] + state["stdev"] * self._draw(state, generation)

    def tell(self, state: State, generation: int, members: Tensor, fitness: Tensor) -> State:
        """See :class:`Optimizer`."""
        shaped = shape_fitness(fitness)
        if (shaped == shaped[0]).all():
            return state
        z = self._draw(state, generation)  # what the members were made of, before rounding
        population, dim = z.shape
        ranks = torch.arange(1, population + 1, dtype=z.dtype)
        raw = (math.log(population / 2 + 1) - ranks.log()).clamp(min=0.0)
        utility = by_member(raw / raw.sum() - 1 / population, shaped)[:, None]
        rate = (3 + math.log(dim)) / (5 * math.sqrt(dim))
        growth = (utility * (z.square() - 1)).sum(0)
        return {
            "centre": state["centre"] + state["stdev"] * (utility * z).sum(0),
            "stdev": state["stdev"] * torch.exp(rate / 2 * growth),
        }

    def sigma(self, state: State) -> float:
        """The geometric mean of the standard deviations."""
        return float(state["stdev"].log().mean().exp())

    def _draw(self, state: State, generation: int) -> Tensor:
        """z ~ N(0, I), ``[population, dim]``."""
        rng = generator(self.config.seed, "perturbations", generation)
        shape = (self.config.population, len(state["centre"]))
        return torch.randn(shape, generator=rng, dtype=state["centre"].dtype)
