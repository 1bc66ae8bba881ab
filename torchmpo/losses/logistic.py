"""The logistic loss of a margin against a reference, and the losses that modify it.

Shapes: every tensor is ``[batch]``, one value per pair, in and out; nothing is reduced. Below,
c and r are summed log-probabilities (nats), c' and r' the reference's, Δ = c − r, Δ₀ = c' − r',
D = Δ − Δ₀ the margin of the implicit rewards, and LS the log of the logistic function S. All are
minimised. The reference's log-probabilities are data: no gradient reaches them.

    loss = w·[p·(−LS(kz)) + (1 − p)·(−LS(−kz))],    z = β(Δ − γ₀·Δ₀) − m

Each loss here is a setting of :func:`logistic_preference_loss`, some with a term added.
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
    same_shape,
)


def _set(name: str, value: Scalar, neutral: float, like: Tensor) -> bool:
    """Whether a setting is other than the number at which its term drops out of the formula."""
    if type(value) is float and value == neutral:  # mostly; the rest takes longer
        return False
    if isinstance(value, Tensor):
        if value.dim() and value.shape != like.shape:
            same_shape(**{"chosen_logps": like, name: value})
        return True
    if value == neutral:
        return False
    check_finite(**{name: value})
    return True


def logistic_preference_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    ref_coef: Scalar = 1.0,
    margin: Scalar = 0.0,
    scale: Scalar = 1.0,
    label: Scalar = 1.0,
    weight: Scalar = 1.0,
) -> Tensor:
    """The common form; with its defaults, DPO. Settings may differ from pair to pair.

    loss = w·[p·(−LS(kz)) + (1 − p)·(−LS(−kz))],    z = β(Δ − γ₀·Δ₀) − m

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        ref_coef: γ₀, a number or ``[batch]``: how much of the reference's margin is subtracted.
        margin: m, a number or ``[batch]``: the margin z must exceed.
        scale: k, a number or ``[batch]``: the sharpness of the sigmoid.
        label: p, a number or ``[batch]``: the weight of the label as given. A probability, except
            that losses which undo label noise go above 1.
        weight: w, a number or ``[batch]``.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a number is out of range.

    Source: the form that the losses of this file have in common.

    >>> x = torch.tensor([-20.0])
    >>> logistic_preference_loss(x, x, x, x, label=0.3, weight=2.0).tolist()      # 2·log 2
    [1.3862943649291992]
    """
    same_shape(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    check_positive(beta=beta)
    ref_chosen, ref_rejected = ref_chosen_logps.detach(), ref_rejected_logps.detach()
    if _set("ref_coef", ref_coef, 1.0, chosen_logps):
        ref_chosen, ref_rejected = ref_coef * ref_chosen, ref_coef * ref_rejected
    scaled = _set("scale", scale, 1.0, chosen_logps)
    factor = scale * beta if scaled else beta
    z = factor * ((chosen_logps - ref_chosen) - (rejected_logps - ref_rejected))
    if _set("margin", margin, 0.0, chosen_logps):
        z = z - (scale * margin if scaled else margin)
    loss = -logsigmoid(z)
    if _set("label", label, 1.0, z):
        loss = label * loss - (1 - label) * logsigmoid(-z)
    return weight * loss if _set("weight", weight, 1.0, z) else loss


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
        beta: β > 0, the strength of the regularisation towards the reference.
        label_smoothing: ε in [0, ½), the assumed share of flipped labels.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0; grows linearly in −βD.

    Defaults:
        β 0.1 and ε 0, the field's common choice.

    Limits:
        D = 0 gives log 2 with slope −β(½ − ε). It is the two-step mirror loss with φ⁻¹ = β·log, and
        with ε = 0 it falls for ever as D grows; with ε > 0 the best margin is βD = log((1 − ε)/ε).

    Pitfalls:
        Only the difference of the two log-ratios counts, so both likelihoods may fall together.
        On separable data nothing but early stopping limits the margin. A low loss does not say
        that the policy ranks the pair correctly when the reference ranks it wrongly.

    Source: Rafailov et al., arXiv 2305.18290, eq. 7; ε after Mitchell 2023 (conservative DPO).

    >>> x = torch.tensor([-20.0])
    >>> dpo_loss(x, x, x, x).tolist()                    # log 2
    [0.6931471824645996]
    """
    check_smoothing(label_smoothing=label_smoothing)
    return logistic_preference_loss(
        chosen_logps,
        rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        beta=beta,
        label=1 - label_smoothing,
    )


