"""Which losses make a language model write more positive reviews, from clean, noisy, mixed data?

    python -m experiments.llm.sentiment_study            (long; a second start goes on)
    python -m experiments.llm.sentiment_study --smoke    (all of it in seconds, with a random LM)

Sentiment-controlled generation as in the DPO paper (arXiv 2305.18290, section 6), small: a prompt
is the first two to eight words of an IMDb review, an answer goes on from there. A plain sample of
the LM ("original") is compared with the best of four by the annotator ("target"):

base        one answer of each, and the annotator says which is chosen
noisy:0.3   the same pairs, three tenths of them with their labels swapped
mixed       two answers, each of original or target as a coin falls; the annotator says
best_of     the best of four, and another one of the four (in the study of transfer only)

Every loss gets the same pairs, minibatches, steps, and number of trials; what validates a trial is
the annotator on prompts of its own. The best setting is trained again with fresh seeds, each with
answers, labels and minibatches of its own, and its answers to unseen prompts are compared with the
untuned LM's by the judge, who was fitted to other reviews than the annotator and sees none of this.
"""

import argparse
import copy
import hashlib
import json
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from experiments.llm.pieces import keep_what_it_is, make_missing, read_json
from experiments.llm.reviews import load_reviews, splits
from experiments.llm.sampling import answer_kl, sample
from experiments.llm.sentiment import (
    ROLES,
    SentimentClassifier,
    bradley_terry,
    classifier,
    held_out_accuracy,
    vader_scores,
)
from experiments.llm.sentiment_report import write_report
from experiments.llm.small_lm import TINY, LmSettings, lm_folder
from torchmpo.finetune.models import load_model, load_tokenizer
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import Diverged, UserError, exit_code
from torchmpo.runs.files import alone_in, write_atomic
from torchmpo.runs.seeding import derive_seed
from torchmpo.winrate.rates import length_controlled_win_rate

if TYPE_CHECKING:
    from torchmpo.finetune.module import PreferenceModule

KINDS = ("base", "noisy:0.3", "mixed")
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
MIDDLE_RATES = (1e-3, 3e-3, 1e-2)
# Two settings of each loss, its defaults first, times three learning rates; where a loss has none
# of its own, six learning rates, which reach further on both sides. CoLPO's default
# threshold belongs to a model that gives a token −1.2 nats; this one gives it −4.4 on average, and
# to an answer in five more than −4.
SETTINGS: dict[str, list[dict[str, float]]] = {
    "sft": [],
    "dpo": [{"beta": 0.1}, {"beta": 0.5}],
    "simpo": [{"beta": 2.0, "target_margin": 0.5}, {"beta": 10.0, "target_margin": 3.0}],
    "slic_hf": [{"delta": 1.0, "sft_coef": 0.1}, {"delta": 10.0, "sft_coef": 0.1}],
    "cpo": [{"beta": 0.1, "sft_coef": 1.0}, {"beta": 0.5, "sft_coef": 1.0}],
    "orpo": [{"po_coef": 0.1}, {"po_coef": 1.0}],
    "colpo": [{"threshold": -1.2}, {"threshold": -4.0}],
    "tla_noisy_v1": [],
}


@dataclass(frozen=True)
class StudySettings:
    """Everything the results follow from, beside the reviews and the LM.

    Args:
        losses, kinds: what is compared.
        trials: settings tried of each loss on each kind of data, at most 6.
        seeds: fresh ones; tuning has seed 0.
        pairs: preference pairs of a training.
        validation, test: prompts.
        candidates: answers the target takes the best of.
        epochs, batch_size: of a training; pairs in a step.
        new_tokens: most tokens of an answer.
    """

    losses: tuple[str, ...] = tuple(SETTINGS)
    kinds: tuple[str, ...] = KINDS
    trials: int = 6
    seeds: int = 3
    pairs: int = 1000
    validation: int = 200
    test: int = 805
    candidates: int = 4
    epochs: int = 1
    batch_size: int = 32
    new_tokens: int = 40


SMOKE = StudySettings(
    losses=("dpo", "sft"),
    trials=2,
    seeds=2,
    pairs=8,
    validation=6,
    test=12,
    candidates=2,
    batch_size=4,
    new_tokens=8,
)


