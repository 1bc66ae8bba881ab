"""How long will a search take, and what will it hold in memory? On paper, from measured rates.

    python experiments/plan_search.py --preset paper

Trainings are counted in floating-point operations (6 × rows × weights, as the benchmark of the
inner loop counts them), evaluations in environment steps, every episode at full length. The rates
are those of the committed runs of ``benchmarks/inner_loop.py`` and ``benchmarks/environments.py``
on two cores. A core takes one chunk of members at a time, so cores without a chunk are idle: the
plan names the chunk size, of at least four members, that wastes least. A GPU is planned as a
share of its peak that is an assumption, marked so. Memory is the preference data, which is mapped
from disk and shared by the processes of a machine, and per process the activations of one chunk,
with torch, Ray and MuJoCo below them.
"""

import argparse
import json
from math import ceil
from pathlib import Path

from torchmpo.evolve.settings import PRESETS, EvolveConfig
from torchmpo.evolve.setup import Setup
from torchmpo.runs.command import duration

RESULTS = Path(__file__).parent / "results"
HIDDEN = 64
BASE = 1.2e9  # bytes of a process of its own, seen at the full preset of the diagnosis
SMALLEST = 4  # members in a chunk: fewer are slower each, see benchmarks/inner_loop.py
# One GPU of 67 TFLOP/s in float32: the share of it that small batched products reach, and the
# environment steps per second of a physics back end that lives on it. Assumed, not measured.
GPU_PEAK, GPU_SHARES, GPU_STEPS = 67e12, (0.1, 0.3), (0.3e6, 1e6)


def measured():
    """Operations and environment steps per second of one core: ``(tla, hopper)`` for the latter."""
    inner = json.loads((RESULTS / "benchmark_inner_loop.json").read_text())
    ours = [row for row in inner["results"] if row["contestant"].startswith("train_policies")]
    rates = {row["steps"]: row["gflops_best"] * 1e9 / inner["about"]["threads"] for row in ours}
    steps = {}
    for task, name in (("tla", "environments"), ("hopper", "environments_hopper")):
        found = json.loads((RESULTS / f"benchmark_{name}.json").read_text())
        mine = [
            row["steps_per_second"]
            for row in found["results"]
            if (row["name"], row["integrator"]) == ("torchmpo_envs", "implicitfast")
        ]
        steps[task] = max(mine) / found["machine"]["cores"]
    return rates, steps


def plan(config):
    """Work of one generation and of the whole search, and bytes of memory."""
    setup = Setup.of(config)
    testbed = setup.testbeds[0]
    policy = testbed.load_policy()
    pairs, time = testbed.pool.pairs, testbed.pool.max_steps
    inputs, actions = policy.observation_size, policy.action_size
    weights = inputs * HIDDEN + HIDDEN * HIDDEN + HIDDEN * actions
    rows = 2 * config.minibatch_pairs * (config.steps_per_trajectory or time)
    updates = config.epochs * (pairs // config.minibatch_pairs)
    members = (config.population + 1) * len(setup.testbeds)
    # The activations of a chunk: inputs, two hidden layers and their gradients, and the actions.
    chunk = config.chunk_size * rows * (inputs + 4 * HIDDEN + 2 * actions) * 4
    return {
        "members": members,
        "operations": 6.0 * rows * weights * updates * members,
        "env_steps": float(members * config.episodes * time),
        "data": 3 * pairs * time * (inputs + actions) * 4,
        "process": BASE + chunk,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="paper", choices=sorted(PRESETS))
    parser.add_argument("--task", default="tla", choices=("tla", "hopper"))
    args = parser.parse_args()
    config = EvolveConfig(**{**PRESETS[args.preset], "task": args.task})
    rates, steps = measured()
    work = plan(config)
    rate = rates[1000 if config.steps_per_trajectory is None else 250]
    train, evaluate = work["operations"] / rate, work["env_steps"] / steps[args.task]
    print(
        f"{args.preset} search on {args.task}: {config.generations} generations of "
        f"{work['members']} trainings and as many evaluations of {config.episodes} episodes"
    )
    print(
        f"a generation: {work['operations'] / 1e12:,.1f} Tflop at {rate / 1e9:.0f} Gflop/s a core, "
        f"{work['env_steps'] / 1e6:,.2f} M environment steps at {steps[args.task]:,.0f} a core"
    )
    print(
        f"memory: data {work['data'] / 1e9:.2f} GB a machine, "
        f"{work['process'] / 1e9:.2f} GB a process, whatever the population\n"
    )
    print(f"{'':34}{'chunk_size':>10}{'a generation':>14}{'the search':>13}")
    for name, cores in (
        ("2 cores", 2),
        ("16 cores", 16),
        ("32 machines of 16 cores", 512),
    ):
        sizes = range(SMALLEST, config.chunk_size + 1)
        rounds = {n: ceil(ceil(work["members"] / n) / cores) * n for n in sizes}
        size = min(reversed(sizes), key=rounds.__getitem__)
        seconds = (train + evaluate) / work["members"] * rounds[size]
        whole = duration(seconds * config.generations)
        print(f"{name:34}{size:10}{duration(seconds):>14}{whole:>13}")
    for share, speed in zip(GPU_SHARES, GPU_STEPS, strict=True):
        seconds = work["operations"] / (share * GPU_PEAK) + work["env_steps"] / speed
        name = f"GPU at {share:.0%}, {speed / 1e6:.1f} M steps/s *"
        whole = duration(seconds * config.generations)
        print(f"{name:34}{'':10}{duration(seconds):>14}{whole:>13}")
    print("* assumed: no GPU was measured")


if __name__ == "__main__":
    main()
