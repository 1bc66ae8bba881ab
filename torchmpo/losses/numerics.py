"""Functions of log-probabilities that do not overflow."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# Where an exponential that a loss takes of log-probabilities goes on as its tangent: e^30 squared,
# and summed over parameters, is still far from float32's 3e38.
MAX_EXPONENT = 30.0


def at_most(x: Tensor, limit: float) -> Tensor:
    """x where it does not exceed ``limit``, which it may reach, and ``limit`` elsewhere.

    The slope at the limit itself is 1, the one from below. ``clamp`` has it up to torch 2.13; from
    2.14 on its slope there is 0, and what goes on as its tangent line would be flat at one point.

    >>> x = torch.tensor([29.0, 30.0, 31.0], requires_grad=True)
    >>> torch.autograd.grad(at_most(x, 30.0).sum(), x)[0].tolist()
    [1.0, 1.0, 0.0]
    """
    return x.masked_fill(x > limit, limit)


def exp_then_line(x: Tensor, limit: float = MAX_EXPONENT) -> Tensor:
    """eˣ up to ``limit``, and its tangent line beyond: C¹, increasing, never overflowing.

    Args:
        x: ``[...]``.
        limit: where the line begins.

    >>> exp_then_line(torch.tensor([0.0, 1.0, 2.0]), limit=1.0)
    tensor([1.0000, 2.7183, 5.4366])
    """
    return torch.exp(at_most(x, limit)) * (1 + torch.relu(x - limit))


def q_logarithm(x: Tensor, k: float | Tensor) -> Tensor:
    """(e^{kx} − 1)/k, and x at k = 0; where kx > 30 it goes on as its tangent line.

    Of x = log p it is Tsallis' logarithm of p, of index k + 1.

    Args:
        x: ``[...]``.
        k: a number, or a 0-d tensor.

    >>> q_logarithm(torch.tensor([-1.0, 2.0]), 0.0).tolist()
    [-1.0, 2.0]
    """
    if not isinstance(k, Tensor):
        return x if k == 0 else _expm1_then_line(k * x) / k
    # Near kx = 0 a series, so that the derivative with respect to k is right there, too.
    small = (k * x).abs() < 1e-2
    u = (k * x).clamp(-1e-2, 1e-2)
    series = x * (1 + u / 2 * (1 + u / 3 * (1 + u / 4 * (1 + u / 5 * (1 + u / 6)))))
    safe = torch.where(small, 1.0, k.to(x.dtype))
    return torch.where(small, series, _expm1_then_line(safe * x) / safe)


def _expm1_then_line(x: Tensor) -> Tensor:
    line = math.exp(MAX_EXPONENT) * torch.relu(x - MAX_EXPONENT)
    return torch.expm1(at_most(x, MAX_EXPONENT)) + line


def smoothed_logistic(x: Tensor, label_smoothing: float | Tensor) -> Tensor:
    """−(1 − ε)·LS(x) − ε·LS(−x), where LS is the log of the logistic function.

    Args:
        x: ``[...]``.
        label_smoothing: ε.

    >>> smoothed_logistic(torch.tensor([0.0]), 0.25).tolist()            # log 2
    [0.6931471824645996]
    """
    loss = -logsigmoid(x)
    if not isinstance(label_smoothing, Tensor) and label_smoothing == 0:
        return loss
    return (1 - label_smoothing) * loss - label_smoothing * logsigmoid(-x)
