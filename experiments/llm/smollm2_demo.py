"""A small instruction-tuned model learns to like films, from sentences that people wrote.

    make llm-demo-smollm2
    python -m experiments.llm.smollm2_demo                     (goes on where it was stopped)

SmolLM2-135M-Instruct is asked for one sentence of a film review that begins with two given words.
A pair is two sentences of Rotten Tomatoes that begin so, of about the same length; chosen is the
one that a person labelled positive, rejected the one labelled negative. `torchmpo.finetune` trains
adapters by ``colpo_smollm2.yaml``. Then the model with and without adapters answers held-out
prompts, whose two words were in no training prompt, and a classifier that was fitted to other
reviews says which answer is the more positive one (`torchmpo.winrate`). These are no numbers of
AlpacaEval: other prompts, another judge, another reference.

The folder ``--out`` then has model/ (a link), train.jsonl, held_out.jsonl, prompts.json; run/ of
the fine-tuning, with adapter/; merged/; base.json and tuned.json, the answers; winrate/. What is
there is not made again. The results go to results/ there, or to ``--results``.
"""

import argparse
import contextlib
import json
import math
import re
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.llm.reviews import Review, load_reviews, splits
from experiments.llm.sentiment import ROLES, classifier, held_out_accuracy, judge, vader_scores
from experiments.llm.smollm2_model import smollm2
from torchmpo.finetune import __main__ as finetune
from torchmpo.runs.errors import UserError, exit_code
from torchmpo.runs.files import write_atomic
from torchmpo.runs.seeding import derive_seed
from torchmpo.winrate import __main__ as winrate

HERE = Path(__file__).parent
CONFIG = HERE / "colpo_smollm2.yaml"
INSTRUCTIONS = (
    'Write one sentence of a film review. It begins with "{}".',
    'Continue this film review, in one sentence: "{} …"',
    'What would a critic say of a film? One sentence, beginning with "{}".',
)
# The judge's reviews and the held-out ones are left out.
TRAIN_PARTS = ("annotator", "language_model", "prompts")
SPACED = re.compile(r"\s+([.,!?;:%)\]]|n't\b|'(?:s|re|ve|ll|d|m)\b)")
JUDGE = "experiments.llm.sentiment:prefer_answer"
SAMPLES = 8


@dataclass(frozen=True)
class Settings:
    """Sizes.

    Args:
        pairs: at most, to train on.
        prompts: to answer, held out.
        words: a sentence's least and greatest number of words.
        max_new_tokens: of an answer.
        temperature: of the sampled answers.
        batch_size: answers at a time.
        seed: of everything.
    """

    pairs: int = 240
    prompts: int = 120
    words: tuple[int, int] = (8, 30)
    max_new_tokens: int = 40
    temperature: float = 0.7
    batch_size: int = 24
    seed: int = 0


# Data


def tidy(text: str) -> str:
    """A sentence of Rotten Tomatoes, whose punctuation stands apart, as one writes it.

    >>> tidy("it isn't bad , it's ( mostly ) fun .")
    "It isn't bad, it's (mostly) fun."
    """
    text = re.sub(r"([(\[])\s+", r"\1", SPACED.sub(r"\1", text))
    return text[:1].upper() + text[1:]


def by_opening(reviews: Sequence[Review], words: tuple[int, int]) -> dict[str, dict[bool, list]]:
    """Sentences by their first two words and by their label."""
    groups: dict[str, dict[bool, list]] = defaultdict(lambda: {True: [], False: []})
    for review in reviews:
        text = tidy(review.text)
        parts = text.split()
        if review.source == "rotten_tomatoes" and words[0] <= len(parts) <= words[1]:
            groups[" ".join(parts[:2])][review.positive].append(text)
    return groups


def instruction(opening: str, seed: int) -> str:
    """One of the instructions, for this opening; which one follows from both."""
    return INSTRUCTIONS[derive_seed(seed, "instruction", opening) % 3].format(opening)


