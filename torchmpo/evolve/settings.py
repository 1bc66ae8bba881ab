"""The settings of ``python -m torchmpo.evolve``, and named sets of them."""

from dataclasses import dataclass

from torchmpo.control.settings import SMALLEST, TestbedSettings


@dataclass(frozen=True)
class EvolveConfig(TestbedSettings):
    """Settings of a run, besides those of :class:`~torchmpo.control.settings.TestbedSettings`.

    Args:
        data: kinds of preference data, by commas, as in noisy:0.3,graded:0-0.4+votes:5; all of
            them: python -m torchmpo.diagnose --data list. task may name several robots, too, as in
            tla,hopper: all kinds of each, and what counts is no return but the percentage of the
            way from the robot's worse agent to its better one.
        combine: mean or worst: what counts of the returns on several kinds of data and robots.
        curriculum: off: every generation trains on all kinds of data and robots. regret: on one,
            drawn by how far the search is behind the antagonist there.
        antagonist: the hand-made loss of a curriculum, tuned on each kind like a rival.
        space: network (mirror losses of learned functions), closed_form (the eight numbers of
            closed_form_loss), hyper (the hyper-parameters of the loss that warm_start names) or
            program (short formulas, by genetic programming).
        warm_start: where the search begins: a loss in the space, or the folder of a saved
            objective; null for ORPO (network, one step), DPO (two steps), and the defaults of
            closed_form_loss; of program a loss that is a formula, or the text of one.
        steps: of the network: one, or two (with a reference).
        search_rate: let the search move the learning rate of training, too; it begins at
            learning_rate, or at the tuned one.
        learn: functions of the network, among psi (one step only), phi_inv and g; null for all.
        temporal: let the network depend on the progress of training.
        nodes: of a formula of space program, at most; only there.
        reads: what formulas may read: means, sums, time, lengths, steps and reference; only there.
        require: what is certain of every formula: bounded (below), monotone; null for nothing.
        proposer: a command that gets the formulas so far on its input and prints others, one a
            line; only with space program.
        proposer_seconds: after which the command is stopped.
        proposer_gib: of memory that it may use.
        optimizer: es (OpenAI-ES), cmaes (for spaces of few dimensions) or snes; not of space
            program.
        population: losses per generation, an even number.
        generations: updates of the search; --resume may raise their number.
        episodes: per trained policy.
        fitness_steps: of each episode that count in the search itself, the first ones; null for
            all. Scores on held-out seeds and the final comparison are of whole episodes.
        streams: of minibatches and start states: pairs (those of es, of opposite perturbations,
            have one each) or shared (one for a whole generation).
        sigma: standard deviation of the search's perturbations.
        sigma_decay: factor on sigma per generation; of es alone, as the next two.
        outer_learning_rate: Adam's step size in the search.
        fitness_shaping: centered (ranks) or raw.
        held_out_every: generations between two scores of the centre on held-out seeds; 0 for none.
        held_out_seeds: trainings per such score.
        rivals: losses in the final comparison, by commas, tuned on the data of the search; with
            --resume, in addition to those of the run.
        tuning_seeds: rounds of the tuning, each on another seed.
        tuning_reduction: one in so many settings comes to the next round; 1 keeps all.
        rival_trials: settings tried per rival; null for as many as take its share of as many
            trainings as the search has made, those of the best ones again among them.
        final_seeds: independent trainings per objective in the final comparison.
        final_data_per_seed: give each of them fresh preference data, so that the intervals hold for
            other data too; false: one fresh set for all.
        final_episodes: per training in the final comparison.
        tensorboard: the same as tracker tensorboard.
        wandb: a project of Weights & Biases: as tracker wandb, but online.
        ray_address: of a running Ray cluster, as in 10.0.0.1:6379; null for this machine alone.
        num_actors: processes to spread the work over; 0 and 1 use this one.
    """

    data: str = "noisy:0.3"
    combine: str = "mean"
    curriculum: str = "off"
    antagonist: str = "slic_hf"
    space: str = "network"
    warm_start: str | None = None
    steps: str = "one"
    search_rate: bool = False
    learn: list[str] | None = None
    temporal: bool = False
    nodes: int = 12
    reads: str = "means,sums,time"
    require: str | None = None
    proposer: str | None = None
    proposer_seconds: int = 120
    proposer_gib: int = 4
    optimizer: str = "es"
    population: int = 32
    learning_rate: float | None = None
    generations: int = 12
    episodes: int = 16
    fitness_steps: int | None = None
    streams: str = "pairs"
    sigma: float = 0.03
    sigma_decay: float = 0.999
    outer_learning_rate: float = 0.02
    fitness_shaping: str = "centered"
    held_out_every: int = 5
    held_out_seeds: int = 4
    rivals: str = "sft,orpo,cpo,slic_hf"
    tuning_seeds: int = 2
    tuning_reduction: int = 3
    rival_trials: int | None = 24
    final_seeds: int = 24
    final_data_per_seed: bool = True
    final_episodes: int = 32
    tensorboard: bool = False
    wandb: str | None = None
    ray_address: str | None = None
    num_actors: int = 0


PRESETS: dict[str, dict] = {
    "default": {},
    # Seconds: does everything once, finds nothing.
    "smoke": {
        **SMALLEST,
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
PLACE = ("num_actors", "num_threads", "ray_address", "cache_dir", "tracker", "tensorboard", "wandb")
