"""From pairs to tokens: one prompt for both answers, one BOS, one EOS, and never an empty answer.

**Where the prompt ends.** Prompt, prompt + chosen and prompt + rejected are each tokenized as a
whole, and the prompt is the tokens that all three begin with. So an answer whose first letters
merge with the prompt's last ones into a token takes that token, and so does the other answer: both
are scored after the same tokens, whatever the tokenizer does at the seam. A chat template that
writes the prompt's turns otherwise once an answer follows is refused, as these turns would count.

**BOS** comes first, once, where the tokenizer puts one before plain text or the chat template
writes one. **EOS** ends each answer, once: what a template writes after its own EOS (a line feed,
mostly) is cut, as nothing is generated after it. Text that spells special tokens is taken at its
word.

**Too long** (more than ``max_length`` tokens, prompt and answer together):

- ``keep_start``: the end of the answer is cut, and its EOS with it. A prompt that leaves no room
  for a token of the answer is an error.
- ``keep_end``: the start of the prompt is cut, BOS is kept, and both answers keep the same prompt.
  An answer too long by itself loses its start; one token of the prompt is kept.
- ``drop``: the pair is dropped.

A prompt longer than ``max_prompt_length`` loses its start, BOS is kept; with ``drop``, the pair is
dropped. Answers that are the same tokens in the end teach nothing: the pair is dropped.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchmpo.finetune.chat_template import leaves_out, render
from torchmpo.finetune.pairs import CALLS, SAYINGS, Message, Pair, Text
from torchmpo.runs.errors import UserError, nearest

TRUNCATIONS = ("keep_start", "keep_end", "drop")
IGNORED = -100  # the label of a token that does not count
_FEW = 3  # tokens that the end of a prompt may lose to its answers
_AT_ONCE = 256  # pairs whose texts go to the tokenizer together: it has threads of its own


@dataclass(frozen=True, eq=False)
class TokenizedPair:
    """A pair as token ids.

    Args:
        prompt: ``[tokens]``, int32, at least one; BOS is part of it.
        chosen, rejected: ``[tokens]``, int32, at least one each; ends with EOS unless cut.
        prompt_cut: whether the prompt lost its start.
        answer_cut: whether an answer lost something.
        merged: whether the prompt by itself has other tokens at its end than before an answer.
        left_out: whether the chat template does not write the pair's tools, tool calls in the
            prompt, or thoughts or other text of an answer.
        chosen_reward, rejected_reward, preference_prob, label, between, gold: as of the
            :class:`Pair`.
        index: row of the data set, 0 outside one.
    """

    prompt: Tensor
    chosen: Tensor
    rejected: Tensor
    prompt_cut: bool = False
    answer_cut: bool = False
    merged: bool = False
    left_out: bool = False
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    preference_prob: float | None = None
    index: int = 0
    label: bool | None = None
    between: tuple[Tensor, ...] = ()
    gold: Tensor | None = None

    @property
    def answers(self) -> tuple[Tensor, ...]:
        """All answers, best first."""
        ranked = (self.chosen, *self.between, self.rejected)
        return ranked if self.gold is None else (self.gold, *ranked)

    def with_answers(self, answers: Sequence[Tensor]) -> "TokenizedPair":
        """The same prompt with these answers, in the order of ``answers``."""
        gold, ranked = (None, answers) if self.gold is None else (answers[0], answers[1:])
        between = tuple(ranked[1:-1])
        return replace(self, chosen=ranked[0], between=between, rejected=ranked[-1], gold=gold)


@dataclass(frozen=True)
class TokenCounts:
    """What tokenizing did to the pairs of a data set.

    Args:
        kept: pairs that are left.
        too_long: pairs dropped for their length (``truncation="drop"``).
        identical: pairs dropped because their answers are the same tokens.
        prompts_cut, answers_cut, merged, left_out: of those kept, see :class:`TokenizedPair`.
    """

    kept: int
    too_long: int
    identical: int
    prompts_cut: int
    answers_cut: int
    merged: int
    left_out: int = 0

    def __str__(self) -> str:
        text = (
            f"tokenized {self.kept:,} pairs ({self.prompts_cut:,} with a cut prompt, "
            f"{self.answers_cut:,} with a cut answer, {self.merged:,} with a prompt that merges "
            f"with an answer); dropped {self.too_long:,} too long, {self.identical:,} with answers "
            "of the same tokens"
        )
        if self.left_out:
            what = "tools, calls, thoughts or text"
            text += f"; the chat template leaves out {what} of {self.left_out:,}"
        return text


def encode_prompt(
    prompt: Text, tokenizer: Any, variables: Mapping[str, Any] | None = None
) -> list[int]:
    """The tokens after which an answer is generated: what training puts before answers.

    Args:
        prompt: text, or messages, for which the chat template opens the assistant's turn.
        tokenizer: of transformers.
        variables: of the chat template, ``tools`` among them.

    Raises:
        UserError: messages without a chat template, or that it refuses; text that is no Unicode.
    """
    text = prompt if isinstance(prompt, str) else render(prompt, tokenizer, variables, opened=True)
    _check_text(text)
    return _with_bos(_encode([text], tokenizer)[0], tokenizer, _bos(tokenizer))


def tokenize_pair(
    pair: Pair,
    tokenizer: Any,
    max_length: int,
    truncation: str = "keep_start",
    max_prompt_length: int | None = None,
    variables: Mapping[str, Any] | None = None,
) -> TokenizedPair | None:
    """The tokens of a pair, as described at the top of this file.

    Args:
        pair: strings or messages.
        tokenizer: of transformers, with an EOS token.
        max_length: tokens of prompt and answer together, ≥ 2.
        truncation: ``"keep_start"``, ``"keep_end"`` or ``"drop"``.
        max_prompt_length: tokens of the prompt, BOS included, ≥ 1; None for no limit of its own.
        variables: of the chat template; those of the pair come before them.

    Returns:
        None where the pair is dropped.

    Raises:
        UserError: a setting out of range; a tokenizer without EOS; messages without a chat
            template, or that it refuses, or tool calls in an answer that it does not write, or a
            prompt that it writes otherwise once an answer follows; text that is no Unicode; a
            prompt that leaves no room for an answer (``keep_start``); an empty prompt without BOS,
            as nothing could then predict an answer's first token.
    """
    _check(tokenizer, max_length, truncation, max_prompt_length)
    texts, left_out = _texts(pair, tokenizer, variables or {})
    whole = _join(pair, _encode(texts, tokenizer), tokenizer, _bos(tokenizer), left_out)
    tokens = _truncate(whole, tokenizer, max_length, truncation, max_prompt_length)
    return None if tokens is None or _teaches_nothing(tokens) else tokens


class PairDataset(Dataset):
    """Tokenized pairs, those dropped left out.

    Args:
        pairs, tokenizer, max_length, truncation, max_prompt_length, variables: see
            :func:`tokenize_pair`.

    Attributes:
        counts: a :class:`TokenCounts`.
        rows: ``[pairs kept]``, for each which of ``pairs`` it is.

    Raises:
        UserError: as :func:`tokenize_pair` does; the message names the row of ``pairs``.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        tokenizer: Any,
        max_length: int,
        truncation: str = "keep_start",
        max_prompt_length: int | None = None,
        variables: Mapping[str, Any] | None = None,
    ):
        _check(tokenizer, max_length, truncation, max_prompt_length)
        limits = (max_length, truncation, max_prompt_length)
        items, rows, too_long, identical = [], [], 0, 0
        for row, whole in enumerate(_join_all(pairs, tokenizer, variables or {})):
            with _named(row):
                tokens = _truncate(whole, tokenizer, *limits)
            if tokens is None:
                too_long += 1
            elif _teaches_nothing(tokens):
                identical += 1
            else:
                items.append(tokens)
                rows.append(row)
        self.rows = torch.tensor(rows, dtype=torch.int64)
        self.counts = TokenCounts(
            kept=len(items),
            too_long=too_long,
            identical=identical,
            prompts_cut=sum(item.prompt_cut for item in items),
            answers_cut=sum(item.answer_cut for item in items),
            merged=sum(item.merged for item in items),
            left_out=sum(item.left_out for item in items),
        )
        # In one piece: sent to a worker process, each tensor takes a file descriptor.
        parts = [part for item in items for part in (item.prompt, *item.answers)]
        self._tokens = torch.cat([torch.empty(0, dtype=torch.int32), *parts])
        self._ends = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
        self._first = torch.tensor([0, *(1 + len(item.answers) for item in items)]).cumsum(0)
        none = self._tokens[:0]
        self._rest = [
            replace(item.with_answers([none] * len(item.answers)), prompt=none, index=index)
            for index, item in enumerate(items)
        ]

    def __len__(self) -> int:
        return len(self._rest)

    def __getitem__(self, index: int) -> TokenizedPair:
        rest = self._rest[index]  # an IndexError ends iteration
        first, last = self._first[rest.index : rest.index + 2].tolist()
        ends = self._ends[first : last + 1].tolist()
        prompt, *answers = (self._tokens[a:b] for a, b in zip(ends, ends[1:]))
        return replace(rest.with_answers(answers), prompt=prompt)


