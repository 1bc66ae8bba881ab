"""What every loss in the registry promises, whoever wrote it."""

import inspect
import itertools
import math
import re

import pytest
import torch
from loss_cases import (
    CASES,
    OF_DRAWN,
    OF_LISTS,
    OF_STEPS,
    POLICY,
    SETTINGS,
    STOPPED,
    call,
    case_id,
    defaults,
    input_names,
    make_inputs,
    policy_fields,
    policy_gradients,
    stacked,
)

from torchmpo import Objective, PairLogps, losses, resolve
from torchmpo.losses import COUPLED, LOSSES
from torchmpo.objectives.inputs import DRAWN

SUMS = ("chosen_logps", "rejected_logps")
MEANS = ("chosen_mean_logps", "rejected_mean_logps")
REF_MEANS = ("ref_chosen_mean_logps", "ref_rejected_mean_logps")
LENGTHS = ("chosen_lengths", "rejected_lengths")
REWARDS = ("chosen_rewards", "rejected_rewards")
PAIR = (*SUMS, "ref_chosen_logps", "ref_rejected_logps")
LABELLED = ("logps", "ref_logps", "desirable")
BY_STEP = tuple(name.replace("_logps", "_step_logps") for name in PAIR)
MASKS = ("chosen_mask", "rejected_mask")
STEP_KL = ("chosen_step_kl", "rejected_step_kl")
STEP_WEIGHTS = ("chosen_step_weights", "rejected_step_weights")
COLLISION = ("chosen_log_collision", "rejected_log_collision")
MISMATCHED = ("mismatched_logps", "ref_mismatched_logps")

