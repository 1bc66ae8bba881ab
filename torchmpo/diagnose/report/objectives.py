"""Several objectives: the parts of what losses return, the Pareto front, and the hypervolume."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from torchmpo.control.kinds import Kind, parse_kind
from torchmpo.diagnose.report import figures
from torchmpo.diagnose.report.contents import Run
from torchmpo.diagnose.report.html import (
    Cell,
    Section,
    amount,
    code,
    figure,
    heading,
    number,
    table,
)
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import slug
from torchmpo.statistics import hypervolume, mean_of, pareto_front

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float]  # velocity, and the rest of the return
NOTE = (
    "The judge of objectives:W weighs velocity by W and the rest of the return by 1 − W. So a loss "
    "is a point: the mean velocity part and the mean rest of its returns, over seeds. On the front "
    "are those that no other point matches in both and exceeds in one. The hypervolume is the area "
    "that a loss covers together on all W of the run, above the worse of the two agents in each "
    "objective, as a part of the rectangle that the two agents span: at 1 it covers as much as one "
    "agent with the best of both would. Mean over seeds; a seed that diverged covers nothing, and "
    "a loss of which one diverged is not on the front: its others say what it does when all goes "
    "well."
)


def objectives(run: Run) -> Section:
    """Components, front and hypervolume, for each family of kinds that differ in W alone."""
    parts = []
    for kinds in families(run.kinds):
        points = {(c["loss"], kind): mean_point(c) for kind in kinds for c in run.cells_on(kind)}
        known = {key: point for key, point in points.items() if point is not None}
        if known:
            best = _on_front(run, known)
            parts += [_components(run, known, best), _volumes(run, kinds)]
            parts.append(_figure(run, kinds, known, best))
    return Section("Objectives", NOTE, parts)


def families(kinds: Iterable[str]) -> list[list[str]]:
    """Kinds with two objectives, those together that are the same but for W."""
    found: dict[Kind, list[str]] = {}
    for kind in kinds:
        with suppress(UserError):  # of a version that knew other kinds
            parsed = parse_kind(kind)
            others = tuple(m for m in parsed.modifiers if m[0] != "objectives")
            if others != parsed.modifiers:
                found.setdefault(replace(parsed, modifiers=others), []).append(kind)
    return list(found.values())


def point(components: Mapping[str, float] | None) -> Point | None:
    """The two objectives of a seed or an agent."""
    if not components:
        return None
    return components["velocity"], sum(components.values()) - components["velocity"]


def mean_point(found: Mapping) -> Point | None:
    """The two objectives of a cell: means over its seeds that did not diverge."""
    seeds = [p for p in map(point, found.get("components", [])) if p is not None]
    return (fmean(p[0] for p in seeds), fmean(p[1] for p in seeds)) if seeds else None


def volumes(cells: Sequence[Mapping], agents: Mapping[str, Mapping[str, float]]) -> list[float]:
    """Hypervolume of one loss by seed, as a part of what the agents span; none where it is nothing.

    Args:
        cells: of that loss, one for each W, with ``components``.
        agents: components of the two agents.
    """
    ends = np.array([point(parts) for parts in agents.values()], dtype=float)
    if len(ends) < 2 or not (span := np.ptp(ends, axis=0)).all():
        return []
    seeds = min((len(found.get("components", [])) for found in cells), default=0)
    by_seed = ([point(found["components"][k]) for found in cells] for k in range(seeds))
    covered = (np.array([p for p in points if p is not None]).reshape(-1, 2) for points in by_seed)
    return [hypervolume(points, ends.min(0)) / float(span.prod()) for points in covered]


def _diverged(found: Mapping) -> int:
    """How many seeds of a cell did not come to their end."""
    return sum(row is None for row in found["returns"])


def _on_front(run: Run, points: Mapping[tuple[str, str], Point]) -> set[tuple[str, str]]:
    """Those of which every seed came to its end and that no other such point dominates."""
    whole = [key for key in points if not _diverged(run.cells[key])]
    if not whole:
        return set()
    best = pareto_front([points[key] for key in whole])
    return {key for key, on in zip(whole, best, strict=True) if on}


def _components(
    run: Run, points: Mapping[tuple[str, str], Point], best: Collection[tuple[str, str]]
) -> str:
    names = list(dict.fromkeys(n for key in points for n in _parts(run.cells[key])))
    lines = []
    for (loss, kind), (_, rest) in points.items():
        parts = _parts(run.cells[loss, kind]) | {"rest": rest}
        values = (parts.get(name) for name in [*names, "rest"])
        lost = _diverged(run.cells[loss, kind])
        no = f"no, {lost} diverged" if lost else "no"
        lines.append(
            [
                heading(code(loss), loss),
                Cell(kind, kind),
                *map(amount, values),
                Cell("yes" if (loss, kind) in best else no),
            ]
        )
    head = ["loss", "data", *(f"#{name}" for name in [*names, "rest"]), "on the front"]
    return table(head, lines, "Parts of the return, means over seeds; rest is all but velocity")


def _parts(found: Mapping) -> dict[str, float]:
    """Mean over seeds of every part."""
    seeds = [parts for parts in found.get("components", []) if parts]
    return {name: fmean(parts[name] for parts in seeds) for name in (seeds[0] if seeds else {})}


def _volumes(run: Run, kinds: Sequence[str]) -> str:
    lines = []
    for loss in run.losses:
        cells = [run.cells[loss, kind] for kind in kinds if (loss, kind) in run.cells]
        if values := volumes(cells, run.components):
            found = mean_of(values)
            error = f" ± {number(found.se, 2)}" if len(values) > 1 else ""
            lines.append(
                [
                    heading(code(loss), loss),
                    amount(found.mean, text=f"{number(found.mean, 2)}{error}"),
                    amount(len(cells)),
                ]
            )
    caption = "Hypervolume, mean ± standard error over seeds"
    return table(["loss", "#hypervolume", "#kinds of data"], lines, caption) if lines else ""


def _figure(
    run: Run,
    kinds: Sequence[str],
    points: Mapping[tuple[str, str], Point],
    best: Collection[tuple[str, str]],
) -> str:
    label = {key: key[0] if len(kinds) == 1 else f"{key[0]}, {key[1]}" for key in points}
    named = {label[key]: point for key, point in points.items()}
    agents = {name: p for name, parts in run.components.items() if (p := point(parts))}
    name, title = f"front-{slug(kinds[0])}", "Pareto front"
    on = {label[key] for key in best}
    return figure(figures.save(run.figures, name, title, front, named, agents, on))


def front(
    points: Mapping[str, Point], agents: Mapping[str, Point], best: Collection[str]
) -> "Figure":
    """Losses as points, those on the front in blue and joined by steps, and the two agents.

    Args:
        points, agents: name → velocity and rest.
        best: names on the front.
    """
    picture = figures.new_figure(6.4, 4.2)
    ax = picture.subplots()
    if steps := sorted(points[name] for name in best):
        x, y = zip(*steps, strict=True)
        ax.step(x, y, where="pre", color=figures.BLUE, linewidth=0.8)
    for name, (speed, rest) in points.items():
        colour = figures.BLUE if name in best else figures.MUTED
        ax.plot(speed, rest, "o", color=colour, markersize=4)
        if name in best:
            where = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 8}
            ax.annotate(figures.cut(name, 40), (speed, rest), color=colour, **where)
    for (name, (speed, rest)), colour in zip(agents.items(), (figures.RUST, figures.TEAL)):
        ax.plot(speed, rest, "D", color=colour, markersize=5, label=f"{name} agent")
    ax.set(xlabel="velocity part of the return", ylabel="rest of the return")
    ax.grid(color=figures.LINE, linewidth=0.5)
    if agents:
        ax.legend(frameon=False, fontsize=8)
    return picture
