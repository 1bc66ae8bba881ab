"""A tiny model and pairs of answers, so that `my_run.yaml` has something to train before yours.

A Llama of random weights with a chat template, and questions of arithmetic, in runs/tiny/. What is
there already stays.

    python -m experiments.llm.first_run            (what `make finetune` does first; a few seconds)
"""

import json
import sys
from pathlib import Path

import torch

from experiments.llm.small_lm import train_tokenizer
from torchmpo.runs.files import write_atomic

FOLDER = Path("runs/tiny")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role + '\\n' + m.content + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant\\n' }}{% endif %}"
)


def rows() -> list[dict[str, str]]:
    """Sums of digits: the better answer is right, the worse one is off by one."""
    return [
        {
            "question": f"What is {a} + {b}?",
            "chosen": f"{a} + {b} is {a + b}.",
            "rejected": f"{a} + {b} is {a + b + 1}.",
        }
        for a in range(10)
        for b in range(10)
    ]


def write_model(folder: Path) -> None:
    """A model and its tokenizer, as an ordinary folder of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    texts = [text for row in rows() for text in row.values()]
    tokenizer = train_tokenizer(texts, vocabulary=320)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(config).save_pretrained(folder)  # last: with it the folder is whole


def main() -> int:
    """Write what is not there."""
    model, pairs = FOLDER / "model", FOLDER / "pairs.jsonl"
    if not (model / "model.safetensors").is_file():
        write_model(model)
        print(f"wrote {model}")
    if not pairs.is_file():
        write_atomic(pairs, "".join(json.dumps(row) + "\n" for row in rows()))
        print(f"wrote {pairs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
