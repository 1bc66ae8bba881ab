"""Win rates by hand, against numbers of alpaca_eval 0.6.6, and where the truth is known."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

from torchmpo.runs.errors import UserError
from torchmpo.winrate import rates as win_rates
from torchmpo.winrate.alpaca_files import probability
from torchmpo.winrate.rates import Gamed, describe, length_controlled_win_rate, win_rate

ORACLE = Path(__file__).parents[1] / "oracle_alpaca"
EXPECTED = json.loads((ORACLE / "expected.json").read_text())


def load_samples():
    spec = importlib.util.spec_from_file_location("alpaca_samples", ORACLE / "samples.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


samples = load_samples()


def simulated(count, seed=0, *, better=0.3, length_effect=1.0):
    """Hard labels of a judge that likes length; the model's answers are the longer ones."""
    draw = np.random.default_rng(seed)
    reference, model = draw.lognormal(6.5, 0.6, count), draw.lognormal(6.9, 0.6, count)
    difficulty = draw.normal(0, 1.5, count)
    delta = (reference - model) / (reference - model).std(ddof=1)
    p = 1 / (1 + np.exp(-(better + 0.3 * difficulty - length_effect * np.tanh(delta))))
    return (draw.random(count) < p).astype(float), model, reference, difficulty


def test_win_rate_by_hand():
    rate, error = win_rate([1.0, 0.5, 0.0, 1.0, math.nan])
    # mean 2.5/4; deviations .375, −.125, −.625, .375: sum of squares .6875, / 3, / 4
    assert rate == pytest.approx(62.5)
    assert error == pytest.approx(100 * math.sqrt(0.6875 / 3 / 4))
    one = win_rate([1.0])
    assert one.win_rate == 100
    assert math.isnan(one.standard_error)


def test_description_by_hand():
    row = describe([0.9, 0.51, 0.5, 0.2, math.nan])
    assert [row[k] for k in ("n_wins", "n_wins_base", "n_draws", "n_total")] == [2, 1, 1, 4]
    assert row["discrete_win_rate"] == 62.5
    assert row["win_rate"] == pytest.approx(52.75)


@pytest.mark.parametrize("name", EXPECTED)
def test_numbers_of_the_package(name):
    """Written by tests/oracle_alpaca, which `make test-alpaca` checks against the package."""
    case, glm = name.split(" / ")
    rows, gamed = samples.comparisons(case), samples.gamed_rows()
    values = [probability(row["preference"]) for row in rows]
    _, _, preferences, deltas, difficulty, _ = zip(*gamed, strict=True)
    controlled = length_controlled_win_rate(
        values,
        [len(row["output_2"]) for row in rows],
        [len(row["output_1"]) for row in rows],
        difficulty=None if glm == samples.GLMS[0] else difficulty[: len(rows)],
        gamed=Gamed(deltas, difficulty, preferences) if glm == samples.GLMS[2] else None,
    )
    got = describe(values) | {
        "length_controlled_winrate": controlled.win_rate,
        "lc_standard_error": controlled.standard_error,
    }
    assert got == pytest.approx(EXPECTED[name], abs=1e-6, rel=0)


def test_expected_numbers_are_worth_comparing_with():
    rates = [row["length_controlled_winrate"] for row in EXPECTED.values()]
    assert len(EXPECTED) == len(samples.CASES) * len(samples.GLMS)
    assert len({round(rate, 3) for rate in rates}) > 0.8 * len(rates)


def test_the_effect_of_length_is_taken_out():
    preferences, model, reference, difficulty = simulated(40_000, better=0.0)
    assert win_rate(preferences).win_rate > 53
    controlled = length_controlled_win_rate(preferences, model, reference, difficulty=difficulty)
    # P(σ(0.3·d) ) is symmetric about ½; the standard error is 0.25
    assert controlled.win_rate == pytest.approx(50, abs=1.0)
    want = {"length": -1.0, "difficulty": 0.3, "constant": 0.0}
    assert controlled.coefficients == pytest.approx(want, abs=0.05)
    assert controlled.standard_error < controlled.robust_error / 2


