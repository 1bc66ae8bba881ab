"""Metrics against plain arithmetic on python floats."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchmpo import MirrorObjective, Objective, PairLogps, resolve
from torchmpo.losses import LOSSES, dpo_loss, one_step_mirror_loss, two_step_mirror_loss
from torchmpo.metrics import (
    alignment_gap,
    displacement,
    displacement_warning,
    flip_table,
    idealised_accuracy,
    implicit_rewards,
    preference_metrics,
    ranking_accuracy,
    reward_accuracy,
)

NAN = math.nan

# One pair's values, by hand: sums over 10 and 4 steps.
C, R, REF_C, REF_R = -20.0, -6.0, -25.0, -5.0
N_C, N_R = 10, 4
CM, RM, REF_CM, REF_RM = -2.0, -1.5, -2.5, -1.25


def vector(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def full_pair(dtype=torch.float64):
    values = {
        "chosen_logps": C,
        "rejected_logps": R,
        "chosen_mean_logps": CM,
        "rejected_mean_logps": RM,
        "ref_chosen_logps": REF_C,
        "ref_rejected_logps": REF_R,
        "ref_chosen_mean_logps": REF_CM,
        "ref_rejected_mean_logps": REF_RM,
    }
    fields = {name: vector(x, x, dtype=dtype).requires_grad_() for name, x in values.items()}
    return PairLogps(
        **fields,
        chosen_lengths=torch.tensor([N_C, N_C]),
        rejected_lengths=torch.tensor([N_R, N_R]),
        progress=torch.tensor(0.5, dtype=dtype),
    )


# Implicit rewards


def of_sums(beta):
    return beta * (C - REF_C), beta * (R - REF_R)


def of_means(beta):
    return beta * (CM - REF_CM), beta * (RM - REF_RM)


def alpha_reward(beta, alpha):
    return tuple(beta * (1 - math.exp(-alpha * a)) / alpha for a in (CM, RM))


# Each loss with its defaults: the rewards of the pair above.
REWARDS = {
    "sft": (CM, RM),
    "rrhf": (CM, RM),
    "slic_hf": (C, R),
    "lpo": (C, R),
    "cpo": (0.1 * C, 0.1 * R),
    "orpo": (0.1 * CM, 0.1 * RM),
    "simpo": (2 * CM, 2 * RM),
    "alpha_po": alpha_reward(2, 0.25),
    "colpo": (CM, RM),
    "closed_form": (CM, RM),
    "cpo_ipo": (0.1 * CM, 0.1 * RM),
    "tpo": (0.01 * C, 0.01 * R),
    "dpo_norm": of_means(5.0),
    "ipo": of_means(0.1),
    "discopop": of_sums(0.05),
    "cpl": (0.1 * C, 0.1 * R),
    "dpop": of_sums(0.3),
    "h_dpo": (0.1 * (0.95 * C - REF_C), 0.1 * (0.95 * R - REF_R)),
    "chi_po": tuple(0.1 * (math.exp(h) + h) for h in (C - REF_C, R - REF_R)),
    "alpha_dpo": (2.5 * CM, 2.5 * RM),
}
OF_SUMS = """
    dpo robust_dpo r_dpo rpo dpo_gamma dpo_positive_reference soft_label_dpo margin_dpo smpo madpo
    modpo vpo_offline hinge_dpo exo_pair nca_pair bco_pair sppo_hard apo_zero apo_down f_dpo padll
    cell pfl aot aot_unpaired aql aqfl dbaql dpo_shift minor_dpo bpo_min cal_dpo c2_dpo mix_dpo gpo
    sym_po bregman_po focal_po offset_dpo dr_dpo beta_dpo kto_pair kto bco_unpaired
    apo_zero_unpaired wpo samdpo ld_dpo bvpo tdpo tb_po sparse_po spo_silu
    plackett_luce self_po lambda_po hypo vpo_online
