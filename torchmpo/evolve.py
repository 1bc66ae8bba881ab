"""Discover a preference loss by evolution: ``python -m torchmpo.evolve``.

Policies are trained on preference data under a population of candidate losses; the mean return of
each trained policy is the fitness of its loss; OpenAI-ES moves the losses uphill.
"""

import json
import os
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torchmpo.errors import UserError, nearest

if TYPE_CHECKING:
    from torchmpo.objective import MirrorObjective
    from torchmpo.search import Found, SearchConfig
    from torchmpo.trial import Trial

PROGRAM = "python -m torchmpo.evolve"


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

        for name in ("episodes", "final_episodes"):
            if getattr(config, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(config, name)}")
        if config.final_seeds < 2:
            raise UserError(f"final_seeds must be at least 2; got {config.final_seeds}")
        if config.pairs < config.minibatch_pairs:
            raise UserError(
                f"pairs ({config.pairs}) must be at least minibatch_pairs "
                f"({config.minibatch_pairs})"
            )
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
            trial = make_trial(config, num_threads * max(1, config.num_actors))
            trial.policy  # noqa: B018  a damaged file of the agent shows here
            check_space(trial.pool, config.cache_dir)
        except ValueError as error:
            raise UserError(str(error)) from error
        if objective.dim == 0:
            raise UserError("learn is empty: name at least one function, or null for all")
        return Setup(config, objective, search, trial, num_threads)


def make_trial(config: EvolveConfig, num_threads: int = 0) -> "Trial":
    """The part of the settings that says how an objective is tried."""
    from torchmpo.inner import InnerConfig
    from torchmpo.preferences import PoolConfig
    from torchmpo.trial import Trial

    return Trial(
        pool=PoolConfig(
            task=config.task,
            pairs=config.pairs,
            max_steps=config.episode_steps,
            behaviour_std=config.behaviour_std,
            seed=config.seed,
        ),
        data=config.data,
        inner=InnerConfig(**{f.name: getattr(config, f.name) for f in fields(InnerConfig)}),
        policy_std=config.policy_std,
        policy_std_kind=config.policy_std_kind,
        sample=config.sample,
        num_threads=num_threads,
        cache_dir=config.cache_dir,
    )


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

    from torchmpo import search
    from torchmpo.trial import MirrorFitness

    config, objective = setup.config, setup.objective
    torch.set_num_threads(setup.num_threads)
    setup.trial.dataset  # noqa: B018  built here, before actors would all want to
    trial = setup.trial
    if config.num_actors > 1:
        trial = replace(trial, num_threads=setup.num_threads)
    evaluate = MirrorFitness(trial, objective, config.episodes, config.seed)
    with search.ray_actors(config.num_actors, setup.num_threads):
        problem = search.VectorProblem(
            evaluate,
            objective.dim,
            chunk=search.chunk_rows(config.population, config.chunk_size),
            num_actors=config.num_actors,
            num_threads=setup.num_threads,
        )
        with Progress(config.generations) as progress:
            found = search.search(
                search.Fitness(problem),
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
    comparison = _read_json(path)
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
                f"failed {row['nan']}  {seconds:.1f} s  ETA {_duration(left)}"
            )
        self.bar.initial = self.bar.n = generation  # after a resume, too
        self.bar.update()
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and --resume") from error


# The command line ---------------------------------------------------------------------------------


