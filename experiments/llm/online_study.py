"""Does a loss gain from pairs of its own answers, at equal labels, on sentiment of film reviews?

    python -m experiments.llm.online_study             (goes on where it was stopped)
    python -m experiments.llm.online_study --arms offline_ipo,rounds4_ipo         (only these two)
    python -m experiments.llm.online_study --smoke     (all of it in seconds, with a random LM)
    python -m experiments.llm.online_study --report    (only the numbers, of what is there)

The language model, the prompts, the annotator who labels and the judge who compares are those of
``sentiment_study.py``. Every arm makes 1,024 pairs of two plain samples each, has every pair
labelled once by the annotator, and takes 32 steps of 32 pairs, with DPO unless said otherwise; what
differs is whose answers they are:

offline           all of the untuned model
rounds4           a quarter each of the model as it is after 0, 8, 16 and 24 steps
rounds4_refresh   the same; in each round the reference is the model that it began with
rounds16          a sixteenth each of the model as it is after 0, 2, 4, … steps
offline_ipo, rounds4_ipo, offline_cpo, rounds4_cpo
                  as offline and rounds4, with IPO or CPO in the place of DPO

All are ``python -m torchmpo.finetune online``, with 1, 4 or 16 rounds. Each arm has the
same learning rates to choose from, by the annotator on prompts of its own, and is trained again
with fresh seeds; and once more, with the same seeds, at the rate that the offline arm of its loss
has chosen. Arms are paired: a seed has the same prompts and draws in all of them.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from experiments.llm.pieces import keep_what_it_is, make_missing, read_json
from experiments.llm.reviews import load_reviews, splits
from experiments.llm.sampling import answer_kl, sample
from experiments.llm.sentiment import ROLES, bradley_terry, classifier
from experiments.llm.sentiment_report import interval_text, summary
from experiments.llm.sentiment_study import (
    StudySettings,
    World,
    best_trial,
    compare,
    distinct,
    quiet,
    validate,
    what_came,
)
from experiments.llm.small_lm import TINY, LmSettings, lm_folder
from torchmpo.finetune.loading import load_model
from torchmpo.finetune.online import train_online
from torchmpo.runs.errors import Diverged, UserError, exit_code, nearest
from torchmpo.runs.files import alone_in, write_atomic
from torchmpo.runs.seeding import derive_seed

# Rounds, and after how many of them the reference is a new one.
ARMS: dict[str, tuple[int, int | None]] = {
    "offline": (1, None),
    "rounds4": (4, None),
    "rounds4_refresh": (4, 1),
    "rounds16": (16, None),
    "offline_ipo": (1, None),
    "rounds4_ipo": (4, None),
    "offline_cpo": (1, None),
    "rounds4_cpo": (4, None),
}


def loss_of(arm: str) -> str:
    """What an arm trains with.

    >>> loss_of("rounds4_refresh"), loss_of("rounds4_ipo")
    ('dpo', 'ipo')
    """
    last = arm.rpartition("_")[2]
    return last if last in ("ipo", "cpo") else "dpo"


def offline_of(arm: str) -> str:
    """The arm that it is compared with.

    >>> offline_of("rounds4_refresh"), offline_of("rounds4_ipo")
    ('offline', 'offline_ipo')
    """
    return "offline" if loss_of(arm) == "dpo" else f"offline_{loss_of(arm)}"


@dataclass(frozen=True)
class OnlineStudy:
    """Everything the results follow from, beside the reviews and the LM.

    Args:
        arms: of ``ARMS``.
        rates: learning rates that an arm chooses from; constant in a training.
        beta: of the loss.
        seeds: fresh ones; tuning has seed 0.
        pairs: of a training; a multiple of the batch and of every number of rounds.
        batch_size: pairs of a step.
        validation, test: prompts.
        new_tokens: most tokens of an answer.
    """

    arms: tuple[str, ...] = tuple(ARMS)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    beta: float = 0.1
    seeds: int = 6
    pairs: int = 1024
    batch_size: int = 32
    validation: int = 200
    test: int = 805
    new_tokens: int = 40


SMOKE = OnlineStudy(
    arms=("offline", "rounds4"),
    rates=(1e-3,),
    seeds=1,
    pairs=16,
    batch_size=4,
    validation=6,
    test=12,
    new_tokens=8,
)
Piece = tuple[str, str, int]  # arm; trial, or seed at its own rate or its offline's; and which


def pieces(settings: OnlineStudy) -> Iterator[Piece]:
    """All trainings; an arm's trials come before its seeds."""
    for arm in settings.arms:
        yield from ((arm, "trial", number) for number in range(len(settings.rates)))
        for what in ("seed",) if arm == offline_of(arm) else ("seed", "same_rate"):
            yield from ((arm, what, number) for number in range(1, settings.seeds + 1))


def piece_path(folder: Path, piece: Piece) -> Path:
    """Where a training's numbers are kept."""
    return folder / "pieces" / "{}-{}-{}.json".format(*piece)


