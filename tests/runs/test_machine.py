"""The record of the machines of a run."""

import json
from importlib.metadata import version

import pytest
import torch

from torchmpo.diagnose.__main__ import main
from torchmpo.runs import machine as module
from torchmpo.runs.machine import machine, note_machine


def test_this_machine_is_described():
    found = machine()
    assert found["torch"] == version("torch")
    assert found["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert found["processor"]
    assert found["cores"] >= 1


def test_the_same_machine_is_noted_once_and_another_is_told(tmp_path, monkeypatch, capsys):
    assert note_machine(tmp_path) == note_machine(tmp_path) == [machine()]
    assert capsys.readouterr().err == ""
    other = machine() | {"processor": "Abacus", "torch": "9.9"}
    monkeypatch.setattr(module, "machine", lambda: other)
    assert note_machine(tmp_path)[1:] == [other]
    error = capsys.readouterr().err
    assert "→ Abacus" in error
    assert "→ 9.9" in error
    assert "cores" not in error
    assert error.count("\n") == 1
    assert json.loads((tmp_path / "machines.json").read_text())[1] == other


@pytest.mark.parametrize("text", ["", "{}", "[3]", '{"a": [', "null", "[" * 99_999])
def test_a_damaged_record_stops_nothing(tmp_path, text):
    (tmp_path / "machines.json").write_text(text)
    assert machine() in note_machine(tmp_path)


def test_a_run_resumed_elsewhere_goes_on_and_says_what_that_means(tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "run")
    monkeypatch.setenv("TORCHMPO_CACHE", str(tmp_path / "cache"))
    small = ["--preset=smoke", "--losses=sft", "--data=base", "--episode_steps=10"]
    assert main([*small, "--out", out]) == 0
    capsys.readouterr()
    monkeypatch.setattr(module, "machine", lambda: {"processor": "Abacus"})
    assert main(["--out", out, "--resume", "--losses", "orpo"]) == 0
    assert "computed on another machine so far" in capsys.readouterr().err
