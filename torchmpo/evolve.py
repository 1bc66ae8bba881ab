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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchmpo.commandline import Command, duration, read_json, words
from torchmpo.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from torchmpo.objective import Objective
    from torchmpo.search import Found, SearchConfig
    from torchmpo.spaces import SearchSpace
    from torchmpo.suite import Protocol
    from torchmpo.trial import Trial


@dataclass(frozen=True)
class EvolveConfig:
    """Settings of a run.

    Args:
        task: environment the policies are evaluated in: tla, ant or hopper.
        data: kinds of preference data, by commas: base, mixed, noisy:P (share of flipped labels),
            bad_judge:ETA.
        combine: mean or worst: what counts of the returns on several kinds of data.
        pairs: preference pairs; null for the task's own: 1,280, hopper 5,120.
        episode_steps: time limit of an episode, in data and evaluation.
        behaviour_std: standard deviation of the actions in the data.
        start: of the policies: original (agent) or scratch; null for the task's own.
        space: network (mirror losses of learned functions), closed_form (the eight numbers of
            closed_form_loss) or hyper (the hyper-parameters of the loss that warm_start names).
        warm_start: where the search begins: a loss in the space, or the folder of a saved
            objective; null for ORPO (network, one step), DPO (two steps), and the defaults of
            closed_form_loss.
        steps: of the network: one, or two (with a reference).
        learn: functions of the network, among psi (one step only), phi_inv and g; null for all.
        temporal: let the network depend on the progress of training.
        policy_std: standard deviation of the trained policies' actions.
        policy_std_kind: fixed or learned.
        sample: evaluate sampled actions instead of mean actions.
        epochs: passes over the pairs in the inner loop.
        sft_epochs: how many of them are supervised, for an objective that needs a reference.
        minibatch_pairs: pairs per update.
        learning_rate: Adam's step size in the inner loop.
        max_grad_norm: limit on the gradient norm in the inner loop.
        steps_per_trajectory: random time steps used per trajectory and update; null for all.
        chunk_size: at most this many policies are trained together.
        compile: compile the inner loop; false starts sooner and runs slower.
        optimizer: es (OpenAI-ES) or cmaes (for spaces of few dimensions).
        population: losses per generation, an even number.
        generations: updates of the search.
        episodes: per trained policy.
        sigma: standard deviation of the search's perturbations.
        sigma_decay: factor on sigma per generation.
        outer_learning_rate: Adam's step size in the search.
        fitness_shaping: centered (ranks) or raw.
        seed: everything random follows from it.
        held_out_every: generations between two scores of the centre on held-out seeds; 0 for none.
        held_out_seeds: trainings per such score.
        rivals: losses in the final comparison, by commas, tuned on the data of the search.
        rival_trials: settings tried per rival; null for its share of as many trainings as the
            search has made.
        final_seeds: independent trainings per objective in the final comparison.
        final_episodes: per training in the final comparison.
        tensorboard: write the search's curves for TensorBoard, too.
        wandb: project of Weights & Biases to log to; null for none.
        ray_address: of a running Ray cluster, as in 10.0.0.1:6379; null for this machine alone.
        num_actors: processes to spread the work over; 0 and 1 use this one.
        num_threads: per process; 0 shares out the cores.
        cache_dir: folder of the preference data; null for $TORCHMPO_CACHE or ~/.cache/torchmpo.
    """

    task: str = "tla"
    data: str = "noisy:0.3"
    combine: str = "mean"
    pairs: int | None = 128
    episode_steps: int = 1000
    behaviour_std: float = 0.1
    start: str | None = None
    space: str = "network"
    warm_start: str | None = None
    steps: str = "one"
    learn: list[str] | None = None
    temporal: bool = False
    policy_std: float = 0.4
    policy_std_kind: str = "fixed"
    sample: bool = False
    epochs: int = 12
    sft_epochs: int = 10
    minibatch_pairs: int = 2
    learning_rate: float = 1e-3
    max_grad_norm: float = 1.3
    steps_per_trajectory: int | None = 250
    chunk_size: int = 16
    compile: bool = True
    optimizer: str = "es"
    population: int = 32
    generations: int = 22
    episodes: int = 16
    sigma: float = 0.03
    sigma_decay: float = 0.999
    outer_learning_rate: float = 0.02
    fitness_shaping: str = "centered"
    seed: int = 0
    held_out_every: int = 5
    held_out_seeds: int = 4
    rivals: str = "sft,orpo,cpo,slic_hf"
    rival_trials: int | None = 16
    final_seeds: int = 32
    final_episodes: int = 8
    tensorboard: bool = False
    wandb: str | None = None
    ray_address: str | None = None
    num_actors: int = 0
    num_threads: int = 0
    cache_dir: str | None = None


