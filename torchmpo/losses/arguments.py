"""What every loss demands of its arguments, said once.

Hyper-parameters may be python numbers, whose range is checked here, or 0-d tensors, whose value is
not: a tensor may be one member of a vmapped grid, and reading its value would break that.
"""

from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = float | Tensor


def same_shape(optional: Sequence[str] = (), /, **tensors: Tensor | None) -> None:
    """Refuse what would broadcast or be missed: tensors must be ``[batch]``, all of one shape.

    (Or 0-d: under ``torch.func.vmap`` a loss may see one pair.)

    Args:
        optional: names of those that may be None.

    Raises:
        ValueError: one is missing or no tensor, two shapes differ (the message prints both), there
            is a dimension too many, or the first, if log-probabilities, are integers.
    """
    shape = None
    for name, tensor in tensors.items():
        if type(tensor) is Tensor:
            if tensor.shape == shape:
                continue
            if shape is None and tensor.dim() < 2 and tensor.is_floating_point():
                shape = tensor.shape
                continue
        elif tensor is None and name in optional:
            continue
        _refuse(optional, tensors)  # mostly all is right; to say what is not takes longer
        return


def _refuse(optional: Sequence[str], tensors: dict[str, Tensor | None]) -> None:
    shape, first = None, ""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            if tensor is None and name in optional:
                continue
            raise ValueError(f"{name} must be a tensor [batch]; got {_kind(tensor)}")
        if shape is None:
            shape, first = tensor.shape, name
            if name.endswith("logps") and not tensor.is_floating_point():
                raise ValueError(f"{name} must be floating point; got {tensor.dtype}")
        elif tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, but {first} has {tuple(shape)}"
            )
    if shape is not None and len(shape) > 1:
        raise ValueError(
            f"{first} must be [batch]; got shape {tuple(shape)}: "
            "add up (or average) the log-probabilities of a response's steps first"
        )


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _check(fits: Callable[[float], bool], what: str, values: dict[str, Scalar]) -> None:
    for name, value in values.items():
        if isinstance(value, Tensor):
            if value.dim():
                raise ValueError(
                    f"{name} must be a number or a 0-d tensor; got shape {tuple(value.shape)}"
                )
            continue
        try:
            right = fits(1.0 * value)
        except (TypeError, OverflowError):  # no number, or one beyond all floats
            right = False
        if not right:
            raise ValueError(f"{name} must be {what}; got {value!r}")


def _checker(fits: Callable[[float], bool], what: str) -> Callable[..., None]:
    """A function that refuses, by name, numbers which do not fit."""

    def check(**values: Scalar) -> None:
        for value in values.values():
            if type(value) is not float or not fits(value):  # seldom; the rest takes longer
                _check(fits, what, values)
                return

    return check


check_positive = _checker(lambda v: 0 < v < inf, "positive and finite")
check_non_negative = _checker(lambda v: 0 <= v < inf, "zero or positive, and finite")
check_finite = _checker(isfinite, "finite")
check_fraction = _checker(lambda v: 0 < v <= 1, "in (0, 1]")
check_smoothing = _checker(lambda v: 0 <= v < 0.5, "in [0, 0.5)")
check_not_nan = _checker(lambda v: -inf <= v <= inf, "a number")


def check_within(low: float, high: float, **values: Scalar) -> None:
    """Refuse what is not in the open interval (low, high)."""
    for value in values.values():
        if type(value) is not float or not low < value < high:
            _check(lambda v: low < v < high, f"in ({low:g}, {high:g})", values)
            return


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is not one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in that type; ``Tensor.to`` takes a microsecond where there is nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def real(count: Tensor, dtype: torch.dtype) -> Tensor:
    """A count of steps, to divide or to be divided by, in that type.

    Integers are cast only where the type is not the default one, which a quotient takes anyway.
    """
    if count.is_floating_point() or dtype != torch.get_default_dtype():
        return in_dtype(count, dtype)
    return count


def times(coef: Scalar, x: Tensor) -> Tensor:
    """coef·x, which for the number 1 is x itself."""
    return x if type(coef) is float and coef == 1.0 else coef * x


def log_ratio(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """h = log π(y|x) − log π_ref(y|x); no gradient reaches the reference, which is data."""
    return logps - ref_logps.detach()


def log_ratios(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
) -> tuple[Tensor, Tensor]:
    """h_c and h_r, of inputs that have one shape."""
    same_shape(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    chosen = log_ratio(chosen_logps, ref_chosen_logps)
    return chosen, log_ratio(rejected_logps, ref_rejected_logps)


def scaled_margin(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: Scalar,
) -> Tensor:
    """x = βD, of inputs that have one shape; β > 0."""
    check_positive(beta=beta)
    chosen, rejected = log_ratios(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return beta * (chosen - rejected)


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
    return logps / real(lengths, logps.dtype)
