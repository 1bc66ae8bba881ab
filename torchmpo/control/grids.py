"""Which hyper-parameters to try: the same number of settings for every loss.

The first setting of a grid is the loss's own defaults. The others are quasi-random points (Sobol)
of a box with a range for each hyper-parameter, so that a loss with three of them gets no more
trials than a loss with one, and a loss with none gets its defaults again.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective


class Range(NamedTuple):
    """Where a hyper-parameter is looked for; ``log`` spreads its logarithm evenly."""

    low: float
    high: float
    log: bool = True

    def at(self, fraction: float) -> float:
        """The value a ``fraction`` in [0, 1] of the way from low to high, to three digits."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            value = math.exp(low + fraction * (high - low))
        else:
            value = self.low + fraction * (self.high - self.low)
        return float(f"{value:.3g}")


# By name; "sum" and "mean" say in which unit the loss compares log-probabilities. A robot's
# response has a thousand steps, so what multiplies a sum is about a thousand times smaller.
RANGES: dict[str, dict[str, Range]] = {
    "sum": {"beta": Range(1e-4, 1.0), "delta": Range(1.0, 1e4), "tau": Range(1e-3, 1.0)},
    "mean": {"beta": Range(0.1, 1e3), "delta": Range(0.01, 30.0), "tau": Range(0.01, 10.0)},
    "any": {
        "sft_coef": Range(0.03, 100.0),
        "po_coef": Range(0.01, 10.0),
        "target_margin": Range(0.0, 2.0, log=False),
        "label_smoothing": Range(1e-3, 0.45, log=False),
        "ref_coef": Range(0.0, 2.0, log=False),
        "margin_coef": Range(1e-4, 1.0),
        "reward_coef": Range(1e-4, 1.0),
        "eta": Range(10.0, 1e4),
        "threshold": Range(-5.0, 0.0, log=False),
    },
}
# Where one name means something else.
OWN: dict[str, dict[str, Range]] = {
    "closed_form": {
        "sigmoid_coef": Range(0.01, 10.0),
        "beta": Range(0.03, 300.0),
        "linear_coef": Range(0.01, 10.0),
        "softplus_coef": Range(0.01, 10.0),
        "sharpness": Range(0.1, 100.0),
        "threshold": Range(-2.0, 2.0, log=False),  # of the margin
    },
    "alpha_po": {"alpha": Range(-0.5, 0.5, log=False)},
    "f_dpo": {"alpha": Range(0.0, 1.0, log=False)},
    "r_dpo": {"alpha": Range(1e-4, 0.1)},
    "vpo_offline": {"alpha": Range(0.01, 100.0)},
    "modpo": {"po_coef": Range(0.1, 1.0)},
    "madpo": {
        "max_coef": Range(1.1, 8.0),
        "min_coef": Range(0.0, 0.9, log=False),
        "sharpness": Range(0.1, 10.0),
        "tau": Range(0.5, 5.0),
    },
}
# The factor up and down from the default of a hyper-parameter that no table knows.
SPREAD = 100.0


def ranges(objective: Objective) -> dict[str, Range]:
    """The range of every hyper-parameter that is a number.

    A name without one in the tables is looked for between a hundredth and a hundred times its
    default; if that is not positive, or is an integer (a count, that ``range`` can take), the
    default is kept.
    """
    found = {}
    unit = _unit(objective)
    for name, default in objective.hyper.items():
        if isinstance(default, (bool, str)) or not isinstance(default, (int, float)):
            continue
        for table in (OWN.get(objective.name, {}), RANGES[unit], RANGES["any"]):
            if name in table:
                found[name] = table[name]
                break
        else:
            if isinstance(default, float) and default > 0:
                found[name] = Range(default / SPREAD, default * SPREAD)
    return found


def _unit(objective: Objective) -> str:
    if (unit := objective.hyper.get("reduction")) in ("sum", "mean"):
        return unit
    sums = {"rejected_logps", "chosen_logps"} & objective.inputs
    return "sum" if sums else "mean"


def grid(objective: Objective | MirrorObjective, trials: int) -> list[dict[str, float]]:
    """``trials`` settings of the objective's hyper-parameters.

    A learned objective has none, and one that was saved with a card keeps its own: a search or a
    fit has chosen them already.

    Args:
        trials: ≥ 1.

    Returns:
        dictionaries with the same keys, the defaults first; no two are equal, if there is anything
        to choose.

    >>> from torchmpo import resolve
    >>> grid(resolve("simpo"), 3)
    [{'beta': 2.0, 'target_margin': 0.5}, {'beta': 10.0, 'target_margin': 1.0}, \
{'beta': 100.0, 'target_margin': 0.5}]
    """
    if isinstance(objective, MirrorObjective):
        return [{} for _ in range(trials)]
    box = ranges(objective)
    defaults = {name: float(objective.hyper[name]) for name in box}
    if not box or trials == 1 or objective.card:
        return [dict(defaults) for _ in range(trials)]
    sobol = torch.quasirandom.SobolEngine(len(box), scramble=False)
    sobol.fast_forward(1)  # the first point is a corner
    points = sobol.draw(2 * trials, dtype=torch.float64).tolist()
    values = [[box[n].at(x) for n, x in zip(box, point, strict=True)] for point in points]
    # The defaults may be among the points.
    settings = dict.fromkeys([tuple(defaults.values()), *map(tuple, values)])
    return [dict(zip(box, setting, strict=True)) for setting in settings][:trials]


def nothing_to_tune(settings: Sequence[Mapping[str, float]]) -> bool:
    """Whether all settings are the same, so that trying them would decide nothing."""
    return all(setting == settings[0] for setting in settings)


def check_grid(objective: Objective, settings: list[Mapping[str, float]]) -> None:
    """Refuse settings that the loss itself refuses.

    Raises:
        ValueError: as the loss says it.
    """
    for setting in settings:
        Objective(objective.function, name=objective.name, **{**objective.hyper, **setting})
