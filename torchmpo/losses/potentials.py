"""Potentials in closed form, and the mirror maps and divergences they generate.

A potential is given by its inverse φ⁻¹, an increasing function of a probability, and is written
here as a function of the **log**-probability: ``logps [...] → scores [...]``. So log-potentials
never leave log space, and a product of a thousand densities does not underflow.

    mirror map  h(π) = Σ_y ∫₁^{π(y)} φ⁻¹(x) dx        ∇h(π) = φ⁻¹(π)
    divergence  D_h(p, q) = h(p) − h(q) − ⟨∇h(q), p − q⟩

Source: Krichene et al. 2015; arXiv 2411.06568, section 2.2 and appendix D.
"""

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from torchmpo.losses.numerics import at_most, q_logarithm

Potential: TypeAlias = Callable[[Tensor], Tensor]

# The largest log-probability at which a logit is taken.
LOGIT_MAX_LOGP = -1e-6


def log(logps: Tensor) -> Tensor:
    """φ⁻¹(p) = log p: the negative entropy, whose divergence is KL. DPO and CPO use β·log.

    >>> log(torch.tensor([-2.0])).tolist()
    [-2.0]
    """
    return logps


def logit(logps: Tensor) -> Tensor:
    """φ⁻¹(p) = log p − log(1 − p), the log-odds that ORPO compares.

    ``logps`` above −1e-6 (a Gaussian density may exceed 1) count as −1e-6. The gradient is
    1/(1 − p) ≤ 1e6 up to that value, and at it, and 0 above, never NaN.

    >>> logit(torch.tensor([0.5]).log()).tolist()
    [0.0]
    """
    logps = at_most(logps, LOGIT_MAX_LOGP)
    # For p → 0 the second term is rounded to 0, which beside logp is exact.
    return logps - torch.log(-torch.expm1(logps))


def euclidean(logps: Tensor) -> Tensor:
    """φ⁻¹(p) = p: half the squared Euclidean distance.

    >>> euclidean(torch.tensor([0.0])).tolist()
    [1.0]
    """
    return torch.exp(logps)


def tsallis(q: float | Tensor) -> Potential:
    """φ⁻¹(p) = (p^{q−1} − 1)/(q − 1): the Tsallis entropy of index q; q → 1 is ``log``.

    Args:
        q: > 0, or φ⁻¹ would not be integrable at 0. Below 1 the scores grow like
            e^{(1−q)·|logp|} (linearly beyond the exponent 30): use per-step means.

    Raises:
        ValueError: q ≤ 0.

    >>> tsallis(2.0)(torch.tensor([0.25]).log()).tolist()
    [-0.75]
    """
    if not isinstance(q, Tensor) and not q > 0:
        raise ValueError(f"q must be positive; got {q}")
    return lambda logps: q_logarithm(logps, q - 1)


def scale(potential: Potential, coef: float | Tensor) -> Potential:
    """φ⁻¹ times ``coef`` > 0.

    >>> scale(log, 0.1)(torch.tensor([-2.0])).tolist()
    [-0.20000000298023224]
    """
    if not isinstance(coef, Tensor) and not coef > 0:
        raise ValueError(f"coef must be positive; got {coef}")
    return lambda logps: coef * potential(logps)


def add(*potentials: Potential) -> Potential:
    """The sum of several φ⁻¹, itself increasing.

    >>> add(log, euclidean)(torch.tensor([0.0])).tolist()
    [1.0]
    """
    return lambda logps: torch.stack([potential(logps) for potential in potentials]).sum(0)


@cache
def _gauss_legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1] (Golub and Welsch 1969), float64."""
    k = torch.arange(1, nodes, dtype=torch.float64)
    off_diagonal = k / torch.sqrt(4 * k.square() - 1)
    points, vectors = torch.linalg.eigh(off_diagonal.diag(1) + off_diagonal.diag(-1))
    return (points + 1) / 2, vectors[0].square()


def mirror_map(probs: Tensor, phi_inv: Potential, *, nodes: int = 128) -> Tensor:
    """h(π) = Σ_y ∫₁^{π(y)} φ⁻¹(x) dx, by quadrature, for any φ⁻¹.

    The integral runs over log x, where the logarithmic end at x = 0 is smooth; a change of
    variables that is flat at both ends takes care of a singularity at x = 1, as the logit has.

    Args:
        probs: ``[..., outcomes]``, in (0, 1]; use float64 for ten digits.
        phi_inv: ``logps → scores``.
        nodes: evaluations of φ⁻¹ per probability.

    Returns:
        ``[...]``.

    Source: arXiv 2411.06568, section 2.2.

    >>> p = torch.tensor([0.5, 0.5], dtype=torch.float64)
    >>> round(mirror_map(p, euclidean).item(), 6)        # Σ (p² − 1)/2
    -0.75
    """
    u, weights = (x.to(probs) for x in _gauss_legendre(nodes))
    fraction = u**3 * (10 - 15 * u + 6 * u**2)
    weights = weights * 30 * (u * (1 - u)).square()
    length = torch.log(probs)[..., None]
    logps = length * fraction
    return (weights * length * phi_inv(logps) * torch.exp(logps)).sum((-2, -1))


def bregman_divergence(p: Tensor, q: Tensor, phi_inv: Potential, *, nodes: int = 128) -> Tensor:
    """D_h(p, q) = h(p) − h(q) − ⟨∇h(q), p − q⟩ for the mirror map h of φ⁻¹.

    Args:
        p, q: ``[..., outcomes]``, in (0, 1].
        phi_inv: ``logps → scores``.
        nodes: see :func:`mirror_map`.

    Returns:
        ``[...]``, ≥ 0. ``log`` gives KL(p ‖ q), ``euclidean`` gives ½‖p − q‖².

    Raises:
        ValueError: the shapes differ.

    Source: arXiv 2411.06568, section 2.2.

    >>> p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    >>> round(bregman_divergence(p, q, log).item(), 6)
    0.510826
    """
    if p.shape != q.shape:
        raise ValueError(f"p has shape {tuple(p.shape)}, but q has {tuple(q.shape)}")
    slope = (phi_inv(torch.log(q)) * (p - q)).sum(-1)
    return mirror_map(p, phi_inv, nodes=nodes) - mirror_map(q, phi_inv, nodes=nodes) - slope