# Inputs in their order, and hyper-parameters with their defaults: what users and saved
# configurations rely on.
SIGNATURES = {
    "sft": (("chosen_mean_logps",), {}),
    "rrhf": (MEANS, {"sft_coef": 1.0}),
    "slic_hf": ((*SUMS, *LENGTHS), {"delta": 1.0, "sft_coef": 0.1, "reduction": "sum"}),
    "lpo": ((*SUMS, *LENGTHS), {"sft_coef": 0.1, "reduction": "sum"}),
    "cpo": (
        (*SUMS, "chosen_mean_logps"),
        {"beta": 0.1, "sft_coef": 1.0, "label_smoothing": 0.0},
    ),
    "orpo": (MEANS, {"po_coef": 0.1}),
    "simpo": (
        MEANS,
        {"beta": 2.0, "target_margin": 0.5, "sft_coef": 0.0, "label_smoothing": 0.0},
    ),
    "alpha_po": (MEANS, {"beta": 2.0, "alpha": 0.25, "target_margin": 0.5}),
    "colpo": (MEANS, {"po_coef": 0.5, "delta": 10.0, "threshold": -1.2}),
    "closed_form": (
        MEANS,
        {
            "sft_coef": 1.0,
            "sigmoid_coef": 0.1,
            "beta": 1.0,
            "target_margin": 0.0,
            "linear_coef": 0.0,
            "softplus_coef": 0.0,
            "sharpness": 16.0,
            "threshold": 0.0,
        },
    ),
    "dpo": (PAIR, {"beta": 0.1, "label_smoothing": 0.0}),
    "robust_dpo": (PAIR, {"beta": 0.1, "label_smoothing": 0.0}),
    "r_dpo": ((*PAIR, *LENGTHS), {"beta": 0.1, "alpha": 0.05}),
    "dpo_norm": ((*MEANS, *REF_MEANS), {"beta": 5.0, "label_smoothing": 0.0}),
    "rpo": ((*PAIR, "chosen_mean_logps"), {"beta": 0.1, "sft_coef": 1.0}),
    "dpo_gamma": (PAIR, {"beta": 0.1, "ref_coef": 1.0}),
    "dpo_positive_reference": (PAIR, {"beta": 0.1}),
    "soft_label_dpo": ((*PAIR, "preference_probs"), {"beta": 0.1}),
    "margin_dpo": ((*PAIR, *REWARDS), {"beta": 0.1, "margin_coef": 1.0}),
    "smpo": ((*PAIR, "preference_probs"), {"beta": 0.1, "scale": 1.0}),
    "madpo": (
        (*PAIR, *REWARDS),
        {"beta": 0.1, "eta": 1.0, "max_coef": 2.0, "min_coef": 0.5, "sharpness": 1.0, "tau": 2.0},
    ),
    "modpo": ((*PAIR, *REWARDS), {"beta": 0.1, "po_coef": 0.5, "reward_coef": 0.5}),
    "vpo_offline": (PAIR, {"beta": 0.1, "alpha": 0.1}),
    "ipo": ((*PAIR, *LENGTHS), {"beta": 0.1, "reduction": "mean"}),
    "hinge_dpo": (PAIR, {"beta": 0.1}),
    "nca_pair": (PAIR, {"beta": 0.1}),
    "bco_pair": (PAIR, {"beta": 0.1}),
    "sppo_hard": (PAIR, {"beta": 0.1}),
    "apo_zero": (PAIR, {"beta": 0.1}),
    "apo_down": (PAIR, {"beta": 0.1}),
    "exo_pair": (PAIR, {"beta": 0.1, "label_smoothing": 1e-3}),
    "f_dpo": (PAIR, {"beta": 0.1, "divergence": "reverse_kl", "alpha": 0.5}),
    "cpl": ((*SUMS, *LENGTHS), {"beta": 0.1, "rejected_coef": 0.5, "reduction": "sum"}),
    "dpo_shift": (PAIR, {"beta": 0.1, "rejected_coef": 0.75}),
    "dpop": (PAIR, {"beta": 0.3, "penalty_coef": 50.0}),
    "minor_dpo": (PAIR, {"beta": 0.1}),
    "bpo_min": (PAIR, {"beta": 0.1, "balance": 0.3}),
    "cal_dpo": (PAIR, {"beta": 0.1, "calibration_coef": 1.0}),
    "c2_dpo": (PAIR, {"beta": 0.1, "constraint_coef": 2e-4}),
    "h_dpo": (PAIR, {"beta": 0.1, "alpha": 0.95}),
    "chi_po": (PAIR, {"beta": 0.1, "max_margin": 10.0}),
    "mix_dpo": (
        (*PAIR, "chosen_mean_logps", *REWARDS),
        {"beta": 0.1, "threshold": 0.5, "sft_coef": 1.0},
    ),
    "gpo": (PAIR, {"beta": 0.1, "curve": "exponential"}),
    "sym_po": (PAIR, {"beta": 0.1, "curve": "sigmoid"}),
    "bregman_po": (PAIR, {"beta": 0.1, "power": 0.5}),
    "focal_po": (PAIR, {"beta": 0.1, "focus": 0.05}),
    "offset_dpo": (PAIR, {"beta": 0.1, "target_margin": 1.0}),
    "discopop": (PAIR, {"beta": 0.05, "tau": 0.05}),
    "padll": (PAIR, {"beta": 0.1}),
    "cell": (PAIR, {"beta": 0.1}),
    "pfl": (PAIR, {"beta": 0.1}),
    "aot": (PAIR, {"beta": 0.1, "label_smoothing": 0.0}),
    "aot_unpaired": (PAIR, {"beta": 0.1, "label_smoothing": 0.0}),
    "aql": (PAIR, {"beta": 0.1, "tau": 0.05}),
    "aqfl": (PAIR, {"beta": 0.1, "tau": 0.05}),
    "dbaql": (PAIR, {"beta": 0.1, "tau": 0.05}),
    "dr_dpo": (PAIR, {"beta": 0.1, "temperature": 1.0}),
    "beta_dpo": (PAIR, {"beta": 0.1, "alpha": 0.6, "baseline": 0.0}),
    "kto_pair": (PAIR, {"beta": 0.1}),
    "kto": (
        (*LABELLED, *MISMATCHED),
        {"beta": 0.1, "desirable_coef": 1.0, "undesirable_coef": 1.0},
    ),
    "spo_silu": (PAIR, {"beta": 0.1}),
    "cpo_ipo": (MEANS, {"beta": 0.1, "sft_coef": 1.0}),
    **dict.fromkeys(OF_LISTS, (("list_logps", "ref_list_logps"), {"beta": 0.1})),
    "tpo": (
        (*SUMS, "gold_mean_logps", *LENGTHS),
        {
            **{"beta": 0.01, "sft_coef": 1.0, "target_margin": 0.0, "label_smoothing": 0.0},
            **{"curve": "logistic", "reduction": "sum"},
        },
    ),
    "wpo": ((*PAIR, *MEANS, *COLLISION), {"beta": 0.1, "label_smoothing": 0.0}),
    "samdpo": ((*PAIR, *LENGTHS), {"beta": 0.1}),
    "ld_dpo": ((*BY_STEP, *MASKS, *LENGTHS), {"beta": 0.1, "excess_coef": 0.5}),
    "bvpo": ((*BY_STEP, *MASKS, *LENGTHS), {"beta": 0.1, "mix": 0.5, "window": 0.25}),
    "tdpo": (
        (*BY_STEP, *STEP_KL, *MASKS, *LENGTHS),
        {"beta": 0.1, "alpha": 0.5, "variant": "tdpo2"},
    ),
    "tb_po": ((*BY_STEP, *STEP_KL, *MASKS, *LENGTHS), {"beta": 0.1}),
    "sparse_po": (
        (*BY_STEP, *STEP_KL, *STEP_WEIGHTS, *MASKS, *LENGTHS),
        {"beta": 0.1, "sparsity_coef": 0.0},
    ),
    "hypo": ((*PAIR, "own_logps", "ref_own_logps"), {"beta": 0.1, "kl_coef": 0.01}),
    "vpo_online": ((*PAIR, "calibration_logps"), {"beta": 0.1, "alpha": 0.1}),
    "bco_unpaired": (LABELLED, {"beta": 0.1, "desirable_coef": 1.0, "undesirable_coef": 1.0}),
    "apo_zero_unpaired": (LABELLED, {"beta": 0.1, "desirable_coef": 1.0, "undesirable_coef": 1.0}),
    "alpha_dpo": ((*MEANS, *REF_MEANS), {"beta": 2.5, "alpha": 0.2, "target_margin": 1.5}),
}
# The fields a loss can do without, unless reduction="mean" asks for lengths.
OF_A_MEAN = ("slic_hf", "lpo", "ipo", "cpl", "tpo")
OPTIONAL = dict.fromkeys(OF_A_MEAN, LENGTHS) | {"kto": MISMATCHED, "wpo": COLLISION}
NAMES = list(SIGNATURES)
FLAT = [name for name in NAMES if name not in (*OF_STEPS, *OF_LISTS, *OF_DRAWN)]  # all [batch]
FIRST = {name: SETTINGS[name][0] for name in NAMES}
NUMERIC = {n: {k: v for k, v in FIRST[n].items() if not isinstance(v, str)} for n in NAMES}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


