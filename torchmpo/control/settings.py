"""The settings that every command on robots has: what data, what policy, what training."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchmpo.runs.errors import UserError

BINS = 11  # of a categorical policy, per motor


@dataclass(frozen=True)
class TestbedSettings:
    """Settings of where objectives are tried.

    Args:
        task: the robot: tla (the three-legged ant), ant or hopper; or one's own environment,
            gymnasium:ID or package.module:function.
        original: file of the worse agent that makes the data, or the name of a shipped one; null
            for the task's own.
        target: file of the better agent, likewise; apart for one of the task that was not trained
            from the worse agent, but by itself.
        pairs: preference pairs; null for the task's own: 1,280, hopper 5,120.
        episode_steps: time limit of an episode, in data and evaluation.
        behaviour_std: standard deviation of the actions in the data.
        start: of the policies: original (agent) or scratch; null for the task's own.
        policy: gaussian, or categorical: every motor draws one of bins, a token a motor and step.
        bins: per motor of a categorical policy.
        policy_std: standard deviation of the trained policies' actions.
        policy_std_kind: fixed or learned.
        sample: evaluate sampled actions instead of mean actions.
        auto_reset: start an episode that ends early again within its time limit, in data and
            evaluation, and count the sum of all rewards; null for the task's own, hopper true.
        epochs: passes over the pairs.
        sft_epochs: how many of them are supervised, for a loss that needs a reference.
        minibatch_pairs: pairs per update.
        learning_rate: Adam's step size in training; null tunes it for every loss, as one more
            hyper-parameter.
        max_grad_norm: limit on the gradient norm.
        steps_per_trajectory: random time steps used per trajectory and update; null for all.
        reference_sync: updates after which the reference of a loss that has one takes a step
            towards the policy; null for never.
        reference_mix: the size of that step; 1 makes the reference the policy.
        rounds: parts in which the pairs are spent: the first is of the data, each further one of
            the policies' own trajectories, judged as the data is; 1 is the offline run.
        reference_refresh: rounds after which the reference of a loss that has one becomes the
            policy; 0 for never after the first.
        loop: what a further round's pairs are: iterated, spin, extragradient or spo.
        extrapolation: how much farther the policy goes before a next round, in parts of what it
            has moved since the round before ended; below 1.
        replay: what a further round trains on: new, its own pairs, or all, those of the rounds
            before, too, in as many updates.
        chunk_size: at most this many policies are trained together.
        compile: compile the training; false starts sooner and runs slower.
        precision: of the training: 32-true, or bf16-mixed, faster where the processor has units for
            bfloat16 (AMX, AVX512-BF16), and another arithmetic.
        seed: everything random follows from it.
        num_threads: per process; 0 shares out the cores.
        cache_dir: folder of the preference data; null for $TORCHMPO_CACHE or ~/.cache/torchmpo.
        tracker: tensorboard, wandb, mlflow or trackio, where to log the numbers, too; wandb:mine
            is in the project mine; several by commas; null for none.
    """

    __test__ = False  # pytest would take it for a class of tests

    task: str = "tla"
    original: str | None = None
    target: str | None = None
    pairs: int | None = 128
    episode_steps: int = 1000
    behaviour_std: float = 0.1
    start: str | None = None
    policy: str = "gaussian"
    bins: int = BINS
    policy_std: float = 0.4
    policy_std_kind: str = "fixed"
    sample: bool = False
    auto_reset: bool | None = False
    epochs: int = 12
    sft_epochs: int = 10
    minibatch_pairs: int = 2
    learning_rate: float | None = 1e-3
    max_grad_norm: float = 1.3
    steps_per_trajectory: int | None = 250
    reference_sync: int | None = None
    reference_mix: float = 1.0
    rounds: int = 1
    reference_refresh: int = 1
    loop: str = "iterated"
    extrapolation: float = 0.0
    replay: str = "new"
    chunk_size: int = 16
    compile: bool = True
    precision: str = "32-true"
    seed: int = 0
    num_threads: int = 0
    cache_dir: str | None = None
    tracker: str | None = None


# Named bundles for ``--profile``.
PROFILES = Path(__file__).parent / "profiles"

# Settings that older runs do not have, with the values by which they were made.
OLDER: dict[str, Any] = {
    **{"policy": "gaussian", "bins": 11, "original": None, "target": None},
    **{"reference_sync": None, "reference_mix": 1.0, "tracker": None, "auto_reset": False},
    **{"rounds": 1, "reference_refresh": 1, "loop": "iterated", "extrapolation": 0.0},
    **{"replay": "new", "precision": "32-true"},
}

# Of the smoke presets: training and data in seconds, which say nothing.
SMALLEST: dict[str, Any] = {
    "pairs": 4,
    "episode_steps": 50,
    "epochs": 2,
    "sft_epochs": 1,
    "steps_per_trajectory": 10,
    "compile": False,
}


# More of anything is a slip of the hand: what is done so often is drawn, held and simulated at
# once, and would fill the memory before a word is said. Other numbers only take time.
MOST_AT_ONCE, MOST = 10_000, 1_000_000
AT_ONCE = (
    *("trials", "rival_trials", "population", "episodes", "tuning_episodes", "final_episodes"),
    *("seeds", "tuning_seeds", "held_out_seeds", "final_seeds"),
)
ANY_SIZE = ("seed", "pairs", "num_threads", "num_actors")  # these have limits of their own


def check_sizes(settings: TestbedSettings) -> None:
    """Refuse numbers beyond all measure.

    Raises:
        UserError: which one.
    """
    for name, value in asdict(settings).items():
        most = MOST_AT_ONCE if name in AT_ONCE else MOST
        if isinstance(value, int) and name not in ANY_SIZE and value > most:
            raise UserError(f"{name} must be at most {most}; got {value}")
