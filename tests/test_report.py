"""Statistics against tables and hand arithmetic; the figures exist and show the right numbers."""

import math

import pytest
import torch

from torchmpo import MirrorObjective, resolve
from torchmpo.report import (
    compare,
    fitness_figure,
    gradient_figure,
    gradient_map,
    mean_of,
    table,
    verdict,
)

NAN = float("nan")


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
        ([12.0, 13.0, 14.0], "improvement, +12 [+11, +13]"),
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


def test_a_diverged_training_is_counted_in_the_table():
    comparison = compare({"found": [1.0, 2.0], "SFT": [NAN, NAN]})
    assert comparison["objectives"]["SFT"] == {
        "mean": None, "se": None, "low": None, "high": None, "diverged": 2
    }  # fmt: skip
    assert "2 diverged" in table(comparison)


def test_gradient_map_of_simpo_is_its_closed_form():
    chosen, rejected = torch.tensor([-3.0, -1.0]), torch.tensor([-2.0, -1.5, -0.5])
    by_chosen, by_rejected = gradient_map(
        resolve("simpo", beta=2.0, target_margin=0.5), chosen, rejected
    )
    margin = 2.0 * (chosen[:, None] - rejected[None, :]).double() - 0.5
    expected = -2.0 * torch.sigmoid(-margin)
    torch.testing.assert_close(by_chosen, expected)
    torch.testing.assert_close(by_rejected, -expected)


@pytest.mark.parametrize("steps", ["one", "two"])
@pytest.mark.parametrize("temporal", [False, True])
def test_gradient_map_of_the_zero_vector_is_its_starting_loss(steps, temporal):
    grid = torch.linspace(-6, -0.1, 7)
    ours = gradient_map(MirrorObjective(steps=steps, temporal=temporal), grid, grid)
    start = gradient_map(resolve("orpo") if steps == "one" else resolve("dpo"), grid, grid)
    for a, b in zip(ours, start, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_gradient_map_of_a_loss_that_ignores_the_rejected():
    by_chosen, by_rejected = gradient_map(
        resolve("sft"), torch.tensor([-1.0]), torch.tensor([-1.0])
    )
    assert (by_chosen.item(), by_rejected.item()) == (-1.0, 0.0)


def test_figures_are_written(tmp_path):
    log = [
        {"generation": 0, "centre": 1.0, "mean": 0.5, "best": 2.0, "sigma": 0.03, "nan": 0},
        {"generation": 1, "centre": NAN, "mean": NAN, "best": NAN, "sigma": 0.03, "nan": 4},
        {"generation": 2, "centre": 2.0, "mean": None, "best": None, "sigma": 0.03, "nan": None},
    ]
    fitness_figure(log, tmp_path / "fitness.png")
    objectives = {"start": MirrorObjective(), "SFT": resolve("sft")}
    gradient_figure(objectives, tmp_path / "gradients.png", points=9)
    for name in ("fitness.png", "gradients.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
