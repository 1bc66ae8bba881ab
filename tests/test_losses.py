"""Each formula five ways: by hand, a twin, its identities, its gradient, its extremes."""

import inspect
import math
import subprocess
import sys

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from torchmpo import potentials
from torchmpo.losses import (
    LOSSES,
    cpo_loss,
    dpo_loss,
    ipo_loss,
    lpo_loss,
    one_step_mirror_loss,
    orpo_loss,
    sft_loss,
    simpo_loss,
    slic_hf_loss,
    two_step_mirror_loss,
)

# One non-default setting of each loss's numeric hyper-parameters.
HYPER = {
    "sft": {},
    "slic_hf": {"delta": 1.7, "sft_coef": 0.3},
    "lpo": {"sft_coef": 0.3},
    "cpo": {"beta": 0.4, "sft_coef": 0.7},
    "orpo": {"po_coef": 0.6},
    "simpo": {"beta": 1.3, "target_margin": 0.2},
    "dpo": {"beta": 0.3, "label_smoothing": 0.1},
    "ipo": {"beta": 0.3},
}
FLOATS = st.floats(-30.0, -0.01)


def inputs(name, batch=6, seed=0, dtype=torch.float64, spread=3.0):
    """Random negative log-probabilities (and lengths) for a loss, by the names it asks for."""
    gen = torch.Generator().manual_seed(seed)
    data = []
    for parameter in inspect.signature(LOSSES[name]).parameters.values():
        if parameter.name.endswith("_lengths"):
            data.append(torch.randint(1, 9, (batch,), generator=gen))
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            data.append((-spread * torch.rand(batch, generator=gen) - 0.01).to(dtype))
    return data


def floating(data):
    return [x for x in data if x.is_floating_point()]


def test_every_loss_is_registered_under_its_name_and_tested_here():
    assert set(HYPER) == set(LOSSES)
    for name, function in LOSSES.items():
        assert function.__name__ == f"{name}_loss"


# By hand: one pair, arithmetic that fits a line.


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (sft_loss(tensor(-2.0)), 2.0),
        (slic_hf_loss(tensor(-2.0), tensor(-2.5), delta=1.0, sft_coef=0.1), 0.5 + 0.2),
        (slic_hf_loss(tensor(-2.0), tensor(-9.0), delta=1.0, sft_coef=0.1), 0.2),
        (
            slic_hf_loss(
                tensor(-8.0), tensor(-3.0), tensor(4), tensor(6), delta=1.0, reduction="mean"
            ),
            (1 - (-2 + 0.5)) + 0.1 * 2,
        ),
        (lpo_loss(tensor(-2.0), tensor(-2.5), sft_coef=0.1), -0.5 + 0.2),
        (cpo_loss(tensor(0.0), tensor(-10.0), tensor(-1.0)), math.log(1 + math.exp(-1)) + 1),
        # logodds(log ½) = 0, logodds(log ⅕) = log ¼: σ = 1/(1 + ¼) = ⅘
        (
            orpo_loss(tensor(math.log(1 / 2)), tensor(math.log(1 / 5))),
            math.log(2) - 0.1 * math.log(4 / 5),
        ),
        (simpo_loss(tensor(-1.0), tensor(-2.0)), math.log(1 + math.exp(-1.5))),
        (
            dpo_loss(tensor(-1.0), tensor(-2.0), tensor(-4.0), tensor(0.0), beta=0.2),
            math.log(1 + math.exp(-1)),
        ),
        (
            dpo_loss(
                tensor(-1.0), tensor(-2.0), tensor(-4.0), tensor(0.0), beta=0.2, label_smoothing=0.1
            ),
            0.9 * math.log(1 + math.exp(-1)) + 0.1 * math.log(1 + math.exp(1)),
        ),
        (
            ipo_loss(
                tensor(-1.0), tensor(-2.0), tensor(-4.0), tensor(0.0), beta=0.25, reduction="sum"
            ),
            (5 - 2) ** 2,
        ),
        (
            ipo_loss(
                tensor(-1.0),
                tensor(-2.0),
                tensor(-4.0),
                tensor(0.0),
                tensor(3),
                tensor(2),
                beta=0.25,
            ),
            (1 + 1 - 2) ** 2,
        ),
        (
            one_step_mirror_loss(
                tensor(0.0), tensor(math.log(1 / 2)), psi=torch.exp, phi_inv=torch.exp, g=torch.exp
            ),
            -1 - math.exp(0.5),
        ),
        (
            two_step_mirror_loss(
                *tensor(0.0, -1.0, -2.0, -4.0)[:, None], phi_inv=torch.square, g=torch.neg
            ),
            0 - 4 - 1 + 16,
        ),
    ],
)
def test_by_hand(loss, expected):
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


# Against an independent twin.


