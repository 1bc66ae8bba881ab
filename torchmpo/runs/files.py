"""Files that are either whole or not there, and folders that one process works in."""

import errno
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torchmpo.runs.errors import UserError

LOCK = ".lock"
SOFT_LOCK = ".held"  # whose being there is the lock, where the system has none


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Replace ``path`` by ``content`` so that a crash leaves the old file or the new one, whole.

    Raises:
        OSError: the system refuses, as on a full disk; it names ``path``, whose old content stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with naming(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()  # half a file takes room on a disk that has none
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must reach the disk
        finally:
            os.close(folder)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """An OSError of the block that names no file, as one from a full disk, names ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def is_folder(name: str) -> bool:
    """Whether a text that may be something else, however long, is the path of a folder."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # too long for a path; a zero byte
        return False


def slug(text: str) -> str:
    """A text as a part of a file's name, or as an anchor of a page.

    >>> slug("noisy:0.3")
    'noisy-0.3'
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)


@contextmanager
def held(folder: str | Path) -> Iterator[bool]:
    """Hold a folder against other processes; yields whether nobody else holds it.

    A hidden file in it is locked, and the system lets go when the process ends, however it ends. On
    a file system without locks the file itself is the lock: one that a process of this machine left
    behind counts for a few seconds after its death, and one of another machine until it is deleted.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    folder = Path(folder)
    if not folder.is_dir():  # or it would be made
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    lock = FileLock(folder / LOCK)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "flock not supported")
            try:
                lock.acquire(blocking=False)
            except Timeout:  # which is an OSError, too
                raise
            except (NotImplementedError, OSError):  # no locks; any other reason shows again
                lock = SoftFileLock(folder / SOFT_LOCK)
                lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Hold the folder of a run.

    Raises:
        UserError: another process holds it.
    """
    with held(folder) as ours:
        if not ours:
            raise UserError(
                f"another process is at work in {folder}: wait for it, or choose another --out (if "
                f"there is none, delete {LOCK} and {SOFT_LOCK} there)"
            )
        yield
