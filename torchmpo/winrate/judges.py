"""Judges: which of two answers to a prompt is better.

A judge is called with prompts, first answers and second answers, lists of the same length, and
gives for each the probability in [0, 1] that the **second** is better, NaN where it cannot tell.
Any function that does so is one; :func:`resolve_judge` finds one by name. A function of one prompt
and two answers that gives one probability is accepted, too (:class:`FunctionJudge`).
"""

import importlib
import inspect
import math
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchmpo.runs.errors import UserError, missing_package, nearest, one_line
from torchmpo.runs.output import quiet
from torchmpo.runs.own_code import own_code_raised
from torchmpo.winrate.alpaca_files import Row, probability, read_annotations

Texts = Sequence[str]
Judge = Callable[[Texts, Texts, Texts], Sequence[float]]


def resolve_judge(
    name: str,
    *,
    both_orders: bool = True,
    batch_size: int = 16,
    timeout: float = math.inf,
) -> Judge:
    """A judge by its name.

    Args:
        name: an AlpacaEval annotations file (``….json``, ``….jsonl``), ``package.module:function``,
            or a folder or hub id of a transformers reward model.
        both_orders: ask a function a second time with the answers swapped, and take the mean.
        batch_size: texts that a reward model reads at once.
        timeout: seconds that a function may take for a call.

    Raises:
        UserError: there is no such thing, or it cannot be used.
    """
    if name.endswith((".json", ".jsonl")):
        return AnnotationsJudge(read_annotations(name), name)
    if ":" in name and not Path(name).exists():
        return FunctionJudge(_import(name), both_orders=both_orders, name=name, timeout=timeout)
    return RewardModelJudge(name, batch_size=batch_size)


class FunctionJudge:
    """A function, checked.

    Judges that read both answers tend to prefer one of the two places. The mean of both orders,
    (p(1, 2) + 1 − p(2, 1)) / 2, has no such preference.

    **One pair at a time.** A function of one prompt and two answers that gives one probability says
    so by an attribute ``per_example = True`` or by annotating its first parameter ``str``. Without
    either, it is known by what it makes of lists: if its first parameter is named in the singular
    (``prompt``, not ``prompts``) and it gives a number, or fails where a single pair gives one, it
    is asked pair by pair.

    Args:
        function: a judge, of lists or of one pair.
        both_orders: whether to ask twice; a function with an attribute ``symmetric = True`` says
            that it need not be.
        name: for messages.
        timeout: seconds that a call may take, where the system has alarms and the main thread asks.
    """

    def __init__(
        self,
        function: Judge,
        *,
        both_orders: bool = True,
        name: str | None = None,
        timeout: float = math.inf,
    ):
        self.function = function
        self.both_orders = both_orders and not getattr(function, "symmetric", False)
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self.timeout = timeout
        self.per_example = _says_per_example(function)

    def __call__(self, prompts: Texts, first: Texts, second: Texts) -> list[float]:
        """Probabilities that the second is better.

        Raises:
            UserError: the function gave something else than that many probabilities, failed, or did
                not end in time.
        """
        there = self._ask(prompts, first, second)
        if not self.both_orders:
            return there
        back = self._ask(prompts, second, first)
        return [(p + 1 - q) / 2 for p, q in zip(there, back, strict=True)]

    def _ask(self, prompts: Texts, first: Texts, second: Texts) -> list[float]:
        given = self._given(list(prompts), list(first), list(second))
        try:
            values = [math.nan if p is None else float(p) for p in given]
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.name} must give a list of probabilities: {error}") from error
        if len(values) != len(prompts):
            raise UserError(f"{self.name} gave {len(values)} probabilities for {len(prompts)}")
        for p in values:
            if not (0 <= p <= 1 or math.isnan(p)):
                raise UserError(f"{self.name} gave {p}, which is no probability in [0, 1]")
        return values

    def _given(self, prompts: list[str], first: list[str], second: list[str]) -> Any:
        """What the function gives for each pair."""
        if self.per_example is None and prompts:
            try:
                given = self._called(prompts, first, second)
            except _Failed as error:
                try:
                    alone = self._called(prompts[0], first[0], second[0])
                except _Failed:
                    raise error.told(self.name) from error.__cause__
                if not _is_number(alone):
                    raise error.told(self.name) from error.__cause__
                given = alone
            self.per_example = _is_number(given)
            if not self.per_example:
                return given
        try:
            if self.per_example:
                return [self._called(*pair) for pair in zip(prompts, first, second, strict=True)]
            return self._called(prompts, first, second)
        except _Failed as error:
            raise error.told(self.name) from error.__cause__

    def _called(self, *texts: Any) -> Any:
        with _within(self.timeout, self.name):
            try:
                return self.function(*texts)
            except UserError:
                raise
            except (Exception, SystemExit) as error:
                raise _Failed from error


