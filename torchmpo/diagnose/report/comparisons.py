"""Sections about several cells: what a setting does, how errors fall with data, over-optimisation.

Their numbers are the rows of ``comparisons.json``, see :mod:`torchmpo.diagnose.comparisons`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from torchmpo.diagnose.effects import ALL, LOST
from torchmpo.diagnose.report import comparison_figures, figures
from torchmpo.diagnose.report.contents import Run
from torchmpo.diagnose.report.html import (
    ELEMENTS,
    Cell,
    Section,
    amount,
    code,
    figure,
    finite,
    fold,
    heading,
    interval,
    number,
    say,
    table,
)
from torchmpo.runs.files import slug

# What no value means, where it is not what the task brings.
NULL = {
    "learning_rate": "a tuned one",
    "steps_per_trajectory": "all",
    "reference_sync": "never",
}


def effects(run: Run) -> Section:
    """What each changed setting does to each loss."""
    note = (
        "One setting changed at a time, everything else as in this run: the score with the change "
        "minus the score without, seed by seed, with 95 % intervals (Student’s t). Grey: a loss on "
        "a kind of data; dark, with its interval: the mean of all. A seed that diverged counts as "
        "the worst run of its data. Intervals are of one row by "
        "itself: of twenty, one is expected to leave out 0 by chance."
    )
    rows = run.comparisons.get("effects", [])
    if not rows:
        return Section("Effects of settings", note, [])
    whole = _of_all(rows)
    told = ELEMENTS.paragraphs([_effect(run, row) for row in whole])
    picture = figures.save(
        run.figures, "effects", "Effects of settings", comparison_figures.effects, rows, run.scaled
    )
    digits = 2 if run.scaled else 0
    lines = [
        [
            heading(f"{row['setting']} = {row['value']}"),
            Cell("all losses" if row["loss"] == ALL else code(row["loss"]), row["loss"]),
            Cell("all data" if row["data"] == ALL else code(row["data"]), row["data"]),
            amount(row["difference"], digits),
            Cell(interval(row, digits) or "–", row["low"]),
            amount(row["seeds"]),
            *(amount(row[key]) for key in LOST),
        ]
        for row in rows
    ]
    head = ["change", "loss", "data", "#difference", "95 % interval", "#seeds"]
    head += [f"#diverged {which}" for which in LOST.values()]
    numbers = fold("Every loss on every kind of data", table(head, lines, "Effects of settings"))
    return Section("Effects of settings", note, [told, figure(picture), numbers])


def _of_all(rows: Sequence[Mapping]) -> list[Mapping]:
    """The row of each change that sums it up: of all cells, or of the only one."""
    last = {(row["setting"], row["value"]): row for row in rows}
    return list(last.values())


def _effect(run: Run, row: Mapping) -> Markup:
    digits, usual = 2 if run.scaled else 0, run.config.get(row["setting"])
    if usual is None:
        usual = NULL.get(row["setting"], "the task’s own")
    name = row["setting"].replace("_", " ")
    change = say("{} = {} instead of {}: ", name, row["value"], usual)
    if not finite(row["difference"]):
        return change + f"no difference, because {row['why']}."
    plus = "+" * (row["difference"] > 0)
    what = f"{'score' if run.scaled else 'return'} {plus}{number(row['difference'], digits)}"
    told = row["low"] > 0 or row["high"] < 0
    lost = [f"{row[key]} {which}" for key, which in LOST.items() if row[key]]
    ends = f"; diverged, and counted as the worst: {', '.join(lost)}" if lost else ""
    return change + f"{what} {interval(row, digits)}{'' if told else ', not told from 0'}{ends}."


def scaling(run: Run) -> Section:
    """How the error of each loss falls with the number of pairs."""
    note = (
        "The error is 1 − score. Fitted is err(N) = E + A·N⁻ᵇ over N pairs, by least squares; "
        "intervals are 95 % bootstraps over seeds, too narrow for few. E is what no number of "
        "pairs removes. b can be told where its interval lies within 0.05 to 3, which were tried, "
        "and that of A above 0. Three sizes fit any such law: only more of them check it."
    )
    rows = run.comparisons.get("scaling", [])
    if not rows or not run.scaled:
        return Section("Scaling", note, [])
    told = ELEMENTS.paragraphs([_law(row) for row in rows])
    picture = figures.save(
        run.figures, "scaling", "Error by number of pairs", comparison_figures.scaling, rows
    )
    names = ("floor", "coefficient", "exponent")
    lines = [
        [
            heading(code(row["loss"]), row["loss"]),
            Cell(code(row["data"]), row["data"]),
            *(amount(row[n], text=f"{number(row[n], 2)} {interval(_ends(row, n))}") for n in names),
            Cell("yes" if row["told"] else "no"),
            amount(row["seeds"]),
        ]
        for row in rows
    ]
    head = ["loss", "data", "#E", "#A", "#b", "told?", "#seeds"]
    return Section(
        "Scaling", note, [told, figure(picture), table(head, lines, "err(N) = E + A·N⁻ᵇ")]
    )


def _ends(row: Mapping, name: str) -> dict[str, Any]:
    return {"low": row[f"{name}_low"], "high": row[f"{name}_high"]}


def _law(row: Mapping) -> Markup:
    which = say("{} on {}: ", code(row["loss"]), code(row["data"]))
    b = f"b = {number(row['exponent'], 2)} {interval(_ends(row, 'exponent'))}"
    if not row["told"]:
        sizes = ", ".join(number(n) for n in row["sizes"])
        return which + f"how the error falls cannot be told from {sizes} pairs ({b})."
    floor = f"{number(row['floor'], 2)} {interval(_ends(row, 'floor'))}"
    return which + f"the error falls towards {floor} with {b}."


def overoptimisation(run: Run) -> Section:
    """The true return against the distance from the start."""
    note = (
        "Policies on the way, from the start of the preference phase to its end: the score by the "
        "true return against √KL from the start, in the states that the policy visits, means over "
        "seeds with 95 % intervals. A curve that turns down is over-optimised: the loss goes on "
        "falling and the return does not go on rising. Where effort impresses the judge of the "
        "data (proxy), what it would say goes beside it, moved to the same start. A quarter of the "
        "final episodes each, in the same start states."
    )
    rows = run.comparisons.get("overoptimisation", [])
    parts = []
    for kind in run.kinds:
        curves = {
            loss: own
            for loss in run.losses
            if (own := [r for r in rows if (r["loss"], r["data"]) == (loss, kind)])
        }
        if not curves:
            continue
        told = ELEMENTS.paragraphs([_turn(run, loss, own) for loss, own in curves.items()])
        name, label = f"overoptimisation-{slug(kind)}", f"Score against √KL on {kind}"
        draw = comparison_figures.overoptimisation
        picture = figure(figures.save(run.figures, name, label, draw, curves, run.scaled))
        parts.append(fold(code(kind), picture + told, open=not parts))
    return Section("Over-optimisation", note, parts)


def _turn(run: Run, loss: str, rows: Sequence[Mapping]) -> Markup:
    """Where a curve was highest, and where it ended."""
    digits = 2 if run.scaled else 0
    best, last = max(rows, key=lambda row: row["score"]), rows[-1]

    def at(row: Mapping) -> str:
        return f"{number(row['score'], digits)} at √KL {number(row['root_kl'], 2)}"

    more = Markup().join(
        say(" {} went from {} to {}.", what, number(rows[0][name], 2), number(last[name], 2))
        for name, what in (
            ("judged", "The judge’s score"),
            ("learned", "The learned reward of a step"),
        )
        if finite(rows[0].get(name)) and finite(last.get(name))
    )
    if lost := last.get("diverged"):
        word = "1 seed diverged and is" if lost == 1 else f"{lost} seeds diverged and are"
        more += f" {word} not in this."
    if best is last:
        return say("{} was highest at the end: {}.", code(loss), at(last)) + more
    fallen = finite(last["high"]) and last["high"] < best["score"]
    sure = "its interval lies below" if fallen else "its interval does not lie below"
    told = say(
        "{} was highest with {}, and ended with {}; {}.", code(loss), at(best), at(last), sure
    )
    return told + more
