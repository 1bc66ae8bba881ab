"""Commands on agents and an environment of one's own, and what is refused."""

import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import worlds
from torch import nn

from torchmpo import GaussianPolicy, MirrorObjective, save_policy
from torchmpo.control import environments, pools
from torchmpo.control.foreign_policies import from_sequential
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.diagnose.__main__ import main as diagnose
from torchmpo.evolve.__main__ import main as evolve
from torchmpo.show.__main__ import main as show

TASK = "--task worlds:Line --original worse.safetensors --target better.safetensors"
TINY = "--preset smoke --episode_steps 12 --steps_per_trajectory 5 --num_threads 1 --out run "
TINY += TASK


def agents():
    """One that does nothing, and one of another architecture that goes home."""
    torch.manual_seed(0)
    save_policy(GaussianPolicy(2, 2, (4,)), "worse.safetensors")
    home = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        home[0].weight.copy_(torch.eye(2))
        home[0].bias.fill_(5.0)
        home[2].weight.copy_(-torch.eye(2))
        home[2].bias.copy_(torch.tensor([5.125, 4.5]))
    save_policy(from_sequential(home), "better.safetensors")


@pytest.fixture(autouse=True)
def in_a_folder_with_agents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHMPO_CACHE", str(tmp_path / "cache"))
    agents()


@pytest.fixture(scope="module", autouse=True)
def end_processes():
    yield
    for processes in environments._RUNNING.values():
        processes.close()


def error_of(capsys, command, argv):
    capsys.readouterr()
    assert command(argv.split()) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"(worlds:Line: [^\n]+ steps/s [^\n]+\n)?error: [^\n]+\n", said), said
    return said


def test_a_diagnosis_of_a_world_of_ones_own(capsys):
    assert diagnose(f"{TINY} --losses sft,dpo --data base,noisy:0.3".split()) == 0
    assert re.search(r"worlds:Line: [\d,]+ steps/s in 1 process; the bare", capsys.readouterr().err)
    anchors = json.loads(Path("run/anchors.json").read_text())
    assert max(anchors["original"]) < min(anchors["target"]) <= 12
    cells = [json.loads(path.read_text()) for path in Path("run/cells").iterdir()]
    assert len(cells) == 4
    assert all(cell["task"] == "worlds:Line" for cell in cells)
    assert all(-60 < row[0] < 12 for cell in cells for row in cell["returns"])
    board = json.loads(Path("run/leaderboard.json").read_text())
    assert board["scaled"]
    assert "worlds:Line" in Path("run/report.html").read_text()
    # Going on: by what the files name alone, no code is imported.
    said = error_of(capsys, diagnose, "--out run --resume --seeds 3")
    assert "names code to run, worlds:Line" in said
    assert "add --trust, or name it yourself, --task worlds:Line" in said
    assert diagnose(["--out", "run", "--resume", "--task", "worlds:Line"]) == 0
    # Another agent under the same name is another agent.
    Path("better.safetensors").write_bytes(Path("worse.safetensors").read_bytes())
    said = error_of(capsys, diagnose, "--out run --resume --trust")
    assert "was made with other agents, another environment" in said


def file_of_pairs():
    """Two runs of the world, the one that ends nearer to the middle chosen."""
    steps = [torch.randn(12, 2, generator=torch.Generator().manual_seed(k)) for k in (0, 1)]
    rows = [{"observation": step, "action": step / 4, "return": k} for k, step in enumerate(steps)]
    PreferenceDataset.from_trajectories(rows, [(1, 0)] * 8).save("pairs.npz")


