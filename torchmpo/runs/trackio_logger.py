"""trackio as a logger of Lightning's, which has none for it."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class TrackioLogger(Logger):
    """Logs to trackio's files on this machine.

    Args:
        project: of trackio.
        run: its name; a run of that name in the project goes on.
        folder: where they are, unless ``TRACKIO_DIR`` says otherwise.
    """

    def __init__(self, project: str, run: str, folder: Path):
        super().__init__()
        self.project, self.run = project, run
        os.environ.setdefault("TRACKIO_DIR", str(folder.resolve()))  # read when it is imported
        self.begun = False
        self.settings: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The project."""
        return self.project

    @property
    def version(self) -> str:
        """The run."""
        return self.run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Keep them until the first metrics: trackio is told them where a run begins."""
        self.settings |= dict(params) if isinstance(params, Mapping) else vars(params)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write them."""
        trackio = importlib.import_module("trackio")
        if not self.begun:
            trackio.init(project=self.project, name=self.run, config=self.settings, resume="allow")
            self.begun = True
        trackio.log(metrics, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run."""
        if self.begun:
            importlib.import_module("trackio").finish()
            self.begun = False
