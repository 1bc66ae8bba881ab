"""Pairwise losses that need no reference policy.

Shapes: every tensor is ``[batch]``, one value per pair, in and out; nothing is reduced. Below,
c and r are summed log-probabilities of the chosen and the rejected response (nats), c̄ and r̄ the
same per step, Δ = c − r, Δ̄ = c̄ − r̄, and LS the log of the logistic function. All are minimised.

Source of the table these are in: Alfano et al., arXiv 2411.06568, Table 1 and section 4.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torchmpo.losses.arguments import (
    Scalar,
    check_finite,
    check_non_negative,
    check_positive,
    reduce_steps,
    same_shape,
)
from torchmpo.potentials import logit


def sft_loss(chosen_mean_logps: Tensor) -> Tensor:
    """Supervised fine-tuning: imitate the chosen response, whatever the rejected one.

    loss = −c̄

    Args:
        chosen_mean_logps: ``[batch]``, nats per step.

    Returns:
        ``[batch]``.

    Source: arXiv 2411.06568, Table 1.

    >>> sft_loss(torch.tensor([-2.0])).tolist()
    [2.0]
    """
    return -chosen_mean_logps


def slic_hf_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    delta: Scalar = 1.0,
    sft_coef: Scalar = 0.1,
    reduction: str = "sum",
) -> Tensor:
    """Sequence likelihood calibration: a hinge on the margin, and an SFT term.

    loss = max(0, δ − Δ) − sft_coef·c

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        chosen_lengths, rejected_lengths: ``[batch]``, steps; needed by ``reduction="mean"``.
        delta: δ ≥ 0, the margin at which the hinge ends, in the unit of Δ.
        sft_coef: ≥ 0.
        reduction: ``"sum"`` as published, or ``"mean"``: c̄ and Δ̄ for c and Δ.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, a hyper-parameter is out of range, or lengths are missing.

    Source: Zhao et al., arXiv 2305.10425; arXiv 2411.06568, Table 1.

    >>> slic_hf_loss(torch.tensor([-2.0]), torch.tensor([-2.5])).tolist()
    [0.699999988079071]
    """
    same_shape(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    check_non_negative(delta=delta, sft_coef=sft_coef)
    chosen = reduce_steps(chosen_logps, chosen_lengths, reduction)
    rejected = reduce_steps(rejected_logps, rejected_lengths, reduction)
    return torch.relu(delta - (chosen - rejected)) - sft_coef * chosen


def lpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    sft_coef: Scalar = 0.1,
    reduction: str = "sum",
) -> Tensor:
    """Linear preference optimisation: SLiC-HF whose hinge never ends (δ → ∞, less the constant).

    loss = −Δ − sft_coef·c

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        chosen_lengths, rejected_lengths: ``[batch]``, steps; needed by ``reduction="mean"``.
        sft_coef: ≥ 0.
        reduction: ``"sum"``, or ``"mean"``: c̄ and Δ̄ for c and Δ.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, ``sft_coef`` is out of range, or lengths are missing.

    Source: reconstructed from the paper's description, arXiv 2411.06568, section 4.

    >>> lpo_loss(torch.tensor([-2.0]), torch.tensor([-2.5])).tolist()
    [-0.30000001192092896]
    """
    same_shape(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    check_non_negative(sft_coef=sft_coef)
    chosen = reduce_steps(chosen_logps, chosen_lengths, reduction)
    rejected = reduce_steps(rejected_logps, rejected_lengths, reduction)
    return -(chosen - rejected) - sft_coef * chosen


def cpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_mean_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    sft_coef: Scalar = 1.0,
) -> Tensor:
    """Contrastive preference optimisation: DPO without its reference, and an SFT term.

    loss = −LS(βΔ) − sft_coef·c̄

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats: sums inside the sigmoid.
        chosen_mean_logps: ``[batch]``, nats per step: the mean in the SFT term.
        beta: β > 0.
        sft_coef: ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Source: Xu et al., arXiv 2401.08417; arXiv 2411.06568, Table 1.

    >>> x = torch.tensor([-20.0])
    >>> cpo_loss(x, x, x / 10).tolist()                  # log 2 + 2
    [2.6931471824645996]
    """
    same_shape(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        chosen_mean_logps=chosen_mean_logps,
    )
    check_positive(beta=beta)
    check_non_negative(sft_coef=sft_coef)
    return -logsigmoid(beta * (chosen_logps - rejected_logps)) - sft_coef * chosen_mean_logps


def orpo_loss(
    chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, *, po_coef: Scalar = 0.1
) -> Tensor:
    """Odds-ratio preference optimisation: an SFT term and the log-odds ratio of the pair.

    loss = −c̄ − po_coef·LS(logodds(c̄) − logodds(r̄)),    logodds(a) = a − log(1 − eᵃ)

    The log-odds take means above −1e-6 as −1e-6, with no gradient above it
    (:func:`torchmpo.potentials.logit`); the SFT term always has its own.

    Args:
        chosen_mean_logps, rejected_mean_logps: ``[batch]``, nats per step.
        po_coef: ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or ``po_coef`` is out of range.

    Source: Hong et al., arXiv 2403.07691, eq. 6 and 7; arXiv 2411.06568, Table 1.

    >>> x = torch.tensor([-2.0])
    >>> orpo_loss(x, x).tolist()                         # 2 + 0.1·log 2
    [2.06931471824646]
    """
    same_shape(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    check_non_negative(po_coef=po_coef)
    log_odds_ratio = logit(chosen_mean_logps) - logit(rejected_mean_logps)
    return -chosen_mean_logps - po_coef * logsigmoid(log_odds_ratio)


def simpo_loss(
    chosen_mean_logps: Tensor,
    rejected_mean_logps: Tensor,
    *,
    beta: Scalar = 2.0,
    target_margin: Scalar = 0.5,
) -> Tensor:
    """Simple preference optimisation: a logistic loss on length-normalised log-probabilities.

    loss = −LS(β·Δ̄ − target_margin)

    Args:
        chosen_mean_logps, rejected_mean_logps: ``[batch]``, nats per step.
        beta: β > 0.
        target_margin: the paper's γ itself (some libraries take γ/β).

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Source: Meng et al., arXiv 2405.14734, eq. 6; arXiv 2411.06568, Table 1.

    >>> simpo_loss(torch.tensor([-1.0]), torch.tensor([-1.25])).tolist()      # log 2
    [0.6931471824645996]
    """
    same_shape(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    check_positive(beta=beta)
    check_finite(target_margin=target_margin)
    return -logsigmoid(beta * (chosen_mean_logps - rejected_mean_logps) - target_margin)
