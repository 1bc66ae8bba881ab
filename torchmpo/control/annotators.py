"""Who says which trajectory is the better one: judges, votes, groups, and what biases them.

A judge is a probability for every pair, p = P(the first trajectory is preferred). Labels, or shares
of votes, are drawn from it, so that every judge goes with every way to annotate.

Shapes: ``[pairs]`` for pairs, ``[trajectories]`` for scores.
"""

import math

import torch
from torch import Tensor

from torchmpo.runs.errors import UserError


def preference_probability(margin: Tensor, *, temperature: float) -> Tensor:
    """P(first preferred) under a Bradley–Terry judge: ``[pairs]``, σ(margin/η).

    Args:
        margin: score of the first trajectory minus that of the second, ``[pairs]``.
        temperature: η ≥ 0 in units of the score; 0 is the judge that always picks the better one,
            and the first of equals.

    Raises:
        UserError: η is negative or not a number.

    Source: arXiv 2411.06568, section 4.1.

    >>> preference_probability(torch.tensor([0.0, 1.0, -1.0]), temperature=0)
    tensor([1., 1., 0.])
    """
    if not temperature >= 0:
        raise UserError(f"the judge's temperature must not be negative; got {temperature}")
    if temperature == 0:
        return (margin >= 0).to(margin.dtype)
    return torch.sigmoid(margin / temperature)


def bradley_terry(first: Tensor, second: Tensor, *, temperature: float, uniform: Tensor) -> Tensor:
    """Whether a Bradley–Terry judge prefers the first trajectory: bool ``[pairs]``.

    P(first chosen) = σ((R₁ − R₂)/η)

    Args:
        first, second: returns ``[pairs]``.
        temperature: see :func:`preference_probability`.
        uniform: ``[pairs]``, draws from [0, 1) that decide.

    Raises:
        UserError: η is negative or not a number.
    """
    return uniform < preference_probability(first - second, temperature=temperature)


def vote_shares(probability: Tensor, uniform: Tensor) -> Tensor:
    """Share of K votes for the first trajectory: ``[pairs]``, v/K with v ~ Binomial(K, p).

    Args:
        probability: p of a vote for the first, ``[pairs]``.
        uniform: ``[pairs, K]``, draws from [0, 1), one per vote.
    """
    return (uniform < probability[:, None]).to(probability.dtype).mean(1)


def cyclic_margin(first: Tensor, second: Tensor) -> Tensor:
    """A taste without a best: s(a, b) = ⟨u_a, M u_b⟩, u = (cos θ, sin θ), M = [[0, −1], [1, 0]].

    M is skew-symmetric, so s(a, b) = −s(b, a) = sin(θ_a − θ_b): whoever is ahead by less than half
    a turn is preferred. Styles at 0, a third and two thirds of a turn beat each other in a circle.

    Args:
        first, second: θ ``[pairs]`` as parts of a turn, in [0, 1).

    Returns:
        ``[pairs]`` in [−1, 1]; what is exactly opposite, or alike, has 0.

    >>> styles = torch.tensor([0.0, 1 / 3, 2 / 3])
    >>> cyclic_margin(styles.roll(-1), styles)  # each loses to the next one
    tensor([0.8660, 0.8660, 0.8660])
    """
    return torch.sin(2 * math.pi * (first - second))


def rank_fraction(score: Tensor) -> Tensor:
    """The share of scores that are lower than each, in [0, 1)."""
    return torch.searchsorted(score.sort().values, score).to(score.dtype) / len(score)


def biased_scores(returns: Tensor, feature: Tensor, bias: float) -> Tensor:
    """Scores of a proxy judge, whom a feature impresses: R̂ = R + bias·sd(R)·z(feature).

    Args:
        returns, feature: ``[trajectories]``.
        bias: ≥ 0; at 1 the feature weighs as much as the true return.

    Returns:
        ``[trajectories]``; the returns themselves where all features are equal.
    """
    sd = feature.std(correction=0)
    z = (feature - feature.mean()) / sd if sd > 0 else torch.zeros_like(feature)
    return returns + bias * returns.std(correction=0) * z


def hard_flip_probability(margin: Tensor, most: float, scale: float) -> Tensor:
    """Probability of a wrong label, higher for close pairs: most·exp(−|margin|/scale).

    Args:
        margin: ``[pairs]``.
        most: of equal trajectories, in [0, 1].
        scale: the margin at which it has fallen to 37 % of that (> 0).
    """
    return most * torch.exp(-margin.abs() / scale)
