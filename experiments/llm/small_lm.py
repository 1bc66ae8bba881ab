"""A language model of film reviews, small enough to be trained from scratch on one core.

Byte-level BPE and a Llama of 1.6 M parameters. A row is BOS, a passage of whole sentences, EOS, so
that the model knows when to stop and answers have lengths of their own. It is kept as an ordinary
folder of transformers, with ``card.json`` beside the weights.

    python -m experiments.llm.small_lm             (minutes, once)
"""

import argparse
import copy
import hashlib
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from experiments.llm.reviews import Review, load_reviews, sentences, splits
from experiments.llm.sentiment import cache_folder
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import derive_seed, generator

PAD, BOS, EOS = range(3)
IGNORED = -100


@dataclass(frozen=True)
class LmSettings:
    """Size and training of the model.

    Args:
        vocabulary: tokens, BOS, EOS and padding among them; at least 259.
        layers, hidden, heads, intermediate: of the Llama.
        max_tokens: of a passage, without BOS and EOS.
        epochs: passes over all passages, at most: after the validation loss has risen twice
            running there is no further one, and the weights are those of the best pass.
        batch_size: passages.
        lr: peak learning rate of AdamW; 5 % warm-up, then a cosine to 0.
        seed: of initial weights and order.
    """

    vocabulary: int = 4096
    layers: int = 3
    hidden: int = 160
    heads: int = 4
    intermediate: int = 432
    max_tokens: int = 40
    epochs: int = 2
    batch_size: int = 64
    lr: float = 3e-3
    seed: int = 0

    def digest(self) -> str:
        """Eight digits that tell settings apart."""
        return hashlib.blake2b(json.dumps(asdict(self)).encode(), digest_size=4).hexdigest()


TINY = LmSettings(vocabulary=300, layers=1, hidden=16, heads=2, intermediate=32, epochs=1)


def passages(text: str, count: Any, limit: int) -> list[str]:
    """A text cut between sentences into passages as long as fit; the first is its opening.

    Args:
        text: a review.
        count: function, tokens of a text.
        limit: tokens of a passage; a sentence that has more by itself is left out.
    """
    found: list[str] = []
    current, size = [], 0
    for sentence in sentences(text):
        tokens = count(sentence) + 1  # the space before it
        if size + tokens > limit and current:
            found.append(" ".join(current))
            current, size = [], 0
        if tokens <= limit:
            current.append(sentence)
            size += tokens
    return [*found, " ".join(current)] if current else found


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Byte-level BPE that puts BOS before a text, as a tokenizer of transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def rows_of(reviews: Sequence[Review], tokenizer: Any, limit: int) -> list[list[int]]:
    """Token ids of all passages of the reviews, BOS and EOS included."""

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    texts = [p for review in reviews for p in passages(review.text, count, limit)]
    encoded = tokenizer(texts)["input_ids"] if texts else []
    return [[*ids, EOS] for ids in encoded if len(ids) <= limit + 1]


