"""The figures of the diagnostic suite: drawn with matplotlib, saved, and made fit for a page."""

import base64
import io
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from torchmpo.diagnose.report import html
from torchmpo.diagnose.report.html import finite
from torchmpo.figures import CHOSEN as BLUE
from torchmpo.figures import MUTED, new_figure
from torchmpo.figures import REJECTED as RUST
from torchmpo.runs.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, LINE, PAPER = "#1f2328", "#d5d9de", "#ffffff"
TEAL = "#2a8c82"  # the chosen side, the target agent, the right order: blue is for the best only
# In a page the colours follow its scheme, so that a figure is as readable on black as on white.
VARIABLES = {
    INK: "ink",
    LINE: "line",
    PAPER: "paper",
    BLUE: "blue",
    TEAL: "teal",
    RUST: "rust",
    MUTED: "grey",
}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a name may have a dollar sign
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "xtick.color": LINE,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "svg.hashsalt": "torchmpo",  # the same figure is the same file
}
LARGEST_SVG = 400_000  # characters; beyond that a page shows pixels
TINT = 0.72  # of a colour behind text: the text must stay readable
FLOOR, CEILING = -0.5, 2.0  # scores beyond are drawn at the edge


def save(folder: Path, name: str, label: str, draw: Callable[..., "Figure"], *data: Any) -> Markup:
    """Draw a figure, write ``<name>.png`` and ``<name>.svg``, and return it for a page.

    Args:
        folder: exists.
        name: made of ``A-Za-z0-9_.-``; it also keeps the figure's identifiers apart from others'.
        label: what a screen reader says.
        draw: a function of this module that returns a figure.
        data: its arguments.

    Returns:
        an ``<svg>`` element whose colours are the page's variables, or an ``<img>`` with the pixels
        where that would be large.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # names from users
        figure = draw(*data)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(png, format="png", dpi=150)
        write_atomic(folder / f"{name}.svg", svg.getvalue())
        write_atomic(folder / f"{name}.png", png.getvalue())
        markup = inline(svg.getvalue(), name, label)
        if len(markup) > LARGEST_SVG:
            width = round(96 * figure.get_size_inches()[0])
            markup = pixels(png.getvalue(), width, label)
    return markup


def inline(svg: bytes, name: str, label: str) -> Markup:
    """An SVG file of matplotlib's as an element of an HTML page: smaller, and in its colours."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg.decode()))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        old = dict(element.attrib)
        element.attrib.clear()
        for key, value in old.items():
            key = key.rpartition("}")[2]
            if key == "id":
                if value not in used:
                    continue
                value = f"{name}-{value}"
            elif key == "href":
                value = value.replace("#", f"#{name}-", 1) if value.startswith("#") else value
            elif key == "clip-path":
                value = value.replace("url(#", f"url(#{name}-")
            elif key == "style":
                for colour, variable in VARIABLES.items():
                    value = value.replace(colour, f"var(--{variable})")
                value = value.replace("; ", ";").replace(": ", ":")
            elif key in ("d", "x", "y"):  # tenths of a point are enough
                value = re.sub(r"-?\d+\.\d+", lambda x: f"{float(x[0]):.1f}", value)
                value = re.sub(r"\.0\b", "", " ".join(value.split()))
            element.set(key, value)
        element.text = element.text and element.text.strip("\n ")
        element.tail = None
    x, y, width, height = (float(n) for n in root.get("viewBox", "0 0 0 0").split())
    root.attrib.clear()
    root.attrib |= {"viewBox": f"{x:g} {y:g} {width:g} {height:g}", "role": "img"}
    root.attrib |= {"width": f"{width / 0.75:.0f}", "height": f"{height / 0.75:.0f}"}
    root.set("aria-label", label)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def pixels(png: bytes, width: int, label: str) -> Markup:
    """A picture as an ``<img>`` of 64 colours, ``width`` CSS pixels wide."""
    from PIL import Image

    image, file = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    image.quantize(64, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return html.ELEMENTS.pixels(data, label, width)


def intervals(columns: Mapping[str, Mapping[str, Mapping]], losses: Sequence[str]) -> "Figure":
    """Point estimates and their intervals, a column per kind of data and a line per loss.

    Args:
        columns: title → loss → ``{"value", "low", "high", "lead"}``, numbers or None; ``lead``
            says whether the loss is among the best.
        losses: from top to bottom.
    """
    names, wide = shorten(losses), 1.75
    left, top, bottom = label_inches(names), 0.3, 0.45
    line = 0.26 if len(losses) <= 20 else 0.2
    height = line * len(losses)
    figure = new_figure(max(left + wide * len(columns), 3.5), top + height + bottom, None)
    numbers = [v[k] for c in columns.values() for v in c.values() for k in ("value", "low", "high")]
    known = [0.0, 1.0, *(x for x in numbers if x is not None)]
    low, high = max(min(known), FLOOR) - 0.06, min(max(known), CEILING) + 0.06
    for i, (title, values) in enumerate(columns.items()):
        ax = axes_at(figure, left + wide * i, bottom, wide - 0.2, height)
        ax.set(xlim=(low, high), ylim=(len(losses) - 0.5, -0.5))
        ax.set_title(cut(title, 24), loc="left", fontweight="bold")
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        ax.set_yticks(range(len(losses)), names if i == 0 else [""] * len(losses))
        ax.tick_params(left=False, bottom=False)
        ax.spines[["left", "bottom"]].set_visible(False)
        for x in (0, 1):
            ax.axvline(x, color=LINE, linewidth=1, zorder=0)
        for y in range(len(losses)):
            ax.axhline(y, color=LINE, linewidth=0.4, zorder=0)
        for y, loss in enumerate(losses):
            v = values.get(loss)
            if v is None or v["value"] is None:
                ax.text(0.5, y, "diverged" if v else "–", color=MUTED, va="center", ha="center")
            else:
                _interval(ax, y, v)
    figure.text(
        left / figure.get_figwidth(), 0.02, "0 = original agent, 1 = target agent", size=8.5
    )
    return figure


def _interval(ax: "Axes", y: int, v: Mapping) -> None:
    value, low, high = v["value"], v["low"], v["high"]
    colour = BLUE if v["lead"] else MUTED
    if not FLOOR <= value <= CEILING:  # off the scale: its value instead of a mark
        below = value < FLOOR
        text = f"◂ {value:.1f}".replace("-", "−") if below else f"{value:.1f} ▸"
        place, side = (FLOOR, "left") if below else (CEILING, "right")
        ax.text(
            place,
            y,
            text,
            color=RUST if below and not v["lead"] else colour,
            va="center",
            ha=side,
            fontsize=8.5,
        )
        return
    if low is not None and high is not None:
        low, high = max(low, FLOOR), min(high, CEILING)
        colour = RUST if high < 0 and not v["lead"] else colour
        ax.barh(y, high - low, left=low, height=0.52, color=colour, alpha=0.6, linewidth=0)
    ax.plot([value, value], [y - 0.36, y + 0.36], color=INK, linewidth=1.8, solid_capstyle="butt")


def improvement(
    table: Mapping[str, Mapping[str, Mapping]],
    losses: Sequence[str],
    apart: Collection[frozenset[str]],
) -> "Figure":
    """Probability that the loss of a line is better than the loss of a column.

    Args:
        table: loss → other loss → ``{"p", "low", "high"}``.
        losses: order of lines and columns.
        apart: pairs of losses that are shown to differ.
    """
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    n, names = len(losses), shorten(losses)
    written = n <= 14
    cell, label = 0.32 if written else 0.18, 0.9 * label_inches(names)
    values = np.full((n, n), np.nan)
    figure = new_figure(label + n * cell + 0.1, label + n * cell + 0.1, None)
    ax = axes_at(figure, label, 0.1, n * cell, n * cell)
    for i, a in enumerate(losses):
        for j, b in enumerate(losses):
            entry = table.get(a, {}).get(b)
            if i == j or entry is None or entry["p"] is None:
                continue
            values[i, j] = entry["p"]
            if written:
                text, weight = f"{entry['p']:.2f}", "bold" if {a, b} in apart else "normal"
                ax.text(j, i, text, ha="center", va="center", fontsize=8.5, fontweight=weight)
    # No colour, rather than white, in the middle: the page shines through.
    ends = [(0, RUST, TINT), (0.5, RUST, 0), (0.5, TEAL, 0), (1, TEAL, TINT)]
    scale = LinearSegmentedColormap.from_list("scale", [(x, to_rgba(c, a)) for x, c, a in ends])
    ax.imshow(values, cmap=scale, vmin=0, vmax=1, interpolation="none")
    ax.set_xticks(range(n), names, rotation=90)
    ax.set_yticks(range(n), names)
    ax.tick_params(left=False, top=False, bottom=False, labeltop=True, labelbottom=False)
    if not written:
        ax.tick_params(labelsize=8.5)
    ax.spines[:].set_visible(False)
    for edge in range(n + 1):
        ax.axhline(edge - 0.5, color=LINE, linewidth=0.6)
        ax.axvline(edge - 0.5, color=LINE, linewidth=0.6)
    return figure


def curves(cells: Sequence[Mapping]) -> "Figure":
    """Log-probabilities and accuracy over the epochs, a panel per cell, a thin line per seed."""
    from matplotlib.lines import Line2D

    figure, places = panels(len(cells), 1.95, 0.35)
    names = shorten([c["loss"] for c in cells])
    for cell, name, (x, y) in zip(cells, names, places, strict=True):
        data = cell.get("curves") or {}
        epochs = [float(e) for e in data.get("epoch") or []]
        top = axes_at(figure, x, y + 0.85, 1.75, 0.85)
        low = axes_at(figure, x, y + 0.25, 1.75, 0.42)
        top.set_title(name, loc="left", fontweight="bold", pad=3)
        for ax, lines in ((top, {"rejected": RUST, "chosen": TEAL}), (low, {"accuracy": INK})):
            drawn = False
            for key, colour in lines.items():
                for seed in data.get(key) or []:
                    drawn |= _curve(ax, epochs, seed or [], colour)
            ax.tick_params(bottom=False, left=False, pad=2)
            ax.grid(color=LINE, linewidth=0.5, axis="y")
            ax.set_xticks([epochs[0], epochs[-1]] if epochs and ax is low else [])
            if epochs:
                pad = 0.03 * (epochs[-1] - epochs[0]) or 0.5
                ax.set_xlim(epochs[0] - pad, epochs[-1] + pad)
            if not drawn:
                ax.set_yticks([])
                ax.text(0.5, 0.5, "no curve", transform=ax.transAxes, ha="center", color=MUTED)
            elif ax is top:
                ax.yaxis.get_major_locator().set_params(nbins=3)  # pyright: ignore
        low.set_ylim(-0.08, 1.08)
        low.set_yticks([0, 0.5, 1] if low.lines else [], ["0", "½", "1"] if low.lines else [])
    titles = {"chosen": TEAL, "rejected": RUST, "accuracy (below), over the epochs": INK}
    handles = [Line2D([], [], color=colour, label=name) for name, colour in titles.items()]
    legend(figure, handles)
    return figure


def _curve(ax: "Axes", epochs: Sequence[float], values: Sequence, colour: str) -> bool:
    """One seed; a cross where it ends too early. False if there is nothing to draw."""
    y = np.array([math.nan if v is None else v for v in values], dtype=float)[: len(epochs)]
    known = np.flatnonzero(np.isfinite(y))
    if not len(known):
        return False
    ax.plot(epochs[: len(y)], y, color=colour, linewidth=0.8, alpha=0.8)
    if (last := known[-1]) < len(epochs) - 1:
        ax.plot(epochs[last], y[last], "x", color=colour, markersize=4, markeredgewidth=1.2)
    return True


def margins(cells: Sequence[Mapping]) -> "Figure":
    """Histograms of chosen − rejected mean log-probability at the end, all seeds together."""
    from matplotlib.patches import Patch

    figure, places = panels(len(cells), 1.4, 0.35)
    names = shorten([c["loss"] for c in cells], 16)
    for cell, name, (x, y) in zip(cells, names, places, strict=True):
        ax = axes_at(figure, x, y + 0.25, 1.75, 0.85)
        ax.set_title(name, loc="left", fontweight="bold", pad=5)
        ax.tick_params(bottom=False, left=False, pad=2)
        ax.spines["left"].set_visible(False)
        ax.set_yticks([])
        values = np.array(
            [m for seed in cell.get("margins") or [] for m in seed or [] if finite(m)]
        )
        if not len(values):
            ax.set_xticks([])
            ax.text(0.5, 0.4, "no margins", transform=ax.transAxes, ha="center", color=MUTED)
            continue
        low, high = np.quantile(values, [0.005, 0.995])  # one outlier would squeeze the rest
        low, high = min(low, 0.0), max(high, 0.0)
        width = (high - low) / 28 or 1.0
        first, last = math.floor(low / width), max(math.ceil(high / width), 1)
        edges = width * np.arange(first, last + 1)  # 0 is an edge
        counts = np.histogram(values, edges)[0]
        for colour, part in ((RUST, edges[:-1] < -width / 2), (TEAL, edges[:-1] > -width / 2)):
            if part.any():
                start, stop = np.flatnonzero(part)[[0, -1]]
                ax.stairs(
                    counts[start : stop + 1], edges[start : stop + 2], fill=True, color=colour
                )
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.xaxis.get_major_locator().set_params(nbins=4)  # pyright: ignore
        ax.set_title(f"{np.mean(values > 0):.0%}", loc="right", pad=5)
    patches = {"right order": TEAL, "wrong order": RUST}
    legend(figure, [Patch(color=colour, label=name) for name, colour in patches.items()])
    return figure


def data(edges: Mapping[str, Sequence[float]], kinds: Mapping[str, Mapping]) -> "Figure":
    """Returns of both agents' trajectories, and margins of the pairs, a panel per kind of data.

    Args:
        edges: of the histograms of kinds that do not bring their own, see
            `torchmpo.diagnose.data_statistics.histogram_edges`.
        kinds: title → what `torchmpo.diagnose.data_statistics.data_statistics` says.
    """
    from matplotlib.patches import Patch

    figure, places = panels(len(kinds), 2.6, 0.35)
    for (kind, entry), (x, y) in zip(kinds.items(), places, strict=True):
        own = entry.get("edges", edges)
        returns, margins = (np.array(own[name]) for name in ("return", "margin"))
        middle = len(margins) // 2  # the edge at 0
        top = axes_at(figure, x, y + 1.65, 1.75, 0.62)
        low = axes_at(figure, x, y + 0.45, 1.75, 0.62)
        top.set_title(cut(kind, 22), loc="left", fontweight="bold", pad=5)
        for name, agent in entry["agents"].items():
            colour = {"original": RUST, "target": TEAL}.get(name, MUTED)
            style = {"fill": True, "color": colour, "alpha": 0.75}
            top.stairs(agent["return_counts"], returns, **style)
        counts, flipped = entry["margin_counts"], entry["flipped"]
        low.stairs(counts[:middle], margins[: middle + 1], fill=True, color=RUST)
        low.stairs(counts[middle:], margins[middle:], fill=True, color=TEAL)
        low.axvline(0, color=INK, linewidth=0.8)
        low.set_title(f"{flipped:.1%} flipped", loc="right", pad=3)
        drawn = margins[:-1][np.array(counts) > 0]  # of all there could be, those there are
        low.set_xlim(min(drawn.min(), 0) - 1.5 * margins[middle + 1],
                     max(drawn.max(), 0) + 2.5 * margins[middle + 1])  # fmt: skip
        for ax, label in ((top, "return"), (low, "margin of returns")):
            ax.tick_params(bottom=False, left=False, pad=2)
            ax.spines["left"].set_visible(False)
            ax.set_yticks([])
            ax.set_xlabel(label, labelpad=1, fontsize=8.5)
            ax.xaxis.get_major_locator().set_params(nbins=4)  # pyright: ignore
    names = {name for entry in kinds.values() for name in entry["agents"]}
    known = {"original": RUST, "target": TEAL}
    patches = {f"{name} agent": colour for name, colour in known.items() if name in names}
    patches |= {"other agents": MUTED} if names - known.keys() else {}
    legend(figure, [Patch(color=colour, label=name) for name, colour in patches.items()])
    return figure


def agents(returns: Mapping[str, Sequence[float]]) -> "Figure":
    """Returns of the agents, an episode a dot; the line is the mean."""
    left, height = label_inches(list(returns)), 0.5 * len(returns)
    figure = new_figure(6.5, height + 0.6, None)
    ax = axes_at(figure, left, 0.5, 6.4 - left, height)
    colours = (RUST, TEAL, MUTED)
    for y, (values, colour) in enumerate(zip(returns.values(), colours, strict=False)):
        spread = 0.28 * np.sin(2.4 * np.arange(len(values)))  # apart, and the same every time
        style = {"markersize": 3.5, "alpha": 0.5, "color": colour, "markeredgewidth": 0}
        ax.plot(values, y + spread, "o", **style)
        ax.plot([np.mean(values)] * 2, [y - 0.4, y + 0.4], color=INK, linewidth=2)
    ax.set(yticks=range(len(returns)), yticklabels=list(returns), xlabel="return of an episode")
    ax.set_ylim(len(returns) - 0.5, -0.5)
    ax.tick_params(left=False, bottom=False)
    ax.spines["left"].set_visible(False)
    ax.grid(color=LINE, linewidth=0.5, axis="x")
    return figure


def shorten(losses: Iterable[str], most: int = 22) -> list[str]:
    """Names for the axes: a function without its module where that is enough to tell them apart,
    and a saved objective by the folder of its run.

    >>> shorten(["dpo", "my.pkg:loss_a", "a:f", "b:f", "runs/evolve/objective"])
    ['dpo', 'loss_a', 'a:f', 'b:f', 'runs/evolve']
    """
    losses = list(losses)
    names = [loss.removesuffix("/objective") or loss for loss in losses]
    ends = [name.rpartition(":")[2] or name for name in names]
    names = [end if ends.count(end) == 1 else name for name, end in zip(names, ends, strict=True)]
    short = [cut(name, most) for name in names]
    for k, name in enumerate(short):
        if short.count(name) > 1 and len(set(losses)) == len(losses):
            told = f"{k + 1}: {names[k]}"  # by its place, where the names' ends are the same
            short[k] = cut(told, most)
    return short


def cut(text: str, most: int) -> str:
    """At most so many characters; of a long name the end says more than the middle."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2) + 1 :]}"


def label_inches(names: Sequence[str]) -> float:
    """Room for the names beside an axis."""
    return 0.25 + 0.085 * max(map(len, names), default=0)


def axes_at(figure: "Figure", x: float, y: float, width: float, height: float) -> "Axes":
    """Axes placed in inches: with hundreds of panels, a layout engine takes minutes."""
    w, h = figure.get_size_inches()
    return figure.add_axes((x / w, y / h, width / w, height / h))


def panels(n: int, height: float, top: float) -> tuple["Figure", list[tuple[float, float]]]:
    """A figure for ``n`` panels, at most five in a line, and their lower left corners in inches."""
    lines, wide = math.ceil(n / 5), 2.25
    columns = math.ceil(n / lines)
    figure = new_figure(max(columns * wide, 4.8), lines * height + top, None)
    return figure, [
        (i % columns * wide + 0.42, (lines - 1 - i // columns) * height) for i in range(n)
    ]


def legend(figure: "Figure", handles: Sequence) -> None:
    """A legend in a line above all panels."""
    place = {"loc": "upper left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}
    figure.legend(handles=handles, ncols=len(handles), frameon=False, fontsize=8.5, **place)
