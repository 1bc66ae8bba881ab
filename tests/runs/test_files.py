"""Locks on folders: against other processes, after a kill, and where the system has no locks."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from torchmpo.runs.files import LOCK, SOFT_LOCK, alone_in, held

HOLD = """
import fcntl, sys, time
from torchmpo.runs.files import held
def refuse(*_):
    raise OSError(int(sys.argv[2]), "no locks here")
if sys.argv[2] != "0":
    fcntl.flock = refuse
with held(sys.argv[1]) as ours:
    print(ours, flush=True)
    time.sleep(600)
"""


def other_process(folder, number=0):
    command = [sys.executable, "-c", HOLD, str(folder), str(number)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def kill(process):
    process.kill()
    process.communicate()


@pytest.fixture
def no_locks(monkeypatch, request):
    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    if request.param:
        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


@pytest.mark.parametrize(
    "no_locks", [0, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL], indirect=True
)
def test_one_process_at_a_time(no_locks, tmp_path):
    other = other_process(tmp_path, no_locks)
    try:
        with held(tmp_path) as ours:
            assert not ours
    finally:
        kill(other)
    if not no_locks:  # the system lets go at once; a file does not
        with held(tmp_path) as ours:
            assert ours


@pytest.mark.parametrize("no_locks", [0, errno.ENOLCK, errno.ENOSYS], indirect=True)
def test_again_and_again_and_within_each_other(no_locks, tmp_path):
    for _ in range(2):
        with held(tmp_path) as ours, held(tmp_path) as second:
            assert ours
            assert not second
    with pytest.raises(ZeroDivisionError), alone_in(tmp_path):
        raise ZeroDivisionError
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize("no_locks", [errno.ENOLCK, errno.ENOSYS], indirect=True)
def test_a_file_that_a_killed_process_left_is_no_lock_for_ever(no_locks, tmp_path):
    other = other_process(tmp_path, no_locks)
    kill(other)
    for file in (LOCK, SOFT_LOCK):
        if (tmp_path / file).exists():
            os.utime(tmp_path / file, (0, 0))  # long ago
    with held(tmp_path) as ours:
        assert ours


@pytest.mark.parametrize("no_locks", [0, errno.ENOLCK], indirect=True)
def test_a_folder_may_be_renamed_or_removed_meanwhile(no_locks, tmp_path):
    (tmp_path / "partial").mkdir()
    with held(tmp_path / "partial") as ours:
        assert ours
        (tmp_path / "partial").rename(tmp_path / "whole")
    with held(tmp_path / "whole") as ours:
        for file in (tmp_path / "whole").iterdir():
            file.unlink()
        (tmp_path / "whole").rmdir()
    assert not list(tmp_path.iterdir())


def test_another_reason_is_told(tmp_path):
    with pytest.raises(FileNotFoundError), held(tmp_path / "nothing"):
        pass
