"""docs/tutorials/own_loss.md is so: its code runs, prints what it shows, and its vocabulary is complete."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from torchmpo import Objective, PairLogps

PAGE = (Path(__file__).parents[2] / "docs" / "tutorials" / "own_loss.md").read_text()
BLOCKS = re.findall(r"^```(python|console)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
ROWS = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", PAGE, flags=re.MULTILINE)


class DPOTrainer:
    """Calls its loss as TRL 0.24's does."""

    def step(self, *logps):
        return self.dpo_loss(*logps, "sigmoid", {})


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the page from the top; what each block printed or raised, in one line."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "trl", SimpleNamespace(DPOTrainer=DPOTrainer))
    namespace = {"__name__": "page"}

    def run(source):
        if path := re.match(r"# (\S+\.py)\n", source):
            file = tmp_path / path[1]
            file.parent.mkdir(exist_ok=True)
            file.write_text(source)
            return ""
        try:
            exec(compile(source, "own_loss.md", "exec"), namespace)
        except ValueError as error:
            return f"ValueError: {error}"
        return " ".join(capsys.readouterr().out.split())

    run.namespace = namespace
    yield run
    for name in ("my_pkg", "my_pkg.my_losses"):
        sys.modules.pop(name, None)


def test_each_block_does_what_the_next_one_shows(run):
    following = [*BLOCKS[1:], ("", "")]
    for (kind, source), (next_kind, shown) in zip(BLOCKS, following, strict=True):
        if kind == "python":
            expected = " ".join(shown.split()) if next_kind == "console" else ""
            assert run(source) == expected
    x = torch.tensor([-20.0])
    losses, chosen, rejected = run.namespace["MyTrainer"]().step(x, x, x - 4, x - 4)
    assert losses.item() == pytest.approx(0.693147)
    assert chosen.item() == rejected.item() == pytest.approx(0.4)


def test_the_page_shows_a_result_and_the_errors():
    assert [kind for kind, _ in BLOCKS].count("console") == 3


def test_the_example_has_ten_lines():
    (_, module), (_, use) = BLOCKS[:2]
    lines = [line for line in (module + use).splitlines() if line and not line.startswith("#")]
    assert len(lines) == 10


def test_the_vocabulary_is_complete_and_in_order():
    assert [name for name, *_ in ROWS] == list(PairLogps._fields)


@pytest.mark.parametrize(("name", "shape", "unit"), ROWS)
def test_shapes_and_units_of_the_vocabulary(name, shape, unit):
    shapes = []
    # The trial call of a loss shows the shape that it may count on.
    source = f"def loss({name}):\n    shapes.append({name}.shape)\n    return torch.zeros(3)"
    namespace = {"shapes": shapes, "torch": torch}
    exec(source, namespace)
    Objective(namespace["loss"])
    assert shapes == [{"`[batch]`": (3,), "`[batch, time]`": (3, 4), "scalar": ()}[shape]]
    units = {
        "_mean_logps": "nats per step",
        "_step_logps": "nats of each step",
        "_logps": "nats, summed",
        "_lengths": "steps",
        "_rewards": "scores",
        "_mask": "bool, whether a step counts",
        "_probs": "probability",
        "progress": "fraction",
    }
    assert unit.startswith(next(u for end, u in units.items() if name.endswith(end)))
