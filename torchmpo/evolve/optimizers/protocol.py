"""What an optimizer of a search is: its settings, its interface, and how it ranks fitness."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from torchmpo.runs.errors import UserError

OPTIMIZERS = ("es", "cmaes", "snes")
SHAPINGS = ("centered", "raw")

# All that an optimizer knows between two generations; "centre" [dim] is among it.
State = dict[str, Tensor]


@dataclass(frozen=True)
class SearchConfig:
    """Settings of the search.

    Args:
        population: members per generation: ``"es"`` an even number ≥ 2, antithetic pairs;
            ``"cmaes"`` and ``"snes"`` ≥ 4.
        generations: updates of the centre (≥ 1).
        sigma: standard deviation of the perturbations (> 0); the others adapt it from there.
        sigma_decay: ``"es"`` multiplies σ by this after every generation, in (0, 1].
        learning_rate: ``"es"``: Adam's step size for the centre (> 0).
        fitness_shaping: ``"es"``: ``"centered"`` ranks in [−½, ½], or ``"raw"`` fitness.
        seed: of the perturbations.
        optimizer: ``"es"`` (OpenAI-ES), ``"cmaes"`` (CMA-ES) or ``"snes"`` (SNES).

    Raises:
        UserError: a setting out of its range.
    """

    population: int = 32
    generations: int = 8
    sigma: float = 0.03
    sigma_decay: float = 0.999
    learning_rate: float = 0.02
    fitness_shaping: str = "centered"
    seed: int = 0
    optimizer: str = "es"

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            names = ", ".join(OPTIMIZERS[:-1]) + f" or {OPTIMIZERS[-1]}"
            raise UserError(f"optimizer must be {names}; got {self.optimizer!r}")
        if self.optimizer == "es" and (self.population < 2 or self.population % 2):
            raise UserError(
                f"population must be even and at least 2 (antithetic pairs); got {self.population}"
            )
        if self.optimizer != "es" and self.population < 4:
            raise UserError(
                f"population must be at least 4 for {self.optimizer}; got {self.population}"
            )
        if self.generations < 1:
            raise UserError(f"generations must be at least 1; got {self.generations}")
        for name in ("sigma", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be positive; got {getattr(self, name)}")
        if not 0 < self.sigma_decay <= 1:
            raise UserError(f"sigma_decay must be in (0, 1]; got {self.sigma_decay}")
        if self.fitness_shaping not in SHAPINGS:
            raise UserError(
                f"fitness_shaping must be {' or '.join(SHAPINGS)}; got {self.fitness_shaping!r}"
            )


def shape_fitness(fitness: Tensor, shaping: str = "centered") -> Tensor:
    """What the gradient sees instead of the fitness: ``[population] → [population]``, sum 0.

    NaN counts as worst. Equal values share the mean of their ranks, so that a population of which
    many (or all) failed gives no direction to the failures, where sorting would invent one.

    Args:
        fitness: higher is better; NaN for a member that failed.
        shaping: ``"centered"``: ranks scaled to [−½, ½]. ``"raw"``: the fitness less its mean, with
            the lowest finite one in place of NaN.

    >>> shape_fitness(torch.tensor([30.0, float("nan"), 10.0]))
    tensor([ 0.5000, -0.5000,  0.0000])
    """
    failed = ~torch.isfinite(fitness)
    if failed.all():
        return torch.zeros_like(fitness)
    if shaping == "raw":
        filled = torch.where(failed, fitness[~failed].min(), fitness)
        return filled - filled.mean()
    values = torch.where(failed, -torch.inf, fitness)
    below = (values[None, :] < values[:, None]).sum(1)
    equal = (values[None, :] == values[:, None]).sum(1)
    ranks = below + (equal - 1) / 2
    return (ranks / (len(fitness) - 1) - 0.5).to(fitness.dtype)


def by_member(weights: Tensor, fitness: Tensor) -> Tensor:
    """``weights [population]`` by rank → by member; equal members share those of their ranks."""
    found = torch.empty_like(weights)
    found[fitness.argsort(descending=True)] = weights
    equal = (fitness[:, None] == fitness[None, :]).to(weights.dtype)
    return (equal / equal.sum(1, keepdim=True)) @ found


class Optimizer(Protocol):
    """How a search moves: pure functions of a state.

    Random numbers follow from the configuration's seed and the generation alone.
    """

    def start(self, centre: Tensor) -> State:
        """The state before the first generation, at ``centre [dim]``."""
        ...

    def ask(self, state: State, generation: int) -> Tensor:
        """The members of a generation, ``[population, dim]``."""
        ...

    def tell(self, state: State, generation: int, members: Tensor, fitness: Tensor) -> State:
        """The state after it, given ``fitness [population]`` of what :meth:`ask` gave."""
        ...

    def sigma(self, state: State) -> float:
        """The standard deviation of perturbations."""
        ...
