"""Many formulas as one program: each is a tree of operation codes and constants, which are tensors.

The tree has ``LEVELS`` levels and a place for every node that a binary tree of so many levels can
have: the root is place 0, the arguments of place k are 2k + 1 and 2k + 2. So a level is one tensor.
From the lowest level to the root, every operation is applied to the arguments of every place, and
each place keeps the result of its own. One program is compiled, whatever the formulas are.

An operation sees the arguments only where it is the one that counts, and −1 elsewhere. Otherwise
the gradient of what is thrown away could be infinite, and 0·∞ is NaN.
"""

import inspect

import torch
from torch import Tensor

from torchmpo.objectives.formulas.formula import inputs_of
from torchmpo.objectives.formulas.vocabulary import OPERATIONS, Expression, leaf_values

LEVELS = 7
PLACES = 2**LEVELS - 1
CONSTANT = 0  # its code; then the leaves, then the operations
UNSEEN = -1.0  # an argument at which every operation is finite, and so is its slope


class Interpreter:
    """The loss that operation codes and constants stand for; vmapped, a population of losses.

    Args:
        leaves: names of the leaves that formulas may have.

    Attributes:
        codes: of leaves and operations, by name.
        inputs: names of its positional parameters, whichever of them a formula reads.
    """

    def __init__(self, leaves: list[str]):
        self.leaves = list(leaves)
        self.codes = {name: 1 + k for k, name in enumerate([*self.leaves, *OPERATIONS])}
        self.inputs = inputs_of(self.leaves)
        self.__name__ = "program"
        positional, keyword = (
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        )
        self.__signature__ = inspect.Signature(
            [inspect.Parameter(name, positional) for name in self.inputs]
            + [inspect.Parameter(name, keyword) for name in ("codes", "constants")]
        )

    def tree(self, expression: Expression) -> tuple[list[int], list[float]]:
        """Codes and constants of an expression, by place; 0 in places that it does not use."""
        codes, constants = [CONSTANT] * PLACES, [0.0] * PLACES

        def put(part: Expression, place: int) -> None:
            if isinstance(part, str):
                codes[place] = self.codes[part]
            elif not isinstance(part, tuple):
                constants[place] = part
            else:
                codes[place] = self.codes[part[0]]
                for k, argument in enumerate(part[1:]):
                    put(argument, 2 * place + 1 + k)

        put(expression, 0)
        return codes, constants

    def __call__(self, *data: Tensor, codes: Tensor, constants: Tensor) -> Tensor:
        """The loss of each pair, ``[batch]``.

        Args:
            data: in the order of ``inputs``.
            codes, constants: ``[PLACES]``, of one formula.
        """
        fields = dict(zip(self.inputs, data, strict=True))
        known = torch.broadcast_tensors(*[leaf_values(name, fields) for name in self.leaves])
        kind = torch.promote_types(known[0].dtype, torch.float32)
        leaves = torch.stack([value.to(kind) for value in known])  # [leaves, batch]
        own = torch.arange(1, 1 + len(self.leaves), device=codes.device)
        values = None
        for level in reversed(range(LEVELS)):
            first, last = 2**level - 1, 2 ** (level + 1) - 1
            code = codes[first:last]
            chosen = (code[:, None] == own)[:, :, None]  # [places, leaves, 1]
            here = torch.where(chosen, leaves, 0.0).sum(1)
            here = here + torch.where(code == CONSTANT, constants[first:last], 0.0)[:, None]
            if values is not None:
                here = here + self._operations(
                    code[:, None], *values.unflatten(0, (-1, 2)).unbind(1)
                )
            values = here
        assert values is not None
        return values[0]

    def _operations(self, code: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The results of a level's operations, 0 where there is none, ``[places, batch]``."""
        result = torch.zeros_like(first)
        for name, operation in OPERATIONS.items():
            here = code == self.codes[name]
            arguments = [
                torch.where(here, value, UNSEEN)
                for value, _ in zip((first, second), operation.takes, strict=False)
            ]
            result = torch.where(here, operation.function(*arguments), result)
        return result
