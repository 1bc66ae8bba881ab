"""Search spaces: what a flat vector means.

A search moves vectors ``[dim]`` and knows nothing of losses. A space says which objective a vector
is, and where the search starts:

``network``     every vector of a :class:`~torchmpo.objectives.mirror.MirrorObjective`
``closed_form`` the coefficients of :func:`~torchmpo.losses.closed_form_loss`
``hyper``       the hyper-parameters of any loss of the library, modified (``dpo@js``) or not
``program``     a short formula, see :mod:`torchmpo.evolve.programs`

In the two before the last each hyper-parameter is one coordinate θ, and the range that
:mod:`torchmpo.control.grids` tries, [low, high], extended to the start v₀ where v₀ lies outside,
says how it acts (GAIN = 10):

    spread by logarithm, v₀ > 0    v = v₀·exp(GAIN·θ)
    spread by logarithm, v₀ = 0    v = √(low·high)·max(0, GAIN·θ)
    spread evenly                  v = v₀ + (high − low)·θ

then limited to the range; a start at its end moves inwards only. So θ = 0 is the start, exactly. A
perturbation of σ = 0.03 is a factor of e^0.3, or three hundredths of the range, which is about as
much; it switches a term on that the start has not. Every vector is something the loss accepts,
which matters since it cannot check a tensor's value.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from torchmpo.control.grids import ranges
from torchmpo.losses import LOSSES, closed_form_loss
from torchmpo.losses.weighted_sum import WeightedSum
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import GAIN, MirrorObjective
from torchmpo.objectives.resolve import resolve
from torchmpo.objectives.weighted_sum import is_sum, name_of_sum
from torchmpo.runs.errors import UserError, nearest
from torchmpo.runs.files import is_folder

SPACES = ("network", "closed_form", "hyper", "program")


class SearchSpace(Protocol):
    """What a search needs to know of the objectives it moves through.

    Attributes:
        name: of the class of objectives, such as ``mirror_one_step`` or ``closed_form``.
        start_name: what ``start`` is, for tables, such as ``ORPO``.
        dim: length of a vector.
        start: ``[dim]`` float32, where the search begins.
        objective: what policies are trained under; its ``apply`` takes the parameters.
    """

    name: str
    start_name: str
    dim: int
    start: Tensor

    @property
    def objective(self) -> Objective | MirrorObjective: ...

    def parameters(self, vectors: Tensor) -> Any:
        """``[n, dim]`` → a tree for ``objective.apply``, with a leading ``n``."""
        ...

    def rates(self, vectors: Tensor, start: float) -> Tensor | None:
        """Learning rates ``[n]`` under which policies are trained; ``None``: that of the start."""
        ...

    def at(self, vector: Tensor) -> Objective | MirrorObjective:
        """The objective that ``vector [dim]`` is; it shares nothing with the space."""
        ...

    def save(self, folder: str | Path, vector: Tensor, card: dict) -> None:
        """Write :meth:`at` of ``vector`` so that ``torchmpo.resolve(folder)`` gives it back."""
        ...


class NetworkSpace:
    """The vectors of a learned objective; the search begins at the objective's own.

    Raises:
        UserError: the objective has no parameters.
    """

    def __init__(self, objective: MirrorObjective, start_name: str):
        if objective.dim == 0:
            raise UserError("learn is empty: name at least one function, or null for all")
        self.objective, self.name, self.start_name = objective, objective.name, start_name
        self.dim = objective.dim
        self.start = objective.vector.detach().float().clone()

    def parameters(self, vectors: Tensor) -> Tensor:
        """The vectors themselves."""
        return vectors

    def rates(self, vectors: Tensor, start: float) -> None:
        """``None``: a vector says nothing of the learning rate."""

    def at(self, vector: Tensor) -> MirrorObjective:
        """See :class:`SearchSpace`."""
        objective = copy.deepcopy(self.objective)
        objective.card = {}
        with torch.no_grad():
            objective.vector.copy_(vector)
        return objective

    def save(self, folder: str | Path, vector: Tensor, card: dict) -> None:
        """See :class:`SearchSpace`."""
        self.at(vector).save(folder, card)


class CoefficientSpace:
    """Hyper-parameters of a loss, a coordinate each, as this module's docstring maps them.

    Args:
        objective: the loss; its own hyper-parameters are where the search begins.
        names: hyper-parameters to search, in the order of the coordinates; ``None`` for all that
            are numbers and have a range. The others stay as they are.
        start_name: what the start is called in tables.

    Raises:
        UserError: no hyper-parameter to search, or one of ``names`` is none.
    """

    def __init__(
        self,
        objective: Objective,
        names: Sequence[str] | None = None,
        start_name: str | None = None,
    ):
        known = ranges(objective)
        for name in names or ():
            if name not in known:
                raise UserError(
                    f"{objective.name} has no hyper-parameter {name!r} with a range to search: "
                    + (nearest(name, known) if known else "it has none")
                )
        self.names = tuple(known if names is None else names)
        if not self.names:
            raise UserError(f"{objective.name} has no hyper-parameter to search")
        self.objective, self.name = objective, objective.name
        self.start_name = start_name or objective.name
        self.dim = len(self.names)
        self.start = torch.zeros(self.dim)
        self._ranges = known

    def values(self, vectors: Tensor) -> dict[str, Tensor]:
        """``[..., dim]`` → the hyper-parameters by name, ``[...]`` each."""
        if vectors.shape[-1:] != (self.dim,):
            raise ValueError(f"vectors have shape {tuple(vectors.shape)}, expected (…, {self.dim})")
        return {name: self._value(name, vectors[..., k]) for k, name in enumerate(self.names)}

    def _value(self, name: str, theta: Tensor) -> Tensor:
        low, high, log = self._ranges[name]
        start = float(self.objective.hyper[name])
        if not log:
            value = start + (high - low) * theta
        elif start != 0:
            value = start * torch.exp(GAIN * theta)
        else:
            value = (low * high) ** 0.5 * torch.relu(GAIN * theta)
        return value.clamp(min(low, start), max(high, start))

    def parameters(self, vectors: Tensor) -> dict[str, Tensor]:
        """The hyper-parameters by name, ``[n]`` each."""
        return self.values(vectors)

    def rates(self, vectors: Tensor, start: float) -> None:
        """``None``: a vector says nothing of the learning rate."""

    def at(self, vector: Tensor) -> Objective:
        """See :class:`SearchSpace`."""
        own = self.objective
        found = {name: value.item() for name, value in self.values(vector.double()).items()}
        hyper = {**own.hyper, **found}
        name = own.name
        if isinstance(own.source, WeightedSum):
            name = name_of_sum(own.source, hyper)  # not with the weights of the start
        made = Objective(own.function, name=name, **hyper)
        made.after_sft = own.after_sft
        return made

    def save(self, folder: str | Path, vector: Tensor, card: dict) -> None:
        """See :class:`SearchSpace`.

        Raises:
            ValueError: the loss is not one of the library's.
        """
        self.at(vector).save(folder, card)


# Losses that lie in a space, with their own default hyper-parameters and on per-step means: the
# initial coefficients of a MirrorObjective, or the hyper-parameters of closed_form. SFT leaves φ⁻¹
# as in ORPO and switches g off, so that one coordinate switches the preference term on again.
NETWORK_STARTS: dict[str, dict[str, dict[str, float]]] = {
    "one": {
        "orpo": {},
        "sft": {"g_log": 0.0},
        "cpo": {"phi_inv_logit": 0.0, "phi_inv_log": 0.1, "g_log": 1.0},
    },
    "two": {"dpo": {}, "dpo_norm": {"phi_inv_log": 5.0}},
}
CLOSED_FORM_STARTS: dict[str, dict[str, float]] = {
    "closed_form": {},
    "sft": {"sigmoid_coef": 0.0},
    "lpo": {"sft_coef": 0.1, "sigmoid_coef": 0.0, "linear_coef": 1.0},
    "simpo": {"sft_coef": 0.0, "sigmoid_coef": 1.0, "beta": 2.0, "target_margin": 0.5},
    "cpo": {"sigmoid_coef": 1.0, "beta": 0.1},
}
TITLES = {
    **{name: name.upper() for name in ("orpo", "sft", "cpo", "dpo", "lpo")},
    **{"simpo": "SimPO", "closed_form": "closed form"},
}


def space_of(
    space: str = "network",
    *,
    steps: str = "one",
    learn: Sequence[str] | None = None,
    temporal: bool = False,
    start: str | None = None,
) -> NetworkSpace | CoefficientSpace:
    """The space that a command's settings describe.

    Args:
        space: ``"network"``, ``"closed_form"`` or ``"hyper"``.
        steps, learn, temporal: of the network, as for :class:`MirrorObjective`, except that
            ``None`` learns every function. The other spaces take them as they are here only.
        start: where the search begins: the name of a loss that lies in the space, or the folder of
            a saved objective of its class. ``None``: ORPO or DPO, or closed_form's defaults;
            ``"hyper"`` needs one. A saved network must agree with ``steps``, ``learn`` (unless
            ``None``) and ``temporal``.

    Raises:
        UserError: an unknown setting, a start outside the space (the message lists what lies in
            it), or settings that do not go together.

    >>> space = space_of("closed_form", start="sft")
    >>> space.dim, space.start_name
    (8, 'SFT')
    >>> space.at(torch.full((8,), 0.03)).hyper["linear_coef"] > 0  # SFT has 0
    True
    """
    if space not in SPACES:
        raise UserError(f"unknown space {space!r}: {nearest(space, SPACES)}")
    try:
        if space == "network":
            return _network(steps, learn, temporal, start)
        given = {"steps": steps != "one", "learn": learn is not None, "temporal": temporal}
        if wrong := [name for name, is_given in given.items() if is_given]:
            raise UserError(f"{', '.join(wrong)} belong to --space network, not to {space}")
        return _closed_form(start) if space == "closed_form" else _hyper(start)
    except ValueError as error:
        raise UserError(str(error)) from error


def _network(
    steps: str, learn: Sequence[str] | None, temporal: bool, start: str | None
) -> NetworkSpace:
    known = NETWORK_STARTS.get(steps, {})
    name = next(iter(known), "") if start is None else start
    if name in known or not known:  # of unknown steps the objective itself complains
        every = ("psi", "phi_inv", "g") if steps == "one" else ("phi_inv", "g")
        objective = MirrorObjective(
            steps=steps,
            learn=every if learn is None else learn,
            temporal=temporal,
            initial=known.get(name),
        )
        if name == "sft" and "g" not in objective.learn:
            raise UserError("start sft switches g off: learn must include g, or nothing can change")
        return NetworkSpace(objective, TITLES.get(name, name))
    inside = f"a {steps}-step network holds {', '.join(known)}"
    objective = _saved(name, inside)
    if not isinstance(objective, MirrorObjective):
        raise UserError(f"start {name} is no learned objective but {objective.name}; {inside}")
    asked = set(objective.learn if learn is None else learn)
    for setting, wanted, own in (
        ("steps", steps, objective.steps),
        ("learn", asked, set(objective.learn)),
        ("temporal", temporal, objective.temporal),
    ):
        if wanted != own:
            saved = ", ".join(objective.learn) if setting == "learn" else own
            raise UserError(f"start {name} was saved with {setting} {saved}: ask for the same")
    return NetworkSpace(objective, _folder_name(name))


def _closed_form(start: str | None) -> CoefficientSpace:
    name = start or "closed_form"
    if name in CLOSED_FORM_STARTS:
        objective = resolve("closed_form", **CLOSED_FORM_STARTS[name])
        assert isinstance(objective, Objective)
        return CoefficientSpace(objective, start_name=TITLES.get(name, name))
    inside = f"closed_form holds {', '.join(CLOSED_FORM_STARTS)}"
    objective = _saved(name, inside)
    if not isinstance(objective, Objective) or objective.function is not closed_form_loss:
        raise UserError(f"start {name} is no saved closed_form but {objective.name}; {inside}")
    return CoefficientSpace(objective, start_name=_folder_name(name))


def _hyper(start: str | None) -> CoefficientSpace:
    if start is None:
        raise UserError(
            "--space hyper needs --warm_start: the loss whose hyper-parameters are searched"
        )
    modified = is_sum(start) or start.partition("@")[0] in LOSSES
    named = start in LOSSES or (modified and not is_folder(start))
    objective = resolve(start) if named else _saved(start, nearest(start, LOSSES))
    if not isinstance(objective, Objective):
        raise UserError(f"start {start} is a learned objective: --space network searches those")
    title = TITLES.get(start, start) if named else _folder_name(start)
    return CoefficientSpace(objective, start_name=title)


def _saved(start: str, inside: str) -> Objective | MirrorObjective:
    """The objective saved in the folder ``start``."""
    if is_folder(start):
        return resolve(Path(start))
    raise UserError(
        f"start {start!r} is neither a loss of this space nor the folder of a saved objective: "
        + inside
    )


def _folder_name(start: str) -> str:
    """What tables call a saved objective: a run keeps it in <run>/objective."""
    path = Path(start).resolve()
    return path.parent.name if path.name == "objective" else path.name
