"""The command line: mistakes before any compute, and a run that loses nothing it has finished."""

import errno
import importlib
import json
import linecache
import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import torchmpo.diagnose.cells
from torchmpo.control import pools
from torchmpo.control.grids import RATE, rate_grid
from torchmpo.control.pools import PoolConfig
from torchmpo.control.preferences import preference_data
from torchmpo.control.settings import TestbedSettings
from torchmpo.control.testbed import STARTS
from torchmpo.diagnose import run as diagnose
from torchmpo.diagnose import suite
from torchmpo.diagnose.__main__ import COMMAND, main
from torchmpo.diagnose.cells import cell_path
from torchmpo.diagnose.settings import PRESETS, DiagnoseConfig
from torchmpo.diagnose.setup import Setup
from torchmpo.losses import LOSSES
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.resolve import DISCOVERED, resolve
from torchmpo.runs.errors import UserError
from torchmpo_envs import TASKS

OWN = textwrap.dedent(
    """
    import random
    import torch
    from torchmpo.losses import simpo_loss

    def fine(chosen_mean_logps, rejected_mean_logps, *, strength=1.0):
        return torch.relu(strength - chosen_mean_logps + rejected_mean_logps)

    def number(chosen_mean_logps):
        if len(chosen_mean_logps) == 3:  # as many as it is tried with
            return -chosen_mean_logps
        return 1.0

    def misuses(chosen_mean_logps, rejected_mean_logps):
        beta = 1 if len(chosen_mean_logps) == 3 else 0
        return simpo_loss(chosen_mean_logps, rejected_mean_logps, beta=beta)

    def scalar(chosen_logps):
        return -chosen_logps.mean()

    def column(chosen_logps):
        return -chosen_logps[:, None]

    def nothing(chosen_logps):
        pass

    def misnamed(chosen_logp):
        return -chosen_logp

    def raises(chosen_logps):
        raise RuntimeError("this loss is\\nnot finished")  # two lines

    def four_steps(chosen_step_logps):
        return -(chosen_step_logps + torch.zeros(4)).mean(-1)  # the line in question

    def same_size(chosen_mean_logps):
        return -chosen_mean_logps.mean() + torch.zeros(3)  # as many as it is tried with

    def branches(chosen_mean_logps):
        if chosen_mean_logps.sum() < 0:  # vmap cannot
            return -chosen_mean_logps
        return chosen_mean_logps

    def draws(chosen_mean_logps):
        return -chosen_mean_logps * random.random()

    class Average:
        mean = 0.0

        def __call__(self, chosen_mean_logps, rejected_mean_logps):
            margin = chosen_mean_logps - rejected_mean_logps
            self.mean = 0.9 * self.mean + 0.1 * margin.mean().detach()
            return self.mean - margin

    average = Average()
    module = torch.nn.LogSigmoid()

    def leaves(chosen_mean_logps):
        raise SystemExit(3)

    class Numbers(dict):
        def __call__(self, chosen_mean_logps):
            return -self["strength"] * chosen_mean_logps

    numbers = Numbers(strength=1.0)

    def endless(chosen_mean_logps):
        return endless(chosen_mean_logps)

    def refuses(chosen_mean_logps):
        if len(chosen_mean_logps) != 3:
            raise ValueError("three pairs, please")
        return -chosen_mean_logps

    calls = 0

    def raises_later(chosen_mean_logps, *, strength=1.0):
        global calls
        calls += 1
        if calls > 8:
            raise ArithmeticError("out of numbers")  # after some updates
        return -chosen_mean_logps * strength

    def narrow(chosen_mean_logps, *, strength=1.0):
        if not isinstance(strength, torch.Tensor) and not strength < 5:
            raise ValueError(f"strength must be below 5; got {strength}")
        return -chosen_mean_logps * strength

    def detached(chosen_mean_logps):
        return -chosen_mean_logps.detach()

    def votes_only(chosen_mean_logps):
        return chosen_mean_logps < 0

    def counts(chosen_mean_logps, *, strength=1.0, times=3):
        return -strength * sum(chosen_mean_logps for _ in range(times))

    def explodes(chosen_mean_logps, *, power=100.0):
        return -torch.exp(torch.as_tensor(power)) * chosen_mean_logps

    not_a_function = 3
    """
)
TINY = "--preset smoke --episode_steps 12 --steps_per_trajectory 5 --num_threads 1 --out run"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Losses of one's own, and trajectories that are built once."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_losses.py").write_text(OWN)
    (folder / "unfinished_losses.py").write_text("def loss(:\n")
    (folder / "broken_losses.py").write_text("import math\n\nhalf = one / 2\n")
    (folder / "leaving_losses.py").write_text("import sys\n\nsys.exit('bye')\n")
    (folder / "cache").mkdir()
    return folder


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch, folders):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHMPO_CACHE", str(folders / "cache"))
    monkeypatch.syspath_prepend(str(folders))


@pytest.fixture
def no_run(monkeypatch):
    """What would be run; nothing is."""
    runs = []
    monkeypatch.setattr(diagnose, "run", lambda setup, out: runs.append(setup))
    return runs


@pytest.fixture
def reports(monkeypatch):
    """The run without its page: what would be reported on."""
    made = []
    monkeypatch.setattr(diagnose, "report", lambda setup, out: made.append(setup))
    return made


def one_line_error(capsys, argv, code=2):
    capsys.readouterr()
    assert call(argv) == code
    captured = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", captured.err), captured.err
    return captured.err


def call(command):
    return main(command.split())


def tiny(more=""):
    """Run, or go on; the settings of a run folder are not given again."""
    if Path("run").exists():
        return call(f"--out run --resume --trust {more}")
    return call(f"{TINY} {more}")


def cells(folder="run"):
    """Finished cells by file name, without the time they took."""
    found = {}
    for path in sorted(Path(folder, "cells").iterdir()):
        assert path.suffix == ".json", path
        found[path.stem] = json.loads(path.read_text())
        assert found[path.stem].pop("seconds") >= 0
    return found


# --- kinds of data ---


def test_data_list_prints_every_kind_and_runs_nothing(capsys, no_run):
    for argv in ("--data list", "--data=list", "--losses sft --data list"):
        assert call(argv) == 0
        out = capsys.readouterr().out
        assert "graded:LO-HI" in out
        assert "noisy:P        every label flipped with probability P" in out
    assert not no_run
    assert not list(Path().iterdir())


def test_every_loss_runs_on_graded_data_votes_and_a_file(capsys):
    """Data of three pools in one run, fresh for every seed where it can be."""
    pool = PoolConfig(pairs=4, max_steps=12)
    preference_data(pool, "votes:3", cache_dir=Path("elsewhere"), progress=False).save("own.npz")
    data = "base,graded:0-0.4+votes:3,own.npz"
    assert call(f"{TINY} --losses smpo,modpo --data {data} --seeds 2") == 0
    found = cells()
    assert len(found) == 6
    assert all(len(cell["returns"]) == 2 for cell in found.values())
    told = json.loads(Path("run/statistics.json").read_text())["kinds"]
    assert list(told) == data.split(",")
    assert "agreement" in told["own.npz"]
    page = Path("run/report.html").read_text()
    assert "What is chosen" in page
    assert "both trajectories of agents on the line" in page
    assert call("--out run --resume --data graded:0-0.4+noisy:0.2") == 0  # over a pool of before
    assert len(cells()) == 8
    content = bytearray(Path("own.npz").read_bytes())
    preference_data(pool, "base", cache_dir=Path("elsewhere"), progress=False).save("own.npz")
    assert content != Path("own.npz").read_bytes()
    said = one_line_error(capsys, "--out run --resume --seeds 3")
    assert "own.npz.json was made with another file of pairs" in said