def robust_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    label_smoothing: Scalar = 0.0,
) -> Tensor:
    """Robust DPO: an unbiased estimate of DPO's loss when labels flip at a known rate.

    loss = [−(1 − ε)·LS(βD) + ε·LS(−βD)]/(1 − 2ε)

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        label_smoothing: ε in [0, ½), the rate at which labels are flipped.

    Returns:
        ``[batch]``; may be negative when ε > 0.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0 at the default ε = 0; unbounded below as D grows when ε > 0.

    Defaults:
        β 0.1; ε 0, since the rate is a fact about the data that only the user can know.

    Limits:
        ε = 0 is DPO. Averaged over labels that flip with probability ε it is DPO's loss on the
        true labels, exactly.

    Pitfalls:
        Unbiased but not low in variance: near ε = ½ the factor 1/(1 − 2ε) blows the noise up. With
        ε too high it rewards margins without end.

    Source: Ray Chowdhury et al., arXiv 2403.00409, section 3.1.

    >>> x = torch.tensor([-20.0])
    >>> robust_dpo_loss(x, x, x, x, label_smoothing=0.25).tolist()       # log 2
    [0.6931471824645996]
    """
    check_smoothing(label_smoothing=label_smoothing)
    return logistic_preference_loss(
        chosen_logps,
        rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        beta=beta,
        label=(1 - label_smoothing) / (1 - 2 * label_smoothing),
    )


def r_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: Scalar = 0.1,
    alpha: Scalar = 0.05,
) -> Tensor:
    """Length-regularised DPO: a longer chosen response needs less margin, so length is not learned.

    loss = −LS(βD + α·(n_c − n_r))

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        chosen_lengths, rejected_lengths: ``[batch]``, steps: n_c and n_r.
        beta: β > 0.
        alpha: α ≥ 0, per step.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1; α 0.05 is in use, no default is published.

    Limits:
        DPO at equal lengths or α = 0.

    Pitfalls:
        α is per step: for answers of hundreds of tokens α·(n_c − n_r) saturates the sigmoid and the
        pair drops out. In print the sign of the term is sometimes the opposite one, which rewards
        length. Where all responses have one length it is DPO.

    Source: Park et al., arXiv 2403.19159; arXiv 2411.06568, Table 1.

    >>> x, n = torch.tensor([-20.0]), torch.tensor([7])
    >>> r_dpo_loss(x, x, x, x, n, n).tolist()            # log 2
    [0.6931471824645996]
    """
    same_shape(
        chosen_logps=chosen_logps, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths
    )
    check_non_negative(alpha=alpha)
    shorter = (rejected_lengths - chosen_lengths).to(chosen_logps.dtype)
    return logistic_preference_loss(
        chosen_logps,
        rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        beta=beta,
        margin=alpha * shorter,
    )


def dpo_norm_loss(
    chosen_mean_logps: Tensor,
    rejected_mean_logps: Tensor,
    ref_chosen_mean_logps: Tensor,
    ref_rejected_mean_logps: Tensor,
    *,
    beta: Scalar = 5.0,
    label_smoothing: Scalar = 0.0,
) -> Tensor:
    """Length-normalised DPO: DPO on log-ratios per step.

    loss = −LS(β·(h_c/n_c − h_r/n_r)),    h = log π − log π_ref

    Args:
        chosen_mean_logps, rejected_mean_logps: ``[batch]``, nats per step.
        ref_chosen_mean_logps, ref_rejected_mean_logps: ``[batch]``, of the reference policy.
        beta: β > 0.
        label_smoothing: ε in [0, ½), as in DPO.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 5, that of Tülu 3; it multiplies means, hence the size.

    Limits:
        DPO when every response has one step.

    Pitfalls:
        A β taken over from DPO is hundreds of times too small. As with DPO, both likelihoods may
        fall together.

    Source: Lambert et al., arXiv 2411.15124 (Tülu 3), eq. 6.

    >>> x = torch.tensor([-2.0])
    >>> dpo_norm_loss(x, x, x, x).tolist()               # log 2
    [0.6931471824645996]
    """
    same_shape(
        chosen_mean_logps=chosen_mean_logps,
        rejected_mean_logps=rejected_mean_logps,
        ref_chosen_mean_logps=ref_chosen_mean_logps,
        ref_rejected_mean_logps=ref_rejected_mean_logps,
    )
    return dpo_loss(
        chosen_mean_logps,
        rejected_mean_logps,
        ref_chosen_mean_logps,
        ref_rejected_mean_logps,
        beta=beta,
        label_smoothing=label_smoothing,
    )


def rpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_mean_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    sft_coef: Scalar = 1.0,
) -> Tensor:
    """Regularised preference optimisation: DPO and an SFT term on the chosen response.

    loss = −LS(βD) − sft_coef·c̄

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        chosen_mean_logps: ``[batch]``, nats per step: c̄.
        beta: β > 0.
        sft_coef: ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0 while log-probabilities are ≤ 0.

    Defaults:
        β 0.1 and sft_coef 1, those of Pang et al.

    Limits:
        sft_coef = 0 is DPO; without the reference it is CPO.

    Pitfalls:
        The SFT term imitates the chosen response also where the label is wrong.

    Source: Pang et al., arXiv 2404.19733, eq. 1. Liu et al., arXiv 2405.16436, eq. 4.8, who named
    it RPO and have the theory, weigh the sum c by 0.005·β instead (:func:`vpo_offline_loss`).

    >>> x = torch.tensor([-20.0])
    >>> rpo_loss(x, x, x, x, x / 10).tolist()            # log 2 + 2
    [2.6931471824645996]
    """
    same_shape(chosen_logps=chosen_logps, chosen_mean_logps=chosen_mean_logps)
    check_non_negative(sft_coef=sft_coef)
    preference = logistic_preference_loss(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta
    )
    return preference - sft_coef * chosen_mean_logps


def dpo_gamma_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    ref_coef: Scalar = 1.0,
) -> Tensor:
    """DPO with a free weight on the reference's own margin.

    loss = −LS(β(Δ − γ₀·Δ₀))

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        ref_coef: γ₀ ≥ 0; 0 to 2 in use.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1; γ₀ 1, which is DPO: no other value is published as a default.

    Limits:
        γ₀ = 1 is DPO, γ₀ = 0 the preference term of CPO.

    Pitfalls:
        With γ₀ < 1 the policy is pulled to a fixed margin of its own, wherever the reference was:
        it ranks more pairs correctly and strays further.

    Source: Chen et al., arXiv 2405.19534, eq. 4.

    >>> x, y = torch.tensor([-20.0]), torch.tensor([-30.0])
    >>> dpo_gamma_loss(x, x, x, y, ref_coef=0.0).tolist()        # log 2
    [0.6931471824645996]
    """
    check_non_negative(ref_coef=ref_coef)
    return logistic_preference_loss(
        chosen_logps,
        rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        beta=beta,
        ref_coef=ref_coef,
    )


def dpo_positive_reference_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """DPO that follows its reference only where the reference ranks the pair correctly.

    loss = −LS(β(Δ − max(0, Δ₀)))

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
        DPO where Δ₀ ≥ 0; the preference term of CPO where Δ₀ < 0.

    Pitfalls:
        A wrong label looks like a pair that the reference ranks wrongly, and is pushed harder than
        by DPO.

    Source: Yuan et al., arXiv 2602.11902, where it is called HyPO. (DPO-Positive is another loss.)

    >>> x, y = torch.tensor([-20.0]), torch.tensor([-30.0])
    >>> dpo_positive_reference_loss(x, x, y, x).tolist()         # log 2: Δ₀ < 0 does not count
    [0.6931471824645996]
    """
    same_shape(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    check_positive(beta=beta)
    margin = torch.relu(ref_chosen_logps.detach() - ref_rejected_logps.detach())
    return -logsigmoid(beta * ((chosen_logps - margin) - rejected_logps))


def vpo_offline_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    alpha: Scalar = 0.1,
) -> Tensor:
    """Value-incentivised preference optimisation, offline: DPO and pessimism about the unseen.

    loss = −LS(βD) − α·β·(c − c')

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        beta: β > 0.
        alpha: α ≥ 0, the weight of the pessimism.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below for a given reference (by α·β·c') while log-probabilities are ≤ 0.

    Defaults:
        β 0.1; α 0.1, a choice of this library.

    Limits:
        α = 0 is DPO. Up to a constant it is RPO with the sum c in the SFT term and sft_coef = αβ.

    Pitfalls:
        The term is a sum over steps, so long responses weigh more.

    Source: Cen et al., arXiv 2405.19320 [reconstructed from the paper's description].

    >>> x, y = torch.tensor([-20.0]), torch.tensor([-30.0])
    >>> round(vpo_offline_loss(x, y, y, x).item(), 4)    # log(1 + e⁻²) − 0.1
    0.0269
    """
    check_non_negative(alpha=alpha)
    preference = logistic_preference_loss(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta
    )
    return preference - alpha * beta * log_ratio(chosen_logps, ref_chosen_logps)
