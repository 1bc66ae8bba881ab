"""The command that shows an objective: what it finds, writes and refuses; nothing is blank."""

import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from matplotlib.image import imread

from torchmpo import MirrorObjective, resolve
from torchmpo.objectives.gradients import gradients
from torchmpo.show import run as show
from torchmpo.show.__main__ import main
from torchmpo.show.settings import Request


def learned(**architecture):
    objective = MirrorObjective(**architecture)
    with torch.no_grad():
        noise = torch.randn(objective.dim, generator=torch.Generator().manual_seed(0))
        objective.vector.copy_(0.05 * noise)
    return objective


def comparison():
    numbers = {"mean": 3851.0, "se": 53.0, "low": 3744.0, "high": 3959.0, "diverged": 0}
    return {"objectives": {"discovered": numbers}, "differences": {}}


@pytest.fixture
def run(tmp_path):
    """A finished run of a search."""
    folder = tmp_path / "run"
    card = {"name": "found on toys", "fitness_of_start": 3575.2, "fitness_of_final_centre": 3848.6}
    learned().save(folder / "objective", {**card, "comparison": comparison(), "config": {}})
    (folder / "config.yaml").write_text("task: tla\n")
    return folder


def drawn(folder, names):
    """Whether each figure is a readable PNG and SVG with something in it."""
    for name in names:
        pixels = imread(folder / f"{name}.png")[..., :3]
        assert min(pixels.shape[:2]) > 300, name
        assert len({tuple(p) for p in pixels[::7, ::7].reshape(-1, 3).tolist()}) > 10, name
        svg = ElementTree.parse(folder / f"{name}.svg")
        assert svg.getroot().tag.endswith("svg")
    return True


def test_a_run_is_shown_and_distilled(run, capsys):
    assert main([str(run), "--distill", "--low", "-3", "--high", "-0.1"]) == 0
    assert drawn(run / "show", ["functions", "gradients", "pull"])
    out = capsys.readouterr().out
    for words in ("found on toys", "3575", "3849", "3851 ± 53", "one-step", "R²", "loss = "):
        assert words in out
    closed = resolve(run / "show" / "closed_form")
    assert closed.card["verdict"] in out
    assert closed.name == "closed_form"
    scope: dict = {}
    exec((run / "show" / "distilled.py").read_text(), scope)
    x, y = torch.linspace(-3, -0.1, 9), torch.linspace(-0.1, -2, 9)
    for a, b in zip(gradients(closed, x, y), gradients(resolve(scope["distilled_loss"]), x, y)):
        torch.testing.assert_close(a, b)


def test_the_same_request_writes_the_same_bytes(run):
    argv = [str(run), "--beside", "none", "--distill"]
    assert main(argv) == 0
    first = {p.name: p.read_bytes() for p in (run / "show").rglob("*") if p.is_file()}
    assert main(argv) == 0
    assert first == {p.name: p.read_bytes() for p in (run / "show").rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("what", "title", "out"),
    [
        ("run", "discovered", "run/show"),
        ("run/objective", "discovered", "run/show"),
        ("simpo", "simpo", "runs/show/simpo"),
        (
            "torchmpo.losses:sft_loss",
            "torchmpo.losses:sft_loss",
            "runs/show/torchmpo_losses_sft_loss",
        ),
    ],
)
def test_what_is_found_and_where_its_figures_go(run, monkeypatch, what, title, out):
    monkeypatch.chdir(run.parent)
    objective, name, folder = show.find(what)
    assert (name, folder.as_posix()) == (title, out)
    assert isinstance(objective, MirrorObjective) == ("run" in what)


def test_a_named_loss_has_no_functions_to_show(tmp_path, capsys):
    assert main(["simpo", "--out", str(tmp_path), "--beside", "sft"]) == 0
    assert drawn(tmp_path, ["gradients", "pull"])
    assert not (tmp_path / "functions.png").exists()
    assert "Objective(simpo, beta=2.0, target_margin=0.5, sft_coef=0.0, " in capsys.readouterr().out


def test_a_temporal_objective_is_shown_at_three_times(tmp_path):
    learned(temporal=True).save(tmp_path / "objective", {})
    assert main([str(tmp_path), "--beside", "none", "--distill"]) == 0
    folder = tmp_path / "show"
    assert drawn(folder, ["functions", "gradients", "pull"])

    def width(name):
        return struct.unpack(">I", (folder / f"{name}.png").read_bytes()[16:20])[0]

    assert width("gradients") > 1500  # three columns and the distilled one
    assert resolve(folder / "closed_form").card["where"].startswith("all over")
    pairs = show.everywhere(learned(temporal=True), -8.0, -0.05)
    assert pairs.progress.unique().tolist() == [0.0, 0.5, 1.0]
    assert len(pairs.progress) == len(pairs.chosen) == 3 * 41**2