PRESETS: dict[str, dict] = {
    "default": {},
    # Few numbers, each with a meaning: an answer in minutes.
    "minutes": {
        "space": "closed_form",
        "optimizer": "cmaes",
        "sigma": 0.1,
        "generations": 10,
    },
    # Seconds: does everything once, finds nothing.
    "smoke": {
        "pairs": 4,
        "episode_steps": 50,
        "epochs": 2,
        "sft_epochs": 1,
        "steps_per_trajectory": 10,
        "compile": False,
        "population": 4,
        "generations": 2,
        "episodes": 2,
        "held_out_every": 1,
        "held_out_seeds": 1,
        "rivals": "sft,orpo",
        "rival_trials": 2,
        "final_seeds": 2,
        "final_episodes": 2,
    },
    # arXiv 2411.06568, section 4 and appendix I.
    "paper": {
        "pairs": None,
        "steps_per_trajectory": None,
        "population": 256,
        "generations": 256,
        "episodes": 100,
        "rivals": "sft,rrhf,slic_hf,lpo,cpo,orpo,simpo,colpo,dpo,ipo,r_dpo",
        "rival_trials": None,
        "final_seeds": 25,
        "final_episodes": 100,
    },
}
# Where a run is computed, not what: may change on --resume.
PLACE = ("num_actors", "num_threads", "ray_address", "cache_dir", "tensorboard", "wandb")


