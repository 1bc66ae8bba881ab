"""Which hyper-parameters are tried: as many for every loss, the defaults first, none refused."""

import math
from functools import partial

import pytest
import torch

from torchmpo.control.grids import (
    DEFAULT_RATE,
    RANGES,
    RATE,
    RATES,
    SPREAD,
    WEIGHT,
    Range,
    at_edge,
    box,
    check_grid,
    grid,
    nothing_to_tune,
    ranges,
    rate_grid,
)
from torchmpo.losses import LOSSES
from torchmpo.losses.weighted_sum import WeightedSum
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.resolve import resolve


def on_sums(chosen_logps, rejected_logps, *, beta=0.5):
    return -beta * (chosen_logps - rejected_logps)


def on_means(chosen_mean_logps, rejected_mean_logps, *, beta=0.5):
    return -beta * (chosen_mean_logps - rejected_mean_logps)


def own(
    chosen_logps,
    *,
    strength=3.0,
    zero=0.0,
    negative=-1.0,
    most=math.inf,
    count=2,
    on=True,
    kind="a",
    x=None,
):
    return -strength * chosen_logps


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("trials", [1, 2, 33])
def test_every_loss_has_equally_many_settings_and_takes_them_all(name, trials):
    objective = resolve(name)
    settings = grid(objective, trials)
    assert len(settings) == trials
    assert settings[0] == {key: objective.hyper[key] for key in settings[0]}
    check_grid(objective, settings)
    if box := ranges(objective):
        assert all(setting.keys() == box.keys() for setting in settings)
        assert len({tuple(setting.values()) for setting in settings}) == trials
        for setting in settings[1:]:
            assert all(box[key].low <= value <= box[key].high for key, value in setting.items())
    else:
        assert settings == [{}] * trials


def test_what_is_tried_does_not_depend_on_anything_random():
    torch.manual_seed(1)
    first = grid(resolve("simpo"), 9)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert grid(resolve("simpo"), 9) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert grid(resolve("simpo"), 5) == first[:5]  # fewer trials are some of the same


@pytest.mark.parametrize("name", ["dpo", "simpo", "cpo"])
def test_a_range_is_filled_evenly(name):
    """Sobol: of the first 2ⁿ points, half lie in either half of each range."""
    objective = resolve(name)
    settings = grid(objective, 1 + 63)[1:]
    for key, span in ranges(objective).items():
        half = math.sqrt(span.low * span.high) if span.log else (span.low + span.high) / 2
        assert sum(setting[key] < half * 0.999 for setting in settings) in (31, 32), key


@pytest.mark.parametrize(
    ("range_", "fractions", "values"),
    [
        (Range(0.01, 100.0), (0.0, 0.5, 1.0), (0.01, 1.0, 100.0)),
        (Range(-2.0, 4.0, log=False), (0.0, 0.5, 1.0), (-2.0, 1.0, 4.0)),
        (Range(1.0, 10.0), (1 / 3,), (2.15,)),  # 10^(1/3) = 2.1544…, three digits
    ],
)
def test_points_of_a_range(range_, fractions, values):
    assert [range_.at(f) for f in fractions] == list(values)


@pytest.mark.parametrize(
    ("objective", "unit"),
    [
        (Objective(on_sums), "sum"),
        (Objective(on_means), "mean"),
        (resolve("dpo"), "sum"),
        (resolve("simpo"), "mean"),
        (resolve("slic_hf"), "sum"),
        (resolve("slic_hf", reduction="mean"), "mean"),
        (resolve("ipo"), "mean"),
        (resolve("ipo", reduction="sum"), "sum"),
    ],
)
def test_ranges_follow_the_unit_of_the_log_probabilities(objective, unit):
    found = ranges(objective)
    key = "delta" if objective.name == "slic_hf" else "beta"
    assert found[key] == RANGES[unit][key]
    assert RANGES["sum"][key] != RANGES["mean"][key]


def test_one_name_may_mean_different_things():
    found = {name: ranges(resolve(name))["alpha"] for name in ("r_dpo", "f_dpo", "alpha_po")}
    assert len(set(found.values())) == 3


def test_an_option_of_a_loss_is_tuned_only_where_it_is_given():
    """Older runs tuned what they tuned: a term that is off is not switched on."""
    assert set(ranges(resolve("simpo"))) == {"beta", "target_margin"}
    assert set(ranges(resolve("cpo"))) == {"beta", "sft_coef"}
    assert set(ranges(resolve("simpo", sft_coef=0.5))) == {"beta", "target_margin", "sft_coef"}
    assert "label_smoothing" in ranges(resolve("cpo", label_smoothing=0.1))
    assert "label_smoothing" in ranges(resolve("dpo"))


def test_hyper_parameters_of_ones_own_loss():
    """A count stays one: a loss may loop over it."""
    found = ranges(Objective(own))
    assert found == {"strength": Range(3.0 / SPREAD, 3.0 * SPREAD)}
    settings = grid(Objective(own, name="my.module:own", strength=5.0), 3)
    assert settings[0] == {"strength": 5.0}
    assert len({setting["strength"] for setting in settings}) == 3


