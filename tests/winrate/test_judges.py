"""Judges: probabilities that the second answer is better, whatever they come from."""

import json
import math
import signal
import sys
import threading
import types

import pytest
import torch
from tiny_llm import tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from torchmpo.runs.errors import UserError
from torchmpo.winrate.judges import (
    AnnotationsJudge,
    FunctionJudge,
    RewardModelJudge,
    ScoreJudge,
    resolve_judge,
)

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
PROMPTS = ["Name a colour.", "What is the capital of France?", "Hello"]
FIRST = ["Blue", "The capital of France is Paris, and so on, and so on.", "Go away!"]
SECOND = ["Red is one as well, and so is blue.", "Paris", "Go away!"]


def reward_model(folder, *, labels=1, template=True, positions=256, pad=0, tokenizer_pad="<pad>"):
    torch.manual_seed(0)
    sizes = SIZES | {"pad_token_id": pad}
    config = LlamaConfig(num_labels=labels, max_position_embeddings=positions, **sizes)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer = tiny_tokenizer(template=template)
    tokenizer.pad_token = tokenizer_pad
    tokenizer.save_pretrained(folder)
    return str(folder)


def likes_the_first(prompts, first, second):
    return [0.2 for _ in prompts]


def longer(prompts, first, second):
    return [float(len(b) > len(a)) if len(a) != len(b) else 0.5 for a, b in zip(first, second)]


def test_both_orders_cancel_a_preference_for_a_place():
    assert FunctionJudge(likes_the_first)(PROMPTS, FIRST, SECOND) == [0.5] * 3
    assert FunctionJudge(likes_the_first, both_orders=False)(PROMPTS, FIRST, SECOND) == [0.2] * 3
    assert FunctionJudge(longer)(PROMPTS, FIRST, SECOND) == [1.0, 0.0, 0.5]


def test_a_symmetric_function_is_asked_once():
    calls = []

    def judge(prompts, first, second):
        calls.append(first)
        return [None, 0.25, 1]

    judge.symmetric = True
    got = FunctionJudge(judge)(PROMPTS, FIRST, SECOND)
    assert len(calls) == 1
    assert math.isnan(got[0])
    assert got[1:] == [0.25, 1.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0.5], "gave 1 probabilities for 3"),
        ([0.5, 1.2, 0.1], "gave 1.2, which is no probability"),
        (["a", "b", "c"], "must give a list of probabilities"),
        (0.5, "must give a list of probabilities"),
    ],
)
def test_a_function_that_is_no_judge(given, message):
    with pytest.raises(UserError, match=f"mine {message}"):
        FunctionJudge(lambda *_: given, name="mine")(PROMPTS, FIRST, SECOND)


def asked_by_pair(function):
    judge = FunctionJudge(function)
    assert judge(PROMPTS, FIRST, SECOND) == [1.0, 0.0, 0.5]
    return judge


def test_a_function_of_one_pair_is_a_judge_too():
    def scalar(prompt, a, b):
        return 0.5 if len(a) == len(b) else float(len(b) > len(a))

    def fails_on_lists(prompt, a, b):
        return scalar(prompt.lower(), a.strip(), b.strip())

    def annotated(texts: str, a: str, b: str):
        assert isinstance(texts, str)
        return scalar(texts, a, b)

    def says_so(prompts, a, b):
        return scalar(prompts, a, b)

    says_so.per_example = True
    for function in (scalar, fails_on_lists, annotated, says_so):
        assert asked_by_pair(function).per_example is True
    for function in (longer, lambda p, a, b: longer(p, a, b), lambda *texts: longer(*texts)):
        assert asked_by_pair(function).per_example is not True


def test_a_mean_of_a_batch_is_not_taken_for_one_pair():
    """In silence it would be asked for the letters of each text."""
    with pytest.raises(UserError, match="must give a list of probabilities"):
        FunctionJudge(lambda prompts, a, b: 0.5, name="mine")(PROMPTS, FIRST, SECOND)


def raises(prompt, a, b):
    raise KeyError("score")


def raises_in_a_library(prompts, a, b):
    return json.loads("{")


def leaves(prompts, a, b):
    raise SystemExit(0)  # which must not end the command as if all were well


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (leaves, r"mine raised SystemExit: 0 \(.*test_judges.py, line \d+\)"),
        (raises, r"mine raised KeyError: 'score' \(.*test_judges.py, line \d+\)"),
        (raises_in_a_library, r"mine raised JSONDecodeError: .* \(.*test_judges.py, line \d+\)"),
    ],
)
def test_a_judge_that_raises_is_one_line_that_says_where(function, message):
    with pytest.raises(UserError, match=message) as caught:
        FunctionJudge(function, name="mine")(PROMPTS, FIRST, SECOND)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, (KeyError, ValueError, SystemExit))


