"""Is a bad judge the same as flipped labels?

    python experiments/bad_judge.py [--out experiments/results/bad_judge]
    python experiments/bad_judge.py --report

arXiv 2411.06568 (section 4.1) says that a judge of high temperature would give what flipped labels
give, and therefore runs the latter only. Here are both, on pairs whose margins are alike (``base``)
and on pairs of all margins (``graded:0-0.4``), where a bad judge errs on the close pairs and
flipped labels on any. The judge's temperature is the one at which it errs as often as labels are
flipped. It is an ordinary diagnosis, which goes on where it was stopped. The plan is in
``experiments/HISTORY.md`` and was written before the first result.
"""

import numpy as np
from command_lines import results_folder, study_parser

from torchmpo.control.annotators import preference_probability
from torchmpo.control.pools import PoolConfig
from torchmpo.control.preferences import preference_data
from torchmpo.diagnose.__main__ import main as diagnose
from torchmpo.diagnose.cells import seed_scores
from torchmpo.statistics import mean_of

SOURCES = ("base", "graded:0-0.4")
LOSSES = ("sft", "orpo", "cpo", "slic_hf", "dpo", "ipo")
SHARE = 0.3  # of wrong labels
SAME = 0.05  # two scores that are surely nearer than this count as the same


def temperature(margins, share):
    """At which a Bradley–Terry judge errs on ``share`` of pairs of these margins ``[pairs]``."""
    low, high = 0.0, 1e3 * float(margins.abs().max())
    for _ in range(60):  # it errs more often the higher the temperature
        middle = (low + high) / 2
        right = preference_probability(margins.abs().double(), temperature=middle)
        low, high = (middle, high) if float((1 - right).mean()) < share else (low, middle)
    return float(f"{high:.4g}")


def kinds_of(source):
    """(flipped labels, bad judge) as kinds of data."""
    data = preference_data(PoolConfig(pairs=128), source)
    margins = data.returns[data.chosen] - data.returns[data.rejected]
    return f"{source}+noisy:{SHARE}", f"{source}+bad_judge:{temperature(margins, SHARE):g}"


def collect(args):
    resume = (args.out / "config.yaml").exists()
    kinds = ",".join(kind for source in SOURCES for kind in kinds_of(source))
    if resume:
        return diagnose(["--out", str(args.out), "--resume"])
    words = ["--preset", "smoke"] if args.smoke else ["--num_threads", "1"]
    losses = ",".join(LOSSES)
    return diagnose([*words, "--losses", losses, "--data", kinds, "--out", str(args.out)])


def report(args):
    """The bad judge's score minus that of flipped labels, paired by seed."""
    found = seed_scores(args.out)
    kinds = list(dict.fromkeys(kind for _, kind in found))
    for source in SOURCES:
        flips, judge = (
            next(k for k in kinds if k.removeprefix("base+").startswith(start))
            for start in _starts(source)
        )
        print(f"{source}: {judge} minus {flips}")
        differences = {}
        for loss in LOSSES:
            difference = found[loss, judge] - found[loss, flips]
            differences[loss] = difference
            _line(loss, difference[np.isfinite(difference)])
        _line("all", np.nanmean(list(differences.values()), axis=0))


def _starts(source):
    if source == "base":
        return "noisy:", "bad_judge:"
    return f"{source}+noisy:", f"{source}+bad_judge:"


def _line(name, difference):
    mean = mean_of(difference.tolist())
    if mean.low > 0 or mean.high < 0:
        word = "differs"
    else:
        word = "same" if max(-mean.low, mean.high) < SAME else "cannot be told"
    print(f"  {name:8} {mean.mean:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}]  {word}")


def main():
    parser = study_parser(__doc__, "bad_judge")
    args = parser.parse_args()
    args.out = args.out or results_folder("bad_judge", args.smoke)
    if not args.report and (code := collect(args)):
        return code
    report(args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
