"""YAML that stands for more than any settings is refused before it is built."""

import pytest
import yaml

from torchmpo.runs.yaml_text import check_yaml, parse_yaml


def laughs(depth):
    """A list of nine lists of nine lists …, in a few hundred characters."""
    if depth == 0:
        return "[ha]"
    return f"[&n{depth} {laughs(depth - 1)}, {', '.join([f'*n{depth}'] * 8)}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a: {laughs(12)}", "it stands for more than 100000 values"),
        (f"a: {laughs(40)}", "it stands for more than 100000 values"),
        ("a: &a {b: *a}", r"\*a contains itself"),
        ("a: &a [[*a]]", r"\*a contains itself"),
        ("a: &a {<<: *a}", r"\*a contains itself"),
        ("[" * 100_000, "it is nested more than 50 deep"),
        ("{a: " * 100_000, "it is nested more than 50 deep"),
        ("\n".join(" " * k + "- " for k in range(200)), "it is nested more than 50 deep"),
        ("- a\n" * 200_000, "it stands for more than 100000 values"),
        ("a: [", "expected the node content"),
        ("a: 1\nb: 2\na: 3", "a is given twice"),
        ("a: [{b: 1}, {c: 1, c: 2}]", "c is given twice"),
        ("a: \x00", "special characters are not allowed"),
    ],
)
def test_too_much(text, message):
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1\nb: [1, 2, {c: null}]",
        "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a",
        "a: &a 3\nb: *a",
        "a: {b: a, c: a}\nb: [a, a, {a: b}]",
        laughs(3),
        "- a\n" * 10_000,
    ],
)
def test_ordinary_yaml_is_read_as_ever(text):
    check_yaml(text)
    assert parse_yaml(text) == yaml.safe_load(text)
