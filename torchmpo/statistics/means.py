"""Means over seeds with Student's t, and one objective's paired differences from others."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch


class Mean(NamedTuple):
    """A mean over independent seeds with its standard error and 95 % interval."""

    mean: float
    se: float
    low: float
    high: float


def mean_of(values: Sequence[float]) -> Mean:
    """Mean ± s.e. and 95 % t-interval of independent values (at least two)."""
    from scipy.stats import t

    x = torch.as_tensor(values, dtype=torch.float64)
    mean, se = float(x.mean()), float(x.std() / math.sqrt(len(x)))
    half = float(t.ppf(0.975, len(x) - 1)) * se
    return Mean(mean, se, mean - half, mean + half)


def compare(scores: Mapping[str, Sequence[float]]) -> dict:
    """Mean score of each objective, and of the first minus each other one, paired by seed.

    Args:
        scores: objective → one score per seed (the same seeds in the same order for all), the one
            to be judged first. NaN where a training diverged.

    Returns:
        ``{"objectives": {name: {mean, se, low, high, diverged}}, "differences": {…}}``, made of
        python numbers, ready for JSON; numbers are ``None`` where NaN leaves nothing to say.
    """
    first, *others = scores
    failed = {name: sum(map(math.isnan, values)) for name, values in scores.items()}

    def summary(values: Sequence[float], diverged: int) -> dict:
        numbers = dict.fromkeys(Mean._fields) if diverged else mean_of(values)._asdict()
        return {**numbers, "diverged": diverged}

    objectives = {name: summary(values, failed[name]) for name, values in scores.items()}
    differences = {}
    for other in others:
        paired = [a - b for a, b in zip(scores[first], scores[other], strict=True)]
        differences[other] = summary(paired, sum(map(math.isnan, paired)))
    return {"objectives": objectives, "differences": differences}


def verdict(comparison: Mapping) -> str:
    """One honest line per rival: better, worse, or no improvement shown."""
    lines = []
    for name, difference in comparison["differences"].items():
        if difference["diverged"]:
            lines.append(f"vs {name}: not comparable, {difference['diverged']} trainings diverged")
            continue
        if difference["low"] > 0:
            word = "improvement"
        elif difference["high"] < 0:
            word = "worse"
        else:
            word = "no improvement (the interval contains 0)"
        lines.append(
            f"vs {name}: {word}, {difference['mean']:+.0f} "
            f"[{difference['low']:+.0f}, {difference['high']:+.0f}]"
        )
    return "\n".join(lines)


def table(comparison: Mapping) -> str:
    """Mean ± s.e. per objective and paired difference with its 95 % interval, as text.

    Args:
        comparison: see :func:`compare`; ``unit``, if it is no return, says what is compared.
    """
    unit = comparison.get("unit", "return")
    width = max(map(len, comparison["objectives"]))
    lines = [f"{'objective':<{width}}  {unit:>16}   first minus this one, 95 % interval"]
    for name, own in comparison["objectives"].items():
        value = (
            f"{own['diverged']} diverged"
            if own["diverged"]
            else f"{own['mean']:8.0f} ± {own['se']:<5.0f}"
        )
        line = f"{name:<{width}}  {value:>16}"
        if (d := comparison["differences"].get(name)) and not d["diverged"]:
            line += f"   {d['mean']:+.0f} [{d['low']:+.0f}, {d['high']:+.0f}]"
        lines.append(line.rstrip())
    return "\n".join(lines)
