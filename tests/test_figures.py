"""The figures exist and show the right numbers."""

import math

import pytest
import torch

from torchmpo import MirrorObjective, figures, resolve
from torchmpo.evolve.figures import fitness_figure
from torchmpo.figures import functions_figure, gradient_figure, pull_figure

NAN = float("nan")


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
