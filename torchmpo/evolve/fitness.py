"""What a vector is worth: the returns of policies trained under the objective it stands for."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import derive_seed

if TYPE_CHECKING:
    from torchmpo.evolve.spaces import SearchSpace
from torchmpo.control.testbed import Source, Trial

COMBINES = ("mean", "worst")


def check_combine(combine: str) -> None:
    """Refuse a way to combine returns that does not exist.

    Raises:
        UserError: it is neither mean nor worst.
    """
    if combine not in COMBINES:
        raise UserError(f"combine must be {' or '.join(COMBINES)}; got {combine!r}")


def combined(returns: Tensor, combine: str) -> Tensor:
    """One number for the returns on several kinds of data: ``[kinds, ...] → [...]``.

    Args:
        returns: higher is better; NaN for a failure, which is one of the whole.
        combine: ``"mean"`` or ``"worst"`` of the kinds.

    Raises:
        UserError: another ``combine``.

    >>> combined(torch.tensor([[1.0, 5.0], [3.0, float("nan")]]), "worst")
    tensor([1., nan])
    """
    check_combine(combine)
    return returns.mean(0) if combine == "mean" else returns.amin(0)


@dataclass(frozen=True)
class ObjectiveFitness:
    """F(ζ): mean return of policies trained under the objective that the vector ζ stands for.

    All members of a generation share minibatches and start states, on every kind of data; another
    generation has others.

    Args:
        trials: one per kind of data. What they have in common they share when first used.
        space: what a vector means.
        episodes: per member and kind of data.
        seed: with the generation, names the random numbers.
        combine: how the returns on several kinds become one, see :func:`combined`.

    Raises:
        UserError: another ``combine``, or no trial.
    """

    trials: Sequence[Trial]
    space: "SearchSpace"
    episodes: int
    seed: int
    combine: str = "mean"

    def __post_init__(self):
        check_combine(self.combine)
        if not self.trials:
            raise UserError("fitness needs at least one kind of data")

    def __call__(self, vectors: Tensor, generation: int) -> Tensor:
        """``[chunk, dim] → [chunk]``; NaN for a policy that diverged."""
        own = self.space.parameters(vectors)
        training = derive_seed(self.seed, "inner", generation)
        evaluation = derive_seed(self.seed, "episodes", generation)
        returns = []
        for trial in self._shared_trials:
            params = trial.train(self.space.objective, own, len(vectors), training)
            returns.append(trial.evaluate(params, self.episodes, evaluation).mean(1))
        return combined(torch.stack(returns), self.combine)

    def share(self, put: Callable[[Mapping[str, Tensor]], Source]) -> "ObjectiveFitness":
        """The same fitness for other processes, whose data ``put`` places where they read them.

        Each pool is put once, however many kinds of data are chosen from it.
        """
        sources: dict[tuple, Source] = {}
        trials = []
        for trial in self._shared_trials:
            key = (trial.pool, trial.cache_dir)
            if key not in sources:
                sources[key] = put(trial.trajectories)
            trials.append(trial.changed(source=sources[key]))
        return dataclasses.replace(self, trials=trials)

    @cached_property
    def _shared_trials(self) -> list[Trial]:
        # One policy also means one compiled update: pickled apart, trials would have one each.
        first, *others = self.trials
        first.policy  # noqa: B018
        first.trajectories  # noqa: B018
        return [first, *(first.changed(**trial.__getstate__()) for trial in others)]

    def __getstate__(self) -> dict:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
