"""Ranked answers to one prompt, and golden ones, from whatever a data set calls them.

===============================================  =================================================
columns                                          the answers
===============================================  =================================================
responses, ranks                                 1 is the best
responses, scores                                the highest is the best
answers: objects with answer, rank               the same (Nectar)
completions: objects with response,              the same (UltraFeedback)
overall_score
===============================================  =================================================

Equal ranks or scores stay in the order of the row. A golden answer is the column ``reference``
beside a pair, as in TRL's data for TPO.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from torchmpo.runs.errors import UserError

if TYPE_CHECKING:
    from torchmpo.finetune.pairs import Pair

LARGEST = 3e38  # batches hold scores in 32 bits

# A column of objects, and in each the answer and what ranks it.
OBJECTS = (
    ("answers", "answer", "rank", "ranks"),
    ("completions", "response", "overall_score", "scores"),
)
NAMES = ("responses", "ranks", "scores", "answers", "completions")  # may be JSON in a table's cells


class RankedAnswers(NamedTuple):
    """Answers as a row has them, best first.

    Args:
        answers: at least two.
        scores: of them, where the row has scores.
        tied: whether the best and the worst have the same rank or score.
    """

    answers: list[Any]
    scores: list[float] | None
    tied: bool


def ranked_answers(row: Mapping[str, Any]) -> RankedAnswers | None:
    """The ranked answers of a row; None if it has none.

    Raises:
        UserError: fewer than two answers, or ranks or scores that do not belong to them.

    >>> ranked_answers({"responses": [" 3", " 2"], "scores": [0.1, 0.9]}).answers
    [' 2', ' 3']
    """
    found: dict[str, Any] = dict(row)
    for column, text, order, name in OBJECTS:
        items = found.get(column)
        if not isinstance(items, (list, tuple)) or not items:
            continue
        if all(isinstance(item, Mapping) and {text, order} <= item.keys() for item in items):
            found["responses"] = [item[text] for item in items]
            found[name] = [item[order] for item in items]
    answers = found.get("responses")
    if answers is None:
        return None
    if isinstance(answers, str) or not isinstance(answers, Sequence) or len(answers) < 2:
        raise UserError("responses is not a list of two or more answers")
    by = "ranks" if found.get("ranks") is not None else "scores"
    values = found.get(by)
    if values is None:
        raise UserError("beside responses there must be their ranks (1 is the best) or scores")
    known = isinstance(values, Sequence) and len(values) == len(answers)
    if not known or not all(_is_number(value) for value in values):
        raise UserError(f"{by} is not a list of {len(answers)} numbers, one for each response")
    sign = 1 if by == "ranks" else -1
    order = sorted(range(len(answers)), key=lambda place: sign * values[place])
    ranked = [float(values[place]) for place in order]
    scores = ranked if by == "scores" else None
    return RankedAnswers([answers[place] for place in order], scores, ranked[0] == ranked[-1])


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= LARGEST


PairOf = Callable[[Mapping[str, Any]], "Pair"]


def pair_of_list(row: Mapping[str, Any], found: RankedAnswers, pair_of: PairOf) -> "Pair":
    """A ranked list: the best answer is the chosen one, the worst the rejected one.

    Args:
        row: whose other columns have the prompt and what goes with it.
        found: its answers.
        pair_of: makes a pair of a row with the columns ``chosen`` and ``rejected``.

    Raises:
        UserError: as ``pair_of`` does, or there is no prompt that all answers share.
    """
    rest = {name: value for name, value in row.items() if name not in NAMES}
    best, *others = found.answers
    pairs = [pair_of({**rest, "chosen": best, "rejected": other}) for other in others]
    first, last = pairs[0], pairs[-1]
    if any((pair.prompt, pair.chosen) != (first.prompt, first.chosen) for pair in pairs):
        raise UserError("the responses share no prompt: give a column prompt")
    scores = (None, None) if found.scores is None else (found.scores[0], found.scores[-1])
    return replace(
        last,
        between=tuple(pair.rejected for pair in pairs[:-1]),
        chosen_reward=scores[0],
        rejected_reward=scores[1],
        tied=found.tied,
    )


def with_gold(pair: "Pair", row: Mapping[str, Any], pair_of: PairOf) -> "Pair":
    """The pair with the golden answer of its row, if that has one.

    Raises:
        UserError: the column holds something else, or messages where the pair is text.
    """
    value = row.get("reference")
    if not isinstance(value, (str, Mapping, Sequence)) or not value:
        return pair
    if isinstance(pair.prompt, str) and isinstance(value, str):
        # Without a column of its own, the prompt is what all answers begin with.
        whole = row.get("prompt") is None
        return replace(pair, gold=value.removeprefix(pair.prompt) if whole else value)
    said = isinstance(value, (str, Mapping)) or all(isinstance(m, Mapping) for m in value)
    if not said or isinstance(pair.prompt, str):
        raise UserError(
            "reference is no answer as chosen is, text or messages: if it is none, leave it out "
            "(columns: {reference: null})"
        )
    answer = [{"role": "assistant", "content": value}] if isinstance(value, str) else value
    prompt = [message.as_dict() for message in pair.prompt]
    both = pair_of({"prompt": prompt, "chosen": answer, "rejected": answer})
    return replace(pair, gold=both.chosen)


def answers_read(pairs: Iterable["Pair"], inputs: Iterable[str]) -> list["Pair"]:
    """The pairs without the answers that a loss with these inputs does not read."""
    inputs = list(inputs)
    gold = any("gold_" in name for name in inputs)
    if gold or any("list_" in name for name in inputs):
        return [pair if gold else replace(pair, gold=None) for pair in pairs]
    return [
        replace(pair, between=(), gold=None) if pair.between or pair.gold else pair
        for pair in pairs
    ]


def check_lengths(pairs: Iterable["Pair"], name: str) -> None:
    """Refuse lists of several lengths, and golden answers of some pairs only.

    Raises:
        UserError: how many answers there are.
    """
    sizes = sorted({len(pair.answers) for pair in pairs})
    if len(sizes) > 1:
        raise UserError(
            f"{name} has prompts with {' and '.join(map(str, sizes))} answers that the loss reads: "
            "give all of them equally many"
        )
