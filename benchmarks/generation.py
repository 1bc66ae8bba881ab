"""Where does a generation of ``python -m torchmpo.evolve`` go, and what makes it longer?

    python benchmarks/generation.py --json results.json

A generation of the default search, every part on a clock: *data* (gathering minibatches and
whitening), *train* and *evaluate* (the useful arithmetic), *optimiser* (ask, tell, checkpoint, log)
and the *rest*. The goal is that train and evaluate are at least 70 % of the whole. Then one setting
at a time is doubled, on a smaller search; a slope is that of the logarithm of the time: 0 is free,
1 is proportional. Last, two Ray actors of one thread each take turns with one process of one thread
on the same chunks; efficiency is half the ratio of their times, *idle* the share of the actors'
time without a chunk, and the bytes are what a generation sends and gets back. The first generation
of everything, which compiles, does not count; medians of the others are reported.
"""

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from torchmpo.control import inner_loop as inner
from torchmpo.control.testbed import Testbed, prepare
from torchmpo.evolve.cluster import ray_actors
from torchmpo.evolve.fitness import ObjectiveFitness
from torchmpo.evolve.search import search
from torchmpo.evolve.settings import PRESETS, EvolveConfig
from torchmpo.evolve.setup import Setup
from torchmpo.evolve.workers import Fitness, VectorProblem, chunk_rows

USEFUL = ("train", "evaluate")
CLOCK = Counter()  # seconds of this process by part


@contextmanager
def clock(part, inside=None):
    """Count the block's seconds for ``part``, and no longer for the part it lies ``inside``."""
    begin = time.perf_counter()
    yield
    seconds = time.perf_counter() - begin
    CLOCK[part] += seconds
    if inside:
        CLOCK[inside] -= seconds


def put_on_the_clock():
    def timed(owner, name, part, inside=None):
        function = getattr(owner, name)

        def wrapper(*args, **kwargs):
            with clock(part, inside):
                return function(*args, **kwargs)

        setattr(owner, name, wrapper)

    timed(Testbed, "train", "train")
    timed(Testbed, "evaluate", "evaluate")
    timed(inner._Loop, "__init__", "data", inside="train")
    timed(inner._Loop, "draw", "data", inside="train")
    timed(inner._Loop, "gather", "data", inside="train")


class Logged:
    """Fitness that writes how long each chunk took, in whichever process, into ``folder``."""

    def __init__(self, fitness, folder):
        self.fitness, self.folder = fitness, folder

    def share(self, put):
        return Logged(self.fitness.share(put), self.folder)

    def __call__(self, vectors, generation, streams=None):
        begin = time.perf_counter()
        result = self.fitness(vectors, generation, streams)
        with open(self.folder / f"{generation}-{os.getpid()}", "a") as file:
            file.write(f"{time.perf_counter() - begin}\n")
        return result

    def busy(self, generation):
        """Seconds that all processes together spent on a generation."""
        files = self.folder.glob(f"{generation}-*")
        return sum(float(line) for file in files for line in file.read_text().splitlines())


def fitness_of(setup, num_actors=0, folder=None):
    config = setup.config
    evaluate = ObjectiveFitness(prepare(setup.testbeds), setup.space, config.episodes, config.seed)
    problem = VectorProblem(
        Logged(evaluate, folder) if folder else evaluate,
        setup.space.dim,
        chunk=chunk_rows(config.population, config.chunk_size),
        num_actors=num_actors,
        num_threads=setup.num_threads,
    )
    return Fitness(problem)


def generations(setup, repeats):
    """The median generation's seconds, by part, of a search in this process."""
    fitness, rows = fitness_of(setup), []  # which has built the data: no clock runs yet

    def on_the_clock(vectors, generation):
        with clock("fitness"):
            return fitness(vectors, generation)

    def tell(row, seconds):
        parts = {name: CLOCK[name] for name in ("data", *USEFUL)}
        parts["optimiser"] = seconds - CLOCK["fitness"]
        parts["rest"] = CLOCK["fitness"] - sum(CLOCK[name] for name in ("data", *USEFUL))
        rows.append({"whole": seconds, **parts})
        CLOCK.clear()

    CLOCK.clear()
    config = replace(setup.search, generations=repeats + 1)
    with tempfile.TemporaryDirectory() as folder:
        search(on_the_clock, setup.space.start, config, folder, on_generation=tell)
    rows = rows[1:-1]  # the first compiles; the last is the final centre alone
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def slope(settings, seconds):
    """Least squares of the logarithms."""
    x, y = ([math.log(v) for v in values] for values in (settings, seconds))
    return statistics.linear_regression(x, y).slope


