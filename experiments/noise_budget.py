"""How much of a loss's score is the loss, and how much the draw? A budget of the noise.

    python experiments/noise_budget.py [--out experiments/results/noise_budget] [--threads 1]
    python experiments/noise_budget.py --behaviour_std 0.03 --data_sets 4

A score is the return of a policy trained under a loss. It also depends on which preference data
were drawn, in which order the pairs came (the stream of minibatches), where the episodes started,
and on the arithmetic of the machine. Here each of them is varied while the others stay, for four
losses at three learning rates: every data set with every stream, every trained policy from every
start state, and one data set again under other arithmetic. Then the variance of a score, and of the
difference between two losses, is taken apart (crossed random effects, by the mean squares), and
from the parts and the measured seconds follows how to spend a second: on data sets, on streams or
on episodes.

A piece, one loss on one data set, is a file as soon as it is finished; a second start goes on. The
plan and its results are in ``experiments/HISTORY.md``.
"""

import itertools
import json
import math
import time
from dataclasses import replace

import numpy as np
import torch
from command_lines import results_folder, study_parser

from torchmpo import resolve
from torchmpo.control.grids import start_setting
from torchmpo.control.inner_loop import InnerConfig, train_policies
from torchmpo.control.policy import stack_policies
from torchmpo.control.pools import PoolConfig
from torchmpo.control.testbed import TestbedConfig, prepare, prepare_fresh
from torchmpo.control.tuning import stack_settings
from torchmpo.runs.files import write_atomic
from torchmpo.runs.seeding import derive_seed

LOSSES = ("sft", "orpo", "slic_hf", "tla_noisy_v1")
RATES = (1e-4, 3e-4, 1e-3)
DATA_SETS, STREAMS, EPISODES = 8, 8, 32
BEHAVIOUR_STD = PoolConfig.behaviour_std
# Training again, the same but for the order or the width of the sums. Data, too, are made again on
# another machine; "another processor" is what is run there.
ARITHMETIC = {
    "chunks of 8": {"chunk_size": 8},
    "eager": {"compile": False},
    "float64": {"dtype": torch.float64},
    "another processor": {},
    "bfloat16": {"precision": "bf16-mixed"},
    "two threads": {"threads": 2},
}
# Which other pieces an arithmetic is compared with, being of the same machine.
BESIDE = {"bfloat16": "another processor", "two threads": "another processor"}
FACTORS = ("data", "stream", "start")
SMOKE = {"data_sets": 2, "streams": 2, "episodes": 4, "pairs": 4, "steps": 30, "epochs": 1}


def first_testbed(args):
    """The first data set, of the search's kind."""
    sizes = {"pairs": args.pairs, "max_steps": args.steps, "behaviour_std": args.behaviour_std}
    pool = PoolConfig(**sizes, seed=derive_seed("noise", 0))
    inner = InnerConfig(epochs=args.epochs, steps_per_trajectory=min(250, args.steps))
    config = TestbedConfig(pool=pool, data="noisy:0.3", inner=inner, num_threads=args.threads)
    return prepare([config])[0]


def train(bed, objective, args, *, threads=None, dtype=torch.float32, **inner):
    """A policy for every rate and stream, at that loss's own settings: ``{name: [members, …]}``."""
    members = len(RATES) * args.streams
    params = stack_settings(objective, [start_setting(objective)] * members)
    if dtype == torch.float64:
        params = torch.utils._pytree.tree_map(lambda value: value.double(), params)
    init = stack_policies(bed.policy.trainable(), members)
    streams = [derive_seed("noise stream", s) for _ in RATES for s in range(args.streams)]
    rates = torch.tensor([rate for rate in RATES for _ in range(args.streams)])
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        trained = train_policies(
            bed.policy,
            {name: value.to(dtype) for name, value in init.items()},
            objective,
            params,
            bed.dataset,
            replace(bed.config.inner, **inner),
            streams,
            learning_rates=rates,
        )
    finally:
        torch.set_num_threads(before)
    return {name: value.float() for name, value in trained.items()}