# Names.


def test_the_registry_is_complete():
    assert list(LOSSES) == [name for name in LOSSES if name in SIGNATURES]
    assert set(LOSSES) == set(SIGNATURES)
    discovered = {"aql", "aqfl", "dbaql"}
    assert {
        "aot",
        "aot_unpaired",
        "dr_dpo",
        "beta_dpo",
        "alpha_dpo",
        "kto_pair",
        "kto",
        "bco_unpaired",
    } | discovered == COUPLED


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    function = LOSSES[name]
    assert function.__name__ == f"{name}_loss"
    assert getattr(losses, function.__name__) is function
    assert function.__name__ in losses.__all__
    inputs, hyper = SIGNATURES[name]
    parameters = inspect.signature(function).parameters.values()
    assert tuple(input_names(name)) == inputs
    assert set(inputs) <= set(PairLogps._fields)
    assert defaults(name) == hyper
    assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
    optional = tuple(p.name for p in parameters if p.default is None)
    assert optional == OPTIONAL.get(name, ())


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_tried_here_leave_no_number_at_its_default(name):
    numbers = {k: v for k, v in SIGNATURES[name][1].items() if not isinstance(v, str)}
    assert NUMERIC[name].keys() == numbers.keys()
    assert all(NUMERIC[name][k] != v for k, v in numbers.items())


@pytest.mark.parametrize("name", NAMES)
def test_resolve_and_what_the_objective_knows(name):
    objective = resolve(name, **FIRST[name])
    data = make_inputs(name)
    assert objective.name == name
    assert objective.inputs == set(SIGNATURES[name][0])
    assert objective.coupled is (name in COUPLED)
    assert objective.needs_reference is any(field.startswith("ref_") for field in data)
    assert torch.equal(objective(PairLogps(**data)), call(name, data, **FIRST[name]))


# Values and gradients in every type, on every device.


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "hyper"), CASES, ids=case_id)
def test_shape_type_and_value(name, hyper, dtype, device):
    """Close to what float64 makes of the same rounded inputs."""
    data = make_inputs(name, dtype=dtype, device=device)
    exact = {k: v.cpu().double() if v.is_floating_point() else v.cpu() for k, v in data.items()}
    loss, gradient = policy_gradients(name, data, **hyper)
    expected, slope = policy_gradients(name, exact, **hyper)
    assert loss.shape == (6,)
    assert loss.dtype == gradient.dtype == dtype
    assert loss.device.type == device
    close = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=close, atol=close)
    torch.testing.assert_close(gradient.cpu().double(), slope, rtol=close, atol=close)


@pytest.mark.parametrize("name", [n for n in NAMES if set(SIGNATURES[n][0]) - set(PAIR + MEANS)])
def test_the_type_is_that_of_the_log_probabilities_whatever_else_is_given(name):
    """Lengths, rewards and votes come from elsewhere, in types of their own."""
    setting = {"reduction": "mean"} if "reduction" in defaults(name) else {}
    data = make_inputs(name)
    others = [field for field in data if not field.endswith("logps")]
    for mine, theirs in [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)]:
        mixed = {k: x.to(theirs if k in others else mine) for k, x in data.items()}
        assert call(name, mixed, **setting).dtype == mine


@pytest.mark.parametrize("name", [n for n in NAMES if "ref_" in "".join(SIGNATURES[n][0])])
def test_no_gradient_into_what_is_data(name):
    """The reference, votes and scores; a judge that is a network must not learn from the loss."""

    def is_data(field):
        return field.startswith("ref_") or field.endswith(("_rewards", "_probs"))

    for setting in ({}, *SETTINGS[name]):
        data = make_inputs(name)
        reference = [x.requires_grad_() for field, x in data.items() if is_data(field)]
        policy = [data[field].requires_grad_() for field in policy_fields(data)]
        loss = call(name, data, **setting)
        grads = torch.autograd.grad(loss.sum(), [*policy, *reference], allow_unused=True)
        assert all(g is not None and g.any() for g in grads[: len(policy)])
        assert all(g is None or not g.any() for g in grads[len(policy) :])
        # Nor where the policy is frozen.
        frozen = {k: v if is_data(k) else v.detach() for k, v in data.items()}
        assert not call(name, frozen, **setting).requires_grad


