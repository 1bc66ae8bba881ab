"""Adapters: the three tensors are right, and what does not fit is refused with a way out."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from torchmpo import MirrorObjective, Objective, adapters, resolve
from torchmpo.adapters import early_warning, trl_signature, trl_trainer
from torchmpo.losses import LOSSES, dpo_loss
from torchmpo.runs.errors import UserError

POLICY_CHOSEN = [-20.0, -35.0, -8.0]
POLICY_REJECTED = [-25.0, -30.0, -8.0]
REF_CHOSEN = [-22.0, -31.0, -9.0]
REF_REJECTED = [-21.0, -33.0, -9.0]
MEANS = [[-1.0, -2.0, -0.5], [-1.5, -1.0, -0.5], [-1.25, -2.5, -0.75], [-1.0, -1.5, -0.25]]


def sums(dtype=torch.float64):
    values = (POLICY_CHOSEN, POLICY_REJECTED, REF_CHOSEN, REF_REJECTED)
    return [torch.tensor(v, dtype=dtype, requires_grad=True) for v in values]


def means():
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in MEANS]


def equal(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype))


def softplus(x):
    return math.log1p(math.exp(x))


def my_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=1.0):
    return beta * ((rejected_logps - ref_rejected_logps) - (chosen_logps - ref_chosen_logps))


@pytest.mark.parametrize(
    "loss",
    [
        trl_signature("dpo", beta=0.5),
        trl_signature(dpo_loss, beta=0.5),
        trl_signature(Objective(dpo_loss, beta=0.5)),
        trl_signature(resolve("dpo", beta=0.5)),
        trl_signature(
            MirrorObjective(
                steps="two", reduction="sum", initial={"phi_inv_log": 0.5, "g_log": 1.0}
            ).double()
        ),
    ],
)
def test_losses_and_rewards_are_those_of_dpo(loss):
    losses, chosen, rejected = loss(*sums())
    rows = list(zip(POLICY_CHOSEN, POLICY_REJECTED, REF_CHOSEN, REF_REJECTED, strict=True))
    equal(losses, [softplus(-0.5 * ((c - rc) - (r - rr))) for c, r, rc, rr in rows])
    equal(chosen, [0.5 * (c - rc) for c, r, rc, rr in rows])
    equal(rejected, [0.5 * (r - rr) for c, r, rc, rr in rows])
    assert not chosen.requires_grad
    assert not rejected.requires_grad


def test_the_policy_learns_through_it():
    tensors = sums()
    losses, *_ = trl_signature("dpo", beta=0.5)(*tensors)
    chosen, rejected = torch.autograd.grad(losses.sum(), tensors[:2])
    margins = [6.0, -7.0, 0.0]
    slopes = [0.5 / (1 + math.exp(0.5 * d)) for d in margins]
    equal(chosen, [-s for s in slopes])
    equal(rejected, slopes)


def test_one_s_own_function_and_keyword_call():
    pc, pr, rc, rr = sums()
    losses, chosen, _ = trl_signature(my_loss, beta=3.0)(
        policy_chosen_logps=pc,
        policy_rejected_logps=pr,
        reference_chosen_logps=rc,
        reference_rejected_logps=rr,
    )
    equal(losses, [-18.0, 21.0, 0.0])
    equal(chosen, [6.0, -12.0, 3.0])


def test_a_saved_objective(tmp_path):
    MirrorObjective(steps="one", initial={"phi_inv_logit": 0.0, "phi_inv_log": 2.0}).save(
        tmp_path, {}
    )
    for path in (tmp_path, str(tmp_path)):
        c, r, *_ = (x.float() for x in means())
        _, chosen, rejected = trl_signature(path, unit="mean")(c, r)
        equal(chosen, [-2.0, -4.0, -1.0])
        equal(rejected, [-3.0, -2.0, -1.0])


def test_reference_free_losses_need_no_reference():
    c, r, rc, rr = means()
    simpo = trl_signature("simpo", unit="mean", beta=2.0, target_margin=0.5)
    expected = [softplus(0.5 - 2 * (a - b)) for a, b in zip(MEANS[0], MEANS[1], strict=True)]
    for reference in ((), (None, None), (rc, rr)):
        losses, chosen, rejected = simpo(c, r, *reference)
        equal(losses, expected)
        equal(chosen, [-2.0, -4.0, -1.0])
        equal(rejected, [-3.0, -2.0, -1.0])


def test_a_missing_reference_is_named():
    c, r, *_ = sums()
    with pytest.raises(ValueError, match="dpo needs ref_chosen_logps"):
        trl_signature("dpo")(c, r, None, None)


def test_a_mean_is_given_as_it_is_to_a_loss_that_would_divide():
    # TRL's trainer hands means to its ipo loss; so may a caller of ours.
    losses, chosen, rejected = trl_signature("ipo", unit="mean", beta=0.5)(*means())
    rows = list(zip(*MEANS, strict=True))
    equal(losses, [((c - rc) - (r - rr) - 1.0) ** 2 for c, r, rc, rr in rows])
    equal(chosen, [0.5 * (c - rc) for c, r, rc, rr in rows])
    equal(rejected, [0.5 * (r - rr) for c, r, rc, rr in rows])


def test_ipo_and_slic_hf_on_sums():
    losses, chosen, _ = trl_signature("ipo", reduction="sum", beta=0.5)(*sums())
    equal(losses, [(d - 1.0) ** 2 for d in (6.0, -7.0, 0.0)])
    equal(chosen, [1.0, -2.0, 0.5])
    losses, chosen, _ = trl_signature("slic_hf", delta=1.0, sft_coef=0.1)(*sums())
    equal(losses, [0 + 2.0, 6 + 3.5, 1 + 0.8])
    equal(chosen, POLICY_CHOSEN)


def lengths_loss(chosen_logps, chosen_lengths):
    return -chosen_logps / chosen_lengths


@pytest.mark.parametrize(
    ("loss", "hyper", "message"),
    [
        ("simpo", {}, r"simpo needs chosen_mean_logps, rejected_mean_logps, .*pass unit='mean' if"),
        ("dpo", {"unit": "mean"}, r"ref_rejected_logps, which .*pass unit='sum' if"),
        (
            "ipo",
            {},
            r"ipo needs chosen_lengths, rejected_lengths, .*reduction='sum', or pass unit='mean'",
        ),
        ("ipo", {"unit": "mean", "reduction": "sum"}, r"reduction='mean', or pass unit='sum'"),
        ("slic_hf", {"unit": "mean"}, r"needs chosen_logps, rejected_logps, which .*unit='sum' if"),
        ("cpo", {}, r"cpo needs chosen_mean_logps, .*it needs sums and means at once; call"),
        ("cpo", {"unit": "mean"}, r"needs chosen_logps, rejected_logps, .*means at once; call"),
        (lengths_loss, {}, r"needs chosen_lengths, .*it needs more than log-probabilities; call"),
        (
            MirrorObjective(temporal=True),
            {"unit": "mean"},
            r"needs progress, .*more than log-probabilities",
        ),
        ("dpo+sft@dual", {"kappa": 0.1}, r"sft@dual weighs its terms while it is trained"),
        ("simpo@wpo", {"unit": "mean"}, r"simpo@wpo needs chosen_log_collision, rejected_log_"),
        (MirrorObjective(), {}, r"pass unit='mean' if .*means \(average_log_prob=True\)"),
        ("dpo", {"unit": "token"}, r"unit must be 'sum' or 'mean'; got 'token'"),
        (Objective(dpo_loss), {"beta": 0.2}, r"dpo_loss is bound already; it takes no beta"),
        (MirrorObjective(), {"beta": 0.2}, r"mirror_one_step is bound already; it takes no beta"),
        ("dpoo", {}, r"unknown loss 'dpoo': did you mean 'dpo'"),
        ("dpo", {"beta": -1.0}, r"beta must be positive"),
    ],
)
def test_what_does_not_fit_is_refused_at_once_in_one_line(loss, hyper, message):
    with pytest.raises(ValueError, match=message) as caught:
        trl_signature(loss, **hyper)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("release", "ignores"), [("0.28.0", False), ("0.29rc1", True), ("1.0", True)]
)
def test_a_trl_that_never_calls_a_dpo_loss_is_told(release, ignores, monkeypatch):
    monkeypatch.setattr("torchmpo.adapters.metadata.version", lambda name: release)
    if ignores:
        with pytest.raises(ValueError, match=rf"TRL {release} never .*: use .*trainer"):
            trl_signature("dpo")
    else:
        trl_signature("dpo")
    trl_signature("dpo", trl=False)  # whoever calls it


def test_a_trainer_of_trl_needs_trl(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(UserError, match=r"trl is not installed: pip install 'trl>=1,<2'"):
        trl_trainer("dpo")
    with pytest.raises(ValueError, match="unknown loss 'dpoo'"):
        trl_trainer("dpoo")


NOT_IN_TRL = "kto bco_unpaired apo_zero_unpaired ld_dpo bvpo tdpo tb_po sparse_po plackett_luce"
NOT_IN_TRL += " self_po lambda_po tpo hypo vpo_online wpo simpo@wpo smpo modpo dpo+sft@min_norm"
NOT_IN_TRL += " madpo margin_dpo mix_dpo soft_label_dpo"


@pytest.mark.parametrize("loss", NOT_IN_TRL.split())
def test_what_batches_of_trl_lack_is_told_before_there_is_a_trainer(loss, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)  # for the others it is asked next
    with pytest.raises(UserError, match=r"do not carry: torchmpo\.finetune|weighs its terms"):
        trl_trainer(loss)


@pytest.mark.parametrize("loss", sorted({*LOSSES} - {*NOT_IN_TRL.split()}))
def test_batches_of_trl_have_what_other_losses_read(loss, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(UserError, match="trl is not installed"):
        trl_trainer(loss)
    logps, mask = -torch.rand(4, 3), torch.ones(4, 3, dtype=torch.bool)
    pair = adapters._pair_of_batch(logps, mask, (logps.sum(-1)[:2], logps.sum(-1)[2:]), 0.5)
    assert resolve(loss)(pair).isfinite().all()


def test_shapes_that_differ_are_refused():
    c, r, rc, rr = sums()
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        trl_signature("dpo")(c, r, rc[:2], rr)


def test_half_precision_stays_half_precision():
    for out in trl_signature("dpo")(*sums(torch.bfloat16)):
        assert out.dtype == torch.bfloat16


# A warning in transformers' trainers


def logged(callback, values, key="logps/chosen", data=None):
    """The callback after a trainer has logged these values, as TRL 1.16 names them."""
    transformers = pytest.importorskip("transformers")
    state, control = transformers.TrainerState(), transformers.TrainerControl()
    for step, value in enumerate(values, 1):
        state.global_step = step
        state.log_history.append({"loss": 1.0, key: value, "rewards/chosen": 0.0, "step": step})
        callback.on_log(None, state, control, logs=state.log_history[-1], train_dataloader=data)
    return state


FALLING = [-100.0, -101.0, -99.0, -100.0, -120.0, -121.0, -119.0, -120.0]


def test_a_trainer_is_warned_of_chosen_responses_that_become_unlikely():
    data = SimpleNamespace(dataset=[{"chosen_ids": [1] * 40}, {"chosen_ids": [1] * 60}])
    means = [value / 50 for value in FALLING]
    for values, key, settings in (
        (FALLING, "logps/chosen", {}),
        (FALLING, "logps/chosen", {"length": 50}),
        (means, "logps/chosen", {"length": 1}),
        (means, "mean_logps/chosen", {}),
    ):
        with pytest.warns(UserWarning, match="step 7: .* less likely, by 0.4 ") as told:
            logged(early_warning(window=3, **settings), values, key, data)
        assert len(told) == 1
    for values, settings in (
        (FALLING[::-1], {}),
        (FALLING, {"threshold": 0.5}),
        (FALLING, {"length": 500}),
        ([-100.0, -130.0, -100.0, -90.0, -150.0, -120.0, -85.0], {}),  # no more than noise
    ):
        logged(early_warning(window=3, **settings), values, data=data)


def test_a_trainer_that_does_not_say_how_long_responses_are():
    with pytest.raises(UserError, match="pass length"):
        logged(early_warning(window=2), FALLING[:1])  # before any work is lost


@pytest.mark.parametrize(
    "settings", [{"threshold": 0}, {"window": 1}, {"window": 2.5}, {"length": 0}]
)
def test_numbers_of_the_warning_out_of_range(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be|window must be"):
        early_warning(**settings)


def test_a_learned_objective_goes_where_the_batch_is_and_stays_as_it_was():
    """The meta device stands for a GPU."""
    own = resolve("tla_noisy")
    loss = trl_signature(own, unit="mean", trl=False)
    x = torch.full((2,), -1.0, requires_grad=True)
    loss(x, x.detach())[0].sum().backward()
    assert own.vector.grad is None
    losses, *rewards = loss(x.detach().to("meta"), x.detach().to("meta"))
    assert {t.device.type for t in (losses, *rewards)} == {"meta"}
    assert own.vector.device.type == "cpu"


@pytest.mark.parametrize("name", ["ipo", "samdpo", "simpo", "dpo"])
def test_an_answer_without_tokens_leaves_the_gradient_finite(name):
    logps = torch.tensor([[-1.0, -2.0], [0.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [False, False]])
    pair = adapters._pair_of_batch(logps, mask, [torch.tensor([-3.0]), torch.tensor([0.0])], 0.1)
    value = resolve(name)(pair).sum()
    value.backward()
    assert value.isfinite()
    assert logps.grad.isfinite().all()