# --- mistakes ---


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--losses simp", "unknown loss 'simp': did you mean 'simpo'?"),
        ("--losses dpo,oropo", "unknown loss 'oropo': did you mean 'orpo'?"),
        ("--losses own_losses.fine", "has a colon: did you mean 'own_losses:fine'?"),
        ("--losses own_losses.py", "is called as in own_losses:my_loss"),
        ("--losses a/own_losses.py", "name a function in it, as in a.own_losses:my_loss"),
        ("--losses own_losses:detached", "detached has no gradient: its value does not depend"),
        ("--losses own_losses:votes_only", "must return floating-point numbers; torch.bool"),
        ("--losses leaving_losses:loss", "leaving_losses:loss: SystemExit: bye ("),
        ("--losses ,", "losses is empty"),
        ("--losses=", "losses is empty"),
        ("--losses nowhere:loss", "'nowhere:loss': cannot import 'nowhere'"),
        ("--losses own_losses:fin", "has no function 'fin'; did you mean 'fine'?"),
        ("--losses own_losses:not_a_function", "has no function 'not_a_function'"),
        ("--losses unfinished_losses:loss", "unfinished_losses:loss: SyntaxError: invalid syntax"),
        ("--losses broken_losses:loss", "broken_losses.py, line 3"),
        ("--losses own_losses:scalar", "must return one value per pair, [batch]; got ()"),
        ("--losses own_losses:column", "must return one value per pair, [batch]; got (3, 1)"),
        ("--losses own_losses:nothing", "must return one value per pair, [batch]; got NoneType"),
        ("--losses own_losses:misnamed", "did you mean 'chosen_logps'?"),
        ("--losses own_losses:raises", "RuntimeError: this loss is not finished"),
        (
            "--losses own_losses:four_steps",
            "own_losses:four_steps: RuntimeError: The size of tensor",
        ),
        ("--losses own_losses:same_size", "same_size must return one value per pair, [2] in train"),
        ("--losses own_losses:branches", "own_losses:branches: it branches on the values of a t"),
        ("--losses own_losses:branches", "write torch.where(condition, a, b)"),
        ("--losses own_losses:draws", "draws answers differently when it is called again: a loss"),
        ("--losses own_losses:average", "average answers differently when it is called again"),
        ("--losses own_losses:module", "own_losses:module is an nn.Module: write a function that"),
        ("--losses own_losses:leaves", "own_losses:leaves: SystemExit: 3 (/"),
        ("--losses own_losses:endless", "own_losses:endless: RecursionError: maximum recursion"),
        ("--losses own_losses:refuses", "own_losses:refuses: ValueError: three pairs, please (/"),
        (
            "--losses own_losses:narrow --trials 8",
            "own_losses:narrow: strength must be below 5; got",
        ),
        (
            "--losses own_losses:narrow --trials 8",
            "from the suite's own trials: give others by --gr",
        ),
        ("--losses a/folder", "a/folder is not a readable saved objective"),
        ("--data noizy:0.3", "unknown data 'noizy:0.3': did you mean 'noisy'?"),
        ("--data base,noisy", "needs a number, as in 'noisy:0.3'"),
        ("--data noisy:1.5", "out of range"),
        ("--data noisy:0.3,noisy:0.30", "noisy:0.3 and noisy:0.30 are the same; name one"),
        ("--data base:1", "data 'base' takes no number"),
        ("--data base,noisy:0+base", "base is a source of trajectories, as noisy:0 is"),
        ("--data noisy:0.3,base+noisy:0.3", "noisy:0.3 and base+noisy:0.3 are the same; name one"),
        ("--data a/x.npz", "data 'a/x.npz' cannot be read: No such file"),
        ("--data ,", "data is empty"),
        ("--task tlaa", "unknown task 'tlaa': did you mean 'tla'?"),
        ("--start middle", "start must be original or scratch; got 'middle'"),
        ("--seeds 0", "seeds must be at least 1; got 0"),
        ("--trials 0", "trials must be at least 1; got 0"),
        ("--tuning_seeds -1", "tuning_seeds must be at least 1; got -1"),
        ("--tuning_episodes 0", "tuning_episodes must be at least 1; got 0"),
        ("--episodes 0", "episodes must be at least 1; got 0"),
        ("--epochs 0", "epochs must be at least 1; got 0"),
        ("--sft_epochs -1", "sft_epochs must not be negative"),
        ("--num_threads -1", "num_threads must be between 0, for all, and 1024"),
        ("--num_threads 1000000", "num_threads must be between 0, for all, and 1024"),
        ("--trials 1000000000", "trials must be at most 10000; got 1000000000"),
        ("--seeds 10001", "seeds must be at most 10000; got 10001"),
        ("--episodes 1" + "0" * 30, "episodes must be at most 10000; got 1"),
        ("--epochs 1000001", "epochs must be at most 1000000; got 1000001"),
        ("--pairs 1000000000", "the data needs 63108000 MB"),
        ("--pairs 0", "pairs and max_steps must be at least 1; got 0"),
        ("--pairs 1", "pairs (1) must be at least minibatch_pairs (2)"),
        ("--minibatch_pairs 0", "minibatch_pairs must be at least 1; got 0"),
        ("--episode_steps 0", "must be at least 1; got"),
        ("--steps_per_trajectory 0", "steps_per_trajectory must be at least 1; got 0"),
        ("--chunk_size 0", "chunk_size must be at least 1; got 0"),
        ("--learning_rate 0", "learning_rate must be positive and finite; got 0"),
        ("--learning_rate 1e400", "learning_rate"),
        ("--max_grad_norm -1", "max_grad_norm must be positive; got -1"),
        ("--max_grad_norm nan", "max_grad_norm: Expected a float. Got value: nan"),
        ("--precision 16", "precision must be 32-true or bf16-mixed; got '16'"),
        ("--policy_std 0", "std must be positive; got 0"),
        ("--policy_std_kind free", "std_kind must be one of fixed, learned; got 'free'"),
        ("--behaviour_std 0", "behaviour_std must be positive; got 0"),
        ("--seeds many", "seeds: Expected a int. Got value: many"),
        ("--loses dpo", "unknown option --loses: did you mean 'losses'?"),
        ("--preset fast", "unknown preset 'fast': choose from: full, quick, smoke"),
        ("--grid absent.yaml", "--grid: absent.yaml is not a file of trials"),
        ("--resume", "there is no run in runs/diagnose; start one without --resume"),
    ],
)
def test_mistake_is_told_in_one_line_before_any_compute(
    capsys, no_run, tmp_path, folders, argv, message
):
    assert message in one_line_error(
        capsys, f"--preset smoke {argv}" if "preset" not in argv else argv
    )
    assert capsys.readouterr().out == ""
    assert no_run == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("loss", "line"), [("number", None), ("misuses", "beta=beta")])
