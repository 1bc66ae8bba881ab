"""The command line: prompts in, answers out, a resume that writes the rest, an endpoint instead."""

import json
import shutil

import pytest
import torch
from fake_endpoint import completion, endpoint  # noqa: F401
from tiny_llm import QUIET, save_tiny, tiny_llama, tiny_tokenizer

from torchmpo.finetune.models import LoraSettings, add_lora
from torchmpo.generate import __main__ as generate
from torchmpo.generate import run as generation

pytestmark = QUIET
PROMPTS = ["Name a colour.", "What is the capital of France?", "Hi", "Hi", "Go away! " * 4]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "base")
    rows = [{"instruction": p, "dataset": f"d{i}", "output": "x"} for i, p in enumerate(PROMPTS)]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    return tmp_path


COMMON = ["--model", "base", "--prompts", "prompts.json", "--max_new_tokens", "8"]
ARGS = [*COMMON, "--out", "out", "--device", "cpu"]


def outputs(path="out"):
    with open(f"{path}/outputs.json") as file:
        return json.load(file)


def alone(prompt, model=None, new=8):
    """transformers' own answer, through the chat template."""
    model, tokenizer = model or tiny_llama(), tiny_tokenizer()
    ids = tokenizer(f"<s><|user|>{prompt}</s><|assistant|>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
        )
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_answers_in_alpaca_evals_form(folder, capsys):
    assert generate.main(ARGS) == 0
    rows = outputs()
    assert [row["instruction"] for row in rows] == PROMPTS
    assert [row["output"] for row in rows] == [alone(prompt) for prompt in PROMPTS]
    assert {row["generator"] for row in rows} == {"base"}
    assert [row["dataset"] for row in rows] == ["d0", "d1", "d2", "d3", "d4"]
    assert not (folder / "out" / "partial.json").exists()
    printed = capsys.readouterr().out
    assert "wrote out/outputs.json: 5 answers by base" in printed
    assert "5 of them were cut at 8 tokens (--max_new_tokens)" in printed
    assert "next: python -m torchmpo.winrate --outputs out/outputs.json --reference" in printed


def test_batches_change_nothing(folder):
    for size in ("1", "2", "64"):
        args = [*ARGS[:-3], f"out{size}", "--device", "cpu", "--batch_size", size, "--seed", "5"]
        assert generate.main([*args, "--temperature", "1"]) == 0
    assert outputs("out1") == outputs("out2") == outputs("out64")
    first, second = (row["output"] for row in outputs("out1")[2:4])
    assert first != second  # the same prompt, drawn twice


