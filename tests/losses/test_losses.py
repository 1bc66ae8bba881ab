"""Each formula by hand on one pair, and against a slow twin in value and in gradient."""

import math
import subprocess
import sys

import numpy as np
import oracles
import pytest
import torch
from loss_cases import (
    CASES,
    OF_DRAWN,
    OF_LISTS,
    OF_STEPS,
    SETTINGS,
    STOPPED,
    call,
    case_id,
    defaults,
    make_inputs,
    policy_fields,
    policy_gradients,
)

from torchmpo.losses import COUPLED, LOSSES, one_step_mirror_loss, orpo_loss, two_step_mirror_loss


def test_every_loss_is_tested_here():
    assert set(SETTINGS) == set(LOSSES)


# By hand: one pair, arithmetic that fits a line.


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def softplus(x):
    return math.log(1 + math.exp(x))


def s(x):
    return 1 / (1 + math.exp(-x))


LOG2, LOG3, LOG4 = math.log(2), math.log(3), math.log(4)
# h_c = 3, h_r = −2, D = 5, Δ = 1, Δ₀ = −4: at β = 0.2, βD = 1.
PAIR = (-1.0, -2.0, -4.0, 0.0)
FLIPPED = (-2.0, -1.0, 0.0, -4.0)
TPO_IPO = {"curve": "squared", "reduction": "mean"}
BY_HAND = [
    ("sft", (-2.0,), {}, 2.0),
    ("rrhf", (-2.0, -1.5), {"sft_coef": 0.5}, 0.5 + 1),
    ("rrhf", (-2.0, -2.5), {}, 2.0),
    ("slic_hf", (-2.0, -2.5), {"delta": 1.0, "sft_coef": 0.1}, 0.5 + 0.2),
    ("slic_hf", (-2.0, -9.0), {"delta": 1.0, "sft_coef": 0.1}, 0.2),
    ("slic_hf", (-8.0, -3.0, 4, 6), {"reduction": "mean"}, (1 - (-2 + 0.5)) + 0.1 * 2),
    ("lpo", (-2.0, -2.5), {"sft_coef": 0.1}, -0.5 + 0.2),
    ("lpo", (-8.0, -3.0, 4, 6), {"reduction": "mean"}, 1.5 + 0.1 * 2),
    ("cpo", (0.0, -10.0, -1.0), {}, softplus(-1) + 1),
    # logodds(log ½) = 0, logodds(log ⅕) = log ¼: σ = 1/(1 + ¼) = ⅘
    ("orpo", (math.log(1 / 2), math.log(1 / 5)), {}, LOG2 - 0.1 * math.log(4 / 5)),
    ("simpo", (-1.0, -2.0), {}, softplus(-1.5)),
    # (1 − e^{−ā}): −1 and −3
    ("alpha_po", (-LOG2, -LOG4), {"beta": 1.0, "alpha": 1.0}, softplus(-1.5)),
    ("colpo", (-1.0, -2.0), {}, 1 + 0.5 * (10 - 1)),
    ("colpo", (-3.0, -2.0), {}, 3 + 0.5 * 1),
    ("colpo", (-3.0, -4.0), {}, 3.0),
    ("colpo", (-1.2, -1.2), {}, 1.2),  # at the threshold is not above it
    ("closed_form", (-1.0, -2.0), {}, 1 + 0.1 * softplus(-1)),
    (
        "closed_form",
        (-1.0, -3.0),
        {
            "sft_coef": 2.0,
            "sigmoid_coef": 0.5,
            "target_margin": 1.0,
            "linear_coef": 0.25,
            "softplus_coef": 3.0,
            "sharpness": 2.0,
            "threshold": 1.0,
        },
        2 + 0.5 * softplus(-1) - 0.5 - 1.5 * softplus(2),
    ),
    ("dpo", PAIR, {"beta": 0.2}, softplus(-1)),
    (
        "dpo",
        PAIR,
        {"beta": 0.2, "label_smoothing": 0.1},
        0.9 * softplus(-1) + 0.1 * softplus(1),
    ),
    (
        "robust_dpo",
        PAIR,
        {"beta": 0.2, "label_smoothing": 0.1},
        (0.9 * softplus(-1) - 0.1 * softplus(1)) / 0.8,
    ),
    ("r_dpo", (*PAIR, 3, 7), {"beta": 0.2, "alpha": 0.1}, softplus(-0.6)),
    ("dpo_norm", PAIR, {"beta": 0.2}, softplus(-1)),
    (
        "dpo_norm",
        PAIR,
        {"beta": 0.2, "label_smoothing": 0.1},
        0.9 * softplus(-1) + 0.1 * softplus(1),
    ),
    ("rpo", (*PAIR, -2.5), {"beta": 0.2, "sft_coef": 0.4}, softplus(-1) + 1),
    ("dpo_gamma", PAIR, {"beta": 0.2, "ref_coef": 0.5}, softplus(-0.6)),
    ("dpo_positive_reference", PAIR, {"beta": 0.2}, softplus(-0.2)),
    ("dpo_positive_reference", FLIPPED, {"beta": 0.2}, softplus(1)),
    ("soft_label_dpo", (*PAIR, 0.75), {"beta": 0.2}, 0.75 * softplus(-1) + 0.25 * softplus(1)),
    ("margin_dpo", (*PAIR, 3.0, 1.0), {"beta": 0.2, "margin_coef": 0.25}, softplus(-0.5)),
    ("smpo", (*PAIR, 0.75), {"beta": 0.2, "scale": 2.0}, softplus(-1)),
    ("smpo", (*PAIR, 0.25), {"beta": 0.2, "scale": 2.0}, softplus(1)),
    ("smpo", (*PAIR, 0.5), {"beta": 0.2, "scale": 2.0}, LOG2),
    # J = 1, e^{λ(1 − τ)} = ½, so coef = ½ + 1.5/(1 + 2·½) = 1¼
    (
        "madpo",
        (*PAIR, 3.0, 1.0),
        {"beta": 0.2, "eta": 2.0, "sharpness": LOG2},
        s(1.25) / s(1) * softplus(-1),
    ),
    ("madpo", (*PAIR, 1.0, 3.5), {"beta": 0.2}, softplus(-1)),  # J ≤ −τ
    (
        "modpo",
        (*PAIR, 3.0, 1.0),
        {"beta": 0.2, "po_coef": 0.5, "reward_coef": 0.25},
        softplus(-1),
    ),
    ("vpo_online", (*PAIR, (-4.0, -6.0)), {"beta": 0.2, "alpha": 0.5}, softplus(-1) - 0.5),
    # h = 1, −1: each less the other is 2, −2, and (2·(−2) − 2·(−5))/2 = 3.
    (
        "hypo",
        (*PAIR, (-2.0, -5.0), (-3.0, -4.0)),
        {"beta": 0.2, "kl_coef": 0.5},
        softplus(-1) + 1.5,
    ),
    ("vpo_offline", PAIR, {"beta": 0.2, "alpha": 0.5}, softplus(-1) - 0.5 * 0.2 * 3),
    ("ipo", PAIR, {"beta": 0.25, "reduction": "sum"}, (5 - 2) ** 2),
    ("ipo", (*PAIR, 3, 2), {"beta": 0.25}, (1 + 1 - 2) ** 2),
    ("hinge_dpo", PAIR, {"beta": 0.1}, 0.5),
    ("hinge_dpo", PAIR, {"beta": 0.3}, 0.0),
    ("nca_pair", PAIR, {"beta": 1.0}, softplus(-3) + 0.5 * softplus(3) + 0.5 * softplus(-2)),
    ("bco_pair", PAIR, {"beta": 1.0}, softplus(-3) + softplus(-2)),
    ("sppo_hard", PAIR, {"beta": 0.5}, (3 - 1) ** 2 + (-2 + 1) ** 2),
    ("apo_zero", PAIR, {"beta": 1.0}, 1 - s(3) + s(-2)),
    ("apo_down", PAIR, {"beta": 1.0}, s(3) + 1 - s(5)),
    # σ(βD) = ¾
    ("exo_pair", PAIR, {"beta": LOG3 / 5, "label_smoothing": 0.25}, 0.0),
    (
        "exo_pair",
        PAIR,
        {"beta": LOG3 / 5, "label_smoothing": 0.1},
        0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(0.25 / 0.1),
    ),
    ("f_dpo", PAIR, {"beta": 0.2}, softplus(-1)),
    # 1 − ½ and 1 − 2
    ("f_dpo", (0, -LOG4, -LOG2, -LOG2), {"beta": 1, "divergence": "forward_kl"}, softplus(-1.5)),
    # log ¾ and log ¼
    ("f_dpo", (0, -LOG3, -LOG3, 0), {"beta": 1, "divergence": "js"}, math.log(4 / 3)),
    # (½ − 1)/(−½) = 1 and (2 − 1)/(−½) = −2
    ("f_dpo", (0, -LOG4, -LOG4, 0), {"beta": 1, "divergence": "alpha"}, softplus(-3)),
    # e⁰ + 0 and ¼ − log 4
    (
        "f_dpo",
        (0, -LOG4, 0, 0),
        {"beta": 1, "divergence": "chi_squared"},
        softplus(-0.75 - LOG4),
    ),
    (
        "cpo",
        (0.0, -10.0, -1.0),
        {"label_smoothing": 0.1},
        0.9 * softplus(-1) + 0.1 * softplus(1) + 1,
    ),
    (
        "simpo",
        (-1.0, -2.0),
        {"sft_coef": 2.0, "label_smoothing": 0.1},
        0.9 * softplus(-1.5) + 0.1 * softplus(1.5) + 2,
    ),
    ("cpl", (-4.0, -18.0), {"beta": 0.2}, softplus(-1)),
    ("cpl", (-4.0, -18.0, 2, 3), {"beta": 0.5, "reduction": "mean"}, softplus(-0.5)),
    ("dpo_shift", PAIR, {"beta": 0.25, "rejected_coef": 0.5}, softplus(-1)),
    ("dpop", PAIR, {"beta": 0.2}, softplus(-1)),
    ("dpop", FLIPPED, {"beta": 0.2, "penalty_coef": 2.0}, softplus(1 + 0.8)),
    ("minor_dpo", PAIR, {"beta": 0.2}, softplus(-0.6)),
    ("minor_dpo", FLIPPED, {"beta": 0.2}, softplus(1)),
    ("bpo_min", PAIR, {"beta": 0.5, "balance": 0.5}, softplus(-0.5)),
    ("bpo_min", PAIR, {"beta": 0.5, "balance": 2.0}, softplus(-1.5)),
    ("cal_dpo", PAIR, {"beta": 0.5, "calibration_coef": 2.0}, softplus(-5) + 2 * (4 + 1)),
    ("c2_dpo", PAIR, {"beta": 0.2, "constraint_coef": 3.0}, softplus(-1) + 3),
    ("h_dpo", PAIR, {"beta": 0.2, "alpha": 0.5}, softplus(-0.2 * (0.5 + 4))),
    ("chi_po", (0, -LOG4, 0, 0), {"beta": 1, "max_margin": 3.0}, softplus(-0.75 - LOG4)),
    ("chi_po", (0, -LOG4, 0, 0), {"beta": 1, "max_margin": 2.0}, softplus(-2)),
    ("mix_dpo", (*PAIR, -2.5, 3.0, 1.0), {"beta": 0.2}, softplus(-1)),
    ("mix_dpo", (*PAIR, -2.5, 3.0, 1.0), {"threshold": 2.0, "sft_coef": 0.5}, 1.25),
    ("gpo", PAIR, {"beta": 0.2}, math.exp(-1)),
    ("gpo", FLIPPED, {"beta": 20.0}, math.exp(30) * 71),
    ("gpo", PAIR, {"beta": 0.2, "curve": "logistic"}, softplus(-1)),
    ("gpo", PAIR, {"beta": 0.1, "curve": "hinge"}, 0.5),
    ("gpo", PAIR, {"beta": 0.6, "curve": "squared"}, 4.0),
    ("gpo", PAIR, {"beta": 0.6, "curve": "truncated_quadratic"}, 0.0),
    ("gpo", FLIPPED, {"beta": 0.2, "curve": "truncated_quadratic"}, 4.0),
    ("gpo", PAIR, {"beta": LOG3 / 5, "curve": "savage"}, 1 / 16),
    ("sym_po", PAIR, {"beta": LOG3 / 5}, 0.25),
    ("sym_po", PAIR, {"beta": 0.1, "curve": "ramp"}, 0.25),
    ("sym_po", FLIPPED, {"beta": 0.4, "curve": "ramp"}, 1.0),
    ("sym_po", FLIPPED, {"beta": 0.4, "curve": "unhinged"}, 3.0),
    # R = e^{−x} = ¼: R²/2 − 1/R, less what it is at R = 1
    ("bregman_po", PAIR, {"beta": LOG4 / 5, "power": 1.0}, (1 / 32 - 4 + 0.5) / 4),
    ("bregman_po", PAIR, {"beta": LOG4 / 5, "power": 0.0}, (1 / 4 - 1 - LOG4) / 4),
    ("bregman_po", PAIR, {"beta": LOG4 / 5, "power": -0.5}, 1 / 2 - 1),
    # σ = ¾
    ("focal_po", PAIR, {"beta": LOG3 / 5, "focus": 2.0}, 9 / 16 * math.log(4 / 3)),
    ("offset_dpo", PAIR, {"beta": 0.2, "target_margin": 0.25}, softplus(-0.75)),
    # m = ¾ and e^{−x} = ⅓
    (
        "discopop",
        PAIR,
        {"beta": LOG3 / 5, "tau": 1.0},
        0.25 * math.log(4 / 3) + 0.75 / 3,
    ),
    ("padll", PAIR, {"beta": 0.2}, 0.9 * softplus(-1)),
    ("padll", FLIPPED, {"beta": 0.2}, 0.45 * softplus(1)),
    ("padll", (-1.0, -1.0, -1.0, -1.0), {}, 0.9 * LOG2),
    ("cell", PAIR, {"beta": 0.2}, (softplus(-1) + math.exp(-1)) / 2),
    ("cell", FLIPPED, {"beta": 20.0}, (100 + math.exp(30) * 71) / 2),
    ("pfl", PAIR, {"beta": 0.2}, softplus(-1) / 2),
    ("pfl", FLIPPED, {"beta": 0.2}, 2 * (1 + 1)),
    ("pfl", (-1.0, -1.0, -4.0, 0.0), {"beta": 0.2}, 2 * (1 - 0.8)),  # c = r counts as wrong
    # A batch of one: nothing to be coupled to, and no variance.
    ("aot", PAIR, {"beta": 0.2}, softplus(-1)),
    ("aot_unpaired", PAIR, {"beta": 0.2}, softplus(-1)),
    ("aql", (-1.0, -1.0, -1.0, -1.0), {}, s(0.5) * LOG2 + s(-0.5)),
    ("aqfl", (-1.0, -1.0, -1.0, -1.0), {}, s(0.0025) * LOG2 + s(-0.0025)),
    ("dbaql", PAIR, {"beta": 0.18}, (softplus(-1) + math.exp(-0.81)) / 2),
    ("dr_dpo", PAIR, {"beta": 0.2, "temperature": 3.0}, softplus(-1)),
    ("beta_dpo", PAIR, {"beta": 0.2, "alpha": 0.5, "baseline": 3.0}, softplus(-2)),
    ("beta_dpo", FLIPPED, {"beta": 0.2}, softplus(5e-3)),  # β̂ ends at 0.001
    # z_r = 0 and z_c = 3
    ("kto_pair", PAIR, {"beta": 1.0}, (s(-3) + s(-5)) / 2),
    ("alpha_dpo", PAIR, {"beta": 2.0, "target_margin": 0.5}, softplus(-1.5)),
    # h = 3 against z₀ = 1, of a mismatched response
    ("kto", (-1.0, -4.0, True, -2.0, -3.0), {"beta": 0.5, "desirable_coef": 3.0}, 3 * s(-1)),
    ("kto", (-1.0, -4.0, False, -2.0, -3.0), {"beta": 0.5, "undesirable_coef": 3.0}, 3 * s(1)),
    ("kto", (-4.0, -1.0, False, -3.0, -2.0), {"beta": 0.5}, s(-1.5)),  # z₀ is not below 0
    ("kto", (-1.0, -4.0, True), {"beta": 0.5}, 0.5),
    ("spo_silu", PAIR, {"beta": LOG3 / 5}, -LOG3 / 4),
    ("cpo_ipo", (-1.0, -4.0), {"beta": 0.25, "sft_coef": 0.5}, (3 - 2) ** 2 + 0.5),
    ("tpo", (0.0, -10.0, -3.0), {"beta": 0.1, "sft_coef": 0.5}, softplus(-1) + 1.5),
    ("tpo", (0.0, -10.0, -3.0), {"beta": 0.1, "target_margin": 0.5}, softplus(-0.5) + 3),
    ("tpo", (0.0, -4.0, -3.0), {"beta": 0.1, "curve": "hinge"}, 0.6 + 3),
    ("tpo", (-2.0, -9.0, -3.0, 2, 3), {"beta": 0.5, **TPO_IPO}, (2 - 1) ** 2 + 3),
    ("wpo", (*PAIR, -1.0, -2.0), {"beta": 0.2}, math.exp(-3) * softplus(-1)),
    ("wpo", (*PAIR, -1.0, -2.0, -3.0, -1.5), {"beta": 0.2}, math.exp(1.5) * softplus(-1)),
    ("samdpo", (*PAIR, 3, 4), {"beta": 0.5}, softplus(-0.5 * 3 * (1 + 0.5))),
    ("bco_unpaired", (-1.0, -4.0, True), {"desirable_coef": 3.0}, 3 * LOG2),
    ("apo_zero_unpaired", (-1.0, -4.0, True), {"beta": 0.5, "desirable_coef": 3.0}, 3 * s(-1.5)),
    ("apo_zero_unpaired", (-1.0, -4.0, False), {"beta": 0.5, "undesirable_coef": 3.0}, 3 * s(1.5)),
]


