"""A loss that is a formula: a function of what the formula reads, as LaTeX and as Python."""

import inspect
import textwrap

from torch import Tensor

from torchmpo.objectives.formulas.language import checked, infix_parts, number, text
from torchmpo.objectives.formulas.simplify import simplified
from torchmpo.objectives.formulas.vocabulary import (
    LEAVES,
    OPERATIONS,
    Expression,
    leaf_values,
    nodes,
)

# What documentation calls the leaves (``torchmpo.objectives.documented.NOTATION``).
_WITH_SIGNS = ("neg", "add", "sub", "mul", "complement")
_SYMBOLS = {
    **{"c": "c̄", "r": "r̄", "margin": "Δ̄", "c_sum": "c", "r_sum": "r", "margin_sum": "Δ"},
    **{"c_ref": "c̄'", "r_ref": "r̄'", "D_mean": "D̄", "c_len": "n_c", "r_len": "n_r"},
    **{"c_ref_sum": "c'", "r_ref_sum": "r'"},
    **{"c_min": "min c_k", "r_min": "min r_k", "c_var": "var c_k", "r_var": "var r_k"},
}
_HELPERS = {
    "log_odds": '''
        def log_odds(logps):
            """log p - log(1 - p), with log p at most -1e-6."""
            logps = torch.where(logps > -1e-6, -1e-6, logps)
            return logps - torch.log(-torch.expm1(logps))
    ''',
    "ratio": '''
        def ratio(a, b):
            """a over the square root of 1 + b squared."""
            return a * torch.rsqrt(1 + b * b)
    ''',
}


class Formula:
    """A loss of pairs that is an expression; a function with the inputs that its leaves need.

    Args:
        expression: as :func:`~torchmpo.objectives.formulas.language.parse` gives it.

    Attributes:
        expression: the same in fewer nodes, see
            :func:`~torchmpo.objectives.formulas.simplify.simplified`.
        inputs: names of its positional parameters.

    Raises:
        ValueError: it is no loss, see :func:`~torchmpo.objectives.formulas.language.parse`.

    >>> import torch
    >>> loss = Formula(("neg", "c"))
    >>> loss(torch.tensor([-2.0])).tolist()
    [2.0]
    """

    def __init__(self, expression: Expression):
        self.expression = checked(simplified(checked(expression)))
        self.__name__ = "formula"
        self.inputs = inputs_of(self.leaves)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.__signature__ = inspect.Signature(
            [inspect.Parameter(name, kind) for name in self.inputs]
        )
        equation = text(self.expression, _SYMBOLS)
        self.__doc__ = f"A loss that is a formula.\n\nloss = {equation}\n"

    @property
    def leaves(self) -> list[str]:
        """The leaves in it, each once, in the order of the vocabulary."""
        found = set(nodes(self.expression))
        return [name for name in LEAVES if name in found]

    def __call__(self, *data: Tensor) -> Tensor:
        """The loss of each pair, ``[batch]``; ``data`` in the order of ``inputs``."""
        fields = dict(zip(self.inputs, data, strict=True))
        value = _value(self.expression, {name: leaf_values(name, fields) for name in self.leaves})
        assert isinstance(value, Tensor)
        return value

    def __repr__(self) -> str:
        return f"Formula({text(self.expression)!r})"

    def described(self) -> list[str]:
        """The formula, its LaTeX and its Python, in lines for people."""
        return [
            f"formula: {text(self.expression)}",
            f"LaTeX:   {self.latex()}",
            "",
            *self.source().splitlines(),
            "",
        ]

    def latex(self) -> str:
        """The equation, for a formula of LaTeX.

        >>> Formula(("softplus", ("mul", -0.1, "margin"))).latex()
        '\\\\log(1 + e^{-0.1 \\\\, \\\\bar\\\\Delta})'
        """
        return _latex(self.expression)

    def source(self, after_sft: bool | None = None) -> str:
        """The same loss as a file of Python that needs torch only; its function is ``loss``.

        Args:
            after_sft: of its objective; the function carries it where it is not what its inputs
                say, and so is trained as that objective is.

        >>> print(Formula(("neg", "c")).source().splitlines()[-1].strip())
        return -c
        """
        body = _code(self.expression)
        lets = "".join(f"    {name} = {LEAVES[name].code}\n" for name in self.leaves)
        helpers = [h for name, h in _HELPERS.items() if f"{name}(" in body]
        parts = [textwrap.dedent(h).strip() for h in helpers]
        parts.append(
            f"def loss({', '.join(self.inputs)}):\n"
            f'    """One value per pair."""\n{lets}    return {body}\n'
        )
        code = "\n\n\n".join(parts)
        imports = "import torch\n" * ("torch." in code)
        imports += "from torch.nn.functional import softplus\n" * ("softplus(" in code)
        head = f'"""{text(self.expression)}"""\n'
        file = head + (f"\n{imports}" if imports else "") + f"\n\n{code}"
        reads = any(name.startswith("ref_") for name in self.inputs)
        return file if after_sft in (None, reads) else f"{file}\n\nloss.after_sft = {after_sft}\n"


def inputs_of(leaves: list[str]) -> tuple[str, ...]:
    """The fields that leaves are made of, each once."""
    return tuple(dict.fromkeys(field for name in leaves for field in LEAVES[name].fields))


def _value(expression: Expression, leaves: dict[str, Tensor]) -> Tensor | float:
    if not isinstance(expression, (tuple, str)):
        return expression
    if isinstance(expression, str):
        return leaves[expression]
    name, *arguments = expression
    return OPERATIONS[name].function(*[_value(argument, leaves) for argument in arguments])


def _latex(expression: Expression) -> str:
    if not isinstance(expression, (tuple, str)):
        return number(expression)
    if isinstance(expression, str):
        return LEAVES[expression].latex
    name, *arguments = expression
    if name in _WITH_SIGNS:
        parts = infix_parts(expression, _latex)
    else:
        parts = [_latex(argument) for argument in arguments]
    return OPERATIONS[name].latex.format(*parts)


def _code(expression: Expression) -> str:
    if not isinstance(expression, (tuple, str)):
        return number(expression)
    if isinstance(expression, str):
        return expression
    name, *arguments = expression
    if name in _WITH_SIGNS:
        parts = infix_parts(expression, _code)
    else:
        parts = [_code(argument) for argument in arguments]
    if name in ("minimum", "maximum") and any(isinstance(a, float) for a in arguments):
        variable, limit = parts if isinstance(arguments[1], float) else parts[::-1]
        return f"torch.clamp({variable}, {'max' if name == 'minimum' else 'min'}={limit})"
    return OPERATIONS[name].code.format(*parts)