def test_the_line_that_is_named_is_the_users_own(capsys, no_run, folders, loss, line):
    error = one_line_error(capsys, f"--preset smoke --losses own_losses:{loss}")
    if line is None:  # raised by what called the loss
        assert ".py, line" not in error
    else:
        number = next(i for i, text in enumerate(OWN.splitlines(), 1) if line in text)
        assert error.endswith(f" ({folders}/own_losses.py, line {number})\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "give {loss: [{hyper-parameter: value}, ...]}"),
        ("- dpo", "give {loss: [{hyper-parameter: value}, ...]}"),
        ("dpo: [", "is not a file of trials"),
        ("dpo: []", "dpo: give a list of settings with the same keys"),
        ("dpo: {beta: 0.1}", "dpo: give a list of settings with the same keys"),
        ("dpo: [{beta: 0.1}, {}]", "dpo: give a list of settings with the same keys"),
        ("dpo: [0.1]", "is not a file of trials"),
        ("dpo: [beta]", "is not a file of trials"),
        ("dpo: [{beta: small}]", "could not convert string to float: 'small'"),
        ("dpo: [{beta: null}]", "is not a file of trials"),
        ("dpo: [{beta: -1}]", "beta must be positive and finite; got -1.0"),
        ("dpo: [{bete: 1}]", "no hyper-parameter 'bete'"),
        ("simpo: [{beta: 1}]", "--grid: simpo is not among the losses"),
        ("1: [{beta: 1}]", "--grid: 1 is not among the losses"),
        (b"\xff\xfe\x00\xd8", "is not a file of trials"),
    ],
)
def test_bad_file_of_trials(capsys, no_run, content, message):
    Path("grid.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    error = one_line_error(capsys, "--preset smoke --losses sft,dpo --grid grid.yaml")
    assert message in error
    assert (no_run, Path("runs").exists()) == ([], False)


def test_a_learned_objective_has_no_trials_of_its_own(capsys, no_run):
    MirrorObjective(units=4).save("learned", {})
    Path("grid.yaml").write_text("learned: [{beta: 1}]")
    error = one_line_error(capsys, "--preset smoke --losses learned --grid grid.yaml")
    assert "learned is learned; it has no hyper-parameters" in error


# --- what a run consists of ---


def test_every_setting_is_explained():
    for field in fields(DiagnoseConfig):
        assert f"        {field.name}: " in DiagnoseConfig.__doc__ + TestbedSettings.__doc__
    assert {*COMMAND.place, *COMMAND.grows} < {field.name for field in fields(DiagnoseConfig)}


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_are_valid(preset):
    setup = Setup.of(DiagnoseConfig(**PRESETS[preset]))
    assert {len(grid) for grid in setup.grids.values()} == {setup.config.trials}
    assert setup.objectives.keys() == setup.grids.keys()
    assert all(bed.data == kind for kind, bed in setup.testbeds.items())


def test_all_losses_of_the_library_can_be_diagnosed(no_run):
    # Votes, weights of steps, third responses and drawn ones are not in this data.
    absent = ("smpo", "soft_label_dpo", "sparse_po", "tpo", "hypo", "vpo_online")
    able = [name for name in LOSSES if name not in absent]
    assert main(["--preset", "smoke", "--losses", ",".join(able)]) == 0
    assert list(no_run[0].objectives) == able
    assert call("--preset smoke --out lists --losses tpo,dpo,lambda_po --data list:4") == 0


def test_a_callable_that_cannot_be_hashed_is_a_loss_like_any_other(no_run):
    assert call("--preset smoke --losses own_losses:numbers") == 0
    assert list(no_run[0].objectives) == ["own_losses:numbers"]


def test_settings_reach_the_training(no_run):
    call(
        "--losses sft,own_losses:fine,sft --data mixed,base --task ant --pairs 7 --episode_steps 9 "
        "--behaviour_std 0.2 --seed 3 --policy_std 0.6 --policy_std_kind learned --sample true "
        "--epochs 5 --sft_epochs 4 --minibatch_pairs 3 --learning_rate 0.01 --max_grad_norm 2 "
        "--steps_per_trajectory 6 --chunk_size 5 --compile false --num_threads 1 --trials 3 "
        "--precision bf16-mixed "
        "--reference_sync 2 --reference_mix 0.5 "
        "--tuning_seeds 4 --tuning_episodes 8 --episodes 9 --start scratch --cache_dir here"
    )
    setup = no_run[0]
    assert list(setup.objectives) == ["sft", "own_losses:fine"]
    assert list(setup.testbeds) == ["mixed", "base"]
    for bed in setup.testbeds.values():
        pool = asdict(bed.pool)
        assert (pool["task"], pool["pairs"]) == ("ant", 7)
        assert (pool["max_steps"], pool["behaviour_std"], pool["seed"]) == (9, 0.2, 3)
        assert (bed.policy_std, bed.policy_std_kind, bed.sample) == (0.6, "learned", True)
        assert (bed.start, bed.num_threads, bed.cache_dir) == ("scratch", 1, "here")
        inner = asdict(bed.inner)
        assert inner == {
            "epochs": 5,
            "sft_epochs": 0,  # a loss with a reference gets them, see the suite
            "minibatch_pairs": 3,
            "learning_rate": 0.01,
            "max_grad_norm": 2.0,
            "steps_per_trajectory": 6,
            "reference_sync": 2,
            "reference_mix": 0.5,
            "chunk_size": 5,
            "pairs_per_epoch": None,
            "compile": False,
            "precision": "bf16-mixed",
        }
    protocol = asdict(setup.protocol)
    assert protocol.pop("seed") == 3
    assert list(protocol.values()) == [4, 3, 8, 9, 4]
    assert [len(grid) for grid in setup.grids.values()] == [3, 3]


def test_the_task_decides_where_training_starts(no_run):
    call("--preset smoke --out one")
    call("--preset smoke --start scratch --out two")
    assert [setup.testbeds["base"].start for setup in no_run] == ["original", "scratch"]
    assert STARTS.keys() == TASKS.keys()
    assert STARTS["hopper"] == "scratch"


def test_own_trials_instead_of_those_that_the_loss_refuses(capsys, no_run):
    Path("grid.yaml").write_text("own_losses:narrow: [{strength: 2}, {strength: 3}]")
    flags = "--preset smoke --losses own_losses:narrow --trials 8 --grid grid.yaml"
    assert call(flags) == 0
    Path("grid.yaml").write_text("own_losses:narrow: [{strength: 2}, {strength: 9}]")
    error = one_line_error(capsys, flags.replace("smoke", "smoke --out other"))
    assert "own_losses:narrow: ValueError: strength must be below 5; got 9.0 (/" in error
    assert "the suite's own trials" not in error


def test_own_trials(no_run):
    Path("grid.yaml").write_text("dpo: [{beta: 1e-3}, {beta: 2}, {beta: 0.5}]\nsft: [{}]")
    flags = "--preset smoke --losses sft,dpo,simpo --grid grid.yaml --learning_rate 1e-3"
    assert call(flags) == 0
    grids = no_run[0].grids
    assert grids["dpo"] == [{"beta": 0.001}, {"beta": 2.0}, {"beta": 0.5}]  # 1e-3 is a YAML word
    assert all(isinstance(value, float) for setting in grids["dpo"] for value in setting.values())
    assert (grids["sft"], len(grids["simpo"])) == ([{}], 2)


def test_own_trials_are_tried_at_the_rates_that_are_tuned():
    Path("grid.yaml").write_text(
        "dpo: [{beta: 2}, {beta: 0.5}]\nsft: [{}]\nsimpo: [{beta: 2, learning_rate: 1e-3}]"
    )
    config = DiagnoseConfig(losses="sft,dpo,simpo", data="base", grid="grid.yaml", trials=6)
    grids = Setup.of(config).grids
    assert grids["sft"] == rate_grid(6)
    betas, rates = [2.0, 0.5], [setting["learning_rate"] for setting in rate_grid(4)]
    assert grids["dpo"] == [{"beta": b, "learning_rate": r} for r in rates for b in betas]
    assert grids["simpo"] == [{"beta": 2.0, "learning_rate": 0.001}]
    fixed = Setup.of(replace(config, learning_rate=1e-4)).grids
    assert fixed["dpo"] == [{"beta": 2.0}, {"beta": 0.5}]


def test_a_rate_among_own_trials_cannot_vary():
    Path("grid.yaml").write_text("sft: [{learning_rate: 1e-3}]")
    config = DiagnoseConfig(losses="sft,simpo", data="base", grid="grid.yaml")
    assert Setup.of(replace(config, vary="pairs=64")).variants["pairs=64"].grids["sft"]
    with pytest.raises(UserError, match=r"learning_rate=0.0001: the file of --grid .* for sft"):
        Setup.of(replace(config, vary="learning_rate=1e-4"))
    with pytest.raises(UserError, match="learning_rate=None: the file"):
        Setup.of(replace(config, learning_rate=1e-4, vary="learning_rate=null"))


@pytest.mark.parametrize(
    ("loss", "data", "name"),
    [
        ("dpo", "base", "dpo__base"),
        ("my_pkg.losses:own", "noisy:0.3", "my_pkg.losses-own__noisy-0.3"),
        ("runs/evolve/objective", "bad_judge:1e3", "runs-evolve-objective__bad_judge-1e3"),
        ("../ü", "base", "..--__base"),
    ],
)
def test_name_of_a_cells_file(loss, data, name):
    assert cell_path(Path("run"), loss, data) == Path("run/cells") / f"{name}.json"


# --- resuming ---


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ("--trials 3", "trials is 3"),
        ("--epochs 9", "epochs is 9"),
        ("--seed 1", "seed is 1"),
        ("--episodes 99", "episodes is 99"),
        ("--grid other.yaml", "grid is 'other.yaml'"),
        ("--start scratch", "start is 'scratch'"),
        ("--task ant", "task is 'ant'"),
        ("--preset full", "pairs is None"),
    ],
)
def test_resume_with_a_setting_that_must_not_change(capsys, no_run, flags, key):
    call("--preset smoke --out run")
    before = Path("run/config.yaml").read_bytes()
    error = one_line_error(capsys, f"--out run --resume {flags}")
    assert f"--resume: {key}, but the run in run has " in error
    assert "drop that setting, or choose another --out" in error
    assert Path("run/config.yaml").read_bytes() == before
    assert len(no_run) == 1


