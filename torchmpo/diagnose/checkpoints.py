"""The true return along a training, against how far the policy has gone from its start.

Under ``proxy:B`` also what the judge of the data would give it, whom effort impresses.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchmpo.control.components import EpisodeComponents, effort
from torchmpo.control.kinds import parse_kind
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.control.testbed import Testbed, TestbedConfig
from torchmpo.diagnose.behaviour import Visited, with_params
from torchmpo_envs import TASKS

Params = dict[str, Tensor]
Parts = Mapping[str, float] | None


def chosen_epochs(first: int, last: int, count: int) -> list[int]:
    """Epochs at which to look, evenly spread from the first to the last one.

    Args:
        count: 0 for none; else at least two, those of the ends.

    >>> chosen_epochs(10, 12, 5), chosen_epochs(0, 12, 3), chosen_epochs(0, 12, 0)
    ([10, 11, 12], [0, 6, 12], [])
    """
    if count == 0:
        return []
    steps = max(1, min(count - 1, last - first))
    return [first + round(k * (last - first) / steps) for k in range(steps + 1)]


def proxy_judge(
    config: TestbedConfig, data: PreferenceDataset
) -> Callable[[float, Parts], float] | None:
    """The score of a ``proxy:B`` judge, in units of return; None for any other judge.

    R̂ = R + B·sd(R)·z(effort), with the standard deviations and the mean of the trajectories in the
    pairs of ``data``, each once; of ``pairs:N``, those that are left. So it is linear, and the
    score of means is the mean score.

    Returns:
        (return, its parts as in :func:`torchmpo.control.components.return_components`) → score.
    """
    bias = dict(parse_kind(config.data).modifiers).get("proxy")
    if bias is None or config.pool.task not in TASKS:
        return None
    used = torch.unique(data.ranked)
    known = data.returns[used].double(), effort({"action": data.action[used]})
    spreads = [values.std(correction=0).item() for values in known]
    unit = bias * spreads[0] / spreads[1] if spreads[1] else 0.0
    usual, cost = known[1].mean().item(), TASKS[config.pool.task](1, max_steps=1).control_cost

    def score(value: float, parts: Parts) -> float:
        return value + unit * (-parts["control"] / cost - usual) if parts else math.nan

    return score


def measure(
    testbed: Testbed,
    kept: Mapping[int, Mapping[int, Params]],
    episodes: int,
    states: int | Sequence[int],
    datasets: Sequence[PreferenceDataset] = (),
) -> list[dict[str, list[float]] | None]:
    """Of each member what its policies return; ``None`` of one that diverged.

    Args:
        kept: epoch → member → parameters ``{name: [...]}``, the start of the preference phase
            first.
        episodes, states: see :meth:`torchmpo.control.testbed.Testbed.evaluate`.
        datasets: what the members were trained on, one for each or one for all.

    Returns:
        ``epoch``; ``return``, a mean over episodes; ``kl``, the mean KL(π ‖ start) at the states
        that π visits, nats per step; where the data has a :func:`proxy_judge`, ``judged``, its mean
        score.
    """
    judges = [proxy_judge(testbed.config, data) for data in datasets]
    members = len(next(iter(kept.values())))
    found: list[dict[str, list[float]] | None] = [
        {"epoch": [], "return": [], "kl": []} for _ in range(members)
    ]
    starts = kept[min(kept)]
    for epoch, of_member in sorted(kept.items()):
        names = of_member[0]
        params = {n: torch.stack([of_member[k][n] for k in range(members)]) for n in names}
        visited, terms = Visited(members), EpisodeComponents()
        how: dict[str, Any] = {"on_step": visited.look}
        if any(judges):
            how["on_reward"] = terms.add
        each = testbed.evaluate(params, episodes, states, **how)
        returns, parts = each.mean(1), terms.means(each)
        for k, path in enumerate(found):
            own = with_params(testbed.policy, of_member[k])
            start = with_params(testbed.policy, starts[k])
            if path is None or own is None or start is None:
                found[k] = None
                continue
            with torch.no_grad():
                kl = float(own.kl_to(start, visited.of(k)).mean())
            if not math.isfinite(kl + float(returns[k])):
                found[k] = None
                continue
            values = {"epoch": epoch, "return": float(returns[k]), "kl": kl}
            if judge := judges[k % len(judges)] if judges else None:
                values["judged"] = judge(values["return"], parts[k])
            for name, value in values.items():
                path.setdefault(name, []).append(value)
    return found
