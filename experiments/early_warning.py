"""Can one see in the first epoch that a training will end below the agent it started from?

    python experiments/early_warning.py [RESULTS ...]

Reads the cells of recorded diagnoses (by default of ``RUNS``, so that what is printed stays what
was published): of each, the likelihoods at the start of the preference phase and after its first
epoch (a twelfth of training, or a half of the two epochs that losses with a reference have after
their supervised ones), and whether the mean score of its seeds ended below 0 or half of them
diverged. A rule is one number and its threshold. Areas under the curve are of all
cells; a threshold is chosen on all losses but one (the best balanced accuracy) and tried on that
one, in turn.

The second table is for a warning that few trainings get for nothing: of each rule the highest
threshold below which at most one in twenty of the others is.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from torchmpo.objectives.resolve import resolve

RULES = {
    "chosen: its log-probability per step": lambda c0, c1, r0, r1: c1,
    "chosen: what it gained": lambda c0, c1, r0, r1: c1 - c0,
    "rejected: what it gained": lambda c0, c1, r0, r1: r1 - r0,
    "margin: what it gained": lambda c0, c1, r0, r1: (c1 - r1) - (c0 - r0),
}
RUNS = [
    "128_pairs_rate_1e-3",
    "128_pairs_rate_3e-4",
    "full_hopper",
    "full_hopper_all_steps",
    "full_tla",
    "full_tla_all_steps",
    "lists",
    "quick_tla",
    "quick_tla_data_per_seed",
    "quick_tla_rate_1e-3",
    "rate_1e-4",
    "rate_3e-5",
]


class Cells(NamedTuple):
    """What was recorded: ``[cells]`` each.

    Attributes:
        losses: their names.
        fell: whether training ended below its start.
        signs: rule → its value; the lower the worse.
    """

    losses: NDArray
    fell: NDArray
    signs: dict[str, NDArray]


def read(folders: list[Path]) -> Cells:
    """The cells of these run folders that have curves."""
    losses, fell, signs = [], [], {rule: [] for rule in RULES}
    for folder in folders:
        anchors = json.loads((folder / "anchors.json").read_text())
        low, high = (np.mean(anchors[agent]) for agent in ("original", "target"))
        for path in sorted(folder.glob("cells/*.json")):
            cell = json.loads(path.read_text())
            if not cell["curves"]:
                continue
            finished = [np.mean(row) for row in cell["returns"] if row]
            lost = len(finished) <= len(cell["returns"]) / 2
            losses.append(Path(cell["loss"]).name)
            fell.append(lost or (np.mean(finished) - low) / (high - low) < 0)
            for rule, value in _first_epoch(cell).items():
                signs[rule].append(value)
    found = {rule: np.array(values) for rule, values in signs.items()}
    return Cells(np.array(losses), np.array(fell), found)


def _first_epoch(cell: Mapping) -> dict[str, float]:
    """The rules on the median of the seeds that go on; −∞ where all have diverged by then."""
    curves = {k: np.array(cell["curves"][k], dtype=float) for k in ("chosen", "rejected")}
    begin = 10 if _has_reference(cell["loss"]) else 0
    ends = [np.nanmedian(curves[k][:, e]) for k in curves for e in (begin, begin + 1)]
    ends = [-np.inf if np.isnan(x) else x for x in ends]
    return {rule: float(sign(*ends)) for rule, sign in RULES.items()}


def _has_reference(loss: str) -> bool:
    try:
        return resolve(loss).needs_reference
    except (ValueError, OSError):  # a file that is not here any more: of the searches, without one
        return False


def auc(fell: NDArray, sign: NDArray) -> float:
    """How probable it is that a cell that fell has the lower sign than one that did not."""
    u = mannwhitneyu(-sign[fell], -sign[~fell]).statistic
    return float(u / (fell.sum() * (~fell).sum()))


def threshold(fell: NDArray, sign: NDArray) -> float:
    """That of the best balanced accuracy."""
    tried = np.unique(sign[np.isfinite(sign)])
    return max(tried, key=lambda t: (sign[fell] < t).mean() + (sign[~fell] >= t).mean())


def quiet(fell: NDArray, sign: NDArray, most: float = 0.05) -> float:
    """The highest threshold below which there are at most so many of those that did not fall."""
    others = np.sort(sign[~fell])
    return float(others[int(most * len(others))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="*")
    folders = parser.parse_args().folders
    folders = folders or [Path(f"experiments/results/diagnose_{name}") for name in RUNS]
    losses, fell, signs = read(folders)
    print(f"{len(fell)} cells of {len(set(losses))} losses; {fell.sum()} ended below their start:")
    print("  " + ", ".join(f"{x} {fell[losses == x].sum()}" for x in sorted(set(losses[fell]))))
    others = losses != "simpo"
    for choose, name in ((threshold, "after one epoch"), (quiet, "a warning after one epoch")):
        print(f"\n{name:38} {'AUC':>5} {'without simpo':>13}   leave one loss out")
        for rule, sign in signs.items():
            told = np.zeros(len(fell), dtype=bool)
            for loss in set(losses):
                rest, here = losses != loss, losses == loss
                told[here] = sign[here] < choose(fell[rest], sign[rest])
            area, without = auc(fell, sign), auc(fell[others], sign[others])
            print(
                f"{rule:38} {area:5.2f} {without:13.2f}   {told[fell].mean():4.0%} of those that "
                f"fell are told, {told[~fell].mean():4.0%} of the others; "
                f"below {choose(fell, sign):.2f}"
            )


if __name__ == "__main__":
    main()
