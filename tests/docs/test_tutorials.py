"""docs/tutorials/: every block runs, and prints what the page shows."""

import pytest
import torch
from pages import TUTORIALS, blocks_of, matches
from tiny_llm import QUIET

pytestmark = [
    *QUIET,
    # LightningCLI says so whenever it is called from Python, and calls jsonargparse by an old name.
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]
NAMES = sorted(path.name for path in TUTORIALS.glob("*.md"))


@pytest.mark.parametrize("name", NAMES)
def test_page_prints_what_it_shows(name, page):
    page.run(name)
    if name == "own_loss.md":  # its trainer is only defined there
        x = torch.tensor([-20.0])
        losses, chosen, rejected = page.namespace["MyTrainer"]().step(x, x, x - 4, x - 4)
        assert losses.item() == pytest.approx(0.693147)
        assert chosen.item() == rejected.item() == pytest.approx(0.4)


@pytest.mark.parametrize("name", NAMES)
def test_page_shows_outputs(name):
    assert [language for language, _ in blocks_of(name)].count("console") >= 3


def test_a_page_that_shows_something_else_fails(page, monkeypatch):
    monkeypatch.setattr("pages.blocks_of", lambda _: [("python", "print(1)"), ("console", "2")])
    with pytest.raises(AssertionError, match="but got"):
        page.run("another.md")


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [
        ("a  b\n", "a b", True),
        ("a … c", "a 0.31 c", True),
        ("a … c", "a 0.31 d", False),
        ("a", "a b", False),
        ("1.0", "1x0", False),
    ],
)
def test_an_ellipsis_stands_for_anything(shown, printed, expected):
    assert matches(shown, printed) == expected
