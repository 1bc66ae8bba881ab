"""What an objective does to pairs: its gradients over their log-probabilities."""

import torch
from torch import Tensor

from torchmpo.objectives.bound import Objective
from torchmpo.objectives.inputs import PairLogps
from torchmpo.objectives.mirror import MirrorObjective


def gradients(
    objective: Objective | MirrorObjective,
    chosen: Tensor,
    rejected: Tensor,
    *,
    reference: float = -2.0,
    progress: float | Tensor = 0.5,
) -> tuple[Tensor, Tensor]:
    """∂loss/∂chosen and ∂loss/∂rejected of pairs with these mean log-probabilities.

    Args:
        objective: any that reads mean or summed log-probabilities and lengths; a response counts
            as one step long, so that sums and means are the same.
        chosen, rejected: ``[n]``, nats per step.
        reference: the reference's mean log-probability of both.
        progress: in [0, 1], for all or ``[n]``.

    Returns:
        two tensors ``[n]``, float64.

    Raises:
        ValueError: the objective needs more than that, looks at the rest of the batch, or depends
            on none of it.
    """
    if objective.coupled:
        raise ValueError(f"{objective.name} has no gradient of a pair: it depends on the batch")
    c, r = (x.detach().double().clone().requires_grad_() for x in (chosen, rejected))
    ref, one = torch.full_like(c, reference).detach(), torch.ones_like(c).detach()
    pair = PairLogps(
        chosen_logps=c,
        rejected_logps=r,
        chosen_mean_logps=c,
        rejected_mean_logps=r,
        chosen_lengths=one,
        rejected_lengths=one,
        ref_chosen_logps=ref,
        ref_rejected_logps=ref,
        ref_chosen_mean_logps=ref,
        ref_rejected_mean_logps=ref,
        list_logps=torch.stack([c, r], -1),
        ref_list_logps=torch.stack([ref, ref], -1),
        chosen_step_logps=c[:, None],
        rejected_step_logps=r[:, None],
        ref_chosen_step_logps=ref[:, None],
        ref_rejected_step_logps=ref[:, None],
        chosen_mask=one[:, None].bool(),
        rejected_mask=one[:, None].bool(),
        progress=torch.as_tensor(progress, dtype=torch.float64),
        logps=torch.cat([c, r]),
        ref_logps=torch.cat([ref, ref]),
        desirable=torch.cat([one, 0 * one]).bool(),
    )
    if isinstance(objective, MirrorObjective):
        loss = objective.apply(objective.vector.detach().double(), pair)
    else:
        loss = objective(pair)
    if not loss.requires_grad:
        raise ValueError(
            f"{objective.name} has no gradient: its value does not depend on log-probabilities"
        )
    by_chosen, by_rejected = torch.autograd.grad(
        loss.sum(), (c, r), allow_unused=True, materialize_grads=True
    )
    return by_chosen, by_rejected


def gradient_map(
    objective: Objective | MirrorObjective,
    chosen: Tensor,
    rejected: Tensor,
    *,
    reference: float = -2.0,
    progress: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """∂loss/∂chosen and ∂loss/∂rejected at every combination of mean log-probabilities.

    Args:
        chosen, rejected: ``[n]`` and ``[m]``, nats per step.
        objective, reference, progress: as for :func:`gradients`.

    Returns:
        two tensors ``[n, m]``, float64.

    Raises:
        ValueError: as :func:`gradients`.
    """
    c, r = torch.meshgrid(chosen.double(), rejected.double(), indexing="ij")
    flat = c.reshape(-1), r.reshape(-1)
    maps = gradients(objective, *flat, reference=reference, progress=progress)
    return maps[0].reshape(c.shape), maps[1].reshape(c.shape)
