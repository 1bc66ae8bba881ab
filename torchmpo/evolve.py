"""Discover a preference loss by evolution: ``python -m torchmpo.evolve``.

Policies are trained on preference data under a population of candidate losses; the mean return of
each trained policy is the fitness of its loss; OpenAI-ES moves the losses uphill.
"""

import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torchmpo.commandline import Command, duration, read_json
from torchmpo.errors import UserError

if TYPE_CHECKING:
    from torchmpo.objective import MirrorObjective
    from torchmpo.search import Found, SearchConfig
    from torchmpo.trial import Trial


@dataclass(frozen=True)
class EvolveConfig:
    """Settings of a run.

    Args:
        task: environment the policies are evaluated in: tla or ant.
        data: preference data: base, noisy:P (share of flipped labels), mixed, or bad_judge:ETA.
        pairs: preference pairs.
        episode_steps: time limit of an episode, in data and evaluation.
        behaviour_std: standard deviation of the actions in the data.
        steps: one (starts at ORPO) or two (with a reference; starts at DPO).
        learn: functions to search, among psi (one step only), phi_inv and g; null for all.
        temporal: let the objective depend on the progress of training.
        policy_std: standard deviation of the trained policies' actions.
        policy_std_kind: fixed or learned.
        sample: evaluate sampled actions instead of mean actions.
        epochs: passes over the pairs in the inner loop.
        sft_epochs: supervised passes before them.
        minibatch_pairs: pairs per update.
        learning_rate: Adam's step size in the inner loop.
        max_grad_norm: limit on the gradient norm in the inner loop.
        steps_per_trajectory: random time steps used per trajectory and update; null for all.
        chunk_size: at most this many policies are trained together.
        compile: compile the inner loop; false starts sooner and runs slower.
        population: losses per generation, an even number.
        generations: updates of the search.
        episodes: per trained policy.
        sigma: standard deviation of the search's perturbations.
        sigma_decay: factor on sigma per generation.
        outer_learning_rate: Adam's step size in the search.
        fitness_shaping: centered (ranks) or raw.
        seed: everything random follows from it.
        final_seeds: independent trainings per objective in the final comparison.
        final_episodes: per training in the final comparison.
        num_actors: processes to spread the work over; 0 and 1 use this one.
        num_threads: per process; 0 shares out the cores.
        cache_dir: folder of the preference data; null for $TORCHMPO_CACHE or ~/.cache/torchmpo.
    """

    task: str = "tla"
    data: str = "noisy:0.3"
    pairs: int = 128
    episode_steps: int = 1000
    behaviour_std: float = 0.1
    steps: str = "one"
    learn: list[str] | None = None
    temporal: bool = False
    policy_std: float = 0.4
    policy_std_kind: str = "fixed"
    sample: bool = False
    epochs: int = 12
    sft_epochs: int = 0
    minibatch_pairs: int = 2
    learning_rate: float = 1e-3
    max_grad_norm: float = 1.3
    steps_per_trajectory: int | None = 250
    chunk_size: int = 16
    compile: bool = True
    population: int = 32
    generations: int = 22
    episodes: int = 16
    sigma: float = 0.03
    sigma_decay: float = 0.999
    outer_learning_rate: float = 0.02
    fitness_shaping: str = "centered"
    seed: int = 0
    final_seeds: int = 32
    final_episodes: int = 8
    num_actors: int = 0
    num_threads: int = 0
    cache_dir: str | None = None


PRESETS: dict[str, dict] = {
    "default": {},
    # Seconds: does everything once, finds nothing.
    "smoke": {
        "pairs": 4,
        "episode_steps": 50,
        "epochs": 2,
        "steps_per_trajectory": 10,
        "compile": False,
        "population": 4,
        "generations": 2,
        "episodes": 2,
        "final_seeds": 2,
        "final_episodes": 2,
    },
    # arXiv 2411.06568, section 4 and appendix I.
    "paper": {
        "pairs": 1280,
        "steps_per_trajectory": None,
        "population": 256,
        "generations": 256,
        "episodes": 100,
        "final_seeds": 25,
        "final_episodes": 100,
    },
}
# Where a run is computed, not what: may change on --resume.
PLACE = ("num_actors", "num_threads", "cache_dir")