def test_a_name_of_the_library_in_a_loss_of_ones_own_means_what_its_default_says():
    """Its range is taken where the default lies in it, to its ends, and not where it does not."""

    def loss(
        chosen_mean_logps,
        *,
        threshold=3.0,
        eta=0.1,
        tau=0.01,
        delta=30.0,
        sft_coef=1e-3,
        label_smoothing=0.0,
        mix=0.5,
        beta: int = 2,
    ):
        return -beta * chosen_mean_logps

    objective = Objective(loss, name="my_losses:loss")
    found = ranges(objective)
    assert found == {
        "threshold": Range(3.0 / SPREAD, 3.0 * SPREAD),
        "eta": Range(0.1 / SPREAD, 0.1 * SPREAD),
        "tau": RANGES["mean"]["tau"],
        "delta": RANGES["mean"]["delta"],
        "sft_coef": Range(1e-3 / SPREAD, 1e-3 * SPREAD),
        "mix": RANGES["any"]["mix"],
    }
    # So is one that was wrapped, and one under the name of a loss of the library.
    assert ranges(Objective(partial(loss, beta=3))) == found
    assert ranges(Objective(loss, name="mix_dpo")) == found
    assert ranges(Objective(WeightedSum({"own": loss}))) == {"own_weight": WEIGHT} | {
        f"own_{name}": span for name, span in found.items()
    }
    # An integer that somebody gives to a loss of the library is no count.
    assert ranges(resolve("simpo", beta=2))["beta"] == RANGES["mean"]["beta"]
    assert ranges(resolve("simpo", beta=10**6))["beta"] == RANGES["mean"]["beta"]


def test_words_and_switches_are_left_alone():
    for name, key in (("f_dpo", "divergence"), ("slic_hf", "reduction")):
        assert isinstance(resolve(name).hyper[key], str)
        assert all(key not in setting for setting in grid(resolve(name), 4))


def test_a_reduction_that_is_none_of_ours():
    def loss(chosen_mean_logps, *, reduction="batch", beta=1.0):
        return -beta * chosen_mean_logps

    assert ranges(Objective(loss)) == {"beta": RANGES["mean"]["beta"]}


def test_a_learned_objective_has_nothing_to_tune():
    assert grid(MirrorObjective(units=4), 3) == [{}, {}, {}]


@pytest.mark.parametrize("setting", [{"beta": -1.0}, {"gamma": 1.0}, {"label_smoothing": 0.7}])
def test_settings_that_the_loss_refuses(setting):
    check_grid(resolve("dpo"), [{"beta": 1.0}])
    with pytest.raises(ValueError, match=next(iter(setting))):
        check_grid(resolve("dpo"), [{"beta": 1.0}, setting])


def test_a_setting_is_checked_together_with_the_other_hyper_parameters():
    with pytest.raises(ValueError, match="no hyper-parameter 'beta'"):
        check_grid(resolve("sft"), [{"beta": 1.0}])
    objective = resolve("slic_hf", reduction="sum")
    check_grid(objective, grid(objective, 5))
    assert objective.hyper["reduction"] == "sum"


def test_a_saved_objective_keeps_its_own_numbers(tmp_path):
    resolve("simpo", beta=3.0).save(tmp_path / "found", {"name": "a search's"})
    settings = grid(resolve(tmp_path / "found"), 3)
    assert nothing_to_tune(settings)
    assert settings[0]["beta"] == 3.0
    assert not nothing_to_tune(grid(resolve("simpo", beta=3.0), 3))


# --- the learning rate ---


def test_the_rate_is_one_more_number_of_every_loss():
    for name in ("sft", "simpo", "dpo"):
        plain, rated = grid(resolve(name), 8), grid(resolve(name), 8, rate=True)
        assert len(rated) == 8
        assert all(setting.keys() == plain[0].keys() | {RATE} for setting in rated)
        assert rated[0] == plain[0] | {RATE: DEFAULT_RATE}
        assert len({setting[RATE] for setting in rated}) >= 7  # the default may come again
        assert all(RATES.low <= setting[RATE] <= RATES.high for setting in rated)
        check_grid(resolve(name), rated)


def test_a_learned_objective_has_a_rate_and_nothing_else():
    assert grid(MirrorObjective(), 3, rate=True) == rate_grid(3)
    saved = resolve("orpo", po_coef=0.7)
    saved.card = {"name": "saved"}
    assert [s["po_coef"] for s in grid(saved, 3, rate=True)] == [0.7] * 3
    assert [s[RATE] for s in grid(saved, 3, rate=True)] == [s[RATE] for s in rate_grid(3)]


def test_a_loss_with_a_learning_rate_of_its_own_is_refused():
    def loss(chosen_mean_logps, *, learning_rate=0.1):
        return -learning_rate * chosen_mean_logps

    assert len(grid(Objective(loss), 2)) == 2
    with pytest.raises(ValueError, match="learning_rate is the step size of training"):
        grid(Objective(loss), 2, rate=True)


@pytest.mark.parametrize("rate", [0.0, -1e-3, math.inf, math.nan])
def test_a_bad_rate_is_refused(rate):
    with pytest.raises(ValueError, match="learning_rate must be positive and finite"):
        check_grid(resolve("sft"), [{RATE: rate}])


@pytest.mark.parametrize("span", [Range(1e-4, 1e2), Range(-2.0, 3.0, log=False)])
def test_the_fraction_of_a_value_is_the_inverse(span):
    for x in (0.0, 0.1, 0.5, 0.93, 1.0):
        assert span.fraction(span.at(x)) == pytest.approx(x, abs=2e-3)


def test_the_edge_of_a_range_is_its_outer_tenth():
    tried = grid(resolve("simpo"), 32, rate=True)
    spans = {name: span for name, (_, span) in box(resolve("simpo"), rate=True).items()}
    for best in range(1, 32):
        outer = [n for n, s in spans.items() if not 0.1 <= s.fraction(tried[best][n]) <= 0.9]
        assert at_edge(resolve("simpo"), tried, best) == outer
    assert any(at_edge(resolve("simpo"), tried, best) for best in range(32))
    assert at_edge(resolve("simpo"), tried, 0) == []  # the defaults
    assert at_edge(resolve("simpo"), tried, -1) == []  # nothing finished
    assert at_edge(resolve("simpo"), [{"beta": 1e-9}, {"beta": 1e9}], 1) == []  # one's own
