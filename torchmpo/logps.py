"""Step log-probabilities, and how they add up to those of a trajectory or a completion."""

import math

import torch
from torch import Tensor


def gaussian_step_logps(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of each step's action under a diagonal Gaussian.

    log N(a; μ, σ²) = Σ_i −½((a_i − μ_i)/σ_i)² − log σ_i − ½ log 2π

    Args:
        action: ``[..., action_size]``, as drawn, before any clipping to the actuators' range.
        mean: ``[..., action_size]``.
        log_std: broadcastable to ``mean``; the log of the standard deviation.

    Returns:
        ``[...]`` in nats. A density, so it may be positive when σ is small.
    """
    z = (action - mean) * torch.exp(-log_std)
    constant = 0.5 * math.log(2 * math.pi) * action.shape[-1]
    return -0.5 * z.square().sum(-1) - log_std.expand_as(mean).sum(-1) - constant


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − eˣ), accurate at both ends.

    Near 0 the difference is formed by ``expm1``, far below it by ``log1p``; the branch not taken
    never sees an argument that could poison the gradient.

    Args:
        x: ``[...]``, < 0, nats; at 0 the result is −∞.

    Returns:
        ``[...]``, ≤ 0.

    Source: Mächler, *Accurately Computing log(1 − exp(−|a|))*, 2012, eq. 7.

    >>> log1mexp(torch.tensor([-1.0, -20.0]))
    tensor([-4.5868e-01, -2.0612e-09])
    """
    near = x > -math.log(2)
    expm1_side = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    log1p_side = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, expm1_side, log1p_side)
