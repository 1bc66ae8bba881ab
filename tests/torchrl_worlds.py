"""The task of :mod:`worlds` as one of TorchRL's, alone or in batches."""

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase
from worlds import HIGH, LOW, start


class RL(EnvBase):
    """TorchRL's, alone or so many."""

    bounded = True

    def __init__(self, batch_size=()):
        super().__init__(batch_size=batch_size)
        shape = self.batch_size
        low, high = (torch.from_numpy(bound).expand(*shape, 2) for bound in (LOW, HIGH))
        self.observation_spec = Composite(observation=Unbounded((*shape, 2)), shape=shape)
        own = Bounded(low, high, (*shape, 2))
        self.action_spec = own if self.bounded else Unbounded((*shape, 2))
        self.reward_spec = Unbounded((*shape, 1))
        self.done_spec = Composite(
            done=Binary(1, shape=(*shape, 1), dtype=torch.bool),
            terminated=Binary(1, shape=(*shape, 1), dtype=torch.bool),
            shape=shape,
        )

    def _set_seed(self, seed):
        self.seed = seed

    def _told(self, over):
        entries = {"observation": self.place, "done": over, "terminated": over}
        return TensorDict(entries, self.batch_size)

    def _reset(self, tensordict=None, **settings):
        count = self.batch_size.numel()
        places = [start(self.seed + i) for i in range(count)]
        self.place = torch.from_numpy(np.stack(places)).view(*self.batch_size, 2)
        return self._told(torch.zeros(*self.batch_size, 1, dtype=torch.bool))

    def _step(self, tensordict):
        self.place = self.place + 0.5 * (tensordict["action"] - 0.25)
        over = self.place.abs().amax(-1, keepdim=True) > 3
        return self._told(over).set("reward", 1.0 - self.place.abs().sum(-1, keepdim=True))


def rl():
    return RL()


def rl_batch(num_envs):
    return RL((num_envs,))


class Free(RL):
    """The same with actions of any size."""

    bounded = False


def free():
    return Free()


def free_batch(num_envs):
    return Free((num_envs,))
