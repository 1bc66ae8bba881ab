"""What a vector is in a search of formulas: a formula in prefix order, its codes and constants."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from torchmpo.evolve.programs.grammar import Grammar, check_constants, tidy
from torchmpo.evolve.programs.interpreter import CONSTANT, LEVELS, Interpreter
from torchmpo.evolve.programs.starts import FORMULAS
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.formulas import Formula, parse
from torchmpo.objectives.formulas.language import text
from torchmpo.objectives.formulas.ranges import PROPERTIES
from torchmpo.objectives.formulas.simplify import simplified
from torchmpo.objectives.formulas.vocabulary import (
    GROUPS,
    LEAVES,
    OPERATIONS,
    Expression,
    nodes,
)
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError, nearest
from torchmpo.runs.files import is_folder

NONE = -1.0  # the code of a place that a formula does not use


class ProgramSpace:
    """Formulas of at most so many nodes, see :class:`~torchmpo.evolve.spaces.SearchSpace`.

    A vector has a code and a constant for each node: ``[2·nodes]``.

    Args:
        grammar: the formulas.
        start: where the search begins.
        start_name: what that is called in tables.
    """

    def __init__(self, grammar: Grammar, start: Expression, start_name: str):
        self.grammar, self.nodes = grammar, grammar.most
        self.name, self.start_name = "program", start_name
        self.interpreter = Interpreter(grammar.leaves)
        self._names = {code: name for name, code in self.interpreter.codes.items()}
        self.dim = 2 * self.nodes
        self.start = self.encode(start)
        own = {name: value[0] for name, value in self.parameters(self.start[None]).items()}
        self.objective = Objective(self.interpreter, name=self.name, **own)

    def encode(self, expression: Expression) -> Tensor:
        """The vector of a formula, ``[dim]`` float32."""
        vector = torch.zeros(2, self.nodes)
        vector[0] = NONE
        for k, part in enumerate(nodes(expression)):
            name = part[0] if isinstance(part, tuple) else part
            named = isinstance(name, str)
            vector[0, k] = self.interpreter.codes[name] if named else CONSTANT
            vector[1, k] = 0.0 if named else name
        return vector.flatten()

    def decode(self, vector: Tensor) -> Expression:
        """The formula of a vector ``[dim]``."""
        codes, constants = vector.double().view(2, self.nodes).tolist()

        def read(k: int) -> tuple[Expression, int]:
            name = self._names.get(int(codes[k]))
            if name is None:
                return tidy(constants[k]), k + 1
            if name not in OPERATIONS:
                return name, k + 1
            parts, k = [], k + 1
            for _ in OPERATIONS[name].takes:
                part, k = read(k)
                parts.append(part)
            return (name, *parts), k

        return read(0)[0]

    def parameters(self, vectors: Tensor) -> dict[str, Tensor]:
        """Codes and constants by place, ``[n, PLACES]`` each: what the interpreter reads."""
        trees = [self.interpreter.tree(self.decode(vector)) for vector in vectors]
        codes, constants = zip(*trees, strict=True)
        return {"codes": torch.tensor(codes), "constants": torch.tensor(constants)}

    def rates(self, vectors: Tensor, start: float) -> None:
        """``None``: a formula says nothing of the learning rate."""

    def at(self, vector: Tensor) -> Objective:
        """See :class:`~torchmpo.evolve.spaces.SearchSpace`; it is trained as the search does."""
        found = Objective(Formula(self.decode(vector)))
        found.after_sft = self.objective.after_sft
        return found

    def save(self, folder: str | Path, vector: Tensor, card: dict) -> None:
        """See :class:`~torchmpo.evolve.spaces.SearchSpace`."""
        self.at(vector).save(folder, card)


def program_space(
    reads: Sequence[str], most: int, require: Sequence[str] = (), start: str | None = None
) -> ProgramSpace:
    """The space that a command's settings describe.

    Args:
        reads: groups of leaves.
        most: nodes of a formula.
        require: properties, see :func:`torchmpo.objectives.formulas.ranges.has`.
        start: a loss of ``torchmpo.evolve.programs.starts.FORMULAS``, a saved formula, or the
            text of one. ``None``: DPO with a reference, else ORPO.

    Raises:
        UserError: a setting that is none, or a start outside the space.
    """
    for word in reads:
        if word not in GROUPS:
            raise UserError(f"reads: unknown {word!r}: {nearest(word, GROUPS)}")
    for word in require:
        if word not in PROPERTIES:
            raise UserError(f"require: unknown {word!r}: {nearest(word, PROPERTIES)}")
    if not 3 <= most <= 2**LEVELS - 1:
        raise UserError(f"nodes must be from 3 to {2**LEVELS - 1}; got {most}")
    leaves = [name for name, leaf in LEAVES.items() if leaf.group in reads]
    if not any(LEAVES[name].slopes != (0, 0) for name in leaves):
        raise UserError("reads: nothing of the policy is among it: add means or sums")
    grammar = Grammar(leaves, most, require)
    named = [(n, f) for n, f in FORMULAS.items() if n != "dpo" or "reference" in reads]
    if "reference" in reads:
        named.sort(key=lambda pair: pair[0] != "dpo")
    name = start or next((n for n, f in named if grammar.tidied(parse(f)) is not None), None)
    if name is None:
        raise UserError("no named loss is in this space: give --warm_start a formula")
    if name in FORMULAS:
        expression = parse(FORMULAS[name])
        title = name.upper() if name in ("orpo", "dpo", "sft", "cpo", "ipo") else name
    elif is_folder(name):
        function = getattr(resolve(Path(name)), "function", None)
        if not isinstance(function, Formula):
            raise UserError(f"start {name} is no saved formula")
        expression, title = function.expression, Path(name).resolve().name
    else:
        try:
            expression = parse(name)
        except ValueError as error:
            raise UserError(
                f"start {name!r} is no formula ({error}), nor one of {', '.join(FORMULAS)}"
            ) from error
        title = name
    tidied = grammar.tidied(expression)
    if tidied is None:
        raise UserError(
            f"start {title} lies outside the space: it reads something else, has more nodes or "
            "levels, or not what --require asks for"
        )
    try:
        check_constants(expression)
    except ValueError as error:
        raise UserError(f"start {title}: {error}") from error
    if title == start and tidied != simplified(expression):
        title = text(tidied)  # whose constants have four digits
    return ProgramSpace(grammar, tidied, title)
