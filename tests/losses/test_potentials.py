import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import kl, log_odds

from torchmpo.losses import potentials
from torchmpo.losses.potentials import bregman_divergence, mirror_map


def simplex(*shape, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(*shape, generator=gen, dtype=torch.float64), -1)


def test_closed_forms_by_hand():
    logps = torch.tensor([0.25, 0.8], dtype=torch.float64).log()
    expected = {
        potentials.log: [math.log(0.25), math.log(0.8)],
        potentials.logit: [math.log(1 / 3), math.log(4)],
        potentials.euclidean: [0.25, 0.8],
        potentials.tsallis(2.0): [-0.75, -0.2],
        potentials.tsallis(0.5): [-2.0, (0.8**-0.5 - 1) / -0.5],
        potentials.scale(potentials.euclidean, 3.0): [0.75, 2.4],
        potentials.add(potentials.euclidean, potentials.euclidean): [0.5, 1.6],
    }
    for potential, values in expected.items():
        torch.testing.assert_close(potential(logps), torch.tensor(values, dtype=torch.float64))


@given(st.floats(-100, -1e-6))
def test_logit_matches_eighty_digits_and_its_derivative(logp):
    with localcontext(prec=80):
        p = Decimal(logp).exp()
        expected, expected_slope = float((p / (1 - p)).ln()), float(1 / (1 - p))
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        point = torch.tensor(logp, dtype=torch.float64).to(dtype).requires_grad_()
        value = potentials.logit(point)
        (slope,) = torch.autograd.grad(value, point)
        if dtype == torch.float32:  # what it was given is itself rounded
            close *= 1 + abs(point.item() / math.expm1(point.item()))
        assert value.item() == pytest.approx(expected, rel=close, abs=close)
        assert slope.item() == pytest.approx(expected_slope, rel=close)


def test_logit_clamp_keeps_value_and_stops_gradient():
    logps = torch.tensor([-3.0, -1e-4, -1e-7, 0.0, 5.0], dtype=torch.float64, requires_grad=True)
    value = potentials.logit(logps)
    (slope,) = torch.autograd.grad(value.sum(), logps)
    assert value[:2].tolist() == pytest.approx([log_odds(-3.0), log_odds(-1e-4)])
    assert value[2:].tolist() == pytest.approx([log_odds(-1e-6)] * 3, rel=1e-9)
    assert slope[:2].tolist() == pytest.approx([1 / (1 - math.exp(-3)), 1 / -math.expm1(-1e-4)])
    assert slope[2:].tolist() == [0.0, 0.0, 0.0]


def test_tsallis_tends_to_log_and_accepts_a_vmapped_index():
    logps = torch.linspace(-9, 0, 7, dtype=torch.float64)
    torch.testing.assert_close(potentials.tsallis(1.0)(logps), logps)
    torch.testing.assert_close(potentials.tsallis(1 + 1e-9)(logps), logps, rtol=1e-6, atol=1e-9)
    q = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    batched = torch.func.vmap(lambda q: potentials.tsallis(q)(logps))(q)
    one_by_one = torch.stack([potentials.tsallis(x)(logps) for x in q.tolist()])
    torch.testing.assert_close(batched, one_by_one)
    grad = torch.func.grad(lambda q: potentials.tsallis(q)(logps).sum())(q[1])
    assert grad.isfinite()


@pytest.mark.parametrize("call", [lambda: potentials.tsallis(0.0), lambda: potentials.tsallis(-1)])
def test_tsallis_refuses_an_index_that_is_not_integrable(call):
    with pytest.raises(ValueError, match="q must be positive"):
        call()


def test_log_generates_kl():
    p, q = simplex(20, 5), simplex(20, 5, seed=1)
    expected = [kl(a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
    divergence = bregman_divergence(p, q, potentials.log)
    torch.testing.assert_close(divergence, torch.tensor(expected, dtype=torch.float64))


def test_negative_entropy_is_the_mirror_map_of_e_to_the_x_minus_1():
    p = simplex(20, 5)
    entropy = mirror_map(p, lambda logps: 1 + logps)
    torch.testing.assert_close(entropy, (p * p.log()).sum(-1))


def test_euclidean_generates_half_the_squared_distance():
    p, q = simplex(20, 5), simplex(20, 5, seed=1)
    divergence = bregman_divergence(p, q, potentials.euclidean)
    torch.testing.assert_close(divergence, (p - q).square().sum(-1) / 2)


def test_logit_generates_the_binary_entropies():
    # ∫ log(x/(1−x)) dx = x log x + (1−x) log(1−x), which is 0 at 1.
    p = simplex(20, 5)
    expected = (p * p.log() + (1 - p) * torch.log1p(-p)).sum(-1)
    # The clamp of the logit at 1 − 1e-6 bounds the agreement.
    torch.testing.assert_close(mirror_map(p, potentials.logit), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "phi_inv",
    [potentials.log, potentials.euclidean, potentials.tsallis(0.5)],
    ids=lambda f: getattr(f, "__name__", "potential"),
)
def test_gradient_of_the_mirror_map_is_phi_inverse(phi_inv):
    p = simplex(6).requires_grad_()
    (gradient,) = torch.autograd.grad(mirror_map(p, phi_inv), p)
    torch.testing.assert_close(gradient, phi_inv(p.detach().log()), atol=1e-9, rtol=1e-9)


def test_mirror_map_holds_for_tiny_probabilities():
    p = torch.tensor([1e-12, 1 - 1e-12], dtype=torch.float64)
    expected = (p * p.log() - p + 1).sum()
    torch.testing.assert_close(mirror_map(p, potentials.log), expected, atol=1e-8, rtol=0)


def test_bregman_divergence_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        bregman_divergence(torch.ones(3) / 3, torch.ones(2) / 2, potentials.log)


@pytest.mark.parametrize(
    "phi_inv",
    [potentials.log, potentials.tsallis(0.5), potentials.logit],
    ids=lambda f: getattr(f, "__name__", "potential"),
)
def test_theorem_3_1_reward_is_the_difference_of_scores(phi_inv):
    """At the optimum of ⟨r, π⟩ − D_h(π, π_ref), r = φ⁻¹(π*) − φ⁻¹(π_ref) + constant."""
    reference = simplex(4, seed=3)
    reward = torch.tensor([0.3, -0.5, 0.8, 0.0], dtype=torch.float64)
    logits = reference.log().clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [logits],
        max_iter=200,
        tolerance_grad=1e-11,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimiser.zero_grad()
        policy = torch.softmax(logits, -1)
        value = bregman_divergence(policy, reference, phi_inv) - reward @ policy
        value.backward()
        return value

    optimiser.step(closure)
    optimum = torch.softmax(logits.detach(), -1)
    assert (optimum - reference).abs().max() > 0.03
    constant = reward - (phi_inv(optimum.log()) - phi_inv(reference.log()))
    torch.testing.assert_close(constant, constant.mean().expand(4), atol=1e-4, rtol=0)
