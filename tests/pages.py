"""Runs the blocks of a page from the top, in a folder of its own, and compares what it shows."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"


def blocks_of(name: str) -> list[tuple[str, str]]:
    """The language and the text of each fenced block of a tutorial."""
    page = (TUTORIALS / name).read_text()
    return re.findall(r"^```(\w+)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def matches(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed: spaces are equal, … stands for anything."""
    parts = [re.escape(" ".join(part.split())) for part in shown.split("…")]
    return re.fullmatch(r"\s*.*?\s*".join(parts), " ".join(printed.split())) is not None


class Page:
    """A tutorial, run block by block.

    ``python`` runs in one namespace, or is written to the file that its first line names; ``bash``
    is our own commands, run in this process; ``console`` is what the block before it printed or
    raised. Other languages are only shown.
    """

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]):
        self.folder, self.capsys = folder, capsys
        self.namespace: dict = {"__name__": "page"}

    def run(self, name: str) -> None:
        """Run it from the top; fails at the first block that shows something else."""
        printed = ""
        for language, source in blocks_of(name):
            if language == "console":
                assert matches(source, printed), f"{name} shows\n{source}\nbut got\n{printed}"
            if language in ("python", "bash"):
                self.capsys.readouterr()
                printed = self.python(source) if language == "python" else self.bash(source)

    def python(self, source: str) -> str:
        """What the block printed, or the error that it raised, in a line."""
        if path := re.match(r"# (\S+\.py)\n", source):
            file = self.folder / path[1]
            file.parent.mkdir(exist_ok=True)
            file.write_text(source)
            return ""
        try:
            exec(compile(source, "page.md", "exec"), self.namespace)
        except ValueError as error:
            return f"ValueError: {error}"
        return self.capsys.readouterr().out

    def bash(self, source: str) -> str:
        """What `python -m torchmpo.NAME …` printed."""
        for line in source.splitlines():
            python, flag, module, *arguments = shlex.split(line, comments=True)
            assert (python, flag) == ("python", "-m")
            main = importlib.import_module(f"{module}.__main__").main
            assert main(arguments) == 0, self.capsys.readouterr().err
        return self.capsys.readouterr().out
