"""What is to be shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LOW, HIGH = -8.0, -0.05  # of mean log-probabilities, nats per step


@dataclass(frozen=True)
class Request:
    """What to show.

    Args:
        what: folder of a run or of a saved objective, or any name ``torchmpo.resolve`` takes.
        beside: losses to draw beside it; None for ORPO and SimPO, or DPO and IPO if it has a
            reference.
        out: folder of the figures; None for ``RUN/show`` or ``runs/show/NAME``.
        distill: fit the closed form, too.
        sparse: find the same learned objective in fewer hidden units, and formulas of its curves.
        visit: train a policy under it and look where that has been.
        trust: with ``visit``, run code of a task that the run's files name.
        low, high: range of mean log-probabilities, nats per step; None for −8 and −0.05, or for
            what was visited.
    """

    what: str
    beside: Sequence[str] | None = None
    out: Path | None = None
    distill: bool = False
    sparse: bool = False
    visit: bool = False
    trust: bool = False
    low: float | None = None
    high: float | None = None
