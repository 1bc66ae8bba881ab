"""Losses of pairs that also read other responses to the same prompt, drawn while a policy learns.

Shapes: pairs are ``[batch]``, drawn responses ``[batch, n]``, n of them for each pair; what comes
out is ``[batch]``, and nothing is reduced. Below, LS is the log of the logistic function, D the
margin of DPO's implicit rewards, and a sum over i is over the n responses. All are minimised. The
reference's log-probabilities are data: no gradient reaches them.
"""

import torch
from torch import Tensor

from torchmpo.losses.arguments import Scalar, check_non_negative
from torchmpo.losses.logistic import dpo_loss


def _check_drawn(chosen_logps: Tensor, least: int, **drawn: Tensor) -> None:
    """Refuse what is not ``[batch, n]`` (or ``[n]``, under ``torch.func.vmap``), n ≥ ``least``."""
    shape, first, pairs = None, "", chosen_logps.shape
    for name, value in drawn.items():
        if not isinstance(value, Tensor):
            what = "None" if value is None else f"a {type(value).__name__}"
            raise ValueError(f"{name} must be a tensor [batch, n]; got {what}")
        if not value.is_floating_point():
            raise ValueError(f"{name} must be floating point; got {value.dtype}")
        if value.shape == shape:
            continue
        if value.shape[:-1] != pairs or not value.dim() or value.shape[-1] < least:
            raise ValueError(
                f"{name} must be [batch, n], n at least {least}; got shape {tuple(value.shape)}, "
                f"and chosen_logps has {tuple(pairs)}"
            )
        if shape is not None:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, but {first} has {tuple(shape)}"
            )
        shape, first = value.shape, name


def hypo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    own_logps: Tensor,
    ref_own_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    kl_coef: Scalar = 0.01,
) -> Tensor:
    """Hybrid preference optimisation: DPO of given pairs, and KL to the reference on own responses.

    loss = −LS(βD) + λ·(1/n)·Σ_i [h_i − mean_{j≠i} h_j]·log π(y_i),    h_i = log π(y_i)/π_ref(y_i)

    No gradient flows through the bracket. The gradient of the second term is then, on average over
    y_i ~ π, that of λ·KL(π ‖ π_ref); its value is not that of the KL.

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        own_logps: ``[batch, n]``, nats, of n ≥ 2 responses that the policy drew as it is now.
        ref_own_logps: ``[batch, n]``, nats, of the same responses under the reference.
        beta: β > 0.
        kl_coef: λ ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, there is one own response only, or a hyper-parameter is out of
            range.

    Bounds:
        bounded below: the second term by −λ/4 times the sample variance of log π_ref(y_i).

    Defaults:
        β 0.1, DPO's; λ 0.01, a choice of this library.

    Limits:
        λ = 0 is DPO; so is a policy with the same log-ratio for all its responses, as at the start.

    Pitfalls:
        Responses that were drawn once and kept give the gradient of something else.

    Source: Song et al., arXiv 2406.01462, algorithm 1 [reconstructed from the paper].

    >>> x, y = torch.tensor([-20.0]), torch.tensor([-30.0])
    >>> own, ref = torch.tensor([[-2.0, -4.0]]), torch.tensor([[-3.0, -4.0]])
    >>> round(hypo_loss(x, y, y, x, own, ref, kl_coef=0.1).item(), 4)    # log(1 + e⁻²) + 0.1
    0.2269
    """
    preference = dpo_loss(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta
    )
    check_non_negative(kl_coef=kl_coef)
    _check_drawn(chosen_logps, 2, own_logps=own_logps, ref_own_logps=ref_own_logps)
    return preference + kl_coef * kl_surrogate(own_logps, ref_own_logps)


def kl_surrogate(own_logps: Tensor, ref_own_logps: Tensor) -> Tensor:
    """What has ∇KL(π ‖ π_ref) for its mean gradient, with a leave-one-out baseline.

    (1/n)·Σ_i [h_i − mean_{j≠i} h_j]·log π(y_i); no gradient flows through the bracket.

    Args:
        own_logps, ref_own_logps: ``[..., n]``, nats, of n ≥ 2 responses y_i that π drew.

    Returns:
        ``[...]``.
    """
    ratio, n = (own_logps - ref_own_logps).detach(), own_logps.shape[-1]
    advantage = (ratio - ratio.mean(-1, keepdim=True)) * (n / (n - 1))
    return torch.mean(advantage * own_logps, -1)


def vpo_online_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    calibration_logps: Tensor,
    *,
    beta: Scalar = 0.1,
    alpha: Scalar = 0.1,
) -> Tensor:
    """Value-incentivised preference optimisation, online: DPO and optimism about the unseen.

    loss = −LS(βD) + α·β·(1/n)·Σ_i log π(y_i),    y_i ~ π_ref

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        calibration_logps: ``[batch, n]``, nats, under the policy, of n ≥ 1 responses that the
            reference (or whichever policy values are calibrated by) drew.
        beta: β > 0.
        alpha: α ≥ 0, the weight of the optimism.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        unbounded below: it falls as the policy leaves what the reference does, and new pairs of the
        policy's own are what holds it.

    Defaults:
        β 0.1; α 0.1, a choice of this library.

    Limits:
        α = 0 is DPO. With the chosen response in place of those drawn, and −α for α, it is the
        offline loss, up to a constant: pessimism there, optimism here.

    Pitfalls:
        The term is a sum over steps, so long responses weigh more. On pairs that stay the same it
        only makes the policy forget the reference.

    Source: Cen et al., arXiv 2405.19320 [reconstructed from the paper's description].

    >>> x, y = torch.tensor([-20.0]), torch.tensor([-30.0])
    >>> loss = vpo_online_loss(x, y, y, x, torch.tensor([[-9.0, -11.0]]))
    >>> round(loss.item(), 4)                                            # log(1 + e⁻²) − 0.1
    0.0269
    """
    preference = dpo_loss(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta
    )
    check_non_negative(alpha=alpha)
    _check_drawn(chosen_logps, 1, calibration_logps=calibration_logps)
    return preference + alpha * beta * calibration_logps.mean(-1)
