"""Kinds of preference data: a grammar, and the pairs that each kind stands for.

``SOURCE+MODIFIER+…``, as in ``graded:0-0.4+noisy:0.3``. A *source* says whose trajectories are
compared, a *modifier* who annotates them and how well. A modifier alone is a modifier of the source
it is mostly used with: ``noisy:0.3`` is ``base+noisy:0.3``. The order of modifiers is without
meaning: the judge's taste comes first, then its temperature or its votes, then wrong labels.

``PARTS`` has them all; :func:`listing` prints them. Each kind needs a pool of trajectories
(:mod:`torchmpo.control.pools`); kinds over one pool share its files.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from torchmpo.control.annotators import (
    biased_scores,
    cyclic_margin,
    hard_flip_probability,
    preference_probability,
    rank_fraction,
    vote_shares,
)
from torchmpo.control.components import TASTE, effort, return_components
from torchmpo.control.environments import can_fork
from torchmpo.control.forks import fork_step, forked_at
from torchmpo.control.pair_files import MINARI, file_of
from torchmpo.control.pools import ROLES, PoolConfig
from torchmpo.control.ranked_lists import by_win_rate, every_pair, ranked
from torchmpo.control.rollouts import FileRows, LineRollouts
from torchmpo.runs.errors import UserError, nearest
from torchmpo.runs.seeding import generator

HIGHEST_ALPHA = 2.0  # on the line, beyond the target agent
FILES = {"FILE", "minari"}  # parts that are written as a path or an id
VOTES_AT_ONCE = 2**26  # random numbers in memory
VOTE_TEMPERATURE = 0.4  # of voters, in mean margins: they err on about 8 % of pairs at that margin


class Part(NamedTuple):
    """A source or a modifier.

    Args:
        form: how it is written, for people.
        example: how it may be written.
        meaning: one line.
        role: ``"source"``, or of a modifier what it sets; no two of one kind set the same.
        low, high: the range of its number; ``None`` for no number.
        whole: whether its number is a whole one.
        alone: the source it is a modifier of where none is named.
    """

    form: str
    example: str
    meaning: str
    role: str
    low: float | None = None
    high: float = math.inf
    whole: bool = False
    alone: str = "base"


PARTS: dict[str, Part] = {
    "base": Part(
        "base",
        "base",
        "one trajectory of the original agent and one of the target agent, judged by their returns",
        "source",
    ),
    "mixed": Part(
        "mixed",
        "mixed",
        "each trajectory's agent drawn at random: a quarter of the pairs target-target, half mixed",
        "source",
    ),
    "graded": Part(
        "graded:LO-HI",
        "graded:0-0.4",
        "both trajectories of agents on the line from the original (0) to the target agent (1), "
        "each at a place drawn from LO to HI",
        "source",
        0.0,
        HIGHEST_ALPHA,
    ),
    "degraded": Part(
        "degraded:N",
        "degraded:4",
        "both of the target agent, at 1 to N times the noise of behaviour; less noise is better",
        "source",
        2.0,
        64.0,
        whole=True,
    ),
    "FILE": Part(
        "FILE",
        "pairs.npz",
        "pairs of one's own from a .npz or .safetensors file, with the labels they have there",
        "source",
    ),
    "minari": Part(
        "minari:ID",
        "minari:mujoco/walker2d/medium-v0",
        "episodes of a data set of Minari, paired at random, or in the pairs noted there",
        "source",
    ),
    "best_of": Part(
        "best_of:N",
        "best_of:4",
        "the best of N trajectories against a random other of them; alone, those of graded:0-0.4",
        "pick",
        2.0,
        64.0,
        whole=True,
        alone="graded:0-0.4",
    ),
    "list": Part(
        "list:N",
        "list:4",
        "N trajectories from every start, ranked by how many of the others each is preferred to; "
        "the pair of a list is its first and its last; alone, those of graded:0-0.4",
        "pick",
        2.0,
        64.0,
        whole=True,
        alone="graded:0-0.4",
    ),
    "fork": Part(
        "fork:F",
        "fork:0.5",
        "trajectories of one start are the same for a share F of the time limit, then the "
        "simulator's state is copied and each goes on its own; losses read the steps from there on",
        "prefix",
        0.0,
        0.99,
    ),
    "bad_judge": Part(
        "bad_judge:ETA",
        "bad_judge:1000",
        "labels by a Bradley-Terry judge of temperature ETA, in units of return",
        "temperature",
        0.0,
    ),
    "votes": Part(
        "votes:K",
        "votes:5",
        "the majority of K votes, whose share is known to losses that ask for preference_probs",
        "votes",
        1.0,
        100_000.0,
        whole=True,
    ),
    "mixture": Part(
        "mixture:W",
        "mixture:0.3",
        "a share W of the annotators has the opposite taste for one part of the return: the cost "
        "of the leg on tla, else the velocity",
        "taste",
        0.0,
        1.0,
    ),
    "cyclic": Part(
        "cyclic",
        "cyclic",
        "a taste that goes in a circle: high returns beat middling ones, these beat low ones, and "
        "low ones beat high ones",
        "taste",
    ),
    "proxy": Part(
        "proxy:B",
        "proxy:0.5",
        "a judge whom effort (squared actions) impresses as much as B times the true return",
        "taste",
        0.0,
    ),
    "objectives": Part(
        "objectives:W",
        "objectives:0.7",
        "a judge who weighs velocity by W and the rest of the return by 1 - W; losses that take "
        "rewards get the rest",
        "taste",
        0.0,
        1.0,
    ),
    "pairs": Part(
        "pairs:N",
        "pairs:32",
        "the first N pairs only: a smaller budget of labels, from the same trajectories",
        "budget",
        1.0,
        whole=True,
    ),
    "noisy": Part(
        "noisy:P", "noisy:0.3", "every label flipped with probability P", "flips", 0.0, 1.0
    ),
    "hard_noise": Part(
        "hard_noise:P",
        "hard_noise:0.4",
        "labels flipped with probability P for equal returns, and less the further they are apart",
        "hard flips",
        0.0,
        1.0,
    ),
}


class Pairs(NamedTuple):
    """Pairs of trajectories, as rows of a pool.

    Args:
        chosen, rejected: ``[pairs]``, int64.
        preference_probs: ``[pairs]``, how many of the voters agree, or None where nobody voted.
        rewards: ``[rows]``, what losses are given as rewards, or None for the returns.
        lists: ``[pairs, n]``, best first, from the chosen one to the rejected one, or None.
        begins: ``[rows]``, int64, steps before those that losses read, or None for none.
    """

    chosen: Tensor
    rejected: Tensor
    preference_probs: Tensor | None = None
    rewards: Tensor | None = None
    lists: Tensor | None = None
    begins: Tensor | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of data, understood. Two that mean the same are equal.

    Args:
        source: name of the source, or the path of a file.
        numbers: of the source: none, (N,) or (LO, HI).
        modifiers: their numbers (0 for one without) by name, in alphabetical order.
    """

    source: str
    numbers: tuple[float, ...] = ()
    modifiers: tuple[tuple[str, float], ...] = ()

    @property
    def responses(self) -> int:
        """How many trajectories a list has; 2 for a file, of which the kind does not say it."""
        return int(dict(self.modifiers).get("list", 2))

    def pool(self, config: PoolConfig) -> PoolConfig:
        """The pool this kind chooses from, under the settings of ``config``.

        Raises:
            UserError: a file that cannot be read, or a task whose return has no known parts.
        """
        modifiers = dict(self.modifiers)
        if modifiers.keys() & {"mixture", "objectives"} and config.task not in TASTE:
            raise UserError(
                f"mixture and objectives need the components of a return, which are not known for "
                f"task {config.task!r}"
            )
        if modifiers.keys() & {"mixture", "objectives"} and config.auto_reset:
            raise UserError(
                "mixture and objectives need the components of a return, which cannot be told of "
                "trajectories that were started again: leave out --auto_reset"
            )
        if modifiers.get("fork") and not can_fork(config.task):
            raise UserError(
                f"fork copies the state of a simulator, which task {config.task!r} cannot: take "
                "one of the shipped robots"
            )
        rollouts: LineRollouts | FileRows | None = None
        if self.source == "graded":
            per_start = int(modifiers.get("best_of", self.responses))
            rollouts = LineRollouts(*self.numbers, per_start=per_start)
        elif self.source == "degraded":
            levels = int(self.numbers[0])
            rollouts = LineRollouts(1.0, 1.0, per_start=self.responses, levels=levels)
        elif self.source not in PARTS:
            rollouts = FileRows.of(self.source)
        return replace(config, rollouts=rollouts, fork=modifiers.get("fork", 0.0))

    def pairs(self, pool: Mapping[str, Tensor], config: PoolConfig) -> Pairs:
        """The pairs.

        Args:
            pool: trajectories by name, of the pool of this kind.
            config: of that pool.

        Raises:
            UserError: a budget of more labels than there are pairs.
        """
        rest = dict(self.modifiers)
        budget = int(rest.pop("pairs", 0))
        rest.pop("fork", None)
        found = replace(self, modifiers=tuple(rest.items()))._annotated(pool, config)
        found = found._replace(begins=self._begins(pool, config))
        if found.rewards is None:
            found = found._replace(rewards=pool.get("rewards"))  # of a file
        if not budget:
            return found
        if budget > len(found.chosen):
            raise UserError(
                f"data pairs:{budget} is a part of {len(found.chosen)} pairs: raise pairs to "
                f"{budget} at least"
            )
        by_pair = ("chosen", "rejected", "preference_probs", "lists")
        values = {name: getattr(found, name) for name in by_pair}
        return found._replace(**{n: v if v is None else v[:budget] for n, v in values.items()})

    def by_win_rate(self, pool: Mapping[str, Tensor], config: PoolConfig) -> Pairs:
        """Lists of this kind as in SPO: ordered by, and rewarded with, win rates in their list.

        Where a judge errs, its probabilities count and no draws from them; votes are cast, and
        wrong labels make every comparison the less sure. Losses see win rates as rewards, or what
        the kind lets them see.
        """
        lists = self._lists(pool, config)
        assert lists is not None
        first, second = every_pair(lists)
        probability, share, flips, rewards = self._compare(pool, config, first, second)
        probability = probability if share is None else share
        for flip in flips.values():
            probability = probability + flip - 2 * probability * flip
        lists, rates, ends = by_win_rate(lists, probability.float())
        if rewards is None:
            rewards = torch.zeros(len(pool["returns"]))
            rewards[lists] = rates
        begins = self._begins(pool, config)
        probs = None if share is None else ends
        return Pairs(lists[:, 0], lists[:, -1], probs, rewards, lists, begins)

    def _begins(self, pool: Mapping[str, Tensor], config: PoolConfig) -> Tensor | None:
        if share := dict(self.modifiers).get("fork"):
            step = fork_step(share, config.max_steps)
            return forked_at(pool["lengths"], config.pairs, step)
        return pool.get("begins")  # of a file

    def _annotated(self, pool: Mapping[str, Tensor], config: PoolConfig) -> Pairs:
        modifiers, seed = dict(self.modifiers), config.seed
        lists = self._lists(pool, config)
        if lists is not None and not modifiers:  # of a file
            ends = pool["chosen"], pool["rejected"]
            return Pairs(*ends, pool.get("preference_probs"), lists=lists)
        first, second = self._compared(pool, config) if lists is None else every_pair(lists)
        probability, share, flips, rewards = self._compare(pool, config, first, second)
        if share is not None:
            probability = torch.where(share == 0.5, 0.5, (share > 0.5).float())
            share = torch.maximum(share, 1 - share)  # of the majority
        elif "preference_probs" in pool and not _rejudged(modifiers):
            if lists is not None:
                raise UserError(
                    f"{self.source} has preference_probs of whole lists, which do not say how a "
                    "list with other labels was voted for: leave out noisy, or preference_probs"
                )
            share = pool["preference_probs"]
        uniform = torch.rand(len(first), generator=generator(seed, "judge"))
        wrong = uniform >= probability
        # One uniform draw per pair decides at every probability: flips at 0.1 are among those at
        # 0.2. The vote goes with its label: whoever flips it claims the votes, too.
        for stream, flip in flips.items():
            wrong ^= torch.rand(len(first), generator=generator(seed, stream)) < flip
        if lists is not None:
            lists, share = ranked(lists, wrong, share)
            return Pairs(lists[:, 0], lists[:, -1], share, rewards, lists)
        chosen, rejected = torch.where(wrong, second, first), torch.where(wrong, first, second)
        return Pairs(chosen, rejected, share, rewards)

    def _compare(
        self, pool: Mapping[str, Tensor], config: PoolConfig, first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor], Tensor | None]:
        """P(first preferred) by the judges, the share of votes for it if there are any, the
        probabilities of a wrong label by stream, and what losses may see."""
        modifiers = dict(self.modifiers)
        groups, rewards = self._judges(pool, config, first, second)
        spread = groups[0][1].abs().double().mean().item() or 1.0
        temperature = modifiers.get(
            "bad_judge", VOTE_TEMPERATURE * spread if "votes" in modifiers else 0.0
        )
        judged = (
            weight * preference_probability(margin, temperature=temperature)
            for weight, margin in groups
        )
        probability, share = sum(judged, torch.zeros(())), None
        if votes := int(modifiers.get("votes", 0)):
            drawn = generator(config.seed, "votes")
            share = torch.cat(
                [  # a few pairs at a time: all votes of all pairs may not fit into memory
                    vote_shares(some, torch.rand(len(some), votes, generator=drawn))
                    for some in probability.split(max(1, VOTES_AT_ONCE // votes))
                ]
            )
        flips: dict[str, Tensor] = {}
        if "noisy" in modifiers:
            flips["flips"] = torch.tensor(modifiers["noisy"])
        if "hard_noise" in modifiers:
            margin = groups[0][1].abs().double()
            flips["hard flips"] = hard_flip_probability(margin, modifiers["hard_noise"], spread)
        return probability, share, flips, rewards

    def _lists(self, pool: Mapping[str, Tensor], config: PoolConfig) -> Tensor | None:
        """Rows of the trajectories of each list, ``[lists, n]``; None where there are pairs."""
        if isinstance(config.rollouts, FileRows):
            return pool.get("lists")
        if "list" not in dict(self.modifiers):
            return None
        return torch.arange(self.responses * config.pairs).view(self.responses, -1).T

    def _compared(self, pool: Mapping[str, Tensor], config: PoolConfig) -> tuple[Tensor, Tensor]:
        """Rows of the two trajectories of each pair."""
        if isinstance(config.rollouts, FileRows):
            return pool["chosen"], pool["rejected"]
        starts, seed = config.pairs, config.seed
        start = torch.arange(starts)
        if "best_of" in dict(self.modifiers):
            returns = pool["returns"].view(-1, starts)
            count, best = len(returns), returns.argmax(0)
            uniform = torch.rand(starts, generator=generator(seed, "one of the others"))
            other = (best + 1 + (uniform * (count - 1)).long()) % count
            return best * starts + start, other * starts + start
        if self.source == "mixed":
            # The second trajectory's agent was drawn by a coin when the pool was built.
            target = torch.rand(starts, generator=generator(seed, "mixed")) < 0.5
            return start + starts * target, start + (len(ROLES) - 1) * starts
        return start, start + starts

    def _judges(
        self, pool: Mapping[str, Tensor], config: PoolConfig, first: Tensor, second: Tensor
    ) -> tuple[list[tuple[float, Tensor]], Tensor | None]:
        """(weight, margin ``[pairs]``) of each group of annotators, and what losses may see."""
        modifiers, returns = dict(self.modifiers), pool["returns"]
        used = torch.cat([first, second])
        if isinstance(config.rollouts, FileRows) and not _rejudged(modifiers):
            return [(1.0, torch.ones(len(first)))], None  # the labels of the file
        if self.source == "degraded":
            assert isinstance(config.rollouts, LineRollouts)
            returns = -config.rollouts.noise_levels(config.pairs, config.seed).float()
        if "cyclic" in modifiers:
            style = torch.zeros_like(returns)
            rows = used.unique()
            style[rows] = rank_fraction(returns[rows])
            spread = (returns[first] - returns[second]).abs().mean()
            return [(1.0, spread * cyclic_margin(style[first], style[second]))], None
        if "proxy" in modifiers:
            score = torch.zeros_like(returns)
            impression = effort(pool)[used].to(returns.dtype)
            score[used] = biased_scores(returns[used], impression, modifiers["proxy"])
            return [(1.0, score[first] - score[second])], None
        groups, rewards = [(1.0, returns[first] - returns[second])], None
        if modifiers.keys() & {"mixture", "objectives"}:
            parts = return_components(config.task, config.max_steps, pool)
            if "mixture" in modifiers:
                share = modifiers["mixture"]
                # Both groups go by returns, also where the noise of an agent would decide.
                tastes = pool["returns"], pool["returns"] - 2 * parts[TASTE[config.task]]
                one, other = (taste.to(returns.dtype) for taste in tastes)
                groups = [
                    (1 - share, one[first] - one[second]),
                    (share, other[first] - other[second]),
                ]
            else:
                weight, speed = modifiers["objectives"], parts["velocity"]
                rest = pool["returns"] - speed
                score = (weight * speed + (1 - weight) * rest).to(returns.dtype)
                groups = [(1.0, score[first] - score[second])]
                rewards = rest.to(returns.dtype)
        return groups, rewards


def _rejudged(modifiers: Mapping[str, float]) -> bool:
    """Whether somebody annotates, even where a file has labels."""
    return any(
        PARTS[name].role in ("taste", "temperature", "votes", "hard flips") for name in modifiers
    )


def check_kinds_differ(kinds: Iterable[str]) -> None:
    """Refuse data that would count twice, as in noisy:0.3 and noisy:0.30.

    Raises:
        UserError: two are the same, or one is unknown.
    """
    same: dict[Kind, str] = {}
    for kind in kinds:
        if (other := same.setdefault(parse_kind(kind), kind)) != kind:
            raise UserError(f"data: {other} and {kind} are the same; name one of them")


def parse_kind(kind: str) -> Kind:
    """What a kind of data means.

    Raises:
        UserError: an unknown part, its number missing, superfluous or out of range, or parts that
            do not go together.
    """
    path, modified = file_of(kind)
    # A plus sign also stands in 1e+3.
    source, *rest = re.split(r"\s*\+\s*(?=[a-zA-Z_])", modified)
    name, numbers = (path, ()) if path else _part(source)
    if not path and PARTS[name].role != "source":
        rest.insert(0, source)
        name, numbers = _part(PARTS[name].alone)
    modifiers: dict[str, float] = {}
    taken: dict[str, str] = {}
    for text in rest:
        other, value = _part(text)
        part = PARTS[other]
        if part.role == "source":
            raise UserError(
                f"data {kind!r}: {text} is a source of trajectories, as {source} is; a kind has one"
            )
        if part.role in taken:
            raise UserError(
                f"data {kind!r}: {taken[part.role]} and {text} set the same; name one of them"
            )
        taken[part.role] = text
        modifiers[other] = value[0] if value else 0.0
    size = int(modifiers.get("list", 2))
    if "list" in modifiers and name not in ("graded", "degraded"):
        raise UserError(
            f"data {kind!r}: list ranks trajectories of graded or degraded, as in "
            "'graded:0-0.4+list:4'"
        )
    if name == "degraded" and size > max(numbers):
        raise UserError(
            f"data {kind!r}: {size} trajectories of a list differ in their noise, which has "
            f"{max(numbers):g} levels: take degraded:{size} or more"
        )
    if path and "fork" in modifiers:
        raise UserError(
            f"data {kind!r}: fork makes trajectories in a simulator, and {path} has its own"
        )
    if "best_of" in modifiers and name != "graded":
        raise UserError(
            f"data {kind!r}: best_of picks among trajectories of graded, as in "
            "'graded:0-0.4+best_of:4'"
        )
    return Kind(name, numbers, tuple(sorted(modifiers.items())))


def _part(text: str) -> tuple[str, tuple[float, ...]]:
    """Name and numbers of one part."""
    name, colon, written = text.partition(":")
    if name not in PARTS or name in FILES:
        raise UserError(f"unknown data {text!r}: {nearest(name, PARTS.keys() - FILES)}")
    part = PARTS[name]
    if part.low is None:
        if colon:
            raise UserError(f"data {name!r} takes no number; got {text!r}")
        return name, ()
    pieces = written.split("-") if "-" in part.form else [written]
    try:
        numbers = tuple(float(piece) for piece in pieces)
        if len(numbers) != (2 if "-" in part.form else 1):
            raise ValueError
    except ValueError:
        needs = "two numbers" if "-" in part.form else "a number"
        raise UserError(f"data {name!r} needs {needs}, as in '{part.example}'") from None
    fits = all(part.low <= number <= part.high and math.isfinite(number) for number in numbers)
    if not fits or list(numbers) != sorted(numbers):
        raise UserError(f"the number of {text!r} is out of range, try '{part.example}'")
    if part.whole and any(number != int(number) for number in numbers):
        raise UserError(f"the number of {text!r} must be a whole one, try '{part.example}'")
    return name, numbers


def describe(kind: str) -> list[tuple[str, str]]:
    """What a kind consists of: its parts as they are written, each with its meaning."""
    parsed = parse_kind(kind)
    source = parsed.source
    if source not in PARTS:
        source = "minari" if source.startswith(MINARI) else "FILE"
    numbers = "-".join(f"{number:g}" for number in parsed.numbers)
    written = f"{parsed.source}:{numbers}" if numbers else parsed.source
    found = [(written, PARTS[source].meaning)]
    for name, number in parsed.modifiers:
        text = name if PARTS[name].low is None else f"{name}:{number:g}"
        found.append((text, PARTS[name].meaning))
    return found


def listing() -> str:
    """Every source and modifier in a line."""
    wide = max(len(part.form) for part in PARTS.values())
    lines = {part.form: f"  {part.form:<{wide}}  {part.meaning}" for part in PARTS.values()}
    sources = [lines[part.form] for part in PARTS.values() if part.role == "source"]
    return "\n".join(
        [
            "A kind of data is SOURCE+MODIFIER+MODIFIER…, as in graded:0-0.4+noisy:0.3.",
            "Sources:",
            *sources,
            "Modifiers; alone, they modify base:",
            *(line for line in lines.values() if line not in sources),
        ]
    )
