"""A learned objective in a handful of hidden units, with the same gradients.

Of each function the slope is what training sees. It is a sum of the slopes of its hidden units,
with weights that are not negative, and terms in closed form, which are kept. Few of the units are
chosen one by one, their weights by non-negative least squares, until the slopes agree; then each is
left out that the others can stand in for. So every function stays increasing. How closely they must
agree is tightened until they explain 95 % of the variation of the whole gradients.

As in :mod:`.distill`, a steep place counts no more than a typical one, since training clips.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchmpo.objectives.gradients import gradients
from torchmpo.objectives.mirror import MirrorObjective, density
from torchmpo.objectives.monotone import ACTIVATIONS
from torchmpo.show.distill import explained

EQUAL = 0.95  # share of the variation of the gradients
BINS = 200  # in which the slope of a function is looked at
NARROWEST = 1e-3  # of them, as a share of the range
TIMES = (0.0, 0.5, 1.0)  # of training
# How far the slopes of a function may be off, tried in this order; 0 keeps every unit.
TOLERANCES = (0.3, 0.2, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.003, 0.001, 0.0)
TOO_SMALL = 1e-12  # a slope that is none


@dataclass(frozen=True)
class Sparse:
    """A learned objective with fewer hidden units.

    Args:
        objective: of the same class and size, most of its numbers 0.
        units: by function, how many are left.
        before: by function, how many had a weight.
        r2: share of the variation of the gradients that it explains.
    """

    objective: MirrorObjective
    units: dict[str, int]
    before: dict[str, int]
    r2: float

    @property
    def verdict(self) -> str:
        """What is left, in a line."""
        left = ", ".join(f"{name} {n} of {self.before[name]}" for name, n in self.units.items())
        word = "equal" if self.r2 >= EQUAL else "not equal"
        return f"hidden units left: {left}; gradients {word} (R² {self.r2:.3f})"


def places(
    objective: MirrorObjective, chosen: Tensor, rejected: Tensor, progress: float | Tensor
) -> dict[str, Tensor]:
    """Where the functions of an objective are evaluated on pairs: by name, in order.

    ψ is of c̄, φ⁻¹ of both, and g of the difference of two φ⁻¹. (A reference with the same
    log-probability of both responses changes none of these.)

    Returns:
        ``[at most BINS + 1]``: between neighbours lie about as many pairs each.
    """
    progress = torch.as_tensor(progress, dtype=torch.float64)
    with torch.no_grad():
        phi_inv = objective.functions(objective.vector.double(), progress)["phi_inv"]
        margin = phi_inv(chosen.double()) - phi_inv(rejected.double())
    found = {"phi_inv": torch.cat([chosen, rejected]), "g": margin}
    if objective.steps == "one":
        found["psi"] = chosen
    shares = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    edges = {name: x.double().quantile(shares) for name, x in found.items()}
    # Bins with one value only have no slope, and narrow ones that of a kink.
    return {name: _apart(x, NARROWEST * float(x[-1] - x[0])) for name, x in edges.items()}


def _apart(x: Tensor, least: float) -> Tensor:
    kept = [x[0]]
    for value in x[1:]:
        if value - kept[-1] > least:
            kept.append(value)
    return torch.stack(kept)


def slopes(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Mean slopes between neighbours of ``x [n + 1]``: ``[n]``, or ``[n, k]`` of k functions."""
    values = function(x).detach()
    width = x.diff()
    return values.diff(dim=0) / (width if values.ndim == 1 else width[:, None])


def counts(value: Tensor) -> Tensor:
    """How much points count whose slopes are ``value [n]``: steep ones as much as a typical one."""
    size = value.abs()
    if not bool((size > TOO_SMALL).any()):
        return torch.ones_like(value)
    typical = size[size > TOO_SMALL].quantile(0.5)
    return typical / size.clamp(min=float(typical))


def agreement(got: Tensor, wanted: Tensor) -> float:
    """Share of the variation of gradients ``[2, n]`` that others explain, both clipped as training
    clips: to the median length of the first.
    """
    typical = wanted.norm(dim=0).quantile(0.5)
    clipped = [g * (typical / g.norm(dim=0).clamp(min=float(typical))) for g in (got, wanted)]
    return explained(*clipped)


