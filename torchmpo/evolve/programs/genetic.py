"""Genetic programming as functions of an explicit state."""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

import torch
from torch import Tensor

from torchmpo.evolve.optimizers import SearchConfig, State
from torchmpo.evolve.programs.grammar import TRIES
from torchmpo.evolve.programs.space import ProgramSpace
from torchmpo.evolve.programs.starts import FORMULAS
from torchmpo.objectives.formulas import parse
from torchmpo.objectives.formulas.vocabulary import Expression
from torchmpo.objectives.mirror import GAIN
from torchmpo.runs.seeding import derive_seed

# What is known, best first, as (formula, mean score, trainings): → formulas to try.
Propose = Callable[[int, Sequence[tuple[Expression, float, int]]], Sequence[Expression]]

SHARE_AGAIN = 4  # one in so many members is one of the best, trained again
CONTROLS, SHARE_CONTROLS = 4, 8  # the most, and at most one in so many
SHARE_PROPOSED = 4  # at most one in so many is proposed from outside
TOURNAMENT = 3
PRIOR = 1.0  # trainings that a formula must outweigh to count for what it scored
SAME_FORM = 3  # formulas that differ in their constants only


class GeneticProgramming:
    """Formulas that did well are varied; what is kept is an archive of the best.

    A generation trains again a quarter of it, the best ones, so that luck does not last. Half of
    the rest are formulas of the archive with other constants, whose better ones replace the old
    (what is learned is inherited); the others have another part. Parents win tournaments.

    A score counts as the mean of a formula's trainings, drawn to the mean of all as if that were
    ``PRIOR`` more trainings. Some named losses are in every generation: what they gained or lost is
    taken for the generation's, and off all scores of it. The best ones could not tell: they were
    chosen for their luck, and lose it in any generation.

    Args:
        config: its ``population``, ``sigma`` (of constants, as in the other spaces) and ``seed``.
        space: the formulas.
        propose: where formulas from outside come from.
    """

    def __init__(self, config: SearchConfig, space: ProgramSpace, propose: Propose | None = None):
        self.config, self.space, self.propose = config, space, propose
        self._controls = self._named()[: min(CONTROLS, config.population // SHARE_CONTROLS)]

    def start(self, centre: Tensor) -> State:
        """See :class:`~torchmpo.evolve.optimizers.Optimizer`."""
        rows = self.config.population
        return {
            "centre": centre.clone(),
            "archive": centre.repeat(rows, 1),
            "sums": torch.zeros(rows, dtype=torch.float64),
            "trainings": torch.zeros(rows, dtype=torch.int64),  # 0: an empty row
            "control_sums": torch.zeros(len(self._controls), dtype=torch.float64),
            "control_trainings": torch.zeros(len(self._controls), dtype=torch.int64),
        }

    def ask(self, state: State, generation: int) -> Tensor:
        """See :class:`~torchmpo.evolve.optimizers.Optimizer`."""
        rng = Random(derive_seed(self.config.seed, "variation", generation))
        population = self.config.population
        known = [self.space.decode(row) for row in state["archive"][state["trainings"] > 0]]
        if not known:
            return self._encoded(self._first(rng))
        best = known[: max(1, population // SHARE_AGAIN)]
        members = [*dict.fromkeys([*best, *self._controls])]
        if self.propose is not None:
            told = list(zip(known, *self._told(state), strict=True))
            proposed = [self.space.grammar.tidied(e) for e in self.propose(generation, told)]
            new = [e for e in dict.fromkeys(proposed) if e is not None and e not in known]
            members = members + new[: population // SHARE_PROPOSED]
        seen, tries = {*known, *members}, 0
        while len(members) < population:
            child = self._child(known, rng, retune=len(members) % 2 == 0)
            tries += 1
            if child not in seen or tries > TRIES * population:  # a small space may be exhausted
                seen.add(child)
                members.append(child)
        return self._encoded(members)

    def tell(self, state: State, generation: int, members: Tensor, fitness: Tensor) -> State:
        """See :class:`~torchmpo.evolve.optimizers.Optimizer`."""
        kept = state["trainings"] > 0
        rows = [tuple(row) for row in state["archive"][kept].tolist()]
        sums = dict(zip(rows, state["sums"][kept].tolist(), strict=True))
        counts = Counter(dict(zip(rows, state["trainings"][kept].tolist(), strict=True)))
        scores = dict(zip(map(tuple, members.tolist()), fitness.tolist(), strict=True))
        finite = {row: score for row, score in scores.items() if score == score}
        shift, controls = self._shift(state, finite)
        for row, score in finite.items():
            sums[row] = sums.get(row, 0.0) + score - shift
            counts[row] += 1
        for row in scores.keys() - finite.keys():  # it diverged
            sums.pop(row, None)
        if not sums:
            return state
        middle = sum(sums.values()) / sum(counts[row] for row in sums)
        merits = {row: (s + PRIOR * middle) / (counts[row] + PRIOR) for row, s in sums.items()}
        best, forms = [], Counter()
        for row in sorted(sums, key=lambda row: (-merits[row], row)):
            form = row[: self.space.nodes]
            forms[form] += 1
            if forms[form] <= SAME_FORM and len(best) < self.config.population:
                best.append(row)
        new = self.start(torch.tensor(best[0])) | controls
        new["archive"][: len(best)] = torch.tensor(best)
        new["sums"][: len(best)] = torch.tensor([sums[row] for row in best], dtype=torch.float64)
        new["trainings"][: len(best)] = torch.tensor([counts[row] for row in best])
        return new

    def sigma(self, state: State) -> float:
        """The standard deviation of perturbations of constants, over ``GAIN``."""
        return self.config.sigma

    def _shift(self, state: State, scores: dict[tuple, float]) -> tuple[float, State]:
        """How much easier a generation was than those before, and what is known of the controls.

        Args:
            scores: of the members that did not diverge, by vector.
        """
        sums, counts = state["control_sums"].clone(), state["control_trainings"].clone()
        rows = [tuple(self.space.encode(control).tolist()) for control in self._controls]
        seen = {k: scores[row] for k, row in enumerate(rows) if row in scores}
        gained = [score - float(sums[k] / counts[k]) for k, score in seen.items() if counts[k]]
        shift = sum(gained) / len(gained) if gained else 0.0
        for k, score in seen.items():
            sums[k] += score - shift
            counts[k] += 1
        return shift, {"control_sums": sums, "control_trainings": counts}

    def _named(self) -> list[Expression]:
        """The start, and the losses that are formulas of the space."""
        named = [self.space.grammar.tidied(parse(formula)) for formula in FORMULAS.values()]
        first = dict.fromkeys([self.space.decode(self.space.start), *named])
        return [expression for expression in first if expression is not None]

    def _first(self, rng: Random) -> list[Expression]:
        """Those, and random ones."""
        members = self._named()
        while len(members) < self.config.population:
            members.append(self.space.grammar.random(rng))
        return members[: self.config.population]

    def _child(self, known: Sequence[Expression], rng: Random, *, retune: bool) -> Expression:
        grammar = self.space.grammar
        parent, other = (
            # The archive is in order, so the first is the best.
            known[min(rng.randrange(len(known)) for _ in range(TOURNAMENT))]
            for _ in range(2)
        )
        child = grammar.retuned(parent, GAIN * self.config.sigma, rng) if retune else None
        return child or grammar.varied(parent, other, rng) or grammar.random(rng)

    def _told(self, state: State) -> tuple[list[float], list[int]]:
        kept = state["trainings"] > 0
        counts = state["trainings"][kept]
        return (state["sums"][kept] / counts).tolist(), counts.tolist()

    def _encoded(self, members: Sequence[Expression]) -> Tensor:
        return torch.stack([self.space.encode(expression) for expression in members])
