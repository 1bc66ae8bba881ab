"""Preference pairs, from whatever a data set calls them.

=================================================  =================================================
columns                                            the pair
=================================================  =================================================
prompt, chosen, rejected: strings                  as they are, joined without a space
prompt, chosen, rejected: messages                 as they are; a prompt repeated in the answers is
                                                   taken off them
prompt: string; chosen, rejected: messages         the messages that both begin with; the prompt is
                                                   a user's if it is not among them
prompt: messages; chosen, rejected: strings        the answers are the assistant's
chosen, rejected: messages (dpo-mix-7k)            prompt: the messages that both begin with
chosen, rejected: strings (HH-RLHF)                prompt: the text that both begin with, up to the
                                                   last of ``TURNS`` in it
question or instruction (and input): strings;      the question is a user's, the answers are the
chosen, rejected                                   assistant's
conversations: messages; chosen, rejected          the conversation is the prompt
prompt, completion, label                          one answer, desirable where ``label`` is true;
                                                   texts or messages as above (TRL's KTO)
prompt, responses, ranks or scores                 a ranked list, see
                                                   :mod:`torchmpo.finetune.ranked_answers`
… and reference                                    a third, golden answer (TRL's TPO)
… and system: string                               begins the conversation, unless it has a system
                                                   message; prompt and answers become messages
=================================================  =================================================

A message is ``{"role": …, "content": …}`` or ``{"from": …, "value": …}``. Its content is text,
null or a list of parts. Whatever else it has (``tool_calls``, ``reasoning_content``, …) goes to the
chat template with it, and so do a row's ``tools``, ``documents`` and ``chat_template_kwargs``. One
message stands for a list of one. Whatever follows the prompt is the answer, and counts as such, all
of it, where two conversations part before their last turn.

Scores are read from a pair of ``REWARDS``, and how likely the chosen answer is the better one from
``preference_prob``; other columns are ignored.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from torchmpo.finetune.dropped import Counts
from torchmpo.finetune.ranked_answers import NAMES, pair_of_list, ranked_answers, with_gold
from torchmpo.finetune.sources import Table, read_tables
from torchmpo.runs.errors import UserError, nearest

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
# Columns that may have another name in the data.
COLUMNS = (
    *("prompt", "chosen", "rejected", "system", "tools", "documents", "chat_template_kwargs"),
    *("chosen_reward", "rejected_reward", "preference_prob", "completion", "label"),
    *("responses", "ranks", "scores", "reference"),
)
# Who speaks, in conversations of {"from": …, "value": …}.
SPEAKERS = {
    **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"},
    **{"model": "assistant", "system": "system", "tool": "tool", "observation": "tool"},
}
# Roles of messages that stand before the first turn.
OPENING = ("system", "developer")
# Parts of a message that say something, beside its content.
CALLS = ("tool_calls", "function_call")
SAYINGS = (*CALLS, "reasoning_content", "reasoning", "thinking")
# How messages begin that stand in a file as text.
MESSAGES = re.compile(r"""\s*\[?\s*\{\s*["'](role|content|from|value)["']\s*:""")
# Batches hold scores in 32 bits.
LARGEST = float(np.finfo(np.float32).max)


class Message(NamedTuple):
    """One turn of a conversation.

    Args:
        role: ``system``, ``user``, ``assistant``, ``tool``, …
        content: text, a list of parts ``{"type": "text", "text": …}``, or None.
        more: what else the message has, for the chat template.
    """

    role: str
    content: str | list[dict[str, Any]] | None
    more: Mapping[str, Any] = {}

    def as_dict(self) -> dict[str, Any]:
        """What a chat template gets."""
        content = {} if self.content is None else {"content": self.content}
        return {"role": self.role, **content, **self.more}

    def meaning(self) -> tuple[Any, ...]:
        """What makes it the same message as another: an ``id`` of its own does not."""
        names = (*SAYINGS, "name", "tool_call_id")
        return (self.role, self.content, [self.more.get(name) for name in names])


Text = str | tuple[Message, ...]


@dataclass(frozen=True)
class Pair:
    """A prompt and two answers to it, or more, ranked.

    Args:
        prompt, chosen, rejected: three strings, to be joined as they are; or three times messages,
            for a chat template.
        chosen_reward, rejected_reward: scores in any unit, or None.
        preference_prob: how likely the chosen answer is the better one, in [0, 1], or None.
        variables: what else the chat template gets: ``tools``, ``documents``, …
        weight: how often it counts in an epoch, > 0.
        label: None for a pair. Whether the answer is desirable, where there is one answer, which
            then is both ``chosen`` and ``rejected``.
        between: answers of a ranked list that are worse than ``chosen`` and better than
            ``rejected``, best first.
        gold: a third answer, which is better than both, or None.
        tied: whether the best answer of a list has the rank or score of the worst.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    preference_prob: float | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    label: bool | None = None
    between: tuple[Text, ...] = ()
    gold: Text | None = None
    tied: bool = False

    @property
    def answers(self) -> tuple[Text, ...]:
        """All answers, best first."""
        ranked = (self.chosen, *self.between, self.rejected)
        return ranked if self.gold is None else (self.gold, *ranked)


def clean(pairs: Iterable[Pair]) -> tuple[list[Pair], Counts]:
    """Drop pairs that teach nothing.

    Identical answers of a pair or list, an answer of nothing but white space that calls no tool
    either, lists whose best answer is as good as their worst, and pairs whose texts and label have
    occurred before, whatever their scores. The order of the others stays.

    >>> pairs = [Pair("1 + 1 =", " 2", " 3"), Pair("Hi", "", "no"), Pair("1 + 1 =", " 2", " 3")]
    >>> kept, counts = clean(pairs)
    >>> len(kept), counts.empty, counts.duplicates
    (1, 1, 1)
    """
    kept: dict[bytes, Pair] = {}
    rows = identical = empty = duplicates = tied = 0
    for pair in pairs:
        rows += 1
        label = () if pair.label is None else (pair.label,)
        more = (*pair.between, *(() if pair.gold is None else (pair.gold,)))
        key = digest(pair.prompt, pair.chosen, pair.rejected, pair.variables, *label, *more)
        ranked = (pair.chosen, *pair.between, pair.rejected)
        if pair.label is None and any(one == other for one, other in combinations(ranked, 2)):
            identical += 1
        elif any(map(_blank, pair.answers)):
            empty += 1
        elif pair.tied:
            tied += 1
        elif key in kept:
            duplicates += 1
        else:
            kept[key] = pair
    return list(kept.values()), Counts(rows, identical, empty, duplicates, tied)


def unpaired(pairs: Iterable[Pair]) -> list[Pair]:
    """Each pair as two labelled answers, the chosen one desirable; labelled ones stay.

    >>> [(one.chosen, one.label) for one in unpaired([Pair("1 + 1 =", " 2", " 3")])]
    [(' 2', True), (' 3', False)]
    """
    out = []
    for pair in pairs:
        if pair.label is not None:
            out.append(pair)
            continue
        bare = replace(pair, chosen_reward=None, rejected_reward=None, preference_prob=None)
        bare = replace(bare, between=(), gold=None)
        out.append(replace(bare, rejected=pair.chosen, label=True))
        out.append(replace(bare, chosen=pair.rejected, label=False))
    return out


def digest(*parts: Any) -> bytes:
    """16 bytes that stand for texts and what belongs to them, the same in every process."""
    plain = [
        [message.meaning() for message in part] if isinstance(part, tuple) else part
        for part in parts
    ]
    return hashlib.blake2b(repr(plain).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def load_pairs(
    source: Any,
    split: str = "train",
    *,
    config: str | None = None,
    columns: Mapping[str, str | None] | None = None,
) -> list[Pair]:
    """Read preference pairs.

    Args:
        source, split, config: see :mod:`torchmpo.finetune.sources`.
        columns: for a name of ``COLUMNS`` the one that the data have, or None to leave it out:
            ``{"prompt": "question", "system": None}``.

    Returns:
        One pair per row, in order, nothing dropped yet (see :func:`clean`).

    Raises:
        UserError: nothing there, a damaged file, an unknown split, a package that is missing, or a
            row that fits no format; the message names the row, the first of each file or iterable
            being 0, and its columns.

    >>> load_pairs([{"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}])[0].chosen
    ' 2'
    """
    for name in columns or {}:
        if name not in COLUMNS:
            raise UserError(f"columns: unknown name {name!r}: {nearest(name, COLUMNS)}")
    tables = read_tables(source, split, config)
    return [pair for table in tables for pair in _pairs(table, columns or {})]


def pair_from_row(row: Mapping[str, Any]) -> Pair:
    """The pair that a row of a data set holds, by the table at the top of this file.

    Raises:
        UserError: it holds none; the message says why.

    >>> pair = pair_from_row({"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello",
    ...                       "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: Hey"})
    >>> pair.prompt, pair.chosen, pair.rejected
    ('\\n\\nHuman: Hi\\n\\nAssistant:', ' Hello', ' Hey')
    """
    if "completion" in row and "chosen" not in row:
        both = {"chosen": row["completion"], "rejected": row["completion"]}
        return replace(_pair_from_row({**row, **both}), label=_label(row))
    if row.get("chosen") is None and (found := ranked_answers(row)) is not None:
        return pair_of_list(row, found, _pair_from_row)
    return with_gold(_pair_from_row(row), row, _pair_from_row)


def _pair_from_row(row: Mapping[str, Any]) -> Pair:
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    prompt = None if row.get("prompt") is None else _text(row, "prompt")
    prompt = None if prompt == () else prompt
    if isinstance(chosen, str) and isinstance(rejected, str):
        texts = _from_strings(row, prompt, chosen, rejected)
    elif isinstance(chosen, tuple) and isinstance(rejected, tuple):
        texts = _from_messages(row, prompt, chosen, rejected)
    else:
        raise UserError("of chosen and rejected, one is text and the other a list of messages")
    if isinstance(texts[0], str):  # text is the whole of it
        return Pair(*texts, *_rewards(row), _probability(row))
    if (system := _system(row)) and texts[0][0].role not in OPENING:
        texts = ((Message("system", system), *texts[0]), *texts[1:])
    for name, answer in zip(("chosen", "rejected"), texts[1:]):
        if not answer or answer[0].role != "assistant":
            role = f"begins with a message of role {answer[0].role!r}" if answer else "is empty"
            raise UserError(f"after the prompt, {name} {role}, not with the assistant's answer")
    return Pair(*texts, *_rewards(row), _probability(row), _variables(row))


# Formats


def _text(row: Mapping[str, Any], name: str) -> Text:
    if name not in row:
        raise UserError(f"there is no column {name!r}")
    value = row[name]
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return (_message(value, name),)
    if isinstance(value, Sequence) and all(isinstance(m, Mapping) for m in value):
        return tuple(_message(message, name) for message in value)
    raise UserError(f"{name} is neither text nor a list of messages")


def _message(message: Mapping[str, Any], name: str) -> Message:
    # As transformers does: a null is a key that is not there.
    rest = {key: value for key, value in message.items() if value is not None}
    if "role" not in rest and "from" in rest:
        rest = _spoken(rest, name)
    role, content = rest.pop("role", None), rest.pop("content", None)
    parts = isinstance(content, Sequence) and all(map(_is_part, content))
    if not isinstance(role, str) or not (content is None or isinstance(content, str) or parts):
        raise UserError(
            f"{name} has a message without a role and text, null or parts as its content"
        )
    if isinstance(content, Sequence) and not isinstance(content, str):
        # A column has all the keys of all its parts.
        content = [{k: v for k, v in part.items() if v is not None} for part in content] or ""
    return Message(role, content, rest) if rest else Message(role, content)


def _is_part(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return isinstance(kind, str) and (kind != "text" or isinstance(part.get("text"), str))


def _spoken(message: dict[str, Any], name: str) -> dict[str, Any]:
    """A turn of ``{"from": …, "value": …}`` as one of ``{"role": …, "content": …}``."""
    rest = dict(message)
    speaker, value = str(rest.pop("from")), rest.pop("value", None)
    if speaker == "function_call":
        try:
            call = {"type": "function", "function": json.loads(value)}  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{name} has a function_call that is not JSON: {error}") from error
        return {"role": "assistant", "tool_calls": [call], **rest}
    if speaker not in SPEAKERS:
        known = (*SPEAKERS, "function_call")
        raise UserError(f"{name} has a message from {speaker!r}: {nearest(speaker, known)}")
    return {"role": SPEAKERS[speaker], "content": value, **rest}


def _from_strings(
    row: Mapping[str, Any], prompt: Text | None, chosen: str, rejected: str
) -> tuple[Any, Any, Any]:
    if isinstance(prompt, str) and not _system(row):
        return prompt, chosen, rejected
    if isinstance(prompt, str):
        prompt = (Message("user", prompt),)
    if prompt is None:
        try:
            return _split_strings(chosen, rejected)
        except UserError:
            if (prompt := _question(row)) is None:
                raise
    return prompt, (Message("assistant", chosen),), (Message("assistant", rejected),)


def _system(row: Mapping[str, Any]) -> str | None:
    value = row.get("system")
    return value if isinstance(value, str) and value.strip() else None


def _question(row: Mapping[str, Any]) -> tuple[Message, ...] | None:
    """The prompt, of the columns that others than ``prompt`` have for it."""
    if isinstance(conversation := row.get("conversations"), Sequence) and conversation:
        text = _text(row, "conversations")
        return text if isinstance(text, tuple) else (Message("user", text),)
    for name in ("question", "instruction", "input"):
        if isinstance(text := row.get(name), str) and text.strip():
            more = row.get("input") if name == "instruction" else None
            return (Message("user", f"{text}\n{more}" if isinstance(more, str) and more else text),)
    return None


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


def _from_messages(
    row: Mapping[str, Any],
    prompt: Text | None,
    chosen: tuple[Message, ...],
    rejected: tuple[Message, ...],
) -> tuple[Any, Any, Any]:
    if isinstance(prompt, tuple):
        size = len(prompt)
        if _same(prompt, chosen[:size]) and _same(prompt, rejected[:size]):
            return prompt, chosen[size:], rejected[size:]
        return prompt, chosen, rejected
    size = 0
    # Something is left to each side, even if they are the same throughout.
    while size < min(len(chosen), len(rejected)) - 1 and _same(
        chosen[size : size + 1], rejected[size : size + 1]
    ):
        size += 1
    shared = chosen[:size]
    if isinstance(prompt, str) and (prompt.strip() or not shared):
        shared = _with_prompt(prompt, shared)
    shared = shared or _question(row)
    if not shared:
        raise UserError("chosen and rejected share no first message that could be the prompt")
    return shared, chosen[size:], rejected[size:]


def _with_prompt(prompt: str, shared: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages that both answers begin with, and the prompt, if it is not one of them."""
    wanted = _squeezed(prompt)
    for message in shared:
        text = _squeezed(_content(message))
        if text == wanted:
            return shared
        # The column may be a turn without its instructions, or the whole conversation as text.
        if message.role == "user" and text and (text in wanted or wanted in text):
            return shared
    start = 0
    while start < len(shared) and shared[start].role in OPENING:
        start += 1
    if start < len(shared) and shared[start].role == "user":
        raise UserError(
            "prompt is none of the messages that chosen and rejected begin with: leave it out "
            "(columns: {prompt: null}), or leave those out"
        )
    return (*shared[:start], Message("user", prompt), *shared[start:])


def _same(one: Sequence[Message], other: Sequence[Message]) -> bool:
    return [m.meaning() for m in one] == [m.meaning() for m in other]


def _content(message: Message) -> str:
    if isinstance(message.content, list):
        return "".join(part.get("text", "") for part in message.content)
    return message.content or ""


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _variables(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template gets of a row beside its messages."""
    variables = dict(_object(row, "chat_template_kwargs", Mapping) or {})
    documents = row.get("documents")
    if isinstance(documents, list) and all(isinstance(item, Mapping) for item in documents):
        variables["documents"] = documents
    if tools := _object(row, "tools", Sequence):
        if not all(isinstance(tool, Mapping) for tool in tools):
            raise UserError("tools is not a list of objects")
        variables["tools"] = tools
    return variables


def _object(row: Mapping[str, Any], name: str, kind: Any) -> Any:
    """A value that data sets also keep as JSON: their columns have one type each."""
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name} is text and not JSON: {error}") from error
    if value is not None and not isinstance(value, kind):
        raise UserError(f"{name} is not {'an object' if kind is Mapping else 'a list of objects'}")
    return value


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


def _label(row: Mapping[str, Any]) -> bool:
    value = row.get("label")
    if isinstance(value, str):  # of a table whose cells are text
        value = {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    if value not in (True, False):
        raise UserError("beside completion there must be a label, true or false")
    return bool(value)


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{name} is not a number")
    if isinstance(value, float) and math.isnan(value):
        return None
    if not abs(value) <= LARGEST:
        raise UserError(f"{name} is beyond the range of a 32-bit float")
    return float(value)


def _blank(text: Text) -> bool:
    if isinstance(text, str):
        return not text.strip()
    return all(
        not any(part["type"] != "text" or part["text"].strip() for part in _parts(message))
        and not any(message.more.get(name) for name in SAYINGS)
        for message in text
    )


def _parts(message: Message) -> list[dict[str, Any]]:
    if isinstance(message.content, list):
        return message.content
    return [{"type": "text", "text": message.content or ""}]


# Rows


def _pairs(table: Table, columns: Mapping[str, str | None]) -> list[Pair]:
    pairs = []
    for i, row in enumerate(table.rows, table.start):
        if not isinstance(row, Mapping):
            raise UserError(f"{table.name}, row {i}: not an object with columns")
        try:
            nulls = table.cells != "arrow"
            plain = {name: _plain(value, nulls=nulls) for name, value in row.items()}
            given = _renamed(plain, columns)
            pairs.append(pair_from_row(_from_cells(given) if table.cells == "csv" else given))
        except UserError as error:
            names = ", ".join(map(str, row)) or "none"
            raise UserError(f"{table.name}, row {i}: {error}; its columns: {names}") from error
    return pairs


def _plain(value: Any, *, nulls: bool) -> Any:
    """Without numpy's types, in which pandas keeps what it read, and perhaps without nulls."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {k: _plain(v, nulls=nulls) for k, v in value.items() if nulls or v is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item, nulls=nulls) for item in value]
    return value


def _renamed(row: dict[str, Any], columns: Mapping[str, str | None]) -> dict[str, Any]:
    if absent := [name for name in columns.values() if name is not None and name not in row]:
        raise UserError(f"there is no column {absent[0]!r}")
    given = {ours: None if name is None else row[name] for ours, name in columns.items()}
    return row | given


def _from_cells(row: dict[str, Any]) -> dict[str, Any]:
    """A row of CSV: numbers and lists of messages are text there, and nothing is an empty cell."""
    row = dict(row)
    for name in {name for names in REWARDS for name in names} | {"preference_prob"}:
        if isinstance(cell := row.get(name), str):
            try:
                row[name] = float(cell) if cell.strip() else None
            except ValueError as error:
                raise UserError(f"{name} is not a number") from error
    for name in NAMES:
        if isinstance(cell := row.get(name), str) and cell.lstrip().startswith("["):
            row[name] = _object(row, name, Sequence)
    for name in ("prompt", "chosen", "rejected", "completion", "conversations", "reference"):
        # A table that was written by pandas has Python's text of a list, which is no message.
        if isinstance(cell := row.get(name), str) and MESSAGES.match(cell):
            row[name] = _object(row, name, (Mapping, Sequence))
    return row
