"""What every loss demands of its arguments, said once.

Hyper-parameters may be python numbers, which are checked here, or 0-d tensors, which are not: a
tensor may be one member of a vmapped grid, and reading its value would break that.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

Scalar: TypeAlias = float | Tensor


def same_shape(**tensors: Tensor | None) -> None:
    """Refuse tensors that would broadcast: each must have the shape of the first.

    Raises:
        ValueError: two shapes differ; the message prints both.
    """
    shape, first = None, ""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if shape is None:
            shape, first = tensor.shape, name
        elif tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, but {first} has {tuple(shape)}"
            )


def check_positive(**values: Scalar) -> None:
    """Refuse python numbers that are not in (0, ∞)."""
    for name, value in values.items():
        if not isinstance(value, Tensor) and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite; got {value}")


def check_non_negative(**values: Scalar) -> None:
    """Refuse python numbers that are not in [0, ∞)."""
    for name, value in values.items():
        if not isinstance(value, Tensor) and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be zero or positive, and finite; got {value}")


def check_finite(**values: Scalar) -> None:
    """Refuse python numbers that are infinite or NaN."""
    for name, value in values.items():
        if not isinstance(value, Tensor) and not -math.inf < value < math.inf:
            raise ValueError(f"{name} must be finite; got {value}")


def check_label_smoothing(value: Scalar) -> None:
    """Refuse a python number outside [0, ½)."""
    if not isinstance(value, Tensor) and not 0 <= value < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5); got {value}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is not one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def log_ratio(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """h = log π(y|x) − log π_ref(y|x); no gradient reaches the reference, which is data."""
    return logps - ref_logps.detach()


def reduce_steps(logps: Tensor, lengths: Tensor | None, reduction: str) -> Tensor:
    """Summed log-probabilities in the unit that ``reduction`` names.

    Args:
        logps: ``[batch]``, nats.
        lengths: ``[batch]``, steps that count; used by ``"mean"`` only.
        reduction: ``"sum"`` leaves ``logps`` as they are; ``"mean"`` divides by ``lengths``.

    Raises:
        ValueError: another ``reduction``, or ``"mean"`` without lengths.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean'; got {reduction!r}")
    if reduction == "sum":
        return logps
    if lengths is None:
        raise ValueError("reduction='mean' needs chosen_lengths and rejected_lengths")
    return logps / lengths.to(logps.dtype)