@dataclass(frozen=True)
class Setup:
    """Everything a run consists of, checked, before anything is computed."""

    config: EvolveConfig
    objective: "MirrorObjective"
    search: "SearchConfig"
    trial: "Trial"
    num_threads: int

    @staticmethod
    def of(config: EvolveConfig) -> "Setup":
        """Build it.

        Raises:
            UserError: anything in ``config`` that could not work.
        """
        from torchmpo.objective import MirrorObjective
        from torchmpo.preferences import check_space, parse_kind
        from torchmpo.search import SearchConfig
        from torchmpo.trial import trial_of

        for name in ("episodes", "final_episodes"):
            if getattr(config, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(config, name)}")
        if config.final_seeds < 2:
            raise UserError(f"final_seeds must be at least 2; got {config.final_seeds}")
        if config.epochs == config.sft_epochs == 0:
            raise UserError("epochs and sft_epochs are both 0: nothing would be trained")
        num_threads = _threads(config)
        learn = config.learn
        if learn is None:
            learn = ("psi", "phi_inv", "g") if config.steps == "one" else ("phi_inv", "g")
        try:
            objective = MirrorObjective(steps=config.steps, learn=learn, temporal=config.temporal)
            search = SearchConfig(
                population=config.population,
                generations=config.generations,
                sigma=config.sigma,
                sigma_decay=config.sigma_decay,
                learning_rate=config.outer_learning_rate,
                fitness_shaping=config.fitness_shaping,
                seed=config.seed,
            )
            parse_kind(config.data)
            # While this process works, in the final comparison, the actors are idle.
            threads = num_threads * max(1, config.num_actors)
            trial = trial_of(config, data=config.data, num_threads=threads)
            trial.policy  # noqa: B018  a damaged file of the agent shows here
            check_space(trial.pool, config.cache_dir)
        except ValueError as error:
            raise UserError(str(error)) from error
        if objective.dim == 0:
            raise UserError("learn is empty: name at least one function, or null for all")
        return Setup(config, objective, search, trial, num_threads)


