"""Settings of every test: one thread per process, and the same random examples in every run."""

import pytest
import torch
from hypothesis import settings
from slow_files import SLOW

# Small tensors gain nothing from threads, and the test processes share the cores.
torch.set_num_threads(1)

# No deadline: a test must not fail because the machine was busy.
settings.register_profile("torchmpo", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("torchmpo")


@pytest.fixture
def traced_only(monkeypatch):
    """Programs of the inner loop are traced and kept, but no C++ is compiled for a minute."""
    from torchmpo.control import inner_loop

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda program, **_: compile(program, backend="eager"))
    monkeypatch.setattr(inner_loop, "_PROGRAMS", {})


def pytest_collection_modifyitems(items):
    """Files in their order, slow ones first (with pytest-xdist's ``--no-loadscope-reorder``)."""
    rank = {name: i for i, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.path.name, len(SLOW)))
