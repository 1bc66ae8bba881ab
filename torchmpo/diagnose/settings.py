"""What a diagnosis is told: the settings of ``python -m torchmpo.diagnose``, and named sets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DiagnoseConfig:
    """Settings of a run.

    Args:
        losses: names, references to functions (pkg.mod:fn) or folders of objectives (judged as they
            were saved), by commas; with --resume, in addition to those of the run.
        data: kinds of preference data, by commas: base, mixed, noisy:P, bad_judge:ETA; with
            --resume, in addition to those of the run.
        task: tla, hopper or ant.
        seeds: final trainings per loss and data kind; --resume may raise their number. Seeds added
            later are those of a longer run up to rounding, which episodes amplify: the same
            distribution, not the same bits.
        trials: hyper-parameter settings tried per loss and data kind; a loss with nothing to tune
            is not tuned.
        tuning_seeds: trainings per trial.
        tuning_episodes: episodes per trial.
        episodes: episodes per final training.
        grid: YAML file of own trials, {loss: [{hyper-parameter: value}, ...]}.
        pairs: preference pairs; null for the task's own: 1,280, hopper 5,120.
        episode_steps: time limit of an episode, in data and evaluation.
        behaviour_std: standard deviation of the actions in the data.
        start: original (agent) or scratch; null for the task's own.
        policy_std: standard deviation of the trained policies' actions.
        policy_std_kind: fixed or learned.
        sample: evaluate sampled actions instead of mean actions.
        epochs: passes over the pairs.
        sft_epochs: how many of them are supervised for a loss that needs a reference.
        minibatch_pairs: pairs per update.
        learning_rate: Adam's step size.
        max_grad_norm: limit on the gradient norm.
        steps_per_trajectory: random time steps used per trajectory and update; null for all.
        chunk_size: at most this many policies are trained together.
        compile: compile the training; false starts sooner and runs slower.
        seed: everything random follows from it.
        num_threads: 0 takes every core.
        cache_dir: folder of the preference data; null for $TORCHMPO_CACHE or ~/.cache/torchmpo.
    """

    losses: str = "sft,cpo,orpo,slic_hf,simpo,dpo"
    data: str = "base,mixed,noisy:0.3"
    task: str = "tla"
    seeds: int = 5
    trials: int = 8
    tuning_seeds: int = 1
    tuning_episodes: int = 16
    episodes: int = 16
    grid: str | None = None
    pairs: int | None = 128
    episode_steps: int = 1000
    behaviour_std: float = 0.1
    start: str | None = None
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
    seed: int = 0
    num_threads: int = 0
    cache_dir: str | None = None


PRESETS: dict[str, dict] = {
    "quick": {},
    # Seconds: does everything once, says nothing.
    "smoke": {
        "losses": "sft,dpo",
        "data": "base,noisy:0.3",
        "seeds": 2,
        "trials": 2,
        "tuning_episodes": 2,
        "episodes": 2,
        "pairs": 4,
        "episode_steps": 50,
        "epochs": 2,
        "sft_epochs": 1,
        "steps_per_trajectory": 10,
        "compile": False,
    },
    # arXiv 2411.06568, section 4.1; its Table 2, and CoLPO.
    "full": {
        "losses": "rrhf,slic_hf,dpo,ipo,cpo,orpo,r_dpo,simpo,sft,lpo,colpo",
        "data": "base,mixed,noisy:0.1,noisy:0.2,noisy:0.3",
        "pairs": None,
        "steps_per_trajectory": None,
        "episodes": 100,
    },
}
# What may change on --resume: where a run is computed.
PLACE = ("num_threads", "cache_dir")
