"""The sections of a report, in their order.

A new one is a function from the run to a `Section`, in its place in `SECTIONS`.
"""

import base64
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from torchmpo.diagnose.report import figures, tables
from torchmpo.diagnose.report.comparisons import effects, overoptimisation, scaling
from torchmpo.diagnose.report.contents import Run
from torchmpo.diagnose.report.critical_difference import critical_difference
from torchmpo.diagnose.report.html import (
    ELEMENTS,
    Section,
    code,
    figure,
    finite,
    fold,
    nested,
    render,
)
from torchmpo.diagnose.report.losses import equations
from torchmpo.diagnose.report.objectives import objectives
from torchmpo.diagnose.report.profiles import profiles as profile_panels
from torchmpo.diagnose.report.words import TASKS, fell, kinds_told
from torchmpo.diagnose.win_rates import tournament
from torchmpo.objectives.documented import NOTATION
from torchmpo.runs.files import slug
from torchmpo.statistics import average_ranks as ranked
from torchmpo.statistics import cliques, friedman, shown

TYPES = {".csv": "text/csv", ".json": "application/json"}


def compared(run: Run) -> Section:
    """What is compared, for who did not run it."""
    task = str(run.board["task"])
    means = {agent: entry["mean"] for agent, entry in run.board["anchors"].items()}
    robot, kinds = TASKS.get(task, task), kinds_told(run)
    terms = render("terms.html", run=run, robot=robot, means=means, kinds=kinds)
    return Section("What is compared", "", [terms])


def losses(run: Run) -> Section:
    """Every loss with its equation."""
    folded = fold(f"Equations of {len(run.losses)}", equations(run))
    return Section("Losses", NOTATION, [folded])


def downloads(run: Run) -> Section:
    """The numbers as files, which are inside the page."""
    files = [
        (name, TYPES[Path(name).suffix], base64.b64encode(content).decode())
        for name, content in run.files.items()
    ]
    note = "The numbers of this page. They are also files in the folder of the run."
    return Section("Downloads", note, [ELEMENTS.downloads(files)] if files else [])


def leaderboard(run: Run) -> Section:
    """Every loss on every kind of data at a glance."""
    scale = "Score: 0 is the return of the original agent, 1 that of the target agent. "
    note = (
        "Blue, with a bar at the left: the loss is among the best, that is, no other loss is shown "
        "to be better on that data. Red: below the original agent. A rank of 2–4 among six: one "
        "loss is shown to be better, and two to be worse. The intervals are of one loss by itself; "
        "two losses are compared seed by seed, see Differences."
    )
    return Section("Leaderboard", scale * run.scaled + note, [tables.matrix(run)])


def scores(run: Run) -> Section:
    """The same as a figure."""
    note = (
        "Interquartile mean over seeds with its interval. Blue: among the best, as in the "
        "leaderboard: no other loss is shown to be better, seed by seed. So a blue interval may "
        "lie below another. Red: below the original agent. What lies beyond the axis is written "
        "at its edge."
    )
    if not run.scaled:
        return Section("Scores", note, [])
    drawn = _draw(run, "intervals", "Scores with intervals", figures.intervals, *columns(run))
    return Section("Scores", note, [drawn])


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
        fold("all data" if kind is None else code(kind), table, open=kind == run.kinds[0])
        for kind, table in found.items()
        if table
    ]
    return Section("Differences", note, parts)


def average_ranks(run: Run) -> Section:
    """A critical-difference diagram."""
    note = "The rank of a loss among all, averaged over kinds of data and seeds; 1 is the highest. "
    note += "A bar joins losses of which none is shown to be better than another on all data. "
    title = "Average ranks"
    if len(run.scores) < 2 or not all(len(x) > 1 for x in run.scores.values()):
        return Section(title, note, [])
    seeds = {loss: x.mean(1) for loss, x in run.scores.items()}
    if math.isfinite(p := friedman(seeds)):
        told = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
        note += f"Friedman’s test over seeds, that no loss differs from another: {told}."
    order = ranked({loss: x.ravel() for loss, x in run.scores.items()})
    groups = cliques(list(order), run.differences[None])
    drawn = _draw(run, "ranks", "Average ranks", critical_difference, order, groups)
    return Section(title, note, [drawn])