def pairs(groups: Mapping[str, Mapping[bool, list]], seed: int) -> list[dict[str, Any]]:
    """Every sentence once at most; the k-th shortest of one label against that of the other."""
    rows = []
    for opening, sides in groups.items():
        count = min(map(len, sides.values()))
        drawn = {
            label: sorted(_shuffled(texts, seed)[:count], key=len) for label, texts in sides.items()
        }
        for good, bad in zip(drawn[True], drawn[False], strict=True):
            rows.append(
                {
                    "prompt": [{"role": "user", "content": instruction(opening, seed)}],
                    "chosen": [{"role": "assistant", "content": good}],
                    "rejected": [{"role": "assistant", "content": bad}],
                }
            )
    return _shuffled(rows, seed)


def prepare(parts: Mapping[str, Sequence[Review]], settings: Settings, out: Path) -> None:
    """Write training pairs, held-out pairs, and held-out prompts of other openings."""
    train = by_opening([r for name in TRAIN_PARTS for r in parts[name]], settings.words)
    held_out = by_opening(parts["held_out"], settings.words)
    rows = {
        "train": pairs(train, settings.seed)[: settings.pairs],
        "held_out": pairs(held_out, settings.seed),
    }
    openings = _shuffled([o for o in held_out if o not in train], settings.seed)
    prompts = [instruction(o, settings.seed) for o in openings[: settings.prompts]]
    if not (rows["train"] and rows["held_out"] and prompts):
        raise UserError("too few reviews: no pair or no prompt is left")
    for name, of in rows.items():
        write_atomic(out / f"{name}.jsonl", "".join(json.dumps(r) + "\n" for r in of))
    write_atomic(out / "prompts.json", json.dumps(prompts, indent=1))


def _shuffled(items: Sequence[Any], seed: int) -> list[Any]:
    draw = torch.Generator().manual_seed(derive_seed(seed, "shuffle", len(items)))
    return [items[i] for i in torch.randperm(len(items), generator=draw).tolist()]


# Training and what it came to


def fine_tune(config: Path, out: Path) -> None:
    """`torchmpo.finetune fit` by the configuration; goes on with a run that was stopped."""
    words = ["fit", "--config", str(config), "--out", str(out / "run")]
    words += ["--model.model", str(out / "model"), "--data.train", str(out / "train.jsonl")]
    words += ["--data.validation", str(out / "held_out.jsonl")]
    if (out / "run" / "last.ckpt").is_file():
        words.append("--resume")
    if finetune.main(words):
        raise UserError("the fine-tuning did not finish")


def held_out_metrics(model: Any, config: Path, out: Path) -> dict[str, float]:
    """Loss, margins and log-probabilities of the held-out pairs, under this model."""
    from lightning.pytorch import Trainer

    from torchmpo.finetune.data import PreferenceData
    from torchmpo.finetune.module import PreferenceModule

    given = yaml.safe_load(config.read_text())
    module = PreferenceModule(
        model, loss=given["model"]["loss"], loss_args=given["model"].get("loss_args")
    )
    data = PreferenceData(
        str(out / "held_out.jsonl"),
        str(out / "held_out.jsonl"),
        tokenizer=str(out / "model"),
        max_length=given["data"]["max_length"],
        batch_size=given["data"]["batch_size"],
    )
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    found = trainer.validate(module, data, verbose=False)[0]
    return {name.removeprefix("val/"): value for name, value in found.items()}


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    settings: Settings,
    *,
    greedy: bool = False,
    tell: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """An answer to each prompt; the same seed draws the same random numbers for any model."""
    answers = []
    for start in range(0, len(prompts), settings.batch_size):
        batch = [[{"role": "user", "content": p}] for p in prompts[start:][: settings.batch_size]]
        inputs = tokenizer.apply_chat_template(
            batch,
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
            tokenizer_kwargs={"padding_side": "left"},
        )
        torch.manual_seed(derive_seed(settings.seed, "answers", start))
        sampling = {} if greedy else {"temperature": settings.temperature, "top_k": 0}
        with torch.inference_mode():
            out = model.generate(
                **inputs,
                do_sample=not greedy,
                max_new_tokens=settings.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                **sampling,
            )
        new = out[:, inputs["input_ids"].shape[1] :]
        answers += [t.strip() for t in tokenizer.batch_decode(new, skip_special_tokens=True)]
        tell(len(answers))
    return answers


