"""Mistakes of the user, told in one line."""

import difflib
import re
import sys
from collections.abc import Callable, Iterable

from torchmpo.runs.extras import missing
from torchmpo.runs.output import lasting

# What torch says, of the CPU's memory or of a GPU's.
NO_MEMORY = re.compile("can't allocate memory|out of memory")


class UserError(ValueError):
    """A mistake the user can put right.

    The message is one line that says what is wrong and what to do. The command lines print it as
    ``error: …`` and exit with code 2, without a traceback.
    """


class Diverged(UserError):
    """A training came to a loss or a gradient that is not finite."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest valid one, or else all of them.

    Args:
        name: what the user wrote.
        valid: the names that would have been accepted.

    >>> nearest("simp", ["simpo", "orpo"])
    "did you mean 'simpo'?"
    >>> nearest("huber", ["simpo", "orpo"])
    'choose from: orpo, simpo'
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from: {', '.join(names)}"


def one_line(error: BaseException, most: int = 200) -> str:
    """A message that may fill a page, as a line, cut after so many characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}…"


def disk_line(error: OSError) -> str:
    """What the system refused (a full disk, a folder that may not be written), as a line."""
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}"


def missing_package(error: ModuleNotFoundError, extra: str = "") -> Exception:
    """The error to raise, from ``error``, where the import of an optional package failed.

    Args:
        error: as it was raised.
        extra: of this package, to name if several have the one that is missing.

    Returns:
        a `UserError` that says how to install it, if it is in the table of extras; else the error
        again.
    """
    line = missing(error, extra)
    return UserError(line) if line else ModuleNotFoundError(str(error), name=error.name)


def exit_code(
    work: Callable[[], int | None],
    interrupted: Callable[[], str] | None = None,
    extra: str = "",
) -> int:
    """Do the work of a command; a mistake of the user's, or an optional package that is missing, or
    what the disk or the memory refuses, is one line on stderr. What is printed never ends the work,
    see :func:`torchmpo.runs.output.lasting`.

    Args:
        work: returns the exit code, or None for 0.
        interrupted: the line after Ctrl-C; None for no line.
        extra: of this package, whose dependencies the command needs.

    Returns:
        what ``work`` returns, or 0 for None; 2 after a mistake, 130 after Ctrl-C.
    """
    with lasting():
        return _exit_code(work, interrupted, extra)


def _exit_code(
    work: Callable[[], int | None], interrupted: Callable[[], str] | None, extra: str
) -> int:
    try:
        try:
            return work() or 0
        finally:
            sys.stdout.flush()  # here an error is told in a line
    except UserError as error:
        text = str(error)
        short = len(text) <= 2000 and "\n" not in text
        print(f"error: {text if short else one_line(error, 2000)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {disk_line(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and NO_MEMORY.search(str(error)) is None:
            raise
        print(f"error: not enough memory: {one_line(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        line = missing(error, extra)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if interrupted is not None:
            print(f"\n{interrupted()}", file=sys.stderr)
        return 130
