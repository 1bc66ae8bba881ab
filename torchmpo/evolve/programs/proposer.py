"""Formulas from outside: a command that reads what is known and prints losses to try.

It runs in a process of its own with limits. What it prints is parsed as formulas and never
executed. Its answers are kept, a file a generation, so a search that is resumed gets them again.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torchmpo.evolve.programs.grammar import Grammar, check_constants
from torchmpo.objectives.formulas import parse, text
from torchmpo.objectives.formulas.vocabulary import LEAVES, OPERATIONS, Expression
from torchmpo.runs.errors import UserError, one_line
from torchmpo.runs.files import write_atomic
from torchmpo.runs.json_files import read_json

MOST_BYTES = 100_000  # of an answer that is read
# ulimit counts files in blocks of 512 bytes or of 1024, memory in KiB.
LIMITED = 'ulimit -f 256 && ulimit -v "$1" && ulimit -c 0 && shift && exec "$@"'


def words_of(command: str) -> list[str]:
    """A command as its words.

    Raises:
        UserError: it is empty, or its quotes do not match.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"proposer: {error}: {command}") from error
    if not words:
        raise UserError("proposer is empty: give a command")
    return words


class Proposer:
    """Asks a command for formulas, once a generation.

    Its input is JSON: ``generation``, ``archive`` (``formula``, mean ``score``, ``trainings``; best
    first), and the space: ``leaves`` with what they are, ``functions`` with their numbers of
    arguments, ``nodes`` of a formula at most, and what is required of each, ``require``. Its output
    is a formula a line; empty lines and those that begin with # are passed over.

    Args:
        command: as in a shell, but no shell reads it.
        grammar: the formulas of the search.
        folder: where answers are kept.
        seconds: after which it is ended, with what it started.
        gib: of address space that it may use.

    Raises:
        UserError: see :func:`words_of`.
    """

    def __init__(self, command: str, grammar: Grammar, folder: Path, seconds: int, gib: int):
        self.words = words_of(command)
        self.grammar, self.folder = grammar, folder
        self.seconds, self.gib = seconds, gib

    def __call__(
        self, generation: int, known: Sequence[tuple[Expression, float, int]]
    ) -> list[Expression]:
        """What it proposes. A command that fails proposes nothing, and is told in a line."""
        path = self.folder / f"{generation:06d}.json"
        if not path.exists():
            answer, failed = self._ask(self._question(generation, known))
            if failed:
                print(f"proposer: {failed}; it proposes nothing", flush=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps([] if failed else answer.splitlines(), indent=1) + "\n")
        found, wrong = [], []
        for line in map(str.strip, read_json(path, list[str])):
            if line and not line.startswith("#"):
                try:
                    expression = parse(line)
                    check_constants(expression)
                    found.append(expression)
                except ValueError as error:
                    wrong.append(one_line(error))
        told = f"proposer: {len(found)} formulas"
        if wrong:
            told += f", and {len(wrong)} lines that are none; the first: {wrong[0]}"
        print(told, flush=True)
        return found

    def _question(self, generation: int, known: Sequence[tuple[Expression, float, int]]) -> str:
        archive = [
            {"formula": text(expression), "score": score, "trainings": trainings}
            for expression, score, trainings in known
        ]
        space = {
            "leaves": {name: LEAVES[name].code for name in self.grammar.leaves},
            "functions": {name: len(o.takes) for name, o in OPERATIONS.items()},
            "nodes": self.grammar.most,
            "require": self.grammar.require,
        }
        return json.dumps({"generation": generation, "archive": archive, **space})

    def _ask(self, question: str) -> tuple[str, str]:
        """Its output, and what went wrong."""
        with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as answered:
            asked.write(question.encode())
            asked.seek(0)
            words = ["sh", "-c", LIMITED, "sh", str(self.gib * 2**20), *self.words]
            process = subprocess.Popen(
                words,
                stdin=asked,
                stdout=answered,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                code = process.wait(self.seconds)
            except subprocess.TimeoutExpired:
                return "", f"it took more than {self.seconds} s"
            finally:
                _end(process)
            answered.seek(0)
            answer = answered.read(MOST_BYTES + 1)
        if len(answer) > MOST_BYTES or code == -signal.SIGXFSZ:
            return "", f"it printed more than {MOST_BYTES} bytes"
        if code != 0:
            return "", f"it ended with exit code {code}"
        return answer.decode("utf-8", "replace"), ""


def _end(process: subprocess.Popen) -> None:
    """End it and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
