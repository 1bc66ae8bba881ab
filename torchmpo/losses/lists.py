"""Losses of a list of responses to one prompt, ranked, and of a third response beside a pair.

Shapes: lists are ``[batch, n]``, best first, n ≥ 2; what comes out is ``[batch]``, one value per
list, and nothing is reduced. Below, s_i = β·(log π(y_i|x) − log π_ref(y_i|x)) of response i (nats,
summed over its steps), and LS is the log of the logistic function. All are minimised. The
reference's log-probabilities are data: no gradient reaches them. A list of two is a pair, and every
loss of lists here is then DPO.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torchmpo.losses.arguments import (
    Scalar,
    check_choice,
    check_finite,
    check_non_negative,
    check_positive,
    check_smoothing,
    in_dtype,
    log_ratio,
    reduce_steps,
    same_shape,
)
from torchmpo.losses.numerics import smoothed_logistic

CURVES = ("logistic", "hinge", "squared")


def _scores(list_logps: Tensor, ref_list_logps: Tensor, beta: Scalar) -> Tensor:
    """s, ``[batch, n]`` (or ``[n]``, under ``torch.func.vmap``), of inputs that fit together."""
    for name, value in (("list_logps", list_logps), ("ref_list_logps", ref_list_logps)):
        if not isinstance(value, Tensor):
            what = "None" if value is None else f"a {type(value).__name__}"
            raise ValueError(f"{name} must be a tensor [batch, n]; got {what}")
        if value.dim() not in (1, 2) or value.shape[-1] < 2:
            shape = tuple(value.shape)
            raise ValueError(f"{name} must be [batch, n], n at least 2; got shape {shape}")
        if not value.is_floating_point():
            raise ValueError(f"{name} must be floating point; got {value.dtype}")
    if list_logps.shape != ref_list_logps.shape:
        raise ValueError(
            f"ref_list_logps has shape {tuple(ref_list_logps.shape)}, but list_logps has "
            f"{tuple(list_logps.shape)}"
        )
    check_positive(beta=beta)
    return beta * log_ratio(list_logps, ref_list_logps)


def _better(scores: Tensor) -> tuple[Tensor, Tensor]:
    """s_i − s_j, ``[batch, n, n]``, and whether i is ranked before j, ``[n, n]``."""
    n = scores.shape[-1]
    before = torch.ones(n, n, dtype=torch.bool, device=scores.device).triu(1)
    return scores[..., :, None] - scores[..., None, :], before


def plackett_luce_loss(list_logps: Tensor, ref_list_logps: Tensor, *, beta: Scalar = 0.1) -> Tensor:
    """DPO of a ranked list: its likelihood if the best of what is left is picked again and again.

    loss = −Σ_{i<n} [s_i − log Σ_{j≥i} e^{s_j}]

    Args:
        list_logps: ``[batch, n]``, nats, best first.
        ref_list_logps: ``[batch, n]``, nats, of the reference policy.
        beta: β > 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, there are fewer than two responses, or β is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's.

    Limits:
        DPO for n = 2; at s = 0 it is log n!.

    Pitfalls:
        The order of the last ones counts as much as that of the first, though annotators hardly
        look at it.

    Source: Rafailov et al., arXiv 2305.18290, appendix A.3.

    >>> x = torch.zeros(1, 3)
    >>> [round(v, 4) for v in plackett_luce_loss(x, x).tolist()]         # log 6
    [1.7918]
    """
    scores = _scores(list_logps, ref_list_logps, beta)
    left = torch.logcumsumexp(scores.flip(-1), -1).flip(-1)
    return (left - scores)[..., :-1].sum(-1)


def self_po_loss(list_logps: Tensor, ref_list_logps: Tensor, *, beta: Scalar = 0.1) -> Tensor:
    """DPO of every pair in a list whose order is known, such as copies of one response, degraded.

    loss = −Σ_{i<j} LS(s_i − s_j)

    Args:
        list_logps: ``[batch, n]``, nats, best first.
        ref_list_logps: ``[batch, n]``, nats, of the reference policy.
        beta: β > 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, there are fewer than two responses, or β is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's.

    Limits:
        DPO for n = 2; at s = 0 it is n(n − 1)/2·log 2.

    Pitfalls:
        It grows with the square of n: lists of several lengths in a batch count differently.

    Source: the sum of DPO's loss, arXiv 2305.18290, eq. 7, over the pairs of a list.

    >>> x = torch.zeros(1, 3)
    >>> [round(v, 4) for v in self_po_loss(x, x).tolist()]               # 3·log 2
    [2.0794]
    """
    difference, before = _better(_scores(list_logps, ref_list_logps, beta))
    return torch.where(before, -logsigmoid(difference), 0.0).sum((-2, -1))


def lambda_po_loss(list_logps: Tensor, ref_list_logps: Tensor, *, beta: Scalar = 0.1) -> Tensor:
    """A list's pairs, weighed by how much a swap of the two would change the quality of the order.

    loss = −Σ_{i<j} w_ij·LS(s_i − s_j),    w_ij ∝ |G_i − G_j|·|1/log(1 + τ_i) − 1/log(1 + τ_j)|

    G_i = 2^{(n − i)/(n − 1)} − 1 is what place i is worth, and τ_i the place that the policy gives
    response i now. The weights have mean 1, and no gradient flows through them.

    Args:
        list_logps: ``[batch, n]``, nats, best first.
        ref_list_logps: ``[batch, n]``, nats, of the reference policy.
        beta: β > 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, there are fewer than two responses, or β is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's.

    Limits:
        DPO for n = 2; with equal weights it is ``self_po``.

    Pitfalls:
        The weights jump where two responses change places. Ties are ranked as they are given, so
        at the start of training, where all s are 0, the policy seems to rank perfectly.

    Source: Liao et al., arXiv 2410.12854 (TPO, of trees), with the weights of LambdaRank as in
    arXiv 2402.01878 (LiPO-λ), which take the place for the score and are scaled to mean 1 here.

    >>> x = torch.zeros(1, 2)
    >>> lambda_po_loss(x, x).tolist()                    # log 2
    [0.6931471824645996]
    """
    scores = _scores(list_logps, ref_list_logps, beta)
    difference, before = _better(scores)
    n = scores.shape[-1]
    wide = torch.promote_types(scores.dtype, torch.float32)
    place = torch.arange(n, device=scores.device, dtype=wide)
    gain = torch.exp2((n - 1 - place) / (n - 1)) - 1
    order = scores.detach().argsort(dim=-1, descending=True, stable=True)
    now = order.argsort(dim=-1)
    discount = 1 / torch.log(in_dtype(2.0 + now, wide))
    weight = (gain[:, None] - gain).abs() * (discount[..., :, None] - discount[..., None, :]).abs()
    weight = torch.where(before, weight, 0.0)
    weight = weight * (n * (n - 1) / 2) / weight.sum((-2, -1), keepdim=True)
    loss = in_dtype(weight, scores.dtype) * -logsigmoid(difference)
    return torch.where(before, loss, 0.0).sum((-2, -1))


def tpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    gold_mean_logps: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    beta: Scalar = 0.01,
    sft_coef: Scalar = 1.0,
    target_margin: Scalar = 0.0,
    label_smoothing: Scalar = 0.0,
    curve: str = "logistic",
    reduction: str = "sum",
) -> Tensor:
    """Triple preference optimisation: a pair is compared, and a third, golden response imitated.

    loss = f(βΔ − γ) − sft_coef·ḡ

    f is −(1 − ε)·LS(z) − ε·LS(−z) for ``"logistic"``, max(0, 1 − z) for ``"hinge"``, and
    ((z − ½)/β)² for ``"squared"``, which is IPO's (Δ − 1/(2β))² at γ = 0.

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        gold_mean_logps: ``[batch]``, ḡ, nats per step, of the golden response: of three or more
            ranked ones the best, where the chosen one is the second and the rejected one the last.
        chosen_lengths, rejected_lengths: ``[batch]``, steps; for ``reduction="mean"`` only.
        beta: β > 0.
        sft_coef: ≥ 0.
        target_margin: γ itself, finite.
        label_smoothing: ε in [0, ½), of the logistic curve.
        curve: ``"logistic"``, ``"hinge"`` or ``"squared"``.
        reduction: ``"sum"``, or ``"mean"``: Δ of means, as in TPO-L.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, a hyper-parameter is out of range, or a mean has no lengths.

    Bounds:
        bounded below by 0 while log-probabilities are ≤ 0 and ε is 0.

    Defaults:
        β 0.01 and sft_coef 1, TRL's; γ 0, which TPO-L sets to 0.5.

    Limits:
        CPO where the golden response is the chosen one.

    Pitfalls:
        It needs a third response to every prompt, which pairs do not have.

    Source: Saeidi et al., arXiv 2405.16681, as in TRL 1.16; f and γ for TPO-L and the others there.

    >>> x = torch.tensor([-20.0])
    >>> tpo_loss(x, x, x / 10).tolist()                  # log 2 + 2
    [2.6931471824645996]
    """
    same_shape(
        ("chosen_lengths", "rejected_lengths"),
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        gold_mean_logps=gold_mean_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    check_positive(beta=beta)
    check_non_negative(sft_coef=sft_coef)
    check_finite(target_margin=target_margin)
    check_smoothing(label_smoothing=label_smoothing)
    check_choice("curve", curve, CURVES)
    chosen = reduce_steps(chosen_logps, chosen_lengths, reduction)
    rejected = reduce_steps(rejected_logps, rejected_lengths, reduction)
    z = beta * (chosen - rejected) - target_margin
    if curve == "hinge":
        preference = torch.relu(1 - z)
    elif curve == "squared":
        preference = ((z - 0.5) / beta).square()
    else:
        preference = smoothed_logistic(z, label_smoothing)
    return preference - sft_coef * gold_mean_logps
