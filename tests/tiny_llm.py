"""Language models and tokenizers so small that a test builds and trains them in a second."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.integrations.flash_attention import get_target_dtype
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

# Warnings that are no news of ours: `pytestmark = QUIET`.
QUIET = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        # Lightning 2.6 and torch 2.13, peft 0.21 and transformers 5.23: deprecated names.
        "`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
        "`is_gradient_checkpointing` is deprecated:FutureWarning",
        "Checkpoint directory .* exists",
        # No validation data, few workers, few batches: as meant.
        ":lightning.fabric.utilities.warnings.PossibleUserWarning",
    )
]
SENTENCES = [
    "What is the capital of France? The capital of France is Paris.",
    "Name a colour. Blue is a colour, and red is one as well.",
    "I do not know. Go away! Please ask somebody else about it.",
    "user assistant system: the quick brown fox jumps over the lazy dog 0123456789",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tiny_tokenizer(*, template: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 300 tokens; <pad> 0, <s> 1, </s> 2; it adds neither by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        special_tokens=["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    if template:
        fast.chat_template = TEMPLATE
    return fast


def tiny_llama(seed: int = 0, vocab: int = 320, **changes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=vocab, initializer_range=0.2, **(SIZES | changes))
    return LlamaForCausalLM(config).eval()


def tiny_gemma(seed: int = 0, vocab: int = 320) -> GemmaForCausalLM:
    torch.manual_seed(seed)
    return GemmaForCausalLM(GemmaConfig(vocab_size=vocab, initializer_range=0.2, **SIZES)).eval()


def tiny_gemma2(seed: int = 0, softcap: float = 2.0) -> Gemma2ForCausalLM:
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=320, initializer_range=0.2, final_logit_softcapping=softcap, **SIZES
    )
    return Gemma2ForCausalLM(config).eval()


def tiny_gemma3(seed: int = 0) -> Gemma3ForConditionalGeneration:
    """A model of pictures and text."""
    torch.manual_seed(seed)
    text = Gemma3TextConfig(vocab_size=320, initializer_range=0.2, **SIZES)
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    config = Gemma3Config(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        mm_tokens_per_image=4,
        image_token_index=317,
        boi_token_index=318,
        eoi_token_index=319,
    )
    return Gemma3ForConditionalGeneration(config).eval()


def save_tiny(folder: Path, model=None, tokenizer=None) -> Path:
    """A folder as transformers writes it."""
    (model or tiny_llama()).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def tiny_pairs(count: int = 12, seed: int = 0) -> list[dict]:
    """Pairs of different lengths; every prompt is another one."""
    generator = torch.Generator().manual_seed(seed)

    def words(low: int, high: int) -> str:
        pool = " ".join(SENTENCES).split()
        size = int(torch.randint(low, high, (), generator=generator))
        picks = torch.randint(len(pool), (size,), generator=generator)
        return " ".join(pool[int(i)] for i in picks)

    return [
        {
            "prompt": f"{i} {words(1, 8)}?",
            "chosen": f" {words(1, 10)}",
            "rejected": f" {words(1, 10)}!",
        }
        for i in range(count)
    ]


def tiny_batch(pairs: int = 4, time: int = 14, seed: int = 0, vocab: int = 320) -> dict:
    """What ``collate`` gives, with random tokens: prompts of 3, completions of 2 to time − 3."""
    generator = torch.Generator().manual_seed(seed)
    rows = 2 * pairs
    ids = torch.randint(6, vocab, (rows, time), generator=generator)
    ends = torch.randint(5, time + 1, (rows,), generator=generator)
    mask = (torch.arange(time) < ends[:, None]).long()
    ids = torch.where(mask == 1, ids, 0)
    labels = torch.where((mask == 1) & (torch.arange(time) >= 3), ids, -100)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "index": torch.arange(pairs),
    }


def register_half_attention() -> str:
    """An attention that refuses float32, as flash attention does, by its name."""

    def attention(module, query, *args, **more):
        # Rotations make float32 also under autocast, from which transformers goes back.
        if get_target_dtype(query, module) == torch.float32:
            raise RuntimeError("this attention knows fp16 and bf16 only")
        return sdpa_attention_forward(module, query, *args, **more)

    AttentionInterface.register("half_only", attention)
    AttentionMaskInterface.register("half_only", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return "half_only"
