"""What a command prints, as a page that a browser reads again every few seconds."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOBase
from pathlib import Path
from typing import TextIO

FILE = "progress.html"  # in a run's folder
SECONDS = 5  # between two looks of the browser


class _Tee(TextIOBase):
    """Passes on what is written, and keeps its lines."""

    def __init__(self, stream: TextIO, path: Path, title: str):
        self.stream, self.path, self.title = stream, path, title
        self.text, self.begun = "", time.strftime("%Y-%m-%d %H:%M:%S")

    def write(self, text: str, /) -> int:
        self.stream.write(text)
        self.text += text
        if "\n" in text:
            self.show(f"Running since {self.begun}.", again=True)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.stream.encoding

    def show(self, state: str, again: bool) -> None:
        from torchmpo.runs.markup import templates  # not for --help

        page = templates("torchmpo.runs").get_template("progress.html")
        text = page.render(again=SECONDS * again, title=self.title, state=state, lines=self.text)
        with suppress(OSError):  # a page to look at is no reason to end a run
            self.path.write_bytes(text.encode("utf-8", "replace"))


@contextmanager
def live_page(folder: Path, title: str) -> Iterator[None]:
    """While the block runs, ``progress.html`` in ``folder`` shows what it prints to stdout.

    Args:
        folder: exists.
        title: of the page, plain text.
    """
    tee = _Tee(sys.stdout, folder / FILE, title)
    tee.show(f"Running since {tee.begun}.", again=True)
    sys.stdout = tee  # tqdm and print look it up when they write
    state = "It stopped before its end: go on with --resume."
    try:
        yield
        state = "It has come to its end."
    finally:
        sys.stdout = tee.stream
        tee.show(f"Begun {tee.begun}. {state}", again=False)
