"""What a search is told, and what that means: the settings of ``python -m torchmpo.evolve``."""

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torchmpo.commandline import words
from torchmpo.errors import UserError

if TYPE_CHECKING:
    from torchmpo.objective import Objective
    from torchmpo.search import SearchConfig
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
        rivals: losses in the final comparison, by commas, tuned on the data of the search; with
            --resume, in addition to those of the run.
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