def test_a_judge_that_never_ends_is_stopped():
    def never(prompts, a, b):
        while True:
            try:
                threading.Event().wait(5)
            except Exception:
                continue

    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(UserError, match=r"mine did not end within 0.1 s: --timeout"):
        FunctionJudge(never, name="mine", timeout=0.1)(PROMPTS, FIRST, SECOND)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert FunctionJudge(longer, timeout=100)(PROMPTS, FIRST, SECOND) == [1.0, 0.0, 0.5]
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_annotations_are_found_in_either_order():
    rows = [
        {"instruction": "a", "output_1": "x", "output_2": "y", "preference": 1.75},
        {"instruction": "a", "output_1": "x", "output_2": "z", "preference": None},
        {"instruction": "b", "output_1": "x", "output_2": "y", "preference": 0},
    ]
    judge = AnnotationsJudge(rows, "old.json")
    got = judge(["a", "a", "b", "a"], ["x", "y", "y", "z"], ["y", "x", "x", "x"])
    assert got[:3] == [0.75, 0.25, 0.5]
    assert math.isnan(got[3])
    assert rows[0] in judge
    with pytest.raises(UserError, match=r"old.json has no preference .* for 'b' and 1 others"):
        judge(["b", "c", "a"], ["x", "x", "x"], ["z", "y", "y"])


def test_scores_become_bradley_terry_probabilities():
    judge = ScoreJudge(lambda prompts, answers: [len(a) / 10 for a in answers])
    got = judge(PROMPTS[:2], ["a" * 10, "a" * 5000], ["b" * 30, "b"])
    assert got == pytest.approx([1 / (1 + math.exp(-2)), 0.0])
    assert judge(["p"], ["same"], ["same"]) == [0.5]
    with pytest.raises(UserError, match="mine gave a score of nan"):
        ScoreJudge(lambda p, a: [math.nan] * len(a), "mine")(PROMPTS, FIRST, SECOND)
    with pytest.raises(UserError, match="mine gave 1 scores for 6 answers"):
        ScoreJudge(lambda p, a: [1.0], "mine")(PROMPTS, FIRST, SECOND)


def test_a_reward_model_scores_the_chat_as_its_template_writes_it(tmp_path):
    judge = RewardModelJudge(reward_model(tmp_path), device="cpu")
    got = judge.rewards(PROMPTS, FIRST)
    model = LlamaForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    for prompt, answer, reward in zip(PROMPTS, FIRST, got, strict=True):
        text = f"<s><|user|>{prompt}</s><|assistant|>{answer}</s>"
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            assert reward == pytest.approx(model(ids).logits.item(), abs=1e-5)
    assert len({round(r, 4) for r in got}) == 3


@pytest.mark.parametrize("pad", [None, 0, 2, -1])
@pytest.mark.parametrize("tokenizer_pad", ["<pad>", "</s>", None])
def test_rewards_are_those_of_the_model_alone_whatever_pads(tmp_path, pad, tokenizer_pad):
    """Where nothing pads, the model reads the last token, which is EOS here."""
    source = reward_model(tmp_path, pad=pad, tokenizer_pad=tokenizer_pad)
    model = LlamaForSequenceClassification.from_pretrained(source)
    assert model.config.pad_token_id == pad
    tokenizer = tiny_tokenizer()
    want = []
    for prompt, answer in zip(PROMPTS, FIRST, strict=True):
        text = f"<s><|user|>{prompt}</s><|assistant|>{answer}</s>"
        with torch.no_grad():
            want.append(model(torch.tensor([tokenizer(text)["input_ids"]])).logits.item())
    for size in (1, 2, 8):
        judge = RewardModelJudge(source, batch_size=size, device="cpu")
        assert judge.rewards(PROMPTS, FIRST) == pytest.approx(want, abs=1e-5)
        assert judge.rewards(PROMPTS[::-1], FIRST[::-1]) == pytest.approx(want[::-1], abs=1e-5)


def test_special_tokens_are_not_doubled(tmp_path):
    """Llama's tokenizers put a BOS before any text, and so does their template."""
    source = reward_model(tmp_path)
    plain = RewardModelJudge(source, device="cpu").rewards(PROMPTS, FIRST)
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save_pretrained(tmp_path)
    judge = RewardModelJudge(source, device="cpu")
    assert judge.tokenizer("a")["input_ids"][0] == 1
    assert judge.rewards(PROMPTS, FIRST) == pytest.approx(plain, abs=1e-5)