def answers_file(path: Path, name: str, model: Any, tokenizer: Any, prompts, settings) -> None:
    """AlpacaEval's file of a model's answers."""
    started = time.monotonic()

    def tell(done):
        left = (time.monotonic() - started) * (len(prompts) - done) / done
        say(f"{name}: {done} of {len(prompts)} answers, {left:.0f} s left")

    given = generate(model, tokenizer, prompts, settings, tell=tell)
    rows = [
        {"instruction": prompt, "output": answer, "generator": name}
        for prompt, answer in zip(prompts, given, strict=True)
    ]
    write_atomic(path, json.dumps(rows, indent=1, ensure_ascii=False))


# The demonstration


def model_and_pairs(
    settings: Settings, config: Path, model: Path, parts: Mapping[str, Sequence[Review]], out: Path
) -> None:
    """Everything that ``colpo_smollm2.yaml`` names, in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    _same_settings(out / "settings.json", asdict(settings) | {"config": config.read_text()})
    if not (out / "model").exists():
        (out / "model").symlink_to(model.resolve(), target_is_directory=True)
    if not (out / "prompts.json").exists():
        prepare(parts, settings, out)


def run(settings: Settings, config: Path, model: Path, reviews: list[Review], out: Path) -> dict:
    """All of it; returns the results."""
    from peft import PeftModel

    from torchmpo.finetune.models import load_model, load_tokenizer

    parts = splits(reviews, 0)
    model_and_pairs(settings, config, model, parts, out)
    clock = Stopwatch(out / "seconds.json")
    accuracy = {}
    for role in ROLES[1:]:
        accuracy = held_out_accuracy(classifier(role, parts), parts["held_out"])
    prompts = json.loads((out / "prompts.json").read_text())
    tokenizer = load_tokenizer(out / "model")

    def base():
        return load_model(out / "model", dtype="float32")

    def tuned():
        return PeftModel.from_pretrained(base(), str(out / "run" / "adapter")).eval()

    def step(name: str, path: Path, make: Callable[[], Any]) -> Any:
        """A JSON file, made now if it is not there."""
        if not path.exists():
            say(name)
            with clock(name):
                made = make()
                if made is not None:
                    write_atomic(path, json.dumps(made, indent=1))
        return json.loads(path.read_text())

    before = step(
        "held-out pairs before", out / "before.json", lambda: held_out_metrics(base(), config, out)
    )
    if not (out / "run" / "adapter").is_dir():
        say("fine-tuning")
        with clock("fine-tuning"):
            fine_tune(config, out)
    after = step(
        "held-out pairs after", out / "after.json", lambda: held_out_metrics(tuned(), config, out)
    )
    for name, load in (("base", base), ("tuned", tuned)):
        path = out / f"{name}.json"
        step(
            f"answers of {name}",
            path,
            lambda: answers_file(path, name, load(), tokenizer, prompts, settings),  # noqa: B023
        )
    same = step("merged", out / "merged.json", lambda: _merged_says_the_same(tuned, prompts, out))
    if not (out / "winrate" / "leaderboard.csv").exists():
        words = ["--outputs", str(out / "tuned.json"), "--reference", str(out / "base.json")]
        words += ["--judge", JUDGE, "--empty", "lose", "--out", str(out / "winrate")]
        if winrate.main(words):
            raise UserError("the win rate could not be computed")
    return {
        "loss": yaml.safe_load(config.read_text())["model"]["loss"],
        "settings": asdict(settings),
        "training_pairs": len((out / "train.jsonl").read_text().splitlines()),
        "held_out_pairs": len((out / "held_out.jsonl").read_text().splitlines()),
        "held_out_prompts": len(prompts),
        "judge_held_out_accuracy": accuracy,
        "held_out": {"before": before, "after": after},
        **rates(out),
        **same,
        "seconds": clock.taken,
        "threads": torch.get_num_threads(),
    }


def rates(out: Path) -> dict[str, Any]:
    """Win rates by the judge and by VADER, lengths, and a few answers."""
    import csv

    from torchmpo.winrate.rates import win_rate

    with open(out / "winrate" / "leaderboard.csv", newline="") as file:
        board = next(iter(csv.DictReader(file)))
    texts = {
        name: [row["output"] for row in json.loads((out / f"{name}.json").read_text())]
        for name in ("base", "tuned")
    }
    prompts = json.loads((out / "prompts.json").read_text())
    found: dict[str, Any] = {
        "judge": {
            name: float(board[name]) if board[name] else None  # too few prompts
            for name in (
                "win_rate",
                "standard_error",
                "discrete_win_rate",
                "length_controlled_winrate",
                "lc_robust_error",
            )
        },
    }
    with contextlib.suppress(UserError):  # the third opinion may be missing
        scores = {name: vader_scores(of) for name, of in texts.items()}
        outcome = [(a < b) + (a == b) / 2 for a, b in zip(scores["base"], scores["tuned"])]
        found["vader"] = win_rate(outcome)._asdict()
    found["positive_by_judge"] = {
        name: float((judge().logits(of) > 0).mean()) for name, of in texts.items()
    }
    found["characters"] = {
        name: dict(zip(("mean", "standard_error"), _mean([len(t) for t in of])))
        for name, of in texts.items()
    }
    found["samples"] = [
        {"prompt": p, "base": b, "tuned": t}
        for p, b, t in list(zip(prompts, texts["base"], texts["tuned"], strict=True))[:SAMPLES]
    ]
    return found


def _merged_says_the_same(tuned: Callable[[], Any], prompts: Sequence[str], out: Path) -> dict:
    """Export the merged model, and compare its likeliest answers with the adapter's."""
    from torchmpo.finetune.models import load_model, load_tokenizer

    folder, adapter = out / "merged", out / "run" / "adapter"
    if not (folder / "tokenizer_config.json").exists():
        if folder.exists():
            raise UserError(f"{folder} is half written: delete it")
        if finetune.main(["export", "--adapter", str(adapter), "--out", str(folder)]):
            raise UserError("the merged model could not be written")
    few = Settings(batch_size=4, max_new_tokens=24)
    said = [
        generate(model, load_tokenizer(where), prompts[:4], few, greedy=True)
        for model, where in ((tuned(), adapter), (load_model(folder), folder))
    ]
    return {"merged_says_the_same": said[0] == said[1]}