def measure(bed, objective, args, **arithmetic):
    """Returns ``[rate][stream][episode]``, and the seconds they took."""
    begin = time.perf_counter()
    policies = train(bed, objective, args, **arithmetic)
    trained = time.perf_counter()
    # The same start states for every policy, data set, loss and rate.
    returns = bed.evaluate(policies, args.episodes, derive_seed("noise episodes"))
    seconds = {"train": trained - begin, "evaluate": time.perf_counter() - trained}
    shape = (len(RATES), args.streams, args.episodes)
    return {"returns": returns.view(shape).tolist(), "seconds": seconds}


def pieces(args):
    """Name → (data set, loss, arithmetic) of everything there is to do, in order."""
    plan = {}
    for number, loss in itertools.product(range(args.data_sets), LOSSES):
        plan[f"{loss}__{number}"] = (number, loss, {})
    if args.behaviour_std != BEHAVIOUR_STD:  # the arithmetic is asked of the default alone
        return plan
    for (name, changed), loss in itertools.product(ARITHMETIC.items(), LOSSES):
        plan[f"{loss}__{name.replace(' ', '-')}"] = (0, loss, changed)
    return plan


def collect(args):
    """Do what is missing."""
    (args.out / "pieces").mkdir(parents=True, exist_ok=True)
    plan = pieces(args)
    missing = {name: piece for name, piece in plan.items() if not _path(args, name).exists()}
    if not missing:
        return
    objectives = {loss: resolve(loss) for loss in LOSSES}  # one object, one compiled program
    first = bed = first_testbed(args)
    here = 0
    for name, (number, loss, arithmetic) in missing.items():
        begin = time.perf_counter()
        if number != here:
            bed = prepare_fresh([first], derive_seed("noise", number))[0] if number else first
            here = number
        built = time.perf_counter() - begin
        piece = measure(bed, objectives[loss], args, **arithmetic) | {"data_seconds": built}
        write_atomic(_path(args, name), json.dumps(piece) + "\n")
        done = sum(_path(args, other).exists() for other in plan)
        print(f"{done}/{len(plan)} {name} {piece['seconds']}", flush=True)


def _path(args, name):
    return args.out / "pieces" / f"{name}.json"


def components(values):
    """Variance components of a table ``[data, stream, start]`` in which every cell has one value.

    All three are random and crossed. A component is estimated from the mean squares of its
    interaction and of those that contain it, so it may come out below 0 where it is small.

    Returns:
        subset of the factors, as ``"data"`` or ``"data×stream"`` → variance; the last one,
        of all three, holds everything that is left over.
    """
    values = np.asarray(values, dtype=float)
    sizes, axes = values.shape, range(values.ndim)
    subsets = [s for n in range(1, 4) for s in itertools.combinations(axes, n)]
    means = {
        s: values.mean(tuple(a for a in axes if a not in s), keepdims=True) for s in [(), *subsets]
    }
    squares = {}
    for s in subsets:
        # The interaction's effects, by inclusion and exclusion over the means.
        effect = sum(
            (-1) ** (len(s) - len(t)) * means[t]
            for n in range(len(s) + 1)
            for t in itertools.combinations(s, n)
        )
        freedom = math.prod(sizes[a] - 1 for a in s)
        repeats = math.prod(sizes[a] for a in axes if a not in s)
        squares[s] = repeats * float((effect**2).sum()) / freedom
    found = {}
    for s in sorted(subsets, key=len, reverse=True):
        # E[mean square of s] = Σ over t ⊇ s of (sizes outside t) · variance of t
        above = sum(
            math.prod(sizes[a] for a in axes if a not in t) * found[t]
            for t in subsets
            if set(s) < set(t)
        )
        found[s] = (squares[s] - above) / math.prod(sizes[a] for a in axes if a not in s)
    return {"×".join(FACTORS[a] for a in s): found[s] for s in subsets}