def test_rewards_do_not_depend_on_the_batch(tmp_path):
    source = reward_model(tmp_path)
    together = RewardModelJudge(source, batch_size=8, device="cpu")(PROMPTS, FIRST, SECOND)
    alone = RewardModelJudge(source, batch_size=1, device="cpu")(PROMPTS, FIRST, SECOND)
    assert together == pytest.approx(alone, abs=1e-5)
    assert together[2] == pytest.approx(0.5, abs=1e-5)


def test_too_long_conversations_lose_their_beginning(tmp_path):
    judge = RewardModelJudge(reward_model(tmp_path, positions=16), device="cpu")
    a, b = judge.rewards(["one " * 50, "two " * 50], ["blue " * 20, "blue " * 20])
    assert judge.cut == 2
    assert a == pytest.approx(b, abs=1e-5)  # what is left is the same


def test_an_encoder_gets_a_text_pair(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(num_labels=1, max_position_embeddings=32, **SIZES)
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer(template=False)
    tokenizer.sep_token = "</s>"
    tokenizer.save_pretrained(tmp_path)
    judge = RewardModelJudge(tmp_path, device="cpu")
    pair = tokenizer("Hello", "Go away!", return_tensors="pt")
    with torch.no_grad():
        want = model(**{k: v for k, v in pair.items() if k != "token_type_ids"}).logits.item()
    assert judge.rewards(["Hello", "x"], ["Go away!", "y"])[0] == pytest.approx(want, abs=1e-5)
    judge.rewards(["Hello " * 40], ["Go away!"])
    assert judge.cut == 1


def test_positions_that_an_encoder_cannot_use(tmp_path):
    """RoBERTa's positions begin behind its padding token: 34 of them hold 32 tokens."""
    torch.manual_seed(0)
    sizes = SIZES | {"pad_token_id": 1}
    config = RobertaConfig(num_labels=1, max_position_embeddings=34, **sizes)
    model = RobertaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer(template=False)
    tokenizer.sep_token = "</s>"
    tokenizer.save_pretrained(tmp_path)
    judge = RewardModelJudge(tmp_path, device="cpu")
    assert judge.max_length == 32
    long, short = judge.rewards(["Hello " * 40, "Hello"], ["Go away!", "Go away!"])
    assert judge.cut == 1
    ids = torch.tensor([tokenizer("Hello", "Go away!")["input_ids"]])
    with torch.no_grad():
        assert short == pytest.approx(model(ids).logits.item(), abs=1e-5)
    assert long != pytest.approx(short, abs=1e-4)


def test_models_that_are_no_reward_models(tmp_path):
    with pytest.raises(UserError, match="nowhere cannot be loaded as a reward model"):
        RewardModelJudge(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has 3 outputs; a reward model has one"):
        RewardModelJudge(reward_model(tmp_path / "three", labels=3))
    with pytest.raises(UserError, match="has no chat template"):
        RewardModelJudge(reward_model(tmp_path / "plain", template=False))
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "lm")
    tiny_tokenizer().save_pretrained(tmp_path / "lm")
    with pytest.raises(UserError, match=r"no reward model: it has no weights for score"):
        RewardModelJudge(tmp_path / "lm")


def test_judges_by_name(tmp_path, monkeypatch):
    module = types.ModuleType("my_judges")
    module.longer, module.number = longer, 3
    monkeypatch.setitem(sys.modules, "my_judges", module)
    assert resolve_judge("my_judges:longer")(["p"], ["a"], ["bb"]) == [1.0]
    path = tmp_path / "annotations.json"
    row = {"instruction": "p", "output_1": "a", "output_2": "b", "preference": 2.0}
    path.write_text(json.dumps([row]))
    assert resolve_judge(str(path))(["p"], ["a"], ["b"]) == [1.0]
    source = reward_model(tmp_path / "model")
    assert 0 < resolve_judge(source)(["p"], ["a"], ["b"])[0] < 1
    with pytest.raises(UserError, match="no function 'longre'; did you mean 'longer'"):
        resolve_judge("my_judges:longre")
    with pytest.raises(UserError, match="cannot import 'no_such_module'"):
        resolve_judge("no_such_module:judge")


def test_what_ones_own_judge_raises_is_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "odd_judges.py").write_text("def judge(p, a, b):\n    return p.answers\n")
    (tmp_path / "bad_judges.py").write_text("judge = 1 / 0\n")
    with pytest.raises(
        UserError, match=r"odd_judges:judge raised AttributeError: .*judges.py, line 2\)"
    ):
        resolve_judge("odd_judges:judge")(["p"], ["a"], ["b"])
    with pytest.raises(UserError, match=r"bad_judges:judge: ZeroDivisionError: .*, line 1\)"):
        resolve_judge("bad_judges:judge")
