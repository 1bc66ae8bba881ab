"""Two objectives: components in the cells, the Pareto front and the hypervolume in the report."""

import json
import re
import shutil
from pathlib import Path
from statistics import fmean

import moocore
import numpy as np
import pytest
import torch

from torchmpo.control.inner_loop import InnerConfig, train_policies
from torchmpo.control.kinds import parse_kind
from torchmpo.control.policy import GaussianPolicy, stack_policies
from torchmpo.control.pools import PoolConfig
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.diagnose.__main__ import main
from torchmpo.diagnose.report.objectives import families, volumes
from torchmpo.diagnose.report.page import write_page
from torchmpo.objectives.resolve import resolve

TINY = "--preset smoke --episode_steps 12 --steps_per_trajectory 5 --num_threads 1 --out run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two losses on two weights of the objectives, and on data without objectives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("objectives"))
        patch.setenv("TORCHMPO_CACHE", str(Path("cache").resolve()))
        data = "base,objectives:0.2,objectives:0.8"
        assert main(f"{TINY} --losses sft,modpo --data {data} --seeds 2".split()) == 0
        return Path("run").resolve()


def test_cells_and_anchors_hold_the_parts_of_their_returns(run):
    for path in run.glob("cells/*.json"):
        cell = json.loads(path.read_text())
        assert len(cell["components"]) == 2
        for parts, returns in zip(cell["components"], cell["returns"]):
            assert list(parts) == ["velocity", "health", "control", "leg"]
            assert sum(parts.values()) == pytest.approx(fmean(returns), abs=1e-3)
    anchors = json.loads((run / "anchors.json").read_text())
    for agent in ("original", "target"):
        total = sum(anchors["components"][agent].values())
        assert total == pytest.approx(fmean(anchors[agent]), abs=1e-3)


def test_the_report_shows_front_and_hypervolume(run):
    page = (run / "report.html").read_text()
    section = page[page.index("Parts of the return, means over seeds") :]
    assert page.count("Parts of the return, means over seeds") == 1  # both weights, one family
    assert section.index("on the front") < section.index("hypervolume") < section.index("<svg")
    assert (run / "figures" / "front-objectives-0.2.svg").exists()
    agents = json.loads((run / "anchors.json").read_text())["components"]
    both = [(a["velocity"], sum(a.values()) - a["velocity"]) for a in agents.values()]
    worse, better = np.min(both, 0), np.max(both, 0)
    for loss in ("sft", "modpo"):
        cells = [json.loads(p.read_text()) for p in run.glob(f"cells/{loss}__objectives*.json")]
        expected = []
        for k in range(2):
            parts = [cell["components"][k] for cell in cells]
            seen = [(p["velocity"], p["health"] + p["control"] + p["leg"]) for p in parts]
            volume = moocore.hypervolume(np.array(seen), ref=worse, maximise=True)
            expected.append(volume / np.prod(better - worse))
        assert volumes(cells, agents) == pytest.approx(expected)
        assert re.search(rf"<code>{loss}</code></th>.*{np.mean(expected):.2f}", section)


def test_a_loss_of_which_a_seed_diverged_is_not_on_the_front(run, tmp_path):
    """Its other seeds say what it does if all goes well."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    cells = [*copy.glob("cells/*__objectives-*.json")]

    def front():
        page = write_page(copy).read_text()
        table = page[page.index("on the front</th>") :].partition("</table>")[0]
        return re.findall(r"<td[^>]*>(yes|no|no, [^<]*)</td>", table)

    assert "yes" in front()
    for path in cells:
        cell = json.loads(path.read_text())
        first = {"returns": [None, *cell["returns"][1:]]}
        first["components"] = [None, *cell["components"][1:]]
        path.write_text(json.dumps(cell | first))
    assert front() == ["no, 1 diverged"] * len(cells)


def test_runs_of_before_are_given_what_they_lack(run, monkeypatch, tmp_path):
    """Cells and anchors without components: another loss is added, and what is known is shown."""
    monkeypatch.chdir(run.parent)
    for path in [*run.glob("cells/*.json"), run / "anchors.json"]:
        content = json.loads(path.read_text())
        del content["components"]
        path.write_text(json.dumps(content))
    before = json.loads((run / "anchors.json").read_text())
    assert main(["--out", "run", "--resume", "--seeds", "3"]) == 0
    after = json.loads((run / "anchors.json").read_text())
    assert after.pop("components")
    assert after == before
    cell = json.loads((run / "cells" / "sft__objectives-0.2.json").read_text())
    assert [parts is None for parts in cell["components"]] == [True, True, False]


def test_a_family_differs_in_the_weight_alone():
    kinds = ["base", "objectives:0.2", "objectives:0.2+noisy:0.1", "objectives:1", "unknown:3"]
    kinds += ["noisy:0.1+objectives:0.7"]
    assert families(kinds) == [
        ["objectives:0.2", "objectives:1"],
        ["objectives:0.2+noisy:0.1", "noisy:0.1+objectives:0.7"],
    ]


# --- modpo


def test_rewards_of_modpo_can_speak_against_its_labels():
    """On base its rewards are what the judge goes by. With objectives they are the other one."""
    returns = torch.cat([torch.zeros(3), torch.ones(3), torch.zeros(3)])
    config = PoolConfig(pairs=3, max_steps=5)
    lengths = torch.full((9,), 5)
    action = torch.zeros(9, 5, 8)
    action[3:6, :, 2] = 0.3  # the target agent pays for its velocity
    pool = {"returns": returns, "lengths": lengths, "action": action}
    found = parse_kind("objectives:1").pairs(pool, config)
    assert found.rewards is not None
    assert (found.rewards[found.chosen] < found.rewards[found.rejected]).all()
    plain = parse_kind("base").pairs(pool, config)
    assert plain.rewards is None  # so losses are given the returns
    assert (returns[plain.chosen] > returns[plain.rejected]).all()


@pytest.mark.parametrize("reward", [-0.6, 0.0, 0.9])
def test_modpo_goes_where_its_rewards_and_labels_agree_to_go(reward):
    """Where a is chosen over b three times of four: βD = w₀·log 3 + w₁·(R_a − R_b)."""
    beta, prefer, rest, std = 0.5, 0.7, 0.3, 1.0
    action = torch.tensor([0.5, -0.5]).view(2, 1, 1)
    data = PreferenceDataset(
        observation=torch.zeros(2, 1, 1),
        action=action,
        lengths=torch.ones(2, dtype=torch.int64),
        returns=torch.tensor([5.0, -5.0]),
        chosen=torch.tensor([0, 0, 0, 1]),
        rejected=torch.tensor([1, 1, 1, 0]),
        rewards=torch.tensor([reward, 0.0]),
    )
    policy = GaussianPolicy(1, 1, (), mean="linear", std=std)
    init = stack_policies(policy.trainable(), 1)
    inner = InnerConfig(epochs=300, minibatch_pairs=4, learning_rate=0.02, compile=False)
    weights = {"beta": beta, "po_coef": prefer, "reward_coef": rest}
    params = {name: torch.tensor([value]) for name, value in weights.items()}
    trained = train_policies(policy, init, resolve("modpo"), params, data, inner, 0)
    moved = float((trained["layers.0.bias"] - init["layers.0.bias"]).item())
    d = moved / std**2  # (a − b)(μ − μ_ref)/σ²
    assert beta * d == pytest.approx(prefer * np.log(3) + rest * reward, abs=5e-3)
