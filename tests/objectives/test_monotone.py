import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import monotone_network

from torchmpo.objectives.monotone import ACTIVATIONS, MonotoneNetwork

SCALES = st.sampled_from([0.03, 0.3, 1.0, 4.0])
SEEDS = st.integers(0, 10_000)


def random_theta(network, seed, scale, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    return scale * torch.randn(network.dim, generator=gen, dtype=dtype)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_increase_with_slopes_that_stay_bounded(name):
    z = torch.linspace(-300, 300, 200_001, dtype=torch.float64).requires_grad_()
    value = ACTIVATIONS[name](z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert (value.diff() >= 0).all()
    assert slope.min() >= 0
    assert slope.max() <= 1010


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_smooth_where_they_turn_into_lines(name):
    """The slope autograd reports is that of finite differences, at the joints as well."""
    z = torch.tensor([-4.0, 4.0, 3.999, 4.001, 0.7], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(ACTIVATIONS[name](z).sum(), z)
    h = 1e-6
    with torch.no_grad():
        difference = (ACTIVATIONS[name](z + h) - ACTIVATIONS[name](z - h)) / (2 * h)
    torch.testing.assert_close(slope, difference, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_slopes_are_finite_far_out_in_float32(name):
    z = torch.tensor([-1e6, -1e3, -1.0, -0.0, 0.0, 1e-30, 1e-7, 1.0, 1e3, 1e6], requires_grad=True)
    value = ACTIVATIONS[name](z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert value.isfinite().all()
    assert slope.isfinite().all()


@pytest.mark.parametrize("temporal", [False, True])
def test_against_the_twin_that_loops_over_units(temporal):
    network = MonotoneNetwork(units=3, temporal=temporal).double()
    theta = random_theta(network, 1, 1.0)
    t = torch.tensor(0.4, dtype=torch.float64)
    for x in (0.0, 0.2, 0.9, 3.0):
        value = network(theta, torch.tensor(x, dtype=torch.float64), t)
        expected = monotone_network(
            network.activations,
            theta.tolist(),
            network.slope.tolist(),
            network.offset.tolist(),
            x,
            t.item() if temporal else None,
        )
        assert value.item() == pytest.approx(expected, rel=1e-12)


def test_one_unit_by_hand():
    network = MonotoneNetwork(["identity"], units=1)
    w, b = network.slope.item(), network.offset.item()
    value = network(torch.tensor([2.0, 0.5, 1.0]), torch.tensor([0.3]))
    assert value.item() == pytest.approx(2 * ((w + 0.5) * 0.3 + b + 1))


def test_size_is_126_units_in_nine_equal_parts():
    assert MonotoneNetwork().dim == 3 * 126
    assert MonotoneNetwork(temporal=True).dim == 4 * 126
    assert MonotoneNetwork().slope.shape == (9, 14)
    assert MonotoneNetwork(["cube", "exp"], units=5).dim == 30


def test_the_fixed_spread_puts_kinks_all_over_the_unit_interval():
    network = MonotoneNetwork()
    kinks = -network.offset / network.slope
    inside = kinks[(kinks > 0) & (kinks < 1)]
    assert inside.numel() > 40
    assert len(torch.histc(inside, 5, 0, 1).nonzero()) == 5
    assert inside.min() < 0.02


@settings(max_examples=40, deadline=None)
@given(SEEDS, SCALES, st.booleans(), st.floats(0, 1))
def test_increasing_in_x_at_every_t(seed, scale, temporal, t):
    network = MonotoneNetwork(temporal=temporal).double()
    x = torch.cat([torch.linspace(0, 1, 200), torch.linspace(1, 21, 50)]).double()
    value = network(random_theta(network, seed, scale), x, torch.tensor(t).double())
    assert (value.diff() >= -1e-12 * value.abs().max()).all()


def test_zero_parameters_give_zero_and_a_perturbation_answers():
    network = MonotoneNetwork()
    x = torch.linspace(0, 1, 20)
    assert network(torch.zeros(network.dim), x).abs().max() == 0
    moved = network(random_theta(network, 0, 0.03, torch.float32), x)
    assert moved[-1] - moved[0] > 0.1


def test_progress_moves_a_temporal_network():
    network = MonotoneNetwork(temporal=True).double()
    theta = random_theta(network, 0, 0.3)
    x = torch.full((3,), 0.5).double()
    start, end = (network(theta, x, torch.tensor(t).double()) for t in (0.0, 1.0))
    assert (start != end).all()
    each = network(theta, x, torch.tensor([0.0, 0.5, 1.0]).double())
    torch.testing.assert_close(each[[0, 2]], torch.stack([start[0], end[0]]))


def test_vmapped_population_equals_a_loop():
    network = MonotoneNetwork()
    thetas = torch.stack([random_theta(network, k, 0.3, torch.float32) for k in range(3)])
    x = torch.rand(3, 5)
    batched = torch.func.vmap(lambda theta, x: network(theta, x))(thetas, x)
    loop = torch.stack([network(theta, y) for theta, y in zip(thetas, x, strict=True)])
    torch.testing.assert_close(batched, loop)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="unknown activation 'tanhh': did you mean 'tanh'"):
        MonotoneNetwork(["tanhh"])
    with pytest.raises(ValueError, match="at least one"):
        MonotoneNetwork([])
    with pytest.raises(ValueError, match="at least one"):
        MonotoneNetwork(units=0)
    network = MonotoneNetwork(temporal=True)
    with pytest.raises(ValueError, match="progress"):
        network(torch.zeros(network.dim), torch.zeros(2))