@pytest.mark.parametrize(
    ("name", "hyper"), [(n, h) for n, h in CASES if n not in STOPPED], ids=case_id
)
def test_gradcheck(name, hyper):
    data = make_inputs(name, batch=4)
    free = [data[field].requires_grad_() for field in policy_fields(data)]
    assert torch.autograd.gradcheck(lambda *_: call(name, data, **hyper), free)


@pytest.mark.parametrize(("name", "hyper"), [(n, h) for n, h in CASES if NUMERIC[n]], ids=case_id)
def test_hyper_parameters_have_gradients_of_their_own(name, hyper):
    """As tensors they may be learned."""
    data, hyper = make_inputs(name, batch=4), defaults(name) | hyper
    # Away from a whole number, where a formula may change.
    tensors = {
        k: torch.tensor(v + 1e-3, dtype=torch.float64, requires_grad=True)
        for k, v in hyper.items()
        if not isinstance(v, str)
    }
    free = list(tensors.values())
    assert torch.autograd.gradcheck(lambda *_: call(name, data, **hyper | tensors), free)


# Extremes.

SUM_EXTREMES = (-1e4, -1e3, -50.0, -1.0, -1e-6, 0.0)
MEAN_EXTREMES = (-50.0, -10.0, -1.0, -1e-3, -1e-6, 0.0, 5.0)


def extreme_inputs(name, dtype):
    """Every combination of extreme log-probabilities; extreme values of whatever else is asked."""
    fields = input_names(name)
    if name in (*OF_STEPS, *OF_LISTS, *OF_DRAWN):
        data, gen = make_inputs(name, batch=400, dtype=dtype), torch.Generator().manual_seed(0)
        wide = [f for f in fields if "_step_" in f or "list_" in f or f in DRAWN]
        for field in wide:
            values = torch.tensor(SUM_EXTREMES if "logps" in field else (0.0, 1e-6, 1.0, 1e3))
            drawn = torch.randint(len(values), data[field].shape, generator=gen)
            data[field] = values[drawn].to(dtype)
        return data
    sums = [f for f in fields if f in (*PAIR, "logps", "ref_logps")]
    logps = sums or [f for f in fields if f.endswith("mean_logps")]
    values = SUM_EXTREMES if sums else MEAN_EXTREMES
    columns = zip(*itertools.product(values, repeat=len(logps)), strict=True)
    data = dict(zip(logps, (torch.tensor(c, dtype=dtype) for c in columns), strict=True))
    count = len(next(iter(data.values())))
    gen = torch.Generator().manual_seed(0)
    for field in fields:
        if field in data:
            continue
        choices = {
            "chosen_mean_logps": MEAN_EXTREMES,
            "gold_mean_logps": MEAN_EXTREMES,
            "preference_probs": (0.0, 0.5, 1.0),
            "desirable": (0.0, 1.0),
            **dict.fromkeys(MISMATCHED, SUM_EXTREMES),
            **dict.fromkeys((*COLLISION, "rejected_mean_logps"), MEAN_EXTREMES),
            **dict.fromkeys(REWARDS, (-1e3, -2.0, 0.0, 1e-3, 1e3)),
            **dict.fromkeys(LENGTHS, (1, 7, 4096)),
        }[field]
        drawn = torch.randint(len(choices), (count,), generator=gen)
        values = torch.tensor(choices)[drawn]
        data[field] = values if field in LENGTHS else values.to(dtype)
    return {field: data[field] for field in fields}


def assert_finite(name, data, hyper):
    loss, gradient = policy_gradients(name, data, **hyper)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.float().square().sum().isfinite()
    return loss


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "hyper"), CASES, ids=case_id)
def test_finite_at_the_extremes(name, hyper, dtype):
    data = extreme_inputs(name, dtype)
    loss = assert_finite(name, data, hyper)
    assert loss.shape == next(iter(data.values())).shape[:1]
    if name in COUPLED:
        # In small batches, where no crowd hides an infinity: of one, of two, all the same.
        for k in range(0, len(loss), 97):
            alone = {field: x[k : k + 1] for field, x in data.items()}
            assert_finite(name, alone, hyper)
            assert_finite(name, {field: x.repeat(4) for field, x in alone.items()}, hyper)
            assert_finite(name, {f: x[[k, -k - 1]] for f, x in data.items()}, hyper)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [n for n in NAMES if SIGNATURES[n][0][: len(PAIR)] == PAIR])
def test_finite_at_a_margin_of_a_thousand_and_of_nothing(name, dtype):
    for margin in (1e3, -1e3, 0.0):
        zero = torch.zeros(3, dtype=dtype)
        data = dict.fromkeys(PAIR, zero)
        data = make_inputs(name, batch=3, dtype=dtype) | data
        data["chosen_logps" if margin < 0 else "rejected_logps"] = zero - abs(margin)
        assert_finite(name, {field: data[field] for field in input_names(name)}, {})


# Transforms.


def batches(name, count, batch=5):
    many = [make_inputs(name, batch=batch, seed=seed) for seed in range(count)]
    return {field: torch.stack([data[field] for data in many]) for field in many[0]}