def chosen_columns(columns: Tensor, wanted: Tensor, limit: float, most: int) -> Tensor:
    """Weights ≥ 0, few of them not 0, so that ``columns @ weights`` is near ``wanted``.

    Args:
        columns: ``[n, k]``.
        wanted: ``[n]``.
        limit: norm of the residual that is near enough.
        most: weights that are not 0.

    Returns:
        ``[k]``.
    """
    from scipy.optimize import nnls

    matrix, target = columns.numpy(), wanted.numpy()
    norms = columns.norm(dim=0).clamp(min=TOO_SMALL)

    def fit(names: list[int]) -> tuple[Tensor, float]:
        weights = torch.zeros(columns.shape[1], dtype=columns.dtype)
        error = float(wanted.norm())
        if names:
            found, error = nnls(matrix[:, names], target)
            weights[names] = torch.from_numpy(found)
        return weights, float(error)

    names: list[int] = []
    weights, error = fit(names)
    while error > limit and len(names) < most:
        merit = ((wanted - columns @ weights) @ columns) / norms
        merit[names] = -torch.inf
        best = int(merit.argmax())
        if merit[best] <= 0:
            break
        weights, error = fit([*names, best])
        names = weights.nonzero()[:, 0].tolist()
    for name in sorted(names, key=lambda k: float(weights[k] * norms[k])):
        fewer = [k for k in names if k != name]
        if fit(fewer)[1] <= max(limit, error):
            names = fewer
    return fit(names)[0]


def sparse(
    objective: MirrorObjective,
    chosen: Tensor,
    rejected: Tensor,
    *,
    progress: float | Tensor = 0.5,
) -> Sparse:
    """The objective with as few hidden units as have the same gradients on given pairs.

    Args:
        chosen, rejected: ``[n]``, nats per step: the pairs on which it counts.
        progress: in [0, 1], for all or ``[n]``.
    """
    where = places(objective, chosen, rejected, progress)
    wanted = torch.stack(gradients(objective, chosen, rejected, progress=progress))
    before = {name: int((v > 0).sum()) for name, v in _weights(objective).items()}
    found = None
    for tolerance in TOLERANCES:
        few = _with_tolerance(objective, where, tolerance)
        got = torch.stack(gradients(few, chosen, rejected, progress=progress))
        units = {name: int((v > 0).sum()) for name, v in _weights(few).items()}
        found = Sparse(few, units, before, agreement(got, wanted))
        if found.r2 >= EQUAL:
            break
    assert found is not None
    return found


def _parts(objective: MirrorObjective) -> dict[str, tuple[int, Tensor]]:
    """Of each learned function, where its parameters begin in the vector, and those of its units.

    The second is ``[3 or 4, activations, units]``: weights, slopes, offsets and effects of time.
    """
    found, first = {}, 0
    for name, part in zip(objective.learn, objective.parts(), strict=True):
        units = part[: objective.network.dim].unflatten(0, (-1, *objective.network.slope.shape))
        found[name] = first, units
        first += len(part)
    return found


def _weights(objective: MirrorObjective) -> dict[str, Tensor]:
    return {name: units[0].detach() for name, (_, units) in _parts(objective).items()}


def _with_tolerance(
    objective: MirrorObjective, where: dict[str, Tensor], tolerance: float
) -> MirrorObjective:
    few = copy.deepcopy(objective)
    few.card = {}
    vector = few.vector.detach().clone()
    times = TIMES if objective.temporal else (0.5,)
    for name, (first, units) in _parts(objective).items():
        x, units = where[name], units.detach().double()
        own = torch.relu(units[0]).flatten()
        steep = torch.cat([slopes(_function(objective, name, t), x) for t in times])
        columns = torch.cat([slopes(_hidden(objective, name, units, t), x) for t in times])
        weight = counts(steep)
        used = own > 0
        weights = own if tolerance == 0 else torch.zeros_like(own)
        if tolerance > 0 and used.any():
            limit = tolerance * float((weight * steep).norm())
            kept, target = weight[:, None] * columns[:, used], weight * (columns @ own)
            weights[used] = chosen_columns(kept, target, limit, int(used.sum()))
        new = units.flatten(1) * (weights > 0)
        new[0] = weights
        vector[first : first + new.numel()] = new.flatten().to(vector.dtype)
    with torch.no_grad():
        few.vector.copy_(vector)
    return few


def _function(objective: MirrorObjective, name: str, time: float) -> Callable[[Tensor], Tensor]:
    progress = torch.tensor(time, dtype=torch.float64)
    return objective.functions(objective.vector.detach().double(), progress)[name]


def _hidden(
    objective: MirrorObjective, name: str, units: Tensor, time: float
) -> Callable[[Tensor], Tensor]:
    """The hidden units of a function, without their weights: ``[n] → [n, units]``."""
    network = objective.network
    _, w, b, *u = units.unbind(0)

    def hidden(x: Tensor) -> Tensor:
        probs = torch.sigmoid(x) if name == "g" else density(x)
        z = torch.relu(network.slope + w) * probs[:, None, None] + (network.offset + b)
        if u:
            z = z + u[0] * time
        rows = zip(network.activations, z.unbind(1), strict=True)
        return torch.stack([ACTIVATIONS[activation](row) for activation, row in rows], 1).flatten(1)

    return hidden