class World:
    """What all trainings share: models, prompts, the untuned LM's answers.

    Args:
        settings: of the study.
        folder: of the run.
        lm: folder of the LM.
        judges: annotator and judge by their roles.
        reviews: those that prompts are taken from.
        vader: whether to ask for the third opinion.
    """

    def __init__(self, settings, folder: Path, lm: Path, judges, reviews, vader: bool):
        self.settings, self.folder, self.vader = settings, folder, vader
        self.lm, self.tokenizer = load_model(lm, dtype="float32").eval(), load_tokenizer(lm)
        self.annotator: SentimentClassifier = judges["annotator"]
        self.judge: SentimentClassifier = judges["judge"]
        # A few pairs have two answers that are the same, or an empty one.
        spare = max(4, settings.pairs // 20)
        sizes = {"train": settings.pairs + spare}
        sizes |= {"validation": settings.validation, "test": settings.test}
        self.prompts = draw_prompts(reviews, sizes)

    def learner(self, loss: str, setting: dict[str, Any], seed: int) -> "PreferenceModule":
        """The LM as it is trained: all of it."""
        return preference_module(copy.deepcopy(self.lm), loss, setting, seed)

    def trained(self, learner: "PreferenceModule") -> Any:
        """The LM that a learner has become, with parameters like the untuned one's."""
        return learner.policy.model.eval()

    def answers(self, name: str, prompts: Sequence[str], seed: int, each: int) -> list[list[str]]:
        """The untuned LM's, ``each`` to a prompt; kept in a file."""
        path = self.folder / "answers" / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            repeated = [prompt for prompt in prompts for _ in range(each)]
            rows = sample(self.lm, self.tokenizer, repeated, seed, self.settings.new_tokens)
            texts = [row.text for row in rows]
            grouped = [texts[i : i + each] for i in range(0, len(texts), each)]
            write_atomic(path, json.dumps(grouped, ensure_ascii=False, indent=0))
        return json.loads(path.read_text("utf-8"))

    def pairs(self, kind: str, seed: int) -> list[dict[str, Any]]:
        """``prompt``, ``chosen``, ``rejected``, whether the target made them, and the margin."""
        prompts, many = self.prompts["train"], self.settings.candidates
        # Two plain samples and two times as many as the target takes the best of.
        each = 2 + 2 * many
        stream = derive_seed(seed, "train answers")
        answers = self.answers(f"train-{seed}", prompts, stream, each)
        draw = random.Random(derive_seed(seed, "sources"))
        pairs = []
        for prompt, texts in zip(prompts, answers, strict=True):
            scores = self.annotator.logits([prompt + text for text in texts])
            best = [b + int(scores[b : b + many].argmax()) for b in (2, 2 + many)]
            is_target = [draw.random() < 0.5 for _ in range(2)]
            if kind != "mixed":
                is_target = [False, True]
            picks = [best[i] if target else i for i, target in enumerate(is_target)]
            if kind == "best_of":
                picks = [draw.choice([i for i in range(2, 2 + many) if i != best[0]]), best[0]]
            a, b = (texts[i] for i in picks)
            if a == b or not a.strip() or not b.strip():
                continue
            first = int(scores[picks[1]] > scores[picks[0]])
            pairs.append(
                {
                    "prompt": prompt,
                    "chosen": (a, b)[first],
                    "rejected": (a, b)[1 - first],
                    "chosen_by_target": is_target[first],
                    "rejected_by_target": is_target[1 - first],
                    "margin": float(abs(scores[picks[1]] - scores[picks[0]])),
                }
            )
        pairs = pairs[: self.settings.pairs]
        if kind.startswith("noisy:"):
            share = float(kind.partition(":")[2])
            order = random.Random(derive_seed(seed, "flips")).sample(range(len(pairs)), len(pairs))
            for i in order[: round(share * len(pairs))]:
                pairs[i] = flipped(pairs[i])
        return pairs


def flipped(pair: dict[str, Any]) -> dict[str, Any]:
    """The pair with its label swapped."""
    out = pair | {"margin": -pair["margin"]}
    for name in ("", "_by_target"):
        out[f"chosen{name}"], out[f"rejected{name}"] = (
            pair[f"rejected{name}"],
            pair[f"chosen{name}"],
        )
    return out


def draw_prompts(reviews, sizes: dict[str, int]) -> dict[str, list[str]]:
    """Disjoint lists of beginnings of IMDb reviews, two to eight words each, no two the same.

    Raises:
        UserError: there are fewer reviews than that.
    """
    draw = random.Random(derive_seed(0, "prompts"))
    own = sorted(review.text for review in reviews if review.source == "imdb")
    draw.shuffle(own)
    prompts = list(dict.fromkeys(" ".join(text.split()[: draw.randint(2, 8)]) for text in own))
    if len(prompts) < sum(sizes.values()):
        raise UserError(
            f"{sum(sizes.values())} prompts are wanted; the reviews give {len(prompts)}"
        )
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[name] = prompts[start : start + size]
        start += size
    return parts


def trial_settings(loss: str, trials: int) -> list[dict[str, Any]]:
    """The learning rate and the arguments of a loss, ``trials`` times."""
    own = SETTINGS[loss]
    grid = product(own, MIDDLE_RATES) if own else product([{}], RATES)
    return [{"lr": lr, "loss_args": args} for args, lr in grid][:trials]


def preference_module(model: Any, loss: str, setting, seed: int, lora=None) -> "PreferenceModule":
    """What trains a model by a loss: 10 % warm-up, then a line to 0.

    Args:
        model: its weights change, or those of fresh adapters where ``lora`` asks for them.
        setting: ``lr`` and ``loss_args``.
    """
    from torchmpo.finetune.module import PreferenceModule

    return PreferenceModule(
        model, loss, **setting, lora=lora, warmup=0.1, schedule="linear", seed=seed
    )


def train(world: World, pairs, loss: str, setting, seed: int) -> tuple[Any, dict[str, float]]:
    """The LM tuned on the pairs, and what its last step logged.

    Raises:
        Diverged: the loss or its gradient is not finite.
    """
    from lightning.pytorch import Trainer

    from torchmpo.finetune.data import PreferenceData

    module = world.learner(loss, setting, seed)
    data = PreferenceData(
        [{name: pair[name] for name in ("prompt", "chosen", "rejected")} for pair in pairs],
        tokenizer=world.tokenizer,
        max_length=128,
        batch_size=world.settings.batch_size,
        unpair=module.objective.unpaired,
        seed=seed,
    )
    trainer = Trainer(
        max_epochs=world.settings.epochs,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    numbers = {name: round(float(x), 5) for name, x in trainer.callback_metrics.items()}
    return world.trained(module), numbers


def run_trial(world: World, kind: str, loss: str, setting) -> dict[str, Any]:
    """Train once, and ask the annotator."""
    try:
        model, numbers = train(world, world.pairs(kind, 0), loss, setting, seed=0)
    except Diverged as error:
        return {"setting": setting, "validation": None, "error": str(error)}
    return {"setting": setting, "validation": validate(world, model), "training": numbers}


def validate(world: World, model: Any) -> float:
    """Win rate over the untuned LM on the prompts of validation, by the annotator, %."""
    prompts = world.prompts["validation"]
    before = world.answers("validation", prompts, derive_seed(0, "validation before"), 1)
    seed, tokens = derive_seed(0, "validation"), world.settings.new_tokens
    after = [a.text for a in sample(model, world.tokenizer, prompts, seed, tokens)]
    first, second = (
        world.annotator.logits([p + text for p, text in zip(prompts, texts, strict=True)])
        for texts in ([texts[0] for texts in before], after)
    )
    return round(100 * float(bradley_terry(first, second).mean()), 3)


def compare(world: World, seed: int, texts: Sequence[str]) -> dict[str, Any]:
    """Answers to the test prompts beside those of the untuned LM."""
    prompts = world.prompts["test"]
    before = world.answers(
        f"test-{seed}", prompts, derive_seed(seed, "test before"), 2 + world.settings.candidates
    )
    both = [
        [p + text for p, text in zip(prompts, side, strict=True)]
        for side in ([texts[0] for texts in before], texts)
    ]
    first, second = (world.judge.logits(side) for side in both)
    preferences = bradley_terry(first, second)
    lengths = [len(text) for text in texts]
    before_lengths = [len(row[0]) for row in before]
    controlled = length_controlled_win_rate(preferences, lengths, before_lengths)
    found = {
        "preferences": [round(p, 5) for p in preferences.tolist()],
        "annotator": 100 * float(bradley_terry(*map(world.annotator.logits, both)).mean()),
        "lc_win_rate": controlled.win_rate,
        "lc_error": controlled.robust_error,
        "characters": lengths,
        "before_characters": before_lengths,
    }
    if world.vader:
        first, second = (vader_scores(side) for side in both)
        found["vader"] = ((np.sign(second - first) + 1) / 2).tolist()
    return found


def run_final(world: World, kind: str, loss: str, setting, seed: int) -> dict[str, Any]:
    """Train with a fresh seed, and ask the judge."""
    prompts, tokens = world.prompts["test"], world.settings.new_tokens
    try:
        model, numbers = train(world, world.pairs(kind, seed), loss, setting, seed)
    except Diverged as error:
        return {"setting": setting, "seed": seed, "error": str(error)}
    answers = sample(model, world.tokenizer, prompts, derive_seed(seed, "test"), tokens)
    divergence = answer_kl(model, world.lm, answers).double()
    texts = [answer.text for answer in answers]
    return {
        "setting": setting,
        "seed": seed,
        "training": numbers,
        "kl": float(divergence.mean()),
        "kl_error": float(divergence.std() / len(answers) ** 0.5),
        "ended": sum(answer.ended for answer in answers) / len(answers),
        "distinct": distinct(texts),
        "samples": [[p, text] for p, text in zip(prompts[:5], texts[:5], strict=True)],
    } | compare(world, seed, texts)


def distinct(texts: Sequence[str]) -> float:
    """Different word pairs over all word pairs of the texts, in [0, 1]: low where they repeat."""
    words = [text.lower().split() for text in texts]
    pairs = [pair for row in words for pair in zip(row, row[1:])]
    return len(set(pairs)) / max(1, len(pairs))


def run_baselines(world: World, seed: int) -> dict[str, Any]:
    """What needs no training: another plain sample, and the best of several."""
    prompts, many = world.prompts["test"], world.settings.candidates
    before = world.answers(f"test-{seed}", prompts, derive_seed(seed, "test before"), 2 + many)
    best = []
    for prompt, texts in zip(prompts, before, strict=True):
        scores = world.annotator.logits([prompt + text for text in texts[2:]])
        best.append(texts[2 + int(scores.argmax())])
    sides = {"original": [texts[1] for texts in before], "target": best}
    return {
        name: {
            "distinct": distinct(texts),
            "samples": [[p, text] for p, text in zip(prompts[:5], texts[:5], strict=True)],
        }
        | compare(world, seed, texts)
        for name, texts in sides.items()
    }


def describe_pairs(world: World, kind: str, seed: int) -> dict[str, float]:
    """What the pairs of one seed are like."""
    pairs = world.pairs(kind, seed)
    chosen, rejected = ([p["prompt"] + p[name] for p in pairs] for name in ("chosen", "rejected"))
    agreed = world.judge.logits(chosen) > world.judge.logits(rejected)
    return {
        "pairs": len(pairs),
        "chosen_by_target": sum(p["chosen_by_target"] for p in pairs) / len(pairs),
        "rejected_by_target": sum(p["rejected_by_target"] for p in pairs) / len(pairs),
        "judge_agrees": float(np.mean(agreed)),
        "margin": sum(p["margin"] for p in pairs) / len(pairs),
        "chosen_characters": sum(len(p["chosen"]) for p in pairs) / len(pairs),
        "rejected_characters": sum(len(p["rejected"]) for p in pairs) / len(pairs),
    }


def cells(settings: StudySettings) -> Iterator[tuple[str, str, str, int]]:
    """Kind, loss, ``trial`` or ``seed``, and which; a loss's trials come before its seeds."""
    for kind, loss in product(settings.kinds, settings.losses):
        for number in range(len(trial_settings(loss, settings.trials))):
            yield kind, loss, "trial", number
        for number in range(1, settings.seeds + 1):
            yield kind, loss, "seed", number


def cell_path(folder: Path, kind: str, loss: str, what: str, number: int) -> Path:
    """Where a training's numbers are kept."""
    return folder / "cells" / f"{kind.replace(':', '_')}-{loss}-{what}-{number}.json"


def best_trial(paths: Sequence[Path]) -> dict[str, Any]:
    """The trial with the highest validation win rate; the first of equals."""
    trials = [read_json(path) for path in paths]
    return max(trials, key=lambda t: -1.0 if t["validation"] is None else t["validation"])


def run_study(world: World) -> None:
    """Every cell that is not there yet."""
    folder, settings = world.folder, world.settings
    for seed in range(1, settings.seeds + 1):
        _once(folder / f"baselines-{seed}.json", partial(run_baselines, world, seed))
    _once(
        folder / "pairs.json",
        lambda: {kind: describe_pairs(world, kind, 1) for kind in settings.kinds},
    )

    def make(cell: tuple[str, str, str, int]) -> dict[str, Any]:
        kind, loss, what, number = cell
        grid = trial_settings(loss, settings.trials)
        if what == "trial":
            found = run_trial(world, kind, loss, grid[number])
        else:
            trials = [cell_path(folder, kind, loss, "trial", i) for i in range(len(grid))]
            found = run_final(world, kind, loss, best_trial(trials)["setting"], number)
        return {"kind": kind, "loss": loss, "what": what, "number": number} | found

    make_missing(cells(settings), lambda cell: cell_path(folder, *cell), make, what_came)


def what_came(found: dict[str, Any]) -> str:
    """A piece of a study, for people: its setting, win rate and KL."""
    own = "".join(f" {name}={value:g}" for name, value in found["setting"]["loss_args"].items())
    won = found.get("validation") or 100 * float(np.mean(found.get("preferences", np.nan)))
    kl = f"  KL {found['kl']:.1f}" if "kl" in found else ""
    return f"lr={found['setting']['lr']:g}{own}  win rate {won:.1f}{kl}"


def prepare(out: Path, smoke: bool, reviews_file: str | None) -> World:
    """Reviews, classifiers, the LM: from the cache or made now; a smoke run has its own.

    Raises:
        UserError: a package is missing, or the folder holds a run with other settings.
    """
    settings = SMOKE if smoke else StudySettings()
    own = out / "models" if smoke or reviews_file else None
    parts = splits(load_reviews(reviews_file))
    judges = {role: classifier(role, parts, own) for role in ROLES}
    accuracy = {role: held_out_accuracy(judges[role], parts["held_out"]) for role in ROLES}
    for role, found in accuracy.items():
        line = ", ".join(f"{100 * share:.1f} % of {kind}" for kind, share in found.items())
        print(f"{role}: held-out accuracy {line}", flush=True)
    lm = lm_folder(TINY if smoke else LmSettings(), parts, own)
    card = json.loads((lm / "card.json").read_text("utf-8"))
    card.pop("validation_losses", None)  # which older models do not have
    about = {
        "settings": asdict(settings),
        "grid": {loss: trial_settings(loss, settings.trials) for loss in settings.losses},
        "lm": card,
        "reviews": {name: len(part) for name, part in parts.items()},
        "accuracy": accuracy,
    }
    world = World(settings, out, lm, judges, parts["prompts"], vader=not smoke)
    about["prompts"] = _digest(json.dumps(world.prompts).encode())
    about["losses"] = {loss: _numbers_of(loss) for loss in settings.losses}
    if world.vader:
        vader_scores(["It says now whether it is installed."])
    keep_what_it_is(out, about)
    (out / "cells").mkdir(exist_ok=True)
    return world


@contextmanager
def quiet() -> Iterator[None]:
    """The same remarks of Lightning's, with every training, tell nothing."""
    names = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for text in (".*LeafSpec", ".*does not have many workers", ".*number of training batches"):
            warnings.filterwarnings("ignore", text)
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/sentiment"), help="folder of the run"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny, in seconds, to see it work")
    parser.add_argument("--reviews", help="CSV of reviews, in place of the installed package's")
    parser.add_argument("--report", action="store_true", help="only write the report again")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)

    def work() -> None:
        with quiet():
            if not args.report:
                world = prepare(args.out, args.smoke, args.reviews)
                with alone_in(args.out):
                    run_study(world)
            print(write_report(args.out))

    return exit_code(work, lambda: "interrupted; the same command goes on")


def _numbers_of(loss: str) -> Any:
    """A loss, beside its code: its hyper-parameters, or a digest of what it learned."""
    objective = resolve(loss)
    if isinstance(objective, Objective):
        return objective.hyper
    return _digest(objective.vector.detach().numpy().tobytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _once(path: Path, make: Callable[[], Any]) -> None:
    if not path.exists():
        write_atomic(path, json.dumps(make(), ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
