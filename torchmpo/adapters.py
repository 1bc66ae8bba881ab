"""Any loss of torchmpo, or one's own, behind the signatures that other code bases call."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from torchmpo.metrics import implicit_rewards
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.inputs import PairLogps
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.resolve import resolve

Bound: TypeAlias = Objective | MirrorObjective
Logps: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None]

_FIELDS = {
    "sum": ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps"),
    "mean": (
        "chosen_mean_logps",
        "rejected_mean_logps",
        "ref_chosen_mean_logps",
        "ref_rejected_mean_logps",
    ),
}
_CALLER = {
    "sum": "sums over the response",
    "mean": "per-token means (average_log_prob=True)",
}


def trl_signature(
    loss: str | Path | Callable[..., Tensor] | Bound, *, unit: str = "sum", **hyper: object
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """A loss as the function that DPO trainers have a method for.

        (policy_chosen_logps, policy_rejected_logps,
         reference_chosen_logps, reference_rejected_logps)
            → (losses, chosen_rewards, rejected_rewards)

    all ``[batch]``; the rewards are :func:`~torchmpo.metrics.implicit_rewards`, detached. A
    reference-free loss may be given ``None`` for the reference's, or nothing. In TRL (up to the
    versions that have ``DPOTrainer.dpo_loss``; 0.24 passes two more arguments)::

        loss = trl_signature("dpo", beta=0.1)

        class Trainer(DPOTrainer):
            def dpo_loss(self, chosen, rejected, ref_chosen, ref_rejected, *unused):
                return loss(chosen, rejected, ref_chosen, ref_rejected)

    Args:
        loss: whatever :func:`torchmpo.resolve` takes, a function like those it finds, or an
            objective.
        unit: what the caller's log-probabilities are: ``"sum"`` over the response, or ``"mean"``
            per token. A loss with ``reduction="mean"`` is given means as they are.
        **hyper: hyper-parameters of the loss; an objective has its own.

    Raises:
        ValueError: the loss needs what this signature cannot carry, another ``unit``,
            hyper-parameters for an objective, or what :func:`torchmpo.resolve` refuses. From the
            function: a reference that is ``None`` and needed, or shapes that differ.

    >>> loss = trl_signature("dpo", beta=0.5)
    >>> x = torch.tensor([-20.0])
    >>> [y.tolist() for y in loss(x, x, x - 4, x - 4)]
    [[0.6931471824645996], [2.0], [2.0]]
    >>> trl_signature("simpo")
    Traceback (most recent call last):
    ValueError: simpo needs chosen_mean_logps, rejected_mean_logps, which trl_signature with \
unit='sum' does not carry: pass unit='mean' if the caller's log-probabilities are per-token means \
(average_log_prob=True)
    """
    if unit not in _FIELDS:
        raise ValueError(f"unit must be 'sum' or 'mean'; got {unit!r}")
    objective = resolve(loss, **hyper)
    missing = _missing(objective, unit)
    if missing:
        raise ValueError(
            f"{objective.name} needs {', '.join(missing)}, which trl_signature with "
            f"unit={unit!r} does not carry: {_remedy(objective, unit)}"
        )

    def signature(
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        pair = _pair(
            objective,
            unit,
            (
                policy_chosen_logps,
                policy_rejected_logps,
                reference_chosen_logps,
                reference_rejected_logps,
            ),
        )
        return objective(pair), *implicit_rewards(objective, pair)

    return signature


def _pair(objective: Bound, unit: str, logps: Logps) -> PairLogps:
    if unit == "mean" and _divides(objective):
        # The loss divides sums by lengths; a mean is the sum over a response of one step.
        ones = torch.ones_like(logps[0])
        sums = dict(zip(_FIELDS["sum"], logps, strict=True))
        return PairLogps(**sums, chosen_lengths=ones, rejected_lengths=ones)
    return PairLogps(**dict(zip(_FIELDS[unit], logps, strict=True)))


def _divides(objective: Bound) -> bool:
    return isinstance(objective, Objective) and (
        objective.hyper.get("reduction") == "mean" and "chosen_lengths" in objective.inputs
    )


def _missing(objective: Bound, unit: str) -> list[str]:
    """What the loss cannot be called without and the signature does not carry."""
    x = torch.full((2,), -1.0)
    pair = _pair(objective, unit, (x, x, x, x))
    absent = [n for n in PairLogps._fields if n in objective.inputs and getattr(pair, n) is None]
    if isinstance(objective, MirrorObjective) or not absent:
        return absent
    parameters = inspect.signature(objective.function).parameters
    required = [name for name in absent if parameters[name].default is not None]
    if required:
        return required
    # Whether an optional input can be left out depends on the hyper-parameters.
    try:
        objective(pair)
    except ValueError:
        return absent
    return []


def _remedy(objective: Bound, unit: str) -> str:
    remedies = []
    other = "mean" if unit == "sum" else "sum"
    if isinstance(objective, Objective) and "reduction" in objective.hyper:
        for reduction in ("sum", "mean"):
            hyper = objective.hyper | {"reduction": reduction}
            changed = Objective(objective.function, name=objective.name, **hyper)
            if not _missing(changed, unit):
                remedies.append(f"pass reduction={reduction!r}")
    if not _missing(objective, other):
        remedies.append(
            f"pass unit={other!r} if the caller's log-probabilities are {_CALLER[other]}"
        )
    if remedies:
        return ", or ".join(remedies)
    carried = {name for names in _FIELDS.values() for name in names}
    if objective.inputs <= carried:
        reason = "it needs sums and means at once"
    else:
        reason = "it needs more than log-probabilities"
    return f"{reason}; call the objective itself, with a PairLogps"
