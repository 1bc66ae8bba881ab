"""Prompts with the answers of others: what KTO measures how far a policy has moved by."""

import torch
from torch import Tensor

IGNORED = -100


def mismatched(batch: dict[str, Tensor], max_length: int | None = None) -> dict[str, Tensor]:
    """Each prompt of a batch followed by the answer before its own in the batch, in a circle.

    Args:
        batch: ``input_ids``, ``attention_mask`` and ``labels`` ``[B, T]``, padded on the right,
            labels as :func:`torchmpo.finetune.tokenize.collate` makes them.
        max_length: of a prompt with its new answer, in tokens; what is longer loses the end of the
            answer, as data do with ``truncation: keep_start``. None for no limit.

    Returns:
        the same three, ``[B, T']``.

    >>> ids = torch.tensor([[1, 2, 5, 0], [3, 6, 7, 8]])
    >>> labels = torch.tensor([[-100, -100, 5, -100], [-100, 6, 7, 8]])
    >>> mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    >>> both = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    >>> mismatched(both)["input_ids"].tolist()
    [[1, 2, 6, 7, 8], [3, 5, 0, 0, 0]]
    >>> mismatched(both, max_length=4)["input_ids"].tolist()
    [[1, 2, 6, 7], [3, 5, 0, 0]]
    """
    ids, answer = batch["input_ids"], batch["labels"] != IGNORED
    length = answer.sum(1)
    start = batch["attention_mask"].sum(1) - length  # an answer ends where padding begins
    ends = start + length.roll(1)
    if max_length is not None:
        ends = ends.clamp(max=max_length)
    time = torch.arange(int(ends.max()), device=ids.device)
    inside = time < ends[:, None]
    of_prompt = time < start[:, None]
    last = ids.shape[1] - 1
    own = ids.gather(1, time.clamp(max=last).expand(len(ids), -1))
    at = (time - start[:, None] + start.roll(1)[:, None]).clamp(0, last)
    other = ids.roll(1, 0).gather(1, at)
    joined = torch.where(inside, torch.where(of_prompt, own, other), 0)
    return {
        "input_ids": joined,
        "attention_mask": inside.long(),
        "labels": torch.where(inside & ~of_prompt, joined, IGNORED),
    }
