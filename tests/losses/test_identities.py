"""What losses have to do with one another: identities and limits, in value and gradient.

The reference is data, so gradients are compared over the policy's log-probabilities only.
"""

import math
import re

import pytest
import torch
from torch.nn.functional import logsigmoid

from torchmpo import losses as L
from torchmpo.losses import potentials
from torchmpo.losses.logistic import logistic_preference_loss

COUNT = 50


def columns(count, seed=0, low=-6.0):
    """Log-probabilities of policy and reference, one column each; the first two are the policy's"""
    gen = torch.Generator().manual_seed(seed)
    values = low * torch.rand(count, COUNT, generator=gen, dtype=torch.float64) - 0.01
    return [x.requires_grad_(k < 2) for k, x in enumerate(values)]


def uniform(low, high, seed=9):
    gen = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(COUNT, generator=gen, dtype=torch.float64)


def assert_same(first, second, variables, offset=0.0, **tolerance):
    torch.testing.assert_close(first, second + offset, **tolerance)
    first, second = (torch.autograd.grad(x.sum(), variables) for x in (first, second))
    torch.testing.assert_close(first, second, **tolerance)


# Mirror preference optimisation.


def test_cpo_is_one_step_mirror_with_beta_log():
    c, r = columns(2)
    mirror = L.one_step_mirror_loss(
        c,
        r,
        psi=potentials.scale(potentials.log, 0.7),
        phi_inv=potentials.scale(potentials.log, 0.3),
        g=logsigmoid,
    )
    assert_same(L.cpo_loss(c, r, c, beta=0.3, sft_coef=0.7), mirror, [c, r])


def test_orpo_is_one_step_mirror_with_logit():
    c, r = columns(2)
    mirror = L.one_step_mirror_loss(
        c, r, psi=potentials.log, phi_inv=potentials.logit, g=logsigmoid, po_coef=0.4
    )
    assert_same(L.orpo_loss(c, r, po_coef=0.4), mirror, [c, r])


def test_dpo_is_two_step_mirror_with_beta_log():
    c, r, rc, rr = columns(4)
    phi_inv = potentials.scale(potentials.log, 0.3)
    mirror = L.two_step_mirror_loss(c, r, rc, rr, phi_inv=phi_inv, g=logsigmoid)
    assert_same(L.dpo_loss(c, r, rc, rr, beta=0.3), mirror, [c, r])


def test_simpo_is_one_step_mirror_without_imitation():
    c, r = columns(2)
    mirror = L.one_step_mirror_loss(
        c,
        r,
        psi=torch.zeros_like,
        phi_inv=potentials.scale(potentials.log, 1.7),
        g=lambda m: logsigmoid(m - 0.2),
    )
    assert_same(L.simpo_loss(c, r, beta=1.7, target_margin=0.2), mirror, [c, r])


def test_alpha_po_is_one_step_mirror_with_a_tsallis_potential():
    """(1 − e^{−αā})/α = (p^{q−1} − 1)/(q − 1) at q = 1 − α."""
    c, r = columns(2)
    mirror = L.one_step_mirror_loss(
        c,
        r,
        psi=torch.zeros_like,
        phi_inv=potentials.tsallis(0.6),
        g=lambda m: logsigmoid(2 * m - 0.2),
    )
    assert_same(L.alpha_po_loss(c, r, beta=2.0, alpha=0.4, target_margin=0.2), mirror, [c, r])


def test_f_dpo_is_two_step_mirror_with_ratios_for_log():
    """φ⁻¹ compares densities; with a constant reference, f′(π/π_ref) is such a function of π."""
    c, r, *_ = columns(2)
    reference = torch.full_like(c, -2.0)
    mirror = L.two_step_mirror_loss(
        c, r, reference, reference, phi_inv=lambda a: -0.3 * torch.exp(-2.0 - a), g=logsigmoid
    )
    loss = L.f_dpo_loss(c, r, reference, reference, beta=0.3, divergence="forward_kl")
    assert_same(loss, mirror, [c, r])


def test_theorem_3_1_for_dpo():
    """π* ∝ π_ref·e^{r/β} maximises ⟨r, π⟩ − β·KL: its implicit rewards differ as the rewards do."""
    gen = torch.Generator().manual_seed(0)
    reference = torch.log_softmax(torch.randn(6, generator=gen, dtype=torch.float64), 0)
    reward = torch.randn(6, generator=gen, dtype=torch.float64)
    optimum = torch.log_softmax(reference + reward / 0.3, 0)
    i, j = torch.tril_indices(6, 6, -1)
    loss = L.dpo_loss(optimum[i], optimum[j], reference[i], reference[j], beta=0.3)
    torch.testing.assert_close(loss, -logsigmoid(reward[i] - reward[j]))


# φ of each potential whose inverse is in torchmpo.losses.potentials.
PHI = {
    "log": (potentials.log, torch.exp),
    "scaled_log": (potentials.scale(potentials.log, 0.3), lambda x: torch.exp(x / 0.3)),
    "logit": (potentials.logit, torch.sigmoid),
    "tsallis": (potentials.tsallis(0.5), lambda x: (1 - x / 2) ** -2),
    # Not a 0-potential: it holds only while no probability is driven to 0.
    "euclidean": (potentials.euclidean, lambda x: x),
}


@pytest.mark.parametrize("name", PHI)
def test_theorem_3_1_makes_the_two_step_loss_that_of_the_rewards(name):
    """π* = φ(φ⁻¹(π_ref) + r − constant) maximises ⟨r, π⟩ − D_h(π, π_ref), and its margin is r's."""
    phi_inv, phi = PHI[name]
    gen = torch.Generator().manual_seed(0)
    reference = torch.log_softmax(0.5 * torch.randn(6, generator=gen, dtype=torch.float64), 0)
    reward = 0.05 * torch.randn(6, generator=gen, dtype=torch.float64)
    low, high = reward.min().item(), reward.max().item()  # Σ is ≥ 1 at the first, ≤ 1 at the last
    for _ in range(100):
        constant = (low + high) / 2
        optimum = phi(phi_inv(reference) + reward - constant)
        low, high = (constant, high) if optimum.sum() > 1 else (low, constant)
    assert optimum.min() > 0.01
    assert (optimum - reference.exp()).abs().max() > 1e-3

    def value(policy):
        divergence = potentials.bregman_divergence(policy, reference.exp().expand(50, 6), phi_inv)
        return policy @ reward - divergence

    aside = torch.randn(50, 6, generator=gen, dtype=torch.float64)
    aside = 0.005 * (aside - aside.mean(1, keepdim=True)) / aside.abs().amax(1, keepdim=True)
    assert (value(optimum + aside) < value(optimum.expand(50, 6))).all()

    i, j = torch.tril_indices(6, 6, -1)
    logps = optimum.log()
    loss = L.two_step_mirror_loss(
        logps[i], logps[j], reference[i], reference[j], phi_inv=phi_inv, g=logsigmoid
    )
    torch.testing.assert_close(loss, -logsigmoid(reward[i] - reward[j]), rtol=1e-9, atol=1e-9)


