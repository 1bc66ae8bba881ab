"""Is there one loss that is first on every kind of data, untuned? A search by regret over kinds.

    python experiments/robust.py [--out experiments/results/robust]
    python experiments/robust.py --report

Two arms with the same number of trainings and the same seeds: every generation on one kind, drawn
by regret (``curriculum``), and every generation on all kinds (``mean``). What each search found, as
it is, is then judged by a diagnosis on every kind against tuned rivals. The plan is in
``experiments/HISTORY.md`` and was written before the first result.
"""

import csv
import json
from pathlib import Path

from command_lines import results_folder, study_parser

from torchmpo.diagnose.__main__ import main as diagnose
from torchmpo.evolve.__main__ import main as evolve
from torchmpo.statistics import mean_of

REGIMES = "base", "mixed", "noisy:0.3", "graded:0-0.4", "best_of:4", "noisy:0.3+pairs:64"
RIVALS = "sft,rrhf,slic_hf,lpo,cpo,orpo,colpo,dpo,ipo"
SEARCHES = range(3)
ARMS = "curriculum", "mean"
TURNS = 12  # generations that a kind has on average, as many as the default search on one kind
SETTINGS = {"held_out_every": 12, "final_seeds": 8, "rivals": "slic_hf"}
SMOKE = {"preset": "smoke", "pairs": 4, "episode_steps": 20, "num_threads": 1}


def arms(smoke):
    """What the two ways to search differ in."""
    turns = 1 if smoke else TURNS
    return {
        "curriculum": {"curriculum": "regret", "generations": turns * len(kinds(smoke))},
        "mean": {"combine": "mean", "generations": turns},
    }


def kinds(smoke):
    """Of data."""
    return ("base", "noisy:0.3+pairs:2") if smoke else REGIMES


def words_of(settings):
    """A command line."""
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def begun(folder):
    """To go on with what is there."""
    return ["--resume"] if (folder / "config.yaml").exists() else []


def collect(args):
    """All searches, the arms of one seed before the next seed; then one diagnosis."""
    found, data = [], ",".join(kinds(args.smoke))
    for seed in range(1) if args.smoke else SEARCHES:
        for arm, own in arms(args.smoke).items():
            folder = args.out / f"{arm}_{seed}"
            settings = (SMOKE if args.smoke else SETTINGS) | own | {"data": data, "seed": seed}
            if not (folder / "objective" / "card.json").exists():
                code = evolve(["--out", str(folder), *words_of(settings), *begun(folder)])
                if code:
                    return code
            found.append(str(folder / "objective"))
    folder = args.out / "diagnosis"
    settings = {"losses": ",".join([*found, "sft" if args.smoke else RIVALS]), "data": data}
    settings |= SMOKE if args.smoke else {"trials": 24, "seeds": 16}
    return diagnose(["--out", str(folder), *words_of(settings), *begun(folder)])


def report(args):
    """Everyone's mean score over kinds and its ranks, 1 where nobody is shown to be better; and the
    one arm less the other by mean score, paired by the seed of the search.
    """
    path = args.out / "diagnosis" / "leaderboard.json"
    if not path.exists():
        return
    rows = json.loads(path.read_text())["rows"]
    scores = {}
    for loss in dict.fromkeys(row["loss"] for row in rows):
        own = {row["data"]: row for row in rows if row["loss"] == loss}
        ranks = ", ".join(f"{kind} {row['rank']['rank']}" for kind, row in own.items())
        scores[loss] = sum(row["score"]["mean"] for row in own.values()) / len(own)
        words = f"{loss:<48}{scores[loss]:6.3f}  "
        if Path(loss).name == "objective":  # one that was found
            words += f"held out {held_out(Path(loss).parent):.0f}  "
            first = all(row["rank"]["rank"] == 1 for row in own.values())
            words += "first on all: " if first else ""
        yield words + ranks
    pairs = [[str(args.out / f"{arm}_{k}" / "objective") for arm in ARMS] for k in SEARCHES]
    found = [scores[one] - scores[other] for one, other in pairs if {one, other} <= scores.keys()]
    if len(found) > 1:
        d = mean_of(found)
        yield f"{' minus '.join(ARMS)}: {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}] over kinds"


def held_out(folder):
    """The last held-out score of a search, which chooses among objectives that are first."""
    with (folder / "log.csv").open() as file:
        return [float(row["held_out"]) for row in csv.DictReader(file) if row["held_out"]][-1]


def main():
    parser = study_parser(__doc__, "robust")
    args = parser.parse_args()
    args.out = args.out or results_folder("robust", args.smoke)
    failed = 0 if args.report else collect(args)
    print("\n".join(report(args)))
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
