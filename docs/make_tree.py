"""Writes docs/tree.md, every module with the first sentence of its docstring: ``make docs``."""

import ast
import re
from pathlib import Path

from torchmpo.runs.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tree.md"

HEAD = """\
# The tree

<!-- Written by `make docs` from the docstrings of the modules: edit those. -->

Which packages may import which, and why it is arranged so, is in [design](design.md).
"""
# What is no Python module, in the order in which it is shown.
FILES = {
    "pyproject.toml": "packaging, and the settings of every tool",
    "constraints.txt": "the versions that were tested together",
    "Makefile": "`make evolve`, `make test` and the rest, each sets up what it needs",
    ".ci/run": "lint, site and tests, for a machine to call",
    ".pre-commit-config.yaml": "ruff and pyright before a commit",
    "CITATION.cff": "how to cite it",
    "CONTRIBUTING.md": "set-up, tests and style in a page",
    "docs/": "these pages, and the scripts that write some of them",
    "tests/": "one file per module, in folders that mirror the packages",
    "experiments/results/": "the files and figures of the recorded runs",
    "envs/torchmpo_envs/experts/": "trained policies, each with a card: how made, how good",
    "torchmpo/objectives/discovered/": "objectives that searches found, each with its card",
}
# Folders whose modules are listed, each with what it is.
SHOWN = {
    "torchmpo": "the library",
    "envs": "the environments, importable alone: they do not know `torchmpo`",
    "experiments": "one script per claim, and README.md with what was found",
    "benchmarks": "one question per script, against a named rival",
}


def summary(path: Path) -> str:
    """The first paragraph of a module's docstring, as Markdown in a table."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    text = " ".join(docstring.split("\n\n")[0].split())
    text = re.sub(r":\w+:`\.?([^`]+)`", r"`\1`", text).replace("``", "`")
    return text.replace("|", "\\|").rstrip(".:")


def modules(folder: Path) -> list[Path]:
    """The modules directly in a folder; what starts with an underscore belongs to the package."""
    return sorted(folder.glob("[!_]*.py"))


def packages(folder: Path) -> list[Path]:
    """The folder and those in it that have modules, results apart."""
    inside = sorted(path for path in folder.rglob("*") if path.is_dir())
    return [path for path in [folder, *inside] if modules(path) and "results" not in path.parts]


def table(rows: list[tuple[str, str]]) -> str:
    """Two columns: a path and what it is."""
    lines = ["| path | what it is |", "|---|---|", *(f"| `{a}` | {b} |" for a, b in rows)]
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/tree.md."""
    parts = [HEAD, table(list(FILES.items()))]
    for name, what in SHOWN.items():
        parts.append(f"## {name}/\n\n{what[0].upper()}{what[1:]}.\n")
        for folder in packages(ROOT / name):
            path = folder.relative_to(ROOT)
            if folder.name != name:
                parts.append(f"### {path}/\n")
            if folder.name != name and (folder / "__init__.py").exists():
                parts.append(f"{summary(folder / '__init__.py')}.\n")
            parts.append(table([(m.name, summary(m)) for m in modules(folder)]))
    return "\n".join(parts)


if __name__ == "__main__":
    write_atomic(PAGE, page())