@dataclass(frozen=True)
class Setup:
    """Everything a run consists of, checked, before anything is computed."""

    config: EvolveConfig
    space: "SearchSpace"
    search: "SearchConfig"
    trials: "tuple[Trial, ...]"
    rivals: "dict[str, Objective]"
    protocol: "Protocol"
    num_threads: int

    @staticmethod
    def of(config: EvolveConfig) -> "Setup":
        """Build it.

        Raises:
            UserError: anything in ``config`` that could not work.
        """
        from torchmpo.inner import check_inputs
        from torchmpo.objective import Objective, resolve
        from torchmpo.preferences import check_space, parse_kind
        from torchmpo.search import SearchConfig
        from torchmpo.spaces import space_of
        from torchmpo.suite import Protocol
        from torchmpo.trial import check_combine, trial_of

        counts = ("episodes", "final_episodes", "epochs", "held_out_seeds")
        for name in (*counts, *(["rival_trials"] if config.rival_trials is not None else [])):
            if getattr(config, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(config, name)}")
        if config.final_seeds < 2:
            raise UserError(f"final_seeds must be at least 2; got {config.final_seeds}")
        if config.sft_epochs < 0 or config.held_out_every < 0:
            raise UserError("sft_epochs and held_out_every must not be negative")
        num_threads = _threads(config)
        try:
            space = space_of(
                config.space,
                steps=config.steps,
                learn=config.learn,
                temporal=config.temporal,
                start=config.warm_start,
            )
            check_inputs(space.objective)
            search = SearchConfig(
                optimizer=config.optimizer,
                population=config.population,
                generations=config.generations,
                sigma=config.sigma,
                sigma_decay=config.sigma_decay,
                learning_rate=config.outer_learning_rate,
                fitness_shaping=config.fitness_shaping,
                seed=config.seed,
            )
            check_combine(config.combine)
            rivals = {}
            for name in words("rivals", config.rivals):
                rivals[name] = rival = resolve(name)
                if not isinstance(rival, Objective):
                    raise UserError(f"rivals: {name} is learned, it cannot be tuned")
                check_inputs(rival)
            kinds = words("data", config.data)
            for kind in kinds:
                parse_kind(kind)
            # While this process works, in the final comparison, the actors are idle. SFT is for
            # losses that need a reference only, see cell_trial.
            threads = num_threads * max(1, config.num_actors)
            settings = replace(config, sft_epochs=0)
            trial = trial_of(settings, data=kinds[0], num_threads=threads)
            trial.policy  # noqa: B018  a damaged file of the agent shows here
            check_space(trial.pool, config.cache_dir)
        except ValueError as error:
            raise UserError(" ".join(str(error).split())) from error
        protocol = Protocol(
            tuning_episodes=config.episodes,
            episodes=config.final_episodes,
            sft_epochs=config.sft_epochs,
            seed=config.seed,
        )
        trials = tuple(trial.changed(data=kind) for kind in kinds)
        return Setup(config, space, search, trials, rivals, protocol, num_threads)

    @property
    def rival_trials(self) -> int:
        """Settings tried per rival."""
        if self.config.rival_trials is not None:
            return self.config.rival_trials
        made = self.config.population * self.config.generations
        return max(1, made // len(self.rivals))


def _threads(config: EvolveConfig) -> int:
    cores = len(os.sched_getaffinity(0))
    processes = max(1, config.num_actors)
    threads = config.num_threads or max(1, cores // processes)
    if config.num_actors < 0 or threads < 1:
        raise UserError(
            "num_actors and num_threads must not be negative; "
            f"got {config.num_actors} and {config.num_threads}"
        )
    if processes * threads > cores and config.ray_address is None:
        raise UserError(
            f"num_actors × num_threads = {processes} × {threads} exceeds the {cores} cores of this "
            "machine: lower one of them"
        )
    return threads


def run(setup: Setup, out: Path) -> None:
    """Search, compare, save: goes on from whatever ``out`` holds already."""
    import torch

    from torchmpo import cluster, search
    from torchmpo.loggers import start_loggers
    from torchmpo.suite import cell_trial
    from torchmpo.trial import ObjectiveFitness

    config, space = setup.config, setup.space
    torch.set_num_threads(setup.num_threads)
    loggers = start_loggers(out, asdict(config), tensorboard=config.tensorboard, wandb=config.wandb)
    setup.trials[0].dataset  # noqa: B018  built here, before actors would all want to
    trials = [cell_trial(trial, space.objective, setup.protocol) for trial in setup.trials]
    if config.num_actors > 1:
        trials = [trial.changed(num_threads=setup.num_threads) for trial in trials]
    evaluate = ObjectiveFitness(trials, space, config.episodes, config.seed, config.combine)
    loggers = start_loggers(out, asdict(config), tensorboard=config.tensorboard, wandb=config.wandb)
    with cluster.ray_actors(config.num_actors, setup.num_threads, config.ray_address):
        problem = cluster.VectorProblem(
            evaluate,
            space.dim,
            chunk=cluster.chunk_rows(config.population, config.chunk_size),
            num_actors=config.num_actors,
            num_threads=setup.num_threads,
        )
        with Progress(config.generations, loggers) as progress:
            found = search.search(
                cluster.Fitness(problem),
                space.start,
                setup.search,
                out,
                on_generation=progress,
                held_out=partial(held_out_score, setup) if config.held_out_every else None,
                every=max(1, config.held_out_every),
            )
    finish(setup, found, out)


def held_out_score(setup: Setup, vector: "Tensor", generation: int) -> float:
    """Mean return of policies trained under ``vector`` on seeds that the search never uses."""
    from torchmpo.comparison import Contestant, seed_returns
    from torchmpo.trial import combined

    config = setup.config
    objective = Contestant(setup.space.objective, setup.space.parameters(vector[None]))
    returns = seed_returns(
        setup.trials,
        {"centre": objective},
        config.held_out_seeds,
        config.episodes,
        setup.protocol,
        "held out",
    )
    return float(combined(returns["centre"], config.combine).mean())


def finish(setup: Setup, found: "Found", out: Path) -> None:
    """The final comparison, the saved objective and the figures; what exists is not redone."""
    from torchmpo import report
    from torchmpo.files import write_atomic
    from torchmpo.objective import resolve

    space = setup.space
    path = out / "comparison.json"
    if not path.exists():
        content = compare(setup, found, tune_rivals(setup, out))
        write_atomic(path, json.dumps(content, indent=2) + "\n")
    comparison = read_json(path)
    space.save(out / "objective", found.vector, _card(setup, found, comparison))
    figures = out / "figures"
    figures.mkdir(exist_ok=True)
    report.fitness_figure(found.log, figures / "fitness.png")
    maps = {
        "discovered": space.at(found.vector),
        "ORPO": resolve("orpo"),
        "SimPO": resolve("simpo"),
    }
    report.gradient_figure(maps, figures / "gradients.png")
    print(report.table(comparison))
    print(report.verdict(comparison))
    print(f'objective: torchmpo.resolve("{out / "objective"}")')
    print(f"what it is:      python -m torchmpo.show {out}")
    print(
        f"on other data:   python -m torchmpo.diagnose --losses {out / 'objective'},orpo",
        flush=True,
    )


def tune_rivals(setup: Setup, out: Path) -> dict[str, dict | None]:
    """The best setting of each rival, its score and how many were tried; ``rivals.json``."""
    from torchmpo.comparison import tune_rival
    from torchmpo.files import write_atomic

    path = out / "rivals.json"
    tuned = read_json(path) if path.exists() else {}
    for name, rival in setup.rivals.items():
        if name in tuned:
            continue
        print(f"tuning {name} …", flush=True)
        result = tune_rival(
            setup.trials, rival, setup.rival_trials, setup.protocol, setup.config.combine
        )
        tuned[name] = result and {
            "setting": result.setting,
            "score_in_tuning": result.score,
            "trials": result.trials,
        }
        write_atomic(path, json.dumps(tuned, indent=2) + "\n")
    return tuned


def compare(setup: Setup, found: "Found", tuned: dict[str, dict | None]) -> dict:
    """Discovered objective, start and tuned rivals on fresh data and seeds; ready for JSON."""
    from torchmpo import report
    from torchmpo.comparison import Contestant, contestant, fresh_trials, seed_returns
    from torchmpo.trial import combined

    config, space = setup.config, setup.space
    objective = space.objective
    contestants = {
        "discovered": Contestant(objective, space.parameters(found.vector[None])),
        f"start ({space.start_name})": Contestant(objective, space.parameters(space.start[None])),
    }
    for name, rival in setup.rivals.items():
        if (result := tuned[name]) is not None:
            contestants[f"{name}, tuned"] = contestant(rival, result["setting"])
    print(
        f"comparing on {config.final_seeds} fresh seeds × {config.final_episodes} episodes …",
        flush=True,
    )
    returns = seed_returns(
        fresh_trials(setup.trials, config.seed),
        contestants,
        config.final_seeds,
        config.final_episodes,
        setup.protocol,
        "final",
    )
    scores = {name: combined(r, config.combine).tolist() for name, r in returns.items()}
    content = {**report.compare(scores), "mean_return_by_seed": scores}
    if len(setup.trials) > 1:
        content["data"] = {
            trial.data: report.compare({name: r[k].tolist() for name, r in returns.items()})
            for k, trial in enumerate(setup.trials)
        }
    return content


def _card(setup: Setup, found: "Found", comparison: dict) -> dict:
    """How the objective was found and what it scores; the same bytes from the same run."""
    from torchmpo import __version__

    config, space = setup.config, setup.space
    what = {key: value for key, value in asdict(config).items() if key not in PLACE}
    return {
        "name": f"{space.name} discovered on {config.task}, {config.data}",
        "torchmpo": __version__,
        "config": what,
        "dim": space.dim,
        "fitness_of_start": found.log[0]["centre"],
        "fitness_of_final_centre": found.log[-1]["centre"],
        "comparison": comparison,
    }


class Progress:
    """A line per generation, a bar below them when somebody is watching, and the loggers."""

    def __init__(self, generations: int, loggers: Sequence[Any] = ()):
        self.generations, self.loggers = generations, loggers
        self.seconds: list[float] = []

    def __enter__(self) -> "Progress":
        from tqdm import tqdm

        self.bar = tqdm(
            total=self.generations + 1, desc="search", disable=not sys.stderr.isatty(), leave=False
        )
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()
        for logger in self.loggers:
            logger.finalize("success")

    def __call__(self, row: dict, seconds: float) -> None:
        generation = row["generation"]
        numbers = {k: v for k, v in row.items() if k != "generation" and v is not None}
        for logger in self.loggers:
            logger.log_metrics(numbers | {"seconds": seconds}, generation)
        if row["mean"] is None:
            line = f"final centre    {row['centre']:9.1f}{_held_out(row)}"
        else:
            self.seconds.append(seconds)
            left = (self.generations - generation - 1) * statistics.median(self.seconds)
            line = (
                f"generation {generation + 1:>3}/{self.generations}  centre {row['centre']:8.1f}  "
                f"mean {row['mean']:8.1f}  best {row['best']:8.1f}  σ {row['sigma']:.4f}  "
                f"failed {row['nan']}{_held_out(row)}  {seconds:.1f} s  ETA {duration(left)}"
            )
        self.bar.initial = self.bar.n = generation  # after a resume, too
        self.bar.update()
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()


def _held_out(row: dict) -> str:
    value = row.get("held_out")
    return "" if value is None else f"  held out {value:.1f}"


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
