"""Does what a search found beat other losses? Rivals are tuned, then everyone is trained anew.

Rivals are tuned on the data of the search. The comparison is on fresh data: other start states,
other trajectories, other flipped labels. A seed is an independent repetition with its own
preference data, its own minibatches and its own start states, which all contestants share, so
differences are paired, and an interval over seeds has all of this in it.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from torchmpo.control.grids import RATE, grid, nothing_to_tune
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.control.testbed import Testbed
from torchmpo.control.tuning import (
    Protocol,
    best_setting,
    race,
    stack_settings,
    suited,
    tuning_scores,
)
from torchmpo.evolve.fitness import combined
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.seeding import derive_seed


class Contestant(NamedTuple):
    """An objective, what its ``apply`` takes, every tensor with a leading 1, and its learning rate.

    ``None``: the one of the testbeds.
    """

    objective: Objective | MirrorObjective
    params: Any
    learning_rate: float | None = None


class Tuned(NamedTuple):
    """A rival's best setting, its mean score on the data of the search, and how many were tried.

    A rival with nothing to tune has no score and 0 trials.
    """

    setting: dict[str, float]
    score: float | None
    trials: int


def tune_rival(
    testbeds: Sequence[Testbed],
    objective: Objective | MirrorObjective,
    budget: int,
    protocol: Protocol,
    combine: str,
    *,
    rate: bool = False,
) -> Tuned | None:
    """Try ``budget`` settings of a rival on the data of the search.

    Args:
        testbeds: one per kind of data.
        rate: tune its learning rate, too.
        combine: how the scores on several kinds become one, see
            :func:`torchmpo.evolve.fitness.combined`.

    Returns:
        None if every setting diverged somewhere.
    """
    settings = grid(objective, budget, rate=rate)
    return tune_over(testbeds, objective, settings, protocol, combine)


def tune_over(
    testbeds: Sequence[Testbed],
    objective: Objective | MirrorObjective,
    settings: Sequence[dict[str, float]],
    protocol: Protocol,
    combine: str,
) -> Tuned | None:
    """The best of given settings; see :func:`tune_rival`."""
    if nothing_to_tune(settings):
        return Tuned(settings[0], None, 0)
    beds = [suited(bed, objective, protocol.sft_epochs) for bed in testbeds]

    def on_all(alive: Sequence[int], k: int) -> list[float]:
        own = [settings[i] for i in alive]
        kinds = [tuning_scores(bed, objective, own, protocol, k) for bed in beds]
        return combined(torch.stack(kinds), combine).tolist()

    scores = race(on_all, len(settings), protocol)
    best = best_setting(scores)
    return None if best < 0 else Tuned(settings[best], mean(scores[best]), len(settings))


def contestant(objective: Objective, setting: dict[str, float]) -> Contestant:
    """A rival with one of its settings."""
    return Contestant(objective, stack_settings(objective, [setting]), setting.get(RATE))


def seed_returns(
    testbeds: Sequence[Testbed],
    contestants: Mapping[str, Contestant],
    seeds: int,
    episodes: int,
    protocol: Protocol,
    stream: str,
    *,
    data: Sequence[Sequence[PreferenceDataset]] | None = None,
) -> dict[str, Tensor]:
    """Train each contestant on each kind of data, ``seeds`` times, and judge it.

    Args:
        testbeds: one per kind of data.
        stream: names the random numbers, with the protocol's seed.
        data: other data than that of the testbeds, ``[kind][seed]``.

    Returns:
        by name, mean return ``[kinds, seeds]``; NaN where training diverged.
    """
    streams = [derive_seed(protocol.seed, f"{stream} training", i) for i in range(seeds)]
    starts = [derive_seed(protocol.seed, f"{stream} episodes", i) for i in range(seeds)]
    kinds = []
    for kind, testbed in enumerate(testbeds):
        own_data = None if data is None else data[kind]
        returns = []
        for objective, params, rate in contestants.values():
            own = tree_map(lambda value: value.expand(seeds, *value.shape[1:]), params)
            own_testbed = suited(testbed, objective, protocol.sft_epochs)
            rates = None if rate is None else torch.full((seeds,), rate)
            trained = own_testbed.train(
                objective, own, seeds, streams, learning_rates=rates, datasets=own_data
            )
            returns.append(testbed.evaluate(trained, episodes, starts).mean(1))
        kinds.append(torch.stack(returns))  # [contestants, seeds]
    return dict(zip(contestants, torch.stack(kinds, dim=1), strict=True))
