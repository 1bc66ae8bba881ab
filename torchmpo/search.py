"""The outer loop: OpenAI-ES over the parameter vector of an objective.

    ∇ ≈ 1/(2σN) Σ_i ε_i (F(ζ + σε_i) − F(ζ − σε_i)),   N antithetic pairs

EvoTorch does the arithmetic: with a fixed σ and Adam, PGPE is this method (its gradient is σ² times
as large, which Adam ignores). What F is, is left open: any function of vectors and the generation,
such as a :class:`torchmpo.cluster.Fitness`.

Source: Salimans et al. 2017, arXiv 1703.03864; arXiv 2411.06568, eq. 12 and appendix I.
"""

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from evotorch.algorithms.functional import pgpe, pgpe_ask, pgpe_tell
from evotorch.algorithms.functional.funcadam import AdamState
from evotorch.algorithms.functional.funcpgpe import PGPEState
from torch import Tensor

from torchmpo.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from torchmpo.errors import UserError
from torchmpo.files import write_atomic
from torchmpo.seeding import derive_seed

LOG_COLUMNS = ("generation", "centre", "mean", "best", "sigma", "nan")
SHAPINGS = ("centered", "raw")


@dataclass(frozen=True)
class SearchConfig:
    """Settings of the search.

    Args:
        population: members per generation, an even number ≥ 2: antithetic pairs.
        generations: updates of the centre (≥ 1).
        sigma: standard deviation of the perturbations (> 0).
        sigma_decay: σ is multiplied by this after every generation, in (0, 1].
        learning_rate: Adam's step size for the centre (> 0).
        fitness_shaping: ``"centered"`` ranks in [−½, ½], or ``"raw"`` fitness.
        seed: of the perturbations.

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

    def __post_init__(self):
        if self.population < 2 or self.population % 2:
            raise UserError(
                f"population must be even and at least 2 (antithetic pairs); got {self.population}"
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


def start(centre: Tensor, config: SearchConfig) -> PGPEState:
    """The state of the search before the first generation, at ``centre [dim]``."""
    return pgpe(
        center_init=centre.clone(),
        center_learning_rate=torch.tensor(config.learning_rate, dtype=centre.dtype),
        stdev_learning_rate=torch.tensor(0.0),
        stdev_init=config.sigma,
        objective_sense="max",
        ranking_method="raw",  # of what shape_fitness made of the fitness
        optimizer="adam",
        symmetric=True,
    )


def ask(state: PGPEState, config: SearchConfig, generation: int) -> Tensor:
    """The members of a generation ``[population, dim]``: ζ + σε₀, ζ − σε₀, ζ + σε₁, …"""
    with torch.random.fork_rng(devices=[]):  # EvoTorch draws from the global generator
        torch.manual_seed(derive_seed(config.seed, "perturbations", generation))
        return pgpe_ask(state, popsize=config.population)


def tell(state: PGPEState, members: Tensor, fitness: Tensor, config: SearchConfig) -> PGPEState:
    """One Adam step of the centre along the gradient estimate, then σ decays."""
    state = pgpe_tell(state, members, shape_fitness(fitness, config.fitness_shaping))
    return state._replace(stdev=state.stdev * config.sigma_decay)


def centre_of(state: PGPEState) -> Tensor:
    """ζ, ``[dim]``."""
    return _adam(state).center


def _adam(state: PGPEState) -> AdamState:
    assert isinstance(state.optimizer_state, AdamState)
    return state.optimizer_state


class Found(NamedTuple):
    """The result of a search.

    ``vector [dim]`` is the last centre: to pick the one that scored best would pick the luckiest
    seeds. ``log`` has one dictionary per generation.
    """

    vector: Tensor
    log: list[dict]


def search(
    fitness: Callable[[Tensor, int], Tensor],
    centre: Tensor,
    config: SearchConfig,
    folder: str | Path,
    *,
    on_generation: Callable[[dict, float], None] = lambda row, seconds: None,
) -> Found:
    """Search from ``centre``, or go on from the newest checkpoint in ``folder``.

    Each generation evaluates the centre and the population, steps, and writes a checkpoint; a last
    row of the log evaluates the final centre alone. ``log.csv`` is written whole from the log in
    the checkpoint, so after a kill the two cannot disagree, and everything in them follows from
    ``config`` and ``fitness``. Wall-clock times go to ``timings.csv``.

    Args:
        fitness: of vectors ``[n, dim]`` in a generation: ``[n]``, higher is better, NaN for a
            failure.
        centre: ``[dim]``, where to start.
        folder: of the run; ``checkpoints/``, ``log.csv`` and ``timings.csv`` go there.
        on_generation: called with each new row of the log and the seconds it took.
    """
    folder = Path(folder)
    state, log = start(centre, config), []
    if (checkpoint := load_checkpoint(folder / "checkpoints")) is not None:
        state, log = _restore(state, checkpoint)
    _write_log(folder, log)
    for generation in range(len(log), config.generations + 1):
        began = time.perf_counter()
        centre = centre_of(state)
        row = {"generation": generation, "sigma": float(state.stdev[0])}
        if generation < config.generations:
            members = ask(state, config, generation)
            scores = fitness(torch.cat([centre[None], members]), generation)
            state = tell(state, members, scores[1:], config)
            finite = scores[1:][torch.isfinite(scores[1:])].double()
            row["mean"] = float(finite.mean())
            row["best"] = float(finite.max()) if len(finite) else math.nan
            row["nan"] = config.population - len(finite)
        else:
            scores = fitness(centre[None], generation)
        row["centre"] = float(scores[0])
        row = {column: row.get(column) for column in LOG_COLUMNS}
        log.append(row)
        save_checkpoint(folder / "checkpoints", _checkpoint(state, log))
        _write_log(folder, log)
        seconds = time.perf_counter() - began
        _append_timing(folder, generation, seconds)
        on_generation(row, seconds)
    return Found(centre_of(state), log)


def _checkpoint(state: PGPEState, log: list[dict]) -> Checkpoint:
    adam = _adam(state)
    tensors = {"centre": adam.center, "m": adam.m, "v": adam.v, "t": adam.t}
    return Checkpoint(len(log), tensors | {"stdev": state.stdev}, log)


def _restore(state: PGPEState, checkpoint: Checkpoint) -> tuple[PGPEState, list[dict]]:
    tensors = checkpoint.tensors
    adam = _adam(state)._replace(
        center=tensors["centre"], m=tensors["m"], v=tensors["v"], t=tensors["t"]
    )
    return state._replace(optimizer_state=adam, stdev=tensors["stdev"]), checkpoint.info


def _write_log(folder: Path, log: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, LOG_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(log)
    write_atomic(folder / "log.csv", text.getvalue())


def _append_timing(folder: Path, generation: int, seconds: float) -> None:
    path = folder / "timings.csv"
    new = not path.exists()
    with open(path, "a") as file:
        file.write(("generation,seconds\n" if new else "") + f"{generation},{seconds:.3f}\n")
