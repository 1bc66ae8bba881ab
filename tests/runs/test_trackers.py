"""What was logged is in the files of a tracker, or was said to its client; nothing leaves home."""

import importlib.util
import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch.loggers as lightning_loggers
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from torchmpo.evolve.settings import PRESETS, EvolveConfig
from torchmpo.evolve.setup import Setup
from torchmpo.runs import trackers
from torchmpo.runs.errors import UserError
from torchmpo.runs.trackers import tracked, trackers_of

ROWS = [{"return": 0.5, "score": -1.0}, {"return": 0.75}]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY", "TRACKIO_DIR"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda n: ModuleSpec(n, None, origin="x"))


def log(text: str, out: Path, **options: bool) -> None:
    with tracked(trackers_of(text), out, {"seed": 3}, **options) as loggers:
        for step, row in enumerate(ROWS):
            for logger in loggers:
                logger.log_metrics(row, step)


def test_tensorboard_has_every_number(tmp_path):
    log("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("return")]
    assert found == [(0, 0.5), (1, 0.75)]
    assert (tmp_path / "tensorboard" / "hparams.yaml").read_text() == "seed: 3\n"


def test_trackio_is_told_settings_first_and_then_every_number(tmp_path, monkeypatch, installed):
    calls = []

    def client(name):
        return lambda *args, **kwargs: calls.append((name, *args, kwargs))

    fake = SimpleNamespace(**{name: client(name) for name in ("init", "log", "finish")})
    monkeypatch.setitem(sys.modules, "trackio", fake)
    log("trackio:mine", tmp_path / "run")
    begin = {"project": "mine", "name": "run", "config": {"seed": 3}, "resume": "allow"}
    steps = [("log", row, {"step": step}) for step, row in enumerate(ROWS)]
    assert calls == [("init", begin), *steps, ("finish", {})]
    assert Path(trackers.os.environ["TRACKIO_DIR"]) == tmp_path / "run" / "trackio"


def test_nothing_leaves_this_machine_unless_asked(tmp_path, monkeypatch, installed):
    made = []
    for name in ("WandbLogger", "MLFlowLogger"):

        def make(*args, label=name, **kwargs):
            made.append((label, args, kwargs))
            names = ("log_hyperparams", "log_metrics", "finalize")
            run = SimpleNamespace(finish=lambda exit_code: None)
            return SimpleNamespace(experiment=run, **dict.fromkeys(names, lambda *args: None))

        monkeypatch.setattr(lightning_loggers, name, make)
    log("wandb, mlflow:mine", tmp_path)
    (_, _, to_wandb), (_, to_mlflow, _) = made
    where = {"project": "torchmpo", "name": tmp_path.name, "save_dir": tmp_path}
    assert to_wandb == where | {"offline": True}
    assert to_mlflow == ("mine", tmp_path.name, f"sqlite:///{tmp_path}/mlflow.db")
    assert trackers.os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    log("wandb", tmp_path, online=True)
    monkeypatch.setenv("WANDB_MODE", "online")
    log("wandb", tmp_path)
    assert [kwargs["offline"] for _, _, kwargs in made[2:]] == [False, False]


def test_a_folder_of_that_name_is_no_client(monkeypatch, tmp_path):
    (tmp_path / "trackio").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="trackio is not installed"):
        trackers_of("trackio")


def test_a_missing_client_and_an_unknown_one_are_one_line(monkeypatch):
    here = importlib.util.find_spec
    monkeypatch.setattr(trackers, "find_spec", lambda n: None if n == "mlflow" else here(n))
    with pytest.raises(UserError, match="tracker mlflow: mlflow is not installed: pip install ml"):
        trackers_of("tensorboard,mlflow")
    with pytest.raises(UserError, match="unknown tracker 'tensorbord': did you mean 'tensorboard'"):
        trackers_of("tensorbord")
    with pytest.raises(UserError, match="unknown tracker ''"):
        trackers_of("")
    assert trackers_of(None) == {}
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="lightning is not installed"):
        trackers_of("mlflow")


def test_the_older_options_of_a_search_name_trackers(installed):
    config = EvolveConfig(
        **PRESETS["smoke"], tracker="mlflow:a,trackio", tensorboard=True, wandb="b"
    )
    given = {"mlflow": "a", "trackio": "torchmpo"}
    assert Setup.of(config).trackers == given | {"tensorboard": "torchmpo", "wandb": "b"}
    config = EvolveConfig(**PRESETS["smoke"], wandb="a,b")
    assert Setup.of(config).trackers == {"wandb": "a,b"}


@pytest.mark.parametrize("state", ["success", "failed"])
def test_the_next_run_of_a_program_is_another_one_of_wandb(tmp_path, monkeypatch, installed, state):
    calls = []

    def make(**_):
        run = SimpleNamespace(finish=lambda exit_code: calls.append(exit_code))
        methods = ("log_hyperparams", "log_metrics")
        own = {"experiment": run, "finalize": calls.append}
        return SimpleNamespace(**own, **dict.fromkeys(methods, lambda *args: None))

    monkeypatch.setattr(lightning_loggers, "WandbLogger", make)
    with suppress(ZeroDivisionError), tracked({"wandb": "mine"}, tmp_path, {}):
        _ = 1 / (state == "success")
    assert calls == [state, int(state == "failed")]
