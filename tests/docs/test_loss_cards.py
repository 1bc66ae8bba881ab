"""docs/losses.md is what the code makes of it."""

import doctest
import importlib.util
import inspect
import json
import re
from pathlib import Path

import pytest
import torch

from torchmpo.losses import LOSSES

DOCS = Path(__file__).parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("make_losses", DOCS / "make_losses.py")
make_losses = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_losses)

PAGE = (DOCS / "losses.md").read_text()
STALE = "it is not what `make docs` writes now"


def test_page_is_up_to_date():
    assert make_losses.page() == PAGE, STALE


@pytest.mark.parametrize("name", LOSSES)
def test_docstring_has_all_sections(name):
    assert make_losses.problems(name) == []


@pytest.mark.parametrize("name", LOSSES)
def test_card_is_on_the_page(name):
    assert f"\n| [{name}](#{name}) |" in PAGE
    assert f"\n### {name}\n" in PAGE
    assert f"(figures/losses/{name}.png)" in PAGE


def test_there_is_one_picture_per_loss():
    assert {path.name for path in make_losses.FIGURES.iterdir()} == {f"{n}.png" for n in LOSSES}


@pytest.mark.parametrize("name", LOSSES)
def test_picture_shows_what_the_loss_does(name):
    image = pytest.importorskip("PIL.Image")
    with image.open(make_losses.FIGURES / f"{name}.png") as picture:
        drawn = torch.tensor(json.loads(picture.text["samples"]))
    now = torch.tensor(make_losses.samples(name))
    assert now.isfinite().all()
    # Machines differ in the last digits; what is smaller than a thousandth cannot be seen.
    near = 1e-3 * now.abs().amax(dim=1, keepdim=True).expand_as(now)
    assert drawn.shape == now.shape, STALE
    assert ((drawn - now).abs() <= near).all(), STALE


def test_no_two_pictures_are_the_same():
    pictures = [str(make_losses.samples(name)) for name in LOSSES]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_bounded_as_its_docstring_says(name, monkeypatch):
    if name == "dr_dpo":  # a pair that is far wrong hides behind its companions
        monkeypatch.setattr(make_losses, "COUPLED", frozenset())

    def extremes(lowest: float) -> tuple[float, float]:
        grid = torch.cat([torch.tensor([0.0]), -torch.logspace(-3, 0, 40) * abs(lowest)])
        value, *_ = make_losses.surface(name, grid, grid)
        return value.min().item(), value.max().item()

    (low, high), (lower, higher) = extremes(-1e3), extremes(-1e5)
    falls, rises = lower < low - 1, higher > high + 1
    expected = "unbounded below" if falls else "bounded below" if rises else "bounded"
    assert make_losses.bound(make_losses.parse(LOSSES[name])) == expected


EXAMPLES = re.findall(r"^```pycon\n(.*?)^```$", PAGE, flags=re.M | re.S)


def test_every_card_has_an_example():
    assert len(EXAMPLES) == len(re.findall(r"^### ", PAGE, flags=re.M))


@pytest.mark.parametrize("source", EXAMPLES)
def test_example_runs_as_the_page_shows_it(source):
    test = doctest.DocTestParser().get_doctest(source, {}, "losses.md", None, None)
    assert test.examples
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


# The parts of the generator that the page alone would not show to be wrong.


def incomplete_loss(chosen_mean_logps, *, beta=0.1):
    """No equation, no example.

    Args:
        chosen_mean_logps: ``[batch]``.

    Bounds:
        nothing known.
    """


def complete_loss(chosen_mean_logps, *, beta=0.1):
    """A summary
    on two lines.

    loss = −β·c̄
    where β

        matters

    Prose.

    Args:
        chosen_mean_logps: ``[batch]``,
            nats: per step.
        beta: > 0.
    Returns:
        ``[batch]``.

    Bounds:
        Bounded
        below.

    Defaults:
        none.

    Limits:
        none.

    Pitfalls:
        many.

    Source: here,
    and there.

    >>> 1 + 1
    2
    """


def test_missing_parts_are_reported(monkeypatch):
    monkeypatch.setitem(LOSSES, "incomplete", incomplete_loss)
    found = "\n".join(make_losses.problems("incomplete"))
    for part in ("sections must be", "Args must describe", "equation", "Bounds must", "example"):
        assert part in found


def test_docstring_is_taken_apart(monkeypatch):
    monkeypatch.setitem(LOSSES, "complete", complete_loss)
    assert make_losses.problems("complete") == []
    doc = make_losses.parse(complete_loss)
    assert doc.summary == "A summary on two lines."
    assert doc.equation == "loss = −β·c̄\nwhere β\n\nmatters"
    assert (doc.prose, doc.example) == ("Prose.", ">>> 1 + 1\n2")
    assert " ".join(doc.sections["Source"].split()) == "here, and there."
    assert make_losses.bound(doc) == "bounded below"
    (names, description), _ = make_losses.arguments(doc)
    assert names == ["chosen_mean_logps"]
    assert " ".join(description.split()) == "``[batch]``, nats: per step."


def test_reads_is_the_unit_of_the_inputs():
    units = {name: make_losses.unit(LOSSES[name]) for name in ("simpo", "dpo", "cpo", "ipo")}
    assert units == {
        "simpo": "means",
        "dpo": "sums",
        "cpo": "sums and means",
        "ipo": "sums or means (default mean)",
    }


def test_surface_is_the_closed_form():
    chosen, rejected = torch.tensor([-2.5, -0.5]), torch.tensor([-2.0, -1.0, -0.1])
    margin = 2 * (chosen[:, None] - rejected).double() - 0.5  # SimPO's defaults
    value, by_chosen, by_rejected = make_losses.surface("simpo", chosen, rejected)
    torch.testing.assert_close(value, torch.log1p(torch.exp(-margin)))
    torch.testing.assert_close(by_chosen, 2 * torch.sigmoid(-margin))
    torch.testing.assert_close(by_rejected, -2 * torch.sigmoid(-margin))


def test_surface_of_sums_counts_a_mean_beside_them_too():
    # CPO: the sums of both, and c̄ = c/10 beside them; β is 0.1.
    chosen, rejected = torch.tensor([-1.5]), torch.tensor([-1.5])
    value, by_chosen, by_rejected = make_losses.surface("cpo", chosen, rejected)
    assert value.item() == pytest.approx(0.693147 + 1.5, rel=1e-6)
    assert by_chosen.item() == pytest.approx(0.1 / 2 + 1 / 10)
    assert by_rejected.item() == pytest.approx(-0.1 / 2)


def test_prose_becomes_markdown():
    text = "One ``[batch]``\nline of :func:`dpo_loss`\nand :mod:`torch.x`, a<b.\n\n    x  y\n\nEnd."
    assert make_losses.markdown(text) == (
        "One `[batch]` line of [`dpo`](#dpo) and `torch.x`, a\\<b.\n\n```text\nx  y\n```\n\nEnd."
    )


def test_every_public_loss_has_a_card():
    functions = {f for group in make_losses.families().values() for f in group}
    assert (
        {f for f in functions if f.__name__.endswith("_loss")} == functions >= set(LOSSES.values())
    )
    for function in functions - set(LOSSES.values()):
        assert f"\n### {function.__name__}\n" in PAGE
        assert inspect.getdoc(function)
