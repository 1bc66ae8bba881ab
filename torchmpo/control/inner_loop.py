"""The inner loop: train a population of policies, each under its own objective, as one program.

One update, for every member at once: step log-probabilities of a minibatch of pairs → trajectory
means and sums → the objective's loss, averaged over the pairs → gradient → clip by the member's own
norm → Adam. This is ``vmap(grad(...))``, compiled once for a chunk of the population and reused.
Members never mix: the result does not depend on the chunks, and a NaN stays where it arose.

Shapes: P members, C of them in a chunk, B pairs in a minibatch, S time steps, and R = B, 2B or more
trajectories: the chosen ones, the rejected ones if the objective looks at them, and the others of
ranked lists if it looks at those.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.utils._pytree import tree_leaves, tree_map

from torchmpo.control.member_steps import FULL, StepKL, StepLogps, StepMeans, check_precision
from torchmpo.control.policy import GaussianPolicy, gaussian_log_collision
from torchmpo.control.read_pairs import by_step, pair_logps, trained_ranks
from torchmpo.losses import sft_loss
from torchmpo.objectives.balance import Balanced
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.inputs import DRAWN, PairLogps
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import generator

if TYPE_CHECKING:
    from torchmpo.control.preferences import PreferenceDataset

Params = dict[str, Tensor]
_Started = tuple[Params, Params]  # parameters after SFT, and step log-probabilities under them
Seed = int | Sequence[int]
OnEpoch = Callable[[int, list[int], Params], None]
Watch = Callable[[int, Params], None] | None  # (epochs done, parameters of a chunk)
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's usual constants
_SFT = Objective(sft_loss)


@dataclass(frozen=True)
class InnerConfig:
    """Settings of the inner loop.

    Args:
        epochs: passes over the pairs under the objective (≥ 0).
        sft_epochs: passes before them that maximise the chosen mean log-probability (≥ 0).
        minibatch_pairs: pairs per update. Every epoch visits the pairs in a new order; those that
            do not fill a last minibatch are left out of that epoch.
        learning_rate: Adam's step size (> 0), of members that have none of their own. Each phase
            starts with fresh Adam moments.
        max_grad_norm: limit on the gradient norm of each member (> 0). A norm that overflows makes
            the member NaN.
        steps_per_trajectory: time steps drawn per trajectory and update; ``None`` takes all.
        reference_sync: updates after which the reference of a loss that has one takes a step
            towards the policy (≥ 1), as in TR-DPO (arXiv 2404.09656); ``None``: it stays as it was.
        reference_mix: how large that step is, in (0, 1]: 1 makes it the policy, a small one with
            ``reference_sync=1`` is an exponential moving average.
        chunk_size: at most this many members are trained at once. Large chunks leave the cache,
            small ones spend their time between operations.
        pairs_per_epoch: so many of the pairs, drawn anew for every epoch, make an epoch (≥ 1); None
            for all.
        compile: compile the update. ``False`` runs the same code eagerly, about 2× slower; so does
            a machine without a working C++ compiler, after a warning in the log.
        precision: ``"32-true"``, or ``"bf16-mixed"``: the network's matrix products and activations
            in bfloat16, about 1.4× faster on a processor that has units for it.

    Raises:
        UserError: a setting out of its range.
    """

    epochs: int = 12
    sft_epochs: int = 0
    minibatch_pairs: int = 2
    learning_rate: float = 1e-3
    max_grad_norm: float = 1.3
    steps_per_trajectory: int | None = None
    reference_sync: int | None = None
    reference_mix: float = 1.0
    chunk_size: int = 16
    pairs_per_epoch: int | None = None
    compile: bool = True
    precision: str = FULL

    def __post_init__(self):
        check_precision(self.precision)
        for name in ("epochs", "sft_epochs"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative; got {getattr(self, name)}")
        whole = ("minibatch_pairs", "steps_per_trajectory", "chunk_size", "reference_sync")
        for name in (*whole, "pairs_per_epoch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"learning_rate must be positive and finite; got {self.learning_rate}")
        if not 0 < self.reference_mix <= 1:
            raise UserError(f"reference_mix must be in (0, 1]; got {self.reference_mix}")
        if not self.max_grad_norm > 0:
            raise UserError(f"max_grad_norm must be positive; got {self.max_grad_norm}")


def train_policies(
    policy: GaussianPolicy,
    init_params: Params,
    objective: Objective | MirrorObjective,
    objective_params: Any,
    dataset: "PreferenceDataset | Sequence[PreferenceDataset]",
    config: InnerConfig,
    seed: Seed,
    *,
    learning_rates: Tensor | None = None,
    on_epoch: OnEpoch | None = None,
    reference_params: Params | None = None,
) -> Params:
    """Train a population of policies on preference pairs.

    Args:
        policy: the architecture, its observation statistics and, if fixed, its σ.
        init_params: ``{name: [P, ...]}``, the parameters each member starts from.
        objective: an ``Objective`` or ``MirrorObjective``. If it needs a reference, that is the
            member itself after the SFT epochs.
        objective_params: what ``objective.apply`` takes, every tensor with a leading P.
        dataset: trajectories and the pairs among them; or P data sets of equally many pairs, one
            per member.
        config: see :class:`InnerConfig`.
        seed: names the minibatches and time steps, which all members share; or P seeds, one per
            member. Torch's global random state is neither read nor changed.
        learning_rates: ``[P]``, Adam's step size of each member, in both phases (> 0); by default
            that of ``config``.
        on_epoch: called for each chunk before the first epoch and after every one, with the number
            of epochs done (SFT included), the chunk's members, and their parameters ``{name: [C,
            ...]}``. Of an SFT phase that all members share, only its end is reported.
        reference_params: ``{name: [P, ...]}``, other references than the members themselves.

    Returns:
        ``{name: [P, ...]}`` with dtype and device of ``init_params``.

    Raises:
        UserError: fewer pairs than a minibatch, an empty trajectory, populations that differ, or
            an objective with an input that this loop cannot supply.
    """
    population = _population(policy, init_params, objective, objective_params, seed, dataset)
    like = next(iter(init_params.values()))
    rates = _rates(learning_rates, config, population, like)
    if isinstance(dataset, Sequence):
        seed = [seed] * population if isinstance(seed, int) else seed
    else:
        loop = _Loop(policy, [dataset], config, like)

    def start(
        params: Params, own: Tensor, stream: Seed, watch: Watch = None, other: Params | None = None
    ) -> _Started:
        if config.sft_epochs:
            params = loop.train("sft", params, own, _SFT, {}, {}, stream, watch)
        if not objective.needs_reference:
            return params, {}
        return params, loop.reference(objective, params if other is None else other)

    # Equal members on one stream stay equal through SFT: prepare one of them for all.
    equal = all(bool((x == x[:1]).all()) for x in (*init_params.values(), rates))
    alike = equal and isinstance(seed, int) and reference_params is None
    if alike:
        first = {name: value[:1] for name, value in init_params.items()}
        params, reference = start(first, rates[:1], seed)
    # Chunks of one size need one program: the last one is filled up with members from the front.
    chunks = math.ceil(population / config.chunk_size)
    size = math.ceil(population / chunks)
    trained = []
    for chunk in range(chunks):
        members = [i % population for i in range(chunk * size, (chunk + 1) * size)]
        stream = seed if isinstance(seed, int) else [seed[i] for i in members]
        watch = on_epoch and _of_members(on_epoch, members)
        if isinstance(dataset, Sequence):
            loop = _Loop(policy, [dataset[i] for i in members], config, like)
        other = reference_params and _rows(reference_params, members)
        if not alike:
            own = _rows(init_params, members), rates[members]
            params, reference = start(*own, stream, watch, other)
        first = {n: v.expand(size, *v.shape[1:]).contiguous() for n, v in params.items()}
        prior = {n: v.expand(size, *v.shape[1:]) for n, v in reference.items()}
        own = _rows(objective_params, members)
        phase = ("preference", first, rates[members], objective, own, prior)
        trained.append(loop.train(*phase, stream, watch, other))
        if watch:
            watch(config.sft_epochs + config.epochs, trained[-1])
    return {name: torch.cat([t[name] for t in trained])[:population] for name in init_params}


def _of_members(on_epoch: OnEpoch, members: list[int]) -> Watch:
    return lambda epochs, params: on_epoch(epochs, members, params)


class _Loop:
    """The training loop over the trajectories that the pairs name, whitened once.

    Args:
        datasets: one for all members, or one per member.
    """

    def __init__(
        self, policy: GaussianPolicy, datasets: Sequence, config: InnerConfig, like: Tensor
    ):
        self.policy, self.config, self.device = policy, config, like.device
        distinct = list({id(dataset): dataset for dataset in datasets}.values())
        self.count = len(distinct[0])  # pairs of one data set
        if self.count < config.minibatch_pairs:
            raise UserError(
                f"the dataset has {self.count} pairs, fewer than one minibatch of "
                f"{config.minibatch_pairs}: add pairs or lower minibatch_pairs"
            )
        used, pairs, first = [], [], [0]  # first: row of each data set
        for dataset in distinct:
            rows, own = torch.unique(dataset.ranked.T, return_inverse=True)
            used.append(rows)
            pairs.append(own + first[-1])
            first.append(first[-1] + len(rows))
        self.pairs = torch.cat(pairs, dim=1).to(self.device)  # [n, pairs], best first
        self.most = max(len(rows) for rows in used)
        # Where the pairs and the trajectories of each member's own data set begin.
        self.first_pair = self.first_row = None
        if len(datasets) > 1:
            places = {id(dataset): k for k, dataset in enumerate(distinct)}
            own = torch.tensor([places[id(dataset)] for dataset in datasets])
            self.first_pair = own.to(self.device) * self.count
            self.first_row = torch.tensor(first)[own].to(self.device)

        def joined(name: str) -> Tensor:
            parts = zip(distinct, used, strict=True)
            return torch.cat([getattr(dataset, name)[rows] for dataset, rows in parts])

        self.lengths = joined("lengths").to(self.device)
        self.first = joined("first").to(self.device)  # step that counts
        if int(self.lengths.min()) < 1:
            raise UserError("a trajectory of the dataset has length 0: leave it out of the pairs")
        self.buffers = {name: buffer.to(like) for name, buffer in policy.named_buffers()}
        whiten = copy.deepcopy(policy).to(like).whiten  # the policy itself may be elsewhere
        self.whitened = whiten(joined("observation").to(like))
        self.action = joined("action").to(like)
        # What losses get as rewards, and how likely the label is right: 1 where nobody voted.
        self.rewards = torch.cat(
            [
                (data.returns if data.rewards is None else data.rewards)[rows]
                for data, rows in zip(distinct, used, strict=True)
            ]
        ).to(like)
        known = [data.preference_probs for data in distinct]
        self.probs = torch.cat(
            [torch.ones(self.count) if own is None else own for own in known]
        ).to(like)

    def reference(self, objective: Any, params: Params) -> Params:
        """What the objective reads of a reference with these parameters."""
        found = {"reference": self.step_logps(params)}
        return found | self.means(params) if by_step(objective.inputs, "kl") else found

    def means(self, params: Params) -> Params:
        """Mean actions ``[C, rows, time, actions]`` and log σ ``[C, actions]`` of the members."""
        count = len(next(iter(params.values())))
        mean = StepMeans(self.policy, self.config.precision)
        log_std = params["log_std"] if "log_std" in params else self.buffers["log_std"]
        return {
            "reference_mean": self.step_logps(params, mean.at),
            "reference_log_std": log_std.expand(count, -1),
        }

    @torch.no_grad()
    def step_logps(self, params: Params, at: Callable[..., Tensor] | None = None) -> Tensor:
        """Of the trajectories of each member's data, ``[C, rows, time · tokens]``.

        Args:
            at: what to compute of each step instead.
        """
        at = at or StepLogps(self.policy, self.config.precision).at
        if self.first_row is None:
            forward = vmap(at, in_dims=(0, None, None, None))
            blocks = zip(self.whitened.split(4), self.action.split(4), strict=True)
        else:
            forward = vmap(at, in_dims=(0, None, 0, 0))
            rows = self.first_row[:, None] + torch.arange(self.most, device=self.device)
            rows = rows.clamp(max=len(self.lengths) - 1)  # a smaller data set is filled up
            blocks = ((self.whitened[part], self.action[part]) for part in rows.split(4, dim=1))
        return torch.cat([forward(params, self.buffers, *block) for block in blocks], dim=1)

    def train(
        self,
        phase: str,
        params: Params,
        rates: Tensor,
        objective: Any,
        objective_params: Any,
        reference: Params,
        seed: Seed,
        watch: Watch = None,
        anchor: Params | None = None,
    ) -> Params:
        """The epochs of one phase, for one chunk of the population.

        Args:
            anchor: parameters of the reference, if they are others than ``params``.
        """
        config, shared = self.config, isinstance(seed, int)
        epochs = config.sft_epochs if phase == "sft" else config.epochs
        pairs = self.pairs[trained_ranks(objective.inputs, len(self.pairs))]
        updates = min(config.pairs_per_epoch or self.count, self.count) // config.minibatch_pairs
        moments = ({name: torch.zeros_like(p) for name, p in params.items()} for _ in range(2))
        balance = _balance(objective)
        weighing = vmap(balance.start)(params) if balance else {}
        weighing = tree_map(Tensor.contiguous, weighing)
        state, update = (params, *moments, weighing), None
        before = 0 if phase == "sft" else config.sft_epochs
        anchor = params if anchor is None else anchor
        if not (reference and config.reference_sync):
            anchor = None  # the reference stays as it is
        for epoch in range(epochs):
            if watch:
                watch(before + epoch, state[0])
            order, offsets = self.draw(phase, epoch, updates, seed)
            if self.first_pair is not None:
                order = order + self.first_pair[:, None, None]
            for i in range(updates):
                n = epoch * updates + i
                clock = (n / (epochs * updates), 1 - BETA1 ** (n + 1), 1 - BETA2 ** (n + 1))
                rows = pairs[:, order[..., i, :]].movedim(0, -2).flatten(-2)
                batch = self.gather(rows, offsets[..., i, : rows.shape[-1], :], reference)
                if "preference_probs" in objective.inputs:
                    batch["preference_probs"] = self.probs[order[..., i, :]]
                clock = torch.tensor(clock, dtype=self.action.dtype, device=self.device)
                args = (*state, rates, objective_params, self.buffers, batch, clock)
                if update is None:
                    update = _update(self.policy, objective, config, shared, len(self.pairs), args)
                state = update(*args)
                if anchor is not None and (n + 1) % (config.reference_sync or 1) == 0:
                    mix = config.reference_mix
                    anchor = {
                        name: torch.lerp(p, state[0][name], mix) for name, p in anchor.items()
                    }
                    reference = self.reference(objective, anchor)
        return state[0]

    def draw(self, phase: str, epoch: int, updates: int, seed: Seed):
        """An epoch's pairs ``[updates, B]`` and its uniform numbers ``[updates, nB, K]``.

        Both have a leading C if the members have streams of their own. n is 2 for pairs.
        """
        if not isinstance(seed, int):
            own = [self.draw(phase, epoch, updates, s) for s in seed]
            return tuple(torch.stack(x) for x in zip(*own, strict=True))
        size, steps = self.config.minibatch_pairs, self.config.steps_per_trajectory or 0
        random = generator(seed, "inner", phase, epoch)
        order = torch.randperm(self.count, generator=random)[: updates * size]
        shape = (updates, 2 * size, steps)
        offsets = torch.rand(shape, generator=random, dtype=torch.float64)
        if (more := len(self.pairs) - 2) > 0:
            shape = (updates, more * size, steps)
            others = torch.rand(shape, generator=random, dtype=torch.float64)
            offsets = torch.cat([offsets, others], 1)
        return order.view(updates, size).to(self.device), offsets.to(self.device)

    def gather(self, rows: Tensor, offsets: Tensor, reference: Params) -> Params:
        """The minibatch of the trajectories ``rows [(C,) R]``, at the time steps it looks at."""
        lengths, first = self.lengths[rows] - self.first[rows], self.first[rows][..., None]
        last = self.lengths[rows][..., None] - 1
        if steps := self.config.steps_per_trajectory:
            # One uniform draw in each of K equal strata: every step is equally likely.
            strata = torch.arange(steps, device=self.device) + offsets
            time = torch.minimum(first + (strata * lengths[..., None] / steps).long(), last)
            mask = torch.ones_like(time, dtype=torch.bool)
        else:
            # Steps past the end repeat the last one, so that padding is never even read.
            steps = torch.arange(self.action.shape[1], device=self.device)
            time, mask = torch.minimum(steps, last), (steps >= first) & (steps <= last)
        at = rows[..., None], time
        batch = {"whitened": self.whitened[at], "action": self.action[at], "mask": mask}
        batch |= {"lengths": lengths, "rewards": self.rewards[rows]}
        if (tokens := self.policy.tokens) > 1:
            batch["mask"] = mask.repeat_interleave(tokens, dim=-1)
            batch["lengths"] = lengths * tokens
        if self.first_row is not None:
            rows = rows - self.first_row[:, None]
        for name, logps in reference.items():
            if name == "reference_log_std":
                batch[name] = logps
                continue
            at = torch.arange(len(logps))[:, None, None], rows[..., None], time
            if name == "reference_mean":
                batch[name] = logps[at]
            else:
                batch[name] = logps.unflatten(-1, (-1, tokens))[at].flatten(-2)
        return batch


def _balance(objective: Objective | MirrorObjective) -> Balanced | None:
    """What moves the weights of an objective's two terms while it trains, if anything does."""
    source = objective.source if isinstance(objective, Objective) else None
    return source if isinstance(source, Balanced) else None


