"""Peak memory and time of ``linear_logps`` against the dense path and the chunked heads of others.

    python benchmarks/linear_logps.py --json results.json
    python benchmarks/linear_logps.py --smoke

Two things are measured, forward and backward, with a frozen and with a trainable LM head:

- token log-probabilities of 2 × 1024 (and, as a short pair, 2 × 64) tokens, vocabulary 131 072,
  hidden size 2048, no position ignored. Dense rivals: ``F.cross_entropy`` and ``log_softmax`` with
  ``gather``, both on the float32 logits of ``F.linear``. If TRL ≥ 1.16 is importable, its fused
  head (``ChunkedLogProbFunction`` as its trainers call it) too.
- a whole DPO step, from hidden states to their gradient, of four pairs of 2 × 256 tokens (and,
  memory alone, of one of 2 × 1024): ``linear_logps`` or dense logps, then ``dpo_loss``; and, if
  liger-kernel is importable, ``LigerFusedLinearDPOLoss``, a pair at a time, eager and compiled.
  Reference log-probabilities are 0.

Rivals are optional and found where Python finds them: run this with the interpreter of an
environment that has them, and the repository on ``PYTHONPATH``.

Time: contestants take turns; each repeat gives one ratio to the better dense form, and medians are
reported. "CPU" is the time that all threads together spent computing: unlike the wall clock's, its
ratio means something on a busy machine, if waiting threads sleep (``OMP_WAIT_POLICY=passive``).
Memory: a fresh process each, its peak during one step less what it held before, that is above
hidden states, weight and labels. A trainable head must return the weight's gradient, as large as
the weight: "peak" counts it, "working" does not.
"""

import argparse
import importlib
import json
import math
import os
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F

from torchmpo.linear_logps import linear_logps
from torchmpo.losses import dpo_loss

OURS, TRL = "linear_logps", "TRL's fused head"
DENSE = ("dense, cross_entropy", "dense, log_softmax and gather")
LIGER = ("liger-kernel, eager", "liger-kernel, compiled")
TRL_CHUNK = 32768  # vocabulary rows; what TRL's trainers pass
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Case:
    task: str  # "logps" or "dpo"
    pairs: int
    length: int  # tokens of each response
    vocab: int
    hidden: int
    trainable: bool
    dtype: str = "float32"
    device: str = "cpu"

    def inputs(self):
        draw = torch.Generator(self.device).manual_seed(0)
        like = {"dtype": getattr(torch, self.dtype), "device": self.device}
        rows = 2 * self.pairs
        # In place: a temporary would raise the peak that is measured later.
        weight = torch.empty(self.vocab, self.hidden, **like).normal_(0, 0.02, generator=draw)
        hidden = torch.empty(rows, self.length, self.hidden, **like).normal_(generator=draw)
        labels = torch.randint(self.vocab, (rows, self.length), generator=draw, device=self.device)
        upstream = torch.empty(rows, self.length, device=self.device).normal_(generator=draw)
        weight.requires_grad_(self.trainable)
        return hidden.requires_grad_(), weight, labels, upstream

    def contestants(self):
        """The names of those that can run here."""
        names = [OURS, *DENSE]
        if self.task == "logps" and found("trl.kernels"):
            names.append(TRL)
        if self.task == "dpo" and found("liger_kernel.chunked_loss"):
            names += LIGER
        return names


def found(module):
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def dense_cross_entropy(hidden, weight, labels):
    logits = F.linear(hidden, weight).float()
    logps = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return -logps.view_as(labels)


def dense_gather(hidden, weight, labels):
    logps = F.linear(hidden, weight).float().log_softmax(-1)
    return logps.gather(-1, labels[..., None]).squeeze(-1)


def trl_head(hidden, weight, labels):
    from trl.kernels import ChunkedLogProbFunction

    flat = hidden.flatten(0, 1), weight, None, labels.flatten()
    return ChunkedLogProbFunction.apply(*flat, 1.0, TRL_CHUNK, None, 1.0, ())[0].view_as(labels)


def run(case, name, inputs):
    """One step; returns the value it came to."""
    hidden, weight, labels, upstream = inputs
    hidden.grad = weight.grad = None
    if name in LIGER:
        from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

        loss = LigerFusedLinearDPOLoss(use_ref_model=False, compiled=name == LIGER[1])
        value = loss(weight, hidden, labels)[0]
    else:
        ways = {
            OURS: linear_logps,
            DENSE[0]: dense_cross_entropy,
            DENSE[1]: dense_gather,
            TRL: trl_head,
        }
        logps = ways[name](hidden, weight, labels)
        if case.task == "dpo":
            chosen, rejected = logps.sum(-1).chunk(2)
            none = torch.zeros_like(chosen)
            value = dpo_loss(chosen, rejected, none, none, beta=0.1).mean()
        else:
            value = (logps * upstream).sum()
    value.backward()
    if case.device == "cuda":
        torch.cuda.synchronize()
    return value.item()