def value_and_gradient(name, data, hyper):
    """The losses and the gradients of their sum, by functorch: nests inside other transforms."""
    fields = policy_fields(data)

    def total(*policy):
        loss = call(name, data | dict(zip(fields, policy, strict=True)), **hyper)
        return loss.sum(), loss

    policy = [data[field] for field in fields]
    grads, loss = torch.func.grad(total, tuple(range(len(fields))), has_aux=True)(*policy)
    return loss, stacked(grads)


def member(data, i):
    return {field: x[i] for field, x in data.items()}


@pytest.mark.parametrize(("name", "hyper"), CASES, ids=case_id)
def test_vmap_over_data_is_a_loop(name, hyper):
    stack = batches(name, 3)
    loss, gradient = torch.func.vmap(lambda data: value_and_gradient(name, data, hyper))(stack)
    for i in range(3):
        expected = policy_gradients(name, member(stack, i), **hyper)
        torch.testing.assert_close((loss[i], gradient[i]), expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in COUPLED])
def test_vmap_over_single_pairs_is_the_batch(name):
    data, hyper = make_inputs(name), FIRST[name]
    loss, gradient = torch.func.vmap(
        lambda pair: value_and_gradient(name, pair, hyper), out_dims=(0, 1)
    )(data)
    torch.testing.assert_close((loss, gradient), policy_gradients(name, data, **hyper))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in NAMES if NUMERIC[name]])
def test_vmap_over_hyper_parameters_is_a_loop(name, dtype):
    data, rest = make_inputs(name, dtype=dtype), FIRST[name]
    factors = (0.5, 1.0, 1.4)
    stack = {k: torch.tensor([v * f for f in factors]) for k, v in NUMERIC[name].items()}
    loss, gradient = torch.func.vmap(lambda h: value_and_gradient(name, data, rest | h))(stack)
    assert loss.dtype == gradient.dtype == dtype
    close = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    for i, factor in enumerate(factors):
        hyper = rest | {k: v * factor for k, v in NUMERIC[name].items()}
        expected = policy_gradients(name, data, **hyper)
        torch.testing.assert_close((loss[i], gradient[i]), expected, rtol=close, atol=close)


@pytest.mark.parametrize(("name", "hyper"), CASES, ids=case_id)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_as_hyper_parameters_equal_numbers(name, hyper, dtype):
    data, hyper = make_inputs(name, dtype=dtype), defaults(name) | hyper
    expected = policy_gradients(name, data, **hyper)
    exact = {
        k: v if isinstance(v, str) else torch.tensor(v, dtype=torch.float64)
        for k, v in hyper.items()
    }
    values = policy_gradients(name, data, **exact)
    assert values[0].dtype == values[1].dtype == dtype
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(values, expected, rtol=close, atol=close)


# Integers, where a hyper-parameter has one in its range; others keep their defaults.
INTEGERS = {
    **{"kl_coef": 1, "sparsity_coef": 1},
    **dict.fromkeys(("beta", "sft_coef", "po_coef", "delta", "ref_coef", "scale", "eta"), 2),
    **dict.fromkeys(("margin_coef", "reward_coef", "sharpness", "tau", "target_margin"), 1),
    **dict.fromkeys(("sigmoid_coef", "linear_coef", "softplus_coef"), 2),
    **dict.fromkeys(("penalty_coef", "calibration_coef", "constraint_coef", "temperature"), 2),
    **dict.fromkeys(("rejected_coef", "balance", "baseline", "focus", "power", "max_margin"), 1),
    **dict.fromkeys(("desirable_coef", "undesirable_coef"), 2),
    **dict.fromkeys(("excess_coef", "mix"), 1),
    **{"threshold": -2, "alpha": 2, "max_coef": 3, "min_coef": 0, "label_smoothing": 0},
}


@pytest.mark.parametrize("name", NAMES)
def test_integers_as_hyper_parameters_equal_numbers(name):
    data = make_inputs(name)
    keys = [k for k, v in defaults(name).items() if not isinstance(v, str)]
    if name == "exo_pair":
        keys.remove("label_smoothing")
    if name == "bvpo":
        keys.remove("window")
    chosen = {k: INTEGERS[k] for k in keys}
    expected = call(name, data, **{k: float(v) for k, v in chosen.items()})
    torch.testing.assert_close(call(name, data, **chosen), expected)


# Compilation.


def split(data):
    """The tensors that gradients are for, and the rest."""
    policy = {k: x for k, x in data.items() if k in POLICY}
    return policy, {k: x for k, x in data.items() if k not in POLICY}


def total(names, policy, rest, hyper):
    """One number out of many losses, so that one compilation serves them all."""
    whole = 0.0
    for name in names:
        data = policy[name] | rest[name]
        data = {field: data[field] for field in SIGNATURES[name][0]}
        whole = whole + call(name, data, **FIRST[name] | hyper[name]).sum()
    return whole


