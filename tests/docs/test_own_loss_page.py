"""docs/tutorials/own_loss.md: the example is as short as it says, the vocabulary complete."""

import re

import pytest
import torch
from pages import TUTORIALS, blocks_of

from torchmpo import Objective, PairLogps

PAGE = (TUTORIALS / "own_loss.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", PAGE, flags=re.MULTILINE)


def test_the_example_has_ten_lines():
    (_, module), (_, use) = blocks_of("own_loss.md")[:2]
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
    assert shapes == [
        {"`[batch]`": (3,), "`[batch, time]`": (3, 4), "`[batch, n]`": (3, 2), "scalar": ()}[shape]
    ]
    units = {
        "_mean_logps": "nats per step",
        "_step_logps": "nats of each step",
        "_step_kl": "nats of each step",
        "_step_weights": "weights",
        "_log_collision": "nats per step",
        "desirable": "bool, the label",
        "logps": "nats, summed",
        "_logps": "nats, summed",
        "_lengths": "steps",
        "_rewards": "scores",
        "_mask": "bool, whether a step counts",
        "_probs": "probability",
        "progress": "fraction",
    }
    assert unit.startswith(next(u for end, u in units.items() if name.endswith(end)))
