"""Win rates between the policies that losses end at, where preferences go in a circle."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchmpo.control.kinds import parse_kind
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.control.tournaments import cyclic_judge, win_rate_matrix
from torchmpo.games.matrix_games import duality_gap, nash_mixture


class Tournament(NamedTuple):
    """Everybody against everybody on one kind of data.

    Args:
        losses: in their order, n of them.
        rates: ``[n, n]``, mean over seeds; a row's win rates.
        gaps: ``[n]``, the duality gap of each alone.
        mixture: ``[n]``, the Nash mixture of ``rates``.
    """

    losses: list[str]
    rates: Tensor
    gaps: list[float]
    mixture: Tensor


def judged_returns(kind: str, data: PreferenceDataset) -> list[float] | None:
    """The returns by which a cyclic judge orders styles, sorted; None for any other judge."""
    if "cyclic" not in dict(parse_kind(kind).modifiers):
        return None
    used = torch.unique(data.ranked)
    return data.returns[used].sort().values.tolist()


def tournament(cells: Sequence[Mapping]) -> Tournament | None:
    """Of the cells of one kind of data that know whom the judge prefers; None of fewer than two.

    Policies of one seed meet each other, judged by the taste of that seed's data without errors. A
    loss that diverged on every seed has no policies, and is left out.
    """
    known = [cell for cell in cells if cell.get("judged_returns") and any(cell["returns"])]
    seeds = min((len(cell["returns"]) for cell in known), default=0)
    # A seed whose training failed, or of a time when cells did not tell, is left out.
    whole = [
        k for k in range(seeds) if all(c["returns"][k] and c["judged_returns"][k] for c in known)
    ]
    if len(known) < 2 or not whole:
        return None
    rates = torch.stack(
        [
            win_rate_matrix(
                [torch.tensor(cell["returns"][k]) for cell in known],
                cyclic_judge(torch.tensor(known[0]["judged_returns"][k])),
            )
            for k in whole
        ]
    ).mean(0)
    alone = torch.eye(len(known), dtype=torch.float64)
    gaps = [duality_gap(rates, policy).item() for policy in alone]
    return Tournament([cell["loss"] for cell in known], rates, gaps, nash_mixture(rates))
