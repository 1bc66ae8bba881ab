"""Does a search of formulas find one that is as good as the best tuned hand-made loss?

    python experiments/programs.py [--out experiments/results/programs] [--part KIND]
    python experiments/programs.py --report

On each of three kinds of data of the three-legged ant, ``torchmpo evolve --space program`` searches
formulas of at most twelve nodes, for as many generations as take about an hour on two cores.
Hand-made losses are tuned on the data of the search, their learning rate too, with the same number
of trainings, shared out among them. Everyone is judged on fresh data, a set for every seed.

What decides, with a score of 0 for the original agent and 1 for the target: the difference of the
found formula to the best hand-made loss on the fresh data, paired by seed, with its 95 % interval.
The goal is an interval above −0.02 on two of the three kinds, above 0 on one. The best of several
rivals on the data on which it is then compared is flattered; nothing is done about that, and it is
against the formula. One search a kind: what another would find is not known from it.

A piece is a file as soon as it is finished; a second start goes on. The kinds may run side by side
(``--part``). The plan is in ``experiments/HISTORY.md`` and was written before the first result.
"""

import json
from dataclasses import asdict

import numpy as np
import search_study as study
import torch
from command_lines import results_folder, study_parser

from torchmpo.control.grids import RATE
from torchmpo.control.testbed import fresh_data, prepare
from torchmpo.control.tuning import Protocol
from torchmpo.diagnose.suite import anchors
from torchmpo.evolve.comparison import contestant, seed_returns, tune_rival
from torchmpo.evolve.run import contestant_at, explore
from torchmpo.evolve.settings import PRESETS, EvolveConfig
from torchmpo.evolve.setup import Setup
from torchmpo.objectives.formulas import Formula, text
from torchmpo.objectives.formulas.vocabulary import size
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.seeding import derive_seed
from torchmpo.statistics import diverged_as_worst, mean_of

KINDS = {"clean": "base", "noisy": "noisy:0.3", "mixed": "mixed"}
RIVALS = ("sft", "slic_hf", "cpo", "orpo", "rrhf", "colpo")
GENERATIONS, POPULATION, NODES = 72, 32, 12
TUNING_SEEDS, TUNING_REDUCTION = 2, 3  # the best third of the settings is trained twice
FINAL_SEEDS, FINAL_EPISODES = 40, 32
MARGIN = 0.02  # of the score, by which a formula may be worse and count as good
SMOKE = {"generations": 2, "population": 4, "trials": 2, "final_seeds": 2, "final_episodes": 2}
FULL = {
    "generations": GENERATIONS,
    "population": POPULATION,
    "final_seeds": FINAL_SEEDS,
    "final_episodes": FINAL_EPISODES,
    # So that all rivals together have as many trainings as the search.
    "trials": round(
        GENERATIONS * POPULATION / len(RIVALS) * TUNING_REDUCTION / (TUNING_REDUCTION + 1)
    ),
}


def setup_of(kind, args):
    """The search of formulas on one kind of data."""
    preset = PRESETS["smoke"] if args.smoke else {}
    settings = {"generations": args.generations, "population": args.population, "nodes": NODES}
    settings |= {"space": "program", "data": KINDS[kind], "num_threads": args.threads}
    settings |= {"held_out_every": 0, "rivals": "sft"}
    return Setup.of(EvolveConfig(**{**preset, **settings}))


def run_search(kind, setup, args):
    """What the search found, how long it took, and at which learning rate."""

    def make():
        folder = args.out / "running" / kind
        folder.mkdir(parents=True, exist_ok=True)
        testbeds, found = explore(setup, folder)
        objective = setup.space.at(found.vector)
        assert isinstance(objective.function, Formula)
        timings = (folder / "timings.csv").read_text().splitlines()[1:]
        return {
            "formula": text(objective.function.expression),
            "latex": objective.function.latex(),
            "nodes": size(objective.function.expression),
            "vector": found.vector.tolist(),
            RATE: testbeds[0].config.inner.learning_rate,
            "seconds": sum(float(line.split(",")[1]) for line in timings),
            "log": found.log,
            "config": asdict(setup.config),
        }

    return study.piece(args.out / f"search__{kind}.json", make)


