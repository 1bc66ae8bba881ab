"""The command line: every mistake in one line before any compute, and a run that survives kills."""

import importlib
import json
import linecache
import math
import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml

import torchmpo
from torchmpo.control.settings import TestbedSettings
from torchmpo.control.testbed import Testbed
from torchmpo.control.tuning import race, suited
from torchmpo.evolve import run as evolve
from torchmpo.evolve.__main__ import COMMAND, main
from torchmpo.evolve.settings import PRESETS, EvolveConfig
from torchmpo.evolve.setup import Setup
from torchmpo.runs.command import words

CORES = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHMPO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def plain_figures(monkeypatch):
    """Of runs in this process: to draw them takes longer than a smoke run's search."""

    def draw(what, path, **_):
        Path(path).write_text(" ".join(map(str, what)))

    for name in ("fitness_figure", "gradient_figure"):
        monkeypatch.setattr(evolve, name, draw)


@pytest.fixture
def no_run(monkeypatch):
    """What would be run; nothing is."""
    runs = []
    monkeypatch.setattr(evolve, "run", lambda setup, out: runs.append((setup, out)))
    return runs


def one_line_error(capsys, argv):
    capsys.readouterr()
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"(evolve: [^\n]+ → [^\n]+\n)?", captured.out)
    assert re.fullmatch(r"error: [^\n]+\n", captured.err), captured.err
    return captured.err


