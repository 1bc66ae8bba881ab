"""Write the tables and the page of recorded diagnoses again, with today's statistics.

    python experiments/refresh_reports.py experiments/results/diagnose_full_tla …

The cells, which hold every return, stay as they are: nothing is trained or simulated. Old cells may
lack what newer ones measure, and the page then leaves that out.
"""

import argparse
import json
from pathlib import Path

from torchmpo.diagnose.cells import read_cell
from torchmpo.diagnose.comparisons import FILE as COMPARISONS
from torchmpo.diagnose.comparisons import write_comparisons
from torchmpo.diagnose.leaderboard import leaderboard, write_leaderboard
from torchmpo.diagnose.report.page import write_page
from torchmpo.diagnose.schemas import Anchors
from torchmpo.diagnose.settings import DiagnoseConfig
from torchmpo.diagnose.setup import Setup
from torchmpo.runs.json_files import read_json
from torchmpo.runs.yaml_text import parse_yaml

KEPT = ("pairs", "start", "auto_reset")  # what a board says of the run and not of its cells


def refresh(folder):
    """One diagnosis; returns its page."""
    old = json.loads((folder / "leaderboard.json").read_text("utf-8"))
    cells = [read_cell(path) for path in sorted(folder.glob("cells/*.json"))]
    shown = {(row["loss"], row["data"]) for row in old["rows"]}
    cells = [cell for cell in cells if (cell["loss"], cell["data"]) in shown]
    board = leaderboard(cells, read_json(folder / "anchors.json", Anchors))
    write_leaderboard(board | {name: old[name] for name in KEPT if name in old}, folder)
    if (folder / COMPARISONS).exists():
        config = parse_yaml((folder / "config.yaml").read_text("utf-8"))
        write_comparisons(Setup.of(DiagnoseConfig(**config)), cells, folder)
    return write_page(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="of finished diagnoses")
    for folder in parser.parse_args().folders:
        print(refresh(folder))


if __name__ == "__main__":
    main()
