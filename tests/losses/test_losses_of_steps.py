"""Losses of steps: by hand, what they have to do with DPO and one another, and samples of steps."""

import inspect
import math

import pytest
import torch
from loss_cases import OF_STEPS, call, make_inputs

from torchmpo import PairLogps, resolve
from torchmpo import losses as L
from torchmpo.losses import LOSSES
from torchmpo.losses.likelihood_weight import NOT_BY_PAIR, LikelihoodWeighted

T, T64 = True, torch.float64
BETA = 0.3


def softplus(x):
    return math.log(1 + math.exp(x))


def rows(*values):
    return [torch.tensor([x], dtype=torch.bool if x[0] is True else T64) for x in values]


def lengths(*values):
    return [torch.tensor([n]) for n in values]


# h_c = 1, 2 and h_r = −1, 0, 3.
C, R = (-1.0, -1.0, 0.0), (-3.0, -2.0, -1.0)
RC, RR = (-2.0, -3.0, 0.0), (-2.0, -2.0, -4.0)
BY_STEP = (C, R, RC, RR)
MASKS = ((T, T, False), (T, T, T))
KL = ((0.5, 1.0, 9.0), (0.25, 0.0, 0.5))
BY_HAND = [
    # the third step of the rejected response counts a half
    ("ld_dpo", (*BY_STEP, *MASKS), {"excess_coef": 0.5}, softplus(-BETA * (3 - 0.5))),
    # the last third: of the chosen response the second step, of the rejected one the third
    (
        "bvpo",
        (*BY_STEP, *MASKS),
        {"mix": 0.25, "window": 1 / 3},
        0.25 * softplus(-BETA * 1) + 0.75 * softplus(-BETA * (2 - 3)),
    ),
    ("tdpo", (*BY_STEP, *KL, *MASKS), {"alpha": 2.0}, softplus(-BETA * (1 - 2 * (0.75 - 1.5)))),
    ("tdpo", (*BY_STEP, *KL, *MASKS), {"variant": "tdpo1"}, softplus(-BETA * (1 + 0.75))),
    (
        "tb_po",
        (*BY_STEP, *KL, *MASKS),
        {},
        (softplus(-BETA * (1.5 + 0.75)) + softplus(-BETA * 3)) / 2,
    ),
    (
        "sparse_po",
        (*BY_STEP, *KL, (2.0, 0.0, 1.0), (0.0, 0.0, 1.0), *MASKS),
        {},
        softplus(-BETA * (2 * 1.5 - 3.5)),
    ),
]


@pytest.mark.parametrize(("name", "steps", "hyper", "expected"), BY_HAND)
def test_by_hand(name, steps, hyper, expected):
    loss = LOSSES[name](*rows(*steps), *lengths(2, 3), beta=BETA, **hyper)
    assert loss.tolist() == [pytest.approx(expected, rel=1e-12)]


def test_every_loss_of_steps_is_worked_out_by_hand():
    assert {name for name, *_ in BY_HAND} == set(OF_STEPS)


def whole(data):
    """The sums that DPO reads, of responses whose steps are all given."""
    n = data["chosen_mask"].sum(-1), data["rejected_mask"].sum(-1)
    data = data | {"chosen_lengths": n[0], "rejected_lengths": n[1]}
    sums = []
    for field in ("chosen_step_logps", "rejected_step_logps"):
        for prefix in ("", "ref_"):
            mask = data[field.replace("step_logps", "mask")]
            sums.append((data[prefix + field] * mask).sum(-1))
    c, rc, r, rr = sums
    return data, (c, r, rc, rr)


def assert_same(one, other, data):
    free = [data["chosen_step_logps"], data["rejected_step_logps"]]
    torch.testing.assert_close(one, other)
    grads = [torch.autograd.grad(x.sum(), free, retain_graph=True) for x in (one, other)]
    torch.testing.assert_close(*grads)


def free_inputs(name, **changes):
    data = make_inputs(name, batch=12) | changes
    for field in ("chosen_step_logps", "rejected_step_logps"):
        data[field].requires_grad_()
    return whole(data)


@pytest.mark.parametrize(
    ("name", "hyper"),
    [("ld_dpo", {"excess_coef": 1.0}), ("bvpo", {"mix": 1.0}), ("tdpo", {"alpha": 0.0})],
)
def test_a_limit_of_each_is_dpo(name, hyper):
    data, sums = free_inputs(name)
    loss = LOSSES[name](*data.values(), beta=BETA, **hyper)
    assert_same(loss, L.dpo_loss(*sums, beta=BETA), data)


