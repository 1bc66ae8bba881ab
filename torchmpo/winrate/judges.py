"""Judges: which of two answers to a prompt is better.

A judge is called with prompts, first answers and second answers, lists of the same length, and
gives for each the probability in [0, 1] that the **second** is better, NaN where it cannot tell.
Any function that does so is one; :func:`resolve_judge` finds one by name.
"""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchmpo.runs.errors import UserError, missing_package, nearest
from torchmpo.runs.own_code import own_code_raised
from torchmpo.winrate.alpaca_files import Row, probability, read_annotations

Texts = Sequence[str]
Judge = Callable[[Texts, Texts, Texts], Sequence[float]]


def resolve_judge(name: str, *, both_orders: bool = True, batch_size: int = 16) -> Judge:
    """A judge by its name.

    Args:
        name: an AlpacaEval annotations file (``….json``, ``….jsonl``), ``package.module:function``,
            or a folder or hub id of a transformers reward model.
        both_orders: ask a function a second time with the answers swapped, and take the mean.
        batch_size: texts that a reward model reads at once.

    Raises:
        UserError: there is no such thing, or it cannot be used.
    """
    if name.endswith((".json", ".jsonl")):
        return AnnotationsJudge(read_annotations(name), name)
    if ":" in name and not Path(name).exists():
        return FunctionJudge(_import(name), both_orders=both_orders, name=name)
    return RewardModelJudge(name, batch_size=batch_size)


class FunctionJudge:
    """A function, checked.

    Judges that read both answers tend to prefer one of the two places. The mean of both orders,
    (p(1, 2) + 1 − p(2, 1)) / 2, has no such preference.

    Args:
        function: a judge.
        both_orders: whether to ask twice; a function with an attribute ``symmetric = True`` says
            that it need not be.
        name: for messages.
    """

    def __init__(self, function: Judge, *, both_orders: bool = True, name: str | None = None):
        self.function = function
        self.both_orders = both_orders and not getattr(function, "symmetric", False)
        self.name = name or getattr(function, "__name__", type(function).__name__)

    def __call__(self, prompts: Texts, first: Texts, second: Texts) -> list[float]:
        """Probabilities that the second is better.

        Raises:
            UserError: the function gave something else than that many probabilities, or is found by
            a name and raised.
        """
        there = self._ask(prompts, first, second)
        if not self.both_orders:
            return there
        back = self._ask(prompts, second, first)
        return [(p + 1 - q) / 2 for p, q in zip(there, back, strict=True)]

    def _ask(self, prompts: Texts, first: Texts, second: Texts) -> list[float]:
        try:
            given = self.function(list(prompts), list(first), list(second))
        except (Exception, SystemExit) as error:
            if ":" not in self.name:
                raise
            raise own_code_raised(self.name, error) from error
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
        scores = [float(s) for s in self.score([*prompts, *prompts], [*first, *second])]
        if len(scores) != 2 * len(prompts):
            raise UserError(f"{self.name} gave {len(scores)} scores for {2 * len(prompts)} answers")
        if bad := [s for s in scores if not math.isfinite(s)]:
            raise UserError(f"{self.name} gave a score of {bad[0]}")
        return [
            _sigmoid(b - a)
            for a, b in zip(scores[: len(prompts)], scores[len(prompts) :], strict=True)
        ]


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
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
        except ModuleNotFoundError as error:
            raise missing_package(error, "llm") from error

        super().__init__(self.rewards, str(source))
        self.batch_size, self.cut = batch_size, 0
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                source, dtype="auto", use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
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
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self.tokenizer.pad_token_id
        self.pad = model.config.pad_token_id
        self.max_length = getattr(model.config, "max_position_embeddings", None) or math.inf
        self.model = model.eval().to(self.device)

    def rewards(self, prompts: Texts, answers: Texts) -> list[float]:
        """One reward per answer."""
        import torch

        encoded = [self._encode(p, a) for p, a in zip(prompts, answers, strict=True)]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
        size = self.batch_size if self.pad is not None else 1
        rewards = [0.0] * len(encoded)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
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
        batch = {}
        for name in rows[0]:
            fill = self.pad if name == "input_ids" and self.pad is not None else 0
            padded = [row[name] + [fill] * (longest - len(row[name])) for row in rows]
            batch[name] = torch.tensor(padded, device=self.device)
        return batch


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