def test_values_of_all_losses_compile_into_one_graph():
    """In every setting; gradients are those that autograd takes of the compiled values."""
    data = [make_inputs(name) for name, _ in CASES]
    policy = [x[field].requires_grad_() for x in data for field in policy_fields(x)]

    def values(data):
        pairs = zip(CASES, data, strict=True)
        return [call(name, x, **hyper) for (name, hyper), x in pairs]

    torch.compiler.reset()
    compiled = torch.compile(values, fullgraph=True, backend="aot_eager")(data)
    expected = values(data)
    torch.testing.assert_close(compiled, expected)
    got = torch.autograd.grad([x.sum() for x in compiled], policy)
    want = torch.autograd.grad([x.sum() for x in expected], policy)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("names", "backend"),
    # A clamp, a gate, a sort and a standard deviation for the compiler that makes code.
    [(NAMES, "aot_eager"), (("orpo", "colpo", "aot", "aqfl"), "inductor")],
    ids=["aot_eager", "inductor"],
)
def test_gradients_of_a_population_compile_into_one_graph(names, backend):
    """Members in a stack, each with hyper-parameters of its own."""
    policy, rest = zip(*(split(batches(name, 3)) for name in names), strict=True)
    policy = dict(zip(names, policy, strict=True))
    rest = dict(zip(names, rest, strict=True))
    factors = torch.tensor([0.5, 1.0, 1.4])
    hyper = {name: {k: v * factors for k, v in NUMERIC[name].items()} for name in names}

    def gradients(policy, rest, hyper):
        member = torch.func.grad(lambda *x: total(names, *x))
        return torch.func.vmap(member)(policy, rest, hyper)

    torch.compiler.reset()
    compiled = torch.compile(gradients, fullgraph=True, backend=backend)(policy, rest, hyper)
    expected = gradients(policy, rest, hyper)
    torch.testing.assert_close(compiled, expected, rtol=1e-6, atol=1e-6)


# Coupling.


@pytest.mark.parametrize("name", NAMES)
def test_pairs_influence_each_other_only_in_coupled_losses(name):
    data, hyper = make_inputs(name, batch=8), FIRST[name]
    whole = call(name, data, **hyper)
    alone = torch.cat(
        [call(name, {f: x[i : i + 1] for f, x in data.items()}, **hyper) for i in range(8)]
    )
    fields = policy_fields(data)
    jacobian = torch.func.jacrev(
        lambda *policy: call(name, data | dict(zip(fields, policy, strict=True)), **hyper),
        tuple(range(len(fields))),
    )(*(data[field] for field in fields))
    others = stacked(jacobian)[:, ~torch.eye(8, dtype=torch.bool)]
    if name in COUPLED:
        assert (whole - alone).abs().max() > 1e-6
        assert others.any() == (name not in (*STOPPED, "kto"))  # z₀ has no gradient
    else:
        torch.testing.assert_close(whole, alone)
        assert not others.any()


# What the docstring says.


def section(name, heading):
    doc = inspect.getdoc(LOSSES[name])
    found = re.search(rf"^{heading}:\n((?:    .*\n|\n)+)", doc + "\n", re.MULTILINE)
    assert found, f"{name} has no section {heading}"
    return " ".join(found[1].split())


@pytest.mark.parametrize("name", NAMES)
def test_docstring_has_its_sections_in_order(name):
    doc = inspect.getdoc(LOSSES[name])
    headings = re.findall(r"^([A-Z][a-z]+):(?=\n|\s)", doc, re.MULTILINE)
    expected = ["Args", "Returns", "Raises", "Bounds", "Defaults", "Limits", "Pitfalls", "Source"]
    if name == "sft":
        expected = [h for h in expected if h in headings or h not in ("Raises", "Defaults")]
    assert headings == expected
    assert ">>> " in doc
    assert "\n\n    loss" in doc or "\nloss" in doc
    arguments = section(name, "Args")
    for parameter in inspect.signature(LOSSES[name]).parameters:
        assert re.search(rf"\b{parameter}\b", arguments), parameter


def extreme_losses(name, extent):
    """The least and the greatest value seen when log-probabilities go down to −extent.

    The reference is given: its log-probabilities stay where they are.
    """
    gen = torch.Generator().manual_seed(0)
    data = make_inputs(name, batch=4000, spread=20.0)
    for field in policy_fields(data):
        x = torch.rand(4000, generator=gen, dtype=torch.float64) ** 3
        corner = torch.randint(0, 3, (4000,), generator=gen)
        x = torch.where(corner == 0, 0.0, torch.where(corner == 1, 1.0, x))
        if field in ("list_logps", "own_logps", "calibration_logps"):
            x = x[torch.randint(4000, data[field].shape, generator=gen)]
        data[field] = -extent * x.reshape(len(x), -1).expand_as(data[field].reshape(len(x), -1))
        data[field] = data[field].squeeze(-1)
    for side in ("chosen", "rejected"):  # a weight by likelihood moves with the sum
        if f"{side}_log_collision" in data:
            data[f"{side}_mean_logps"] = data[f"{side}_logps"] / 8
    # Of a whole batch in one number each pair by itself: its companions would hide it.
    step = 1 if name == "dr_dpo" else 4000
    parts = [{f: x[i : i + step] for f, x in data.items()} for i in range(0, 4000, 10 * step)]
    loss = torch.cat([call(name, part) for part in parts])
    return loss.min().item(), loss.max().item()