def _same_settings(path: Path, settings: dict[str, Any]) -> None:
    text = json.dumps(settings, indent=1)
    if path.exists() and path.read_text() != text:
        raise UserError(f"{path.parent} was begun with other settings: choose another --out")
    write_atomic(path, text)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    square = sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)
    return mean, math.sqrt(square / len(values))


class Stopwatch:
    """Wall and CPU seconds by what they were spent on, kept in a file."""

    def __init__(self, path: Path):
        self.path = path
        self.taken = json.loads(path.read_text()) if path.exists() else {}

    @contextlib.contextmanager
    def __call__(self, name: str):
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.taken[name] = {
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
        }
        write_atomic(self.path, json.dumps(self.taken, indent=1))


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def page(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    before, after, judged = (
        results["held_out"]["before"],
        results["held_out"]["after"],
        results["judge"],
    )
    cpu = sum(taken["cpu"] for taken in results["seconds"].values()) / 60
    wall = sum(taken["wall"] for taken in results["seconds"].values()) / 60
    accuracy = ", ".join(f"{k} {v:.1%}" for k, v in results["judge_held_out_accuracy"].items())
    lines = [
        "# SmolLM2-135M-Instruct, CoLPO, film-review sentences",
        "",
        f"`python -m experiments.llm.smollm2_demo`: {results['training_pairs']} pairs, "
        f"{cpu:.1f} CPU minutes ({wall:.0f} by the clock), {results['threads']} thread(s). "
        "These are no numbers of AlpacaEval.",
        "",
        f"| {results['held_out_pairs']} held-out pairs | before | after |",
        "|---|---|---|",
    ]
    lines += [f"| {k} | {before[k]:.4f} | {after[k]:.4f} |" for k in before if k in after]
    if results["loss"] == "colpo" and after["loss"] > before["loss"]:
        lines += [
            "",
            "The loss rose because it jumps, by po_coef·δ, where a chosen answer's mean "
            "log-probability comes above the threshold: only from there on is a margin asked for.",
        ]
    lines += [
        "",
        f"| {results['held_out_prompts']} held-out prompts, tuned against untuned | |",
        "|---|---|",
        f"| win rate, judge | {_rate(judged['win_rate'], judged['standard_error'])} |",
        f"| the same, hard wins | {_rate(judged['discrete_win_rate'])} |",
        "| length-controlled | "
        f"{_rate(judged['length_controlled_winrate'], judged['lc_robust_error'])} |",
    ]
    if "vader" in results:
        vader = results["vader"]
        lines.append(f"| win rate, VADER | {_rate(vader['win_rate'], vader['standard_error'])} |")
    for name in ("base", "tuned"):
        size = results["characters"][name]
        lines.append(
            f"| {name}: characters; positive by the judge | {size['mean']:.0f} ± "
            f"{size['standard_error']:.0f}; {results['positive_by_judge'][name]:.0%} |"
        )
    lines += [
        "",
        f"The judge's accuracy on held-out reviews: {accuracy}. The merged model says "
        + ("the same" if results["merged_says_the_same"] else "**something else**")
        + " as the model with adapters.",
        "",
        f"## The first {len(results['samples'])} answers",
        "",
    ]
    for sample in results["samples"]:
        lines.append(f"- {sample['prompt']}")
        lines += [f"  - {name}: {' '.join(sample[name].split())}" for name in ("base", "tuned")]
    return "\n".join(lines) + "\n"


def _rate(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f} %" if error is None else f"{value:.1f} ± {error:.1f} %"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2_demo"))
    parser.add_argument("--results", type=Path, help="folder; by default results/ in --out")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--model", type=Path, help="folder of another model")
    parser.add_argument("--reviews", type=Path, help="CSV of other reviews")
    for name in ("pairs", "prompts", "max_new_tokens", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Settings, name))
    parser.add_argument("--prepare", action="store_true", help="only model and data")
    args = parser.parse_args(argv)
    chosen = {n: getattr(args, n) for n in ("pairs", "prompts", "max_new_tokens", "seed")}
    settings = Settings(**chosen)

    def work() -> None:
        reviews = load_reviews(args.reviews)
        model = smollm2() if args.model is None else args.model
        if args.prepare:
            model_and_pairs(settings, args.config, model, splits(reviews, 0), args.out)
            return
        results = run(settings, args.config, model, reviews, args.out)
        folder = args.results or args.out / "results"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "results.json", json.dumps(results, indent=1) + "\n")
        write_atomic(folder / "README.md", page(results))
        print(page(results))

    return exit_code(work, lambda: "interrupted; the same command goes on")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")  # deprecations among Lightning, peft and transformers
    sys.exit(main())
