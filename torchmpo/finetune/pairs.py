"""Preference pairs, from whatever a data set calls them.

=================================================  =================================================
columns                                            the pair
=================================================  =================================================
prompt, chosen, rejected: strings                  as they are, joined without a space
prompt, chosen, rejected: messages                 as they are; a prompt repeated in the answers is
                                                   taken off them
prompt: string; chosen, rejected: messages         an implicit prompt, if the answers share their
                                                   first messages; else the prompt is a user's
prompt: messages; chosen, rejected: strings        the answers are the assistant's
chosen, rejected: messages (dpo-mix-7k)            prompt: the messages that both begin with
chosen, rejected: strings (HH-RLHF)                prompt: the text that both begin with, up to the
                                                   last of ``TURNS`` in it
=================================================  =================================================

A message is ``{"role": …, "content": …}`` with text as content. Whatever follows the prompt is the
answer, and counts as such, all of it, where two conversations part before their last turn. Scores
are read from a pair of ``REWARDS``, and how likely the chosen answer is the better one from
``preference_prob``; other columns are ignored.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torchmpo.runs.errors import UserError, missing_package, nearest, one_line

# How an assistant's turn begins, in data sets whose conversations are plain text.
TURNS = (
    "\n\nAssistant:",
    "<|assistant|>\n",
    "<|im_start|>assistant\n",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<start_of_turn>model\n",
    "[/INST]",
)
# Columns of scores: chosen, rejected.
REWARDS = (
    ("chosen_reward", "rejected_reward"),
    ("chosen_rating", "rejected_rating"),
    ("chosen_score", "rejected_score"),
    ("score_chosen", "score_rejected"),
)
SUFFIXES = (".jsonl", ".json", ".parquet")
# Words in file names that say of which part of a data set a file is.
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")


class Message(NamedTuple):
    """One turn of a conversation; ``role`` is ``system``, ``user``, ``assistant``, …"""

    role: str
    content: str


Text = str | tuple[Message, ...]


@dataclass(frozen=True)
class Pair:
    """A prompt and two answers to it.

    Args:
        prompt, chosen, rejected: three strings, to be joined as they are; or three times messages,
            for a chat template.
        chosen_reward, rejected_reward: scores in any unit, or None.
        preference_prob: how likely the chosen answer is the better one, in [0, 1], or None.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    preference_prob: float | None = None


@dataclass(frozen=True)
class Counts:
    """What :func:`clean` dropped. A pair counts once, by the first that applies.

    >>> print(Counts(rows=10, identical=1, empty=0, duplicates=2))
    kept 7 of 10 pairs; dropped 1 with identical answers, 0 with an empty answer, 2 duplicates
    """

    rows: int
    identical: int
    empty: int
    duplicates: int

    @property
    def kept(self) -> int:
        """Pairs that are left."""
        return self.rows - self.identical - self.empty - self.duplicates

    def __str__(self) -> str:
        return (
            f"kept {self.kept:,} of {self.rows:,} pairs; dropped {self.identical:,} with identical "
            f"answers, {self.empty:,} with an empty answer, {self.duplicates:,} duplicates"
        )


def clean(pairs: Iterable[Pair]) -> tuple[list[Pair], Counts]:
    """Drop pairs that teach nothing.

    Identical answers, an answer of nothing but white space, and pairs whose three texts have
    occurred before, whatever their scores. The order of the others stays.

    >>> pairs = [Pair("1 + 1 =", " 2", " 3"), Pair("Hi", "", "no"), Pair("1 + 1 =", " 2", " 3")]
    >>> kept, counts = clean(pairs)
    >>> len(kept), counts.empty, counts.duplicates
    (1, 1, 1)
    """
    kept: dict[tuple[Text, Text, Text], Pair] = {}
    rows = identical = empty = duplicates = 0
    for pair in pairs:
        rows += 1
        texts = (pair.prompt, pair.chosen, pair.rejected)
        if pair.chosen == pair.rejected:
            identical += 1
        elif _blank(pair.chosen) or _blank(pair.rejected):
            empty += 1
        elif texts in kept:
            duplicates += 1
        else:
            kept[texts] = pair
    return list(kept.values()), Counts(rows, identical, empty, duplicates)


def load_pairs(source: Any, split: str = "train") -> list[Pair]:
    """Read preference pairs.

    Args:
        source: a ``.jsonl``, ``.json`` or ``.parquet`` file; a folder of them, read in the order of
            their paths; a hub id, for which alone the network is used; an iterable of dicts, such
            as a ``datasets.Dataset``; or a ``datasets.DatasetDict``.
        split: of a hub id, a ``DatasetDict``, or a folder whose files name their splits
            (``train-00000-of-00001.parquet``). A file, an iterable, and a folder whose files name
            none are read whole.

    Returns:
        One pair per row, in order, nothing dropped yet (see :func:`clean`).

    Raises:
        UserError: nothing there, a damaged file, an unknown split, a package that is missing, or a
            row that fits no format; the message names the row, the first of each file or iterable
            being 0, and its columns.

    >>> load_pairs([{"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}])[0].chosen
    ' 2'
    """
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if path.is_dir():
            return [pair for file in _files(path, split) for pair in _pairs(file, _rows(file))]
        if path.is_file():
            return _pairs(path, _rows(path))
        return _pairs(source, _from_hub(source, split))
    if isinstance(source, Mapping):  # a DatasetDict
        if split not in source:
            raise UserError(f"the data have no split {split!r}: {nearest(split, map(str, source))}")
        source = source[split]
    return _pairs("the data", source)


