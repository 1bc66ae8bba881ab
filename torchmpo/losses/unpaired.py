"""Losses of single responses that somebody found desirable or undesirable; no pairs are needed.

Shapes: every tensor is ``[batch]``, one value per response, in and out; nothing is reduced. Below,
h = log π(y|x) − log π_ref(y|x) of the response (nats, summed over its steps), S is the logistic
function, LS its log, and λ and the sign ± are those of the label:

    label            ±    λ
    desirable        +    desirable_coef
    undesirable      −    undesirable_coef

Where desirable and undesirable responses are not equally many, keep λ_D·n_D : λ_U·n_U between 1 : 1
and 4 : 3 (arXiv 2402.01306, eq. 8). All are minimised. The reference's log-probabilities and
the labels are data: no gradient reaches them.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torchmpo.losses.arguments import (
    Scalar,
    check_non_negative,
    check_positive,
    log_ratio,
    same_shape,
)


def _labelled(
    logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    beta: Scalar,
    desirable_coef: Scalar,
    undesirable_coef: Scalar,
) -> tuple[Tensor, Tensor, Tensor]:
    """h, the sign of the label, and its weight; all ``[batch]``."""
    same_shape(logps=logps, ref_logps=ref_logps, desirable=desirable)
    check_positive(beta=beta)
    check_non_negative(desirable_coef=desirable_coef, undesirable_coef=undesirable_coef)
    # Of bools, of 1 and 0, of 1 and −1.
    good = desirable if desirable.dtype == torch.bool else desirable > 0.5
    one = torch.ones_like(logps)
    weight = torch.where(good, desirable_coef * one, undesirable_coef * one)
    return log_ratio(logps, ref_logps), torch.where(good, one, -one), weight


def kto_loss(
    logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    mismatched_logps: Tensor | None = None,
    ref_mismatched_logps: Tensor | None = None,
    *,
    beta: Scalar = 0.1,
    desirable_coef: Scalar = 1.0,
    undesirable_coef: Scalar = 1.0,
) -> Tensor:
    """Kahneman–Tversky optimisation: gains and losses against how far the policy has moved anyway.

    loss = λ·(1 − S(±β(h − z₀))),    z₀ = max(0, mean(h of mismatched responses))

    No gradient flows through z₀, an estimate of KL(π ‖ π_ref) from answers to other prompts.

    Args:
        logps: ``[batch]``, nats.
        ref_logps: ``[batch]``, nats, of the reference policy.
        desirable: ``[batch]``, whether the response is a good one.
        mismatched_logps: ``[batch]``, nats, of each prompt with another one's response; None where
            there are none, and z₀ is then of the batch's own h.
        ref_mismatched_logps: ``[batch]``, nats, the same of the reference policy.
        beta: β > 0.
        desirable_coef: λ_D ≥ 0.
        undesirable_coef: λ_U ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, a hyper-parameter is out of range, or one of the mismatched
            inputs comes without the other.

    Bounds:
        bounded, between 0 and the larger λ.

    Defaults:
        β 0.1, λ_D 1 and λ_U 1, those of the authors and of TRL.

    Limits:
        With z₀ = 0, as at the start of training, it is APO-zero of single responses.

    Pitfalls:
        A confidently wrong response has no gradient. A batch of a few responses estimates z₀
        badly; where it is taken of the batch's own h, a batch of one has h − z₀ = 0 for every
        h > 0.

    Source: Ethayarajh et al., arXiv 2402.01306, eq. 7.

    >>> x = torch.tensor([-20.0, -20.0])
    >>> loss = kto_loss(x + 3, x, torch.tensor([True, False]), x, x, beta=0.5)
    >>> [round(value, 4) for value in loss.tolist()]                     # S(−1.5) and S(1.5)
    [0.1824, 0.8176]
    """
    h, sign, weight = _labelled(logps, ref_logps, desirable, beta, desirable_coef, undesirable_coef)
    moved = h
    if mismatched_logps is not None or ref_mismatched_logps is not None:
        same_shape(
            logps=logps,
            mismatched_logps=mismatched_logps,
            ref_mismatched_logps=ref_mismatched_logps,
        )
        assert mismatched_logps is not None
        assert ref_mismatched_logps is not None
        moved = mismatched_logps - ref_mismatched_logps
    baseline = torch.relu(moved.detach().mean())
    return weight * torch.sigmoid(-beta * sign * (h - baseline))


def bco_unpaired_loss(
    logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    *,
    beta: Scalar = 0.1,
    desirable_coef: Scalar = 1.0,
    undesirable_coef: Scalar = 1.0,
) -> Tensor:
    """Binary classifier optimisation: is the response a desirable one, by its implicit reward?

    loss = −λ·LS(±β(h − δ)),    δ = mean(h)

    No gradient flows through δ, which is of the batch.

    Args:
        logps: ``[batch]``, nats.
        ref_logps: ``[batch]``, nats, of the reference policy.
        desirable: ``[batch]``, whether the response is a good one.
        beta: β > 0.
        desirable_coef: λ_D ≥ 0.
        undesirable_coef: λ_U ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, λ_D 1 and λ_U 1, TRL's.

    Limits:
        With δ = 0 the two responses of a pair add up to ``bco_pair``. A batch of one is log 2.

    Pitfalls:
        The authors keep a running mean as βδ, a state which a pure function does not have: with
        small batches it is noisier here. They also weigh undesirable responses by how likely the
        prompt is to come with a desirable one, which takes a classifier of prompts.

    Source: Jung et al., arXiv 2404.04656, without the running mean and the weights.

    >>> x = torch.tensor([-20.0, -20.0])
    >>> bco_unpaired_loss(x, x, torch.tensor([True, False])).tolist()    # log 2
    [0.6931471824645996, 0.6931471824645996]
    """
    h, sign, weight = _labelled(logps, ref_logps, desirable, beta, desirable_coef, undesirable_coef)
    return -weight * logsigmoid(sign * beta * (h - h.detach().mean()))


def apo_zero_unpaired_loss(
    logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    *,
    beta: Scalar = 0.1,
    desirable_coef: Scalar = 1.0,
    undesirable_coef: Scalar = 1.0,
) -> Tensor:
    """APO-zero of single responses: raise the likelihood of good ones, lower that of bad ones.

    loss = λ·(1 − S(±βh))

    Args:
        logps: ``[batch]``, nats.
        ref_logps: ``[batch]``, nats, of the reference policy.
        desirable: ``[batch]``, whether the response is a good one.
        beta: β > 0.
        desirable_coef: λ_D ≥ 0.
        undesirable_coef: λ_U ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded, between 0 and the larger λ.

    Defaults:
        β 0.1, λ_D 1 and λ_U 1, TRL's.

    Limits:
        The two responses of a pair add up to ``apo_zero``; KTO with z₀ = 0.

    Pitfalls:
        A confidently wrong response has no gradient. It suits a policy whose own responses are
        worse than the desirable ones, and else pulls it down to them.

    Source: D'Oosterlinck et al., arXiv 2408.06266, eq. 7, for single responses as in TRL.

    >>> x = torch.tensor([-20.0, -20.0])
    >>> apo_zero_unpaired_loss(x, x, torch.tensor([True, False])).tolist()
    [0.5, 0.5]
    """
    h, sign, weight = _labelled(logps, ref_logps, desirable, beta, desirable_coef, undesirable_coef)
    return weight * torch.sigmoid(-beta * sign * h)
