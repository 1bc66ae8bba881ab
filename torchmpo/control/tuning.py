"""Which setting of a loss is best on the data of a testbed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchmpo.control.grids import RATE
from torchmpo.control.testbed import Testbed
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.seeding import derive_seed


@dataclass(frozen=True)
class Protocol:
    """How a loss is tuned and judged.

    Args:
        tuning_seeds: rounds of the tuning (≥ 1): trainings of a setting that stays until the last.
        tuning_reduction: η of successive halving (≥ 1): of n settings in a round ⌈n/η⌉ come to the
            next one; 1 keeps all.
        tuning_episodes: per training.
        episodes: per training of the final seeds.
        sft_epochs: of the epochs, how many come first as SFT for a loss that needs a reference.
        seed: everything random follows from it.
    """

    tuning_seeds: int = 1
    tuning_reduction: int = 1
    tuning_episodes: int = 16
    episodes: int = 16
    sft_epochs: int = 10
    seed: int = 0

    def settings_for(self, trainings: int) -> int:
        """How many settings so many trainings are enough for, but for rounding up; at least one.

        >>> Protocol(tuning_seeds=2, tuning_reduction=3).settings_for(40)  # 30 and the best 10
        30
        """
        eta, rounds = self.tuning_reduction, self.tuning_seeds
        return max(1, trainings * eta ** (rounds - 1) // sum(eta**k for k in range(rounds)))


def suited(testbed: Testbed, objective: Objective | MirrorObjective, sft_epochs: int) -> Testbed:
    """The testbed of one loss: those with a reference spend their first epochs on SFT.

    So does a formula that was found beside such losses: all of a search are trained alike.

    Args:
        sft_epochs: how many of the epochs; at least one is left for the loss.
    """
    if not objective.after_sft:
        return testbed
    inner = testbed.config.inner
    sft = min(sft_epochs, inner.epochs - 1)
    return testbed.changed(inner=replace(inner, epochs=inner.epochs - sft, sft_epochs=sft))


def tune(
    testbed: Testbed,
    objective: Objective | MirrorObjective,
    grid: Sequence[dict[str, float]],
    protocol: Protocol,
) -> list[list[float]]:
    """Mean return of every setting: ``[grid point][round]``, see :func:`race`."""

    def scores(alive: Sequence[int], k: int) -> list[float]:
        return tuning_scores(testbed, objective, [grid[i] for i in alive], protocol, k).tolist()

    return race(scores, len(grid), protocol)


def race(
    scores: Callable[[Sequence[int], int], Sequence[float]], count: int, protocol: Protocol
) -> list[list[float]]:
    """Successive halving: each round trains the best settings of the one before on another seed.

    Trainings are worth more for another setting than for another look at a bad one: of ways to
    spend sixteen, twelve settings and then the best four again lose about 50 of return less than
    eight settings twice (``experiments/tuning_budget.py``).

    Args:
        scores: of settings, by number, in a round: higher is better, NaN for a failure.
        count: of settings.

    Returns:
        ``[setting][round]``: as many numbers as the setting has had rounds.

    Source: Jamieson and Talwalkar 2016, arXiv 1502.07943.
    """
    rows: list[list[float]] = [[] for _ in range(count)]
    alive = list(range(count))
    for k in range(protocol.tuning_seeds):
        for i, score in zip(alive, scores(alive, k), strict=True):
            rows[i].append(score)
        alive.sort(key=lambda i: -_merit(rows[i]))
        alive = sorted(alive[: math.ceil(len(alive) / protocol.tuning_reduction)])
    return rows


def tuning_scores(
    testbed: Testbed,
    objective: Objective | MirrorObjective,
    settings: Sequence[dict[str, float]],
    protocol: Protocol,
    k: int,
) -> Tensor:
    """Mean return ``[settings]`` on tuning seed ``k``, NaN where training diverged."""
    params, rates = stack_settings(objective, settings), learning_rates(settings)
    training = derive_seed(protocol.seed, "tuning", k)
    policies = testbed.train(objective, params, len(settings), training, learning_rates=rates)
    states = derive_seed(protocol.seed, "tuning episodes", k)
    return testbed.evaluate(policies, protocol.tuning_episodes, states).mean(1)


def best_setting(tuning: Sequence[Sequence[float]]) -> int:
    """Index of the best setting; −1 if each diverged somewhere.

    That is the highest mean of those that have had most rounds and did not diverge.
    """
    finite = [i for i, row in enumerate(tuning) if math.isfinite(_merit(row))]
    return max(finite, key=lambda i: (len(tuning[i]), _merit(tuning[i])), default=-1)


def _merit(row: Sequence[float]) -> float:
    """The mean of a setting's rounds, −∞ if it diverged in one."""
    mean = math.fsum(row) / len(row)
    return mean if math.isfinite(mean) else -math.inf


def stack_settings(objective: Objective | MirrorObjective, grid: Sequence[dict[str, float]]) -> Any:
    """What ``objective.apply`` takes, for a population with these settings."""
    if isinstance(objective, MirrorObjective):
        return objective.vector.detach().expand(len(grid), -1)
    names = [name for name in grid[0] if name != RATE]
    return {name: torch.tensor([setting[name] for setting in grid]) for name in names}


def learning_rates(grid: Sequence[dict[str, float]]) -> Tensor | None:
    """The learning rate of each setting, ``[settings]``, or None where they do not have one."""
    return torch.tensor([setting[RATE] for setting in grid]) if RATE in grid[0] else None