def pair_from_row(row: Mapping[str, Any]) -> Pair:
    """The pair that a row of a data set holds, by the table at the top of this file.

    Raises:
        UserError: it holds none; the message says why.

    >>> pair = pair_from_row({"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello",
    ...                       "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: Hey"})
    >>> pair.prompt, pair.chosen, pair.rejected
    ('\\n\\nHuman: Hi\\n\\nAssistant:', ' Hello', ' Hey')
    """
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    prompt = None if row.get("prompt") is None else _text(row, "prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            texts = _split_strings(chosen, rejected)
        elif isinstance(prompt, str):
            texts = (prompt, chosen, rejected)
        else:
            texts = (prompt, (Message("assistant", chosen),), (Message("assistant", rejected),))
    elif isinstance(chosen, tuple) and isinstance(rejected, tuple):
        texts = _split_messages(prompt, chosen, rejected)
    else:
        raise UserError("of chosen and rejected, one is text and the other a list of messages")
    for name, answer in zip(("chosen", "rejected"), texts[1:]):
        if isinstance(answer, tuple) and (not answer or answer[0].role != "assistant"):
            role = f"begins with a message of role {answer[0].role!r}" if answer else "is empty"
            raise UserError(f"after the prompt, {name} {role}, not with the assistant's answer")
    return Pair(*texts, *_rewards(row), _probability(row))


# Formats


def _text(row: Mapping[str, Any], name: str) -> Text:
    if name not in row:
        raise UserError(f"there is no column {name!r}")
    value = row[name]
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(m, Mapping) for m in value):
        return tuple(_message(message, name) for message in value)
    raise UserError(f"{name} is neither text nor a list of messages")


def _message(message: Mapping[str, Any], name: str) -> Message:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise UserError(f"{name} has a message without a role and text as its content")
    return Message(role, content)


def _split_strings(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The prompt ends where a turn does: answers may well begin with the same words."""
    common = next(
        (i for i, (c, r) in enumerate(zip(chosen, rejected)) if c != r),
        min(len(chosen), len(rejected)),
    )
    end = max(i + len(turn) if (i := chosen.rfind(turn, 0, common)) >= 0 else 0 for turn in TURNS)
    if end == 0:
        raise UserError(
            "chosen and rejected are text without a column 'prompt', and share no turn such as "
            f"{TURNS[0]!r} at which a prompt would end"
        )
    return chosen[:end], chosen[end:], rejected[end:]


def _split_messages(
    prompt: Text | None, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[Text, Text, Text]:
    if isinstance(prompt, tuple) and prompt:
        size = len(prompt)
        if prompt == chosen[:size] == rejected[:size]:
            return prompt, chosen[size:], rejected[size:]
        return prompt, chosen, rejected
    size = 0
    # Something is left to each side, even if they are the same throughout.
    while size < min(len(chosen), len(rejected)) - 1 and chosen[size] == rejected[size]:
        size += 1
    if size:
        return chosen[:size], chosen[size:], rejected[size:]
    if not isinstance(prompt, str):
        raise UserError("chosen and rejected share no first message that could be the prompt")
    return (Message("user", prompt),), chosen, rejected


def _rewards(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    for names in REWARDS:
        if all(name in row for name in names):
            chosen, rejected = (_number(row, name) for name in names)
            if chosen is not None and rejected is not None:
                return chosen, rejected
    return None, None


def _probability(row: Mapping[str, Any]) -> float | None:
    value = _number(row, "preference_prob")
    if value is not None and not 0 <= value <= 1:
        raise UserError(f"preference_prob must be in [0, 1]; got {value}")
    return value


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{name} is not a number")
    return None if math.isnan(value) else float(value)


def _blank(text: Text) -> bool:
    return not (text if isinstance(text, str) else "".join(m.content for m in text)).strip()


# Sources


def _pairs(source: Any, rows: Iterable[Any]) -> list[Pair]:
    pairs = []
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(f"{source}, row {i}: not an object with columns")
        try:
            pairs.append(pair_from_row(row))
        except UserError as error:
            columns = ", ".join(map(str, row)) or "none"
            raise UserError(f"{source}, row {i}: {error}; its columns: {columns}") from error
    return pairs


def _files(folder: Path, split: str) -> list[Path]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise UserError(f"{folder} holds no {', '.join(SUFFIXES)}")
    # A folder per split is as common as a file per split.
    named = {
        file: {*re.split(r"[^a-z]+", str(file.relative_to(folder).with_suffix("")).lower())}
        for file in files
    }
    found = sorted({word for words in named.values() for word in words if word in SPLITS})
    chosen = [file for file in files if split.lower() in named[file]]
    if found and not chosen:
        raise UserError(f"{folder} has no file for split {split!r}: {nearest(split, found)}")
    return chosen or files


def _rows(path: Path) -> list[Any]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    if suffix not in SUFFIXES:
        raise UserError(f"{path} is none of {', '.join(SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from error
    # Many a .json holds one object per line, too.
    if suffix == ".json" and text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON: {error}") from error
    rows = []
    # Not splitlines(): JSON may hold U+2028 as it is.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not valid JSON: {error}") from error
    return rows


def _parquet(path: Path) -> list[Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise missing_package(error, "llm") from error
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable parquet file: {one_line(error)}") from error


def _from_hub(source: str | Path, split: str) -> Iterable[Any]:
    name = str(source)
    # What looks like a path is one that is not there.
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or name.lower().endswith(SUFFIXES):
        raise UserError(f"there is no file or folder {name}")
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise missing_package(error, "llm") from error
    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = one_line(error)
        raise UserError(
            f"{name} is no file or folder here, and cannot be loaded from the hub: {reason}"
        ) from error
