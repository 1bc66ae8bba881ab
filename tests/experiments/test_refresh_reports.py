"""Recorded diagnoses get today's statistics from the returns that they hold."""

import json
import shutil
from pathlib import Path

from experiments import refresh_reports

ROOT = Path(__file__).resolve().parents[2]


def test_returns_stay_and_differences_are_added(tmp_path, monkeypatch):
    recorded = ROOT / "experiments/results/diagnose_128_pairs_rate_3e-4"
    folder = shutil.copytree(recorded, tmp_path / "run")
    for path in sorted(folder.glob("cells/*.json"))[2:]:
        path.unlink()
    monkeypatch.setattr(refresh_reports, "write_page", lambda folder: folder / "report.html")
    assert refresh_reports.refresh(folder) == folder / "report.html"
    old, new = (json.loads((path / "leaderboard.json").read_text()) for path in (recorded, folder))
    before = {(row["loss"], row["data"]): row["return"] for row in old["rows"]}
    assert len(new["rows"]) == 2
    for row in new["rows"]:
        assert row["return"] == before[row["loss"], row["data"]]
    assert new["differences"]
    assert new["pairs"] == old["pairs"]


def test_what_a_changed_setting_does_is_counted_again(tmp_path, monkeypatch):
    recorded = ROOT / "experiments/results/epochs"
    folder = shutil.copytree(recorded, tmp_path / "run")
    for name in ("effects.csv", "comparisons.json"):
        (folder / name).write_text("{}")
    monkeypatch.setattr(refresh_reports, "write_page", lambda folder: folder / "report.html")
    refresh_reports.refresh(folder)
    for name in ("effects.csv", "comparisons.json"):
        assert (folder / name).read_bytes() == (recorded / name).read_bytes()