def test_a_preset_does_not_say_where_a_run_is_computed(no_run):
    """What a run was given besides stays, when it goes on under the preset's name."""
    call("--preset smoke --out run --vary pairs=6 --cache_dir x --num_threads 1")
    assert call("--preset smoke --out run --resume --seeds 3") == 0
    config = no_run[1].config
    assert (config.vary, config.cache_dir, config.num_threads) == ("pairs=6", "x", 1)


@pytest.mark.parametrize("name", ["data", "task", "seeds", "losses", "loop", "compile"])
def test_nothing_in_place_of_a_value_is_one_line(capsys, no_run, name):
    Path("own.yaml").write_text(f"{name}: null\n")
    error = one_line_error(capsys, "--preset smoke --config own.yaml")
    assert f"{name} must have a value; got null" in error
    call("--preset smoke --out run")
    path = Path("run/config.yaml")
    lines = path.read_text().splitlines()
    changed = [f"{name}: null" if line.startswith(f"{name}:") else line for line in lines]
    path.write_text("\n".join(changed))
    assert "must have a value; got null" in one_line_error(capsys, "--out run --resume")


def test_a_name_that_no_file_can_have_is_refused_before_any_work(capsys, no_run, tmp_path):
    folder = tmp_path / ("z" * 220)
    resolve("dpo").save(folder, {})
    error = one_line_error(capsys, f"--preset smoke --losses sft,{folder}")
    assert "is too long for the name of a file" in error
    assert not no_run


def test_resume_with_settings_that_may(no_run):
    call("--preset smoke --out run")
    more = {"losses": "sft,cpo", "data": "mixed", "seeds": 7, "num_threads": 1, "cache_dir": "x"}
    more["vary"] = "pairs=6"
    more |= {"tracker": "tensorboard", "baselines": "rlhf"}
    assert set(more) == {*COMMAND.place, *COMMAND.grows}
    flags = [word for name, value in more.items() for word in (f"--{name}", str(value))]
    assert main(["--out", "run", "--resume", *flags]) == 0
    more |= {"losses": "sft,dpo,cpo", "data": "base,noisy:0.3,mixed"}  # those of the run stay
    assert asdict(no_run[1].config) == asdict(DiagnoseConfig(**PRESETS["smoke"] | more))
    assert list(no_run[1].objectives) == ["sft", "dpo", "cpo"]
    assert main(["--out", "run", "--resume", "--losses", "dpo,cpo"]) == 0
    assert no_run[2].config.losses == "sft,dpo,cpo"
    # What is no longer wanted is taken out of the file.
    path = Path("run/config.yaml")
    path.write_text(path.read_text().replace("losses: sft,dpo,cpo", "losses: cpo"))
    assert main(["--out", "run", "--resume", "--losses", " sft, cpo"]) == 0
    assert no_run[3].config.losses == "cpo,sft"
    assert yaml.safe_load(Path("run/config.yaml").read_text())["seeds"] == 7


def test_resuming_a_finished_run_computes_nothing(reports, monkeypatch):
    assert tiny() == 0
    finished = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in Path("run").glob("*/*.json")}
    others = [Path("run", name) for name in ("anchors.json", "statistics.json")]
    stamps = [path.stat().st_mtime_ns for path in others]
    assert len(finished) == 4
    for name in ("run_cell", "anchors"):
        monkeypatch.setattr(diagnose, name, None)  # cannot be called
    monkeypatch.setattr(pools, "pool_folder", lambda *_: Path.cwd())  # and no data is read
    monkeypatch.setattr(pools, "_load", None)
    for again in ("", "--seeds 2", "--num_threads 2"):
        assert tiny(again) == 0
    assert finished == {
        p: (p.read_bytes(), p.stat().st_mtime_ns) for p in Path("run").glob("*/*.json")
    }
    assert [path.stat().st_mtime_ns for path in others] == stamps
    assert len(reports) == 4  # the report is made every time


def test_an_integer_of_ones_own_loss_stays_one(reports):
    assert tiny("--losses own_losses:counts --data base") == 0
    assert all(setting.keys() == {"strength", RATE} for setting in cells().popitem()[1]["grid"])


def test_a_run_is_not_offered_to_another_command(capsys, no_run):
    Path("run").mkdir()
    Path("run/config.yaml").write_text("population: 32\n")
    assert "run has a run: go on with --resume, or choose" in one_line_error(capsys, "--out run")
    error = one_line_error(capsys, "--out run --resume")
    assert "is not the configuration of a run of python -m torchmpo.diagnose: " in error
    Path("run/config.yaml").rename("run/other.txt")
    assert "choose another --out" in one_line_error(capsys, "--out run")
    assert "there is no run in run; choose another --out" in one_line_error(
        capsys, "--out run --resume"
    )


def test_what_a_preset_names_can_be_added_by_name(no_run):
    assert call("--preset smoke --losses cpo --data mixed --out run") == 0
    assert call("--preset smoke --out run --resume") == 0
    assert no_run[1].config.losses == "cpo"
    assert call("--preset smoke --losses sft,dpo --out run --resume") == 0  # the preset's own
    assert (no_run[2].config.losses, no_run[2].config.data) == ("cpo,sft,dpo", "mixed")


