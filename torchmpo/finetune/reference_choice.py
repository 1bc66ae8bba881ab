"""Which model a loss's reference is, from what a user has said of it or has not."""

from pathlib import Path
from typing import Any

from torchmpo.finetune.models import (
    check_length,
    check_tokenizer,
    fresh_adapter,
    is_adapted,
    load_tokenizer,
)
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.errors import UserError, missing_package, nearest

try:
    from lightning.pytorch.utilities import rank_zero_info
except ModuleNotFoundError as error:
    raise missing_package(error, "llm") from error

REFERENCES = ("adapter_off", "copy", "cache")


def choose_reference(
    objective: Objective | MirrorObjective, given: str | None, model: Any, adapters: bool
) -> tuple[str | None, str | None]:
    """The word for a reference, and the folder or hub id of another model.

    Args:
        objective: the loss.
        given: one of ``REFERENCES``, the folder or hub id of a model, or None.
        model: what training begins with, before adapters are added to it.
        adapters: whether it has some, or will have.

    Raises:
        UserError: neither a word nor a model, or adapters that there are not.
    """
    if not objective.needs_reference:
        return None, None
    if given is None:
        if is_adapted(model) and not fresh_adapter(model):
            rank_zero_info(
                "reference: the base model without the adapter that training begins with; "
                "reference: copy takes the model with it"
            )
        return ("adapter_off" if adapters else "copy"), None
    if given == "adapter_off" and not adapters:
        raise UserError("reference: adapter_off needs adapters: set lora, or take copy")
    if given in REFERENCES:
        return given, None
    if "/" not in given and not Path(given).is_dir():
        hint = nearest(given, REFERENCES)
        raise UserError(f"unknown reference {given!r}: {hint}; or a model's folder")
    return "copy", given


def check_reference(module: Any, tokenizer: Any, longest: int) -> None:
    """Refuse a reference that reads other tokens than the model, or shorter texts than the data.

    Tokens that one of the two has beside the other's, such as one for padding, are no difference.

    Args:
        module: a :class:`torchmpo.finetune.module.PreferenceModule`.
        tokenizer: of the data.
        longest: tokens of the longest pair.

    Raises:
        UserError: says which.
    """
    if (source := getattr(module, "reference_source", None)) is None:
        return
    policy = module.reference_policy
    try:
        check_tokenizer(policy.model, tokenizer)
        check_length(policy.model, longest)
    except UserError as error:
        raise UserError(f"model.reference {source}: {error}") from error
    try:
        theirs = load_tokenizer(source).get_vocab()
    except UserError:  # it has none of its own: nothing to compare
        return
    ours = tokenizer.get_vocab()
    shared = ours.keys() & theirs.keys()
    other = min((token for token in shared if ours[token] != theirs[token]), default=None)
    if other is not None or not shared:
        told = f" ({other!r} is {ours[other]} here and {theirs[other]} there)" if other else ""
        raise UserError(
            f"model.reference {source} has another vocabulary than the data's tokenizer{told}: "
            "take a reference of the same family"
        )