def tuned(kind, loss, setup, args):
    """A rival's best setting on the data of the search; None if it always diverged."""

    def make():
        protocol = Protocol(tuning_seeds=TUNING_SEEDS, tuning_reduction=TUNING_REDUCTION)
        testbeds = prepare(setup.testbeds)
        found = tune_rival(testbeds, resolve(loss), args.trials, protocol, "mean", rate=True)
        return found and found._asdict()

    return study.piece(args.out / f"rival__{kind}__{loss}.json", make)


def judged(kind, name, made, fresh, setup, args):
    """A contestant's returns by seed on the fresh data."""

    def make():
        protocol = Protocol(seed=derive_seed("programs"))
        counts = args.final_seeds, args.final_episodes
        testbeds = prepare(setup.testbeds)
        returns = seed_returns(testbeds, {name: made}, *counts, protocol, "final", data=fresh)
        return {"returns": returns[name][0].tolist()}

    return study.piece(args.out / f"final__{kind}__{name}.json", make)


def collect(kind, args):
    """Do what is missing on one kind of data."""
    setup = setup_of(kind, args)
    found = run_search(kind, setup, args)
    settings = {loss: tuned(kind, loss, setup, args) for loss in RIVALS}
    first = prepare(setup.testbeds)

    def ends():
        scale = anchors(first[0], args.final_episodes, Protocol(seed=derive_seed("programs")))
        return {agent: float(torch.tensor(scale[agent]).mean()) for agent in ("original", "target")}

    study.piece(args.out / f"anchors__{kind}.json", ends)
    seeds = [derive_seed("programs", "data", i) for i in range(args.final_seeds)]
    fresh = fresh_data(first, seeds, cache_dir=str(args.out / "running" / "data"))
    one = contestant_at(setup, first, torch.tensor(found["vector"]))
    judged(kind, "formula", one._replace(learning_rate=found[RATE]), fresh, setup, args)
    for loss, best in settings.items():
        if best is not None:
            judged(kind, loss, contestant(resolve(loss), best["setting"]), fresh, setup, args)


def report(args):
    """What is finished: the formulas, everyone's score, and the differences that decide."""
    lines, lows = [], []
    for kind in KINDS:
        if not (args.out / f"final__{kind}__formula.json").exists():
            continue
        scale = json.loads((args.out / f"anchors__{kind}.json").read_text())
        span = scale["target"] - scale["original"]
        scores = {}
        for path in sorted(args.out.glob(f"final__{kind}__*.json")):
            returns = json.loads(path.read_text())["returns"]
            name = path.stem.rpartition("__")[2]
            scores[name] = [(value - scale["original"]) / span for value in returns]
        lost = {name: np.isnan(own).sum() for name, own in scores.items()}
        scores = {name: own.tolist() for name, own in diverged_as_worst(scores).items()}
        found = json.loads((args.out / f"search__{kind}.json").read_text())
        minutes = found["seconds"] / 60
        lines += [f"{kind}: {found['formula']}", f"  {found['nodes']} nodes, {minutes:.0f} min"]
        order = sorted(scores, key=lambda name: -mean_of(scores[name]).mean)
        lines += [
            f"  {n:<10}{mean_of(scores[n]).mean:7.3f} ± {mean_of(scores[n]).se:.3f}" for n in order
        ]
        lines += [f"  {n}: {k} seeds diverged and count as the worst" for n, k in lost.items() if k]
        best = next((name for name in order if name != "formula"), None)
        if best is not None:
            pairs = zip(scores["formula"], scores[best], strict=True)
            d = mean_of([a - b for a, b in pairs])
            lows.append(d.low)
            lines.append(f"  formula minus {best}: {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]")
    good, better = sum(low > -MARGIN for low in lows), sum(low > 0 for low in lows)
    lines.append(f"above −{MARGIN} on {good} and above 0 on {better} of {len(lows)} kinds")
    if len(lows) == len(KINDS):
        lines.append("the goal is " + ("reached" if good >= 2 and better >= 1 else "not reached"))
    return "\n".join(lines)


def main():
    parser = study_parser(__doc__, "programs")
    parser.add_argument("--part", choices=tuple(KINDS), help="one kind of data alone")
    parser.add_argument("--threads", type=int, default=2, help="of the search and of all else")
    args = parser.parse_args()
    args.out = args.out or results_folder("programs", args.smoke)
    for name, value in (SMOKE if args.smoke else FULL).items():
        setattr(args, name, value)
    torch.set_num_threads(args.threads)
    if not args.report:
        for kind in [args.part] if args.part else KINDS:
            collect(kind, args)
    print(report(args))


if __name__ == "__main__":
    main()
