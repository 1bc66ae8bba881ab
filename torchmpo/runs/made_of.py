"""What a run is made of: ``made_of.json``, so that going on with it cannot mix two runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmpo.runs.errors import UserError
from torchmpo.runs.files import write_atomic
from torchmpo.runs.json_files import read_json

FILE = "made_of.json"


def _read(out: Path, what: str) -> dict[str, Any]:
    """A part of the record: ``settings`` or ``losses``; empty of a run that is older than it."""
    path = out / FILE
    found = read_json(path) if path.exists() else {what: {}}
    if not (isinstance(found, dict) and isinstance(found.get(what), dict)):
        raise UserError(f"{path} is damaged (it has no {what}): delete it and --resume")
    return found[what]


def check_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Refuse settings, of a ``config.yaml``, that are not those of the run.

    Args:
        settings: those that must not change.

    Raises:
        UserError: which one.
    """
    for name, then in _read(out, "settings").items():
        if name in settings and settings[name] != then:
            raise UserError(
                f"{out / 'config.yaml'} has been changed: {name} is {settings[name]!r}, but the "
                f"run was made with {then!r}; put it back, or choose another --out"
            )


def check_losses(out: Path, losses: Mapping[str, str | None]) -> None:
    """Refuse losses that have changed since the run was made.

    Args:
        losses: a digest by name, None where there can be none.

    Raises:
        UserError: which one.
    """
    for name, then in _read(out, "losses").items():
        if name in losses and (then is None or losses[name] is None):
            raise UserError(
                f"nobody can tell whether {name} has changed since the run in {out} was made, "
                "because it has neither a text nor a value: choose another --out"
            )
        if name in losses and losses[name] != then:
            raise UserError(
                f"{name} has changed since the run in {out} was made: put it back, or choose "
                "another --out"
            )


def write(out: Path, settings: Mapping[str, Any], losses: Mapping[str, str | None]) -> None:
    """Write the record; losses that it has already stay.

    Args:
        settings: those that must not change.
        losses: a digest by name, None where there can be none.
    """
    content = {"settings": dict(settings), "losses": {**_read(out, "losses"), **losses}}
    write_atomic(out / FILE, json.dumps(content, indent=2) + "\n")
