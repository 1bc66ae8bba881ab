"""A loss bound to its hyper-parameters."""

import difflib
import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchmpo.losses import COUPLED, LOSSES
from torchmpo.losses.divergence import OF_THE_MARGIN, InDivergence
from torchmpo.losses.likelihood_weight import LikelihoodWeighted
from torchmpo.losses.weighted_sum import WeightedSum
from torchmpo.objectives.balance import Balanced
from torchmpo.objectives.formulas import Formula, parse, text
from torchmpo.objectives.inputs import PairLogps, is_unpaired, made_up, take
from torchmpo.objectives.soundness import card_text, check_finite, check_hyper, read_card
from torchmpo.runs.errors import one_line
from torchmpo.runs.files import write_atomic
from torchmpo.runs.json_files import parse_json
from torchmpo.runs.own_code import names_code, own_code_raised


def _source(function: Callable[..., Any]) -> Callable[..., Any]:
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    return function


def _made_of(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The functions that a sum adds up or a modifier changes; of any other, itself."""
    if isinstance(function, WeightedSum):
        return list(function.parts.values())
    modified = isinstance(function, (InDivergence, LikelihoodWeighted))
    return [function.loss if modified else function]


def _form(function: Callable[..., Any]) -> dict[str, Any] | None:
    """How a file says which function it is; None if a file cannot."""
    if isinstance(function, Formula):
        return {"formula": text(function.expression)}
    names = [next((n for n, f in LOSSES.items() if f is loss), None) for loss in _made_of(function)]
    if None in names:
        return None
    if isinstance(function, Balanced):
        return {"sum_of": names, "balance": function.rule}
    if isinstance(function, WeightedSum):
        return {"sum_of": names}
    if isinstance(function, LikelihoodWeighted):
        return {"weighted": "wpo"}
    return {"divergence": function.divergence} if isinstance(function, InDivergence) else {}


class Objective:
    """A loss function bound to its hyper-parameters.

    Args:
        function: positional parameters named after fields of :class:`PairLogps`, hyper-parameters
            keyword-only, ``[batch]`` out; also a ``partial`` or a compiled version of one.
        name: how to call it; by default the function's own name.
        **hyper: hyper-parameters, python numbers or 0-d tensors; the others keep their defaults.

    Attributes:
        inputs: the fields it reads.
        optional: those of them that may be None.
        unpaired: whether it is of single responses, labelled desirable or not, and not of pairs.
        own: whether it was found as ``package.module:function``. What such a one raises is a
            `UserError` with its file and line, from what was raised.
        shipped: whether it is of this library, or made of its losses alone.
        needs_reference: whether a reference policy's log-probabilities are among them.
        after_sft: whether the first epochs of a training on robots are supervised, before it: so
            for losses that need a reference, and for a formula that a search found beside such, or
            as an attribute ``after_sft`` of the function says.
        coupled: whether a pair's value depends on the rest of the batch, so that accumulated
            gradients differ from those of one large batch. Known of the library's own losses; any
            other says so by an attribute ``coupled = True`` of the function.
        hyper: every hyper-parameter with its value.
        source: the function under partials, decorators and ``torch.compile``.
        card: what was saved beside a loaded objective.

    Raises:
        ValueError: a parameter outside the vocabulary, inputs of pairs beside those of single
            responses, an unknown or missing hyper-parameter, or one the loss itself refuses on a
            trial call.

    >>> from torchmpo.losses import simpo_loss
    >>> objective = Objective(simpo_loss, beta=4.0)
    >>> sorted(objective.inputs)
    ['chosen_mean_logps', 'rejected_mean_logps']
    >>> objective.parameters_tree()["beta"].item()
    4.0
    """

    def __init__(self, function: Callable[..., Tensor], *, name: str | None = None, **hyper: Any):
        if not callable(function):
            kind = type(function).__name__
            raise ValueError(f"a loss is a function, or the name or folder of one; got a {kind}")
        self.function = function
        self.source = _source(function)
        self.own = names_code(name or "")
        self.name = name or getattr(self.source, "__name__", type(function).__name__)
        if isinstance(function, nn.Module):
            raise ValueError(
                f"{self.name} is an nn.Module: write a function that calls it, whose positional "
                "parameters are named after what a loss needs, or give its forward"
            )
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError) as error:  # of a class, or a function written in C
            raise ValueError(f"{self.name} is no loss: {error}") from error
        keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        inputs = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
        for parameter in inputs:
            if parameter.name not in PairLogps._fields:
                close = difflib.get_close_matches(parameter.name, PairLogps._fields, n=1)
                raise ValueError(
                    f"{self.name}: parameter {parameter.name!r} is not an input that can be "
                    f"supplied{f' (did you mean {close[0]!r}?)' if close else ''}; inputs are "
                    f"{', '.join(PairLogps._fields)}; hyper-parameters go after a '*'"
                )
        for key in hyper:
            if key not in keywords:
                valid = f"it has {', '.join(keywords)}" if keywords else "it has none"
                raise ValueError(f"{self.name} has no hyper-parameter {key!r}: {valid}")
        self.hyper = keywords | hyper
        for key, value in self.hyper.items():
            if value is inspect.Parameter.empty:
                raise ValueError(f"{self.name} needs a value for its hyper-parameter {key!r}")
        self.card: dict = {}
        self._inputs = tuple(p.name for p in inputs)
        self.optional = frozenset(p.name for p in inputs if p.default is None)
        self.inputs = frozenset(self._inputs)
        self.unpaired = is_unpaired(self.inputs)
        sides = sorted(name for name in self.inputs if "chosen" in name or "rejected" in name)
        if self.unpaired and sides:
            raise ValueError(
                f"{self.name} is of single responses, labelled desirable or not, and so cannot "
                f"read {sides[0]}, which is of pairs"
            )
        self.needs_reference = any(i.startswith("ref_") for i in self.inputs)
        self.after_sft = getattr(self.source, "after_sft", self.needs_reference)
        # By identity: a callable of one's own may have no hash.
        parts = _made_of(self.source)
        coupled = any(part is LOSSES[name] for part in parts for name in COUPLED)
        self.coupled = coupled or getattr(self.source, "coupled", False)
        self.shipped = isinstance(self.source, Formula) or all(
            any(part is loss for loss in LOSSES.values()) for part in parts
        )
        self._try()

    def _try(self) -> None:
        """Mistakes show before any compute: one call on three made-up pairs."""
        loss = self(PairLogps(**made_up(self._inputs, pairs=3, steps=4)))
        if not isinstance(loss, Tensor) or loss.shape != (3,):
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"{self.name} must return one value per pair, [batch]; got {got}")

    def parameters_tree(self) -> dict[str, Tensor]:
        """The numeric hyper-parameters as 0-d tensors: what a grid stacks to ``[population]``."""
        numbers = {
            key: torch.as_tensor(value, dtype=torch.get_default_dtype())
            for key, value in self.hyper.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        return numbers | {k: v for k, v in self.hyper.items() if isinstance(v, Tensor)}

    def __call__(self, pair: PairLogps) -> Tensor:
        """The loss of each pair, ``[batch]``, with the objective's own hyper-parameters."""
        return self.apply({}, pair)

    def apply(self, params: dict[str, Tensor], pair: PairLogps) -> Tensor:
        """The loss of each pair, with ``params`` in place of the own hyper-parameters they name.

        Args:
            params: 0-d tensors by name, as :meth:`parameters_tree` gives them.
            pair: at least the fields in ``inputs``.

        Returns:
            ``[batch]``.

        Raises:
            ValueError: a field the loss needs is ``None``.
            OwnCodeRaised: it is the user's own, and raised something.
        """
        data = self._data(pair)
        try:
            return self.function(*data, **{**self.hyper, **params})
        except (Exception, SystemExit) as error:
            if self.own:
                raise own_code_raised(self.name, error) from error
            raise

    def terms(self, params: dict[str, Tensor], pair: PairLogps) -> list[Tensor]:
        """Of a sum of losses, each loss times its weight, ``[batch]`` each; see :meth:`apply`."""
        assert isinstance(self.source, WeightedSum)
        return self.source.terms(*self._data(pair), **{**self.hyper, **params})

    def _data(self, pair: PairLogps) -> list[Tensor | None]:
        return [
            getattr(pair, name) if name in self.optional else take(pair, name, self.name)
            for name in self._inputs
        ]

    def save(self, folder: str | Path, card: dict) -> None:
        """Write ``objective.json``, the loss's name and hyper-parameters, and ``card.json``.

        Args:
            folder: made if it does not exist.
            card: how the objective was found and what it scores; anything JSON can hold.

        Raises:
            ValueError: the function is none of ``LOSSES`` itself, nor one made of them, nor a
                formula: a file can hold no other; or the card is no dictionary that JSON can hold.
        """
        form = _form(self.function)
        if form is None:
            raise ValueError(
                f"{self.name} cannot be saved: it is not one of the library's losses, "
                "and functions are not written to files"
            )
        hyper = {k: v.item() if isinstance(v, Tensor) else v for k, v in self.hyper.items()}
        text = card_text(card)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        base = next((n for n, f in LOSSES.items() if f is _made_of(self.function)[0]), self.name)
        name = self.name if "sum_of" in form else base
        content = {"loss": name, "hyper": hyper} | form
        if self.after_sft != self.needs_reference:
            content["after_sft"] = self.after_sft
        write_atomic(folder / "card.json", text)
        write_atomic(folder / "objective.json", json.dumps(content, indent=2) + "\n")

    @staticmethod
    def load(folder: str | Path) -> "Objective":
        """Read an objective that :meth:`save` wrote.

        Raises:
            ValueError: a file is missing, damaged, or not an objective, or its values or gradients
                are not finite.
        """
        folder = Path(folder)
        try:
            content = parse_json((folder / "objective.json").read_bytes())
            name, hyper = content["loss"], content["hyper"]
            if "formula" in content:
                function = Formula(parse(content["formula"]))
            elif "sum_of" in content:
                parts, rule = {p: LOSSES[p] for p in content["sum_of"]}, content.get("balance")
                function = WeightedSum(parts) if rule is None else Balanced(parts, rule)
            elif "divergence" in content:
                if name not in OF_THE_MARGIN:
                    raise ValueError(f"{name} has no divergence")
                function = InDivergence(LOSSES[name], content["divergence"])
                name = f"{name}@{content['divergence']}"
            elif "weighted" in content:
                function = LikelihoodWeighted(LOSSES[name])
                name = f"{name}@wpo"
            else:
                function = LOSSES[name]
            parameters = inspect.signature(function).parameters.values()
            check_hyper(hyper, {p.name: p.default for p in parameters})
            objective = Objective(function, name=name, **hyper)
            check_finite(objective)
            objective.after_sft = content.get("after_sft", objective.after_sft)
            if not isinstance(objective.after_sft, bool):
                raise ValueError("after_sft must be true or false")
            objective.card = read_card(folder)
        except (OSError, KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            reason = one_line(error)
            raise ValueError(f"{folder} is not a readable saved objective: {reason}") from error
        return objective

    def __repr__(self) -> str:
        if isinstance(self.function, Formula):
            return f"Objective({self.function!r})"
        return f"Objective({', '.join([self.name, *(f'{k}={v}' for k, v in self.hyper.items())])})"