def build_parser(defaults: dict):
    """The parser, with ``defaults`` in place of those of :class:`EvolveConfig`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog=PROGRAM,
        description="Discover a preference loss by evolution.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    parser.add_argument("--preset", default="default", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--out", default="runs/evolve", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_class_arguments(EvolveConfig)
    parser.set_defaults(defaults)
    return parser


def parse(argv: Sequence[str]) -> tuple[EvolveConfig, Path, bool]:
    """Settings, run folder and whether to resume, with the folder checked against them.

    Raises:
        UserError: anything wrong with the command line or the folder.
    """
    from jsonargparse import ArgumentParser

    first = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    first.add_argument("--preset", default=None, type=str | None)
    first.add_argument("--out", default="runs/evolve")
    first.add_argument("--resume", action="store_true")
    first.add_argument("--config", default=None, type=str | None)
    own = ("--preset", "--out", "--resume", "--config")
    given = _readable(first.parse_args, _only(argv, own))
    out, resume = Path(given.out), given.resume
    preset = given.preset or _preset_in(given.config)
    if preset is not None and preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}: {nearest(preset, PRESETS)}")
    stored = _stored_config(out) if resume else None
    defaults = PRESETS[preset or "default"]
    if stored is not None and preset is None:
        defaults = stored
    namespace = _readable(build_parser(defaults).parse_args, list(argv))
    if (namespace.out, namespace.resume) != (given.out, given.resume):
        raise UserError("give --out and --resume on the command line, after --config")
    config = _config(namespace)
    if stored is not None:
        for name, value in asdict(config).items():
            if name not in PLACE and value != stored[name]:
                raise UserError(
                    f"--resume: {name} is {value!r}, but the run in {out} has {stored[name]!r}; "
                    "drop that setting, or choose another --out"
                )
    elif out.exists() and (not out.is_dir() or any(_visible(out))):
        raise UserError(
            f"{out} exists and is not empty: go on with --resume, or choose another --out"
        )
    return config, out, resume


def _preset_in(path: str | None) -> str | None:
    """The preset that a configuration file names; the real parser complains of a bad file."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text()) if path else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return str(values["preset"]) if isinstance(values, dict) and "preset" in values else None


def _only(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """The options ``names`` with their values, so that the rest is left to the real parser."""
    kept = []
    for i, word in enumerate(argv):
        name, equals, _ = word.partition("=")
        if name in names:
            kept.append(word)
            if not equals and name != "--resume":
                kept += argv[i + 1 : i + 2]
    return kept


def _config(namespace) -> EvolveConfig:
    values = namespace.as_dict()
    return EvolveConfig(**{f.name: values[f.name] for f in fields(EvolveConfig)})


def _visible(folder: Path) -> list[Path]:
    """What a user would see; a kill may leave a temporary file behind."""
    return [p for p in folder.iterdir() if not p.name.startswith(".")]


def _stored_config(out: Path) -> dict:
    import yaml

    path = out / "config.yaml"
    if not path.exists():
        raise UserError(f"--resume: there is no run in {out}; start one without --resume")
    try:
        values = yaml.safe_load(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it is not a mapping")
        if missing := {f.name for f in fields(EvolveConfig)} - values.keys():
            raise ValueError(f"{sorted(missing)[0]} is missing")
        return asdict(_config(_readable(build_parser({}).parse_object, values)))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not the configuration of a run: {reason}") from error


def _readable(parse, argument):
    """Run a parser; its complaint becomes one line that names the nearest valid key."""
    from jsonargparse import ArgumentError

    keys = [f.name for f in fields(EvolveConfig)] + ["preset", "out", "resume", "config"]
    try:
        return parse(argument)
    except UnicodeDecodeError as error:
        raise UserError(f"--config: the file is not text ({error})") from error
    except (ArgumentError, KeyError, TypeError) as error:
        text = " ".join(str(error).split())
        if match := re.search(r"unrecognized arguments: (\S+)", text):
            if not match[1].startswith("-"):
                raise UserError(f"unexpected argument {match[1]!r}") from error
            name = match[1].lstrip("-").partition("=")[0]
            raise UserError(f"unknown option --{name}: {nearest(name, keys)}") from error
        if match := re.search(r"Option '([^']+)' is not accepted", text):
            raise UserError(f"unknown key {match[1]!r}: {nearest(match[1], keys)}") from error
        text = re.sub(r"^Parser key \"(\w+)\":", r"\1:", text)
        raise UserError(re.sub(r"<class '(\w+)'>", r"\1", text)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    import yaml

    from torchmpo.files import write_atomic

    out = None
    try:
        config, out, resume = parse(sys.argv[1:] if argv is None else argv)
        setup = Setup.of(config)
        if not resume:
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(out / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
        run(setup, out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        how = f"; go on with: {PROGRAM} --out {out} --resume" if out else ""
        print(f"\ninterrupted{how}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