def test_two_step_mirror_sends_no_gradient_into_the_reference():
    c, r, rc, rr = (x.detach().requires_grad_() for x in columns(4))
    loss = L.two_step_mirror_loss(c, r, rc, rr, phi_inv=potentials.logit, g=logsigmoid)
    grads = torch.autograd.grad(loss.sum(), [c, r, rc, rr], allow_unused=True)
    assert all(g.any() for g in grads[:2])
    assert all(g is None or not g.any() for g in grads[2:])


def test_mirror_losses_refuse_shapes_that_differ_and_a_negative_coefficient():
    x, y = torch.zeros(3), torch.zeros(3, 1)
    phi = {"phi_inv": potentials.log, "g": logsigmoid}
    with pytest.raises(ValueError, match=r"rejected_mean_logps.*\(3, 1\).*\(3,\)"):
        L.one_step_mirror_loss(x, y, psi=potentials.log, **phi)
    for k in range(1, 4):
        data = [y if i == k else x for i in range(4)]
        with pytest.raises(ValueError, match=r"\(3, 1\).*\(3,\)"):
            L.two_step_mirror_loss(*data, **phi)
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="po_coef"):
            L.one_step_mirror_loss(x, x, psi=potentials.log, **phi, po_coef=value)


# Losses without a reference.


def test_lpo_is_slic_hf_without_end():
    c, r = columns(2)
    assert_same(L.slic_hf_loss(c, r, delta=1e3), L.lpo_loss(c, r), [c, r], offset=1e3)


def test_rrhf_is_slic_hf_without_a_margin():
    c, r = columns(2)
    assert_same(
        L.rrhf_loss(c, r, sft_coef=0.4), L.slic_hf_loss(c, r, delta=0.0, sft_coef=0.4), [c, r]
    )


def test_colpo_with_the_gate_open_is_slic_hf_on_means():
    c, r = columns(2)
    gated = L.colpo_loss(c, r, po_coef=0.4, delta=1.3, threshold=-1e9)
    assert_same(gated, 0.4 * L.slic_hf_loss(c, r, delta=1.3, sft_coef=1 / 0.4), [c, r])


def test_colpo_with_the_gate_shut_is_rrhf():
    c, r = columns(2)
    gated = L.colpo_loss(c, r, po_coef=0.4, delta=1.3, threshold=1e9)
    assert_same(gated, 0.4 * L.rrhf_loss(c, r, sft_coef=1 / 0.4), [c, r])


def test_colpo_at_its_limits_is_slic_hf_and_rrhf():
    c, r = columns(2)
    for threshold, delta in ((-math.inf, 1.5), (math.inf, 0.0)):
        for value in (threshold, torch.tensor(threshold, dtype=torch.float64)):
            loss = L.colpo_loss(c, r, po_coef=0.4, delta=1.5, threshold=value)
            hinge = L.slic_hf_loss(c, r, delta=delta, sft_coef=0.0)
            assert_same(loss, 0.4 * hinge - c, [c, r])


def test_colpo_without_preference_is_sft():
    c, r = columns(2)
    loss = L.colpo_loss(c, r, po_coef=0.0)
    assert_same(loss, L.sft_loss(c), [c])


def test_orpo_without_preference_is_sft():
    c, r = columns(2)
    assert_same(L.orpo_loss(c, r, po_coef=0.0), L.sft_loss(c), [c])


# Four terms, of which each named loss is one or two.
NO_TERM = {"sft_coef": 0.0, "sigmoid_coef": 0.0}


@pytest.mark.parametrize(
    ("coefs", "loss"),
    [
        ({"sft_coef": 1.0}, lambda c, r: L.sft_loss(c) + 0 * r),
        (
            {"sigmoid_coef": 1.0, "beta": 1.7, "target_margin": 0.3},
            lambda c, r: L.simpo_loss(c, r, beta=1.7, target_margin=0.3),
        ),
        (
            {"sft_coef": 0.7, "sigmoid_coef": 1.0, "beta": 0.3},
            lambda c, r: L.cpo_loss(c, r, c, beta=0.3, sft_coef=0.7),
        ),
        (
            {"sft_coef": 0.4, "linear_coef": 1.0},
            lambda c, r: L.lpo_loss(c, r, sft_coef=0.4),
        ),
    ],
)
def test_closed_form_has_named_losses_among_its_coefficients(coefs, loss):
    c, r = columns(2)
    assert_same(L.closed_form_loss(c, r, **NO_TERM | coefs), loss(c, r), [c, r])


def test_closed_form_tends_to_slic_hf():
    c, r = columns(2)
    assert (c - r - 0.5).abs().min() > 1e-3  # none at the kink
    beta = 1e5
    coefs = {"sigmoid_coef": 1 / beta, "beta": beta, "target_margin": beta * 0.5}
    hinge = L.closed_form_loss(c, r, sft_coef=0.4, **coefs)
    assert_same(hinge, L.slic_hf_loss(c, r, delta=0.5, sft_coef=0.4), [c, r], rtol=0, atol=1e-4)


def test_closed_form_with_a_small_sharpness_is_linear():
    c, r = columns(2)
    coefs = {"softplus_coef": 0.6, "sharpness": 1e-6}
    by_c, by_r = torch.autograd.grad(L.closed_form_loss(c, r, **NO_TERM | coefs).sum(), [c, r])
    torch.testing.assert_close(by_c, torch.full_like(c, -0.3), rtol=1e-5, atol=0)
    torch.testing.assert_close(by_r, torch.full_like(r, 0.3), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("coefs", "pulls", "direction"),
    [
        # Far below, at half, and far above the middle, Δ̄ = 2.
        ({"sigmoid_coef": 0.7, "beta": 3.0, "target_margin": 6.0}, (2.1, 1.05, 0.0), -1),
        ({"linear_coef": 0.7}, (0.7, 0.7, 0.7), 0),
        ({"softplus_coef": 0.7, "sharpness": 4.0, "threshold": 2.0}, (0.0, 0.35, 0.7), 1),
    ],
)
def test_pull_of_each_term_of_closed_form(coefs, pulls, direction):
    margin = torch.linspace(-18, 22, 401, dtype=torch.float64)
    r = torch.full_like(margin, -30.0)
    c = (r + margin).requires_grad_()
    loss = L.closed_form_loss(c, r, **NO_TERM | coefs)
    pull = -torch.autograd.grad(loss.sum(), c)[0]
    assert pull[[0, 200, 400]].tolist() == pytest.approx(pulls, abs=1e-6)
    steps = pull.diff()
    assert {-1: (steps <= 0).all(), 0: (steps == 0).all(), 1: (steps >= 0).all()}[direction]


