"""Training in rounds on a model's own answers: ``python -m torchmpo.finetune online``."""

import csv
import json
import math
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from pages import blocks_of
from tiny_llm import (
    QUIET,
    SENTENCES,
    register_half_attention,
    save_tiny,
    tiny_pairs,
    tiny_tokenizer,
)

from torchmpo.finetune.__main__ import main
from torchmpo.finetune.answers import AnswerWriter, Sampling
from torchmpo.finetune.judged_pairs import encoded_prompts, judged
from torchmpo.finetune.loading import load_model, load_tokenizer
from torchmpo.finetune.online import _check_moving, train_online
from torchmpo.finetune.online_settings import OnlineSettings
from torchmpo.runs.errors import UserError
from torchmpo.winrate.judges import ScoreJudge

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


def letters(texts):
    return torch.tensor([float(sum(c.isascii() and c.isalpha() for c in t)) for t in texts])


def wants_letters(prompts, first, second):
    """Prefers the answer with more ASCII letters; a draw where both have as many."""
    vars(sys.modules[__name__])["noted"](len(prompts))  # a state would make it another judge
    return ((letters(second) - letters(first)).sign() + 1).div(2).tolist()


wants_letters.symmetric = True
asked: list[int] = []  # comparisons, call by call
fails_at: list[int] = []  # the calls in which the judge raises


def noted(comparisons):
    if len(asked) + 1 in fails_at:
        fails_at.clear()
        raise RuntimeError("out of paper")
    asked.append(comparisons)


def never_tells(prompts, first, second):
    return [None] * len(prompts)


class PowerCut(Callback):
    """Stops a run at a step of one of its trainings, once."""

    at: ClassVar[list[tuple[str, int]]] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        place = (Path(trainer.default_root_dir).parent.name, trainer.global_step)
        if place in self.at:
            self.at.remove(place)
            raise RuntimeError("power cut")


@pytest.fixture(autouse=True)
def fresh():
    asked.clear()
    fails_at.clear()
    PowerCut.at.clear()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return save_tiny(folder, tokenizer=tiny_tokenizer(template=False))


@pytest.fixture(scope="module")
def settings(tmp_path_factory, base) -> dict:
    """Two rounds of two steps of four pairs."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    words = " ".join(SENTENCES).split()
    texts = dict.fromkeys(f"{a} {b}" for a, b in pairwise(words))
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return {
        "model": {
            "model": str(base),
            "loss": "dpo",
            "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
            "lr": 1e-2,
        },
        "data": {"batch_size": 4, "max_length": 64},
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "test_online_llm.PowerCut"}],
        },
        "checkpoint_every": 1,
        "online": {
            "rounds": 2,
            "pairs": 8,
            "prompts": str(prompts),
            "judge": "test_online_llm:wants_letters",
            "max_new_tokens": 8,
            "batch_size": 8,
        },
    }


def changed(settings: dict, **sections) -> dict:
    """With other values in some sections."""
    return {
        name: (value | sections[name] if name in sections else value)
        for name, value in settings.items()
    }


def run(settings: dict, folder: Path, *more: str) -> int:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return main(["online", "--config", str(path), "--out", str(folder / "run"), *more])


def results(out: Path) -> dict[str, bytes]:
    """What a run comes to, by file."""
    names = ("*.safetensors", "pairs.jsonl", "judged.json", "metrics.json", "metrics.csv")
    files = {path for name in names for path in out.rglob(name) if "log" not in path.parts}
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def first_losses(out: Path) -> list[float]:
    """Of each round's first step."""
    logs = sorted(out.glob("rounds/*/fit/log/version_0/metrics.csv"))
    return [float(next(csv.DictReader(path.read_text().splitlines()))["loss"]) for path in logs]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, settings) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(settings, folder) == 0
    return folder / "run"


# A run


def test_rounds_are_labelled_trained_and_told(whole, settings):
    rows = list(csv.DictReader((whole / "metrics.csv").read_text().splitlines()))
    assert [(row["round"], row["pairs"]) for row in rows] == [("1", "8"), ("2", "8")]
    prompts = set()
    for number in (1, 2):
        lines = (whole / f"rounds/{number}/pairs.jsonl").read_text().splitlines()
        pairs = [json.loads(line) for line in lines]
        assert len(pairs) == 8
        for pair in pairs:
            chosen, rejected = letters([pair["chosen"], pair["rejected"]])
            assert chosen > rejected
            assert pair["preference_prob"] == 1.0
            prompts.add(pair["prompt"])
        found = json.loads((whole / f"rounds/{number}/judged.json").read_text())
        # A draw costs a label, too, and gives no pair.
        assert 8 <= found["labels"] <= found["stop"]
        assert found["labels"] == int(rows[number - 1]["labels"])
    assert len(prompts) == 16  # none comes again before all of them were asked
    card = (whole / "adapter/README.md").read_text()
    assert f"{sum(int(row['labels']) for row in rows)} labels by `test_online_llm:" in card
    assert f"An adapter for `{Path(settings['model']['model']).name}`" in card
    assert not list(whole.rglob("last.ckpt"))


