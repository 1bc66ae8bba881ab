"""Who should weigh a preference term against SFT: a rule, a schedule in time, or tuned constants?

    python experiments/balance.py [--out experiments/results/balance]
    python experiments/balance.py --report

SimPO's term falls without SFT beside it, so what sets the weight of SFT decides. Six ways are one
diagnosis: tuned with as many trainings each, the learning rate among the numbers, then trained on
eight fresh data sets of each kind. A finished cell is on disk; the same command goes on. The plan
is in ``experiments/HISTORY.md`` and was written before the first result.
"""

import json
import math

import numpy as np
import torch
from command_lines import results_folder, study_parser

from torchmpo.diagnose.__main__ import main as diagnose
from torchmpo.diagnose.cells import cell_path
from torchmpo.losses import simpo_loss
from torchmpo.objectives.resolve import DISCOVERED, discovered
from torchmpo.statistics import diverged_as_worst, holm, mean_of

KINDS = "base", "mixed", "noisy:0.3"
CONSTANT, IN_TIME = "simpo+sft", "balance:time_aware_loss"
RULES = "simpo+sft@dual", "simpo+sft@min_norm", "simpo+sft@dynamic", "simpo+sft+orpo@meta"
SETTINGS = {"trials": 24, "tuning_seeds": 2, "tuning_reduction": 3, "seeds": 8}
SMOKE = {"preset": "smoke", "trials": 2, "tuning_reduction": 1, "seeds": 2}


def time_aware_loss(
    chosen_mean_logps,
    rejected_mean_logps,
    progress,
    *,
    beta=2.0,
    target_margin=0.5,
    early_weight=1.0,
    late_weight=1.0,
):
    """SimPO's term plus SFT, whose weight goes from the early to the late one on a log scale."""
    early, late = torch.as_tensor(early_weight), torch.as_tensor(late_weight)
    weight = early * (late / early) ** progress
    preference = simpo_loss(
        chosen_mean_logps, rejected_mean_logps, beta=beta, target_margin=target_margin
    )
    return preference - weight * chosen_mean_logps


def losses():
    """All that are compared, and discovered objectives of this robot that know the time."""
    found = [name for name in discovered() if name.startswith("tla_")]
    cards = [json.loads((DISCOVERED / name / "card.json").read_text()) for name in found]
    temporal = [n for n, card in zip(found, cards) if card.get("config", {}).get("temporal")]
    return [CONSTANT, *RULES, IN_TIME, *temporal]


def collect(args):
    """One diagnosis, begun or gone on with."""
    words = ["--out", str(args.out), "--losses", ",".join(losses()), "--data", ",".join(KINDS)]
    for name, value in (SMOKE if args.smoke else SETTINGS).items():
        words += [f"--{name}", str(value)]
    return diagnose([*words, "--resume"] if (args.out / "config.yaml").exists() else words)


def runs(args, loss, kind):
    """Mean return of each final seed, NaN of one that diverged; None before the cell is finished.

    Of a loss that diverged at every setting no seed was trained: all of them count as diverged.
    """
    path = cell_path(args.out, loss, kind)
    if not path.exists():
        return None
    rows = json.loads(path.read_text())["returns"]
    seeds = (SMOKE if args.smoke else SETTINGS)["seeds"]
    return [mean_of(row).mean if row else math.nan for row in rows or [None] * seeds]


def report(args):
    """Each rule less the constants and less the schedule in time, paired by data set."""
    from scipy.stats import ttest_1samp

    rows, values = [], []
    for kind in KINDS:
        found = {loss: runs(args, loss, kind) for loss in losses()}
        found = {loss: own for loss, own in found.items() if own}
        lost = {loss: np.isnan(own).sum() for loss, own in found.items()}
        found = {loss: own.tolist() for loss, own in diverged_as_worst(found).items()}
        for loss, own in found.items():
            words = f", {lost[loss]} seeds diverged and count as the worst" if lost[loss] else ""
            yield f"{kind:<10}{loss:<28}{mean_of(own).mean:8.0f} ± {mean_of(own).se:.0f}{words}"
        for rule in RULES:
            for rival in (CONSTANT, *losses()[len(RULES) + 1 :]):
                if {rule, rival} <= found.keys():
                    pairs = zip(found[rule], found[rival], strict=True)
                    differences = [own - other for own, other in pairs]
                    rows.append((kind, rule, rival, mean_of(differences)))
                    values.append(float(ttest_1samp(differences, 0).pvalue))
    for (kind, rule, rival, d), p in zip(rows, holm(values) if values else [], strict=True):
        interval = f"{d.mean:+.0f} [{d.low:+.0f}, {d.high:+.0f}]"
        yield f"{kind:<10}{rule:<24} minus {rival:<26}{interval:<26} corrected p {p:.3f}"


def main():
    parser = study_parser(__doc__, "balance")
    args = parser.parse_args()
    args.out = args.out or results_folder("balance", args.smoke)
    failed = 0 if args.report else collect(args)
    print("\n".join(report(args)))
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
