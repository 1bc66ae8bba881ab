"""Speed and memory of one training step: `PreferenceModule` against TRL's DPOTrainer.

    make bench-llm
    python benchmarks/llm_step.py --rival .venv-trl/bin/python --json results.json
    python benchmarks/llm_step.py --rival .venv-trl/bin/python --smoke

TRL has an environment of its own, whose interpreter is ``--rival``; its other packages have the
versions that we have (``benchmarks/trl_requirements.txt``). Both train the same random model with
the same adapters on the same pairs in the same order, each in its own loop (Lightning's Trainer,
TRL's DPOTrainer), each in a process of its own. Both processes live at the same time and take
turns, a step each, so what else the machine does meets both.

- A step is everything from the beginning of one to the beginning of the next: batch, reference,
  forward, backward, clipping, AdamW, metrics. The first is not counted (ours checks there that
  policy and reference are equal), nor is the last. "CPU" is the time that all threads of the
  process together spent computing: on a busy machine it means more than the wall clock.
- Memory is the peak during all steps less what the process held before the first, with model,
  adapters, data and libraries in place; and the peak by itself.
- Both must come to the same numbers: the loss within 1e-4 in every step, the log-probabilities of
  the chosen answers within 1e-5 of their size.

TRL runs with its defaults (fused LM head, fused AdamW), except that what both have is set alike:
float32 on a CPU, bfloat16 with float32 adapters on a GPU, no dropout, the same clipping, padding to
the batch's longest, activation checkpointing and precomputed reference on both sides or on neither.
On a GPU, ``trl + liger`` runs too, if liger-kernel is installed there.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

OURS, TRL, LIGER = "torchmpo", "trl", "trl + liger"
PACKAGES = ("torch", "transformers", "peft", "lightning", "trl", "accelerate", "liger-kernel")
COMPARED = ("loss", "logps/chosen", "rewards/margins")
LR, BETA, CLIP, RANK = 1e-3, 0.1, 1.0, 16
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Case:
    name: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    pairs: int = 2
    prompt: int = 64  # tokens
    answer: int = 192  # tokens at most; half as many at least
    reference: str = "adapter_off"  # or "cache"
    checkpointing: bool = False


SMOLLM2 = Case("SmolLM2-135M's shape", 49152, 576, 1536, 30, 9, 3)
# Little body and much head, as if Gemma's vocabulary met a small model.
WIDE = Case("4 layers of 512, vocabulary of 256,000", 256000, 512, 1536, 4, 8, 2, answer=96)
CASES = (
    SMOLLM2,
    replace(SMOLLM2, reference="cache"),
    replace(SMOLLM2, checkpointing=True),
    WIDE,
)
SMOKE = (Case("tiny", 512, 32, 64, 2, 4, 2, prompt=8, answer=24),)


# What both train on


def prepare(case, steps, folder):
    """Model, adapters and pairs, as files that either side reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from torchmpo.finetune.data import StepSampler
    from torchmpo.finetune.models import LoraSettings, add_lora

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=case.vocab,
        hidden_size=case.hidden,
        intermediate_size=case.intermediate,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads,
        head_dim=case.hidden // case.heads,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "model")
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, case.vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder / "model")
    add_lora(model, LoraSettings(r=RANK, alpha=2 * RANK)).save_pretrained(
        folder / "adapter", save_embedding_layers=False
    )

    draw = torch.Generator().manual_seed(0)

    def text(size):
        ids = torch.randint(3, case.vocab, (size,), generator=draw).tolist()
        return " ".join(f"w{i}" for i in ids)

    def answer():
        size = torch.randint(case.answer // 2, case.answer, (), generator=draw).item()
        return " " + text(size)  # and EOS

    rows = [
        {"prompt": text(case.prompt), "chosen": answer(), "rejected": answer()}
        for _ in range(case.pairs * steps)
    ]
    # TRL reads the file in order, ours shuffles: TRL gets the shuffled one.
    order = StepSampler(len(rows), case.pairs, 1, 0, 1, seed=0)
    for name, pairs in ((OURS, rows), (TRL, [rows[i] for i in order])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in pairs))


# The contestants: each calls ``turn`` with its metrics where a step begins, and at the end


