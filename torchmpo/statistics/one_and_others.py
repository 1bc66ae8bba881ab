"""One objective and its rivals: paired differences, corrected for their number, and a verdict."""

import math
from collections.abc import Mapping, Sequence

from torchmpo.statistics.means import Mean, mean_of
from torchmpo.statistics.pairwise import LEVEL, holm, students_p


def compare(scores: Mapping[str, Sequence[float]]) -> dict:
    """Mean score of each objective, and of the first minus each other one, paired by seed.

    Args:
        scores: objective → one score per seed (the same seeds in the same order for all), the one
            to be judged first. NaN where a training diverged.

    Returns:
        ``{"objectives": {name: {mean, se, low, high, diverged}}, "differences": {…}}``, made of
        python numbers, ready for JSON; numbers are ``None`` where NaN leaves nothing to say, and
        all but the mean are where there is one seed. A difference has ``p`` besides, Student's,
        corrected by Holm for all differences here.
    """
    first, *others = scores
    failed = {name: sum(map(math.isnan, values)) for name, values in scores.items()}

    def summary(values: Sequence[float], diverged: int) -> dict:
        numbers: dict[str, float | None] = dict.fromkeys(Mean._fields)
        if not diverged:
            numbers |= mean_of(values)._asdict() if len(values) > 1 else {"mean": values[0]}
        return {**numbers, "diverged": diverged}

    objectives = {name: summary(values, failed[name]) for name, values in scores.items()}
    differences = {}
    for other in others:
        paired = [a - b for a, b in zip(scores[first], scores[other], strict=True)]
        differences[other] = summary(paired, sum(map(math.isnan, paired))) | {"p": None}
    known = [d for d in differences.values() if d["se"] is not None]
    p = holm([students_p(d["mean"], d["se"], len(scores[first])) for d in known])
    for difference, value in zip(known, p.tolist(), strict=True):
        difference["p"] = value
    return {"objectives": objectives, "differences": differences}


def decimals(comparison: Mapping) -> int:
    """Digits after the point that show two of the smallest standard error of an objective, or of
    the largest mean of a single seed; none where that is 1 or more.
    """
    known = comparison["objectives"].values()
    errors = [row["se"] for row in known if row["se"]]
    means = [abs(row["mean"]) for row in known if row["mean"]]
    size = min(errors) if errors else max(means, default=1.0)
    return min(1 - math.floor(math.log10(size)), 8) if size < 1 else 0


def verdict(comparison: Mapping) -> str:
    """One honest line per rival: better, worse, or no improvement shown; of one seed, neither.

    The corrected p decides. By intervals, one of five equal rivals would be said to be beaten in
    about one search of eleven.
    """
    lines, digits = [], decimals(comparison)
    for name, difference in comparison["differences"].items():
        if difference["diverged"]:
            lines.append(f"vs {name}: not comparable, {difference['diverged']} trainings diverged")
            continue
        if difference["p"] is None:
            lines.append(f"vs {name}: one seed shows nothing, {difference['mean']:+.{digits}f}")
            continue
        if difference["p"] < LEVEL:
            word = "improvement" if difference["mean"] > 0 else "worse"
        elif difference["low"] <= 0 <= difference["high"]:
            word = "no improvement (the interval contains 0)"
        else:
            rivals = len(comparison["differences"])
            word = f"no improvement (among {rivals} rivals p is {difference['p']:.2f})"
        lines.append(
            f"vs {name}: {word}, {difference['mean']:+.{digits}f} "
            f"[{difference['low']:+.{digits}f}, {difference['high']:+.{digits}f}]"
        )
    return "\n".join(lines)


def table(comparison: Mapping) -> str:
    """Mean ± s.e. per objective and paired difference with its 95 % interval, as text.

    Args:
        comparison: see :func:`compare`; ``unit``, if it is no return, says what is compared.
    """
    unit, digits = comparison.get("unit", "return"), decimals(comparison)
    width = max(map(len, comparison["objectives"]))
    lines = [f"{'objective':<{width}}  {unit:>16}   first minus this one, 95 % interval"]
    for name, own in comparison["objectives"].items():
        if own["diverged"]:
            value = f"{own['diverged']} diverged"
        elif own["se"] is None:
            value = f"{own['mean']:8.{digits}f}        "
        else:
            value = f"{own['mean']:8.{digits}f} ± {own['se']:<5.{digits}f}"
        line = f"{name:<{width}}  {value:>16}"
        if (d := comparison["differences"].get(name)) and not d["diverged"]:
            line += f"   {d['mean']:+.{digits}f}"
            if d["se"] is not None:
                line += f" [{d['low']:+.{digits}f}, {d['high']:+.{digits}f}]"
        lines.append(line.rstrip())
    return "\n".join(lines)
