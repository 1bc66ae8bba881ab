"""JSON that somebody may have edited, or a disk damaged: each file is checked where it is read.

What a file holds is said by a type, usually a ``TypedDict`` beside the code that writes the file;
pydantic compares the two. Nothing is converted, and keys that a type does not name are let through.
A ``float`` may be NaN, which is in files as Python writes it: say ``FiniteFloat`` where not.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchmpo.runs.errors import UserError, one_line


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, a key is there twice, it is nested too deep, or a text in it has
            half a character.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    escapes = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if re.search(rb"\\u[dD][89a-fA-F]", escapes):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # what is read from a file must fit into one
            raise ValueError("a text has half a character, where UTF-16 was cut") from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, _ in pairs if sum(key == k for k, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def checked(value: Any, schema: Any) -> Any:
    """A value that is of a type, unchanged.

    Args:
        schema: a type that pydantic can check.

    Raises:
        ValueError: it is not, and where.

    >>> checked({"a": [1, None]}, dict[str, list[int]])
    Traceback (most recent call last):
    ValueError: a[1]: Input should be a valid integer
    """
    from pydantic import TypeAdapter, ValidationError  # not every command needs it

    try:
        TypeAdapter(schema).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{_place(first['loc'])}{message}") from error
    return value


def read_records(path: Path) -> list[dict[str, Any]]:
    """The entries of a record for people, from which nothing is computed.

    What is missing or damaged of it is left out: it is no reason to end a run.
    """
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return []
    return [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []


def read_json(path: Path, schema: Any = Any) -> Any:
    """A file of a run folder.

    Args:
        schema: what it holds, see :func:`checked`.

    Raises:
        UserError: it is missing, damaged or holds something else.
    """
    try:
        value = parse_json(path.read_bytes())
        return value if schema is Any else checked(value, schema)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): delete it and --resume") from error


def _place(location: Sequence[int | str]) -> str:
    """``grid[0].beta: `` of a place inside a value."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return f"{''.join(parts).removeprefix('.')}: " if parts else ""
