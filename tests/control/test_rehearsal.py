"""A loss that cannot be trained in a population is refused, with what to write instead."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from torchmpo.control.grids import grid
from torchmpo.control.rehearsal import rehearse
from torchmpo.control.testbed import TestbedConfig
from torchmpo.losses import LOSSES
from torchmpo.objectives.bound import Objective
from torchmpo.runs.own_code import OwnCodeRaised

NORM = nn.BatchNorm1d(1)


def branches(x):
    return -x if x.mean() < 0 else x


def greater(x):
    return -x * max(x.mean(), 0)


def in_order(x):
    return -torch.stack(sorted(x))


def draws(x):
    return -x * torch.rand_like(x)


def drops(x):
    return nn.functional.dropout(-x)


def item(x):
    return -x * x.mean().item()


def math_of(x):
    return -x * math.exp(x.mean())


def listed(x):
    return -x * torch.tensor(x.tolist())


def numpy(x):
    return -x * torch.from_numpy(np.exp(x.detach().numpy()))


def masks(x):
    return -x - x[x < 0].mean()


def masks_in_place(x):
    y = -x
    y[x < -0.5] = 0
    return y


def counts(x):
    return -x * len(torch.nonzero(x))


def adds_in_place(x):
    y = torch.zeros(len(x))
    y += x
    return -y


def changes_its_input(x):
    x += 1
    return -x


def normalises(x):
    return -NORM(x[:, None])[:, 0]


def own(loss):
    """The objective that such a loss is where a user names it."""

    def of_chosen(chosen_mean_logps):
        return loss(chosen_mean_logps)

    return Objective(of_chosen, name=f"mine:{loss.__name__}")


@pytest.mark.parametrize(
    ("loss", "instead"),
    [
        (branches, "write torch.where(condition, a, b), torch.maximum or torch.sort"),
        (greater, "write torch.where(condition, a, b), torch.maximum or torch.sort"),
        (in_order, "write torch.where(condition, a, b), torch.maximum or torch.sort"),
        (draws, "it draws random numbers: a loss is a pure function"),
        (drops, "it draws random numbers: a loss is a pure function"),
        (item, "keep the tensor, and use torch's functions"),
        (math_of, "keep the tensor, and use torch's functions"),
        (listed, "it takes a tensor to numpy or to a list: use torch's functions"),
        (numpy, "it takes a tensor to numpy or to a list: use torch's functions"),
        (masks, "write torch.where(mask, x, 0.0), which keeps the shape"),
        (masks_in_place, "write torch.where(mask, x, 0.0), which keeps the shape"),
        (counts, "write torch.where(mask, x, 0.0), which keeps the shape"),
        (adds_in_place, "write x = x + y instead of x += y"),
        (changes_its_input, "write x = x + y instead of x += y"),
        (normalises, "it has a batch normalisation, which keeps state"),
    ],
)
def test_what_to_write_instead(loss, instead):
    with pytest.raises(OwnCodeRaised) as caught:
        rehearse(own(loss), [{}, {}], TestbedConfig())
    message = str(caught.value)
    assert message.startswith(f"mine:{loss.__name__}: it ")
    assert instead in message
    assert message.endswith(f"({__file__}, line {message.split('line ')[1]}")
    line = int(message.rpartition("line ")[2].rstrip(")"))
    first = loss.__code__.co_firstlineno
    assert first < line <= first + 3
    assert isinstance(caught.value.__cause__, RuntimeError)  # torch's own words are kept
    assert not {"issue", "github", "vmap"} & set(message.lower().split())


class Average:
    """An exponential moving average of margins, kept where the next call finds it."""

    def __init__(self, detach):
        self.mean, self.detach = 0.0, detach

    def __call__(self, chosen_mean_logps, rejected_mean_logps):
        margin = chosen_mean_logps - rejected_mean_logps
        mean = margin.mean()
        self.mean = 0.9 * self.mean + 0.1 * (mean.detach() if self.detach else mean)
        return self.mean - margin


class Schedule:
    """A coefficient that falls from call to call."""

    calls = 0

    def __call__(self, chosen_mean_logps):
        self.calls += 1
        return -chosen_mean_logps / self.calls


class First:
    """What a population has left behind, for all later ones."""

    def __init__(self):
        self.seen = []

    def __call__(self, chosen_mean_logps):
        self.seen.append(len(self.seen))
        return -chosen_mean_logps * (1 if len(self.seen) < 4 else 2)


def python_random(chosen_mean_logps):
    return -chosen_mean_logps * random.random()


def numpy_random(chosen_mean_logps):
    return -chosen_mean_logps * float(np.random.default_rng().random())


NOTED = []


def appends(chosen_mean_logps):
    NOTED.append(1)
    return -chosen_mean_logps * len(NOTED)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Average(True),
        lambda: Average(False),
        Schedule,
        First,
        lambda: python_random,
        lambda: numpy_random,
        lambda: appends,
    ],
)
def test_a_loss_that_is_no_pure_function_is_refused(make):
    loss = make()
    with pytest.raises(ValueError, match=r"answers differently when it is called again: a loss is"):
        rehearse(Objective(loss, name="mine:loss"), [{}, {}], TestbedConfig())


def test_a_pure_callable_is_taken_and_so_is_one_that_is_not_finite():
    class Cached:
        def __init__(self):
            self.found = {}

        def __call__(self, chosen_mean_logps):
            scale = self.found.setdefault(len(chosen_mean_logps), 1.0)
            return -scale * chosen_mean_logps

    for loss in (Cached(), lambda chosen_mean_logps: torch.log(chosen_mean_logps)):
        rehearse(Objective(loss), [{}, {}], TestbedConfig())


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("smpo", "soft_label_dpo")])
def test_the_losses_of_the_library_are_pure(name):
    objective = Objective(LOSSES[name])
    rehearse(objective, grid(objective, 3), TestbedConfig())