def test_the_last_line_is_the_next_command(whole, settings, capsys):
    assert run(settings, whole.parent, "--resume") == 0  # all of it is there
    assert asked == []
    assert f"next: python -m torchmpo.generate --model {whole}/adapter" in capsys.readouterr().out


@pytest.mark.parametrize(
    "cut", [("judge", 3), ("fit", ("2", 1)), ("adapter", None)], ids=["judge", "fit", "written"]
)
def test_an_interrupted_run_ends_in_the_same_bytes(cut, whole, settings, tmp_path, capsys):
    what, where = cut
    if what == "judge":
        fails_at.append(where)
        assert run(settings, tmp_path) == 2
        assert "raised RuntimeError: out of paper" in capsys.readouterr().err
    elif what == "fit":
        PowerCut.at.append(where)
        with pytest.raises(RuntimeError, match="power cut"):
            run(settings, tmp_path)
    else:  # after the last step, before its numbers were written
        PowerCut.at.append(("2", 0))
        with pytest.raises(RuntimeError, match="power cut"):
            run(settings, tmp_path)
        path = tmp_path / "run/rounds/2/config.yaml"
        assert main(["fit", "--config", str(path)]) == 0
        assert (tmp_path / "run/rounds/2/fit/last.ckpt").exists()
    assert run(settings, tmp_path, "--resume") == 0
    rounds = csv.DictReader((whole / "metrics.csv").read_text().splitlines())
    assert sum(asked) == sum(int(row["labels"]) for row in rounds)  # nothing is judged twice
    assert results(tmp_path / "run") == results(whole)


def test_what_a_kill_after_the_last_round_left_undone_is_done(whole, settings, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    table, checkpoint = tmp_path / "run/metrics.csv", tmp_path / "run/rounds/2/fit/last.ckpt"
    table.unlink()
    checkpoint.touch()
    assert run(settings, tmp_path, "--resume") == 0
    assert results(tmp_path / "run") == results(whole)
    assert not checkpoint.exists()


def test_answers_are_written_with_the_threads_of_training(settings, tmp_path, monkeypatch):
    def notes_threads(prompts, first, second):
        threads.append(torch.get_num_threads())
        return wants_letters(prompts, first, second)

    threads: list[int] = []
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    try:
        given = changed(settings, online={"judge": None})
        train_online(given, judge=notes_threads, out=tmp_path / "run")
    finally:
        torch.set_num_threads(before)
    assert {*threads} == {1}  # of both rounds: a resumed one begins without a training


def test_a_run_goes_on_for_more_rounds(whole, settings, tmp_path):
    assert run(changed(settings, online={"rounds": 1}), tmp_path) == 0
    assert run(settings, tmp_path, "--resume") == 0
    assert results(tmp_path / "run") == results(whole)


def test_one_round_on_given_pairs_is_fit(settings, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in tiny_pairs(12)))
    given = {"rounds": 1, "first": str(pairs), "prompts": None, "judge": None}
    assert run(changed(settings, online=given), tmp_path) == 0
    of_fit = changed(settings, data={"train": str(pairs)})
    del of_fit["online"]
    path = tmp_path / "fit.yaml"
    path.write_text(yaml.safe_dump(of_fit))
    assert main(["fit", "--config", str(path), "--out", str(tmp_path / "fit")]) == 0
    one, other = (tmp_path / name / "adapter/adapter_model.safetensors" for name in ("run", "fit"))
    assert one.read_bytes() == other.read_bytes()


def test_the_reference_is_the_first_model_or_that_of_the_last_refresh(settings, tmp_path):
    given = changed(settings, model={"lora": None}, online={"rounds": 4, "pairs": 4})
    losses = {}
    for every in (None, 2):
        out = tmp_path / str(every)
        train_online(
            changed(given, online={"reference_refresh": every, "judge": None}),
            judge=wants_letters,
            out=out,
        )
        losses[every] = first_losses(out)
    # A policy that is its reference has DPO's loss ln 2 before its first step, and only such a one.
    ours = {every: [abs(x - math.log(2)) < 1e-4 for x in row] for every, row in losses.items()}
    assert ours == {
        None: [True, False, False, False],
        2: [True, False, True, False],
    }


