"""What does a call of a loss cost over the same formula written out by hand?

    python benchmarks/losses.py --json results.json

The rivals are what one writes into a training script, see `benchmarks/by_hand.py`: one for every
loss, at its defaults. A call is the loss of a batch, its mean, and the backward pass; "forward" is
the loss alone. Both are run eagerly and compiled, in turns of a few calls. Time is that of the
processor, and a tenth of the turns was faster than what is reported: other programs, which share
its caches, disturb those turns least. On a busy machine a whole pass over the losses is repeated
some minutes later, and the faster time of each counts (``--passes 3``). Last comes the import: what
``import torchmpo.losses`` takes after ``import torch``, in fresh processes, as ``python -X
importtime`` counts it.
"""

import argparse
import inspect
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
from by_hand import BY_HAND

from torchmpo.losses import LOSSES
from torchmpo.objectives.inputs import DRAWN

# Settings under which ours computes the rival's formula.
SETTINGS = {"ipo": {"reduction": "sum"}}
STEPS, RESPONSES = 64, 4


def seconds_per_call(function, calls):
    begin = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - begin) / calls


def quantile(values, share):
    return sorted(values)[int(share * len(values))]


def compiled(*pair):
    torch.compiler.reset()  # or nine losses would count as recompilations of one
    return [torch.compile(f, fullgraph=True) for f in pair]


def functions(pair, data, what):
    """What is timed: ours and the rival's, without arguments."""
    if what == "forward":
        return [lambda f=f: f(*data) for f in pair]
    return [lambda f=f: f(*data).mean().backward() for f in pair]


def inputs(loss, batch):
    """Random data by the names of what a loss needs; what it may do without is left out."""
    draw = torch.Generator().manual_seed(0)
    data = []
    for parameter in inspect.signature(loss).parameters.values():
        name = parameter.name
        if parameter.kind is parameter.KEYWORD_ONLY or parameter.default is None:
            continue
        steps = name.endswith("_mask") or "_step_" in name
        several = "list_" in name or name in DRAWN
        shape = (batch, STEPS) if steps else (batch, RESPONSES) if several else (batch,)
        uniform = torch.rand(shape, generator=draw)
        if name.endswith("_lengths"):  # of all steps, so that masks and lengths agree
            value = torch.full((batch,), STEPS)
        elif name.endswith("_mask"):
            value = torch.ones(shape, dtype=torch.bool)
        elif name == "desirable":
            value = uniform < 0.5
        elif name.endswith("logps"):
            value = (-0.1 - 5 * uniform).requires_grad_(not name.startswith("ref_"))
        else:
            value = uniform
        data.append(value)
    return data


def measure(batch, names, modes, rounds, calls):
    rows = []
    for name in names:
        rival, data = BY_HAND[name], inputs(LOSSES[name], batch)
        loss = partial(LOSSES[name], **SETTINGS.get(name, {}))
        torch.testing.assert_close(loss(*data), rival(*data), rtol=1e-4, atol=1e-5)
        pairs = {"eager": (loss, rival), "compiled": compiled(loss, rival)}
        for mode, what in product(modes, ("call", "forward")):
            ours, by_hand = functions(pairs[mode], data, what)
            for function in (ours, by_hand):
                seconds_per_call(function, 20)  # compiles and warms up
            times = [
                (seconds_per_call(ours, calls), seconds_per_call(by_hand, calls))
                for _ in range(rounds)
            ]
            fast, by_hand_fast = (quantile(x, 0.1) for x in zip(*times, strict=True))
            row = {"loss": name, "batch": batch, "mode": mode, "what": what}
            row |= {"microseconds": 1e6 * fast, "by_hand_microseconds": 1e6 * by_hand_fast}
            row["ratio"] = fast / by_hand_fast
            rows.append(row)
    return rows


def fastest(passes):
    """One row of the same measurement, made several times."""
    row = dict(passes[0])
    for who in ("microseconds", "by_hand_microseconds"):
        row[who] = min(again[who] for again in passes)
    return row | {"ratio": row["microseconds"] / row["by_hand_microseconds"]}


def import_seconds(repeats):
    """Medians of ``import torch``, and of ``import torchmpo.losses`` after it."""
    times = {"torch": [], "torchmpo.losses": []}
    command = [sys.executable, "-X", "importtime", "-c", "import torch; import torchmpo.losses"]
    for repeat in range(repeats + 1):
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        for line in report.splitlines():
            *_, cumulative, name = line.split("|")
            # Nested imports are indented, and counted in the one that made them.
            if name[1:] in times and repeat > 0:  # the first fills the file cache
                times[name[1:]].append(float(cumulative) / 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description="Losses against the same formulas by hand.")
    parser.add_argument("--rounds", type=int, default=201)
    parser.add_argument("--calls", type=int, default=10, help="calls a round")
    parser.add_argument("--passes", type=int, default=1, help="over all losses, the fastest counts")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 512])
    parser.add_argument("--losses", nargs="+", default=list(LOSSES))
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"])
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    how = (args.losses, args.modes, args.rounds, args.calls)
    passes = [
        [row for batch in args.batches for row in measure(batch, *how)] for _ in range(args.passes)
    ]
    rows = [fastest(same) for same in zip(*passes, strict=True)]
    columns = f" {'µs':>7} {'by hand':>7} {'ratio':>6} " * len(args.modes)
    print(f"{'':41}" + "".join(f"{mode:^25}" for mode in args.modes))
    print(f"{'loss':22} {'batch':>5} {'':8}" + columns)
    by = {(r["loss"], r["batch"], r["what"], r["mode"]): r for r in rows}
    for loss, batch, what in dict.fromkeys(key[:3] for key in by):
        line = f"{loss:22} {batch:>5} {what:8}"
        for mode in args.modes:
            r = by[loss, batch, what, mode]
            line += f" {r['microseconds']:7.1f} {r['by_hand_microseconds']:7.1f} {r['ratio']:6.2f} "
        print(line)
    for what in ("call", "forward"):
        for mode in args.modes:
            ratios = [r["ratio"] for r in rows if (r["what"], r["mode"]) == (what, mode)]
            print(
                f"{what}, {mode}: median ratio {statistics.median(ratios):.3f}, "
                f"largest {max(ratios):.3f}, "
                f"at most 1.10 in {sum(x <= 1.1 for x in ratios)} of {len(ratios)}"
            )
    imports = import_seconds(7)
    extra = imports["torchmpo.losses"]
    print(f"import torchmpo.losses: {extra:.3f} s after import torch's {imports['torch']:.3f} s")
    if args.json:
        about = {"torch": torch.__version__, "machine": platform.processor(), **vars(args)}
        about["json"] = str(args.json)
        report = {"about": about, "results": rows, "import_seconds": imports}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
