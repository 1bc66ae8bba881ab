import sys
from types import SimpleNamespace

import pytest
import torch
from pages import ROOT, Page


class DPOTrainer:
    """Calls its loss as TRL 0.24's does."""

    def step(self, *logps):
        return self.dpo_loss(*logps, "sigmoid", {})


@pytest.fixture
def page(tmp_path, monkeypatch, capsys):
    """A page whose blocks run in an empty folder with the recorded results of the repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "trl", SimpleNamespace(DPOTrainer=DPOTrainer))
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    before, threads = set(sys.modules), torch.get_num_threads()
    yield Page(tmp_path, capsys)
    torch.set_num_threads(threads)  # a command may have taken every core
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("my_pkg", "my_judge"):
            del sys.modules[name]
