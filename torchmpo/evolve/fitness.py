"""What a vector is worth: the returns of policies trained under the objective it stands for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from torchmpo.control.testbed import Testbed, TestbedConfig, prepare
from torchmpo.evolve.spaces import SearchSpace
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import derive_seed

COMBINES = ("mean", "worst")
Read = Callable[[], dict[str, Tensor]]


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

    Members of one stream share minibatches and start states, on every kind of data. Another stream
    and another generation have others.

    Args:
        testbeds: one per kind of data and robot, prepared together.
        space: what a vector means.
        episodes: per member and kind of data.
        seed: with the generation, names the random numbers.
        combine: how the returns on several kinds become one, see :func:`combined`.
        steps: of each episode that count, the first ones; None for all.

    Raises:
        UserError: another ``combine``, or no testbed.
    """

    testbeds: Sequence[Testbed]
    space: SearchSpace
    episodes: int
    seed: int
    combine: str = "mean"
    steps: int | None = None

    def __post_init__(self):
        check_combine(self.combine)
        if not self.testbeds:
            raise UserError("fitness needs at least one kind of data")

    def __call__(
        self, vectors: Tensor, generation: int, streams: Sequence[int] | None = None
    ) -> Tensor:
        """``[chunk, dim] → [chunk]``; NaN for a policy that diverged.

        Args:
            streams: one per vector. Where all are 0, the default, they share one more cheaply.
        """
        own = self.space.parameters(vectors)
        training = self._seed("inner", generation, streams)
        evaluation = self._seed("episodes", generation, streams)
        returns = []
        for testbed in self.testbeds:
            rates = self.space.rates(vectors, testbed.config.inner.learning_rate)
            objective, n = self.space.objective, len(vectors)
            params = testbed.train(objective, own, n, training, learning_rates=rates)
            returns.append(self.scores(testbed, params, evaluation))
        return combined(torch.stack(returns), self.combine)

    def scores(self, testbed: Testbed, params: dict[str, Tensor], seed: int | list[int]) -> Tensor:
        """Of trained policies, ``[population]``: their mean returns."""
        return testbed.evaluate(params, self.episodes, seed, steps=self.steps).mean(1)

    def _seed(self, what: str, generation: int, streams: Sequence[int] | None) -> int | list[int]:
        if streams is None or not any(streams):
            return derive_seed(self.seed, what, generation)
        return [derive_seed(self.seed, what, generation, stream) for stream in streams]

    def on(self, kind: int) -> "ObjectiveFitness":
        """The same on one kind of data, by number; −1: on all."""
        return self if kind < 0 else replace(self, testbeds=[self.testbeds[kind]])

    def share(self, put: Callable[[Mapping[str, Tensor]], Read]) -> "FitnessElsewhere":
        """The same fitness for other processes.

        Args:
            put: places trajectories where other processes read them, once for all kinds of data
                (and robots: testbeds that were prepared together have all of them).
        """
        return FitnessElsewhere(
            [testbed.config for testbed in self.testbeds],
            put(self.testbeds[0].materials.trajectories),
            self.space,
            self.episodes,
            self.seed,
            self.combine,
            self.steps,
        )


@dataclass
class FitnessElsewhere:
    """What is sent to another process, to be an :class:`ObjectiveFitness` there: settings only.

    Args:
        configs: of its testbeds.
        read: where their trajectories come from.
        space, episodes, seed, combine, steps: as there.
    """

    configs: Sequence[TestbedConfig]
    read: Read
    space: SearchSpace
    episodes: int
    seed: int
    combine: str
    steps: int | None

    @cached_property
    def _fitness(self) -> ObjectiveFitness:
        testbeds = prepare(self.configs, read=self.read)
        how = self.episodes, self.seed, self.combine, self.steps
        return ObjectiveFitness(testbeds, self.space, *how)

    def __call__(
        self, vectors: Tensor, generation: int, streams: Sequence[int] | None = None
    ) -> Tensor:
        """As :class:`ObjectiveFitness`; the first call prepares the testbeds."""
        return self._fitness(vectors, generation, streams)

    def on(self, kind: int) -> ObjectiveFitness:
        """See :meth:`ObjectiveFitness.on`."""
        return self._fitness.on(kind)


@dataclass(frozen=True)
class OneOfKinds:
    """Fitness on the one kind of data whose number is the last of a vector; −1 is all of them.

    So the kind travels with the work, and an actor has nothing else to be told.

    Args:
        fitness: on all kinds.
    """

    fitness: ObjectiveFitness | FitnessElsewhere

    def __call__(
        self, vectors: Tensor, generation: int, streams: Sequence[int] | None = None
    ) -> Tensor:
        """``[chunk, dim + 1] → [chunk]``."""
        own = self.fitness.on(int(vectors[0, -1]))
        return own(vectors[:, :-1].contiguous(), generation, streams)

    def share(self, put: Callable[[Mapping[str, Tensor]], Read]) -> "OneOfKinds":
        """The same for other processes."""
        assert isinstance(self.fitness, ObjectiveFitness)
        return OneOfKinds(self.fitness.share(put))
