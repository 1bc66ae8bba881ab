"""The language-model side of the study of transfer: sixteen losses on the sentiment of reviews.

    python -m experiments.transfer.sentiment --kind best_of     (goes on where it was stopped)
    python -m experiments.transfer.sentiment --smoke            (all kinds in seconds, a random LM)

The plan is ``experiments/transfer/PROTOCOL.md``, part (a). Reviews, prompts, annotator and judge
are those of ``experiments/llm/sentiment_study.py``; the language model has seen the reviews more
often. What counts is the win rate at matched divergence: answers are sampled from the straight line
of weights between the untuned and the tuned model, where an answer's KL divergence from the untuned
model is that of the best of four. So a loss gains nothing by going further, only by going in a
better direction. The same number, by the annotator on prompts of its own, chooses the setting.
"""

import argparse
import copy
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.llm.pieces import keep_what_it_is, make_missing
from experiments.llm.reviews import load_reviews, splits
from experiments.llm.sampling import Answer, answer_kl, sample
from experiments.llm.sentiment import ROLES, SentimentClassifier, bradley_terry, classifier
from experiments.llm.sentiment_study import (
    StudySettings,
    World,
    best_trial,
    distinct,
    quiet,
    train,
)
from experiments.llm.small_lm import TINY, LmSettings, lm_folder
from torchmpo.runs.errors import Diverged, UserError, exit_code
from torchmpo.runs.files import alone_in, write_atomic
from torchmpo.runs.seeding import derive_seed

KINDS = ("best_of", "noisy:0.3", "base", "mixed")
RATES = (1e-3, 3e-4, 3e-3, 1e-2)
# Three settings of each loss, its defaults first, times four learning rates; where a loss has no
# numbers of its own, twelve learning rates. An answer has some 25 tokens of about −4 nats.
SETTINGS: dict[str, list[dict[str, float]]] = {
    "sft": [],
    "dpo": [{"beta": 0.1}, {"beta": 0.03}, {"beta": 0.5}],
    "ipo": [{"beta": 0.1}, {"beta": 1.0}, {"beta": 10.0}],
    "r_dpo": [
        {"beta": 0.1, "alpha": 0.05},
        {"beta": 0.1, "alpha": 0.01},
        {"beta": 0.5, "alpha": 0.05},
    ],
    "dpop": [
        {"beta": 0.3, "penalty_coef": 50.0},
        {"beta": 0.1, "penalty_coef": 5.0},
        {"beta": 0.1, "penalty_coef": 50.0},
    ],
    "chi_po": [{"beta": 0.1}, {"beta": 0.03}, {"beta": 0.5}],
    "kto": [{"beta": 0.1}, {"beta": 0.03}, {"beta": 0.5}],
    "apo_zero": [{"beta": 0.1}, {"beta": 0.03}, {"beta": 0.5}],
    "cpo": [
        {"beta": 0.1, "sft_coef": 1.0},
        {"beta": 0.1, "sft_coef": 0.1},
        {"beta": 0.5, "sft_coef": 1.0},
    ],
    "cpl": [
        {"beta": 0.1, "rejected_coef": 0.5},
        {"beta": 0.1, "rejected_coef": 0.9},
        {"beta": 0.5, "rejected_coef": 0.5},
    ],
    "orpo": [{"po_coef": 0.1}, {"po_coef": 1.0}, {"po_coef": 10.0}],
    "simpo": [
        {"beta": 2.0, "target_margin": 0.5},
        {"beta": 2.0, "target_margin": 0.0},
        {"beta": 10.0, "target_margin": 3.0},
    ],
    "slic_hf": [
        {"delta": 1.0, "sft_coef": 0.1},
        {"delta": 10.0, "sft_coef": 0.1},
        {"delta": 10.0, "sft_coef": 1.0},
    ],
    "rrhf": [{"sft_coef": 1.0}, {"sft_coef": 0.1}, {"sft_coef": 10.0}],
    "colpo": [
        {"threshold": -1.2, "po_coef": 0.5},
        {"threshold": -4.0, "po_coef": 0.5},
        {"threshold": -4.0, "po_coef": 5.0},
    ],
    "tla_noisy": [],
}
LM = LmSettings(epochs=6)
TOLERANCE = 0.05  # of the divergence that is to be matched
MOST_STEPS = 10  # of the search for it


