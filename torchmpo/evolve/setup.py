"""From the settings of a search to its parts, checked before anything is computed."""

import os
from dataclasses import dataclass, replace

from torchmpo.control.environments import check_task
from torchmpo.control.grids import start_setting
from torchmpo.control.inner_loop import check_inputs
from torchmpo.control.kinds import check_kinds_differ
from torchmpo.control.pools import check_space
from torchmpo.control.rehearsal import check_kind, rehearse, unlike
from torchmpo.control.settings import MOST_AT_ONCE, check_sizes
from torchmpo.control.testbed import TestbedConfig, configure
from torchmpo.control.tuning import Protocol
from torchmpo.evolve.cluster import check_cluster
from torchmpo.evolve.curriculum import CURRICULA
from torchmpo.evolve.fitness import check_combine
from torchmpo.evolve.optimizers import SearchConfig
from torchmpo.evolve.programs.proposer import words_of
from torchmpo.evolve.programs.space import program_space
from torchmpo.evolve.searched_rate import SearchedRate
from torchmpo.evolve.settings import EvolveConfig
from torchmpo.evolve.spaces import SearchSpace, space_of
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.command import words
from torchmpo.runs.errors import UserError
from torchmpo.runs.trackers import PROJECT, trackers_of
from torchmpo_envs import AGENTS


