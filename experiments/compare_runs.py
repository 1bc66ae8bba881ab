"""Do two diagnoses agree? Mean return in the first minus that in the second, cell by cell.

    python experiments/compare_runs.py experiments/results/diagnose_full_tla \\
        experiments/results/diagnose_full_tla_all_steps

Runs of one seed share initial policies and minibatches, so their seeds are compared in pairs:
difference ± standard error, with p of Student's paired test. Cells that only one run has are left
out, and so are seeds that diverged in either.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from scipy.stats import ttest_rel


def seed_means(cell):
    """Mean return of every seed of a cell, NaN where it diverged."""
    return np.array([np.mean(row) if row else math.nan for row in cell["returns"]])


def differences(first, second):
    """(loss, data) → difference, its standard error, p, and whether the same setting was chosen."""
    found = {}
    for path in sorted(Path(first, "cells").glob("*.json")):
        other = Path(second, "cells", path.name)
        if not other.exists():
            continue
        cells = [json.loads(p.read_text()) for p in (path, other)]
        a, b = map(seed_means, cells)
        n = min(len(a), len(b))
        both = np.isfinite(a[:n]) & np.isfinite(b[:n])
        if both.sum() < 2:
            continue
        a, b = a[:n][both], b[:n][both]
        same = cells[0]["grid"][cells[0]["best"]] == cells[1]["grid"][cells[1]["best"]]
        error = (a - b).std(ddof=1) / math.sqrt(len(a))
        row = (float((a - b).mean()), float(error), float(ttest_rel(a, b).pvalue), same)
        found[cells[0]["loss"], cells[0]["data"]] = row
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, help="folder of a diagnosis")
    parser.add_argument("second", type=Path)
    args = parser.parse_args()
    found = differences(args.first, args.second)
    losses, kinds = dict.fromkeys(k[0] for k in found), dict.fromkeys(k[1] for k in found)
    print(f"| | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}")
    for loss in losses:
        texts = []
        for kind in kinds:
            if (loss, kind) not in found:
                texts.append("–")
                continue
            mean, error, p, same = found[loss, kind]
            text = f"{mean:+,.0f} ± {error:,.0f}{'' if same else ' *'}".replace("-", "−")
            texts.append(f"**{text}**" if p < 0.05 else text)
        print(f"| {loss} | {' | '.join(texts)} |")
    apart = sum(p < 0.05 for _, _, p, _ in found.values())
    print(
        f"\n* another setting was chosen. Bold: p < 0.05, {apart} of {len(found)} cells; by chance "
        f"alone {0.05 * len(found):.1f} are expected."
    )


if __name__ == "__main__":
    main()
