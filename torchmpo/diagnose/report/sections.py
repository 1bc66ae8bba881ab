"""The sections of a report, in their order: each is a title, an explanation and its content.

All three are HTML; a section without content is left out of the page.
"""

from collections.abc import Callable
from typing import Any

from torchmpo.diagnose.report import figures, tables
from torchmpo.diagnose.report.contents import Run
from torchmpo.diagnose.report.html import finite, fold, interval, nested
from torchmpo.diagnose.report.words import kinds_html, name_html
from torchmpo.runs.files import slug

Section = tuple[str, str, str]


def leaderboard(run: Run) -> Section:
    """Every loss on every kind of data at a glance."""
    scale = "Score: 0 is the return of the original agent, 1 that of the target agent. "
    note = (
        "A rank of 1–3 is a tie: the loss’s interval overlaps others’. A bar at the left: no "
        "other loss is shown to be better on that data."
    )
    return "Leaderboard", scale * run.scaled + note, tables.matrix(run)


def scores(run: Run) -> Section:
    """The same as a figure."""
    note = (
        "Interquartile mean over seeds with its interval. Blue: no other interval lies wholly "
        "above; red: below the original agent. Ranks are by the mean, whose intervals can "
        "differ. What lies beyond the axis is written at its edge."
    )
    if not run.scaled:
        return "Scores", note, ""
    figure = _draw(run, "intervals", "Scores with intervals", figures.intervals, *columns(run))
    return "Scores", note, figure


def improvement(run: Run) -> Section:
    """Every loss against every other one."""
    note = (
        "How probable it is that a run of the loss on the left beats a run of the loss above. "
        "Blue: above one half, red: below. Bold: the interval excludes one half."
    )
    title = "Probability of improvement"
    if len(run.losses) < 2:
        return title, note, ""
    parts = []
    for kind in run.kinds:
        table = run.board["improvement"].get(kind, {})
        losses = [loss for loss in run.losses if (loss, kind) in run.rows]
        name, label = f"improvement-{slug(kind)}", f"Probability of improvement on {kind}"
        figure = _draw(run, name, label, figures.improvement, table, losses)
        parts.append(_captioned(name_html(kind), figure))
    return title, note, f'<div class="row">{"".join(parts)}</div>'


def numbers(run: Run) -> Section:
    """Every number of the leaderboard."""
    note = (
        "A title sorts by its column. Return: mean ± standard error over seeds"
        + "; score and IQM (interquartile mean, without a quarter of the seeds at each end) "
        "with 95 % bootstrap intervals" * run.scaled + "."
    )
    return "All numbers", note, tables.full_table(run)


def training(run: Run) -> Section:
    """Likelihoods during training."""
    note = (
        "Mean log-probability per step of chosen and rejected responses, and the share of "
        "pairs in which the chosen one is more probable. A line is a seed, a cross the end of "
        "one that diverged. Every panel has its own scale."
    )
    return "Training", note, _by_kind(run, "curves", "Training curves", figures.curves)


def margins(run: Run) -> Section:
    """Margins at the end of training."""
    note = (
        "Chosen minus rejected mean log-probability at the end, over all seeds; on the right "
        "the share above 0. The outermost 1 % lie beyond the axes."
    )
    return "Margins", note, _by_kind(run, "margins", "Margins at the end", figures.margins)


def tuning(run: Run) -> Section:
    """What was tried, and what of it was best."""
    return "Tuning", "The search that came before the fresh seeds.", tables.tuning(run)


def agents(run: Run) -> Section:
    """What is 0 and what is 1."""
    figure = (
        _draw(run, "agents", "Returns of the agents", figures.agents, run.anchors)
        if run.anchors
        else ""
    )
    note = "Returns of the two agents whose trajectories are compared."
    return "Agents", note, tables.agents(run) + figure


def data(run: Run) -> Section:
    """What the preference data turned out to be."""
    note = (
        "What the preference data turned out to be. Above: returns of the trajectories in the "
        "pairs. Below: the chosen return minus the rejected one; red are flipped labels."
    )
    if not (kinds := tables.described(run)):
        return "Data", note, ""
    edges = run.statistics["edges"]
    figure = _draw(run, "data", "Returns in the data", figures.data, edges, kinds)
    return "Data", note, kinds_html(run) + figure + tables.data_kinds(run)


def settings(run: Run) -> Section:
    """The configuration of the run."""
    table = fold("config.yaml", nested(run.config, "Settings of the run")) if run.config else ""
    return "Settings", "Everything the run can be repeated from.", table


def reading(run: Run) -> Section:
    """What the words of the report mean."""
    return "Reading this page", "", READING


SECTIONS: tuple[Callable[[Run], Section], ...] = (
    leaderboard,
    scores,
    improvement,
    numbers,
    training,
    margins,
    tuning,
    agents,
    data,
    settings,
    reading,
)


def columns(run: Run) -> tuple[dict, list[str]]:
    """What the figure of intervals shows; blue is what no drawn interval lies wholly above."""
    columns: dict[str, dict] = {}
    if len(run.kinds) > 1 and run.overall:
        columns["all data"] = {loss: row["iqm"] for loss, row in run.overall.items()}
    for kind in run.kinds:
        lost = {"value": None, "low": None, "high": None}
        columns[kind] = {
            row["loss"]: row["iqm"] if finite(row["return"]["mean"]) else lost
            for row in run.on(kind)
        }
    for title, values in columns.items():
        lows = [iqm["low"] for iqm in values.values() if interval(iqm)]
        columns[title] = {
            loss: iqm | {"lead": not (interval(iqm) and any(low > iqm["high"] for low in lows))}
            for loss, iqm in values.items()
        }
    return columns, run.losses


def _by_kind(run: Run, name: str, label: str, draw) -> str:
    """A figure for each kind of data, the first one open."""
    parts = []
    for kind in run.kinds:
        if cells := run.cells_on(kind):
            figure = _draw(run, f"{name}-{slug(kind)}", f"{label} on {kind}", draw, cells)
            parts.append(fold(name_html(kind), figure, open=not parts))
    return "\n".join(parts)


def _draw(run: Run, name: str, label: str, draw, *data: Any) -> str:
    return f"<figure>{figures.save(run.figures, name, label, draw, *data)}</figure>"


def _captioned(title: str, figure: str) -> str:
    return figure.replace("<figure>", f"<figure><figcaption>{title}</figcaption>", 1)


READING = """<dl>
<dt>Score</dt><dd>(R − R<sub>original</sub>) / (R<sub>target</sub> − R<sub>original</sub>), where R
is the mean return of one seed’s episodes.</dd>
<dt>Interval</dt><dd>95 % percentile bootstrap over seeds. A seed has the same minibatches on every
kind of data, so where kinds are taken together it is drawn with its scores on all. With few seeds
such intervals are too narrow, and what they separate may not last with more.</dd>
<dt>Rank</dt><dd>From one more than the number of losses whose interval lies wholly above, to the
number of losses whose interval does not lie wholly below.</dd>
<dt>Diverged</dt><dd>A seed whose training did not stay finite counts as the worst run that any loss
finished on that kind of data.</dd>
<dt>IQM, probability of improvement</dt><dd>As in Agarwal et al., Deep Reinforcement Learning at the
Edge of the Statistical Precipice (2021), arXiv:2108.13264.</dd></dl>"""
