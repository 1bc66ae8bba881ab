"""What does a call of a loss cost over the same formula written out by hand?

    python benchmarks/losses.py --json results.json

The rivals are what one writes into a training script: the equation in plain PyTorch, as stable as
ours, but without checks of shapes and hyper-parameters and without keeping gradients from the
reference. A call is the loss of a batch, its mean, and the backward pass; "forward" is the loss
alone. Both are run eagerly and compiled, in turns; a ratio is one of neighbours in time, and the
median over the rounds is reported. Last comes the import: ``import torchmpo.losses`` and ``import
torch`` in fresh processes, in turns.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid

from torchmpo.losses import LOSSES


def dpo(c, r, rc, rr, beta=0.1):
    return -logsigmoid(beta * ((c - rc) - (r - rr)))


def ipo(c, r, rc, rr, beta=0.1):
    return ((c - rc) - (r - rr) - 1 / (2 * beta)) ** 2


def hinge_dpo(c, r, rc, rr, beta=0.1):
    return torch.relu(1 - beta * ((c - rc) - (r - rr)))


def nca_pair(c, r, rc, rr, beta=0.1):
    chosen, rejected = beta * (c - rc), beta * (r - rr)
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def rpo(c, r, rc, rr, c_mean, beta=0.1, sft_coef=1.0):
    return -logsigmoid(beta * ((c - rc) - (r - rr))) - sft_coef * c_mean


def smpo(c, r, rc, rr, p, beta=0.1, scale=1.0):
    return -logsigmoid(scale * (2 * p - 1) * beta * ((c - rc) - (r - rr)))


def dpo_positive_reference(c, r, rc, rr, beta=0.1):
    return -logsigmoid(beta * ((c - r) - torch.relu(rc - rr)))


def rrhf(c, r, sft_coef=1.0):
    return torch.relu(r - c) - sft_coef * c


def simpo(c, r, beta=2.0, target_margin=0.5):
    return -logsigmoid(beta * (c - r) - target_margin)


def slic_hf(c, r, delta=1.0, sft_coef=0.1):
    return torch.relu(delta - (c - r)) - sft_coef * c


def cpo(c, r, c_mean, beta=0.1, sft_coef=1.0):
    return -logsigmoid(beta * (c - r)) - sft_coef * c_mean


def orpo(c, r, po_coef=0.1):
    chosen, rejected = c.clamp(max=-1e-6), r.clamp(max=-1e-6)
    chosen = chosen - torch.log(-torch.expm1(chosen))
    rejected = rejected - torch.log(-torch.expm1(rejected))
    return -c - po_coef * logsigmoid(chosen - rejected)


RIVALS = (
    *(dpo, ipo, hinge_dpo, nca_pair, rpo, smpo, dpo_positive_reference),
    *(rrhf, simpo, slic_hf, cpo, orpo),
)
# Settings under which ours computes the rival's formula.
SETTINGS = {"ipo": {"reduction": "sum"}}


def seconds_per_call(function, calls):
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - begin) / calls


def functions(loss, rival, data, mode, what):
    """What is timed: ours and the rival's, without arguments."""
    pair = [loss, rival]
    if mode == "compiled":
        torch.compiler.reset()  # or nine losses would count as recompilations of one
        pair = [torch.compile(f, fullgraph=True) for f in pair]
    if what == "forward":
        return [lambda f=f: f(*data) for f in pair]
    return [lambda f=f: f(*data).mean().backward() for f in pair]


def measure(batch, rounds, calls):
    rows = []
    for rival in RIVALS:
        name = rival.__name__
        count = rival.__code__.co_argcount - len(rival.__defaults__)
        draw = torch.Generator().manual_seed(0)
        data = [-0.1 - 5 * torch.rand(batch, generator=draw) for _ in range(count)]
        for x in data[:2]:
            x.requires_grad_()
        loss = partial(LOSSES[name], **SETTINGS.get(name, {}))
        torch.testing.assert_close(loss(*data), rival(*data), rtol=1e-4, atol=1e-5)
        for mode, what in product(("eager", "compiled"), ("call", "forward")):
            ours, by_hand = functions(loss, rival, data, mode, what)
            for function in (ours, by_hand):
                seconds_per_call(function, 20)  # compiles and warms up
            times = [
                (seconds_per_call(ours, calls), seconds_per_call(by_hand, calls))
                for _ in range(rounds)
            ]
            row = {"loss": name, "batch": batch, "mode": mode, "what": what}
            row["microseconds"] = 1e6 * statistics.median(a for a, _ in times)
            row["by_hand_microseconds"] = 1e6 * statistics.median(b for _, b in times)
            row["ratio"] = statistics.median(a / b for a, b in times)
            rows.append(row)
    return rows


def import_seconds(module, repeats):
    """Medians of ``import torch`` and of ``import module``, whole processes, in turns."""
    times = {"torch": [], module: []}
    for repeat in range(repeats + 1):
        for name in times:
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
            if repeat > 0:  # the first fills the file cache
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description="Losses against the same formulas by hand.")
    parser.add_argument("--rounds", type=int, default=201)
    parser.add_argument("--calls", type=int, default=20, help="calls a round")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 512])
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for batch in args.batches for row in measure(batch, args.rounds, args.calls)]
    print(f"{'':34}{'eager':>22}{'compiled':>24}")
    print(f"{'loss':10} {'batch':>5} {'':16}" + f" {'µs':>7} {'by hand':>7} {'ratio':>6} " * 2)
    by = {(r["loss"], r["batch"], r["what"], r["mode"]): r for r in rows}
    for loss, batch, what in dict.fromkeys(key[:3] for key in by):
        line = f"{loss:10} {batch:>5} {what:16}"
        for mode in ("eager", "compiled"):
            r = by[loss, batch, what, mode]
            line += f" {r['microseconds']:7.1f} {r['by_hand_microseconds']:7.1f} {r['ratio']:6.2f} "
        print(line)
    for what in ("call", "forward"):
        for mode in ("eager", "compiled"):
            ratios = [r["ratio"] for r in rows if (r["what"], r["mode"]) == (what, mode)]
            print(
                f"{what}, {mode}: median ratio {statistics.median(ratios):.3f}, "
                f"largest {max(ratios):.3f}"
            )
    imports = import_seconds("torchmpo.losses", 7)
    extra = imports["torchmpo.losses"] - imports["torch"]
    print(f"import torchmpo.losses: {extra:+.3f} s beside import torch's {imports['torch']:.3f} s")
    if args.json:
        about = {"torch": torch.__version__, "machine": platform.processor(), **vars(args)}
        about["json"] = str(args.json)
        report = {"about": about, "results": rows, "import_seconds": imports}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