def test_the_judge_prefers_what_was_trained(settings, base, tmp_path):
    folder = train_online(
        changed(
            settings,
            model={"lora": None},
            data={"batch_size": 8},
            online={"rounds": 3, "pairs": 64, "batch_size": 256, "answers": 4},
        ),
        out=tmp_path / "run",
    )
    lines = Path(settings["online"]["prompts"]).read_text().splitlines()
    prompts = 4 * [json.loads(line)["prompt"] for line in lines]
    tokenizer = load_tokenizer(base)
    encoded = encoded_prompts(prompts, tokenizer, chat=False, variables={})
    sides = [
        AnswerWriter(load_model(model), tokenizer, Sampling(8, 1.0, seed=seed))(
            encoded, range(len(prompts))
        )
        for seed, model in enumerate((base, folder))
    ]
    before, after = ([answer.text for answer in side] for side in sides)
    rates = wants_letters(prompts, before, after)
    assert sum(rates) / len(rates) > 0.8


# Judges


def test_of_several_answers_the_best_and_the_worst_are_taken():
    def numbers(prompts, first, second):
        return [0.5 + (float(b) - float(a)) / 20 for a, b in zip(first, second, strict=True)]

    rows = [["2", "7", "1", "4"], ["5", "5.0", "5.00"]]
    best, tied = judged(numbers, ["p", "q"], rows)
    assert (best.best, best.worst, best.rewards, best.tied) == (1, 2, None, False)
    assert best.probability == pytest.approx(0.8)
    assert tied.tied
    scored = ScoreJudge(lambda prompts, answers: [float(a) for a in answers])
    best, tied = judged(scored, ["p", "q"], rows)
    assert (best.best, best.worst, best.rewards, best.tied) == (1, 2, (7.0, 1.0), False)
    assert best.probability == pytest.approx(1 / (1 + math.exp(-6)))
    assert tied.tied


def test_a_loss_that_reads_probabilities_gets_the_judges_of_a_conversation(settings, tmp_path):
    def surely(prompts, first, second):
        read.extend(prompts)
        return [0.5 + (p - 0.5) / 2 for p in wants_letters(prompts, first, second)]

    read: list[str] = []
    questions = [f"What is {i}?" for i in range(9)]
    path = tmp_path / "questions.csv"
    path.write_text("".join(f"{text}\n" for text in ["question", *questions]))
    given = changed(
        settings,
        model={
            "model": str(save_tiny(tmp_path / "chat")),
            "loss": "test_online_llm:reads_probabilities",
        },
        data={"columns": {"prompt": "question"}},
        online={"rounds": 1, "pairs": 4, "judge": None, "prompts": str(path)},
    )
    train_online(given, judge=surely, out=tmp_path / "run")
    assert seen[-1] == [0.75] * 4
    assert {*read} <= {*questions}  # the judge's, without the template
    for line in (tmp_path / "run/rounds/1/pairs.jsonl").read_text().splitlines():
        pair = json.loads(line)
        roles = [[m["role"] for m in pair[name]] for name in ("prompt", "chosen", "rejected")]
        assert roles == [["user"], ["assistant"], ["assistant"]]


seen: list[list[float]] = []


def reads_probabilities(chosen_logps, rejected_logps, preference_probs):
    seen.append(preference_probs.tolist())
    return preference_probs * (rejected_logps - chosen_logps)


def test_the_page_has_settings_that_are_settings():
    (text,) = [text for language, text in blocks_of("../online_llm.md") if language == "yaml"]
    assert OnlineSettings(**yaml.safe_load(text)["online"]).pairs == 256


