"""The sections of a report, in their order: each is a title, an explanation and its content.

All three are HTML; a section without content is left out of the page.
"""

import base64
import math
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from torchmpo.diagnose.report import figures, tables
from torchmpo.diagnose.report.contents import Run
from torchmpo.diagnose.report.critical_difference import critical_difference
from torchmpo.diagnose.report.html import finite, fold, nested
from torchmpo.diagnose.report.losses import equations
from torchmpo.diagnose.report.objectives import objectives
from torchmpo.diagnose.report.profiles import profiles as profile_panels
from torchmpo.diagnose.report.words import fell, name_html, terms
from torchmpo.objectives.documented import NOTATION
from torchmpo.runs.files import slug
from torchmpo.statistics import average_ranks as ranked
from torchmpo.statistics import cliques, friedman, shown

Section = tuple[str, str, str]
TYPES = {".csv": "text/csv", ".json": "application/json"}


def compared(run: Run) -> Section:
    """What is compared, for who did not run it."""
    return "What is compared", "", terms(run)


def losses(run: Run) -> Section:
    """Every loss with its equation."""
    return "Losses", NOTATION, fold(f"Equations of {len(run.losses)}", equations(run))


def downloads(run: Run) -> Section:
    """The numbers as files, which are inside the page."""
    links = [
        f'<a download="{escape(name)}" href="data:{TYPES[Path(name).suffix]};base64,'
        f'{base64.b64encode(content).decode()}">{escape(name)}</a>'
        for name, content in run.files.items()
    ]
    note = "The numbers of this page. They are also files in the folder of the run."
    return "Downloads", note, " · ".join(links)


def leaderboard(run: Run) -> Section:
    """Every loss on every kind of data at a glance."""
    scale = "Score: 0 is the return of the original agent, 1 that of the target agent. "
    note = (
        "Blue, with a bar at the left: the loss is among the best, that is, no other loss is shown "
        "to be better on that data. Red: below the original agent. A rank of 2–4 among six: one "
        "loss is shown to be better, and two to be worse. The intervals are of one loss by itself; "
        "two losses are compared seed by seed, see Differences."
    )
    return "Leaderboard", scale * run.scaled + note, tables.matrix(run)


def scores(run: Run) -> Section:
    """The same as a figure."""
    note = (
        "Interquartile mean over seeds with its interval. Blue: among the best, as in the "
        "leaderboard: no other loss is shown to be better, seed by seed. So a blue interval may "
        "lie below another. Red: below the original agent. What lies beyond the axis is written "
        "at its edge."
    )
    if not run.scaled:
        return "Scores", note, ""
    figure = _draw(run, "intervals", "Scores with intervals", figures.intervals, *columns(run))
    return "Scores", note, figure


def differences(run: Run) -> Section:
    """The loss of the highest mean against each other one, seed by seed."""
    note = (
        "The highest mean against every other loss. Seed k of every loss has the same minibatches "
        "and start states, so differences are taken seed by seed. A loss is shown to be better "
        "where the corrected p is below 0.05. Intervals and plain p are of one pair by itself "
        "(Student’s t); the corrected p (Holm) allows for all pairs of losses. Wilcoxon’s test "
        "is a check that asks for no normal distribution; with fewer than six seeds it cannot "
        "decide."
    )
    every = [None] if len(run.kinds) > 1 else []
    found = {kind: tables.differences(run, kind) for kind in [*every, *run.kinds]}
    parts = [
        fold("all data" if kind is None else name_html(kind), table, open=kind == run.kinds[0])
        for kind, table in found.items()
        if table
    ]
    return "Differences", note, "\n".join(parts)


def average_ranks(run: Run) -> Section:
    """A critical-difference diagram."""
    note = "The rank of a loss among all, averaged over kinds of data and seeds; 1 is the highest. "
    note += "A bar joins losses of which none is shown to be better than another on all data. "
    title = "Average ranks"
    if len(run.scores) < 2 or not all(len(x) > 1 for x in run.scores.values()):
        return title, note, ""
    seeds = {loss: x.mean(1) for loss, x in run.scores.items()}
    if math.isfinite(p := friedman(seeds)):
        told = "p &lt; 0.001" if p < 0.001 else f"p = {p:.3f}"
        note += f"Friedman’s test over seeds, that no loss differs from another: {told}."
    order = ranked({loss: x.ravel() for loss, x in run.scores.items()})
    groups = cliques(list(order), run.differences[None])
    figure = _draw(run, "ranks", "Average ranks", critical_difference, order, groups)
    return title, note, figure


