"""A finished diagnosis beside the numbers that arXiv 2411.06568 published, as a Markdown table.

    python experiments/compare_published.py experiments/results/diagnose_full_tla

The physics, the agents and the price of the costly leg are not the paper's, so orders and
normalised scores compare and returns do not. A cell reads "ours [95 % interval] / published", both
(R − R_original)/(R_target − R_original); below the table, Kendall's τ between the two orders of the
losses in each column, with its 95 % interval, for which the seeds of every loss are drawn again,
and the p-value of no relation.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from torchmpo.diagnose.cells import seed_scores
from torchmpo.runs.seeding import derive_seed
from torchmpo.statistics import interquartile_mean

# Returns of the trained agents. TLA: Table 2; Hopper: Table 4, whose noisy data flips an unstated
# share of the labels.
PUBLISHED = {
    "tla": {
        "agents": (1700, 3900),
        "data": ("base", "mixed", "noisy:0.1", "noisy:0.2", "noisy:0.3"),
        "losses": {
            "rrhf": (2789, 2245, 1730, 749, 330),
            "slic_hf": (3255, 2478, 2329, 1964, 1135),
            "dpo": (3528, 2766, 3082, 2530, 1519),
            "ipo": (3618, 2937, 3162, 2392, 1133),
            "cpo": (3450, 2322, 2967, 2427, 2000),
            "orpo": (3087, 2500, 2841, 2359, 1953),
            "r_dpo": (2606, 2107, 2099, 1740, 1667),
            "simpo": (3683, 3117, 2314, 118, -3828),
            "sft": (3287, 2344, 2733, 2345, 2049),
            "lpo": (3774, 2841, 3617, 2705, 1569),
        },
    },
    "hopper": {
        "agents": (900, 2100),
        "data": ("base", "mixed", "noisy:0.3"),
        "losses": {
            "dpo": (1796, 458, 693),
            "ipo": (2049, 1606, 739),
            "cpo": (2078, 1078, 1813),
            "orpo": (2022, 1039, 1710),
            "simpo": (2027, 1460, 1794),
        },
    },
}
RESAMPLES = 1000  # of the seeds, for an interval


def published_scores(task):
    """Of the paper's trained agents, {(loss, kind of data): score}."""
    published = PUBLISHED[task]
    low, high = published["agents"]
    return {
        (loss, kind): (value - low) / (high - low)
        for loss, values in published["losses"].items()
        for kind, value in zip(published["data"], values, strict=True)
    }


def agreement(ours, theirs, kind):
    """Kendall's τ between two orders of the losses on one kind of data.

    Args:
        ours: {(loss, kind): score}.
        theirs: likewise.
        kind: of data.

    Returns:
        What scipy returns, or None where they share fewer than three losses.
    """
    both = [(score, theirs[key]) for key, score in ours.items() if key[1] == kind and key in theirs]
    return kendalltau(*zip(*both)) if len(both) > 2 else None


def tau_interval(scores, theirs, kind):
    """τ of one column between the interquartile means over seeds, and its 95 % interval: the seeds
    of every loss are drawn again. A seed that diverged counts as the worst of the column.
    """
    column = {key: np.array(found) for key, found in scores.items() if key[1] == kind}
    worst = min(np.nanmin(found) for found in column.values() if np.isfinite(found).any())
    column = {key: np.nan_to_num(found, nan=worst) for key, found in column.items()}
    random = np.random.default_rng(derive_seed(0, "paper differences", kind))
    draws = {
        key: interquartile_mean(random.choice(found, (RESAMPLES, len(found))))
        for key, found in column.items()
    }
    taus = [
        agreement({key: means[k] for key, means in draws.items()}, theirs, kind).statistic
        for k in range(RESAMPLES)
    ]
    means = {key: interquartile_mean(found) for key, found in column.items()}
    return agreement(means, theirs, kind).statistic, *np.nanpercentile(taus, [2.5, 97.5])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished diagnosis")
    run = parser.parse_args().run
    board = json.loads((run / "leaderboard.json").read_text())
    ours, losses, kinds = {}, {}, {}
    for row in board["rows"]:
        # Where every seed diverged, the row has the worst score of the others: that is its rank.
        finished = row["return"]["mean"] is not None
        ours[row["loss"], row["data"]] = row["iqm"] if finished else {"value": None}
        losses[row["loss"]] = kinds[row["data"]] = None
    theirs = published_scores(board["task"])
    print(f"| | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}")
    for loss in losses:
        cells = []
        for kind in kinds:
            score, paper = ours.get((loss, kind)), theirs.get((loss, kind))
            if score is None or score["value"] is None:
                own = "diverged" if score else "–"
            else:
                own = f"{score['value']:.2f}"
                if score["low"] is not None:  # one seed has no interval
                    own += f" [{score['low']:.2f}, {score['high']:.2f}]"
            cells.append(f"{own} / {'–' if paper is None else f'{paper:.2f}'}".replace("-", "−"))
        print(f"| {loss} | {' | '.join(cells)} |")
    values = {(row["loss"], row["data"]): row["iqm"]["value"] for row in board["rows"]}
    words, scores = [], seed_scores(run)
    for kind in kinds:
        found = agreement(values, theirs, kind)
        if found is None:
            words.append("–")
            continue
        _, low, high = tau_interval(scores, theirs, kind)
        words.append(f"{found.statistic:.2f} [{low:.2f}, {high:.2f}] (p = {found.pvalue:.2f})")
    print(f"| Kendall's τ | {' | '.join(words)} |".replace("-", "−"))


if __name__ == "__main__":
    main()
