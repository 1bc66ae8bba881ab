"""The report of a diagnosis: ``report.html``, with every table and figure inline.

Its numbers are those of the run's JSON files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmpo.diagnose.report.contents import Run
from torchmpo.diagnose.report.html import document, render
from torchmpo.diagnose.report.sections import SECTIONS
from torchmpo.diagnose.report.words import TASKS, findings, headline, made, protocol
from torchmpo.runs.commands import commands_of
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import write_atomic
from torchmpo.runs.json_files import read_json, read_records
from torchmpo.runs.machine import FILE as MACHINES
from torchmpo.runs.yaml_text import parse_yaml

# What the page offers.
SAVED = ("leaderboard.csv", "scores.json", "effects.csv", "scaling.csv", "overoptimisation.csv")


def write_page(folder: str | Path) -> Path:
    """Write ``report.html`` and ``figures/*.png`` and ``*.svg`` of a run of the diagnostic suite.

    Args:
        folder: of the run: ``leaderboard.json``, and where there are, ``cells/*.json``,
            ``anchors.json``, ``config.yaml``, ``statistics.json``, ``scores.json``,
            ``commands.json``, ``machines.json``, and ``comparisons.json`` with its tables. The
            leaderboard decides which cells are shown.

    Returns:
        the path of the page.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder = Path(folder)
    board = read_json(folder / "leaderboard.json")
    run = Run(
        board,
        [read_json(path) for path in sorted(folder.glob("cells/*.json"))],
        _optional(folder / "anchors.json"),
        _config(folder / "config.yaml"),
        _optional(folder / "statistics.json"),
        folder / "figures",
        _optional(folder / "scores.json"),
        commands_of(folder),
        read_records(folder / MACHINES),
        {name: (folder / name).read_bytes() for name in SAVED if (folder / name).exists()},
        _optional(folder / "comparisons.json"),
    )
    run.figures.mkdir(exist_ok=True)
    for old in [*run.figures.glob("*.png"), *run.figures.glob("*.svg")]:
        old.unlink()  # of a data kind that is no longer in the run
    path = folder / "report.html"
    write_atomic(path, _page(run))
    return path


def _page(run: Run) -> str:
    task = str(run.board["task"])
    head = render(
        "head.html",
        run=run,
        protocol=protocol(run),
        made=made(run),
        commands=dict.fromkeys(entry["command"] for entry in run.commands),
        headline=headline(run),
        findings=findings(run),
    )
    sections = [section(run) for section in SECTIONS]
    return document(f"Preference losses on {TASKS.get(task, task)}", head, sections)


def _optional(path: Path) -> Any:
    return read_json(path) if path.exists() else {}


def _config(path: Path) -> Mapping:
    try:
        config = parse_yaml(path.read_text("utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())})") from error
    return config if isinstance(config, Mapping) else {}
