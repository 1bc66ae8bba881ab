"""The curves of a learned objective as formulas: ψ, φ⁻¹ and g, each fitted by itself.

They are functions of one variable that increase, so their slopes are sums of simple slopes with
weights that are not negative:

    x               the same everywhere          e^{kx}             fades towards unlikely responses
    softplus(sx)    rises at a place             −softplus(−sx)     falls at a place
    sigmoid(sx)     a bump                       log-odds           ORPO's

Terms are chosen one by one from a grid of steepness and places, then steepness and places are
polished. A loss is made of the curves as the objective is, and compared with it by its gradients.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchmpo.objectives.bound import Objective
from torchmpo.objectives.formulas import Formula, text
from torchmpo.objectives.formulas.language import checked
from torchmpo.objectives.formulas.simplify import simplified
from torchmpo.objectives.formulas.vocabulary import OPERATIONS, Expression
from torchmpo.objectives.gradients import gradients
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.errors import UserError
from torchmpo.show.distill import SMALL
from torchmpo.show.sparse import agreement, chosen_columns, counts, places, slopes

MOST_TERMS = 4  # of a curve
WORTH = 0.01  # of the variation about an even slope is what one more term must be worth
NEGLIGIBLE = 1e-6  # of the squared slopes: a curve that is a straight line needs no more terms
STEEPNESS, PLACES = 8, 25  # points of the grid
STEEP = (2.0, 60.0)  # over the range of x
RATES = (0.25, 0.5, 1.0, 2.0, 4.0)  # k
DIGITS = 4
EVALUATIONS = 60  # of polishing
GOOD, FAIR = 0.95, 0.8  # share of the variation of the gradients


class Term(NamedTuple):
    """A shape, with its steepness (or rate) and its place on x, where it has them."""

    shape: str
    steepness: float = 0.0
    place: float = 0.0

    def of(self, x: Expression) -> Expression:
        """The term as an expression."""
        if self.shape == "linear":
            return x
        if self.shape == "log_odds":
            return ("log_odds", x)
        if self.shape == "exp":
            return ("exp", ("mul", self.steepness, x))
        shifted = ("add", x, -self.place) if self.place < 0 else ("sub", x, self.place)
        inside = ("mul", self.steepness, shifted)
        if self.shape == "falling":
            return ("neg", ("softplus", ("neg", inside)))
        return ("softplus" if self.shape == "rising" else "sigmoid", inside)


@dataclass(frozen=True)
class Curves:
    """The formulas of an objective's curves, and of the loss that is made of them.

    Args:
        functions: by name, an expression of ``x``.
        objective: the loss.
        r2: share of the variation of the gradients that it explains.
        error: of the gradients, in their root mean square.
    """

    functions: dict[str, Expression]
    objective: Objective
    r2: float
    error: float

    @property
    def lines(self) -> list[str]:
        """The curves and how good the loss is, for people."""
        word = "poor: another loss than the objective"
        if self.r2 >= GOOD:
            word = "good"
        elif self.r2 >= FAIR or self.error <= SMALL:  # of gradients that hardly vary
            word = "fair: check it by training before relying on it"
        symbols = {"psi": "ψ", "phi_inv": "φ⁻¹", "g": "g"}
        found = [f"{symbols[n]}(x) = {text(e, {'c': 'x'})}" for n, e in self.functions.items()]
        return [*found, f"{word} (R² {self.r2:.3f} of the gradients, error {self.error:.0%})"]


def curves(
    objective: MirrorObjective,
    chosen: Tensor,
    rejected: Tensor,
) -> Curves:
    """Fit the curves of an objective on the places where given pairs need them.

    Args:
        chosen, rejected: ``[n]``, nats per step.

    Raises:
        UserError: it depends on the progress of training.
    """
    if objective.temporal:
        raise UserError(f"{objective.name} depends on progress: its curves are not of one variable")
    where = places(objective, chosen, rejected, 0.5)
    learned = objective.functions(objective.vector.detach().double())
    found = {name: _curve(learned[name], where[name], name != "g") for name in learned}
    unit = "" if objective.reduction == "mean" else "_sum"
    ends = {side: f"{side}{unit}" for side in "cr"}
    inner: Expression = ("sub", _at(found["phi_inv"], ends["c"]), _at(found["phi_inv"], ends["r"]))
    if objective.steps == "two":
        refs = [_at(found["phi_inv"], f"{side}_ref{unit}") for side in "cr"]
        inner = ("sub", inner, ("sub", *refs))
    loss: Expression = ("neg", _at(found["g"], inner))
    if "psi" in found:
        loss = ("sub", loss, _at(found["psi"], ends["c"]))
    made = Objective(Formula(checked(simplified(loss))))
    got, wanted = (torch.stack(gradients(o, chosen, rejected)) for o in (made, objective))
    error = float((got - wanted).norm() / wanted.norm())
    return Curves(found, made, agreement(got, wanted), error)


def _at(curve: Expression, x: Expression) -> Expression:
    """A curve of ``c``, the name of its variable, at another expression."""
    if isinstance(curve, tuple):
        return (curve[0], *[_at(part, x) for part in curve[1:]])
    return x if curve == "c" else curve


def _curve(function: Callable[[Tensor], Tensor], x: Tensor, of_logps: bool) -> Expression:
    """An increasing function as a sum of few terms in ``c``."""
    steep = slopes(function, x)
    weight = counts(steep)
    wanted = weight * steep
    grid = _grid(x, of_logps)
    columns = weight[:, None] * _slopes_of(grid, x)
    even = weight * (wanted @ weight) / weight.square().sum()
    worth = WORTH * float((wanted - even).square().sum())
    worth = max(worth, NEGLIGIBLE * float(wanted.square().sum()))
    best: tuple[float, list[tuple[float, Term]]] = (math.inf, [])
    for most in range(1, MOST_TERMS + 1):
        weights = chosen_columns(columns, wanted, 0.0, most)
        terms = [grid[k] for k in weights.nonzero()[:, 0].tolist()]
        error, found = _polished(terms, x, wanted, weight)
        if error < best[0] - worth or not best[1]:
            best = error, found
    parts: list[Expression] = [
        ("mul", float(f"{amount:.{DIGITS}g}"), term.of("c")) for amount, term in best[1]
    ]
    total: Expression = 0.0
    for part in parts:
        total = ("add", total, part)
    return simplified(total)


def _grid(x: Tensor, of_logps: bool) -> list[Term]:
    low, high = float(x[0]), float(x[-1])
    width = high - low
    grid = [Term("linear")]
    if of_logps:
        grid += [Term("log_odds"), *[Term("exp", rate) for rate in RATES]]
    factors = torch.linspace(math.log(STEEP[0]), math.log(STEEP[1]), STEEPNESS).exp().tolist()
    middle = torch.linspace(low, high, PLACES).tolist()
    return grid + [
        Term(shape, factor / width, place)
        for shape in ("rising", "falling", "bump")
        for factor in factors
        for place in middle
    ]


def _slopes_of(terms: list[Term], x: Tensor) -> Tensor:
    """Mean slopes of terms between neighbours of ``x [n + 1]``: ``[n, terms]``."""
    return slopes(lambda x: torch.stack([_value(term.of("c"), x) for term in terms], 1), x)


def _value(expression: Expression, x: Tensor) -> Tensor:
    if isinstance(expression, tuple):
        name, *arguments = expression
        return OPERATIONS[name].function(*[_value(argument, x) for argument in arguments])
    return x if isinstance(expression, str) else torch.full_like(x, expression)


def _polished(
    terms: list[Term], x: Tensor, wanted: Tensor, weight: Tensor
) -> tuple[float, list[tuple[float, Term]]]:
    """The terms at better places, with their weights, and the squared error."""
    import numpy as np
    from scipy.optimize import least_squares, nnls

    curved = [k for k, term in enumerate(terms) if term.shape in ("rising", "falling", "bump")]
    low, high = float(x[0]), float(x[-1])
    width = high - low
    target = wanted.numpy()

    def moved(z: "np.ndarray") -> list[Term]:
        new = list(terms)
        for i, k in enumerate(curved):
            steepness = float(f"{math.exp(z[2 * i]):.{DIGITS}g}")
            place = 0.0 if abs(z[2 * i + 1]) < 1e-6 * width else z[2 * i + 1]
            new[k] = Term(terms[k].shape, steepness, float(f"{place:.{DIGITS}g}"))
        return new

    def matrix(z: "np.ndarray") -> "np.ndarray":
        new = list(terms)
        for i, k in enumerate(curved):
            new[k] = Term(terms[k].shape, math.exp(z[2 * i]), float(z[2 * i + 1]))
        return (weight[:, None] * _slopes_of(new, x)).numpy()

    def residual(z: "np.ndarray") -> "np.ndarray":
        columns = matrix(z)
        return columns @ nnls(columns, target)[0] - target

    z = np.array([v for k in curved for v in (math.log(terms[k].steepness), terms[k].place)])
    if curved:
        ends = [[math.log(f / width) for f in (STEEP[0] / 4, STEEP[1] * 4)], [low, high]]
        least, most = np.array(ends * len(curved)).T
        z = np.clip(z, least + 1e-9, most - 1e-9)
        z = least_squares(residual, z, bounds=(least, most), max_nfev=EVALUATIONS).x
    final = moved(z)
    columns = (weight[:, None] * _slopes_of(final, x)).numpy() if terms else np.zeros((len(x), 0))
    amounts, error = nnls(columns, target) if terms else (np.zeros(0), float(wanted.norm()))
    kept = [(float(a), term) for a, term in zip(amounts, final, strict=True) if a > 0]
    return float(error) ** 2, kept
