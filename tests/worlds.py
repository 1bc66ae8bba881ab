"""One small task as everybody may bring it, and some that go wrong.

A point moves on two axes by what is done. Actions go from −2 to 2 on one axis and from 0 to 1 on
the other. The seed decides where it starts; an episode is over once it is more than 3 away from 0.
"""

import os

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.vector import SyncVectorEnv

LOW, HIGH = np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)


def start(seed):
    return np.random.default_rng(seed).uniform(-1, 1, 2).astype(np.float32)


def move(place, action):
    """The next place, the reward, and whether that is the end."""
    place = place + np.float32(0.5) * (action - np.float32(0.25))
    return place, 1.0 - float(np.abs(place).sum()), bool(np.abs(place).max() > 3)


class Line(gymnasium.Env):
    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(LOW, HIGH)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = start(seed)
        return self.place, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.place, reward, over = move(self.place, action)
        return self.place, reward, over, False, {}


class Parts(Line):
    """Its observation has names."""

    observation_space = Dict({"a": Box(-9, 9, (1,)), "b": Box(-9, 9, (1,))})

    def reset(self, **settings):
        place, info = super().reset(**settings)
        return {"a": place[:1], "b": place[1:]}, info

    def step(self, action):
        place, *rest = super().step(action)
        return {"a": place[:1], "b": place[1:]}, *rest


def vector(num_envs):
    return SyncVectorEnv([Line] * num_envs)


class Discrete(Line):
    action_space = gymnasium.spaces.Discrete(3)


class Breaks(Line):
    def step(self, action):
        raise RuntimeError("the motor\nis broken")  # two lines


class Wild(Line):
    def step(self, action):
        self.place, reward, _ = move(self.place, action)
        return self.place * np.inf, reward, False, False, {}


class Dies(Line):
    def step(self, action):
        print("I am dying", flush=True)
        os._exit(3)


def fails():
    raise ValueError("no world today")


def number():
    return 3


def too_few(num_envs):
    return vector(num_envs + 1)
