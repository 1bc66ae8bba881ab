"""Statistics against tables and hand arithmetic; the figures exist and show the right numbers."""

import math

import pytest
import torch

from torchmpo import MirrorObjective, figures, resolve
from torchmpo.evolve.figures import fitness_figure
from torchmpo.figures import functions_figure, gradient_figure, pull_figure
from torchmpo.objectives.gradients import gradient_map, gradients
from torchmpo.statistics import compare, mean_of, table, verdict

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
    for name in ("fitness.svg", "gradients.svg"):
        assert "<svg" in (tmp_path / name).read_text()


def test_gradients_of_pairs_each_at_its_own_progress():
    def later(chosen_mean_logps, rejected_mean_logps, progress):
        return -progress * chosen_mean_logps + 2 * rejected_mean_logps

    x = torch.tensor([-1.0, -2.0, -3.0])
    by_chosen, by_rejected = gradients(resolve(later), x, x, progress=torch.tensor([0.0, 0.5, 1.0]))
    assert by_chosen.tolist() == [0.0, -0.5, -1.0]
    assert by_rejected.tolist() == [2.0, 2.0, 2.0]


def test_a_coupled_loss_has_no_gradient_of_a_pair():
    with pytest.raises(ValueError, match="aot has no gradient of a pair"):
        gradient_map(resolve("aot"), torch.tensor([-1.0]), torch.tensor([-1.0]))


@pytest.fixture
def lines(monkeypatch):
    """What a figure draws: ``[axes][line]``, x and y."""
    found = []

    def keep(figure, path):
        found.extend([line.get_data() for line in ax.lines] for ax in figure.axes)

    monkeypatch.setattr(figures, "save_figure", keep)
    return found


def test_the_pull_of_simpo_fades_with_the_margin_and_sfts_does_not(lines):
    pull_figure({"simpo": resolve("simpo"), "sft": resolve("sft")}, "x.png", chosen=[-2.0, -1.0])
    (x, chosen), (_, sft), *_ = lines[1]  # chosen, at c̄ = −1
    _, rejected = lines[3][0]  # rejected, at c̄ = −1
    assert (x[0], x[-1]) == pytest.approx((7.0, -0.95))  # Δ̄ = −1 − r̄
    assert bool((torch.as_tensor(chosen).diff() > 0).all())  # x falls
    sigmoid = torch.sigmoid(0.5 - 2 * torch.as_tensor(x))
    ratio = torch.as_tensor(chosen) / sigmoid
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))
    assert rejected.tolist() == chosen.tolist()
    assert sft.tolist() == [1.0] * len(sft)


def test_a_temporal_pull_is_drawn_at_three_times(lines):
    pull_figure({"this": MirrorObjective(temporal=True)}, "x.png", chosen=[-1.0])
    assert [len(ax) for ax in lines] == [4, 4]  # and the line at margin 0


def test_functions_of_the_zero_vector_are_its_start(lines):
    functions_figure(MirrorObjective(), "x.png", low=-3.0, high=-0.5)
    for ax in lines:
        (_, start), (_, own) = ax
        assert own.tolist() == pytest.approx(start.tolist())
    (x, psi), (_, slope) = lines[0][0], lines[3][0]
    assert psi.tolist() == pytest.approx((x + 0.5).tolist())  # ψ = log p, from the right end on
    assert slope.tolist() == pytest.approx([1.0] * len(slope))
    x, slope = lines[4][0]  # logit: 1/(1 − p)
    assert slope.tolist() == pytest.approx([1 / (1 - math.exp(v)) for v in x])
    x, slope = lines[5][0]  # 0.1·log σ(m)
    assert slope.tolist() == pytest.approx([0.1 / (1 + math.exp(v)) for v in x], rel=1e-5)
    widest = math.log(math.exp(-0.5) / (1 - math.exp(-0.5))) - math.log(
        math.exp(-3) / (1 - math.exp(-3))
    )
    assert (x[0], x[-1]) == pytest.approx((-widest, widest))


def test_other_initial_coefficients_are_not_called_orpo():
    assert figures.start_name(MirrorObjective()) == "ORPO"
    assert figures.start_name(MirrorObjective(steps="two")) == "DPO"
    assert figures.start_name(MirrorObjective(initial={"g_log": 0.5})) == "zero vector"
