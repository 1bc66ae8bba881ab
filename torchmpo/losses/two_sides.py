"""Losses that treat the two responses, or two kinds of pairs, differently.

Shapes: every tensor is ``[batch]``, one value per pair, in and out; nothing is reduced. Below,
c and r are summed log-probabilities (nats), c' and r' the reference's, h_c = c − c' and
h_r = r − r' the log-ratios, D = h_c − h_r, and LS the log of the logistic function. All are
minimised. The reference's log-probabilities are data: no gradient reaches them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torchmpo.losses.arguments import (
    Scalar,
    check_finite,
    check_fraction,
    check_non_negative,
    check_positive,
    log_ratios,
    reduce_steps,
    same_shape,
    times,
)
from torchmpo.losses.numerics import exp_then_line


def cpl_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    beta: Scalar = 0.1,
    rejected_coef: Scalar = 0.5,
    reduction: str = "sum",
) -> Tensor:
    """Contrastive preference learning: a logistic loss that weighs the rejected response less.

    loss = −LS(β(c − λr))

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        chosen_lengths, rejected_lengths: ``[batch]``, steps; needed by ``reduction="mean"``.
        beta: β > 0 (the paper's α).
        rejected_coef: λ in (0, 1], the paper's conservative bias.
        reduction: ``"sum"`` as published, or ``"mean"``: c̄ and r̄ for c and r.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, a hyper-parameter is out of range, or lengths are missing.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1 and λ ½, those of the authors' configurations.

    Limits:
        λ = 1 is the preference term of CPO, and on means SimPO without a margin. As λ → 0 only the
        chosen response counts.

    Pitfalls:
        With λ < 1 the loss of a pair that is equally likely on both sides depends on how likely it
        is: a density above 1 makes c − λr positive by itself. It has no discount here; the paper's
        segments have one.

    Source: Hejna et al., arXiv 2310.13639, eq. 5, with the bias λ of their section 3.2.

    >>> x = torch.tensor([-20.0])
    >>> cpl_loss(x, 2 * x).tolist()                      # log 2
    [0.6931471824645996]
    """
    lengths = {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}
    same_shape(tuple(lengths), chosen_logps=chosen_logps, rejected_logps=rejected_logps, **lengths)
    check_positive(beta=beta)
    check_fraction(rejected_coef=rejected_coef)
    chosen = reduce_steps(chosen_logps, chosen_lengths, reduction)
    rejected = reduce_steps(rejected_logps, rejected_lengths, reduction)
    return -logsigmoid(beta * (chosen - rejected_coef * rejected))


def dpo_shift_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    rejected_coef: Scalar = 0.75,
) -> Tensor:
    """DPO-Shift: DPO that weighs the rejected response's log-ratio less.

    loss = −LS(β(h_c − λ·h_r))

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        rejected_coef: λ in (0, 1], the paper's f(λ) where it is constant.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's; λ 0.75, among those the authors compare (0.55 to 1).

    Limits:
        λ = 1 is DPO.

    Pitfalls:
        Both log-ratios may still fall together, at a slower rate; the gain in the chosen
        likelihood is paid for with reward accuracy.

    Source: Yang et al., arXiv 2502.07599, the loss with a fixed shift.

    >>> x = torch.tensor([-20.0])
    >>> dpo_shift_loss(x, x, x, x).tolist()              # log 2
    [0.6931471824645996]
    """
    check_positive(beta=beta)
    check_fraction(rejected_coef=rejected_coef)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return -logsigmoid(beta * (chosen - rejected_coef * rejected))


def dpop_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.3,
    penalty_coef: Scalar = 50.0,
) -> Tensor:
    """DPO-Positive: DPO that fines a chosen response less likely than under the reference.

    loss = −LS(β(D − λ·max(0, −h_c)))

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        penalty_coef: λ ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.3 and λ 50, those of Smaug.

    Limits:
        DPO where h_c ≥ 0, and everywhere at λ = 0.

    Pitfalls:
        Below the reference the chosen response's slope is 1 + λ times DPO's: with λ 50 one long
        response outweighs the batch.

    Source: Pal et al., arXiv 2402.13228 (Smaug), the loss called DPOP.

    >>> x = torch.tensor([-20.0])
    >>> dpop_loss(x, x, x, x).tolist()                   # log 2
    [0.6931471824645996]
    """
    check_positive(beta=beta)
    check_non_negative(penalty_coef=penalty_coef)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return -logsigmoid(beta * (chosen - rejected - penalty_coef * torch.relu(-chosen)))


def minor_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """MinorDPO: the rejected response is pushed down to its reference, and no further.

    loss = −LS(β(h_c − max(0, h_r)))

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or β is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's.

    Limits:
        DPO where h_r ≥ 0; DPO-Shift's limit λ → 0 where h_r ≤ 0.

    Pitfalls:
        Training starts at h_r = 0, exactly where the rejected response stops counting: until the
        policy raises it, only the chosen one teaches.

    Source: Xie et al., arXiv 2408.09834.

    >>> x = torch.tensor([-20.0])
    >>> minor_dpo_loss(x, x, x, x).tolist()              # log 2
    [0.6931471824645996]
    """
    check_positive(beta=beta)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return -logsigmoid(beta * (chosen - torch.relu(rejected)))


def bpo_min_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    balance: Scalar = 0.3,
) -> Tensor:
    """Balanced preference optimisation: whichever side lags behind is trained, the other waits.

    loss = −LS(β·min(h_c, −α·h_r))

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        balance: α > 0, how much a fall of the rejected response counts beside a rise of the chosen.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's; α 0.3.

    Limits:
        With α = 1 never below DPO's loss of half the margin, since min(a, b) ≤ (a + b)/2.

    Pitfalls:
        One response of each pair has no gradient at all. Two other papers are called BPO, too
        (:func:`torchmpo.losses.bregman_po_loss` is of one of them).

    Source: arXiv 2506.03557.

    >>> x = torch.tensor([-20.0])
    >>> bpo_min_loss(x, x, x, x).tolist()                # log 2
    [0.6931471824645996]
    """
    check_positive(beta=beta, balance=balance)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return -logsigmoid(beta * torch.minimum(chosen, -balance * rejected))


def cal_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    calibration_coef: Scalar = 1.0,
) -> Tensor:
    """Calibrated DPO: a preference term, and a target for each log-ratio by itself.

    loss = −LS(D) + λ·[(h_c − 1/(2β))² + (h_r + 1/(2β))²]

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0; it is in the targets only.
        calibration_coef: λ ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0; grows like h².

    Defaults:
        β 0.1 and λ 1: the authors add the terms unweighted.

    Limits:
        SPPO's loss, and the preference term of DPO with β = 1 added to it; λ = 0 is that term.

    Pitfalls:
        Near the reference the squares are 2/(4β²), 50 at β 0.1, and the preference term log 2: it
        is a regression first.

    Source: Xiao et al., arXiv 2412.14516, and the authors' code.

    >>> x = torch.tensor([-20.0])
    >>> cal_dpo_loss(x, x, x, x, beta=0.5).tolist()      # log 2 + 1 + 1
    [2.6931471824645996]
    """
    check_positive(beta=beta)
    check_non_negative(calibration_coef=calibration_coef)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    target = 1 / (2 * beta)
    calibration = (chosen - target).square() + (rejected + target).square()
    return -logsigmoid(chosen - rejected) + times(calibration_coef, calibration)


def c2_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    constraint_coef: Scalar = 2e-4,
) -> Tensor:
    """C2-DPO: DPO that holds the sum of the two log-ratios, so that both cannot fall together.

    loss = −LS(βD) + λ·(h_c + h_r)²

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        constraint_coef: λ ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0; grows like (h_c + h_r)².

    Defaults:
        β 0.1, DPO's; λ 2e-4.

    Limits:
        λ = 0 is DPO; the constraint costs nothing where one side rises by what the other falls.

    Pitfalls:
        Squares of sums: λ belongs to the length of the responses. It also holds back a policy
        that raises both.

    Source: arXiv 2502.17507, with log for the constraint's function.

    >>> x = torch.tensor([-20.0])
    >>> c2_dpo_loss(x, x, x, x).tolist()                 # log 2
    [0.6931471824645996]
    """
    check_positive(beta=beta)
    check_non_negative(constraint_coef=constraint_coef)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    constraint = (chosen + rejected).square()
    return -logsigmoid(beta * (chosen - rejected)) + constraint_coef * constraint


def h_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    alpha: Scalar = 0.95,
) -> Tensor:
    """H-DPO: DPO with a hand on the entropy of the policy that it aims at.

    loss = −LS(β(αc − c') − β(αr − r'))

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        alpha: α > 0; below 1 the aim is sharper than DPO's, above 1 flatter.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's; α 0.95, since 1 is DPO.

    Limits:
        α = 1 is DPO. In general it is ``dpo_gamma`` with ref_coef = 1/α and αβ for β; the optimal
        policy is proportional to π_ref^{1/α}·e^{reward/(αβ)}.

    Pitfalls:
        At the start the policy is its reference, and the margin is −β(1 − α)·Δ₀ and not 0: what
        the reference prefers is held against it.

    Source: Omura et al., arXiv 2411.07595.

    >>> x = torch.tensor([-20.0])
    >>> h_dpo_loss(x, x, x, x).tolist()                  # log 2
    [0.6931471824645996]
    """
    check_positive(beta=beta, alpha=alpha)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return -logsigmoid(beta * (chosen - rejected + (alpha - 1) * (chosen_logps - rejected_logps)))


def chi_po_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    max_margin: Scalar = 10.0,
) -> Tensor:
    """χPO: DPO that stays near its reference in χ² and KL together, which overfits less.

    loss = −LS(clip(β(φ(h_c) − φ(h_r)), ±2R)),    φ(h) = eʰ + h

    The exponential goes on as its tangent line beyond the exponent 30, so that nothing overflows.

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        max_margin: 2R > 0, twice the largest reward.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded, between 0 and log(1 + e^{2R}).

    Defaults:
        β 0.1, DPO's; 2R 10, a choice of this library: the paper's R is the reward's own bound.

    Limits:
        Without the clip it is ``f_dpo`` with ``divergence="chi_squared"``; for likelihood ratios
        near 0, φ is DPO's.

    Pitfalls:
        A pair wrong by more than 2R has no gradient. A response far above its reference has an
        exponentially large one.

    Source: Huang et al., arXiv 2407.13399, Algorithm 1.

    >>> x = torch.tensor([-20.0])
    >>> chi_po_loss(x, x, x, x).tolist()                 # log 2
    [0.6931471824645996]
    """
    check_positive(beta=beta, max_margin=max_margin)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    margin = beta * ((exp_then_line(chosen) + chosen) - (exp_then_line(rejected) + rejected))
    end: Any = max_margin.to(margin) if isinstance(max_margin, Tensor) else max_margin
    return -logsigmoid(margin.clamp(-end, end))


def mix_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_mean_logps: Tensor,
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    *,
    beta: Scalar = 0.1,
    threshold: Scalar = 0.5,
    sft_coef: Scalar = 1.0,
) -> Tensor:
    """MixDPO: pairs that a judge finds hard to tell apart are imitated, the others compared.

    loss = −LS(βD) where R_c − R_r > threshold, else −sft_coef·c̄

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        chosen_mean_logps: ``[batch]``, nats per step: c̄.
        chosen_rewards, rejected_rewards: ``[batch]``, scores R_c and R_r.
        beta: β > 0.
        threshold: finite, in the unit of the scores.
        sft_coef: ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0 while log-probabilities are ≤ 0.

    Defaults:
        β 0.1, DPO's; sft_coef 1; threshold ½, a choice of this library: it belongs to the scores.

    Limits:
        DPO below every margin of the data, SFT above them all.

    Pitfalls:
        The paper also orders the pairs from large margins to small ones, which no loss can do.

    Source: Pang et al., arXiv 2602.00954, the routing of pairs.

    >>> x, score = torch.tensor([-20.0]), torch.tensor([1.0])
    >>> mix_dpo_loss(x, x, x, x, x / 10, score, score).tolist()          # a tie: −c̄
    [2.0]
    """
    same_shape(
        chosen_logps=chosen_logps,
        chosen_mean_logps=chosen_mean_logps,
        chosen_rewards=chosen_rewards,
        rejected_rewards=rejected_rewards,
    )
    check_positive(beta=beta)
    check_finite(threshold=threshold)
    check_non_negative(sft_coef=sft_coef)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    gap = (chosen_rewards - rejected_rewards).detach()
    loss = torch.where(
        gap > threshold,
        -logsigmoid(beta * (chosen - rejected)),
        -times(sft_coef, chosen_mean_logps),
    )
    return torch.where(gap.isnan(), torch.nan, loss)  # which no comparison tells
