"""The scripts that lay a diagnosis beside the published numbers, or beside another run."""

import json
import math
import sys

import pytest

from experiments import compare_published, compare_runs
from torchmpo.diagnose.cells import cell_path, write_cell
from torchmpo.diagnose.leaderboard import leaderboard, write_leaderboard

ANCHORS = {"original": [1000.0, 1000.0], "target": [3000.0, 3000.0]}


def cell(loss, data, means, *, best=0):
    """A finished cell of seeds with these mean returns, None for one that diverged."""
    returns = [None if mean is None else [mean - 1, mean + 1] for mean in means]
    grid = [{"beta": 0.1}, {"beta": 1.0}]
    tuning = [[0.0], [1.0]]
    cell = {"loss": loss, "data": data, "task": "tla", "grid": grid, "tuning": tuning}
    return cell | {"best": best, "returns": returns}


def printed(module, monkeypatch, capsys, *folders):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, folders)])
    module.main()
    return capsys.readouterr().out.replace("−", "-")


def test_published_numbers_beside_a_run_that_partly_diverged(tmp_path, monkeypatch, capsys):
    levels = [2000.0, 2100.0, 2200.0, 2300.0]
    cells = [cell("dpo", "base", levels), cell("cpo", "base", [x + 900 for x in levels])]
    cells += [cell("ipo", "base", [None] * 4), cell("own:loss", "base", [1000.0])]
    cells += [cell("sft", "base", [x + 500 for x in levels])]
    write_leaderboard(leaderboard(cells, ANCHORS), tmp_path)
    (tmp_path / "anchors.json").write_text(json.dumps(ANCHORS))
    (tmp_path / "cells").mkdir()
    for one in cells:
        write_cell(cell_path(tmp_path, one["loss"], one["data"]), one)
    lines = printed(compare_published, monkeypatch, capsys, tmp_path).splitlines()
    told = {line.split(" | ")[0].strip("| "): line for line in lines}
    # ours: the middle half of 0.5, 0.55, 0.6, 0.65; theirs: (3528 − 1700)/2200
    assert told["dpo"].startswith("| dpo | 0.57 [0.50, 0.65]")
    assert told["dpo"].endswith("] / 0.83 |")
    assert told["ipo"] == "| ipo | diverged / 0.87 |"
    assert told["own:loss"] == "| own:loss | 0.00 / – |"
    # Of four the order is ours: cpo, sft, dpo, ipo; theirs: ipo, dpo, cpo, sft. Drawn again, the
    # seeds of sft lie between those of the others, or not.
    assert told["Kendall's τ"].startswith("| Kendall's τ | -0.67 [-0.67, -0.")


def test_two_runs_are_compared_by_their_seeds(tmp_path, monkeypatch, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    runs = {
        first: [cell("dpo", "base", [10.0, 20.0, None, 30.0]), cell("cpo", "base", [0.0, 1.0])],
        second: [cell("dpo", "base", [0.0, 20.0, 5.0, 10.0, 77.0], best=1)],
    }
    for folder, cells in runs.items():
        (folder / "cells").mkdir(parents=True)
        for one in cells:
            (folder / "cells" / f"{one['loss']}.json").write_text(json.dumps(one))
    found = compare_runs.differences(first, second)
    assert list(found) == [("dpo", "base")]
    mean, error, p, same = found["dpo", "base"]
    # 10, 0 and 20; t = √3 with two degrees of freedom
    assert (mean, error) == pytest.approx((10.0, 10 / math.sqrt(3)))
    assert p == pytest.approx(1 - math.sqrt(3 / 5))
    assert not same
    text = printed(compare_runs, monkeypatch, capsys, first, second)
    assert "| dpo | +10 ± 6 * |" in text
    assert "0 of 1 cells" in text
