"""The true return along a training, against how far the policy has gone from its start."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from torchmpo.control.testbed import Testbed
from torchmpo.diagnose.behaviour import Visited, with_params

Params = dict[str, Tensor]


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


def measure(
    testbed: Testbed,
    kept: Mapping[int, Mapping[int, Params]],
    episodes: int,
    states: int | Sequence[int],
) -> list[dict[str, list[float]] | None]:
    """Of each member what its policies return; ``None`` of one that diverged.

    Args:
        kept: epoch → member → parameters ``{name: [...]}``, the start of the preference phase
            first.
        episodes, states: see :meth:`torchmpo.control.testbed.Testbed.evaluate`.

    Returns:
        ``epoch``; ``return``, a mean over episodes; ``kl``, the mean KL(π ‖ start) at the states
        that π visits, nats per step.
    """
    members = len(next(iter(kept.values())))
    found: list[dict[str, list[float]] | None] = [
        {"epoch": [], "return": [], "kl": []} for _ in range(members)
    ]
    starts = kept[min(kept)]
    for epoch, of_member in sorted(kept.items()):
        names = of_member[0]
        params = {n: torch.stack([of_member[k][n] for k in range(members)]) for n in names}
        visited = Visited(members)
        returns = testbed.evaluate(params, episodes, states, on_step=visited.look).mean(1)
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
            for name, value in (("epoch", epoch), ("return", float(returns[k])), ("kl", kl)):
                path[name].append(value)
    return found