def collate(batch: Sequence[TokenizedPair], pad_token_id: int) -> dict[str, Tensor]:
    """A batch for the model: B chosen answers, then the B rejected ones, padded on the right.

    Of labelled answers, the B of them, and ``desirable`` ``[B]``, bool. Of lists of n answers the B
    best ones, the B second best, and so on to the B worst; of pairs with a golden answer the B
    golden ones first, and ``gold`` ``[B]``, all true.

    Args:
        batch: B tokenized pairs.
        pad_token_id: may be that of EOS: what is padding is known by lengths.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` ``[2B, T]``, of lists ``[nB, T]``, int64;
        labels are ``input_ids`` where a token of an answer stands, −100 elsewhere, not shifted.
        ``index`` ``[B]``, int64. If every pair has them, ``chosen_rewards`` and
        ``rejected_rewards``, and ``preference_probs``, ``[B]`` float32.

    Raises:
        UserError: there is no padding token, there are pairs among labelled answers, or lists
            of several lengths.
    """
    if pad_token_id is None:
        raise UserError("the tokenizer has no padding token: set tokenizer.pad_token")
    labels_given = [p.label for p in batch if p.label is not None]
    if labels_given and len(labels_given) < len(batch):
        raise UserError("the data have pairs beside labelled answers: set data.unpair")
    answers = [(p.chosen,) if labels_given else p.answers for p in batch]
    if len({(len(own), p.gold is None) for p, own in zip(batch, answers)}) > 1:
        raise UserError("the prompts of a batch must have equally many answers")
    sides = [(p.prompt, own[k]) for k in range(len(answers[0])) for p, own in zip(batch, answers)]
    time = max(len(prompt) + len(answer) for prompt, answer in sides)
    input_ids = torch.full((len(sides), time), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED)
    for row, (prompt, answer) in enumerate(sides):
        start, end = len(prompt), len(prompt) + len(answer)
        input_ids[row, :start] = prompt
        input_ids[row, start:end] = answer
        labels[row, start:end] = answer
        attention_mask[row, :end] = 1
    out = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "index": torch.tensor([p.index for p in batch]),
    }
    if labels_given:
        out["desirable"] = torch.tensor(labels_given)
        return out
    if batch[0].gold is not None:
        out["gold"] = torch.ones(len(batch), dtype=torch.bool)
    scores = {
        "chosen_rewards": [p.chosen_reward for p in batch],
        "rejected_rewards": [p.rejected_reward for p in batch],
        "preference_probs": [p.preference_prob for p in batch],
    }
    for name, values in scores.items():
        if None not in values:
            out[name] = torch.tensor(values, dtype=torch.float32)
    return out