@pytest.mark.parametrize("name", NAMES)
def test_bounds_are_as_documented(name):
    claim = re.match(r"unbounded below|bounded below|bounded", section(name, "Bounds"))
    assert claim, f"{name}: Bounds must start with what it is"
    near, far = extreme_losses(name, 1e3), extreme_losses(name, 1e5)
    falls = far[0] < near[0] - 1
    grows = far[1] > near[1] + 1
    seen = "unbounded below" if falls else "bounded below" if grows else "bounded"
    assert claim[0] == seen, (near, far)
    text = section(name, "Bounds")
    if re.match(r"bounded below by 0|bounded, between 0", text):
        assert far[0] > -1e-12
        assert near[0] > -1e-12
    if re.match("bounded, between 0 and 2", text):
        assert far[1] <= 2


# Mistakes.


@pytest.mark.parametrize("name", [name for name in FLAT if 1 < len(SIGNATURES[name][0]) < 8])
@pytest.mark.parametrize("wrong", [(6, 1), (5,), (1,)])
def test_shapes_that_differ_are_refused_with_both_printed(name, wrong):
    """Each input in turn, and every group of them that agrees among itself only."""
    right = make_inputs(name)
    for chosen in itertools.product((False, True), repeat=len(right)):
        if all(chosen) or not any(chosen):
            continue
        odd = [field for field, out in zip(right, chosen, strict=True) if out]
        data = {k: x[: wrong[0]].reshape(wrong) if k in odd else x for k, x in right.items()}
        with pytest.raises(ValueError, match=re.escape(str(wrong))) as caught:
            call(name, data, **FIRST[name])
        # Or the odd ones were looked at by themselves, and have a dimension too many.
        assert "(6,)" in str(caught.value) or "must be [batch]" in str(caught.value)
        assert any(field in str(caught.value) for field in odd)


@pytest.mark.parametrize("name", [*OF_STEPS, *OF_LISTS, *OF_DRAWN, "wpo"])
def test_one_input_of_another_shape_is_refused_by_name(name):
    right = make_inputs(name)
    for field, value in right.items():
        fewer = value.dim() == 2 and name != "vpo_online"  # one response is enough there
        shorter = (value[:, :1],) if fewer else ()
        for wrong in (value[:5], value[..., None], *shorter):
            with pytest.raises(ValueError, match=r"has shape|must be \[batch") as caught:
                call(name, right | {field: wrong}, **FIRST[name])
            side = field.removeprefix("ref_").partition("_")[0]
            assert field in str(caught.value) or f"{side}_" in str(caught.value)
            assert str(tuple(wrong.shape)) in str(caught.value)


@pytest.mark.parametrize("name", FLAT)
def test_log_probabilities_of_steps_are_refused(name):
    data = {field: x[:, None].expand(6, 3) for field, x in make_inputs(name).items()}
    with pytest.raises(ValueError, match=r"must be \[batch\]; got shape \(6, 3\): add up"):
        call(name, data, **FIRST[name])


@pytest.mark.parametrize("name", NAMES)
def test_integers_as_log_probabilities_are_refused(name):
    data = {field: x.long() for field, x in make_inputs(name).items()}
    with pytest.raises(ValueError, match=r"logps must be floating point; got torch\.int64"):
        call(name, data, **FIRST[name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [None, 1.0, [1.0]])
def test_an_input_that_is_no_tensor_is_named(name, wrong):
    for field in SIGNATURES[name][0]:
        if wrong is not None or field not in OPTIONAL.get(name, ()):
            message = rf"{field} must be a tensor \[batch(, time|, n)?\]; got"
            with pytest.raises(ValueError, match=message):
                call(name, make_inputs(name) | {field: wrong}, **FIRST[name])


@pytest.mark.parametrize("name", NAMES)
def test_hyper_parameters_that_are_no_numbers_are_named(name):
    for key, value in defaults(name).items():
        if isinstance(value, str):
            continue
        for wrong, message in (("x", "must be .* got 'x'"), (torch.ones(6), r"got shape \(6,\)")):
            with pytest.raises(ValueError, match=f"{key} {message}" if wrong == "x" else message):
                call(name, make_inputs(name), **{key: wrong})


@pytest.mark.parametrize(
    ("name", "key", "hyper"),
    [
        ("alpha_po", "alpha", {}),
        ("f_dpo", "alpha", {"divergence": "alpha"}),
        ("bregman_po", "power", {}),
    ],
)
def test_an_index_has_its_gradient_where_the_formula_changes(name, key, hyper):
    data = make_inputs(name, batch=4)
    for value in (0.0, 1e-9, 1e-4):
        index = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda a: call(name, data, **hyper, **{key: a}), [index])


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_input_is_named(name):
    pair = PairLogps(**make_inputs(name))
    objective = Objective(LOSSES[name], name=name)
    for field in SIGNATURES[name][0]:
        if field not in OPTIONAL.get(name, ()):
            with pytest.raises(ValueError, match=f"{name} needs {field}"):
                objective(pair._replace(**{field: None}))


