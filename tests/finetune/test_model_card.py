"""The card beside what was trained: filled, publishable, and carried into an export."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny_llm import QUIET, save_tiny, tiny_llama, tiny_pairs

import torchmpo
from torchmpo.finetune.__main__ import main
from torchmpo.finetune.model_card import card_text
from torchmpo.finetune.models import LoraSettings
from torchmpo.finetune.module import PreferenceModule
from torchmpo.losses import LOSSES
from torchmpo.objectives.documented import documented

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


def my_loss(chosen_logps, rejected_logps, *, beta=1.0):
    return beta * (rejected_logps - chosen_logps)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "base")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in tiny_pairs(9)))
    settings = {
        "out": str(tmp_path / "run"),
        "model": {
            "model": str(tmp_path / "base"),
            "loss": "dpo",
            "loss_args": {"beta": 0.3},
            "lora": {"r": 4},
            "lr": 0.01,
        },
        "data": {"train": str(tmp_path / "pairs.jsonl"), "batch_size": 4, "max_length": 64},
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def rows(text):
    """name → value of every table of a card."""
    return dict(re.findall(r"^\| (.*?) \| (.*?) \|$", text, flags=re.MULTILINE))


def test_an_adapter_has_a_filled_card_and_an_export_carries_it(config, tmp_path, capsys):
    pairs = str(tmp_path / "pairs.jsonl")
    assert main(["fit", "--config", config, "--data.validation", pairs]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "run" / "adapter"
    assert f"next: python -m torchmpo.generate --model {folder} --prompts" in printed
    assert "--format text" in printed  # the pairs are texts, and the model has a template
    text = (folder / "README.md").read_text()
    assert str(tmp_path) not in text  # publishable
    assert "[More Information Needed]" not in text
    assert "# base, trained with dpo" in text
    assert "loss = −(1 − ε)·LS(βD) − ε·LS(−βD)" in text
    found = rows(text)
    assert found["beta"] == "0.3"
    assert found["lr"] == "0.01"
    assert found["lora r"] == "4"
    assert found["optimizer steps"] == "4"
    assert found["reference"] == "adapter_off"
    assert found["torchmpo"] == torchmpo.__version__
    assert 0 < float(found["loss"]) < 0.7
    assert 0 < float(found["val/loss"]) < 0.7
    assert "- train: `pairs.jsonl`; tokenized 9 pairs" in text
    assert "- validation: `pairs.jsonl`; tokenized 9 pairs" in text
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.tags == ["torchmpo", "preference-optimization", "dpo"]
    assert card.data.base_model is None  # a folder of this machine is no name on a hub

    given = ["export", "--adapter", str(folder), "--out", str(tmp_path / "merged")]
    assert main(given) == 0
    merged = (tmp_path / "merged" / "README.md").read_text()
    assert ModelCard.load(tmp_path / "merged" / "README.md").data.library_name == "transformers"
    assert "The adapter `adapter` added into the weights of `base`" in merged
    assert rows(merged) == found
    assert 'AutoModelForCausalLM.from_pretrained("merged")' in merged


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_of_the_library_has_its_equation(loss):
    text = card_text("folder", PreferenceModule(tiny_llama(), loss, reference="copy"))
    assert re.search(r"## Loss\n\n`\w+`: [^\n]+.*?```text\n[^`]*=[^`]*```", text, flags=re.DOTALL)
    assert "Source: " in text


def test_a_sum_has_the_equations_of_its_parts():
    text = card_text("folder", PreferenceModule(tiny_llama(), "0.8*ipo+sft", reference="copy"))
    for name in ("ipo", "sft"):
        summary, equation, source = documented(LOSSES[name])
        assert f"`{name}`: {summary}\n\n```text\n{equation}\n```\n\nSource: {source}" in text
    assert "| ipo_weight | 0.8 |" in text


def test_ones_own_loss_is_shown_as_it_is_written():
    text = card_text("folder", PreferenceModule(tiny_llama(), my_loss, lora=LoraSettings()))
    assert "```python\ndef my_loss(chosen_logps, rejected_logps, *, beta=1.0):\n" in text
    assert "# a model in memory, trained with my_loss" in text
    assert "Not recorded" in text
    assert "None were logged" in text


def test_a_discovered_loss_says_where_it_comes_from():
    text = card_text("folder", PreferenceModule(tiny_llama(), "tla_noisy"))
    assert "discovered on tla, noisy:0.3" in text
    assert "loss = −ψ(c̄) − g(φ⁻¹(c̄) − φ⁻¹(r̄))" in text
    assert "All weights of" in text
    two = torchmpo.MirrorObjective(steps="two")
    text = card_text("folder", PreferenceModule(tiny_llama(), two, reference="cache"))
    assert "loss = −g(φ⁻¹(c̄) − φ⁻¹(c̄') − φ⁻¹(r̄) + φ⁻¹(r̄'))" in text


class Hub:
    """Stands for huggingface_hub.HfApi."""

    calls: list = []  # noqa: RUF012
    refuses = False

    def create_repo(self, name, **settings):
        if self.refuses:
            raise OSError("no token\nlog in first")
        self.calls.append((name, settings))

    def upload_folder(self, *, repo_id, folder_path):
        self.calls.append((repo_id, folder_path))
        return f"https://hub/{repo_id}"


def test_what_was_trained_is_pushed_on_request(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    assert main(["fit", "--config", config, "--push_to_hub", "me/mine"]) == 0
    assert "pushed to https://hub/me/mine" in capsys.readouterr().out
    adapter = str(tmp_path / "run" / "adapter")
    assert Hub.calls == [
        ("me/mine", {"private": True, "exist_ok": True}),
        ("me/mine", adapter),
    ]
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert 'AutoModelForCausalLM.from_pretrained("me/mine")' in card
    monkeypatch.setattr(Hub, "refuses", True)
    merged = str(tmp_path / "merged")
    given = ["export", "--adapter", adapter, "--out", merged, "--push_to_hub", "me/merged"]
    assert main(given) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"error: {merged} is written, but could not be pushed to me/merged: no token log in first"
    )
