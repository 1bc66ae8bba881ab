"""Logistic losses that know more of a pair than which response was preferred: votes or scores.

Shapes: every tensor is ``[batch]``, one value per pair, in and out; nothing is reduced. Below,
c and r are summed log-probabilities (nats), c' and r' the reference's, D = (c − c') − (r − r') the
margin of the implicit rewards, p the probability that the label is right, R_c and R_r scores, and
LS the log of the logistic function S. All are minimised. Votes and scores are data, and so are the
reference's log-probabilities: no gradient reaches them.

Each loss here is a setting of :func:`torchmpo.losses.logistic_preference_loss`.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torchmpo.losses.arguments import (
    Scalar,
    check_non_negative,
    check_positive,
    check_within,
    in_dtype,
    same_shape,
    times,
)
from torchmpo.losses.logistic import logistic_preference_loss


def _reward_margin(chosen_rewards: Tensor, rejected_rewards: Tensor, like: Tensor) -> Tensor:
    """R_c − R_r, subtracted as precisely as it is given, then in the type of the loss."""
    same_shape(chosen_logps=like, chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    return in_dtype((chosen_rewards - rejected_rewards).detach(), like.dtype)


def soft_label_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    preference_probs: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """DPO with a probability for each label: votes, an ensemble, a reward model's confidence.

    loss = −p·LS(βD) − (1 − p)·LS(−βD)

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        preference_probs: ``[batch]``, p in [0, 1]: how likely the chosen response is the better.
        beta: β > 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or β is out of range.

    Bounds:
        bounded below by the entropy of p, so by 0.

    Defaults:
        β 0.1, DPO's.

    Limits:
        p = 1 is DPO, a constant p = 1 − ε conservative DPO; the best margin is βD = logit p.

    Pitfalls:
        It is as good as p is calibrated; an overconfident p brings DPO's endless margin back.

    Source: the cross-entropy of which Mitchell's conservative DPO is the case of one p for all.

    >>> x, p = torch.tensor([-20.0]), torch.tensor([0.7])
    >>> soft_label_dpo_loss(x, x, x, x, p).tolist()      # log 2
    [0.6931471824645996]
    """
    same_shape(chosen_logps=chosen_logps, preference_probs=preference_probs)
    return logistic_preference_loss(
        chosen_logps,
        rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        beta=beta,
        label=in_dtype(preference_probs.detach(), chosen_logps.dtype),
    )


def margin_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    *,
    beta: Scalar = 0.1,
    margin_coef: Scalar = 1.0,
) -> Tensor:
    """DPO whose margin must grow with how much better the judge finds the chosen response.

    loss = −LS(βD − κ·J),    J = R_c − R_r

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        chosen_rewards, rejected_rewards: ``[batch]``, the judge's scores.
        beta: β > 0.
        margin_coef: κ ≥ 0, nats per unit of reward.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1; κ 1: scale it to the judge (κ = 1/η for a Bradley–Terry judge of temperature η).

    Limits:
        κ = 0 or J = 0 is DPO.

    Pitfalls:
        Rewards in the thousands with κ = 1 ask for a margin that no policy reaches, and every
        pair then has the same gradient.

    Source: Wang et al., arXiv 2401.06080 [reconstructed: a reward model's adaptive margin, put into
    DPO; the ODPO of Amini et al. 2024 has this form].

    >>> x, worse, better = torch.tensor([-20.0]), torch.tensor([1.0]), torch.tensor([3.0])
    >>> round(margin_dpo_loss(x, x, x, x, better, worse).item(), 4)      # log(1 + e²)
    2.1269
    """
    check_non_negative(margin_coef=margin_coef)
    return logistic_preference_loss(
        chosen_logps,
        rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        beta=beta,
        margin=times(margin_coef, _reward_margin(chosen_rewards, rejected_rewards, chosen_logps)),
    )


def smpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    preference_probs: Tensor,
    *,
    beta: Scalar = 0.1,
    scale: Scalar = 1.0,
) -> Tensor:
    """DPO whose sigmoid is as sharp as the label is sure.

    loss = −LS(k·βD),    k = s·(2p − 1)

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        preference_probs: ``[batch]``, p in [0, 1]: how likely the chosen response is the better.
        beta: β > 0.
        scale: s > 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, s 1; for diffusion models the paper has β in the thousands and s 10.

    Limits:
        p = s = 1 is DPO. p = ½ is log 2 without a gradient, and p < ½ swaps the pair.

    Pitfalls:
        Unlike a soft label, an unsure pair has no best margin: it is only pushed more slowly, and
        for as long as training lasts.

    Source: Lu et al., arXiv 2506.02698.

    >>> x, y, p = torch.tensor([-20.0]), torch.tensor([-90.0]), torch.tensor([0.5])
    >>> smpo_loss(x, y, x, x, p).tolist()                # log 2
    [0.6931471824645996]
    """
    same_shape(chosen_logps=chosen_logps, preference_probs=preference_probs)
    check_positive(scale=scale)
    return logistic_preference_loss(
        chosen_logps,
        rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        beta=beta,
        scale=times(scale, in_dtype(2 * preference_probs.detach() - 1, chosen_logps.dtype)),
    )


def madpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    *,
    beta: Scalar = 0.1,
    eta: Scalar = 1.0,
    max_coef: Scalar = 2.0,
    min_coef: Scalar = 0.5,
    sharpness: Scalar = 1.0,
    tau: Scalar = 2.0,
) -> Tensor:
    """Margin-adaptive DPO: pairs are weighted by how clearly the judge prefers the chosen one.

    loss = −w·LS(βD),    w = S(coef·J)/S(J) where J > −τ, else 1,    J = (R_c − R_r)/η
    coef = c₋ + (c₊ − c₋)/(1 + ((c₊ − 1)/(1 − c₋))·e^{λ(|J| − τ)})

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        chosen_rewards, rejected_rewards: ``[batch]``, the judge's scores.
        beta: β > 0.
        eta: η > 0, the temperature of the judge: the reward that makes odds of e : 1.
        max_coef: c₊ > 1, the coefficient of undecided pairs.
        min_coef: c₋ in [0, 1), that of clear ones.
        sharpness: λ > 0, how fast one becomes the other around |J| = τ.
        tau: τ > 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        c₊ 2, c₋ ½, λ 1, τ 2 and β 0.1; η 1: set it to the judge's.

    Limits:
        w = 1 at J = 0; coef = 1 at |J| = τ; w → 1 as J → ∞ (½ if c₋ = 0); for J ≤ −τ it is DPO.

    Pitfalls:
        The weight needs the scale of the rewards: with η far too small all pairs are clear ones
        and it is DPO (½ of it if c₋ = 0).

    Source: Rho, arXiv 2510.05342.

    >>> x, same = torch.tensor([-20.0]), torch.tensor([3.0])
    >>> madpo_loss(x, x, x, x, same, same).tolist()      # J = 0: log 2
    [0.6931471824645996]
    """
    check_positive(eta=eta, sharpness=sharpness, tau=tau)
    check_within(1, math.inf, max_coef=max_coef)
    check_non_negative(min_coef=min_coef)
    check_within(-1, 1, min_coef=min_coef)
    gap = _reward_margin(chosen_rewards, rejected_rewards, chosen_logps) / eta
    # S(−u)/(S(−u) + q·S(u)) is 1/(1 + q·e^u) without an overflow.
    clear = torch.sigmoid(sharpness * (gap.abs() - tau))
    ratio = (max_coef - 1) / (1 - min_coef)
    coef = min_coef + (max_coef - min_coef) * (1 - clear) / (1 - clear + ratio * clear)
    weighted = gap > -tau
    gap = torch.where(weighted, gap, 0.0)
    weight = torch.exp(logsigmoid(coef * gap) - logsigmoid(gap))
    return logistic_preference_loss(
        chosen_logps,
        rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        beta=beta,
        weight=weight,
    )


def modpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    *,
    beta: Scalar = 0.1,
    po_coef: Scalar = 0.5,
    reward_coef: Scalar = 0.5,
) -> Tensor:
    """Multi-objective DPO: the preference for one objective, learned beside rewards for others.

    loss = −LS((βD − w₁·(R_c − R_r))/w₀)

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        chosen_rewards, rejected_rewards: ``[batch]``, scores for the other objective. For several,
            their weighted sum Σ_k w_k·R_k, with ``reward_coef=1``.
        beta: β > 0.
        po_coef: w₀ > 0, the weight of the objective that the preferences are about.
        reward_coef: w₁ ≥ 0, the weight of the rewards.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1; both objectives weigh ½.

    Limits:
        w = (1, 0) is DPO.

    Pitfalls:
        The rewards must be on the scale of the implicit reward, log-odds of a preference; others
        drown it or are drowned.

    Source: Zhou et al., arXiv 2310.03708, eq. 14.

    >>> x, same = torch.tensor([-20.0]), torch.tensor([3.0])
    >>> modpo_loss(x, x, x, x, same, same).tolist()      # log 2
    [0.6931471824645996]
    """
    check_positive(po_coef=po_coef)
    check_non_negative(reward_coef=reward_coef)
    return logistic_preference_loss(
        chosen_logps,
        rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        beta=beta,
        margin=reward_coef * _reward_margin(chosen_rewards, rejected_rewards, chosen_logps),
        scale=1 / po_coef,
    )
