"""From a batch of tokens to what a loss may ask for of it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchmpo.finetune.mismatched import mismatched
from torchmpo.objectives.inputs import PairLogps
from torchmpo.runs.errors import UserError

if TYPE_CHECKING:
    from torchmpo.finetune.module import PreferenceModule

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
    token_logps, mask = module.logps(batch), batch["labels"][:, 1:] != -100
    sums, lengths = token_logps.sum(-1), mask.sum(-1)
    ref = None
    if module.reference is not None:
        if module.reference == "cache" and "ref_logps" not in batch:
            raise UserError("reference: cache needs ref_logps in batches: use PreferenceData")
        ref = module.reference_logps(batch).to(sums.dtype)
    if module.objective.unpaired:
        values = {"logps": sums, "ref_logps": ref, "desirable": batch["desirable"]}
        if "mismatched_logps" in module.objective.inputs:
            values |= _mismatched(module, batch)
    else:
        values = _sides("logps", sums) | _sides("mean_logps", sums / lengths.clamp(min=1))
        values |= _sides("lengths", lengths)
        values |= _sides("step_logps", token_logps) | _sides("mask", mask)
        if ref is not None:
            values |= _sides("logps", ref, "ref_")
            values |= _sides("mean_logps", ref / lengths.clamp(min=1), "ref_")
        for name in ("chosen_rewards", "rejected_rewards", "preference_probs"):
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


def _mismatched(module: "PreferenceModule", batch: Batch) -> dict[str, Tensor]:
    """Of each prompt with another one's response; no gradient is kept, as the loss takes none."""
    other = mismatched(batch)
    with torch.no_grad():
        logps = module.logps(other).sum(-1)
    ref = module.reference_logps(other).to(logps.dtype)
    return {"mismatched_logps": logps, "ref_mismatched_logps": ref}


def _sides(name: str, both: Tensor, prefix: str = "") -> dict[str, Tensor]:
    chosen, rejected = both.chunk(2)
    return {f"{prefix}chosen_{name}": chosen, f"{prefix}rejected_{name}": rejected}
