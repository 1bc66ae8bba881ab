"""Trajectories of one start state in an order: by comparisons won, or by win rates.

Comparisons are of every two trajectories of a list, one list after another within a comparison, as
:func:`every_pair` has them.
"""

import torch
from torch import Tensor


def every_pair(lists: Tensor) -> tuple[Tensor, Tensor]:
    """The two rows of every comparison in lists ``[lists, n]``: ``[n(n − 1)/2 · lists]`` each."""
    first, second = torch.triu_indices(lists.shape[1], lists.shape[1], 1)
    return lists[:, first].T.flatten(), lists[:, second].T.flatten()


def ranked(lists: Tensor, lost: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Lists in the order of how many comparisons each of their trajectories wins.

    Those with equally many stay in the order they are given in.

    Args:
        lists: ``[lists, n]``.
        lost: whether the first of the two of each comparison loses, as :func:`every_pair` has them.
        share: of the votes for the winner of each comparison, or None.

    Returns:
        ``[lists, n]``, best first, and the share of votes for the first against the last one.
    """
    count, n = lists.shape
    first, second = torch.triu_indices(n, n, 1)
    lost = lost.view(-1, count)
    wins = torch.zeros(n, count, dtype=torch.int64)
    wins.index_add_(0, first, (~lost).long()).index_add_(0, second, lost.long())
    order = wins.argsort(dim=0, descending=True, stable=True)
    if share is not None:
        number = torch.zeros(n, n, dtype=torch.int64)
        number[first, second] = number[second, first] = torch.arange(len(first))
        at = number[order[0], order[-1]][None]
        last_won = lost.gather(0, at)[0] == (order[0] < order[-1])
        share = share.view(-1, count).gather(0, at)[0]
        share = torch.where(last_won, 1 - share, share)
    return lists.gather(1, order.T), share


def by_win_rate(lists: Tensor, probability: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lists in the order of how likely each of their trajectories beats another one of its list.

    A trajectory's win rate is the mean of P(preferred) over the n − 1 others, the reward of SPO
    (arXiv 2401.04056). Those with equal ones stay in the order they are given in.

    Args:
        lists: ``[lists, n]``.
        probability: that the first of the two of each comparison is preferred, as
            :func:`every_pair` has them.

    Returns:
        ``[lists, n]``, best first; their win rates, likewise; and P(the first of a list is
        preferred to its last), ``[lists]``.

    Three answers of a cycle, and one that each of them beats with 0.75:

    >>> a, b, c, d = range(4)
    >>> p = torch.tensor([0.75, 0.25, 0.75, 0.75, 0.75, 0.75])  # a–b, a–c, a–d, b–c, b–d, c–d
    >>> by_win_rate(torch.tensor([[a, b, c, d]]), p)[1]
    tensor([[0.5833, 0.5833, 0.5833, 0.2500]])
    """
    count, n = lists.shape
    first, second = torch.triu_indices(n, n, 1)
    beats = torch.zeros(count, n, n, dtype=probability.dtype)
    beats[:, first, second] = probability.view(-1, count).T
    beats[:, second, first] = 1 - beats[:, first, second]
    rates = beats.sum(2) / (n - 1)
    order = rates.argsort(dim=1, descending=True, stable=True)
    ends = beats[torch.arange(count), order[:, 0], order[:, -1]]
    return lists.gather(1, order), rates.gather(1, order), ends