def profiles(run: Run) -> Section:
    """Performance profiles."""
    note = (
        "The share of runs, over all seeds and kinds of data, whose score is above the one on the "
        "axis. Green: the loss with its 95 % band (pointwise bootstrap over seeds); grey: all "
        "losses together. Further right is better."
    )
    drawn = ""
    if len(run.scores) > 1:
        ordered = {loss: run.scores[loss] for loss in run.losses if loss in run.scores}
        drawn = _draw(run, "profiles", "Performance profiles", profile_panels, ordered)
    return Section("Performance profiles", note, [drawn])


def improvement(run: Run) -> Section:
    """Every loss against every other one."""
    note = (
        "How probable it is that a run of the loss on the left beats a run of the loss above. "
        "Green: above one half, red: below. Bold: one of the two is shown to be better, seed by "
        "seed and corrected for the number of pairs."
    )
    title = "Probability of improvement"
    if len(run.losses) < 2:
        return Section(title, note, [])
    parts = []
    for kind in run.kinds:
        table = run.board["improvement"].get(kind, {})
        losses = [loss for loss in run.losses if (loss, kind) in run.rows]
        name, label = f"improvement-{slug(kind)}", f"Probability of improvement on {kind}"
        found = run.differences.get(kind, {})
        apart = {frozenset((a, b)) for a in found for b in found[a] if shown(found[a][b])}
        picture = figures.save(run.figures, name, label, figures.improvement, table, losses, apart)
        parts.append(figure(picture, code(kind)))
    return Section(title, note, [ELEMENTS.side_by_side(parts)])


def numbers(run: Run) -> Section:
    """Every number of the leaderboard."""
    note = (
        "A title sorts by its column. Return: mean ± standard error over seeds, of the policy’s "
        "mean actions or of sampled ones, as the run was set; the other way to act stands beside it"
        + "; score and IQM (interquartile mean, without a quarter of the seeds at each end) "
        "with 95 % bootstrap intervals" * run.scaled + "."
    )
    return Section("All numbers", note, [tables.full_table(run)])


def training(run: Run) -> Section:
    """Likelihoods during training."""
    note = (
        "Mean log-probability per step of chosen and rejected responses, and the share of "
        "pairs in which the chosen one is more probable. A line is a seed, a cross the end of "
        "one that diverged. Every panel has its own scale."
    )
    parts = _by_kind(run, "curves", "Training curves", figures.curves)
    return Section("Training", note, parts)


def why(run: Run) -> Section:
    """What moved in training, loss by loss."""
    note = (
        "What training moved, means over seeds. Log-probabilities per step of the chosen and the "
        "rejected side, from the start of the preference phase to the end: where the chosen one "
        "falls, the policy leaves what it should imitate. Pairs that it learned to rank, and that "
        "it unlearned. How far the policy is from its start (KL) in the states that it visits, and "
        "how far these are from the data’s: 1 is as near as the data is to itself. Below: the "
        "share of pairs ranked right at the end (by sums or means, as the loss compares), the one "
        "that the optimum with the loss’s β under the data’s judge would have, and the gap; the "
        "share of the gradient at the chosen side, as the phase begins and ends; the largest "
        "change of each side, and when half of it had happened, in parts of the phase; and the "
        "mean share of pairs ranked wrongly on the way (area)."
    )
    parts = []
    for kind in run.kinds:
        if not (moved := tables.why(run, kind)):
            continue
        told = fell(run, kind)
        content = ELEMENTS.paragraphs(told.values())
        if told:
            name, label = f"fell-{slug(kind)}", f"Training curves of what fell on {kind}"
            cells = [run.cells[loss, kind] for loss in told]
            content += _draw(run, name, label, figures.curves, cells)
        content += moved + tables.rankings(run, kind)
        parts.append(fold(code(kind), content, open=not parts))
    return Section("Why", note, parts)