@dataclass(frozen=True)
class Setup:
    """Everything a run consists of, checked, before anything is computed."""

    config: EvolveConfig
    space: SearchSpace
    search: SearchConfig
    testbeds: tuple[TestbedConfig, ...]
    rivals: dict[str, Objective]
    protocol: Protocol
    num_threads: int
    trackers: dict[str, str]
    antagonist: Objective | None = None

    @staticmethod
    def of(config: EvolveConfig) -> "Setup":
        """Build it.

        Raises:
            UserError: anything in ``config`` that could not work.
        """
        check_sizes(config)
        counts = ("episodes", "final_episodes", "epochs", "held_out_seeds")
        counts += ("tuning_seeds", "tuning_reduction")
        for name in (*counts, *(["rival_trials"] if config.rival_trials is not None else [])):
            if getattr(config, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(config, name)}")
        _check_fitness_steps(config)
        if config.final_seeds < 2:
            raise UserError(f"final_seeds must be at least 2; got {config.final_seeds}")
        if config.streams not in ("pairs", "shared"):
            raise UserError(f"streams must be pairs or shared; got {config.streams!r}")
        if config.sft_epochs < 0 or config.held_out_every < 0:
            raise UserError("sft_epochs and held_out_every must not be negative")
        num_threads = _threads(config)
        trackers = trackers_of(config.tracker)
        if config.tensorboard:
            trackers |= trackers_of("tensorboard")
        if config.wandb is not None:  # whose project may have a comma
            trackers |= trackers_of("wandb") | {"wandb": config.wandb or PROJECT}
        try:
            space = _space(config)
            check_inputs(space.objective, config.policy)
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
            if config.curriculum not in CURRICULA:
                raise UserError(
                    f"curriculum must be {' or '.join(CURRICULA)}; got {config.curriculum!r}"
                )
            rivals = {}
            for name in words("rivals", config.rivals):
                rivals[name] = _tunable("rivals", name, config.policy)
            kinds, tasks = words("data", config.data), words("task", config.task)
            if len(tasks) > 1:
                for task in tasks:
                    check_task(task)
                if own := [task for task in tasks if task not in AGENTS]:
                    raise UserError(
                        f"several tasks are shipped robots, {', '.join(AGENTS)}: {own[0]} has no "
                        "agents of its own"
                    )
                if config.original or config.target not in (None, "apart"):
                    raise UserError("original and target are agents of one task: give one --task")
            check_kinds_differ(kinds)
            antagonist = None
            if config.curriculum != "off" and len(kinds) * len(tasks) > 1:
                antagonist = _tunable("antagonist", config.antagonist, config.policy)
            hand_made = [*rivals.values(), *([antagonist] if antagonist else [])]
            for kind in kinds:
                for objective in (space.objective, *hand_made):
                    check_kind(objective, kind)
            # While this process works, in the final comparison, the actors are idle.
            threads = num_threads * max(1, config.num_actors)
            first = [configure(replace(config, task=t), kinds[0], threads) for t in tasks]
            for testbed in first:
                testbed.load_policy()  # a damaged file shows here
            testbeds = tuple(bed.on(kind) for bed in first for kind in kinds)
            for rival in hand_made:
                for testbed in unlike(testbeds):
                    rehearse(rival, [start_setting(rival)], testbed)
            pools = 1 + config.final_seeds * config.final_data_per_seed
            check_space([bed.data_pool for bed in testbeds], config.cache_dir, pools=pools)
        except ValueError as error:
            raise UserError(" ".join(str(error).split())) from error
        protocol = Protocol(
            tuning_seeds=config.tuning_seeds,
            tuning_reduction=config.tuning_reduction,
            tuning_episodes=config.episodes,
            episodes=config.final_episodes,
            sft_epochs=config.sft_epochs,
            seed=config.seed,
        )
        parts = (search, testbeds, rivals, protocol, num_threads, trackers)
        setup = Setup(config, space, *parts, antagonist)
        if setup.rival_trials > MOST_AT_ONCE:
            raise UserError(
                f"as many trials as the search makes are {setup.rival_trials} for each rival: give "
                f"rival_trials, at most {MOST_AT_ONCE}"
            )
        return setup

    @property
    def streams(self) -> list[int]:
        """The stream of random numbers of every row of a generation, the centre first.

        A pair of opposite perturbations is compared on equal terms, and a generation averages over
        as many streams as it has pairs. CMA-ES and genetic programming compare all members with
        each other.
        """
        pairs = self.config.optimizer == "es" and self.config.space != "program"
        if self.config.streams == "shared" or not pairs:
            return []
        # From 1: 0 stands for the one stream that a whole generation shares.
        return [1, *(2 + i // 2 for i in range(self.config.population))]

    @property
    def rival_trials(self) -> int:
        """Settings tried per rival."""
        if self.config.rival_trials is not None:
            return self.config.rival_trials
        made = self.config.population * self.config.generations
        if self.antagonist is not None:  # a curriculum trains on one kind of data, a rival on all
            made //= len(self.testbeds)
        return self.protocol.settings_for(made // len(self.rivals))


def _check_fitness_steps(config: EvolveConfig) -> None:
    """What it counts is a part of a return, which nothing else is measured by."""
    if config.fitness_steps is None:
        return
    if config.fitness_steps < 1:
        raise UserError(f"fitness_steps must be at least 1; got {config.fitness_steps}")
    if config.curriculum != "off" or len(words("task", config.task)) > 1:
        raise UserError(
            "fitness_steps does not go with a curriculum or several tasks, where whole returns are "
            "compared"
        )


def _tunable(option: str, name: str, policy: str) -> Objective:
    """A hand-made loss by its name."""
    objective = resolve(name)
    if not isinstance(objective, Objective):
        raise UserError(f"{option}: {name} is learned, it cannot be tuned")
    check_inputs(objective, policy)
    return objective


def _space(config: EvolveConfig) -> SearchSpace:
    """What is searched."""
    own = {"steps": config.steps, "learn": config.learn, "temporal": config.temporal}
    if config.space != "program":
        for name in ("proposer", "nodes", "reads", "require"):
            if getattr(config, name) != getattr(EvolveConfig, name):
                raise UserError(f"{name} belongs to --space program, not to {config.space}")
        space = space_of(config.space, **own, start=config.warm_start)
        return SearchedRate(space) if config.search_rate else space
    defaults = {"steps": "one", "learn": None, "temporal": False}
    own |= {"optimizer": config.optimizer, "search_rate": config.search_rate}
    for name, default in (defaults | {"optimizer": "es", "search_rate": False}).items():
        if own[name] != default:
            raise UserError(f"{name} does not go with --space program")
    for name in ("proposer_seconds", "proposer_gib"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} must be at least 1; got {getattr(config, name)}")
    if config.proposer is not None:
        words_of(config.proposer)
    reads = words("reads", config.reads)
    require = words("require", config.require) if config.require else []
    return program_space(reads, config.nodes, require, config.warm_start)


def _threads(config: EvolveConfig) -> int:
    cores = len(os.sched_getaffinity(0))
    check_cluster(config.num_actors, config.ray_address)
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
