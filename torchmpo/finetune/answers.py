"""Answers of a causal LM to prompts, many at a time.

An answer does not depend on what it is written with: prompts are padded on the left, padding is
masked, and what is drawn at random follows from (seed, row, place). So any batch size and any
resume give the same answers, up to the rounding of the model's own arithmetic: in float32 the same
text, in bfloat16 now and then another word.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchmpo.finetune.models import is_adapted
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import generator

# What logits after a padded prompt may differ by from those after the prompt alone, in units of the
# largest: rounding, but not another position or a token that should not be seen.
PADDING_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
LOW_PRECISION_PADDING_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Args:
        max_new_tokens: longest answer, ≥ 1; a longer one is cut.
        temperature: 0 takes the likeliest token (greedy), 1 draws as the model predicts; ≥ 0.
        top_p: draw among the likeliest tokens that together have this probability, in (0, 1].
        seed: of what is drawn.

    Raises:
        UserError: a number out of range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1; got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be zero or positive; got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be in (0, 1]; got {self.top_p}")


class Answer(NamedTuple):
    """A text, and ``"stop"`` where the model ended it or ``"length"`` where it was cut."""

    text: str
    finish_reason: str


class AnswerWriter:
    """Writes answers with a model.

    What the model's own generation_config says of penalties, beams or temperature is not used; its
    end tokens are, and the tokenizer's EOS.

    Args:
        model: a causal LM, with or without adapters.
        tokenizer: with an EOS token.
        sampling: how answers are drawn.

    Attributes:
        pads: whether the model can be given prompts padded on the left; found on the first batch
            of prompts of different lengths. One that cannot gets prompts of one length at a time.
    """

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling):
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.causal = model.get_base_model() if is_adapted(model) else model
        ends = self.causal.generation_config.eos_token_id
        ends = ends if isinstance(ends, (list, tuple)) else [ends]
        self.ends = sorted({tokenizer.eos_token_id, *ends} - {None})
        pad = tokenizer.pad_token_id
        self.pad: int = self.ends[0] if pad is None else pad
        self.pads: bool | None = None
        config = self.causal.config.get_text_config()
        self.positions: int | None = getattr(config, "max_position_embeddings", None)

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Refuse prompts that leave no room for an answer.

        Raises:
            UserError: an empty one, or one that with its answer exceeds the model's positions.
        """
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise UserError(f"prompt {row} has no tokens: nothing could follow it")
            longest = len(prompt) + self.sampling.max_new_tokens
            if self.positions is not None and longest > self.positions:
                raise UserError(
                    f"prompt {row} has {len(prompt)} tokens, which with max_new_tokens "
                    f"{self.sampling.max_new_tokens} exceeds the model's {self.positions} "
                    "positions: lower max_new_tokens, or shorten the prompt"
                )

    def __call__(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> list[Answer]:
        """One answer to each prompt.

        Args:
            prompts: token ids, see :func:`torchmpo.finetune.tokenize.encode_prompt`.
            rows: the numbers by which draws are seeded, one for each prompt.
        """
        lengths = sorted({len(prompt) for prompt in prompts})
        training = self.model.training
        self.model.eval()
        try:
            with _own_generation_config(self.causal), torch.no_grad():
                if len(lengths) > 1 and self.pads is None:
                    self.pads = self._can_pad(min(prompts, key=len), lengths[-1])
                if len(lengths) == 1 or self.pads:
                    return self._write(prompts, rows)
                answers: dict[int, Answer] = {}
                for length in lengths:
                    places = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
                    written = self._write([prompts[i] for i in places], [rows[i] for i in places])
                    answers |= dict(zip(places, written, strict=True))
                return [answers[i] for i in range(len(prompts))]
        finally:
            self.model.train(training)

    def _write(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> list[Answer]:
        ids, mask = self._padded(prompts, max(map(len, prompts)))
        out = self._generate(ids, mask, self.sampling.max_new_tokens, self._draws(ids, rows))
        new = out[:, ids.shape[1] :].tolist()
        return [self._answer(prompt, row) for prompt, row in zip(prompts, new, strict=True)]

    def _generate(self, ids: Tensor, mask: Tensor, new: int, processors: Any, **more: Any) -> Any:
        from transformers import GenerationConfig, LogitsProcessorList

        processors = LogitsProcessorList([_refuse_nan(ids.shape[1]), *(processors or ())])
        config = GenerationConfig(
            max_new_tokens=new,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=self.ends,
            pad_token_id=self.pad,
            **more,
        )
        return self.causal.generate(
            ids, attention_mask=mask, generation_config=config, logits_processor=processors
        )

    def _padded(self, prompts: Sequence[Sequence[int]], width: int) -> tuple[Tensor, Tensor]:
        device = self.causal.device
        ids = [[self.pad] * (width - len(p)) + list(p) for p in prompts]
        mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def _draws(self, ids: Tensor, rows: Sequence[int]) -> Any:
        """What turns logits into a choice; nothing where the likeliest token is taken."""
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        sampling = self.sampling
        if sampling.temperature == 0:
            return None
        processors: list[Any] = []
        if sampling.temperature != 1:
            processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        uniform = torch.stack(
            [
                torch.rand(sampling.max_new_tokens, generator=generator(sampling.seed, "answer", r))
                for r in rows
            ]
        )
        return LogitsProcessorList([*processors, _draw(uniform.to(ids.device), ids.shape[1])])

    def _answer(self, prompt: Sequence[int], ids: list[int]) -> Answer:
        """The text that makes these tokens after that prompt, up to where the answer ends."""
        end = next((i for i, token in enumerate(ids) if token in self.ends), None)
        # Alone, SentencePiece would take a space off its front.
        before, whole, text = (
            self.tokenizer.decode(part, skip_special_tokens=True)
            for part in (list(prompt), [*prompt, *ids[:end]], ids[:end])
        )
        if whole.startswith(before) and whole.endswith(text):
            text = whole[len(before) :]
        return Answer(text, "length" if end is None else "stop")

    def _can_pad(self, prompt: Sequence[int], width: int) -> bool:
        """Whether the token after a prompt is the same with padding before it."""
        logits = []
        for size in (len(prompt), width):
            ids, mask = self._padded([prompt], size)
            out = self._generate(
                ids, mask, 1, None, output_logits=True, return_dict_in_generate=True
            )
            logits.append(out.logits[0].double())
        tolerance = PADDING_TOLERANCE.get(self.causal.dtype, LOW_PRECISION_PADDING_TOLERANCE)
        gap = (logits[0] - logits[1]).abs().max()
        fine = bool(gap <= tolerance * logits[0].abs().max())
        if not fine:
            warnings.warn(
                f"{type(self.causal).__name__} takes no padding before a prompt: only prompts of "
                "the same length are answered together, which is slower",
                stacklevel=2,
            )
        return fine


def batches(lengths: Sequence[int], rows: Sequence[int], size: int) -> Iterator[list[int]]:
    """Rows that are answered together, the longest prompts first: little padding, and what does not
    fit into memory shows at once.

    >>> list(batches([3, 9, 4, 8], [0, 1, 2, 3], 2))
    [[1, 3], [2, 0]]
    """
    order = sorted(rows, key=lambda row: -lengths[row])
    for start in range(0, len(order), size):
        yield order[start : start + size]


@contextmanager
def _own_generation_config(model: Any) -> Iterator[None]:
    """Without the model's own settings, which would fill in for those that are not given."""
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


def _refuse_nan(start: int) -> Any:
    """A processor that refuses logits that are no numbers, of which the first token would be taken.

    Args:
        start: tokens before the first new one, which alone is looked at: a look takes time, and
            weights that are no numbers show at once.
    """

    def check(input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] == start and scores.isnan().any():
            raise UserError("the model's logits are NaN: its weights are damaged")
        return scores

    return check


def _draw(uniform: Tensor, start: int) -> Any:
    """A processor that leaves of the logits one token a row: that at the quantile ``uniform``.

    Args:
        uniform: ``[batch, new tokens]``, in [0, 1).
        start: tokens before the first new one.
    """

    def draw(input_ids: Tensor, scores: Tensor) -> Tensor:
        edges = scores.double().softmax(-1).cumsum(-1)
        wanted = uniform[:, input_ids.shape[1] - start, None].double() * edges[:, -1:]
        token = torch.searchsorted(edges, wanted, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -float("inf")).scatter(1, token, 0.0)

    return draw
