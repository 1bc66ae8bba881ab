"""What the README says is so: its examples run, its commands and files exist."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SHIPPED = [ROOT / "torchmpo", ROOT / "envs"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def tree() -> list[str]:
    """The paths of the tree: two spaces of indent a level, a path, two spaces, what it is."""
    (text,) = blocks("text")
    folders: list[str] = []
    paths = []
    for line in text.splitlines():
        indent, path = re.match(r"( *)(\S+)", line).groups()
        folders[len(indent) // 2 :] = [path]
        paths.append("".join(folders))
    return paths


@pytest.mark.parametrize("source", blocks("python"))
def test_python_block_runs(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "README.md", "exec"), {"__name__": "readme"})


def test_there_are_python_blocks():
    assert blocks("python")


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([\w.]+)", README))))
def test_command_exists(module):
    assert find_spec(module) is not None


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z][a-z0-9-]*)", README))))
def test_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("path", tree())
def test_path_of_the_tree_exists(path):
    assert (ROOT / path).exists()
    assert (ROOT / path).is_dir() == path.endswith("/")


def test_tree_names_every_module():
    modules = {
        str(path.relative_to(ROOT)) for folder in SHIPPED for path in folder.rglob("[!_]*.py")
    }
    assert modules <= set(tree())
