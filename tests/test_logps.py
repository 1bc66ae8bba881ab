import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import gaussian_logp

from torchmpo.logps import gaussian_step_logps, log1mexp


def test_gaussian_step_logps_match_the_density_written_out():
    gen = torch.Generator().manual_seed(0)
    action, mean = torch.randn(2, 5, 3, generator=gen, dtype=torch.float64)
    std = torch.tensor([0.4, 1.0, 2.0], dtype=torch.float64)
    logps = gaussian_step_logps(action, mean, std.log())
    expected = [gaussian_logp(a, m, std.tolist()) for a, m in zip(action.tolist(), mean.tolist())]
    torch.testing.assert_close(logps, torch.tensor(expected, dtype=torch.float64))


def test_gaussian_density_integrates_to_one():
    action = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    logps = gaussian_step_logps(action, torch.zeros(1).double(), torch.zeros(1).double())
    assert torch.trapezoid(logps.exp(), action[:, 0]).item() == pytest.approx(1, abs=1e-9)


def test_log1mexp_by_hand():
    x = torch.tensor([math.log(0.5), math.log(0.25)], dtype=torch.float64)
    expected = torch.tensor([math.log(0.5), math.log(0.75)], dtype=torch.float64)
    torch.testing.assert_close(log1mexp(x), expected)


@given(st.floats(-100, -1e-12))
def test_log1mexp_matches_eighty_digits_and_its_derivative(x):
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = log1mexp(point)
    (slope,) = torch.autograd.grad(value, point)
    with localcontext(prec=80):
        p = Decimal(x).exp()
        expected, expected_slope = float((1 - p).ln()), float(-p / (1 - p))
    assert value.item() == pytest.approx(expected, rel=1e-12, abs=0)
    assert slope.item() == pytest.approx(expected_slope, rel=1e-12, abs=0)


def test_log1mexp_is_finite_far_out_in_float32():
    x = torch.tensor([-1e-9, -1e-6, -1e-3, -0.69, -0.7, -50.0, -1e4], requires_grad=True)
    value = log1mexp(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert value.isfinite().all()
    assert slope.isfinite().all()
