"""Which settings of the search find more, and which parts of the network does it need?

    python experiments/search_settings.py [--arms "log g,temporal"]
    python experiments/search_settings.py --report

Each arm is the default search with one thing changed, from the seeds and on the data of
``search_study.py``, at the learning rates that were tuned there (losses of two steps begin as
``dpo_norm``, at a rate that is tuned for it), and is judged on the same fresh data sets. So every
difference to the default search is paired twice: by the seed of the search and by data set. A piece
is a file, and several runs with other arms may share a folder. A setting whose first three searches
are no better on average than the default's ends there. The plans are in
``experiments/HISTORY.md`` and were written before the first result.
"""

import functools
import json
from pathlib import Path

import search_study as study
import torch
from command_lines import results_folder, study_parser
from scipy.stats import ttest_1samp

from torchmpo.control.grids import RATE
from torchmpo.evolve.comparison import contestant
from torchmpo.objectives.resolve import resolve
from torchmpo.statistics import mean_of
from torchmpo.statistics.pairwise import holm

SETTINGS = {
    "searched rate": {"search_rate": True},
    "sigma 0.015": {"sigma": 0.015},
    "sigma 0.06": {"sigma": 0.06},
    "step 0.01": {"outer_learning_rate": 0.01},
    "step 0.04": {"outer_learning_rate": 0.04},
}
FROM_DPO = {"steps": "two", "learning_rate": None}
TWO_STEPS = FROM_DPO | {"warm_start": "dpo_norm"}
PARTS = {
    "log g": {"learn": ["psi", "phi_inv"]},
    "temporal": {"temporal": True},
    "two steps": TWO_STEPS,
    "two steps and log g": TWO_STEPS | {"learn": ["phi_inv"]},
}
BESIDE = {"two steps, from dpo": FROM_DPO}  # what the plan had first
ARMS = SETTINGS | PARTS | BESIDE
RIVAL = "dpo, tuned"
FIRST = 3  # searches of a setting, after which it ends if it does not look better
FURTHER = [("two steps and log g", other) for other in ("two steps", RIVAL)]


def name_of(arm, seed):
    """Of an arm's piece."""
    return f"{arm}, seed {seed}"


def differences(arm, other, args):
    """Seed of the search → an arm minus another, paired by data set, where both are finished.

    A training that diverged counts as the worst that anyone finished.
    """
    scores, found = study.finals(args), {}
    for seed in study.SEARCHES:
        pair = [name if name == RIVAL else name_of(name, seed) for name in (arm, other)]
        if scores.keys() >= set(pair):
            found[seed] = study.difference(scores, *pair)
    return found


def hopeless(arm, seed, args):
    """Whether a setting's first searches were no better on average than the default's."""
    if arm not in SETTINGS or seed in study.SEARCHES[:FIRST]:
        return False
    first = {k: d.mean for k, d in differences(arm, "default", args).items() if k < FIRST}
    return len(first) == FIRST and sum(first.values()) <= 0


def collect(args):
    """All arms of one seed before the next, so that what is there can be compared at any time.

    What the study found, and its rival, are judged again: another processor makes other data.
    """
    first, folder = study.setup_of(0, args), args.study / "running" / "data"
    fresh = functools.cache(lambda: study.fresh_sets(first, folder, args.final_seeds))
    tuned = json.loads((args.study / "rival__dpo.json").read_text())["setting"]
    study.judged(RIVAL, contestant(resolve("dpo"), tuned), fresh, first, args)
    for seed in study.SEARCHES[: args.searches]:
        found = study.found_of(seed, args.study)
        rate = found[RATE]
        default = study.contestant_of(study.setup_of(seed, args), found["vector"], rate)
        study.judged(name_of("default", seed), default, fresh, first, args)
        for arm in args.arms:
            if hopeless(arm, seed, args):
                continue
            name = name_of(arm, seed)
            setup = study.setup_of(seed, args, **{"learning_rate": rate} | ARMS[arm])
            found = study.run_search(name, setup, args)
            made = study.contestant_of(setup, found["vector"], found[RATE])
            study.judged(name, made, fresh, first, args)


def report(args):
    """Each arm minus what it is compared with, by seed and over seeds, and Holm's p over the arms
    of each of the two questions.
    """
    found = {}
    for arm, other in [*((arm, "default") for arm in ARMS), *FURTHER]:
        by_seed = differences(arm, other, args)
        found[arm, other] = means = [d.mean for d in by_seed.values()]
        for seed, d in by_seed.items():
            yield f"{name_of(arm, seed)} − {other}: {study.interval(d)}"
        if len(means) > 1:
            over = study.interval(mean_of(means))
            yield f"{arm} − {other}: {over} over {len(means)} searches"
    for question in (SETTINGS, PARTS):
        told = {arm: found[arm, "default"] for arm in question}
        told = {arm: means for arm, means in told.items() if len(means) > 1}
        p = holm([ttest_1samp(means, 0).pvalue for means in told.values()]) if told else []
        yield from (f"{arm}: corrected p {value:.3f}" for arm, value in zip(told, p, strict=True))


def main():
    parser = study_parser(__doc__, "search_settings")
    parser.add_argument("--study", type=Path, default=Path("experiments/results/search_study"))
    parser.add_argument("--searches", type=int, default=len(study.SEARCHES), help="of every arm")
    parser.add_argument("--arms", default=",".join(SETTINGS), help="by commas")
    args = parser.parse_args()
    args.out = args.out or results_folder("search_settings", args.smoke)
    args.arms = [arm.strip() for arm in args.arms.split(",")]
    if unknown := sorted({*args.arms} - ARMS.keys()):
        parser.error(f"no arm {unknown[0]!r}: choose from {', '.join(ARMS)}")
    args.final_seeds, args.final_episodes = study.FINAL_SEEDS, study.FINAL_EPISODES
    if args.smoke:
        args.final_seeds, args.final_episodes = 2, 2
    torch.set_num_threads(1)
    if not args.report:
        collect(args)
    print("\n".join(report(args)))


if __name__ == "__main__":
    main()
