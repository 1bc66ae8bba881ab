"""What an objective reads of trajectories: which of a list, and what of them."""

import torch
from torch import Tensor

from torchmpo.objectives.inputs import PairLogps, is_unpaired, ranks_read


def trained_ranks(inputs: frozenset[str], responses: int) -> list[int]:
    """Which trajectories of each list an objective is trained on, see ``ranks_read``.

    Those of one that looks at the chosen trajectories only are ``[0]``.
    """
    both = any(word in name for name in inputs for word in ("rejected", "list_", "gold_"))
    ranks = ranks_read(inputs, responses)
    return ranks if both or is_unpaired(inputs) else ranks[:1]


def by_step(inputs: frozenset[str], what: str) -> bool:
    """Whether an objective reads something of every step, as ``kl``, of either side."""
    return f"chosen_step_{what}" in inputs or f"rejected_step_{what}" in inputs


def pair_logps(
    inputs, step_logps: Tensor, batch: dict[str, Tensor], more: dict[str, Tensor], responses: int
) -> PairLogps:
    """What the objective asks for, from one member's step log-probabilities ``[R, S]``.

    A loss of single responses gets all R of them: those of the chosen trajectories are desirable.
    To one of lists, a pair is a list of two.

    Args:
        inputs: names of the fields.
        step_logps: nats, of the trajectories of :func:`trained_ranks`, one rank after another.
        batch: of the same trajectories ``mask [R, S]``, ``lengths`` and ``rewards`` ``[R]``, and
            perhaps ``reference [R, S]``; of the pairs ``preference_probs [B]``.
        more: ``progress``, and perhaps ``step_kl`` and ``log_collision``.
        responses: trajectories of a list of the data, 2 of pairs.
    """
    ranks = trained_ranks(inputs, responses)
    mask, lengths = batch["mask"], batch["lengths"]
    values = {"{}_step_logps": step_logps, "{}_mask": mask}
    values |= {"{}_lengths": lengths, "{}_rewards": batch["rewards"]}
    if "reference" in batch:
        values["ref_{}_step_logps"] = batch["reference"]
    if "step_kl" in more:
        values["{}_step_kl"] = more["step_kl"]
    if "log_collision" in more:
        values["{}_log_collision"] = more["log_collision"].expand(len(step_logps))
    desirable = torch.arange(len(step_logps), device=step_logps.device) < len(step_logps) // 2
    fields = {"progress": more["progress"], "preference_probs": batch.get("preference_probs")}
    fields["desirable"] = desirable
    for ref, logps in (("", step_logps), ("ref_", batch.get("reference"))):
        if logps is not None:
            mean = (logps * mask).sum(-1) / mask.sum(-1)
            sums = fields[f"{ref}logps"] = mean * lengths
            if f"{ref}list_logps" in inputs:
                by_rank = dict(zip(ranks, sums.chunk(len(ranks)), strict=True))
                fields[f"{ref}list_logps"] = torch.stack([by_rank[k] for k in sorted(ranks)], -1)
            values |= {ref + "{}_mean_logps": mean, ref + "{}_logps": sums}
    for name, value in values.items():
        sides = ("chosen", "rejected", "gold")
        for side, part in zip(sides, value.chunk(len(ranks)), strict=False):
            fields[name.format(side)] = part
    return PairLogps(**{name: fields.get(name) for name in inputs})
