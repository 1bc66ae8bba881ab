"""Which hyper-parameters to try: the same number of settings for every loss.

The first setting of a grid is the loss's own defaults. The others are quasi-random points (Sobol)
of a box with a range for each hyper-parameter, so that a loss with three of them gets no more
trials than a loss with one, and a loss with none gets its defaults again.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from torchmpo.losses.weighted_sum import WeightedSum
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

    def fraction(self, value: float) -> float:
        """How much of the way from low to high a value is: the inverse of :meth:`at`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


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
        "rejected_coef": Range(0.1, 1.0, log=False),
        "excess_coef": Range(0.1, 1.0, log=False),
        "mix": Range(0.1, 1.0, log=False),
        "window": Range(0.05, 0.9, log=False),
        "desirable_coef": Range(0.1, 10.0),
        "undesirable_coef": Range(0.1, 10.0),
        "divergence_alpha": Range(0.0, 1.0, log=False),
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
    "beta_dpo": {"alpha": Range(1e-4, 1.0), "baseline": Range(-100.0, 100.0, log=False)},
    "bregman_po": {"power": Range(-0.5, 1.0, log=False)},
    "focal_po": {"focus": Range(0.01, 2.0)},
    "h_dpo": {"alpha": Range(0.5, 1.5, log=False)},
    "mix_dpo": {"threshold": Range(0.0, 3000.0, log=False)},  # of returns
    "alpha_po": {"alpha": Range(-0.5, 0.5, log=False)},
    "f_dpo": {"alpha": Range(0.0, 1.0, log=False)},
    "r_dpo": {"alpha": Range(1e-4, 0.1)},
    "cpo_ipo": {"beta": Range(0.03, 30.0)},
    "tdpo": {"alpha": Range(0.0, 2.0, log=False)},
    "vpo_offline": {"alpha": Range(0.01, 100.0)},
    "vpo_online": {"alpha": Range(0.01, 100.0)},
    "modpo": {"po_coef": Range(0.1, 1.0)},
    "madpo": {
        "max_coef": Range(1.1, 8.0),
        "min_coef": Range(0.0, 0.9, log=False),
        "sharpness": Range(0.1, 10.0),
        "tau": Range(0.5, 5.0),
    },
}
# What makes another loss of a loss once it is not 0, and is therefore tuned only where it is given.
OPTIONS: dict[str, tuple[str, ...]] = {
    "simpo": ("sft_coef", "label_smoothing"),
    "wpo": ("label_smoothing",),
    "tpo": ("target_margin", "label_smoothing"),
    "cpo": ("label_smoothing",),
}
# Of a loss in a sum of several.
WEIGHT = Range(0.01, 10.0)
# Of what moves the weights, see `torchmpo.objectives.balance`; kappa is of the second term.
BALANCE = {
    "kappa": Range(0.0, 5.0, log=False),
    "weight_lr": Range(1e-4, 1.0),
    "entropy_coef": Range(1e-5, 0.1),
}
# The factor up and down from the default of a hyper-parameter that no table knows.
SPREAD = 100.0
# What the step size of training is called among the settings of a loss, where it is tuned, where it
# is looked for, and what is tried first.
RATE = "learning_rate"
RATES = Range(3e-5, 3e-3)
DEFAULT_RATE = 3e-4
LEAST_RATES = 4  # of a setting of one's own that names none
EDGE = 0.1  # a setting in the outer tenth of its range may have a better one beyond


def ranges(objective: Objective) -> dict[str, Range]:
    """The range of every hyper-parameter that is a number.

    A name without one in the tables is looked for between a hundredth and a hundred times its
    default; if that is not positive and finite, or is an integer (a count, that ``range`` can
    take), the default is kept. A sum of losses has the ranges of its parts, and one for each
    weight.

    The tables are of this library's losses. The same name in somebody's own loss may be of another
    unit: there a range is taken from the tables only if the default lies in it, and an integer is
    kept, whatever its name.
    """
    found = {}
    if isinstance(objective.source, WeightedSum):
        for name, loss in objective.source.parts.items():
            own = objective.source.own_hyper(name, objective.hyper)
            part = ranges(Objective(loss, name=name, **own))
            found[f"{name}_weight"] = WEIGHT
            found |= {f"{name}_{key}": span for key, span in part.items()}
        return found | {name: BALANCE[name] for name in BALANCE if name in objective.hyper}
    tables = [RANGES[_unit(objective)], RANGES["any"]]
    if objective.shipped:
        tables.insert(0, OWN.get(objective.name.partition("@")[0], {}))
    for name, default in objective.hyper.items():
        if isinstance(default, (bool, str)) or not isinstance(default, (int, float)):
            continue
        if default == 0 and name in OPTIONS.get(objective.name, ()):
            continue
        known = next((table[name] for table in tables if name in table), None)
        if not objective.shipped and (isinstance(default, int) or not _within(default, known)):
            known = None
        if known is not None:
            found[name] = known
        elif isinstance(default, float) and 0 < default < math.inf:
            found[name] = Range(default / SPREAD, default * SPREAD)
    return found


def _within(value: float, span: Range | None) -> bool:
    return span is not None and span.low <= value <= span.high


