"""Settings that are varied, scaling fits and curves against the distance from the start."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import curve_fit

from torchmpo.control.annotators import biased_scores
from torchmpo.control.components import effort, return_components
from torchmpo.control.pools import PoolConfig
from torchmpo.control.testbed import TestbedConfig, prepare
from torchmpo.diagnose import run
from torchmpo.diagnose.__main__ import main
from torchmpo.diagnose.cells import seed_scores
from torchmpo.diagnose.checkpoints import proxy_judge
from torchmpo.diagnose.comparisons import overoptimisation
from torchmpo.diagnose.effects import Cells, cells_of, effects, scaling
from torchmpo.diagnose.report import comparisons
from torchmpo.diagnose.settings import DiagnoseConfig
from torchmpo.diagnose.setup import Setup
from torchmpo.diagnose.variants import variants
from torchmpo.runs.errors import UserError
from torchmpo.statistics import mean_of
from torchmpo.statistics.scaling import fit_scaling

SIZES = np.array([16, 32, 64, 128, 256, 512])
PAIRS = {"base": 4}


def errors_of(floor, coefficient, exponent, noise, seeds=8, sizes=SIZES):
    draws = np.random.default_rng(0)
    return floor + coefficient * sizes**-exponent + draws.normal(0, noise, (seeds, len(sizes)))


# Scaling


@pytest.mark.parametrize(
    ("floor", "coefficient", "exponent"), [(0.1, 2.0, 0.5), (0.0, 5.0, 1.0), (-0.2, 3.0, 0.7)]
)
def test_a_known_law_is_found(floor, coefficient, exponent):
    errors = errors_of(floor, coefficient, exponent, 0.01)
    fit = fit_scaling(SIZES, errors)
    assert fit.told
    for found, true in zip(fit, (floor, coefficient, exponent), strict=False):
        assert found.low <= found.value <= found.high
        assert found.low - 0.05 * abs(true) <= true <= found.high + 0.05 * abs(true)
    law = lambda n, e, a, b: e + a * n**-b  # noqa: E731
    want, _ = curve_fit(law, SIZES, errors.mean(0), (0.1, 1.0, 0.5))
    assert [x.value for x in fit[:3]] == pytest.approx(want, rel=0.05, abs=0.01)


@pytest.mark.parametrize("errors", [(0.3, 0.0, 1.0, 0.05), (0.1, 0.5, 0.5, 0.5)])
def test_it_says_where_the_exponent_cannot_be_told(errors):
    assert not fit_scaling(SIZES, errors_of(*errors)).told


def test_one_seed_tells_no_exponent():
    fit = fit_scaling(SIZES, errors_of(0.1, 2.0, 0.5, 0.0, seeds=1))
    assert fit.exponent.value == pytest.approx(0.5, rel=0.05)  # what the errors were made with
    assert all(math.isnan(end) for part in fit[:3] for end in (part.low, part.high))
    assert not fit.told


def test_an_error_that_grows_is_no_law():
    assert not fit_scaling(SIZES, errors_of(1.0, -2.0, 0.5, 0.001)).told


@pytest.mark.parametrize(
    ("sizes", "errors"),
    [
        ([1, 2], [[1, 1]]),
        ([1, 2, 2], [[1, 1, 1]]),
        ([1, 2, 3], [[1, 1]]),
        ([1, 2, 3], [1, 1, 1]),
        ([1, 2, 3], np.empty((0, 3))),
    ],
)
def test_what_cannot_be_fitted(sizes, errors):
    with pytest.raises(ValueError, match=r"needs three|errors must"):
        fit_scaling(sizes, errors)


def test_seed_scores_are_returns_where_the_target_is_not_better(tmp_path):
    """As everywhere: below 0 on such a scale would be better."""
    (tmp_path / "cells").mkdir()
    cell = {"loss": "dpo", "data": "base", "returns": [[2.0, 4.0], None]}
    (tmp_path / "cells" / "dpo__base.json").write_text(json.dumps(cell))
    for target, expected in ((5.0, 0.5), (1.0, 3.0), (0.5, 3.0)):
        anchors = {"original": [1.0], "target": [target]}
        (tmp_path / "anchors.json").write_text(json.dumps(anchors))
        (found,) = seed_scores(tmp_path).values()
        assert found[0] == expected
        assert math.isnan(found[1])


def test_scaling_takes_the_sizes_that_a_loss_has():
    errors = errors_of(0.1, 2.0, 0.5, 0.01)
    cells = [
        Cells({("sft", kind): 1 - errors[:, k] for kind in ("base", "few")}, {"base": n, "few": 32})
        for k, n in enumerate(SIZES.tolist())
    ]
    others = {f"pairs={c.pairs['base']}": c for c in cells[1:]} | {"epochs=3": cells[1]}
    # Of a kind with its own number of pairs nothing was varied: no row.
    (row,) = scaling(cells[0], others)
    assert row["sizes"] == SIZES.tolist()
    assert row["exponent"] == pytest.approx(fit_scaling(SIZES, errors).exponent.value)
    assert row["errors"] == pytest.approx(errors.mean(0).tolist())
    assert scaling(cells[0], {"pairs=32": cells[1]}) == []
    assert scaling(cells[0]._replace(scaled=False), others) == []  # of returns there is none
    lost = Cells({("sft", "base"): np.full(8, math.nan)}, {"base": 999})
    assert scaling(cells[0], {"pairs=32": cells[1], "pairs=999": lost}) == []


# Effects


def test_effects_are_paired_over_seeds():
    own = Cells(
        {("sft", "base"): np.array([0.1, 0.9, 0.5]), ("dpo", "base"): np.array([0.0, 0.0, 0.0])},
        PAIRS,
    )
    own.scores["lost", "base"] = np.ones(3)
    more = Cells(
        {
            ("sft", "base"): np.array([0.2, 1.1, 0.8, 7.0]),
            ("dpo", "base"): np.array([0.5, math.nan, 0.7]),
            ("new", "base"): np.ones(3),
            ("lost", "base"): np.array([]),
        },
        PAIRS,
    )
    sft, dpo, lost, every = effects(own, {"pairs=8": more})
    assert (sft["setting"], sft["value"], sft["loss"], sft["data"]) == ("pairs", "8", "sft", "base")
    mean, _, low, high = mean_of([0.1, 0.2, 0.3])
    assert [sft[k] for k in ("difference", "low", "high")] == pytest.approx([mean, low, high])
    assert (sft["seeds"], sft["diverged"], dpo["seeds"], dpo["diverged"]) == (3, 0, 3, 1)
    # What diverged counts as the worst run on that kind of data, 0 here.
    assert dpo["difference"] == pytest.approx(np.mean([0.5, 0.0, 0.7]))
    assert (lost["difference"], lost["diverged"], lost["diverged_without"]) == (-1.0, 3, 0)
    assert (every["loss"], every["data"], every["seeds"]) == ("all", "all", 3)
    by_seed = [(0.1 + 0.5 - 1) / 3, (0.2 + 0.0 - 1) / 3, (0.3 + 0.7 - 1) / 3]
    assert every["difference"] == pytest.approx(np.mean(by_seed))
    assert (every["diverged"], every["why"]) == (4, "")


def test_a_setting_at_which_half_of_the_seeds_diverge_is_no_improvement():
    """Over those that were left it would have been one."""
    before = {("dpo", "base"): np.full(8, 0.5), ("sft", "base"): np.full(8, 0.4)}
    scores = np.where(np.arange(8) < 4, 0.61 + 0.01 * np.arange(8), np.nan)
    (row,) = effects(
        Cells(before, PAIRS), {"learning_rate=0.003": Cells({("dpo", "base"): scores}, PAIRS)}
    )
    assert (row["seeds"], row["diverged"], row["diverged_without"]) == (8, 4, 0)
    assert row["difference"] == pytest.approx((0.125 - 0.1) / 2)
    assert row["low"] < 0 < row["high"]
    run = SimpleNamespace(config={"learning_rate": None}, scaled=True)
    told = str(comparisons._effect(run, row))
    assert told.endswith("not told from 0; diverged, and counted as the worst: 4 with it.")


@pytest.mark.parametrize(
    ("scores", "why"),
    [([math.nan] * 2, "every training diverged"), ([0.5], "one seed is too few")],
)
def test_why_there_is_no_difference(scores, why):
    before = Cells({("dpo", "base"): np.array([math.nan, math.nan])}, PAIRS)
    if len(scores) == 1:
        before = Cells({("dpo", "base"): np.array([0.4])}, PAIRS)
    (row,) = effects(before, {"epochs=3": Cells({("dpo", "base"): np.array(scores)}, PAIRS)})
    assert (row["difference"], row["why"]) == (None, why)


def test_scores_are_not_held_against_returns():
    cell = {"loss": "sft", "data": "base", "returns": [[3000.0], [3100.0]]}
    run = cells_of([cell], {"original": [1000.0], "target": [4000.0]}, PAIRS)
    short = cells_of(
        [cell | {"returns": [[42.0], [43.0]]}], {"original": [45], "target": [44]}, PAIRS
    )
    (row,) = effects(run, {"episode_steps=100": short})
    assert row["difference"] is None
    assert row["why"].startswith("with it the target agent is no better than the original")
    assert effects(short, {"episode_steps=1000": run})[0]["why"].startswith("without it")


def test_effects_on_all_losses_of_a_kind_of_data():
    keys = [(loss, data) for data in ("base", "mixed") for loss in ("sft", "dpo")]
    own = Cells({key: np.zeros(3) for key in keys}, PAIRS)
    rise = {key: np.array([0.1, 0.2, 0.4]) * (k + 1) for k, key in enumerate(keys)}
    rise["dpo", "mixed"] = np.array([0.0, math.nan, 1.0])
    rows = effects(own, {"epochs=2": Cells(rise, PAIRS)})
    together = {row["data"]: row for row in rows if row["loss"] == "all"}
    assert [*together] == ["base", "mixed", "all"]
    mean, _, low, high = mean_of([0.15, 0.3, 0.6])
    assert [together["base"][k] for k in ("difference", "low", "high")] == pytest.approx(
        [mean, low, high]
    )
    assert (together["base"]["diverged"], together["mixed"]["diverged"]) == (0, 1)
    assert together["mixed"]["seeds"] == together["all"]["seeds"] == 3
    assert rows[-1] is together["all"]
    only = {key: scores for key, scores in rise.items() if key[1] == "base"}
    assert [row["data"] for row in effects(own, {"epochs=2": Cells(only, PAIRS)})][-2:] == [
        "base",
        "all",
    ]


def test_scores_are_by_the_anchors_or_returns():
    cell = {"loss": "sft", "data": "base", "returns": [[10.0, 30.0], None]}
    scaled = cells_of([cell], {"original": [10.0], "target": [30.0]}, PAIRS).scores["sft", "base"]
    plain = cells_of([cell], {"original": [30.0], "target": [10.0]}, PAIRS).scores["sft", "base"]
    assert scaled[0] == 0.5
    assert plain[0] == 20.0
    assert np.isnan(scaled[1])


def test_variants_differ_in_one_setting():
    config = DiagnoseConfig(vary="learning_rate=1e-4, 0.0001,1e-3;pairs=128,64;policy=categorical")
    found = variants(config)
    names = "learning_rate=0.0001 learning_rate=0.001 pairs=64 policy=categorical"
    assert " ".join(found) == names  # 128 pairs are what the run has
    assert found["pairs=64"] == DiagnoseConfig(pairs=64)
    # Nothing compares baselines between settings, so they are trained once.
    with_ppo = variants(DiagnoseConfig(vary="pairs=64", baselines="rlhf"))
    assert with_ppo["pairs=64"] == DiagnoseConfig(pairs=64)


def test_a_value_that_is_missing(capsys):
    assert main(["--vary", "--out", "run"]) == 2
    assert "--vary" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        ("pears=3", "cannot vary: did you mean 'pairs'"),
        ("seed=1", "'seed' cannot vary"),
        ("tracker=tensorboard", "'tracker' cannot vary"),
        ("pairs", "give pairs values"),
        ("pairs=", "give pairs values"),
        ("pairs=many", "pairs"),
        ("epochs=0", "vary epochs=0: epochs must be at least 1"),
        ("start=here", "vary start=here: start must be original or scratch"),
    ],
)
def test_settings_that_cannot_vary(vary, words, capsys, tmp_path):
    with pytest.raises(UserError, match=words):
        Setup.of(DiagnoseConfig(losses="sft", data="base", vary=vary))
    assert main(["--vary", vary, "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# Over-optimisation


def test_the_curve_against_the_distance_by_hand():
    path = {"epoch": [0, 6, 12], "return": [10.0, 30.0, 20.0], "kl": [0.0, 1.0, 9.0]}
    other = path | {"return": [10.0, 34.0, 10.0], "kl": [0.0, 3.0, 7.0]}
    cell = {"loss": "simpo", "data": "proxy:1", "checkpoints": [path, None, other]}
    rows = overoptimisation([cell], {"original": [10.0], "target": [30.0]})
    assert [row["epoch"] for row in rows] == [0, 6, 12]
    assert [row["root_kl"] for row in rows] == pytest.approx([0, 2**0.5, 8**0.5])
    assert [row["score"] for row in rows] == pytest.approx([0.0, 1.1, 0.25])
    assert {(row["seeds"], row["diverged"]) for row in rows} == {(2, 1)}
    assert rows[1]["low"] == pytest.approx(mean_of([1.0, 1.2]).low)
    assert [row["judged"] for row in rows] == [row["learned"] for row in rows] == [None] * 3
    impressed = {"judged": [20.0, 40.0, 70.0], "learned": [0.0, 1.0, 3.0]}
    paths = [path | impressed, other | impressed | {"judged": [20.0, 60.0, 90.0]}]
    rows = overoptimisation([cell | {"checkpoints": paths}], {"original": [10.0], "target": [30.0]})
    assert [row["judged"] for row in rows] == pytest.approx([0.5, 2.0, 3.5])
    assert [row["learned"] for row in rows] == pytest.approx([0.0, 1.0, 3.0])
    without = {"loss": "sft", "data": "base"}
    assert overoptimisation([without], {"original": [0], "target": [1]}) == []


def test_a_proxy_judge_on_the_way_is_the_one_who_labelled(tmp_path):
    """Of the trajectories that it compared, it says what it said then."""
    pool = PoolConfig(pairs=6, max_steps=20)
    config = TestbedConfig(pool=pool, data="proxy:1.5", cache_dir=str(tmp_path), num_threads=1)
    data = prepare([config])[0].dataset
    rows = {name: getattr(data, name) for name in ("action", "lengths", "returns")}
    used = data.ranked.flatten()
    expected = biased_scores(data.returns[used].double(), effort(rows)[used], 1.5)
    parts = return_components("tla", 20, rows)
    judge = proxy_judge(config, data)
    for row, score in zip(used.tolist(), expected.tolist(), strict=True):
        own = {name: float(value[row]) for name, value in parts.items()}
        assert judge(float(data.returns[row]), own) == pytest.approx(score, abs=1e-3)
    chosen, rejected = expected.view(-1, 2).T
    assert (chosen > rejected).all()
    assert proxy_judge(replace(config, data="base"), data) is None


# A whole run


def test_a_run_with_varied_settings_and_checkpoints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHMPO_CACHE", str(tmp_path / "cache"))
    small = "--preset smoke --losses sft,simpo --data proxy:1 --trials 1 --episode_steps 12"
    small += " --steps_per_trajectory 5 --num_threads 1 --checkpoints 3 --epochs 3 --out run"
    small += " --data_per_seed false"
    vary = ["--vary", "pairs=6", "--vary=learning_rate=1e-4"]
    assert main([*small.split(), *vary]) == 0
    assert 'id="Effects-of-settings"' in Path("run/report.html").read_text()
    folders = sorted(path.name for path in Path("run/vary").iterdir())
    assert folders == ["learning_rate-0.0001", "pairs-6"]
    with open("run/effects.csv") as file:
        rows = list(csv.DictReader(file))
    told = [(row["setting"], row["value"], row["loss"]) for row in rows]
    assert told == [
        (*variant, loss)
        for variant in (("pairs", "6"), ("learning_rate", "0.0001"))
        for loss in ("sft", "simpo", "all")
    ]
    cell = json.loads(Path("run/cells/simpo__proxy-1.json").read_text())
    for path in cell["checkpoints"]:
        assert path["epoch"] == [0, 2, 3]
        assert path["kl"][0] == 0
        assert path["kl"][-1] > 0
        assert len(path["judged"]) == 3
    with open("run/overoptimisation.csv") as file:
        assert len(list(csv.DictReader(file))) == 6

    # A third size makes a scaling fit; the cells that are there stay.
    done = {path: path.read_bytes() for path in Path("run").rglob("cells/*.json")}
    calls, run_cell = [], run.run_cell
    monkeypatch.setattr(run, "write_page", lambda out: None)  # drawn once above
    monkeypatch.setattr(run, "run_cell", lambda *args: calls.append(1) or run_cell(*args))
    assert main(["--out", "run", "--resume", *vary, "--vary", "pairs=8"]) == 0
    assert len(calls) == 2
    assert done.items() <= {p: p.read_bytes() for p in Path("run").rglob("cells/*.json")}.items()
    with open("run/scaling.csv") as file:
        assert [row["sizes"] for row in csv.DictReader(file)] == ["4 6 8"] * 2
    # Nothing varied any more: its tables go.
    assert main(["--out", "run", "--resume", "--vary", ""]) == 0
    assert not Path("run/effects.csv").exists()
