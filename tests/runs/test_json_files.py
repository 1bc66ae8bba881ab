"""A JSON file holds what its type says, or the place is named where it does not."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import FiniteFloat

from torchmpo.runs.errors import UserError
from torchmpo.runs.json_files import checked, parse_json, read_json


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_read_json():
    Path("good").write_text('{"a": [1, null]}')
    assert read_json(Path("good")) == {"a": [1, None]}
    assert read_json(Path("good"), dict[str, list[int | None]]) == {"a": [1, None]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"a": [1,', "Expecting value"),
        (b"\xff\xfe\x00", "truncated data"),
        (b"\xff", "invalid start byte"),
        (None, "No such file"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice"),
        (b"[" * 100_000, "it is nested too deep"),
        (b'{"a":' * 100_000, "it is nested too deep"),
        (b"9" * 10_000, "Exceeds the limit"),
        (rb'{"a": ["\ud83d"]}', "a text has half a character"),
    ],
)
def test_damaged_file(content, reason):
    if content is not None:
        Path("bad").write_bytes(content)
    with pytest.raises(UserError, match=rf"bad is damaged \(.*{reason}.*\): delete it and --re"):
        read_json(Path("bad"))


@pytest.mark.parametrize(
    ("text", "schema", "place"),
    [
        ("[]", dict[str, Any], "Input should be a valid dictionary"),
        ('{"a": [1, "1"]}', dict[str, list[int]], r"a\[1\]: Input should be a valid integer"),
        ("[true]", list[int], r"\[0\]: Input should be a valid integer"),
        ("[1.0]", list[int], r"\[0\]: Input should be a valid integer"),
        ("[true]", list[float], r"\[0\]: Input should be a valid number"),
        ("[null]", list[float], r"\[0\]: Input should be a valid number"),
        ("[[]]", list[float], r"\[0\]: Input should be a valid number"),
        ("[NaN]", list[FiniteFloat], r"\[0\]: Input should be a finite number"),
        ("[1e999]", list[FiniteFloat], r"\[0\]: Input should be a finite number"),
        ("[" + "9" * 400 + "]", list[FiniteFloat], r"\[0\]: Input should be a valid number"),
    ],
)
def test_what_is_not_of_the_type_is_named(text, schema, place):
    Path("other").write_text(text)
    with pytest.raises(UserError, match=rf"other is damaged \({place}"):
        read_json(Path("other"), schema)


def test_nothing_is_changed():
    value = parse_json('{"a": 1, "b": 2.5, "c": NaN}')
    assert checked(value, dict[str, float]) is value
    assert isinstance(value["a"], int)


def test_whole_characters_are_read_however_they_are_written():
    Path("smile").write_text(r'["\ud83d\ude00", "\\ud83d", "\u00e4"]')
    assert read_json(Path("smile")) == ["\U0001f600", "\\ud83d", "ä"]