def error(parts, data_sets, streams, episodes):
    """Standard error of a mean over that many data sets, each with its own streams, each of which
    has its own start states."""
    data = parts["data"] / data_sets
    stream = (parts["stream"] + parts["data×stream"]) / (data_sets * streams)
    rest = sum(v for name, v in parts.items() if "start" in name)
    return math.sqrt(max(0.0, data + stream + rest / (data_sets * streams * episodes)))


def read(args, names):
    """Returns of pieces, stacked: ``[piece, rate, stream, start]``."""
    return np.array([json.loads(_path(args, n).read_text())["returns"] for n in names], dtype=float)


def table(args):
    """All data sets that are finished: ``[loss, rate, data, stream, start]``, NaN: diverged."""
    names = [[f"{loss}__{n}" for loss in LOSSES] for n in range(args.data_sets)]
    whole = [row for row in names if all(_path(args, name).exists() for name in row)]
    if len(whole) < 2:
        raise SystemExit("error: two data sets at least must be finished")
    return np.stack([read(args, row) for row in whole]).transpose(1, 2, 0, 3, 4)


def arithmetic_share(args, scores):
    """By rate, what another arithmetic changes beside what another stream changes.

    Returns:
        name → rate → the root mean square of the change of a policy's mean return, over √2, since
        two arithmetics differ by the noise of both; the standard deviation over streams of the mean
        return itself; both pooled over the losses; and the mean change with its standard error. Of
        what is finished.
    """
    found = {}
    for name in ARITHMETIC:
        other = _returns(args, name)
        here = _returns(args, BESIDE[name]) if name in BESIDE else scores[:, :, 0].mean(-1)
        if other is None or here is None:
            continue
        change = other - here
        found[name] = {
            f"{rate:g}": {
                "change": float(np.sqrt((change[:, r] ** 2).mean() / 2)),
                "stream": float(np.sqrt(here[:, r].var(1, ddof=1).mean())),
                "mean": float(change[:, r].mean()),
                "error": float(change[:, r].std(ddof=1) / np.sqrt(change[:, r].size)),
                "equal": bool((change[:, r] == 0).all()),
            }
            for r, rate in enumerate(RATES)
        }
    return found


def _returns(args, name):
    """Of the policies of an arithmetic, ``[loss, rate, stream]``; None before all are there."""
    names = [f"{loss}__{name.replace(' ', '-')}" for loss in LOSSES]
    if not all(_path(args, piece).exists() for piece in names):
        return None
    return read(args, names).mean(-1)


# Data sets, streams on each, episodes: the last is the comparison of the default search.
DESIGNS = [(1, 32, 8), (1, 32, 2), (8, 4, 2), (16, 2, 2), (16, 2, 8), (32, 1, 4), (24, 1, 32)]
CONTESTANTS = 6  # who share a data set


def spend(paired, rate, seconds):
    """For each design, the standard error of a paired difference, and the seconds per contestant.

    The error is the root mean square over the pairs of losses.
    """
    rows = [parts for name, parts in paired.items() if name.endswith(f", {rate:g}")]
    found = []
    for data_sets, streams, episodes in DESIGNS:
        errors = [error(parts, data_sets, streams, episodes) for parts in rows]
        cost = data_sets * streams * (seconds["training"] + episodes * seconds["episode"])
        cost += data_sets * seconds["data set"] / CONTESTANTS
        size = math.sqrt(sum(e**2 for e in errors) / len(errors))
        found.append(
            {
                "data sets": data_sets,
                "streams": streams,
                "episodes": episodes,
                "error": size,
                "seconds": cost,
            }
        )
    return found


