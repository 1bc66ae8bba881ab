"""Is an objective that was read from a file finite and increasing, as every one that was saved is?

Whoever writes files may have edited one, or made it up. Such an objective would train to NaN, or be
another kind of loss than its class promises.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchmpo.objectives.inputs import PairLogps, made_up
from torchmpo.runs.json_files import parse_json

if TYPE_CHECKING:
    from torchmpo.objectives.bound import Objective
    from torchmpo.objectives.mirror import MirrorObjective

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Log-probabilities for which a learned objective promises finite numbers, dense where they matter.
LOW, HIGH = -1e4, 20.0
TIMES = (0.0, 0.5, 1.0)  # of training
SLACK = 1e-9  # of the range of a function: the rounding of float64


def read_card(folder: Path) -> dict[str, Any]:
    """``card.json`` of a saved objective.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not an object of JSON.
    """
    card = parse_json((folder / "card.json").read_bytes())
    if not isinstance(card, dict):
        raise ValueError(f"card.json holds a {type(card).__name__}, not an object")
    return card


def card_text(card: Any) -> str:
    """``card.json`` of an objective that is to be saved, as :func:`read_card` reads it.

    Raises:
        ValueError: it is no dictionary, or holds what JSON cannot.
    """
    if not isinstance(card, dict):
        raise ValueError(f"a card is a dictionary; got a {type(card).__name__}")
    try:
        return json.dumps(card, indent=2) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the card holds what JSON cannot: {error}") from error


def check_hyper(hyper: Any, defaults: dict[str, Any]) -> None:
    """Refuse hyper-parameters from a file that are of another kind than their defaults.

    Raises:
        ValueError: which one.
    """
    if not isinstance(hyper, dict):
        raise ValueError("the hyper-parameters are not an object")
    for name, value in hyper.items():
        wanted, kind = _kind(defaults.get(name, value)), _kind(value)
        if kind != wanted or kind not in ("number", "str", "bool"):
            raise ValueError(f"{name} is a {kind}, not a {wanted}")
        if kind == "number" and math.isnan(value):  # a threshold may be infinite
            raise ValueError(f"{name} is {value}, which is no number")


def _kind(value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return "number" if number else type(value).__name__


def check_finite(objective: "Objective") -> None:
    """Refuse a loss whose value or gradient is not finite on ordinary pairs.

    Raises:
        ValueError: it is not.
    """
    fields = made_up(objective.inputs, pairs=4, steps=3)
    chosen, rejected = torch.tensor([-0.5, -1.0, -2.0, -3.0]), torch.tensor([-3.0, -2.0, -1.0, -1])
    leaves = []
    for name, value in fields.items():
        if name.endswith("logps"):
            side = chosen if "chosen" in name else rejected
            like = side[:, None] if value.ndim == 2 else side
            fields[name] = like.expand(value.shape).clone().requires_grad_()
            leaves.append(fields[name])
    _finite(objective(PairLogps(**fields)), leaves)


def check_dtypes(tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that are not of an ordinary floating-point type.

    Raises:
        ValueError: which one.
    """
    for name, value in tensors.items():
        if value.dtype not in DTYPES:
            raise ValueError(f"{name} is of type {value.dtype}")


def check_learned(objective: "MirrorObjective") -> None:
    """Refuse a learned objective that is not finite, or a function of it that is not increasing.

    Raises:
        ValueError: what is wrong.
    """
    for name, value in objective.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")
    if (objective.network.slope < 0).any():
        raise ValueError("network.slope has negative values: its functions would not increase")
    middle = torch.linspace(-20, 0, 401, dtype=torch.float64)
    logps = torch.cat([torch.tensor([LOW, -1e3, -100.0]), middle, torch.tensor([HIGH])])
    margins = torch.cat([logps[:-1], -logps[:-1].flip(0)[1:]])
    vector = objective.vector.detach()
    with torch.no_grad():
        for time in TIMES:
            progress = torch.tensor(time, dtype=torch.float64)
            for name, function in objective.functions(vector.double(), progress).items():
                values = function(margins if name == "g" else logps)
                span = values.abs().max()
                if not values.isfinite().all():
                    raise ValueError(f"{name} has values that are not finite")
                if (values.diff() < -SLACK * span).any():
                    raise ValueError(f"{name} is not increasing")
    some = torch.tensor([LOW, -100.0, -8.0, -2.0, -0.5, -0.01, 0.0, HIGH])
    chosen, rejected = torch.meshgrid(some, some, indexing="ij")
    for time in TIMES:
        pair, leaves = {"progress": torch.tensor(time)}, []
        for name in objective.inputs - {"progress"}:
            if name.startswith("ref_"):
                pair[name] = torch.full((some.numel() ** 2,), -2.0)
            else:
                side = chosen if name.startswith("chosen") else rejected
                pair[name] = side.reshape(-1).clone().requires_grad_()
                leaves.append(pair[name])
        _finite(objective.apply(vector.float(), PairLogps(**pair)), leaves)


def _finite(loss: Tensor, leaves: list[Tensor]) -> None:
    """Refuse a loss, or its gradients over ``leaves``, that are not finite."""
    if not loss.isfinite().all():
        raise ValueError("its value is not finite")
    if loss.requires_grad and leaves:
        for slope in torch.autograd.grad(loss.sum(), leaves, allow_unused=True):
            if slope is not None and not slope.isfinite().all():
                raise ValueError("its gradient is not finite")
