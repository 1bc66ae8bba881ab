"""Performance profiles: how large a share of runs is above a score, a panel per loss."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchmpo.diagnose.report.figures import (
    CEILING,
    FLOOR,
    LINE,
    TEAL,
    axes_at,
    legend,
    panels,
    shorten,
)
from torchmpo.figures import MUTED
from torchmpo.statistics import performance_profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 101  # of a curve


def profiles(scores: Mapping[str, NDArray]) -> "Figure":
    """The profile of every loss with its band, and that of all runs of all losses.

    Args:
        scores: loss → ``[runs, kinds]``.
    """
    from matplotlib.lines import Line2D

    every = np.concatenate([values.ravel() for values in scores.values()])
    low, high = max(min(every.min(), 0.0), FLOOR) - 0.05, min(max(every.max(), 1.0), CEILING) + 0.05
    taus = np.linspace(low, high, POINTS)
    together = (every[:, None] > taus).mean(0)
    figure, places = panels(len(scores), 1.6, 0.35)
    for values, name, (x, y) in zip(scores.values(), shorten(scores), places, strict=True):
        ax = axes_at(figure, x, y + 0.25, 1.75, 1.05)
        ax.set_title(name, loc="left", fontweight="bold", pad=3)
        ax.set(xlim=(low, high), ylim=(-0.03, 1.03))
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        ax.set_yticks([0, 0.5, 1], ["0", "½", "1"])
        ax.tick_params(left=False, bottom=False, pad=2)
        ax.grid(color=LINE, linewidth=0.5)
        share, lower, upper = performance_profile(values, taus)
        ax.plot(taus, together, color=MUTED, linewidth=1)
        if np.isfinite(lower).all():
            ax.fill_between(taus, lower, upper, color=TEAL, alpha=0.3, linewidth=0)
        ax.plot(taus, share, color=TEAL, linewidth=1.4)
    lines = {"share of its runs above the score": TEAL, "of all losses’ runs": MUTED}
    legend(figure, [Line2D([], [], color=colour, label=name) for name, colour in lines.items()])
    return figure
