"""Where CoLPO and ORPO leave the likelihoods of both sides at the end of training, on the robot.

    python experiments/last_log_probs.py

arXiv 2411.06568 (section 6) compares the two on a language model by the log-probabilities of the
last batch. Here they are the means per step over all pairs after the last epoch, as labels have
them, of the recorded diagnosis at tuned settings (``experiments/transfer/PROTOCOL.md``): eight
trainings with data of their own, paired between the losses.
"""

import sys
from pathlib import Path

from torchmpo.diagnose.cells import cell_path, read_cell
from torchmpo.statistics import mean_of

RESULTS = Path("experiments/results/transfer_anchored")
KINDS = ("base", "mixed", "noisy:0.3", "graded:0-0.4", "best_of:4")
LOSSES = ("colpo", "orpo")
SIDES = ("chosen", "rejected", "margin")


def last(cell):
    """Side → what every seed ended at."""
    ends = {side: [curve[-1] for curve in cell["curves"][side]] for side in SIDES[:2]}
    pairs = zip(ends["chosen"], ends["rejected"], strict=True)
    return ends | {"margin": [chosen - rejected for chosen, rejected in pairs]}


def rows(folder):
    """Of every kind and side: both means, and the difference with its interval."""
    for kind in KINDS:
        ours, theirs = (last(read_cell(cell_path(folder, loss, kind))) for loss in LOSSES)
        for side in SIDES:
            paired = zip(ours[side], theirs[side], strict=True)
            own, other = mean_of(ours[side]).mean, mean_of(theirs[side]).mean
            yield kind, side, own, other, mean_of([a - b for a, b in paired])


def main():
    if not RESULTS.exists():
        sys.exit(f"{RESULTS} is missing: run this where experiments/ is")
    print(f"{'':14}{'':10}{'colpo':>8}{'orpo':>8}  colpo − orpo, nats per step")
    for kind, side, own, other, d in rows(RESULTS):
        print(
            f"{kind:14}{side:10}{own:8.3f}{other:8.3f}  {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        )


if __name__ == "__main__":
    main()
