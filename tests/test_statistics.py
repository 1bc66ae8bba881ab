"""Statistics against hand arithmetic and SciPy, and what the intervals hold."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats

from torchmpo.statistics import (
    bootstrap_interval,
    compare,
    interquartile_mean,
    mean_of,
    mean_score,
    probability_of_improvement,
    table,
    verdict,
)
from torchmpo.statistics.pairwise import students_p

NAN = float("nan")
scores_of = some.lists(some.integers(-8, 8).map(float), min_size=1, max_size=9)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# Any statistics book's table of Student's t, two-sided 95 %.
@pytest.mark.parametrize(
    ("df", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (7, 2.365), (10, 2.228), (24, 2.064), (120, 1.980)],
)
def test_intervals_are_students(df, quantile):
    result = mean_of([float(i) for i in range(df + 1)])
    assert (result.high - result.mean) / result.se == pytest.approx(quantile, abs=6e-4)
    assert result.mean - result.low == pytest.approx(result.high - result.mean)


def test_mean_se_and_interval_by_hand():
    result = mean_of([1.0, 2.0, 3.0, 6.0])  # s² = 14/3
    se = math.sqrt(14 / 3 / 4)
    assert result.mean == 3.0
    assert result.se == pytest.approx(se)
    assert result.low == pytest.approx(3 - 3.1824463 * se)
    assert result.high == pytest.approx(3 + 3.1824463 * se)


def test_one_value_has_a_mean_and_no_interval():
    mean, *rest = mean_of([3.0])
    assert mean == 3.0
    assert all(map(math.isnan, rest))


def test_differences_are_paired_by_seed():
    # Seeds differ by hundreds, the objectives by 10 ± 1 on each: only pairing sees it.
    found, start = [110.0, 511.0, 909.0], [100.0, 500.0, 900.0]
    comparison = compare({"found": found, "start": start})
    difference = comparison["differences"]["start"]
    assert difference["mean"] == 10.0
    assert difference["low"] > 0
    assert difference["se"] == pytest.approx(1 / math.sqrt(3))
    assert list(comparison["differences"]) == ["start"]


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ([12.0, 13.0, 14.0], "improvement, +12.00 [+10.76, +13.24]"),
        ([-12.0, -13.0, -14.0], "worse"),
        ([30.0, -30.0, 1.0], "no improvement (the interval contains 0)"),
        ([5.0, NAN, 7.0], "not comparable, 1 trainings diverged"),
    ],
)
def test_verdict_is_honest(found, word):
    comparison = compare({"found": found, "SFT": [0.5, 1.0, 1.5]})
    assert verdict(comparison).startswith(f"vs SFT: {word}")
    assert "found" in table(comparison)
    assert "nan" not in table(comparison)


def test_returns_near_1_are_shown_with_their_digits():
    comparison = compare({"found": [0.9, 0.92, 0.925], "orpo": [0.4, 0.41, 0.435]})
    assert table(comparison).splitlines()[1].split()[1:4] == ["0.9150", "±", "0.0076"]
    assert verdict(comparison).startswith("vs orpo: improvement, +0.5000 [+0.4")
    one = compare({"found": [0.915], "orpo": [0.415]})
    assert verdict(one) == "vs orpo: one seed shows nothing, +0.50"
    far = compare({"found": [3800.0, 3950.0], "orpo": [3700.0, 3820.0]})
    assert table(far).splitlines()[1].split()[1:4] == ["3875", "±", "75"]


def test_a_verdict_is_corrected_for_the_number_of_rivals():
    """Four intervals that leave out 0 by little say nothing together; alone, one would."""
    found = np.array([3.0, 5.0, 4.0, 6.0, 5.5])
    rivals = {f"r{i}": found - [0.1, 1.6, 0.8, 1.0, 2.6] for i in range(4)}
    comparison = compare({"found": found, **rivals})
    alone = compare({"found": found, "r0": rivals["r0"]})
    raw = stats.ttest_rel(found, rivals["r0"]).pvalue
    assert 0.0125 < raw < 0.05
    assert alone["differences"]["r0"]["p"] == pytest.approx(raw)
    assert comparison["differences"]["r0"]["p"] == pytest.approx(4 * raw)
    assert comparison["differences"]["r0"]["low"] > 0
    assert verdict(alone).startswith("vs r0: improvement, ")
    line = f"no improvement (among 4 rivals p is {4 * raw:.2f})"
    assert all(told.split(": ")[1].startswith(line) for told in verdict(comparison).splitlines())


def test_one_seed_shows_nothing():
    """By hand: a variance needs two."""
    comparison = compare({"a": [5.0], "b": [1.0], "c": [NAN]})
    assert comparison["differences"]["b"] == {
        "mean": 4.0, "se": None, "low": None, "high": None, "diverged": 0, "p": None
    }  # fmt: skip
    assert comparison["objectives"]["a"]["mean"] == 5.0
    assert verdict(comparison).splitlines()[0] == "vs b: one seed shows nothing, +4"
    assert "nan" not in table(comparison)
    assert table(comparison).splitlines()[2].split() == ["b", "1", "+4"]
    assert math.isnan(students_p(4.0, NAN, 1))
    assert math.isnan(students_p(4.0, 0.0, 1))
    assert students_p(4.0, 0.0, 2) == 0.0  # the same on every seed


def test_a_diverged_training_is_counted_in_the_table():
    comparison = compare({"found": [1.0, 2.0], "SFT": [NAN, NAN]})
    assert comparison["objectives"]["SFT"] == {
        "mean": None, "se": None, "low": None, "high": None, "diverged": 2
    }  # fmt: skip
    assert "2 diverged" in table(comparison)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),
        ([9.0, 1.0, 2.0], 4.0),  # fewer than four: nothing is dropped
        ([9.0, 1.0, 2.0, 4.0], 3.0),
        ([9.0, -50.0, 2.0, 4.0, 6.0], 4.0),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 99.0], 3.5),
    ],
)
def test_interquartile_mean_by_hand(scores, expected):
    assert interquartile_mean(scores) == expected


def test_strata_are_pooled_by_one_and_averaged_by_the_other():
    assert interquartile_mean([0.0, 0.0, 0.0], [8.0]) == 0.0  # of 0 0 0 8 the middle two
    assert interquartile_mean([0.0, 2.0], [6.0, 8.0]) == 4.0
    assert mean_score([0.0, 0.0, 0.0], [8.0]) == 4.0


def test_statistics_work_along_the_last_axis():
    x, y = normal(3, 7), normal(3, 5, seed=1)
    assert interquartile_mean(x) == pytest.approx([interquartile_mean(r) for r in x])
    assert mean_score(x, y) == pytest.approx([mean_score(a, b) for a, b in zip(x, y)])
    expected = [probability_of_improvement(a, b) for a, b in zip(x, y)]
    assert probability_of_improvement(x, y) == pytest.approx(expected)
    assert probability_of_improvement(x.T, y.T, axis=0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([2.0], [1.0], 1.0),
        ([1.0], [2.0], 0.0),
        ([1.0], [1.0], 0.5),
        ([1.0, 4.0], [2.0, 3.0, 5.0], 2 / 6),
        ([1.0, 2.0, 2.0], [2.0, 0.0], (1 + 1.5 + 1.5) / 6),
    ],
)
def test_probability_of_improvement_by_hand(x, y, expected):
    assert probability_of_improvement(x, y) == pytest.approx(expected)


@given(scores_of, scores_of)
def test_probability_of_improvement_is_mann_whitneys_u(x, y):
    p = probability_of_improvement(x, y)
    if len({*x, *y}) > 1:  # SciPy warns where all are equal
        u = stats.mannwhitneyu(x, y, method="asymptotic").statistic
        assert p == pytest.approx(u / (len(x) * len(y)))
    assert p + probability_of_improvement(y, x) == pytest.approx(1)


# Intervals


def exact_percentiles(values, statistic, quantiles):
    """Of the bootstrap distribution itself: all nⁿ resamples."""
    every = np.array(list(itertools.product(values, repeat=len(values))))
    return np.quantile(statistic(every), quantiles)


@pytest.mark.parametrize("statistic", [mean_score, interquartile_mean])
def test_interval_of_five_runs_is_that_of_all_resamples(statistic):
    values = [0.1, 0.5, 0.55, 0.9, 1.4]
    expected = exact_percentiles(values, statistic, (0.1, 0.9))
    found = bootstrap_interval(values, statistic=statistic, level=0.8, resamples=40_000)
    assert found == pytest.approx(expected, abs=0.02)


def test_interval_is_scipys_for_the_same_random_numbers():
    x, y = np.sort(normal(6)), np.sort(normal(4, seed=1))
    low, high = bootstrap_interval(x, y, statistic=probability_of_improvement, level=0.9, seed=5)
    expected = stats.bootstrap(
        (x, y),
        # SciPy's own count, one resample at a time.
        lambda a, b: stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)),
        n_resamples=2000, vectorized=False, confidence_level=0.9, method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx(expected)


def test_resampling_stays_within_strata():
    # Far apart and constant within: any mixing would move the mean.
    assert bootstrap_interval([0.0] * 5, [100.0] * 5, statistic=mean_score) == (50.0, 50.0)
    mixed = bootstrap_interval([0.0] * 5 + [100.0] * 5, statistic=mean_score)
    assert mixed[0] < 30 < 70 < mixed[1]


def test_strata_are_resampled_independently():
    # Var of a mean of means of k strata is 1/k of one's; resampled together it would not shrink.
    x = normal(40)
    one = np.diff(bootstrap_interval(x, statistic=mean_score))
    four = np.diff(bootstrap_interval(x, x, x, x, statistic=mean_score))
    assert four / one == pytest.approx(0.5, rel=0.1)


def test_intervals_repeat_and_do_not_depend_on_the_order_of_runs():
    x, y = normal(9), normal(7, seed=1)
    found = bootstrap_interval(x, y, statistic=interquartile_mean)
    assert found == bootstrap_interval(x, y, statistic=interquartile_mean)
    assert found == bootstrap_interval(x[::-1], np.roll(y, 3), statistic=interquartile_mean)
    assert found != bootstrap_interval(x, y, statistic=interquartile_mean, seed=1)


@pytest.mark.parametrize("bad", [[], [1.0], [1.0, math.nan], [1.0, math.inf]])
def test_no_interval_where_there_is_nothing_to_resample(bad):
    assert np.isnan(bootstrap_interval(bad, statistic=mean_score)).all()
    assert np.isnan(bootstrap_interval([1.0, 2.0], bad, statistic=mean_score)).all()


def coverage(runs, statistic, truth, *, draws=400, level=0.95):
    """Share of drawn data sets whose interval holds the truth."""
    rng = np.random.default_rng(runs)
    held = 0
    for k in range(draws):
        x = rng.normal(size=runs)
        low, high = bootstrap_interval(x, statistic=statistic, level=level, resamples=400, seed=k)
        held += low <= truth <= high
    return held / draws


# Binomial standard errors: 0.011 at 0.95 and 0.019 at 0.83, with bounds three of them away.
def test_intervals_of_many_runs_hold_their_level():
    assert 0.90 < coverage(40, mean_score, 0.0) < 0.98
    assert 0.90 < coverage(40, interquartile_mean, 0.0) < 0.98
    assert 0.73 < coverage(40, mean_score, 0.0, level=0.8) < 0.86


def test_intervals_of_five_runs_are_as_narrow_as_documented():
    assert 0.78 < coverage(5, mean_score, 0.0) < 0.89


def test_pooled_interval_holds_its_level():
    rng = np.random.default_rng(0)
    truths, held = np.array([[0.0], [5.0], [-3.0], [1.0]]), 0
    for k in range(300):
        strata = truths + rng.normal(size=(4, 10))
        low, high = bootstrap_interval(*strata, statistic=mean_score, resamples=400, seed=k)
        held += low <= truths.mean() <= high
    assert 0.88 < held / 300 < 0.98


@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_paired_interval_holds_its_level(shared):
    """Also where a seed does well, or badly, on all kinds of data."""
    rng = np.random.default_rng(0)
    truths, held, apart = np.array([[0.0], [5.0], [-3.0], [1.0]]), 0, 0
    for k in range(300):
        own, of_seed = rng.normal(size=(4, 10)), rng.normal(size=(1, 10))
        strata = truths + math.sqrt(1 - shared) * own + math.sqrt(shared) * of_seed
        settings = {"statistic": mean_score, "resamples": 400, "seed": k}
        low, high = bootstrap_interval(*strata, paired=True, **settings)
        held += low <= truths.mean() <= high
        low, high = bootstrap_interval(*strata, **settings)
        apart += low <= truths.mean() <= high
    assert 0.86 < held / 300 < 0.98
    assert (apart / 300 < 0.75) == (shared > 0)  # each kind by itself does not


def test_pairs_stay_pairs_and_their_order_does_not_matter():
    x, y = normal(9), normal(9, seed=1)
    settings = {"statistic": interquartile_mean, "paired": True}
    found = bootstrap_interval(x, y, **settings)
    order = np.roll(np.arange(9), 4)
    assert bootstrap_interval(x[order], y[order], **settings) == found
    assert bootstrap_interval(x, y[order], **settings) != found
    # Of a sum that is constant nothing is uncertain.
    assert bootstrap_interval(x, 1 - x, statistic=mean_score, paired=True) == pytest.approx(
        (0.5, 0.5)
    )
