"""Several losses added up, as an objective: ``resolve("0.8*dpo+0.2*bco_pair+sft")``."""

import re
from collections.abc import Mapping
from typing import Any

from torchmpo.losses import LOSSES
from torchmpo.losses.weighted_sum import WeightedSum
from torchmpo.objectives.balance import Balanced
from torchmpo.objectives.bound import Objective
from torchmpo.runs.errors import nearest

TERM = re.compile(r"(?:(-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)\*)?([a-z]\w*)")


def weighted_sum(
    weights: Mapping[str, float], balance: str | None = None, **hyper: Any
) -> Objective:
    """Σ_k w_k·loss_k, which can be saved, tuned, searched and trained with like any loss.

    Args:
        weights: by the names of losses in ``torchmpo.losses.LOSSES``.
        balance: the rule by which training moves the weights, see
            :mod:`torchmpo.objectives.balance`; by default they stay as they are.
        **hyper: the losses' own hyper-parameters, with the loss's name before them: ``dpo_beta``;
            and those of the rule.

    Raises:
        ValueError: no losses, an unknown one, an unknown rule, or a hyper-parameter that is
            refused.

    >>> weighted_sum({"dpo": 0.8, "sft": 1.0}, dpo_beta=0.2).hyper["dpo_beta"]
    0.2
    """
    if not weights:
        raise ValueError("a sum of losses needs at least one")
    for name in weights:
        if name not in LOSSES:
            raise ValueError(f"unknown loss {name!r} in a sum: {nearest(name, LOSSES)}")
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ValueError(f"the weight of {name} must be a number; got {weight!r}")
    losses = {name: LOSSES[name] for name in weights}
    function = WeightedSum(losses) if balance is None else Balanced(losses, balance)
    own = {f"{name}_weight": float(weight) for name, weight in weights.items()}
    return Objective(function, name=name_of_sum(function, own), **{**own, **hyper})


def name_of_sum(function: WeightedSum, hyper: Mapping[str, Any]) -> str:
    """By which :func:`torchmpo.resolve` makes it again, but for what is no weight.

    Args:
        hyper: by name, the weights among them.
    """
    terms = (f"{hyper[f'{name}_weight']:g}*{name}" for name in function.parts)
    rule = f"@{function.rule}" if isinstance(function, Balanced) else ""
    return "+".join(terms) + rule


def is_sum(text: str) -> bool:
    """Whether a text is meant as a sum of losses."""
    return "+" in text or "*" in text


def parse(text: str) -> dict[str, float]:
    """The weights in a text such as ``0.8*dpo+0.2*bco_pair+sft``; a loss without one has 1.

    Raises:
        ValueError: it is no such text, or a loss is in it twice.

    >>> parse("0.8*dpo + sft")
    {'dpo': 0.8, 'sft': 1.0}
    """
    weights: dict[str, float] = {}
    for term in re.sub(r"\s+", "", text).split("+"):
        match = TERM.fullmatch(term)
        if match is None:
            raise ValueError(f"{text!r} must be a sum of losses, as in 0.8*dpo+0.2*bco_pair+sft")
        if match[2] in weights:
            raise ValueError(f"{match[2]} is in {text!r} twice")
        weights[match[2]] = float(match[1] or 1)
    return weights
