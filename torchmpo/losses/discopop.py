"""Losses that a language model proposed (DiscoPOP) and that look at one pair at a time.

Shapes: every tensor is ``[batch]``, one value per pair, in and out; nothing is reduced. Below,
x = βD with D = (c − c') − (r − r') from summed log-probabilities (nats), S is the logistic function
and LS its log. All are minimised. The reference's log-probabilities are data: no gradient reaches
them. Those of the same paper that look at the whole batch are in :mod:`torchmpo.losses.coupled`.

Source: Lu et al., arXiv 2406.08414, appendix E.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torchmpo.losses.arguments import Scalar, check_positive, scaled_margin
from torchmpo.losses.numerics import exp_then_line


def discopop_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.05,
    tau: Scalar = 0.05,
) -> Tensor:
    """DiscoPOP, the log-ratio modulated loss: logistic before the margin is won, exponential after.

    loss = (1 − m)·(−LS(x)) + m·e^{−x},    m = S(x/τ)

    m·e^{−x} is computed as one exponential, so that it stays finite where m → 0 and e^{−x} → ∞
    (with τ > 1, where it does grow, it goes on as a line beyond the exponent 30).

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        tau: τ > 0, the width in x of the change from one to the other.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β and τ 0.05, as it was discovered.

    Limits:
        −LS(x) for x ≪ 0, e^{−x} for x ≫ 0.

    Pitfalls:
        Not convex and not monotone: just below x = 0 there is a local optimum in which noisy pairs
        come to rest. Implementations that multiply m by e^{−x} give NaN for x ≪ 0.

    Source: arXiv 2406.08414, eq. 5.

    >>> x = torch.tensor([-20.0])
    >>> round(discopop_loss(x, x, x, x).item(), 4)       # ½·log 2 + ½
    0.8466
    """
    check_positive(tau=tau)
    x = scaled_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    exponential = exp_then_line(logsigmoid(x / tau) - x)
    return -torch.sigmoid(-x / tau) * logsigmoid(x) + exponential


def padll_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """Performance-adaptive decay: DPO in which pairs on the wrong side count for half.

    loss = 0.9·(1 − ½·1[D < 0])·(−LS(x))

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
        β 0.1, DPO's; it was discovered at 0.05.

    Limits:
        0.9 times DPO for D ≥ 0, 0.45 times for D < 0.

    Pitfalls:
        It jumps at D = 0, where every training starts: the value halves as the margin turns wrong.

    Source: arXiv 2406.08414, appendix E.3, eq. 18.

    >>> x, y = torch.tensor([-20.0]), torch.tensor([-30.0])
    >>> [round(padll_loss(a, x, x, x).item(), 4) for a in (x, y)]    # 0.9·log 2; 0.45·log(1 + e)
    [0.6238, 0.591]
    """
    x = scaled_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    return -(0.9 - 0.45 * (x < 0).to(x.dtype)) * logsigmoid(x)


def cell_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """Combined exponential and logistic loss.

    loss = ½·(−LS(x)) + ½·e^{−x}

    e^{−x} goes on as its tangent line below x = −30, so that nothing overflows.

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or β is out of range.

    Bounds:
        bounded below by 0; grows exponentially in −x, up to x = −30.

    Defaults:
        β 0.1, DPO's; it was discovered at 0.05.

    Limits:
        e^{−x} for x ≫ 0, where log(1 + e^{−x}) is the same to first order.

    Pitfalls:
        One mislabelled pair with a large margin outweighs the batch: AdaBoost's weakness.

    Source: arXiv 2406.08414, appendix E.5, eq. 26.

    >>> x = torch.tensor([-20.0])
    >>> round(cell_loss(x, x, x, x).item(), 4)           # ½·log 2 + ½
    0.8466
    """
    x = scaled_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    return -0.5 * logsigmoid(x) + 0.5 * exp_then_line(-x)


def pfl_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """Policy-focused loss: half the logistic loss where the pair is ranked right, else a hinge.

    loss = ½·(−LS(x)) where c > r, else 2·max(0, 1 − x)

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
        β 0.1, DPO's; it was discovered without one.

    Limits:
        Half of DPO, or twice the hinge.

    Pitfalls:
        It jumps at c = r. Sums are compared, so between responses of unequal length the shorter
        one counts as ranked first.

    Source: arXiv 2406.08414, Table 1; eq. 29 has x/0.05 for x.

    >>> x, y = torch.tensor([-20.0]), torch.tensor([-30.0])
    >>> [round(pfl_loss(x, b, x, b).item(), 4) for b in (x, y)]      # 2; ½·log 2
    [2.0, 0.3466]
    """
    x = scaled_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    ranked = chosen_logps > rejected_logps
    return torch.where(ranked, -0.5 * logsigmoid(x), 2 * torch.relu(1 - x))