def train_ours(case, steps, folder, device, turn):
    from lightning.pytorch import Callback, Trainer
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    from torchmpo.finetune.data import PreferenceData
    from torchmpo.finetune.models import LoraSettings
    from torchmpo.finetune.module import PreferenceModule

    class Turns(Callback):
        def on_train_batch_start(self, trainer, *_):
            turn({name: float(v) for name, v in trainer.logged_metrics.items()})

        def on_train_end(self, trainer, *_):
            turn({name: float(v) for name, v in trainer.logged_metrics.items()})

    gpu = device == "cuda"
    module = PreferenceModule(
        str(folder / "model"),
        loss="dpo",
        loss_args={"beta": BETA},
        lora=LoraSettings(r=RANK, alpha=2 * RANK),
        reference=case.reference,
        lr=LR,
        dtype="bfloat16" if gpu else "float32",
        activation_checkpointing=case.checkpointing,
    )
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    set_peft_model_state_dict(module.policy.model, weights)
    data = PreferenceData(
        str(folder / f"{OURS}.jsonl"),
        batch_size=case.pairs,
        reference_cache=str(folder / "reference"),
    )
    Trainer(
        max_epochs=1,
        accelerator="gpu" if gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if gpu else "32-true",
        gradient_clip_val=CLIP,
        log_every_n_steps=1,
        callbacks=[Turns()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, data)


def train_trl(case, steps, folder, device, turn, *, liger=False):
    import datasets
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Turns(TrainerCallback):
        metrics: dict = {}  # noqa: RUF012

        def on_log(self, args, state, control, logs=None, **_):
            if "loss" in logs:
                self.metrics = logs

        def on_step_begin(self, *_, **__):
            turn({name: float(self.metrics[name]) for name in COMPARED if name in self.metrics})

        def on_train_end(self, *_, **__):
            turn({name: float(self.metrics[name]) for name in COMPARED})

    gpu = device == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype)
    trainer = DPOTrainer(
        model,
        args=DPOConfig(
            output_dir=str(folder / "trl"),
            loss_type=["sigmoid"],
            beta=BETA,
            learning_rate=LR,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=CLIP,
            per_device_train_batch_size=case.pairs,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            max_length=None,
            precompute_ref_log_probs=case.reference == "cache",
            gradient_checkpointing=case.checkpointing,
            bf16=gpu,
            use_cpu=not gpu,
            use_liger_kernel=liger,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_json(
            str(folder / f"{TRL}.jsonl"), cache_dir=str(folder / "datasets")
        ),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        peft_config=LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Turns()],
    )
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    set_peft_model_state_dict(trainer.model, weights)
    trainer.train()


# A process that trains, a step whenever it is told to


class Turn:
    """Tells the parent what the last step took and came to, and waits for its next turn."""

    def __init__(self, device):
        # Libraries print what they like: they get the other stream.
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.device = device
        self.before = None
        self.began = None

    def __call__(self, metrics):
        if self.device == "cuda":
            torch.cuda.synchronize()
        told = {"metrics": {name: metrics[name] for name in COMPARED if name in metrics}}
        if self.began is None:
            self.before = self._forget_peak()
        else:
            told["wall"] = time.perf_counter() - self.began[0]
            told["cpu"] = time.process_time() - self.began[1]
        told |= {"before": self.before, "peak": self._peak()}
        print(json.dumps(told), file=self.out, flush=True)
        if not sys.stdin.readline():
            raise SystemExit("the parent is gone")
        self.began = time.perf_counter(), time.process_time()

    def _forget_peak(self):
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        Path("/proc/self/clear_refs").write_text("5")
        return resident("VmRSS")

    def _peak(self):
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else resident("VmHWM")


def resident(which):
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) * 1024


def child(args):
    turn = Turn(args.device)
    torch.set_num_threads(args.threads)
    found = {package: installed(package) for package in PACKAGES}
    print(json.dumps(found), file=turn.out, flush=True)
    case = Case(**json.loads(args.case))
    given = (case, args.steps, Path(args.folder), args.device, turn)
    if args.child == OURS:
        train_ours(*given)
    else:
        train_trl(*given, liger=args.child == LIGER)


