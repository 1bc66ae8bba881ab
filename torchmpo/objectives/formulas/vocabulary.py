"""What formulas are made of: leaves, constants and operations, and the type of each.

An expression is a constant (a float), the name of a leaf, or a tuple of an operation's name and its
arguments: ``("softplus", ("mul", -0.1, "D"))`` is softplus(−0.1·D).

A type is an interval in which values lie:

    log-probability  (−∞, 0]        probability  [0, 1]       bounded  [−1, 1]
    non-negative     [0, ∞)         real         (−∞, ∞)

An operation takes and gives values of its types. What interval an expression lies in is known from
its parts (:mod:`.ranges`). Log-densities of continuous actions are leaves of the same type,
although they may exceed 0: there, exp and log_odds do what the losses of this library do.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import softplus

from torchmpo.losses.potentials import logit

Expression: TypeAlias = float | str | tuple
Interval: TypeAlias = tuple[float, float]

LARGEST = 1e6  # of the constants
LOGP: Interval = (-math.inf, 0.0)
PROB: Interval = (0.0, 1.0)
BOUNDED: Interval = (-1.0, 1.0)
NON_NEGATIVE: Interval = (0.0, math.inf)
REAL: Interval = (-math.inf, math.inf)


class Leaf(NamedTuple):
    """Something known of a pair.

    Attributes:
        group: which setting of a search lets it in.
        fields: what of :class:`~torchmpo.objectives.inputs.PairLogps` it is made of.
        code: how, in Python, with the names of the fields.
        latex: in a formula.
        range: its type, or the interval in which it lies.
        slopes: 1, −1 or 0: does it grow, fall or stay with the log-probability of the chosen
            response, and with that of the rejected one? None where that depends.
    """

    group: str
    fields: tuple[str, ...]
    code: str
    latex: str
    range: Interval
    slopes: tuple[int | None, int | None]


def _step_leaf(side: str, what: str) -> Leaf:
    letter, slopes = side[0], {"c": (1, 0), "r": (0, 1)}
    logps, mask = f"{side}_step_logps", f"{side}_mask"
    if what == "min":
        code = f"torch.where({mask}.bool(), {logps}, torch.inf).amin(-1)"
        return Leaf("steps", (logps, mask), code, rf"\min_k {letter}_k", LOGP, slopes[letter])
    mean = f"(({logps} * {mask}).sum(-1, keepdim=True) / {mask}.sum(-1, keepdim=True))"
    code = f"((({logps} - {mean}) * {mask}).square().sum(-1) / {mask}.sum(-1))"
    unknown = (None, 0) if letter == "c" else (0, None)
    return Leaf(
        "steps", (logps, mask), code, rf"\mathrm{{var}}_k {letter}_k", NON_NEGATIVE, unknown
    )


def _margin(unit: str, ref: str = "") -> tuple[tuple[str, ...], str]:
    fields = (f"chosen_{unit}", f"rejected_{unit}")
    code = " - ".join(fields)
    if not ref:
        return fields, code
    theirs = (f"ref_chosen_{unit}", f"ref_rejected_{unit}")
    return fields + theirs, f"({code}) - ({' - '.join(theirs)}).detach()"


def _length(side: str) -> Leaf:
    field = f"{side}_lengths"  # whole numbers, of which not every operation is known
    return Leaf("lengths", (field,), f"{field}.float()", f"n_{side[0]}", (1.0, math.inf), (0, 0))


def _one(group: str, field: str, latex: str, slopes: tuple[int, int]) -> Leaf:
    code = f"{field}.detach()" if group == "reference" else field  # no gradient reaches it
    return Leaf(group, (field,), code, latex, LOGP, slopes)


LEAVES: dict[str, Leaf] = {
    "c": _one("means", "chosen_mean_logps", r"\bar c", (1, 0)),
    "r": _one("means", "rejected_mean_logps", r"\bar r", (0, 1)),
    "margin": Leaf("means", *_margin("mean_logps"), r"\bar\Delta", REAL, (1, -1)),
    "c_sum": _one("sums", "chosen_logps", "c", (1, 0)),
    "r_sum": _one("sums", "rejected_logps", "r", (0, 1)),
    "margin_sum": Leaf("sums", *_margin("logps"), r"\Delta", REAL, (1, -1)),
    "t": Leaf("time", ("progress",), "progress", "t", PROB, (0, 0)),
    "c_len": _length("chosen"),
    "r_len": _length("rejected"),
    "c_ref": _one("reference", "ref_chosen_mean_logps", r"\bar c'", (0, 0)),
    "r_ref": _one("reference", "ref_rejected_mean_logps", r"\bar r'", (0, 0)),
    "c_ref_sum": _one("reference", "ref_chosen_logps", "c'", (0, 0)),
    "r_ref_sum": _one("reference", "ref_rejected_logps", "r'", (0, 0)),
    "D_mean": Leaf("reference", *_margin("mean_logps", "ref"), r"\bar D", REAL, (1, -1)),
    "D": Leaf("reference", *_margin("logps", "ref"), "D", REAL, (1, -1)),
    "c_min": _step_leaf("chosen", "min"),
    "r_min": _step_leaf("rejected", "min"),
    "c_var": _step_leaf("chosen", "var"),
    "r_var": _step_leaf("rejected", "var"),
}
GROUPS = ("means", "sums", "time", "lengths", "reference", "steps")


class Operation(NamedTuple):
    """A function of one or two expressions.

    Attributes:
        takes: the types of its arguments.
        gives: the type of its value, at least.
        function: of tensors of one shape.
        code: of the arguments as Python text, for torch.
        latex: likewise.
    """

    takes: tuple[Interval, ...]
    gives: Interval
    function: Callable[..., Tensor]
    code: str
    latex: str


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return a * torch.rsqrt(1 + b * b)


def _minimum(a: Tensor | float, b: Tensor | float) -> Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.minimum(a, b)
    variable, limit = (a, b) if isinstance(a, Tensor) else (b, a)
    return torch.clamp(variable, max=limit)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _maximum(a: Tensor | float, b: Tensor | float) -> Tensor:
    return -_minimum(-a, -b)


OPERATIONS: dict[str, Operation] = {
    "neg": Operation((REAL,), REAL, torch.neg, "-{0}", "-{0}"),
    "exp": Operation((LOGP,), PROB, torch.exp, "torch.exp({0})", "e^{{{0}}}"),
    "log_odds": Operation((LOGP,), REAL, logit, "log_odds({0})", r"\operatorname{{logodds}}({0})"),
    "complement": Operation((PROB,), PROB, lambda a: 1 - a, "(1 - {0})", "(1 - {0})"),
    "log1p": Operation(  # of what is never negative, but for densities above 1
        (NON_NEGATIVE,),
        NON_NEGATIVE,
        lambda a: torch.log1p(a.clamp(min=0)),
        "torch.log1p(({0}).clamp(min=0))",
        r"\log(1 + {0})",
    ),
    "sigmoid": Operation((REAL,), PROB, torch.sigmoid, "torch.sigmoid({0})", r"\sigma({0})"),
    "tanh": Operation((REAL,), BOUNDED, torch.tanh, "torch.tanh({0})", r"\tanh({0})"),
    "softplus": Operation((REAL,), NON_NEGATIVE, softplus, "softplus({0})", r"\log(1 + e^{{{0}}})"),
    "relu": Operation((REAL,), NON_NEGATIVE, torch.relu, "torch.relu({0})", r"\max(0, {0})"),
    "square": Operation((REAL,), NON_NEGATIVE, torch.square, "torch.square({0})", "({0})^2"),
    "add": Operation((REAL, REAL), REAL, torch.add, "{0} + {1}", "{0} + {1}"),
    "sub": Operation((REAL, REAL), REAL, torch.sub, "{0} - {1}", "{0} - {1}"),
    "mul": Operation((REAL, REAL), REAL, torch.mul, "{0} * {1}", r"{0} \, {1}"),
    "ratio": Operation(
        (REAL, REAL), REAL, _ratio, "ratio({0}, {1})", r"\frac{{{0}}}{{\sqrt{{1 + ({1})^2}}}}"
    ),
    "minimum": Operation(
        (REAL, REAL), REAL, _minimum, "torch.minimum({0}, {1})", r"\min({0}, {1})"
    ),
    "maximum": Operation(
        (REAL, REAL), REAL, _maximum, "torch.maximum({0}, {1})", r"\max({0}, {1})"
    ),
}


def leaf_values(name: str, values: dict[str, Tensor]) -> Tensor:
    """A leaf of a batch, from the fields that it names."""
    names = LEAVES[name].fields
    fields = [values[n].detach() if n.startswith("ref_") else values[n] for n in names]
    if name.endswith("_min"):
        logps, mask = fields
        return torch.where(mask.bool(), logps, torch.inf).amin(-1)
    if name.endswith("_var"):
        logps, mask = fields
        count = mask.sum(-1, keepdim=True)
        mean = (logps * mask).sum(-1, keepdim=True) / count
        return ((logps - mean) * mask).square().sum(-1) / count[..., 0]
    if name.endswith("_len"):
        return fields[0].float()
    if len(fields) == 4:
        return (fields[0] - fields[1]) - (fields[2] - fields[3])
    return fields[0] - fields[1] if len(fields) == 2 else fields[0]


def nodes(expression: Expression) -> Iterator[Expression]:
    """The expression and all its parts, depth first, the first argument first."""
    yield expression
    if isinstance(expression, tuple):
        for part in expression[1:]:
            yield from nodes(part)


def size(expression: Expression) -> int:
    """How many nodes an expression has.

    >>> size(("softplus", ("mul", -0.1, "D")))
    4
    """
    return sum(1 for _ in nodes(expression))


def depth(expression: Expression) -> int:
    """Levels of an expression: 1 of a leaf.

    >>> depth(("softplus", ("mul", -0.1, "D")))
    3
    """
    if not isinstance(expression, tuple):
        return 1
    return 1 + max(depth(part) for part in expression[1:])