class _Failed(Exception):
    """A judging function raised what is the cause of this."""

    def told(self, name: str) -> UserError:
        """The line about it."""
        cause = self.__cause__
        assert cause is not None
        # The innermost place in it, but for what it calls of libraries: the function's own file.
        frames = traceback.extract_tb(cause.__traceback__)[1:]
        own = [f for f in frames if frames and f.filename == frames[0].filename]
        where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        return UserError(f"{name} raised {type(cause).__name__}: {one_line(cause)}{where}")


class _TooLong(BaseException):
    """Not an Exception: a judge that catches everything and tries again must not catch this."""


@contextmanager
def _within(seconds: float, name: str) -> Iterator[None]:
    """Interrupt what is inside after so many seconds.

    Raises:
        UserError: it was.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not (math.isfinite(seconds) and in_main and hasattr(signal, "setitimer")):
        yield
        return

    def ring(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TooLong:
        raise UserError(
            f"{name} did not end within {seconds:g} s: --timeout gives it longer"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _says_per_example(function: Any) -> bool | None:
    """Whether a function takes one pair; None where only what it makes of lists will tell."""
    if (said := getattr(function, "per_example", None)) is not None:
        return bool(said)
    try:
        first = next(iter(inspect.signature(function).parameters.values()))
    except (StopIteration, TypeError, ValueError):  # some built-in functions have no signature
        return False
    if first.annotation in (str, "str"):
        return True
    singular = first.kind is not first.VAR_POSITIONAL and not first.name.endswith("s")
    return None if singular else False


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, (str, bytes)) and not getattr(value, "shape", ())


class AnnotationsJudge:
    """Preferences that were given before; either order of the answers is found.

    Args:
        rows: of :func:`torchmpo.winrate.alpaca_files.read_annotations`.
        name: for messages.
    """

    def __init__(self, rows: Sequence[Row], name: str = "the annotations"):
        self.name = name
        self.known: dict[tuple[str, str, str], float] = {}
        for row in rows:
            p = probability(row["preference"])
            texts = (row["instruction"], row["output_1"], row["output_2"])
            self.known.setdefault(texts, p)
        for (prompt, first, second), p in list(self.known.items()):
            self.known.setdefault((prompt, second, first), 1 - p)

    def __contains__(self, row: Mapping[str, Any]) -> bool:
        return (row["instruction"], row["output_1"], row["output_2"]) in self.known

    def __call__(self, prompts: Texts, first: Texts, second: Texts) -> list[float]:
        """Probabilities that the second is better.

        Raises:
            UserError: one of the pairs is not among the annotations.
        """
        asked = list(zip(prompts, first, second, strict=True))
        if absent := [texts[0] for texts in asked if texts not in self.known]:
            raise UserError(
                f"{self.name} has no preference between these two outputs for {absent[0][:60]!r}"
                + (f" and {len(absent) - 1} others" if len(absent) > 1 else "")
            )
        return [self.known[texts] for texts in asked]


class ScoreJudge:
    """Bradley and Terry's: σ(score of the second − score of the first).

    Args:
        score: prompts and answers → a finite number for each answer, higher is better.
        name: for messages.
    """

    def __init__(self, score: Callable[[Texts, Texts], Sequence[float]], name: str = "the score"):
        self.score, self.name = score, name

    def __call__(self, prompts: Texts, first: Texts, second: Texts) -> list[float]:
        """Probabilities that the second is better.

        Raises:
            UserError: a score is not finite, or there is not one for each answer.
        """
        scores = self.scores([*prompts, *prompts], [*first, *second])
        return [
            _sigmoid(b - a)
            for a, b in zip(scores[: len(prompts)], scores[len(prompts) :], strict=True)
        ]

    def scores(self, prompts: Texts, answers: Texts) -> list[float]:
        """The score of each answer.

        Raises:
            UserError: a score is not finite, or there is not one for each answer.
        """
        scores = [float(s) for s in self.score(prompts, answers)]
        if len(scores) != len(answers):
            raise UserError(f"{self.name} gave {len(scores)} scores for {len(answers)} answers")
        if bad := [s for s in scores if not math.isfinite(s)]:
            raise UserError(f"{self.name} gave a score of {bad[0]}")
        return scores


class RewardModelJudge(ScoreJudge):
    """A sequence classifier of transformers with one output, the reward.

    Prompt and answer are formatted by the tokenizer's chat template; where there is none, as the
    text pair of an encoder. What exceeds the model's length is cut off at the beginning.

    Args:
        source: folder with safetensors, or hub id (only then is the network used).
        batch_size: texts per forward pass.
        device: by default a GPU, if there is one.

    Attributes:
        cut: how many texts were too long so far.

    Raises:
        UserError: no such model, no or another head, no way to format a conversation.
    """

    def __init__(self, source: str | Path, *, batch_size: int = 16, device: str | None = None):
        try:
            import torch
            import transformers
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
        except ModuleNotFoundError as error:
            raise missing_package(error, "llm") from error

        super().__init__(self.rewards, str(source))
        self.batch_size, self.cut = batch_size, 0
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            with quiet(transformers):
                self.tokenizer: Any = AutoTokenizer.from_pretrained(source)
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    source, dtype="auto", use_safetensors=True, output_loading_info=True
                )
        except Exception as error:  # a folder that is no model fails in any way
            reason = one_line(error)
            raise UserError(f"{source} cannot be loaded as a reward model: {reason}") from error
        if missing := sorted(info["missing_keys"]):
            raise UserError(f"{source} is no reward model: it has no weights for {missing[0]}")
        if model.config.num_labels != 1:
            raise UserError(
                f"{source} has {model.config.num_labels} outputs; a reward model has one"
            )
        self.chat = bool(self.tokenizer.chat_template)
        if not self.chat and self.tokenizer.sep_token is None:
            raise UserError(f"the tokenizer of {source} has no chat template")
        self.config = model.config.get_text_config()
        # Of the model, and not of the tokenizer: it is by this that the model finds a text's end.
        pad, known = self.config.pad_token_id, model.get_input_embeddings().weight.shape[0]
        self.pad: int | None = pad if pad is not None and 0 <= pad < known else None
        self.max_length = _positions(model)
        self.model = model.eval().to(self.device)

    def rewards(self, prompts: Texts, answers: Texts) -> list[float]:
        """One reward per answer."""
        import torch

        encoded = [self._encode(p, a) for p, a in zip(prompts, answers, strict=True)]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
        rewards = [0.0] * len(encoded)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            with torch.inference_mode():
                out = self.model(**self._padded([encoded[i] for i in rows]))
            for i, reward in zip(rows, out.logits.squeeze(-1).float().tolist(), strict=True):
                rewards[i] = reward
        return rewards

    def _encode(self, prompt: str, answer: str) -> dict[str, list[int]]:
        if self.chat:
            messages = [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
            # The template writes the special tokens; the tokenizer must not add them again.
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            encoded = {"input_ids": ids}
            if len(ids) > self.max_length:
                self.cut += 1
                encoded = {"input_ids": ids[-int(self.max_length) :]}
        else:
            encoded = dict(self.tokenizer(prompt, answer))
            if len(encoded["input_ids"]) > self.max_length:
                self.cut += 1
                self.tokenizer.truncation_side = "left"
                encoded = dict(
                    self.tokenizer(prompt, answer, truncation=True, max_length=self.max_length)
                )
        return encoded | {"attention_mask": [1] * len(encoded["input_ids"])}

    def _padded(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Any]:
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        pad = self.pad
        if pad is None:
            # The model alone reads the last token, whatever it is: what stands for padding must
            # not be the last token of any text, or the model would look one place before it.
            ends = {row["input_ids"][-1] for row in rows}
            pad = next(i for i in range(len(ends) + 1) if i not in ends)
            self.config.pad_token_id = pad
        batch = {}
        for name in rows[0]:
            fill = pad if name == "input_ids" else 0
            padded = [row[name] + [fill] * (longest - len(row[name])) for row in rows]
            batch[name] = torch.tensor(padded, device=self.device)
        return batch


def _positions(model: Any) -> float:
    """How many tokens the model can read."""
    for name, module in model.named_modules():
        # Some encoders (RoBERTa's kind) count positions from behind the place of padding.
        skipped = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and skipped is not None:
            return module.num_embeddings - skipped - 1
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf


def _import(reference: str) -> Any:
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:
        raise UserError(f"judge {reference!r}: cannot import {module_name!r}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        raise own_code_raised(f"judge {reference}", error) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UserError(
            f"judge {reference!r}: {module_name} has no function {attribute!r}; "
            + (nearest(attribute, names) if names else "it has none at all")
        )
    return function


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