# --- mistakes ---


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--population 1000000000", "population must be at most 10000; got 1000000000"),
        ("--final_seeds 1000000000", "final_seeds must be at most 10000; got 1000000000"),
        ("--rival_trials 1000000000", "rival_trials must be at most 10000; got 1000000000"),
        (
            "--rival_trials null --generations 1000000",
            "as many trials as the search makes are 6000000 for each rival: give rival_trials, at",
        ),
        ("--popluation 4", "unknown option --popluation: did you mean 'population'?"),
        ("--popluation=4", "unknown option --popluation: did you mean 'population'?"),
        ("--pop 4", "unknown option --pop"),
        ("extra", "unexpected argument 'extra'"),
        ("--population", "expected one argument"),
        ("--population many", "population: Expected a int. Got value: many"),
        ("--population 5", "population must be even and at least 2 (antithetic pairs); got 5"),
        ("--generations 0", "generations must be at least 1; got 0"),
        ("--sigma 0", "sigma must be positive"),
        ("--outer_learning_rate -1", "learning_rate must be positive"),
        ("--learning_rate 0", "learning_rate must be positive and finite; got 0"),
        ("--fitness_shaping centred", "fitness_shaping must be centered or raw; got 'centred'"),
        ("--task tlaa", "unknown task 'tlaa': did you mean 'tla'?"),
        ("--data noizy:0.3", "unknown data 'noizy:0.3': did you mean 'noisy'?"),
        ("--data base,noisy:0.3,noisy:0.30", "noisy:0.3 and noisy:0.30 are the same; name one"),
        ("--data noisy", "needs a number, as in 'noisy:0.3'"),
        ("--data noisy:2", "out of range"),
        ("--preset smok", "unknown preset 'smok': did you mean 'smoke'?"),
        ("--steps three", "steps must be 'one' or 'two'; got 'three'"),
        ("--learn [ps]", "'ps' is not a function of the one-step loss; choose from psi"),
        ("--learn []", "learn is empty"),
        ("--steps two --learn [psi]", "'psi' is not a function of the two-step loss"),
        ("--policy_std_kind frozen", "std_kind must be one of fixed, learned; got 'frozen'"),
        ("--policy_std 0", "std must be positive; got 0"),
        ("--episodes 0", "episodes must be at least 1; got 0"),
        ("--final_seeds 1", "final_seeds must be at least 2; got 1"),
        ("--pairs 1", "pairs (1) must be at least minibatch_pairs (2)"),
        ("--pairs 0 --minibatch_pairs 0", "must be at least 1"),
        ("--chunk_size 0", "chunk_size must be at least 1; got 0"),
        ("--epochs 0", "epochs must be at least 1; got 0"),
        ("--sft_epochs -1", "sft_epochs and held_out_every must not be negative"),
        ("--held_out_seeds 0", "held_out_seeds must be at least 1; got 0"),
        ("--rival_trials 0", "rival_trials must be at least 1; got 0"),
        ("--fitness_steps 0", "fitness_steps must be at least 1; got 0"),
        ("--fitness_steps 9 --task tla,hopper", "does not go with a curriculum or several tasks"),
        (
            "--fitness_steps 9 --curriculum regret --data base,mixed",
            "does not go with a curriculum or several tasks",
        ),
        ("--rivals sftt", "unknown loss 'sftt': did you mean 'sft'?"),
        ("--rivals ,", "rivals is empty: name at least one"),
        ("--streams own", "streams must be pairs or shared; got 'own'"),
        ("--combine max", "combine must be mean or worst; got 'max'"),
        ("--optimizer adam", "optimizer must be es, cmaes or snes; got 'adam'"),
        ("--space networks", "'networks'"),
        ("--space hyper", "start"),
        ("--warm_start simpo", "a one-step network holds orpo, sft, cpo"),
        ("--warm_start runs/none/objective", "neither a loss of this space nor the folder"),
        ("--data base,noizy:0.3", "unknown data 'noizy:0.3'"),
        ("--start nowhere", "start must be original or scratch; got 'nowhere'"),
        ("--num_actors -1", "num_actors and num_threads must not be negative"),
        (f"--num_actors {CORES + 1}", f"exceeds the {CORES} cores of this machine"),
        (f"--num_actors 2 --num_threads {CORES}", f"2 × {CORES} exceeds the {CORES} cores"),
        ("--ray_address 10.0.0.1:6379", "a Ray cluster needs num_actors of at least 2; got 0"),
        (
            "--ray_address nowhere --num_actors 2",
            "a Ray address is host:port, or auto; got 'nowhere'",
        ),
        ("--config none.yaml", "config: File does not exist"),
        ("--config .", "config: Path is not a file"),
        ("--resume", "there is no run in runs/evolve; start one without --resume"),
        ("--resume --out nowhere", "there is no run in nowhere"),
    ],
)
def test_mistake_is_told_in_one_line_before_any_compute(capsys, no_run, tmp_path, argv, message):
    assert message in one_line_error(capsys, argv.split())
    assert no_run == []
    assert list(tmp_path.iterdir()) == []  # no folder was made, no data built


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"popluation: 4", "unknown key 'popluation': did you mean 'population'?"),
        (b"population: [4", "Problems parsing config"),
        (b"population: few", "Expected a int. Got value: few"),
        (b"\x93\xfe\x00binary", "not text"),
        (b"out: elsewhere", "give --out and --resume on the command line"),
        (b"resume: true", "give --out and --resume on the command line"),
    ],
)
def test_bad_config_file(capsys, no_run, content, message):
    Path("file.yaml").write_bytes(content)
    assert message in one_line_error(capsys, ["--config", "file.yaml"])
    assert no_run == []


def test_folder_in_use(capsys, no_run):
    Path("run").mkdir()
    assert main(["--out", "run"]) == 0  # empty is fine; now it has a config.yaml
    assert "run has a run: go on with --resume, or" in one_line_error(capsys, ["--out", "run"])
    Path("file").touch()
    assert "file exists" in one_line_error(capsys, ["--out", "file"])
    Path("killed").mkdir()
    Path("killed/.config.yaml.tmp").touch()  # what a kill in the first instant leaves
    assert main(["--out", "killed"]) == 0


def test_too_little_disk_for_the_data(capsys, monkeypatch):
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    assert main(["--preset", "smoke", "--out", "run"]) == 2
    assert "the data needs" in capsys.readouterr().err


def test_damaged_agent(capsys, no_run, monkeypatch, tmp_path):
    (tmp_path / "agent").write_bytes(b"not a policy")
    monkeypatch.setattr("torchmpo.control.agents.expert_path", lambda name: tmp_path / "agent")
    assert "agent is not a readable policy file" in one_line_error(capsys, ["--out", "run"])


# --- where settings come from ---


