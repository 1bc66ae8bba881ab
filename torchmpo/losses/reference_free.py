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
    check_smoothing,
    reduce_steps,
    same_shape,
)
from torchmpo.losses.numerics import q_logarithm, smoothed_logistic
from torchmpo.losses.potentials import logit


def sft_loss(chosen_mean_logps: Tensor) -> Tensor:
    """Supervised fine-tuning: imitate the chosen response, whatever the rejected one.

    loss = −c̄

    Args:
        chosen_mean_logps: ``[batch]``, nats per step.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: not ``[batch]``.

    Bounds:
        bounded below by 0 while log-probabilities are ≤ 0.

    Defaults:
        none to choose.

    Limits:
        What RRHF, CoLPO and ORPO become as their preference term vanishes.

    Pitfalls:
        The rejected response teaches nothing, and a flipped label teaches the worse response.

    Source: arXiv 2411.06568, Table 1.

    >>> sft_loss(torch.tensor([-2.0])).tolist()
    [2.0]
    """
    same_shape(chosen_mean_logps=chosen_mean_logps)
    return -chosen_mean_logps


def rrhf_loss(
    chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, *, sft_coef: Scalar = 1.0
) -> Tensor:
    """Rank responses to align with human feedback: a hinge at equality, and an SFT term.

    loss = max(0, −Δ̄) − sft_coef·c̄

    Args:
        chosen_mean_logps, rejected_mean_logps: ``[batch]``, nats per step.
        sft_coef: ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or ``sft_coef`` is out of range.

    Bounds:
        bounded below by 0 while log-probabilities are ≤ 0.

    Defaults:
        sft_coef 1: the two terms are added unweighted, as published.

    Limits:
        SLiC-HF on means with δ = 0; CoLPO below its threshold.

    Pitfalls:
        The preference term stops as soon as the pair is ordered, by however little.

    Source: Yuan et al., arXiv 2304.05302, eq. 5 (whose SFT term is a sum over steps), for two
    responses; arXiv 2411.06568, Table 1.

    >>> rrhf_loss(torch.tensor([-2.0]), torch.tensor([-1.5])).tolist()
    [2.5]
    """
    same_shape(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    check_non_negative(sft_coef=sft_coef)
    return torch.relu(rejected_mean_logps - chosen_mean_logps) - sft_coef * chosen_mean_logps


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

    Bounds:
        bounded below by 0 while log-probabilities are ≤ 0.

    Defaults:
        δ 1, the published margin, on sums; sft_coef 0.1, a choice of this library.

    Limits:
        δ → ∞ is LPO, less the constant; on means with δ = 0 it is RRHF.

    Pitfalls:
        On sums a long response outweighs a short one, and δ means something else at every length.
        A mislabelled pair keeps its full gradient.

    Source: Zhao et al., arXiv 2305.10425; arXiv 2411.06568, Table 1.

    >>> slic_hf_loss(torch.tensor([-2.0]), torch.tensor([-2.5])).tolist()
    [0.699999988079071]
    """
    lengths = {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}
    same_shape(tuple(lengths), chosen_logps=chosen_logps, rejected_logps=rejected_logps, **lengths)
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

    Bounds:
        unbounded below: the rejected likelihood may fall for ever.

    Defaults:
        sft_coef 0.1, SLiC-HF's.

    Limits:
        lim δ → ∞ of SLiC-HF, less the constant δ.

    Pitfalls:
        Nothing ends it: with an unbounded policy the rejected likelihood runs away. It needs a
        bounded policy or a large sft_coef.

    Source: reconstructed from the paper's description, arXiv 2411.06568, section 4.

    >>> lpo_loss(torch.tensor([-2.0]), torch.tensor([-2.5])).tolist()
    [-0.30000001192092896]
    """
    lengths = {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}
    same_shape(tuple(lengths), chosen_logps=chosen_logps, rejected_logps=rejected_logps, **lengths)
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
    label_smoothing: Scalar = 0.0,
) -> Tensor:
    """Contrastive preference optimisation: DPO without its reference, and an SFT term.

    loss = −(1 − ε)·LS(βΔ) − ε·LS(−βΔ) − sft_coef·c̄

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats: sums inside the sigmoid.
        chosen_mean_logps: ``[batch]``, nats per step: the mean in the SFT term.
        beta: β > 0.
        sft_coef: ≥ 0.
        label_smoothing: ε in [0, ½), the assumed share of flipped labels.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0 while log-probabilities are ≤ 0.

    Defaults:
        β 0.1 and an SFT term of weight 1, as published; ε 0.

    Limits:
        On means throughout it is the one-step mirror loss with φ⁻¹ = β·log; sft_coef = 0 is DPO
        without its reference.

    Pitfalls:
        Without a reference a longer rejected response looks worse than it is: Δ is of sums.

    Source: Xu et al., arXiv 2401.08417, eq. 3 (preference term); arXiv 2411.06568, Table 1.

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
    check_smoothing(label_smoothing=label_smoothing)
    preference = smoothed_logistic(beta * (chosen_logps - rejected_logps), label_smoothing)
    return preference - sft_coef * chosen_mean_logps


def cpo_ipo_loss(
    chosen_mean_logps: Tensor,
    rejected_mean_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    sft_coef: Scalar = 1.0,
) -> Tensor:
    """CPO with IPO's square: a target for the margin of means, and an SFT term.

    loss = (Δ̄ − 1/(2β))² − sft_coef·c̄

    Args:
        chosen_mean_logps, rejected_mean_logps: ``[batch]``, nats per step: c̄ and r̄.
        beta: β > 0.
        sft_coef: ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0 while log-probabilities are ≤ 0; grows like Δ̄².

    Defaults:
        β 0.1 and sft_coef 1, TRL's.

    Limits:
        IPO of means where the reference ranks neither response first, and sft_coef is 0.

    Pitfalls:
        A margin of 5 nats per step, the target at β 0.1, is far beyond what language models show.

    Source: arXiv 2310.12036, eq. 17, without the reference, as in TRL's CPO trainer.

    >>> x = torch.tensor([-2.0])
    >>> cpo_ipo_loss(x, x, beta=0.5).tolist()            # 1 + 2
    [3.0]
    """
    same_shape(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    check_positive(beta=beta)
    check_non_negative(sft_coef=sft_coef)
    margin = chosen_mean_logps - rejected_mean_logps
    return (margin - 1 / (2 * beta)).square() - sft_coef * chosen_mean_logps


def orpo_loss(
    chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, *, po_coef: Scalar = 0.1
) -> Tensor:
    """Odds-ratio preference optimisation: an SFT term and the log-odds ratio of the pair.

    loss = −c̄ − po_coef·LS(logodds(c̄) − logodds(r̄)),    logodds(a) = a − log(1 − eᵃ)

    The log-odds take means above −1e-6 as −1e-6, with no gradient above it
    (:func:`torchmpo.losses.potentials.logit`); the SFT term always has its own.

    Args:
        chosen_mean_logps, rejected_mean_logps: ``[batch]``, nats per step.
        po_coef: ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or ``po_coef`` is out of range.

    Bounds:
        bounded below by 0 while log-probabilities are ≤ 0.

    Defaults:
        po_coef 0.1, the paper's λ for Mistral (0.2 for Llama 2, 0.25 for Phi-2).

    Limits:
        The one-step mirror loss with φ⁻¹ = logit; po_coef = 0 is SFT.

    Pitfalls:
        Near a mean log-probability of 0 a plain log(1 − eᵃ) gives NaN. The preference term is
        small beside the SFT term, so the labels' noise matters little and their signal too.

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
    sft_coef: Scalar = 0.0,
    label_smoothing: Scalar = 0.0,
) -> Tensor:
    """Simple preference optimisation: a logistic loss on length-normalised log-probabilities.

    loss = −(1 − ε)·LS(z) − ε·LS(−z) − sft_coef·c̄,    z = β·Δ̄ − target_margin

    Args:
        chosen_mean_logps, rejected_mean_logps: ``[batch]``, nats per step.
        beta: β > 0.
        target_margin: the paper's γ itself (some libraries take γ/β).
        sft_coef: ≥ 0; with it the loss is known as CPO-SimPO.
        label_smoothing: ε in [0, ½), the assumed share of flipped labels.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0 at the defaults, and with an SFT term while log-probabilities are ≤ 0.

    Defaults:
        β 2 and target_margin 0.5; the paper tunes 2 to 2.5 and 0.3 to 1.6. No SFT term and no
        smoothing, as published.

    Limits:
        With target_margin = 0 the preference term of CPO, on means; the limit α → 0 of AlphaPO.

    Pitfalls:
        Without sft_coef nothing anchors the policy: both likelihoods may fall
        together, and it is the first to break under flipped labels (arXiv 2411.06568, Table 2).

    Source: Meng et al., arXiv 2405.14734, eq. 6; arXiv 2411.06568, Table 1.

    >>> simpo_loss(torch.tensor([-1.0]), torch.tensor([-1.25])).tolist()      # log 2
    [0.6931471824645996]
    """
    same_shape(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    check_positive(beta=beta)
    check_finite(target_margin=target_margin)
    check_non_negative(sft_coef=sft_coef)
    check_smoothing(label_smoothing=label_smoothing)
    z = beta * (chosen_mean_logps - rejected_mean_logps) - target_margin
    loss = smoothed_logistic(z, label_smoothing)
    if not isinstance(sft_coef, Tensor) and sft_coef == 0:
        return loss
    return loss - sft_coef * chosen_mean_logps


def alpha_po_loss(
    chosen_mean_logps: Tensor,
    rejected_mean_logps: Tensor,
    *,
    beta: Scalar = 2.0,
    alpha: Scalar = 0.25,
    target_margin: Scalar = 0.5,
) -> Tensor:
    """AlphaPO: SimPO with a reward of another shape than the log-probability.

    loss = −LS(β·(ρ(c̄) − ρ(r̄)) − target_margin),    ρ(ā) = (1 − e^{−αā})/α

    The exponential goes on as its tangent line beyond the exponent 30, so that nothing overflows.

    Args:
        chosen_mean_logps, rejected_mean_logps: ``[batch]``, nats per step.
        beta: β > 0.
        alpha: α, finite, of either sign.
        target_margin: in the unit of the margin, as for SimPO.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        α 0.25, as published for most models, there with β 2.5 or 10 and a target_margin given
        in units of β; β and target_margin are SimPO's here.

    Limits:
        α → 0 is SimPO. ρ is the Tsallis potential of index 1 − α.

    Pitfalls:
        α > 0 gives unlikely responses an exponentially larger gradient, α < 0 almost none; β must
        be tuned again for every α.

    Source: Gupta et al., arXiv 2501.03884.

    >>> alpha_po_loss(torch.tensor([-1.0]), torch.tensor([-1.0])).tolist()    # log(1 + e^½)
    [0.9740769863128662]
    """
    same_shape(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    check_positive(beta=beta)
    check_finite(alpha=alpha, target_margin=target_margin)
    margin = q_logarithm(chosen_mean_logps, -alpha) - q_logarithm(rejected_mean_logps, -alpha)
    return -logsigmoid(beta * margin - target_margin)
