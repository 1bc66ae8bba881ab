"""Who should weigh a preference term against SFT: a rule, a schedule in time, or tuned constants?

    python experiments/balance.py [--out experiments/results/balance]
    python experiments/balance.py --report

SimPO's term falls without SFT beside it, so what sets the weight of SFT decides. Six ways are one
diagnosis: tuned with as many trainings each, the learning rate among the numbers, then trained on
eight fresh data sets of each kind. A finished cell is on disk; the same command goes on. The plan
is in ``experiments/HISTORY.md`` and was written before the first result.
"""

import argparse
import json
from pathlib import Path

import torch

from torchmpo.diagnose.__main__ import main as diagnose
from torchmpo.diagnose.cells import cell_path
from torchmpo.losses import simpo_loss
from torchmpo.objectives.resolve import DISCOVERED, discovered
from torchmpo.statistics import holm, mean_of

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
    """Mean return of each final seed, or None where the cell is not finished."""
    path = cell_path(args.out, loss, kind)
    rows = json.loads(path.read_text())["returns"] if path.exists() else None
    return None if not rows else torch.tensor(rows, dtype=torch.float64).mean(1)


def report(args):
    """Each rule less the constants and less the schedule in time, paired by data set."""
    from scipy.stats import ttest_1samp

    rows, values = [], []
    for kind in KINDS:
        for loss in losses():
            if (own := runs(args, loss, kind)) is not None:
                yield f"{kind:<10}{loss:<28}{own.mean():8.0f} ± {mean_of(own.tolist()).se:.0f}"
        for rule in RULES:
            for rival in (CONSTANT, *losses()[len(RULES) + 1 :]):
                own, other = runs(args, rule, kind), runs(args, rival, kind)
                if own is not None and other is not None:
                    rows.append((kind, rule, rival, mean_of((own - other).tolist())))
                    values.append(float(ttest_1samp((own - other).numpy(), 0).pvalue))
    for (kind, rule, rival, d), p in zip(rows, holm(values) if values else [], strict=True):
        interval = f"{d.mean:+.0f} [{d.low:+.0f}, {d.high:+.0f}]"
        yield f"{kind:<10}{rule:<24} minus {rival:<26}{interval:<26} corrected p {p:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("experiments/results/balance"))
    parser.add_argument("--report", action="store_true", help="of what is finished; train nothing")
    parser.add_argument("--smoke", action="store_true", help="seconds: see that it runs")
    args = parser.parse_args()
    failed = 0 if args.report else collect(args)
    print("\n".join(report(args)))
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