def test_flags_override_the_file_which_overrides_the_preset(no_run):
    Path("mine.yaml").write_text("population: 8\nsigma: 0.1\n")
    main(["--preset", "smoke", "--config", "mine.yaml", "--population", "6", "--out", "run"])
    config = no_run[0][0].config
    assert (config.population, config.sigma) == (6, 0.1)
    assert config.pairs == PRESETS["smoke"]["pairs"]
    assert yaml.safe_load(Path("run/config.yaml").read_text()) == asdict(config)


def test_a_run_folders_config_repeats_the_run(no_run):
    main(["--preset", "smoke", "--seed", "5", "--out", "run"])
    main(["--config", "run/config.yaml", "--out", "again"])
    assert no_run[0][0].config == no_run[1][0].config


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_are_valid(preset):
    config = EvolveConfig(**PRESETS[preset])
    setup = Setup.of(config)
    assert setup.search.population == config.population


def test_every_setting_is_explained():
    for field in fields(EvolveConfig):
        assert f"        {field.name}: " in EvolveConfig.__doc__ + TestbedSettings.__doc__


def test_print_config_can_be_read_back(capsys, no_run):
    with pytest.raises(SystemExit, match="0"):
        main(["--preset", "smoke", "--print_config"])
    Path("printed.yaml").write_text(capsys.readouterr().out)
    assert main(["--config", "printed.yaml"]) == 0
    assert no_run[0][0].config == EvolveConfig(**PRESETS["smoke"])


# --- resuming ---


def test_resume_takes_the_settings_of_the_run(no_run):
    main(["--preset", "smoke", "--population", "6", "--out", "run"])
    for again in ("", "--population 6", "--preset smoke --population 6", "--num_threads 1"):
        assert main(["--out", "run", "--resume", *again.split()]) == 0
    assert {setup.config.population for setup, _ in no_run} == {6}
    assert no_run[-1][0].num_threads == 1


@pytest.mark.parametrize("flags", ["--population 8", "--preset default", "--config other.yaml"])
def test_resume_with_other_settings_says_which(capsys, no_run, flags):
    Path("other.yaml").write_text("population: 8")
    main(["--preset", "smoke", "--out", "run"])
    error = one_line_error(capsys, ["--out", "run", "--resume", *flags.split()])
    key = "pairs is 128" if "preset" in flags else "population is 8"
    assert f"{key}, but the run in run has 4" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("population: [", "is not the configuration of a run"),
        ("- 1", "not a mapping"),
        ("population: 4", "is missing"),
        (None, "unknown key 'colour'"),
    ],
)
def test_resume_with_a_damaged_configuration(capsys, no_run, content, message):
    main(["--preset", "smoke", "--out", "run"])
    path = Path("run/config.yaml")
    path.write_text(path.read_text() + "colour: red\n" if content is None else content)
    assert message in one_line_error(capsys, ["--out", "run", "--resume"])


def test_interrupt_says_how_to_go_on(capsys, monkeypatch):
    def interrupt(setup, out):
        raise KeyboardInterrupt

    monkeypatch.setattr(evolve, "run", interrupt)
    assert main(["--out", "run"]) == 130
    message = capsys.readouterr().err
    assert message == "\ninterrupted; go on with: python -m torchmpo.evolve --out run --resume\n"
    assert COMMAND.parse(["--out", "run", "--resume"])[0] == EvolveConfig()


# --- the real thing, small ---

KILLED = """
    import os, signal, sys
    import torch
    import torchmpo.evolve.run
    from torchmpo.evolve.__main__ import main

    torch.set_num_threads(1)
    flags = "--preset smoke --pairs 2 --episode_steps 10 --num_threads 1".split()

    def in_child(folder, kill):
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return os.waitpid(pid, 0)[1]
        os.environ["TORCHMPO_CACHE"] = f"{folder}-cache"
        count = 0
        def killing(rename):
            def replace(old, new):
                nonlocal count
                count += 1
                rename(old, new)
                if count == kill:
                    os.kill(os.getpid(), signal.SIGKILL)
            return replace
        os.replace, os.rename = killing(os.replace), killing(os.rename)
        started = os.path.exists(f"{folder}/config.yaml")
        code = main([*flags, "--out", folder, *(["--resume"] if started else [])])
        sys.stdout.flush()
        os._exit(code)

    base = sys.argv[1]
    assert in_child(f"{base}/whole", None) == 0
    kills = 0
    while in_child(f"{base}/killed", kills + 1) == signal.SIGKILL:
        kills += 1
    print("kills", kills)
"""