@pytest.mark.parametrize("variant", ["tdpo1", "tdpo2"])
def test_tdpo_without_divergence_is_dpo(variant):
    zero = torch.zeros(12, 6, dtype=T64)
    data, sums = free_inputs("tdpo", chosen_step_kl=zero, rejected_step_kl=zero)
    loss = L.tdpo_loss(*data.values(), beta=BETA, variant=variant)
    assert_same(loss, L.dpo_loss(*sums, beta=BETA), data)


def test_tdpo2_takes_no_gradient_of_the_chosen_divergence():
    data, _ = free_inputs("tdpo")
    kl = [data[name].requires_grad_() for name in ("chosen_step_kl", "rejected_step_kl")]
    for variant, pushed in (("tdpo1", True), ("tdpo2", False)):
        loss = L.tdpo_loss(*data.values(), beta=BETA, variant=variant)
        chosen, rejected = torch.autograd.grad(loss.sum(), kl, materialize_grads=True)
        chosen = torch.zeros_like(rejected) if chosen is None else chosen
        assert bool((chosen < 0).any()) is pushed
        assert (chosen <= 0).all()
        assert (rejected >= 0).all()
        assert rejected.any()


def test_sparse_po_with_every_weight_one_is_tdpo1_and_with_none_is_log_2():
    one = torch.ones(12, 6, dtype=T64)
    data, _ = free_inputs("sparse_po", chosen_step_weights=one, rejected_step_weights=one)
    loss = L.sparse_po_loss(*data.values(), beta=BETA)
    rest = {name: value for name, value in data.items() if "weights" not in name}
    assert_same(loss, L.tdpo_loss(*rest.values(), beta=BETA, variant="tdpo1"), data)
    nothing = data | {"chosen_step_weights": 0 * one, "rejected_step_weights": 0 * one}
    loss = L.sparse_po_loss(*nothing.values(), beta=BETA)
    assert loss.tolist() == pytest.approx([math.log(2)] * 12)


def test_tb_po_of_one_step_without_divergence_is_dpo():
    data = make_inputs("tb_po", batch=12)
    data = {k: v[:, :1] if v.dim() == 2 else v for k, v in data.items()}
    data["chosen_step_kl"], data["rejected_step_kl"] = (torch.zeros(12, 1, dtype=T64),) * 2
    c, r, rc, rr = (data[k].squeeze(1) for k in list(data)[:4])
    loss = L.tb_po_loss(*data.values(), beta=BETA)
    torch.testing.assert_close(loss, L.dpo_loss(c, r, rc, rr, beta=BETA))


def test_the_advantage_of_tb_po_has_mean_zero_under_the_reference():
    ref, own = torch.randn(2, 7, dtype=T64, generator=torch.Generator().manual_seed(0))
    ref, own = ref.log_softmax(0), own.log_softmax(0)
    kl = (ref.exp() * (ref - own)).sum()
    assert (ref.exp() * (own - ref + kl)).sum().abs() < 1e-12


def test_ld_dpo_is_trls_ld_alpha():
    """TRL 1.16, DPOTrainer._compute_loss: positions up to the shorter length, and beyond."""
    data, _ = free_inputs("ld_dpo")
    shared = torch.minimum(data["chosen_lengths"], data["rejected_lengths"])[:, None]
    sides = []
    for side in ("chosen", "rejected"):
        mask = data[f"{side}_mask"]
        place = mask.cumsum(1)
        early, late = (place > 0) & (place <= shared) & mask, (place > shared) & mask
        for prefix in ("", "ref_"):
            logps = data[f"{prefix}{side}_step_logps"]
            sides.append((logps * early).sum(1) + 0.4 * (logps * late).sum(1))
    c, rc, r, rr = sides
    theirs = L.dpo_loss(c, r, rc, rr, beta=BETA)
    assert_same(L.ld_dpo_loss(*data.values(), beta=BETA, excess_coef=0.4), theirs, data)


