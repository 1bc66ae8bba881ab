"""One cell of the diagnostic suite: a loss, tuned and then judged, on one kind of data.

Tuning trains every setting of the loss's grid once per tuning seed; the setting with the best mean
return is trained again on fresh seeds, which is what counts. A loss with nothing to tune goes
straight to the fresh seeds. Settings and seeds are members of one population. A seed names the
initial policy (where training starts from scratch), the minibatches and the time steps; the start
states of the final evaluation are the same for all seeds and losses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from torchmpo.grids import nothing_to_tune
from torchmpo.logps import gaussian_step_logps
from torchmpo.objective import MirrorObjective, Objective, PairLogps
from torchmpo.policy import GaussianPolicy, load_policy, stack_policies
from torchmpo.potentials import LOGIT_MAX_LOGP
from torchmpo.preferences import PreferenceDataset
from torchmpo.seeding import derive_seed
from torchmpo.statistics import plain
from torchmpo.trial import Trial

SAMPLE_PAIRS, SAMPLE_STEPS = 128, 64  # what curves and margins are measured on


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


def cell_trial(trial: Trial, objective: Objective | MirrorObjective, protocol: Protocol) -> Trial:
    """The trial of one loss: those with a reference spend their first epochs on SFT."""
    if not objective.needs_reference:
        return trial
    total = trial.inner.epochs
    sft = min(protocol.sft_epochs, total - 1)
    return trial.changed(inner=replace(trial.inner, epochs=total - sft, sft_epochs=sft))


def rehearse(
    objective: Objective | MirrorObjective, grid: Sequence[dict[str, float]], trial: Trial
) -> None:
    """Call the loss as training will, on made-up log-probabilities: many would fail only there.

    Raises:
        ValueError: it does not return one value per pair for the pairs of an update, or what it
            returns has no gradient.
        Exception: whatever the loss raises, under ``vmap`` or for these shapes.
    """
    pairs = trial.inner.minibatch_pairs
    steps = trial.inner.steps_per_trajectory or trial.pool.max_steps
    fields = {}
    for name in objective.inputs:
        by_step = name.endswith(("_step_logps", "_mask"))
        value = torch.ones((pairs, steps) if by_step else pairs)
        if name.endswith("_mask"):
            value = value.bool()
        elif name.endswith("_lengths"):
            value = value.long() * steps
        elif name.endswith("logps"):
            value = -value
        fields[name] = torch.tensor(0.5) if name == "progress" else value
    members = {
        name: value.expand(len(grid), *value.shape).clone().requires_grad_()
        for name, value in fields.items()
        if name.endswith("logps")
    }

    def of_member(params: Any, logps: dict[str, Tensor]) -> Tensor:
        loss = objective.apply(params, PairLogps(**{**fields, **logps}))
        if loss.shape != (pairs,):
            raise ValueError(
                f"{objective.name} must return one value per pair, [{pairs}] in training; "
                f"got {tuple(loss.shape)}"
            )
        if not loss.is_floating_point():
            raise ValueError(f"{objective.name} must return floating-point numbers; {loss.dtype}")
        return loss

    # Without hyper-parameters the tree is empty, and vmap has the log-probabilities to go by.
    if not vmap(of_member)(_stack(objective, grid), members).requires_grad:
        raise ValueError(
            f"{objective.name} has no gradient: its value does not depend on log-probabilities, or "
            "was cut off from them by detach() or no_grad()"
        )


def tune(
    trial: Trial,
    objective: Objective | MirrorObjective,
    grid: Sequence[dict[str, float]],
    protocol: Protocol,
) -> list[list[float]]:
    """Mean return of every setting: ``[grid point][tuning seed]``, NaN where training diverged."""
    params = _stack(objective, grid)
    columns = []
    for k in range(protocol.tuning_seeds):
        training = derive_seed(protocol.seed, "tuning", k)
        policies = trial.train(objective, params, len(grid), training)
        states = derive_seed(protocol.seed, "tuning episodes", k)
        columns.append(trial.evaluate(policies, protocol.tuning_episodes, states).mean(1))
    return torch.stack(columns, 1).tolist()


def best_setting(tuning: Sequence[Sequence[float]]) -> int:
    """Index of the setting with the highest mean over its seeds; −1 if each diverged somewhere."""
    means = [math.fsum(row) / len(row) for row in tuning]
    finite = [i for i, mean in enumerate(means) if math.isfinite(mean)]
    return max(finite, key=means.__getitem__, default=-1)


def judge(
    trial: Trial,
    objective: Objective | MirrorObjective,
    setting: dict[str, float],
    seeds: Sequence[int],
    protocol: Protocol,
) -> dict[str, Any]:
    """Train one setting on the final seeds of these numbers.

    Returns:
        ``returns`` [seed][episode]; ``curves``, of every epoch, and ``margins``, at the end, on a
        fixed sample of the pairs; NaN where training diverged. ``curves["clamped"]`` is the share
        of mean log-probabilities so near 0, or above, that a logit clamps them.
    """
    streams = [derive_seed(protocol.seed, "final", k) for k in seeds]
    sample = Sample.of(trial.dataset)
    curves: list[tuple[int, Tensor, Tensor]] = []

    def watch(epoch: int, members: list[int], params: dict[str, Tensor]) -> None:
        curves.append((epoch, torch.tensor(members), sample.mean_logps(trial.policy, params)))

    params = _stack(objective, [setting] * len(seeds))
    policies = trial.train(objective, params, len(seeds), streams, on_epoch=watch)
    states = derive_seed(protocol.seed, "final episodes")
    returns = trial.evaluate(policies, protocol.episodes, states)
    epochs = sorted({epoch for epoch, _, _ in curves})
    logps = torch.full((len(seeds), len(epochs), *curves[0][2].shape[1:]), math.nan)
    for epoch, members, values in curves:
        logps[members, epochs.index(epoch)] = values
    chosen, rejected = logps.unbind(2)
    margins = chosen - rejected
    accuracy = (margins > 0).float().where(margins.isfinite(), math.nan).mean(-1)
    clamped = (logps > LOGIT_MAX_LOGP).float().where(logps.isfinite(), math.nan).mean((2, 3))
    return {
        "returns": returns.tolist(),
        "curves": {
            "epoch": epochs,
            "chosen": chosen.mean(-1).tolist(),
            "rejected": rejected.mean(-1).tolist(),
            "accuracy": accuracy.tolist(),
            "clamped": clamped.tolist(),
        },
        "margins": margins[:, -1].tolist(),
    }


def anchors(trial: Trial, episodes: int, protocol: Protocol) -> dict[str, list[float]]:
    """Returns of the two agents that made the data, in the start states of the final evaluation."""
    from torchmpo_envs import expert_path

    states = derive_seed(protocol.seed, "final episodes")
    found = {}
    for role, name in (("original", trial.pool.original), ("target", trial.pool.target)):
        agent = load_policy(expert_path(name))
        params = stack_policies(agent.trainable(), 1)
        found[role] = trial.evaluate(params, episodes, states, policy=agent)[0].tolist()
    return found


def run_cell(
    trial: Trial,
    objective: Objective | MirrorObjective,
    grid: Sequence[dict[str, float]],
    seeds: int,
    protocol: Protocol,
    done: dict | None = None,
) -> dict[str, Any]:
    """Tune and judge one loss on the data of ``trial``.

    Args:
        seeds: final seeds in all.
        done: this cell as it was finished before; what it holds is not done again.

    Returns:
        the cell, ready for JSON: ``loss``, ``task``, ``data``, ``grid``, ``tuning`` (empty where
        there is one setting: nothing to choose from, and nothing trained), ``best`` (−1: every
        setting diverged in tuning), ``returns``, ``curves``, ``margins``; ``None`` for what is not
        finite, and instead of the list of a seed that diverged.
    """
    trial = cell_trial(trial, objective, protocol)
    cell: dict[str, Any] = dict(done or {})
    if not done:
        cell = {"loss": objective.name, "task": trial.pool.task, "data": trial.data}
        if nothing_to_tune(grid):
            cell |= {"grid": [grid[0]], "tuning": [], "best": 0}
        else:
            tuning = tune(trial, objective, grid, protocol)
            cell |= {"grid": list(grid), "tuning": tuning, "best": best_setting(tuning)}
        cell |= {"returns": [], "curves": {}, "margins": []}
    missing = range(len(cell["returns"]), seeds)
    if missing and cell["best"] >= 0:
        new = judge(trial, objective, cell["grid"][cell["best"]], missing, protocol)
        unknown = [None] * len(cell["returns"])  # of a curve that older cells do not have
        cell["curves"] = {
            key: value if key == "epoch" else cell["curves"].get(key, unknown) + value
            for key, value in new["curves"].items()
        }
        cell["returns"] = cell["returns"] + new["returns"]
        cell["margins"] = cell["margins"] + new["margins"]
    cell = plain(cell)
    cell["returns"] = [None if not row or None in row else row for row in cell["returns"]]
    cell["margins"] = [None if not row or None in row else row for row in cell["margins"]]
    return cell


@dataclass(frozen=True)
class Sample:
    """A fixed part of the training data on which likelihoods are watched.

    Args:
        observation: ``[pairs, 2, time, observation_size]``, of chosen and rejected trajectories.
        action: ``[pairs, 2, time, action_size]``.
    """

    observation: Tensor
    action: Tensor

    @staticmethod
    def of(data: PreferenceDataset) -> "Sample":
        """Evenly spread pairs and, of each trajectory, evenly spread time steps."""
        pairs = torch.linspace(0, len(data) - 1, min(SAMPLE_PAIRS, len(data))).long().unique()
        rows = torch.stack([data.chosen[pairs], data.rejected[pairs]], 1)  # [pairs, 2]
        fraction = (torch.arange(SAMPLE_STEPS) + 0.5) / SAMPLE_STEPS
        time = (fraction * data.lengths[rows][..., None]).long()
        at = rows[..., None], time
        return Sample(data.observation[at], data.action[at])

    @torch.no_grad()
    def mean_logps(self, policy: GaussianPolicy, params: dict[str, Tensor]) -> Tensor:
        """Log-probability per step of each trajectory: ``[members, 2, pairs]``, nats."""

        def of_member(params: dict[str, Tensor]) -> Tensor:
            mean = functional_call(policy, params, (self.observation,))
            log_std = params.get("log_std", policy.log_std)
            return gaussian_step_logps(self.action, mean, log_std).mean(-1)

        return vmap(of_member, chunk_size=4)(params).transpose(1, 2)


def _stack(objective: Objective | MirrorObjective, grid: Sequence[dict[str, float]]) -> Any:
    """What ``objective.apply`` takes, for a population with these settings."""
    if isinstance(objective, MirrorObjective):
        return objective.vector.detach().expand(len(grid), -1)
    return {name: torch.tensor([setting[name] for setting in grid]) for name in grid[0]}