def margins(run: Run) -> Section:
    """Margins at the end of training."""
    note = (
        "Chosen minus rejected mean log-probability at the end, over all seeds; on the right "
        "the share above 0. The outermost 1 % lie beyond the axes."
    )
    parts = _by_kind(run, "margins", "Margins at the end", figures.margins)
    return Section("Margins", note, parts)


def win_rates(run: Run) -> Section:
    """Who wins against whom, where no return says who is best."""
    note = (
        "Where preferences go in a circle there is no best return. The policies that the losses "
        "ended at meet each other, seed by seed, under the judge of the data without errors. The "
        "gap is how much the best opponent here gains, twice: 0 for who loses to nobody, 1 for who "
        "always loses to somebody. In the mixture with the Nash weights nobody wins. Seeds on "
        "which a loss diverged are left out; so is a loss that diverged on all of them."
    )
    parts = [
        fold(code(kind), tables.win_rates(found), open=True)
        for kind in run.kinds
        if (found := tournament(run.cells_on(kind)))
    ]
    return Section("Win rates", note, parts)


def baselines(run: Run) -> Section:
    """What was compared with the losses and is none."""
    note = (
        "rlhf trains a reward model on the pairs that losses are given (Bradley–Terry over sums of "
        "learned rewards per step), and then a policy on that by PPO, with KL to the start. Losses "
        "need no steps of the environment to train; it does. Held-out accuracy: the share of pairs "
        "that the reward model has not seen and ranks as their labels do. Its true return on the "
        "way, against KL, is under Over-optimisation."
    )
    found = tables.baselines(run)
    return Section("Baselines", note, [found] if found else [])


def tuning(run: Run) -> Section:
    """What was tried, and what of it was best."""
    note = "The search that came before the fresh seeds."
    return Section("Tuning", note, tables.tuning(run))


def agents(run: Run) -> Section:
    """What is 0 and what is 1."""
    note = "Returns of the two agents whose trajectories are compared."
    parts = [tables.agents(run)]
    if run.anchors:
        parts.append(_draw(run, "agents", "Returns of the agents", figures.agents, run.anchors))
    return Section("Agents", note, parts)


def data(run: Run) -> Section:
    """What the preference data turned out to be."""
    note = (
        "What the preference data turned out to be. Above: returns of the trajectories in the "
        "pairs. Below: the chosen return minus the rejected one; red are flipped labels."
    )
    if not (kinds := tables.described(run)):
        return Section("Data", note, [])
    edges = run.statistics["edges"]
    drawn = _draw(run, "data", "Returns in the data", figures.data, edges, kinds)
    return Section("Data", note, [drawn, *tables.data_kinds(run)])


def settings(run: Run) -> Section:
    """The configuration of the run."""
    note = "Everything the run can be repeated from."
    table = fold("config.yaml", nested(run.config, "Settings of the run"))
    return Section("Settings", note, [table] if run.config else [])


def reading(run: Run) -> Section:
    """What the words of the report mean."""
    return Section("Reading this page", "", [render("reading.html")])


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
    overoptimisation,
    win_rates,
    baselines,
    effects,
    scaling,
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


def _by_kind(run: Run, name: str, label: str, draw) -> list[Markup]:
    """A figure for each kind of data, the first one open."""
    parts = []
    for kind in run.kinds:
        if cells := run.cells_on(kind):
            picture = _draw(run, f"{name}-{slug(kind)}", f"{label} on {kind}", draw, cells)
            parts.append(fold(code(kind), picture, open=not parts))
    return parts


def _draw(run: Run, name: str, label: str, draw, *data: Any) -> Markup:
    return figure(figures.save(run.figures, name, label, draw, *data))
