"""Contestants of a diagnosis that are no losses: ``rlhf``, PPO on a reward model of the same pairs.

A cell of a baseline is like one of a loss, see :mod:`torchmpo.diagnose.suite`, with ``baseline``
besides: by seed, what it took and how good its reward model is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchmpo.control.components import EpisodeComponents
from torchmpo.control.policy import stack_policies
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.control.reward_models import RewardConfig, train_reward_model
from torchmpo.control.rlhf import GRID, Optimised, PPOConfig, check_rlhf, optimise
from torchmpo.control.sample import Sample
from torchmpo.control.testbed import Testbed, TestbedConfig
from torchmpo.control.tuning import Protocol, best_setting
from torchmpo.diagnose.behaviour import Visited, behaviour
from torchmpo.diagnose.checkpoints import measure
from torchmpo.diagnose.leaderboard import plain
from torchmpo.diagnose.win_rates import judged_returns
from torchmpo.runs.errors import UserError, nearest
from torchmpo.runs.seeding import derive_seed

BASELINES = {"rlhf": GRID}


def check_baseline(name: str, config: TestbedConfig) -> None:
    """Refuse what is no baseline, or cannot be trained here.

    Raises:
        UserError: which and why.
    """
    if name not in BASELINES:
        raise UserError(f"unknown baseline {name!r}: {nearest(name, BASELINES)}")
    check_rlhf(config)


def run_baseline(
    testbed: Testbed,
    seeds: int,
    protocol: Protocol,
    ppo: PPOConfig,
    done: Mapping[str, Any] | None = None,
    datasets: Sequence[PreferenceDataset] | None = None,
    reward: RewardConfig | None = None,
) -> dict[str, Any]:
    """Tune RLHF on the data of ``testbed``, once for each setting of its grid, and judge it.

    Args:
        seeds: final seeds in all.
        ppo, reward: the settings of PPO and of the reward model.
        done: this cell as it was finished before; what it holds is not done again.
        datasets: one per final seed; by default all have the data of ``testbed``.

    Returns:
        as :func:`torchmpo.diagnose.suite.run_cell`, with ``checkpoints`` always: the true return on
        the way, against KL to the start, under ``proxy:B`` the judge's score, and ``learned``, the
        mean learned reward per step.
        ``baseline``, per seed ``held_out_accuracy`` of the reward model, ``environment_steps`` of
        PPO and of the tuning's, which all seeds share, and ``labels``.
    """
    reward = reward or RewardConfig()
    cell: dict[str, Any] = dict(done or {})
    if not done:
        config = testbed.config
        cell = {"loss": "rlhf", "task": config.pool.task, "data": config.data, "grid": GRID}
        seed = derive_seed(protocol.seed, "tuning", 0)
        model = train_reward_model(testbed.dataset, testbed.policy, reward, seed)
        states = derive_seed(protocol.seed, "tuning episodes", 0)
        ends = [_end(optimise(testbed, model, setting, ppo, seed)) for setting in GRID]
        returns = testbed.evaluate(_stack(ends), protocol.tuning_episodes, states).mean(1)
        cell["tuning"] = [[score] for score in returns.tolist()]
        cell["best"] = best_setting(cell["tuning"])
        names = "returns", "other_returns", "margins", "why", "components", "checkpoints"
        cell |= {name: [] for name in (*names, "baseline")} | {"curves": {}}
    missing = range(len(cell["returns"]), seeds)
    if missing and cell["best"] >= 0:
        own = [testbed.dataset if datasets is None else datasets[k] for k in missing]
        best = cell["grid"][cell["best"]]
        new = _judge(testbed, best, missing, protocol, ppo, reward, own, datasets is not None)
        for name, values in new.items():
            cell[name] = cell.get(name, []) + values
    cell = plain(cell)
    for name in ("returns", "other_returns", "margins"):
        cell[name] = [None if not row or None in row else row for row in cell[name]]
    return cell


def _judge(
    testbed: Testbed,
    setting: dict[str, float],
    seeds: Sequence[int],
    protocol: Protocol,
    ppo: PPOConfig,
    reward: RewardConfig,
    datasets: Sequence[PreferenceDataset],
    own_states: bool,
) -> dict[str, list]:
    """What a cell holds of final seeds."""
    runs, about = [], []
    for k, data in zip(seeds, datasets, strict=True):
        seed = derive_seed(protocol.seed, "final", k)
        model = train_reward_model(data, testbed.policy, reward, seed)
        runs.append(optimise(testbed, model, setting, ppo, seed))
        about.append(
            {
                "held_out_accuracy": model.accuracy,
                "environment_steps": runs[-1].steps[-1],
                "tuning_environment_steps": len(GRID) * runs[-1].steps[-1],
                "labels": len(data),
            }
        )
    count = len(seeds)
    policies = _stack([_end(run) for run in runs])
    starts = stack_policies(testbed.policy.trainable(), count)
    states: Any = derive_seed(protocol.seed, "final episodes")
    if own_states:
        states = [derive_seed(states, k) for k in seeds]
    visited, parts = Visited(count), EpisodeComponents()
    watched: dict[str, Any] = {"on_step": visited.look, "on_reward": parts.add}
    returns = testbed.evaluate(policies, protocol.episodes, states, **watched)
    few = math.ceil(protocol.episodes / 4)
    other = testbed.changed(sample=not testbed.config.sample).evaluate(policies, few, states)
    samples = [Sample.of(data) for data in datasets]

    def logps(params: dict[str, Tensor]) -> Tensor:
        each = ({name: p[k : k + 1] for name, p in params.items()} for k in range(count))
        found = [s.mean_logps(testbed.policy, one) for s, one in zip(samples, each, strict=True)]
        return torch.cat(found)

    end = logps(policies)
    kept = {
        place: {k: {n: p[i] for n, p in run.policies.items()} for k, run in enumerate(runs)}
        for i, place in enumerate(runs[0].steps)
    }
    paths = measure(testbed, kept, few, states, datasets)
    order = [judged_returns(testbed.config.data, data) for data in datasets]
    return ({} if order[0] is None else {"judged_returns": order}) | {
        "returns": returns.tolist(),
        "other_returns": other.tolist(),
        "components": parts.means(returns),
        "margins": (end[:, 0] - end[:, 1]).tolist(),
        "why": behaviour(testbed.policy, starts, policies, visited, datasets, logps(starts), end),
        "checkpoints": [
            path and path | {"learned": run.rewards} for path, run in zip(paths, runs, strict=True)
        ],
        "baseline": about,
        "labels": [len(data) for data in datasets],
        # Those of the trajectories that are compared, as of a loss, and those of the optimiser.
        "environment_steps": [
            data.simulated_steps + run.steps[-1] for data, run in zip(datasets, runs, strict=True)
        ],
    }


def _end(run: Optimised) -> dict[str, Tensor]:
    return {name: values[-1] for name, values in run.policies.items()}


def _stack(policies: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([own[name] for own in policies]) for name in policies[0]}