def collate(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """``input_ids`` and ``labels`` ``[rows, time]``, padded on the right; −100 is no label."""
    time_steps = max(map(len, rows))
    ids = torch.full((len(rows), time_steps), PAD)
    labels = torch.full((len(rows), time_steps), IGNORED)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = labels[i, : len(row)] = torch.tensor(row)
    return ids, labels


def make_lm(
    reviews: Sequence[Review], held_out: Sequence[Review], folder: Path, settings: LmSettings
) -> None:
    """Train tokenizer and model on the reviews, and write the folder.

    Args:
        reviews: to train on.
        held_out: for the validation loss.
        folder: to be made; it is there whole or not at all.
        settings: see :class:`LmSettings`.

    Raises:
        UserError: no passage of the reviews is short enough.
    """
    started = time.perf_counter()
    tokenizer = train_tokenizer((review.text for review in reviews), settings.vocabulary)
    rows = rows_of(reviews, tokenizer, settings.max_tokens)
    if not rows:
        raise UserError(f"no passage of the reviews fits into {settings.max_tokens} tokens")
    unseen = rows_of(held_out, tokenizer, settings.max_tokens)
    model = _new_model(settings, len(tokenizer))
    passed: list[float] = []
    best = model.state_dict()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.95), fused=True)
    steps = settings.epochs * math.ceil(len(rows) / settings.batch_size)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    step, recent = 0, []
    for epoch in range(settings.epochs):
        for batch in _batches(rows, settings, epoch):
            loss = _loss(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            recent.append(loss.item())
            step += 1
            if step % 100 == 0 or step == steps:
                left = (time.perf_counter() - started) / step * (steps - step)
                mean = sum(recent) / len(recent)
                recent.clear()
                print(
                    f"LM step {step}/{steps}  loss {mean:.3f}  {left / 60:.1f} min left", flush=True
                )
        if not unseen:
            continue
        passed.append(mean_loss(model, unseen, settings.batch_size))
        model.train()
        print(f"LM pass {epoch + 1}  validation loss {passed[-1]:.3f}", flush=True)
        if passed[-1] == min(passed):
            best = copy.deepcopy(model.state_dict())
        if len(passed) > 2 and passed[-1] > passed[-2] > passed[-3]:
            break
    if passed:
        model.load_state_dict(best)
    card = {
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in model.parameters()),
        "passages": len(rows),
        "tokens": sum(map(len, rows)),
        "steps": step,
        "validation_losses": passed,
        "validation_loss": min(passed, default=None),
        "seconds": round(time.perf_counter() - started),
    }
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


@torch.no_grad()
def mean_loss(model: Any, rows: Sequence[Sequence[int]], batch_size: int = 64) -> float:
    """Mean negative log-probability of a token, nats; EOS counts, BOS does not."""
    model.eval()
    rows = sorted(rows, key=len)
    total = count = 0.0
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        tokens = sum(len(row) - 1 for row in batch)
        total += _loss(model, batch).item() * tokens
        count += tokens
    return total / count


def lm_folder(settings: LmSettings | None = None, parts: Any = None, folder: Path | None = None):
    """The folder of the model, trained now if it is not there.

    Args:
        settings: by default those of the study.
        parts: of :func:`experiments.llm.reviews.splits`; by default of the installed package.
        folder: where models are kept, by default the cache.

    Raises:
        UserError: the reviews are not installed.
    """
    settings = LmSettings() if settings is None else settings
    base = cache_folder() if folder is None else folder
    path = base / f"review_lm_{settings.digest()}"
    if not (path / "card.json").exists():
        parts = splits(load_reviews()) if parts is None else parts
        base.mkdir(parents=True, exist_ok=True)
        make_lm(parts["language_model"], parts["held_out"], path, settings)
    return path


def _new_model(settings: LmSettings, vocabulary: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(settings.seed, "lm"))
        return LlamaForCausalLM(config).train()


def _loss(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    ids, labels = collate(rows)
    # Padding is on the right: causal attention never looks at it.
    logits = model(ids, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def _batches(rows: list[list[int]], settings: LmSettings, epoch: int) -> list[list[list[int]]]:
    """Batches of passages of about the same length, in random order."""
    size = settings.batch_size
    order = torch.randperm(len(rows), generator=generator(settings.seed, "order", epoch)).tolist()
    batches = []
    for start in range(0, len(order), 50 * size):
        near = sorted(order[start : start + 50 * size], key=lambda i: len(rows[i]))
        batches += [[rows[i] for i in near[at : at + size]] for at in range(0, len(near), size)]
    random.Random(derive_seed(settings.seed, "batches", epoch)).shuffle(batches)
    return batches


def _rate(step: int, steps: int) -> float:
    warm = max(1, round(0.05 * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


def main() -> int:
    """Train the model if it is not there, and print its card."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    torch.set_num_threads(1)
    try:
        folder = lm_folder()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print((folder / "card.json").read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