def installed(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


# The parent


class Contestant:
    def __init__(self, name, python, case, steps, folder, args):
        self.name, self.log = name, folder / f"{name}.log"
        root = Path(__file__).resolve().parents[1]
        environment = os.environ | {
            "PYTHONPATH": str(root),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(args.threads),
            "OMP_WAIT_POLICY": "passive",
        }
        words = ["--child", name, "--case", json.dumps(asdict(case)), "--steps", str(steps)]
        words += ["--folder", str(folder), "--threads", str(args.threads), "--device", args.device]
        self.process = subprocess.Popen(
            [python, __file__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env=environment,
        )
        self.found = self.read()
        self.told = []

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} stopped:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def step(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.told.append(self.read())

    def ready(self):
        self.first = self.read()


def run(case, names, args, folder):
    """One row for each contestant."""
    steps = args.repeats + 2
    prepare(case, steps, folder)
    pythons = {OURS: sys.executable, TRL: args.rival, LIGER: args.rival}
    # One after another: loading should not disturb loading.
    contestants = []
    try:
        for name in names:
            contestants.append(Contestant(name, pythons[name], case, steps, folder, args))
            contestants[-1].ready()
        for step in range(steps):
            for contestant in contestants if step % 2 else contestants[::-1]:
                contestant.step()
                shown = {k: round(v, 4) for k, v in contestant.told[-1]["metrics"].items()}
                took = contestant.told[-1]["wall"]
                print(f"  step {step} {contestant.name:12} {took:6.2f} s {shown}", file=sys.stderr)
    finally:
        for contestant in contestants:
            contestant.process.kill()
            contestant.process.wait()
    agree(contestants, args.device)
    return [row(case, contestant, contestants) for contestant in contestants]


def agree(contestants, device):
    """Every step came to the same for all."""
    ours = contestants[0]
    for other in contestants[1:]:
        for step, (a, b) in enumerate(zip(ours.told, other.told, strict=True)):
            for name in COMPARED:
                x, y = a["metrics"][name], b["metrics"][name]
                near = 1e-4 if device == "cpu" else 5e-2  # bfloat16
                if not math.isclose(x, y, rel_tol=near / 10, abs_tol=near):
                    raise SystemExit(
                        f"step {step}: {name} is {x} by {ours.name}, {y} by {other.name}"
                    )


def row(case, contestant, contestants):
    counted = contestant.told[1:-1]
    out = {"contestant": contestant.name, **asdict(case), "steps_counted": len(counted)}
    for clock in ("wall", "cpu"):
        taken = [told[clock] for told in counted]
        out[f"{clock}_seconds_median"] = statistics.median(taken)
        out[f"pairs_per_{clock}_second"] = case.pairs / statistics.median(taken)
        theirs = [[told[clock] for told in c.told[1:-1]] for c in contestants]
        # Of neighbours in time.
        out[f"{clock}_ratio"] = statistics.median(a / b for a, b in zip(taken, theirs[1]))
    last = contestant.told[-1]
    out["before_mib"] = last["before"] / MEBIBYTE
    out["peak_mib"] = last["peak"] / MEBIBYTE
    out["step_mib"] = (last["peak"] - last["before"]) / MEBIBYTE
    trl = contestants[1].told[-1]
    out["step_memory_ratio"] = (last["peak"] - last["before"]) / (trl["peak"] - trl["before"])
    out["metrics"] = [told["metrics"] for told in contestant.told]
    return out


def show(rows):
    first = rows[0]
    print(
        f"\n{first['name']}: {first['pairs']} pairs, prompts of {first['prompt']} tokens, answers "
        f"of {first['answer'] // 2} to {first['answer']}; reference: {first['reference']}"
        + (", activation checkpointing" if first["checkpointing"] else "")
    )
    columns = ("wall s", "ratio", "CPU s", "ratio", "pairs/CPU s", "step MiB", "ratio", "peak MiB")
    print(f"{'':14}" + "".join(f"{c:>12}" for c in columns))
    for r in rows:
        keys = ("wall_seconds_median", "wall_ratio", "cpu_seconds_median", "cpu_ratio")
        print(
            f"{r['contestant']:14}"
            + "".join(f"{r[key]:12.2f}" for key in keys)
            + f"{r['pairs_per_cpu_second']:12.3f}{r['step_mib']:12.0f}"
            f"{r['step_memory_ratio']:12.2f}{r['peak_mib']:12.0f}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description="A training step against TRL's DPOTrainer.")
    parser.add_argument("--rival", default=".venv-trl/bin/python", help="interpreter with TRL")
    parser.add_argument("--repeats", type=int, default=5, help="steps that count")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cases", type=int, nargs="+", help="only these, from 0")
    parser.add_argument("--smoke", action="store_true", help="a tiny model: does it run at all?")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    for hidden in ("--child", "--case", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    if not Path(args.rival).exists():
        raise SystemExit(f"error: there is no {args.rival}: `make bench-llm` makes it")
    names = [OURS, TRL] + [LIGER] * (args.device == "cuda" and has_liger(args.rival))
    cases = SMOKE if args.smoke else CASES
    results = []
    for number, case in enumerate(cases):
        if args.cases is not None and number not in args.cases:
            continue
        with tempfile.TemporaryDirectory(prefix="llm_step_") as folder:
            rows = run(case, names, args, Path(folder))
        show(rows)
        results += rows
    if args.json:
        about = {
            "threads": args.threads,
            "device": args.device,
            "repeats": args.repeats,
            "machine": platform.processor() or platform.machine(),
            "packages": {package: installed(package) for package in PACKAGES},
            "packages of trl": found_in(args.rival),
        }
        args.json.write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


def found_in(python):
    code = "import importlib.metadata as m, json, sys\nout = {}\nfor p in sys.argv[1:]:\n"
    code += "    try: out[p] = m.version(p)\n    except m.PackageNotFoundError: pass\n"
    code += "print(json.dumps(out))"
    done = subprocess.run(
        [python, "-c", code, *PACKAGES], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def has_liger(python):
    return "liger-kernel" in found_in(python)


if __name__ == "__main__":
    main()
