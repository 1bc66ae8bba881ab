"""What the README says is so: its examples run, its commands and files exist, it stays short."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_llm import QUIET, save_tiny, tiny_pairs

from torchmpo.losses import LOSSES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
pytestmark = [
    *QUIET,
    # LightningCLI says so whenever it is called from Python, and calls jsonargparse by an old name.
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


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


def run(command: str) -> None:
    """A line that calls Python with a module, in this process."""
    _, flag, module, *arguments = shlex.split(command, comments=True)
    assert flag == "-m"
    if module.startswith("torchmpo."):
        assert importlib.import_module(f"{module}.__main__").main(arguments) == 0
    else:
        assert importlib.import_module(module).main(*arguments) == 0


def test_fine_tuning_runs_as_printed(tmp_path, monkeypatch, capsys):
    """In an empty folder: what `make finetune` does, the file that is shown, every other line."""
    assert shutil.which("make")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    section = README.split("## Fine-tune with it")[1].split("\n## ")[0]
    commands = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    shown = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert commands
    assert shown
    first, *others = commands[1].splitlines()
    assert first.split()[:2] == ["make", "finetune"]
    recipe = subprocess.run(
        ["make", "-n", "finetune"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    recipe = [line for line in recipe if "-m torchmpo" in line or "-m experiments" in line]
    assert len(recipe) == 2
    (config,) = {word for line in [*recipe, *others] for word in line.split() if ".yaml" in word}
    assert shown[1] == (ROOT / config).read_text()
    (tmp_path / config).parent.mkdir(parents=True)
    (tmp_path / config).write_text(shown[1])
    for line in [*recipe, *others]:
        run(line)
    assert "pair 3 of 90" in capsys.readouterr().out
    for name in ("my_run", "simpo"):
        assert (tmp_path / "runs" / name / "adapter" / "adapter_model.safetensors").is_file()
        (log,) = (tmp_path / "runs" / name / "log").glob("*/metrics.csv")
        assert {"loss", "val/loss"} <= {*log.read_text().splitlines()[0].split(",")}


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
