"""The formulas that `benchmarks/losses.py` times ours against are the same formulas."""

import importlib.util
from pathlib import Path

import pytest
import torch
from loss_cases import make_inputs

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
    policy = [x for k, x in zip(data, values) if x.requires_grad and "ref_" not in k]
    slopes = [torch.autograd.grad(x.sum(), policy, allow_unused=True) for x in (ours, theirs)]
    for one, other in zip(*slopes, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
