"""What preference data turned out to be: returns of both agents, kinds of pairs, flipped labels.

A kind of data is a wish ("flip with probability 0.3"); here is what was drawn. Everything follows
from the pool and the pairs, so that it is computed once and kept.
"""

from typing import Any

import torch
from torch import Tensor

from torchmpo.control.pools import PoolConfig, made_by_target
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.control.rollouts import FileRows, LineRollouts

BINS = 40  # of histograms of returns; those of margins have as many on either side of 0
AGENTS = ("original", "target")
PAIR_KINDS = ("target–target", "target–original", "original–original")
QUANTILES = {"lowest": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "highest": 1.0}


def histogram_edges(data: PreferenceDataset) -> dict[str, list[float]]:
    """Edges of the histograms, the same for all kinds of data over one pool.

    Returns:
        ``return``, which spans all trajectories, and ``margin``, which spans all pairs there could
        be; 0 is one of its edges.
    """
    low, high = data.returns.min().item(), data.returns.max().item()
    span = (high - low) or 1.0
    steps = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    margin = torch.cat([-steps.flip(0), steps[1:]])
    return {"return": (low + span * steps).tolist(), "margin": (span * margin).tolist()}


def data_statistics(config: PoolConfig, data: PreferenceDataset) -> dict[str, Any]:
    """What one kind of data consists of.

    Args:
        config: of the pool; its ``rollouts`` say who made the trajectories.
        data: pairs of that pool.

    Returns:
        python numbers, ready for JSON:
        ``pairs``; ``pair_kinds``, the share of each in `PAIR_KINDS`; ``target_chosen``, the share
        of pairs whose chosen trajectory the target agent made; ``flipped``, the share whose chosen
        trajectory has the lower true return (equal returns are no mistake); ``chosen_return``, the
        mean return of the chosen side, with the noise of the data's agents; ``margin``, the chosen
        return minus the rejected one, and ``margin_counts`` by `histogram_edges`; ``agents``: for
        each of `AGENTS`, of the trajectories in the pairs, each counted once, ``trajectories``,
        ``return`` with ``return_counts``, ``length`` in steps, and ``terminated``, the share that
        ended before the time limit. ``margin``, ``return`` and ``length`` are a mean, a standard
        deviation and the `QUANTILES`, ``None`` where there is nothing to take them of. Where votes
        were cast, ``agreement`` is the mean share of those for the chosen trajectory. Of other
        trajectories than the two agents', ``agents`` has one entry, ``pair_kinds`` is empty,
        ``target_chosen`` is ``None``, and ``edges`` are those of this kind's histograms.
    """
    edges = {name: torch.tensor(e).double() for name, e in histogram_edges(data).items()}
    margin = (data.returns[data.chosen] - data.returns[data.rejected]).double()
    used = torch.zeros(len(data.returns), dtype=torch.bool)
    used[data.chosen] = used[data.rejected] = True
    found: dict[str, Any] = {"pairs": len(data)}
    if config.rollouts is None:
        target = made_by_target(config)
        of_pair = target[data.chosen].int() + target[data.rejected].int()
        kinds = {kind: _share(of_pair == 2 - i) for i, kind in enumerate(PAIR_KINDS)}
        found |= {"pair_kinds": kinds, "target_chosen": _share(target[data.chosen])}
        makers = dict(zip(AGENTS, (~target, target), strict=True))
    else:
        found |= {"pair_kinds": {}, "target_chosen": None, "edges": histogram_edges(data)}
        makers = {_maker(config.rollouts): torch.ones_like(used)}
    agents = {}
    for agent, of_agent in makers.items():
        rows = of_agent & used
        returns, lengths = data.returns[rows].double(), data.lengths[rows].double()
        agents[agent] = {
            "trajectories": len(returns),
            "return": _summary(returns),
            "return_counts": _counts(returns, edges["return"]),
            "length": _summary(lengths),
            "terminated": _share(lengths < config.max_steps),
        }
    if data.preference_probs is not None:
        found["agreement"] = data.preference_probs.double().mean().item()
    return found | {
        "flipped": _share(margin < 0),
        "chosen_return": data.returns[data.chosen].double().mean().item(),
        "margin": _summary(margin),
        "margin_counts": _counts(margin, edges["margin"]),
        "agents": agents,
    }


def _maker(rollouts: LineRollouts | FileRows) -> str:
    if isinstance(rollouts, FileRows):
        return "of the file"
    if rollouts.low == rollouts.high == 1:
        return "target, at more noise"
    return f"{rollouts.low:g} to {rollouts.high:g} of the way"


def _summary(values: Tensor) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(["mean", "sd", *QUANTILES])
    levels = torch.tensor(list(QUANTILES.values()), dtype=values.dtype)
    quantiles = torch.quantile(values, levels).tolist()
    sd = values.std().item() if len(values) > 1 else None
    return {"mean": values.mean().item(), "sd": sd} | dict(zip(QUANTILES, quantiles, strict=True))


def _counts(values: Tensor, edges: Tensor) -> list[int]:
    """How many lie in each bin; a bin has its lower edge, the last also its upper one."""
    place = torch.bucketize(values, edges, right=True) - 1
    return torch.bincount(place.clamp(0, len(edges) - 2), minlength=len(edges) - 1).tolist()


def _share(which: Tensor) -> float | None:
    return which.double().mean().item() if len(which) else None
