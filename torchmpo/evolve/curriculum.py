"""On which kind of data a generation is: a curriculum by regret, of GROOVE's kind.

A search on several kinds of data trains every member on each of them. With a curriculum every
generation is on one kind (of one robot, where there are several: ``hopper/base``). First each has
its turn; then the kinds are ranked by *regret*, by how much the population's mean return was below
that of a tuned hand-made loss when the kind had its last turn, and one is drawn:

    P = (1 − STALENESS)·P_rank + STALENESS·P_stale,   P_rank ∝ 1/rank,   P_stale ∝ generations since

so what is furthest behind comes most often, and what has not been seen for long comes back, with
its regret measured anew. All of this follows from the log of the search and its seed, so a
checkpoint holds it.

Sources: Jackson et al. 2023, arXiv 2310.02782 (GROOVE: regret against a hand-made algorithm); Jiang
et al. 2021, arXiv 2010.03934 (the two distributions of prioritized level replay).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchmpo.runs.seeding import generator

CURRICULA = ("off", "regret")
STALENESS = 0.3
ALL = "all"  # where the last row of a log has its centre judged


@dataclass(frozen=True)
class Curriculum:
    """Draws the kind of data of each generation.

    Args:
        rival: mean return of a tuned hand-made loss on each kind, in the order of the testbeds.
        seed: of the draws.
    """

    rival: Mapping[str, float]
    seed: int

    def choose(self, log: Sequence[Mapping], generation: int) -> str:
        """The kind of a generation, given the rows of the log before it."""
        last = {row["regime"]: row for row in log}
        if unseen := [kind for kind in self.rival if kind not in last]:
            return unseen[0]
        chances = self.chances({kind: last[kind] for kind in self.rival}, generation)
        uniform = torch.rand((), generator=generator(self.seed, "regime", generation)).item()
        reached = torch.tensor([*chances.values()], dtype=torch.float64).cumsum(0)
        k = int((reached <= uniform).sum())
        return [*chances][min(k, len(chances) - 1)]  # the sum may round to less than 1

    def chances(self, last: Mapping[str, Mapping], generation: int) -> dict[str, float]:
        """The probability of each kind, given the row of the log of its last turn."""
        regret = {kind: self.regret(kind, row["mean"]) for kind, row in last.items()}
        order = sorted(regret, key=lambda kind: -regret[kind])  # of equal ones the first stays so
        age = {kind: generation - row["generation"] for kind, row in last.items()}
        by_rank = sum(1 / (1 + rank) for rank in range(len(order)))
        return {
            kind: (1 - STALENESS) / (1 + order.index(kind)) / by_rank
            + STALENESS * age[kind] / sum(age.values())
            for kind in self.rival
        }

    def regret(self, kind: str, mean: float) -> float:
        """By how much a population is behind; without end where all of it failed."""
        return self.rival[kind] - mean if math.isfinite(mean) else math.inf

    def on(
        self, kind: str, fitness: Callable[[Tensor, int], Tensor]
    ) -> Callable[[Tensor, int], Tensor]:
        """A fitness that tells :class:`~torchmpo.evolve.fitness.OneOfKinds` which kind is meant.

        Args:
            kind: one of them, or ``ALL``.
            fitness: of vectors with one number more.
        """
        k = -1 if kind == ALL else [*self.rival].index(kind)

        def judge(vectors: Tensor, generation: int) -> Tensor:
            mark = torch.full_like(vectors[:, :1], k)
            return fitness(torch.cat([vectors, mark], dim=1), generation)

        return judge
