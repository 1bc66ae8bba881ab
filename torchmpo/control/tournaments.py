"""Who wins against whom: win rates between policies, by a judge who compares trajectories.

Where preferences go in a circle there is no best return; what there is are win rates, and mixtures
of policies that lose to nobody (:mod:`torchmpo.games.matrix_games`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchmpo.control.annotators import cyclic_margin, preference_probability

Judge = Callable[[Tensor, Tensor], Tensor]


def cyclic_judge(data_returns: Tensor, *, temperature: float = 0.0) -> Judge:
    """The judge of the kind ``cyclic``, for returns of any policy.

    The style of a trajectory is its place among those of the data: the share of them that returned
    less.

    Args:
        data_returns: ``[trajectories]``, of those that the pairs of the data name.
        temperature: η ≥ 0, in units of the margin, which is at most 1.

    Returns:
        P(first preferred), of returns that broadcast against each other.
    """
    sorted_returns = data_returns.sort().values

    def style(returns: Tensor) -> Tensor:
        place = torch.searchsorted(sorted_returns, returns.contiguous().to(sorted_returns))
        # Beyond the best of the data is the style of the best, not that of the worst again.
        return place.clamp(max=len(sorted_returns) - 1) / len(sorted_returns)

    def judge(first: Tensor, second: Tensor) -> Tensor:
        margin = cyclic_margin(style(first), style(second))
        return preference_probability(margin, temperature=temperature)

    return judge


def win_rate_matrix(trajectories: Sequence[Tensor], judge: Judge) -> Tensor:
    """How often a trajectory of each policy is preferred to one of each other: ``[n, n]``, float64.

    Every trajectory of one meets every one of the other. Which of two is shown first does not
    count: each pair is judged both ways, so that P[i, j] + P[j, i] = 1 and a draw is ½.

    Args:
        trajectories: of each policy, what the judge reads of its trajectories, ``[episodes]``.
        judge: P(first preferred) of ``[episodes, 1]`` and ``[1, others]``.

    >>> returns = [torch.tensor([0.0, 3.0]), torch.tensor([1.0, 2.0])]
    >>> better = lambda a, b: (a > b).double()
    >>> win_rate_matrix([*returns, returns[1] + 5], better)
    tensor([[0.5000, 0.5000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [1.0000, 1.0000, 0.5000]], dtype=torch.float64)
    """
    rates = torch.stack(
        [
            torch.stack(
                [judge(one[:, None], other[None]).double().mean() for other in trajectories]
            )
            for one in trajectories
        ]
    )
    return (rates + 1 - rates.T) / 2