def test_seeds_are_not_taken_away(capsys, no_run):
    assert call("--preset smoke --out run") == 0
    error = one_line_error(capsys, "--out run --resume --seeds 1")
    assert "seeds is 1, but the run in run has 2 and can only grow" in error
    assert len(no_run) == 1


CHANGED = "def changing(chosen_mean_logps, *, strength=1.0):\n    return {} * chosen_mean_logps\n"


def test_a_loss_that_has_changed_is_not_mixed_with_what_it_was(
    capsys, reports, folders, monkeypatch
):
    file = folders / "changing_losses.py"

    def write(text):
        file.write_text(text)
        importlib.invalidate_caches()
        linecache.checkcache()
        sys.modules.pop("changing_losses", None)

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # same size, same second
    write(CHANGED.format(-1))
    assert tiny("--losses changing_losses:changing,sft --data base") == 0
    before = cells()
    write(CHANGED.format(-2))
    error = one_line_error(capsys, "--out run --resume --trust --seeds 3")
    path = "run/cells/changing_losses-changing__base.json"
    assert f"changing_losses:changing has changed since {path} was made: delete that" in error
    assert cells() == before
    write("# another file, the same function\n" + CHANGED.format(-1))
    assert tiny() == 0
    write(CHANGED.format(-2))
    Path(path).unlink()
    assert tiny() == 0
    assert cells()[Path(path).stem]["returns"] != before[Path(path).stem]["returns"]
    assert cells()["sft__base"] == before["sft__base"]


@pytest.mark.parametrize("way", ["instance", "partial", "helper"])
def test_no_loss_can_change_unnoticed(capsys, reports, folders, monkeypatch, way):
    text = textwrap.dedent(
        """
        import functools

        def helper(x):
            return SIGN * x

        class Loss:
            def __call__(self, chosen_mean_logps):
                return SIGN * chosen_mean_logps

        def bound(chosen_mean_logps, *, sign):
            return sign * chosen_mean_logps

        instance = Loss()
        partial = functools.partial(bound, sign=SIGN)

        def helped(chosen_mean_logps):
            return helper(chosen_mean_logps)
        """
    )
    name = f"way_losses:{'helped' if way == 'helper' else way}"

    def write(sign):
        (folders / "way_losses.py").write_text(text.replace("SIGN", sign))
        importlib.invalidate_caches()
        linecache.checkcache()
        sys.modules.pop("way_losses", None)

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # same size, same second
    write("-1")
    assert tiny(f"--losses {name} --data base") == 0
    before = cells()
    write("+1")
    error = one_line_error(capsys, "--out run --resume --trust --seeds 3")
    path = cell_path(Path("run"), name, "base")
    assert f"{name} has changed since {path} was made: delete that file" in error
    write("-1")
    assert tiny("--seeds 3") == 0
    assert cells()[path.stem]["returns"][:2] == before[path.stem]["returns"]
    # A version that looked at texts only, and saw none, vouches for nothing.
    cell = json.loads(path.read_text())
    made = cell["made_of"]
    assert made.keys() == {"pool", "source", "fingerprint"}
    for made_then in ({"pool": made["pool"], "source": None}, None):
        cell.pop("made_of")
        path.write_text(json.dumps(cell | ({"made_of": made_then} if made_then else {})))
        cell["made_of"] = made
        error = one_line_error(capsys, "--out run --resume --trust")
        assert f"{path} does not say of what {name} was made: delete it and --resume" in error
    if way == "helper":  # one that saw this text is believed
        cell["made_of"].pop("fingerprint")
        path.write_text(json.dumps(cell))
        assert tiny() == 0


def test_a_loss_of_which_nobody_can_tell_is_refused(capsys, reports, folders):
    text = "import threading\nlock = threading.Lock()\ndef loss(chosen_mean_logps):\n"
    (folders / "locked_losses.py").write_text(f"{text}    with lock: return -chosen_mean_logps\n")
    assert tiny("--losses locked_losses:loss,sft --data base") == 0
    error = one_line_error(capsys, "--out run --resume --trust")
    path = cell_path(Path("run"), "locked_losses:loss", "base")
    assert f"nobody can tell whether locked_losses:loss has changed since {path} was made" in error
    assert "(it holds a lock, which has neither a text nor a value)" in error
    before = cells()
    path.unlink()
    assert tiny() == 0
    assert cells() == before


def test_a_saved_objective_that_has_changed_is_noticed(capsys, reports):
    shutil.copytree(DISCOVERED / "tla_noisy", "own")
    assert tiny("--losses own --data base") == 0
    Path("own/card.json").write_text("{}")  # tells, but does not compute
    assert tiny() == 0
    shutil.rmtree("own")
    shutil.copytree(DISCOVERED / "tla_mixed_v1", "own")
    assert "own has changed since" in one_line_error(capsys, "--out run --resume")


def test_other_trials_or_other_agents_are_noticed(capsys, reports, monkeypatch):
    Path("trials.yaml").write_text("simpo: [{beta: 1}, {beta: 2}]")
    assert tiny("--losses simpo --data base --grid trials.yaml") == 0
    Path("trials.yaml").write_text("simpo: [{beta: 1}, {beta: 3}]")
    error = one_line_error(capsys, "--out run --resume --seeds 3")
    assert "run/cells/simpo__base.json was tuned over other settings" in error
    Path("trials.yaml").write_text("simpo: [{beta: 1}, {beta: 2}]")
    assert tiny() == 0
    monkeypatch.setattr(pools, "FORMAT", 0)
    error = one_line_error(capsys, "--out run --resume")
    assert "run/cells/simpo__base.json was made with other agents" in error


def test_a_cell_under_a_wrong_name_is_noticed(capsys, reports):
    assert tiny("--losses sft,dpo --data base") == 0
    shutil.copy("run/cells/sft__base.json", "run/cells/dpo__base.json")
    error = one_line_error(capsys, "--out run --resume")
    assert "run/cells/dpo__base.json is of sft on base, not of dpo on base" in error


def test_two_losses_that_would_share_a_file(capsys, no_run):
    for name in ("runs-a", "runs/a"):
        shutil.copytree(DISCOVERED / "tla_noisy", name)
    error = one_line_error(capsys, "--preset smoke --losses ./runs-a,./runs/a")
    assert "./runs-a and ./runs/a would share a file of results; rename one" in error


def test_agents_are_judged_anew_where_no_cell_vouches_for_them(reports):
    assert tiny("--data base") == 0
    before = Path("run/anchors.json").read_text()
    for name in ("anchors.json", "statistics.json"):
        Path("run", name).write_text('{"edges": {}, "kinds": {}}')
    for path in Path("run/cells").iterdir():
        path.unlink()
    assert tiny() == 0
    assert Path("run/anchors.json").read_text() == before
    assert list(statistics()) == ["base"]


