"""Losses that look at the steps of a response, tokens or actions, and not at their sum alone.

Shapes: what is of a step is ``[batch, time]``; lengths, and what comes out, are ``[batch]``, one
value per pair, and nothing is reduced. A mask says which of the ``time`` steps count. They may be a
sample of the response: then a sum over them is scaled up to ``*_lengths``, the steps that the
response has, and a step's place is that of an even sample. All are minimised.

Below, h_t = log π − log π_ref of step t (nats), and K_t = KL(π_ref ‖ π) of its whole distribution;
a bar below them marks the side, c or r; S is the logistic function and LS its log. The reference's
log-probabilities are data: no gradient reaches them.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torchmpo.losses.arguments import (
    Scalar,
    check_choice,
    check_fraction,
    check_non_negative,
    check_positive,
    check_within,
    in_dtype,
    log_ratio,
    log_ratios,
    real,
    same_shape,
)

# Which of the two losses of the paper on token-level DPO.
VARIANTS = ("tdpo1", "tdpo2")


# h_t, the mask, and how many steps of the response each given one stands for (float32 or wider).
Side = tuple[Tensor, Tensor, Tensor]


def _check_side(side: str, steps: dict[str, Tensor], mask: Tensor, lengths: Tensor) -> None:
    """Refuse what is not ``[batch, time]`` of one shape, with lengths ``[batch]``.

    (Or ``[time]`` and 0-d: under ``torch.func.vmap`` a loss may see one pair.)
    """
    if _fits(steps, mask, lengths):  # mostly; to say what is wrong takes longer
        return
    first = f"{side}_step_logps"
    given = {first: steps["logps"], f"ref_{first}": steps["ref_logps"]}
    given |= {f"{side}_step_{name}": x for name, x in steps.items() if "logps" not in name}
    given |= {f"{side}_mask": mask, f"{side}_lengths": lengths}
    shape = getattr(steps["logps"], "shape", ())
    for name, tensor in given.items():
        kind = "[batch]" if name.endswith("lengths") else "[batch, time]"
        if not isinstance(tensor, Tensor):
            what = "None" if tensor is None else f"a {type(tensor).__name__}"
            raise ValueError(f"{name} must be a tensor {kind}; got {what}")
        if name.endswith("logps") and not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point; got {tensor.dtype}")
        if name == first and tensor.dim() not in (1, 2):
            raise ValueError(f"{name} must be {kind}; got shape {tuple(tensor.shape)}")
        if tensor.shape != (shape[:-1] if name.endswith("lengths") else shape):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, but {first} has {tuple(shape)}"
            )


def _fits(steps: dict[str, Tensor], mask: Tensor, lengths: Tensor) -> bool:
    if type(mask) is not Tensor or type(lengths) is not Tensor:
        return False
    shape = mask.shape
    for value in steps.values():
        if type(value) is not Tensor or value.shape != shape:
            return False
    floating = steps["logps"].is_floating_point() and steps["ref_logps"].is_floating_point()
    return floating and len(shape) in (1, 2) and lengths.shape == shape[:-1]


def _ratios(
    chosen: dict[str, Tensor],
    rejected: dict[str, Tensor],
    masks: tuple[Tensor, Tensor],
    lengths: tuple[Tensor, Tensor],
    beta: Scalar,
) -> tuple[Tensor, Tensor]:
    """h_t of both sides, of inputs that fit together."""
    _check_side("chosen", chosen, masks[0], lengths[0])
    _check_side("rejected", rejected, masks[1], lengths[1])
    if lengths[0].shape != lengths[1].shape:
        same_shape(chosen_lengths=lengths[0], rejected_lengths=lengths[1])
    check_positive(beta=beta)
    good = log_ratio(chosen["logps"], chosen["ref_logps"])
    return good, log_ratio(rejected["logps"], rejected["ref_logps"])


def _checked(
    chosen: dict[str, Tensor],
    rejected: dict[str, Tensor],
    masks: tuple[Tensor, Tensor],
    lengths: tuple[Tensor, Tensor],
    beta: Scalar,
) -> tuple[Side, Side]:
    """Both sides, of inputs that fit together."""
    good, bad = _ratios(chosen, rejected, masks, lengths, beta)
    return _side(good, masks[0], lengths[0]), _side(bad, masks[1], lengths[1])


def _side(ratio: Tensor, mask: Tensor, lengths: Tensor) -> Side:
    wide, mask = torch.promote_types(ratio.dtype, torch.float32), in_dtype(mask, torch.bool)
    return ratio, mask, real(lengths, wide) / mask.sum(-1).clamp(min=1)


def _total(values: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
    """The sum over a response's steps: the sum over those that are given, scaled up to all."""
    return torch.where(mask, values, 0.0).sum(-1) * in_dtype(scale, values.dtype)


