"""Losses against a reference that are not a logistic loss of the margin.

Shapes: every tensor is ``[batch]``, one value per pair, in and out; nothing is reduced. Below,
c and r are summed log-probabilities (nats), c' and r' the reference's, h_c = c − c' and
h_r = r − r' the log-ratios, D = h_c − h_r, S the logistic function and LS its log. All are
minimised. The reference's log-probabilities are data: no gradient reaches them.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torchmpo.losses.arguments import (
    Scalar,
    check_choice,
    check_finite,
    check_positive,
    check_within,
    log_ratios,
    reduce_steps,
    same_shape,
)
from torchmpo.losses.numerics import exp_then_line, q_logarithm


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

    Bounds:
        bounded below by 0; grows like D².

    Defaults:
        β 0.1, on means as in TRL, where the paper's sums would ask for another β at every length.

    Limits:
        D = 1/(2β) is the minimum: past it the loss pulls back.

    Pitfalls:
        Libraries disagree on sums or means, and a β tuned for one is wrong for the other. Pairs
        far from the target dominate the batch, since the gradient grows with the distance.

    Source: Azar et al., arXiv 2310.12036, eq. 17; arXiv 2411.06568, Table 1.

    >>> x, n = torch.tensor([-20.0]), torch.tensor([10])
    >>> ipo_loss(x, x, x, x, n, n, beta=0.5).tolist()
    [1.0]
    """
    lengths = {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}
    same_shape(tuple(lengths), chosen_logps=chosen_logps, **lengths)
    check_positive(beta=beta)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    chosen = reduce_steps(chosen, chosen_lengths, reduction)
    rejected = reduce_steps(rejected, rejected_lengths, reduction)
    return (chosen - rejected - 1 / (2 * beta)).square()


def hinge_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """A hinge in place of DPO's logistic function (the loss of RSO).

    loss = max(0, 1 − βD)

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
        No gradient from D = 1/β on; slope −β before.

    Pitfalls:
        Mislabelled pairs keep their full gradient for ever.

    Source: Liu et al., arXiv 2309.06657, eq. 10 (SLiC's hinge, normalised by the reference).

    >>> x = torch.tensor([-20.0])
    >>> hinge_dpo_loss(x, x, x, x).tolist()
    [1.0]
    """
    check_positive(beta=beta)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return torch.relu(1 - beta * (chosen - rejected))


def exo_pair_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    label_smoothing: Scalar = 1e-3,
) -> Tensor:
    """Efficient exact optimisation on pairs: the reverse KL from the label to the policy's choice.

    loss = KL(Bernoulli(S(βD)) ‖ Bernoulli(1 − ε))

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        label_smoothing: ε in (0, ½).

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded, between 0 and −log ε.

    Defaults:
        β 0.1; ε 1e-3, the value TRL falls back to.

    Limits:
        0 at βD = log((1 − ε)/ε), the margin of conservative DPO, whose KL is the forward one.

    Pitfalls:
        The gradient vanishes where the policy is confidently wrong, so a pair that starts there
        stays there.

    Source: Ji et al., arXiv 2402.00856, eq. 16.

    >>> x = torch.tensor([-20.0])
    >>> round(exo_pair_loss(x, x, x, x, label_smoothing=0.25).item(), 4)
    0.1438
    """
    check_positive(beta=beta)
    check_within(0, 0.5, label_smoothing=label_smoothing)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    x = beta * (chosen - rejected)
    smoothing = torch.as_tensor(label_smoothing, dtype=x.dtype, device=x.device)
    right = torch.sigmoid(x) * (logsigmoid(x) - torch.log1p(-smoothing))
    return right + torch.sigmoid(-x) * (logsigmoid(-x) - torch.log(smoothing))


def nca_pair_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """Noise-contrastive alignment: responses are classified, not compared.

    loss = −LS(βh_c) − ½·LS(−βh_c) − ½·LS(−βh_r)

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
        In h_c alone the best is S(βh_c) = ⅔: the chosen response is raised, and not without end.

    Pitfalls:
        The rejected response is pushed down without end, as by DPO.

    Source: Chen et al., arXiv 2402.05369, Table 1.

    >>> x = torch.tensor([-20.0])
    >>> round(nca_pair_loss(x, x, x, x).item(), 4)       # 2·log 2
    1.3863
    """
    check_positive(beta=beta)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    noise = logsigmoid(-beta * chosen) + logsigmoid(-beta * rejected)
    return -logsigmoid(beta * chosen) - 0.5 * noise


def bco_pair_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """Binary classifier optimisation: the implicit reward classifies each response by itself.

    loss = −LS(βh_c) − LS(−βh_r)

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
        An upper bound of DPO's loss, since S(a)·S(−b) ≤ S(a − b).

    Pitfalls:
        The paper shifts both rewards by a running mean of theirs, a state which a pure function
        does not have; without it the loss asks h_c > 0 > h_r.

    Source: Jung et al., arXiv 2404.04656, without the reward shift.

    >>> x = torch.tensor([-20.0])
    >>> round(bco_pair_loss(x, x, x, x).item(), 4)       # 2·log 2
    1.3863
    """
    check_positive(beta=beta)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return -logsigmoid(beta * chosen) - logsigmoid(-beta * rejected)


