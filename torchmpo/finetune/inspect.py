"""A pair of a data set, token by token, as the model gets it."""

from itertools import groupby
from typing import Any

from torchmpo.finetune.tokenize import IGNORED, PairDataset, collate
from torchmpo.runs.errors import UserError


def show_pair(dataset: PairDataset, i: int, tokenizer: Any) -> str:
    """A pair's tokens, told apart by whether they count in the loss, and their numbers.

    It is read from the batch that :func:`torchmpo.finetune.tokenize.collate` makes of the pair, so
    it shows what is trained on. Tokens are separated by ``|``; a line feed in one is shown as
    ``\\n``.

    Args:
        dataset: tokenized pairs.
        i: which of them, in 0…len − 1: the ``index`` of a batch.
        tokenizer: the one they were made with.

    Returns:
        Lines of text.

    Raises:
        UserError: there is no such pair.
    """
    if not 0 <= i < len(dataset):
        raise UserError(f"there is no pair {i}: the data set has {len(dataset)}, counted from 0")
    pair = dataset[i]
    batch = collate([pair], pad_token_id=0)
    cut = [
        *["the prompt's start was cut"] * pair.prompt_cut,
        *["answers were cut"] * pair.answer_cut,
        *["the prompt's end merges with an answer"] * pair.merged,
    ]
    row = f"pair {i} of {len(dataset)} (row {int(dataset.rows[i])} before any was dropped)"
    lines = [f"{row}: {'; '.join(cut)}" if cut else row]
    lines += [
        f"{name.replace('_', ' ').removesuffix('s')}: {batch[name].item():g}"
        for name in ("chosen_rewards", "rejected_rewards", "preference_probs")
        if name in batch
    ]
    names = [*["golden"] * (pair.gold is not None), "chosen"]
    names += [f"answer {rank}" for rank in range(2, 2 + len(pair.between))] + ["rejected"]
    for side, ids, mask, labels in zip(
        names, batch["input_ids"], batch["attention_mask"], batch["labels"]
    ):
        size = int(mask.sum())
        counted = (labels[:size] != IGNORED).tolist()
        lines.append(f"{side}: {size} tokens, {size - sum(counted)} masked, {sum(counted)} counted")
        for counts, run in groupby(zip(counted, ids[:size].tolist()), key=lambda token: token[0]):
            shown = "|".join(_shown(tokenizer, token) for _, token in run)
            lines.append(f"  {'counted' if counts else 'masked '}  {shown}")
    return "\n".join(lines)


def _shown(tokenizer: Any, token: int) -> str:
    """A token as text, or as the vocabulary has it where it is a part of a character."""
    name, text = tokenizer.convert_ids_to_tokens(token), tokenizer.decode([token])
    if name is None or not text or "\ufffd" in text:
        text = str(name if name is not None else token)
    elif name.startswith("▁") and not text.startswith(" "):
        text = f" {text}"  # SentencePiece takes a leading space off a whole text
    return text.replace("\n", "\\n").replace("\r", "\\r")