_PROGRAMS: dict[tuple, tuple] = {}  # the compiled updates, with what their keys identify


def _update(
    policy, objective, config: InnerConfig, shared: bool, responses: int, args: tuple
) -> Callable:
    """The update for arguments like ``args``, compiled if asked for, and then kept for reuse."""
    module, balance = StepLogps(policy, config.precision), _balance(objective)

    def loss(params, objective_params, buffers, batch, progress):
        args = (params, buffers, batch["whitened"], batch["action"])
        more = {"progress": progress}
        if by_step(objective.inputs, "kl"):
            reference = batch["reference_mean"], batch["reference_log_std"]
            more["step_kl"] = StepKL(policy, config.precision, *reference).at(*args)
        if "chosen_log_collision" in objective.inputs:
            log_std = params["log_std"] if "log_std" in params else buffers["log_std"]
            more["log_collision"] = gaussian_log_collision(log_std)
        pair = pair_logps(objective.inputs, module.at(*args), batch, more, responses)
        if balance:
            return torch.stack([t.mean() for t in objective.terms(objective_params, pair)])
        return objective.apply(objective_params, pair).mean()

    def gradient(weighing, params, objective_params, *rest):
        """Of one member, and what the weights of its terms are from here on."""
        if not balance:
            return weighing, grad(loss)(params, objective_params, *rest)
        found = vjp(lambda params: loss(params, objective_params, *rest), params)
        terms, pull = found[0], found[1]
        each = torch.ones_like(terms).diag_embed()  # rows that pick one term
        hyper = objective.hyper | objective_params
        if not balance.of_gradients:
            return balance.step(weighing, terms, [], hyper), pull(weighing["weights"])[0]
        grads = [pull(row)[0] for row in each]
        weighing = balance.step(weighing, terms, grads, hyper)
        first, second = weighing["weights"]
        return weighing, {n: first * g + second * grads[1][n] for n, g in grads[0].items()}

    def update(params, average, square, weighing, rates, objective_params, buffers, batch, clock):
        progress, correction1, correction2 = clock.unbind()
        own = {n: None if shared and not n.startswith("reference") else 0 for n in batch}
        weighing, grads = vmap(gradient, in_dims=(0, 0, 0, None, own, None))(
            weighing, params, objective_params, buffers, batch, progress
        )
        squares = torch.stack([g.square().flatten(1).sum(1) for g in grads.values()])
        norm = squares.sum(0).sqrt()
        clip = (config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        # A norm that overflows would scale every gradient to 0, and the member would seem trained.
        clip = clip.where(norm.isfinite(), math.nan)
        grads = {name: g * clip.view(-1, *(1,) * (g.ndim - 1)) for name, g in grads.items()}
        m = {name: torch.lerp(average[name], g, 1 - BETA1) for name, g in grads.items()}
        v = {name: BETA2 * square[name] + (1 - BETA2) * g * g for name, g in grads.items()}
        scale = {name: (value / correction2).sqrt() + EPSILON for name, value in v.items()}
        # A number over a tensor is its reciprocal times the number in torch: so a rate that all
        # members share gives the bits that it gave as one number.
        rate = rates * correction1.reciprocal()  # [C]
        step = {n: rate.view(-1, *(1,) * (p.ndim - 1)) * m[n] / scale[n] for n, p in params.items()}
        return {name: p - step[name] for name, p in params.items()}, m, v, weighing

    if not config.compile:
        return update
    shapes = tuple((x.shape, x.dtype, x.device) for x in tree_leaves(args))
    settings = (config.max_grad_norm, config.precision, shared, responses, torch.get_num_threads())
    key = (id(policy), id(objective), settings, shapes)
    if key not in _PROGRAMS:
        from torchmpo.control.compiler import compiled  # takes a second to import

        program = compiled(update, args)
        if program is None:
            return update
        if len(_PROGRAMS) == 64:
            _PROGRAMS.pop(next(iter(_PROGRAMS)))
        _PROGRAMS[key] = (program, policy, objective)
    return _PROGRAMS[key][0]


def _rows(tree: Any, members: list[int]) -> Any:
    return tree_map(lambda value: value[members].contiguous(), tree)


def check_inputs(objective: Objective | MirrorObjective, policy: str = "gaussian") -> None:
    """Refuse an objective with an input that trajectories do not have.

    Args:
        policy: ``"gaussian"`` or ``"categorical"``, which has no divergences of whole steps.

    Raises:
        UserError: which input, and what could be supplied.
    """
    whole = sorted(n for n in objective.inputs if n.endswith(("_step_kl", "_log_collision")))
    if whole and policy != "gaussian":
        raise UserError(
            f"{objective.name} reads {whole[0]}, which a {policy} policy does not supply: set "
            "policy to gaussian"
        )
    absent = ("mismatched", "_step_weights", *DRAWN)
    supplied = [n for n in PairLogps._fields if not any(word in n for word in absent)]
    if unknown := objective.inputs - objective.optional - set(supplied):
        raise UserError(
            f"{objective.name}: the inner loop cannot supply {', '.join(sorted(unknown))}; "
            f"an objective may take {', '.join(supplied)}"
        )


def check_lists(objective: Objective | MirrorObjective, responses: int, data: str) -> None:
    """Refuse pairs where an objective reads a third response.

    Args:
        responses: trajectories of a list of the data.
        data: what it is, for the message.

    Raises:
        UserError: it does, and they have none.
    """
    third = sorted(name for name in objective.inputs - objective.optional if "gold_" in name)
    if third and responses < 3:
        raise UserError(
            f"{objective.name} reads {third[0]}, of a third trajectory, and {data} has pairs: take "
            "lists, as in graded:0-0.4+list:4"
        )


def _rates(
    learning_rates: Tensor | None, config: InnerConfig, population: int, like: Tensor
) -> Tensor:
    """Adam's step size of each member, ``[P]``."""
    if learning_rates is None:
        return torch.full((population,), config.learning_rate).to(like)
    if learning_rates.shape != (population,):
        raise UserError(
            f"learning_rates should be [P], [{population}]; got {tuple(learning_rates.shape)}"
        )
    if not (learning_rates.isfinite() & (learning_rates > 0)).all():
        raise UserError(
            f"learning rates must be positive and finite; got {learning_rates.tolist()}"
        )
    return learning_rates.to(like)


def _population(policy, init_params: Params, objective, objective_params, seed, data) -> int:
    """P, if everything agrees on it and the objective can be served."""
    check_inputs(objective, "categorical" if "bins" in policy.architecture() else "gaussian")
    want = {name: tuple(value.shape) for name, value in policy.trainable().items()}
    have = {name: tuple(value.shape[1:]) for name, value in init_params.items()}
    if want != have:
        raise UserError(f"init_params should be [P, ...] of {want}; got [P, ...] of {have}")
    sizes = {len(value) for value in tree_leaves((init_params, objective_params))}
    sizes |= set() if isinstance(seed, int) else {len(seed)}
    if isinstance(data, Sequence):
        sizes.add(len(data))
        if len(counts := {len(own) for own in data}) > 1:
            raise UserError(f"data sets of one population must have equally many pairs: {counts}")
        if len(counts := {own.ranked.shape[1] for own in data}) > 1:
            raise UserError(f"data sets of one population must have lists of one length: {counts}")
    first = data[0] if isinstance(data, Sequence) else data
    check_lists(objective, first.ranked.shape[1], "the data")
    if len(sizes) != 1:
        raise UserError(
            "init_params, objective_params and sequences of seeds and data sets must have one "
            f"population size; got {', '.join(map(str, sorted(sizes)))}"
        )
    return sizes.pop()
