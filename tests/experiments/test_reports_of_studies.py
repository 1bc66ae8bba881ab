"""What studies of hours say of their results, on results that are made up."""

import json
import sys
from importlib import import_module
from importlib import import_module as study
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from torchmpo.control.policy import GaussianPolicy

STUDIES = ["programs", "search_cost", "robust", "balance", "fitness_steps", "fitness_proxies"]
DIVERGED = float("nan")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", STUDIES)
def test_a_smoke_run_leaves_nothing_among_the_results(monkeypatch, name):
    module, seen = study(name), []
    monkeypatch.setattr(module, "report", lambda args: seen.append(args.out) or [])
    for words in ([], ["--smoke"], ["--smoke", "--out", "mine"]):
        monkeypatch.setattr(sys, "argv", [name, "--report", *words])
        module.main()
    want = [f"experiments/results/{name}", f"runs/{name}_smoke", "mine"]
    assert seen == [Path(folder) for folder in want]


def test_a_rival_that_diverged_once_is_still_the_best(tmp_path):
    """Its lost seed counts as the worst that anyone finished."""
    kind, returns = "noisy", {"formula": [2.0, 2.0, 2.5], "colpo": [DIVERGED, 3.0, 3.0]}
    returns |= {"rrhf": [1.0, 1.5, 1.5]}
    write(tmp_path / f"anchors__{kind}.json", {"original": 0.0, "target": 1.0})
    found = {"formula": "c", "nodes": 1, "seconds": 60.0}
    write(tmp_path / f"search__{kind}.json", found)
    for name, own in returns.items():
        write(tmp_path / f"final__{kind}__{name}.json", {"returns": own})
    told = study("programs").report(SimpleNamespace(out=tmp_path))
    assert "colpo: 1 seeds diverged and count as the worst" in told
    assert "formula minus colpo: -0.167" in told  # of 1, −1 and −0.5


def test_rules_that_diverged_count_as_the_worst_of_their_kind(tmp_path):
    balance = study("balance")
    cells = {
        balance.CONSTANT: [[5.0], [6.0]],
        "simpo+sft@dual": [None, [1.0]],
        "simpo+sft@min_norm": [],  # at every setting
    }
    for loss, returns in cells.items():
        write(balance.cell_path(tmp_path, loss, "base"), {"returns": returns})
    told = list(balance.report(SimpleNamespace(out=tmp_path, smoke=True)))
    assert [line.split()[:3] for line in told[1:3]] == [
        ["base", "simpo+sft@dual", "1"],
        ["base", "simpo+sft@min_norm", "1"],
    ]
    assert "2 seeds diverged" in told[2]
    differences = [line for line in told if " minus " in line]
    assert len(differences) == 2
    assert all(" -4 " in line or " -5 " in line for line in differences)


def test_the_arms_of_the_search_for_one_loss_are_compared_by_seed(tmp_path):
    robust, rows = study("robust"), []
    scores = {"curriculum": (0.9, 0.7, 0.8), "mean": (0.8, 0.5, 0.5)}
    for arm, own in scores.items():
        for seed, score in enumerate(own):
            folder = tmp_path / f"{arm}_{seed}"
            folder.mkdir()
            (folder / "log.csv").write_text("generation,held_out\n0,3100.0\n6,3200.0\n7,\n")
            rows += [
                {
                    "loss": str(folder / "objective"),
                    "data": kind,
                    "rank": {"rank": 1 if (arm, seed) == ("curriculum", 0) else 2},
                    "score": {"mean": score + sign * 0.1},
                }
                for kind, sign in (("base", 1), ("mixed", -1))
            ]
    rival = {"loss": "sft", "rank": {"rank": 1}, "score": {"mean": 0.4}}
    rows += [rival | {"data": "base"}, rival | {"data": "mixed"}]
    write(tmp_path / "diagnosis" / "leaderboard.json", {"rows": rows})
    told = list(robust.report(SimpleNamespace(out=tmp_path)))
    assert [("first on all" in line, "held out 3200" in line) for line in told[:-1]] == [
        (True, True),
        *[(False, True)] * 5,
        (False, False),
    ]
    assert told[-1].startswith("curriculum minus mean: +0.200 [")


def test_what_short_episodes_explain_is_told_without_the_noise_of_long_ones():
    """Of differences with known variances: short ones have a part of their own, and less noise."""
    module, random = study("fitness_steps"), np.random.default_rng(0)
    pairs, episodes, short = 4000, 64, module.STEPS.index(250)
    true = random.normal(0, 200, (pairs, 1))
    other = random.normal(0, 20, (pairs, 1))
    differences = np.zeros((pairs, episodes, len(module.STEPS)))
    differences[..., -1] = true + random.normal(0, 900, (pairs, episodes))
    differences[..., short] = 0.2 * true + other + random.normal(0, 150, (pairs, episodes))
    whole = module.explained(differences, len(module.STEPS) - 1, 16)
    assert whole == pytest.approx(200**2 / (200**2 + 900**2 / 16), abs=0.03)
    part = module.explained(differences, short, 32)
    assert part == pytest.approx(40**2 / (40**2 + 20**2 + 150**2 / 32), abs=0.03)
    steps = [float(last) for last in module.STEPS]
    assert module.cost(steps, len(steps) - 1, 16) == pytest.approx(1)
    assert module.cost(steps, short, 32) == pytest.approx(1 - module.EVALUATION / 2)