def test_a_run_grows_by_losses_data_and_seeds(reports, monkeypatch):
    assert tiny("--losses sft --data base") == 0
    first = cells()
    assert list(first) == ["sft__base"]
    run_cell, calls = suite.run_cell, []

    def counted(bed, objective, grid, seeds, protocol, done=None, *rest):
        calls.append((objective.name, bed.config.data, len(done["returns"]) if done else 0, seeds))
        return run_cell(bed, objective, grid, seeds, protocol, done, *rest)

    monkeypatch.setattr(diagnose, "run_cell", counted)
    assert tiny("--losses simpo") == 0
    assert calls == [("simpo", "base", 0, 2)]
    calls.clear()
    assert list(statistics()) == ["base"]
    assert tiny("--data mixed") == 0
    assert list(statistics()) == ["base", "mixed"]
    assert calls == [("sft", "mixed", 0, 2), ("simpo", "mixed", 0, 2)]
    before = cells()
    assert before["sft__base"] == first["sft__base"]
    calls.clear()
    assert tiny("--seeds 3") == 0
    assert calls == [(loss, data, 2, 3) for data in ("base", "mixed") for loss in ("sft", "simpo")]
    after = cells()
    assert after.keys() == before.keys()
    for name, cell in after.items():
        for key in ("loss", "data", "task", "grid", "tuning", "best"):
            assert cell[key] == before[name][key]
        assert len(cell["returns"]) == len(cell["margins"]) == 3
        assert cell["returns"][:2] == before[name]["returns"]
        assert cell["margins"][:2] == before[name]["margins"]
        for key in ("chosen", "rejected", "accuracy"):
            assert cell["curves"][key][:2] == before[name]["curves"][key]
    assert [len(setup.testbeds) for setup in reports] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    "content", ["", '{"loss": "sft", "re', "[]", '"text"', '{"loss": "sft"}', "\x00\x00"]
)
def test_a_damaged_cell_is_named_and_nothing_is_lost(capsys, reports, content):
    assert tiny("--data base") == 0
    before = cells()
    path = Path("run/cells/sft__base.json")
    path.write_text(content)
    error = one_line_error(capsys, "--out run --resume")
    assert str(path) in error
    assert "delete it and --resume" in error
    assert path.read_text() == content
    path.unlink()
    assert tiny() == 0
    assert cells() == before