def sppo_hard_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """Self-play preference optimisation with hard labels: each log-ratio has a target of its own.

    loss = (h_c − 1/(2β))² + (h_r + 1/(2β))²

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or β is out of range.

    Bounds:
        bounded below by 0; grows like h².

    Defaults:
        β 0.1, DPO's; the paper's η of 1,000 is a β of 0.001.

    Limits:
        The minimum is h_c = 1/(2β) = −h_r; at it D = 1/β, twice IPO's.

    Pitfalls:
        Squares of sums: one long response far from its target dominates the batch.

    Source: Wu et al., arXiv 2405.00675, eq. 4.12, with win rates 1 and 0.

    >>> x = torch.tensor([-20.0])
    >>> sppo_hard_loss(x, x, x, x, beta=0.5).tolist()
    [2.0]
    """
    check_positive(beta=beta)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    target = 1 / (2 * beta)
    return (chosen - target).square() + (rejected + target).square()


def apo_zero_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """Anchored preference optimisation for data better than the policy: chosen up, rejected down.

    loss = 1 − S(βh_c) + S(βh_r)

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or β is out of range.

    Bounds:
        bounded, between 0 and 2.

    Defaults:
        β 0.1, DPO's.

    Limits:
        1 at the reference, where the slopes are −β/4 and β/4.

    Pitfalls:
        Saturates on both sides: a confidently wrong response has no gradient.

    Source: D'Oosterlinck et al., arXiv 2408.06266, eq. 7.

    >>> x = torch.tensor([-20.0])
    >>> apo_zero_loss(x, x, x, x).tolist()
    [1.0]
    """
    check_positive(beta=beta)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """Anchored preference optimisation for data worse than the policy: both down, apart.

    loss = S(βh_c) + 1 − S(βD)

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or β is out of range.

    Bounds:
        bounded, between 0 and 2.

    Defaults:
        β 0.1, DPO's.

    Limits:
        1 at the reference, where the two pulls on the chosen response cancel.

    Pitfalls:
        It lowers the chosen response on purpose: only for a policy already better than the data.

    Source: D'Oosterlinck et al., arXiv 2408.06266, eq. 8.

    >>> x = torch.tensor([-20.0])
    >>> apo_down_loss(x, x, x, x).tolist()
    [1.0]
    """
    check_positive(beta=beta)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha", "chi_squared")


def f_derivative(divergence: str, alpha: Scalar) -> Callable[[Tensor], Tensor]:
    """f' of an f-divergence as a function of the log-ratio, as :func:`f_dpo_loss` lists it."""
    if divergence == "forward_kl":
        return lambda h: 1 - exp_then_line(-h)
    if divergence == "js":
        return lambda h: math.log(2) + logsigmoid(h)
    if divergence == "alpha":
        return lambda h: q_logarithm(h, -alpha)
    if divergence == "chi_squared":
        return lambda h: exp_then_line(h) + h
    return lambda h: h


def f_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    divergence: str = "reverse_kl",
    alpha: Scalar = 0.5,
) -> Tensor:
    """DPO that stays near its reference in another divergence than the reverse KL.

    loss = −LS(β·(f'(e^{h_c}) − f'(e^{h_r})))

        reverse_kl   f' = h
        forward_kl   f' = 1 − e^{−h}
        js           f' = log 2 + LS(h)
        alpha        f' = (1 − e^{−αh})/α
        chi_squared  f' = eʰ + h

    Exponentials go on as their tangent line beyond the exponent 30, so that nothing overflows.

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        divergence: ``"reverse_kl"``, ``"forward_kl"``, ``"js"``, ``"alpha"`` or ``"chi_squared"``.
        alpha: α, finite, of ``divergence="alpha"``; the others ignore it.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, an unknown divergence, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's divergence, α ½.

    Limits:
        reverse_kl is DPO, and so is alpha as α → 0; α = 1 is forward_kl. chi_squared, which is
        χ² mixed with the reverse KL, is :func:`chi_po_loss` without its clip.

    Pitfalls:
        chi_squared has an exponentially large gradient far above the reference, and forward_kl and
        α > 0 answer a response that fell far below its reference with a gradient
        that grows exponentially. js cannot raise a response much above it: f' ends at log 2. α is
        named as in the paper and in TRL up to 0.24; TRL 1.16 and other texts call 1 − α by that
        name.

    Source: Wang et al., arXiv 2309.16240; chi_squared after Huang et al., arXiv 2407.13399.

    >>> x = torch.tensor([-20.0])
    >>> f_dpo_loss(x, x, x, x, divergence="js").tolist()         # log 2
    [0.6931471824645996]
    """
    check_positive(beta=beta)
    check_finite(alpha=alpha)
    check_choice("divergence", divergence, DIVERGENCES)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    derivative = f_derivative(divergence, alpha)
    return -logsigmoid(beta * (derivative(chosen) - derivative(rejected)))
