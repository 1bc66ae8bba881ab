"""Training in rounds: fresh pairs of the policies' own trajectories, judged, and trained on.

Offline, all pairs are there at first. In rounds the same number of pairs is spent in parts: the
first part is of the data as it is, and each further one consists of trajectories that the policies
make then, two from each start state, compared by the annotators of the kind of data. A round trains
as the offline run does, supervised epochs and all, from where the round before has ended. So
labels, epochs over them and updates are those of the offline run, and one round is that run.

- ``iterated``: both trajectories of a pair by the current policy.
- ``spin``, self-play: in every round the chosen trajectories of the data against own ones; nobody
  judges.
- ``spo``, self-play with win rates: from the first round on, several own trajectories from each
  start state; the reward of one is its mean probability to be preferred to the others, and the pair
  is the one with the highest against the one with the lowest; lists are ranked by it.
- ``extragradient``: in every round a half step shows another policy; the step is then made from
  where the half step began, on pairs of that other policy. Each half has half of the labels.

Own trajectories are made as those of the pool are: mean actions with noise of ``behaviour_std``.

Sources: iterated DPO, arXiv 2312.16682; SPIN, arXiv 2401.01335; SPO, arXiv 2401.04056;
extragradient preference optimization, arXiv 2503.08942; extrapolation between rounds, APO, arXiv
2410.06293.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.functional import pad

from torchmpo.control.environments import simulations
from torchmpo.control.forks import Fork, by_start, fork_step
from torchmpo.control.inner_loop import OnEpoch, check_lists, train_policies
from torchmpo.control.kinds import PARTS, Kind, parse_kind
from torchmpo.control.pools import roll_out
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.control.restarts import Restarts
from torchmpo.games.self_play import extrapolated
from torchmpo.runs.errors import UserError, nearest
from torchmpo.runs.seeding import derive_seed, generator
from torchmpo.runs.threads import one_torch_thread

if TYPE_CHECKING:
    from torchmpo.control.testbed import Testbed

LOOPS = ("iterated", "spin", "extragradient", "spo")
REPLAY = ("new", "all")
SPO_TRAJECTORIES = 4  # from each start state, where the data does not name a number
Params = dict[str, Tensor]
OnData = Callable[[list[PreferenceDataset]], None]


@dataclass(frozen=True)
class Rounds:
    """How pairs are spent.

    Args:
        count: rounds (≥ 1); 1 is the offline run.
        reference_refresh: rounds after which the reference of a loss that has one becomes the
            policy (after the supervised epochs of that round); 0: it stays that of the first round.
        loop: one of ``LOOPS``.
        extrapolation: a in [0, 1): before each further round but the first, the policy goes on by a
            times what it has moved from the end of one round to the end of the next.
        replay: ``"new"``: a round trains on its own pairs; ``"all"``: also on those of the rounds
            before. It has as many updates either way: every epoch draws as many pairs as are new,
            from all so far, without replacement.

    Raises:
        UserError: a setting out of its range, or one that says nothing of a single round.
    """

    count: int = 1
    reference_refresh: int = 1
    loop: str = "iterated"
    extrapolation: float = 0.0
    replay: str = "new"

    def __post_init__(self):
        if self.count < 1:
            raise UserError(f"rounds must be at least 1; got {self.count}")
        if self.reference_refresh < 0:
            raise UserError(f"reference_refresh must not be negative; got {self.reference_refresh}")
        if self.loop not in LOOPS:
            raise UserError(f"unknown loop {self.loop!r}: {nearest(self.loop, LOOPS)}")
        if not 0 <= self.extrapolation < 1:
            raise UserError(f"extrapolation must be in [0, 1); got {self.extrapolation}")
        if self.replay not in REPLAY:
            raise UserError(f"unknown replay {self.replay!r}: {nearest(self.replay, REPLAY)}")
        if self.replay == "all" and self.loop == "extragradient":
            raise UserError(
                "loop extragradient steps on pairs of another policy, so replay must be new"
            )
        rest = self.reference_refresh, self.loop, self.extrapolation, self.replay
        if self.count == 1 and rest != (1, "iterated", 0.0, "new"):
            raise UserError(
                "reference_refresh, loop, extrapolation and replay are for rounds of 2 or more"
            )

    def labels(self, pairs: int) -> list[int]:
        """How many pairs each round has."""
        return [pairs // self.count + (k < pairs % self.count) for k in range(self.count)]

    def check(self, pairs: int | None, minibatch: int, data: str = "base") -> None:
        """Refuse rounds of fewer pairs than an update has, self-play on lists and forks, and a
        judge whose temperature is in levels of noise, which own trajectories do not have.

        Args:
            pairs: how many there are; None where only a file can tell, which is not read yet.
            minibatch: pairs of an update.
            data: the kind of data.

        Raises:
            UserError: they are, or ``data`` has lists or forks, or such a judge.
        """
        kind = parse_kind(data)
        modifiers = dict(kind.modifiers)
        if self.count > 1 and kind.source == "degraded" and "bad_judge" in modifiers:
            raise UserError(
                f"the temperature of bad_judge in {data} is in levels of noise, which trajectories "
                "of further rounds do not have: set rounds to 1, or leave it out"
            )
        if self.loop == "spin" and "list" in modifiers:
            raise UserError(f"loop spin compares two trajectories, and {data} has lists")
        if self.loop == "spin" and "fork" in modifiers:
            raise UserError(
                "loop spin compares trajectories that share no beginning: leave fork out"
            )
        if pairs is None:
            return
        least = self.labels(pairs)[-1] // (2 if self.loop == "extragradient" else 1)
        if self.count > 1 and least < minibatch:
            raise UserError(
                f"{pairs} pairs in {self.count} rounds are too few for updates of {minibatch}: "
                "lower rounds or minibatch_pairs"
            )


def train_in_rounds(
    bed: "Testbed",
    objective: Any,
    objective_params: Any,
    init: Params,
    seed: int | Sequence[int],
    *,
    learning_rates: Tensor | None = None,
    on_epoch: OnEpoch | None = None,
    datasets: Sequence[PreferenceDataset] | None = None,
    on_data: OnData | None = None,
) -> Params:
    """``bed.train`` where its configuration has several rounds.

    Args:
        init: ``{name: [P, ...]}``, where the first round begins.
        seed, learning_rates, on_epoch, datasets: as there. Epochs are counted through.
        on_data: called with the data of every part, one data set per member.

    Returns:
        ``{name: [P, ...]}``.
    """
    rounds, inner = bed.config.rounds, bed.config.inner
    population = len(next(iter(init.values())))
    offline = list(datasets or [bed.dataset] * population)
    sizes, begin = rounds.labels(len(bed.dataset)), 0
    if rounds.loop == "spin":
        check_lists(objective, 2, "a round of loop spin")
        if any(data.begins is not None for data in offline):
            raise UserError("loop spin compares whole trajectories: leave out fork and begins")
    each = inner.sft_epochs + inner.epochs
    kept: dict[int, Params] = {}  # the policies that the reference is, by member
    past: list[list[PreferenceDataset]] = []  # data of the rounds so far

    def train(k: int, part: str, params: Params, data: Any, quiet: bool = False) -> Params:
        renew = k == 0 or (rounds.reference_refresh and k % rounds.reference_refresh == 0)

        def watch(epoch: int, members: list[int], now: Params) -> None:
            if renew and epoch == inner.sft_epochs:
                for place, member in enumerate(members):
                    kept[member] = {name: value[place].clone() for name, value in now.items()}
            if on_epoch is not None and not quiet:
                on_epoch(k * each + epoch, members, now)

        reference = None
        if not renew and objective.needs_reference:
            reference = {n: torch.stack([kept[i][n] for i in range(population)]) for n in params}
        # The first round's numbers are those of the offline run.
        stream = seed if (k, part) == (0, "train") else _derived(seed, part, k)
        config = inner
        if rounds.replay == "all":
            past.append(data if isinstance(data, list) else [data] * population)
            if k:
                data = [PreferenceDataset.joined(own) for own in zip(*past, strict=True)]
                config = replace(inner, pairs_per_epoch=sizes[k])
        return train_policies(
            bed.policy,
            params,
            objective,
            objective_params,
            data,
            config,
            stream,
            learning_rates=learning_rates,
            on_epoch=watch,
            reference_params=reference,
        )

    def told(data: Sequence[PreferenceDataset]) -> list[PreferenceDataset]:
        if on_data is not None:
            on_data(list(data))
        return list(data)

    params, ended = init, None
    for k, size in enumerate(sizes):
        before = params
        if k == 0 and rounds.loop == "iterated":
            first = told([data.take(size) for data in offline])
            params = train(k, "train", params, first[0] if datasets is None else first)
        elif rounds.loop == "spin":
            own = own_rows(bed, params, size, 1, _derived(seed, "round", k))
            part = [_against(bed, data, o, begin) for data, o in zip(offline, own, strict=True)]
            params = train(k, "train", params, told(part))
        else:
            halves = [size // 2, size - size // 2] if rounds.loop == "extragradient" else [size]
            for half, count in enumerate(halves):
                streams = _derived(seed, f"round {half}" if half else "round", k)
                last = half + 1 == len(halves)
                if k == 0 and not last:
                    part = [data.take(count) for data in offline]
                else:
                    part = own_pairs(bed, params, count, streams)
                params = train(k, f"train {half}", before, told(part), quiet=not last)
        after, begin = params, begin + size
        if ended is not None and rounds.extrapolation and k + 1 < len(sizes):
            params = extrapolated(ended, after, rounds.extrapolation)
        ended = after
    return params


def own_pairs(
    bed: "Testbed", params: Params, pairs: int, seed: int | Sequence[int]
) -> list[PreferenceDataset]:
    """Pairs of trajectories of the policies themselves, judged as the data of ``bed`` is.

    Args:
        params: ``{name: [P, ...]}``.
        pairs: per member.
        seed: of start states, actions and judges; members of one seed share them.

    Returns:
        a data set per member.
    """
    judged = _judge(bed)
    choose = judged.by_win_rate if bed.config.rounds.loop == "spo" else judged.pairs
    modifiers = dict(judged.modifiers)
    per_start = int(modifiers.get("best_of", modifiers.get("list", 2)))
    found = []
    rows = own_rows(bed, params, pairs, per_start, seed)
    for member, own in enumerate(rows):
        stream = seed if isinstance(seed, int) else seed[member]
        config = replace(bed.config.pool, pairs=pairs, seed=stream, rollouts=None)
        found.append(PreferenceDataset(**own, **choose(own, config)._asdict()))
    return found


@torch.no_grad()
@one_torch_thread()
def own_rows(
    bed: "Testbed", params: Params, starts: int, per_start: int, seed: int | Sequence[int]
) -> list[dict[str, Tensor]]:
    """Trajectories of the policies, as rows of a pool: start s of trajectory j is j·starts + s.

    Returns:
        per member ``observation``, ``action``, ``lengths`` and ``returns``.
    """
    config, population = bed.config, len(next(iter(params.values())))
    count, fork, order = starts * per_start, None, torch.arange(starts * per_start)
    at_once = min(count, simulations(config.pool.task))
    if share := dict(parse_kind(config.data).modifiers).get("fork", 0.0):
        fork = Fork(fork_step(share, config.pool.max_steps), per_start)
        order, at_once = by_start(starts, per_start), at_once - at_once % per_start
    members_at_once = max(1, min(population, simulations(config.pool.task) // at_once))
    env = bed.materials.environment(config, at_once * members_at_once)
    act = vmap(lambda own, obs: functional_call(bed.policy, own, (obs,)))
    seeds = [seed] * population if isinstance(seed, int) else list(seed)
    std = torch.full((bed.policy.action_size,), config.pool.behaviour_std)
    start_of = torch.arange(starts).repeat(per_start)
    found: list[list[dict[str, Tensor]]] = [[] for _ in range(population)]
    for first in range(0, population, members_at_once):
        # The last block is filled up with copies, so that every pass has the shape of the batch.
        members = torch.arange(first, first + members_at_once).clamp(max=population - 1).tolist()
        own = {name: value[members] for name, value in params.items()}
        for row in range(0, count, at_once):
            rows = order[torch.arange(row, row + at_once).clamp(max=count - 1)]
            draws = [generator(seeds[i], "actions", row) for i in members]

            def begin(*stream: str | int, rows: Tensor = rows, members: list = members) -> Tensor:
                each = [env.start_states(starts, generator(seeds[i], *stream)) for i in members]
                return torch.cat([states[start_of[rows]] for states in each])

            def mean(obs: Tensor, own: Params = own, members: list = members) -> Tensor:
                action = act(own, obs.view(len(members), at_once, -1)).flatten(0, 1)
                return action.nan_to_num(0.0, 0.0, 0.0)  # of a policy that diverged

            def noise(draws: list = draws) -> Tensor:
                size = at_once, bed.policy.action_size
                return torch.cat([torch.randn(size, generator=draw) for draw in draws])

            again = Restarts(env, partial(begin, "restarts")) if config.pool.auto_reset else None
            part = roll_out(env, mean, std, begin("start states"), noise, again, fork)
            whole = min(at_once, count - row)
            for place, member in enumerate(members[: population - first]):
                at = slice(place * at_once, place * at_once + whole)
                found[member].append({name: value[at] for name, value in part.items()})
    place = order.argsort()
    return [{n: torch.cat([p[n] for p in parts])[place] for n in parts[0]} for parts in found]


def _against(
    bed: "Testbed", data: PreferenceDataset, own: dict[str, Tensor], begin: int
) -> PreferenceDataset:
    """The chosen trajectories of pairs of the data, each against an own one."""
    count = len(own["lengths"])
    rows = data.chosen[begin : begin + count]
    times = data.action.shape[1], own["action"].shape[1]
    joined = {}
    for name, value in own.items():
        both = [getattr(data, name)[rows], value]
        if value.ndim > 1:  # a file's trajectories may have another time limit
            both = [pad(x, (0, 0, 0, max(times) - x.shape[1])) for x in both]
        joined[name] = torch.cat(both)
    order = torch.arange(count)
    rewards = None
    if data.rewards is not None:  # those that the judge of the data lets losses see
        modifiers = parse_kind(bed.config.data).modifiers
        taste = Kind("base", (), tuple(m for m in modifiers if PARTS[m[0]].role == "taste"))
        config = replace(bed.config.pool, pairs=count, rollouts=None)
        rewards = taste.pairs(joined, config).rewards
    return PreferenceDataset(**joined, chosen=order, rejected=order + count, rewards=rewards)


def _judge(bed: "Testbed") -> Kind:
    """The annotators of the data of ``bed``, of trajectories from each start state."""
    modifiers = dict(parse_kind(bed.config.data).modifiers)
    modifiers.pop("pairs", None)
    if bed.dataset.lists is not None:  # those of a file, too
        modifiers["list"] = bed.dataset.lists.shape[1]
    if bed.config.rounds.loop == "spo":
        modifiers.setdefault("list", modifiers.pop("best_of", SPO_TRAJECTORIES))
    return Kind("base", (), tuple(sorted(modifiers.items())))


def _derived(seed: int | Sequence[int], what: str, k: int) -> int | list[int]:
    if isinstance(seed, int):
        return derive_seed(seed, what, k)
    return [derive_seed(s, what, k) for s in seed]
