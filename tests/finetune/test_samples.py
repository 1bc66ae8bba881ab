"""Answers and win rates while a model is trained."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from tiny_llm import QUIET, save_tiny, tiny_llama, tiny_pairs, tiny_tokenizer

from torchmpo.finetune import PreferenceData, PreferenceModule, Samples
from torchmpo.finetune.__main__ import main
from torchmpo.finetune.answers import AnswerWriter, Sampling
from torchmpo.finetune.tokenize import encode_prompt
from torchmpo.runs.errors import UserError

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]
PROMPTS = ["Name a colour.", "Hi", "What is the capital of France?"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    save_tiny(tmp_path / "base")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in tiny_pairs(16)))
    rows = [{"instruction": prompt} for prompt in PROMPTS]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    return tmp_path


def config(folder, callbacks, **trainer):
    settings = {
        "out": str(folder / "run"),
        "model": {
            "model": "base",
            "loss": "dpo",
            "lora": {"r": 4, "dropout": 0.1},
            "lr": 0.02,
        },
        "data": {"train": "pairs.jsonl", "batch_size": 4, "max_length": 64},
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "callbacks": callbacks,
            **trainer,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def samples(**settings):
    arguments = {"prompts": "prompts.json", "every_n_steps": 2, "max_new_tokens": 8, **settings}
    return [{"class_path": "torchmpo.finetune.Samples", "init_args": arguments}]


JUDGE = "def longer(prompts, first, second):\n    return [0.25 for _ in prompts]\n"
JUDGE += "longer.symmetric = True\n"


def logged(folder, version=0):
    path = folder / f"run/log/version_{version}/metrics.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return {
        int(row["step"]): float(row["samples/win_rate"])
        for row in rows
        if row.get("samples/win_rate")
    }


def test_answers_and_win_rates_are_logged_and_training_stays_the_same(folder, capsys):
    (folder / "my_sample_judge.py").write_text(JUDGE)
    callbacks = samples(judge="my_sample_judge:longer", chat=True)
    assert main(["fit", "--config", config(folder, callbacks)]) == 0
    files = sorted((folder / "run/log/version_0/samples").iterdir())
    assert [path.name for path in files] == [f"step_00000{i}.json" for i in (0, 2, 4)]
    first = json.loads(files[0].read_text())
    assert [row["instruction"] for row in first] == PROMPTS
    assert first[0]["generator"] == "the start"
    tokenizer = tiny_tokenizer()
    writer = AnswerWriter(tiny_llama(), tokenizer, Sampling(8))
    ids = tokenizer(f"<s><|user|>{PROMPTS[0]}</s><|assistant|>")["input_ids"]
    assert first[0]["output"] == writer([ids], [0])[0].text
    last = json.loads(files[2].read_text())
    changed = [a["output"] != b["output"] for a, b in zip(first, last, strict=True)]
    assert any(changed)
    rates = logged(folder)
    assert rates[0] == 50.0
    # 0.25 where the answers differ, a draw where they do not
    assert rates[4] == pytest.approx(100 * sum(0.25 if c else 0.5 for c in changed) / 3)

    with_samples = load_file("run/adapter/adapter_model.safetensors")
    assert main(["fit", "--config", config(folder, None), "--out", "plain"]) == 0
    without = load_file("plain/adapter/adapter_model.safetensors")
    assert with_samples.keys() == without.keys()
    for name, value in without.items():
        assert torch.equal(value, with_samples[name])


def test_a_resume_compares_with_what_the_run_began_with(folder):
    (folder / "my_sample_judge.py").write_text(JUDGE)
    path = config(folder, samples(judge="my_sample_judge:longer"))
    assert main(["fit", "--config", path]) == 0
    whole = logged(folder)
    path = config(folder, samples(judge="my_sample_judge:longer"))
    args = ["--config", path, "--out", "parts"]
    assert main(["fit", *args, "--trainer.max_steps", "2"]) == 0
    assert main(["fit", *args, "--trainer.max_steps", "4", "--resume"]) == 0
    (folder / "run").rename("moved")
    (folder / "parts").rename("run")
    assert logged(folder, 0) | logged(folder, 1) == whole


def test_a_judge_that_fails_is_found_out_at_once_and_later_loses_no_training(folder, capsys):
    (folder / "my_bad_judge.py").write_text("def fails(prompts, a, b):\n    return {}['x']\n")
    assert main(["fit", "--config", config(folder, samples(judge="my_bad_judge:fails"))]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: my_bad_judge:fails raised KeyError: 'x'")
    later = "calls = []\ndef later(prompts, a, b):\n"
    later += "    calls.append(a)\n    return [0.5] if len(calls) < 3 else {}['x']\n"
    (folder / "my_later_judge.py").write_text(later)
    path = config(folder, samples(judge="my_later_judge:later"))
    with pytest.warns(UserWarning, match="no win rate of step [24]: my_later_judge:later raised"):
        assert main(["fit", "--config", path]) == 0
    assert logged(folder, 1) == {0: 50.0}
    assert (folder / "run/adapter/adapter_model.safetensors").is_file()


def test_one_of_two_processes_answers(folder):
    (folder / "my_sample_judge.py").write_text(JUDGE)
    path = config(folder, samples(judge="my_sample_judge:longer"), devices=2, strategy="ddp")
    command = [sys.executable, "-m", "torchmpo.finetune", "fit", "--config", path]
    paths = os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    done = subprocess.run(
        [*command, "--data.batch_size", "2"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,  # only a hang takes so long
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(logged(folder)) == [0, 2, 4]
    assert logged(folder)[0] == 50.0


def test_from_python_with_a_reference_and_a_function(folder):
    rows = [{"instruction": p, "output": "", "generator": "mute"} for p in PROMPTS]
    (folder / "mute.json").write_text(json.dumps(rows))

    def never(prompt, a, b):
        raise AssertionError("an empty answer loses without a judge")

    module = PreferenceModule("base", "simpo", lr=1e-3)
    data = PreferenceData("pairs.jsonl", batch_size=8, max_length=64)
    callback = Samples("prompts.json", judge=never, reference="mute.json", count=2, chat=False)
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=1,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    files = sorted((folder / "samples").iterdir())
    assert [path.name for path in files] == ["step_000000.json", "step_000001.json"]
    first = json.loads(files[0].read_text())
    writer = AnswerWriter(tiny_llama(), tiny_tokenizer(), Sampling(128))
    ids = encode_prompt(PROMPTS[1], tiny_tokenizer())
    assert first[1]["output"] == writer([ids], [1])[0].text
    assert len(first) == 2
    assert module.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be at least 1"),
        ({"count": 0}, "count must be at least 1"),
        ({"judge": "no_such:judge"}, "cannot import 'no_such'"),
        ({"reference": "other.json"}, "other.json has no answer to 'Name a colour.'"),
        ({"temperature": -1.0}, "temperature must be zero or positive"),
    ],
)
def test_mistakes(folder, settings, message):
    rows = [{"instruction": "x", "output": "y", "generator": "z"}]
    (folder / "other.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=message):
        Samples("prompts.json", **settings)