@settings(max_examples=60)
@given(FLOATS, FLOATS, FLOATS, FLOATS)
def test_against_the_twins(c, r, rc, rr):
    x, y, z, w = (tensor(v) for v in (c, r, rc, rr))
    h = HYPER
    close = {"rel": 1e-9, "abs": 1e-9}
    assert sft_loss(x).item() == pytest.approx(oracles.sft(c), **close)
    assert slic_hf_loss(x, y, **h["slic_hf"]).item() == pytest.approx(
        oracles.slic_hf(c, r, **h["slic_hf"]), **close
    )
    assert lpo_loss(x, y, **h["lpo"]).item() == pytest.approx(
        oracles.lpo(c, r, **h["lpo"]), **close
    )
    assert cpo_loss(x, y, z, **h["cpo"]).item() == pytest.approx(
        oracles.cpo(c, r, rc, **h["cpo"]), **close
    )
    assert orpo_loss(x, y, **h["orpo"]).item() == pytest.approx(
        oracles.orpo(c, r, **h["orpo"]), **close
    )
    assert simpo_loss(x, y, **h["simpo"]).item() == pytest.approx(
        oracles.simpo(c, r, **h["simpo"]), **close
    )
    assert dpo_loss(x, y, z, w, **h["dpo"]).item() == pytest.approx(
        oracles.dpo(c, r, rc, rr, **h["dpo"]), rel=1e-6
    )
    assert ipo_loss(x, y, z, w, **h["ipo"], reduction="sum").item() == pytest.approx(
        oracles.ipo(c, r, rc, rr, **h["ipo"]), **close
    )
    n, m = tensor(3), tensor(7)
    assert ipo_loss(x, y, z, w, n, m, **h["ipo"]).item() == pytest.approx(
        oracles.ipo(c / 3, r / 7, rc / 3, rr / 7, **h["ipo"]), **close
    )


# Identities, in value and gradient.


def grid(count, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return [
        (-6 * torch.rand(50, generator=gen, dtype=torch.float64) - 0.01).requires_grad_()
        for _ in range(count)
    ]


def assert_same(first, second, variables, offset=0.0):
    torch.testing.assert_close(first, second + offset)
    grads = [torch.autograd.grad(loss.sum(), variables) for loss in (first, second)]
    torch.testing.assert_close(*grads)


def test_lpo_is_slic_hf_without_end():
    c, r = grid(2)
    assert_same(slic_hf_loss(c, r, delta=1e3), lpo_loss(c, r), [c, r], offset=1e3)


def test_cpo_is_one_step_mirror_with_beta_log():
    c, r = grid(2)
    mirror = one_step_mirror_loss(
        c,
        r,
        psi=potentials.scale(potentials.log, 0.7),
        phi_inv=potentials.scale(potentials.log, 0.3),
        g=logsigmoid,
    )
    assert_same(cpo_loss(c, r, c, beta=0.3, sft_coef=0.7), mirror, [c, r])


def test_orpo_is_one_step_mirror_with_logit():
    c, r = grid(2)
    mirror = one_step_mirror_loss(
        c, r, psi=potentials.log, phi_inv=potentials.logit, g=logsigmoid, po_coef=0.4
    )
    assert_same(orpo_loss(c, r, po_coef=0.4), mirror, [c, r])


def test_dpo_is_two_step_mirror_with_beta_log():
    x = grid(4)
    mirror = two_step_mirror_loss(*x, phi_inv=potentials.scale(potentials.log, 0.3), g=logsigmoid)
    assert_same(dpo_loss(*x, beta=0.3), mirror, x)


def test_dpo_without_a_reference_is_the_preference_term_of_cpo_and_simpo():
    c, r = grid(2)
    zero = torch.zeros_like(c)
    assert_same(
        dpo_loss(c, r, zero, zero, beta=0.3), cpo_loss(c, r, c, beta=0.3, sft_coef=0.0), [c, r]
    )
    assert_same(
        dpo_loss(c, r, zero, zero, beta=0.3), simpo_loss(c, r, beta=0.3, target_margin=0.0), [c, r]
    )


def test_label_smoothing_mixes_the_loss_with_its_flipped_labels():
    c, r, rc, rr = grid(4)
    mixed = 0.8 * dpo_loss(c, r, rc, rr) + 0.2 * dpo_loss(r, c, rr, rc)
    assert_same(dpo_loss(c, r, rc, rr, label_smoothing=0.2), mixed, [c, r])


# Gradients.


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name):
    data = inputs(name, batch=4)
    free = [x.requires_grad_() for x in floating(data)]
    assert torch.autograd.gradcheck(lambda *_: LOSSES[name](*data, **HYPER[name]), free)


# IPO is a regression: it pulls back once the margin is past 1/(2β).
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "ipo"])
def test_a_lower_chosen_likelihood_is_never_better(name):
    data = inputs(name)
    chosen = data[0].requires_grad_()
    (slope,) = torch.autograd.grad(LOSSES[name](*data, **HYPER[name]).sum(), chosen)
    assert (slope <= 0).all()


# Extremes.


