"""The report of a diagnose run: ``report.html``, with every table and figure inline.

Its numbers are those of the run's JSON files.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from torchmpo.diagnose.report import figures
from torchmpo.diagnose.report.html import cell, document, finite, fold, nested, number, slug, table
from torchmpo.diagnose.report.words import (
    TASKS,
    Run,
    diverged_text,
    findings,
    headline,
    interval,
    leads,
    listed,
    name_html,
    protocol,
    rank_text,
    setting,
)
from torchmpo.runs.command import read_json
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import write_atomic


def write_page(folder: str | Path) -> Path:
    """Write ``report.html`` and ``figures/*.png`` and ``*.svg`` of a run of the diagnostic suite.

    Args:
        folder: of the run: ``leaderboard.json``, and where there are, ``cells/*.json``,
            ``anchors.json``, ``config.yaml`` and ``statistics.json``. The leaderboard decides which
            cells are shown.

    Returns:
        the path of the page.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder = Path(folder)
    board = read_json(folder / "leaderboard.json")
    run = Run(
        board,
        [read_json(path) for path in sorted(folder.glob("cells/*.json"))],
        _optional(folder / "anchors.json"),
        _config(folder / "config.yaml"),
        _optional(folder / "statistics.json"),
        folder / "figures",
    )
    run.figures.mkdir(exist_ok=True)
    for old in [*run.figures.glob("*.png"), *run.figures.glob("*.svg")]:
        old.unlink()  # of a data kind that is no longer in the run
    path = folder / "report.html"
    write_atomic(path, _page(run))
    return path


# Tables -------------------------------------------------------------------------------------------


def _line(loss: str) -> str:
    return f'<th scope="row" data-sort="{escape(loss)}">{name_html(loss)}</th>'


def matrix(run: Run) -> str:
    """Loss × data kind."""

    def score(row: Mapping | None) -> str:
        if row is None:
            return cell("not run", kind="score none")
        mean, digits = row["score"]["mean"], 2 if run.scaled else 0
        told = interval(row["score"], digits)
        parts = [f"<b>{number(mean, digits)}</b> <small>{told}</small>"]
        if "rank" not in row:
            iqm = row["iqm"]
            parts.append(f"<small>IQM {number(iqm['value'], 2)} {interval(iqm)}</small>")
        elif not finite(row["return"]["mean"]):
            counted = f" <small>counted as {number(mean, digits)}</small>" * finite(mean)
            parts = [f"<b>✕ diverged</b>{counted}"]
        elif row["diverged"]:
            parts.append(f"<small><b>✕ {diverged_text(row)}</b></small>")
        if "rank" in row:
            parts.append(f"<small>rank {rank_text(row)}</small>")
        tint = min(abs(mean), 1) * 55 if finite(mean) and run.scaled else 0
        kind = "score below" if tint and mean < 0 else "score"
        kind += " lead" if "rank" in row and leads(row) and len(run.losses) > 1 else ""
        return cell("<br>".join(parts), mean, kind, f"--tint:{tint:.0f}%")

    pooled = len(run.kinds) > 1 and bool(run.overall)
    head = ["loss", *["#all data"] * pooled, *(f"#{escape(kind)}" for kind in run.kinds)]
    lines = []
    for loss in run.losses:
        every = [score(run.overall.get(loss))] * pooled
        own = [score(run.rows.get((loss, kind))) for kind in run.kinds]
        lines.append("".join([_line(loss), *every, *own]))
    what = "Normalised score (mean over seeds), interval"
    if not run.scaled:
        what = "Return (mean over seeds), 95 % interval (Student’s t)"
    caption = f"{what}, and rank among the losses"
    return table(head, lines, caption, "sortable matrix")


def full_table(run: Run) -> str:
    """Every row of the leaderboard with all its numbers."""
    head = ["loss", "data", "#return ± s.e.", *["#score", "#IQM"] * run.scaled, "rank"]
    head += ["best setting", "#trials", "#seeds", "#diverged"]
    lines = []
    for kind in run.kinds:
        for row in run.on(kind):
            value, score, iqm, rank = row["return"], row["score"], row["iqm"], row["rank"]
            error = f" ± {number(value['se'])}" if finite(value["se"]) else ""
            lost = " diverged" * bool(row["diverged"])
            scores = [
                cell(f"{number(score['mean'], 2)} {interval(score)}", score["mean"], "number"),
                cell(f"{number(iqm['value'], 2)} {interval(iqm)}", iqm["value"], "number"),
            ]
            why = "not tuned" if row["best"] else "nothing to tune"
            chosen = _setting(row["best"]) + f"<br><small>{why}</small>" * (not row["trials"])
            columns = [
                cell(escape(kind), run.kinds.index(kind)),
                cell(f"{number(value['mean'])}{error}", value["mean"], "number"),
                *scores * run.scaled,
                cell(rank_text(row), rank["best"] + rank["worst"] / 1000),
                cell(chosen, setting(row["best"]), "text"),
                *(cell(number(row[k]), row[k], "number") for k in ("trials", "seeds")),
                cell(number(row["diverged"]), row["diverged"], f"number{lost}"),
            ]
            lines.append(_line(row["loss"]) + "".join(columns))
    return table(head, lines, "Every loss on every kind of data")


def tuning(run: Run) -> str:
    """For each loss, the mean return of every setting on every kind of data."""
    parts = []
    for loss in run.losses:
        cells = [run.cells[loss, kind] for kind in run.kinds if (loss, kind) in run.cells]
        fixed = [name_html(c["data"]) for c in cells if not c["tuning"]]
        cells = [c for c in cells if c["tuning"]]
        grids: dict[str, list[Mapping]] = {}  # one, unless settings changed between the kinds
        for c in cells:
            grids.setdefault(json.dumps(c["grid"]), []).append(c)
        tables = [f"<p>Not tuned on {listed(fixed, 12)}.</p>"] if fixed else []
        for same in grids.values():
            head = ["setting", *(f"#{escape(c['data'])}" for c in same)]
            lines = [
                f'<th scope="row" data-sort="{i}">{_setting(values)}</th>'
                + "".join(_trial(c["tuning"][i], i == c["best"]) for c in same)
                for i, values in enumerate(same[0]["grid"])
            ]
            caption = "Mean return of each setting in tuning; the best is marked"
            tables.append(table(head, lines, caption))
        if tables:
            parts.append(fold(name_html(loss), "".join(tables)))
    return "\n".join(parts)


def _setting(values: Mapping | None) -> str:
    return escape(setting(values)).replace(" = ", "&nbsp;=&nbsp;")  # lines break between them


def _trial(returns: Sequence, best: bool) -> str:
    known = [r for r in returns if finite(r)]
    if not known or len(known) < len(returns):
        lost = "diverged" if len(returns) == 1 else f"{len(returns) - len(known)} diverged"
        return cell(f'<small class="diverged">✕ {lost}</small>', kind="number")
    mean = sum(known) / len(known)
    seeds = f" <small>({', '.join(map(number, known))})</small>" if len(known) > 1 else ""
    text = f"<mark>{number(mean)}</mark>" if best else number(mean)
    return cell(text + seeds, mean, "number")


def agents(run: Run) -> str:
    """The two agents that made the data, which are 0 and 1 of every score."""
    lines = []
    for role, entry in run.board["anchors"].items():
        returns = [r for r in run.anchors.get(role, []) if finite(r)]
        ends = [min(returns), max(returns)] if returns else [None, None]
        numbers = [entry["mean"], entry["se"], *ends, len(returns) or None]
        zero = {"original": "0", "target": "1"}.get(role, "") if run.scaled else "–"
        cells = [cell(zero, kind="number"), *(cell(number(x), x, "number") for x in numbers)]
        lines.append(f'<th scope="row">{escape(role)} agent</th>' + "".join(cells))
    head = ["", "#score", "#mean return", "#s.e.", "#lowest", "#highest", "#episodes"]
    return table(head, lines, "The agents that made the data", "")


def data_kinds(run: Run) -> str:
    """What each kind of data consists of, and whose trajectories."""
    pairs, rows = [], []
    for kind, entry in _described(run).items():
        name = f'<th scope="row">{name_html(kind)}</th>'
        shares = [entry["flipped"], *entry["pair_kinds"].values(), entry["target_chosen"]]
        cells = [cell(number(entry["pairs"]), entry["pairs"], "number")]
        cells += [cell(_percent(x), x, "number") for x in shares]
        pairs.append(name + "".join([*cells, *_spread(entry["margin"])]))
        for agent, of in entry["agents"].items():
            lengths = [of["length"][key] for key in ("lowest", "mean")]
            cells = [cell(escape(agent), kind="text")]
            cells += [cell(number(of["trajectories"]), of["trajectories"], "number")]
            cells += [*_spread(of["return"]), *(cell(number(x), x, "number") for x in lengths)]
            cells += [cell(_percent(of["terminated"]), of["terminated"], "number")]
            rows.append(name + "".join(cells))
    if not pairs:
        return ""
    kinds = next(iter(_described(run).values()))["pair_kinds"]
    spread = ["#mean", "#s.d.", "#5 %", "#median", "#95 %"]
    of_pairs = ["data", "#pairs", "#flipped", *(f"#{escape(kind)}" for kind in kinds)]
    of_pairs += ["#target’s chosen", *spread]
    of_agents = ["data", "agent", "#trajectories", *spread]
    of_agents += ["#shortest", "#mean length", "#terminated"]
    return table(
        of_pairs,
        pairs,
        "Pairs: flipped labels, whose trajectories are compared, and by how much the chosen "
        "return is the higher",
    ) + table(of_agents, rows, "Trajectories in the pairs: returns, and lengths in steps")


def _described(run: Run) -> dict[str, Mapping]:
    """Statistics of the data that the page shows, by kind."""
    kinds = run.statistics.get("kinds", {}) if "edges" in run.statistics else {}
    return {kind: kinds[kind] for kind in run.kinds if kind in kinds}


def _spread(entry: Mapping) -> list[str]:
    keys = ("mean", "sd", "5 %", "median", "95 %")
    return [cell(number(entry[key]), entry[key], "number") for key in keys]


def _percent(share: Any) -> str:
    return f"{number(100 * share, 1)} %" if finite(share) else "–"


# The page -----------------------------------------------------------------------------------------


def _page(run: Run) -> str:
    task = str(run.board["task"])
    answers = "".join(f"<li>{line}</li>" for line in findings(run))
    head = f"""<p>{protocol(run)}</p>
<div class="answer"><p class="headline">{headline(run)}</p><ul>{answers}</ul></div>"""
    return document(f"Preference losses on {TASKS.get(task, task)}", head, _sections(run))


def _sections(run: Run) -> list[tuple[str, str, str]]:
    """Title, explanation and content; an empty content is left out."""
    board = run.board
    several = len(run.losses) > 1
    return [
        (
            "Leaderboard",
            "Score: 0 is the return of the original agent, 1 that of the target agent. "
            * run.scaled
            + "A rank of 1–3 is a tie: the loss’s interval overlaps others’. A bar at the left: no "
            "other loss is shown to be better on that data.",
            matrix(run),
        ),
        (
            "Scores",
            "Interquartile mean over seeds with its interval. Blue: no other interval lies wholly "
            "above; red: below the original agent. Ranks are by the mean, whose intervals can "
            "differ. What lies beyond the axis is written at its edge.",
            _draw(run, "intervals", "Scores with intervals", figures.intervals, *_columns(run))
            if run.scaled
            else "",
        ),
        (
            "Probability of improvement",
            "How probable it is that a run of the loss on the left beats a run of the loss above. "
            "Blue: above one half, red: below. Bold: the interval excludes one half.",
            '<div class="row">'
            + "".join(
                _captioned(
                    name_html(kind),
                    _draw(
                        run,
                        f"improvement-{slug(kind)}",
                        f"Probability of improvement on {kind}",
                        figures.improvement,
                        board["improvement"].get(kind, {}),
                        [loss for loss in run.losses if (loss, kind) in run.rows],
                    ),
                )
                for kind in run.kinds
            )
            + "</div>"
            if several
            else "",
        ),
        (
            "All numbers",
            "A title sorts by its column. Return: mean ± standard error over seeds"
            + "; score and IQM (interquartile mean, without a quarter of the seeds at each end) "
            "with 95 % bootstrap intervals" * run.scaled + ".",
            full_table(run),
        ),
        (
            "Training",
            "Mean log-probability per step of chosen and rejected responses, and the share of "
            "pairs in which the chosen one is more probable. A line is a seed, a cross the end of "
            "one that diverged. Every panel has its own scale.",
            _by_kind(run, "curves", "Training curves", figures.curves),
        ),
        (
            "Margins",
            "Chosen minus rejected mean log-probability at the end, over all seeds; on the right "
            "the share above 0. The outermost 1 % lie beyond the axes.",
            _by_kind(run, "margins", "Margins at the end", figures.margins),
        ),
        ("Tuning", "The search that came before the fresh seeds.", tuning(run)),
        (
            "Agents",
            "Returns of the two agents whose trajectories are compared.",
            agents(run)
            + (
                _draw(run, "agents", "Returns of the agents", figures.agents, run.anchors)
                if run.anchors
                else ""
            ),
        ),
        (
            "Data",
            "What the preference data turned out to be. Above: returns of the trajectories in the "
            "pairs. Below: the chosen return minus the rejected one; red are flipped labels.",
            _draw(run, "data", "Returns in the data", figures.data, run.statistics["edges"], kinds)
            + data_kinds(run)
            if (kinds := _described(run))
            else "",
        ),
        (
            "Settings",
            "Everything the run can be repeated from.",
            fold("config.yaml", nested(run.config, "Settings of the run")) if run.config else "",
        ),
        ("Reading this page", "", READING),
    ]


def _columns(run: Run) -> tuple[dict, list[str]]:
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


def _optional(path: Path) -> Any:
    return read_json(path) if path.exists() else {}


def _config(path: Path) -> Mapping:
    import yaml

    try:
        config = yaml.safe_load(path.read_text()) if path.exists() else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())})") from error
    return config if isinstance(config, Mapping) else {}


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