def _places(mask: Tensor, scale: Tensor) -> Tensor:
    """Where in its response each step is, from ½ to n − ½."""
    return (mask.cumsum(-1) - 0.5) * scale[..., None]


def samdpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """SamPO: DPO of equally many steps of both responses.

    loss = −LS(β·m·(h_c/n_c − h_r/n_r)),    m = min(n_c, n_r)

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        chosen_lengths, rejected_lengths: ``[batch]``, steps: n_c and n_r.
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
        DPO for responses of one length; ``dpo_norm`` with βm for β.

    Pitfalls:
        The authors draw m steps of the longer response at random, anew in every batch; a pure
        function draws no numbers, and takes the mean of such draws. It is smoother than theirs.

    Source: Lu et al., arXiv 2406.10957, with the mean of the sample in place of the sample.

    >>> x, n = torch.tensor([-20.0]), torch.tensor([7])
    >>> samdpo_loss(x, x, x, x, n, n).tolist()           # log 2
    [0.6931471824645996]
    """
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    same_shape(
        chosen_logps=chosen_logps, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths
    )
    check_positive(beta=beta)
    n_c, n_r = real(chosen_lengths, chosen.dtype), real(rejected_lengths, chosen.dtype)
    steps = in_dtype(torch.minimum(chosen_lengths, rejected_lengths), chosen.dtype)
    means = chosen / n_c - rejected / n_r
    return -logsigmoid(beta * steps * means)


def tdpo_loss(
    chosen_step_logps: Tensor,
    rejected_step_logps: Tensor,
    ref_chosen_step_logps: Tensor,
    ref_rejected_step_logps: Tensor,
    chosen_step_kl: Tensor,
    rejected_step_kl: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: Scalar = 0.1,
    alpha: Scalar = 0.5,
    variant: str = "tdpo2",
) -> Tensor:
    """Token-level DPO: the margin pays for what the policy departs from its reference on the way.

    loss = −LS(β(Σh_c − Σh_r − α·(ΣK_r − ΣK_c)))

    In TDPO2 no gradient flows through ΣK_c; in TDPO1 it does, and α is 1.

    Args:
        chosen_step_logps, rejected_step_logps: ``[batch, time]``, nats.
        ref_chosen_step_logps, ref_rejected_step_logps: the same of the reference policy.
        chosen_step_kl, rejected_step_kl: ``[batch, time]``, K_t, nats, with gradients.
        chosen_mask, rejected_mask: ``[batch, time]``, whether a step counts.
        chosen_lengths, rejected_lengths: ``[batch]``, steps of the responses.
        beta: β > 0.
        alpha: α ≥ 0, of TDPO2.
        variant: ``"tdpo1"`` or ``"tdpo2"``.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, α 0.5 and TDPO2, the authors'.

    Limits:
        DPO where both divergences are 0, as at the start of training, and for α = 0.

    Pitfalls:
        The divergence takes the whole distribution of every step of policy and reference: of a
        language model that is the logits of all answers, twice.

    Source: Zeng et al., arXiv 2404.11999, and the authors' code, which has both.

    >>> x, kl, mask = torch.full((1, 4), -5.0), torch.zeros(1, 4), torch.ones(1, 4)
    >>> n = torch.tensor([4])
    >>> tdpo_loss(x, x, x, x, kl, kl, mask, mask, n, n).tolist()         # log 2
    [0.6931471824645996]
    """
    chosen = {
        "logps": chosen_step_logps,
        "ref_logps": ref_chosen_step_logps,
        "kl": chosen_step_kl,
    }
    rejected = {
        "logps": rejected_step_logps,
        "ref_logps": ref_rejected_step_logps,
        "kl": rejected_step_kl,
    }
    masks, lengths = (chosen_mask, rejected_mask), (chosen_lengths, rejected_lengths)
    good, bad = _checked(chosen, rejected, masks, lengths, beta)
    check_non_negative(alpha=alpha)
    check_choice("variant", variant, VARIANTS)
    margin = _total(*good) - _total(*bad)
    kl_chosen = _total(in_dtype(chosen_step_kl, margin.dtype), *good[1:])
    kl_rejected = _total(in_dtype(rejected_step_kl, margin.dtype), *bad[1:])
    if variant == "tdpo1":
        return -logsigmoid(beta * (margin - (kl_rejected - kl_chosen)))
    return -logsigmoid(beta * (margin - alpha * (kl_rejected - kl_chosen.detach())))