def _unit(objective: Objective) -> str:
    if (unit := objective.hyper.get("reduction")) in ("sum", "mean"):
        return unit
    sums = {
        "rejected_logps",
        "chosen_logps",
        "rejected_step_logps",
        "logps",
        "list_logps",
    } & objective.inputs
    return "sum" if sums else "mean"


def box(objective: Objective | MirrorObjective, *, rate: bool) -> dict[str, tuple[float, Range]]:
    """What is tuned: the default and the range of each number.

    A learned objective has no hyper-parameters, and one that was saved with a card keeps its own:
    a search or a fit has chosen them already.

    Args:
        rate: whether the learning rate of training is among them.

    Raises:
        ValueError: the loss has a hyper-parameter of that name.
    """
    found = {}
    if isinstance(objective, Objective):
        if rate and RATE in objective.hyper:
            raise ValueError(f"{objective.name}: {RATE} is the step size of training; rename it")
        if not objective.card:
            found = {n: (float(objective.hyper[n]), r) for n, r in ranges(objective).items()}
    return found | ({RATE: (DEFAULT_RATE, RATES)} if rate else {})


def grid(
    objective: Objective | MirrorObjective, trials: int, *, rate: bool = False
) -> list[dict[str, float]]:
    """``trials`` settings of an objective's hyper-parameters.

    Args:
        trials: ≥ 1.
        rate: tune the learning rate of training, too, under the name ``"learning_rate"``.

    Returns:
        dictionaries with the same keys, the defaults first; no two are equal, if there is anything
        to choose.

    >>> from torchmpo import resolve
    >>> grid(resolve("simpo"), 3)
    [{'beta': 2.0, 'target_margin': 0.5}, {'beta': 10.0, 'target_margin': 1.0}, \
{'beta': 100.0, 'target_margin': 0.5}]
    """
    tuned = box(objective, rate=rate)
    # What a card fixes is a setting all the same: training takes it from here.
    defaults = start_setting(objective) | {name: default for name, (default, _) in tuned.items()}
    if not tuned or trials == 1:
        return [dict(defaults) for _ in range(trials)]
    sobol = torch.quasirandom.SobolEngine(len(tuned), scramble=False)
    sobol.fast_forward(1)  # the first point is a corner
    points = sobol.draw(2 * trials, dtype=torch.float64).tolist()
    values = [
        {name: span.at(x) for (name, (_, span)), x in zip(tuned.items(), point, strict=True)}
        for point in points
    ]
    # The defaults may be among the points.
    settings = dict.fromkeys(tuple((defaults | value).items()) for value in [{}, *values])
    return [dict(setting) for setting in settings][:trials]


def start_setting(objective: Objective | MirrorObjective) -> dict[str, float]:
    """An objective's own numbers as a setting: none of a learned one."""
    if isinstance(objective, MirrorObjective):
        return {}
    return {name: float(objective.hyper[name]) for name in ranges(objective)}


def rate_grid(trials: int) -> list[dict[str, float]]:
    """``trials`` settings that differ in the learning rate only.

    >>> [setting["learning_rate"] for setting in rate_grid(4)]
    [0.0003, 0.000949, 9.49e-05, 0.000169]
    """
    return grid(MirrorObjective(learn=()), trials, rate=True)


def with_rates(settings: Sequence[Mapping[str, float]], trials: int) -> list[dict[str, float]]:
    """Somebody's own settings, each at several learning rates, unless they name them.

    Together they are about as many as ``trials``; of many settings, each has four rates.

    Args:
        settings: with the same keys.
        trials: ≥ 1; no setting has more rates.

    >>> [len(with_rates([{"beta": 1.0}] * n, 12)) for n in (1, 2, 12)]
    [12, 12, 48]
    """
    if RATE in settings[0]:
        return [dict(setting) for setting in settings]
    each = min(trials, max(LEAST_RATES, math.ceil(trials / len(settings))))
    return [{**setting, **rate} for rate in rate_grid(each) for setting in settings]


def at_edge(
    objective: Objective | MirrorObjective, tried: Sequence[Mapping[str, float]], best: int
) -> list[str]:
    """Which numbers of the best setting lie in the outer tenth of their range.

    A better one may lie beyond. The defaults of a loss, which are tried first, may lie anywhere,
    and of settings that somebody has chosen no range is known: these are never at an edge.

    Args:
        tried: all settings.
        best: index into them; −1 for none.
    """
    own = RATE in tried[0]
    if best < 1 or [*tried] != grid(objective, len(tried), rate=own):
        return []
    spans = box(objective, rate=own)
    fractions = {name: span.fraction(tried[best][name]) for name, (_, span) in spans.items()}
    return [name for name, x in fractions.items() if not EDGE <= x <= 1 - EDGE]


def nothing_to_tune(settings: Sequence[Mapping[str, float]]) -> bool:
    """Whether all settings are the same, so that trying them would decide nothing."""
    return all(setting == settings[0] for setting in settings)


def check_grid(objective: Objective, settings: list[Mapping[str, float]]) -> None:
    """Refuse settings that the loss itself refuses.

    Raises:
        ValueError: as the loss says it.
    """
    for setting in settings:
        own = {name: value for name, value in setting.items() if name != RATE}
        Objective(objective.function, name=objective.name, **{**objective.hyper, **own})
        if not 0 < setting.get(RATE, DEFAULT_RATE) < math.inf:
            raise ValueError(f"{RATE} must be positive and finite; got {setting[RATE]}")