@pytest.mark.parametrize(
    ("name", "pair", "hyper", "expected"),
    BY_HAND,
    ids=[f"{name}-{k}" for k, (name, *_) in enumerate(BY_HAND)],
)
def test_by_hand(name, pair, hyper, expected):
    loss = LOSSES[name](*(tensor(x) for x in pair), **hyper)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_every_loss_is_worked_out_by_hand():
    elsewhere = {*OF_STEPS, *OF_LISTS}  # test_losses_of_steps.py and test_lists.py
    assert {name for name, *_ in BY_HAND} | elsewhere == set(LOSSES)


def test_mirror_losses_by_hand():
    one = one_step_mirror_loss(
        tensor(0.0), tensor(-LOG2), psi=torch.exp, phi_inv=torch.exp, g=torch.exp
    )
    assert one.tolist() == pytest.approx([-1 - math.exp(0.5)])
    columns = [tensor(x) for x in (0.0, -1.0, -2.0, -4.0)]
    two = two_step_mirror_loss(*columns, phi_inv=torch.square, g=torch.neg)
    assert two.tolist() == pytest.approx([0 - 4 - 1 + 16])


def test_optimal_transport_by_hand():
    """Δ = 3, 1 and Δ₀ = 0, 1 differ by 1 and 2, smallest first."""
    c, r, rc, rr = tensor(-1.0, -1.0), tensor(-4.0, -2.0), tensor(-3.0, -1.0), tensor(-3.0, -2.0)
    paired = LOSSES["aot"](c, r, rc, rr, beta=0.5)
    assert paired.tolist() == pytest.approx([softplus(-0.5), softplus(-1)])
    # h_c = 2, 0 and h_r = −1, 0: 0 is matched with −1, and 2 with 0.
    unpaired = LOSSES["aot_unpaired"](c, r, rc, rr, beta=0.5)
    assert unpaired.tolist() == pytest.approx([softplus(-0.5), softplus(-1)])