@pytest.mark.parametrize("alpha", [0.0, 1e-9])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_alpha_po_tends_to_simpo(alpha, kind):
    c, r = columns(2)
    limit = L.alpha_po_loss(c, r, alpha=kind(alpha), beta=1.7)
    assert_same(limit, L.simpo_loss(c, r, beta=1.7), [c, r], rtol=1e-6, atol=1e-6)


# The logistic family. Every preset is the closed form of its definition.


def with_data():
    c, r, rc, rr = columns(4)
    extra = {
        "chosen_mean_logps": columns(1, seed=2)[0],
        "lengths": torch.randint(1, 9, (2, COUNT), generator=torch.Generator().manual_seed(3)),
        "probs": uniform(0, 1),
        "rewards": torch.stack([uniform(-3, 3, seed=4), uniform(-3, 3, seed=5)]),
    }
    return (c, r, rc, rr), extra


def closed_forms():
    pair, x = with_data()
    c, r, rc, rr = pair
    d = (c - r) - (rc - rr)
    gap = x["rewards"][0] - x["rewards"][1]
    lengths, p, mean = x["lengths"], x["probs"], x["chosen_mean_logps"]
    kw = {"beta": 0.3}
    return {
        "dpo": (L.dpo_loss(*pair, **kw), {}, -logsigmoid(0.3 * d)),
        "dpo_smoothed": (
            L.dpo_loss(*pair, **kw, label_smoothing=0.2),
            {"label": 0.8},
            -0.8 * logsigmoid(0.3 * d) - 0.2 * logsigmoid(-0.3 * d),
        ),
        "r_dpo": (
            L.r_dpo_loss(*pair, *lengths, **kw, alpha=0.2),
            {"margin": -0.2 * (lengths[0] - lengths[1])},
            -logsigmoid(0.3 * d + 0.2 * (lengths[0] - lengths[1])),
        ),
        "dpo_norm": (L.dpo_norm_loss(*pair, **kw), {}, -logsigmoid(0.3 * d)),
        "rpo": (
            L.rpo_loss(*pair, mean, **kw, sft_coef=0.0),
            {},
            -logsigmoid(0.3 * d),
        ),
        "dpo_gamma": (
            L.dpo_gamma_loss(*pair, **kw, ref_coef=0.4),
            {"ref_coef": 0.4},
            -logsigmoid(0.3 * (c - r) - 0.12 * (rc - rr)),
        ),
        "soft_label_dpo": (
            L.soft_label_dpo_loss(*pair, p, **kw),
            {"label": p},
            -p * logsigmoid(0.3 * d) - (1 - p) * logsigmoid(-0.3 * d),
        ),
        "margin_dpo": (
            L.margin_dpo_loss(*pair, *x["rewards"], **kw, margin_coef=0.6),
            {"margin": 0.6 * gap},
            -logsigmoid(0.3 * d - 0.6 * gap),
        ),
        "smpo": (
            L.smpo_loss(*pair, p, **kw, scale=1.7),
            {"scale": 1.7 * (2 * p - 1)},
            -logsigmoid(0.3 * d * 1.7 * (2 * p - 1)),
        ),
        "modpo": (
            L.modpo_loss(*pair, *x["rewards"], **kw, po_coef=0.7, reward_coef=0.2),
            {"margin": 0.2 * gap, "scale": 1 / 0.7},
            -logsigmoid((0.3 * d - 0.2 * gap) / 0.7),
        ),
    }


PRESETS = list(closed_forms())


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_of_the_logistic_loss(preset):
    pair, _ = with_data()
    loss, setting, closed_form = closed_forms()[preset]
    torch.testing.assert_close(loss, closed_form)
    torch.testing.assert_close(logistic_preference_loss(*pair, beta=0.3, **setting), closed_form)


def test_robust_dpo_is_a_preset_with_a_label_above_one():
    (c, r, rc, rr), _ = with_data()
    preset = logistic_preference_loss(c, r, rc, rr, beta=0.3, label=0.8 / 0.6)
    assert_same(
        L.robust_dpo_loss(c, r, rc, rr, beta=0.3, label_smoothing=0.2),
        preset,
        [c, r],
    )
    d = 0.3 * ((c - r) - (rc - rr))
    torch.testing.assert_close(preset, (-0.8 * logsigmoid(d) + 0.2 * logsigmoid(-d)) / 0.6)


def test_every_setting_of_the_logistic_loss_together():
    (c, r, rc, rr), x = with_data()
    gap, p = x["rewards"][0] - x["rewards"][1], x["probs"]
    z = (1 + p) * (0.3 * ((c - r) - 0.4 * (rc - rr)) - gap)
    expected = 1.7 * (-p * logsigmoid(z) - (1 - p) * logsigmoid(-z))
    loss = logistic_preference_loss(
        c, r, rc, rr, beta=0.3, ref_coef=0.4, margin=gap, scale=1 + p, label=p, weight=1.7
    )
    assert_same(loss, expected, [c, r])


@pytest.mark.parametrize("setting", ["ref_coef", "margin", "scale", "label", "weight"])
def test_settings_of_the_logistic_loss_have_its_shape_and_are_finite(setting):
    x = torch.zeros(3)
    for shape in ((3, 1), (2,), (1,)):
        with pytest.raises(ValueError, match=rf"{setting}.*{re.escape(str(shape))}"):
            logistic_preference_loss(x, x, x, x, **{setting: torch.ones(shape)})
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=setting):
            logistic_preference_loss(x, x, x, x, **{setting: value})
    with pytest.raises(ValueError, match=r"\(3, 1\).*\(3,\)"):
        logistic_preference_loss(x, x[:, None], x, x, **{setting: torch.ones(3)})


