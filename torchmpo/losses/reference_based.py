"""Pairwise losses that compare the policy with a frozen reference.

Shapes: every tensor is ``[batch]``, one value per pair, in and out; nothing is reduced. Below,
c and r are summed log-probabilities (nats), c' and r' the reference's, and
D = (c − c') − (r − r') is the margin of the implicit rewards. All are minimised. The reference's
log-probabilities are data: compute them without gradient.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from torchmpo.losses.arguments import (
    Scalar,
    check_label_smoothing,
    check_positive,
    reduce_steps,
    same_shape,
)


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    label_smoothing: Scalar = 0.0,
) -> Tensor:
    """Direct preference optimisation; with ``label_smoothing``, conservative DPO.

    loss = −(1 − ε)·LS(βD) − ε·LS(−βD)

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        label_smoothing: ε in [0, ½), the assumed share of flipped labels.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Source: Rafailov et al., arXiv 2305.18290, eq. 7; ε after Mitchell 2023 (conservative DPO).

    >>> import torch
    >>> x = torch.tensor([-20.0])
    >>> dpo_loss(x, x, x, x).tolist()                    # log 2
    [0.6931471824645996]
    """
    same_shape(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    check_positive(beta=beta)
    check_label_smoothing(label_smoothing)
    logits = beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def ipo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    beta: Scalar = 0.1,
    reduction: str = "mean",
) -> Tensor:
    """Identity preference optimisation: the margin is regressed on 1/(2β) and does not run away.

    loss = (D − 1/(2β))²

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        chosen_lengths, rejected_lengths: ``[batch]``, steps; needed by ``reduction="mean"``.
        beta: β > 0 (the paper's τ).
        reduction: ``"mean"``, D of per-step means (the choice of TRL); ``"sum"``, the paper's.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, β is out of range, or lengths are missing.

    Source: Azar et al., arXiv 2310.12036, eq. 17; arXiv 2411.06568, Table 1.

    >>> import torch
    >>> x, n = torch.tensor([-20.0]), torch.tensor([10])
    >>> ipo_loss(x, x, x, x, n, n, beta=0.5).tolist()
    [1.0]
    """
    same_shape(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    check_positive(beta=beta)
    chosen = reduce_steps(chosen_logps - ref_chosen_logps, chosen_lengths, reduction)
    rejected = reduce_steps(rejected_logps - ref_rejected_logps, rejected_lengths, reduction)
    return (chosen - rejected - 1 / (2 * beta)).square()
