"""By which commands a run was made, and when: ``commands.json``, for people and reports."""

import json
import shlex
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from torchmpo.runs.files import write_atomic
from torchmpo.runs.json_files import read_records

FILE = "commands.json"  # of a run folder: every start, in their order


def note_command(out: Path, program: str, words: Sequence[str]) -> None:
    """Add a start to the record in ``out``.

    Args:
        program: how the command is called.
        words: its arguments.
    """
    command = " ".join([program, *map(shlex.quote, words)])
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    entry = {"command": command, "date": date, "torchmpo": version("torchmpo")}
    write_atomic(out / FILE, json.dumps([*commands_of(out), entry], indent=1) + "\n")


def commands_of(out: Path) -> list[dict[str, str]]:
    """The starts of a run: ``command``, ``date``, ``torchmpo``; none where not recorded."""
    keys = ("command", "date", "torchmpo")
    return [{key: str(e.get(key, "")) for key in keys} for e in read_records(out / FILE)]