def analyse(args):
    """The parts of the variance, and what they mean for the spending of a second."""
    scores = table(args)  # NaN where a training diverged
    single, paired = {}, {}
    for r, rate in enumerate(RATES):
        for i, loss in enumerate(LOSSES):
            y = scores[i, r]
            single[f"{loss}, {rate:g}"] = {"mean": float(y.mean()), **components(y)}
        for i, j in itertools.combinations(range(len(LOSSES)), 2):
            y = scores[i, r] - scores[j, r]
            name = f"{LOSSES[i]} − {LOSSES[j]}, {rate:g}"
            paired[name] = {"mean": float(y.mean()), **components(y)}
    files = sorted((args.out / "pieces").glob("*__[0-9].json"))
    done = [json.loads(path.read_text()) for path in files]
    members = len(RATES) * args.streams
    seconds = {
        "training": float(np.median([p["seconds"]["train"] for p in done])) / members,
        "episode": float(np.median([p["seconds"]["evaluate"] for p in done]))
        / (members * args.episodes),
        "data set": max(p["data_seconds"] for p in done),
    }
    content = {
        "settings": {k: v for k, v in vars(args).items() if k not in ("out", "smoke", "report")},
        "single": single,
        "paired": paired,
        "arithmetic": arithmetic_share(args, scores),
        "seconds": seconds,
        "data sets": scores.shape[2],
        "designs": {f"{rate:g}": spend(paired, rate, seconds) for rate in RATES},
    }
    write_atomic(args.out / "budget.json", json.dumps(content, indent=1) + "\n")
    return content


def report(found):
    """The budget as text."""
    parts = ("data", "stream", "data×stream", "start", "rest")
    lines = [f"{'standard deviation of':<28}{'mean':>8}" + "".join(f"{p:>13}" for p in parts)]
    for kind in ("single", "paired"):
        for name, row in found[kind].items():
            rest = sum(v for k, v in row.items() if "start" in k and k != "start")
            values = [row["data"], row["stream"], row["data×stream"], row["start"], rest]
            lines.append(
                f"{name:<28}{row['mean']:8.0f}"
                + "".join(f"{math.sqrt(max(0.0, v)):13.0f}" for v in values)
            )
    lines.append(f"\nstandard error of a paired difference, from {found['data sets']} data sets")
    for rate, designs in found["designs"].items():
        lines += [
            f"{rate:>6}  {d['data sets']:2} data sets × {d['streams']:2} streams × "
            f"{d['episodes']} episodes: {d['error']:5.0f} in {d['seconds']:4.0f} s a contestant"
            for d in designs
        ]
    lines.append("")
    for name, rates in found["arithmetic"].items():
        text = ", ".join(
            f"{rate}: {row['change']:.0f} (another stream {row['stream']:.0f}; on average "
            f"{row['mean']:+.0f} ± {row['error']:.0f})"
            for rate, row in rates.items()
        )
        beside = f", beside {BESIDE[name]}," if name in BESIDE else ""
        lines.append(f"{name}{beside} changes a policy's mean return by {text}")
    lines.append(", ".join(f"a {k}: {v:.2f} s" for k, v in found["seconds"].items()))
    return "\n".join(lines)


def main():
    parser = study_parser(__doc__, "noise_budget")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--behaviour_std", type=float, default=BEHAVIOUR_STD, help="of the data")
    parser.add_argument("--data_sets", type=int, help=f"{DATA_SETS}")
    args = parser.parse_args()
    own = results_folder("noise_budget", args.smoke)
    if args.behaviour_std != BEHAVIOUR_STD:
        own = own.with_name(f"{own.name}_{args.behaviour_std:g}")
    args.out = args.out or own
    full = {"data_sets": DATA_SETS, "streams": STREAMS, "episodes": EPISODES}
    full |= {"pairs": 128, "steps": 1000, "epochs": 12}
    for name, value in (SMOKE if args.smoke else full).items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    torch.set_num_threads(args.threads)
    if not args.report:
        collect(args)
    print(report(analyse(args)))


if __name__ == "__main__":
    main()
