"""Standard output and error that do not end a run.

A search of hours must not die because its lines have letters that a terminal does not know, or
because the program that read them has ended.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO


class Lasting:
    """A text stream that goes on: what its encoding lacks is written as ``?``, and what nobody
    reads any more is dropped. Everything else is as of the stream itself.

    Args:
        stream: to write to; None, as where it was closed before the program began, for nowhere.
        name: of the stream, for errors.
    """

    def __init__(self, stream: TextIO | None, name: str):
        self._name = name
        # Never closed: it stands for the stream until the process ends.
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        if getattr(self._stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            self._stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]

    def write(self, text: str) -> int:
        """Write text; how much is always all of it."""
        with self._going_on():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what has been written."""
        with self._going_on():
            self._stream.flush()

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is still in its buffer must go somewhere, or Python complains at its end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                error.filename = self._name
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting() -> Iterator[None]:
    """For the time of the block, standard output and error are :class:`Lasting`."""
    out, err = Lasting(sys.stdout, "standard output"), Lasting(sys.stderr, "standard error")
    with redirect_stdout(out), redirect_stderr(err):  # pyright: ignore[reportArgumentType]
        yield


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """While a model is loaded: what transformers would print is checked, and told in a line."""
    logging = transformers.utils.logging
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():  # in a file, every step of a bar is a line
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
