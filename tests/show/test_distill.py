"""Distillation recovers what lies in the closed form, says what does not, and writes it down."""

import importlib.util
import json
import math
import sys

import pytest
import torch

from torchmpo import MirrorObjective, resolve
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.formulas import Formula, parse
from torchmpo.objectives.gradients import gradients
from torchmpo.runs.errors import UserError
from torchmpo.show.distill import Distilled, distill, source, square

SQUARE = square(-3.0, -0.1, 17)


def learned(seed=0, scale=0.05, **architecture):
    objective = MirrorObjective(**architecture)
    with torch.no_grad():
        noise = torch.randn(objective.dim, generator=torch.Generator().manual_seed(seed))
        objective.vector.copy_(scale * noise)
    return objective


def function_in(folder, text):
    """The function of a written file, imported as any other code base would."""
    path = folder / "distilled.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("distilled", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.distilled_loss


def same_gradients(a, b, tolerance):
    for x, y in zip(gradients(a, *SQUARE), gradients(b, *SQUARE), strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


# Of redundant coefficients only the gradients can be recovered, not the numbers.
@pytest.mark.parametrize(
    "coefficients",
    [
        {},
        {"sigmoid_coef": 1.0, "beta": 4.0, "target_margin": 0.7},
        {"sigmoid_coef": 0.0, "linear_coef": 0.3},
        {"sigmoid_coef": 0.0, "softplus_coef": 2.0, "threshold": -0.4, "sharpness": 6.0},
        {
            "sft_coef": 20.0,
            "sigmoid_coef": 3.0,
            "beta": 5.0,
            "softplus_coef": 5.0,
            "threshold": -1.0,
        },
        {"sft_coef": 0.0, "sigmoid_coef": 0.0, "softplus_coef": 1e-3, "threshold": 0.5},
    ],
)
def test_a_closed_form_is_its_own_distillation(coefficients):
    objective = resolve("closed_form", **coefficients)
    fit = distill(objective, *SQUARE)
    size = torch.stack(gradients(objective, *SQUARE)).abs().max().item()
    assert fit.r2 > 0.999
    assert fit.verdict.startswith("good")
    same_gradients(objective, fit.objective, 0.02 * size)


def test_what_determines_its_coefficients_recovers_them():
    truth = {"sft_coef": 0.7, "sigmoid_coef": 0.4, "beta": 3.0, "target_margin": 0.9}
    fit = distill(resolve("closed_form", **truth), *SQUARE)
    assert {name: fit.coefficients[name] for name in truth} == pytest.approx(truth, rel=1e-3)
    assert (fit.coefficients["linear_coef"], fit.coefficients["softplus_coef"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("loss", "equation"),
    [("sft", "loss = −1·c̄"), ("simpo", "loss = −1·log σ(2·Δ̄ − 0.5)")],
)
def test_losses_inside_the_closed_form_come_out_as_they_are_known(loss, equation):
    assert distill(resolve(loss), *SQUARE).equation == equation


def test_a_factor_on_the_loss_is_a_factor_on_the_coefficients():
    def larger(chosen_mean_logps, rejected_mean_logps):
        return 1000.0 * resolve("orpo").function(chosen_mean_logps, rejected_mean_logps)

    small, large = distill(resolve("orpo"), *SQUARE), distill(Objective(larger), *SQUARE)
    assert large.r2 == pytest.approx(small.r2, abs=1e-3)
    assert large.coefficients["sft_coef"] == pytest.approx(
        1000 * small.coefficients["sft_coef"], rel=1e-2
    )


def test_orpo_is_not_in_the_closed_form_and_is_said_not_to_be():
    fit = distill(resolve("orpo"), *SQUARE)
    assert fit.verdict.startswith("poor")
    assert 0.1 < fit.r2 < 0.8
    assert fit.cosine > 0.98  # the SFT term, which is nearly all of it
    # On pairs far from probability 1 its log-odds are log-probabilities, and it is CPO.
    fit = distill(resolve("orpo"), *square(-14.0, -5.0, 17))
    assert fit.verdict.startswith("good")
    assert fit.coefficients["sigmoid_coef"] * fit.coefficients["beta"] == pytest.approx(
        0.1, rel=0.02
    )


def test_quality_is_measured_on_the_written_numbers_by_hand():
    objective = learned()
    fit = distill(objective, *SQUARE)
    wanted = torch.stack(gradients(objective, *SQUARE))
    got = torch.stack(gradients(fit.objective, *SQUARE))
    length = wanted.norm(dim=0)
    clip = (length.median() / length).clamp(max=1.0)
    a, b = (got * clip).flatten(), (wanted * clip).flatten()
    assert fit.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-6)
    residual, size = ((got - wanted) * clip).norm(dim=1), (wanted * clip).norm(dim=1)
    relative = (residual / size).square()
    assert fit.error == pytest.approx(math.sqrt(relative.mean().item()), rel=1e-6)
    assert fit.pairs == len(SQUARE[0])
    assert -1e-6 <= fit.r2 <= 1
    assert json.loads(json.dumps(fit.card()))["r2"] == fit.r2


def test_no_other_coefficients_nearby_fit_better():
    objective = learned(3)
    fit = distill(objective, *SQUARE)
    wanted = torch.stack(gradients(objective, *SQUARE))
    length = wanted.norm(dim=0)
    weight = (length.median() / length).clamp(max=1.0)
    size = (wanted * weight).norm(dim=1, keepdim=True)

    def error(coefficients):
        got = torch.stack(gradients(resolve("closed_form", **coefficients), *SQUARE))
        return float(((got - wanted) * weight / size).square().sum())

    best = error(fit.coefficients)
    for name, value in fit.coefficients.items():
        for factor in (0.9, 1.1):
            assert error({**fit.coefficients, name: factor * value}) >= best * (1 - 1e-4), name


def test_a_few_huge_gradients_do_not_bend_the_fit():
    # One in 289 pairs sees a gradient 10,000 times as large, as at a kink of a learned function.
    def spiked(chosen_mean_logps, rejected_mean_logps):
        spike = torch.ones_like(chosen_mean_logps)
        spike[150 : 150 + len(spike) // 289] = 1e4
        return spike * resolve("simpo").function(chosen_mean_logps, rejected_mean_logps)

    same_gradients(distill(Objective(spiked), *SQUARE).objective, resolve("simpo"), 0.05)


def test_a_temporal_objective_is_fitted_to_all_times_at_once():
    def growing(chosen_mean_logps, rejected_mean_logps, progress):
        return -chosen_mean_logps - 2 * progress * (chosen_mean_logps - rejected_mean_logps)

    c, r = (x.repeat(2) for x in SQUARE)
    late = torch.cat([torch.zeros(len(c) // 2), torch.ones(len(c) // 2)])
    assert distill(Objective(growing), c, r, progress=late).r2 < 0.5
    fit = distill(Objective(growing), *SQUARE, progress=1.0)
    assert fit.equation == "loss = −1·c̄ − 2·Δ̄"
    assert distill(learned(temporal=True), c, r, progress=late).pairs == len(c)


@pytest.mark.parametrize(
    "objective",
    [
        resolve("closed_form", linear_coef=0.2, softplus_coef=0.4, threshold=-0.3),
        resolve("sft"),
        learned(1),
    ],
    ids=["all terms", "one term", "learned"],
)
def test_the_written_file_is_the_fit(tmp_path, objective):
    fit = distill(objective, *SQUARE)
    text = source(fit, 'a\\b """\nimport os', "somewhere")
    function = function_in(tmp_path, text)
    same_gradients(Objective(function), fit.objective, 1e-12)
    c, r = SQUARE
    data = (c, r) if "rejected_mean_logps" in text else (c,)
    assert function(*data).shape == c.shape
    assert fit.equation in text
    assert fit.verdict.split(" (")[0] in " ".join(text.split())
    imports = [line for line in text.splitlines() if line.startswith(("import", "from"))]
    assert imports
    assert all(line.startswith("from torch") and "torchmpo" not in line for line in imports)
    assert max(map(len, text.splitlines())) <= 100


def test_resolve_finds_the_written_file(tmp_path, monkeypatch):
    fit = distill(resolve("simpo"), *SQUARE)
    (tmp_path / "my_distilled.py").write_text(source(fit, "simpo", "a square"))
    monkeypatch.syspath_prepend(tmp_path)
    objective = resolve("my_distilled:distilled_loss", beta=3.0)
    assert objective.hyper["beta"] == 3.0
    same_gradients(objective, resolve("simpo", beta=3.0), 1e-12)
    sys.modules.pop("my_distilled")


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (resolve("dpo"), "has a reference"),
        (MirrorObjective(steps="two"), "has a reference"),
        (resolve("cpo"), "reads chosen_logps, rejected_logps"),
        (resolve("closed_form", sigmoid_coef=0.0, sft_coef=0.0), "no gradient"),
        (Objective(lambda chosen_mean_logps: chosen_mean_logps, name="worse"), "no closed form"),
        (Objective(lambda chosen_mean_logps: chosen_mean_logps.sqrt(), name="r"), "not finite"),
    ],
)
def test_what_cannot_be_distilled_is_refused_in_one_line(objective, words):
    with pytest.raises(UserError, match=words) as caught:
        distill(objective, *SQUARE)
    assert "\n" not in str(caught.value)


def test_it_is_trained_after_supervised_epochs_where_the_objective_was(tmp_path, monkeypatch):
    objective = Objective(Formula(parse("softplus(-margin) - c")))
    objective.after_sft = True
    fit = distill(objective, *SQUARE)
    fit.objective.save(tmp_path / "saved", {})
    (tmp_path / "after_sft_too.py").write_text(source(fit, "mine", "a square"))
    monkeypatch.syspath_prepend(tmp_path)
    for found in (resolve(tmp_path / "saved"), resolve("after_sft_too:distilled_loss")):
        assert found.after_sft
        assert not found.needs_reference


def test_the_equation_leaves_out_what_is_not_there():
    hyper = dict(resolve("closed_form").hyper)
    weights = {"sft_coef": 0.0, "sigmoid_coef": 0.0, "softplus_coef": 0.5, "threshold": -0.25}
    fit = Distilled({**hyper, **weights}, 1.0, 0.0, 1.0, 1.0, [], 0)
    assert fit.equation == "loss = −0.5·log(1 + exp(16·(Δ̄ + 0.25)))/16"
