"""The commands of pages, with today's defaults, have the settings of the runs in results/."""

import re
import shlex
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = ["docs/results.md", "docs/paper.md", "experiments/README.md", "experiments/HISTORY.md"]
# Of no run in results/: not run, or of a trial that was not kept.
UNRECORDED = (
    "evolve",
    "evolve --learn '[psi, phi_inv]'",
    "evolve --space program",
    "diagnose --losses sft,dpo --baselines rlhf",
    "diagnose --preset full --learning_rate 1e-3 --tuning_seeds 1 --trials 8 --data_per_seed false"
    " --steps_per_trajectory 250 --losses sft,cpo,dpo --data base,noisy:0.3",
)


def commands(page: str) -> dict[str, list[str]]:
    """Those of a diagnosis or a search, by their words, that begin a run."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    written = re.findall(r"`(python -m[^`]*)`", text) + re.findall(
        r"^    (python -m.*)", text, re.M
    )
    lines = {" ".join(words.split()) for words in written}
    begin = r"python -m torchmpo\.((?:diagnose|evolve)\b.*)"
    ours = (re.fullmatch(begin, line) for line in lines)
    return {m[1]: shlex.split(m[1]) for m in ours if m and "--resume" not in m[1]}


def settings(module: str, values: dict) -> dict:
    """Without what may differ between machines, and what has no effect; lists in any order."""
    command = import_module(f"torchmpo.{module}.__main__").COMMAND
    values = {k: v for k, v in (command.older | values).items() if k not in command.place}
    for name in ("losses", "data", "rivals", "warm_start"):
        if values.get(name):
            values[name] = sorted(values[name].replace("_v1", "").split(","))
    if values["tuning_seeds"] == 1:  # one round leaves nobody to be left out of the next
        values["tuning_reduction"] = 1
    return values


def recorded(module: str) -> dict[str, dict]:
    """The settings of every run in results/, by its folder."""
    named = {"diagnose": "trials", "evolve": "generations"}[module]
    paths = (ROOT / "experiments" / "results").glob("*/config.yaml")
    found = {path.parent.name: yaml.safe_load(path.read_text()) for path in paths}
    return {name: settings(module, values) for name, values in found.items() if named in values}


@pytest.mark.parametrize("page", PAGES)
def test_a_command_has_the_settings_of_its_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    of_page = commands(page)
    assert of_page
    for text, (module, *options) in of_page.items():
        if text in UNRECORDED:
            continue
        if "--out" in options:
            at = options.index("--out")
            options = options[:at] + options[at + 2 :]
        command = import_module(f"torchmpo.{module}.__main__").COMMAND
        config, *_ = command.parse([*options, "--out", str(tmp_path / "run")])
        now = settings(module, asdict(config))
        runs = recorded(module)
        far = {name: sorted(k for k in now if now[k] != then.get(k)) for name, then in runs.items()}
        nearest = min(far, key=lambda name: len(far[name]))
        assert not far[nearest], f"{text}: of {nearest} it differs in {far[nearest]}"
