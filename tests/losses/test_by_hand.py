"""The formulas that `benchmarks/losses.py` times ours against are the same formulas."""

import importlib.util
from pathlib import Path

import pytest
import torch
from loss_cases import make_inputs, policy_fields
from torch.utils._python_dispatch import TorchDispatchMode

from torchmpo.losses import LOSSES

PATH = Path(__file__).parents[2] / "benchmarks" / "by_hand.py"
spec = importlib.util.spec_from_file_location("by_hand", PATH)
by_hand = importlib.util.module_from_spec(spec)
spec.loader.exec_module(by_hand)
SETTINGS = {"ipo": {"reduction": "sum"}}


def test_every_loss_has_one():
    assert by_hand.BY_HAND.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_the_same_formula(name):
    data = make_inputs(name)
    wanted = by_hand.BY_HAND[name].__code__
    count = wanted.co_argcount - len(by_hand.BY_HAND[name].__defaults__ or ())
    values = list(data.values())[:count]
    values = [x.requires_grad_() if x.is_floating_point() else x for x in values]
    ours = LOSSES[name](*values, **SETTINGS.get(name, {}))
    theirs = by_hand.BY_HAND[name](*values)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    free = {*policy_fields(data), "chosen_step_weights", "rejected_step_weights"}
    policy = [x for k, x in zip(data, values) if k in free]
    slopes = [torch.autograd.grad(x.sum(), policy, allow_unused=True) for x in (ours, theirs)]
    for one, other in zip(*slopes, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


class Operations(TorchDispatchMode):
    """Counts the tensor operations inside it; what keeps gradients from the reference is free."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation != torch.ops.aten.detach.default
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", LOSSES)
def test_it_takes_hardly_more_operations(name):
    """At most four more: guards of extremes, and numbers that may be tensors. Most need none."""
    values = list(make_inputs(name, dtype=torch.float32).values())
    formula = by_hand.BY_HAND[name]
    count = formula.__code__.co_argcount - len(formula.__defaults__ or ())
    with Operations() as ours:
        LOSSES[name](*values[:count], **SETTINGS.get(name, {}))
    with Operations() as theirs:
        formula(*values[:count])
    assert ours.count <= theirs.count + 4
