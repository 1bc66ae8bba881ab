"""Policies trained under two terms whose weights follow from training."""

import pytest
import torch
from populations import make_data, make_policy, make_population
from torch.fx.experimental.proxy_tensor import make_fx

from torchmpo.control import compiler
from torchmpo.control.inner_loop import InnerConfig, train_policies
from torchmpo.losses import LOSSES, simpo_loss
from torchmpo.objectives.balance import RULES, Balanced
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.resolve import resolve


def train(objective, own=None, population=1, seed=0, chunk_size=4, compiled=False):
    policy = make_policy(std_kind="learned")
    start = make_population(policy, 3)
    start = {name: value[:population] for name, value in start.items()}
    if compiled:
        start, policy = {name: value.float() for name, value in start.items()}, policy.float()
    settings = InnerConfig(epochs=3, chunk_size=chunk_size, compile=compiled, sft_epochs=1)
    return train_policies(policy, start, objective, own or {}, make_data(), settings, seed)


def distance(one, other) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def anti_sft_loss(chosen_mean_logps):
    return chosen_mean_logps


def long_simpo_loss(chosen_mean_logps, rejected_mean_logps):
    return 3 * simpo_loss(chosen_mean_logps, rejected_mean_logps)


SIMPO, SFT = LOSSES["simpo"], LOSSES["sft"]
LIMITS = {
    # No step of the multiplier: the plain sum.
    "still": (Balanced({"simpo": SIMPO, "sft": SFT}, "dual"), {"weight_lr": 0.0}, "simpo+sft"),
    "even": (
        Balanced({"simpo": SIMPO, "sft": SFT}, "dynamic"),
        {"weight_lr": 0.0},
        "0.5*simpo+0.5*sft",
    ),
    "held": (
        Balanced({"simpo": SIMPO, "sft": SFT, "orpo": LOSSES["orpo"]}, "meta"),
        {"weight_lr": 0.0},
        "0.5*simpo+0.5*sft",
    ),
    # Of parallel gradients the shortest mean is the shorter one.
    "short": (Balanced({"long": long_simpo_loss, "simpo": SIMPO}, "min_norm"), {}, "simpo"),
}


@pytest.mark.parametrize("case", LIMITS)
def test_limits_are_plain_losses(case):
    function, hyper, plain = LIMITS[case]
    balanced = train(Objective(function, **hyper))
    assert distance(balanced, train(resolve(plain))) < 1e-9
    assert distance(balanced, train(resolve("cpo"))) > 1e-3


def test_far_inside_its_constraint_a_term_is_not_trained():
    """From the second update on: the first one had both."""
    function = Balanced({"simpo": SIMPO, "sft": SFT}, "dual")
    free = train(Objective(function, kappa=1e6, weight_lr=1.0))
    alone, both = train(resolve("simpo")), train(resolve("simpo+sft"))
    assert distance(free, alone) < 0.5 * distance(both, alone)


def test_what_validates_wins():
    """Validated by SFT, its opposite loses its weight: the policy ends nearer to plain SFT."""
    function = Balanced({"anti": anti_sft_loss, "sft": SFT, "val": SFT}, "meta")
    ends = [train(Objective(function, weight_lr=rate, entropy_coef=0.0)) for rate in (0.0, 1.0)]
    target = train(resolve("sft"))
    assert distance(ends[1], target) < 0.5 * distance(ends[0], target)


@pytest.mark.parametrize("rule", RULES)
def test_members_are_as_trained_alone(rule):
    text = f"orpo+sft{'+simpo' if rule == 'meta' else ''}@{rule}"
    objective = resolve(text)
    tree = {"sft_weight": torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64)}
    if rule != "min_norm":
        tree["weight_lr"] = torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64)
    together = train(objective, tree, 3)
    parts = train(objective, tree, 3, chunk_size=1)
    assert distance(together, parts) < 1e-9
    weights = {name: value[:1] for name, value in tree.items()}
    alone = train(objective, weights)
    assert distance({name: value[:1] for name, value in together.items()}, alone) < 1e-9


def test_one_traced_program_carries_the_weights(monkeypatch):
    """What the compiler compiles; compiling itself takes too long here, and is no other code."""
    traced = []

    def trace(update, args):
        traced.append(make_fx(update)(*args))
        return traced[-1]

    monkeypatch.setattr(compiler, "compiled", trace)
    objective = resolve("simpo+sft+slic_hf@meta", weight_lr=0.5)
    exact = train(objective, population=3)
    fast = train(objective, population=3, compiled=True)
    assert len(traced) == 2  # SFT's and its own
    again = train(objective, population=3, compiled=True, seed=1)
    assert distance(fast, exact) < 1e-3
    assert distance(fast, again) > 1e-3