@dataclass(frozen=True)
class TransferStudy:
    """Everything the results follow from, beside the reviews and the LM.

    Args:
        losses, kinds: what is compared.
        trials: settings tried of each loss on each kind of data, at most 12.
        seeds: fresh ones; tuning has seed 0.
        pairs: preference pairs of a training.
        validation, test: prompts.
        batch_size: pairs in a step.
        new_tokens: most tokens of an answer.
        candidates: answers the best is taken of.
    """

    losses: tuple[str, ...] = tuple(SETTINGS)
    kinds: tuple[str, ...] = KINDS
    trials: int = 12
    seeds: int = 5
    pairs: int = 512
    validation: int = 200
    test: int = 805
    batch_size: int = 16
    new_tokens: int = 40
    candidates: int = 4

    @property
    def divergence(self) -> float:
        """KL of the best of ``candidates`` from a plain sample, nats (arXiv 2009.01325)."""
        return math.log(self.candidates) - (self.candidates - 1) / self.candidates

    def grid(self, loss: str) -> list[dict[str, Any]]:
        """What is tried of a loss: its learning rate and arguments, ``trials`` times."""
        return trial_settings(loss, self.trials)


SMOKE = TransferStudy(
    losses=("dpo", "kto", "sft"),
    kinds=("best_of", "noisy:0.3"),
    trials=2,
    seeds=2,
    pairs=8,
    validation=6,
    test=12,
    batch_size=4,
    new_tokens=8,
    candidates=2,
)
Piece = tuple[str, str, int]  # loss; trial or seed; and which


def trial_settings(loss: str, trials: int) -> list[dict[str, Any]]:
    """The learning rate and the arguments of a loss, ``trials`` times, at most 12."""
    if own := SETTINGS[loss]:
        grid = [(args, rate) for args, rate in product(own, RATES)]
    else:
        grid = [({}, float(f"{rate:.2g}")) for rate in np.geomspace(1e-4, 3e-2, 12)]
    return [{"lr": rate, "loss_args": args} for args, rate in grid][:trials]


def between(untuned: Any, tuned: Any, weight: float) -> Any:
    """The model with ``weight`` of the way from the untuned model's parameters to the tuned's."""
    model = copy.deepcopy(untuned)
    with torch.no_grad():
        for own, end in zip(model.parameters(), tuned.parameters(), strict=True):
            own.lerp_(end, weight)
    return model.eval()


class Place(NamedTuple):
    """A point on the line of weights, and answers from there."""

    weight: float
    answers: list[Answer]
    kl: float


def place(world: World, tuned: Any, weight: float, prompts: Sequence[str], seed: int) -> Place:
    """Answers of the model with ``weight`` of the way from the untuned to the tuned model.

    All points of the line share their random numbers; ``kl`` is the mean divergence of an answer
    from the untuned model, nats.
    """
    model = between(world.lm, tuned, weight)
    answers = sample(model, world.tokenizer, prompts, seed, world.settings.new_tokens)
    return Place(weight, answers, float(answer_kl(model, world.lm, answers).double().mean()))


def matched(
    far: Place, look: Callable[[float], Place], divergence: float, steps: int = MOST_STEPS
) -> Place:
    """The place of the line of weights where an answer's divergence is the wanted one.

    The root of the divergence is about linear in the weight, so that its secant finds the place in
    a few steps; it is kept inside the bracket.

    Args:
        far: the tuned model itself, at weight 1; what is returned where it does not go so far.
        look: from a weight to its place.
        divergence: wanted, nats, within ``TOLERANCE``.
        steps: at most; then the last place looked at.
    """
    found, goal = far, divergence**0.5
    # (weight, root of the divergence) of both ends; one that is not a number is far away
    low, high = (0.0, 0.0), (1.0, far.kl**0.5 if math.isfinite(far.kl) else math.inf)
    for _ in range(steps):
        if abs(found.kl - divergence) <= TOLERANCE * divergence or high[1] < goal:
            break
        # The secant creeps where the curve bends: never nearer to an end than a tenth of the way.
        share = min(max((goal - low[1]) / (high[1] - low[1]), 0.1), 0.9)
        found = look(low[0] + share * (high[0] - low[0]))
        if found.kl <= divergence:
            low = (found.weight, found.kl**0.5)
        else:
            high = (found.weight, found.kl**0.5 if math.isfinite(found.kl) else math.inf)
    return found