# Text to tokens


def _check(tokenizer: Any, length: int, truncation: str, prompt_length: int | None) -> None:
    if truncation not in TRUNCATIONS:
        raise UserError(f"unknown truncation {truncation!r}: {nearest(truncation, TRUNCATIONS)}")
    if length < 2:
        raise UserError(f"max_length must be at least 2; got {length}")
    if prompt_length is not None and prompt_length < 1:
        raise UserError(f"max_prompt_length must be at least 1; got {prompt_length}")
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no EOS token, so answers could not end")


def _texts(pair: Pair, tokenizer: Any, variables: Mapping[str, Any]) -> tuple[list[str], bool]:
    """The prompt, and with each answer after it; and whether the template leaves out tools."""
    prompt = pair.prompt
    texts = [answer for answer in pair.answers if isinstance(answer, str)]
    messages = [answer for answer in pair.answers if not isinstance(answer, str)]
    if isinstance(prompt, str) and not messages:
        texts, left_out = [prompt, *(prompt + answer for answer in texts)], False
    elif isinstance(prompt, str) or texts:
        raise UserError("a pair must be three strings or three lists of messages")
    else:
        texts, left_out = _from_messages(
            prompt, messages, tokenizer, {**variables, **pair.variables}
        )
    for text in texts:
        _check_text(text)
    return texts, left_out


