"""Preferences that no reward explains: win rates, the duality gap, the Nash mixture of a game.

A game is a matrix P of win rates ``[n, n]``: P[i, j] is how likely answer i is preferred to answer
j, so P + Pᵀ = 1. Policies are distributions over the n answers ``[n]``. The same matrix may be of n
policies that were measured against each other; a distribution is then a mixture of them.
"""

import torch
from torch import Tensor

CYCLE = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])


def cyclic_game(strength: float = 1.0) -> Tensor:
    """Three answers that beat each other in a circle, ``[3, 3]``, float64: (1 ± strength)/2.

    Args:
        strength: in [0, 1]; 1 is rock, paper, scissors.

    >>> cyclic_game(0.8)
    tensor([[0.5000, 0.1000, 0.9000],
            [0.9000, 0.5000, 0.1000],
            [0.1000, 0.9000, 0.5000]], dtype=torch.float64)
    """
    return (1 + strength * CYCLE.double()) / 2


def check_game(preference: Tensor) -> None:
    """Refuse what is no matrix of win rates.

    Raises:
        ValueError: it is not square, has a number outside [0, 1], or P + Pᵀ is not 1.
    """
    if preference.dim() != 2 or preference.shape[0] != preference.shape[1]:
        raise ValueError(f"win rates must be [n, n]; got {tuple(preference.shape)}")
    ones = torch.ones_like(preference)
    inside = bool(((preference >= 0) & (preference <= 1)).all())
    if not inside or not torch.allclose(preference + preference.T, ones, atol=1e-5):
        raise ValueError("win rates must be in [0, 1], and P[i, j] + P[j, i] must be 1")


def kl(policy: Tensor, reference: Tensor) -> Tensor:
    """KL(policy ‖ reference), nats, of distributions ``[..., n]``; 0·log 0 is 0."""
    return (torch.xlogy(policy, policy) - torch.xlogy(policy, reference)).sum(-1)


def duality_gap(
    preference: Tensor, policy: Tensor, reference: Tensor | None = None, *, beta: float = 0.0
) -> Tensor:
    """How much the best opponent gains on a policy, twice; 0 only for a Nash equilibrium.

    max_π' V(π', π) − min_π' V(π, π'),    V(a, b) = aᵀPb − β·KL(a ‖ ref) + β·KL(b ‖ ref)

    With β = 0 that is 2·max_i (Pπ)_i − 1, which is 1 where somebody beats the policy for sure.

    Args:
        preference: ``[n, n]``.
        policy: ``[n]``, a distribution.
        reference: ``[n]``, positive everywhere; needed where β > 0.
        beta: β ≥ 0, how much both players pay for leaving the reference.

    Returns:
        a scalar ≥ 0, up to rounding.

    Raises:
        ValueError: see :func:`check_game`; or β without a reference.

    >>> duality_gap(cyclic_game(), torch.tensor([1.0, 0.0, 0.0])).item()
    1.0
    """
    check_game(preference)
    wins = preference @ policy.to(preference)
    if beta == 0:
        return 2 * wins.max() - 1
    if reference is None:
        raise ValueError("a duality gap with beta needs the reference")
    best = beta * torch.logsumexp(reference.to(preference).log() + wins / beta, 0)
    return 2 * (best + beta * kl(policy, reference).to(preference)) - 1


def nash_mixture(preference: Tensor) -> Tensor:
    """The mixture that loses to nobody: argmax_π min_j (πᵀP)_j, ``[n]``, float64.

    Where several do, it is the one that the solver of the linear program ends at.

    Raises:
        ValueError: see :func:`check_game`.

    >>> [round(w, 4) for w in nash_mixture(cyclic_game(0.8)).tolist()]
    [0.3333, 0.3333, 0.3333]
    """
    import numpy as np
    from scipy.optimize import linprog

    check_game(preference)
    wins, n = preference.double().numpy(), len(preference)
    # Over (π, v): maximise v where (πᵀP)_j ≥ v for every j.
    found = linprog(
        np.r_[np.zeros(n), -1.0],
        A_ub=np.c_[-wins.T, np.ones(n)],
        b_ub=np.zeros(n),
        A_eq=np.r_[np.ones(n), 0.0][None],
        b_eq=[1.0],
        bounds=[(0, 1)] * n + [(None, None)],
    )
    mixture = torch.from_numpy(found.x[:n]).clamp(min=0)
    return mixture / mixture.sum()