def trained(world: World, settings: OnlineStudy, lm: Path, arm: str, rate: float, seed: int) -> Any:
    """The LM after one training, and the rounds' numbers."""
    rounds, refresh = ARMS[arm]
    out = world.folder / "work"
    prompts = world.folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in world.prompts["train"]]
    write_atomic(prompts, "".join(lines))

    def annotator(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Any:
        sides = (
            world.annotator.logits([p + text for p, text in zip(prompts, side, strict=True)])
            for side in (first, second)
        )
        return bradley_terry(*sides).tolist()

    annotator.symmetric = True
    given = {
        "seed_everything": seed,
        "model": {
            "model": str(lm),
            "dtype": "float32",
            "loss": loss_of(arm),
            "loss_args": {"beta": settings.beta},
            "lr": rate,
        },
        "data": {"batch_size": settings.batch_size, "max_length": 128},
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "devices": 1,
            "gradient_clip_val": 1.0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "online": {
            "rounds": rounds,
            "pairs": settings.pairs // rounds,
            "prompts": str(prompts),
            "reference_refresh": refresh,
            "max_new_tokens": settings.new_tokens,
            "batch_size": 512,
        },
    }
    shutil.rmtree(out, ignore_errors=True)
    with redirect_stdout(StringIO()):
        folder = train_online(given, judge=annotator, out=out)
    table = [read_json(path) for path in sorted(out.glob("rounds/*/metrics.json"))]
    logs = out.glob("rounds/*/fit/log/version_0/metrics.csv")
    numbers = {
        "labels": sum(row["labels"] for row in table),
        "pairs": sum(row["pairs"] for row in table),
        "steps": sum(len(path.read_text().splitlines()) - 1 for path in logs),
    }
    model = load_model(folder, dtype="float32").eval()
    shutil.rmtree(out)
    return model, numbers


def run_trial(world: World, settings: OnlineStudy, lm: Path, arm: str, rate: float) -> Any:
    """Train once, and ask the annotator."""
    try:
        model, numbers = trained(world, settings, lm, arm, rate, 0)
    except Diverged as error:
        return {"validation": None, "error": str(error)}
    return {"validation": validate(world, model), "training": numbers}


def run_seed(
    world: World, settings: OnlineStudy, lm: Path, arm: str, rate: float, seed: int
) -> Any:
    """Train with a fresh seed, and ask the judge."""
    prompts = world.prompts["test"]
    try:
        model, numbers = trained(world, settings, lm, arm, rate, seed)
    except Diverged as error:
        return {"error": str(error)}
    answers = sample(
        model, world.tokenizer, prompts, derive_seed(seed, "test"), settings.new_tokens
    )
    texts = [answer.text for answer in answers]
    found = compare(world, seed, texts)
    return {
        "training": numbers,
        "preferences": [round(p, 4) for p in found["preferences"]],
        "annotator": round(found["annotator"], 3),
        "lc_win_rate": round(found["lc_win_rate"], 3),
        "kl": float(answer_kl(model, world.lm, answers).double().mean()),
        "ended": sum(answer.ended for answer in answers) / len(answers),
        "distinct": distinct(texts),
        "samples": [[p, text] for p, text in zip(prompts[:3], texts[:3], strict=True)],
    }


def run_study(world: World, settings: OnlineStudy, lm: Path) -> None:
    """Every piece that is not there yet."""

    def make(piece: Piece) -> dict[str, Any]:
        arm, what, number = piece
        if what == "trial":
            rate = settings.rates[number]
            found = run_trial(world, settings, lm, arm, rate)
        else:
            tuned = arm if what == "seed" else offline_of(arm)
            trials = ((tuned, "trial", i) for i in range(len(settings.rates)))
            rate = best_trial([piece_path(world.folder, trial) for trial in trials])["rate"]
            found = run_seed(world, settings, lm, arm, rate, number)
        return {"arm": arm, "what": what, "number": number, "rate": rate} | found

    def words(found: dict[str, Any]) -> str:
        return what_came(found | {"setting": {"lr": found["rate"], "loss_args": {}}})

    make_missing(pieces(settings), partial(piece_path, world.folder), make, words)


def write_results(folder: Path) -> str:
    """Write ``results.json``; a table for the terminal.

    An arm counts when all its seeds are there. One that diverged loses every comparison.

    Raises:
        UserError: no arm has all its seeds.
    """
    settings = read_json(folder / "study.json")["settings"]
    numbers = range(1, settings["seeds"] + 1)
    wins: dict[str, np.ndarray] = {}
    rows: dict[str, dict[str, Any]] = {}
    for arm, what in product(ARMS, ("seed", "same_rate")):
        paths = [piece_path(folder, (arm, what, number)) for number in numbers]
        if not all(path.exists() for path in paths):
            continue
        name = arm if what == "seed" else f"{arm} at {offline_of(arm)}'s rate"
        found = [read_json(path) for path in paths]
        rows[name], wins[name] = _row(found, settings["test"])
    if not rows:
        raise UserError(f"no arm in {folder} has all its seeds yet")
    against = {name: offline_of(name.partition(" ")[0]) for name in rows}
    differences = {
        f"{name} - {offline}": {
            "win_rate": summary(wins[name] - wins[offline]),
            "kl": float(np.mean(rows[name]["kl"]) - np.mean(rows[offline]["kl"])),
        }
        for name, offline in against.items()
        if name != offline and offline in rows
    }
    results = {"arms": rows, "differences": differences}
    write_atomic(folder / "results.json", json.dumps(results, indent=1) + "\n")
    lines = ["| | learning rate | win rate | seeds | KL | end | pairs of words |", "|---" * 7 + "|"]
    for name, row in rows.items():
        means = (float(np.mean(row[column])) for column in ("kl", "ended", "distinct"))
        kl, ended, different = means
        shown = ", ".join(f"{x:.1f}" for x in row["seeds"])
        lines.append(
            f"| {name} | {row['rate']:g} | {interval_text(row['win_rate'])} | {shown} | {kl:.1f} | "
            f"{100 * ended:.0f} % | {different:.2f} |"
        )
    lines += [
        f"{name}: {interval_text(found['win_rate'])}, KL {found['kl']:+.1f}"
        for name, found in differences.items()
    ]
    return "\n".join(lines).replace(" - ", " − ")


def _row(found: Sequence[Any], prompts: int) -> tuple[dict[str, Any], np.ndarray]:
    """What the seeds of an arm came to, and its wins in percent, ``[seeds, prompts]``."""
    wins = 100 * np.array([piece.get("preferences", [0.0] * prompts) for piece in found])
    done = [piece for piece in found if "error" not in piece]
    names = ("annotator", "lc_win_rate", "kl", "ended", "distinct")
    row = {
        "rate": found[0]["rate"],
        "diverged": len(found) - len(done),
        "win_rate": summary(wins, 100.0),
        "seeds": [round(float(x), 2) for x in wins.mean(1)],
        **{name: [round(piece[name], 4) for piece in done] for name in names},
        "training": [piece["training"] for piece in done],
    }
    return row, wins


def chosen_arms(words: str | None, smoke: bool) -> OnlineStudy:
    """The study of these arms, by commas; of all of them by default, or of those of a smoke run.

    Raises:
        UserError: there is no such arm, or one without the offline arm that it is compared with.
    """
    settings = SMOKE if smoke else OnlineStudy()
    if words is None:
        return settings
    arms = [word.strip() for word in words.split(",")]
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise UserError(f"unknown arm {unknown[0]!r}: {nearest(unknown[0], ARMS)}")
    if alone := [arm for arm in arms if offline_of(arm) not in arms]:
        raise UserError(f"{alone[0]} is compared with {offline_of(alone[0])}: name that arm, too")
    return replace(settings, arms=tuple(arm for arm in ARMS if arm in arms))


def prepare(
    out: Path, smoke: bool, reviews_file: str | None, settings: OnlineStudy
) -> tuple[World, Path]:
    """Reviews, classifiers, the LM: from the cache or made now; a smoke run has its own.

    Raises:
        UserError: a package is missing, or the folder holds a run with other settings.
    """
    own = out / "models" if smoke or reviews_file else None
    parts = splits(load_reviews(reviews_file))
    judges = {role: classifier(role, parts, own) for role in ROLES}
    lm = lm_folder(TINY if smoke else LmSettings(), parts, own)
    of_world = StudySettings(
        pairs=settings.pairs,
        validation=settings.validation,
        test=settings.test,
        candidates=0,
        new_tokens=settings.new_tokens,
    )
    world = World(of_world, out, lm, judges, parts["prompts"], vader=False)
    card = read_json(lm / "card.json")
    del card["seconds"]  # which it took to make it here
    card.pop("validation_losses", None)  # which older models do not have
    # Without the arms: a folder may get more of them.
    numbers = {name: value for name, value in asdict(settings).items() if name != "arms"}
    keep_what_it_is(out, {"settings": numbers, "lm": card})
    (out / "pieces").mkdir(exist_ok=True)
    return world, lm


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/online_sentiment"), help="folder of the run"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny, in seconds, to see it work")
    parser.add_argument("--arms", help="some of them, by commas; all by default")
    parser.add_argument("--reviews", help="CSV of reviews, in place of the installed package's")
    parser.add_argument("--report", action="store_true", help="only write the numbers again")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()

    def work() -> None:
        with quiet():
            if not args.report:
                settings = chosen_arms(args.arms, args.smoke)
                world, lm = prepare(args.out, args.smoke, args.reviews, settings)
                with alone_in(args.out):
                    run_study(world, settings, lm)
            print(write_results(args.out))

    return exit_code(work, lambda: "interrupted; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