def _from_messages(
    prompt: tuple[Message, ...],
    answers: Sequence[tuple[Message, ...]],
    tokenizer: Any,
    variables: Mapping[str, Any],
) -> tuple[list[str], bool]:
    opened = render(prompt, tokenizer, variables, opened=True)
    wholes = [render(prompt + answer, tokenizer, variables) for answer in answers]
    _check_turns(prompt, tokenizer, variables, opened, wholes)
    absent = [
        name
        for name in ("tools", *CALLS)
        if leaves_out(name, prompt, tokenizer, variables, opened, opened=True)
    ]
    for answer, whole in zip(answers, wholes):
        written = _packed(whole)
        said = [text for message in answer for text in _said(message)]
        absent += [text for text in said if _packed(text) not in written]
        for name in [n for n in SAYINGS if any(n in message.more for message in answer)]:
            if leaves_out(name, prompt + answer, tokenizer, variables, whole):
                absent.append(name)
                if name in CALLS:  # and nothing is left of it but its end
                    raise UserError(
                        f"the chat template leaves out the {name} of an answer: set chat_template "
                        "to one that writes them"
                    )
    return [opened, *wholes], bool(absent)


def _shared(*rows: Any) -> int:
    """How many items all of them begin with."""
    low, high = min(rows), max(rows)  # no others part sooner
    return next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), len(low))


def _said(message: Message) -> list[str]:
    """The texts of its content."""
    if isinstance(message.content, list):
        return [part["text"] for part in message.content if part["type"] == "text"]
    return [message.content or ""]


def _packed(text: str) -> str:
    """Without white space, which templates change."""
    return "".join(text.split())


def _check_turns(
    prompt: tuple[Message, ...],
    tokenizer: Any,
    variables: Mapping[str, Any],
    opened: str,
    wholes: Sequence[str],
) -> None:
    """Refuse a template that writes the prompt's turns otherwise once an answer follows.

    They would come after where the texts part, and count as the answer. How the assistant's next
    turn is opened is no turn of the prompt, and may be written otherwise.
    """
    if all(whole.startswith(opened) for whole in wholes):
        return
    shared = _shared(opened, *wholes)
    end = _shared(opened, render(prompt, tokenizer, variables))
    if len(_encode([opened[shared:end]], tokenizer)[0]) > _FEW:
        raise UserError(
            "the chat template writes the prompt otherwise once an answer follows, from "
            f"{opened[shared:end][:30]!r} on, so that its turns would be trained on: leave out "
            "what it writes in one of the two only (thoughts, mostly), or set chat_template"
        )


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"a text has half a character, \\u{ord(text[error.start]):x}, where UTF-16 was cut: "
            "write the data again, without it"
        ) from error


def _encode(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    # Special tokens are put by hand: templates write theirs, and tokenizers would double them.
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]


def _bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts BOS before plain text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def _with_bos(ids: list[int], tokenizer: Any, wanted: bool) -> list[int]:
    bos = tokenizer.bos_token_id
    start = 0
    while start < len(ids) and ids[start] == bos:
        start += 1
    return [bos] * (wanted or start > 0) + ids[start:]


def _with_eos(ids: list[int], tokenizer: Any) -> list[int]:
    """One EOS at the end, and nothing blank after or between several there."""
    eos, end = tokenizer.eos_token_id, len(ids)
    at = end - 1
    while at >= 0:
        if ids[at] == eos:
            end = at
        elif tokenizer.decode([ids[at]], skip_special_tokens=False).strip():
            break
        at -= 1
    return [*ids[:end], eos]