def test_smoke_run_killed_again_and_again_gives_the_same_bytes(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("kills ")
    assert int(result.stdout.split()[-1]) >= 4
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for name in (
        "config.yaml",
        "log.csv",
        "rivals.json",
        "comparison.json",
        "objective/objective.safetensors",
        "objective/card.json",
    ):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert (killed / "figures/fitness.png").exists()
    assert (killed / "figures/gradients.png").exists()
    assert [path.name for path in killed.rglob(".*")] == [".lock"]  # no temporary file is left
    objective = torchmpo.resolve(killed / "objective")
    assert objective.card["comparison"] == {**json.loads((whole / "comparison.json").read_text())}
    assert "generation   2/2" in result.stdout
    assert "vs sft, tuned: " in result.stdout


@pytest.mark.skipif(CORES < 2, reason="two actors need two cores")
def test_smoke_run_on_two_actors_gives_the_same_bytes(tmp_path):
    """Real data, training in two rounds and simulation, in this process and in Ray actors (in a
    process of its own, which Ray may fill with threads and files as it likes)."""
    flags = ["--preset", "smoke", "--pairs", "4", "--episode_steps", "10", "--chunk_size", "3"]
    flags += ["--rounds", "2", "--data", "noisy:0.3,mixed", "--curriculum", "regret"]
    flags += ["--rivals", "slic_hf"]
    for actors in ("0", "2"):
        where = ["--num_actors", actors, "--num_threads", "1", "--out", actors]
        command = [sys.executable, "-m", "torchmpo.evolve", *flags, *where]
        result = subprocess.run(
            [*command, "--cache_dir", "cache"], cwd=tmp_path, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
    for name in ("log.csv", "comparison.json", "objective/objective.safetensors"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_preset_in_a_file(no_run, capsys):
    Path("preset.yaml").write_text("preset: smoke\nepisodes: 3\n")
    assert main(["--config", "preset.yaml"]) == 0
    config = no_run[0][0].config
    assert (config.population, config.episodes) == (PRESETS["smoke"]["population"], 3)
    Path("preset.yaml").write_text("preset: smok\n")
    assert "did you mean 'smoke'" in one_line_error(capsys, ["--config", "preset.yaml"])


def test_a_folder_that_cannot_be_made_is_one_line(capsys, no_run):
    Path("file").write_text("")
    assert "file" in one_line_error(capsys, ["--out", "file/run"])


def test_a_search_of_coefficients_on_two_kinds_of_data(capsys):
    """CMA-ES over closed_form_loss, the worst of two kinds, with curves for TensorBoard."""
    flags = (
        "--preset smoke --pairs 2 --episode_steps 10 --num_threads 1 --out run --space closed_form"
    )
    more = "--optimizer cmaes --data noisy:0.3,mixed --combine worst --tracker tensorboard"
    more += " --search_rate true --sigma 0.1"
    assert main(f"{flags} {more}".split()) == 0
    objective = torchmpo.resolve("run/objective")
    assert objective.inputs == {"chosen_mean_logps", "rejected_mean_logps"}
    began = json.loads(Path("run/learning_rate.json").read_text())["learning_rate"]
    assert objective.card["learning_rate"] not in (None, began)
    comparison = json.loads(Path("run/comparison.json").read_text())
    both = [comparison["data"][kind]["objectives"] for kind in ("noisy:0.3", "mixed")]
    assert all("orpo, tuned" in objectives for objectives in both)
    assert comparison["unit"] == "worst return"
    assert list(Path("run/tensorboard").glob("events.out.tfevents.*"))
    log = Path("run/log.csv").read_text().splitlines()
    assert log[0].endswith(",held_out")
    assert not any(row.endswith(",") for row in log[1:])  # --held_out_every 1
    assert "start (closed form)" in capsys.readouterr().out


def test_hopper_starts_from_scratch_and_robots_with_legs_from_the_original(no_run):
    for task, start in (("hopper", "scratch"), ("tla", "original")):
        assert main(["--task", task, "--pairs", "null", "--out", task]) == 0
        config = no_run[-1][0].testbeds[0]
        assert config.start == start
        assert config.pool.pairs == {"hopper": 5120, "tla": 1280}[task]


def test_an_objective_with_a_reference_starts_with_sft(no_run):
    assert main(["--steps", "two", "--sft_epochs", "9", "--epochs", "11"]) == 0
    setup = no_run[0][0]
    bed = Testbed(setup.testbeds[0], None, None)
    inner = suited(bed, setup.space.objective, setup.protocol.sft_epochs).config.inner
    assert (inner.sft_epochs, inner.epochs) == (9, 2)


def test_rivals_get_as_many_trainings_as_the_search_if_asked(no_run):
    flags = "--rival_trials null --rivals sft,orpo,cpo --population 20 --generations 6"
    assert main(flags.split()) == 0
    setup = no_run[0][0]
    trained = []
    race(lambda tried, k: trained.extend(tried) or tried, setup.rival_trials, setup.protocol)
    assert (setup.rival_trials, len(trained)) == (30, 40)  # 20·6 trainings, of which each has 40


def test_under_a_curriculum_rivals_get_as_many_trainings_as_the_search_made(no_run):
    """It trains on one kind of data a generation, a rival's setting on all of them."""
    flags = "--rival_trials null --rivals sft,orpo,cpo --population 20 --generations 12"
    flags += " --data base,mixed --curriculum "
    for curriculum in ("off", "regret"):
        assert main([*flags.split(), curriculum, "--out", curriculum]) == 0
    every, one = (setup.rival_trials for setup, _ in no_run)
    assert (every, one) == (60, 30)


def test_a_loss_that_no_pair_decides_alone_is_searched_to_the_end(capsys):
    flags = "--preset smoke --pairs 2 --episode_steps 10 --rivals sft --out run"
    assert main([*flags.split(), "--space", "hyper", "--warm_start", "dr_dpo"]) == 0
    out = capsys.readouterr().out
    assert "the figure of gradients leaves it out: dr_dpo has no gradient of a pair" in out
    assert "vs sft, tuned: " in out
    assert Path("run/figures/gradients.png").read_text() == "ORPO SimPO"


def test_rivals_can_be_added_to_a_finished_run(capsys):
    """Nobody is trained twice, and the newcomer scores what it would have from the start."""
    small = ["--preset=smoke", "--pairs=2", "--episode_steps=10", "--num_threads=1", "--out"]
    assert main([*small, "at_once", "--rivals", "sft,orpo"]) == 0
    assert main([*small, "run", "--rivals", "sft"]) == 0
    path = Path("run/comparison.json")
    before = json.loads(path.read_text())["mean_return_by_seed"]
    before["sft, tuned"][0] += 1.0  # shows below that it was not trained again
    path.write_text(json.dumps({"mean_return_by_seed": before}))
    assert main(["--out", "run", "--resume", "--rivals", "orpo"]) == 0
    assert "vs orpo, tuned: " in capsys.readouterr().out
    after = json.loads(path.read_text())
    added = after["mean_return_by_seed"].pop("orpo, tuned")
    assert after["mean_return_by_seed"] == before
    whole = json.loads(Path("at_once/comparison.json").read_text())
    assert added == pytest.approx(whole["mean_return_by_seed"]["orpo, tuned"], rel=1e-4)
    assert yaml.safe_load(Path("run/config.yaml").read_text())["rivals"] == "sft,orpo"
    assert torchmpo.resolve("run/objective").card["comparison"]["differences"].keys() == {
        "start (ORPO)",
        "sft, tuned",
        "orpo, tuned",
    }


@pytest.mark.parametrize("trials", ["2", "null"])
def test_a_search_can_be_made_longer(capsys, trials):
    """With null, rivals have as many trainings as the search, so they are tuned anew."""
    folder = "it's a run, longer"
    small = ["--preset=smoke", "--pairs=2", "--episode_steps=10", "--num_threads=1"]
    small += ["--rivals=orpo", f"--rival_trials={trials}", "--population=2"]
    small += ["--learning_rate=1e-3", "--out"]
    assert main([*small, "whole", "--generations", "3"]) == 0
    assert main([*small, folder, "--generations", "1"]) == 0
    capsys.readouterr()
    assert main(["--out", folder, "--resume", "--generations", "3"]) == 0
    printed = capsys.readouterr().out
    assert ("tuning orpo" in printed) == (trials == "null")
    for name in (
        "config.yaml",
        "log.csv",
        "rivals.json",
        "comparison.json",
        "objective/objective.safetensors",
        "objective/card.json",
    ):
        assert Path(folder, name).read_bytes() == Path("whole", name).read_bytes(), name
    assert main(["--out", folder, "--resume", "--generations", "2"]) == 2
    assert f"generations is 2, but the run in {folder} has 3" in capsys.readouterr().err
    # What it tells to do next can be pasted.
    told = dict(line.split(":", 1) for line in printed.splitlines()[-3:])
    assert shlex.split(told["what it is"])[-1] == folder
    losses = shlex.split(told["on other data"])[-1]
    assert words("losses", losses) == [f"{folder}/objective", "orpo"]
    assert eval(told["objective"], {"torchmpo": torchmpo}).card["dim"] > 0


def test_a_rate_that_a_longer_search_might_not_have_chosen(capsys, no_run, tmp_path):
    flags = "--learning_rate null --rival_trials null --rivals orpo --population 2 --generations 4"
    main([*flags.split(), "--out", "run"])
    Path("run/learning_rate.json").write_text('{"learning_rate": 1e-3, "trials": 8}')
    assert main(["--out", "run", "--resume"]) == 0
    error = one_line_error(capsys, ["--out", "run", "--resume", "--generations", "6"])
    assert "is the best of 8, and a search of 6 generations tries 9: choose another" in error
    assert yaml.safe_load(Path("run/config.yaml").read_text())["generations"] == 4
    assert main(["--out", "run", "--resume", "--rivals", "sft"]) == 0  # later rivals change no rate


def test_an_antagonist_that_a_longer_search_would_have_tuned_otherwise(capsys, no_run, tmp_path):
    flags = "--learning_rate 1e-3 --rival_trials null --population 2 --generations 4"
    flags += " --data base,mixed --curriculum regret --out run"
    main(flags.split())
    Path("run/antagonist.json").write_text("{}")
    error = one_line_error(capsys, ["--out", "run", "--resume", "--generations", "6"])
    assert "the antagonist of the run in run was tuned with as many trials as follow" in error
    assert main(["--out", "run", "--resume"]) == 0


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("comparison", {}, "mean_return_by_seed: Field required"),
        ("comparison", {"mean_return_by_seed": {}}, "mean_return_by_seed: Dictionary should have"),
        ("comparison", {"mean_return_by_seed": {"sft": [1, None]}}, "sft[1]: Input should be a"),
        ("comparison", {"mean_return_by_seed": {"sft": [1.0]}}, "returns of 2 seeds are expected"),
        ("comparison", {"mean_return_by_seed": {"sft": ["1", "2"]}}, "sft[0]: Input should be a"),
        (
            "comparison",
            {"mean_return_by_seed": {"sft": [1.0, math.inf]}},
            "a return is not infin",
        ),
        ("comparison", {"mean_return_by_seed": {"sft": [[1.0], [2.0]]}}, "sft[0]: Input should"),
        ("rivals", [], "Input should be a valid dictionary"),
        ("rivals", {"sft": {"setting": {}}}, "sft.score_in_tuning: Field required"),
        (
            "rivals",
            {"sft": {"setting": {"a": 1}, "score_in_tuning": 1, "trials": 1}},
            "sft has no 'a'",
        ),
        (
            "rivals",
            {"orpo": {"setting": {"po_coef": "1"}, "score_in_tuning": 1, "trials": 1}},
            "orpo.setting.po_coef: Input should be a valid number",
        ),
        (
            "rivals",
            {"orpo": {"setting": {"po_coef": math.nan}, "score_in_tuning": 1, "trials": 1}},
            "orpo.setting.po_coef: Input should be a finite number",
        ),
        (
            "rivals",
            {"sft": {"setting": {}, "score_in_tuning": 1, "trials": -1}},
            "trials: Input should be greater than or equal to 0",
        ),
        ("learning_rate", {}, "learning_rate: Field required"),
        ("learning_rate", {"learning_rate": 0.0}, "learning_rate: Input should be greater than 0"),
        ("learning_rate", {"learning_rate": math.inf}, "learning_rate: Input should be a finite"),
    ],
)
def test_files_of_a_run_that_were_edited(capsys, no_run, name, content, reason):
    assert main(["--preset", "smoke", "--out", "run"]) == 0
    path = Path("run", f"{name}.json")
    path.write_text(json.dumps(content))
    error = one_line_error(capsys, ["--out", "run", "--resume"])
    assert str(path) in error
    assert reason in error
    assert "delete it and --resume" in error
    path.unlink()
    assert main(["--out", "run", "--resume"]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def loss(:", "my_rivals:loss: SyntaxError: invalid syntax (my_rivals.py, line 1)"),
        ("loss = 1 / 0", "my_rivals:loss: ZeroDivisionError: division by zero (HERE, line 1)"),
        (
            "def loss(chosen_logps):\n    return chosen_logps.nothing",
            "my_rivals:loss: AttributeError: 'Tensor' object has no attribute 'nothing' (HERE",
        ),
        (
            "def loss(chosen_logps):\n    return -chosen_logps if chosen_logps.sum() < 0 else 0",
            "my_rivals:loss: it branches on the values of a tensor, by if, while",
        ),
        (
            "import random\ndef loss(chosen_logps):\n    return -chosen_logps * random.random()",
            "my_rivals:loss answers differently when it is called again",
        ),
        ("def loss(chosen_logps):\n    return loss(chosen_logps)", "RecursionError"),
    ],
)
def test_what_ones_own_rival_raises(capsys, no_run, monkeypatch, text, message):
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "my_rivals", raising=False)
    path = Path("my_rivals.py").absolute()
    path.write_text(text)
    error = one_line_error(capsys, ["--preset", "smoke", "--rivals", "sft,my_rivals:loss"])
    assert message.replace("HERE", str(path)) in error
    assert no_run == []
    sys.modules.pop("my_rivals", None)