def test_an_adapter_and_its_name(folder):
    torch.manual_seed(1)
    model = add_lora(tiny_llama(), LoraSettings(r=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained("adapter", save_embedding_layers=False)
    args = [*ARGS, "--name", "mine"]
    args[1] = "adapter"
    assert generate.main(args) == 0
    merged = model.merge_and_unload().eval()
    assert [row["output"] for row in outputs()] == [alone(prompt, merged) for prompt in PROMPTS]
    assert outputs()[0]["generator"] == "mine"
    assert outputs()[0]["output"] != alone(PROMPTS[0])


def test_text_goes_in_as_it_is(folder):
    assert generate.main([*ARGS, "--format", "text"]) == 0
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
    )
    want = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert outputs()[0]["output"] == want


def test_a_resume_writes_only_what_is_left(folder, monkeypatch, capsys):
    assert generate.main([*ARGS[:-3], "whole", "--device", "cpu", "--temperature", "1"]) == 0
    made = generation.local_source
    asked = []

    def stops(config, prompts, sampling):
        source = made(config, prompts, sampling)

        def some(rows):
            asked.append(list(rows))
            for place, answered in enumerate(source(rows)):
                if place == 2 and len(asked) == 1:
                    raise KeyboardInterrupt
                yield answered

        return some

    monkeypatch.setattr(generation, "local_source", stops)
    args = [*ARGS, "--temperature", "1"]
    assert generate.main(args) == 130
    assert "go on with: python -m torchmpo.generate --out out --resume" in capsys.readouterr().err
    assert not (folder / "out" / "outputs.json").exists()
    assert generate.main(["--out", "out", "--resume", "--batch_size", "1"]) == 0
    assert [len(rows) for rows in asked] == [5, 3]
    assert outputs() == outputs("whole")
    # Once more: nothing is left to ask.
    assert generate.main(["--out", "out", "--resume"]) == 0
    assert asked[2] == []
    assert outputs() == outputs("whole")
    (folder / "prompts.json").write_text(json.dumps([{"instruction": "another"}] * 5))
    assert generate.main(["--out", "out", "--resume"]) == 2
    assert "the answers in out are to other prompts" in capsys.readouterr().err


def test_a_resume_keeps_answers_apart_from_the_prompts_own_columns(folder):
    """`text` and `row` are what an answer and its place are called in `partial.json`."""
    rows = [{"instruction": p, "text": "mine", "row": 7, "index": i} for i, p in enumerate(PROMPTS)]
    (folder / "prompts.json").write_text(json.dumps(rows))
    assert generate.main(ARGS) == 0
    before = outputs()
    assert [row["output"] for row in before] == [alone(prompt) for prompt in PROMPTS]
    assert {(row["text"], row["row"]) for row in before} == {("mine", 7)}
    assert generate.main(["--out", "out", "--resume"]) == 0
    assert outputs() == before


def test_a_model_that_was_trained_further_is_another_one(folder, capsys):
    model = add_lora(tiny_llama(), LoraSettings(r=2))
    model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained("adapter", save_embedding_layers=False)
    args = ["--model", "adapter", *ARGS[2:]]
    assert generate.main(args) == 0
    before = outputs()
    # A run that is older than the record goes on, and has it then.
    record = folder / "out" / "made_of.json"
    assert json.loads(record.read_text())["losses"].keys() == {"adapter", "base"}
    record.write_text(json.dumps(json.loads(record.read_text()) | {"losses": {}}))
    shutil.copytree("adapter", "copy")
    shutil.rmtree("adapter")
    shutil.copytree("copy", "adapter", copy_function=shutil.copyfile)  # with other times
    assert generate.main(["--out", "out", "--resume"]) == 0
    assert generate.main(["--out", "out", "--resume"]) == 0
    capsys.readouterr()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained("adapter", save_embedding_layers=False)
    assert generate.main(["--out", "out", "--resume"]) == 2
    line = "adapter has changed since the run in out was made: put it back, or choose another --out"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {line}"
    assert outputs() == before
    shutil.rmtree("adapter")
    shutil.copytree("copy", "adapter")
    tiny_llama(seed=1).save_pretrained("base")
    assert generate.main(["--out", "out", "--resume"]) == 2
    assert "error: base has changed since the run" in capsys.readouterr().err


def test_too_little_memory_is_one_line(folder, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    monkeypatch.setattr("torchmpo.finetune.answers.AnswerWriter._write", full)
    assert generate.main([*ARGS, "--batch_size", "3"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: 3 answers at a time do not fit into memory")


def test_an_endpoint_answers(folder, endpoint, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("MY_KEY", "secret")
    endpoint.answer = lambda body: completion(
        body["messages"][-1]["content"][::-1],
        finish="length" if len(endpoint.bodies) == 1 else "stop",
    )
    args = ["--model", "far/away", "--prompts", "prompts.json", "--endpoint", endpoint.url]
    args += ["--out", "out", "--system", "Be brief.", "--key_variable", "MY_KEY"]
    assert generate.main([*args, "--temperature", "0.5", "--batch_size", "3"]) == 0
    rows = outputs()
    assert [row["output"] for row in rows] == [prompt[::-1] for prompt in PROMPTS]
    assert sum(row["finish_reason"] == "length" for row in rows) == 1
    assert rows[0]["generator"] == "far/away"
    (body,) = [b for b in endpoint.bodies if b["messages"][-1]["content"] == PROMPTS[0]]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("far/away", 0.5, 512)
    assert len({b["seed"] for b in endpoint.bodies}) == 5
    assert {h["Authorization"] for h in endpoint.headers} == {"Bearer secret"}
    assert {h["path"] for h in endpoint.headers} == {"/v1/chat/completions"}
    assert "secret" not in (folder / "out" / "config.yaml").read_text()
    assert not any("chat_template_kwargs" in b for b in endpoint.bodies)


def test_an_endpoint_gets_the_variables_of_the_chat_template(folder, endpoint):  # noqa: F811
    """As fields of vLLM's and SGLang's: chat_template_kwargs beside model and messages."""
    args = ["--model", "m", "--prompts", "prompts.json", "--endpoint", endpoint.url, "--out", "out"]
    assert generate.main([*args, "--chat_template_kwargs", "{enable_thinking: false}"]) == 0
    assert len(endpoint.bodies) == 5
    assert all(b["chat_template_kwargs"] == {"enable_thinking": False} for b in endpoint.bodies)
    assert set(endpoint.bodies[0]) == {
        *("model", "messages", "max_tokens", "temperature", "chat_template_kwargs")
    }


def test_what_an_endpoint_gave_before_it_failed_is_kept(folder, endpoint, capsys):  # noqa: F811
    def answer(body):
        if body["messages"][-1]["content"].startswith("Go"):
            return 400, {"error": {"message": "too rude\nfor me"}}
        return completion("fine")

    endpoint.answer = answer
    args = ["--model", "m", "--prompts", "prompts.json", "--endpoint", endpoint.url, "--out", "out"]
    assert generate.main([*args, "--batch_size", "1"]) == 2
    line = capsys.readouterr().err
    assert line == f"error: {endpoint.url} refuses: 400 Bad Request: too rude for me\n"
    endpoint.answer = lambda body: completion("fine")
    asked = len(endpoint.bodies)
    assert generate.main(["--out", "out", "--resume"]) == 0
    assert len(endpoint.bodies) - asked == 1
    assert [row["output"] for row in outputs()] == ["fine"] * 5


def test_a_run_that_failed_before_any_work_does_not_claim_its_folder(folder, endpoint, capsys):  # noqa: F811
    endpoint.answer = lambda body: (404, {"error": {"message": "no such model"}})
    args = ["--model", "m", "--prompts", "prompts.json", "--endpoint", endpoint.url, "--out", "out"]
    assert generate.main(args) == 2
    endpoint.answer = lambda body: completion("fine")
    assert generate.main(args) == 0


FAR = "--model m --prompts prompts.json --endpoint http://x"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--prompts prompts.json", "--model: a model's or an adapter's folder"),
        ("--model base", "--prompts: a file with"),
        ("--model base --prompts base/config.json", "must be a list of at least one row"),
        ("--model base --prompts nowhere.json", "cannot read nowhere.json"),
        ("--model base --prompts prompts.json --format chatty", "did you mean 'chat'"),
        ("--model base --prompts prompts.json --temperature -1", "temperature must be zero"),
        ("--model base --prompts prompts.json --batch_size 0", "batch_size must be at least 1"),
        ("--model base --prompts prompts.json --device gpu9", "device 'gpu9' cannot be used"),
        ("--model base --prompts prompts.json --max_new_tokens 4096", "the model's 4096 positions"),
        ("--model ./no --prompts prompts.json", "there is no folder ./no"),
        ("--model empty --prompts prompts.json", "adapter_model.safetensors, and no pickle"),
        ("--model base --prompts prompts.json --format text --system s", "needs --format chat"),
        ("--model m --prompts prompts.json --endpoint here", "must begin with http"),
        ("--model m --prompts prompts.json --endpoint http://x --format text", "are chat"),
        (f"{FAR} --dtype float16", "--dtype float16: a model behind an endpoint runs where and as"),
        (f"{FAR} --device cpu", "leave it out, or say --device null"),
        (
            f'{FAR} --chat_template_kwargs {{"a":.nan}}',
            "chat_template_kwargs cannot be sent as JSON",
        ),
    ],
)
def test_mistakes_are_one_line(folder, words, message, capsys):
    (folder / "empty").mkdir()
    (folder / "empty" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "base"})
    )
    assert generate.main([*words.split(), "--out", "out"]) == 2
    *loading, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert all("Loading weights" in text for text in loading if text)
    assert not (folder / "out").exists()


def test_a_summary_counts_empty_answers():
    rows = [{"output": " ", "finish_reason": "stop"}, {"output": "x", "finish_reason": "stop"}]
    text = generation.summary(rows, "m", generation.Path("out"), 8)
    assert "1 of them are empty" in text
    assert "cut" not in text
