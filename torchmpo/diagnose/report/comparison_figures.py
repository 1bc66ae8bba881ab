"""Figures about several cells: effects of settings, scaling fits, curves against √KL."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from torchmpo.diagnose.effects import ALL
from torchmpo.diagnose.report.figures import (
    INK,
    LINE,
    TEAL,
    axes_at,
    label_inches,
    legend,
    panels,
    shorten,
)
from torchmpo.figures import MUTED, new_figure
from torchmpo.figures import REJECTED as RUST

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def effects(rows: Sequence[Mapping], scaled: bool) -> "Figure":
    """A line per change: every cell's difference, and the mean of all with its interval."""
    changes: dict[str, list[Mapping]] = {}
    for row in rows:
        changes.setdefault(f"{row['setting']} = {row['value']}", []).append(row)
    names = shorten(changes)
    left, top, bottom, wide = label_inches(names), 0.1, 0.5, 4.2
    height = 0.3 * len(changes)
    figure = new_figure(left + wide + 0.2, top + height + bottom, None)
    ax = axes_at(figure, left, bottom, wide, height)
    ax.set_ylim(len(changes) - 0.5, -0.5)
    ax.set_yticks(range(len(changes)), names)
    ax.tick_params(left=False, bottom=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.axvline(0, color=LINE, linewidth=1, zorder=0)
    for y, own in enumerate(changes.values()):
        ax.axhline(y, color=LINE, linewidth=0.4, zorder=0)
        single = [
            row["difference"]
            for row in own[:-1]
            if row["difference"] is not None and row["loss"] != ALL
        ]
        ax.plot(single, [y] * len(single), "o", color=MUTED, markersize=4, alpha=0.7)
        last = own[-1]
        if last["difference"] is not None:
            ax.plot([last["low"], last["high"]], [y, y], color=INK, linewidth=1.6)
            ax.plot(last["difference"], y, "D", color=INK, markersize=5)
    ax.set_xlabel(f"{'score' if scaled else 'return'} with the change minus without")
    return figure


def scaling(rows: Sequence[Mapping]) -> "Figure":
    """Mean errors by number of pairs with the fitted law, a panel per loss and kind of data."""
    from matplotlib.lines import Line2D

    figure, places = panels(len(rows), 1.6, 0.35)
    losses = list(dict.fromkeys(row["loss"] for row in rows))
    short = dict(zip(losses, shorten(losses), strict=True))
    names = [f"{short[row['loss']]} on {row['data']}" for row in rows]
    for row, name, (x, y) in zip(rows, names, places, strict=True):
        ax = axes_at(figure, x, y + 0.25, 1.75, 1.05)
        sizes = np.array(row["sizes"], dtype=float)
        _panel(ax, name)
        ax.plot(sizes, row["errors"], "o", color=TEAL, markersize=4)
        n = np.geomspace(sizes[0], sizes[-1], 40)
        law = row["floor"] + row["coefficient"] * n ** -row["exponent"]
        ax.plot(n, law, color=INK, linewidth=1, linestyle="-" if row["told"] else ":")
        ax.set_xscale("log")
        ax.set_xticks(sizes[[0, -1]], [f"{size:g}" for size in sizes[[0, -1]]])
        ax.set_xticks([], minor=True)
    lines = [
        Line2D([], [], color=TEAL, marker="o", linestyle="", label="1 − score"),
        Line2D([], [], color=INK, label="the fit"),
        Line2D([], [], color=INK, linestyle=":", label="whose b cannot be told, by pairs"),
    ]
    legend(figure, lines)
    return figure


def overoptimisation(curves: Mapping[str, Sequence[Mapping]], scaled: bool) -> "Figure":
    """Score against √KL, a panel per loss; beside it the judge's, from the same start.

    Args:
        curves: loss → its checkpoints in order: ``root_kl``, ``score``, ``low``, ``high``, and
            perhaps ``judged``.
        scaled: whether there are scores, or returns.
    """
    from matplotlib.lines import Line2D

    figure, places = panels(len(curves), 1.6, 0.35)
    for name, rows, (x, y) in zip(shorten(curves), curves.values(), places, strict=True):
        ax = axes_at(figure, x, y + 0.25, 1.75, 1.05)
        _panel(ax, name)
        far, score = ([row[key] for row in rows] for key in ("root_kl", "score"))
        ends = [(row["low"], row["high"]) for row in rows if row["low"] is not None]
        if len(ends) == len(rows):
            ax.vlines(far, *zip(*ends, strict=True), color=TEAL, alpha=0.4, linewidth=2)
        ax.plot(far, score, color=TEAL, marker="o", markersize=3, linewidth=1.2)
        ax.plot(far[-1], score[-1], "D", color=INK, markersize=4)
        if known := _judged(rows):
            ax.plot(far, [x - known[0] + score[0] for x in known], color=RUST, linewidth=1.2)
        ax.axhline(score[0], color=MUTED, linewidth=0.8, linestyle=":")
        ax.xaxis.get_major_locator().set_params(nbins=3)  # pyright: ignore
    what = "score" if scaled else "return"
    lines = [
        Line2D([], [], color=TEAL, marker="o", label=f"{what} against √KL"),
        Line2D([], [], color=INK, marker="D", linestyle="", label="the end"),
        Line2D([], [], color=MUTED, linestyle=":", label="the start"),
    ]
    if any(map(_judged, curves.values())):
        lines.append(Line2D([], [], color=RUST, label="the judge’s, from the same start"))
    legend(figure, lines)
    return figure


def _judged(rows: Sequence[Mapping]) -> list[float]:
    """What the judge says along a curve; nothing where a row does not tell."""
    known = [row["judged"] for row in rows if row.get("judged") is not None]
    return known if len(known) == len(rows) else []


def _panel(ax: "Axes", name: str) -> None:
    ax.set_title(name, loc="left", fontweight="bold", pad=3)
    ax.tick_params(left=False, bottom=False, pad=2)
    ax.grid(color=LINE, linewidth=0.5, axis="y")
    ax.yaxis.get_major_locator().set_params(nbins=3)  # pyright: ignore