def test_a_rival_or_a_start_that_has_changed_is_noticed(capsys, no_run, monkeypatch):
    monkeypatch.syspath_prepend(".")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # same size, same second

    def write(text):
        Path("my_rivals.py").write_text(text)
        importlib.invalidate_caches()
        linecache.checkcache()
        sys.modules.pop("my_rivals", None)

    mine = "S = -1\ndef loss(chosen_mean_logps): return S * chosen_mean_logps\n"
    torchmpo.MirrorObjective().save("start", {})
    write(mine)
    flags = ["--preset", "smoke", "--rivals", "sft,my_rivals:loss", "--warm_start", "start"]
    assert main([*flags, "--out", "run"]) == 0
    write(mine.replace("-1", "+1"))
    error = one_line_error(capsys, ["--out", "run", "--resume", "--trust"])
    assert "my_rivals:loss has changed since the run in run was made" in error
    write(mine)
    assert main(["--out", "run", "--resume", "--trust"]) == 0
    torchmpo.MirrorObjective(initial={"g_log": 0.5}).save("start", {})
    error = one_line_error(capsys, ["--out", "run", "--resume", "--trust"])
    assert "start has changed since the run in run was made" in error
    error = one_line_error(capsys, ["--out", "run", "--resume"])
    assert "run/config.yaml names code to run, my_rivals:loss" in error


