"""Files that are either whole or not there."""

import os
from pathlib import Path


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
