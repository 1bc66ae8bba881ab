"""Which side of the pairs a loss pulls at: the chosen or the rejected one."""

from typing import Any

import torch
from torch import Tensor

from torchmpo.control.read_pairs import pair_logps, trained_ranks
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.inputs import DRAWN
from torchmpo.objectives.mirror import MirrorObjective


def gradient_share(
    objective: Objective | MirrorObjective,
    params: Any,
    step_logps: Tensor,
    reference: Tensor,
    about: dict[str, Tensor],
    progress: float,
) -> float | None:
    """The part of the gradient that is at the chosen side, in [0, 1].

    That is Σ|∂loss/∂log π| over the tokens of chosen trajectories, over that of all; 1 for SFT, 0.5
    for a loss of a margin. ``None`` where nothing pulls, or through a divergence of whole steps and
    not through log-probabilities, or at a golden response, too.

    Args:
        params: what ``objective.apply`` takes, of one member.
        step_logps, reference: ``[2, pairs, steps]``, nats, of chosen and rejected trajectories; a
            loss of lists gets lists of these two.
        about: ``lengths``, tokens, and ``rewards``, ``[2, pairs]``; ``preference_probs``,
            ``[pairs]``.
        progress: part of training that is done.
    """
    inputs = objective.inputs
    absent = ("_step_kl", "_log_collision", *DRAWN)
    if any(name.endswith(absent) or "gold_" in name for name in inputs):
        return None
    if len(trained_ranks(inputs, 2)) == 1:
        return 1.0
    flat = step_logps.detach().flatten(0, 1).requires_grad_()
    batch = {"mask": torch.ones_like(flat, dtype=torch.bool), "reference": reference.flatten(0, 1)}
    batch |= {name: value.flatten() for name, value in about.items()}
    pair = pair_logps(inputs, flat, batch, {"progress": flat.new_tensor(progress)}, 2)
    loss = objective.apply(params, pair).sum()
    (grad,) = torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True)
    chosen, rejected = grad.abs().view_as(step_logps).flatten(1).sum(1)
    total = float(chosen + rejected)
    return float(chosen) / total if 0 < total < torch.inf else None