def test_a_rate_that_is_not_given_is_tuned_for_the_search_and_for_every_rival(capsys):
    short = ["--episode_steps", "10", "--final_seeds", "2", "--rivals", "sft,orpo"]
    flags = ["--preset", "smoke", "--learning_rate", "null", "--rival_trials", "3", *short, "--out"]
    assert main([*flags, "run"]) == 0
    found = json.loads(Path("run/learning_rate.json").read_text())
    assert found["trials"] == 3
    rivals = json.loads(Path("run/rivals.json").read_text())
    assert all("learning_rate" in rival["setting"] for rival in rivals.values())
    assert rivals["sft"]["trials"] == 3  # which has nothing else to tune
    assert torchmpo.resolve("run/objective").card["learning_rate"] == found["learning_rate"]
    # The search is the one at that rate; the comparison differs by the rivals' own rates only.
    rate = str(found["learning_rate"])
    assert main([*flags[:3], rate, *flags[4:], "fixed"]) == 0
    assert Path("run/log.csv").read_bytes() == Path("fixed/log.csv").read_bytes()
    of = {name: json.loads(Path(name, "comparison.json").read_text()) for name in ("run", "fixed")}
    first = {name: c["mean_return_by_seed"]["discovered"] for name, c in of.items()}
    assert first["run"] == first["fixed"]
    # What was tuned is not tuned again.
    before = Path("run/comparison.json").read_bytes()
    capsys.readouterr()
    assert main(["--out", "run", "--resume"]) == 0
    assert "tuning" not in capsys.readouterr().out
    assert Path("run/comparison.json").read_bytes() == before
    Path("run/learning_rate.json").write_text("{}")
    assert main(["--out", "run", "--resume"]) == 2
    assert (
        "learning_rate.json is damaged (learning_rate: Field required): delete it"
        in capsys.readouterr().err
    )