def preferences(
    judge: SentimentClassifier,
    prompts: Sequence[str],
    before: Sequence[Sequence[str]],
    answers: Sequence[Answer],
) -> NDArray[np.float64]:
    """How often an answer is preferred to those of the untuned model, ``[prompts]``, in [0, 1].

    Args:
        before: for each prompt the same number of the untuned model's answers.
    """
    after = judge.logits([p + a.text for p, a in zip(prompts, answers, strict=True)])
    flat = [p + text for p, texts in zip(prompts, before, strict=True) for text in texts]
    first = judge.logits(flat).reshape(len(prompts), -1)
    return bradley_terry(first, after[:, None]).mean(1)


def run_trial(world: World, study: TransferStudy, kind: str, loss: str, number: int) -> Any:
    """Train once, and ask the annotator at matched divergence."""
    setting = study.grid(loss)[number]
    prompts = world.prompts["validation"]
    before = world.answers("validation", prompts, derive_seed(0, "validation before"), 4)
    try:
        model, _ = train(world, world.pairs(kind, 0), loss, setting, seed=0)
    except Diverged as error:
        return {"setting": setting, "validation": None, "error": str(error)}
    look = partial(place, world, model, prompts=prompts, seed=derive_seed(0, "validation"))
    far = look(1.0)
    near = matched(far, look, study.divergence)
    rates = (
        round(100 * float(preferences(world.annotator, prompts, before, p.answers).mean()), 3)
        for p in (near, far)
    )
    numbers = {"weight": near.weight, "kl": round(near.kl, 4), "far_kl": round(far.kl, 4)}
    return {"setting": setting} | dict(zip(("validation", "validation_far"), rates)) | numbers


def run_seed(world: World, study: TransferStudy, kind: str, loss: str, setting, seed: int) -> Any:
    """Train with a fresh seed, and ask the judge, at matched divergence and at the end."""
    prompts = world.prompts["test"]
    before = test_answers(world, study, seed)
    try:
        model, _ = train(world, world.pairs(kind, seed), loss, setting, seed)
    except Diverged as error:
        return {"setting": setting, "error": str(error)}
    own = world.prompts["validation"]  # the place is chosen on prompts that do not judge it
    look = partial(place, world, model, prompts=own, seed=derive_seed(seed, "validation"))
    weight = matched(look(1.0), look, study.divergence).weight
    result: dict[str, Any] = {"setting": setting, "weight": weight}
    for name, at in (("matched", weight), ("far", 1.0)):
        _, answers, kl = place(world, model, at, prompts, derive_seed(seed, "test"))
        texts = [answer.text for answer in answers]
        result[name] = {
            "kl": round(kl, 4),
            "win_rate": 100 * float(preferences(world.judge, prompts, before, answers).mean()),
            "annotator": 100 * float(preferences(world.annotator, prompts, before, answers).mean()),
            "ended": sum(answer.ended for answer in answers) / len(answers),
            "distinct": distinct(texts),
            "characters": float(np.mean([len(text) for text in texts])),
            "samples": [[p, text] for p, text in zip(prompts[:3], texts[:3], strict=True)],
        }
    return result


def test_answers(world: World, study: TransferStudy, seed: int) -> list[list[str]]:
    """Plain samples of the untuned model, a few to each test prompt: what answers are held to."""
    stream = derive_seed(seed, "test before")
    return world.answers(f"test-{seed}", world.prompts["test"], stream, study.candidates)


def run_baseline(world: World, study: TransferStudy, seed: int) -> dict[str, float]:
    """The best of several by the annotator, as the judge sees it: that the judge can tell."""
    prompts, stream = world.prompts["test"], derive_seed(seed, "test best")
    drawn = world.answers(f"test-best-{seed}", prompts, stream, study.candidates)
    best = []
    for prompt, texts in zip(prompts, drawn, strict=True):
        scores = world.annotator.logits([prompt + text for text in texts])
        best.append(Answer(texts[int(scores.argmax())], [], [], ended=True))
    before = test_answers(world, study, seed)
    return {
        role: 100 * float(preferences(judge, prompts, before, best).mean())
        for role, judge in (("judge", world.judge), ("annotator", world.annotator))
    }


def pieces(study: TransferStudy, losses: Sequence[str]) -> Iterator[Piece]:
    """All trainings on one kind of data; a loss's trials come before its seeds."""
    for loss in losses:
        yield from ((loss, "trial", number) for number in range(study.trials))
        yield from ((loss, "seed", number) for number in range(1, study.seeds + 1))


