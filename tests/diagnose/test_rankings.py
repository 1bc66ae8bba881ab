"""How pairs are ranked, which side a loss pulls at, and how soon curves move: by hand."""

import math
from dataclasses import replace

import pytest
import torch

from torchmpo.control.inner_loop import InnerConfig
from torchmpo.control.pools import PoolConfig
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.control.testbed import TestbedConfig, prepare
from torchmpo.control.tuning import Protocol, suited
from torchmpo.diagnose.alignment_gap import alignment, judge_margin
from torchmpo.diagnose.gradient_share import gradient_share
from torchmpo.diagnose.suite import judge
from torchmpo.losses import LOSSES
from torchmpo.objectives.gradients import gradients
from torchmpo.objectives.resolve import resolve
from torchmpo.statistics.curves import area_over, drift

LOGIT = math.log(0.7 / 0.3)


def data_of(chosen, rejected, probs=None):
    """Pairs of trajectories with these returns."""
    returns, count = torch.tensor([*chosen, *rejected]), len(chosen)
    rows = torch.arange(count), torch.arange(count) + count
    nothing = torch.zeros(2 * count, 1, 1)
    return PreferenceDataset(nothing, nothing, torch.ones(2 * count).long(), returns, *rows, probs)


@pytest.mark.parametrize(
    ("kind", "margin"),
    [
        ("base", [math.inf, -math.inf]),
        ("noisy:0.3", [LOGIT, -LOGIT]),
        ("bad_judge:2", [2.0, -1.0]),
        ("degraded:4", [math.inf, math.inf]),
        ("proxy:1", [math.inf, math.inf]),
        ("proxy:1+noisy:0.3", None),
        ("hard_noise:0.4", None),
        ("mixture:0.3", None),
        ("pairs.npz", None),
    ],
)
def test_the_judge_is_known_by_the_kind_of_data(kind, margin):
    found = judge_margin(kind, data_of([5.0, 1.0], [1.0, 3.0]))
    assert found is None if margin is None else found.tolist() == pytest.approx(margin, rel=1e-5)


def test_a_judge_who_errs_and_labels_that_are_flipped():
    (found,) = judge_margin("bad_judge:2+noisy:0.3", data_of([5.0], [1.0])).tolist()
    right = 1 / (1 + math.exp(-2))
    share = 0.7 * right + 0.3 * (1 - right)
    assert found == pytest.approx(math.log(share / (1 - share)), rel=1e-5)


def test_votes_say_how_likely_a_label_is():
    data = data_of([1.0, 1.0], [2.0, 2.0], torch.tensor([0.7, 1.0]))
    assert judge_margin("votes:5", data).tolist() == pytest.approx([LOGIT, math.inf], rel=1e-5)


def test_the_alignment_gap_by_hand():
    start = torch.tensor([[-1.0, -1.0, -1.0], [-2.0, -0.5, -0.5]])
    end = torch.tensor([[-1.0, -1.0, -1.0], [-2.0, -0.9, -0.9]])
    lengths = torch.full((2, 3), 10)
    # Margins at the start, in sums: 10, −5, −5. With β = 0.5 the judge moves them by twice his.
    margin = torch.tensor([0.0, 3.0, 2.0])
    found = alignment(resolve("dpo"), {"beta": 0.5}, margin, lengths, start, end)
    assert found == pytest.approx({"ranking": 1 / 3, "idealised": 2 / 3, "alignment_gap": 1 / 3})
    # Trajectories of other lengths have other sums.
    other = torch.tensor([[10, 10, 5], [10, 10, 10]])
    assert alignment(resolve("dpo"), {}, margin, other, start, end)["ranking"] == pytest.approx(
        2 / 3
    )
    means = alignment(resolve("ipo", reduction="mean"), {}, margin, other, start, end)
    assert means["ranking"] == pytest.approx(1 / 3)
    # What is read for a weight, or of a second term, says nothing of what is compared.
    for name, same, setting in (
        ("wpo", "dpo", {"beta": 0.5}),
        ("dpo@wpo", "dpo", {"beta": 0.5, "learning_rate": 1e-3}),
        ("dpo+sft", "dpo", {"dpo_beta": 0.5}),
        ("ipo+sft", "ipo", {"ipo_beta": 0.5}),
    ):
        found = alignment(resolve(name), setting, margin, other, start, end)
        assert found == alignment(resolve(same), {"beta": 0.5}, margin, other, start, end), name
        assert found.keys() == {"ranking", "idealised", "alignment_gap"}
    assert alignment(resolve("simpo"), {}, margin, lengths, start, end).keys() == {"ranking"}
    assert alignment(resolve("dpo"), {}, None, lengths, start, end).keys() == {"ranking"}


