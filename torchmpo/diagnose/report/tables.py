"""The tables of a report."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from torchmpo.diagnose.report.contents import Run
from torchmpo.diagnose.report.html import cell, finite, fold, interval, number, table
from torchmpo.diagnose.report.words import (
    diverged_text,
    listed,
    name_html,
    rank_text,
    setting,
)
from torchmpo.statistics import shown


def _line(loss: str) -> str:
    return f'<th scope="row" data-sort="{escape(loss)}">{name_html(loss)}</th>'


def matrix(run: Run) -> str:
    """Loss × data kind."""

    def score(row: Mapping | None, best: Sequence[str]) -> str:
        if row is None:
            return cell("not run", kind="score none")
        mean, digits = row["score"]["mean"], 2 if run.scaled else 0
        ends = interval(row["score"], digits)
        parts = [f"<b>{number(mean, digits)}</b> <small>{ends}</small>"]
        if "return" not in row:
            iqm = row["iqm"]
            parts.append(f"<small>IQM {number(iqm['value'], 2)} {interval(iqm)}</small>")
        elif not finite(row["return"]["mean"]):
            counted = f" <small>counted as {number(mean, digits)}</small>" * finite(mean)
            parts = [f"<b>✕ diverged</b>{counted}"]
        elif row["diverged"]:
            parts.append(f"<small><b>✕ {diverged_text(row)}</b></small>")
        parts.append(f"<small>rank {rank_text(row)}</small>")
        tint = min(abs(mean), 1) * 55 if finite(mean) and run.scaled else 0
        kind = "score below" if tint and mean < 0 else "score"
        kind += " lead" * (row["loss"] in best)
        return cell("<br>".join(parts), mean, kind, f"--tint:{tint:.0f}%")

    pooled = len(run.kinds) > 1 and bool(run.overall)
    head = ["loss", *["#all data"] * pooled, *(f"#{escape(kind)}" for kind in run.kinds)]
    lines = []
    for loss in run.losses:
        every = [score(run.overall.get(loss), run.marked(None))] * pooled
        own = [score(run.rows.get((loss, kind)), run.marked(kind)) for kind in run.kinds]
        lines.append("".join([_line(loss), *every, *own]))
    what = "Normalised score (mean over seeds), interval"
    if not run.scaled:
        what = "Return (mean over seeds), 95 % interval (Student’s t)"
    caption = f"{what}, and rank among the losses"
    return table(head, lines, caption, "sortable matrix")


def full_table(run: Run) -> str:
    """Every row of the leaderboard with all its numbers."""
    head = ["loss", "data", "#return ± s.e.", *["#score", "#IQM"] * run.scaled, "rank"]
    other = "mean-action" if run.config.get("sample") else "sampled"
    twice = any(cell.get("other_returns") for cell in run.cells.values())
    head += [*[f"#{other} return"] * twice, "best setting", "#trials", "#seeds", "#diverged"]
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
                *[_other(run.cells.get((row["loss"], kind), {}))] * twice,
                cell(chosen, setting(row["best"]), "text"),
                *(cell(number(row[k]), row[k], "number") for k in ("trials", "seeds")),
                cell(number(row["diverged"]), row["diverged"], f"number{lost}"),
            ]
            lines.append(_line(row["loss"]) + "".join(columns))
    return table(head, lines, "Every loss on every kind of data")


def _other(found: Mapping) -> str:
    """Mean return of a cell under the other way to act, of the seeds that have one."""
    seeds = [sum(row) / len(row) for row in found.get("other_returns", []) if row]
    mean = sum(seeds) / len(seeds) if seeds else None
    return cell(number(mean), mean, "number")


def differences(run: Run, kind: str | None) -> str:
    """The loss of the highest mean minus every other one, on a kind of data or, ``None``, on all.

    Nothing where fewer than two losses finished.
    """
    found = run.differences.get(kind, {})
    top = next((a for a, lower in found.items() if len(lower) == len(found) - 1), None)
    if top is None or len(found) < 2:
        return ""
    digits = 2 if kind is None else 0
    lines = []
    for loss, entry in sorted(found[top].items(), key=lambda item: item[1]["mean"]):
        told = "shown" if shown(entry) else "not shown"
        cells = [
            cell(f"{number(entry['mean'], digits)}", entry["mean"], "number"),
            cell(interval(entry, digits) or "–", entry["low"], "number"),
            *(cell(_p(entry[key]), entry[key], "number") for key in ("p", "corrected", "wilcoxon")),
            cell(told),
        ]
        lines.append(_line(loss) + "".join(cells))
    head = ["loss", "#difference", "#95 % interval", "#p", "#p, corrected", "#p, Wilcoxon"]
    unit = "score" if kind is None else "return"
    caption = f"{name_html(top)} minus each other loss: mean {unit} over seeds, paired"
    return table([*head, "better?"], lines, caption)


def _p(p: Any) -> str:
    return ("&lt; 0.001" if p < 0.001 else number(p, 3)) if finite(p) else "–"


def why(run: Run, kind: str) -> str:
    """What moved in training, a line per loss; nothing of runs that did not measure it."""
    titles = {
        "chosen": ("#chosen moved", 2),
        "rejected": ("#rejected moved", 2),
        "learned": ("#learned", None),
        "unlearned": ("#unlearned", None),
        "kl_to_start": ("#KL to the start", 2),
        "distance": ("#distance from the data", 2),
    }
    lines = []
    for found in run.cells_on(kind):
        seeds = [seed for seed in found.get("why", []) if seed]
        if not seeds:
            continue
        score = run.rows[found["loss"], kind]["score"]["mean"]
        cells = [cell(number(score, 2 if run.scaled else 0), score, "number")]
        for key, (_, digits) in titles.items():
            mean = sum(seed[key] for seed in seeds) / len(seeds)
            text = _percent(mean) if digits is None else number(mean, digits)
            cells.append(cell(text, mean, "number"))
        lines.append(_line(found["loss"]) + "".join(cells))
    if not lines:
        return ""
    head = ["loss", "#score" if run.scaled else "#return", *(title for title, _ in titles.values())]
    return table(head, lines, "What training moved")


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
    voted = any("agreement" in entry for entry in described(run).values())
    kinds = dict.fromkeys(k for entry in described(run).values() for k in entry["pair_kinds"])
    for kind, entry in described(run).items():
        name = f'<th scope="row">{name_html(kind)}</th>'
        shares = [entry["pair_kinds"].get(k) for k in kinds]
        shares = [
            entry["flipped"],
            *shares,
            entry["target_chosen"],
            *[entry.get("agreement")] * voted,
        ]
        cells = [cell(number(entry["pairs"]), entry["pairs"], "number")]
        cells += [cell(_percent(x), x, "number") for x in shares]
        of_chosen = entry.get("chosen_return")
        cells += [cell(number(of_chosen), of_chosen, "number")]
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
    spread = ["#mean", "#s.d.", "#5 %", "#median", "#95 %"]
    of_pairs = ["data", "#pairs", "#flipped", *(f"#{escape(kind)}" for kind in kinds)]
    of_pairs += ["#target’s chosen", *["#votes for the chosen"] * voted]
    of_pairs += ["#chosen return", *spread]
    of_agents = ["data", "agent", "#trajectories", *spread]
    of_agents += ["#shortest", "#mean length", "#terminated"]
    return table(
        of_pairs,
        pairs,
        "Pairs: flipped labels, whose trajectories are compared, the mean return of the chosen "
        "side, and by how much it is the higher",
    ) + table(of_agents, rows, "Trajectories in the pairs: returns, and lengths in steps")


def described(run: Run) -> dict[str, Mapping]:
    """Statistics of the data that the page shows, by kind."""
    kinds = run.statistics.get("kinds", {}) if "edges" in run.statistics else {}
    return {kind: kinds[kind] for kind in run.kinds if kind in kinds}


def _spread(entry: Mapping) -> list[str]:
    keys = ("mean", "sd", "5 %", "median", "95 %")
    return [cell(number(entry[key]), entry[key], "number") for key in keys]


def _percent(share: Any) -> str:
    return f"{number(100 * share, 1)} %" if finite(share) else "–"
