"""Which losses are shown to be better: p-values, ranks, average ranks, profiles, by oracles."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats

from torchmpo.statistics import (
    average_ranks,
    cliques,
    friedman,
    holm,
    least_shown,
    paired_differences,
    performance_profile,
    ranks,
    shown,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# Holm's correction


def test_holm_by_hand():
    # Holm (1979): the smallest of four is multiplied by 4, the next by 3, and none may fall.
    assert holm([0.01, 0.005, 0.03, 0.04]) == pytest.approx([0.03, 0.02, 0.06, 0.06])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]).tolist() == []


@given(some.lists(some.floats(0, 1), min_size=1, max_size=7), some.floats(0.01, 0.2))
def test_holm_rejects_what_the_closed_test_rejects(p, level):
    """A hypothesis falls if every intersection with it falls, each by Bonferroni."""
    corrected = holm(p)
    for i in range(len(p)):
        sets = [s for n in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), n)]
        worst = min(1.0, max(len(s) * min(p[k] for k in s) for s in sets if i in s))
        assert corrected[i] == pytest.approx(worst)


# Paired differences


def test_a_difference_by_hand():
    found = paired_differences({"a": [1.0, 2.0, 3.0, 4.0], "b": [2.0, 4.0, 6.0, 6.0]})
    entry = found["b"]["a"]  # 1, 2, 3, 2: mean 2, s² = 2/3, so t = 2/√(1/6)
    assert entry["mean"] == 2.0
    assert entry["se"] == pytest.approx(math.sqrt(1 / 6))
    x = 2 / math.sqrt(1 / 6) / math.sqrt(3)  # t/√3; with 3 degrees of freedom, p in closed form:
    p = 1 - 2 / math.pi * (math.atan(x) + x / (1 + x**2))
    assert entry["p"] == entry["corrected"] == pytest.approx(p)
    assert math.isnan(entry["wilcoxon"])
    assert found["a"] == {}


def test_what_cannot_be_told_is_nan_and_shows_nothing():
    entry = paired_differences({"a": [1.0], "b": [9.0]})["b"]["a"]
    assert entry["mean"] == 8.0
    assert all(math.isnan(entry[key]) for key in entry if key != "mean")
    assert not shown(entry)
    assert not shown({"corrected": None})  # as it is read from a file
    assert paired_differences({}) == {}
    assert paired_differences({"a": [1.0]}) == {"a": {}}


def test_equal_losses_and_constant_differences():
    found = paired_differences({"a": [1.0, 2.0] * 4, "b": [1.0, 2.0] * 4, "c": [0.0, 1.0] * 4})
    assert found["a"]["b"]["p"] == found["a"]["b"]["wilcoxon"] == 1.0
    assert found["a"]["c"]["p"] == 0.0
    assert ranks(found)["c"] == {"best": 3, "worst": 3, "rank": 3}


def test_a_pair_has_the_seeds_that_both_have():
    short = paired_differences({"a": [1.0, 2.0, 4.0], "b": [3.0, 3.0, 3.0, 99.0, 99.0]})
    assert short == paired_differences({"a": [1.0, 2.0, 4.0], "b": [3.0, 3.0, 3.0]})


@pytest.mark.parametrize(("seeds", "smallest"), [(5, 0.0625), (6, 0.03125)])
def test_wilcoxon_cannot_decide_below_six_seeds(seeds, smallest):
    clear = np.arange(1.0, seeds + 1)  # every seed agrees
    assert stats.wilcoxon(clear).pvalue == pytest.approx(smallest)  # pyright: ignore
    entry = paired_differences({"a": clear, "b": np.zeros(seeds)})["a"]["b"]
    assert math.isnan(entry["wilcoxon"]) if smallest > 0.05 else entry["wilcoxon"] == smallest


@pytest.mark.parametrize("skewed", [False, True])
def test_equal_losses_are_told_apart_as_rarely_as_promised(skewed):
    """At most one set in twenty, with whatever pair: without the correction it is eight."""
    draw = np.random.default_rng(int(skewed))
    wrong = plain = 0
    for _ in range(400):
        runs = -draw.exponential(size=(6, 5)) if skewed else draw.normal(size=(6, 5))
        runs += draw.normal(size=5)  # what all losses share on a seed
        found = paired_differences(dict(zip("abcdef", runs)))
        entries = [entry for lower in found.values() for entry in lower.values()]
        wrong += any(map(shown, entries))
        plain += any(entry["p"] < 0.05 for entry in entries)
    assert wrong / 400 <= 0.08  # three standard errors above
    assert plain / 400 > 0.25


@pytest.mark.parametrize(("seeds", "losses"), [(5, 2), (5, 4), (10, 4)])
def test_the_least_difference_shown_is_on_the_edge(seeds, losses):
    noise = normal(seeds)
    noise = (noise - noise.mean()) / noise.std(ddof=1) * math.sqrt(seeds)  # standard error 1
    for factor, expected in ((0.999, False), (1.001, True)):
        level = factor * least_shown(seeds, losses)
        runs = {"top": noise + level, "zero": np.zeros(seeds)}
        runs |= {f"twin {i}": np.zeros(seeds) for i in range(losses - 2)}
        assert shown(paired_differences(runs)["top"]["zero"]) is expected


# Ranks


def test_ranks_by_hand():
    """An arrow is shown: a → c, a → d, b → d."""
    sure, unsure = {"corrected": 0.049}, {"corrected": 0.05}
    found = ranks(
        {
            "a": {"b": unsure, "c": sure, "d": sure},
            "b": {"c": unsure, "d": sure},
            "c": {"d": unsure},
            "d": {},
        }
    )
    places = {name: (r["best"], r["worst"], r["rank"]) for name, r in found.items()}
    assert places == {"a": (1, 2, 1), "b": (1, 3, 1), "c": (2, 4, 2), "d": (3, 4, 3)}
    assert ranks({}) == {}


# Average ranks

# Demšar (2006), table 2: areas under the curve of four classifiers on fourteen data sets.
DEMSAR = {
    "C4.5": [.763, .599, .954, .628, .882, .936, .661,
             .583, .775, 1.0, .940, .619, .972, .957],
    "C4.5+m": [.768, .591, .971, .661, .888, .931, .668,
               .583, .838, 1.0, .962, .666, .981, .978],
    "C4.5+cf": [.771, .590, .968, .654, .886, .916, .609,
                .563, .866, 1.0, .965, .614, .9751, .946],
    "C4.5+m+cf": [.798, .569, .967, .657, .898, .931, .685,
                  .625, .875, 1.0, .962, .669, .975, .970],
}  # fmt: skip


def test_average_ranks_are_demsars():
    """As printed there, with χ² = 9.28 of Friedman's statistic without its correction for ties."""
    found = average_ranks(DEMSAR)
    assert list(found) == ["C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"]
    assert list(found.values()) == pytest.approx([1.964, 2.000, 2.893, 3.143], abs=5e-4)
    chi2 = 12 * 14 / (4 * 5) * (sum(r**2 for r in found.values()) - 4 * 5**2 / 4)
    assert chi2 == pytest.approx(9.28, abs=0.005)
    # Three ties of two and one of four: the correction divides by 1 − Σ(t³ − t)/(N k(k² − 1)).
    chi2 /= 1 - (3 * 6 + 60) / (14 * 60)
    assert friedman(DEMSAR) == pytest.approx(stats.chi2.sf(chi2, 3))


