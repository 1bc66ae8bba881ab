"""Trajectories that share their beginning: at one step, the fork, a simulator's state is copied.

Trajectories of one start state are a group. Up to the fork, all of a group are the first of them;
from there on each goes its own way. Where the first one's episode ends before the fork there is
nothing to go on from, and every trajectory of that group is made as it would be without.

Idea: pairs that share a prefix, as in the tree search of MCTS-DPO, arXiv 2405.00451.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Fork(NamedTuple):
    """Where trajectories part that are rolled out as rows of one batch.

    Args:
        step: how many steps they share.
        group: trajectories of a start state, which are rows next to each other.
    """

    step: int
    group: int

    def sources(self, running: Tensor) -> Tensor:
        """Whose copy each row becomes: the first of its group, or itself, ``[rows]``, int64.

        Args:
            running: whether the episode of each row goes on, bool ``[rows]``.

        >>> Fork(5, group=2).sources(torch.tensor([True, True, False, True]))
        tensor([0, 0, 2, 3])
        """
        own = torch.arange(len(running))
        first = own - own % self.group
        return torch.where(running[first], first, own)


def fork_step(share: float, max_steps: int) -> int:
    """Steps that a share of the time limit is, rounded down.

    >>> fork_step(0.5, 25), fork_step(0.0, 25), fork_step(0.29, 100)
    (12, 0, 29)
    """
    return math.floor(share * max_steps + 1e-9)  # 0.29 · 100 is 28.999…


def by_start(starts: int, per_start: int) -> Tensor:
    """Rows of a pool, group by group, ``[per_start · starts]``.

    >>> by_start(starts=3, per_start=2).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    return torch.arange(per_start * starts).view(per_start, starts).T.flatten()


def forked_at(lengths: Tensor, starts: int, step: int) -> Tensor:
    """Steps that each trajectory shares with the others of its group: ``[rows]``, int64.

    Args:
        lengths: of trajectories that were forked at ``step``, as rows of a pool.
        starts: states that they start from.
    """
    first = lengths.view(-1, starts)[0]
    return torch.where(first > step, step, 0).repeat(len(lengths) // starts)
