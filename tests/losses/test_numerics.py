import math

import pytest
import torch
from oracles import gaussian_logp

from torchmpo.control.policy import gaussian_step_logps
from torchmpo.losses.numerics import at_most, exp_then_line, q_logarithm
from torchmpo.losses.potentials import LOGIT_MAX_LOGP, logit
from torchmpo.objectives.mirror import density


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


def value_and_slope(function, x):
    x = x.clone().requires_grad_()
    value = function(x)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


CLAMP = torch.Tensor.clamp


def flat_at_its_bounds(x, min=None, max=None):
    """``clamp`` as torch has it from 2.14 on: no slope at the bounds themselves."""
    inside = (x > (-math.inf if min is None else min)) & (x < (math.inf if max is None else max))
    return torch.where(inside, x, CLAMP(x, min, max).detach())


@pytest.fixture(params=[CLAMP, flat_at_its_bounds], ids=["this torch", "torch 2.14"])
def any_clamp(request, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "clamp", request.param)


JOINTS = {
    "exp_then_line": (exp_then_line, 30.0, math.exp(30)),
    "q_logarithm": (lambda x: q_logarithm(x, 0.5), 60.0, math.exp(30)),
    "q_logarithm of a tensor": (lambda x: q_logarithm(x, torch.tensor(0.5)), 60.0, math.exp(30)),
    "series of q_logarithm": (lambda x: q_logarithm(x, torch.tensor(1.0)), 1e-2, math.exp(1e-2)),
    "logit": (logit, LOGIT_MAX_LOGP, -1 / math.expm1(LOGIT_MAX_LOGP)),
    "density": (density, 0.0, 1.0),
    "at_most": (lambda x: at_most(x, 2.0), 2.0, 1.0),
}


@pytest.mark.usefixtures("any_clamp")
@pytest.mark.parametrize("name", JOINTS)
def test_slope_at_a_joint_is_the_one_before_it(name):
    function, joint, expected = JOINTS[name]
    _, slope = value_and_slope(function, torch.tensor([joint], dtype=torch.float64))
    assert slope.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("any_clamp")
def test_exponential_goes_on_as_its_tangent():
    x = torch.tensor([-50.0, 0.0, 30.0, 31.0, 1e4], dtype=torch.float64)
    value, slope = value_and_slope(exp_then_line, x)
    top = math.exp(30)
    assert value.tolist() == pytest.approx([math.exp(-50), 1, top, 2 * top, 9971 * top])
    assert slope.tolist() == pytest.approx([math.exp(-50), 1, top, top, top])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exponential_never_overflows(dtype):
    for tensor in value_and_slope(exp_then_line, torch.tensor([-1e6, 88.0, 1e6], dtype=dtype)):
        assert tensor.square().isfinite().all()


@pytest.mark.parametrize("k", [-0.5, 1e-6, 2.0])
def test_q_logarithm_of_a_number_or_a_tensor(k):
    x = torch.tensor([-3.0, -1e-3, 0.0, 2.0], dtype=torch.float64)
    expected = [(math.exp(k * v) - 1) / k for v in x.tolist()]
    slopes = [math.exp(k * v) for v in x.tolist()]
    for index in (k, torch.tensor(k, dtype=torch.float64)):
        value, slope = value_and_slope(lambda x, k=index: q_logarithm(x, k), x)
        assert value.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert slope.tolist() == pytest.approx(slopes)


def test_q_logarithm_of_index_zero_is_its_argument():
    x = torch.tensor([-3.0, 0.0, 2.0])
    for k in (0, 0.0, torch.tensor(0.0)):
        value, slope = value_and_slope(lambda x, k=k: q_logarithm(x, k), x)
        assert torch.equal(value, x)
        assert slope.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("k", [-0.5, torch.tensor(-0.5)])
def test_q_logarithm_goes_on_as_a_line(k):
    value, slope = value_and_slope(
        lambda x: q_logarithm(x, k), torch.tensor([-60.0, -62.0, -1e4], dtype=torch.float64)
    )
    top = math.exp(30)
    assert slope.tolist() == pytest.approx([top, top, top])
    assert (value[0] - value[1]).item() == pytest.approx(2 * top)
    assert value.isfinite().all()
