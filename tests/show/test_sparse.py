"""Learned objectives in few hidden units, and their curves as formulas."""

import pytest
import torch

from torchmpo.objectives.bound import Objective
from torchmpo.objectives.formulas import Formula
from torchmpo.objectives.gradients import gradients
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.resolve import resolve
from torchmpo.objectives.soundness import check_learned
from torchmpo.show import run as showing
from torchmpo.show.__main__ import main
from torchmpo.show.curves import curves
from torchmpo.show.distill import distill, square
from torchmpo.show.sparse import EQUAL, agreement, chosen_columns, sparse

PAIRS = square(-8.0, -0.05, 21)


def of(objective):
    return torch.stack(gradients(objective, *PAIRS))


def with_units(per_function, **settings):
    """An objective whose every function has so many units with a weight, and dead ones beside."""
    objective = MirrorObjective(learn=("psi", "phi_inv", "g"), **settings)
    units = objective.network.slope.numel()
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in objective.parts():
            part[:units] = -1.0
            part[torch.randperm(units, generator=gen)[:per_function]] = 0.3
    return objective


# --- few units ---


def test_a_discovered_objective_in_few_units():
    objective = resolve("tla_noisy")
    assert isinstance(objective, MirrorObjective)
    found = sparse(objective, *PAIRS)
    assert found.r2 >= EQUAL
    assert sum(found.units.values()) < sum(found.before.values()) / 4
    assert max(found.units.values()) <= 15
    check_learned(found.objective)
    # In its own words: what training clips and adds up is the same for nearly every pair.
    wanted, got = of(objective), of(found.objective)
    assert float(torch.cosine_similarity(wanted, got, dim=0).quantile(0.1)) > 0.95


def test_units_that_do_something_stay_and_twins_go():
    objective = with_units(3)
    assert sparse(objective, *PAIRS).before == {"psi": 3, "phi_inv": 3, "g": 3}
    assert max(sparse(objective, *PAIRS).units.values()) <= 3
    nothing = sparse(MirrorObjective(), *PAIRS)  # ORPO has no units
    assert nothing.units == nothing.before == {"psi": 0, "phi_inv": 0}
    assert nothing.r2 == 1.0


def test_a_temporal_objective_keeps_its_times():
    objective = with_units(6, temporal=True)
    found = sparse(objective, *PAIRS, progress=0.9)
    assert found.r2 >= EQUAL
    with pytest.raises(ValueError, match="depends on progress"):
        curves(objective, *PAIRS)


def test_columns_are_found_again():
    gen = torch.Generator().manual_seed(0)
    columns = torch.randn(50, 30, generator=gen, dtype=torch.float64)
    weights = torch.zeros(30, dtype=torch.float64)
    weights[[3, 17]] = torch.tensor([2.0, 0.5], dtype=torch.float64)
    found = chosen_columns(columns, columns @ weights, 1e-9, 30)
    torch.testing.assert_close(found, weights)
    assert (chosen_columns(columns, -columns[:, 0], 0.0, 30) >= 0).all()


# --- curves ---


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("steps", ["one", "two"])
def test_curves_in_closed_form_are_found(steps, reduction):
    objective = MirrorObjective(steps=steps, reduction=reduction)  # ORPO and DPO
    found = curves(objective, *PAIRS)
    assert found.r2 > 0.999
    assert isinstance(found.objective.function, Formula)
    assert found.objective.needs_reference == (steps == "two")
    torch.testing.assert_close(of(found.objective), of(objective), rtol=1e-2, atol=1e-2)


def test_curves_of_a_discovered_objective_explain_more_than_its_closed_form():
    objective = resolve("tla_mixed_v1")
    assert isinstance(objective, MirrorObjective)
    found = curves(objective, *PAIRS)
    closed = distill(objective, *PAIRS).objective
    assert found.r2 > agreement(of(closed), of(objective)) + 0.2
    assert found.r2 == agreement(of(found.objective), of(objective))


def test_curves_of_an_even_pull_are_no_even_pull():
    """Terms are added until what varies is described, and the verdict is that of both measures."""
    torch.manual_seed(0)
    objective = MirrorObjective(steps="two", learn=("g",))
    with torch.no_grad():
        objective.vector.copy_(0.03 * torch.randn(objective.dim))
    found = curves(objective, *square(-8, -0.05, 11))
    assert found.r2 > 0.1  # of the variation: an even pull explains 0
    assert found.error < 0.1
    assert found.lines[-1].startswith("fair")


def test_the_command_saves_both(tmp_path, capsys, monkeypatch):
    for figure in ("functions_figure", "gradient_figure", "pull_figure"):
        monkeypatch.setattr(showing, figure, lambda *_, **__: None)
    assert main(["tla_mixed_v1", "--sparse", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "hidden units left: psi" in out
    assert "ψ(x) = " in out
    few, formula = resolve(tmp_path / "sparse"), resolve(tmp_path / "curves")
    assert isinstance(few, MirrorObjective)
    assert isinstance(formula, Objective)
    monkeypatch.syspath_prepend(tmp_path)
    torch.testing.assert_close(of(resolve("curves:loss")), of(formula), atol=1e-6, rtol=1e-6)
    assert main(["simpo", "--sparse", "--out", str(tmp_path / "none")]) == 2
    assert "--sparse is of learned objectives, and simpo is none" in capsys.readouterr().err
