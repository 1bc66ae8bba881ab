"""CMA-ES as functions of an explicit state.

The libraries that have it, EvoTorch and pycma, keep that state inside an object, from which only
pickling brings it back. This one is held against both in the tests, and to EvoTorch's bits.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from torchmpo.evolve.optimizers.protocol import SearchConfig, State, by_member, shape_fitness
from torchmpo.runs.seeding import generator


class CMAES:
    """CMA-ES: members are drawn from N(m, σ²C), and all three are learned: the centre m, the step
    size σ, and in C the scales and directions in which the fitness changes. For some tens of
    dimensions; memory grows with population × dim².

    The fitness counts by rank. Members of equal fitness share the weights of their ranks: by their
    order they would give a direction that means nothing. A generation without two different ranks
    changes nothing.

    Source: Hansen 2016, arXiv 1604.00772; with a Cholesky factor A of C instead of its symmetric
    root, as in EvoTorch.
    """

    def __init__(self, config: SearchConfig):
        self.config = config

    def start(self, centre: Tensor) -> State:
        """See :class:`Optimizer`."""
        identity = torch.eye(len(centre), dtype=centre.dtype)
        return {
            "centre": centre.clone(),
            "sigma": torch.tensor(self.config.sigma, dtype=centre.dtype),
            "C": identity,
            "A": identity.clone(),  # A Aᵀ = C, as it was when last factorised
            "p_sigma": torch.zeros_like(centre),  # evolution path of σ
            "p_c": torch.zeros_like(centre),  # evolution path of C
            "steps": torch.tensor(0),
        }

    def ask(self, state: State, generation: int) -> Tensor:
        """See :class:`Optimizer`."""
        _, y = self._draw(state, generation)
        return state["centre"] + state["sigma"] * y

    def tell(self, state: State, generation: int, members: Tensor, fitness: Tensor) -> State:
        """See :class:`Optimizer`."""
        shaped = shape_fitness(fitness)
        if (shaped == shaped[0]).all():
            return state
        z, y = self._draw(state, generation)  # what the members were made of, before rounding
        population, dim = z.shape
        k = Constants.of(population, dim, z.dtype)

        weights = by_member(k.weights_of_mean, shaped)
        best = weights.argsort(descending=True)[: int((weights > 0).sum())]
        z_mean = (weights[best, None] * z[best]).sum(0)
        y_mean = (weights[best, None] * y[best]).sum(0)

        p_sigma = (1 - k.c_sigma) * state["p_sigma"] + k.gain_sigma * z_mean
        excess = torch.norm(p_sigma) / k.expected_norm - 1

        # While σ is much too small, p_c waits for it: C would grow in its place.
        filled = 1 - (1 - k.c_sigma) ** (2 * int(state["steps"]) + 1)
        waits = bool(torch.norm(p_sigma).pow(2) / filled / dim - 1 >= 1 + 4 / (dim + 1))
        p_c = (1 - k.c_c) * state["p_c"] + (0 if waits else k.gain_c) * y_mean
        c_1 = k.c_1 * (1 - k.c_c * (2 - k.c_c)) if waits else k.c_1  # p_c lacks so much variance

        # Negative weights are for members of the expected length, or C might not stay positive.
        weights = by_member(k.weights_of_covariance, shaped)
        weights = torch.where(weights > 0, weights, dim * weights / torch.norm(z, dim=1).pow(2))
        path = (k.c_1 / c_1) ** 0.5 * p_c
        rank_one = c_1 * (torch.outer(path, path) - state["C"])
        outer = (weights[:, None, None] * (y[:, :, None] * y[:, None, :])).sum(0)
        rank_mu = k.c_mu * (outer - k.weights_of_covariance.sum() * state["C"])

        new = {
            "centre": state["centre"] + state["sigma"] * y_mean,
            "sigma": state["sigma"] * torch.exp((k.c_sigma / k.damping) * excess),
            "C": state["C"] + rank_one + rank_mu,
            "A": state["A"],
            "p_sigma": p_sigma,
            "p_c": p_c,
            "steps": state["steps"] + 1,
        }
        return _factorised(new) if int(new["steps"]) % k.factorise_every == 0 else new

    def sigma(self, state: State) -> float:
        """The step size: the standard deviation while the covariance is that of the start."""
        return float(state["sigma"])

    def _draw(self, state: State, generation: int) -> tuple[Tensor, Tensor]:
        """z ~ N(0, I) and y = Az ~ N(0, C), both ``[population, dim]``."""
        rng = generator(self.config.seed, "perturbations", generation)
        torch.rand((), generator=rng)  # EvoTorch leaves one out
        shape = (self.config.population, len(state["centre"]))
        z = torch.randn(shape, generator=rng, dtype=state["centre"].dtype)
        # One order in memory, that of a fresh factor: a file keeps another, and other bits.
        A = state["A"].mT.contiguous().mT
        return z, (A @ z.mT).mT


class Constants(NamedTuple):
    """What follows from population and dimension: table 1 of the tutorial.

    Weights, ``[population]``, are by rank, the best first. For the mean they are positive for the
    better half, with sum 1, and 0 for the rest; for the covariance those of the rest are negative.
    A gain is the share of a step that an evolution path takes up.
    """

    weights_of_mean: Tensor
    weights_of_covariance: Tensor
    c_sigma: Tensor  # the rates at which p_sigma, p_c and C forget
    c_c: Tensor
    c_1: Tensor
    c_mu: Tensor
    damping: Tensor  # of σ
    gain_sigma: Tensor
    gain_c: Tensor
    expected_norm: float  # of z
    factorise_every: int  # steps

    @staticmethod
    def of(population: int, dim: int, dtype: torch.dtype) -> "Constants":
        """Compute them in ``dtype``."""
        raw = math.log((population + 1) / 2) - torch.arange(1, population + 1, dtype=dtype).log()
        better, worse = raw[: population // 2], raw[population // 2 :]
        mu_eff, mu_eff_worse = (w.sum().pow(2) / w.pow(2).sum() for w in (better, worse))
        c_sigma = (mu_eff + 2) / (dim + mu_eff + 3)
        c_c = (4 + mu_eff / dim) / (dim + (4 + 2 * mu_eff / dim))
        c_1 = min(1, population / 6) * 2 / ((dim + 1.3) ** 2 + mu_eff)
        c_mu = 2 * ((0.25 + mu_eff - 2 + 1 / mu_eff) / ((dim + 2) ** 2 + mu_eff))
        c_mu = torch.minimum(1 - c_1, c_mu)
        sum_of_worse = min(
            1 + c_1 / c_mu,
            1 + 2 * mu_eff_worse / (mu_eff + 2),
            (1 - c_mu - c_1) / (dim * c_mu),
        )
        better, worse = better / better.sum(), sum_of_worse * worse / worse.abs().sum()
        return Constants(
            weights_of_mean=torch.cat([better, torch.zeros_like(worse)]),
            weights_of_covariance=torch.cat([better, worse]),
            c_sigma=c_sigma,
            c_c=c_c,
            c_1=c_1,
            c_mu=c_mu,
            damping=1 + 2 * (torch.sqrt((mu_eff - 1) / (dim + 1)) - 1).clamp(min=0) + c_sigma,
            gain_sigma=torch.sqrt(c_sigma * (2 - c_sigma) * mu_eff),
            gain_c=torch.sqrt(c_c * (2 - c_c) * mu_eff),
            expected_norm=math.sqrt(dim) * (1 - 1 / (4 * dim) + 1 / (21 * dim**2)),
            factorise_every=max(1, int(1 / (10 * dim * (c_1 + c_mu)))),
        )


def _factorised(state: State) -> State:
    A, failed = torch.linalg.cholesky_ex(state["C"])
    if failed:  # rounding made C indefinite: as it was when last factorised
        return state | {"C": state["A"] @ state["A"].mT}
    return state | {"A": A}