def test_dpo_without_a_reference_is_the_preference_term_of_cpo_and_simpo():
    c, r = columns(2)
    zero = torch.zeros_like(c)
    dpo = L.dpo_loss(c, r, zero, zero, beta=0.3)
    assert_same(dpo, L.cpo_loss(c, r, c, beta=0.3, sft_coef=0.0), [c, r])
    dpo = L.dpo_loss(c, r, zero, zero, beta=0.3)
    assert_same(dpo, L.simpo_loss(c, r, beta=0.3, target_margin=0.0), [c, r])


def test_label_smoothing_mixes_the_loss_with_its_flipped_labels():
    c, r, rc, rr = columns(4)
    mixed = 0.8 * L.dpo_loss(c, r, rc, rr) + 0.2 * L.dpo_loss(r, c, rr, rc)
    assert_same(L.dpo_loss(c, r, rc, rr, label_smoothing=0.2), mixed, [c, r])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4])
def test_robust_dpo_is_unbiased_when_labels_flip(rate):
    """The expectation over both labels that a true pair may get, by enumeration."""
    c, r, rc, rr = columns(4)
    expectation = (1 - rate) * L.robust_dpo_loss(c, r, rc, rr, label_smoothing=rate)
    expectation = expectation + rate * L.robust_dpo_loss(r, c, rr, rc, label_smoothing=rate)
    assert_same(expectation, L.dpo_loss(c, r, rc, rr), [c, r])


def test_r_dpo_is_dpo_at_equal_lengths_or_without_alpha():
    c, r, rc, rr = columns(4)
    n, m = torch.randint(1, 9, (2, COUNT), generator=torch.Generator().manual_seed(0))
    assert_same(L.r_dpo_loss(c, r, rc, rr, n, n, alpha=0.3), L.dpo_loss(c, r, rc, rr), [c, r])
    assert_same(L.r_dpo_loss(c, r, rc, rr, n, m, alpha=0.0), L.dpo_loss(c, r, rc, rr), [c, r])


def test_dpo_norm_is_dpo_with_beta_shared_over_the_steps():
    c, r, rc, rr = columns(4)
    normalised = L.dpo_norm_loss(c / 4, r / 4, rc / 4, rr / 4, beta=2.0, label_smoothing=0.1)
    assert_same(normalised, L.dpo_loss(c, r, rc, rr, beta=0.5, label_smoothing=0.1), [c, r])


def test_dpo_norm_without_a_reference_is_simpo_without_a_margin():
    c, r = columns(2)
    zero = torch.zeros_like(c)
    simpo = L.simpo_loss(c, r, beta=1.7, target_margin=0.0)
    assert_same(L.dpo_norm_loss(c, r, zero, zero, beta=1.7), simpo, [c, r])


def test_rpo_is_dpo_without_sft_and_cpo_without_a_reference():
    c, r, rc, rr = columns(4)
    mean = (c / 3).detach()
    assert_same(L.rpo_loss(c, r, rc, rr, mean, sft_coef=0), L.dpo_loss(c, r, rc, rr), [c, r])
    zero = torch.zeros_like(c)
    assert_same(
        L.rpo_loss(c, r, zero, zero, c / 3, sft_coef=0.7),
        L.cpo_loss(c, r, c / 3, sft_coef=0.7),
        [c, r],
    )


def test_dpo_gamma_1_is_dpo_and_0_is_the_preference_term_of_cpo():
    c, r, rc, rr = columns(4)
    assert_same(L.dpo_gamma_loss(c, r, rc, rr, ref_coef=1.0), L.dpo_loss(c, r, rc, rr), [c, r])
    cpo = L.cpo_loss(c, r, c, sft_coef=0.0)
    assert_same(L.dpo_gamma_loss(c, r, rc, rr, ref_coef=0.0), cpo, [c, r])


def test_dpo_positive_reference_follows_only_a_reference_that_ranks_correctly():
    c, r, rc, rr = columns(4)
    right = (rc >= rr).double()
    assert 0 < right.sum() < COUNT
    halves = right * L.dpo_loss(c, r, rc, rr)
    halves = halves + (1 - right) * L.cpo_loss(c, r, c, sft_coef=0.0)
    assert_same(L.dpo_positive_reference_loss(c, r, rc, rr), halves, [c, r])


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_a_constant_soft_label_is_conservative_dpo(epsilon):
    c, r, rc, rr = columns(4)
    p = torch.full_like(rc, 1 - epsilon)
    conservative = L.dpo_loss(c, r, rc, rr, label_smoothing=epsilon)
    assert_same(L.soft_label_dpo_loss(c, r, rc, rr, p), conservative, [c, r])


def test_margin_dpo_without_a_margin_is_dpo():
    (c, r, rc, rr), x = with_data()
    high, low = x["rewards"]
    dpo = L.dpo_loss(c, r, rc, rr)
    assert_same(L.margin_dpo_loss(c, r, rc, rr, high, low, margin_coef=0.0), dpo, [c, r])
    assert_same(L.margin_dpo_loss(c, r, rc, rr, high, high), L.dpo_loss(c, r, rc, rr), [c, r])


def test_smpo_of_a_sure_label_is_dpo_and_of_an_unsure_one_nothing():
    c, r, rc, rr = columns(4)
    one, half = torch.ones_like(rc), torch.full_like(rc, 0.5)
    assert_same(L.smpo_loss(c, r, rc, rr, one), L.dpo_loss(c, r, rc, rr), [c, r])
    assert_same(L.smpo_loss(c, r, rc, rr, 0 * one), L.dpo_loss(r, c, rr, rc), [c, r])
    unsure = L.smpo_loss(c, r, rc, rr, half, scale=3.0)
    torch.testing.assert_close(unsure, torch.full_like(unsure, math.log(2)))
    for gradient in torch.autograd.grad(unsure.sum(), [c, r]):
        assert (gradient == 0).all()


def madpo_weight(gap, **hyper):
    """w as a function of R_c − R_r: the loss of pairs at the reference is w·log 2."""
    gap = torch.as_tensor(gap, dtype=torch.float64).reshape(-1)
    zero = torch.zeros_like(gap)
    return L.madpo_loss(zero, zero, zero, zero, gap, zero, **hyper) / math.log(2)