@pytest.mark.parametrize("architecture", [{"learn": ["psi"]}, {"learn": []}, {"steps": "two"}])
def test_whatever_is_learned_can_be_drawn(tmp_path, architecture):
    learned(**architecture).save(tmp_path / "objective", {"anything": [1]})
    assert main([str(tmp_path)]) == 0
    assert drawn(tmp_path / "show", ["functions", "gradients", "pull"])


def test_two_folders_of_one_name_are_both_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = [f"{run}/mine" for run in ("first", "second", "third")]
    for place in places:
        learned().save(Path(place), {})
    found = show.rivals_of(learned(), Request(places[0], beside=places[1:]), "mine")
    assert list(found) == ["second/mine", "third/mine"]
    assert list(show.rivals_of(learned(), Request("x", beside=places))) == ["mine", *places[1:]]


def test_few_units_are_not_chosen_where_the_reference_is_not_known(run, capsys):
    learned(steps="two").save(run / "objective", {"config": {}})
    assert main([str(run), "--visit", "--sparse"]) == 2
    assert "not note which the training had: give one" in capsys.readouterr().err


def test_a_loss_with_a_reference_stands_beside_its_like():
    assert list(show.rivals_of(resolve("dpo"), Request("dpo"))) == ["ipo"]
    assert list(show.rivals_of(learned(), Request("x"))) == ["orpo", "simpo"]
    assert list(show.rivals_of(learned(), Request("x", beside=["sft"]))) == ["sft"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "required: what"),
        (["simp"], "did you mean 'simpo'"),
        (["runs/nothing"], "is not a readable saved objective"),
        (["simpo", "--beside", "orp"], "did you mean 'orpo'"),
        (["simpo", "--beside", ","], "beside is empty"),
        (["simpo", "--low", "-1", "--high", "-2"], "--low must be below --high; got -1 and -2"),
        (["simpo", "--low", "nan"], "--low must be below --high"),
        (["simpo", "--low", "deep"], "invalid float value: 'deep'"),
        (["simpo", "--colour"], "unrecognized arguments: --colour"),
        (["simpo", "--visit"], "does not say what data found it"),
        (["dpo", "--distill"], "has a reference"),
        (["aot"], "aot cannot be drawn"),
        (["simpo", "--beside", "madpo"], "madpo cannot be drawn"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def loss(:", "shown_losses:loss: SyntaxError: invalid syntax (shown_losses.py, line 1)"),
        ("loss = 1 / 0", "shown_losses:loss: ZeroDivisionError: division by zero (HERE, line 1)"),
        (
            "def loss(chosen_logps):\n    if len(chosen_logps) != 3:\n        1 / 0\n"
            "    return -chosen_logps",
            "shown_losses:loss: ZeroDivisionError: division by zero (HERE, line 3)",
        ),
        ("def loss(chosen_logps):\n    return loss(chosen_logps)", "RecursionError"),
        ("def loss(chosen_logps):\n    return chosen_logps.detach()", "has no gradient: its value"),
        ("import torch\nloss = torch.nn.LogSigmoid()", "is an nn.Module: write a function"),
    ],
)
def test_what_ones_own_loss_raises_is_one_line(tmp_path, monkeypatch, capsys, text, words):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "shown_losses", raising=False)
    (tmp_path / "shown_losses.py").write_text(text)
    assert main(["shown_losses:loss", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words.replace("HERE", str(tmp_path / "shown_losses.py")) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    sys.modules.pop("shown_losses", None)


def test_a_diagnosis_finds_nothing_that_could_be_shown(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("task: tla\n")
    (tmp_path / "anchors.json").write_text("{}")
    assert main([str(tmp_path)]) == 2
    assert "is a diagnosis, which finds no objective" in capsys.readouterr().err


def test_an_unfinished_run_says_so(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("task: tla\n")
    assert main([str(tmp_path)]) == 2
    assert "holds no objective" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["sft", "--out", str(tmp_path / "file" / "show")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


class FakeBed:
    """A testbed whose policy says what it is asked: a training that goes from −3 to −1."""

    config = SimpleNamespace(
        inner=SimpleNamespace(epochs=2, sft_epochs=1, learning_rate=1e-3),
        rounds=SimpleNamespace(count=1),
    )
    dataset, policy = None, None

    def train(self, objective, params, population, seed, *, on_epoch):
        self.params, self.population = params, population
        for epoch in range(4):
            on_epoch(epoch, [0], {"level": torch.tensor([epoch - 3.0])})


def test_visits_are_the_pairs_of_every_epoch_after_sft(monkeypatch):
    asked, bed = {}, FakeBed()

    def configured(settings, kind, num_threads):
        asked.update(vars(settings) | {"data": kind, "num_threads": num_threads})
        return SimpleNamespace(data_pool=None)

    class Sample:
        def mean_logps(self, policy, params):
            level = float(params["level"])
            return torch.tensor([[[level, level], [level - 0.5, float("nan")]]])

    monkeypatch.setattr(show, "configure", configured)
    monkeypatch.setattr(show, "check_space", lambda pool: None)
    monkeypatch.setattr(show, "prepare", lambda configs: [bed])
    monkeypatch.setattr(show, "suited", lambda bed, objective, sft_epochs: bed)
    monkeypatch.setattr(show.Sample, "of", lambda data: Sample())
    config = {"task": "ant", "data": "mixed", "epochs": 2, "num_actors": 9, "of_old": 1}
    objective = learned()
    pairs = show.visits(objective, config | {"space": "network", "warm_start": "gone/objective"})
    assert (asked["task"], asked["data"], asked["epochs"]) == ("ant", "mixed", 2)
    assert (asked["num_threads"], asked["compile"]) == (0, False)
    # One of two pairs is NaN everywhere, and SFT is no part of it.
    assert pairs.chosen.tolist() == [-2.0, -1.0, 0.0]
    assert pairs.rejected.tolist() == [-2.5, -1.5, -0.5]
    assert pairs.progress.tolist() == [0.0, 0.5, 1.0]
    assert bed.params.shape == (1, objective.dim)
    assert "ant, mixed" in pairs.where
    assert pairs.range() == (-2.5, 0.0)
    show.visits(resolve("simpo"), config)
    assert bed.params["beta"].tolist() == [2.0]


@pytest.mark.parametrize("loss", ["orpo", "dpo"])
def test_in_rounds_the_progress_of_visits_is_that_of_the_round(tmp_path, monkeypatch, loss):
    """From 0 to 1, as losses get it, and without the supervised epochs of any round."""
    monkeypatch.setenv("TORCHMPO_CACHE", str(tmp_path))
    config = {"task": "tla", "data": "base", "pairs": 4, "episode_steps": 8, "rounds": 2}
    config |= {"epochs": 3, "sft_epochs": 1, "steps_per_trajectory": 4}
    pairs = show.visits(resolve(loss), config)
    epochs = 2 if loss == "dpo" else 3
    places = [k / epochs for k in range(epochs + 1)]
    assert pairs.progress.unique().tolist() == pytest.approx(places)
    # Both rounds have an end, which for the first one is where the second begins.
    assert (pairs.progress == 1).sum() == (pairs.progress == 0).sum() == 2 * 4


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"task": "bad_code:loss"}, "its task is code to run, bad_code:loss"),
        ({"task": "tla,bad_code:loss"}, "its task is code to run, bad_code:loss"),
        ({"data": "bad_code:loss"}, "unknown data 'bad_code:loss'"),
        ({"pairs": 10**9}, "the data needs "),
        ({"epochs": 10**9}, "epochs must be at most 1000000"),
        ({"pairs": "many"}, "--visit: the run's settings do not fit"),
        ({"epochs": None}, "--visit: the run's settings do not fit"),
        ({"data": []}, "--visit: the run's settings do not fit"),
        ({"data": ""}, "data is empty"),
    ],
)
def test_a_card_names_no_code_and_asks_for_nothing_beyond_measure(
    tmp_path, monkeypatch, capsys, config, words
):
    """Nothing that a card says is imported; one that came from elsewhere may say anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "bad_code.py").write_text("open('ran', 'w').close()\n")
    names = dict.fromkeys(("losses", "rivals", "warm_start", "loss", "judge"), "bad_code:loss")
    found = {"data": "base", **names, **config}
    learned().save("run/objective", {"name": "bad_code:loss", "config": found})
    assert main(["run", "--visit"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_visits_of_a_real_run(tmp_path):
    """The settings that a card leaves out are the default ones."""
    from torchmpo.evolve.settings import PRESETS

    config = {"task": "tla", "data": "base,mixed", **PRESETS["smoke"], "cache_dir": str(tmp_path)}
    # A search that tunes its learning rate writes beside its settings which it found.
    learned().save(tmp_path / "objective", {"config": config, "learning_rate": 0.002})
    assert main([str(tmp_path), "--visit", "--distill", "--beside", "none"]) == 0
    card = resolve(tmp_path / "show" / "closed_form").card
    assert card["where"] == "visited in training on tla, base,mixed, at a step size of 0.002"
    assert card["pairs"] == 2 * 4 * 3  # of each kind, before and after both epochs


def test_the_command_line_runs_as_a_program(tmp_path):
    argv = [
        sys.executable,
        "-m",
        "torchmpo.show",
        "sft",
        "--out",
        str(tmp_path),
        "--beside",
        "none",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "pull.png" in done.stdout
    assert done.stderr == ""