EXTREMES = (-1e4, -50.0, -1.0, -1e-3, -1e-6, -1e-9, 0.0, 5.0, 20.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_finite_at_extremes_in_every_type(name, dtype):
    values = torch.tensor(EXTREMES, dtype=dtype)
    pairs = torch.cartesian_prod(values, values).T
    data = inputs(name, batch=pairs.shape[1], dtype=dtype)
    for slot, x in zip([i for i, x in enumerate(data) if x.is_floating_point()], pairs):
        data[slot] = x.clone().requires_grad_()
    loss = LOSSES[name](*data, **HYPER[name])
    free = [x for x in data if x.requires_grad]
    grads = torch.autograd.grad(loss.sum(), free)
    assert loss.dtype == dtype
    assert loss.shape == pairs.shape[1:]
    assert loss.isfinite().all()
    assert all(g.isfinite().all() for g in grads)


def test_orpo_gradient_above_the_clamp_is_the_sft_term_alone():
    c = torch.tensor([0.5, 3.0], requires_grad=True)
    r = torch.tensor([-2.0, 1.0], requires_grad=True)
    chosen, rejected = torch.autograd.grad(orpo_loss(c, r).sum(), [c, r])
    assert chosen.tolist() == [-1.0, -1.0]
    assert rejected[0] > 0
    assert rejected[1] == 0


# A grid of hyper-parameters, and compilation.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in LOSSES if HYPER[name]])
def test_vmapped_hyper_parameters_equal_a_loop(name, dtype):
    data = inputs(name, dtype=dtype)
    factors = (0.5, 1.0, 1.4)
    stacked = {k: torch.tensor([v * f for f in factors]) for k, v in HYPER[name].items()}
    batched = torch.func.vmap(lambda h: LOSSES[name](*data, **h))(stacked)
    loop = torch.stack(
        [LOSSES[name](*data, **{k: v * f for k, v in HYPER[name].items()}) for f in factors]
    )
    assert batched.dtype == dtype
    loose = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    torch.testing.assert_close(batched, loop, rtol=loose, atol=loose)


@pytest.mark.parametrize("name", LOSSES)
def test_vmapped_pairs_equal_the_batch(name):
    data = inputs(name)
    batched = torch.func.vmap(lambda *x: LOSSES[name](*x, **HYPER[name]))(*data)
    torch.testing.assert_close(batched, LOSSES[name](*data, **HYPER[name]))


def test_every_loss_compiles_into_one_graph():
    data = {name: inputs(name) for name in LOSSES}

    def everything(data):
        return {name: LOSSES[name](*x, **HYPER[name]) for name, x in data.items()}

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(data), everything(data))


def test_population_gradient_of_orpo_compiles_with_inductor():
    c, r = torch.rand(2, 3, 4) * -5 - 0.1
    gradient = torch.func.vmap(torch.func.grad(lambda c, r: orpo_loss(c, r).sum(), argnums=(0, 1)))
    torch.testing.assert_close(torch.compile(gradient, fullgraph=True)(c, r), gradient(c, r))


# Mistakes.


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "sft"])
def test_shapes_that_would_broadcast_are_refused_with_both_printed(name):
    data = inputs(name)
    data[1] = data[1][:, None]
    with pytest.raises(ValueError, match=r"\(6, 1\).*\(6,\)"):
        LOSSES[name](*data)


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("dpo", {"beta": 0}, "beta must be positive"),
        ("dpo", {"beta": math.nan}, "beta must be positive"),
        ("dpo", {"label_smoothing": 0.5}, r"label_smoothing must be in \[0, 0.5\)"),
        ("dpo", {"label_smoothing": -0.1}, "label_smoothing"),
        ("ipo", {"beta": -1.0}, "beta"),
        ("ipo", {"reduction": "max"}, "reduction must be 'sum' or 'mean'"),
        ("cpo", {"beta": math.inf}, "beta"),
        ("cpo", {"sft_coef": -1}, "sft_coef must be zero or positive"),
        ("orpo", {"po_coef": -0.1}, "po_coef"),
        ("simpo", {"beta": 0.0}, "beta"),
        ("simpo", {"target_margin": math.nan}, "target_margin must be finite"),
        ("slic_hf", {"delta": -1.0}, "delta"),
        ("lpo", {"sft_coef": -1.0}, "sft_coef"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(name, hyper, message):
    with pytest.raises(ValueError, match=message):
        LOSSES[name](*inputs(name), **hyper)


@pytest.mark.parametrize("name", ["ipo", "slic_hf", "lpo"])
def test_a_mean_without_lengths_is_refused(name):
    with pytest.raises(ValueError, match="chosen_lengths"):
        LOSSES[name](*floating(inputs(name)), reduction="mean")


def test_losses_need_torch_only():
    banned = "mujoco, ray, torchrl, tensordict, lightning, evotorch, safetensors, gymnasium"
    code = (
        "import sys, torchmpo.losses\n"
        f"found = [m for m in '{banned}'.split(', ') if m in sys.modules]\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
