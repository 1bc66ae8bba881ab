"""How a search moves: OpenAI-ES and CMA-ES, as functions of an explicit state.

EvoTorch does the arithmetic of both; here are their random numbers and what a failed member counts.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from evotorch import Problem, SolutionBatch
from evotorch import algorithms as evotorch
from evotorch.algorithms.functional import pgpe, pgpe_ask, pgpe_tell
from evotorch.algorithms.functional.funcadam import AdamState
from evotorch.algorithms.functional.funcpgpe import PGPEState
from torch import Tensor

from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import derive_seed

SHAPINGS = ("centered", "raw")

# All that an optimiser knows between two generations; "centre" [dim] is among it.
State = dict[str, Tensor]


@dataclass(frozen=True)
class SearchConfig:
    """Settings of the search.

    Args:
        population: members per generation: ``"es"`` an even number ≥ 2, antithetic pairs;
            ``"cmaes"`` ≥ 4.
        generations: updates of the centre (≥ 1).
        sigma: standard deviation of the perturbations (> 0); ``"cmaes"`` adapts it from there.
        sigma_decay: ``"es"`` multiplies σ by this after every generation, in (0, 1].
        learning_rate: ``"es"``: Adam's step size for the centre (> 0).
        fitness_shaping: ``"es"``: ``"centered"`` ranks in [−½, ½], or ``"raw"`` fitness.
        seed: of the perturbations.
        optimizer: ``"es"``, :class:`OpenAIES`, or ``"cmaes"``, :class:`CMAES`.

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
            raise UserError(f"optimizer must be {' or '.join(OPTIMIZERS)}; got {self.optimizer!r}")
        if self.optimizer == "es" and (self.population < 2 or self.population % 2):
            raise UserError(
                f"population must be even and at least 2 (antithetic pairs); got {self.population}"
            )
        if self.optimizer == "cmaes" and self.population < 4:
            raise UserError(f"population must be at least 4 for cmaes; got {self.population}")
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


class Optimizer(Protocol):
    """How a search moves: pure functions of a state, all of whose randomness is named by the
    configuration's seed and the generation."""

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


@contextmanager
def _randomness(config: SearchConfig, generation: int) -> Iterator[None]:
    # EvoTorch draws from torch's global generator, which is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "perturbations", generation))
        yield


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
        with _randomness(self.config, generation):
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
            ranking_method="raw",  # of what shape_fitness made of the fitness
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


class CMAES:
    """CMA-ES: a normal distribution that learns its step size and the scales and directions in
    which the fitness changes. For some tens of dimensions; memory grows with population × dim².

    The fitness counts by rank. A generation without two different ranks changes nothing.

    Raises:
        UserError: from ``start``, fewer than two dimensions, which EvoTorch's does not take.

    Source: EvoTorch's ``CMAES``, after Hansen 2016, arXiv 1604.00772.
    """

    # EvoTorch's names of what changes from step to step.
    STATE: ClassVar = {"centre": "m", **{n: n for n in ("sigma", "C", "A", "p_sigma", "p_c")}}

    def __init__(self, config: SearchConfig):
        self.config = config

    def start(self, centre: Tensor) -> State:
        """See :class:`Optimizer`."""
        if len(centre) < 2:
            raise UserError("cmaes needs two parameters to search or more: use es")
        with torch.random.fork_rng(devices=[]):  # EvoTorch fills a population in vain
            solver = _Solver(_Told(len(centre)), centre, self.config)
        zeros = torch.zeros(len(centre))
        tensors = {name: getattr(solver, own) for name, own in self.STATE.items()}
        return tensors | {"p_sigma": zeros, "p_c": zeros, "steps": torch.tensor(0)}

    def ask(self, state: State, generation: int) -> Tensor:
        """See :class:`Optimizer`."""
        with self._solver(state, generation) as solver:
            return solver.sample_distribution()[2]

    def tell(self, state: State, generation: int, members: Tensor, fitness: Tensor) -> State:
        """See :class:`Optimizer`."""
        shaped = shape_fitness(fitness)
        if (shaped == shaped[0]).all():
            return state
        # A step of EvoTorch samples by itself: the same members again.
        with self._solver(state, generation) as solver:
            solver.problem.fitness = shaped
            solver.step()
        tensors = {name: getattr(solver, own) for name, own in self.STATE.items()}
        return tensors | {"steps": torch.tensor(solver.step_count)}

    def sigma(self, state: State) -> float:
        """The step size: the standard deviation while the covariance is that of the start."""
        return float(state["sigma"])

    @contextmanager
    def _solver(self, state: State, generation: int) -> Iterator["_Solver"]:
        """EvoTorch's object in this state, about to draw this generation's random numbers."""
        with torch.random.fork_rng(devices=[]):
            solver = _Solver(_Told(len(state["centre"])), state["centre"], self.config)
        for name, own in self.STATE.items():
            setattr(solver, own, state[name].clone())
        # The order in memory in which a Cholesky factor comes and a file does not keep it: another
        # one gives other bits.
        solver.A = solver.A.mT.contiguous().mT
        solver._steps_count = int(state["steps"])
        with _randomness(self.config, generation):
            yield solver


class _Told(Problem):
    """A problem whose fitness has been found out elsewhere."""

    fitness: Tensor

    def __init__(self, dim: int):
        super().__init__(
            "max",
            solution_length=dim,
            initial_bounds=(0.0, 0.0),
            dtype=torch.float32,
            store_solution_stats=False,
        )

    def _evaluate_batch(self, batch: SolutionBatch) -> None:
        batch.set_evals(self.fitness.to(torch.float32))


class _Solver(evotorch.CMAES):
    """EvoTorch's, in which members of equal fitness share the weights of their ranks: it would
    otherwise find a direction in the order of members that failed alike."""

    problem: _Told
    sigma: Tensor

    def __init__(self, problem: _Told, centre: Tensor, config: SearchConfig):
        with warnings.catch_warnings():  # it mixes tensors and NumPy, of which both complain
            warnings.simplefilter("ignore")
            super().__init__(
                problem,
                stdev_init=config.sigma,  # pyright: ignore[reportArgumentType]
                popsize=config.population,
                center_init=centre,
            )

    def get_population_weights(self, xs: Tensor) -> Tensor:
        weights = super().get_population_weights(xs)
        fitness = self.population.evals[:, 0]
        equal = (fitness[:, None] == fitness[None, :]).to(weights.dtype)
        self._mean_over_ties = equal / equal.sum(1, keepdim=True)
        self._ranked = weights
        if equal.sum() == len(fitness):
            return weights
        return self._mean_over_ties @ weights

    def update_m(self, zs: Tensor, ys: Tensor, assigned_weights: Tensor) -> Any:
        if assigned_weights is self._ranked:
            return super().update_m(zs, ys, assigned_weights)
        # The better half, of which equal members are in part.
        weights = self._mean_over_ties @ self._ranked.clamp(min=0)
        local, shaped = weights @ zs, weights @ ys
        self.m = self.m + self.sigma * shaped
        return local, shaped

    def decompose_C(self) -> None:
        try:
            super().decompose_C()
        except RuntimeError:  # rounding made C indefinite: as it was when last whole
            self.C = self.A @ self.A.T


OPTIMIZERS: dict[str, Callable[[SearchConfig], Optimizer]] = {"es": OpenAIES, "cmaes": CMAES}
