"""Which search improves most per second of CPU? OpenAI-ES as it is, cheaper ones, and others.

    python experiments/search_cost.py [--out experiments/results/search_cost]
    python experiments/search_cost.py --report

Every arm searches on the data of the five searches of ``search_study.py``, at the learning rates
that were tuned there, on one thread, and its centre is scored on held-out seeds after each
generation. CPU seconds are those of the generations alone, without the held-out score. A finished
search is a file; a second start goes on. The plan is in ``experiments/HISTORY.md`` and was written
before the first result.
"""

import itertools
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import fitness_proxies as proxies
import search_study as study
import torch
from command_lines import results_folder, study_parser

from torchmpo.control.agents import load_agent
from torchmpo.control.testbed import prepare
from torchmpo.control.tuning import suited
from torchmpo.evolve.fitness import ObjectiveFitness
from torchmpo.evolve.run import held_out_score
from torchmpo.evolve.search import search
from torchmpo.evolve.workers import Fitness, VectorProblem, chunk_rows
from torchmpo.objectives.resolve import DISCOVERED
from torchmpo.runs.files import write_atomic
from torchmpo.statistics import holm, mean_of

TODAY, IMITATION = "es", "es, by imitation"
ARMS = {
    TODAY: {},
    IMITATION: {"generations": 27},
    "es, 250 steps, 32 episodes": {"fitness_steps": 250, "episodes": 32, "generations": 17},
    "es, half the epochs": {"epochs": 6, "generations": 20},
    "cmaes, closed form": {"space": "closed_form", "optimizer": "cmaes", "sigma": 0.1},
    "es, from what mixed data gave": {"warm_start": str(DISCOVERED / "tla_mixed_v1")},
}
FIRST = 3  # searches of an arm, after which it ends if it does not look better


class Nearness(ObjectiveFitness):
    """How near the actions of a policy are to the better agent's, in place of returns."""

    def scores(self, testbed, params, seed):
        target = load_agent(testbed.config.pool.target)
        pairs = proxies.fresh_pairs(testbed.config)
        numbers = proxies.proxies_of(testbed.policy, params, target, *pairs)
        finite = torch.stack([v.flatten(1).isfinite().all(1) for v in params.values()]).all(0)
        return numbers[:, proxies.PROXIES.index(proxies.OF_BOTH)].where(finite, torch.nan)


def searched(arm, seed, args):
    """CPU seconds of every generation, and the held-out score before each and after the last."""

    def make():
        settings = {"learning_rate": study.rate_of(seed, args.study)} | ARMS[arm]
        if args.smoke:
            settings.pop("generations", None)
        setup = study.setup_of(seed, args, held_out_every=1, **settings)
        folder = args.out / "running" / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        config, space, log = setup.config, setup.space, folder / "cpu.json"
        testbeds = prepare(setup.testbeds)
        own = [suited(bed, space.objective, config.sft_epochs) for bed in testbeds]
        how = config.episodes, config.seed, config.combine, config.fitness_steps
        evaluate = ObjectiveFitness(own, space, *how)
        if arm == IMITATION:
            evaluate = Nearness(own, space, *how)
            proxies.fresh_pairs(own[0].config)  # as all data, made before the clock starts
        chunk = chunk_rows(config.population, config.chunk_size)
        fitness = Fitness(VectorProblem(evaluate, space.dim, chunk=chunk), setup.streams)
        spent = json.loads(log.read_text()) if log.exists() else {}

        def timed(vectors, generation):
            began = time.process_time()
            scores = fitness(vectors, generation)
            spent[str(generation)] = time.process_time() - began
            write_atomic(log, json.dumps(spent))
            return scores

        # What a default search scores its centre on, whatever the arm's own settings are.
        usual = study.setup_of(seed, args, learning_rate=settings["learning_rate"])
        usual_beds = [bed.changed(inner=usual.testbeds[0].inner) for bed in testbeds]
        score = partial(held_out_score, _at(setup, usual), usual_beds)
        found = search(timed, space.start, setup.search, folder, held_out=score, every=1)
        seconds = [spent[str(generation)] for generation in range(config.generations)]
        return {"cpu": seconds, "held_out": [row["held_out"] for row in found.log]}

    path = path_of(arm, seed, args)
    return study.piece(path, make)