def _join(
    pair: Pair, ids: Sequence[list[int]], tokenizer: Any, bos: bool, left_out: bool
) -> TokenizedPair:
    """Nothing cut yet; ``ids`` are those of the prompt, and with each answer after it."""
    prompt, *wholes = (_with_bos(tokens, tokenizer, bos) for tokens in ids)
    seam = _shared(prompt, *wholes)
    if seam == 0:
        raise UserError(
            "the prompt is empty and the tokenizer has no BOS: nothing could predict the first "
            "token of an answer"
        )
    answers = [_with_eos(whole[seam:], tokenizer) for whole in wholes]
    tokens = [torch.tensor(part, dtype=torch.int32) for part in (prompt[:seam], *answers)]
    whole = TokenizedPair(
        prompt=tokens[0],
        chosen=tokens[1],
        rejected=tokens[-1],
        gold=None if pair.gold is None else tokens[1],
        merged=seam < len(prompt),
        left_out=left_out,
        chosen_reward=pair.chosen_reward,
        rejected_reward=pair.rejected_reward,
        preference_prob=pair.preference_prob,
        label=pair.label,
    )
    return whole.with_answers(tokens[1:])


def _join_all(
    pairs: Sequence[Pair], tokenizer: Any, variables: Mapping[str, Any]
) -> Iterator[TokenizedPair]:
    bos = _bos(tokenizer)
    for start in range(0, len(pairs), _AT_ONCE):
        texts: list[str] = []
        left_out: list[bool] = []
        sizes: list[int] = []
        for row, pair in enumerate(pairs[start : start + _AT_ONCE], start):
            with _named(row):
                own, flag = _texts(pair, tokenizer, variables)
            texts += own
            sizes.append(len(own))
            left_out.append(flag)
        ids = iter(_encode(texts, tokenizer))
        for row, pair in enumerate(pairs[start : start + _AT_ONCE], start):
            with _named(row):
                own = list(islice(ids, sizes[row - start]))
                tokens = _join(pair, own, tokenizer, bos, left_out[row - start])
            yield tokens


@contextmanager
def _named(row: int) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"pair {row}: {error}") from error


# Length


def _truncate(
    tokens: TokenizedPair,
    tokenizer: Any,
    max_length: int,
    truncation: str,
    max_prompt_length: int | None,
) -> TokenizedPair | None:
    def longest() -> int:
        return max(map(len, tokens.answers))

    if max_prompt_length is not None and len(tokens.prompt) > max_prompt_length:
        if truncation == "drop":
            return None
        tokens = _shorter_prompt(tokens, tokenizer, max_prompt_length)
    if len(tokens.prompt) + longest() <= max_length:
        return tokens
    if truncation == "drop":
        return None
    if truncation == "keep_end":
        tokens = _shorter_prompt(tokens, tokenizer, max(max_length - longest(), 1))
    room = max_length - len(tokens.prompt)
    if room < 1:
        raise UserError(
            f"its prompt has {len(tokens.prompt)} tokens, which leaves no room for an answer in "
            f"max_length {max_length}: raise it, set max_prompt_length, or choose truncation "
            "keep_end or drop"
        )
    if longest() <= room:
        return tokens
    part = slice(room) if truncation == "keep_start" else slice(-room, None)
    cut = tokens.with_answers([answer[part] for answer in tokens.answers])
    return replace(cut, answer_cut=True)


def _shorter_prompt(tokens: TokenizedPair, tokenizer: Any, length: int) -> TokenizedPair:
    """The prompt's last tokens, the first of them BOS if there was one."""
    prompt = tokens.prompt
    if len(prompt) <= length:
        return tokens
    if prompt[0] != tokenizer.bos_token_id:
        kept = prompt[-length:]
    else:
        kept = torch.cat([prompt[:1], prompt[len(prompt) - length + 1 :]])
    return replace(tokens, prompt=kept, prompt_cut=True)


def _teaches_nothing(tokens: TokenizedPair) -> bool:
    ranked = (tokens.chosen, *tokens.between, tokens.rejected)
    same = any(torch.equal(one, other) for one, other in combinations(ranked, 2))
    return tokens.label is None and same