def test_losses_of_a_batch_by_hand():
    """x/τ = 2, −2: mean 0, standard deviation √8, variance 8."""
    c, zero = tensor(-1.0, -5.0), tensor(-3.0, -3.0)
    hyper = {"beta": 0.5, "tau": 0.5}
    logistic, hinge = (softplus(-1), softplus(1)), (0.0, 2.0)
    expected = {"aql": [], "aqfl": [], "dbaql": []}
    for x, log_part, hinge_part in zip((1, -1), logistic, hinge, strict=True):
        q = s(0.5 - 2 * x)
        expected["aql"].append(q * log_part + (1 - q) * hinge_part)
        m = math.sqrt(8) * 0.5  # the mean of S(−2) and S(2) is ½
        m += 0.05 * (0.5 - m)
        q = s(0.1 * abs(2 * x - m))
        expected["aqfl"].append(q * log_part + (1 - q) * hinge_part)
        v = s(8)
        expected["dbaql"].append(v * softplus(-x / 0.9) + (1 - v) * math.exp(-0.9 * x))
    for name, values in expected.items():
        assert LOSSES[name](c, zero, zero, zero, **hyper).tolist() == pytest.approx(values)


def test_new_losses_of_a_batch_by_hand():
    """D = 2, −2: mean 0, standard deviation √8."""
    c, zero = tensor(-1.0, -5.0), tensor(-3.0, -3.0)
    robust = LOSSES["dr_dpo"](c, zero, zero, zero, beta=0.5, temperature=1.0)
    assert robust.tolist() == pytest.approx([-math.log((s(1) + s(-1)) / 2)] * 2)  # ½
    dynamic = LOSSES["beta_dpo"](c, zero, zero, zero, beta=0.5, alpha=2.0, baseline=-1.0)
    assert dynamic.tolist() == pytest.approx([softplus(-3), softplus(3)])
    hyper = {"beta": 0.5, "alpha": 1.0, "target_margin": 0.25}
    m = 0.5 * 2 / math.sqrt(8)
    adaptive = LOSSES["alpha_dpo"](c, zero, zero, zero, **hyper)
    assert adaptive.tolist() == pytest.approx([softplus(-0.75 + m), softplus(1.25 - m)])


