"""Several losses added up, as one loss."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torchmpo.losses.arguments import check_finite


class WeightedSum:
    """Σ_k w_k·loss_k: a function of all that its parts ask for, with all their hyper-parameters.

    A part's hyper-parameter ``beta`` is called ``dpo_beta`` in a sum that ``dpo`` is part of, and
    its weight ``dpo_weight``. Inputs that several parts read are passed once.

    Args:
        losses: names and functions, in the order in which they are added.

    Attributes:
        parts: ``losses``.
        inputs: the names of the positional parameters; those that may be None come last.
        defaults: the hyper-parameters with their defaults; 1 for a weight.

    >>> import torch
    >>> from torchmpo.losses import LOSSES
    >>> both = WeightedSum({name: LOSSES[name] for name in ("simpo", "sft")})
    >>> both.inputs
    ('chosen_mean_logps', 'rejected_mean_logps')
    >>> x = torch.tensor([-2.0])
    >>> both(x, x, simpo_weight=0.0, sft_weight=0.5).tolist()
    [1.0]
    """

    def __init__(self, losses: Mapping[str, Callable[..., Tensor]]):
        self.parts = dict(losses)
        self.__name__ = "+".join(self.parts)
        required: dict[str, bool] = {}
        self.defaults: dict[str, Any] = {}
        self._own: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        for name, loss in self.parts.items():
            self.defaults[f"{name}_weight"] = 1.0
            parameters = inspect.signature(loss).parameters.values()
            inputs = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
            hyper = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
            for p in inputs:
                required[p.name] = required.get(p.name, False) or p.default is p.empty
            self.defaults |= {f"{name}_{p.name}": p.default for p in hyper}
            self._own[name] = tuple(p.name for p in inputs), tuple(p.name for p in hyper)
        self.inputs = tuple(sorted(required, key=lambda field: not required[field]))
        kind, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        self.__signature__ = inspect.Signature(
            [
                inspect.Parameter(f, kind)
                if required[f]
                else inspect.Parameter(f, kind, default=None)
                for f in self.inputs
            ]
            + [inspect.Parameter(k, keyword, default=v) for k, v in self.defaults.items()]
        )

    def own_hyper(self, name: str, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """The hyper-parameters of one part, under their own names, out of those of the sum."""
        return {key: hyper[f"{name}_{key}"] for key in self._own[name][1]}

    def __call__(self, *data: Tensor | None, **hyper: Any) -> Tensor:
        """The sum for each pair, ``[batch]``; ``data`` in the order of ``inputs``.

        Raises:
            ValueError: as a part does, or a weight is not finite.
        """
        return functools.reduce(torch.add, self.terms(*data, **hyper))

    def terms(self, *data: Tensor | None, **hyper: Any) -> list[Tensor]:
        """Each loss times its weight, ``[batch]`` each; see the call.

        Raises:
            ValueError: as a part does, or a weight is not finite.
        """
        if unknown := sorted(hyper.keys() - self.defaults.keys()):
            has = ", ".join(self.defaults)
            raise ValueError(f"{self.__name__} has no hyper-parameter {unknown[0]!r}; it has {has}")
        if len(data) > len(self.inputs):
            raise ValueError(f"{self.__name__} reads {len(self.inputs)} inputs; got {len(data)}")
        hyper = self.defaults | hyper
        fields = dict(zip(self.inputs, (*data, *[None] * (len(self.inputs) - len(data)))))
        terms = []
        for name, loss in self.parts.items():
            weight = hyper[f"{name}_weight"]
            check_finite(**{f"{name}_weight": weight})
            own = [fields[field] for field in self._own[name][0]]
            terms.append(weight * loss(*own, **self.own_hyper(name, hyper)))
        return terms
