"""Episodes that end early and are started again, within one budget of steps.

Brax, in which arXiv 2411.06568 was computed, scores a Hopper so: what counts is the sum of rewards
over a fixed number of steps, however often the robot falls.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict
from torch import Tensor

if TYPE_CHECKING:
    from torchmpo.control.environments import Environment


class Restarts:
    """Starts what is over again; the k-th start of a simulation is the same whenever it comes.

    Args:
        env: the batch.
        starts: the start states of all simulations after their k-th end, ``k → [num_envs, …]``.
    """

    def __init__(self, env: "Environment", starts: Callable[[int], Tensor]):
        self.env, self.starts = env, starts
        self.ends = torch.zeros(env.num_envs, dtype=torch.int64)
        self._known: list[Tensor] = []

    def __call__(self, state: TensorDict) -> TensorDict:
        """The state of the batch in which whatever is ``done`` has begun anew."""
        over = state["done"].view(-1)
        if not over.any():
            return state
        self.ends += over
        while len(self._known) < int(self.ends.max()):
            self._known.append(self.starts(len(self._known)))
        start = self._known[0].clone()
        for end in self.ends[over].unique().tolist():
            rows = over & (self.ends == end)
            start[rows] = self._known[end - 1][rows]
        # TorchRL takes the observations of those that go on from what it is given.
        return self.env.reset(state.update({"start_state": start, "_reset": over.view(-1, 1)}))