OLDER = {
    "tuning_seeds": 1,
    "tuning_reduction": 1,
    "streams": "shared",
    "search_rate": False,
    "final_data_per_seed": False,
}


def test_a_run_of_before_there_were_these_settings_goes_on(no_run):
    assert main(["--out", "run"]) == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    for name in OLDER:
        del config[name]
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    Path("run/made_of.json").unlink()  # which such a run has not either
    assert main(["--out", "run", "--resume"]) == 0
    resumed = asdict(no_run[-1][0].config)
    assert {name: resumed[name] for name in OLDER} == OLDER
    assert no_run[-1][0].streams == []


def test_pairs_of_opposite_members_have_a_stream_each(no_run):
    assert main(["--population", "6", "--out", "es"]) == 0
    assert no_run[-1][0].streams == [1, 2, 2, 3, 3, 4, 4]  # the centre first
    assert main(["--optimizer", "cmaes", "--out", "cmaes"]) == 0
    assert no_run[-1][0].streams == []


def test_an_interrupted_comparison_goes_on_where_it_was(capsys, monkeypatch):
    small = ["--preset=smoke", "--pairs=2", "--episode_steps=10", "--num_threads=1"]
    assert main([*small, "--out", "whole"]) == 0
    returns, calls = evolve.seed_returns, []

    def interrupted(testbeds, contestants, *args, **kwargs):
        calls.append([*contestants])
        if len(calls) > 2 and args[3] == "final":
            raise KeyboardInterrupt
        return returns(testbeds, contestants, *args, **kwargs)

    monkeypatch.setattr(evolve, "seed_returns", interrupted)
    flags = [*small, "--held_out_every=0", "--out", "run"]
    assert main(flags) == 130
    kept = json.loads(Path("run/comparison.json").read_text())["mean_return_by_seed"]
    assert [*kept] == ["discovered", "start (ORPO)"]
    assert Path("run/final_data").is_dir()
    monkeypatch.setattr(evolve, "seed_returns", returns)
    assert main(["--out", "run", "--resume"]) == 0
    assert not Path("run/final_data").exists()
    comparisons = [Path(name, "comparison.json").read_bytes() for name in ("run", "whole")]
    assert comparisons[0] == comparisons[1]


def explode(chosen_mean_logps):
    """What no step size can train."""
    return chosen_mean_logps * float("inf")


def test_a_rival_that_diverges_at_every_setting_is_named(capsys):
    flags = ["--preset=smoke", "--pairs=2", "--episode_steps=10", "--num_threads=1"]
    flags += ["--held_out_every=0", "--rivals", f"sft,{__name__}:explode", "--out", "run"]
    assert main(flags) == 0
    told = capsys.readouterr().out
    assert f"vs {__name__}:explode: not comparable, every setting diverged in tuning" in told
    comparison = json.loads(Path("run/comparison.json").read_text())
    assert comparison["diverged_in_tuning"] == [f"{__name__}:explode"]
    assert torchmpo.resolve("run/objective").card["comparison"] == comparison
    before = Path("run/comparison.json").read_bytes()
    assert main(["--out", "run", "--resume", "--trust"]) == 0
    assert Path("run/comparison.json").read_bytes() == before
