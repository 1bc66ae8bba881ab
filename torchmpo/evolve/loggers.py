"""Logging a run to TensorBoard or Weights & Biases, through Lightning's loggers."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torchmpo.runs.errors import UserError
from torchmpo.runs.extras import how_to_install


def start_loggers(
    out: Path, settings: Mapping[str, Any], *, tensorboard: bool, wandb: str | None
) -> list[Any]:
    """The loggers asked for, which have been told the settings of the run.

    Args:
        out: folder of the run; ``tensorboard/`` and ``wandb/`` go there.
        settings: of the run.
        wandb: project, or None for no W&B. Its own environment variables apply, such as
            ``WANDB_MODE=offline``.

    Raises:
        UserError: a package is missing.
    """
    loggers = []
    if tensorboard:
        _require("lightning", "tensorboard")
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(out, name="tensorboard", version=""))
    if wandb is not None:
        _require("lightning", "wandb")
        from lightning.pytorch.loggers import WandbLogger

        loggers.append(WandbLogger(project=wandb, save_dir=out))
    for logger in loggers:
        logger.log_hyperparams(dict(settings))
    return loggers


def _require(*packages: str) -> None:
    """Ask before Lightning does: its own error does not name the package."""
    for package in packages:
        if find_spec(package) is None:
            raise UserError(how_to_install(package, "logging"))
