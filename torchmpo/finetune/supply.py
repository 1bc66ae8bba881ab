"""From a batch of tokens to what a loss may ask for of it."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchmpo.finetune.mismatched import mismatched
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.inputs import PairLogps, ranks_read
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.errors import UserError

if TYPE_CHECKING:
    from torchmpo.finetune.module import PreferenceModule
    from torchmpo.finetune.pairs import Pair

Batch = dict[str, Tensor]


def supply(module: "PreferenceModule", batch: Batch) -> PairLogps:
    """Everything known of a batch's pairs, or of its labelled responses, gradients included.

    Args:
        module: whose policy and reference give the log-probabilities.
        batch: see :mod:`torchmpo.finetune.module`.

    Raises:
        UserError: the loss is of pairs and the data are not, or the reverse; or a cache is asked
            for and the batch has none.
    """
    _check_kind(module, batch)
    batch, ranks = with_read_answers(module, batch)
    token_logps, mask = module.logps(batch), batch["labels"][:, 1:] != -100
    sums, lengths = token_logps.sum(-1), mask.sum(-1)
    ref = ref_steps = None
    if module.reference is not None:
        steps = needs_reference_steps(module.objective)
        field = "ref_step_logps" if steps else "ref_logps"
        if module.reference == "cache" and field not in batch:
            raise UserError(f"reference: cache needs {field} in batches: use PreferenceData")
        if steps:
            ref_steps = module.reference_step_logps(batch).to(sums.dtype)
        ref = module.reference_logps(batch) if ref_steps is None else ref_steps.sum(-1)
        ref = ref.to(sums.dtype)
    if module.objective.unpaired:
        values = {"logps": sums, "ref_logps": ref, "desirable": batch["desirable"]}
        if "mismatched_logps" in module.objective.inputs:
            values |= _mismatched(module, batch)
    else:
        size = len(batch["index"])
        means = sums / lengths.clamp(min=1)
        values = _sides("logps", sums, size) | _sides("mean_logps", means, size)
        values |= _sides("lengths", lengths, size)
        values |= _sides("step_logps", token_logps, size) | _sides("mask", mask, size)
        values["list_logps"] = _listed(sums, size, ranks, batch)
        if "gold_mean_logps" in module.objective.inputs and len(ranks) > 2:
            values["gold_mean_logps"] = means.split(size)[2]
        if ref is not None:
            values |= _sides("logps", ref, size, "ref_")
            values["ref_list_logps"] = _listed(ref, size, ranks, batch)
            values |= _sides("mean_logps", ref / lengths.clamp(min=1), size, "ref_")
        if ref_steps is not None:
            values |= _sides("step_logps", ref_steps, size, "ref_")
        values |= _of_distributions(module, batch, mask)
        if module.token_weights is not None:
            asked = batch["input_ids"], batch["attention_mask"]
            hidden = module.under_reference(lambda policy: policy.hidden_states(*asked))
            values |= _sides("step_weights", module.token_weights(hidden), size)
        for name in SCORES:
            if name in batch:
                values[name] = batch[name].to(sums.dtype)
    if "progress" in module.objective.inputs:
        values["progress"] = sums.new_tensor(module.progress())
    return PairLogps(**values)


def _check_kind(module: "PreferenceModule", batch: Batch) -> None:
    """Refuse pairs where the loss is of labelled responses, and the reverse."""
    objective = module.objective
    if objective.unpaired == ("desirable" in batch):
        return
    raise UserError(
        f"{objective.name} is of labelled responses, and the data are pairs: set data.unpair"
        if objective.unpaired
        else f"{objective.name} is of pairs, and the data are labelled responses: take another "
        "loss, such as kto"
    )


def needs_reference_steps(objective: Objective | MirrorObjective) -> bool:
    """Whether a loss reads the reference's log-probability of single tokens."""
    return any(name.startswith("ref_") and "_step_" in name for name in objective.inputs)


def check_cache(objective: Objective | MirrorObjective, reference: str | None) -> None:
    """Refuse a cache of the reference where a loss needs what no cache has.

    Raises:
        UserError: which.
    """
    if reference != "cache":
        return
    if "mismatched_logps" in objective.inputs:
        what = "of prompts with the responses of others"
    elif any("_step_kl" in name for name in objective.inputs):
        what = "as a whole distribution at every token"
    else:
        return
    raise UserError(
        f"{objective.name} needs the reference {what}, which no cache has: take reference "
        "adapter_off or copy"
    )


def reads_others(objective: Objective | MirrorObjective) -> bool:
    """Whether a loss measures each labelled response against others of its batch."""
    coupled = objective.unpaired and objective.coupled
    return coupled or "mismatched_logps" in objective.inputs


def check_batch(objective: Objective | MirrorObjective, batch_size: int) -> None:
    """Refuse batches of one response for a loss that measures it against others.

    Raises:
        UserError: of that loss, with what to do.
    """
    if batch_size < 2 and reads_others(objective):
        raise UserError(
            f"{objective.name} measures a response against others of its batch: set "
            "data.batch_size to 2 or more"
        )


