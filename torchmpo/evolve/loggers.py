"""Logging a run to TensorBoard or Weights & Biases, through Lightning's loggers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmpo.runs.errors import UserError


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
    try:
        if tensorboard:
            from lightning.pytorch.loggers import TensorBoardLogger

            loggers.append(TensorBoardLogger(out, name="tensorboard", version=""))
        if wandb is not None:
            from lightning.pytorch.loggers import WandbLogger

            loggers.append(WandbLogger(project=wandb, save_dir=out))
    except ModuleNotFoundError as error:
        raise UserError(
            "--tensorboard and --wandb need packages that are not installed: "
            "pip install 'torchmpo[logging]'"
        ) from error
    for logger in loggers:
        logger.log_hyperparams(dict(settings))
    return loggers