@pytest.mark.parametrize("hyper", [{}, {"max_coef": 3.0, "min_coef": 0.2, "tau": 1.5, "eta": 0.7}])
def test_madpo_weight_at_its_landmarks(hyper):
    eta, tau = hyper.get("eta", 1.0), hyper.get("tau", 2.0)
    assert madpo_weight(0.0, **hyper).tolist() == pytest.approx([1.0])
    # coef = 1 at J = ±τ, and the weight of J ≤ −τ is 1 throughout, so it is continuous.
    assert madpo_weight(tau * eta, **hyper).tolist() == pytest.approx([1.0])
    inside = madpo_weight([-tau * eta + 1e-9], **hyper)
    assert inside.tolist() == pytest.approx([1.0])
    assert madpo_weight([-tau * eta, -tau * eta - 1, -50.0], **hyper).tolist() == [1.0] * 3
    assert madpo_weight([200.0, 1e6], **hyper).tolist() == pytest.approx([1.0, 1.0])
    # Undecided pairs the judge ranks right weigh more, clear ones less.
    assert madpo_weight(0.5 * tau * eta, **hyper) > 1
    assert madpo_weight(1.5 * tau * eta, **hyper) < 1


def test_madpo_multiplies_dpo_by_its_weight():
    (c, r, rc, rr), x = with_data()
    high, low = x["rewards"]
    expected = madpo_weight(high - low) * L.dpo_loss(c, r, rc, rr)
    assert_same(L.madpo_loss(c, r, rc, rr, high, low), expected, [c, r])


def test_modpo_of_the_preferences_alone_is_dpo():
    (c, r, rc, rr), x = with_data()
    loss = L.modpo_loss(c, r, rc, rr, *x["rewards"], po_coef=1.0, reward_coef=0.0)
    assert_same(loss, L.dpo_loss(c, r, rc, rr), [c, r])


def test_modpo_of_several_rewards_takes_their_weighted_sum():
    (c, r, rc, rr), x = with_data()
    (high, low), other = x["rewards"], x["probs"]
    total = 0.3 * high + 0.4 * other
    loss = L.modpo_loss(c, r, rc, rr, total, 0.3 * low, beta=0.2, po_coef=0.3, reward_coef=1.0)
    z = 0.2 * ((c - r) - (rc - rr)) - 0.3 * (high - low) - 0.4 * (other - 0)
    assert_same(loss, -logsigmoid(z / 0.3), [c, r])


def test_vpo_offline_is_rpo_with_the_summed_term():
    c, r, rc, rr = columns(4)
    rpo = L.rpo_loss(c, r, rc, rr, c, beta=0.3, sft_coef=0.4 * 0.3)
    loss = L.vpo_offline_loss(c, r, rc, rr, beta=0.3, alpha=0.4)
    assert_same(loss, rpo, [c, r], offset=0.4 * 0.3 * rc)
    assert_same(L.vpo_offline_loss(c, r, rc, rr, alpha=0.0), L.dpo_loss(c, r, rc, rr), [c, r])


def test_ranking_is_right_where_dpo_is_small_enough_for_its_reference():
    """Δ ≥ 0 iff the DPO loss ≤ −LS(β(r′ − c′)): arXiv 2405.19534."""
    c, r, rc, rr = columns(4)
    r = torch.where(torch.arange(COUNT) % 5 == 0, c, r)  # ties count as right
    loss = L.dpo_loss(c, r, rc, rr, beta=0.3)
    small = loss <= -logsigmoid(0.3 * (rr - rc)) + 1e-12
    assert torch.equal(c >= r, small)
    assert 0 < small.sum() < COUNT


# Other functions of the implicit rewards.


def test_ipo_of_means_is_ipo_of_sums_of_means():
    c, r, rc, rr = columns(4)
    n, m = torch.randint(1, 9, (2, COUNT), generator=torch.Generator().manual_seed(0))
    sums = L.ipo_loss(c / n, r / m, rc / n, rr / m, beta=0.3, reduction="sum")
    assert_same(L.ipo_loss(c, r, rc, rr, n, m, beta=0.3), sums, [c, r])


def test_sppo_hard_of_opposite_log_ratios_is_half_of_ipo():
    """h_r = −h_c = −a: 2(a − 1/(2β))² = ½(2a − 1/β)²."""
    c, _, rc, rr = columns(4)
    r = rr - (c - rc)
    ipo = L.ipo_loss(c, r, rc, rr, beta=0.15, reduction="sum")
    assert_same(L.sppo_hard_loss(c, r, rc, rr, beta=0.3), ipo / 2, [c])


def test_hinge_dpo_without_a_reference_is_slic_hf_without_sft():
    c, r = columns(2)
    zero = torch.zeros_like(c)
    slic = 0.3 * L.slic_hf_loss(c, r, delta=1 / 0.3, sft_coef=0.0)
    assert_same(L.hinge_dpo_loss(c, r, zero, zero, beta=0.3), slic, [c, r])


def test_bco_pair_is_dpo_of_each_side_against_its_reference():
    c, r, rc, rr = columns(4)
    sides = L.dpo_loss(c, rc, rc, rc, beta=0.3) + L.dpo_loss(rr, r, rr, rr, beta=0.3)
    bco = L.bco_pair_loss(c, r, rc, rr, beta=0.3)
    assert_same(bco, -logsigmoid(0.3 * (c - rc)) - logsigmoid(-0.3 * (r - rr)), [c, r])
    torch.testing.assert_close(bco, sides)
    assert (bco >= L.dpo_loss(c, r, rc, rr, beta=0.3)).all()


def test_nca_pair_raises_the_chosen_response_to_two_thirds():
    _, r, rc, rr = columns(4)
    at_best = (rc + math.log(2) / 0.3).requires_grad_()  # S(βh_c) = ⅔
    (slope,) = torch.autograd.grad(
        L.nca_pair_loss(at_best, r.detach(), rc, rr, beta=0.3).sum(), at_best
    )
    torch.testing.assert_close(slope, torch.zeros_like(slope))