def sweeps(config, doublings, repeats):
    results = {}
    for name in ("population", "episodes", "steps_per_trajectory", "pairs"):
        values = [getattr(config, name) * 2**i for i in range(doublings + 1)]
        rows = [generations(Setup.of(replace(config, **{name: v})), repeats) for v in values]
        # Members go in chunks of which the last is filled up: time is per row that is computed.
        across = values
        if name == "population":
            chunks = [chunk_rows(v, config.chunk_size) for v in values]
            across = [math.ceil((v + 1) / c) * c for v, c in zip(values, chunks)]
        results[name] = {
            "values": values,
            "seconds": [row["whole"] for row in rows],
            "slope": slope(across, [row["whole"] for row in rows]),
            **{f"slope_of_{p}": slope(across, [row[p] for row in rows]) for p in USEFUL},
        }
    return results


def actors(config, chunk_size, repeats):
    """One process and two actors on the same chunks, in turns."""
    setup = Setup.of(replace(config, num_threads=1, chunk_size=chunk_size))
    torch.set_num_threads(1)
    rows = config.population + 1
    vectors = setup.space.start.expand(rows, -1).clone()
    times, shares = {1: [], 2: []}, []
    with ray_actors(2, 1), tempfile.TemporaryDirectory() as folder:
        one, two = fitness_of(setup), fitness_of(setup, 2, Path(folder))
        busy = two.problem.member_fitness.busy
        two(vectors, 0)
        while len(two._actors.idle) < 2:  # one may have done all before the other had started
            two(vectors, 0)
        for generation in range(1, repeats + 2):
            results = {}
            for count, fitness in ((1, one), (2, two)):
                begin = time.perf_counter()
                results[count] = fitness(vectors, generation)
                times[count].append(time.perf_counter() - begin)
            assert torch.equal(results[1], results[2])
            shares.append(1 - busy(generation) / (2 * times[2][-1]))
        two._actors.stop()
    ratios = [one / two for one, two in zip(times[1][1:], times[2][1:])]
    chunk = chunk_rows(config.population, chunk_size)
    return {
        "chunks": math.ceil(rows / chunk),
        "chunk": chunk,
        "one": statistics.median(times[1][1:]),
        "two": statistics.median(times[2][1:]),
        "efficiency": statistics.median(ratios) / 2,
        "idle": statistics.median(shares[1:]),
        "bytes": two.bytes_sent,
        "data_bytes": sum(
            t.nbytes for t in prepare(setup.testbeds)[0].materials.trajectories.values()
        ),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--doublings", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="seconds: see that it runs")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    put_on_the_clock()
    config = replace(EvolveConfig(), num_threads=args.threads)
    small = {"population": 16, "pairs": 32, "episodes": 8, "steps_per_trajectory": 125}
    if args.smoke:
        config = replace(config, **PRESETS["smoke"])
        small, args.repeats, args.doublings = {"pairs": 4}, 1, 1
    results = {"default": generations(Setup.of(config), args.repeats)}
    whole = results["default"]["whole"]
    print(f"a generation of {config.population}, {args.threads} threads: {whole:.2f} s")
    for name, seconds in results["default"].items():
        print(f"  {name:10}{seconds:9.3f} s {seconds / whole:7.1%}")
    useful = results["default"]["useful"] = sum(results["default"][n] for n in USEFUL) / whole
    print(f"train and evaluate: {useful:.1%} (goal: 70 %)\n", flush=True)
    results["sweeps"] = sweeps(replace(config, **small), args.doublings, args.repeats)
    print(f"{'doubled':22}{'slope':>7}{'train':>7}{'evaluate':>10}   seconds")
    for name, row in results["sweeps"].items():
        seconds = " → ".join(f"{value:.2f}" for value in row["seconds"])
        slopes = f"{row['slope']:7.2f}{row['slope_of_train']:7.2f}{row['slope_of_evaluate']:10.2f}"
        print(f"{name:22}{slopes}   {seconds}", flush=True)
    # As the search cuts a generation, and into one chunk per actor.
    results["actors"] = []
    print("\nchunks      1 process  2 actors  efficiency   idle  bytes per generation (data, once)")
    for chunk_size in (config.chunk_size, math.ceil((config.population + 1) / 2)):
        row = actors(config, chunk_size, args.repeats)
        results["actors"].append(row)
        print(
            f"{row['chunks']:>2} of {row['chunk']:<5}{row['one']:9.2f} s{row['two']:8.2f} s"
            f"{row['efficiency']:12.0%}{row['idle']:7.0%}{row['bytes']:12,} ({row['data_bytes']:,})"
        )
    if args.json:
        about = {"torch": torch.__version__, "machine": platform.processor(), **vars(args)}
        about |= {"json": str(args.json), "config": asdict(config)}
        args.json.write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
