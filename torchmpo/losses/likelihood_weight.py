"""Pairs that the policy itself might have written count more: WPO, for any pairwise loss."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchmpo.losses.arguments import Scalar, in_dtype, same_shape
from torchmpo.losses.logistic import dpo_loss
from torchmpo.losses.numerics import MAX_EXPONENT

# Losses whose values are not those of single pairs in their order, or that are not of pairs.
NOT_BY_PAIR = frozenset(
    {"aot", "aot_unpaired", "apo_zero_unpaired", "bco_unpaired", "dr_dpo", "kto"}
)
READ = ("chosen_mean_logps", "rejected_mean_logps")
MAY_READ = ("chosen_log_collision", "rejected_log_collision")


def likelihood_weight(
    chosen_mean_logps: Tensor,
    rejected_mean_logps: Tensor,
    chosen_log_collision: Tensor | None = None,
    rejected_log_collision: Tensor | None = None,
) -> Tensor:
    """exp(c̄ − C_c)·exp(r̄ − C_r), ``[batch]``, without a gradient; at most e³⁰.

    Args:
        chosen_mean_logps, rejected_mean_logps: ``[batch]``, nats per step.
        chosen_log_collision, rejected_log_collision: ``[batch]``, C, the mean over the steps of
            log Σ_v π(v)², by which a step is measured that is drawn from the policy; None for 0.

    Raises:
        ValueError: shapes differ.

    >>> x = torch.tensor([-1.0])
    >>> likelihood_weight(x, 0 * x, x, 0 * x).tolist()
    [1.0]
    """
    same_shape(
        MAY_READ,
        chosen_mean_logps=chosen_mean_logps,
        rejected_mean_logps=rejected_mean_logps,
        chosen_log_collision=chosen_log_collision,
        rejected_log_collision=rejected_log_collision,
    )
    total = chosen_mean_logps.detach() + rejected_mean_logps.detach()
    for collision in (chosen_log_collision, rejected_log_collision):
        if collision is not None:
            total = total - in_dtype(collision.detach(), total.dtype)
    return torch.exp(total.clamp(max=MAX_EXPONENT))


def wpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_mean_logps: Tensor,
    rejected_mean_logps: Tensor,
    chosen_log_collision: Tensor | None = None,
    rejected_log_collision: Tensor | None = None,
    *,
    beta: Scalar = 0.1,
    label_smoothing: Scalar = 0.0,
) -> Tensor:
    """WPO: DPO in which a pair counts by how likely the policy is to write both of its responses.

    loss = w·[−(1 − ε)·LS(βD) − ε·LS(−βD)],    w = exp(c̄ − C_c)·exp(r̄ − C_r)

    C is the mean over the steps of log Σ_v π(v)², so that a response drawn from the policy has a
    weight near 1. No gradient flows through w. Another loss of pairs is weighed so as
    ``resolve("simpo@wpo")``.

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, of the reference policy.
        chosen_mean_logps, rejected_mean_logps: ``[batch]``, nats per step: c̄ and r̄.
        chosen_log_collision, rejected_log_collision: ``[batch]``, C_c and C_r, nats per step; None
            for 0.
        beta: β > 0.
        label_smoothing: ε in [0, ½), as in DPO.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or a hyper-parameter is out of range.

    Bounds:
        bounded, between 0 and about β·n: where the loss of a pair of n steps grows, its weight
        vanishes.

    Defaults:
        β 0.1 and ε 0, DPO's.

    Limits:
        DPO where both weights are 1; nothing where a response is out of the policy's reach.

    Pitfalls:
        Without C the weights are those of probabilities, far below 1 wherever a model has a choice,
        and the steps of training are as small. The weight is limited to e³⁰.

    Source: Zhou et al., arXiv 2406.11827, eq. 2, the weights aligned as in TRL 1.16.

    >>> x = torch.tensor([-20.0])
    >>> wpo_loss(x, x, x, x, 0 * x, 0 * x).tolist()      # log 2
    [0.6931471824645996]
    """
    weight = likelihood_weight(
        chosen_mean_logps, rejected_mean_logps, chosen_log_collision, rejected_log_collision
    )
    loss = dpo_loss(
        chosen_logps,
        rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        beta=beta,
        label_smoothing=label_smoothing,
    )
    if weight.shape != loss.shape:
        same_shape(chosen_logps=chosen_logps, chosen_mean_logps=chosen_mean_logps)
    return weight * loss


class LikelihoodWeighted:
    """A loss of pairs, each multiplied by its :func:`likelihood_weight`. With ``dpo`` it is WPO.

    Args:
        loss: one of pairs, whose values are of one pair each.

    >>> from torchmpo.losses import hinge_dpo_loss
    >>> x, zero = torch.tensor([-20.0]), torch.zeros(1)
    >>> LikelihoodWeighted(hinge_dpo_loss)(x, x, x, x, zero, zero, beta=0.1).tolist()
    [1.0]
    """

    def __init__(self, loss: Callable[..., Tensor]):
        self.loss = loss
        self.__name__ = f"{getattr(loss, '__name__', 'loss')}@wpo"
        signature = inspect.signature(loss)
        parameters = list(signature.parameters.values())
        inputs = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
        self._own = [p.name for p in inputs]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        inputs += [inspect.Parameter(name, kind) for name in READ if name not in self._own]
        inputs += [inspect.Parameter(name, kind, default=None) for name in MAY_READ]
        inputs.sort(key=lambda p: p.default is not p.empty)
        self._inputs = [p.name for p in inputs]
        hyper = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        self.__signature__ = signature.replace(parameters=[*inputs, *hyper])

    def __call__(self, *data: Tensor | None, **hyper: Any) -> Tensor:
        """The loss of each pair, ``[batch]``.

        Raises:
            ValueError: as the loss does, or shapes differ.
        """
        fields = dict.fromkeys(self._inputs) | dict(zip(self._inputs, data))
        weight = likelihood_weight(*(fields[name] for name in (*READ, *MAY_READ)))  # pyright: ignore[reportArgumentType]
        return weight * self.loss(*(fields[name] for name in self._own), **hyper)
