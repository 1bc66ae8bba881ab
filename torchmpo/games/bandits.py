"""Bandits with a known reward, and the policy that KL-regularised optimisation ends at.

Answers have rewards r ``[n]``; a Bradley–Terry judge prefers i to j with σ(r_i − r_j). What
maximises E[r] − β·KL(π ‖ ref) is π* ∝ π_ref·exp(r/β), and DPO of such labels has it as its optimum,
whichever pairs are drawn, as long as all are.
"""

import torch
from torch import Tensor

from torchmpo.losses.logistic import dpo_loss


def kl_optimum(reward: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """π* ∝ π_ref·exp(r/β), ``[n]``.

    >>> half = torch.tensor([0.5, 0.5])
    >>> [round(p, 4) for p in kl_optimum(torch.tensor([0.0, 1.0]), half, beta=1.0).tolist()]
    [0.2689, 0.7311]
    """
    return torch.softmax(reference.log() + reward / beta, 0)


def dpo_round(
    reward: Tensor,
    reference: Tensor,
    *,
    beta: float,
    start: Tensor | None = None,
    online: bool = True,
    steps: int = 200,
    learning_rate: float = 0.1,
    pairs: int | None = None,
    seed: int = 0,
) -> Tensor:
    """A softmax policy after one round of DPO against a reference, ``[n]``.

    Args:
        reward: ``[n]``, of the Bradley–Terry judge.
        reference: ``[n]``, positive; DPO's reference.
        beta: β > 0.
        start: ``[n]``, the first policy; by default the reference.
        online: pairs of the policy as it is now; else pairs of ``start`` all the time.
        steps: of Adam, whose step size falls to 0.
        learning_rate: at first, of the logits.
        pairs: drawn and labelled in every step; by default all pairs are enumerated.
        seed: of the draws.
    """
    first_policy = reference if start is None else start
    logits = first_policy.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, steps)
    ref, generator = reference.log(), torch.Generator().manual_seed(seed)
    n = len(reward)
    for _ in range(steps):
        logps = logits.log_softmax(0)
        who = logps.detach().exp() if online else first_policy
        if pairs is None:
            first, second = torch.cartesian_prod(torch.arange(n), torch.arange(n)).T
            weight = who[first] * who[second]
            p = torch.sigmoid(reward[first] - reward[second])
            won, lost = (weight * p).detach(), (weight * (1 - p)).detach()
            loss = won * _dpo(logps, ref, first, second, beta)
            loss = (loss + lost * _dpo(logps, ref, second, first, beta)).sum()
        else:
            draws = torch.multinomial(who, 2 * pairs, replacement=True, generator=generator)
            first, second = draws.view(2, pairs)
            uniform = torch.rand(pairs, generator=generator, dtype=reward.dtype)
            better = uniform < torch.sigmoid(reward[first] - reward[second])
            chosen, rejected = (
                torch.where(better, first, second),
                torch.where(better, second, first),
            )
            loss = _dpo(logps, ref, chosen, rejected, beta).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return logits.detach().softmax(0)


def _dpo(logps: Tensor, ref: Tensor, chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    return dpo_loss(logps[chosen], logps[rejected], ref[chosen], ref[rejected], beta=beta)