def resident(peak):
    """Bytes of this process in memory, now or at most so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's maximum may be the parent's
        line = next(s for s in status.read_text().splitlines() if s.startswith(peak))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def warm_up(case, name):
    """What libraries set up at their first call, at next to no memory."""
    small = replace(case, length=8, vocab=64, hidden=16)
    run(small, name, small.inputs())


def peak_memory(case, name, threads):
    """Bytes above the inputs at the worst moment of one step, in this fresh process."""
    torch.set_num_threads(threads)
    warm_up(case, name)
    inputs = case.inputs()
    if name == LIGER[1]:  # what the compiler takes is not counted
        run(case, name, inputs)
        inputs[0].grad = inputs[1].grad = None
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(case, name, inputs)
        return torch.cuda.max_memory_allocated() - before
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident("VmRSS")
    run(case, name, inputs)
    return resident("VmHWM") - before


def measure(case, repeats, threads):
    names = case.contestants()
    peaks = {}
    for name in names:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks[name] = pool.submit(peak_memory, case, name, threads).result()
    inputs = case.inputs()
    values, seconds = {}, {name: [] for name in names}
    for name in names if repeats else ():
        warm_up(case, name)
        if name == LIGER[1]:
            run(case, name, inputs)  # compiles
    for _ in range(repeats):
        for name in names:
            wall, cpu = time.perf_counter(), time.process_time()
            values[name] = run(case, name, inputs)
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    for name, value in values.items():
        if case.dtype == "float32" and not math.isclose(value, values[OURS], rel_tol=1e-3):
            raise AssertionError(f"{name} comes to {value}, {OURS} to {values[OURS]}")
    gradient = inputs[1].numel() * inputs[1].element_size() if case.trainable else 0
    smaller = min(DENSE, key=lambda name: peaks[name])
    rows = []
    for name in names:
        working = peaks[name] - gradient
        row = {"contestant": name, **vars(case)}
        for which, clock in enumerate(("wall", "cpu") if repeats else ()):
            taken = {name: [pair[which] for pair in pairs] for name, pairs in seconds.items()}
            rival = min(DENSE, key=lambda name: statistics.median(taken[name]))
            ratios = [a / b for a, b in zip(taken[name], taken[rival])]
            row[f"{clock}_seconds_best"] = min(taken[name])
            row[f"{clock}_seconds_median"] = statistics.median(taken[name])
            row[f"{clock}_ratio"] = statistics.median(ratios)
            row[f"{clock}_rival"] = rival
        row["peak_mib"] = peaks[name] / MEBIBYTE
        row["working_mib"] = working / MEBIBYTE
        row["times_less_peak"] = peaks[smaller] / max(peaks[name], 1)
        row["times_less_working"] = (peaks[smaller] - gradient) / max(working, 1)
        row["memory_rival"] = smaller
        rows.append(row)
    return rows


def show(rows):
    first = rows[0]
    head = "trainable" if first["trainable"] else "frozen"
    print(
        f"\n{first['task']}: {first['pairs']} × 2 × {first['length']} tokens, vocabulary "
        f"{first['vocab']}, hidden {first['hidden']}, {first['dtype']}, {first['device']}, {head} "
        f"head; ratios to {first.get('cpu_rival')!r} (CPU), {first['memory_rival']!r} (memory)"
    )
    columns = ("wall s", "ratio", "CPU s", "ratio", "peak MiB", "less", "working MiB", "less")
    print(f"{'':30}" + "".join(f"{c:>12}" for c in columns))
    for r in rows:
        times = ("wall_seconds_median", "wall_ratio", "cpu_seconds_median", "cpu_ratio")
        print(
            f"{r['contestant']:30}"
            + "".join(f"{r[key]:12.2f}" if key in r else f"{'':12}" for key in times)
            + f"{r['peak_mib']:12.1f}{r['times_less_peak']:11.1f}×"
            f"{r['working_mib']:12.1f}{r['times_less_working']:11.1f}×",
            flush=True,
        )


def installed(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main():
    parser = argparse.ArgumentParser(description="linear_logps against its rivals.")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=131072)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    if args.smoke:
        args.repeats, args.vocab, args.hidden = 1, 4096, 64
    torch.set_num_threads(args.threads)
    rivals = {package: installed(package) for package in ("trl", "liger-kernel")}
    print(f"{args.threads} threads, torch {torch.__version__}, {args.repeats} repeats;", end=" ")
    print(", ".join(f"{package} {found}" for package, found in rivals.items()))
    tasks = (  # the last number: repeats
        ("logps", 1, 1024, args.repeats),
        ("logps", 1, 64, 5 * args.repeats),
        ("dpo", 4, 256, args.repeats),
        ("dpo", 1, 1024, 0),
    )
    results = []
    for task, pairs, length, repeats in tasks:
        length = length // 32 if args.smoke else length
        for trainable in (False, True):
            size = (pairs, length, args.vocab, args.hidden, trainable)
            case = Case(task, *size, args.dtype, args.device)
            rows = measure(case, repeats, args.threads)
            show(rows)
            results += rows
    if args.json:
        about = {
            "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
            "torch": torch.__version__,
            **rivals,
            **vars(args),
            "json": str(args.json),
        }
        args.json.write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