def test_samdpo_is_the_mean_margin_of_random_samples():
    gen = torch.Generator().manual_seed(0)
    h_c, h_r = torch.randn(9, generator=gen), torch.randn(4, generator=gen)
    draws = [h_c[torch.randperm(9, generator=gen)[:4]].sum() - h_r.sum() for _ in range(4000)]
    one, zero = torch.ones(1), torch.zeros(1)
    loss = L.samdpo_loss(h_c.sum() * one, h_r.sum() * one, zero, zero, *lengths(9, 4), beta=1.0)
    margin = -torch.log(torch.expm1(loss))
    assert margin.item() == pytest.approx(torch.stack(draws).mean().item(), abs=0.1)


@pytest.mark.parametrize("name", ["ld_dpo", "bvpo", "tdpo", "sparse_po"])
def test_a_sample_of_steps_stands_for_all(name):
    """Every step twice, and half as many steps for as long a response."""
    data = make_inputs(name, batch=6)
    data["chosen_mask"] = data["rejected_mask"] = torch.ones(6, 6, dtype=torch.bool)
    data["chosen_lengths"] = data["rejected_lengths"] = torch.full((6,), 12)
    twice = {k: v.repeat_interleave(2, 1) if v.dim() == 2 else v for k, v in data.items()}
    hyper = {"window": 0.5} if name == "bvpo" else {}
    torch.testing.assert_close(
        LOSSES[name](*data.values(), beta=BETA, **hyper),
        LOSSES[name](*twice.values(), beta=BETA, **hyper),
    )


# Weights by likelihood


def test_wpo_is_dpo_at_wpo():
    data = make_inputs("wpo", batch=12)
    modified = LikelihoodWeighted(L.dpo_loss)(*data.values(), beta=BETA, label_smoothing=0.1)
    assert torch.equal(L.wpo_loss(*data.values(), beta=BETA, label_smoothing=0.1), modified)


def test_a_token_drawn_from_the_policy_has_a_weight_near_one():
    """The mean of p over draws from p is Σ p²."""
    p = torch.randn(9, dtype=T64, generator=torch.Generator().manual_seed(1)).softmax(0)
    assert (p * (p / p.square().sum())).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("name", ["simpo", "ipo", "slic_hf", "sft", "hinge_dpo"])
def test_any_loss_of_pairs_is_weighed(name, tmp_path):
    objective = resolve(f"{name}@wpo")
    assert {"chosen_mean_logps", "rejected_mean_logps"} <= objective.inputs
    data = make_inputs("wpo", batch=5) | make_inputs("ipo", batch=5)
    pair = PairLogps(**data)
    weight = torch.exp(
        data["chosen_mean_logps"]
        - data["chosen_log_collision"]
        + data["rejected_mean_logps"]
        - data["rejected_log_collision"]
    )
    torch.testing.assert_close(objective(pair), weight * resolve(name)(pair))
    objective.save(tmp_path, {})
    again = resolve(tmp_path)
    assert again.name == f"{name}@wpo"
    assert torch.equal(again(pair), objective(pair))


def test_what_has_a_value_of_each_pair():
    """Pairs in another order have their values in that order, and not all the same."""
    order, shuffled = torch.tensor([3, 0, 5, 1, 4, 2]), set()
    for name in LOSSES:
        data = make_inputs(name)
        if "desirable" in data:
            shuffled.add(name)
            continue
        values = call(name, data)
        other = call(name, {field: value[order] for field, value in data.items()})
        if not torch.allclose(other, values[order]) or len(values.unique()) == 1:
            shuffled.add(name)
    assert shuffled == NOT_BY_PAIR


@pytest.mark.parametrize("name", ["aot", "kto", "dr_dpo"])
def test_a_loss_without_a_value_of_each_pair_is_not_weighed(name):
    with pytest.raises(ValueError, match=f"{name} has no value of each pair that wpo could weigh"):
        resolve(f"{name}@wpo")


def test_a_padded_nan_does_not_reach_the_learned_weights():
    names = [n for n in inspect.signature(L.sparse_po_loss).parameters if n != "beta"]
    data = make_inputs("sparse_po")
    mask = data["chosen_mask"]
    data["chosen_step_logps"] = data["chosen_step_logps"].masked_fill(~mask, torch.nan)
    assert data["chosen_step_logps"].isnan().any()
    weights = data["chosen_step_weights"].requires_grad_()
    loss = L.sparse_po_loss(*(data[n] for n in names if n in data))
    (slopes,) = torch.autograd.grad(loss.sum(), weights)
    assert slopes.isfinite().all()
    assert slopes.any()