# Mistakes


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"online": {"prompts": None}}, "--prompts: a file of prompts"),
        ({"online": {"prompts": "none.jsonl"}}, "there is no file or folder none.jsonl"),
        ({"online": {"judge": None}}, "--judge: package.module:function"),
        ({"online": {"judge": "test_online_llm:wants_leters"}}, "did you mean 'wants_letters'"),
        ({"online": {"judge": "test_online_llm:never_tells"}}, "prompts in a row gave no pair"),
        ({"online": {"pairs": 3}}, "online.pairs 3: a step takes 4 pairs"),
        ({"online": {"rounds": 0}}, "online.rounds must be at least 1; got 0"),
        ({"online": {"answers": 1}}, "online.answers must be at least 2; got 1"),
        ({"online": {"temperature": 0}}, "online.temperature must be positive"),
        ({"online": {"format": "chatt"}}, "unknown online.format 'chatt': did you mean 'chat'"),
        ({"online": {"format": "chat"}}, "chat template"),
        ({"online": {"max_new_tokens": 9999}}, "lower max_new_tokens"),
        ({"data": {"train": "pairs.jsonl"}}, "--first FILE"),
        ({"model": {"reference": "cache"}}, "model.reference: cache"),
        ({"model": {"loss": "dppo"}}, "did you mean 'dpo'"),
        ({"model": {"loss": "kto"}, "data": {"batch_size": 1}}, "data.batch_size to 2 or more"),
        ({"model": {"quantization": {"load_in_4bit": True}}}, "leave it out"),
        ({"model": {"lora": None, "revision": "v1"}}, "stays the reference"),
        ({"model": {"model": "nothing/here"}}, "nothing/here"),
        ({"trainer": {"devices": 2}}, "online trains in one process"),
        ({"trainer": {"fast_dev_run": True}}, "trainer.fast_dev_run"),
    ],
)
def test_a_mistake_is_one_line(sections, message, settings, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(changed(settings, **sections), tmp_path) == 2
    error = capsys.readouterr().err
    last = error.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert error.count("error: ") == 1
    assert "Traceback" not in error


def test_answers_are_written_in_the_precision_of_training(settings, tmp_path):
    """An attention that knows no float32 writes the answers of a float32 model, too."""
    name = register_half_attention()
    own = changed(
        settings,
        model={"attn_implementation": name, "lora": None},
        trainer={"precision": "bf16-mixed"},
        online={"rounds": 1, "pairs": 4},
    )
    assert run(own, tmp_path) == 0


@pytest.mark.parametrize(
    ("model", "online", "fits"),
    [
        ({"reference": "copy"}, {"reference_refresh": 1}, True),
        ({"reference": "copy"}, {"rounds": 1}, True),
        ({"lora": None}, {"reference_refresh": 1}, True),
        ({"reference": "copy"}, {}, False),
        ({"reference": "copy"}, {"reference_refresh": 2, "rounds": 4}, False),
        ({}, {"reference_refresh": 1}, False),
    ],
)
def test_a_moving_reference_must_be_a_copy_in_every_round(settings, model, online, fits):
    moving = {"callbacks": [{"class_path": "torchmpo.finetune.MovingReference"}]}
    own = changed(
        settings, model={"reference": None, "revision": None, "quantization": None} | model
    )
    own["trainer"] = own["trainer"] | moving
    if fits:
        _check_moving(own["model"], own["trainer"], OnlineSettings(**own["online"] | online))
        return
    with pytest.raises(UserError, match=r"set model\.reference copy and online\.reference_ref"):
        _check_moving(own["model"], own["trainer"], OnlineSettings(**own["online"] | online))


def test_a_reference_that_cannot_move_is_told_before_any_work(settings, tmp_path, capsys):
    moving = {"callbacks": [{"class_path": "torchmpo.finetune.MovingReference"}]}
    assert run(changed(settings, trainer=moving, model={"reference": "copy"}), tmp_path) == 2
    assert "MovingReference moves a copy" in capsys.readouterr().err
    assert not asked


def test_other_mistakes_are_one_line_too(whole, settings, tmp_path, capsys):
    assert run(settings, whole.parent) == 2
    assert "exists and is not empty: go on with --resume" in capsys.readouterr().err
    assert run(settings, tmp_path, "--resume") == 2
    assert "--resume: there is no run in" in capsys.readouterr().err
    assert run(changed(settings, model={"lr": 2e-2}), whole.parent, "--resume") == 2
    assert "model.lr is 0.02, but the run was made with 0.01" in capsys.readouterr().err
    weights = Path(settings["model"]["model"]) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run(settings, whole.parent, "--resume") == 2
    assert f"{weights.parent} has changed since the run in" in capsys.readouterr().err
    weights.write_bytes(content)
    assert run(settings, whole.parent, "--resume", "--rounds", "1") == 2
    assert "has begun more rounds than --rounds 1: raise --rounds" in capsys.readouterr().err
    assert run(settings, tmp_path, "--round", "3") == 2
    assert "round" in capsys.readouterr().err.splitlines()[-1]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "fine"}\n{"text": "none"}\n')
    assert run(settings, tmp_path, "--prompts", str(bad)) == 2
    assert "bad.jsonl, row 1: a row of prompts has a text" in capsys.readouterr().err
    with pytest.raises(UserError, match="rounds must be at least 1"):
        train_online(changed(settings, online={"rounds": 0}), out=tmp_path / "python")