def _threads(config: EvolveConfig) -> int:
    cores = len(os.sched_getaffinity(0))
    processes = max(1, config.num_actors)
    threads = config.num_threads or max(1, cores // processes)
    if config.num_actors < 0 or threads < 1:
        raise UserError(
            "num_actors and num_threads must not be negative; "
            f"got {config.num_actors} and {config.num_threads}"
        )
    if processes * threads > cores:
        raise UserError(
            f"num_actors × num_threads = {processes} × {threads} exceeds the {cores} cores of this "
            "machine: lower one of them"
        )
    return threads


def run(setup: Setup, out: Path) -> None:
    """Search, compare, save: goes on from whatever ``out`` holds already."""
    import torch

    from torchmpo import cluster, search
    from torchmpo.trial import MirrorFitness

    config, objective = setup.config, setup.objective
    torch.set_num_threads(setup.num_threads)
    setup.trial.dataset  # noqa: B018  built here, before actors would all want to
    trial = setup.trial
    if config.num_actors > 1:
        trial = replace(trial, num_threads=setup.num_threads)
    evaluate = MirrorFitness(trial, objective, config.episodes, config.seed)
    with cluster.ray_actors(config.num_actors, setup.num_threads):
        problem = cluster.VectorProblem(
            evaluate,
            objective.dim,
            chunk=cluster.chunk_rows(config.population, config.chunk_size),
            num_actors=config.num_actors,
            num_threads=setup.num_threads,
        )
        with Progress(config.generations) as progress:
            found = search.search(
                cluster.Fitness(problem),
                objective.vector.detach(),
                setup.search,
                out,
                on_generation=progress,
            )
    finish(setup, found, out)


def finish(setup: Setup, found: "Found", out: Path) -> None:
    """The final comparison, the saved objective and the figures; what exists is not redone."""
    import torch

    from torchmpo import report
    from torchmpo.files import write_atomic
    from torchmpo.objective import resolve

    config, objective = setup.config, setup.objective
    path = out / "comparison.json"
    if not path.exists():
        print(
            f"comparing on {config.final_seeds} fresh seeds × {config.final_episodes} episodes …",
            flush=True,
        )
        returns = final_returns(setup, found.vector)
        scores = {name: values.mean(1).tolist() for name, values in returns.items()}
        content = {**report.compare(scores), "mean_return_by_seed": scores}
        write_atomic(path, json.dumps(content, indent=2) + "\n")
    comparison = read_json(path)
    with torch.no_grad():
        objective.vector.copy_(found.vector)
    objective.save(out / "objective", _card(config, objective, found, comparison))
    figures = out / "figures"
    figures.mkdir(exist_ok=True)
    report.fitness_figure(found.log, figures / "fitness.png")
    maps = {"discovered": objective, "ORPO": resolve("orpo"), "SimPO": resolve("simpo")}
    report.gradient_figure(maps, figures / "gradients.png")
    print(report.table(comparison))
    print(report.verdict(comparison))
    print(f'objective: torchmpo.resolve("{out / "objective"}")', flush=True)


def final_returns(setup: Setup, vector) -> dict:
    """Returns ``[final_seeds, final_episodes]`` of each objective on seeds no search has seen.

    The preference data is fresh as well: other start states, other trajectories, other flipped
    labels. A seed is an independent repetition with its own minibatches and its own start states,
    which all objectives share.
    """
    import torch

    from torchmpo.objective import resolve
    from torchmpo.seeding import derive_seed

    config = setup.config
    pool = replace(setup.trial.pool, seed=derive_seed(config.seed, "final data"))
    trial = replace(setup.trial, pool=pool)
    count = config.final_seeds
    streams = [derive_seed(config.seed, "final training", i) for i in range(count)]
    starts = torch.stack([vector, torch.zeros_like(vector)]).repeat_interleave(count, 0)
    mirror = trial.train(setup.objective, starts, 2 * count, streams * 2)
    sft = trial.train(resolve("sft"), {}, count, streams)
    policies = {name: torch.cat([mirror[name], sft[name]]) for name in sft}
    returns = []
    for i in range(count):
        rivals = {name: value[i::count] for name, value in policies.items()}
        seed = derive_seed(config.seed, "final episodes", i)
        returns.append(trial.evaluate(rivals, config.final_episodes, seed))
    names = ("discovered", {"one": "start (ORPO)", "two": "start (DPO)"}[config.steps], "SFT")
    return dict(zip(names, torch.stack(returns, dim=1), strict=True))


def _card(config: EvolveConfig, objective, found: "Found", comparison: dict) -> dict:
    """How the objective was found and what it scores; the same bytes from the same run."""
    from torchmpo import __version__

    what = {key: value for key, value in asdict(config).items() if key not in PLACE}
    return {
        "name": f"{objective.name} discovered on {config.task}, {config.data}",
        "torchmpo": __version__,
        "config": what,
        "dim": objective.dim,
        "fitness_of_start": found.log[0]["centre"],
        "fitness_of_final_centre": found.log[-1]["centre"],
        "comparison": comparison,
    }


class Progress:
    """A line per generation, and a bar below them when somebody is watching."""

    def __init__(self, generations: int):
        self.generations = generations
        self.seconds: list[float] = []

    def __enter__(self) -> "Progress":
        from tqdm import tqdm

        self.bar = tqdm(
            total=self.generations + 1, desc="search", disable=not sys.stderr.isatty(), leave=False
        )
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def __call__(self, row: dict, seconds: float) -> None:
        generation = row["generation"]
        if row["mean"] is None:
            line = f"final centre    {row['centre']:9.1f}"
        else:
            self.seconds.append(seconds)
            left = (self.generations - generation - 1) * statistics.median(self.seconds)
            line = (
                f"generation {generation + 1:>3}/{self.generations}  centre {row['centre']:8.1f}  "
                f"mean {row['mean']:8.1f}  best {row['best']:8.1f}  σ {row['sigma']:.4f}  "
                f"failed {row['nan']}  {seconds:.1f} s  ETA {duration(left)}"
            )
        self.bar.initial = self.bar.n = generation  # after a resume, too
        self.bar.update()
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()


COMMAND = Command(
    program="python -m torchmpo.evolve",
    description="Discover a preference loss by evolution.",
    settings=EvolveConfig,
    presets=PRESETS,
    out="runs/evolve",
    place=PLACE,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    return COMMAND.main(argv, Setup.of, run)


if __name__ == "__main__":
    sys.exit(main())
