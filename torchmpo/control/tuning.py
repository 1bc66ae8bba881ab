"""Which setting of a loss is best on the data of a testbed."""

import math
from collections.abc import Sequence
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
        tuning_seeds: trainings per setting of the grid (≥ 1).
        tuning_episodes: per training.
        episodes: per training of the final seeds.
        sft_epochs: of the epochs, how many come first as SFT for a loss that needs a reference.
        seed: everything random follows from it.
    """

    tuning_seeds: int = 1
    tuning_episodes: int = 16
    episodes: int = 16
    sft_epochs: int = 10
    seed: int = 0


def suited(testbed: Testbed, objective: Objective | MirrorObjective, sft_epochs: int) -> Testbed:
    """The testbed of one loss: those with a reference spend their first epochs on SFT.

    Args:
        sft_epochs: how many of the epochs; at least one is left for the loss.
    """
    if not objective.needs_reference:
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
    """Mean return of every setting: ``[grid point][tuning seed]``, NaN where training diverged."""
    params, rates = stack_settings(objective, grid), learning_rates(grid)
    columns = []
    for k in range(protocol.tuning_seeds):
        training = derive_seed(protocol.seed, "tuning", k)
        policies = testbed.train(objective, params, len(grid), training, learning_rates=rates)
        states = derive_seed(protocol.seed, "tuning episodes", k)
        columns.append(testbed.evaluate(policies, protocol.tuning_episodes, states).mean(1))
    return torch.stack(columns, 1).tolist()


def best_setting(tuning: Sequence[Sequence[float]]) -> int:
    """Index of the setting with the highest mean over its seeds; −1 if each diverged somewhere."""
    means = [math.fsum(row) / len(row) for row in tuning]
    finite = [i for i, mean in enumerate(means) if math.isfinite(mean)]
    return max(finite, key=means.__getitem__, default=-1)


def stack_settings(objective: Objective | MirrorObjective, grid: Sequence[dict[str, float]]) -> Any:
    """What ``objective.apply`` takes, for a population with these settings."""
    if isinstance(objective, MirrorObjective):
        return objective.vector.detach().expand(len(grid), -1)
    names = [name for name in grid[0] if name != RATE]
    return {name: torch.tensor([setting[name] for setting in grid]) for name in names}


def learning_rates(grid: Sequence[dict[str, float]]) -> Tensor | None:
    """The learning rate of each setting, ``[settings]``, or None where they do not have one."""
    return torch.tensor([setting[RATE] for setting in grid]) if RATE in grid[0] else None
