"""What the run of ``gemma7b_dpo_mix.yaml`` needs: memory and hours on one GPU, from measured parts.

    python -m experiments.llm.plan_gemma
    python -m experiments.llm.plan_gemma --json plan.json

Nothing of Gemma is downloaded. Its shape is written down here; weights are counted on torch's meta
device; what a layer keeps for the backward pass is measured on one and two random layers of full
width, with the configuration's own adapters, dropout and precision, by asking autograd for every
tensor that it saves. Kernels on a GPU save the same tensors: autograd decides, not the device. The
rest is arithmetic, shown line by line.

What is not known here is said as a range: the share of a GPU's peak speed that training reaches,
and how long the pairs are (their tokenizer and texts are on the hub).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from torchmpo.finetune.models import LoraSettings, TokenLogps, add_lora
from torchmpo.linear_logps import TILE_NUMBERS
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.files import write_atomic

CONFIG = Path(__file__).parent / "gemma7b_dpo_mix.yaml"
# Gemma Team, arXiv 2403.08295, table 1.
GEMMA_7B = {
    "vocab_size": 256_000,
    "hidden_size": 3072,
    "intermediate_size": 24_576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
}
PAIRS = 6750  # of dpo-mix-7k, to train on
GIB = 2**30
# Dense bfloat16 peak in TFLOP/s, and memory in GiB, by the makers' data sheets.
GPUS = {"A100 80 GB": (312, 80e9 / GIB), "H100 80 GB": (989, 80e9 / GIB)}
GPUS["H200 141 GB"] = (989, 141e9 / GIB)
UTILISATION = (0.25, 0.45)  # of the peak: what trainers of this size report
MEAN_TOKENS = (500, 1000)  # of prompt and answer together, padding included
TRANSIENT = 1.15  # for gradients in flight, workspaces of kernels, fragmentation
CUDA_CONTEXT = 1.0  # GiB


def model_on(device: str, changes: dict[str, Any], lora: LoraSettings, checkpointing: bool) -> Any:
    """A Gemma in bfloat16 with float32 adapters, in training mode."""
    from transformers import GemmaConfig, GemmaForCausalLM

    with torch.device(device):
        model = GemmaForCausalLM(GemmaConfig(**(GEMMA_7B | changes))).to(torch.bfloat16)
        model = add_lora(model, lora)
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    return model.train()


def count(lora: LoraSettings) -> dict[str, int]:
    """Weights by what they are for."""
    model = model_on("meta", {}, lora, checkpointing=False)
    embedding = model.get_input_embeddings().weight.numel()
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return {"frozen": frozen, "embedding": embedding, "adapters": adapters}


def saved_bytes(layers: int, lora: LoraSettings, tokens: int, checkpointing: bool) -> int:
    """What the forward pass of one sequence keeps for the backward pass, weights left out."""
    # A small vocabulary: the head keeps two rows of hidden size per token, counted by itself.
    model = model_on("cpu", {"num_hidden_layers": layers, "vocab_size": 512}, lora, checkpointing)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}
    alive = []  # or an address would be given out twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Weights' copies in bfloat16 are among them; they do not grow with the tokens.
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    ids = torch.randint(3, 512, (1, tokens), generator=torch.Generator().manual_seed(0))
    policy = TokenLogps(model)
    policy.fused = True
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        policy(ids, torch.ones_like(ids), ids)
    return sum(found.values())


def measure(lora: LoraSettings, short: int = 32, long: int = 96) -> dict[str, float]:
    """Bytes per token of one layer, kept throughout and, with checkpointing, only while in it."""

    def slope(layers: int, checkpointing: bool) -> float:
        sizes = [saved_bytes(layers, lora, n, checkpointing) for n in (short, long)]
        return (sizes[1] - sizes[0]) / (long - short)

    plain = [slope(layers, False) for layers in (1, 2)]
    light = [slope(layers, True) for layers in (1, 2)]
    return {
        "layer": plain[1] - plain[0],
        "checkpoint": light[1] - light[0],
        "rest": light[0] - (light[1] - light[0]),
    }


def plan(settings: dict[str, Any], kept: dict[str, float], weights: dict[str, int]) -> dict:
    """Memory in GiB by part, PFLOP per 1,000 tokens, and hours."""
    model, data, trainer = settings["model"], settings["data"], settings["trainer"]
    layers, hidden = GEMMA_7B["num_hidden_layers"], GEMMA_7B["hidden_size"]
    worst = 2 * data["batch_size"] * data["max_length"]
    checkpointing = model["activation_checkpointing"]
    activations = {
        "with checkpointing": layers * kept["checkpoint"] + kept["layer"],
        "without": layers * kept["layer"],
    }
    memory = {
        "frozen weights, bfloat16": 2 * weights["frozen"],
        "adapters, float32": 4 * weights["adapters"],
        "their gradients": 4 * weights["adapters"],
        "AdamW's two moments": 8 * weights["adapters"],
        "adapters as bfloat16 (autocast)": 2 * weights["adapters"],
        f"activations of {worst:,} tokens": worst
        * (activations["with checkpointing" if checkpointing else "without"] + kept["rest"]),
        # A tile of logits, and three rows of hidden size per token: see linear_logps.
        "log-probabilities": 4 * TILE_NUMBERS + 3 * 4 * hidden * worst,
    }
    memory = {name: size / GIB for name, size in memory.items()}
    needed = sum(memory.values())
    body = weights["frozen"] - weights["embedding"]
    attention = (
        layers
        * 2
        * 2
        * data["max_length"]
        / 2
        * (GEMMA_7B["num_attention_heads"] * GEMMA_7B["head_dim"])
    )
    forward = 2 * (body + weights["adapters"]) + attention
    # Frozen weights need no gradient of their own: the backward pass is one more forward's worth,
    # and the adapters' gradients; checkpointing makes another forward pass, a reference one more.
    passes = {"forward": 1, "backward": 1, "checkpointing": int(checkpointing)}
    passes["reference"] = int(resolve(model["loss"]).needs_reference)
    per_token = sum(passes.values()) * forward + 2 * weights["adapters"]
    per_token += 2 * 2 * weights["embedding"]  # the head, and its way back, of every token: at most
    sequences = 2 * PAIRS * trainer["max_epochs"]
    hours = {}
    for gpu, (peak, _) in GPUS.items():
        for mean in MEAN_TOKENS:
            work = per_token * mean * sequences
            ends = [work / (share * peak * 1e12) / 3600 for share in UTILISATION]
            hours.setdefault(gpu, {})[mean] = [round(h, 1) for h in reversed(ends)]
    return {
        "weights": weights,
        "bytes_per_token_and_layer": kept,
        "memory_gib": memory,
        "memory_needed_gib": needed * TRANSIENT + CUDA_CONTEXT,
        "activations_without_checkpointing_gib": worst * activations["without"] / GIB,
        "fits": {gpu: needed * TRANSIENT + CUDA_CONTEXT <= size for gpu, (_, size) in GPUS.items()},
        "gflop_per_token": per_token / 1e9,
        "passes": passes,
        "sequences": sequences,
        "optimizer_steps": PAIRS
        // (data["batch_size"] * trainer["accumulate_grad_batches"])
        * trainer["max_epochs"],
        "utilisation": UTILISATION,
        "hours": hours,
    }


def show(found: dict[str, Any]) -> str:
    """The plan as Markdown."""
    weights, kept = found["weights"], found["bytes_per_token_and_layer"]
    lines = [
        f"Gemma 7B has {weights['frozen']:,} weights; its adapters have {weights['adapters']:,}.",
        f"A layer keeps {kept['layer'] / 1024:,.0f} KiB per token for the backward pass, "
        f"{kept['checkpoint'] / 1024:,.1f} KiB with activation checkpointing (measured).",
        "",
        "| memory | GiB |",
        "|---|---|",
        *(f"| {name} | {size:.1f} |" for name, size in found["memory_gib"].items()),
        f"| **together**, × {TRANSIENT}, and {CUDA_CONTEXT:.0f} GiB for CUDA | "
        f"**{found['memory_needed_gib']:.0f}** |",
        f"| (activations without checkpointing) | "
        f"{found['activations_without_checkpointing_gib']:.0f} |",
        "",
        f"{found['gflop_per_token']:.0f} GFLOP per token; {found['sequences']:,} sequences, "
        f"{found['optimizer_steps']} optimizer steps; hours at {UTILISATION[0]:.0%} to "
        f"{UTILISATION[1]:.0%} of the peak:",
        "",
        "| GPU | fits | " + " | ".join(f"{n} tokens a sequence" for n in MEAN_TOKENS) + " |",
        "|---|---|" + "---|" * len(MEAN_TOKENS),
    ]
    for gpu, by_mean in found["hours"].items():
        cells = [f"{low:.1f} to {high:.1f}" for low, high in by_mean.values()]
        lines.append(f"| {gpu} | {'yes' if found['fits'][gpu] else 'no'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan."""
    parser = argparse.ArgumentParser(description="Memory and hours of the Gemma run.")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args(argv)
    settings = yaml.safe_load(args.config.read_text())
    lora = LoraSettings(**settings["model"]["lora"])
    found = plan(settings, measure(lora), count(lora))
    print(show(found))
    if args.json:
        write_atomic(args.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
