"""Does the default search find a better loss? Five searches, tuned rivals, random controls.

    python experiments/search_study.py [--out experiments/results/search_study] [--part rivals]
    python experiments/search_study.py --report
    python experiments/search_study.py --save FOLDER

Each search is ``python -m torchmpo.evolve --seed K`` with its own data. What they found is compared
with their start, with all eleven hand-made losses of the suite, tuned by as many trainings as a
search makes, and with what a search might be no better than: a random vector at the distance that
the search went, and the best of as many random vectors, or permutations of what was found, as a
generation has members. Everyone is judged together on fresh data, a set for every seed.

A piece is a file as soon as it is finished; a second start goes on. Parts may run side by side: the
rivals need nothing of the searches. The plan is in
``experiments/HISTORY.md`` and was written before the first result.
"""

import functools
import json
from dataclasses import asdict
from pathlib import Path

import torch
from command_lines import results_folder, study_parser
from matplotlib.figure import Figure

from torchmpo import RELEASE
from torchmpo.control.grids import RATE
from torchmpo.control.testbed import fresh_data, prepare
from torchmpo.control.tuning import Protocol
from torchmpo.evolve.comparison import Contestant, contestant, seed_returns, tune_rival
from torchmpo.evolve.run import at_rate, explore
from torchmpo.evolve.settings import PLACE, PRESETS, EvolveConfig
from torchmpo.evolve.setup import Setup
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.files import write_atomic
from torchmpo.runs.seeding import derive_seed, generator
from torchmpo.statistics import compare, diverged_as_worst, mean_of

SEARCHES = (0, 1, 2, 3, 4)
ARITHMETIC = {"seed 0, chunks of 8": (0, 8), "seed 1, chunks of 8": (1, 8)}  # seed, chunk_size
RIVALS = ("sft", "rrhf", "slic_hf", "lpo", "cpo", "orpo", "simpo", "colpo", "dpo", "ipo", "r_dpo")
RIVAL_TRIALS, TUNING_SEEDS = 192, 2  # 384 trainings, as many as a search makes
DRAWS, DRAW_SEEDS = 32, 4  # random vectors of a control, and trainings by which one is chosen
FINAL_SEEDS, FINAL_EPISODES = 40, 32
SMOKE = {"rival_trials": 2, "draws": 2, "final_seeds": 2, "final_episodes": 2}
CONTROLS = {  # in words → as their pieces are called
    "a random vector": "a random vector",
    "the best of 32 random vectors": "best of random",
    "the best of 32 permutations": "best of permuted",
}
EPISODES = 16  # wherever something is chosen, as in the search


def setup_of(seed, args, **settings):
    """The default search with that seed, on one thread."""
    preset = PRESETS["smoke"] if args.smoke else {}
    return Setup.of(EvolveConfig(**{**preset, "seed": seed, "num_threads": 1, **settings}))


def searches(args):
    """Name → setup of every search."""
    plan = {f"seed {seed}": setup_of(seed, args) for seed in SEARCHES}
    for name, (seed, chunk_size) in ARITHMETIC.items():
        plan[name] = setup_of(seed, args, chunk_size=chunk_size)
    return plan


def piece(path, make):
    """The JSON in ``path``, made first where it is missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(make()) + "\n")
        print(path.name, flush=True)
    return json.loads(path.read_text())


def run_search(name, setup, args):
    """What one search found: its vector, learning rate and log."""

    def make():
        folder = args.out / "running" / name.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        testbeds, found = explore(setup, folder)
        rate = testbeds[0].config.inner.learning_rate
        content = {"vector": found.vector.tolist(), RATE: rate, "log": found.log}
        return content | {"config": asdict(setup.config)}

    return piece(args.out / f"search__{name.replace(' ', '_')}.json", make)


def draws(kind, setup, found, args):
    """Vectors ``[draws, dim]`` at the distance from the start that the search went."""
    random = generator(setup.config.seed, "control", kind)
    start = setup.space.start
    step = torch.tensor(found["vector"]) - start
    if kind == "random":
        drawn = torch.randn(args.draws, len(step), generator=random)
        drawn *= step.norm() / drawn.norm(dim=1, keepdim=True)
    else:
        drawn = torch.stack(
            [step[torch.randperm(len(step), generator=random)] for _ in range(args.draws)]
        )
    return start + drawn


def best_of(kind, name, setup, found, args):
    """The draw with the highest mean return on the data of the search."""

    def make():
        testbeds = at_rate(prepare(setup.testbeds), setup, args.out / "running" / name)
        vectors = draws(kind, setup, found, args)
        scores = torch.zeros(len(vectors))
        for k in range(DRAW_SEEDS):
            seed = derive_seed(setup.config.seed, "control", k)
            params = setup.space.parameters(vectors)
            trained = testbeds[0].train(setup.space.objective, params, len(vectors), seed)
            scores += testbeds[0].evaluate(trained, EPISODES, seed).mean(1) / DRAW_SEEDS
        best = int(scores.nan_to_num(nan=-torch.inf).argmax())
        return {"vector": vectors[best].tolist(), "scores": scores.tolist(), "best": best}

    return piece(args.out / f"best_of__{kind}__{name}.json", make)


def tuned(loss, args):
    """A rival's best setting on the data of the first search; None if it always diverged."""

    def make():
        setup = setup_of(0, args)
        protocol = Protocol(tuning_seeds=TUNING_SEEDS, tuning_episodes=EPISODES)
        testbeds, objective = prepare(setup.testbeds), resolve(loss)
        found = tune_rival(testbeds, objective, args.rival_trials, protocol, "mean", rate=True)
        return found and found._asdict()

    return piece(args.out / f"rival__{loss}.json", make)


