"""Online IPO and EGPO: a softmax policy against itself in a game of preferences.

Both descend IPO's loss on pairs (y, y') drawn uniformly, where what is preferred is what wins
against an answer y'' of an opponent μ. In expectation over y'' the loss is

    E[(log(π(y)π_ref(y')/(π(y')π_ref(y))) − (P(y ≻ μ) − P(y' ≻ μ))/β)²]

Online IPO takes for μ the policy itself. EGPO takes that step twice, both times from where it is:
first to a policy that is thought ahead, then with that one for the opponent. The first goes in
circles where preferences do; the second ends at the equilibrium of the game with β·KL.

Source: Zhou, Fazel and Du, arXiv 2503.08942 [reconstructed from the paper].
"""

import torch
from torch import Tensor

from torchmpo.games.matrix_games import check_game
from torchmpo.losses.reference_based import ipo_loss


def ipo_gradient(
    logits: Tensor, opponent: Tensor, reference: Tensor, preference: Tensor, *, beta: float
) -> Tensor:
    """Gradient over the logits, ``[n]``, of the loss above, by enumeration of all pairs.

    Args:
        logits: ``[n]``, of the policy.
        opponent: ``[n]``, μ.
        reference: ``[n]``, positive.
        preference: ``[n, n]``.
        beta: β > 0.
    """
    logits = logits.detach().requires_grad_()
    logps, ref = torch.log_softmax(logits, 0), reference.log()
    n, wins = len(logits), preference @ opponent
    first, second = torch.cartesian_prod(torch.arange(n), torch.arange(n)).T
    # A fair coin says which of the two meets y''; the label is who is then the better one.
    p = (1 + wins[first] - wins[second]) / 2
    loss = p * _ipo(logps, ref, first, second, beta) + (1 - p) * _ipo(
        logps, ref, second, first, beta
    )
    return torch.autograd.grad(loss.mean(), logits)[0]


def sampled_ipo_gradient(
    logits: Tensor,
    opponent: Tensor,
    reference: Tensor,
    preference: Tensor,
    *,
    beta: float,
    pairs: int,
    generator: torch.Generator,
) -> Tensor:
    """What :func:`ipo_gradient` is the mean of: as many pairs, with one label for each.

    Args:
        pairs: drawn, and judged once each (≥ 1).
        generator: of all draws.
    """
    logits = logits.detach().requires_grad_()
    logps, ref = torch.log_softmax(logits, 0), reference.log()
    first, second = torch.randint(len(logits), (2, pairs), generator=generator)
    third = torch.multinomial(opponent, pairs, replacement=True, generator=generator)
    coin, draw = torch.rand(2, pairs, generator=generator, dtype=preference.dtype)
    meets = torch.where(coin < 0.5, first, second)
    won = draw < preference[meets, third]
    better = won == (coin < 0.5)  # the first one won, or the second one lost
    chosen, rejected = torch.where(better, first, second), torch.where(better, second, first)
    return torch.autograd.grad(_ipo(logps, ref, chosen, rejected, beta).mean(), logits)[0]


def learn(
    preference: Tensor,
    reference: Tensor,
    *,
    beta: float,
    step_size: float,
    steps: int,
    extragradient: bool,
    start: Tensor | None = None,
    pairs: int | None = None,
    seed: int = 0,
) -> Tensor:
    """The policies on the way, ``[steps + 1, n]``, by online IPO or, with ``extragradient``, EGPO.

    A step is θ ← (1 − ηβ)θ + ηβ·θ_ref + η·Pμ, up to a constant: ηβn/4 times IPO's gradient.

    Args:
        preference: ``[n, n]``.
        reference: ``[n]``, positive.
        beta: β > 0.
        step_size: η > 0, with ηβ ≤ 1.
        steps: of the policy; of labels EGPO takes twice as many.
        extragradient: EGPO instead of online IPO.
        start: ``[n]``, the first policy; by default the reference.
        pairs: drawn for each gradient; by default it is exact.
        seed: of the draws.

    Raises:
        ValueError: no game, or a number out of its range.
    """
    check_game(preference)
    if not (beta > 0 and step_size > 0 and step_size * beta <= 1):
        raise ValueError(
            f"beta and step_size must be positive, their product at most 1; got {beta}"
            f" and {step_size}"
        )
    reference = reference.to(preference)
    logits = (reference if start is None else start.to(preference)).log()
    rate = step_size * beta * len(reference) / 4
    generator = torch.Generator().manual_seed(seed)

    def towards(opponent: Tensor) -> Tensor:
        given = (logits, opponent, reference, preference)
        if pairs is None:
            return logits - rate * ipo_gradient(*given, beta=beta)
        drawn = sampled_ipo_gradient(*given, beta=beta, pairs=pairs, generator=generator)
        return logits - rate * drawn

    policies = [logits.softmax(0)]
    for _ in range(steps):
        ahead = towards(policies[-1])
        logits = towards(ahead.softmax(0)) if extragradient else ahead
        policies.append(logits.softmax(0))
    return torch.stack(policies)


def _ipo(logps: Tensor, ref: Tensor, chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """The library's loss, whose aim at a sure label is 1/(2β): half a β makes it 1/β."""
    args = logps[chosen], logps[rejected], ref[chosen], ref[rejected]
    return ipo_loss(*args, beta=beta / 2, reduction="sum")