def test_how_many_pairs_a_race_would_stop():
    """By chance where members are alike, by the power of a t test where they are not."""
    module, random = study("fitness_steps"), np.random.default_rng(0)
    noise = random.normal(0, 900, (4000, 64, len(module.STEPS)))
    assert module.told(noise, 8) == pytest.approx(0.05, abs=0.005)
    apart = noise + 900 * random.choice([-1, 1], (4000, 1, 1))  # one standard deviation
    power = 1 - stats.nct.cdf(stats.t.ppf(0.975, 7), 7, 8**0.5)  # the other tail is 1e-6
    assert module.told(apart, 8) == pytest.approx(power, abs=0.01)
    assert module.told(apart[:, :12], 8) == pytest.approx(power, abs=0.02)  # one trial of a pair


def test_a_number_explains_what_it_shares_with_the_true_difference():
    module, random = study("fitness_proxies"), np.random.default_rng(0)
    pairs, episodes = 4000, 64
    true = random.normal(0, 200, pairs)
    whole = true[:, None] + random.normal(0, 900, (pairs, episodes))
    proxy = 0.01 * true + random.normal(0, 3, pairs)
    assert module.explained(proxy, whole) == pytest.approx(2**2 / (2**2 + 3**2), abs=0.04)


def test_numbers_without_physics_know_the_better_policy():
    """The better agent itself has no distance to itself, and ranks its own actions first."""
    module = study("fitness_proxies")
    torch.manual_seed(0)
    start, target = (GaussianPolicy(3, 2, (8,), std=0.4) for _ in range(2))
    observation = torch.randn(2, 5, 7, 3)
    action = torch.stack([target(observation[0]), start(observation[1])]).detach()
    members = {
        name: torch.stack([value, target.trainable()[name]])
        for name, value in start.trainable().items()
    }
    numbers = module.proxies_of(start, members, target, observation, action)
    named = dict(zip(module.PROXIES, numbers.T.tolist(), strict=True))
    assert named[module.CHOSEN][1] == pytest.approx(0, abs=1e-6)
    assert named["log-likelihood"][1] == pytest.approx(0, abs=1e-6)
    assert named["accuracy"] == [0, 1]
    assert named["margin"][0] == 0
    want = ((start(observation[0]) - target(observation[0])) ** 2).sum(-1).mean().item()
    assert named[module.CHOSEN][0] == pytest.approx(-want, rel=1e-5)


def test_an_arm_of_the_study_of_cost_ends_where_three_searches_are_no_better(tmp_path):
    cost = study("search_cost")
    args, today, better, worse = SimpleNamespace(out=tmp_path), "es", *list(cost.ARMS)[1:3]
    # Seconds of every generation; the score before each and after the last.
    found = {
        today: ([60.0], [0.0, 10.0]),
        better: ([15.0, 45.0], [0.0, 30.0, 40.0]),
        worse: ([60.0], [0.0, -9.0]),
    }
    for arm, (cpu, scores) in found.items():
        for seed in range(3):
            write(cost.path_of(arm, seed, args), {"cpu": cpu, "held_out": scores})
    assert not any(cost.hopeless(arm, seed, args) for arm in found for seed in range(3))
    assert [cost.hopeless(arm, 3, args) for arm in found] == [False, False, True]
    areas, thirds = cost.against_today(better, args)
    assert areas == pytest.approx([30 * 45 / 60] * 3)
    assert thirds == [20.0] * 3  # 30 where today's ends at 10


def test_a_loss_that_diverged_everywhere_is_the_worst_of_its_regime(tmp_path):
    correlate = import_module("experiments.transfer.correlate")
    folder = tmp_path / "transfer_llm_like"
    write(folder / "anchors.json", {"original": [0.0], "target": [1.0]})
    for k, loss in enumerate(correlate.LOSSES):
        cell = {"loss": loss, "data": "base", "returns": [] if loss == "simpo" else [[k], [k + 1]]}
        write(folder / "cells" / f"{loss}.json", cell)
    found = correlate.robots(tmp_path)["llm_like, base"]
    lowest = min(k for k, loss in enumerate(correlate.LOSSES) if loss != "simpo")
    assert found["simpo"].tolist() == [lowest, lowest]


def test_an_arm_that_diverged_once_still_ends(tmp_path):
    settings = study("search_settings")
    args = SimpleNamespace(out=tmp_path)
    for seed in range(settings.FIRST):
        for arm, returns in (("default", [10.0, 11.0]), ("step 0.04", [1.0 - seed, DIVERGED])):
            write(
                tmp_path / f"final__{arm},_seed_{seed}.json".replace(" ", "_"), {"returns": returns}
            )
    assert settings.hopeless("step 0.04", settings.FIRST, args)
    assert not settings.hopeless("step 0.01", settings.FIRST, args)
    assert "+nan" not in "".join(settings.report(args))