def judged(name, made, fresh, setup, args):
    """A contestant's returns by seed on the fresh data."""

    def make():
        protocol = Protocol(seed=derive_seed("search study"))
        testbed = prepare(setup.testbeds)
        returns = seed_returns(
            testbed,
            {name: made},
            args.final_seeds,
            args.final_episodes,
            protocol,
            "final",
            data=fresh(),
        )
        return {"returns": returns[name][0].tolist()}

    return piece(args.out / f"final__{name.replace(' ', '_')}.json", make)["returns"]


def fresh_sets(setup, folder, count):
    """The data on which everyone is judged; in ``folder``, from where it is read another time."""
    seeds = [derive_seed("search study", "data", i) for i in range(count)]
    return fresh_data(prepare(setup.testbeds), seeds, cache_dir=str(folder))


def contestant_of(setup, values, rate):
    """What a vector stands for; ``rate`` unless the search moves the learning rate, too."""
    vectors, space = torch.tensor(values)[None], setup.space
    rates = space.rates(vectors, rate)
    own = rate if rates is None else float(rates[0])
    return Contestant(space.objective, space.parameters(vectors), own)


def collect(args):
    """Do what is missing, in the order in which it is of use."""
    first = setup_of(0, args)
    folder = args.out / "running" / "data"
    fresh = functools.cache(lambda: fresh_sets(first, folder, args.final_seeds))

    def judge(name, made):
        judged(name, made, fresh, first, args)

    def search_all():
        for name, setup in plan.items():
            found[name] = run_search(name, setup, args)
            judge(f"found, {name}", contestant_of(setup, found[name]["vector"], found[name][RATE]))
            rate = found[name][RATE]  # the start differs between searches by its rate alone
            judge(f"start at {rate:g}", contestant_of(setup, setup.space.start.tolist(), rate))

    def control_all():
        for name in list(plan)[: len(SEARCHES)]:
            setup, rate = plan[name], found[name][RATE]
            one = draws("random", setup, found[name], args)[0]
            judge(f"a random vector, {name}", contestant_of(setup, one.tolist(), rate))
            for kind in ("random", "permuted"):
                best = best_of(kind, name.replace(" ", "_"), setup, found[name], args)
                judge(f"best of {kind}, {name}", contestant_of(setup, best["vector"], rate))

    def tune_all():
        for loss in RIVALS:
            if best := tuned(loss, args):
                judge(f"{loss}, tuned", contestant(resolve(loss), best["setting"]))

    plan, found = searches(args), {}
    if args.part != "rivals":
        search_all()
        control_all()
    if args.part != "searches":
        tune_all()


def finals(args):
    """Everyone's returns by seed, in order of their means."""
    scores = {}
    for path in args.out.glob("final__*.json"):
        name = path.stem.removeprefix("final__").replace("_", " ")
        scores[name] = json.loads(path.read_text())["returns"]
    scores = {name: own.tolist() for name, own in diverged_as_worst(scores).items()}
    return dict(sorted(scores.items(), key=lambda item: -mean_of(item[1]).mean))


def difference(scores, name, other):
    """Mean of the paired differences, with its interval."""
    pairs = zip(scores[name], scores[other], strict=True)
    return mean_of([a - b for a, b in pairs])


def interval(d):
    """In words."""
    return f"{d.mean:+.0f} [{d.low:+.0f}, {d.high:+.0f}]"


def report(args):
    """Everyone's return, and each search's difference to everyone, paired by seed."""
    scores = finals(args)
    lines = [
        f"{name:<44}{mean_of(r).mean:8.0f} ± {mean_of(r).se:.0f}" for name, r in scores.items()
    ]
    found = [name for name in scores if name.startswith("found")]
    for name in found:
        lines.append(f"\n{name}, minus")
        lines += [
            f"  {other:<42}{interval(difference(scores, name, other))}"
            for other in scores
            if other not in found
        ]
    return "\n".join([*lines, "", *verdict(args, scores)])


