"""The same formula in fewer nodes: constants folded, and what changes nothing left out."""

from typing import TypeGuard

import torch

from torchmpo.objectives.formulas.vocabulary import LARGEST, OPERATIONS, Expression


def simplified(expression: Expression) -> Expression:
    """An expression of equal value and gradient, with no operation on constants alone.

    >>> simplified(("add", ("mul", ("add", 0.25, 0.75), "c"), ("mul", 0.0, "r")))
    'c'
    """
    if not isinstance(expression, tuple):
        return expression
    before = None
    while before != expression:
        before = expression
        if not isinstance(expression, tuple):
            return expression
        expression = _step((expression[0], *map(simplified, expression[1:])))
    return expression


def _step(expression: tuple) -> Expression:
    name, *arguments = expression
    if all(isinstance(argument, float) for argument in arguments):
        values = [torch.tensor(argument, dtype=torch.float64) for argument in arguments]
        folded = float(OPERATIONS[name].function(*values))
        return folded if abs(folded) <= LARGEST else expression
    a, b = arguments[0], arguments[-1]
    if name in _RULES:
        found = _RULES[name](a, b)
        return expression if found is None else found
    if name == "complement" and _is(a, "complement"):
        return a[1]
    if name in ("relu", "square") and _is(a, "relu" if name == "relu" else "neg"):
        return a if name == "relu" else ("square", a[1])
    if name == "ratio" and isinstance(b, float):
        return ("mul", (1 + b * b) ** -0.5, a)
    if name in ("minimum", "maximum") and a == b:
        return a
    return expression


def _is(expression: Expression, name: str) -> TypeGuard[tuple]:
    return isinstance(expression, tuple) and expression[0] == name


def _negative(expression: Expression) -> TypeGuard[tuple]:
    """Whether it is something times a negative number."""
    return _is(expression, "mul") and isinstance(expression[1], float) and expression[1] < 0


def _negated(a: Expression, _: Expression) -> Expression | None:
    if _is(a, "neg"):
        return a[1]
    if _is(a, "sub"):
        return ("sub", a[2], a[1])
    if _is(a, "mul") and isinstance(a[1], float):
        return ("mul", -a[1], a[2])
    return None


def _sum(a: Expression, b: Expression) -> Expression | None:
    if a == 0.0 or b == 0.0:
        return b if a == 0.0 else a
    if _is(b, "neg"):
        return ("sub", a, b[1])
    if _negative(b):
        return ("sub", a, ("mul", -b[1], b[2]))
    if _is(a, "neg"):
        return ("sub", b, a[1])
    return ("mul", 2.0, a) if a == b else None


def _difference(a: Expression, b: Expression) -> Expression | None:
    if a == b:
        return 0.0
    if a == 0.0 or b == 0.0:
        return ("neg", b) if a == 0.0 else a
    if _is(b, "neg"):
        return ("add", a, b[1])
    if _negative(b):
        return ("add", a, ("mul", -b[1], b[2]))
    if (a, b) == ("c", "r"):
        return "margin"
    return "margin_sum" if (a, b) == ("c_sum", "r_sum") else None


def _product(a: Expression, b: Expression) -> Expression | None:
    if isinstance(b, float):
        return ("mul", b, a)
    if a == 0.0:
        return 0.0
    if a == 1.0 or a == -1.0:
        return b if a == 1.0 else ("neg", b)
    if isinstance(a, float):
        if _is(b, "mul") and isinstance(b[1], float) and abs(a * b[1]) <= LARGEST:
            return ("mul", a * b[1], b[2])
        if _is(b, "neg"):
            return ("mul", -a, b[1])
    if _is(a, "neg") and _is(b, "neg"):
        return ("mul", a[1], b[1])
    return ("square", a) if a == b else None


_RULES = {"neg": _negated, "add": _sum, "sub": _difference, "mul": _product}
