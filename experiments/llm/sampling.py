"""Answers of a language model, and how far a tuned one has gone from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.llm.small_lm import PAD, collate
from torchmpo.finetune.tokenize import encode_prompt
from torchmpo.runs.seeding import generator


@dataclass(frozen=True)
class Answer:
    """An answer as text and tokens; ``ended`` says whether it came to its EOS."""

    text: str
    prompt_ids: list[int]
    ids: list[int]
    ended: bool


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    seed: int,
    new_tokens: int,
    at_once: int = 512,
) -> list[Answer]:
    """One answer to each prompt, drawn at temperature 1.

    Every token is drawn by a uniform number that belongs to (seed, prompt, place), so that an
    answer does not depend on the others, and two models differ only where their distributions do.
    Rows that have ended are dropped on the way, which transformers' ``generate`` does not do.
    """
    from transformers import DynamicCache

    end = tokenizer.eos_token_id
    uniform = torch.rand(len(prompts), new_tokens, generator=generator(seed, "sample"))
    encoded = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    drawn: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(prompts), at_once):
        rows = torch.arange(start, min(start + at_once, len(prompts)))
        width = max(len(encoded[i]) for i in rows.tolist())
        ids = torch.tensor([[PAD] * (width - len(encoded[i])) + encoded[i] for i in rows.tolist()])
        mask = (torch.arange(width) >= width - _lengths([encoded[i] for i in rows])[:, None]).long()
        cache = DynamicCache()
        for place in range(new_tokens):
            logits = model(
                ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            edges = logits.float().softmax(-1).cumsum(-1)  # bfloat16 cannot sum a vocabulary
            wanted = uniform[rows, place, None] * edges[:, -1:]
            tokens = torch.searchsorted(edges, wanted).clamp(max=edges.shape[1] - 1)
            for row, token in zip(rows.tolist(), tokens[:, 0].tolist(), strict=True):
                drawn[row].append(token)
            going = (tokens[:, 0] != end).nonzero()[:, 0]
            if not len(going):
                break
            if len(going) < len(rows):
                rows, mask, tokens = rows[going], mask[going], tokens[going]
                cache.batch_select_indices(going)
            ids, mask = tokens, torch.cat([mask, torch.ones_like(tokens)], 1)
    answers = []
    for prompt_ids, row in zip(encoded, drawn, strict=True):
        ended = row[-1] == end
        own = row[:-1] if ended else row
        text = tokenizer.decode(own, skip_special_tokens=True)
        answers.append(Answer(text, prompt_ids, own, ended))
    return answers


@torch.no_grad()
def answer_kl(model: Any, reference: Any, answers: Sequence[Answer], at_once: int = 128) -> Tensor:
    """KL divergence from the reference along each answer, ``[answers]``, nats.

    The sum over its tokens of the divergence of the two next-token distributions, both in full: its
    mean over the model's own answers estimates the divergence of the distributions of answers, with
    less noise than the ratio of log-probabilities has.
    """
    sums = []
    for start in range(0, len(answers), at_once):
        part = answers[start : start + at_once]
        # The token that ends an answer is predicted and never read, so that any will do.
        ids, _ = collate([a.prompt_ids + a.ids + [PAD] * a.ended for a in part])
        place = torch.arange(ids.shape[1] - 1)
        first = _lengths([a.prompt_ids for a in part])[:, None] - 1
        last = first + torch.tensor([len(a.ids) + a.ended for a in part])[:, None]
        counted = (place >= first) & (place < last)
        # Logits where an answer's tokens are, and nowhere else: they are most of the work.
        p, q = (
            m.get_output_embeddings()(m.base_model(ids, use_cache=False)[0][:, :-1][counted])
            .float()
            .log_softmax(-1)
            for m in (model, reference)
        )
        terms = torch.zeros(counted.shape).masked_scatter(counted, (p.exp() * (p - q)).sum(-1))
        sums.append(terms.sum(-1))
    return torch.cat(sums)


def _lengths(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([len(row) for row in rows])
