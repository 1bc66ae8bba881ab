"""Which settings of the search find more? Step sizes, perturbations, and a searched learning rate.

    python experiments/search_settings.py [--out experiments/results/search_settings]
    python experiments/search_settings.py --report

Each arm is the default search with one setting changed, from the seeds and on the data of
``search_study.py``, at the learning rates that were tuned there, and is judged on the same fresh
data sets. So every difference to the default search is paired twice: by the seed of the search and
by data set. The plan is in ``experiments/HISTORY.md`` and was written before the first result.
"""

import argparse
import functools
import json
from pathlib import Path

import search_study as study
import torch
from scipy.stats import ttest_1samp

from torchmpo.statistics import mean_of
from torchmpo.statistics.pairwise import holm

ARMS = {
    "searched rate": {"search_rate": True},
    "sigma 0.015": {"sigma": 0.015},
    "sigma 0.06": {"sigma": 0.06},
    "step 0.01": {"outer_learning_rate": 0.01},
    "step 0.04": {"outer_learning_rate": 0.04},
}


def name_of(arm, seed):
    """Of an arm's piece."""
    return f"{arm}, seed {seed}"


def collect(args):
    """All arms of one seed before the next, so that what is there can be compared at any time."""
    first, folder = study.setup_of(0, args), args.study / "running" / "data"
    fresh = functools.cache(lambda: study.fresh_sets(first, folder, args.final_seeds))
    for seed in study.SEARCHES[: args.searches]:
        rate = study.rate_of(seed, args.study)
        for arm, settings in ARMS.items():
            name = name_of(arm, seed)
            setup = study.setup_of(seed, args, learning_rate=rate, **settings)
            vector = study.run_search(name, setup, args)["vector"]
            study.judged(name, study.contestant_of(setup, vector, rate), fresh, first, args)


def report(args):
    """Each arm minus the default search, by seed and over seeds, and Holm's p over the arms."""
    of = {"default": args.study, **dict.fromkeys(ARMS, args.out)}

    def returns(arm, seed):
        name = f"found, seed {seed}" if arm == "default" else name_of(arm, seed)
        path = of[arm] / f"final__{name.replace(' ', '_')}.json"
        return json.loads(path.read_text())["returns"] if path.exists() else None

    differences = {}
    for arm in ARMS:
        differences[arm] = means = []
        for seed in study.SEARCHES:
            ours, default = returns(arm, seed), returns("default", seed)
            if ours and default:
                d = study.difference({arm: ours, "default": default}, arm, "default")
                means.append(d.mean)
                yield f"{name_of(arm, seed):<28}{study.interval(d)}"
        if len(means) > 1:
            yield f"{arm:<28}{study.interval(mean_of(means))} over {len(means)} searches"
    told = {arm: means for arm, means in differences.items() if len(means) > 1}
    p = holm([ttest_1samp(means, 0).pvalue for means in told.values()]) if told else []
    yield from (f"{arm:<28}corrected p {value:.3f}" for arm, value in zip(told, p, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("experiments/results/search_settings"))
    parser.add_argument("--study", type=Path, default=Path("experiments/results/search_study"))
    parser.add_argument("--searches", type=int, default=len(study.SEARCHES), help="of every arm")
    parser.add_argument("--report", action="store_true", help="of what is finished; train nothing")
    parser.add_argument("--smoke", action="store_true", help="seconds: see that it runs")
    args = parser.parse_args()
    args.final_seeds, args.final_episodes = study.FINAL_SEEDS, study.FINAL_EPISODES
    if args.smoke:
        args.final_seeds, args.final_episodes = 2, 2
    torch.set_num_threads(1)
    if not args.report:
        collect(args)
    print("\n".join(report(args)))


if __name__ == "__main__":
    main()
