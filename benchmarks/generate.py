"""How many tokens per second does `torchmpo generate` write, against plain `model.generate`?

    python benchmarks/generate.py
    python benchmarks/generate.py --device cuda --hidden 2048 --layers 16 --batch_size 64

Both write answers of the same length to the same prompts with the same random model (float32 on a
CPU, bfloat16 on a GPU), in turn, in this process. The rival is what scripts do: the tokenizer pads
batches in the order of the file on the left, ``model.generate`` writes. Ours sorts prompts by
length, checks once that the model takes padding, and draws by row; loading is not counted. The
greedy texts of both must be equal.
"""

import argparse
import statistics
import time

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from torchmpo.finetune.answers import AnswerWriter, Sampling, batches


def setting(args):
    """Model, tokenizer and prompts of 8 to ``args.prompt`` words, a token each."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    model = LlamaForCausalLM(config).to(args.device, dtype).eval()
    with torch.no_grad():
        model.lm_head.weight[2] = 0  # the answers are all of one length
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, args.vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
    )
    sizes = torch.randint(8, args.prompt + 1, (args.prompts,)).tolist()
    texts = [
        " ".join(f"w{i}" for i in torch.randint(3, args.vocab, (size,)).tolist()) for size in sizes
    ]
    return model, fast, texts


def plain(model, tokenizer, texts, args, sampled):
    """A script's loop."""
    answers, tokens = [], 0
    how = {"do_sample": True, "top_k": 0} if sampled else {"do_sample": False}
    for start in range(0, len(texts), args.batch_size):
        batch = tokenizer(texts[start : start + args.batch_size], padding=True, return_tensors="pt")
        batch = {name: batch[name].to(args.device) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            out = model.generate(**batch, max_new_tokens=args.new, **how)
        new = out[:, batch["input_ids"].shape[1] :]
        tokens += new.numel()
        answers += tokenizer.batch_decode(new, skip_special_tokens=True)
    return answers, tokens


def ours(model, tokenizer, texts, args, sampled):
    writer = AnswerWriter(model, tokenizer, Sampling(args.new, temperature=float(sampled)))
    encoded = tokenizer(texts)["input_ids"]
    answers = {}
    for rows in batches([len(ids) for ids in encoded], range(len(texts)), args.batch_size):
        answers |= dict(zip(rows, writer([encoded[i] for i in rows], rows), strict=True))
    return [answers[i].text for i in range(len(texts))], args.new * len(texts)


def main():
    parser = argparse.ArgumentParser(description="Tokens per second of answers.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vocab", type=int, default=16384)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=192, help="tokens at most; 8 at least")
    parser.add_argument("--new", type=int, default=32, help="tokens of each answer")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    model, tokenizer, texts = setting(args)
    print(
        f"{args.prompts} prompts of 8 to {args.prompt} tokens, {args.new} new ones each, batches "
        f"of {args.batch_size}, {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters"
    )
    for sampled in (False, True):
        rates = {plain: [], ours: []}
        texts_of = {}
        for repeat in range(args.repeats + 1):  # the first is not counted
            for contestant in (plain, ours) if repeat % 2 else (ours, plain):
                torch.manual_seed(repeat)
                start = time.perf_counter()
                texts_of[contestant], tokens = contestant(model, tokenizer, texts, args, sampled)
                if args.device != "cpu":
                    torch.cuda.synchronize()
                if repeat:
                    rates[contestant].append(tokens / (time.perf_counter() - start))
        if not sampled and args.device == "cpu" and texts_of[plain] != texts_of[ours]:
            raise SystemExit("the texts differ")
        ratio = statistics.median(a / b for a, b in zip(rates[ours], rates[plain], strict=True))
        print(
            f"{'sampled' if sampled else 'greedy':8} torchmpo "
            f"{statistics.median(rates[ours]):7.0f} tokens/s   model.generate "
            f"{statistics.median(rates[plain]):7.0f} tokens/s   ratio {ratio:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