def sparse_po_loss(
    chosen_step_logps: Tensor,
    rejected_step_logps: Tensor,
    ref_chosen_step_logps: Tensor,
    ref_rejected_step_logps: Tensor,
    chosen_step_kl: Tensor,
    rejected_step_kl: Tensor,
    chosen_step_weights: Tensor,
    rejected_step_weights: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: Scalar = 0.1,
    sparsity_coef: Scalar = 0.0,
) -> Tensor:
    """SparsePO: token-level DPO in which every token has a weight, most of them perhaps 0.

    loss = −LS(β(Σm·h_c − Σm·h_r − (Σm·K_r − Σm·K_c))) + λ·(Σ|m_c| + Σ|m_r|)

    Args:
        chosen_step_logps, rejected_step_logps: ``[batch, time]``, nats.
        ref_chosen_step_logps, ref_rejected_step_logps: the same of the reference policy.
        chosen_step_kl, rejected_step_kl: ``[batch, time]``, K_t, nats, with gradients.
        chosen_step_weights, rejected_step_weights: ``[batch, time]``, m_t ≥ 0; a gradient reaches
            them, so that they may be learned.
        chosen_mask, rejected_mask: ``[batch, time]``, whether a step counts.
        chosen_lengths, rejected_lengths: ``[batch]``, steps of the responses.
        beta: β > 0.
        sparsity_coef: λ ≥ 0, per step: it makes learned weights sparse.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1 and λ 0, the authors'; they also take λ 0.001, once for each term.

    Limits:
        All m = 1 is TDPO1, and with λ = 0 all m = 0 is log 2.

    Pitfalls:
        Fine-tuning learns the weights from the reference's hidden states, as the authors do; the
        suite has none. Not offered are their variants with other weights for K and with weights
        that are computed from the reference's activations.

    Source: Christopoulou et al., arXiv 2410.05102, and the authors' code, with one mask for both
    terms.

    >>> x, kl, mask = torch.full((1, 4), -5.0), torch.zeros(1, 4), torch.ones(1, 4)
    >>> n = torch.tensor([4])
    >>> sparse_po_loss(x, x - 9, x, x, kl, kl, 0 * mask, 0 * mask, mask, mask, n, n).tolist()
    [0.6931471824645996]
    """
    chosen = {
        "logps": chosen_step_logps,
        "ref_logps": ref_chosen_step_logps,
        "kl": chosen_step_kl,
        "weights": chosen_step_weights,
    }
    rejected = {
        "logps": rejected_step_logps,
        "ref_logps": ref_rejected_step_logps,
        "kl": rejected_step_kl,
        "weights": rejected_step_weights,
    }
    masks, lengths = (chosen_mask, rejected_mask), (chosen_lengths, rejected_lengths)
    good, bad = _checked(chosen, rejected, masks, lengths, beta)
    check_non_negative(sparsity_coef=sparsity_coef)
    chosen_total = _weighted_total(good, chosen_step_kl, chosen_step_weights)
    rejected_total = _weighted_total(bad, rejected_step_kl, rejected_step_weights)
    loss = -logsigmoid(beta * (chosen_total - rejected_total))
    if type(sparsity_coef) is float and sparsity_coef == 0.0:
        return loss
    norms = [
        _total(in_dtype(weights.abs(), ratio.dtype), mask, scale)
        for weights, (ratio, mask, scale) in (
            (chosen_step_weights, good),
            (rejected_step_weights, bad),
        )
    ]
    return loss + sparsity_coef * (norms[0] + norms[1])