def test_pairs_of_a_file_are_judged_in_one_world_by_two_agents(capsys, monkeypatch):
    """The data is the same in another world, and the returns are not."""
    file_of_pairs()
    monkeypatch.setattr(environments, "SPEED_SECONDS", 0.01)
    argv = f"{TINY} --losses sft --data pairs.npz --seeds 1 --compile false"
    assert diagnose(argv.split()) == 0
    before = Path("run/anchors.json").read_text()
    again = "--out run --resume --trust --seeds 2"
    agent = Path("better.safetensors").read_bytes()
    Path("better.safetensors").write_bytes(Path("worse.safetensors").read_bytes())
    said = error_of(capsys, diagnose, again)
    assert ".json was made with another better.safetensors: put it back, or choose" in said
    Path("better.safetensors").write_bytes(agent)
    with monkeypatch.context() as other:
        other.setattr(pools, "digest", lambda task: "another text")
        assert "was made with another worlds:Line: " in error_of(capsys, diagnose, again)
    with monkeypatch.context() as other:
        other.setattr(pools, "version", lambda package: "0.1")
        assert "was made with another mujoco, gymnasium: " in error_of(capsys, diagnose, again)
    [path] = Path("run/cells").iterdir()
    assert len(json.loads(path.read_text())["returns"]) == 1
    assert Path("run/anchors.json").read_text() == before
    cell = json.loads(path.read_text())
    cell["made_of"].pop("world")  # as of an older version, which is believed
    path.write_text(json.dumps(cell))
    assert diagnose(again.split()) == 0
    assert len(json.loads(path.read_text())["returns"]) == 2


def test_a_search_and_a_look_at_what_it_visits(capsys):
    small = "--generations 1 --rivals sft --held_out_every 0"
    assert evolve(f"{TINY} {small}".split()) == 0
    made_of = json.loads(Path("run/made_of.json").read_text())["losses"]
    assert {"worlds:Line", "worse.safetensors", "better.safetensors"} <= made_of.keys()
    assert made_of["mujoco"] == version("mujoco")
    Path("better.safetensors").rename("gone")
    assert "target: there is no file better" in error_of(
        capsys, evolve, "--out run --resume --trust"
    )
    agents()
    with torch.no_grad():
        save_policy(GaussianPolicy(2, 2, (4,)), "worse.safetensors")
    said = error_of(capsys, evolve, "--out run --resume --trust")
    assert "worse.safetensors has changed since the run in run was made" in said
    said = error_of(capsys, show, "run --visit --beside none")
    assert "its task is code to run, worlds:Line, which only the run's files name" in said
    assert show(["run", "--visit", "--trust", "--beside", "none"]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--target null", "has no agents of its own: give --original FILE and --target FILE"),
        ("--original gone", "original: there is no file gone, and no agent of that name is ship"),
        (
            "--original ant_original",
            "original: ant_original takes observations of 27 and gives actions of 8 numbers; on "
            "worlds:Line they are 2 and 2",
        ),
        ("--task tla", "worse.safetensors takes observations of 2 and gives actions of 2 numbers;"),
        ("--task worlds.Line", "did you mean 'worlds:Line'?"),
        ("--task worlds:Discrete", "policies here act by real numbers (Box)"),
        ("--task worlds:fails", "worlds:fails: ValueError: no world today ("),
        ("--target damaged.safetensors", "damaged.safetensors is not a readable policy file"),
        (
            "--data graded:0-0.4",
            "must have one architecture for trajectories of agents between them; they have hidden "
            "[4] and [2], mean tanh and linear, activation tanh and relu",
        ),
        ("--data mixture:0.3", "the components of a return, which are not known for task 'worl"),
    ],
)
def test_a_mistake_is_told_in_one_line(capsys, argv, message):
    Path("damaged.safetensors").write_text("weights")
    assert message in error_of(capsys, diagnose, f"{TINY} {argv}")
    assert not Path("run").exists() or not list(Path("run").iterdir())


def test_agents_of_ones_own_on_a_robot_of_ours():
    from torchmpo_envs import expert_path

    for own, shipped in (("worse", "hopper_bad"), ("better", "hopper_target")):
        Path(f"{own}.safetensors").write_bytes(expert_path(shipped).read_bytes())
    argv = f"{TINY} --losses sft --data base --task hopper"
    assert diagnose(argv.split()) == 0
    argv = argv.replace("--out run", "--out again").replace("worse.safetensors", "hopper_bad")
    assert diagnose([*argv.split(), "--target", "hopper_target"]) == 0
    cells = (Path(out, "cells/sft__base.json").read_text() for out in ("run", "again"))
    own, shipped = map(json.loads, cells)
    assert own["returns"] == shipped["returns"]


def test_a_saved_objective_names_no_code_to_show(capsys):
    """As one that came from somewhere else."""
    config = {"task": "worlds:Line", "data": "base", "original": "worse.safetensors"}
    MirrorObjective().save("objective", {"name": "x", "config": config})
    said = error_of(capsys, show, "objective --visit")
    assert "if the run is yours or you trust it, add --trust" in said
    assert worlds.LOW[0] == -2
