"""Printing to terminals that know few letters, to closed pipes, to full disks and to nowhere."""

import os
import subprocess
import sys

import pytest

from torchmpo.__main__ import COMMANDS

PRINTS = """
import sys
from tqdm import tqdm
from torchmpo.runs.errors import exit_code

def work():
    with tqdm(total=2, disable=not sys.stderr.isatty()) as bar:
        for line in range(2000):
            bar.write(f"generation {line}  σ 0.03 ± 1 → ∞", file=sys.stdout)
            sys.stdout.flush()
            print("a warning", file=sys.stderr)
    open(sys.argv[1], "w").write("done")

sys.exit(exit_code(work))
"""


def environment(encoding="utf-8"):
    return os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_are_not_there_end_nothing(encoding, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PRINTS, str(tmp_path / "file")],
        capture_output=True,
        env=environment(encoding),
    )
    assert done.returncode == 0, done.stderr
    line = "generation 7  σ 0.03 ± 1 → ∞\n".encode(encoding, errors="replace")
    assert line in done.stdout
    assert (tmp_path / "file").read_text() == "done"


@pytest.mark.parametrize("both", [False, True])
def test_work_goes_on_when_nobody_reads(both, tmp_path):
    shell = f'"$@" {"2>&1" if both else "2>err"} | head -n 1; exit "${{PIPESTATUS[0]}}"'
    words = [sys.executable, "-c", PRINTS, str(tmp_path / "file")]
    done = subprocess.run(
        ["bash", "-c", shell, "sh", *words], cwd=tmp_path, capture_output=True, env=environment()
    )
    assert done.returncode == 0
    assert done.stdout.count(b"\n") == 1
    assert (tmp_path / "file").read_text() == "done"
    if not both:
        assert set((tmp_path / "err").read_text().splitlines()) == {"a warning"}
    assert done.stderr == b""


def test_work_goes_on_when_output_was_closed_from_the_start(tmp_path):
    words = [sys.executable, "-c", PRINTS, str(tmp_path / "file")]
    shell = ["bash", "-c", 'exec "$@" >&- 2>&-', "sh"]
    assert subprocess.run([*shell, *words], env=environment()).returncode == 0
    assert (tmp_path / "file").read_text() == "done"


def test_a_full_disk_under_the_output_is_told(tmp_path):
    words = [sys.executable, "-c", PRINTS, str(tmp_path / "file")]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, env=environment())
    assert done.returncode == 2
    assert done.stderr == b"error: No space left on device: standard output\n"


@pytest.mark.parametrize("words", ["--help", *(f"{name} --help" for name in COMMANDS)])
def test_help_of_every_command(words):
    done = subprocess.run(
        [sys.executable, "-m", "torchmpo", *words.split()],
        capture_output=True,
        env=environment("ascii"),
    )
    assert done.returncode == 0
    assert done.stderr == b""
    assert len(done.stdout) > 200


@pytest.mark.parametrize("words", ["--help", "evolve --print_config"])
def test_help_into_a_closed_pipe(words):
    shell = '"$@" | true; exit "${PIPESTATUS[0]}"'
    command = ["bash", "-c", shell, "sh", sys.executable, "-m", "torchmpo", *words.split()]
    done = subprocess.run(command, capture_output=True, env=environment())
    assert (done.returncode, done.stderr) == (0, b"")