def test_friedman_of_nothing_to_test_is_nan():
    assert math.isnan(friedman({"a": [1.0, 2.0], "b": [2.0, 1.0]}))
    assert math.isnan(friedman({name: [1.0, 2.0] for name in "abc"}))


def test_cliques_are_the_longest_runs_of_neighbours_not_told_apart():
    def of(*pairs):
        found = {name: {} for name in "abcde"}
        for a, b in pairs:
            found[a][b] = {"corrected": 0.01}
        return ["".join(group) for group in cliques("abcde", found)]

    assert of() == ["abcde"]
    assert of("ae") == ["abcd", "bcde"]
    assert of("ac", "ad", "ae", "be") == ["ab", "bcd", "cde"]
    assert of("ea") == ["abcd", "bcde"]  # whichever is the better one
    assert of("ab", "cd") == ["bc", "de"]
    assert of(*itertools.combinations("abcde", 2)) == []


# Performance profiles


def test_profile_is_rliables():
    """Its run_score_distribution: the mean over all runs and tasks of score > τ."""
    scores, taus = normal(6, 3), np.linspace(-3, 3, 21)
    share, low, high = performance_profile(scores, taus)
    assert share == pytest.approx([np.mean(scores > tau) for tau in taus])
    assert (low <= share).all()
    assert (share <= high).all()
    assert share[0] == high[0] == 1.0
    assert (np.diff(share) <= 0).all()
    again = performance_profile(scores, taus)
    assert all(np.array_equal(a, b) for a, b in zip(again, (share, low, high)))


def test_band_of_a_profile_is_that_of_all_resamples_of_seeds():
    """All 5⁵ of them; a seed is drawn with its scores on both kinds."""
    scores = np.array([[0.1, 0.2], [0.3, 0.9], [0.8, 0.7], [0.2, 0.6], [0.9, 0.95]])
    above = (scores > 0.5).mean(1)
    every = np.array([above[list(drawn)].mean() for drawn in itertools.product(range(5), repeat=5)])
    share, low, high = performance_profile(scores, [0.5], level=0.8, resamples=40_000)
    expected = np.quantile(every, [0.1, 0.9])
    assert [low[0], high[0]] == pytest.approx(expected, abs=0.02)
    assert share[0] == 0.6


def test_one_run_has_no_band():
    share, low, high = performance_profile([[0.2, 0.8]], [0.5])
    assert share.tolist() == [0.5]
    assert np.isnan([*low, *high]).all()
