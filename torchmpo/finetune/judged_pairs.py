"""Pairs of a model's own answers to prompts, as a judge sees them.

Every prompt gets n answers, drawn independently. Those that are empty or occur twice are left out;
of the others the judge's best is the chosen one, and its worst the rejected one. A prompt without a
pair, because its answers are the same or equally good, makes room for the next.

Prompts come in an order drawn at random, and in another one when all were asked. What is drawn
follows from (seed, place in that order), so pairs do not depend on where the work was interrupted.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import NonNegativeInt
from typing_extensions import TypedDict

from torchmpo.finetune.answers import Answer
from torchmpo.finetune.pairs import Message
from torchmpo.finetune.sources import read_tables
from torchmpo.finetune.tokenize import encode_prompt
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import write_atomic
from torchmpo.runs.json_files import read_json
from torchmpo.runs.seeding import generator
from torchmpo.winrate.judges import Judge, ScoreJudge

Row = dict[str, Any]
Writer = Callable[[Sequence[Sequence[int]], Sequence[int]], list[Answer]]


class Judged(TypedDict):
    """What a round has of its pairs: a file, so that no answer is judged twice.

    ``stop`` is the place of the first prompt not asked, ``labels`` counts the judge's comparisons,
    n (n − 1) / 2 for n answers; ``cut`` the answers that were too long, ``answers`` all of them.
    """

    stop: NonNegativeInt
    labels: NonNegativeInt
    answers: NonNegativeInt
    cut: NonNegativeInt
    pairs: list[dict[str, Any]]


class Verdict(NamedTuple):
    """The best and the worst of some answers, by their places.

    ``probability`` is the judge's that the best is better than the worst; ``rewards`` are of the
    two, where the judge scores answers; ``tied`` says that none stands out.
    """

    best: int
    worst: int
    probability: float
    rewards: tuple[float, float] | None
    tied: bool


def read_prompt_texts(source: str, column: str = "prompt") -> list[str]:
    """The prompts of a file or data set.

    Args:
        source: see :mod:`torchmpo.finetune.sources`.
        column: with the prompt; without such a one, ``instruction``.

    Raises:
        UserError: nothing there, or a row without a prompt that is text.
    """
    prompts = []
    for table in read_tables(source):
        for number, row in enumerate(table.rows, table.start):
            found = [row.get(name) for name in (column, "instruction")] if row else [None]
            text = next((value for value in found if value is not None), None)
            if not isinstance(text, str) or not text.strip():
                raise UserError(
                    f"{table.name}, row {number}: a row of prompts has a text as its "
                    f"{column!r} or 'instruction'"
                )
            prompts.append(text)
    if not prompts:
        raise UserError(f"{source} has no prompts")
    return prompts


def stream(prompts: int, start: int, seed: int) -> Iterator[tuple[int, int]]:
    """Places from ``start`` on, each with the number of its prompt.

    All prompts come before one comes again.

    >>> places = stream(3, 0, seed=0)
    >>> first = [next(places)[1] for _ in range(3)]
    >>> sorted(first)
    [0, 1, 2]
    >>> [number for _, number in zip(range(2), stream(3, 1, seed=0))] == [
    ...     (1, first[1]), (2, first[2])]
    True
    """
    place = start
    while True:
        order = torch.randperm(prompts, generator=generator(seed, "prompts", place // prompts))
        for number in order[place % prompts :].tolist():
            yield place, number
            place += 1


def encoded_prompts(
    prompts: Sequence[str], tokenizer: Any, *, chat: bool, variables: Any
) -> list[list[int]]:
    """Token ids after which an answer is drawn.

    Raises:
        UserError: chat without a template, or text that is no Unicode.
    """
    texts: list[Any] = [(Message("user", p),) for p in prompts] if chat else list(prompts)
    return [encode_prompt(text, tokenizer, variables) for text in texts]


def judged_pairs(
    path: Path,
    writer: Writer,
    judge: Judge,
    prompts: Sequence[str],
    encoded: Sequence[Sequence[int]],
    *,
    chat: bool,
    pairs: int,
    answers: int,
    start: int,
    batch_size: int,
    seed: int,
    told: Callable[[Judged], None] = lambda judged: None,
) -> Judged:
    """Make pairs, or those that a file lacks.

    Args:
        path: where they are kept while they are made; what is there is gone on with.
        writer: of the answers, as :class:`torchmpo.finetune.answers.AnswerWriter` is called.
        judge: see :mod:`torchmpo.winrate.judges`.
        prompts, encoded: texts, and what the model reads of them.
        chat: whether pairs are messages.
        pairs: how many are wanted.
        answers: to a prompt.
        start: place of the first prompt, see :func:`stream`.
        batch_size: answers at a time.
        seed: of the order of prompts; the writer has its own for answers.
        told: called after every batch.

    Raises:
        UserError: the judge fails, or no prompt of all gives a pair.
    """
    found: Judged = {"stop": start, "labels": 0, "answers": 0, "cut": 0, "pairs": []}
    if path.exists():
        found = read_json(path, Judged)
    last = found["stop"]  # the place after that of the last pair, or where this began
    while len(found["pairs"]) < pairs:
        size = min(max(1, batch_size // answers), pairs - len(found["pairs"]))
        batch = [place for place, _ in zip(stream(len(prompts), found["stop"], seed), range(size))]
        drawn = _drawn(writer, [encoded[number] for _, number in batch], batch, answers)
        texts = [list(dict.fromkeys(a.text for a in row if a.text.strip())) for row in drawn]
        asked = [i for i, row in enumerate(texts) if len(row) > 1]
        questions = [prompts[batch[i][1]] for i in asked]
        verdicts = judged(judge, questions, [texts[i] for i in asked])
        for question, i, verdict in zip(questions, asked, verdicts, strict=True):
            found["labels"] += math.comb(len(texts[i]), 2)
            if not verdict.tied:
                found["pairs"].append(_row(question, texts[i], verdict, chat))
                last = batch[i][0] + 1
        found["answers"] += answers * size
        found["cut"] += sum(a.finish_reason == "length" for row in drawn for a in row)
        found["stop"] += size
        write_atomic(path, json.dumps(found, ensure_ascii=False) + "\n")
        told(found)
        if found["stop"] - last >= len(prompts) and len(found["pairs"]) < pairs:
            raise UserError(
                f"{len(prompts)} prompts in a row gave no pair: their answers are empty, the same, "
                "or equally good to the judge; raise online.temperature or online.max_new_tokens, "
                "or give other prompts"
            )
    return found


def judged(judge: Judge, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[Verdict]:
    """The best and the worst answer to each prompt.

    A judge that scores ranks them by its scores. Any other compares all answers to a prompt with
    each other, and ranks them by the sum of the probabilities that they are better; where it cannot
    tell, that is 1/2.

    Args:
        judge: see :mod:`torchmpo.winrate.judges`.
        prompts: any number.
        answers: to each, at least two.

    Raises:
        UserError: the judge fails.
    """
    if not prompts:
        return []
    if isinstance(judge, ScoreJudge):
        flat = [(p, a) for p, row in zip(prompts, answers, strict=True) for a in row]
        scores = iter(judge.scores([p for p, _ in flat], [a for _, a in flat]))
        return [_by_scores([next(scores) for _ in row]) for row in answers]
    games = [
        (prompt, row[i], row[j])
        for prompt, row in zip(prompts, answers, strict=True)
        for i, j in combinations(range(len(row)), 2)
    ]
    given = iter(judge(*(list(side) for side in zip(*games, strict=True))))
    verdicts = []
    for row in answers:
        better = [[0.5] * len(row) for _ in row]  # better[i][j]: that i is better than j
        for i, j in combinations(range(len(row)), 2):
            p = float(next(given))
            better[j][i] = 0.5 if math.isnan(p) else p
            better[i][j] = 1 - better[j][i]
        sums = [math.fsum(side) for side in better]
        best, worst = sums.index(max(sums)), sums.index(min(sums))
        tied = sums[best] == sums[worst]
        verdicts.append(Verdict(best, worst, better[best][worst], None, tied))
    return verdicts


def _by_scores(scores: Sequence[float]) -> Verdict:
    high, low = max(scores), min(scores)
    probability = 1 / (1 + math.exp(min(low - high, 0.0)))
    return Verdict(scores.index(high), scores.index(low), probability, (high, low), high == low)


def _drawn(
    writer: Writer,
    encoded: Sequence[Sequence[int]],
    batch: Sequence[tuple[int, int]],
    answers: int,
) -> list[list[Answer]]:
    """So many answers to each prompt of a batch."""
    prompts = [ids for ids in encoded for _ in range(answers)]
    rows = [place * answers + i for place, _ in batch for i in range(answers)]
    try:
        flat = writer(prompts, rows)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{len(rows)} answers at a time do not fit into memory: use a smaller online.batch_size"
        ) from error
    return [flat[i : i + answers] for i in range(0, len(flat), answers)]


def _row(prompt: str, answers: Sequence[str], verdict: Verdict, chat: bool) -> Row:
    """A pair as a row of a data set."""

    def turn(role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if chat else text

    row = {
        "prompt": turn("user", prompt),
        "chosen": turn("assistant", answers[verdict.best]),
        "rejected": turn("assistant", answers[verdict.worst]),
        "preference_prob": verdict.probability,
    }
    if verdict.rewards is not None:
        row["chosen_reward"], row["rejected_reward"] = verdict.rewards
    return row
