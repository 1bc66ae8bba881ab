"""Offline, iterated or online, at equal labels: which way to spend preference pairs is best?

    python experiments/online.py [--out experiments/results/online]
    python experiments/online.py --report

Each arm is the default diagnosis of a few losses with ``--rounds`` of its own: 1 is offline, 2 and
4 are iterated, 16 is as good as online (8 pairs a round). All arms have 128 pairs, tune every loss
by the same number of trainings, and share seeds, start states and the data of the first round, so
differences are paired. An arm goes on where it was stopped. The plan is in
``experiments/HISTORY.md`` and was written before the first result.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from torchmpo.diagnose.__main__ import main as diagnose
from torchmpo.statistics import mean_of

ARMS = {1: "offline", 2: "2 rounds", 4: "4 rounds", 16: "16 rounds"}
LOSSES = ("dpo", "orpo", "sft")
# One kind after the other, so that all arms of what is finished can be compared.
KINDS = ("base", "noisy:0.3", "mixed", "graded:0-0.4")


def collect(args):
    for kind in KINDS[:1] if args.smoke else KINDS:
        for rounds in ARMS:
            out = args.out / f"rounds-{rounds}"
            if (out / "config.yaml").exists():
                words = ["--resume", "--data", kind, "--out", str(out)]
            else:
                words = ["--preset", "smoke"] if args.smoke else ["--num_threads", "1"]
                words += ["--pairs", "32"] if args.smoke else []
                words += ["--losses", ",".join(LOSSES), "--rounds", str(rounds)]
                words += ["--data", kind, "--out", str(out)]
            if code := diagnose(words):
                return code
    return 0


def scores(out):
    """(loss, kind) → the score of every seed; NaN for one that diverged. And mean costs."""
    anchors = json.loads((out / "anchors.json").read_text())
    low, high = (np.mean(anchors[agent]) for agent in ("original", "target"))
    found, costs = {}, {}
    for path in sorted(out.glob("cells/*.json")):
        cell = json.loads(path.read_text())
        means = [np.mean(row) if row else np.nan for row in cell["returns"]]
        key = cell["loss"], cell["data"]
        found[key] = (np.array(means) - low) / (high - low)
        costs[key] = np.mean(cell["environment_steps"]), np.mean(cell["labels"])
    return found, costs


def report(args):
    """Every arm minus the offline one, by kind of data and loss, paired by seed."""
    arms = {
        r: scores(args.out / f"rounds-{r}") for r in ARMS if (args.out / f"rounds-{r}").is_dir()
    }
    for kind in KINDS:
        if not all((loss, kind) in found for found, _ in arms.values() for loss in LOSSES):
            continue
        print(kind)
        for rounds, (found, costs) in arms.items():
            steps = np.mean([costs[loss, kind][0] for loss in LOSSES]) / 1e3
            line = "  ".join(f"{loss} {np.nanmean(found[loss, kind]):.2f}" for loss in LOSSES)
            print(f"  {ARMS[rounds]:10} {line}  {steps:.0f} thousand environment steps")
        for rounds, (found, _) in arms.items():
            if rounds == 1:
                continue
            by_loss = [found[loss, kind] - arms[1][0][loss, kind] for loss in LOSSES]
            for loss, difference in zip(LOSSES, by_loss, strict=True):
                print(f"  {ARMS[rounds]:10} − offline  {loss:5} {_interval(difference)}")
            print(f"  {ARMS[rounds]:10} − offline  all   {_interval(np.nanmean(by_loss, axis=0))}")
    if len(arms) == len(ARMS):
        coverage(arms)


def coverage(arms):
    """What 4 rounds gain on data near the policy, minus what they gain on data far from it."""
    near, far = KINDS[-1], KINDS[0]
    found, offline = arms[4][0], arms[1][0]
    if all(
        (loss, kind) in own for loss in LOSSES for kind in (near, far) for own in (found, offline)
    ):
        gains = [
            [found[loss, kind] - offline[loss, kind] for loss in LOSSES] for kind in (near, far)
        ]
        difference = np.nanmean(gains[0], axis=0) - np.nanmean(gains[1], axis=0)
        print(f"coverage: gain of 4 rounds on {near} minus on {far}: {_interval(difference)}")


def _interval(differences):
    mean = mean_of(differences[np.isfinite(differences)].tolist())
    return f"{mean.mean:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}]"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("experiments/results/online"))
    parser.add_argument("--report", action="store_true", help="read what is there, compute nothing")
    parser.add_argument("--smoke", action="store_true", help="everything once; says nothing")
    args = parser.parse_args()
    if not args.report and (code := collect(args)):
        return code
    report(args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