def _at(setup, usual):
    """The setup of an arm, judged by the numbers of a default search."""
    episodes = usual.config.episodes
    return replace(setup, config=replace(setup.config, episodes=episodes), protocol=usual.protocol)


def improvement(found, seconds):
    """Of the centre over its start, at so many CPU seconds, and on average until then."""
    at = [0.0, *itertools.accumulate(found["cpu"])]
    gain = [score - found["held_out"][0] for score in found["held_out"]]
    ends = [min(end, seconds) for end in (*at[1:], float("inf"))]
    held = [max(0.0, end - start) for start, end in zip(at, ends, strict=True)]
    area = sum(g * h for g, h in zip(gain, held, strict=True)) / seconds
    return max(zip(at, gain, strict=True), key=lambda p: p[0] if p[0] <= seconds else -1)[1], area


def against_today(arm, args):
    """By seed, where both are finished: an arm's area under the held-out score until today's end,
    and what it gives at a third of that time, both minus today's.
    """
    areas, thirds = [], []
    for seed in study.SEARCHES:
        if all(path_of(name, seed, args).exists() for name in (arm, TODAY)):
            own, today = searched(arm, seed, args), searched(TODAY, seed, args)
            whole = [*itertools.accumulate(today["cpu"])][-1]  # as improvement() adds up
            areas.append(improvement(own, whole)[1] - improvement(today, whole)[1])
            thirds.append(improvement(own, whole / 3)[0] - improvement(today, whole)[0])
    return areas, thirds


def hopeless(arm, seed, args):
    """Whether an arm's first searches are no better on average than today's."""
    if arm == TODAY or seed in study.SEARCHES[:FIRST]:
        return False
    first = against_today(arm, args)[0][:FIRST]
    return len(first) == FIRST and sum(first) <= 0


def report(args):
    """Each arm's area and what a third of the time gives, and Holm's p over the arms."""
    from scipy.stats import ttest_1samp

    rows, values = [], []
    for arm in [name for name in ARMS if name != TODAY]:
        areas, thirds = against_today(arm, args)
        if len(areas) > 1:
            area, third = map(study.interval, (mean_of(areas), mean_of(thirds)))
            rows.append(f"{arm:<32} area {area:<24} a third of the CPU {third:<24}")
            values.append(float(ttest_1samp(areas, 0).pvalue))
    for row, p in zip(rows, holm(values) if values else [], strict=True):
        yield f"{row} corrected p of the area {p:.3f}"


def path_of(arm, seed, args):
    """Of a finished search."""
    return args.out / f"{f'{arm}_{seed}'.replace(' ', '_').replace(',', '')}.json"


def main():
    parser = study_parser(__doc__, "search_cost")
    parser.add_argument("--study", type=Path, default=Path("experiments/results/search_study"))
    parser.add_argument("--arms", default=";".join(ARMS), help="by semicolons")
    args = parser.parse_args()
    args.out = args.out or results_folder("search_cost", args.smoke)
    args.arms = [arm.strip() for arm in args.arms.split(";")]
    if unknown := sorted({*args.arms} - ARMS.keys()):
        parser.error(f"no arm {unknown[0]!r}: choose from {'; '.join(ARMS)}")
    torch.set_num_threads(1)
    if not args.report:
        for seed in study.SEARCHES[: 2 if args.smoke else None]:
            for arm in args.arms:
                if not hopeless(arm, seed, args):
                    searched(arm, seed, args)
    print("\n".join(report(args)))


if __name__ == "__main__":
    main()
