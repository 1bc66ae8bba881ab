"""Logging a run to TensorBoard, Weights & Biases, MLflow or trackio: ``--tracker NAME``.

All of them by one interface, Lightning's loggers. Without more, nothing leaves this machine: what
they write is in the folder of the run, unless a tracker's own environment variable says otherwise
(``WANDB_MODE``, ``MLFLOW_TRACKING_URI``, ``TRACKIO_DIR``).
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchmpo.runs.errors import UserError, nearest
from torchmpo.runs.extras import how_to_install

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
PROJECT = "torchmpo"
FILES = ("tensorboard", "wandb", "mlflow.db", "mlruns", "trackio")  # what they write in a folder


def trackers_of(text: str | None) -> dict[str, str]:
    """The trackers that a setting names, each with its project.

    Args:
        text: names by commas, each with a project or not, as in ``tensorboard,wandb:mine``; None
            for none.

    Raises:
        UserError: a name is unknown, or its client is not installed.

    >>> trackers_of("tensorboard")
    {'tensorboard': 'torchmpo'}
    """
    found = {}
    for part in [] if text is None else text.split(","):
        name, _, project = part.strip().partition(":")
        if name not in TRACKERS:
            raise UserError(f"unknown tracker {name!r}: {nearest(name, TRACKERS)}")
        if find_spec("lightning") is None:
            raise UserError(how_to_install("lightning", "logging"))
        # A folder here of that name counts as a package, but one without a file.
        if (client := find_spec(name)) is None or client.origin is None:
            raise UserError(f"--tracker {name}: {name} is not installed: pip install {name}")
        found[name] = project or PROJECT
    return found


@contextmanager
def tracked(
    trackers: Mapping[str, str], out: Path, settings: Mapping[str, Any], online: bool = False
) -> Iterator[list["Logger"]]:
    """The loggers of :func:`start_trackers`, which are closed at the end of the block."""
    loggers, state = start_trackers(trackers, out, settings, online), "failed"
    try:
        yield loggers
        state = "success"
    finally:
        for name, logger in zip(trackers, loggers, strict=True):
            logger.finalize(state)
            if name == "wandb":  # Lightning leaves the run open, and the next one would go into it
                run: Any = getattr(logger, "experiment")  # noqa: B009 -- no part of Logger
                run.finish(exit_code=int(state != "success"))


def start_trackers(
    trackers: Mapping[str, str], out: Path, settings: Mapping[str, Any], online: bool = False
) -> list["Logger"]:
    """Loggers that have been told the settings of a run.

    Args:
        trackers: of :func:`trackers_of`.
        out: folder of the run; its name is that of the run.
        settings: of the run.
        online: whether W&B may use the network without ``WANDB_MODE``.
    """
    loggers = [_logger(name, project, out, online) for name, project in trackers.items()]
    for logger in loggers:
        logger.log_hyperparams(dict(settings))
    return loggers


def _logger(name: str, project: str, out: Path, online: bool) -> "Logger":
    run = out.resolve().name
    if name == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(out, name="tensorboard", version="")
    if name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        offline = not online and "WANDB_MODE" not in os.environ
        return WandbLogger(project=project, name=run, save_dir=out, offline=offline)
    if name == "mlflow":
        from lightning.pytorch.loggers import MLFlowLogger

        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        where = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(out / 'mlflow.db').resolve()}")
        files = str((out / "mlruns").resolve())
        return MLFlowLogger(project, run, where, artifact_location=files)
    from torchmpo.runs.trackio_logger import TrackioLogger

    return TrackioLogger(project, run, out / "trackio")


def tag(name: str) -> str:
    """A name of a curve that every tracker takes.

    >>> tag("0.8*dpo+sft on noisy:0.3/return")
    '0.8_dpo_sft on noisy_0.3/return'
    """
    return re.sub(r"[^\w/. -]", "_", name)
