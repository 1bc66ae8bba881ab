"""Distillation: the closed form nearest to an objective, and a file with nothing else in it.

What training sees of a loss is its gradient, ∂loss/∂c̄ and ∂loss/∂r̄ of each pair. So it is to the
objective's gradients that the coefficients of :func:`~torchmpo.losses.closed_form_loss` are fitted,
by least squares over given pairs. The gradient of the closed form is, with P ≥ 0 its pull on Δ̄,

    ∂/∂c̄ = −sft_coef − P(Δ̄),    ∂/∂r̄ = P(Δ̄)
    P(Δ̄) = sigmoid_coef·β·σ(target_margin − βΔ̄) + linear_coef + softplus_coef·σ(s·(Δ̄ − threshold))

linear in four weights ≥ 0, which non-negative least squares finds for any steepness and place of
the two sigmoids; those four numbers are searched (variable projection), from several starts.

Training clips gradients and divides them by their size (Adam), so that a few pairs with huge ones
count no more than others. So do they here: a pair whose gradient is longer than the median is
weighted down to the median length, objective and fit alike. Then either component is measured by
its own root mean square: a preference term that is small beside an SFT term would not be fitted
otherwise. A factor on the whole loss hardly matters; the fit keeps the objective's.

Where the pairs lie decides the fit. A uniform square of log-probabilities treats all alike, while
training visits a small part of it: prefer what a training has visited.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from textwrap import wrap

import torch
from torch import Tensor

from torchmpo.losses import closed_form_loss
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.gradients import gradients
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError

# The terms, each with what it is made of: its weight and, of the sigmoids, steepness and place.
TERMS = {
    "sft": ("sft_coef",),
    "linear": ("linear_coef",),
    "sigmoid": ("sigmoid_coef", "beta", "target_margin"),
    "softplus": ("softplus_coef", "sharpness", "threshold"),
}
SIGMOIDS = {"sigmoid": -1.0, "softplus": 1.0}  # falls, or rises, with Δ̄
# Steepness of a sigmoid, in units of 1/(range of Δ̄): nearly straight to nearly a step.
STEEPNESS = (0.1, 1000.0)
SIMPLER = 1e-3  # of the variance is worth giving up for a shorter formula
# Of each so many starts the best is polished: the best of all would lie in one valley.
STARTS, GROUP, EVALUATIONS = 64, 16, 60
DIGITS = 4
GOOD, FAIR = 0.95, 0.8  # share of the variance
SMALL = 0.1  # error, of the size of the gradients
NEGLIGIBLE = 1e-3  # a component, beside the other


@dataclass(frozen=True)
class Distilled:
    """A fit; long gradients are weighted down in all its measures.

    Args:
        coefficients: of ``closed_form_loss``, to four digits; all eight.
        r2: share of the gradients' variation explained: of what the best constant gradient, the
            same for every pair, leaves over. Both components count the same.
        error: root mean square of the residual over that of the gradients; both components count
            the same.
        cosine: between all gradients and all of the fit's.
        direction: mean over pairs of the cosine between (∂c̄, ∂r̄) and the fit's.
        regions: for fifths of the pairs, from low Δ̄ to high: ``{"low", "high", "error"}``, the
            error the root mean square of the residual over that of all gradients.
        pairs: how many were fitted.
        after_sft: as of the objective: see :class:`~torchmpo.objectives.bound.Objective`.
    """

    coefficients: dict[str, float]
    r2: float
    error: float
    cosine: float
    direction: float
    regions: list[dict[str, float]]
    pairs: int
    after_sft: bool = False

    @property
    def objective(self) -> Objective:
        """The closed form, ready for use."""
        objective = Objective(closed_form_loss, name="closed_form", **self.coefficients)
        objective.after_sft = self.after_sft
        return objective

    @property
    def worst(self) -> dict[str, float]:
        """The region with the largest error."""
        return max(self.regions, key=lambda region: region["error"])

    @property
    def verdict(self) -> str:
        """How good the fit is, in one honest line."""
        if self.r2 >= GOOD:
            word = "good"
        elif self.r2 >= FAIR or self.error <= SMALL:
            word = "fair: check it by training before relying on it"
        else:
            word = "poor: this closed form is another loss than the objective"
        worst = self.worst
        return (
            f"{word} (R² {self.r2:.3f} of the gradients, cosine {self.cosine:.3f}, "
            f"error {self.error:.0%}, worst for Δ̄ from {worst['low']:.2f} to {worst['high']:.2f}: "
            f"{worst['error']:.0%})"
        )

    @property
    def equation(self) -> str:
        """The terms that are there, with their numbers.

        >>> fit = Distilled({"sft_coef": 1.0, "sigmoid_coef": 0.0, "linear_coef": 0.5, \
"softplus_coef": 0.0}, 1, 1, 1, 1, [], 0)
        >>> fit.equation
        'loss = −1·c̄ − 0.5·Δ̄'
        """
        return "loss = " + " ".join(_symbols(self.coefficients, "{:g}".format))

    def card(self) -> dict:
        """The fit's quality, ready for JSON."""
        names = ("r2", "error", "cosine", "direction", "regions", "pairs")
        return {name: getattr(self, name) for name in names} | {"verdict": self.verdict}


