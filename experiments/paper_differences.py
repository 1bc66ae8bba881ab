"""Which difference from the paper's set-up stands between its order of losses and ours?

    python -m experiments.paper_differences [--arms "paper,target apart"]
    python -m experiments.paper_differences --report

Each arm is the full diagnosis at the published learning rate with one suspected difference undone
(``paper``: with all that the profile undoes together; ``hopper``: its own), on the ten losses and
five kinds of data of arXiv 2411.06568's Table 2, or the five losses and three kinds of its Table 4
for the Hopper. An arm agrees with the paper where Kendall's τ between the two orders is at least
0.4 in three columns (of the Hopper's three: in two) and imitation on clean data scores 0.65 to
0.80. Every arm is an ordinary diagnosis in a folder of its own, which goes on where it was stopped;
several runs may work on different arms. The plan is in ``experiments/HISTORY.md`` and was written
before the first result.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from experiments.compare_published import PUBLISHED, published_scores, tau_interval
from torchmpo.control.settings import SMALLEST
from torchmpo.diagnose.__main__ import main as diagnose
from torchmpo.diagnose.cells import seed_scores
from torchmpo.statistics import interquartile_mean

FULL = {
    "preset": "full",
    "learning_rate": 1e-3,
    "steps_per_trajectory": 250,
    "trials": 8,
    "tuning_seeds": 1,
    "data_per_seed": "false",
    "precision": "bf16-mixed",
    "num_threads": 1,
}
ARMS = {
    "paper": {"profile": "paper"},
    "learned and sampled": {"policy_std_kind": "learned", "sample": "true"},
    "target apart": {"target": "apart"},
    "quiet behaviour": {"behaviour_std": 0.02},
    "categorical": {"policy": "categorical"},
    "hopper": {"profile": "paper", "task": "hopper"},
}
# The same without any of it.
RESULTS = Path("experiments/results")
AS_BUILT = {"tla": RESULTS / "diagnose_full_tla", "hopper": RESULTS / "diagnose_full_hopper"}
LEAST_TAU, SFT = 0.4, (0.65, 0.80)


def task_of(arm):
    """The robot of an arm."""
    return ARMS[arm].get("task", "tla")


def collect(arm, args):
    """Run what is missing of an arm."""
    out = args.out / arm.replace(" ", "_")
    if (out / "config.yaml").exists():
        return diagnose(["--out", str(out), "--resume"])
    published = PUBLISHED[task_of(arm)]
    settings = {
        "losses": ",".join(dict.fromkeys([*published["losses"], "sft"])),
        "data": ",".join(published["data"]),
        **FULL,
        **ARMS[arm],
    }
    if args.smoke:  # a profile goes before its preset
        settings |= {"preset": "smoke", "trials": 2, **SMALLEST}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return diagnose([*words, "--out", str(out)])


def report(out):
    """A line for every arm that has begun: imitation's score and τ of each finished column."""
    runs = [(f"{task} as built", task, folder) for task, folder in AS_BUILT.items()]
    runs += [(arm, task_of(arm), out / arm.replace(" ", "_")) for arm in ARMS]
    for arm, task, folder in runs:
        if not (folder / "anchors.json").exists():
            continue
        published, theirs, scores = PUBLISHED[task], published_scores(task), seed_scores(folder)
        taus = {}
        for kind in published["data"]:
            if all((loss, kind) in scores for loss in published["losses"]):
                taus[kind] = tau_interval(scores, theirs, kind)
        anchors = json.loads((folder / "anchors.json").read_text())
        low, high = (np.mean(anchors[agent]) for agent in ("original", "target"))
        words = [f"{arm}: original {low:.0f}, target {high:.0f}"]
        if ("sft", "base") in scores and task == "tla":  # Table 4 has none
            sft = interquartile_mean(scores["sft", "base"])
            within = "as" if SFT[0] <= sft <= SFT[1] else "not as"
            words.append(f"sft on base {sft:.2f}, {within} the paper's")
        words += [f"{k} {t:.2f} [{a:.2f}, {b:.2f}]" for k, (t, a, b) in taus.items()]
        lost = [key for key, own in scores.items() if np.isnan(own).all()]
        if lost := [f"{loss} on {kind}" for loss, kind in lost]:
            words.append(f"no seed finished: {', '.join(lost)}")
        agreeing = sum(tau >= LEAST_TAU for tau, _, _ in taus.values())
        words.append(f"τ ≥ {LEAST_TAU} in {agreeing} of {len(taus)} finished columns")
        yield "; ".join(words).replace("-", "−")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="experiments/results/paper_differences")
    parser.add_argument("--arms", default=",".join(ARMS), help="by commas")
    parser.add_argument("--report", action="store_true", help="of what is finished; train nothing")
    parser.add_argument("--smoke", action="store_true", help="seconds: see that it runs")
    args = parser.parse_args()
    own = Path("runs") if args.smoke else RESULTS
    args.out = args.out or own / "paper_differences"
    arms = [arm.strip() for arm in args.arms.split(",")]
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"no arm {unknown[0]!r}: choose from {', '.join(ARMS)}")
    for arm in arms:
        if not args.report and (code := collect(arm, args)):
            return code
    print("\n".join(report(args.out)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