# What a loss may read of a pair's row, and where a pair has it.
SCORES = {
    "chosen_rewards": "chosen_reward",
    "rejected_rewards": "rejected_reward",
    "preference_probs": "preference_prob",
}


def check_scores(
    objective: Objective | MirrorObjective, pairs: Sequence["Pair"], name: str
) -> None:
    """Refuse pairs without the scores that a loss reads.

    Args:
        objective: the loss.
        pairs: all that training or validation takes.
        name: of the data, for messages.

    Raises:
        UserError: names the loss, what is missing, and the first pair without it.
    """
    if objective.unpaired or any(pair.label is not None for pair in pairs):
        return
    needed = [field for field in SCORES if field in objective.inputs - objective.optional]
    without = {
        field: [row for row, pair in enumerate(pairs) if getattr(pair, SCORES[field]) is None]
        for field in needed
    }
    if absent := [field for field in needed if len(without[field]) == len(pairs)]:
        raise UserError(
            f"{name}: {objective.name} reads scores: the data have no {', '.join(absent)}"
        )
    for field, rows in without.items():
        if rows:
            prompt = pairs[rows[0]].prompt
            text = prompt if isinstance(prompt, str) else str(prompt[-1].content)
            raise UserError(
                f"{name}: {objective.name} reads scores, and {len(rows)} of {len(pairs)} pairs "
                f"have no {SCORES[field]}, the first one pair {rows[0]} ({text[:40]!r}): give "
                "them one, or leave them out"
            )


def _of_distributions(module: "PreferenceModule", batch: Batch, mask: Tensor) -> dict[str, Tensor]:
    """What takes the policy's probability of every token of the vocabulary, where it is asked."""
    inputs = module.objective.inputs
    kl = any("_step_kl" in name for name in inputs)
    collision = any("_log_collision" in name for name in inputs)
    args = batch["input_ids"], batch["attention_mask"], batch["labels"]
    values: dict[str, Tensor] = {}
    if kl:
        ref = module.under_reference(lambda policy: policy.distributions(*args))
        own = module.policy.distributions(*args)
        found = (ref.exp() * (ref - own)).sum(-1)
        steps = found.new_zeros(mask.shape).masked_scatter(mask, found)
        values |= _sides("step_kl", steps, len(batch["index"]))
    if collision:
        with torch.no_grad():
            found = torch.logsumexp(2 * module.policy.distributions(*args), -1)
        total = found.new_zeros(mask.shape).masked_scatter(mask, found).sum(-1)
        mean = total / mask.sum(-1).clamp(min=1)
        values |= _sides("log_collision", mean, len(batch["index"]))
    return values


def _mismatched(module: "PreferenceModule", batch: Batch) -> dict[str, Tensor]:
    """Of each prompt with another one's response; no gradient is kept, as the loss takes none."""
    if len(batch["index"]) < 2:
        warnings.warn(
            f"{module.objective.name} measures a batch of one response against itself: take "
            "batches of two or more, and drop a last one that is smaller",
            stacklevel=2,
        )
    other = mismatched(batch, _longest(module))
    with torch.no_grad():
        logps = module.logps(other).sum(-1)
    ref = module.reference_logps(other).to(logps.dtype)
    return {"mismatched_logps": logps, "ref_mismatched_logps": ref}


def _longest(module: "PreferenceModule") -> int | None:
    """Tokens that a sequence may have: as the data are cut, and as the model has positions."""
    data = getattr(module._trainer, "datamodule", None)
    limits = (getattr(data, "max_length", None), module.policy.positions)
    return min((limit for limit in limits if limit is not None), default=None)


def with_read_answers(module: "PreferenceModule", batch: Batch) -> tuple[Batch, list[int]]:
    """A batch of pairs or lists with the answers that the loss reads, and their ranks.

    The chosen answers come first, then the rejected ones, then the others.
    """
    rows, size = len(batch["input_ids"]), len(batch["index"])
    if rows <= 2 * size:
        return batch, [0, 1]
    ranks = ranks_read(module.objective.inputs, rows // size, gold="gold" in batch)
    places = torch.arange(rows, device=batch["input_ids"].device).view(-1, size)[ranks].flatten()
    names = ("input_ids", "attention_mask", "labels", "ref_logps", "ref_step_logps")
    return batch | {name: batch[name][places] for name in names if name in batch}, ranks


def _listed(sums: Tensor, size: int, ranks: list[int], batch: Batch) -> Tensor:
    """``[B, n]``, best first; a golden answer beside a pair is not in its list."""
    by_rank = dict(zip(ranks, sums.split(size), strict=True))
    first = 1 if "gold" in batch else 0
    return torch.stack([by_rank[rank] for rank in sorted(ranks) if rank >= first], -1)


def _sides(name: str, values: Tensor, size: int, prefix: str = "") -> dict[str, Tensor]:
    """The chosen answers, which come first, and the rejected ones, which come next."""
    chosen, rejected, *_ = values.split(size)
    return {f"{prefix}chosen_{name}": chosen, f"{prefix}rejected_{name}": rejected}
