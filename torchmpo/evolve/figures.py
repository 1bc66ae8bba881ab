"""The picture of a search."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torchmpo.figures import CHOSEN, MUTED, REJECTED, light, new_figure, save_figure


def fitness_figure(log: Sequence[Mapping], path: str | Path, *, unit: str = "return") -> None:
    """Fitness of the centre, the population's mean and its best member over the generations.

    Args:
        log: rows of ``log.csv`` with numbers or ``None``.
        path: PNG to write; an SVG goes beside it.
        unit: of what counts.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7.0, 4.0)
    axes = figure.subplots()
    styles = {
        "best": ("best member", MUTED, "--"),
        "mean": ("population mean", REJECTED, "-"),
        "centre": ("centre", CHOSEN, "-"),
    }
    if any("regime" in row for row in log):  # each generation is on a kind of data of its own
        styles = {"centre": ("centre, each time on another kind of data", CHOSEN, "-")}
        if any(row.get("held_out") is not None for row in log):
            styles = {"held_out": ("centre on all kinds of data, held out", CHOSEN, "-")}
    for column, (label, colour, style) in styles.items():
        points = [(r["generation"], r[column]) for r in log if r.get(column) is not None]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, style, color=colour, label=label, marker="o", markersize=3.5)
    failed = [(r["generation"], r["nan"]) for r in log if r["nan"]]
    what = unit if unit.startswith("worst") else f"mean {unit}"
    axes.set(xlabel="generation", ylabel=f"fitness ({what})", title="Search")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if failed:
        axes.set_title(f"{sum(n for _, n in failed)} members failed (NaN)", loc="right", fontsize=8)
    axes.legend(frameon=False, loc="best")
    light(axes)
    save_figure(figure, path)