@pytest.mark.parametrize("missing", MISMATCHED)
def test_half_of_what_kto_compares_with_is_refused(missing):
    with pytest.raises(ValueError, match=missing):
        call("kto", make_inputs("kto") | {missing: None})
    neither = make_inputs("kto") | dict.fromkeys(MISMATCHED)
    own = neither | {"mismatched_logps": neither["logps"]}
    own["ref_mismatched_logps"] = neither["ref_logps"]
    assert torch.equal(call("kto", neither), call("kto", own))


@pytest.mark.parametrize("name", OF_A_MEAN)
@pytest.mark.parametrize("missing", LENGTHS)
def test_a_mean_without_lengths_is_refused(name, missing):
    data = make_inputs(name)
    data[missing] = None
    with pytest.raises(ValueError, match=missing):
        call(name, data, reduction="mean")
    call(name, data, reduction="sum")


NUMBERS_AT_FAULT = {
    "positive": (0, 0.0, -1.0),
    "non-negative": (-1, -1e-9),
    "finite": (),
    "below ½": (-1e-9, 0.5, 1),
    "inside (0, 1)": (0, 0.0, -0.1, 1, 1.0),
    "inside (0, ½)": (0, 0.0, -0.1, 0.5, 1),
    "above 1": (1, 1.0, 0.5, -2.0),
    "in [0, 1)": (-0.1, 1, 1.0, 2.0),
    "in (0, 1]": (0, 0.0, -0.1, 1.001, 2),
    "not NaN": (),
}
RANGES = {
    **dict.fromkeys(("beta", "eta", "scale", "sharpness", "tau"), "positive"),
    **dict.fromkeys(("sft_coef", "po_coef", "delta", "ref_coef"), "non-negative"),
    **dict.fromkeys(("margin_coef", "reward_coef"), "non-negative"),
    **dict.fromkeys(("desirable_coef", "undesirable_coef"), "non-negative"),
    **dict.fromkeys(("sigmoid_coef", "linear_coef", "softplus_coef"), "non-negative"),
    **dict.fromkeys(("penalty_coef", "calibration_coef", "constraint_coef"), "non-negative"),
    **dict.fromkeys(("target_margin", "threshold", "power", "baseline"), "finite"),
    **dict.fromkeys(("balance", "max_margin", "temperature"), "positive"),
    **{"excess_coef": "in (0, 1]", "mix": "in (0, 1]", "window": "inside (0, 1)"},
    ("tdpo", "alpha"): "non-negative",
    **{"rejected_coef": "in (0, 1]", "focus": "non-negative"},
    **{"label_smoothing": "below ½", "max_coef": "above 1", "min_coef": "in [0, 1)"},
    ("r_dpo", "alpha"): "non-negative",
    ("vpo_offline", "alpha"): "non-negative",
    ("vpo_online", "alpha"): "non-negative",
    **{"kl_coef": "non-negative", "sparsity_coef": "non-negative"},
    ("alpha_po", "alpha"): "finite",
    ("f_dpo", "alpha"): "finite",
    ("h_dpo", "alpha"): "positive",
    ("beta_dpo", "alpha"): "non-negative",
    ("alpha_dpo", "alpha"): "non-negative",
    ("colpo", "threshold"): "not NaN",
    ("exo_pair", "label_smoothing"): "inside (0, ½)",
    ("modpo", "po_coef"): "positive",
}
KNOBS = [(n, k) for n in NAMES for k, v in SIGNATURES[n][1].items() if not isinstance(v, str)]


@pytest.mark.parametrize(("name", "key"), KNOBS)
def test_numbers_out_of_range_are_refused_by_name(name, key):
    data = make_inputs(name)
    kind = RANGES.get((name, key)) or RANGES[key]
    infinite = () if kind == "not NaN" else (math.inf, -math.inf)
    for value in (*NUMBERS_AT_FAULT[kind], math.nan, *infinite):
        with pytest.raises(ValueError, match=key) as caught:
            call(name, data, **{key: value})
        assert str(value) in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(ValueError, match=key):
            resolve(name, **{key: value})


@pytest.mark.parametrize(
    ("name", "key", "choices"),
    [
        *((name, "reduction", ("sum", "mean")) for name in OF_A_MEAN),
        ("f_dpo", "divergence", ("reverse_kl", "forward_kl", "js", "alpha", "chi_squared")),
        ("gpo", "curve", ("logistic", "hinge", "squared", "exponential", "savage")),
        ("sym_po", "curve", ("sigmoid", "ramp", "unhinged")),
        ("tdpo", "variant", ("tdpo1", "tdpo2")),
        ("tpo", "curve", ("logistic", "hinge", "squared")),
    ],
)
def test_an_unknown_choice_is_answered_with_the_valid_ones(name, key, choices):
    for value in ("max", "", None):
        with pytest.raises(ValueError, match=key) as caught:
            call(name, make_inputs(name), **{key: value})
        assert all(choice in str(caught.value) for choice in choices)
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_hyper_parameter_is_named(name):
    with pytest.raises(ValueError, match="no hyper-parameter 'betta'"):
        resolve(name, betta=1.0)