def edit(path, *keys, to):
    """Replace a part of a JSON file."""
    content = inside = json.loads(path.read_text())
    for key in keys[:-1]:
        inside = inside[key]
    inside[keys[-1]] = to
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, folders):
    """A run of two losses."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TORCHMPO_CACHE", str(folders / "cache"))
        patch.setattr(diagnose, "report", lambda setup, out: None)
        assert tiny("--losses sft,simpo --data base") == 0
    return folder / "run"


CELL = "cells/simpo__base.json"


@pytest.mark.parametrize(
    ("file", "keys", "to", "reason"),
    [
        (CELL, ["returns"], None, "returns: Input should be a valid list"),
        (CELL, ["returns"], [[], []], "returns[0]: List should have at least 1 item"),
        (CELL, ["returns", 0, 0], None, "returns[0][0]: Input should be a valid number"),
        (CELL, ["returns", 0, 0], math.nan, "returns[0][0]: Input should be a finite number"),
        (CELL, ["returns", 0, 0], math.inf, "returns[0][0]: Input should be a finite number"),
        (CELL, ["returns", 0, 0], "7", "returns[0][0]: Input should be a valid number"),
        (CELL, ["returns", 0], [1.0], "seeds differ in episodes"),
        (CELL, ["returns"], [[1.0, 2.0]], "as many rows of margins as of returns"),
        (CELL, ["best"], 99, "best is 99, of 2 settings"),
        (CELL, ["best"], -2, "best is -2, of 2 settings"),
        (CELL, ["best"], True, "best: Input should be a valid integer"),
        (CELL, ["best"], -1, "returns of no setting"),
        (CELL, ["tuning"], [[1.0]], "as many rows of tuning as settings"),
        (CELL, ["tuning", 0], [], "tuning[0]: List should have at least 1 item"),
        (CELL, ["grid"], [], "grid: List should have at least 1 item"),
        (CELL, ["grid", 0, "beta"], "2", "grid[0].beta: Input should be a valid number"),
        (CELL, ["grid", 0], {"beta": 1.0}, "settings of different numbers"),
        (CELL, ["curves", "chosen"], [], "curves of other seeds"),
        (CELL, ["curves", "chosen", 0], [1.0], "uneven curves"),
        (CELL, ["curves", "chosen", 0], 1.0, "uneven curves"),
        (CELL, ["curves"], [], "curves: Input should be a valid dictionary"),
        (CELL, ["margins"], None, "margins: Input should be a valid list"),
        (CELL, ["made_of"], [], "made_of: Input should be a valid dictionary"),
        (CELL, ["made_of"], {"pool": None}, "made_of.pool: Input should be a valid string"),
        (CELL, ["seconds"], "1", "seconds: Input should be a valid number"),
        (CELL, ["loss"], 3, "loss: Input should be a valid string"),
        ("anchors.json", ["target"], [], "target: List should have at least 1 item"),
        ("anchors.json", ["target"], None, "target: Input should be a valid list"),
        ("anchors.json", ["original", 0], math.nan, "original[0]: Input should be a finite number"),
        ("anchors.json", ["original", 0], [1.0], "original[0]: Input should be a valid number"),
        ("statistics.json", ["kinds"], [], "kinds: Input should be a valid dictionary"),
        ("statistics.json", ["kinds", "base"], {}, "kinds.base.pairs: Field required"),
        ("statistics.json", ["kinds", "base", "flipped"], 7, "flipped: Input should be less than"),
        ("statistics.json", ["kinds", "base", "margin", "mean"], "1", "mean: Input should be a va"),
        ("statistics.json", ["kinds", "base", "margin_counts"], [1], "histograms without their e"),
        ("statistics.json", ["edges"], {}, "histograms without their edges"),
        ("statistics.json", ["kinds", "base", "agents", "target"], None, "target: Input should"),
    ],
)
def test_files_of_a_run_that_were_edited(
    capsys, reports, monkeypatch, finished, file, keys, to, reason
):
    shutil.copytree(finished, "run")
    path = Path("run", file)
    edit(path, *keys, to=to)
    for name in ("run_cell", "anchors"):
        monkeypatch.setattr(diagnose, name, None)  # cannot be called
    error = one_line_error(capsys, "--out run --resume")
    assert error.startswith(f"error: {path} is damaged (")
    assert reason in error
    assert error.endswith("): delete it and --resume\n")


def test_a_configuration_that_was_edited_does_not_mix_two_runs(capsys, reports, finished):
    shutil.copytree(finished, "run")
    path = Path("run/config.yaml")
    text = path.read_text()
    for old, new in (("seed: 0", "seed: 1"), ("learning_rate: null", "learning_rate: 0.01")):
        assert old in text
        path.write_text(text.replace(old, new))
        name, value = new.split(": ")
        error = one_line_error(capsys, "--out run --resume --seeds 3")
        assert f"run/config.yaml has been changed: {name} is {value}, but the run was" in error
    path.write_text(text)
    assert tiny() == 0


def statistics():
    return json.loads(Path("run/statistics.json").read_text())["kinds"]


def test_the_data_is_described(reports):
    assert tiny("--losses sft --data base,noisy:1 --pairs 6") == 0
    found = statistics()
    assert [kind["pairs"] for kind in found.values()] == [6, 6]
    assert [kind["flipped"] for kind in found.values()] == [0.0, 1.0]
    assert found["base"]["agents"] == found["noisy:1"]["agents"]
    # A run from before there were statistics gets them when it goes on.
    before = Path("run/statistics.json").read_bytes()
    Path("run/statistics.json").unlink()
    assert tiny() == 0
    assert Path("run/statistics.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", '{"edges": {}, "kinds', "[]", '"text"', '{"kinds": {}}'])
def test_damaged_statistics_are_named(capsys, reports, content):
    assert tiny("--losses sft --data base") == 0
    path = Path("run/statistics.json")
    before = path.read_bytes()
    path.write_text(content)
    error = one_line_error(capsys, "--out run --resume")
    assert str(path) in error
    assert "delete it and --resume" in error
    path.unlink()
    assert tiny() == 0
    assert path.read_bytes() == before


def test_damaged_anchors_are_named(capsys, reports):
    assert tiny("--data base") == 0
    before = Path("run/anchors.json").read_text()
    Path("run/anchors.json").write_text(before[: len(before) // 2])
    assert "anchors.json is damaged" in one_line_error(capsys, "--out run --resume")
    Path("run/anchors.json").unlink()
    assert tiny() == 0
    assert Path("run/anchors.json").read_text() == before


def test_code_that_only_the_files_of_a_run_name_is_not_run(capsys, no_run, folders, monkeypatch):
    text = "open('ran', 'w').close()\ndef loss(chosen_logps): return -chosen_logps"
    Path("bad_code.py").write_text(text)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "bad_code", raising=False)
    Path("run").mkdir()  # as it comes from somewhere else
    config = asdict(DiagnoseConfig(**PRESETS["smoke"])) | {"losses": "sft,bad_code:loss"}
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    for more in ("", " --losses dpo", " --losses bad_code:other"):
        error = one_line_error(capsys, f"--out run --resume{more}")
        assert "--resume: run/config.yaml names code to run, bad_code:loss: if the run is" in error
        assert "add --trust, or name it yourself, --losses bad_code:loss" in error
        assert not Path("ran").exists()
    Path("trusting.yaml").write_text("trust: true")
    error = one_line_error(capsys, "--out run --resume --config trusting.yaml")
    assert "give --trust on the command line, not in a file" in error
    assert not Path("ran").exists()
    assert call("--out run --resume --losses bad_code:loss") == 0
    assert call("--out run --resume --trust") == 0
    assert Path("ran").exists()
    assert [setup.config.losses for setup in no_run] == ["sft,bad_code:loss"] * 2
    sys.modules.pop("bad_code", None)


def test_an_interrupted_run_of_ones_own_loss_says_how_to_go_on(capsys, monkeypatch):
    def interrupt(setup, out):
        raise KeyboardInterrupt

    monkeypatch.setattr(diagnose, "run", interrupt)
    assert call("--preset smoke --losses own_losses:fine --out run") == 130
    told = capsys.readouterr().err.strip()
    assert told.endswith("go on with: python -m torchmpo.diagnose --out run --resume --trust")
    monkeypatch.setattr(diagnose, "run", lambda setup, out: 0)
    assert call(told.partition("torchmpo.diagnose ")[2]) == 0


# --- faults ---


def test_a_loss_that_raises_in_training_leaves_the_other_cells(
    capsys, reports, folders, monkeypatch
):
    import own_losses  # pyright: ignore

    monkeypatch.setattr(own_losses, "calls", 0)
    flags = f"{TINY} --losses sft,own_losses:raises_later,own_losses:fine --data base"
    error = one_line_error(capsys, flags, code=1)
    assert own_losses.calls == 9
    line = OWN.splitlines().index(next(x for x in OWN.splitlines() if "some updates" in x)) + 1
    told = "error: own_losses:raises_later on base: ArithmeticError: out of numbers"
    assert error == f"{told} ({folders}/own_losses.py, line {line})\n"
    assert list(cells()) == ["own_losses-fine__base", "sft__base"]
    assert len(reports) == 1
    # It is tried again, and nothing else is.
    before = cells()
    own_losses.calls = 0
    one_line_error(capsys, "--out run --resume --trust", code=1)
    assert cells() == before
    path = Path("run/config.yaml")
    path.write_text(path.read_text().replace("own_losses:raises_later,", ""))
    assert tiny() == 0


def test_a_bug_of_ours_is_not_blamed_on_a_loss(reports, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(diagnose, "run_cell", broken)
    with pytest.raises(ZeroDivisionError):
        tiny("--losses sft")


def test_a_loss_that_diverges_everywhere_is_a_cell_like_any_other(capsys, reports):
    Path("grid.yaml").write_text("own_losses:explodes: [{power: 100}, {power: 200}]")
    assert tiny("--losses own_losses:explodes,sft --data base --grid grid.yaml") == 0
    assert "every training diverged" in capsys.readouterr().out
    cell = cells()["own_losses-explodes__base"]
    # Each of the two at two learning rates.
    assert (cell["best"], cell["tuning"], cell["returns"]) == (-1, [[None]] * 4, [])
    stamp = Path("run/cells/own_losses-explodes__base.json").stat().st_mtime_ns
    assert tiny("--seeds 3") == 0  # there is no setting that more seeds could be run with
    assert Path("run/cells/own_losses-explodes__base.json").stat().st_mtime_ns == stamp
    assert len(cells()["sft__base"]["returns"]) == 3


def test_a_loss_whose_only_setting_diverges(capsys):
    """There is nothing to tune, so that its seeds are tried, and the report copes."""
    flags = "--losses own_losses:explodes,sft --data base --trials 1 --learning_rate 0.001"
    assert tiny(flags) == 0
    assert "every training diverged" in capsys.readouterr().out
    cell = cells()["own_losses-explodes__base"]
    assert (cell["best"], cell["tuning"], cell["returns"]) == (0, [], [None, None])
    assert cells()["sft__base"]["tuning"] == []
    rows = json.loads(Path("run/leaderboard.json").read_text())["rows"]
    assert {r["loss"]: (r["trials"], r["diverged"]) for r in rows} == {
        "sft": (0, 0),
        "own_losses:explodes": (0, 2),
    }
    assert "nothing to tune" in Path("run/report.html").read_text()


@pytest.mark.parametrize(
    "file",
    ["statistics.json", "anchors.json", "scores.json", "leaderboard.json", "leaderboard.csv",
     "curves-base.svg", "report.html"],
)  # fmt: skip
def test_disk_full_at_any_file_loses_nothing(capsys, monkeypatch, file):
    replace_file = os.replace

    def full(old, new):
        if Path(new).name == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))
        replace_file(old, new)

    monkeypatch.setattr(os, "replace", full)
    error = one_line_error(capsys, f"{TINY} --losses sft --data base")
    assert error.startswith("error: No space left on device: run/")
    assert error.endswith(f"{file}\n")
    before = cells()
    assert len(before) == (0 if file in ("statistics.json", "anchors.json") else 1)
    monkeypatch.setattr(os, "replace", replace_file)
    if before:
        monkeypatch.setattr(diagnose, "run_cell", None)  # cannot be called
    assert tiny() == 0
    assert {name: cells()[name] for name in before} == before
    assert Path("run/report.html").exists()
    assert [path.name for path in Path("run").rglob(".*")] == [".lock"]


def test_full_disk_is_one_line_and_the_run_goes_on_later(capsys, reports, monkeypatch):
    write = torchmpo.diagnose.cells.write_atomic

    def full(path, content):
        if "noisy" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, content)

    monkeypatch.setattr(torchmpo.diagnose.cells, "write_atomic", full)
    error = one_line_error(capsys, TINY)
    assert error == "error: No space left on device: run/cells/sft__noisy-0.3.json\n"
    before = cells()
    assert list(before) == ["dpo__base", "sft__base"]
    monkeypatch.setattr(torchmpo.diagnose.cells, "write_atomic", write)
    assert tiny() == 0
    after = cells()
    assert len(after) == 4
    assert {name: after[name] for name in before} == before


def test_interrupt_keeps_what_is_finished(capsys, reports, monkeypatch):
    run_cell = suite.run_cell

    def interrupted(bed, objective, *args):
        if objective.name == "dpo":
            raise KeyboardInterrupt
        return run_cell(bed, objective, *args)

    monkeypatch.setattr(diagnose, "run_cell", interrupted)
    assert tiny() == 130
    message = capsys.readouterr().err
    assert message == "\ninterrupted; go on with: python -m torchmpo.diagnose --out run --resume\n"
    assert list(cells()) == ["sft__base"]
    monkeypatch.setattr(diagnose, "run_cell", run_cell)
    assert tiny() == 0
    assert len(cells()) == 4


def test_learned_objectives_have_cells_by_their_folders(reports):
    for name in ("one", "two"):
        objective = MirrorObjective(units=4)
        torch.nn.init.constant_(objective.vector, 0.1 if name == "two" else 0.0)
        objective.save(f"found/{name}", {})
    assert tiny("--losses found/one,found/two --data base") == 0
    found = cells()
    assert list(found) == ["found-one__base", "found-two__base"]
    assert [cell["loss"] for cell in found.values()] == ["found/one", "found/two"]
    assert found["found-one__base"]["returns"] != found["found-two__base"]["returns"]


def test_what_is_printed_of_a_cell(capsys, reports):
    assert tiny("--losses sft --data base") == 0
    out = capsys.readouterr().out
    agents = json.loads(Path("run/anchors.json").read_text())
    returns = [sum(row) / len(row) for row in cells()["sft__base"]["returns"]]
    original, target = (sum(agents[k]) / len(agents[k]) for k in ("original", "target"))
    mean = sum(returns) / 2
    begin, data, todo, out = out.split("\n", 3)
    assert begin == "diagnose: tla, base → run"
    assert data == "data: reading it, or making it where there is none"
    assert todo == "cells: 1 to do"
    assert re.fullmatch(r"sft +base +return .* ± .* score .* s  ETA 0:00\n", out), out
    assert float(re.search(r"return +(\S+)", out)[1]) == pytest.approx(mean, abs=0.6)
    assert float(re.search(r"± (\S+)", out)[1]) == pytest.approx(
        abs(returns[0] - returns[1]) / 2, abs=0.6
    )
    score = (mean - original) / (target - original)
    assert float(re.search(r"score +(\S+)", out)[1]) == pytest.approx(score, abs=0.006)


# --- the real thing, killed ---

KILLED = """
    import os, signal, sys
    import torch
    import torchmpo.diagnose.run  # here, so that no child has to
    from torchmpo.diagnose.__main__ import COMMAND, main
    from torchmpo.diagnose.settings import DiagnoseConfig
    from torchmpo.diagnose.setup import Setup

    torch.set_num_threads(1)
    COMMAND.parser()
    Setup.of(DiagnoseConfig())
    torchmpo.diagnose.run.report = lambda setup, out: None
    flags = sys.argv[2:]

    def in_child(folder, kill):
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return os.waitpid(pid, 0)[1]
        count = 0
        def killing(rename):
            def moment():
                nonlocal count
                count += 1
                if count == kill:
                    os.kill(os.getpid(), signal.SIGKILL)
            def replace(old, new):
                moment()  # the new file is written under another name
                rename(old, new)
                moment()
            return replace
        os.replace, os.rename = killing(os.replace), killing(os.rename)
        started = os.path.exists(f"{folder}/config.yaml")
        code = main([*flags, "--out", folder, *(["--resume"] if started else [])])
        sys.stdout.flush()
        os._exit(code)

    base = sys.argv[1]
    os.environ["TORCHMPO_CACHE"] = f"{base}/cache"
    assert in_child(f"{base}/whole", None) == 0
    kills = 0
    while in_child(f"{base}/killed-{kills + 1}", kills + 1) == signal.SIGKILL:
        kills += 1
        assert in_child(f"{base}/killed-{kills}", None) == 0
    print("kills", kills)
