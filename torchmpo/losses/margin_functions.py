"""Functions of DPO's margin other than the plain logistic one.

Shapes: every tensor is ``[batch]``, one value per pair, in and out; nothing is reduced. Below,
x = βD with D = (c − c') − (r − r') from summed log-probabilities (nats) of policy and reference,
S is the logistic function and LS its log. All are minimised. The reference's log-probabilities are
data: no gradient reaches them.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torchmpo.losses.arguments import (
    Scalar,
    check_choice,
    check_finite,
    check_non_negative,
    scaled_margin,
)
from torchmpo.losses.numerics import exp_then_line, q_logarithm

CONVEX: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": lambda x: -logsigmoid(x),
    "hinge": lambda x: torch.relu(1 - x),
    "squared": lambda x: (1 - x).square(),
    "exponential": lambda x: exp_then_line(-x),
    "truncated_quadratic": lambda x: torch.relu(1 - x).square(),
    "savage": lambda x: torch.sigmoid(-x).square(),
}


def gpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    curve: str = "exponential",
) -> Tensor:
    """Generalized preference optimisation: any loss of binary classification, of DPO's margin.

    loss = f(x)

        logistic              −LS(x)
        hinge                 max(0, 1 − x)
        squared               (1 − x)²
        exponential           e^{−x}
        truncated_quadratic   max(0, 1 − x)²
        savage                (1 + eˣ)^{−2}

    The exponential goes on as its tangent line beyond the exponent 30, so that nothing overflows.

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        curve: one of the six names above.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, an unknown curve, or β is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's; the exponential, whose name no other loss here has.

    Limits:
        ``logistic`` is DPO, ``hinge`` is ``hinge_dpo``, ``squared`` is IPO on sums with ½β for β,
        times β². The slope at x = 0 differs from function to function (−½, −1, −2, −1, −2, −¼),
        and with it what a β means.

    Pitfalls:
        The exponential answers a pair that is far wrong, a flipped label for one, with a gradient
        that outgrows the batch. Savage is not convex and forgets such a pair.

    Source: Tang et al., arXiv 2402.05749, eq. 5 and Table 1.

    >>> x = torch.tensor([-20.0])
    >>> gpo_loss(x, x, x, x).tolist()
    [1.0]
    """
    check_choice("curve", curve, tuple(CONVEX))
    x = scaled_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    return CONVEX[curve](x)


SYMMETRIC: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda x: torch.sigmoid(-x),
    "ramp": lambda x: (0.5 - 0.5 * x).clamp(0, 1),
    "unhinged": lambda x: 1 - x,
}


def sym_po_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    curve: str = "sigmoid",
) -> Tensor:
    """Symmetric preference optimisation: functions that keep the order of rewards under flips.

    loss = f(x),    f(x) + f(−x) constant

        sigmoid     S(−x)
        ramp        (1 − x)/2, between 0 and 1
        unhinged    1 − x

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        curve: ``"sigmoid"``, ``"ramp"`` or ``"unhinged"``.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, an unknown curve, or β is out of range.

    Bounds:
        bounded, between 0 and 1, at the default curve; ``unhinged`` is unbounded below.

    Defaults:
        β 0.1 and the sigmoid, those of the authors.

    Limits:
        With labels flipped at a rate ε, the mean loss is (1 − 2ε) times the loss on the true
        labels, plus a constant: the same gradient, only shorter.

    Pitfalls:
        A bounded loss stops teaching where the policy is far wrong; the unhinged one never stops,
        and is LPO against a reference. max(0, 1 − x) up to 1, which is also called ramp loss, is
        not symmetric.

    Source: Nishimori et al., arXiv 2505.24709, section 4, and the authors' code.

    >>> x = torch.tensor([-20.0])
    >>> sym_po_loss(x, x, x, x).tolist()
    [0.5]
    """
    check_choice("curve", curve, tuple(SYMMETRIC))
    x = scaled_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    return SYMMETRIC[curve](x)


def spo_silu_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """Self preference optimisation: a margin that is large enough is not pushed further.

    loss = −x·S(−x)

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.

    Returns:
        ``[batch]``; negative where x > 0.

    Raises:
        ValueError: shapes differ, or β is out of range.

    Bounds:
        bounded below by about −0.278, at x = 1.278.

    Defaults:
        β 0.1, DPO's.

    Limits:
        −x for x far below 0, as DPO; 0 for x far above.

    Pitfalls:
        Beyond x = 1.278 it pulls the margin back, ever more weakly.

    Source: Sun et al., Findings of EMNLP 2025, pages 5601 to 5614 (SPO), reconstructed from the
    description: SiLU for the log of the logistic function, with a minimum at a finite margin.

    >>> x = torch.tensor([-20.0])
    >>> spo_silu_loss(x, x, x, x).tolist()
    [-0.0]
    """
    x = scaled_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    return -x * torch.sigmoid(-x)


def bregman_po_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    power: Scalar = 0.5,
) -> Tensor:
    """Bregman preference optimisation: the policy's ratio of a pair is matched to the labels' one.

    loss = ¼·[(e^{−(λ+1)x} − 1)/(λ + 1) − (e^{λx} − 1)/λ]

    This is the scaled power divergence of Basu. Exponentials go on as their tangent line beyond
    the exponent 30, so that nothing overflows.

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        power: λ, finite.

    Returns:
        ``[batch]``, 0 where x = 0.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        unbounded below for λ ≥ 0, as the margin grows; for −1 < λ < 0 bounded below.

    Defaults:
        β 0.1, DPO's; λ ½, a choice of this library.

    Limits:
        Slope −½ at x = 0 for every λ, as DPO's. λ = 0 is the ratio matching called KLIEP,
        ¼·(e^{−x} − 1 − x), λ = 1 the one called LSIF, and λ = −½ is e^{−x/2} − 1. In expectation
        over labels that follow a Bradley–Terry model every λ has its minimum at the true margin.

    Pitfalls:
        Of one pair alone it has no minimum: pairs with both labels, or a policy that cannot tell
        them apart, have to hold it. A λ far above 0 makes pairs that are right already the
        loudest.

    Source: Kim et al., arXiv 2505.19601, Theorem 2 and the scaled Basu divergence, integrated.

    >>> x = torch.tensor([-20.0])
    >>> bregman_po_loss(x, x, x, x).tolist()
    [0.0]
    """
    check_finite(power=power)
    x = scaled_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    return (q_logarithm(-x, power + 1) - q_logarithm(x, power)) / 4


def focal_po_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    focus: Scalar = 0.05,
) -> Tensor:
    """FocalPO: DPO that leaves alone the pairs it has far wrong.

    loss = −S(x)^γ·LS(x)

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        focus: γ ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded, between 0 and 1/(eγ).

    Defaults:
        β 0.1, DPO's; γ 0.05, the paper's.

    Limits:
        γ = 0 is DPO.

    Pitfalls:
        Where LS(x) < −1/γ the slope has the other sign, and the pair is pushed further wrong, if
        gently; implementations that stop the gradient through the weight do not do that.

    Source: Liu et al., arXiv 2501.06645.

    >>> x = torch.tensor([-20.0])
    >>> focal_po_loss(x, x, x, x, focus=1.0).tolist()    # ½·log 2
    [0.3465735912322998]
    """
    check_non_negative(focus=focus)
    x = scaled_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    logistic = logsigmoid(x)
    return -torch.exp(focus * logistic) * logistic


def offset_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    target_margin: Scalar = 1.0,
) -> Tensor:
    """DPO with an offset: the margin must exceed the same number in every pair.

    loss = −LS(x − target_margin)

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        target_margin: finite, in the unit of βD.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's; target_margin 1, a choice of this library.

    Limits:
        target_margin = 0 is DPO. :func:`margin_dpo_loss` asks for a margin by the pair's rewards,
        as the paper does.

    Pitfalls:
        An offset multiplies e^{−βD} and no more: where margins are large it is a larger step size.

    Source: Amini et al., arXiv 2402.10571, with a constant for the offset.

    >>> x = torch.tensor([-20.0])
    >>> offset_dpo_loss(x, x, x, x, target_margin=0.0).tolist()          # log 2
    [0.6931471824645996]
    """
    check_finite(target_margin=target_margin)
    x = scaled_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    return -logsigmoid(x - target_margin)
