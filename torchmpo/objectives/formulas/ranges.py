"""What is certain of an expression without computing it: where its values lie, and how it moves.

Interval arithmetic over log-probabilities ≤ 0. What follows is a promise; where nothing follows,
the expression may be as good.
"""

import math

from torchmpo.objectives.formulas.vocabulary import (
    LEAVES,
    OPERATIONS,
    Expression,
    Interval,
)

PROPERTIES = ("bounded", "monotone")
_GROWING = ("exp", "log_odds", "log1p", "sigmoid", "tanh", "softplus", "relu")


def interval(expression: Expression) -> Interval:
    """An interval in which the values of an expression lie.

    >>> interval(("softplus", ("mul", -2.0, "margin")))
    (0.0, inf)
    >>> interval(("mul", -0.5, "c"))
    (0.0, inf)
    """
    if isinstance(expression, str):
        return LEAVES[expression].range
    if not isinstance(expression, tuple):
        return expression, expression
    name, *arguments = expression
    known = [interval(argument) for argument in arguments]
    low, high = _of_operation(name, known)
    least, most = OPERATIONS[name].gives
    return max(low, least), min(high, most)


def _of_operation(name: str, known: list[Interval]) -> Interval:
    (low, high), (other_low, other_high) = known[0], known[-1]
    if name == "neg":
        return -high, -low
    if name == "complement":
        return 1 - high, 1 - low
    if name == "add":
        return low + other_low, high + other_high
    if name == "sub":
        return low - other_high, high - other_low
    if name == "minimum":
        return min(low, other_low), min(high, other_high)
    if name == "maximum":
        return max(low, other_low), max(high, other_high)
    if name == "mul":
        ends = [_times(a, b) for a in (low, high) for b in (other_low, other_high)]
        return min(ends), max(ends)
    if name == "ratio":  # its first argument, made smaller
        return min(low, 0.0), max(high, 0.0)
    if name == "square":
        ends = low * low, high * high
        return (0.0 if low <= 0 <= high else min(ends)), max(ends)
    if name == "relu":
        return max(low, 0.0), max(high, 0.0)
    if name in ("exp", "sigmoid", "tanh"):
        function = {"exp": _exp, "sigmoid": _sigmoid, "tanh": math.tanh}[name]
        return function(low), function(high)
    return OPERATIONS[name].gives


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(min(-x, 700.0)))


def slopes(expression: Expression) -> tuple[int | None, int | None]:
    """How an expression moves with the chosen and with the rejected log-probabilities.

    Returns:
        1 grows, −1 falls, 0 stays, None: that is not certain.

    >>> slopes(("softplus", ("mul", -2.0, "margin")))
    (-1, 1)
    >>> slopes(("square", "margin"))
    (None, None)
    """
    chosen, rejected = (_slope(expression, side) for side in (0, 1))
    return chosen, rejected


def _slope(expression: Expression, side: int) -> int | None:
    if isinstance(expression, str):
        return LEAVES[expression].slopes[side]
    if not isinstance(expression, tuple):
        return 0
    name, *arguments = expression
    own = [_slope(argument, side) for argument in arguments]
    if all(slope == 0 for slope in own):
        return 0
    if name in _GROWING:
        return own[0]
    if name in ("neg", "complement"):
        return _scaled(own[0], -1)
    if name == "square":
        return _scaled(own[0], _sign(arguments[0]))
    if name == "sub":
        return _both(own[0], _scaled(own[1], -1))
    if name == "mul":
        return _both(_scaled(own[0], _sign(arguments[1])), _scaled(own[1], _sign(arguments[0])))
    if name == "ratio":
        return own[0] if own[1] == 0 else None
    return _both(own[0], own[1])  # add, minimum, maximum


def _sign(expression: Expression) -> int | None:
    low, high = interval(expression)
    if low >= 0:
        return 1
    return -1 if high <= 0 else None


def _scaled(slope: int | None, sign: int | None) -> int | None:
    if slope == 0:
        return 0
    return None if slope is None or sign is None else slope * sign


def _both(first: int | None, second: int | None) -> int | None:
    if first == 0 or second == 0:
        return second if first == 0 else first
    return first if first == second else None


def has(expression: Expression, wanted: str) -> bool:
    """Whether a loss certainly has a property.

    Args:
        wanted: ``"bounded"``: its value does not fall below some number, so that training has an
            end. ``"monotone"``: it never grows with the log-probability of the chosen response, and
            never falls with that of the rejected one.

    >>> has(("neg", "margin"), "bounded"), has(("neg", "margin"), "monotone")
    (False, True)
    """
    if wanted == "bounded":
        return interval(expression)[0] > -math.inf
    chosen, rejected = slopes(expression)
    return chosen in (-1, 0) and rejected in (0, 1)
