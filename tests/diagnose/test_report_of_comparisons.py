"""Sections about several cells say what their rows say, and are left out where there are none."""

import json
import re

import numpy as np
import pytest
from test_report import make_cell, make_folder

from torchmpo.diagnose.comparisons import overoptimisation
from torchmpo.diagnose.effects import Cells, effects, scaling
from torchmpo.diagnose.report.page import write_page

SIZES = np.array([16, 64, 256, 1024])
ANCHORS = {"original": [0.0], "target": [1.0]}


def text_of(page, title):
    found = re.findall(rf'<section id="{title}">(.*?)</section>', page, re.DOTALL)
    return " ".join(re.sub("<[^>]*>", " ", found[0]).split()) if found else ""


@pytest.fixture
def folder(tmp_path):
    cells = [make_cell(loss, "proxy:1", 0.5) for loss in ("sft", "simpo")]
    make_folder(tmp_path, cells, {"pairs": 16, "learning_rate": None})
    return tmp_path


def page_with(folder, **rows):
    (folder / "comparisons.json").write_text(json.dumps(rows))
    return write_page(folder).read_text()


def test_effects_are_told_shown_and_sorted(folder):
    noise = np.array([0.0, 0.01, -0.01, 0.02])
    own = Cells({(loss, "proxy:1"): noise for loss in ("sft", "simpo")}, {})
    changed = {
        "pairs=64": Cells({key: x + 0.25 + noise[::-1] for key, x in own.scores.items()}, {}),
        "learning_rate=0.1": Cells({key: x - 9 * noise for key, x in own.scores.items()}, {}),
        "policy=<b>": Cells({key: x * np.nan for key, x in own.scores.items()}, {}),
    }
    page = page_with(folder, effects=effects(own, changed))
    words = text_of(page, "Effects-of-settings")
    assert re.search(r"pairs = 64 instead of 16: score \+0.2\d \[0.2\d, 0.2\d\]\.", words)
    assert "learning rate = 0.1 instead of a tuned one: score −0.0" in words
    assert "not told from 0" in words
    assert (
        "policy = &lt;b&gt; instead of the task’s own: no difference, because every training"
        in words
    )
    assert "<b>" not in words
    assert (folder / "figures/effects.svg").exists()


def test_a_scaling_fit_is_told_or_said_not_to_be(folder):
    draws = np.random.default_rng(0)
    law = 0.25 + 2 * SIZES**-0.5 + draws.normal(0, 0.002, (8, 4))
    flat = 0.5 + draws.normal(0, 0.1, (8, 4))
    cells = [
        Cells(
            {("sft", "proxy:1"): 1 - law[:, k], ("simpo", "proxy:1"): 1 - flat[:, k]},
            {"proxy:1": n},
        )
        for k, n in enumerate(SIZES.tolist())
    ]
    rows = scaling(cells[0], {f"pairs={c.pairs['proxy:1']}": c for c in cells[1:]})
    words = text_of(page_with(folder, scaling=rows), "Scaling")
    assert re.search(r"sft on proxy: 1 : the error falls towards 0.2\d \[0.2\d, 0.2\d\]", words)
    assert "simpo on proxy: 1 : how the error falls cannot be told from 16, 64, 256, 1,024" in words
    assert (folder / "figures/scaling.svg").exists()


def test_a_curve_that_turns_is_told(folder):
    def cell(loss, returns):
        paths = [
            {"epoch": [0, 6, 12], "return": [r + d for r in returns], "kl": [0.0, 1.0, 4.0]}
            for d in (-0.01, 0.0, 0.01)
        ]
        return {"loss": loss, "data": "proxy:1", "checkpoints": paths}

    cells = [cell("sft", [0.0, 0.5, 0.75]), cell("simpo", [0.0, 0.5, -1.0])]
    for path in cells[1]["checkpoints"]:
        path |= {"judged": [1.0, 2.0, 4.0], "learned": [-0.5, 0.0, 0.25]}
    page = page_with(folder, overoptimisation=overoptimisation(cells, ANCHORS))
    words = text_of(page, "Over-optimisation")
    assert "sft was highest at the end: 0.75 at √KL 2.00." in words
    assert "simpo was highest with 0.50 at √KL 1.00, and ended with −1.00 at √KL 2.00; its" in words
    assert "its interval lies below. The judge’s score went from 1.00 to 4.00. The" in words
    assert "The learned reward of a step went from −0.50 to 0.25." in words
    assert words.count("The judge’s score went") == 1
    assert (folder / "figures/overoptimisation-proxy-1.svg").exists()


def test_without_rows_there_are_no_such_sections(folder):
    page = write_page(folder).read_text()
    for title in ("Effects-of-settings", "Scaling", "Over-optimisation"):
        assert not text_of(page, title)