def square(low: float, high: float, points: int = 41) -> tuple[Tensor, Tensor]:
    """Pairs all over a square of mean log-probabilities: c̄ and r̄, ``[points²]`` each."""
    x = torch.linspace(low, high, points, dtype=torch.float64)
    c, r = torch.meshgrid(x, x, indexing="ij")
    return c.reshape(-1), r.reshape(-1)


def check_distillable(objective: Objective | MirrorObjective) -> None:
    """Refuse an objective that no function of c̄ and r̄ alone could stand for.

    Raises:
        UserError: it has a reference, couples the pairs of a batch, reads sums, or reads more.
    """
    if objective.needs_reference:
        reason = "it has a reference, and the closed form has none"
    elif objective.coupled:
        reason = "a pair's gradient depends on the batch"
    elif more := objective.inputs - {"chosen_mean_logps", "rejected_mean_logps", "progress"}:
        reason = f"it reads {', '.join(sorted(more))}, the closed form per-step means only"
    else:
        return
    raise UserError(f"{objective.name} cannot be distilled: {reason}")


def distill(
    objective: Objective | MirrorObjective,
    chosen: Tensor,
    rejected: Tensor,
    *,
    progress: float | Tensor = 0.5,
) -> Distilled:
    """Fit the closed form to an objective's gradients.

    Of all choices of terms, the one with the fewest numbers is taken that explains the variance
    to within a thousandth of the best.

    Args:
        objective: of c̄ and r̄ and, maybe, progress. The closed form knows no progress: it is fitted
            to all of those given at once.
        chosen, rejected: ``[n]``, nats per step: the pairs on which it counts.
        progress: in [0, 1], for all or ``[n]``.

    Raises:
        UserError: the objective cannot be distilled, gradients are not finite, or all are 0.
    """
    check_distillable(objective)
    wanted = torch.stack(gradients(objective, chosen, rejected, progress=progress))
    if not bool(torch.isfinite(wanted).all()):
        raise UserError(f"{objective.name} has gradients that are not finite on these pairs")
    if not bool(wanted.any()):
        raise UserError(f"{objective.name} has no gradient on these pairs: nothing to distil")
    clip, weight = _weights(wanted)
    margin = (chosen - rejected).detach().double()
    coefficients = _fit(wanted * weight, weight, margin)
    if not any(coefficients[weights] for weights, *_ in TERMS.values()):
        raise UserError(f"{objective.name} lowers the chosen likelihood: no closed form does")
    fitted = resolve("closed_form", **coefficients)  # with the numbers as they are written
    got = torch.stack(gradients(fitted, chosen, rejected))
    fit = _judged(coefficients, got, wanted, clip, weight, margin)
    return replace(fit, after_sft=objective.after_sft)


