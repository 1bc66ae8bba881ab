"""Losses without a reference, of the shapes that searches for losses have found.

Shapes: every tensor is ``[batch]``, one value per pair, in and out; nothing is reduced. Below,
c̄ and r̄ are the log-probabilities of the chosen and the rejected response per step (nats),
Δ̄ = c̄ − r̄, and LS is the log of the logistic function. All are minimised.

Source: Alfano et al., arXiv 2411.06568, sections 4.2 and 5.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torchmpo.losses.arguments import (
    Scalar,
    check_finite,
    check_non_negative,
    check_not_nan,
    check_positive,
    same_shape,
)


def colpo_loss(
    chosen_mean_logps: Tensor,
    rejected_mean_logps: Tensor,
    *,
    po_coef: Scalar = 0.5,
    delta: Scalar = 10.0,
    threshold: Scalar = -1.2,
) -> Tensor:
    """Constrained linear preference optimisation: push past equality only while c̄ is high.

    loss = −c̄ + po_coef·max(0, δ·1[c̄ > threshold] − Δ̄)

    The margin δ is asked for only while the chosen likelihood is above the threshold, so it cannot
    be reached by lowering both; below, the term acts while Δ̄ < 0. The gate has no gradient.

    Args:
        chosen_mean_logps, rejected_mean_logps: ``[batch]``, nats per step.
        po_coef: ≥ 0.
        delta: δ ≥ 0, nats per step.
        threshold: nats per step; −∞ and ∞ are its limits.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0 while log-probabilities are ≤ 0.

    Defaults:
        po_coef 0.5, δ 10, threshold −1.2.

    Limits:
        threshold → −∞ is SLiC-HF on means (the weight on the other term), → ∞ is RRHF.

    Pitfalls:
        The loss jumps by po_coef·δ as c̄ crosses the threshold, which belongs to one model and one
        kind of text: −1.2 is a language model's number, not a robot's.

    Source: arXiv 2411.06568, section 5 [reconstructed from the paper's description].

    >>> colpo_loss(torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -3.0])).tolist()
    [5.0, 2.0]
    """
    same_shape(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    check_non_negative(po_coef=po_coef, delta=delta)
    check_not_nan(threshold=threshold)
    margin = chosen_mean_logps - rejected_mean_logps
    wanted = delta * (chosen_mean_logps > threshold).to(margin.dtype)
    return -chosen_mean_logps + po_coef * torch.relu(wanted - margin)


def closed_form_loss(
    chosen_mean_logps: Tensor,
    rejected_mean_logps: Tensor,
    *,
    sft_coef: Scalar = 1.0,
    sigmoid_coef: Scalar = 0.1,
    beta: Scalar = 1.0,
    target_margin: Scalar = 0.0,
    linear_coef: Scalar = 0.0,
    softplus_coef: Scalar = 0.0,
    sharpness: Scalar = 16.0,
    threshold: Scalar = 0.0,
) -> Tensor:
    """An SFT term and three preference terms, whose pull fades, stays or grows with the margin.

    loss = −sft_coef·c̄ − sigmoid_coef·LS(βΔ̄ − target_margin) − linear_coef·Δ̄
           − softplus_coef·log(1 + exp(s·(Δ̄ − threshold)))/s,   s = sharpness

    The sigmoid term's gradient fades once Δ̄ is large, as in CPO and SimPO; the linear one's is the
    same everywhere, as in LPO; the softplus one's is 0 far below the threshold and softplus_coef
    far above, which spares pairs that look mislabelled. Few numbers, and each with a meaning: the
    space in which a search takes minutes, and to which a learned objective is distilled.

    Args:
        chosen_mean_logps, rejected_mean_logps: ``[batch]``, nats per step.
        sft_coef, sigmoid_coef: ≥ 0.
        beta: β > 0, per nat.
        target_margin: the βΔ̄ at which the sigmoid term has half its largest pull.
        linear_coef, softplus_coef: ≥ 0.
        sharpness: s > 0, per nat.
        threshold: the Δ̄ at which the softplus term has half its largest pull.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0 at the defaults, while log-probabilities are ≤ 0; unbounded where
        linear_coef or softplus_coef exceed 0, since the rejected likelihood may fall for ever.

    Defaults:
        sft_coef 1, sigmoid_coef 0.1, β 1, sharpness 16, the rest 0.

    Limits:
        By coefficients: SFT, SimPO, CPO and LPO on means. With sigmoid_coef = 1/β and
        target_margin = βδ, β → ∞ is SLiC-HF on means. A small s makes the softplus term linear,
        with half its pull.

    Pitfalls:
        Without sft_coef nothing holds the likelihoods, as in SimPO. On clean data a large
        softplus_coef lets the rejected likelihood fall without end.

    Source: the terms that arXiv 2411.06568, section 4.2, sees in discovered objectives; the form
    is this project's.

    >>> x = torch.tensor([-2.0])
    >>> closed_form_loss(x, x, sigmoid_coef=0.0).tolist()
    [2.0]
    """
    same_shape(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    check_non_negative(
        sft_coef=sft_coef,
        sigmoid_coef=sigmoid_coef,
        linear_coef=linear_coef,
        softplus_coef=softplus_coef,
    )
    check_positive(beta=beta, sharpness=sharpness)
    check_finite(target_margin=target_margin, threshold=threshold)
    margin = chosen_mean_logps - rejected_mean_logps
    return (
        -sft_coef * chosen_mean_logps
        - sigmoid_coef * logsigmoid(beta * margin - target_margin)
        - linear_coef * margin
        # softplus(x) = −LS(−x), which torch computes without a switch to x beyond 20.
        + softplus_coef * logsigmoid(-sharpness * (margin - threshold)) / sharpness
    )