@pytest.mark.parametrize(
    ("loss", "want"),
    [
        ("sft", 1.0),
        ("dpo", 0.5),
        ("simpo", 0.5),
        ("apo_zero_unpaired", None),
        ("orpo", None),
        ("0.8*dpo+sft", None),
    ],
)
def test_the_share_of_the_gradient_is_that_of_the_plain_one(loss, want):
    torch.manual_seed(0)
    objective = resolve(loss)
    steps, reference = -torch.rand(2, 5, 1) * 3 - 0.1, torch.full((2, 5, 1), -2.0)
    about = {"lengths": torch.ones(2, 5), "rewards": torch.zeros(2, 5)}
    found = gradient_share(objective, {}, steps, reference, about, 0.5)
    if want is None:
        chosen, rejected = gradients(objective, steps[0, :, 0], steps[1, :, 0], reference=-2.0)
        want = float(chosen.abs().sum() / (chosen.abs().sum() + rejected.abs().sum()))
        assert abs(want - 0.5) > 1e-4
    assert found == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_has_a_share_or_none(loss):
    """Whatever a loss reads: lists, a golden response, steps, votes, components."""
    steps, reference = -torch.rand(2, 4, 3) - 0.1, torch.full((2, 4, 3), -0.6)
    about = {"lengths": torch.full((2, 4), 3), "rewards": torch.rand(2, 4)}
    about["preference_probs"] = torch.tensor([0.9, 0.6, 0.7, 0.8])
    found = gradient_share(resolve(loss), {}, steps, reference, about, 0.5)
    assert found is None or 0 <= found <= 1


def test_nothing_pulls_or_not_through_log_probabilities():
    steps, about = torch.zeros(2, 3, 4), {"lengths": torch.ones(2, 3), "rewards": torch.zeros(2, 3)}
    steps[0] = 100.0
    assert gradient_share(resolve("slic_hf"), {"sft_coef": 0.0}, steps, steps, about, 0) is None


def test_drift_and_area():
    assert drift([1.0, 2.0, 5.0, 4.0]) == (4.0, pytest.approx(4 / 9))
    assert drift([0.0, 4.0, -8.0])[0] == -8.0
    assert math.isnan(drift([1.0, 1.0]).time)
    assert all(map(math.isnan, drift([1.0, math.nan])))
    assert area_over([0.5, 0.5, 1.0]) == pytest.approx((0.5 + 0.25) / 2)


@pytest.mark.parametrize("name", ["simpo", "dpo"])
def test_a_cell_has_them_for_every_seed(name, tmp_path):
    inner = InnerConfig(epochs=3, compile=False, steps_per_trajectory=5)
    pool = PoolConfig(pairs=6, max_steps=12)
    config = TestbedConfig(pool, inner=inner, num_threads=1, cache_dir=str(tmp_path))
    bed = prepare([replace(config, data="noisy:0.3")])[0]
    protocol, objective = Protocol(episodes=2, sft_epochs=2), resolve(name)
    bed = suited(bed, objective, 2)
    setting = {key: float(value) for key, value in objective.hyper.items()}
    found = judge(bed, objective, setting, [0, 1], protocol)
    for k, why in enumerate(found["why"]):
        curves = {key: found["curves"][key][k] for key in ("chosen", "rejected", "accuracy")}
        phase = slice(2 if name == "dpo" else 0, None)
        for side in ("chosen", "rejected"):
            assert why[f"drift_{side}"] == pytest.approx(drift(curves[side][phase]).size, abs=1e-5)
            assert 0 < why[f"drift_{side}_time"] <= 1
        assert why["area"] == pytest.approx(area_over(curves["accuracy"][phase]))
        assert why["gradient_start"] == pytest.approx(0.5, abs=1e-4)
        if name == "dpo":
            assert why["alignment_gap"] == pytest.approx(why["idealised"] - why["ranking"])
        else:
            assert "alignment_gap" not in why
            assert why["ranking"] == pytest.approx(curves["accuracy"][-1])