@pytest.mark.parametrize("name", ["apo_zero", "apo_down"])
def test_anchored_losses_are_1_at_the_reference(name):
    c, r = columns(2)
    loss = L.LOSSES[name](c, r, c.detach(), r.detach(), beta=0.3)
    chosen, rejected = torch.autograd.grad(loss.sum(), [c, r])
    torch.testing.assert_close(loss, torch.ones_like(loss))
    torch.testing.assert_close(rejected, torch.full_like(rejected, 0.3 / 4))
    slope = -0.3 / 4 if name == "apo_zero" else 0.0
    torch.testing.assert_close(chosen, torch.full_like(chosen, slope))


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 0.4])
def test_smoothed_losses_have_their_minimum_where_the_policy_is_the_label(epsilon):
    """S(βD) = 1 − ε: 0 for the KL, the label's entropy for the cross-entropy."""
    x = (math.log((1 - epsilon) / epsilon) / 0.3 + torch.zeros(1).double()).requires_grad_()
    zero = torch.zeros_like(x)
    entropy = -(1 - epsilon) * math.log(1 - epsilon) - epsilon * math.log(epsilon)
    for name, minimum in {"exo_pair": 0.0, "dpo": entropy}.items():
        loss = L.LOSSES[name](x, zero, zero, zero, beta=0.3, label_smoothing=epsilon)
        (slope,) = torch.autograd.grad(loss, x)
        torch.testing.assert_close(loss, torch.full_like(loss, minimum))
        torch.testing.assert_close(slope, torch.zeros_like(slope))


def test_f_dpo_in_the_reverse_kl_is_dpo():
    c, r, rc, rr = columns(4)
    assert_same(L.f_dpo_loss(c, r, rc, rr, beta=0.3), L.dpo_loss(c, r, rc, rr, beta=0.3), [c, r])


@pytest.mark.parametrize(
    ("alpha", "divergence"),
    [(0.0, "reverse_kl"), (1e-9, "reverse_kl"), (1.0, "forward_kl"), (1 - 1e-9, "forward_kl")],
)
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_f_dpo_in_alpha_runs_from_reverse_to_forward_kl(alpha, divergence, kind):
    c, r, rc, rr = columns(4, low=-3.0)
    loss = L.f_dpo_loss(c, r, rc, rr, beta=0.3, divergence="alpha", alpha=kind(alpha))
    limit = L.f_dpo_loss(c, r, rc, rr, beta=0.3, divergence=divergence)
    assert_same(loss, limit, [c, r], rtol=1e-6, atol=1e-6)


def test_f_dpo_is_dpo_to_first_order_at_the_reference():
    """f″(1) = 1 for the KLs and α, ½ for Jensen–Shannon: so do the slopes compare."""
    c, r = columns(2)
    reference = c.detach(), r.detach()
    (slope,) = torch.autograd.grad(L.dpo_loss(c, r, *reference).sum(), c)
    for divergence, factor in {"forward_kl": 1, "alpha": 1, "js": 0.5}.items():
        loss = L.f_dpo_loss(c, r, *reference, divergence=divergence)
        (other,) = torch.autograd.grad(loss.sum(), c)
        torch.testing.assert_close(other, factor * slope)


# The losses that language models found.


def test_padll_is_dpo_at_nine_tenths_and_at_half_of_that():
    c, r, rc, rr = columns(4)
    share = 0.9 - 0.45 * ((c - r) - (rc - rr) < 0).double()
    assert_same(L.padll_loss(c, r, rc, rr), share * L.dpo_loss(c, r, rc, rr), [c, r])


def test_cell_is_half_dpo_and_half_exponential():
    c, r, rc, rr = columns(4)
    expected = (L.dpo_loss(c, r, rc, rr) + torch.exp(-0.1 * ((c - r) - (rc - rr)))) / 2
    assert_same(L.cell_loss(c, r, rc, rr), expected, [c, r])


def test_pfl_is_half_dpo_where_the_policy_is_right_and_twice_the_hinge_elsewhere():
    c, r, rc, rr = columns(4)
    right = (c > r).double()
    expected = right * L.dpo_loss(c, r, rc, rr) / 2
    expected = expected + (1 - right) * 2 * L.hinge_dpo_loss(c, r, rc, rr)
    assert_same(L.pfl_loss(c, r, rc, rr), expected, [c, r])


def test_discopop_is_dpo_far_below_and_exponential_far_above():
    c, r, rc, rr = columns(4)
    low = L.discopop_loss(c - 80, r, rc, rr)
    assert_same(low, L.dpo_loss(c - 80, r, rc, rr, beta=0.05), [c, r])
    margin = (c - r) - (rc - rr)
    assert_same(L.discopop_loss(c + 80, r, rc, rr), torch.exp(-0.05 * (margin + 80)), [c, r])


