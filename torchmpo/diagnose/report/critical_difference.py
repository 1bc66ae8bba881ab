"""A critical-difference diagram: average ranks on a line, bars over those not told apart."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torchmpo.diagnose.report.figures import INK, TEAL, axes_at, label_inches, shorten
from torchmpo.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def critical_difference(ranks: Mapping[str, float], cliques: Sequence[Sequence[str]]) -> "Figure":
    """The better half of the losses stands on the left, the other on the right.

    Args:
        ranks: loss → average rank, in rising order.
        cliques: losses to be joined by a bar.
    """
    n = len(ranks)
    names = dict(zip(ranks, shorten(ranks), strict=True))
    half, step = (n + 1) // 2, 0.22
    side = label_inches(list(names.values())) + 0.35
    bars = 0.13 * len(cliques) + 0.12
    wide, height = 4.2, bars + step * half
    figure = new_figure(wide + 2 * side, height + 0.45, None)
    ax = axes_at(figure, side, 0.05, wide, height)
    ax.set(xlim=(1, n), ylim=(height, 0))
    ax.xaxis.tick_top()
    ax.set_xticks(range(1, n + 1))
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.spines["top"].set(visible=True, color=INK)
    ax.tick_params(axis="x", color=INK)
    ax.set_yticks([])
    reach = (n - 1) * 0.2 / wide  # 0.2 inches beyond the axis
    for i, (name, rank) in enumerate(ranks.items()):
        left = i < half
        end, sign = (1 - reach, "right") if left else (n + reach, "left")
        y = bars + step * (0.5 + (i if left else n - 1 - i))
        ax.plot([rank, rank, end], [0, y, y], color=INK, linewidth=0.8, clip_on=False)
        gap = -0.2 * reach if left else 0.2 * reach
        text = f"{names[name]}  {rank:.2f}" if left else f"{rank:.2f}  {names[name]}"
        ax.text(end + gap, y, text, ha=sign, va="center", fontsize=8.5)
    pad = 0.15 * reach
    for i, clique in enumerate(cliques):
        ends = [ranks[clique[0]] - pad, ranks[clique[-1]] + pad]
        y = 0.12 + 0.13 * i
        ax.plot(ends, [y, y], color=TEAL, linewidth=3.5, clip_on=False)
    return figure
