"""Formulas as text, in Python's notation: ``softplus(-0.1 * D) - 0.5 * c``.

Text may come from anywhere. It is parsed, looked at and bounded; nothing of it is ever executed.
"""

import ast
import difflib
from collections.abc import Mapping

from torchmpo.objectives.formulas.ranges import interval
from torchmpo.objectives.formulas.vocabulary import (
    LARGEST,
    LEAVES,
    OPERATIONS,
    Expression,
    depth,
    size,
)

MOST_LETTERS, MOST_NODES, MOST_LEVELS = 20_000, 1000, 40
_INFIX = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul"}
_SYMBOLS = {"add": " + ", "sub": " - ", "mul": " * "}


def parse(formula: str) -> Expression:
    """The expression that a text stands for.

    Args:
        formula: leaves and functions of :mod:`.vocabulary` by name, numbers, ``+``, ``-``, ``*``,
            and ``/`` by a number.

    Raises:
        ValueError: it is no formula, is too large, has an unknown name, an argument outside the
            type of its function, or reads no log-probability.

    >>> parse("softplus(-0.1 * D)")
    ('softplus', ('mul', -0.1, 'D'))
    >>> parse("softpls(c)")
    Traceback (most recent call last):
    ValueError: unknown function 'softpls': did you mean 'softplus'?
    """
    if not isinstance(formula, str):
        raise ValueError(f"a formula is a text; got a {type(formula).__name__}")
    if len(formula) > MOST_LETTERS:
        raise ValueError(f"a formula has at most {MOST_LETTERS} letters; this has {len(formula)}")
    try:
        tree = ast.parse(formula.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"no formula: {formula[:80]!r}") from error
    return checked(_read(tree, 1))


def checked(expression: Expression) -> Expression:
    """The same expression, if it is a loss.

    Raises:
        ValueError: see :func:`parse`.
    """
    if (count := size(expression)) > MOST_NODES:
        raise ValueError(f"a formula has at most {MOST_NODES} nodes; this has {count}")
    if (levels := depth(expression)) > MOST_LEVELS:
        raise ValueError(f"a formula has at most {MOST_LEVELS} levels; this has {levels}")
    if not reads_policy(expression):
        raise ValueError("the formula reads no log-probability of the policy")
    check_types(expression)
    return expression


def reads_policy(expression: Expression) -> bool:
    """Whether the policy's log-probabilities are in it."""
    if isinstance(expression, tuple):
        return any(reads_policy(part) for part in expression[1:])
    return isinstance(expression, str) and LEAVES[expression].slopes != (0, 0)


def check_types(expression: Expression) -> None:
    """Refuse an argument outside the type that its function takes.

    Raises:
        ValueError: which one.
    """
    if not isinstance(expression, tuple):
        return
    name, *arguments = expression
    for argument, (least, most) in zip(arguments, OPERATIONS[name].takes, strict=True):
        check_types(argument)
        low, high = interval(argument)
        if low < least or high > most:
            raise ValueError(
                f"{name} takes values in [{least:g}, {most:g}], and {text(argument)} lies in "
                f"[{low:g}, {high:g}]"
            )


def _read(tree: ast.expr, level: int) -> Expression:
    if level > MOST_LEVELS + 1:
        raise ValueError(f"a formula has at most {MOST_LEVELS} levels")
    if isinstance(tree, ast.Constant):
        return _number(tree.value)
    if isinstance(tree, ast.Name):
        return _known(tree.id, LEAVES, "name")
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        inner = _read(tree.operand, level + 1)
        return -inner if isinstance(inner, float) else ("neg", inner)
    if isinstance(tree, ast.BinOp):
        left, right = _read(tree.left, level + 1), _read(tree.right, level + 1)
        if (name := _INFIX.get(type(tree.op))) is not None:
            return (name, left, right)
        if isinstance(tree.op, ast.Div) and isinstance(right, float) and right != 0:
            return ("mul", _number(1 / right), left)
        raise ValueError("a formula has +, -, * and / by a number; for the rest, name a function")
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.keywords:
        name = _known(tree.func.id, OPERATIONS, "function")
        wanted, got = len(OPERATIONS[name].takes), len(tree.args)
        if got != wanted:
            raise ValueError(f"{name} takes {wanted} argument{'s' * (wanted > 1)}; got {got}")
        return (name, *[_read(argument, level + 1) for argument in tree.args])
    raise ValueError(f"no part of a formula: {type(tree).__name__}")


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"a constant is a number; got {value!r:.40}")
    if not abs(value) <= LARGEST:  # an integer may be too large for a float
        raise ValueError(f"a constant lies between -{LARGEST:g} and {LARGEST:g}")
    return float(value)


def _known(name: str, names: dict, what: str) -> str:
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
        raise ValueError(f"unknown {what} {name!r:.40}: {hint}")
    return name


def number(value: float) -> str:
    """A constant as it is printed: the shortest text that is this number."""
    return f"{value:.10g}" if float(f"{value:.10g}") == value else repr(value)


def text(expression: Expression, names: Mapping[str, str] | None = None) -> str:
    """The formula of an expression, which :func:`parse` reads.

    Args:
        names: what leaves are called instead, for people.

    >>> text(("sub", ("softplus", ("mul", -0.1, ("sub", "c", "r"))), "c"))
    'softplus(-0.1 * (c - r)) - c'
    """
    if not isinstance(expression, (tuple, str)):
        return number(expression)
    if isinstance(expression, str):
        return (names or {}).get(expression, expression)

    def write(part: Expression) -> str:
        return text(part, names)

    name, *arguments = expression
    if name not in (*_SYMBOLS, "neg"):
        return f"{name}({', '.join(map(write, arguments))})"
    parts = infix_parts(expression, write)
    return f"-{parts[0]}" if name == "neg" else _SYMBOLS[name].join(parts)


_ALIKE = {"add": ("add", "sub"), "mul": ("mul",)}  # read from the left, if there are no brackets


def infix_parts(expression: tuple, write, brackets: str = "()") -> list[str]:
    """The arguments of an operation that is written with signs, in brackets where they need them.

    So that what is read back is the same tree: a + (b - c) has another order of evaluation, and
    may have another depth, than a + b - c.

    Args:
        expression: neg, add, sub, mul or complement (1 minus its argument) of others.
        write: an expression as text.
        brackets: the opening and the closing one.
    """
    name, *arguments = expression
    opening, closing = brackets[: len(brackets) // 2], brackets[len(brackets) // 2 :]
    found = []
    for k, argument in enumerate(arguments):
        inner = argument[0] if isinstance(argument, tuple) else None
        negative = isinstance(argument, float) and argument < 0
        taken_off = name in ("neg", "complement") or (name == "sub" and k == 1)
        needed = inner in ("add", "sub") and (taken_off or name == "mul")
        needed |= (inner == "neg" or negative) and (taken_off or k == 1)
        needed |= inner == "neg" and name == "mul"
        needed |= k == 1 and inner in _ALIKE.get(name, ())
        needed |= inner == "mul" and name == "neg"
        found.append(f"{opening}{write(argument)}{closing}" if needed else write(argument))
    return found
