"""What a run of the diagnostic suite says, in words: what was done, what is best, what broke."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from html import escape

from torchmpo.control.kinds import describe
from torchmpo.diagnose.report.contents import Run
from torchmpo.diagnose.report.html import finite, interval, number
from torchmpo.runs.command import duration
from torchmpo.runs.errors import UserError
from torchmpo.statistics import least_shown

TASKS = {"tla": "the three-legged ant", "ant": "Ant", "hopper": "Hopper"}
NAMED = 6  # losses a sentence may list
ENOUGH_SEEDS = 10  # from here on, more seeds change little in what can be shown


def setting(values: Mapping | None) -> str:
    """Hyper-parameters in a line."""
    if values is None:
        return "–"
    return ", ".join(f"{k} = {v:g}" if finite(v) else f"{k} = {v}" for k, v in values.items()) or (
        "defaults"
    )


def span(values: Iterable[int]) -> str:
    """``5``, or ``5 to 10`` where they differ."""
    low, high = min(values := list(values), default=0), max(values, default=0)
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def count(n: int, what: str) -> str:
    """``1 loss``, ``2 losses``."""
    return f"{n} {what}{'' if n == 1 else 'es' if what.endswith('s') else 's'}"


def listed(words: Sequence[str], most: int = NAMED) -> str:
    """``a, b and c``; of many, the first and how many more. The words are HTML."""
    shown, more = list(words[:most]), len(words) - most
    if more > 0:
        shown.append(f"{more} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def protocol(run: Run) -> str:
    """What was done, in a sentence or two."""
    rows, config = list(run.rows.values()), run.config
    used = {key: run.board.get(key, config.get(key)) for key in ("pairs", "start")}
    known = run.statistics.get("kinds", {})
    sizes = [known[kind]["pairs"] for kind in run.kinds if kind in known] or [used["pairs"]]
    pairs = f", {span(sizes)} pairs each" if all(map(finite, sizes)) else ""
    epochs = f" for {number(config['epochs'])} epochs" if finite(config.get("epochs")) else ""
    starts = {"original": ", from the original agent", "scratch": ", from scratch"}
    start = starts.get(str(used["start"]), "")
    again = ", each going on from a new start where it ended early" * bool(
        run.board.get("auto_reset")
    )
    kinds = listed([name_html(k) for k in run.kinds], 12)
    what = (
        f"{count(len(run.losses), 'loss')} on {count(len(run.kinds), 'kind')} of preference data "
        f"({kinds}{pairs}) from {escape(TASKS.get(run.board['task'], str(run.board['task'])))}. "
    )
    if not (trained := [r for r in rows if r["episodes"]]):
        return f"{what}No training came to its end."
    return (
        f"{what}{_tuned(run)} on {span(r['seeds'] for r in trained)} "
        f"fresh seeds{epochs}{start}, and judged by the true return of "
        f"{span(r['episodes'] for r in trained)} episodes per seed{again}."
    )


def made(run: Run) -> str:
    """Version, date, machine, time and command of a run; what is not recorded is left out."""
    parts = []
    if run.commands:
        first, last = run.commands[0], run.commands[-1]
        days = dict.fromkeys(entry["date"][:10] for entry in (first, last))
        parts += [f"torchmpo {escape(last['torchmpo'])}", escape(" to ".join(days))]
    for entry in run.machines[:3]:
        cores = entry.get("cores")
        on = f", {count(cores, 'core')}" if isinstance(cores, int) else ""
        parts.append(escape(f"{entry.get('processor', 'unknown processor')}{on}"))
    if seconds := sum(cell.get("seconds", 0) for cell in run.cells.values()):
        parts.append(f"{duration(seconds)} of computing for the cells")
    text = " · ".join(parts)
    commands = dict.fromkeys(entry["command"] for entry in run.commands)
    return "<br>".join([text, *(f"<code>{escape(command)}</code>" for command in commands)])


def terms(run: Run) -> str:
    """What is compared, before the first number: agents, kinds of data, scores."""
    means = {agent: entry["mean"] for agent, entry in run.board["anchors"].items()}
    robot = escape(TASKS.get(run.board["task"], str(run.board["task"])))
    scored = {"original": ", which is a score of 0", "target": ", which is a score of 1"}
    of = {agent: f"{number(means[agent])}{scored[agent] * run.scaled}" for agent in means}
    lines = {
        "Task": f"A policy moves {robot}. What counts is its <b>return</b>, the sum of the rewards "
        "of an episode. No loss sees it: it is what losses are judged by.",
        "Original agent": f"The policy to be improved. Its mean return is {of['original']}.",
        "Target agent": f"A better policy. Its mean return is {of['target']}. The two agents made "
        "the trajectories that the data compares, unless the kind of data says otherwise.",
        "Preference data": "Pairs of trajectories, of which one is called the better. A loss "
        "learns from these and nothing else.",
    }
    if run.scaled:
        lines["Score"] = (
            "The return on a scale on which the original agent is 0 and the target agent 1. Below "
            "0, training made the agent worse; above 1, better than what it learned from."
        )
    body = "".join(f"<dt>{term}</dt><dd>{line}</dd>" for term, line in lines.items())
    return f"<dl>{body}</dl>{kinds_html(run)}"


def _tuned(run: Run) -> str:
    """The part of the protocol that says how settings were found, up to the training."""
    tried = [r["trials"] for r in run.rows.values() if r["trials"]]
    fixed = [x for x in run.losses if not any(run.rows[k]["trials"] for k in run.rows if k[0] == x)]
    if not tried:
        return "Nothing was tuned: on each, a loss was trained"
    nothing = f" ({listed([name_html(x) for x in fixed])} not)" if fixed else ""
    return (
        f"On each, a loss was tuned over {span(tried)} settings of its hyper-parameters{nothing}; "
        "the best was trained anew"
    )


def headline(run: Run) -> str:
    """The answer in a line: which loss is best, or that this is not known."""
    tops = [set(run.best(kind)) for kind in run.kinds]
    many = "each kind of data" if len(tops) > 1 else name_html(run.kinds[0])
    everywhere = [loss for loss in run.losses if all(loss in top for top in tops)]
    if len(run.losses) == 1:
        return f"{name_html(run.losses[0])} alone was run: there is nothing to compare it with."
    if not any(interval(r["score"]) for r in run.rows.values()):
        return "One seed each: there are no intervals, so no loss can be called better."
    if len(everywhere) == len(run.losses):
        return f"No loss can be told from another on {many}."
    if len(everywhere) == 1 and all(len(top) == 1 for top in tops):
        return f"{name_html(everywhere[0])} is best on {many}."
    if everywhere:
        names = listed([name_html(x) for x in everywhere])
        where = "on any kind of data" if len(tops) > 1 else f"on {many}"
        others = "every other loss is shown to be worse than another on at least one kind"
        named = f"; {others}." if len(tops) > 1 else "."
        return f"No loss is shown to be better than {names.replace(' and ', ' or ')} {where}{named}"
    often = {loss: sum(loss in top for top in tops) for loss in run.losses}
    most = [name_html(loss) for loss in run.losses if often[loss] == max(often.values())]
    verb = "is" if len(most) == 1 else "are"
    return (
        "No loss is among the best on every kind of data; "
        f"{listed(most)} {verb} on {max(often.values())} of {len(tops)}."
    )


def findings(run: Run) -> list[str]:
    """The best on each kind of data, and what broke."""
    lines = []
    if not run.scaled:
        low, high = (number(run.board["anchors"][a]["mean"]) for a in ("original", "target"))
        lines.append(
            f"<b>No scores:</b> the target agent’s mean return, {high}, is not above the "
            f"original’s, {low}. Returns stand in their place."
        )
    for kind in run.kinds:
        rows = run.on(kind)
        best = [run.rows[loss, kind] for loss in run.best(kind)]
        named = [f"{name_html(r['loss'])} ({run.score(r)})" for r in best]
        where = f"<b>{escape(kind)}:</b>"
        if not best:
            lines.append(f"{where} no training of any loss finished.")
        elif len(rows) == 1:
            lines.append(f"{where} {named[0]}.")
        elif not interval(best[0]["score"]):
            lines.append(f"{where} highest {named[0]}; without an interval that is no ranking.")
        elif len(best) == 1 and best[0]["rank"]["worst"] == 1:
            lines.append(f"{where} {named[0]}, shown to be better than every other loss.")
        elif len(best) == 1:
            lines.append(f"{where} {named[0]}; of every other loss a better one is shown.")
        else:
            lines.append(
                f"{where} {count(len(best), 'loss')} of {len(rows)} cannot be told apart: "
                f"{listed(named, 4)}."
            )
    if len(run.kinds) > 1 and (best := run.marked(None)):
        named = listed([name_html(loss) for loss in best], 4)
        told = f"{count(len(best), 'loss')} of {len(run.overall)} cannot be told apart: {named}"
        if len(best) == 1:
            told = f"of every loss but {named} a better one is shown"
        lines.append(f"<b>All data together:</b> {told}.")
    lines += _few(run)
    if ends := chosen_side(run):
        lines.append(ends)
    measured = [r for r in run.rows.values() if finite(r["return"]["mean"])]
    # Where there is no interval, there is only the mean to go by.
    tops = {key: "high" if interval(r["score"]) else "mean" for key, r in run.rows.items()}
    below = [r for r in measured if r["score"][tops[r["loss"], r["data"]]] < run.zero]
    if below := sorted(below, key=lambda r: r["score"]["mean"]):
        named = [f"{name_html(r['loss'])} on {escape(r['data'])} ({run.score(r)})" for r in below]
        lines.append(f"<b>Worse than the original agent:</b> {listed(named)}.")
    if broken := [r for r in run.rows.values() if r["diverged"]]:
        named = [
            f"{name_html(r['loss'])} on {escape(r['data'])} ({diverged_text(r)})" for r in broken
        ]
        lines.append(f"<b>Diverged:</b> {listed(named)}.")
    if named := [
        f"{name_html(loss)} on {escape(kind)} ({', '.join(map(escape, cell['edge']))})"
        for (loss, kind), cell in run.cells.items()
        if cell.get("edge")
    ]:
        lines.append(
            f"<b>Best at the end of a range:</b> {listed(named)}. A better value may lie beyond."
        )
    if named := [
        f"{name_html(loss)} on {escape(kind)} ({100 * share:.2g} %)"
        for (loss, kind), share in _clamped(run).items()
        if share
    ]:
        lines.append(
            "<b>Densities near 1 or above:</b> of the mean log-probabilities watched, over all "
            f"epochs, so many are clamped where a loss takes their logit: {listed(named)}."
        )
    return lines


def _few(run: Run) -> list[str]:
    """That many losses want more seeds, where there are too few of them."""
    seeds, losses = min(row["seeds"] for row in run.rows.values()), len(run.losses)
    if losses < 2 or not 1 < seeds < ENOUGH_SEEDS:
        return []
    now, then = (least_shown(n, losses) for n in (seeds, ENOUGH_SEEDS))
    return [
        f"<b>Few seeds:</b> with {count(losses, 'loss')} and {seeds} seeds, a difference is shown "
        f"where it is some {number(now, 1)} times its standard error; with {ENOUGH_SEEDS} seeds "
        f"{number(then, 1)} times would do. A loss of a low score can be among the best "
        "for want of seeds."
    ]


def _clamped(run: Run) -> dict[tuple[str, str], float]:
    """The share of log-probabilities that a logit clamps, highest first."""
    shares = {}
    for key, cell in run.cells.items():
        seeds = (cell.get("curves") or {}).get("clamped") or []
        values = [share for seed in seeds for share in seed or [] if finite(share)]
        shares[key] = sum(values) / len(values) if values else 0.0
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def chosen_side(run: Run) -> str:
    """What the chosen side returns on each kind of data.

    A perfect imitation ends there if it is as noisy as the data's agents. Policies are judged by
    their mean actions as a rule, so that imitation may end above.
    """
    ends = []
    for kind in run.kinds:
        value = run.statistics.get("kinds", {}).get(kind, {}).get("chosen_return")
        if finite(value):
            low, high = (run.board["anchors"][agent]["mean"] for agent in ("original", "target"))
            scored = f" ({number((value - low) / (high - low), 2)})" if run.scaled else ""
            ends.append(f"{number(value)}{scored} on {escape(kind)}")
    if not ends:
        return ""
    return (
        f"<b>What is chosen</b> in the data returns {listed(ends, 12)}, with the noise that its "
        "agents acted with. Beside it, the score of sft says what imitation alone is worth."
    )


def fell(run: Run, kind: str) -> str:
    """Which losses ended below the original agent, and what moved first; a paragraph each."""
    lines = []
    for cell in run.cells_on(kind):
        score = run.rows[cell["loss"], kind]["score"]["mean"]
        if not finite(score) or score >= run.zero:
            continue
        curves, first = cell.get("curves") or {}, []
        for side in ("chosen", "rejected"):
            when = _first_below(curves, side)
            if when is not None:
                first.append((when, side))
        line = f"{name_html(cell['loss'])} ended at {number(score, 2 if run.scaled else 0)}."
        for when, side in sorted(first):
            line += f" The likelihood of the {side} side was below its start from epoch {when} on."
        if not first:
            line += " Neither side’s likelihood ended below its start: look at the distances."
        lines.append(f"<p>{line}</p>")
    return "".join(lines)


def _first_below(curves: Mapping, side: str) -> int | None:
    """The epoch from which on the mean of a curve over seeds stays below its first value."""
    rows = [row for row in curves.get(side) or [] if row and all(map(finite, row))]
    epochs = curves.get("epoch") or []
    if not rows or len(rows[0]) != len(epochs):
        return None
    mean = [sum(values) / len(rows) for values in zip(*rows, strict=True)]
    below = [value < mean[0] for value in mean]
    if not below[-1]:
        return None
    last_above = max(i for i, under in enumerate(below) if not under)
    return epochs[last_above + 1]


def kinds_html(run: Run) -> str:
    """What the kinds of data mean, a line for each of their parts."""
    parts: dict[str, str] = {}
    for kind in run.kinds:
        with suppress(UserError):  # of a version that knew other kinds
            parts |= dict(describe(kind))
    lines = [f"<dt>{name_html(part)}</dt><dd>{escape(line)}</dd>" for part, line in parts.items()]
    return f"<dl>{''.join(lines)}</dl>" * bool(lines)


def name_html(name: str) -> str:
    """A name from a user as HTML; a long one may break after its dots and colons."""
    parts = re.split(r"(?<=[.:/])(?=\w)", name)
    return f"<code>{'<wbr>'.join(map(escape, parts))}</code>"


def diverged_text(row: Mapping) -> str:
    """How many seeds of a row diverged."""
    return f"{row['diverged']} of {count(row['seeds'], 'seed')}"


def rank_text(row: Mapping) -> str:
    """The rank of a row, from best to worst where it is tied."""
    best, worst = row["rank"]["best"], row["rank"]["worst"]
    return f"{best}" if best == worst else f"{best}–{worst}"