def _weighted_total(side: Side, kl: Tensor, weights: Tensor) -> Tensor:
    ratio, mask, scale = side
    value = ratio + in_dtype(kl, ratio.dtype)
    value = torch.where(mask, value, 0.0)  # or a padded NaN would reach the weights' gradient
    return _total(in_dtype(weights, ratio.dtype) * value, mask, scale)


def tb_po_loss(
    chosen_step_logps: Tensor,
    rejected_step_logps: Tensor,
    ref_chosen_step_logps: Tensor,
    ref_rejected_step_logps: Tensor,
    chosen_step_kl: Tensor,
    rejected_step_kl: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: Scalar = 0.1,
) -> Tensor:
    """TBPO-A: a preference model of single tokens, by their advantages under the reference.

    loss = mean_t −LS(β((h_c + K_c) − (h_r + K_r)))

    Token t of one response is compared with token t of the other, as far as both have one. Under
    the reference h + K has mean 0: it is the advantage of a token, in nats.

    Args:
        chosen_step_logps, rejected_step_logps: ``[batch, time]``, nats.
        ref_chosen_step_logps, ref_rejected_step_logps: the same of the reference policy.
        chosen_step_kl, rejected_step_kl: ``[batch, time]``, K_t, nats, with gradients.
        chosen_mask, rejected_mask: ``[batch, time]``, whether a step counts.
        chosen_lengths, rejected_lengths: ``[batch]``, steps of the responses.
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
        DPO of β for responses of one step whose divergences are 0.

    Pitfalls:
        What one response has beyond the other's length does not count. The authors' second variant,
        TBPO-Q, learns a baseline on top of the model's hidden states, which no pure function can.

    Source: Nguyen et al., arXiv 2605.12288, TBPO-A with the logistic function for the Bregman
    divergence, reconstructed from its description and the authors' code of TBPO-Q.

    >>> x, kl, mask = torch.full((1, 4), -5.0), torch.zeros(1, 4), torch.ones(1, 4)
    >>> n = torch.tensor([4])
    >>> tb_po_loss(x, x, x, x, kl, kl, mask, mask, n, n).tolist()        # log 2
    [0.6931471824645996]
    """
    chosen = {
        "logps": chosen_step_logps,
        "ref_logps": ref_chosen_step_logps,
        "kl": chosen_step_kl,
    }
    rejected = {
        "logps": rejected_step_logps,
        "ref_logps": ref_rejected_step_logps,
        "kl": rejected_step_kl,
    }
    masks, lengths = (chosen_mask, rejected_mask), (chosen_lengths, rejected_lengths)
    good, bad = _ratios(chosen, rejected, masks, lengths, beta)
    both = in_dtype(chosen_mask, torch.bool) & in_dtype(rejected_mask, torch.bool)
    dtype = good.dtype
    margin = (good + in_dtype(chosen_step_kl, dtype)) - (bad + in_dtype(rejected_step_kl, dtype))
    margin = torch.where(both, margin, 0.0)
    loss = torch.where(both, -logsigmoid(beta * margin), 0.0)
    return loss.sum(-1) / both.sum(-1).clamp(min=1)


