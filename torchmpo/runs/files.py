"""Files that are either whole or not there, and folders that one process works in."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchmpo.runs.errors import UserError


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Replace ``path`` by ``content`` so that a crash leaves the old file or the new one, whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must reach the disk
    finally:
        os.close(folder)


def slug(text: str) -> str:
    """A text as a part of a file's name, or as an anchor of a page.

    >>> slug("noisy:0.3")
    'noisy-0.3'
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)


@contextmanager
def held(folder: str | Path) -> Iterator[bool]:
    """Hold a folder against other processes; yields whether nobody else holds it.

    Nothing is written, and the system lets go when the process ends, however it ends.
    """
    import fcntl  # not on Windows, where the losses work all the same

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Hold the folder of a run.

    Raises:
        UserError: another process holds it.
    """
    with held(folder) as ours:
        if not ours:
            raise UserError(
                f"another process is at work in {folder}: wait for it, or choose another --out"
            )
        yield
