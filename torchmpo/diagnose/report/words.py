"""What a run of the diagnostic suite says, in words: what was done, what is best, what broke."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from markupsafe import Markup

from torchmpo.control.kinds import describe
from torchmpo.diagnose.report.contents import Run
from torchmpo.diagnose.report.html import code, count, diverged, finite, interval, number, say
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


def listed(words: Sequence[str], most: int = NAMED, last: str = "and") -> Markup:
    """``a, b and c``; of many, the first and how many more."""
    shown, more = list(words[:most]), len(words) - most
    if more > 0:
        shown.append(f"{more} more")
    first = Markup(", ").join(shown[:-1])
    return say("{} {} {}", first, last, shown[-1]) if first else say("{}", shown[-1])


_LATER = "all but the first on trajectories of its own policy"
ROUNDS = {  # by the loop
    "iterated": _LATER,
    "extragradient": _LATER,
    "spin": "each with its own policy’s trajectories in place of the rejected ones",
    "spo": "each on trajectories of its own policy",
}


def protocol(run: Run) -> Markup:
    """What was done, in a sentence or two."""
    rows, config = list(run.rows.values()), run.config
    used = {key: run.board.get(key, config.get(key)) for key in ("pairs", "start")}
    known = run.statistics.get("kinds", {})
    sizes = [known[kind]["pairs"] for kind in run.kinds if kind in known] or [used["pairs"]]
    pairs = f", {span(sizes)} pairs each" if all(map(finite, sizes)) else ""
    epochs = f" for {number(config['epochs'])} epochs" if finite(config.get("epochs")) else ""
    starts = {"original": ", from the original agent", "scratch": ", from scratch"}
    start = starts.get(str(used["start"]), "")
    if (rounds := config.get("rounds", 1)) > 1:
        start += f", in {number(rounds)} rounds, {ROUNDS[config.get('loop', 'iterated')]}"
    again = run.board.get("auto_reset")
    what = say(
        "{} on {} of preference data ({}{}) from {}.",
        count(len(run.losses), "loss"),
        count(len(run.kinds), "kind"),
        listed([code(k) for k in run.kinds], 12),
        pairs,
        TASKS.get(run.board["task"], str(run.board["task"])),
    )
    if not (trained := [r for r in rows if r["episodes"]]):
        return say("{} No training came to its end.", what)
    return say(
        "{} {} on {} fresh seeds{}, and judged by the true return of {} episodes per seed{}.",
        what,
        _tuned(run),
        span(r["seeds"] for r in trained),
        epochs + start,
        span(r["episodes"] for r in trained),
        ", each going on from a new start where it ended early" if again else "",
    )


def made(run: Run) -> list[str]:
    """Version, date, machine and time of a run; what is not recorded is left out."""
    parts = []
    if run.commands:
        first, last = run.commands[0], run.commands[-1]
        days = dict.fromkeys(entry["date"][:10] for entry in (first, last))
        parts += [f"torchmpo {last['torchmpo']}", " to ".join(days)]
    for entry in run.machines[:3]:
        cores = entry.get("cores")
        on = f", {count(cores, 'core')}" if isinstance(cores, int) else ""
        parts.append(f"{entry.get('processor', 'unknown processor')}{on}")
    if seconds := sum(cell.get("seconds", 0) for cell in run.cells.values()):
        parts.append(f"{duration(seconds)} of computing for the cells")
    return parts


def _tuned(run: Run) -> Markup:
    """The part of the protocol that says how settings were found, up to the training."""
    tried = [r["trials"] for r in run.rows.values() if r["trials"]]
    fixed = [x for x in run.losses if not any(run.rows[k]["trials"] for k in run.rows if k[0] == x)]
    if not tried:
        return say("Nothing was tuned: on each, a loss was trained")
    nothing = say(" ({} not)", listed([code(x) for x in fixed])) if fixed else ""
    return say(
        "On each, a loss was tuned over {} settings of its hyper-parameters{}; the best was "
        "trained anew",
        span(tried),
        nothing,
    )


def headline(run: Run) -> Markup:
    """The answer in a line: which loss is best, or that this is not known."""
    tops = [set(run.best(kind)) for kind in run.kinds]
    many = "each kind of data" if len(tops) > 1 else code(run.kinds[0])
    everywhere = [loss for loss in run.losses if all(loss in top for top in tops)]
    if len(run.losses) == 1:
        alone = "{} alone was run: there is nothing to compare it with."
        return say(alone, code(run.losses[0]))
    if not any(_finished(row) for row in run.rows.values()):
        return say("No training of any loss finished.")
    if not any(interval(r["score"]) for r in run.rows.values()):
        return say("One seed each: there are no intervals, so no loss can be called better.")
    if len(everywhere) == len(run.losses):
        return say("No loss can be told from another on {}.", many)
    if len(everywhere) == 1 and all(len(top) == 1 for top in tops):
        return say("{} is best on {}.", code(everywhere[0]), many)
    if everywhere:
        names = listed([code(x) for x in everywhere], last="or")
        where = "any kind of data" if len(tops) > 1 else many
        others = "; every other loss is shown to be worse than another on at least one kind"
        if _not_run(run):
            others = "; of the others that ran on all of them, each is shown to be worse on one"
        named = others if len(tops) > 1 else ""
        return say("No loss is shown to be better than {} on {}{}.", names, where, named)
    often = {loss: sum(loss in top for top in tops) for loss in run.losses}
    most = [code(loss) for loss in run.losses if often[loss] == max(often.values())]
    return say(
        "No loss is among the best on every kind of data; {} {} on {} of {}.",
        listed(most),
        "is" if len(most) == 1 else "are",
        max(often.values()),
        len(tops),
    )


def _finished(row: Mapping) -> bool:
    """Whether a training of it came to its end."""
    return finite(row["return"]["mean"])


def _not_run(run: Run) -> list[tuple[str, str]]:
    """Losses and kinds of data of which there is no cell: the loss itself failed there."""
    return [(x, kind) for x in run.losses for kind in run.kinds if (x, kind) not in run.rows]


def findings(run: Run) -> list[tuple[str, Markup]]:
    """The best on each kind of data, and what broke: topics, and what is to be said of each."""
    lines: list[tuple[str, Markup]] = []

    def add(topic: str, text: str, *values: object) -> None:
        lines.append((topic, say(text, *values)))

    def where(row: Mapping, note: str) -> Markup:
        return say("{} on {} ({})", code(row["loss"]), row["data"], note)

    if not run.scaled:
        low, high = (number(run.board["anchors"][a]["mean"]) for a in ("original", "target"))
        add(
            "No scores:",
            "the target agent’s mean return, {}, is not above the original’s, {}. Returns stand in "
            "their place.",
            high,
            low,
        )
    for kind in run.kinds:
        rows, topic = run.on(kind), f"{kind}:"
        best = [run.rows[loss, kind] for loss in run.best(kind)]
        named = [say("{} ({})", code(r["loss"]), run.score(r)) for r in best]
        if not best:
            add(topic, "no training of any loss finished.")
        elif len(rows) == 1:
            add(topic, "{}.", named[0])
        elif not interval(best[0]["score"]):
            add(topic, "highest {}; without an interval that is no ranking.", named[0])
        elif len(best) == 1 and best[0]["rank"]["worst"] == 1:
            add(topic, "{}, shown to be better than every other loss.", named[0])
        elif len(best) == 1:
            add(topic, "{}; of every other loss a better one is shown.", named[0])
        else:
            tied = "{} of {} cannot be told apart: {}."
            add(topic, tied, count(len(best), "loss"), len(rows), listed(named, 4))
    if len(run.kinds) > 1 and (best := run.marked(None)):
        topic, named = "All data together:", listed([code(loss) for loss in best], 4)
        if len(best) == 1 and _not_run(run):
            add(topic, "of every loss that ran on all, but {}, a better one is shown.", named)
        elif len(best) == 1:
            add(topic, "of every loss but {} a better one is shown.", named)
        else:
            tied = "{} of {} cannot be told apart: {}."
            add(topic, tied, count(len(best), "loss"), len(run.overall), named)
    if missing := _not_run(run):
        named = listed([say("{} on {}", code(loss), kind) for loss, kind in missing], 12)
        add("Not run:", "{}; what is said of every kind leaves those losses out.", named)
    if any(_finished(row) for row in run.rows.values()):
        lines += _few(run)
    if "sft" in run.losses:
        own = [(k, row) for k in run.kinds if (row := run.rows.get(("sft", k))) and _finished(row)]
        alone = [f"{run.score(row)} on {k}" for k, row in own]
        if alone:
            told = "sft, which never sees what was rejected, {}."
            add("Imitation alone:", told, listed(alone, 12))
    if ends := _chosen_side(run):
        add(
            "What is chosen",
            "in the data returns {}, with the noise that its agents acted with.",
            listed(ends, 12),
        )
    measured = [r for r in run.rows.values() if _finished(r)]
    # Where there is no interval, there is only the mean to go by.
    tops = {key: "high" if interval(r["score"]) else "mean" for key, r in run.rows.items()}
    below = [r for r in measured if r["score"][tops[r["loss"], r["data"]]] < run.zero]
    if below := sorted(below, key=lambda r: r["score"]["mean"]):
        add(
            "Worse than the original agent:",
            "{}.",
            listed([where(row, run.score(row)) for row in below]),
        )
    if broken := [where(r, diverged(r)) for r in run.rows.values() if r["diverged"]]:
        add("Diverged:", "{}.", listed(broken))
    if edges := [where(c, ", ".join(c["edge"])) for c in run.cells.values() if c.get("edge")]:
        told = "{}. A better value may lie beyond."
        add("Best at the end of a range:", told, listed(edges))
    clamped = _clamped(run)
    if named := [where(run.cells[k], f"{100 * x:.2g} %") for k, x in clamped.items() if x]:
        add(
            "Densities near 1 or above:",
            "of the mean log-probabilities watched, over all epochs, so many are clamped where a "
            "loss takes their logit: {}.",
            listed(named),
        )
    return lines


def _few(run: Run) -> list[tuple[str, Markup]]:
    """That many losses want more seeds, where there are too few of them."""
    seeds, losses = min(row["seeds"] for row in run.rows.values()), len(run.losses)
    if losses < 2 or not 1 < seeds < ENOUGH_SEEDS:
        return []
    now, then = (least_shown(n, losses) for n in (seeds, ENOUGH_SEEDS))
    told = (
        f"with {count(losses, 'loss')} and {seeds} seeds, a difference is shown where it is some "
        f"{number(now, 1)} times its standard error; with {ENOUGH_SEEDS} seeds {number(then, 1)} "
        "times would do. A loss of a low score can be among the best for want of seeds."
    )
    return [("Few seeds:", say("{}", told))]


def _clamped(run: Run) -> dict[tuple[str, str], float]:
    """The share of log-probabilities that a logit clamps, highest first."""
    shares = {}
    for key, cell in run.cells.items():
        seeds = (cell.get("curves") or {}).get("clamped") or []
        values = [share for seed in seeds for share in seed or [] if finite(share)]
        shares[key] = sum(values) / len(values) if values else 0.0
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _chosen_side(run: Run) -> list[str]:
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
            ends.append(f"{number(value)}{scored} on {kind}")
    return ends


def fell(run: Run, kind: str) -> dict[str, Markup]:
    """Which losses ended below the original agent, and what moved first; a paragraph each."""
    lines = {}
    for cell in run.cells_on(kind):
        row = run.rows[cell["loss"], kind]
        score = row["score"]["mean"]
        # Of a loss that always diverged the score is the worst of the others.
        if not _finished(row) or not finite(score) or score >= run.zero:
            continue
        curves, first = cell.get("curves") or {}, []
        for side in ("chosen", "rejected"):
            when = _first_below(curves, side)
            if when is not None:
                first.append((when, side))
        digits = 2 if run.scaled else 0
        line = say("{} ended at {}.", code(cell["loss"]), number(score, digits))
        for when, side in sorted(first):
            line += f" The likelihood of the {side} side was below its start from epoch {when} on."
        if not first:
            line += " Neither side’s likelihood ended below its start: look at the distances."
        lines[cell["loss"]] = line + _first_moved(cell)
    return lines


def _first_moved(cell: Mapping) -> str:
    """How far each side went in the preference phase, and which had gone half of that first."""
    known, went, times = [why for why in cell.get("why", ()) if why], {}, {}
    for side in ("chosen", "rejected"):
        for key, found in ((f"drift_{side}", went), (f"drift_{side}_time", times)):
            values = [why[key] for why in known if key in why]
            if not values:
                return ""
            found[side] = sum(values) / len(values)
    first, last = sorted(times, key=lambda side: times[side])
    return (
        f" In the preference phase the chosen side went by {number(went['chosen'], 2)} and the "
        f"rejected one by {number(went['rejected'], 2)} nats per step at most; the {first} side "
        f"had gone half of its way after {100 * times[first]:.0f} % of it, the {last} side after "
        f"{100 * times[last]:.0f} %."
    )


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


def kinds_told(run: Run) -> dict[str, str]:
    """What the kinds of data mean, a line for each of their parts."""
    parts: dict[str, str] = {}
    for kind in run.kinds:
        with suppress(UserError):  # of a version that knew other kinds
            parts |= dict(describe(kind))
    return parts
