"""The example of a world of one's own does all of its steps."""

import json

from experiments.walker2d import TASK, main
from torchmpo.control.policy import load_policy


def test_from_two_agents_to_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHMPO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "walker"
    assert main(["--smoke", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "worse: return" in said
    assert "better: return" in said
    agents = [load_policy(out / f"{name}.safetensors") for name in ("worse", "better")]
    assert agents[0].architecture() == agents[1].architecture()
    weights = [agent.state_dict()["layers.0.weight"] for agent in agents]
    assert 0 < (weights[0] - weights[1]).abs().max() < 0.1  # the second went on from the first
    assert TASK in (out / "diagnosis" / "report.html").read_text()
    board = json.loads((out / "diagnosis" / "leaderboard.json").read_text())
    assert {row["data"] for row in board["rows"]} == {"base", "graded:0-0.4"}
    assert main(["--smoke", "--out", str(out)]) == 0  # again: nothing is left to do