def piece_path(folder: Path, kind: str, piece: Piece) -> Path:
    """Where a training's numbers are kept."""
    return folder / kind.replace(":", "_") / "{}-{}-{}.json".format(*piece)


def run_kind(world: World, study: TransferStudy, kind: str, losses: Sequence[str]) -> None:
    """Every piece of one kind of data that is not there yet."""

    def make(piece: tuple[str, str, str, int]) -> dict[str, Any]:
        _, loss, what, number = piece
        if what == "trial":
            found = run_trial(world, study, kind, loss, number)
        else:
            trials = ((loss, "trial", i) for i in range(study.trials))
            best = best_trial([piece_path(world.folder, kind, trial) for trial in trials])
            found = run_seed(world, study, kind, loss, best["setting"], number)
        return {"kind": kind, "loss": loss, "what": what, "number": number} | found

    def what_came(found: dict[str, Any]) -> str:
        near = found if found["what"] == "trial" else found.get("matched", {})
        rate = near.get("validation", near.get("win_rate"))
        return "diverged" if rate is None else f"win rate {rate:.1f}  KL {near['kl']:.2f}"

    every = ((kind, *piece) for piece in pieces(study, losses))
    make_missing(every, lambda p: piece_path(world.folder, kind, p[1:]), make, what_came)


def prepare(out: Path, smoke: bool, reviews_file: str | None) -> tuple[World, TransferStudy]:
    """Reviews, classifiers, the LM: from the cache or made now; a smoke run has its own.

    Raises:
        UserError: a package is missing, or the folder holds a run with other settings.
    """
    study = SMOKE if smoke else TransferStudy()
    own = out / "models" if smoke or reviews_file else None
    parts = splits(load_reviews(reviews_file))
    judges = {role: classifier(role, parts, own) for role in ROLES}
    lm = lm_folder(TINY if smoke else LM, parts, own)
    shared = StudySettings(
        pairs=study.pairs,
        validation=study.validation,
        test=study.test,
        candidates=study.candidates,
        batch_size=study.batch_size,
        new_tokens=study.new_tokens,
    )
    world = World(shared, out, lm, judges, parts["prompts"], vader=False)
    card = json.loads((lm / "card.json").read_text("utf-8"))
    del card["seconds"]  # which it took to make it here
    grid = {loss: study.grid(loss) for loss in study.losses}
    about = {"settings": asdict(study), "grid": grid, "lm": card}
    keep_what_it_is(out, about)
    return world, study


def command(
    argv: Sequence[str] | None,
    about: str,
    out: str,
    prepare: Callable[[Path, bool, str | None], tuple[World, TransferStudy]],
) -> int:
    """A study of this kind as a command that runs what is missing; returns the exit code.

    Args:
        about: docstring whose first line says what the command is.
        out: folder of the run where none is given.
        prepare: from folder, ``--smoke`` and ``--reviews`` to the world and the study.
    """
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the run")
    parser.add_argument("--kind", choices=KINDS, help="this kind of data only, not all four")
    parser.add_argument(
        "--losses", help="these only, comma-separated: their pieces are those of the whole run"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny, in seconds, to see it work")
    parser.add_argument("--reviews", help="CSV of reviews, in place of the installed package's")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)

    def work() -> None:
        with quiet():
            world, study = prepare(args.out, args.smoke, args.reviews)
            losses = args.losses.split(",") if args.losses else study.losses
            if unknown := sorted(set(losses) - set(study.losses)):
                raise UserError(f"no such loss in this study: {', '.join(unknown)}")
            for seed in range(1, study.seeds + 1):
                path = args.out / f"baseline-{seed}.json"
                if not path.exists():
                    write_atomic(path, json.dumps(run_baseline(world, study, seed)) + "\n")
            if args.kind and args.kind not in study.kinds:
                raise UserError(f"this study has {', '.join(study.kinds)}, not {args.kind}")
            for kind in [args.kind] if args.kind else study.kinds:
                folder = args.out / kind.replace(":", "_")
                folder.mkdir(exist_ok=True)
                with alone_in(folder):
                    run_kind(world, study, kind, losses)

    return exit_code(work, lambda: "interrupted; the same command goes on")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing."""
    return command(argv, __doc__ or "", "runs/transfer_sentiment", prepare)


if __name__ == "__main__":
    sys.exit(main())
