"""Commands in processes that are forked from one that has imported everything: a case takes as long
as its work. Such a process can be killed at any moment, and what it did to itself is gone with it.
"""

import io
import json
import multiprocessing
import os
import resource
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

PRELOAD = [
    "torchmpo.evolve.run",
    "torchmpo.diagnose.run",
    "torchmpo.show.run",
    "torchmpo.finetune.command_line",
    "torchmpo.finetune.export",
    "torchmpo.generate.run",
    "torchmpo.winrate.run",
    "torchmpo.__main__",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "peft",
    "attack.world",
]
MEMORY = 12 << 30  # bytes of address space that a case may take beyond what it starts with
CANARY = "CANARY"  # a file that code from data would make
SETTINGS = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
        code: its exit code; −9 after a kill.
        out, err: what it printed.
        late: whether it was killed because its time was over.
        seconds: how long it took.
    """

    code: int | None
    out: str
    err: str
    late: bool
    seconds: float


def start(
    work: Callable[..., int | None],
    *arguments: object,
    folder: Path,
    printed: Path,
    environment: Mapping[str, str] | None = None,
    limits: Mapping[int, int] | None = None,
) -> BaseProcess:
    """Call a function, which is known by its name, in a process of its own.

    Args:
        folder: where it works.
        printed: without a suffix; what it prints goes to ``.out`` and ``.err``.
        environment: variables to set, besides those of this process.
        limits: of ``resource``.
    """
    os.environ.update(SETTINGS)  # before the first process: the others have its libraries
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    variables = {"TORCHMPO_CACHE": str(folder / "cache"), **(environment or {})}
    process = context.Process(
        target=_inside,
        args=(work, arguments, str(folder), str(printed), variables, dict(limits or {})),
    )
    process.start()
    return process


def _inside(work, arguments, folder, printed, variables, limits) -> None:
    os.setsid()  # what it starts is killed with it
    os.chdir(folder)
    for number, path, mode in ((0, os.devnull, "r"), (1, f"{printed}.out", "w")):
        _point(number, path, mode)
    _point(2, f"{printed}.err", "w")
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), "utf-8")  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(  # as Python's own: every letter can be written, line by line
        open(2, "wb", closefd=False),  # noqa: SIM115
        "utf-8",
        "backslashreplace",
        line_buffering=True,
    )
    os.environ.update(variables)
    sys.path.insert(0, folder)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for name, value in {resource.RLIMIT_AS: taken + MEMORY, **limits}.items():
        resource.setrlimit(name, (value, value))
    try:
        code = work(*arguments) or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as a process that has ended: no other test's threads are waited for


def _point(number: int, path: str, mode: str) -> None:
    flags = os.O_RDONLY if mode == "r" else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    opened = os.open(path, flags, 0o644)
    os.dup2(opened, number)
    os.close(opened)


def finish(process: BaseProcess, printed: Path, seconds: float) -> Ended:
    """Wait for a process, but not for ever."""
    began = time.monotonic()
    process.join(seconds)
    late = process.is_alive()
    kill(process)
    out, err = (
        path.read_text("utf-8", "replace") if (path := printed.with_suffix(suffix)).exists() else ""
        for suffix in (".out", ".err")
    )
    return Ended(process.exitcode, out, err, late, time.monotonic() - began)


def kill(process: BaseProcess) -> None:
    """kill −9, of all that belongs to it."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended, or not made its group yet
        process.kill()
    process.join()


def command(words: str | Sequence[str]) -> int:
    """The work of a process: a command line."""
    from torchmpo.__main__ import main

    return main(shlex.split(words) if isinstance(words, str) else list(words))


def saving_often(words: str) -> int:
    """As `command`, of one that saves every few seconds: after every piece of work instead."""
    import torchmpo.generate.run

    torchmpo.generate.run.SAVE_EVERY = 0.0
    return command(words)


def calls(expressions: Sequence[str], path: str) -> None:
    """The work of a process: Python expressions, one after the other, with what comes of each.

    A line of JSON in ``path`` for each: ``["…", "value", repr]``, or ``["…", kind of error, text,
    whether a line of this library raised it]``. One without an answer never ended.
    """
    from attack.calls import NAMES, names

    with open(path, "a") as file:
        for expression in expressions:
            try:
                exec(NAMES, space := names())
                told = ["value", repr(eval(expression, space))[:200]]
            except BaseException as error:
                told = [type(error).__name__, str(error), _deliberate(error)]
            file.write(json.dumps([expression, *told]) + "\n")
            file.flush()


def _deliberate(error: BaseException) -> bool:
    """Whether it was raised on purpose by this library."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    ours = "torchmpo" in last.filename and "site-packages" not in last.filename
    return ours and (last.line or "").startswith("raise")