def ld_dpo_loss(
    chosen_step_logps: Tensor,
    rejected_step_logps: Tensor,
    ref_chosen_step_logps: Tensor,
    ref_rejected_step_logps: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: Scalar = 0.1,
    excess_coef: Scalar = 0.5,
) -> Tensor:
    """LD-DPO: what a response has beyond the length of the other one counts less.

    loss = −LS(β(Σw·h_c − Σw·h_r)),    w_t = 1 up to min(n_c, n_r), α beyond

    Args:
        chosen_step_logps, rejected_step_logps: ``[batch, time]``, nats.
        ref_chosen_step_logps, ref_rejected_step_logps: the same of the reference policy.
        chosen_mask, rejected_mask: ``[batch, time]``, whether a step counts.
        chosen_lengths, rejected_lengths: ``[batch]``, steps of the responses: n_c and n_r.
        beta: β > 0.
        excess_coef: α in (0, 1].

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's; α 0.5, in the middle of what the authors try.

    Limits:
        DPO for α = 1, and for responses of one length.

    Pitfalls:
        The end of a long answer hardly counts, whatever it says.

    Source: Liu et al., arXiv 2409.06411, as ``ld_alpha`` in TRL 1.16.

    >>> x, mask = torch.full((1, 4), -5.0), torch.ones(1, 4)
    >>> n = torch.tensor([4])
    >>> ld_dpo_loss(x, x, x, x, mask, mask, n, n).tolist()               # log 2
    [0.6931471824645996]
    """
    chosen = {"logps": chosen_step_logps, "ref_logps": ref_chosen_step_logps}
    rejected = {"logps": rejected_step_logps, "ref_logps": ref_rejected_step_logps}
    masks, lengths = (chosen_mask, rejected_mask), (chosen_lengths, rejected_lengths)
    good, bad = _checked(chosen, rejected, masks, lengths, beta)
    check_fraction(excess_coef=excess_coef)
    shared = torch.minimum(chosen_lengths, rejected_lengths)[..., None]
    values = []
    for ratio, mask, scale in (good, bad):
        excess = _places(mask, scale) > shared
        values.append(_total(torch.where(excess, excess_coef * ratio, ratio), mask, scale))
    return -logsigmoid(beta * (values[0] - values[1]))


def bvpo_loss(
    chosen_step_logps: Tensor,
    rejected_step_logps: Tensor,
    ref_chosen_step_logps: Tensor,
    ref_rejected_step_logps: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: Scalar = 0.1,
    mix: Scalar = 0.5,
    window: Scalar = 0.25,
) -> Tensor:
    """BVPO: DPO of the whole response, which is noisy, mixed with DPO of its last part.

    loss = −α·LS(β(Σh_c − Σh_r)) − (1 − α)·LS(β(Σ_W h_c − Σ_W h_r))

    W is the last part of the response; a reasoning model's answer stands there, after its thoughts.

    Args:
        chosen_step_logps, rejected_step_logps: ``[batch, time]``, nats.
        ref_chosen_step_logps, ref_rejected_step_logps: the same of the reference policy.
        chosen_mask, rejected_mask: ``[batch, time]``, whether a step counts.
        chosen_lengths, rejected_lengths: ``[batch]``, steps of the responses.
        beta: β > 0.
        mix: α in (0, 1], the weight of the whole.
        window: in (0, 1), the share of the response that W is.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded below by 0.

    Defaults:
        β 0.1, DPO's; α 0.5, which the authors take; window ¼, a choice of this library.

    Limits:
        α = 1 is DPO.

    Pitfalls:
        The authors' second estimate is of answers to which the model gave no thoughts at all;
        here it is of the end of the same response, given its thoughts, and so it is biased
        otherwise.

    Source: Zhu et al., arXiv 2510.05095, with a window for the empty trace.

    >>> x, mask = torch.full((1, 4), -5.0), torch.ones(1, 4)
    >>> n = torch.tensor([4])
    >>> bvpo_loss(x, x, x, x, mask, mask, n, n).tolist()                 # log 2
    [0.6931471824645996]
    """
    chosen = {"logps": chosen_step_logps, "ref_logps": ref_chosen_step_logps}
    rejected = {"logps": rejected_step_logps, "ref_logps": ref_rejected_step_logps}
    masks, lengths = (chosen_mask, rejected_mask), (chosen_lengths, rejected_lengths)
    good, bad = _checked(chosen, rejected, masks, lengths, beta)
    check_fraction(mix=mix)
    check_within(0, 1, window=window)
    whole, part = [], []
    for (ratio, mask, scale), steps in zip((good, bad), lengths, strict=True):
        inside = _places(mask, scale) > (1 - window) * steps[..., None]
        whole.append(_total(ratio, mask, scale))
        part.append(_total(torch.where(inside, ratio, 0.0), mask, scale))
    full = logsigmoid(beta * (whole[0] - whole[1]))
    return -mix * full - (1 - mix) * logsigmoid(beta * (part[0] - part[1]))
