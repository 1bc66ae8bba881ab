"""Which policy head and which behaviour make preference losses well conditioned on the ant?

    python experiments/protocol_study.py [--out experiments/results/protocol_study.csv]

Every cell trains one loss under a grid of its own hyper-parameters, from the original agent, on one
kind of data, and evaluates the mean action and sampled actions. A cell is appended to the CSV when
it is finished; finished cells are skipped on a re-run. ``experiments/HISTORY.md`` tells what was
chosen and why.
"""

import argparse
import csv
import itertools
import time
from pathlib import Path

import torch

from torchmpo import resolve
from torchmpo.control.inner_loop import InnerConfig, train_policies
from torchmpo.control.policy import load_policy, stack_policies
from torchmpo.control.pools import PoolConfig
from torchmpo.control.preferences import preference_data
from torchmpo.control.returns import evaluate_policies
from torchmpo_envs import ThreeLeggedAnt, expert_path

BETAS = [0.01, 0.1, 1.0, 10.0]
# loss → (fixed settings, {hyper-parameter: grid}, needs SFT epochs first)
LOSSES = {
    "sft": ({}, {}, False),
    "slic_hf": ({"reduction": "mean"}, {"delta": [0.1, 1.0, 10.0], "sft_coef": [1.0, 10.0]}, False),
    "lpo": ({"reduction": "mean"}, {"sft_coef": [1.0, 3.0, 10.0, 30.0]}, False),
    "cpo": ({}, {"beta": [1e-4, 1e-3, 1e-2, 1e-1], "sft_coef": [1.0]}, False),
    "orpo": ({}, {"po_coef": [0.03, 0.1, 0.3, 1.0]}, False),
    "simpo": ({}, {"beta": BETAS}, False),
    "dpo": ({}, {"beta": [1e-5, 1e-4, 1e-3, 1e-2]}, True),
    "ipo": ({}, {"beta": BETAS}, True),
}
DATA = ("noisy:0.3", "base", "mixed")
# (name, σ of the policy, fixed or learned, σ of the behaviour, learning rate)
SETUPS = [
    ("std 0.4", 0.4, "fixed", 0.1, 1e-3),
    ("std 0.2", 0.2, "fixed", 0.1, 1e-3),
    ("std 0.8", 0.8, "fixed", 0.1, 1e-3),
    ("learned std", 0.4, "learned", 0.1, 1e-3),
    ("behaviour 0.2", 0.4, "fixed", 0.2, 1e-3),
    ("slow", 0.4, "fixed", 0.1, 3e-4),
]
FIELDS = ["setup", "data", "loss", "hyper_parameters", "evaluation", "return", "s.e.", "seconds"]


def run_cell(setup, data, loss, *, episodes, pairs):
    _, std, std_kind, behaviour_std, learning_rate = setup
    fixed, grid, needs_sft = LOSSES[loss]
    dataset = preference_data(
        PoolConfig(pairs=pairs, behaviour_std=behaviour_std), data, progress=False
    )
    policy = load_policy(expert_path("ant_original"), std=std, std_kind=std_kind)
    points = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    objective = resolve(loss, **fixed, **points[0])
    hyper = {
        name: torch.tensor([point.get(name, float(default)) for point in points])
        for name, default in objective.parameters_tree().items()
    }
    epochs = {"sft_epochs": 10, "epochs": 2} if needs_sft else {"epochs": 12}
    config = InnerConfig(steps_per_trajectory=250, learning_rate=learning_rate, **epochs)
    start = time.perf_counter()
    init = stack_policies(policy.trainable(), len(points))
    params = train_policies(policy, init, objective, hyper, dataset, config, seed=0)
    env = ThreeLeggedAnt(len(points) * episodes, num_threads=1)
    for evaluation in ("mean", "sampled"):
        sample = evaluation == "sampled"
        returns = evaluate_policies(env, policy, params, episodes, seed=1, sample=sample)
        seconds = round(time.perf_counter() - start, 1)
        for point, scores in zip(points, returns):
            text = " ".join(f"{k}={v:g}" for k, v in point.items())
            error = (scores.std() / episodes**0.5).item()
            row = [setup[0], data, loss, text, evaluation, scores.mean().item(), error, seconds]
            yield [round(x, 1) if isinstance(x, float) else x for x in row]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default="experiments/results/protocol_study.csv")
    parser.add_argument("--setups", nargs="*", default=[s[0] for s in SETUPS])
    parser.add_argument("--losses", nargs="*", default=list(LOSSES))
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(1)  # small matrices: two processes beat two threads
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if args.out.exists():
        with args.out.open() as file:
            done = {(row["setup"], row["data"], row["loss"]) for row in csv.DictReader(file)}
    else:
        args.out.write_text(",".join(FIELDS) + "\n")
    chosen = [setup for setup in SETUPS if setup[0] in args.setups]
    for setup, loss, data in itertools.product(chosen, args.losses, DATA):
        if (setup[0], data, loss) in done:
            continue
        rows = list(run_cell(setup, data, loss, episodes=args.episodes, pairs=args.pairs))
        with args.out.open("a", newline="") as file:
            csv.writer(file).writerows(rows)
        best = max((row for row in rows if row[4] == "mean"), key=lambda row: row[5])
        print(*best, flush=True)


if __name__ == "__main__":
    main()
