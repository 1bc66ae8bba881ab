"""The settings of ``python -m torchmpo.diagnose``, and named sets of them."""

from dataclasses import dataclass

from torchmpo.control.settings import SMALLEST, TestbedSettings


@dataclass(frozen=True)
class DiagnoseConfig(TestbedSettings):
    """Settings of a run, besides those of :class:`~torchmpo.control.settings.TestbedSettings`.

    Args:
        losses: names, references to functions (pkg.mod:fn) or folders of objectives (judged as they
            were saved), by commas (a comma in a folder's name is \\,); with --resume, in addition
            to those of the run.
        data: kinds of preference data, by commas, as in base,graded:0-0.4+noisy:0.3, or files of
            pairs; "list" prints all kinds; with --resume, in addition to those of the run.
        seeds: final trainings per loss and data kind; --resume may raise their number. Seeds added
            later are those of a longer run up to rounding, which episodes amplify: the same
            distribution, not the same bits.
        data_per_seed: give each of them preference data and start states of its own, so that the
            intervals hold for other data too (a file of pairs has no other); false: all have the
            data that settings are tuned on.
        trials: hyper-parameter settings tried per loss and data kind; a loss with nothing to tune
            is not tuned.
        tuning_seeds: rounds of the tuning, each on another seed.
        tuning_reduction: one in so many settings comes to the next round; 1 keeps all.
        tuning_episodes: episodes per trial.
        episodes: episodes per final training.
        grid: YAML file of own trials, {loss: [{hyper-parameter: value}, ...]}; where the learning
            rate is tuned, those that name none are tried at several.
        baselines: contestants that are no losses, by commas: rlhf, PPO on a reward model of the
            same pairs, tuned over four settings, with minutes of simulation for each seed; with
            --resume, in addition to those of the run.
        rlhf_steps: steps of the environment of each training of rlhf.
        checkpoints: policies of each final training whose return is measured on the way, evenly
            spread over its epochs, as a curve against the distance from the start; 0 for none, else
            at least 2.
        vary: settings to change, one at a time, in further cells, as in learning_rate=1e-4,1e-3;
            may be given several times. What each change does is in the report; several numbers of
            pairs also make a scaling fit.
    """

    losses: str = "sft,cpo,orpo,slic_hf,simpo,dpo"
    data: str = "base,mixed,noisy:0.3,graded:0-0.4,best_of:4"
    seeds: int = 8
    data_per_seed: bool = True
    trials: int = 12
    learning_rate: float | None = None
    tuning_seeds: int = 2
    tuning_reduction: int = 3
    tuning_episodes: int = 16
    episodes: int = 32
    grid: str | None = None
    baselines: str | None = None
    rlhf_steps: int = 1_000_000
    checkpoints: int = 0
    vary: str | None = None


PRESETS: dict[str, dict] = {
    "quick": {},
    # Seconds: does everything once, says nothing.
    "smoke": {
        "losses": "sft,dpo",
        "data": "base,noisy:0.3",
        "seeds": 2,
        "trials": 2,
        "tuning_seeds": 1,
        "tuning_episodes": 2,
        "episodes": 2,
        "rlhf_steps": 2048,
        **SMALLEST,
    },
    # arXiv 2411.06568, section 4.1; its Table 2, and CoLPO.
    "full": {
        "losses": "rrhf,slic_hf,dpo,ipo,cpo,orpo,r_dpo,simpo,sft,lpo,colpo",
        "data": "base,mixed,noisy:0.1,noisy:0.2,noisy:0.3,graded:0-0.4,best_of:4",
        "pairs": None,
        "steps_per_trajectory": None,
        "seeds": 5,
        "episodes": 100,
    },
}
# What may change on --resume: where a run is computed, and what is beside its own cells.
PLACE = ("num_threads", "cache_dir", "vary", "tracker")
