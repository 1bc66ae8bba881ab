"""What a checkpoint says of the run that made it, and where a run that goes on from it begins.

Model, adapters, reference, loss, data and the pairs of a step must be what they were: with others,
a resumed run would be neither the old one nor a new one. How a step is divided into micro-batches
and processes may change, and so may all that concerns the learning rate and the end of the run.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmpo.finetune.loading import of_adapter, plain_name
from torchmpo.finetune.models import fresh_adapter, is_adapted
from torchmpo.losses import LOSSES
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.fingerprint import Unknowable, fingerprint
from torchmpo.objectives.formulas import Formula
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.errors import UserError

KEY = "torchmpo"  # of a checkpoint
_VALUES = 1024  # of each weight that are looked at
# What is compared, and how a difference is told; the first two also where nothing is trained.
_NAMES = {
    "model": "another model",
    "adapters": "other adapters",
    "reference": "another reference",
    "reference_adapter": "another reference: the base alone, or the base with another adapter",
    "loss": "another loss",
    "loss_digest": "a loss of this name whose code or learned numbers were others",
    "data": "other training data, or another tokenizer, template, max_length or truncation",
    "seed": "another seed, and so another order of the pairs",
    "group_by_length": "another data.group_by_length, and so another order of the pairs",
    "step": "another number of pairs in a step",
}
_OF_WEIGHTS = ("model", "adapters")
_READABLE = ("adapters", "loss", "seed", "group_by_length", "step")  # the others are digests


def weights_digest(model: Any, *, adapters: bool = False) -> str:
    """What tells a model's weights from others, in 32 hexadecimal digits; or those of its adapters.

    Looks at some values of each weight, evenly spread, so that it takes no time: models trained
    apart differ everywhere.
    """
    digest = hashlib.blake2b(digest_size=16)
    weights = model.state_dict()
    for name in sorted(weights, key=plain_name):
        value = weights[name]
        if of_adapter(name) is not adapters:
            continue
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        if not value.is_meta:
            some = value.detach().reshape(-1)
            some = some[:: max(1, len(some) // _VALUES)].contiguous().cpu()
            digest.update(some.view(torch.uint8).numpy())
    return digest.hexdigest()


def reference_digests(frozen: Any, base: str, *, other: bool) -> dict[str, str]:
    """What tells a reference from others, however it is had.

    Args:
        frozen: the reference, where it is a model of its own; None if it is the base.
        base: digest of what training begins with, without adapters.
        other: whether ``frozen`` is of another folder than what is trained.
    """
    adapted = frozen is not None and is_adapted(frozen) and not fresh_adapter(frozen)
    return {
        "reference": weights_digest(frozen) if other else base,
        "reference_adapter": weights_digest(frozen, adapters=True) if adapted else "none",
    }


def adapter_words(model: Any) -> str:
    """The adapters of a model, as a reader would name them."""
    config = getattr(model, "peft_config", {}).get("default")
    if config is None:
        return "none"
    names = ("r", "lora_alpha", "lora_dropout")
    values = [f"{name}={getattr(config, name, None):g}" for name in names if hasattr(config, name)]
    targets = config.target_modules
    if not isinstance(targets, str):
        targets = ", ".join(sorted({target.rsplit(".", 1)[-1] for target in targets or ()}))
    if whole := getattr(config, "modules_to_save", None):
        targets = f"{targets}, all of {', '.join(whole)}"
    return f"{' '.join(values)} on {targets}"


def loss_words(objective: Objective | MirrorObjective) -> str:
    """A loss with its hyper-parameters, as a reader would name it."""
    if isinstance(objective, MirrorObjective):
        return f"{objective.name}{' temporal' if objective.temporal else ''}"
    if isinstance(objective.function, Formula):
        return repr(objective.function)
    name = next((name for name, loss in LOSSES.items() if loss is objective.source), None)
    name = name or f"{getattr(objective.source, '__module__', '')}:{objective.name}"
    hyper = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in objective.hyper.items()}
    return f"{name}({', '.join(f'{key}={hyper[key]!r}' for key in sorted(hyper))})"


def loss_digest(objective: Objective | MirrorObjective) -> str:
    """What a loss's name cannot tell: learned numbers, or the text of a function of one's own."""
    if isinstance(objective, MirrorObjective):
        settings = (objective.steps, objective.learn, objective.reduction, objective.initial)
        text = f"{settings} {objective.vector.tolist()}"
    elif objective.source in LOSSES.values() or isinstance(objective.function, Formula):
        return ""
    else:
        try:
            text = fingerprint(objective.function)
        except Unknowable:  # typed in, or of a compiled module
            return ""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def pairs_digest(pairs: Iterable[Any]) -> str:
    """What tokenized pairs hold, in 32 hexadecimal digits: tokens, rewards, order."""
    digest = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        gold = () if pair.gold is None else (pair.gold,)
        for tokens in (pair.prompt, pair.chosen, pair.rejected, *pair.between, *gold):
            digest.update(len(tokens).to_bytes(8, "little"))
            digest.update(tokens.contiguous().numpy())
        rest = (pair.chosen_reward, pair.rejected_reward, pair.preference_prob)
        rest += () if pair.label is None else (pair.label,)
        digest.update(repr(rest).encode())
    return digest.hexdigest()


def refuse_other(stored: dict[str, Any], now: dict[str, Any], *, training: bool) -> None:
    """Refuse a checkpoint that was made with something else.

    Args:
        stored: what was saved with it; what is not there is not compared.
        now: the same of this run.
        training: whether to go on with the run, and not only to look at its weights.

    Raises:
        UserError: it differs; says what from what.
    """
    for key, words in _NAMES.items():
        if key not in stored or key not in now or not (training or key in _OF_WEIGHTS):
            continue
        if stored[key] != now[key]:
            told = f" ({stored[key]} then, {now[key]} now)" if key in _READABLE else ""
            raise UserError(
                f"the checkpoint was made with {words}{told}: give what the run began with"
                + (", or begin another run with another --out" if training else "")
            )


def refuse_other_best(checkpoint: dict[str, Any], now: dict[str, Any], best: Path) -> None:
    """Refuse to look for a better checkpoint on other validation pairs than the best one's.

    Args:
        checkpoint: of a run; one that does not say its validation pairs is taken.
        now: what this run is made with.
        best: the best checkpoint so far; there is nothing to refuse without one.

    Raises:
        UserError: the validation pairs differ.
    """
    stored = checkpoint.get(KEY, {}).get("validation")
    if stored is None or stored == now.get("validation") or not best.is_file():
        return
    raise UserError(
        f"{best} was the best on other validation pairs, or on other tokens of them: give the "
        "data.validation that the run began with, or move that file away"
    )


def redivide(loop: dict[str, Any], before: int, accumulate: int) -> None:
    """Let the loop of a checkpoint go on after its last whole step, in other micro-batches.

    A step that had begun begins again: its gradients are not in the checkpoint.

    Args:
        loop: the state of Lightning's ``fit_loop``, changed in place.
        before, accumulate: micro-batches of a step, of one process, then and now.
    """
    progress = loop["epoch_loop.batch_progress"]
    begun = progress["current"]["ready"] % before > 0 and not progress["is_last_batch"]
    if accumulate == before and not begun:
        return
    optimizer = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    moved = optimizer["step"]["current"]["completed"] * accumulate - progress["current"]["ready"]
    for counts in (progress["current"], progress["total"]):
        for key in counts:
            counts[key] += moved
    if begun:
        # Lightning adds one for the step that a checkpoint at the end of a batch closes.
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