def test_the_fit_minimises_the_penalised_loss():
    """An exact solver of Σ log-loss + ‖coef‖₁ / C comes to the same rate within 0.01 points."""
    from scipy.optimize import minimize

    preferences, model, reference, _ = simulated(500)
    preferences = 0.2 + 0.6 * preferences  # soft labels
    got = length_controlled_win_rate(preferences, model, reference)
    delta = (reference - model) / (reference - model).std(ddof=1)
    x = np.stack([np.tanh(delta), np.ones_like(delta)], axis=1)

    def loss(coef):
        z = x @ coef
        data = np.logaddexp(0, -z) @ preferences + np.logaddexp(0, z) @ (1 - preferences)
        return data + np.abs(coef).sum() / got.strength

    options = {"xatol": 1e-9, "fatol": 1e-10, "maxiter": 5000}
    coef = minimize(loss, [0.0, 0.0], method="Nelder-Mead", options=options).x
    assert list(got.coefficients.values()) == pytest.approx(coef, abs=2e-3)
    assert got.win_rate == pytest.approx(100 / (1 + math.exp(-coef[1])), abs=0.01)


def test_equal_lengths_leave_nothing_to_take_out():
    preferences, *_ = simulated(400)
    got = length_controlled_win_rate(preferences, np.full(400, 10), np.full(400, 30))
    assert got.win_rate == pytest.approx(win_rate(preferences).win_rate, abs=0.5)  # the penalty
    # Then the fit is the mean, and the error that of the mean: the fit's p̂ cancels.
    assert got.robust_error == pytest.approx(win_rate(preferences).standard_error, rel=1e-9)


def test_robust_error_is_that_of_a_jackknife(monkeypatch):
    monkeypatch.setattr(win_rates, "_best_strength", lambda *_: 1e4)  # no penalty to speak of
    preferences, model, reference, difficulty = simulated(150, seed=2)

    def rate(kept):
        return length_controlled_win_rate(
            preferences[kept], model[kept], reference[kept], difficulty=difficulty[kept]
        )

    everyone = np.arange(150)
    without = np.array([rate(everyone != i).win_rate for i in everyone])
    jackknife = math.sqrt(149 / 150 * ((without - without.mean()) ** 2).sum())
    assert rate(everyone).robust_error == pytest.approx(jackknife, rel=0.06)


def test_winning_always_prints_nothing(capfd):
    for preference, rate in ((1.0, 100), (0.0, 0)):
        got = length_controlled_win_rate([preference] * 50, np.arange(50), np.arange(50)[::-1])
        assert got.win_rate == pytest.approx(rate, abs=0.1)
    assert capfd.readouterr() == ("", "")


def test_weak_preferences_are_pulled_to_exactly_50():
    """What the module's docstring warns of."""
    draw = np.random.default_rng(1)
    got = length_controlled_win_rate(draw.random(60), draw.random(60), draw.random(60))
    assert (got.win_rate, got.standard_error) == (50.0, 0.0)
    assert got.robust_error > 2
    assert got.coefficients == {"length": 0.0, "constant": 0.0}


def test_missing_preferences_leave_the_fit_but_not_the_prompts():
    preferences, model, reference, _ = simulated(200)
    preferences[::10] = math.nan
    got = length_controlled_win_rate(preferences, model, reference)
    assert np.isfinite(got.predictions).all()
    assert len(got.predictions) == 200
    assert math.isfinite(got.robust_error)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: win_rate([]), "there is no preference to take a win rate of"),
        (lambda: win_rate([math.nan]), "there is no preference to take a win rate of"),
        (lambda: win_rate([0.5, 1.5]), r"preference 1 is 1.5; it must be in \[0, 1\], or NaN"),
        (lambda: win_rate([[0.5]]), r"must be a list of numbers; their shape is \(1, 1\)"),
        (
            lambda: length_controlled_win_rate([1, 0, 1], [1, 2, 3], [1, 1, 1]),
            "needs 5 preferences, not 3",
        ),
        (
            lambda: length_controlled_win_rate([1] * 5, [1] * 4, [1] * 5),
            "there are 5 preferences, but 4 lengths",
        ),
        (
            lambda: length_controlled_win_rate(
                [1] * 5, [1] * 5, [1] * 5, difficulty=[math.nan] * 5
            ),
            "difficulties must be finite numbers",
        ),
        (
            lambda: length_controlled_win_rate([1] * 5, [1] * 5, [1] * 5, gamed=Gamed([], [], [])),
            "gamed baselines need the difficulties of the prompts, too",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(UserError, match=message):
        call()
