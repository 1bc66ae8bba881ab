"""One cell of the diagnostic suite: a loss, tuned and then judged, on one kind of data.

Tuning trains every setting of the loss's grid once per tuning seed; the setting with the best mean
return is trained again on fresh seeds, which is what counts. A loss with nothing to tune goes
straight to the fresh seeds. Settings and seeds are members of one population. A seed names the
initial policy (where training starts from scratch), the minibatches and the time steps, and, where
seeds have data of their own, the preference data and the start states of the final evaluation. All
losses share them.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchmpo.control.agents import ROLES
from torchmpo.control.components import EpisodeComponents
from torchmpo.control.grids import at_edge, nothing_to_tune
from torchmpo.control.policy import stack_policies
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.control.sample import Sample
from torchmpo.control.testbed import Testbed
from torchmpo.control.tuning import (
    Protocol,
    best_setting,
    learning_rates,
    stack_settings,
    suited,
    tune,
)
from torchmpo.diagnose.alignment_gap import judge_margin
from torchmpo.diagnose.behaviour import Visited, behaviour
from torchmpo.diagnose.checkpoints import chosen_epochs, measure
from torchmpo.diagnose.leaderboard import plain
from torchmpo.diagnose.rankings import rankings
from torchmpo.diagnose.win_rates import judged_returns
from torchmpo.losses.potentials import LOGIT_MAX_LOGP
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.seeding import derive_seed


def judge(
    testbed: Testbed,
    objective: Objective | MirrorObjective,
    setting: dict[str, float],
    seeds: Sequence[int],
    protocol: Protocol,
    datasets: Sequence[PreferenceDataset] | None = None,
    checkpoints: int = 0,
) -> dict[str, Any]:
    """Train one setting on the final seeds of these numbers.

    Args:
        datasets: one per seed; by default all have the data of ``testbed``, and the same start
            states.
        checkpoints: how many policies of each training have their return measured on the way.

    Returns:
        ``returns`` [seed][episode]; ``other_returns``, of a quarter of the episodes, with sampled
        actions where the former are of mean ones, or the reverse; ``curves``, of every epoch, and
        ``margins``, at the end, on a fixed sample of the pairs that were trained on; NaN where
        training diverged.
        ``why``, a dictionary per seed, see :func:`torchmpo.diagnose.behaviour.behaviour` and
        :func:`torchmpo.diagnose.rankings.rankings`.
        ``components``, per seed the mean parts of ``returns``, see
        :class:`torchmpo.control.components.EpisodeComponents`.
        ``labels`` and ``environment_steps``, per seed the pairs that were compared and the length
        of their trajectories.
        ``judged_returns``, where preferences go in a circle, see
        :func:`torchmpo.diagnose.win_rates.judged_returns`.
        ``checkpoints``, if asked for, a dictionary per seed, see
        :func:`torchmpo.diagnose.checkpoints.measure`; a quarter of the episodes.
        ``curves["clamped"]`` is the share of mean log-probabilities so near 0, or above, that a
        logit clamps them.
    """
    streams = [derive_seed(protocol.seed, "final", k) for k in seeds]
    all_data = datasets or [testbed.dataset]
    samples = [Sample.of(data) for data in all_data]
    curves: list[tuple[int, Tensor, Tensor]] = []
    inner = testbed.config.inner
    begin, each = inner.sft_epochs, inner.sft_epochs + inner.epochs
    end = each * testbed.config.rounds.count
    labels, steps = [0] * len(seeds), [0] * len(seeds)

    def spent(data: Sequence[PreferenceDataset]) -> None:
        for k, own in enumerate(data):
            labels[k] += len(own)
            steps[k] += own.simulated_steps

    # Epoch → member → parameters, from the start of the preference phase on.
    kept = {epoch: {} for epoch in [begin, *chosen_epochs(begin, end, checkpoints)]}

    def watch(epoch: int, members: list[int], params: dict[str, Tensor]) -> None:
        if datasets is None:
            values = samples[0].mean_logps(testbed.policy, params)
        else:
            own = ({n: v[k : k + 1] for n, v in params.items()} for k in range(len(members)))
            values = torch.cat(
                [samples[i].mean_logps(testbed.policy, one) for i, one in zip(members, own)]
            )
        curves.append((epoch, torch.tensor(members), values))
        if epoch in kept:
            for k, member in enumerate(members):
                kept[epoch][member] = {n: v[k].clone() for n, v in params.items()}

    settings = [setting] * len(seeds)
    params, rates = stack_settings(objective, settings), learning_rates(settings)
    policies = testbed.train(
        objective,
        params,
        len(seeds),
        streams,
        learning_rates=rates,
        on_epoch=watch,
        datasets=datasets,
        on_data=spent,
    )
    states = derive_seed(protocol.seed, "final episodes")
    if datasets is not None:
        states = [derive_seed(states, k) for k in seeds]
    visited, parts = Visited(len(seeds)), EpisodeComponents()
    watched: dict[str, Any] = {"on_step": visited.look, "on_reward": parts.add}
    returns = testbed.evaluate(policies, protocol.episodes, states, **watched)
    other = testbed.changed(sample=not testbed.config.sample)
    few = math.ceil(protocol.episodes / 4)
    other_returns = other.evaluate(policies, few, states)
    epochs = sorted({epoch for epoch, _, _ in curves})
    logps = torch.full((len(seeds), len(epochs), *curves[0][2].shape[1:]), math.nan)
    for epoch, members, values in curves:
        logps[members, epochs.index(epoch)] = values
    chosen, rejected = logps.unbind(2)
    margins = chosen - rejected
    accuracy = (margins > 0).float().where(margins.isfinite(), math.nan).mean(-1)
    clamped = (logps > LOGIT_MAX_LOGP).float().where(logps.isfinite(), math.nan).mean((2, 3))
    first = epochs.index(begin)
    why = behaviour(
        testbed.policy,
        testbed.initial(len(seeds), streams),
        policies,
        visited,
        all_data,
        logps[:, first],
        logps[:, -1],
    )
    more = rankings(
        testbed.policy,
        objective,
        params,
        setting,
        samples,
        [_judged(testbed, data, own) for data, own in zip(all_data, samples, strict=True)],
        {name: torch.stack([kept[begin][k][name] for k in range(len(seeds))]) for name in policies},
        policies,
        logps[:, first:],
    )
    why = [own and own | other for own, other in zip(why, more, strict=True)]
    path: dict[str, Any] = {}
    if checkpoints:
        path["checkpoints"] = measure(testbed, kept, few, states, all_data)
    order = [judged_returns(testbed.config.data, data) for data in all_data]
    if order[0] is not None:
        path["judged_returns"] = order * (len(seeds) if datasets is None else 1)
    return path | {
        "why": why,
        "returns": returns.tolist(),
        "components": parts.means(returns),
        "other_returns": other_returns.tolist(),
        "curves": {
            "epoch": epochs,
            "chosen": chosen.mean(-1).tolist(),
            "rejected": rejected.mean(-1).tolist(),
            "accuracy": accuracy.tolist(),
            "clamped": clamped.tolist(),
        },
        "margins": margins[:, -1].tolist(),
        "labels": labels,
        "environment_steps": steps,
    }


def _judged(testbed: Testbed, data: PreferenceDataset, sample: Sample) -> Tensor | None:
    margin = judge_margin(testbed.config.data, data)
    return None if margin is None else margin[sample.pairs]


def anchors(testbed: Testbed, episodes: int, protocol: Protocol) -> dict[str, Any]:
    """Returns of the two agents that made the data, in start states that the final evaluation has
    too where all seeds share one data set.

    Where training starts from the original agent but is not judged by its mean actions alone, also
    ``start``: those of the policy that training starts from, judged as what comes out of it is.
    Where the environment tells the terms of its rewards, also ``components``: by agent, the mean
    parts of its returns.
    """
    states = derive_seed(protocol.seed, "final episodes")
    found: dict[str, Any] = {}
    components = {}
    for role in ROLES:
        parts = EpisodeComponents()
        returns = testbed.agent_returns(role, episodes, states, on_reward=parts.add)
        found[role], components[role] = returns.tolist(), parts.means(returns[None])[0]
    config = testbed.config
    if config.start == "original" and (config.sample or config.policy != "gaussian"):
        # After the agents, so that their returns stay the same.
        start = stack_policies(testbed.policy.trainable(), 1)
        found["start"] = testbed.evaluate(start, episodes, states)[0].tolist()
    return found | ({"components": components} if all(components.values()) else {})


def run_cell(
    testbed: Testbed,
    objective: Objective | MirrorObjective,
    grid: Sequence[dict[str, float]],
    seeds: int,
    protocol: Protocol,
    done: dict | None = None,
    datasets: Sequence[PreferenceDataset] | None = None,
    checkpoints: int = 0,
) -> dict[str, Any]:
    """Tune one loss on the data of ``testbed``, and judge it.

    Args:
        seeds: final seeds in all.
        datasets: one per final seed; by default all have the data of ``testbed``.
        done: this cell as it was finished before; what it holds is not done again.
        checkpoints: see :func:`judge`.

    Returns:
        the cell, ready for JSON: ``loss``, ``task``, ``data``, ``grid``, ``tuning`` (empty where
        there is one setting: nothing to choose from, and nothing trained), ``best`` (−1: every
        setting diverged in tuning), ``edge`` (numbers of the best one at the end of their range),
        ``returns``, ``components``, ``other_returns``, ``curves``, ``margins``, ``why``,
        ``labels``, ``environment_steps``, and
        ``checkpoints`` if they were asked for; ``None`` for what is not finite or not known, and
        instead of the list of a seed that diverged.
    """
    testbed = suited(testbed, objective, protocol.sft_epochs)
    cell: dict[str, Any] = dict(done or {})
    if not done:
        config = testbed.config
        cell = {"loss": objective.name, "task": config.pool.task, "data": config.data}
        if nothing_to_tune(grid):
            cell |= {"grid": [grid[0]], "tuning": [], "best": 0}
        else:
            tuning = tune(testbed, objective, grid, protocol)
            best = best_setting(tuning)
            cell |= {"grid": list(grid), "tuning": tuning, "best": best}
            cell["edge"] = at_edge(objective, grid, best)
        cell |= {"returns": [], "other_returns": [], "curves": {}, "margins": [], "why": []}
        cell["components"] = []
    missing = range(len(cell["returns"]), seeds)
    if missing and cell["best"] >= 0:
        own = None if datasets is None else [datasets[k] for k in missing]
        best = cell["grid"][cell["best"]]
        new = judge(testbed, objective, best, missing, protocol, own, checkpoints)
        unknown = [None] * len(cell["returns"])  # of a curve that older cells do not have
        cell["curves"] = {
            key: value if key == "epoch" else cell["curves"].get(key, unknown) + value
            for key, value in new["curves"].items()
        }
        kinds = ["why", "components", "other_returns", "labels", "environment_steps"]
        kinds += ["checkpoints"] if checkpoints else []
        kinds += ["judged_returns"] if "judged_returns" in new else []
        for name in kinds:
            cell[name] = cell.get(name, unknown) + new[name]
        cell["returns"] = cell["returns"] + new["returns"]
        cell["margins"] = cell["margins"] + new["margins"]
    cell = plain(cell)
    for name in ("returns", "other_returns", "margins"):
        if name in cell:  # older cells lack the second
            cell[name] = [None if not row or None in row else row for row in cell[name]]
    return cell