# Against an independent twin.


def twin(name, columns, hyper, **held):
    """The twin's losses of a batch given as lists, one per input."""
    hyper = defaults(name) | hyper | held
    function = getattr(oracles, name)
    if name in COUPLED:
        return function(*columns, **hyper)
    constants = hyper.pop("held", None)
    rows = list(zip(*columns, strict=True))
    if constants is None:
        return [function(*row, **hyper) for row in rows]
    pairs = zip(rows, constants, strict=True)
    return [function(*row, **hyper, held=constant) for row, constant in pairs]


@pytest.mark.parametrize("spread", [0.5, 8.0, 700.0])
@pytest.mark.parametrize(("name", "hyper"), CASES, ids=case_id)
def test_value_of_the_twin(name, hyper, spread):
    data = make_inputs(name, batch=40, spread=spread)
    expected = twin(name, [x.tolist() for x in data.values()], hyper)
    assert call(name, data, **hyper).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("spread", [0.5, 8.0])
@pytest.mark.parametrize(("name", "hyper"), CASES, ids=case_id)
def test_gradient_is_the_twins_central_difference(name, hyper, spread):
    data = make_inputs(name, batch=5, seed=1, spread=spread)
    columns = {field: x.tolist() for field, x in data.items()}
    step = 1e-5

    held = {}
    if name in STOPPED:
        constant = getattr(oracles, f"{name}_held")
        settings = defaults(name) | hyper
        if name in COUPLED:
            held["held"] = constant(*columns.values(), **settings)
        else:
            rows = zip(*columns.values(), strict=True)
            held["held"] = [constant(*row, **settings) for row in rows]

    def total(field, i, shift):
        moved = data[field].clone()
        moved[i] += shift
        moved = moved.tolist()
        return math.fsum(twin(name, [*(columns | {field: moved}).values()], hyper, **held))

    _, gradient = policy_gradients(name, data, **hyper)
    for field, slope in zip(policy_fields(data), gradient, strict=True):
        own = slope.view(len(slope), -1)[:, 0] if data[field].dim() < slope.dim() else slope
        for place in np.ndindex(*data[field].shape):
            expected = (total(field, place, step) - total(field, place, -step)) / (2 * step)
            assert own[place].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_vanishing_weight_of_a_huge_exponential_keeps_its_digits():
    """1 − S(44) is 0 in float64, and S(−44)·e³⁰ is not."""
    columns = [[-20.0, -48.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    hyper = {"beta": 1.0, "tau": 3.0}
    loss = LOSSES["dbaql"](*(tensor(*x) for x in columns), **hyper)
    assert loss.tolist() == pytest.approx(oracles.dbaql(*columns, **hyper), rel=1e-9)


# What the gradient does.

# A regression on a target, a side pulled back on purpose, a label that may say the opposite, or a
# weight that is a function of the margin.
MAY_LOWER_CHOSEN = {
    *("ipo", "sppo_hard", "exo_pair"),
    *("apo_down", "nca_pair"),
    *("soft_label_dpo", "smpo"),
    *("discopop", "aql", "aqfl", "dbaql"),
    *("cal_dpo", "c2_dpo", "kto_pair", "spo_silu", "cpo_ipo"),
    *OF_LISTS,  # the middle of a list is pushed both ways
    *OF_DRAWN,  # so are drawn responses
}


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in MAY_LOWER_CHOSEN])
def test_a_lower_chosen_likelihood_is_never_better(name):
    data = make_inputs(name, batch=50)
    fields = policy_fields(data)
    _, gradient = policy_gradients(name, data)
    for field, slope in zip(fields, gradient, strict=True):
        good = (
            data["desirable"]
            if field == "logps"
            else torch.tensor(field.startswith(("chosen", "gold")))
        )
        assert torch.where(good, slope <= 0, slope >= 0).all()


def test_orpo_gradient_above_the_clamp_is_the_sft_term_alone():
    c = torch.tensor([0.5, 3.0], requires_grad=True)
    r = torch.tensor([-2.0, 1.0], requires_grad=True)
    chosen, rejected = torch.autograd.grad(orpo_loss(c, r).sum(), [c, r])
    assert chosen.tolist() == [-1.0, -1.0]
    assert rejected[0] > 0
    assert rejected[1] == 0


def test_discopop_is_finite_and_linear_where_the_exponential_would_overflow():
    c = torch.tensor([-1e4, -2e3], requires_grad=True)
    zero = torch.zeros(2)
    loss = LOSSES["discopop"](c, zero, zero, zero)
    (gradient,) = torch.autograd.grad(loss.sum(), c)
    assert loss.tolist() == pytest.approx([500.0, 100.0])
    assert gradient.tolist() == pytest.approx([-0.05, -0.05])


def test_losses_need_torch_only():
    banned = "mujoco, ray, torchrl, tensordict, lightning, evotorch, safetensors, gymnasium"
    code = (
        "import sys, torchmpo.losses\n"
        f"found = [m for m in '{banned}'.split(', ') if m in sys.modules]\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