def comparisons(args, scores):
    """What the plan compares the five searches with: name → their five differences.

    What is not finished is left out.
    """
    tuned = [name for name in scores if name.endswith(", tuned")]
    against = {f"the best tuned rival ({name})": lambda k, n=name: n for name in tuned[:1]}
    against["the start at the same rate"] = lambda k: f"start at {rate_of(k, args.out):g}"
    for what, control in CONTROLS.items():
        against[what] = lambda k, c=control: f"{c}, seed {k}"
    found = {}
    for what, other in against.items():
        names = {f"found, seed {k}": other(k) for k in SEARCHES}
        if {*names, *names.values()} <= scores.keys():
            found[what] = [difference(scores, name, theirs) for name, theirs in names.items()]
    return found


def verdict(args, scores):
    """What the plan says will be said: of the five searches, and of their mean."""
    for what, all_five in comparisons(args, scores).items():
        above = sum(d.low > 0 for d in all_five)
        mean = interval(mean_of([d.mean for d in all_five]))
        yield f"{what}: above it in {above} of {len(all_five)} searches; mean over them {mean}"


def picture(args, scores):
    """``differences.png``: each search's difference to each, and their mean."""
    rows = comparisons(args, scores)
    figure = Figure(figsize=(7.2, 0.9 + 0.72 * len(rows)), layout="constrained")
    ax = figure.subplots()
    for y, differences in enumerate(rows.values()):
        for k, d in enumerate(differences):
            height = y - 0.28 + 0.11 * k
            ax.plot([d.low, d.high], [height, height], color="#7d8b99", linewidth=1.2)
            ax.plot(d.mean, height, "o", color="#7d8b99", markersize=4)
        mean = mean_of([d.mean for d in differences])
        ax.plot([mean.low, mean.high], [y + 0.32, y + 0.32], color="#1f6fb4", linewidth=2.4)
        ax.plot(mean.mean, y + 0.32, "D", color="#1f6fb4", markersize=6)
    ax.axvline(0, color="#333333", linewidth=0.8)
    ax.set_yticks(range(len(rows)), [what.replace(" (", "\n(") for what in rows])
    ax.invert_yaxis()
    ax.set_xlabel("return of what a search found, minus that of …")
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out / "differences.png", dpi=140)


def found_of(seed, folder):
    """What a finished search found: its vector, learning rate and log."""
    return json.loads((folder / f"search__seed_{seed}.json").read_text())


def rate_of(seed, folder):
    """The learning rate of a search."""
    return found_of(seed, folder)[RATE]


def save(args):
    """The objective that gained most over its start on the held-out seeds of its own search.

    Its card has the final comparison.
    """
    found = {k: found_of(k, args.out) for k in SEARCHES}

    def gain(k):
        held_out = [r["held_out"] for r in found[k]["log"] if r["held_out"] is not None]
        return held_out[-1] - held_out[0]

    best = max(found, key=gain)
    scores, setup = finals(args), setup_of(best, args)
    names = {"discovered": f"found, seed {best}"}
    names["start (ORPO)"] = f"start at {rate_of(best, args.out):g}"
    names |= {f"{loss}, tuned": f"{loss}, tuned".replace("_", " ") for loss in RIVALS}
    returns = {name: scores[own] for name, own in names.items() if own in scores}
    card = {
        "name": f"{setup.space.name} discovered on {setup.config.task}, {setup.config.data}",
        "torchmpo": RELEASE,
        "command": f"python -m torchmpo.evolve --seed {best}",
        "config": {k: v for k, v in found[best]["config"].items() if k not in PLACE},
        RATE: found[best][RATE],
        "dim": setup.space.dim,
        "fitness_of_start": found[best]["log"][0]["centre"],
        "fitness_of_final_centre": found[best]["log"][-1]["centre"],
        "chosen": "of five searches, the one that gained most on its own held-out seeds",
        "gains_on_held_out_seeds": {k: gain(k) for k in found},
        "comparison": compare(returns) | {"mean_return_by_seed": returns},
    }
    setup.space.save(args.save, torch.tensor(found[best]["vector"]), card)


def main():
    parser = study_parser(__doc__, "search_study")
    parser.add_argument(
        "--part", choices=("searches", "rivals"), help="searches with their controls, or the rivals"
    )
    parser.add_argument("--save", type=Path, help="where the best objective goes; train nothing")
    args = parser.parse_args()
    args.out = args.out or results_folder("search_study", args.smoke)
    full = {"rival_trials": RIVAL_TRIALS, "draws": DRAWS}
    full |= {"final_seeds": FINAL_SEEDS, "final_episodes": FINAL_EPISODES}
    for name, value in (SMOKE if args.smoke else full).items():
        setattr(args, name, value)
    torch.set_num_threads(1)
    if args.save:
        save(args)
        return
    if not args.report:
        collect(args)
    print(report(args))
    picture(args, finals(args))


if __name__ == "__main__":
    main()