"""
REWARDS |= {name: of_sums(0.1) for name in OF_SUMS.split()}


def check(objective, expected, pair=None):
    pair = full_pair() if pair is None else pair
    rewards = implicit_rewards(objective, pair)
    for reward, value in zip(rewards, expected, strict=True):
        torch.testing.assert_close(reward, vector(value, value))
        assert not reward.requires_grad


def test_every_loss_has_its_row():
    assert set(REWARDS) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_rewards_with_default_hyper_parameters(name):
    check(resolve(name), REWARDS[name])


def f_dpo(derivative):
    return tuple(0.5 * derivative(h) for h in (C - REF_C, R - REF_R))


@pytest.mark.parametrize(
    ("name", "hyper", "expected"),
    [
        ("dpo", {"beta": 0.5}, of_sums(0.5)),
        ("dpo", {"beta": torch.tensor(0.5, dtype=torch.float64)}, of_sums(0.5)),
        ("ipo", {"beta": 0.5, "reduction": "sum"}, of_sums(0.5)),
        ("slic_hf", {"reduction": "mean"}, (CM, RM)),
        ("lpo", {"reduction": "mean"}, (CM, RM)),
        ("orpo", {"po_coef": 0.3}, (0.3 * CM, 0.3 * RM)),
        ("alpha_po", {"beta": 3.0, "alpha": -0.5}, alpha_reward(3, -0.5)),
        ("alpha_po", {"beta": 3.0, "alpha": 0.0}, (3 * CM, 3 * RM)),
        ("dpo_gamma", {"ref_coef": 0.0}, (0.1 * C, 0.1 * R)),
        ("dpo_gamma", {"ref_coef": 2.0}, (0.1 * (C - 2 * REF_C), 0.1 * (R - 2 * REF_R))),
        ("f_dpo", {"beta": 0.5, "divergence": "reverse_kl"}, f_dpo(lambda h: h)),
        ("f_dpo", {"beta": 0.5, "divergence": "forward_kl"}, f_dpo(lambda h: 1 - math.exp(-h))),
        (
            "f_dpo",
            {"beta": 0.5, "divergence": "js"},
            f_dpo(lambda h: math.log(2 / (1 + math.exp(-h)))),
        ),
        (
            "f_dpo",
            {"beta": 0.5, "divergence": "alpha", "alpha": 0.25},
            f_dpo(lambda h: (1 - math.exp(-0.25 * h)) / 0.25),
        ),
    ],
)
def test_rewards_follow_the_hyper_parameters(name, hyper, expected):
    check(resolve(name, **hyper), expected)
    # The family is told by the function, whatever the objective is called.
    check(Objective(LOSSES[name], name="mine", **hyper), expected)


@pytest.mark.parametrize(
    ("name", "hyper", "target"),
    [
        ("dpo", {}, 0.0),
        ("dpo_gamma", {"ref_coef": 0.3}, 0.0),
        ("dpo_norm", {}, 0.0),
        ("simpo", {}, 0.5),
        ("alpha_po", {}, 0.5),
        ("f_dpo", {"divergence": "forward_kl"}, 0.0),
        ("f_dpo", {"divergence": "js"}, 0.0),
        ("f_dpo", {"divergence": "alpha"}, 0.0),
    ],
)
def test_the_margin_of_rewards_is_the_margin_in_the_loss(name, hyper, target):
    objective = resolve(name, **hyper)
    chosen, rejected = implicit_rewards(objective, full_pair())
    expected = torch.log1p(torch.exp(target - (chosen - rejected)))
    torch.testing.assert_close(objective(full_pair()).detach(), expected)


def log_odds(a):
    return a - math.log(1 - math.exp(a))


def test_mirror_objectives_follow_theorem_3_1():
    # Zero vectors are ORPO's logit and DPO's 0.1·log.
    check(MirrorObjective(steps="one").double(), (log_odds(CM), log_odds(RM)))
    check(MirrorObjective(steps="two").double(), of_means(0.1))
    check(MirrorObjective(steps="two", reduction="sum").double(), of_sums(0.1))
    initial = {"phi_inv_logit": 2.0, "phi_inv_log": 0.5}
    reward = [
        2 * (log_odds(a) - log_odds(b)) + 0.5 * (a - b) for a, b in ((CM, REF_CM), (RM, REF_RM))
    ]
    check(MirrorObjective(steps="two", initial=initial).double(), reward)


def test_a_temporal_mirror_objective_reads_progress():
    objective = MirrorObjective(steps="two", temporal=True, initial={"phi_inv_log": 0.1}).double()
    # The last parameters are the coefficients' slopes in t: logit and log.
    objective.vector.data[-1] = 0.2
    check(objective, of_means(0.1 * math.exp(10 * 0.2 * 0.5)))
    with pytest.raises(ValueError, match="progress"):
        implicit_rewards(objective, full_pair()._replace(progress=None))


def test_mirror_losses_with_functions_of_one_s_own():
    def phi_inv(logps):
        return 3 * torch.exp(logps)

    one = Objective(one_step_mirror_loss, psi=torch.exp, phi_inv=phi_inv, g=torch.exp)
    check(one, (3 * math.exp(CM), 3 * math.exp(RM)))
    two = Objective(two_step_mirror_loss, phi_inv=phi_inv, g=torch.exp)
    check(two, [3 * (math.exp(a) - math.exp(b)) for a, b in ((CM, REF_CM), (RM, REF_RM))])


def own_reference_based(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.3
):
    return chosen_logps * beta


def own_without_beta(chosen_mean_logps, rejected_mean_logps):
    return chosen_mean_logps


def own_sums_and_means(chosen_mean_logps, chosen_logps, rejected_logps, *, beta=0.3):
    return chosen_logps


def own_chosen_only(chosen_logps, ref_chosen_logps):
    return chosen_logps


def own_reduction_without_lengths(chosen_mean_logps, rejected_mean_logps, *, reduction="mean"):
    return chosen_mean_logps


def own_steps(chosen_step_logps, chosen_mask):
    return chosen_step_logps.sum(-1)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (own_reference_based, of_sums(0.3)),
        (own_without_beta, (CM, RM)),
        (own_sums_and_means, (0.3 * C, 0.3 * R)),
        (own_chosen_only, of_sums(1.0)),
        (own_reduction_without_lengths, (CM, RM)),
        (own_steps, (C, R)),
    ],
)
def test_the_rule_holds_for_one_s_own_loss(function, expected):
    check(Objective(function), expected)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("sft", "rejected_mean_logps"),
        ("dpo", "ref_rejected_logps"),
        ("ipo", "rejected_lengths"),
    ],
)
def test_a_missing_field_is_named(name, field):
    with pytest.raises(ValueError, match=f"rewards of {name} need {field}"):
        implicit_rewards(resolve(name), full_pair()._replace(**{field: None}))


@pytest.mark.parametrize(
    ("name", "field"),
    [("sft", "chosen_mean_logps"), ("dpo", "ref_rejected_logps"), ("ipo", "rejected_lengths")],
)
def test_rewards_of_another_shape_are_refused(name, field):
    with pytest.raises(ValueError, match=r"\((1|2),\).*\((1|2),\)"):
        implicit_rewards(resolve(name), full_pair()._replace(**{field: torch.ones(1)}))


def test_exponential_rewards_do_not_overflow():
    far = vector(-1e4, -1e3, dtype=torch.float32)
    zero = torch.zeros(2)
    pair = PairLogps(
        chosen_logps=far,
        rejected_logps=far,
        ref_chosen_logps=zero,
        ref_rejected_logps=zero,
        chosen_mean_logps=far,
        rejected_mean_logps=far,
    )
    for name, hyper in (
        ("f_dpo", {"divergence": "forward_kl"}),
        ("f_dpo", {"divergence": "alpha"}),
        ("alpha_po", {}),
    ):
        assert implicit_rewards(resolve(name, **hyper), pair)[0].isfinite().all()


def test_half_precision_rewards_stay_half_precision():
    for reward in implicit_rewards(resolve("dpo"), full_pair(torch.bfloat16)):
        assert reward.dtype == torch.bfloat16


# Accuracies


def test_reward_and_ranking_accuracy_differ_in_ties_and_ignore_nan():
    chosen, rejected = vector(1.0, 0.0, -1.0, NAN, 1.0), vector(0.0, 0.0, 0.0, 0.0, NAN)
    assert reward_accuracy(chosen, rejected).item() == pytest.approx(1 / 5)
    assert ranking_accuracy(chosen, rejected).item() == pytest.approx(2 / 5)


@pytest.mark.parametrize("accuracy", [reward_accuracy, ranking_accuracy, flip_table])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.zeros(3), torch.zeros(2), r"\(2,\).*\(3,\)"),
        (torch.zeros(0), torch.zeros(0), r"at least one pair; got \(0,\)"),
        (torch.zeros(()), torch.zeros(()), r"at least one pair; got \(\)"),
        (torch.zeros(2, 1), torch.zeros(2, 1), r"at least one pair; got \(2, 1\)"),
    ],
)
def test_shapes_are_checked(accuracy, first, second, message):
    with pytest.raises(ValueError, match=message):
        accuracy(first, second)


# Quarters are exact, so that no difference of theirs is rounded.
LOGP = st.integers(-400, 0).map(lambda k: k / 4)


@given(LOGP, LOGP, LOGP, LOGP, st.sampled_from([0.125, 0.5, 2.0]))
def test_ranked_right_exactly_where_the_dpo_loss_is_below_its_threshold(c, r, rc, rr, beta):
    def negative_log_sigmoid(x):
        return math.log1p(math.exp(-x)) if x >= 0 else math.log1p(math.exp(x)) - x

    threshold = negative_log_sigmoid(beta * (rr - rc))
    loss = dpo_loss(*(vector(x) for x in (c, r, rc, rr)), beta=beta).item()
    below = loss <= threshold * (1 + 1e-12)
    assert below == (ranking_accuracy(vector(c), vector(r)).item() == 1.0)


def test_theorem_s_threshold_by_hand():
    # Δ₀ = −2: the reference is wrong by 2 nats, and the loss must fall below −LS(β·2).
    rc, rr, beta = vector(-12.0), vector(-10.0), 0.5
    threshold = math.log1p(math.exp(-1.0))
    for delta, right in ((-0.01, False), (0.01, True)):
        c, r = rc + delta, rc
        assert (dpo_loss(c, r, rc, rr, beta=beta).item() <= threshold) == right
        assert (ranking_accuracy(c, r).item() == 1.0) == right


def test_idealised_accuracy_and_gap():
    rc, rr = vector(-10.0, -10.0, -10.0, -10.0), vector(-12.0, -5.0, -5.0, NAN)
    judge = vector(-0.1, 0.4, 0.6, 1.0)
    # Δ₀ + J/β with β = 0.1: 2 − 1, −5 + 4, −5 + 6.
    assert idealised_accuracy(rc, rr, judge, beta=0.1).item() == pytest.approx(2 / 4)
    # With β = 1: 1.9, −4.6, −4.4.
    assert idealised_accuracy(rc, rr, judge, beta=1.0).item() == pytest.approx(1 / 4)
    c, r = vector(-9.0, -9.0, -9.0, -9.0), vector(-8.0, -9.5, -8.0, -8.0)
    gap = alignment_gap(c, r, rc, rr, judge, beta=0.1)
    assert gap.item() == pytest.approx(2 / 4 - 1 / 4)
    better = alignment_gap(c, r - 2, rc, rr, judge, beta=0.1)
    assert better.item() == pytest.approx(2 / 4 - 1)


def test_idealised_accuracy_is_that_of_the_optimum():
    # Four responses, each pair of them judged; the optimum is π_ref·exp(J/β) by enumeration.
    ref, reward, beta = [0.6, 0.25, 0.1, 0.05], [-0.4, 0.3, 0.1, 0.9], 0.7
    weights = [p * math.exp(x / beta) for p, x in zip(ref, reward, strict=True)]
    pairs = [(a, b) for a in range(4) for b in range(4) if reward[a] > reward[b]]
    expected = sum(weights[a] > weights[b] for a, b in pairs) / len(pairs)
    assert 0 < expected < 1
    value = idealised_accuracy(
        vector(*(math.log(ref[a]) for a, _ in pairs)),
        vector(*(math.log(ref[b]) for _, b in pairs)),
        vector(*(reward[a] - reward[b] for a, b in pairs)),
        beta=beta,
    )
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize("beta", [0.0, -1.0, NAN])
def test_beta_of_the_idealised_accuracy_is_positive(beta):
    x = vector(-1.0)
    with pytest.raises(ValueError, match="beta must be positive"):
        idealised_accuracy(x, x, x, beta=beta)
    with pytest.raises(ValueError, match=r"\(2,\).*\(1,\)"):
        alignment_gap(x, x, torch.zeros(2), torch.zeros(2), torch.zeros(2), beta=0.1)
    with pytest.raises(ValueError, match=r"\(2,\).*\(1,\)"):
        idealised_accuracy(x, x, torch.zeros(2), beta=0.1)


# Displacement and flips


def test_displacement_takes_the_sides_apart():
    c, rc = vector(-12.0, -8.0, -11.0, -10.0), vector(-10.0, -10.0, -10.0, -10.0)
    r, rr = vector(-30.0, -20.0, -20.0, -20.0), vector(-20.0, -20.0, -20.0, -22.0)
    moved = displacement(c, r, rc, rr)
    assert [x.item() for x in moved] == [-0.25, -2.0, 0.5]
    assert (moved.chosen, moved.rejected, moved.fell) == tuple(moved)


def test_displacement_shows_a_nan_but_does_not_count_it():
    x = vector(-1.0, -1.0)
    moved = displacement(vector(NAN, -2.0), x, x, x)
    assert moved.chosen.isnan()
    assert moved.fell.item() == 0.5
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        displacement(x, x, x, torch.zeros(3))
    with pytest.raises(ValueError, match="at least one pair"):
        displacement(*[torch.zeros(0)] * 4)


def test_flip_table_counts_each_corner():
    start = vector(1.0, 1.0, 0.0, 2.0, -1.0, -1.0, -1.0, NAN)
    now = vector(1.0, 0.0, 0.0, -2.0, 1.0, 1.0, -1.0, -1.0)
    table = flip_table(start, now)
    assert [x.item() for x in table] == [3 / 8, 1 / 8, 2 / 8, 2 / 8]
    assert table.right_wrong.item() == 1 / 8
    assert table.wrong_right.item() == 2 / 8
    assert str(table).splitlines() == [
        "                    right now  wrong now",
        "right at the start      37.5%      12.5%",
        "wrong at the start      25.0%      25.0%",
    ]
    # A pair that became NaN is not right any more.
    assert flip_table(vector(1.0), vector(NAN)).right_wrong.item() == 1.0


# The dictionary of a batch


def test_preference_metrics_of_a_full_pair():
    c, r, rc, rr = [-20.0, -30.0], [-25.0, -28.0], [-21.0, -27.0], [-24.0, -28.0]
    pair = PairLogps(
        chosen_logps=vector(*c).requires_grad_(),
        rejected_logps=vector(*r),
        ref_chosen_logps=vector(*rc),
        ref_rejected_logps=vector(*rr),
        chosen_mean_logps=vector(-2.0, -3.0),
        rejected_mean_logps=vector(-2.0, -4.0),
        ref_chosen_mean_logps=vector(-2.5, -1.0),
        ref_rejected_mean_logps=vector(-2.0, -1.0),
    )
    metrics = preference_metrics(pair, *implicit_rewards(resolve("dpo", beta=0.5), pair))
    expected = {
        "rewards/chosen": (0.5 - 1.5) / 2,
        "rewards/rejected": (-0.5 + 0.0) / 2,
        "rewards/margins": (1.0 - 1.5) / 2,
        "rewards/accuracies": 0.5,
        "logps/chosen": -25.0,
        "logps/rejected": -26.5,
        "ranking/accuracies": 0.5,
        "displacement/chosen": -1.0,
        "displacement/rejected": -0.5,
        "displacement/fell": 0.5,
        "mean_logps/chosen": -2.5,
        "mean_logps/rejected": -3.0,
        "ranking/mean_accuracies": 1.0,
        "mean_displacement/chosen": -0.75,
        "mean_displacement/rejected": -1.5,
        "mean_displacement/fell": 0.5,
    }
    assert {key: value.item() for key, value in metrics.items()} == pytest.approx(expected)
    for value in metrics.values():
        assert value.shape == ()
        assert not value.requires_grad


REWARD_KEYS = {f"rewards/{key}" for key in ("chosen", "rejected", "margins", "accuracies")}


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        ((), set()),
        (("chosen_mean_logps",), {"mean_logps/chosen"}),
        (
            ("chosen_logps", "rejected_logps", "ref_chosen_logps"),
            {"logps/chosen", "logps/rejected", "ranking/accuracies"},
        ),
    ],
)
def test_only_what_the_pair_has_gets_a_key(fields, keys):
    x = vector(-1.0, -2.0)
    metrics = preference_metrics(PairLogps(**dict.fromkeys(fields, x)), x, x)
    assert set(metrics) == REWARD_KEYS | keys


def test_sums_in_half_precision_are_averaged_in_single():
    # bfloat16 has 8 bits: 1000 and 1004 are neighbours there, and 1002 would be lost.
    logps = vector(-1000.0, -1004.0, dtype=torch.bfloat16)
    zero = torch.zeros(2, dtype=torch.bfloat16)
    metrics = preference_metrics(PairLogps(chosen_logps=logps), zero, zero)
    assert metrics["logps/chosen"].dtype == torch.float32
    assert metrics["logps/chosen"].item() == -1002.0


def test_preference_metrics_check_shapes():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=r"rejected_rewards has shape \(2,\).*\(3,\)"):
        preference_metrics(PairLogps(), x, torch.zeros(2))
    with pytest.raises(ValueError, match=r"ref_chosen_logps has shape \(2,\).*\(3,\)"):
        preference_metrics(PairLogps(ref_chosen_logps=torch.zeros(2)), x, x)
    with pytest.raises(ValueError, match=r"at least one pair; got \(0,\)"):
        preference_metrics(PairLogps(), torch.zeros(0), torch.zeros(0))


def test_batches_average_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    fields = [
        name for name in PairLogps._fields if name.endswith(("logps",)) and "step" not in name
    ]
    values = {n: -10 * torch.rand(6, generator=generator, dtype=torch.float64) for n in fields}

    def metrics(rows):
        pair = PairLogps(**{name: x[rows] for name, x in values.items()})
        return preference_metrics(pair, *implicit_rewards(resolve("dpo"), pair))

    whole, first, second = metrics(slice(0, 6)), metrics(slice(0, 3)), metrics(slice(3, 6))
    for key, value in whole.items():
        assert (first[key] + second[key]).item() / 2 == pytest.approx(value.item()), key


# The warning


def moved(key, chosen, rejected):
    return {f"{key}/chosen": chosen, f"{key}/rejected": rejected}


START = moved("logps", -100.0, -120.0)


@pytest.mark.parametrize(
    ("chosen", "rejected", "warns"),
    [
        (-110.0, -150.0, True),
        (-101.1, -121.1, True),
        (-100.9, -150.0, False),  # chosen within the tolerance of 1 nat
        (-110.0, -120.9, False),
        (-90.0, -150.0, False),
        (-110.0, -110.0, False),
        (-100.0, -120.0, False),
        (NAN, -150.0, False),
    ],
)
def test_both_sides_must_have_fallen(chosen, rejected, warns):
    message = displacement_warning(START, moved("logps", chosen, rejected))
    assert (message is not None) == warns


def test_the_message_is_one_line_with_both_numbers():
    now = {key: torch.tensor(x) for key, x in moved("logps", -110.0, -155.5).items()}
    message = displacement_warning(START, now)
    assert "chosen by 10, rejected by 35.5 nats (logps/*)" in message
    assert "\n" not in message


def test_what_the_reference_explains_is_no_displacement():
    # The second batch merely has longer responses; against the reference nothing moved.
    start = START | moved("displacement", 0.0, 0.0)
    now = moved("logps", -300.0, -400.0)
    assert displacement_warning(start, now) is not None
    assert displacement_warning(start, now | moved("displacement", 0.5, -30.0)) is None
    message = displacement_warning(start, now | moved("displacement", -2.0, -30.0))
    assert "chosen by 2, rejected by 30 nats (displacement/*)" in message


def test_the_tolerance_has_the_unit_of_what_is_compared():
    start = moved("mean_logps", -1.0, -1.0)
    now = moved("mean_logps", -1.1, -1.2)
    assert "nats per step" in displacement_warning(start, now)
    assert displacement_warning(start, moved("mean_logps", -1.04, -1.2)) is None
    assert displacement_warning(start, now, tolerance=0.15) is None
    assert displacement_warning(START, moved("logps", -100.5, -120.5)) is None
    assert displacement_warning(START, moved("logps", -100.5, -120.5), tolerance=0.0) is not None


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="both have one of displacement/chosen"):
        displacement_warning(START, moved("mean_logps", -1.0, -1.0))
    with pytest.raises(ValueError, match="both have one of"):
        displacement_warning({"logps/chosen": -1.0}, {"logps/chosen": -1.0})
    for tolerance in (-1.0, NAN):
        with pytest.raises(ValueError, match="tolerance must be zero or positive"):
            displacement_warning(START, START, tolerance=tolerance)


def test_the_warning_on_a_policy_that_loses_both_sides():
    ref = vector(-20.0, -30.0)
    pairs = [
        PairLogps(
            chosen_logps=ref - fall,
            rejected_logps=ref - 3 * fall,
            ref_chosen_logps=ref,
            ref_rejected_logps=ref,
        )
        for fall in (0.0, 2.0)
    ]
    start, now = (preference_metrics(p, *implicit_rewards(resolve("dpo"), p)) for p in pairs)
    assert now["rewards/accuracies"].item() == 1.0
    assert "chosen by 2, rejected by 6 nats" in displacement_warning(start, now)
    assert displacement_warning(start, start) is None