def test_discopop_has_a_local_optimum_before_the_margin_is_won():
    """Its documented fault: below x = 0 the slope changes its sign twice."""
    d = torch.linspace(-10, 10, 2001, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(d)
    (slope,) = torch.autograd.grad(L.discopop_loss(d, zero, zero, zero).sum(), d)
    assert ((slope[1:] * slope[:-1]) < 0).sum() == 2
    assert (slope > 0).any()


# Losses of a batch.


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_optimal_transport_of_a_single_pair_is_dpo(name, epsilon):
    for pair in zip(*columns(4), strict=True):
        pair = [x.detach()[None].requires_grad_() for x in pair]
        aot = L.LOSSES[name](*pair, label_smoothing=epsilon)
        assert_same(aot, L.dpo_loss(*pair, label_smoothing=epsilon), pair[:2])


def test_aot_is_dpo_when_policy_and_reference_order_the_pairs_alike():
    c, r, rc, rr = columns(4)
    order, ref_order = (c - r).argsort(), (rc - rr).argsort()
    c, r, rc, rr = c[order], r[order], rc[ref_order], rr[ref_order]
    assert_same(L.aot_loss(c, r, rc, rr), L.dpo_loss(c, r, rc, rr), [c, r])


def test_aot_unpaired_is_dpo_when_chosen_and_rejected_are_in_one_order():
    c, r, rc, rr = columns(4)
    order, other = (c - rc).argsort(), (r - rr).argsort()
    c, rc, r, rr = c[order], rc[order], r[other], rr[other]
    assert_same(L.aot_unpaired_loss(c, r, rc, rr), L.dpo_loss(c, r, rc, rr), [c, r])


def test_optimal_transport_does_not_see_how_it_is_paired():
    c, r, rc, rr = columns(4)
    shuffle = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    other = L.aot_loss(c, r, rc[shuffle], rr[shuffle])
    assert_same(L.aot_loss(c, r, rc, rr), other, [c, r])
    other = L.aot_unpaired_loss(c, r[shuffle], rc, rr[shuffle])
    assert_same(L.aot_unpaired_loss(c, r, rc, rr), other, [c, r])


def test_aql_is_a_constant_blend_at_a_wide_scale():
    """τ → ∞: m = ½ and q = S(½) for every pair."""
    c, r, rc, rr = columns(4)
    q = 1 / (1 + math.exp(-0.5))
    blend = q * L.dpo_loss(c, r, rc, rr) + (1 - q) * L.hinge_dpo_loss(c, r, rc, rr)
    assert_same(L.aql_loss(c, r, rc, rr, tau=1e9), blend, [c, r], rtol=1e-6, atol=1e-6)


def test_aqfl_is_a_constant_blend_at_a_wide_scale():
    """τ → ∞: std = 0, m = 0.05·½ and q = S(0.1·m) for every pair."""
    c, r, rc, rr = columns(4)
    q = 1 / (1 + math.exp(-0.0025))
    blend = q * L.dpo_loss(c, r, rc, rr) + (1 - q) * L.hinge_dpo_loss(c, r, rc, rr)
    assert_same(L.aqfl_loss(c, r, rc, rr, tau=1e9), blend, [c, r], rtol=1e-6, atol=1e-6)


def test_dbaql_is_half_and_half_without_variance_and_logistic_with_much():
    c, r, rc, rr = columns(4)
    exponential = torch.exp(-0.09 * ((c - r) - (rc - rr)))
    halves = (L.dpo_loss(c, r, rc, rr, beta=0.1 / 0.9) + exponential) / 2
    assert_same(L.dbaql_loss(c, r, rc, rr, tau=1e9), halves, [c, r], rtol=1e-6, atol=1e-6)
    logistic = L.dpo_loss(c, r, rc, rr, beta=0.1 / 0.9)
    assert_same(L.dbaql_loss(c, r, rc, rr, tau=1e-3), logistic, [c, r])


# Losses that treat the two responses, or two kinds of pairs, differently.


def test_cpl_of_equal_sides_is_the_preference_term_of_cpo_and_simpo():
    c, r = columns(2)
    for other in (
        L.cpo_loss(c, r, c, beta=0.3, sft_coef=0.0),
        L.simpo_loss(c, r, beta=0.3, target_margin=0.0),
    ):
        assert_same(L.cpl_loss(c, r, beta=0.3, rejected_coef=1.0), other, [c, r])


def test_simpo_with_an_sft_term_is_cpo_on_means():
    c, r = columns(2)
    options = {"beta": 0.3, "sft_coef": 0.7, "label_smoothing": 0.2}
    assert_same(
        L.simpo_loss(c, r, target_margin=0.0, **options), L.cpo_loss(c, r, c, **options), [c, r]
    )


@pytest.mark.parametrize(
    ("name", "hyper", "low", "high"),
    [
        ("dpo_shift", {"rejected_coef": 1.0}, -6, 0),
        ("dpop", {"penalty_coef": 0.0}, -6, 0),
        ("dpop", {"penalty_coef": 50.0}, -12, -6),  # the chosen one above its reference
        ("minor_dpo", {}, -12, -6),  # the rejected one above its reference
        ("c2_dpo", {"constraint_coef": 0.0}, -6, 0),
        ("h_dpo", {"alpha": 1.0}, -6, 0),
        ("gpo", {"curve": "logistic"}, -6, 0),
        ("focal_po", {"focus": 0.0}, -6, 0),
        ("offset_dpo", {"target_margin": 0.0}, -6, 0),
        ("beta_dpo", {"alpha": 0.0}, -6, 0),
    ],
)
def test_what_becomes_dpo(name, hyper, low, high):
    c, r = columns(2)
    rc, rr = uniform(low, high), uniform(low, high, seed=3)
    loss = L.LOSSES[name](c, r, rc, rr, beta=0.3, **hyper)
    assert_same(loss, L.dpo_loss(c, r, rc, rr, beta=0.3), [c, r])


def test_h_dpo_is_dpo_gamma_with_another_beta():
    c, r, rc, rr = columns(4)
    gamma = L.dpo_gamma_loss(c, r, rc, rr, beta=0.3 * 0.8, ref_coef=1 / 0.8)
    assert_same(L.h_dpo_loss(c, r, rc, rr, beta=0.3, alpha=0.8), gamma, [c, r])


def test_dpo_shift_without_its_rejected_side_is_minor_dpo_below_the_reference():
    c, r = columns(2)
    rc, rr = uniform(-6, 0), uniform(0, 1)
    minor = L.minor_dpo_loss(c, r, rc, rr, beta=0.3)
    assert_same(L.dpo_shift_loss(c, r, rc, rr, beta=0.3, rejected_coef=1e-12), minor, [c, r])


def test_bpo_min_is_never_below_dpo_of_half_the_margin():
    c, r, rc, rr = columns(4)
    loss = L.bpo_min_loss(c, r, rc, rr, beta=0.3, balance=1.0)
    half = L.dpo_loss(c, r, rc, rr, beta=0.15)
    assert (loss >= half - 1e-12).all()
    slopes = torch.stack(torch.autograd.grad(loss.sum(), [c, r]))
    assert ((slopes != 0).sum(0) == 1).all()  # one side waits


def test_cal_dpo_is_sppo_and_a_preference_term():
    c, r, rc, rr = columns(4)
    parts = L.sppo_hard_loss(c, r, rc, rr, beta=0.3) + L.dpo_loss(c, r, rc, rr, beta=1.0)
    assert_same(L.cal_dpo_loss(c, r, rc, rr, beta=0.3), parts, [c, r])


def test_chi_po_without_its_clip_is_f_dpo_in_chi_squared():
    c, r, rc, rr = columns(4)
    plain = L.f_dpo_loss(c, r, rc, rr, beta=0.3, divergence="chi_squared")
    assert_same(L.chi_po_loss(c, r, rc, rr, beta=0.3, max_margin=1e9), plain, [c, r])


def test_mix_dpo_is_dpo_below_every_margin_and_sft_above():
    c, r, rc, rr = columns(4)
    scores = uniform(-3, 3), uniform(-3, 3, seed=5)
    low, high = (
        L.mix_dpo_loss(c, r, rc, rr, c, *scores, beta=0.3, threshold=threshold)
        for threshold in (-7.0, 7.0)
    )
    assert_same(low, L.dpo_loss(c, r, rc, rr, beta=0.3), [c, r])
    torch.testing.assert_close(high, L.sft_loss(c))


# Functions of the margin.


def test_gpo_has_hinge_dpo_and_ipo_in_its_family():
    c, r, rc, rr = columns(4)
    hinge = L.gpo_loss(c, r, rc, rr, beta=0.3, curve="hinge")
    assert_same(hinge, L.hinge_dpo_loss(c, r, rc, rr, beta=0.3), [c, r])
    squared = L.gpo_loss(c, r, rc, rr, beta=0.3, curve="squared")
    # (1 − βD)² = β²·(D − 1/(2·½β))²
    assert_same(squared, 0.09 * L.ipo_loss(c, r, rc, rr, beta=0.15, reduction="sum"), [c, r])


@pytest.mark.parametrize("curve", ["sigmoid", "ramp", "unhinged"])
def test_sym_po_has_the_gradient_of_the_true_labels_when_some_are_flipped(curve):
    """By enumeration: the label as it is with probability 0.7, the other one with 0.3."""
    c, r, rc, rr = columns(4)
    hyper = {"beta": 0.3, "curve": curve}
    true, flipped = (L.sym_po_loss(*pair, **hyper) for pair in ((c, r, rc, rr), (r, c, rr, rc)))
    constant = 2.0 if curve == "unhinged" else 1.0
    torch.testing.assert_close(true + flipped, torch.full_like(true, constant))
    mean, alone = 0.7 * true + 0.3 * flipped, 0.4 * L.sym_po_loss(c, r, rc, rr, **hyper)
    assert_same(mean, alone, [c, r], offset=0.3 * constant)


@pytest.mark.parametrize("power", [-0.5, 0.0, 0.7, 1.0])
def test_bregman_po_has_dpos_slope_at_the_reference_and_its_minimum_at_the_true_margin(power):
    x = torch.tensor([0.0, 1.2], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(x)
    loss = L.bregman_po_loss(x, zero, zero, zero, beta=1.0, power=power)
    (slope,) = torch.autograd.grad(loss.sum(), x)
    assert slope[0].item() == pytest.approx(-0.5)
    # Labels that follow a Bradley–Terry model whose margin is 1.2.
    p = torch.sigmoid(torch.tensor(1.2, dtype=torch.float64))
    kept = L.bregman_po_loss(x, zero, zero, zero, beta=1.0, power=power)
    flipped = L.bregman_po_loss(zero, x, zero, zero, beta=1.0, power=power)
    (slope,) = torch.autograd.grad((p * kept + (1 - p) * flipped).sum(), x)
    assert slope[1].item() == pytest.approx(0, abs=1e-12)
    assert slope[0].item() < -0.1


def test_bregman_po_is_made_of_basus_divergence():
    """h'(R)·R − h(R) − h'(1/R) at R = e^{−x} for h = (R^{λ+1} − R)/(4λ(λ+1)), by autograd."""
    c, r, rc, rr = columns(4)
    power, ratio = 0.7, torch.exp(-0.3 * ((c - r) - (rc - rr))).detach()

    def h(x):
        return (x ** (power + 1) - x) / (4 * power * (power + 1))

    def slope(x):
        return torch.func.grad(lambda x: h(x).sum())(x)

    def whole(x):
        return slope(x) * x - h(x) - slope(1 / x)

    loss = L.bregman_po_loss(c, r, rc, rr, beta=0.3, power=power)
    torch.testing.assert_close(loss, whole(ratio) - whole(torch.ones_like(ratio)))


# Coupled ones.


def test_dr_dpo_runs_from_the_smallest_loss_to_the_mean():
    c, r, rc, rr = columns(4)
    pairs = L.dpo_loss(c, r, rc, rr, beta=0.3)
    mean = L.dr_dpo_loss(c, r, rc, rr, beta=0.3, temperature=1e6)
    torch.testing.assert_close(mean, pairs.mean().expand(COUNT), atol=1e-5, rtol=0)
    least = L.dr_dpo_loss(c, r, rc, rr, beta=0.3, temperature=1e-4)
    torch.testing.assert_close(least, pairs.min().expand(COUNT), atol=1e-3, rtol=0)
    one = [x[:1] for x in (c, r, rc, rr)]
    torch.testing.assert_close(L.dr_dpo_loss(*one, beta=0.3), L.dpo_loss(*one, beta=0.3))


def test_kto_pair_is_half_of_apo_zero_while_neither_mean_is_above_its_reference():
    c, r = columns(2, low=-3.0)
    zero = torch.zeros_like(c)
    half = 0.5 * L.apo_zero_loss(c, r, zero, zero, beta=0.3)
    assert_same(L.kto_pair_loss(c, r, zero, zero, beta=0.3), half, [c, r])


def test_alpha_dpo_without_adaptation_is_simpo():
    c, r, rc, rr = columns(4)
    simpo = L.simpo_loss(c, r, beta=2.0, target_margin=0.3)
    assert_same(
        L.alpha_dpo_loss(c, r, rc, rr, beta=2.0, alpha=0.0, target_margin=0.3), simpo, [c, r]
    )
    equal = [torch.full((4,), v, dtype=torch.float64) for v in (-1.0, -2.0, -3.0, -3.0)]
    torch.testing.assert_close(
        L.alpha_dpo_loss(*equal, beta=2.0, target_margin=0.3),
        L.simpo_loss(*equal[:2], beta=2.0, target_margin=0.3),
    )


@pytest.mark.parametrize("temperature", [1e2, 1e4, 1e6, 1e8])
def test_dr_dpo_of_a_high_temperature_is_the_mean_of_dpo(temperature):
    """In single precision, too, where log n − logsumexp cancels."""
    data = [x.float().detach() for x in columns(4)]
    found = L.dr_dpo_loss(*data, temperature=temperature)
    mean = L.dpo_loss(*data).mean().expand_as(found)
    torch.testing.assert_close(found, mean, rtol=2 / temperature + 1e-6, atol=0)


def test_dr_dpo_is_the_log_of_a_mean_of_exponentials():
    data = [x.detach().requires_grad_() for x in columns(4)]
    for b in (0.01, 0.3, 1.0, 5.0):
        u = -L.dpo_loss(*data) / b
        wanted = b * (math.log(len(u)) - torch.logsumexp(u, 0))
        assert_same(L.dr_dpo_loss(*data, temperature=b), wanted.expand_as(u), data[:2])
    assert L.dr_dpo_loss(*torch.zeros(4, 0)).shape == (0,)


def test_a_nan_is_not_compared_away():
    """Where a loss compares what it is given, a NaN would be on neither side."""
    c, r, ref = torch.tensor([[-1.0, -2.0], [-2.0, -1.0], [-1.0, math.nan]])
    assert L.alpha_dpo_loss(c, r, ref, ref).isnan().all()
    lost = L.mix_dpo_loss(c, r, c, r, c, torch.tensor([1.0, math.nan]), torch.zeros(2))
    assert lost.isnan().tolist() == [False, True]