"""


def test_a_run_killed_at_any_write_gives_the_same_cells(tmp_path):
    flags = "--preset smoke --data base --episode_steps 10 --pairs 2 --trials 1 --num_threads 1"
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), *flags.split()],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    kills = int(result.stdout.split()[-1])
    # Before and after each of config.yaml, made_of.json, commands.json, machines.json,
    # statistics.json, anchors.json and two cells.
    assert kills == 16
    whole = cells(tmp_path / "whole")
    assert list(whole) == ["dpo__base", "sft__base"]
    for kill in range(1, kills + 1):
        killed = tmp_path / f"killed-{kill}"
        assert cells(killed) == whole
        assert [path.name for path in killed.rglob(".*")] == [".lock"]  # no temporary file is left
        for name in ("config.yaml", "statistics.json", "anchors.json"):
            assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_command_as_a_user_calls_it(tmp_path, folders):
    """In a process of its own, page and all, with a loss from the current folder."""
    (tmp_path / "my_losses.py").write_text(OWN)
    flags = f"{TINY} --losses sft,my_losses:fine --data base".split()
    result = subprocess.run(
        [sys.executable, "-m", "torchmpo.diagnose", *flags], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert list(cells()) == ["my_losses-fine__base", "sft__base"]
    assert {p.name for p in Path("run").iterdir()} >= {
        "config.yaml",
        "anchors.json",
        "statistics.json",
        "leaderboard.json",
        "leaderboard.csv",
        "report.html",
        "figures",
    }
    assert len(result.stdout.splitlines()) == 6
    board = json.loads(Path("run/leaderboard.json").read_text())
    assert (board["pairs"], board["start"]) == (4, "original")
    assert yaml.safe_load(Path("run/config.yaml").read_text())["start"] is None
    assert [path.name for path in Path("run").rglob(".*")] == [".lock"]


def test_a_task_on_which_the_agents_cannot_be_told_apart_is_run_to_the_end(capsys):
    """Fifty steps of Hopper; and on Ant, the original is the better agent."""
    flags = "--preset smoke --task hopper --num_threads 1 --out run --tracker tensorboard"
    assert call(flags) == 0
    events = EventAccumulator("run/tensorboard")
    events.Reload()
    cell = json.loads(Path("run/cells/dpo__noisy-0.3.json").read_text())
    [told] = events.Scalars("dpo on noisy_0.3/return")
    returns = [sum(row) / len(row) for row in cell["returns"]]
    assert told.value == pytest.approx(sum(returns) / len(returns), rel=1e-6)
    watched = [event.step for event in events.Scalars("dpo on noisy_0.3/chosen")]
    assert watched == cell["curves"]["epoch"]
    told = capsys.readouterr()
    assert "score" not in told.out
    assert told.err.startswith("note: there are no scores, because the target agent's mean return")
    board = json.loads(Path("run/leaderboard.json").read_text())
    assert (board["scaled"], board["start"], len(board["rows"])) == (False, "scratch", 4)
    assert "Returns stand in their place" in Path("run/report.html").read_text()


def test_a_rate_that_is_not_given_is_tuned_for_every_loss(capsys):
    flags = "--preset smoke --losses sft,tla_noisy --data base --trials 3 --learning_rate null"
    assert main([*flags.split(), "--out", "run"]) == 0
    for loss in ("sft", "tla_noisy"):
        cell = json.loads(cell_path(Path("run"), loss, "base").read_text())
        assert cell["grid"] == rate_grid(3)
        assert len(cell["tuning"]) == 3
        assert "edge" in cell
    board = json.loads(Path("run/leaderboard.json").read_text())
    assert all(row["best"].keys() == {"learning_rate"} for row in board["rows"])
    assert main(["--resume", "--out", "run", "--seeds", "3"]) == 0
    assert main(["--resume", "--out", "run", "--learning_rate", "0.001"]) == 2
    assert "learning_rate is 0.001, but the run in run has None" in capsys.readouterr().err
