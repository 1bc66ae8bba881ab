"""The tables of a report."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from torchmpo.diagnose.report.contents import Run
from torchmpo.diagnose.report.html import (
    ELEMENTS,
    Cell,
    amount,
    code,
    finite,
    fold,
    heading,
    interval,
    number,
    rank,
    say,
    table,
)
from torchmpo.diagnose.report.words import listed, setting
from torchmpo.diagnose.win_rates import Tournament
from torchmpo.statistics import shown


def matrix(run: Run) -> Markup:
    """Loss × data kind."""

    def score(row: Mapping | None, best: Sequence[str]) -> Cell:
        if row is None:
            return Cell("not run", kind="score none")
        mean = row["score"]["mean"]
        tint = min(abs(mean), 1) * 55 if finite(mean) and run.scaled else 0
        kind = "score below" if tint and mean < 0 else "score"
        kind += " lead" * (row["loss"] in best)
        text = ELEMENTS.score(row, 2 if run.scaled else 0)
        return Cell(text, mean, kind, f"--tint:{tint:.0f}%")

    pooled = len(run.kinds) > 1 and bool(run.overall)
    head = ["loss", *["#all data"] * pooled, *(f"#{kind}" for kind in run.kinds)]
    lines = []
    for loss in run.losses:
        every = [score(run.overall.get(loss), run.marked(None))] * pooled
        own = [score(run.rows.get((loss, kind)), run.marked(kind)) for kind in run.kinds]
        lines.append([_loss(loss), *every, *own])
    what = "Normalised score (mean over seeds), interval"
    if not run.scaled:
        what = "Return (mean over seeds), 95 % interval (Student’s t)"
    caption = f"{what}, and rank among the losses"
    return table(head, lines, caption, "sortable matrix")


def _loss(name: str) -> Cell:
    return heading(code(name), name)


def full_table(run: Run) -> Markup:
    """Every row of the leaderboard with all its numbers."""
    head = ["loss", "data", "#return ± s.e.", *["#score", "#IQM"] * run.scaled, "rank"]
    other = "mean-action" if run.config.get("sample") else "sampled"
    twice = any(cell.get("other_returns") for cell in run.cells.values())
    head += [*[f"#{other} return"] * twice, "best setting", "#trials", "#seeds", "#diverged"]
    costs = run.config.get("rounds", 1) > 1
    head += ["#labels", "#environment steps"] * costs
    lines = []
    for kind in run.kinds:
        for row in run.on(kind):
            value, score, iqm, ranked = row["return"], row["score"], row["iqm"], row["rank"]
            error = f" ± {number(value['se'])}" if finite(value["se"]) else ""
            lost = " diverged" * bool(row["diverged"])
            scores = [
                amount(x, text=f"{number(x, 2)} {interval(of)}")
                for x, of in ((score["mean"], score), (iqm["value"], iqm))
            ]
            why = "not tuned" if row["best"] else "nothing to tune"
            chosen = ELEMENTS.with_note(_setting(row["best"]), why * (not row["trials"]))
            columns = [
                _loss(row["loss"]),
                Cell(kind, run.kinds.index(kind)),
                amount(value["mean"], text=f"{number(value['mean'])}{error}"),
                *scores * run.scaled,
                Cell(rank(row), ranked["best"] + ranked["worst"] / 1000),
                *[_other(run.cells.get((row["loss"], kind), {}))] * twice,
                Cell(chosen, setting(row["best"]), "text"),
                *(amount(row[k]) for k in ("trials", "seeds")),
                Cell(number(row["diverged"]), row["diverged"], f"number{lost}"),
                *[amount(row.get(k)) for k in ("labels", "environment_steps") if costs],
            ]
            lines.append(columns)
    return table(head, lines, "Every loss on every kind of data")


def _other(found: Mapping) -> Cell:
    """Mean return of a cell under the other way to act, of the seeds that have one."""
    seeds = [sum(row) / len(row) for row in found.get("other_returns", []) if row]
    return amount(sum(seeds) / len(seeds) if seeds else None)


def differences(run: Run, kind: str | None) -> Markup:
    """The loss of the highest mean minus every other one, on a kind of data or, ``None``, on all.

    Nothing where fewer than two losses finished.
    """
    found = run.differences.get(kind, {})
    top = next((a for a, lower in found.items() if len(lower) == len(found) - 1), None)
    if top is None or len(found) < 2:
        return Markup()
    digits = 2 if kind is None else 0
    lines = []
    for loss, entry in sorted(found[top].items(), key=lambda item: item[1]["mean"]):
        told = "shown" if shown(entry) else "not shown"
        cells = [
            _loss(loss),
            amount(entry["mean"], digits),
            amount(entry["low"], text=interval(entry, digits) or "–"),
            *(amount(entry[k], text=_p(entry[k])) for k in ("p", "corrected", "wilcoxon")),
            Cell(told),
        ]
        lines.append(cells)
    head = ["loss", "#difference", "#95 % interval", "#p", "#p, corrected", "#p, Wilcoxon"]
    unit = "score" if kind is None else "return"
    caption = say("{} minus each other loss: mean {} over seeds, paired", code(top), unit)
    return table([*head, "better?"], lines, caption)


def _p(p: Any) -> str:
    return ("< 0.001" if p < 0.001 else number(p, 3)) if finite(p) else "–"


def why(run: Run, kind: str) -> Markup:
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
        cells = [_loss(found["loss"]), amount(score, 2 if run.scaled else 0)]
        for key, (_, digits) in titles.items():
            mean = sum(seed[key] for seed in seeds) / len(seeds)
            cells.append(_share(mean) if digits is None else amount(mean, digits))
        lines.append(cells)
    if not lines:
        return Markup()
    head = ["loss", "#score" if run.scaled else "#return", *(title for title, _ in titles.values())]
    return table(head, lines, "What training moved")


def rankings(run: Run, kind: str) -> Markup:
    """How pairs are ranked, which side was pulled at, how soon; nothing of older runs."""
    titles = {
        "ranking": ("#ranked right", None),
        "idealised": ("#of the optimum", None),
        "alignment_gap": ("#gap", None),
        "gradient_start": ("#gradient at chosen, first", None),
        "gradient_end": ("#last", None),
        "drift_chosen": ("#chosen went", 2),
        "drift_chosen_time": ("#half of it by", None),
        "drift_rejected": ("#rejected went", 2),
        "drift_rejected_time": ("#half by", None),
        "area": ("#area", 2),
    }
    lines = []
    for found in run.cells_on(kind):
        cells = [_loss(found["loss"])]
        for key, (_, digits) in titles.items():
            seeds = [seed[key] for seed in found.get("why", []) if seed and key in seed]
            mean = sum(seeds) / len(seeds) if seeds else None
            share = digits is None and mean is not None
            cells.append(_share(mean) if share else amount(mean, digits or 0))
        if any(finite(cell.key) for cell in cells[1:]):
            lines.append(cells)
    if not lines:
        return Markup()
    return table(["loss", *(title for title, _ in titles.values())], lines, "How pairs were ranked")


def win_rates(found: Tournament) -> Markup:
    """Everybody against everybody, and the weights with which nobody wins."""
    names, weights = found.losses, found.mixture.tolist()
    lines = [
        [_loss(name), *map(_share, row), amount(gap, 2), _share(weight)]
        for name, row, gap, weight in zip(names, found.rates.tolist(), found.gaps, weights)
    ]
    head = ["loss", *(f"#against {name}" for name in names), "#gap", "#Nash weight"]
    return table(head, lines, "Win rates of rows against columns, means over seeds")


def baselines(run: Run) -> Markup:
    """What each baseline took, and how good its reward model is, on every kind of data."""
    lines = []
    for kind in run.kinds:
        for found in run.cells_on(kind):
            seeds = found.get("baseline", [])
            if not seeds:
                continue
            mean = {key: sum(own[key] for own in seeds) / len(seeds) for key in seeds[0]}
            steps, tuned = mean["environment_steps"], mean["tuning_environment_steps"]
            score = run.rows[found["loss"], kind]["score"]["mean"]
            cells = [_loss(found["loss"]), Cell(code(kind), kind)]
            cells += [amount(score, 2 if run.scaled else 0), _share(mean["held_out_accuracy"])]
            cells += [amount(mean["labels"], 0), amount(steps, 0), amount(tuned, 0)]
            lines.append(cells)
    if not lines:
        return Markup()
    head = ["baseline", "data", "#score" if run.scaled else "#return", "#held-out accuracy"]
    head += ["#labels", "#environment steps", "#of tuning, once"]
    return table(head, lines, "Baselines: what they took, means over seeds")


def tuning(run: Run) -> list[Markup]:
    """For each loss, the mean return of every setting on every kind of data."""
    parts = []
    for loss in run.losses:
        cells = [run.cells[loss, kind] for kind in run.kinds if (loss, kind) in run.cells]
        fixed = [code(c["data"]) for c in cells if not c["tuning"]]
        cells = [c for c in cells if c["tuning"]]
        grids: dict[str, list[Mapping]] = {}  # one, unless settings changed between the kinds
        for c in cells:
            grids.setdefault(json.dumps(c["grid"]), []).append(c)
        told = [say("Not tuned on {}.", listed(fixed, 12))] if fixed else []
        content = ELEMENTS.paragraphs(told)
        for same in grids.values():
            head = ["setting", *(f"#{c['data']}" for c in same)]
            lines = [
                [heading(_setting(values), i)]
                + [_trial(c["tuning"][i], i == c["best"]) for c in same]
                for i, values in enumerate(same[0]["grid"])
            ]
            caption = "Mean return of each setting in tuning; the best is marked"
            content += table(head, lines, caption)
        if content.strip():
            parts.append(fold(code(loss), content))
    return parts


def _setting(values: Mapping | None) -> str:
    return setting(values).replace(" = ", "\xa0=\xa0")  # lines break between them


def _trial(returns: Sequence, best: bool) -> Cell:
    known = [r for r in returns if finite(r)]
    if not known or len(known) < len(returns):
        lost = "diverged" if len(returns) == 1 else f"{len(returns) - len(known)} diverged"
        return amount(None, text=ELEMENTS.lost(lost))
    mean = sum(known) / len(known)
    return amount(mean, text=ELEMENTS.trial(mean, known, best))


def agents(run: Run) -> Markup:
    """The two agents that made the data, which are 0 and 1 of every score, and the start."""
    lines = []
    low, high = (run.board["anchors"][agent]["mean"] for agent in ("original", "target"))
    for role, entry in run.board["anchors"].items():
        returns = [r for r in run.anchors.get(role, []) if finite(r)]
        ends = [min(returns), max(returns)] if returns else [None, None]
        numbers = [entry["mean"], entry["se"], *ends, len(returns) or None]
        name = "start of training" if role == "start" else f"{role} agent"
        score = (entry["mean"] - low) / (high - low) if run.scaled else None
        text = number(score, 2 if role == "start" else 0)
        lines.append([heading(name), amount(None, text=text), *map(amount, numbers)])
    head = ["", "#score", "#mean return", "#s.e.", "#lowest", "#highest", "#episodes"]
    return table(head, lines, "The agents that made the data, and the start", "")


def data_kinds(run: Run) -> list[Markup]:
    """What each kind of data consists of, and whose trajectories."""
    pairs, rows = [], []
    voted = any("agreement" in entry for entry in described(run).values())
    kinds = dict.fromkeys(k for entry in described(run).values() for k in entry["pair_kinds"])
    for kind, entry in described(run).items():
        name = heading(code(kind), kind)
        shares = [entry["flipped"], *map(entry["pair_kinds"].get, kinds), entry["target_chosen"]]
        shares += [entry.get("agreement")] * voted
        cells = [name, amount(entry["pairs"]), *map(_share, shares)]
        pairs.append([*cells, amount(entry.get("chosen_return")), *_spread(entry["margin"])])
        for agent, of in entry["agents"].items():
            lengths = [of["length"][key] for key in ("lowest", "mean")]
            cells = [name, Cell(agent, kind="text"), amount(of["trajectories"])]
            cells += [*_spread(of["return"]), *map(amount, lengths), _share(of["terminated"])]
            rows.append(cells)
    if not pairs:
        return []
    spread = ["#mean", "#s.d.", "#5 %", "#median", "#95 %"]
    of_pairs = ["data", "#pairs", "#flipped", *(f"#{kind}" for kind in kinds)]
    of_pairs += ["#target’s chosen", *["#votes for the chosen"] * voted]
    of_pairs += ["#chosen return", *spread]
    of_agents = ["data", "agent", "#trajectories", *spread]
    of_agents += ["#shortest", "#mean length", "#terminated"]
    what = (
        "Pairs: flipped labels, whose trajectories are compared, the mean return of the chosen "
        "side, and by how much it is the higher"
    )
    whose = "Trajectories in the pairs: returns, and lengths in steps"
    return [table(of_pairs, pairs, what), table(of_agents, rows, whose)]


def described(run: Run) -> dict[str, Mapping]:
    """Statistics of the data that the page shows, by kind."""
    kinds = run.statistics.get("kinds", {}) if "edges" in run.statistics else {}
    return {kind: kinds[kind] for kind in run.kinds if kind in kinds}


def _spread(entry: Mapping) -> list[Cell]:
    return [amount(entry[key]) for key in ("mean", "sd", "5 %", "median", "95 %")]


def _share(share: Any) -> Cell:
    return amount(share, text=f"{number(100 * share, 1)} %" if finite(share) else "–")
