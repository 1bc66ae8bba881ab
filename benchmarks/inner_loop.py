"""How much useful arithmetic does the population inner loop do per second, against its rivals?

    python benchmarks/inner_loop.py --json results.json

One update is 2 pairs × 2 trajectories × 1000 steps through a 27-64-64-8 network, for a population
of 16 (and 250 random steps for one of 33, as the default search does). Useful arithmetic is
6 × rows × weights per member: forward and both halves of backward. Ours is ``train_policies`` from
call to return, with the gathering of minibatches and Adam. The rivals: the same ``vmap(grad)`` run
eagerly, an ordinary PyTorch loop (module, autograd, Adam) over the members one after another, and,
as the ceiling, one large matrix product. Beside them: the same in bfloat16, and a categorical
policy, whose head is wider; its speed counts the Gaussian's arithmetic, so the ratio is that of the
times. They take
turns: each repeat gives one ratio, and medians are reported, with the fastest repeat in GFLOP/s; so
a busy machine changes the ratios little.
"""

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from torchmpo.control.categorical import CategoricalPolicy
from torchmpo.control.inner_loop import InnerConfig, train_policies
from torchmpo.control.member_steps import HALF
from torchmpo.control.policy import GaussianPolicy, stack_policies
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.control.settings import BINS
from torchmpo.objectives.resolve import resolve

OBSERVATIONS, HIDDEN, ACTIONS, TIME, PAIRS = 27, (64, 64), 8, 1000, 16
WEIGHTS = 27 * 64 + 64 * 64 + 64 * 8
CEILING = "matrix product, 4096³"


def make_data(draw):
    rows = torch.arange(2 * PAIRS)
    return PreferenceDataset(
        observation=torch.randn(2 * PAIRS, TIME, OBSERVATIONS, generator=draw),
        action=0.4 * torch.randn(2 * PAIRS, TIME, ACTIONS, generator=draw),
        lengths=torch.full((2 * PAIRS,), TIME),
        returns=torch.zeros(2 * PAIRS),
        chosen=rows[:PAIRS],
        rejected=rows[PAIRS:],
    )


def one_after_another(start, objective, data, steps, members):
    """What one would write without vmap, for the first ``members`` of the population."""
    for i in range(members):
        policy = GaussianPolicy(OBSERVATIONS, ACTIONS, HIDDEN)
        policy.load_state_dict({name: p[i] for name, p in start.items()}, strict=False)
        optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
        for batch in torch.randperm(PAIRS).split(2):
            rows = torch.cat([data.chosen[batch], data.rejected[batch]])
            time_steps = torch.randint(TIME, (4, steps)) if steps < TIME else torch.arange(TIME)
            at = rows[:, None], time_steps
            logps = policy.step_logps(data.observation[at], data.action[at]).mean(-1)
            fields = dict(zip(("chosen_mean_logps", "rejected_mean_logps"), logps.chunk(2)))
            loss = objective.function(**fields, **objective.hyper).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.3)
            optimizer.step()


def contestants(population, steps, chunk_size):
    """name → (function, billions of useful floating-point operations it does)."""
    draw = torch.Generator().manual_seed(0)
    data, objective = make_data(draw), resolve("orpo")
    start = stack_policies(GaussianPolicy(OBSERVATIONS, ACTIONS, HIDDEN).trainable(), population)
    policy = GaussianPolicy(OBSERVATIONS, ACTIONS, HIDDEN)
    own = {"po_coef": torch.linspace(0.1, 1.0, population)}
    sampled = steps if steps < TIME else None
    config = InnerConfig(epochs=1, steps_per_trajectory=sampled, chunk_size=chunk_size)
    work = 6 * 4 * steps * WEIGHTS * (PAIRS // 2) / 1e9
    square = torch.randn(4096, 4096, generator=draw)

    tokens = CategoricalPolicy(OBSERVATIONS, ACTIONS, HIDDEN)
    start_tokens = stack_policies(tokens.trainable(), population)

    def ours(config, policy=policy, start=start):
        return lambda: train_policies(policy, start, objective, own, data, config, 0)

    return {
        CEILING: (lambda: square @ square, 2 * 4096**3 / 1e9),
        f"train_policies, chunks of {chunk_size}": (ours(config), work * population),
        "the same, bf16-mixed": (ours(replace(config, precision=HALF)), work * population),
        f"the same, categorical, {BINS} bins": (
            ours(config, tokens, start_tokens),
            work * population,
        ),
        "the same, eager vmap": (ours(replace(config, compile=False)), work * population),
        "members one after another": (
            lambda: one_after_another(start, objective, data, steps, 2),
            work * 2,
        ),
    }


def measure(population, steps, chunk_size, repeats):
    found = contestants(population, steps, chunk_size)
    speeds = {name: [] for name in found}
    for repeat in range(repeats + 1):
        for name, (run, work) in found.items():
            begin = time.perf_counter()
            run()
            seconds = time.perf_counter() - begin
            if repeat > 0:  # the first compiles and warms up
                speeds[name].append(work / seconds)
    rows = []
    for name, values in speeds.items():
        row = {"contestant": name, "population": population, "steps": steps}
        row["gflops_best"] = max(values)
        for label, rival in (("ceiling", CEILING), ("eager", "the same, eager vmap")):
            ratios = [a / b for a, b in zip(values, speeds[rival])]
            row[f"ratio_to_{label}"] = statistics.median(ratios)
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description="The inner loop against its rivals.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--chunk_size", type=int, default=InnerConfig.chunk_size)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = measure(16, 1000, args.chunk_size, args.repeats)
    rows += measure(33, 250, args.chunk_size, args.repeats)
    print(f"{args.threads} threads, best and medians of {args.repeats} repeats")
    print(f"{'P':>3} {'steps':>5}  {'':32} {'GFLOP/s':>8} {'of ceiling':>10} {'vs eager':>8}")
    for r in rows:
        print(
            f"{r['population']:>3} {r['steps']:>5}  {r['contestant']:32} {r['gflops_best']:8.1f} "
            f"{r['ratio_to_ceiling']:10.2f} {r['ratio_to_eager']:8.2f}"
        )
    if args.json:
        about = {"torch": torch.__version__, "machine": platform.processor(), **vars(args)}
        about["json"] = str(args.json)
        args.json.write_text(json.dumps({"about": about, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
