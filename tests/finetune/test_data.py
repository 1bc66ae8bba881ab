"""Settings of `PreferenceData`, from sources to tokenized data sets; no model is needed."""

import json

import pytest

pytest.importorskip("lightning")

from test_chat_template import AGENT, Clock
from tiny_llm import QUIET, save_tiny, tiny_llama, tiny_pairs, tiny_tokenizer
from transformers.utils import chat_template_utils

from torchmpo.finetune.__main__ import main
from torchmpo.finetune.data import PreferenceData
from torchmpo.finetune.reference import data_digest
from torchmpo.runs.errors import UserError

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]
CHAT = [
    {
        "prompt": [{"role": "user", "content": f"Name colour {i}."}],
        "chosen": [{"role": "assistant", "content": "Blue."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    for i in range(8)
]


def loaded(train, validation=None, stage=None, **settings):
    data = PreferenceData(train, validation, tokenizer=tiny_tokenizer(), **settings)
    data.setup(stage)
    return data


def prompts(data, name):
    return [data.tokenizer.decode(item.prompt) for item in data.datasets[name]]


def test_a_share_of_the_training_pairs_is_held_out():
    rows = tiny_pairs(20)
    rows += [rows[0] | {"chosen": " another"}, rows[1]]  # another pair of a prompt, and a duplicate
    data = loaded(rows, 0.25)
    train, validation = prompts(data, "train"), prompts(data, "validation")
    assert len(train) + len(validation) == 21
    assert len({*validation}) == 5
    assert not {*train} & {*validation}
    assert {*train} | {*validation} == {row["prompt"] for row in rows}
    # The seed of a run is that of the order of pairs.
    again = loaded(rows, 0.25, seed=1, stage="validate")
    assert prompts(again, "validation") == validation
    assert "train" not in again.datasets
    for share in (0, 1, 1.5, -0.1):
        with pytest.raises(UserError, match=r"data\.validation as a share must be in \(0, 1\)"):
            PreferenceData(rows, share)


def test_several_sources_with_weights(tmp_path):
    for name, count, seed in (("a", 6, 0), ("b", 10, 1)):
        rows = "".join(json.dumps(row) + "\n" for row in tiny_pairs(count, seed))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    mixture = [
        {"source": str(tmp_path / "a.jsonl"), "weight": 2},
        {"source": str(tmp_path / "b.jsonl"), "weight": 0.5, "split": "train[:8]"},
    ]
    found = prompts(loaded(mixture), "train")
    first, second = (
        [tiny_tokenizer().decode(tiny_tokenizer()(row["prompt"])["input_ids"]) for row in rows]
        for rows in (tiny_pairs(6), tiny_pairs(10, 1)[:8])
    )
    assert [found.count(prompt) for prompt in first] == 6 * [2]
    assert sorted(found.count(prompt) for prompt in second) == 4 * [0] + 4 * [1]
    # What is held out is judged once, whatever it counts in training.
    data = loaded(mixture, 0.5)
    assert len(prompts(data, "validation")) == len({*prompts(data, "validation")}) == 7


def test_columns_of_all_sources():
    rows = [{"q": row["prompt"], "a": row["chosen"], "b": row["rejected"]} for row in tiny_pairs(4)]
    columns = {"prompt": "q", "chosen": "a", "rejected": "b"}
    data = loaded(rows, rows[:2], columns=columns)
    assert prompts(data, "train")[:2] == prompts(data, "validation")


def test_a_template_and_variables(tmp_path):
    data = loaded(CHAT, chat_template=AGENT, chat_template_kwargs={"enable_thinking": True})
    assert prompts(data, "train")[0] == "<s><|user|>Name colour 0.</s><|assistant|>"
    assert data.tokenizer.chat_template == AGENT  # and is saved with the model
    dated = "{{ date_string }}" + AGENT
    data = loaded(CHAT, chat_template=dated, chat_template_kwargs={"date_string": "1 May"})
    assert prompts(data, "train")[0].startswith("1 May<s>")
    path = tmp_path / "t.jinja"
    path.write_text(AGENT.replace("<|assistant|>", "<|assistant|>Well: "))
    assert prompts(loaded(CHAT, chat_template=str(path)), "train")[0].endswith("<|assistant|>")
    with pytest.raises(UserError, match="does not use 'enable_thinking'"):
        loaded(CHAT, chat_template_kwargs={"enable_thinking": True})


def test_a_template_that_no_pair_needs_is_told(monkeypatch):
    lines = []
    monkeypatch.setattr("torchmpo.finetune.data.rank_zero_info", lines.append)
    settings = {"chat_template": AGENT, "chat_template_kwargs": {"enable_thinking": True}}

    def told(rows, **settings):
        lines.clear()
        loaded(rows, **settings)
        return [line for line in lines if "not used" in line]

    text = tiny_pairs(3)
    both = "train: data.chat_template and data.chat_template_kwargs not used: all pairs are text"
    assert [line.startswith(both) for line in told(text, **settings)] == [True]
    assert len(told(text, chat_template=AGENT)) == 1
    assert told(text) == told(CHAT, **settings) == told([*text, CHAT[0]], **settings) == []


def test_a_date_in_a_template_does_not_change_the_data(monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    template = "{{ strftime_now('%d %b %Y') }}" + tiny_tokenizer().chat_template
    digests = set()
    for day in (1, 2):
        monkeypatch.setattr(Clock, "day", day)
        digests.add(data_digest(loaded(CHAT, chat_template=template).batches("train")))
    assert len(digests) == 1


def test_all_of_it_on_the_command_line(tmp_path, capsys):
    base = save_tiny(tmp_path / "base", tiny_llama())
    rows = [
        {"question": f"Colour {i}?", "system": "S", "chosen": "Blue.", "rejected": "No."}
        for i in range(12)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "t.jinja").write_text(AGENT)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"""\
out: {tmp_path}/run
model: {{model: {base}, loss: cpo, lora: {{r: 2}}}}
data:
  train:
    - {{source: {tmp_path}/a.jsonl, split: "train[:8]", weight: 2}}
    - {tmp_path}/a.jsonl
  validation: 0.25
  chat_template: {tmp_path}/t.jinja
  chat_template_kwargs: {{enable_thinking: false}}
  batch_size: 2
trainer: {{max_epochs: 1, accelerator: cpu, enable_progress_bar: false, logger: false}}
"""
    )
    assert main(["inspect", "--config", str(config), "--split", "validation"]) == 0
    printed = capsys.readouterr().out
    assert "pair 0 of 3" in printed
    assert "<|system|>|S|</s>|<|user|>" in printed
    assert main(["fit", "--config", str(config)]) == 0
    saved = tmp_path / "run" / "adapter" / "chat_template.jinja"
    assert saved.read_text() == AGENT
    again = ["--data.validation", "2", "--out", str(tmp_path / "again")]
    assert main(["fit", "--config", str(config), *again]) == 2
    assert "data.validation as a share must be in (0, 1); got 2" in capsys.readouterr().err
