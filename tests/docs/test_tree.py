"""docs/tree.md names every module, with what its docstring says now."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("make_tree", ROOT / "docs" / "make_tree.py")
make_tree = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_tree)

PAGE = make_tree.PAGE.read_text()


def test_page_is_up_to_date():
    assert make_tree.page() == PAGE, "it is not what `make docs` writes now"


def test_tree_names_every_module():
    modules = [p for folder in ("torchmpo", "envs") for p in (ROOT / folder).rglob("[!_]*.py")]
    for module in modules:
        folder = module.parent.relative_to(ROOT)
        (section,) = [
            part for part in PAGE.split("\n##") if part.lstrip("# ").startswith(f"{folder}/\n")
        ]
        assert f"| `{module.name}` | " in section


@pytest.mark.parametrize("path", make_tree.FILES)
def test_path_exists(path):
    assert (ROOT / path).exists()
    assert (ROOT / path).is_dir() == path.endswith("/")


@pytest.mark.parametrize(
    "path", sorted(p for f in make_tree.SHOWN for p in make_tree.packages(ROOT / f)), ids=str
)
def test_every_module_says_what_it_is(path):
    for module in make_tree.modules(path):
        assert make_tree.summary(module)


def test_summary_is_the_first_paragraph_as_markdown(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('"""One\n``thing`` of :mod:`.other` | x.\n\nMore.\n"""\n')
    assert make_tree.summary(path) == "One `thing` of `other` \\| x"


@pytest.mark.parametrize("page", ["docs/design.md", "CONTRIBUTING.md"])
def test_layers_are_those_that_are_checked(page):
    """A layer begins a line, or stands after `>`."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in contracts["contracts"] if c["type"] == "layers"]
    (block,) = re.findall(r"^```text\n(__main__.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    assert re.findall(r"(?:^|> +)(\w+(?: \| \w+)*)", block, re.M) == layers
