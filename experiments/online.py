"""Offline, iterated or online, at equal labels: which way to spend preference pairs is best?

    python experiments/online.py [--out experiments/results/online]
    python experiments/online.py --report

Each arm is the default diagnosis of a few losses with ``--rounds`` of its own: 1 is offline, 2 and
4 are iterated, 16 is as good as online (8 pairs a round). All arms have 128 pairs, tune every loss
by the same number of trainings, and share seeds, start states and the data of the first round, so
differences are paired. An arm goes on where it was stopped. The plan is in
``experiments/HISTORY.md`` and was written before the first result.
"""

import json

import numpy as np
from command_lines import results_folder, study_parser

from torchmpo.diagnose.__main__ import main as diagnose
from torchmpo.diagnose.cells import seed_scores
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


def environment_steps(out):
    """Of a seed, on average, by loss and kind."""
    cells = (json.loads(path.read_text()) for path in sorted(out.glob("cells/*.json")))
    return {(cell["loss"], cell["data"]): np.mean(cell["environment_steps"]) for cell in cells}


def report(args):
    """Every arm minus the offline one, by kind of data and loss, paired by seed."""
    folders = {r: args.out / f"rounds-{r}" for r in ARMS if (args.out / f"rounds-{r}").is_dir()}
    arms = {rounds: seed_scores(folder) for rounds, folder in folders.items()}
    costs = {rounds: environment_steps(folder) for rounds, folder in folders.items()}
    for kind in KINDS:
        if not all((loss, kind) in found for found in arms.values() for loss in LOSSES):
            continue
        print(kind)
        for rounds, found in arms.items():
            steps = np.mean([costs[rounds][loss, kind] for loss in LOSSES]) / 1e3
            line = "  ".join(f"{loss} {np.nanmean(found[loss, kind]):.2f}" for loss in LOSSES)
            print(f"  {ARMS[rounds]:10} {line}  {steps:.0f} thousand environment steps")
        for rounds, found in arms.items():
            if rounds == 1:
                continue
            by_loss = [found[loss, kind] - arms[1][loss, kind] for loss in LOSSES]
            for loss, difference in zip(LOSSES, by_loss, strict=True):
                print(f"  {ARMS[rounds]:10} − offline  {loss:5} {_interval(difference)}")
            print(f"  {ARMS[rounds]:10} − offline  all   {_interval(np.nanmean(by_loss, axis=0))}")
    if len(arms) == len(ARMS):
        coverage(arms)


def coverage(arms):
    """What 4 rounds gain on data near the policy, minus what they gain on data far from it."""
    near, far = KINDS[-1], KINDS[0]
    found, offline = arms[4], arms[1]
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
    parser = study_parser(__doc__, "online")
    args = parser.parse_args()
    args.out = args.out or results_folder("online", args.smoke)
    if not args.report and (code := collect(args)):
        return code
    report(args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