def _weights(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """How much pairs with gradients ``[2, n]`` count: by length, and by component, too."""
    length = wanted.norm(dim=0)
    typical = length[length > 0].quantile(0.5)
    clip = typical / length.clamp(min=typical)
    size = (wanted * clip).square().mean(1, keepdim=True).sqrt()
    return clip, clip / size.clamp(min=float(size.max()) * NEGLIGIBLE)


def explained(got: Tensor, wanted: Tensor) -> float:
    """Share of the variation of gradients ``[2, n]`` that others explain, as in :class:`Distilled`.

    >>> wanted = torch.tensor([[-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]])
    >>> explained(wanted, wanted), explained(wanted.flip(1), wanted) < 0.5
    (1.0, True)
    """
    _, weight = _weights(wanted)
    error = (got * weight - wanted * weight).square().sum().item()
    return _share(error, wanted * weight, weight)


def _share(error: float, wanted: Tensor, weight: Tensor) -> float:
    """What a squared error leaves of the variation of weighted gradients ``[2, n]``."""
    spread, total = _spread(wanted, weight), wanted.square().sum().item()
    if spread > 1e-9 * total:
        return 1 - error / spread
    return float(error <= 1e-6 * total)


def _fit(wanted: Tensor, weight: Tensor, margin: Tensor) -> dict[str, float]:
    """Coefficients for weighted gradients (chosen, rejected) of pairs with ``margin [n]``."""
    spread = _spread(wanted, weight)
    # A loss with the same gradient everywhere has no variance to explain.
    scale = max(spread, 1e-9 * wanted.square().sum().item())
    fits = []
    for count in range(1, len(TERMS) + 1):
        for terms in combinations(TERMS, count):
            error, coefficients = _fit_terms(terms, wanted, weight, margin)
            fits.append((sum(len(TERMS[t]) for t in terms), error, coefficients))
    enough = min(error for _, error, _ in fits) + SIMPLER * scale
    return min((f for f in fits if f[1] <= enough), key=lambda f: f[:2])[2]


def _spread(wanted: Tensor, weight: Tensor) -> float:
    """What the best constant gradient leaves over of weighted gradients ``[2, n]``, squared."""
    constant = (wanted * weight).sum(1, keepdim=True) / weight.square().sum(1, keepdim=True)
    return (wanted - constant * weight).square().sum().item()


def _fit_terms(
    terms: Sequence[str], wanted: Tensor, weight: Tensor, margin: Tensor
) -> tuple[float, dict[str, float]]:
    """The best closed form of these terms: its squared error and its coefficients."""
    import numpy as np
    from scipy.optimize import least_squares, nnls
    from scipy.special import expit
    from scipy.stats import qmc

    x, target = margin.numpy(), wanted.reshape(-1).numpy()
    by_chosen, by_rejected = weight.numpy()
    curved = [term for term in terms if term in SIGMOIDS]
    low, high = float(x.min()), float(x.max())
    width = max(high - low, 1e-3)
    # z: of each sigmoid, the logarithm of its steepness and its place on Δ̄.
    one = [[math.log(b / width) for b in STEEPNESS], [low - width / 2, high + width / 2]]
    bounds = np.array(one * len(curved)).reshape(-1, 2)

    def columns(z):
        pull = {"sft": (1.0, 0.0), "linear": (1.0, 1.0)}
        for k, term in enumerate(curved):
            shape = expit(SIGMOIDS[term] * np.exp(z[2 * k]) * (x - z[2 * k + 1]))
            pull[term] = (shape, shape)
        both = [(-by_chosen * pull[t][0], by_rejected * pull[t][1]) for t in terms]
        return np.stack([np.concatenate(pair) for pair in both], 1)

    def weights(z):
        return nnls(columns(z), target)[0]

    def residual(z):
        matrix = columns(z)
        return matrix @ nnls(matrix, target)[0] - target

    best = np.zeros(0)
    if curved:
        starts = qmc.scale(qmc.Sobol(len(bounds), rng=0).random(STARTS), *bounds.T)
        groups = [starts[i : i + GROUP] for i in range(0, STARTS, GROUP)]
        starts = [min(group, key=lambda z: float(np.square(residual(z)).sum())) for group in groups]
        polished = [
            least_squares(residual, z, bounds=tuple(bounds.T), max_nfev=EVALUATIONS) for z in starts
        ]
        best = min(polished, key=lambda found: found.cost).x
    found = {t: float(v) for t, v in zip(terms, weights(best), strict=True) if v > 0}
    coefficients = dict(Objective(closed_form_loss).hyper)
    coefficients |= {TERMS[term][0]: found.get(term, 0.0) for term in TERMS}
    for k, term in enumerate(curved):
        if term in found:
            steepness, place = math.exp(best[2 * k]), float(best[2 * k + 1])
            place = 0.0 if abs(place) < 1e-6 * width else place
            if term == "sigmoid":
                values = (found[term] / steepness, steepness, steepness * place)
            else:
                values = (found[term], steepness, place)
            coefficients |= dict(zip(TERMS[term], values, strict=True))
    error = float(np.square(residual(best)).sum())
    return error, {k: float(f"{v:.{DIGITS}g}") for k, v in coefficients.items()}


def _judged(
    coefficients: dict[str, float],
    got: Tensor,
    wanted: Tensor,
    clip: Tensor,
    weight: Tensor,
    margin: Tensor,
) -> Distilled:
    """The fit's quality: gradients it has and should have, ``[2, n]``, of pairs ``[n]``."""
    cosine, clipped = torch.cosine_similarity, (got * clip, wanted * clip)
    got, wanted = got * weight, wanted * weight
    residual, total = (got - wanted).square().sum(0), wanted.square().sum().item()
    error = residual.sum().item()
    order = margin.argsort()
    margin = margin[order]
    typical = math.sqrt(total / len(margin))
    regions = [
        {
            "low": float(margin[part[0]]),
            "high": float(margin[part[-1]]),
            "error": math.sqrt(residual[order[part]].mean().item()) / typical,
        }
        for part in torch.arange(len(margin)).tensor_split(min(5, len(margin)))
    ]
    return Distilled(
        coefficients=coefficients,
        r2=_share(error, wanted, weight),
        error=math.sqrt(error / total),
        cosine=float(cosine(*(g.flatten() for g in clipped), dim=0)),
        direction=float(cosine(*clipped, dim=0).mean()),
        regions=regions,
        pairs=len(margin),
    )


def _symbols(coefficients: dict[str, float], show: Callable[[float], str]) -> list[str]:
    """The terms with weights above 0, signs in front."""
    number = {name: show(value) for name, value in coefficients.items()}
    terms = []
    if coefficients["sft_coef"]:
        terms.append(f"−{number['sft_coef']}·c̄")
    if coefficients["linear_coef"]:
        terms.append(f"− {number['linear_coef']}·Δ̄")
    if coefficients["sigmoid_coef"]:
        inside = _minus(f"{number['beta']}·Δ̄", coefficients["target_margin"], show)
        terms.append(f"− {number['sigmoid_coef']}·log σ({inside})")
    if coefficients["softplus_coef"]:
        inside, sharp = _minus("Δ̄", coefficients["threshold"], show), number["sharpness"]
        inside = f"({inside})" if " " in inside else inside
        terms.append(f"− {number['softplus_coef']}·log(1 + exp({sharp}·{inside}))/{sharp}")
    terms[0] = "−" + terms[0].lstrip("− ") if terms else "0"
    return terms


def _minus(first: str, second: float, show: Callable[[float], str]) -> str:
    if not second:
        return first
    return f"{first} {'−' if second > 0 else '+'} {show(abs(second))}"


# Python for each term; `margin` is Δ̄.
CODE = {
    "sft": "-sft_coef * chosen_mean_logps",
    "linear": "-linear_coef * margin",
    "sigmoid": "-sigmoid_coef * logsigmoid(beta * margin - target_margin)",
    "softplus": "+softplus_coef * logsigmoid(-sharpness * (margin - threshold)) / sharpness",
}
SAYS = {
    "sft_coef": "weight of the supervised term.",
    "linear_coef": "pull that is the same at every margin.",
    "sigmoid_coef": "weight of the term whose pull fades with the margin.",
    "beta": "its steepness, per nat.",
    "target_margin": "the beta·Δ̄ at which it has half its largest pull.",
    "softplus_coef": "largest pull of the term that grows with the margin.",
    "sharpness": "its steepness, per nat.",
    "threshold": "the Δ̄ at which it has half its largest pull.",
}


def source(fit: Distilled, origin: str, pairs: str) -> str:
    """A Python file with one function, ``distilled_loss``, that needs torch only.

    Args:
        fit: what to write.
        origin: where the objective came from, for the docstring.
        pairs: on which log-probabilities it was fitted, for the docstring.
    """
    terms = [term for term in TERMS if fit.coefficients[TERMS[term][0]]]
    names = [name for term in terms for name in TERMS[term]]
    data = ["chosen_mean_logps"] + (["rejected_mean_logps"] if terms != ["sft"] else [])
    quality = f"Fitted to its gradients on {fit.pairs} pairs, {_quoted(pairs)}: {fit.verdict}."
    first, *rest = [CODE[term] for term in terms]
    curved = any(term in SIGMOIDS for term in terms)
    lines = [
        f'"""A preference loss in closed form, distilled from {_quoted(origin)}.',
        "",
        f"    {fit.equation}",
        "",
        "with c̄, r̄ log-probabilities per step and Δ̄ = c̄ − r̄.",
        "",
        *wrap(quality, width=96, break_on_hyphens=False),
        '"""',
        "",
        "from torch import Tensor",
        *(["from torch.nn.functional import logsigmoid"] if curved else []),
        "",
        "",
        "def distilled_loss(",
        *(f"    {name}: Tensor," for name in data),
        "    *,",
        *(f"    {name}: float | Tensor = {fit.coefficients[name]!r}," for name in names),
        ") -> Tensor:",
        '    """The loss of each pair, to be minimised.',
        "",
        "    Args:",
        f"        {', '.join(data)}: ``[batch]``, nats per step (per token).",
        *(f"        {name}: {SAYS[name]}" for name in names),
        "",
        "    Returns:",
        "        ``[batch]``.",
        '    """',
        *(["    margin = chosen_mean_logps - rejected_mean_logps"] if len(data) > 1 else []),
        "    return (",
        f"        {first.removeprefix('+')}",
        *(f"        {code[0]} {code[1:]}" for code in rest),
        "    )",
    ]
    if fit.after_sft:
        lines += ["", "", "distilled_loss.after_sft = True"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Text from elsewhere, such that it ends no string and escapes nothing."""
    return " ".join(text.split()).replace("\\", "/").replace('"', "'")