def profiles(run: Run) -> Section:
    """Performance profiles."""
    note = (
        "The share of runs, over all seeds and kinds of data, whose score is above the one on the "
        "axis. Green: the loss with its 95 % band (pointwise bootstrap over seeds); grey: all "
        "losses together. Further right is better."
    )
    figure = ""
    if len(run.scores) > 1:
        ordered = {loss: run.scores[loss] for loss in run.losses if loss in run.scores}
        figure = _draw(run, "profiles", "Performance profiles", profile_panels, ordered)
    return "Performance profiles", note, figure


def improvement(run: Run) -> Section:
    """Every loss against every other one."""
    note = (
        "How probable it is that a run of the loss on the left beats a run of the loss above. "
        "Green: above one half, red: below. Bold: one of the two is shown to be better, seed by "
        "seed and corrected for the number of pairs."
    )
    title = "Probability of improvement"
    if len(run.losses) < 2:
        return title, note, ""
    parts = []
    for kind in run.kinds:
        table = run.board["improvement"].get(kind, {})
        losses = [loss for loss in run.losses if (loss, kind) in run.rows]
        name, label = f"improvement-{slug(kind)}", f"Probability of improvement on {kind}"
        found = run.differences.get(kind, {})
        apart = {frozenset((a, b)) for a in found for b in found[a] if shown(found[a][b])}
        figure = _draw(run, name, label, figures.improvement, table, losses, apart)
        parts.append(_captioned(name_html(kind), figure))
    return title, note, f'<div class="row">{"".join(parts)}</div>'


def numbers(run: Run) -> Section:
    """Every number of the leaderboard."""
    note = (
        "A title sorts by its column. Return: mean ± standard error over seeds, of the policy’s "
        "mean actions or of sampled ones, as the run was set; the other way to act stands beside it"
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


def why(run: Run) -> Section:
    """What moved in training, loss by loss."""
    note = (
        "What training moved, means over seeds. Log-probabilities per step of the chosen and the "
        "rejected side, from the start of the preference phase to the end: where the chosen one "
        "falls, the policy leaves what it should imitate. Pairs that it learned to rank, and that "
        "it unlearned. How far the policy is from its start (KL) in the states that it visits, and "
        "how far these are from the data’s: 1 is as near as the data is to itself."
    )
    tell = {kind: tables.why(run, kind) for kind in run.kinds}
    parts = [
        fold(name_html(kind), fell(run, kind) + text, open=kind == run.kinds[0])
        for kind, text in tell.items()
        if text
    ]
    return "Why", note, "\n".join(parts)


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
    return "Data", note, figure + tables.data_kinds(run)


def settings(run: Run) -> Section:
    """The configuration of the run."""
    table = fold("config.yaml", nested(run.config, "Settings of the run")) if run.config else ""
    return "Settings", "Everything the run can be repeated from.", table


def reading(run: Run) -> Section:
    """What the words of the report mean."""
    return "Reading this page", "", READING


SECTIONS: tuple[Callable[[Run], Section], ...] = (
    compared,
    leaderboard,
    scores,
    differences,
    average_ranks,
    profiles,
    improvement,
    objectives,
    numbers,
    why,
    training,
    margins,
    tuning,
    losses,
    agents,
    data,
    settings,
    downloads,
    reading,
)


def columns(run: Run) -> tuple[dict, list[str]]:
    """What the figure of intervals shows; ``lead``, which is blue, marks the best."""
    columns: dict[str, dict] = {}
    if len(run.kinds) > 1 and run.overall:
        best = run.marked(None)
        columns["all data"] = {
            loss: row["iqm"] | {"lead": loss in best} for loss, row in run.overall.items()
        }
    for kind in run.kinds:
        lost = {"value": None, "low": None, "high": None}
        columns[kind] = {
            row["loss"]: (row["iqm"] if finite(row["return"]["mean"]) else lost)
            | {"lead": row["loss"] in run.marked(kind)}
            for row in run.on(kind)
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
such intervals are too narrow: no verdict rests on them.</dd>
<dt>Shown to be better</dt><dd>The differences of two losses, seed by seed, have a p below 0.05 by
Student’s t after Holm’s correction over all pairs of losses on that data, so that with normal noise
the chance of any wrong statement there is 5 % at most. What is not shown may still be true: five
seeds show only large differences, ten many more.</dd>
<dt>Best</dt><dd>No other loss is shown to be better on that data.</dd>
<dt>Rank</dt><dd>From one more than the number of losses shown to be better, to the number of losses
not shown to be worse. Over all kinds, by the seeds’ mean scores over the kinds.</dd>
<dt>Diverged</dt><dd>A seed whose training did not stay finite counts as the worst run that any loss
finished on that kind of data.</dd>
<dt>IQM, probability of improvement</dt><dd>As in Agarwal et al., Deep Reinforcement Learning at the
Edge of the Statistical Precipice (2021), arXiv:2108.13264.</dd></dl>"""
