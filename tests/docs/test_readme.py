"""What the README says is so: its examples run, its commands and files exist, it stays short."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_llm import QUIET, save_tiny, tiny_pairs

from torchmpo.losses import LOSSES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
pytestmark = QUIET


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("source", blocks("python"))
def test_python_block_runs(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "path/to/model" in source:
        save_tiny(tmp_path / "path" / "to" / "model")
        lines = [json.dumps(pair) + "\n" for pair in tiny_pairs(16)]
        (tmp_path / "pairs.jsonl").write_text("".join(lines))
    exec(compile(source, "README.md", "exec"), {"__name__": "readme"})


def test_there_is_a_python_block_for_every_way_in():
    assert len(blocks("python")) >= 3


@pytest.mark.parametrize(
    "module", sorted(set(re.findall(r"python -m ([\w.]+)", README)) - {"venv"})
)
def test_command_exists(module):
    name = module.replace("NAME", "evolve")
    assert find_spec(name) is not None


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z][a-z0-9-]*)", README))))
def test_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)\s#]+)(?:#[\w-]+)?\)", README))))
def test_link_leads_somewhere(target):
    assert target.startswith("https://") or (ROOT / target).exists()


def test_files_that_commands_name_exist():
    paths = re.findall(r"--config (\S+)", README)
    assert paths
    assert all((ROOT / path).exists() for path in paths)


def test_it_stays_short():
    assert len(README) <= 9000


def test_numbers_are_few():
    without_links = re.sub(r"\]\([^)]*\)|\[paper\].*", "", PROSE)
    assert len(re.findall(r"\d[\d.,]*", without_links)) <= 20


def test_the_number_of_losses():
    assert f"There are {len(LOSSES)} " in README
