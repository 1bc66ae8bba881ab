"""Losses in which the value of a pair depends on the rest of the batch.

Shapes: every tensor is ``[batch]``, in and out; nothing is reduced. So results change with the
batch size, and gradient accumulation or several devices do not add up to one large batch. Below,
x = βD with D = (c − c') − (r − r') from summed log-probabilities (nats); mean, Var and std are
taken over the batch (Var with n − 1, and 0 for a batch of one), S is the logistic function and LS
its log. All are minimised. The reference's log-probabilities are data: no gradient reaches them.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torchmpo.losses.arguments import (
    Scalar,
    check_finite,
    check_non_negative,
    check_positive,
    check_smoothing,
    log_ratio,
    log_ratios,
    same_shape,
    scaled_margin,
)
from torchmpo.losses.numerics import exp_then_line, smoothed_logistic


def aot_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    label_smoothing: Scalar = 0.0,
) -> Tensor:
    """Alignment by optimal transport: the margins as a distribution must exceed the reference's.

    loss_k = −(1 − ε)·LS(βd_k) − ε·LS(−βd_k),    d = sort(c − r) − sort(c' − r')

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        label_smoothing: ε in [0, ½).

    Returns:
        ``[batch]``: value k belongs to the k-th smallest margins, not to pair k.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1 and ε 0, DPO's; the paper prefers β 0.01.

    Limits:
        DPO when the policy orders the pairs as the reference does, so also for a single pair.

    Pitfalls:
        With the small batches that fit a GPU the sorted margins say little about a distribution.
        A single pair may be sacrificed as long as the distribution improves.

    Source: Melnyk et al., arXiv 2406.05882, the paired variant.

    >>> c, r = torch.tensor([-20.0, -30.0]), torch.tensor([-30.0, -20.0])
    >>> aot_loss(c, r, r, c).tolist()                    # the same margins in another order: log 2
    [0.6931471824645996, 0.6931471824645996]
    """
    same_shape(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    check_positive(beta=beta)
    check_smoothing(label_smoothing=label_smoothing)
    margin = torch.sort(chosen_logps - rejected_logps, dim=-1).values
    ref_margin = torch.sort(ref_chosen_logps - ref_rejected_logps, dim=-1).values
    return smoothed_logistic(beta * log_ratio(margin, ref_margin), label_smoothing)


def aot_unpaired_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    label_smoothing: Scalar = 0.0,
) -> Tensor:
    """Alignment by optimal transport without pairs: chosen log-ratios must exceed rejected ones.

    loss_k = −(1 − ε)·LS(βd_k) − ε·LS(−βd_k),    d = sort(c − c') − sort(r − r')

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        label_smoothing: ε in [0, ½).

    Returns:
        ``[batch]``: value k belongs to the k-th smallest log-ratios, not to pair k.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1 and ε 0, DPO's; the paper prefers β 0.01.

    Limits:
        DPO when chosen and rejected log-ratios are in the same order, so also for a single pair.

    Pitfalls:
        As for :func:`aot_loss`; and the prompt no longer matters, so easy prompts may pay for hard
        ones. (TRL calls this variant ``aot_pair``.)

    Source: Melnyk et al., arXiv 2406.05882, the unpaired variant.

    >>> c, r = torch.tensor([-20.0, -30.0]), torch.tensor([-30.0, -20.0])
    >>> aot_unpaired_loss(c, r, 0 * c, 0 * r).tolist()   # both {−20, −30}: log 2
    [0.6931471824645996, 0.6931471824645996]
    """
    check_positive(beta=beta)
    check_smoothing(label_smoothing=label_smoothing)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    d = torch.sort(chosen, dim=-1).values - torch.sort(rejected, dim=-1).values
    return smoothed_logistic(beta * d, label_smoothing)


def _variance(x: Tensor) -> Tensor:
    """Var with n − 1, ``[]``; 0 and not NaN for a batch of one."""
    return (x - x.mean()).square().sum() / max(x.numel() - 1, 1)


def _standard_deviation(x: Tensor) -> Tensor:
    """std with n − 1, ``[]``; its gradient is 0 and not NaN where all values are the same."""
    variance = _variance(x)
    varied = variance > 0
    root = torch.where(varied, variance, 1.0).sqrt()
    return torch.where(varied, root, variance.detach())  # 0, or NaN


def aql_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    tau: Scalar = 0.05,
) -> Tensor:
    """Adaptive quantile loss: logistic for pairs below a moving quantile, a hinge above it.

    loss = q·(−LS(x)) + (1 − q)·max(0, 1 − x)
    q = S(m − x/τ),    m = ½ + 0.01·(S(mean(x/τ)) − ½)

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        tau: τ > 0, the scale in x of the blend.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's; τ 0.05, the β at which it was discovered.

    Limits:
        −LS(x) for x ≪ 0; the hinge for x ≫ 0, so 0 from x = 1 on but for the blend.

    Pitfalls:
        The quantile moves by 0.01 at most, so the coupling is weak and the name promises more than
        the formula keeps. The paper's q is S(τ·m − x), 20 times less steep than that of the code
        its experiments ran, which is the one here.

    Source: Lu et al., arXiv 2406.08414, eq. 11, with q and m as in the published code.

    >>> x = torch.tensor([-20.0])
    >>> round(aql_loss(x, x, x, x).item(), 4)            # q = S(½): q·log 2 + 1 − q
    0.809
    """
    check_positive(tau=tau)
    x = scaled_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    quantile = 0.5 + 0.01 * (torch.sigmoid((x / tau).mean()) - 0.5)
    blend = torch.sigmoid(quantile - x / tau)
    return -blend * logsigmoid(x) + (1 - blend) * torch.relu(1 - x)


def aqfl_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    tau: Scalar = 0.05,
) -> Tensor:
    """Adaptive quantile feedback loss: the blend depends on the distance from a moving quantile.

    loss = q·(−LS(x)) + (1 − q)·max(0, 1 − x)
    q = S(0.1·|x/τ − m|),    m = m₁ + 0.05·(S(mean(x/τ)) − m₁),    m₁ = std(x/τ)·mean S(−x/τ)

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        tau: τ > 0, the scale in x of the blend.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's; τ 0.05, the β at which it was discovered.

    Limits:
        −LS(x) far from the quantile on either side, half of each loss at it.

    Pitfalls:
        std makes the blend depend on the batch size. The paper's m₁ has the variance where its
        code, which is followed here, has std.

    Source: Lu et al., arXiv 2406.08414, eq. 20 to 25, with m as in the published code.

    >>> x = torch.tensor([-20.0])
    >>> round(aqfl_loss(x, x, x, x).item(), 4)           # one pair: m = 0.025, q ≈ ½
    0.8464
    """
    check_positive(tau=tau)
    x = scaled_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    y = x / tau
    quantile = _standard_deviation(y) * torch.sigmoid(-y).mean()
    quantile = quantile + 0.05 * (torch.sigmoid(y.mean()) - quantile)
    blend = torch.sigmoid(0.1 * (y - quantile).abs())
    return -blend * logsigmoid(x) + (1 - blend) * torch.relu(1 - x)


def dbaql_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    tau: Scalar = 0.05,
) -> Tensor:
    """Dynamic blended adaptive quantile loss: logistic and exponential, by the margins' variance.

    loss = v·(−LS(x/0.9)) + (1 − v)·e^{−0.9x},    v = S(Var(x/τ))

    The exponential goes on as its tangent line beyond the exponent 30, so that nothing overflows.

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        tau: τ > 0, the scale in x at which margins count as varied.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's; τ 0.05, the β at which it was discovered.

    Limits:
        Half of each at Var = 0; the logistic loss of x/0.9 as the variance grows.

    Pitfalls:
        A batch of one has no variance and gets the exponential's half, whatever its margin.

    Source: Lu et al., arXiv 2406.08414, eq. 9.

    >>> x = torch.tensor([-20.0])
    >>> round(dbaql_loss(x, x, x, x).item(), 4)          # one pair: ½·log 2 + ½
    0.8466
    """
    check_positive(tau=tau)
    x = scaled_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    variance = _variance(x / tau)
    logistic = -torch.sigmoid(variance) * logsigmoid(x / 0.9)
    return logistic + torch.sigmoid(-variance) * exp_then_line(-0.9 * x)


def dr_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    temperature: Scalar = 1.0,
) -> Tensor:
    """Distributionally robust DPO: pairs with a large loss count less, as flipped ones should.

    loss = −b·log mean e^{LS(x)/b}, the same for every pair

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        temperature: b > 0 (the paper's β').

    Returns:
        ``[batch]``: the batch's loss in every place, so that its mean is the published one.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's; b 1, the authors'.

    Limits:
        b → ∞ is the mean of DPO's losses, b → 0 the smallest of them. A batch of one is DPO.

    Pitfalls:
        The weights are a softmax over the batch: what a pair counts depends on its companions.

    Source: Wu et al., arXiv 2407.07880, and the authors' code.

    >>> x = torch.tensor([-20.0])
    >>> dr_dpo_loss(x, x, x, x).tolist()                 # log 2
    [0.6931471824645996]
    """
    check_positive(temperature=temperature)
    x = scaled_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    if not x.numel():
        return x
    # −b·log mean exp(u/b), so that nothing is lost where b is large: exp(u/b) is near 1 there.
    u = logsigmoid(x)
    highest = u.detach().amax(0)
    below = torch.expm1((u - highest) / temperature).mean(0)
    return -highest - temperature * torch.log1p(below).expand_as(x)


def beta_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    alpha: Scalar = 0.6,
    baseline: Scalar = 0.0,
) -> Tensor:
    """β-DPO: a batch with large margins is regularised more.

    loss = −LS(β̂D),    β̂ = max(0.001, β·(1 + α·(mean(D) − D₀)))

    No gradient flows through β̂.

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        alpha: α ≥ 0, per nat.
        baseline: D₀, nats, finite.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's; α 0.6; D₀ 0, what it is at the start of training.

    Limits:
        α = 0 is DPO.

    Pitfalls:
        The paper's D₀ is a running mean of mean(D), a state which a pure function does not have:
        with a fixed one β̂ grows as training goes on. Nor does it draw the pairs with likely
        margins out of each batch, as the paper does.

    Source: Wu et al., arXiv 2407.08639, eq. 7, and the authors' code, without the two states.

    >>> x = torch.tensor([-20.0])
    >>> beta_dpo_loss(x, x, x, x).tolist()               # log 2
    [0.6931471824645996]
    """
    check_positive(beta=beta)
    check_non_negative(alpha=alpha)
    check_finite(baseline=baseline)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    d = chosen - rejected
    mean = d.detach().mean()
    if not (type(baseline) is float and baseline == 0.0):
        mean = mean - baseline
    dynamic = (beta * (1 + alpha * mean)).clamp(min=1e-3)
    return -logsigmoid(dynamic * d)


def alpha_dpo_loss(
    chosen_mean_logps: Tensor,
    rejected_mean_logps: Tensor,
    ref_chosen_mean_logps: Tensor,
    ref_rejected_mean_logps: Tensor,
    *,
    beta: Scalar = 2.5,
    alpha: Scalar = 0.2,
    target_margin: Scalar = 1.5,
) -> Tensor:
    """α-DPO: SimPO that asks for more where the policy already departs from its reference.

    loss = −LS(βΔ̄ − target_margin − αβ·M),    M = (D̄ − mean(D̄))/std(D̄)

    Δ̄ = c̄ − r̄ and D̄ = Δ̄ − Δ̄₀ are per step. No gradient flows through M.

    Args:
        chosen_mean_logps, rejected_mean_logps: ``[batch]``, nats per step.
        ref_chosen_mean_logps, ref_rejected_mean_logps: ``[batch]``, of the reference policy.
        beta: β > 0.
        alpha: α ≥ 0.
        target_margin: SimPO's γ itself, finite.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 2.5, α 0.2 and γ/β 0.6, the authors' first for Llama 3 8B.

    Limits:
        α = 0 is SimPO, and so is a batch of one, or of equal margins: there M is 0.

    Pitfalls:
        The authors take running means of mean and std, a state which a pure function does not
        have; small batches are therefore noisier here.

    Source: Wu et al., arXiv 2410.10148, and the authors' code.

    >>> x = torch.tensor([-2.0])
    >>> alpha_dpo_loss(x, x, x, x, target_margin=0.0).tolist()           # log 2
    [0.6931471824645996]
    """
    same_shape(
        chosen_mean_logps=chosen_mean_logps,
        rejected_mean_logps=rejected_mean_logps,
        ref_chosen_mean_logps=ref_chosen_mean_logps,
        ref_rejected_mean_logps=ref_rejected_mean_logps,
    )
    check_positive(beta=beta)
    check_non_negative(alpha=alpha)
    check_finite(target_margin=target_margin)
    margin = chosen_mean_logps - rejected_mean_logps
    d = (margin - (ref_chosen_mean_logps - ref_rejected_mean_logps)).detach()
    spread = _standard_deviation(d)
    varied = spread > 0
    m = torch.where(varied, (d - d.mean()) / torch.where(varied, spread, 1.0), 0.0 * spread)
    return -logsigmoid(beta * margin - target_margin - alpha * beta * m)


def kto_pair_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """KTO on pairs: each response is good or bad against the batch's responses of the other kind.

    loss = ½·[1 − S(β(h_c − z_r))] + ½·[1 − S(β(z_c − h_r))],    z = max(0, mean(h))

    h_c = c − c' and h_r = r − r' are the log-ratios, z_c and z_r the batch's means of them.

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or β is out of range.

    Bounds:
        bounded, between 0 and 1.

    Defaults:
        β 0.1, DPO's.

    Limits:
        Half of APO-zero where neither mean is above 0, as at the start of training.

    Pitfalls:
        The published z is an estimate of a divergence from mismatched pairs, without a gradient;
        here it is one of the batch itself, with one, as libraries had it. A confidently wrong
        response has no gradient.

    Source: Ethayarajh et al., arXiv 2402.01306, for pairs as in TRL up to 0.9 (``kto_pair``).

    >>> x = torch.tensor([-20.0])
    >>> kto_pair_loss(x, x, x, x).tolist()
    [0.5]
    """
    check_positive(beta=beta)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    good = torch.sigmoid(-beta * (chosen - torch.relu(rejected.mean())))
    return 0.5 * good + 0.5 * torch.sigmoid(-beta * (torch.relu(chosen.mean()) - rejected))
