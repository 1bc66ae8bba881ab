"""Two steps of loops on a policy's own answers: win rates as rewards, and extrapolation.

Neither knows what a policy is: the first reads whatever a judge compares, the second parameters.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def queue_win_rates(
    judge: Callable[[Tensor, Tensor], Tensor], own: Tensor, queue: Tensor
) -> Tensor:
    """Rewards of SPO: how often each answer is preferred to those of a queue of own answers.

    Args:
        judge: of ``[n, 1, …]`` and ``[1, m, …]``, P(first preferred) ``[n, m]``.
        own: ``[n, …]``, what judges read of the answers that get a reward.
        queue: ``[m, …]``, the same of earlier answers of the policy, m ≥ 1.

    Returns:
        ``[n]`` in [0, 1]. For a judge with a reward behind it, the order of the rewards.

    Raises:
        ValueError: the queue is empty.

    Source: Swamy et al., arXiv 2401.04056, algorithm 2 [reconstructed from the paper].

    >>> judge = lambda a, b: torch.sigmoid(a - b)
    >>> queue_win_rates(judge, torch.tensor([0.0, 1.0]), torch.zeros(3))
    tensor([0.5000, 0.7311])
    """
    if not len(queue):
        raise ValueError("a win rate needs at least one answer in the queue")
    return judge(own[:, None], queue[None]).mean(1)


def extrapolated(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], factor: float
) -> dict[str, Tensor]:
    """APO's step between rounds: θ_t + a·(θ_t − θ_{t−1}), for every parameter.

    The next round starts there, and has its reference there. ``before`` and ``after`` are what two
    rounds have ended at, before extrapolation. On a bandit every round then goes 1/(1 − a) times as
    far as without, in the long run.

    Args:
        before: parameters that the round before ended at; of the first round, its start.
        after: parameters that this round ended at.
        factor: a in [0, 1); 0 is plain iteration.

    Raises:
        ValueError: ``factor`` is out of its range, or the two have other names.

    Source: He, Yuan and Gu, arXiv 2410.06293 [reconstructed from the paper].

    >>> extrapolated({"w": torch.tensor(1.0)}, {"w": torch.tensor(2.0)}, 0.5)
    {'w': tensor(2.5000)}
    """
    if not 0 <= factor < 1:
        raise ValueError(f"the factor of an extrapolation must be in [0, 1); got {factor}")
    if before.keys() != after.keys():
        raise ValueError("an extrapolation needs the same parameters before and after")
    return {name: torch.lerp(before[name], value, 1 + factor) for name, value in after.items()}
