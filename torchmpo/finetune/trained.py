"""Which weights of a model are trained, and in what precision."""

from typing import Any

import torch

from torchmpo.finetune.models import is_adapted, text_part
from torchmpo.runs.errors import UserError


def all_trained(model: Any, *, convert: bool) -> Any:
    """The model with float32 weights, and those frozen that text does not reach.

    Args:
        model: of transformers, without adapters; changed in place.
        convert: whether weights in fewer bits are made float32, or refused.

    Raises:
        UserError: weights in bfloat16 or float16, and not ``convert``.
    """
    if model.dtype in (torch.bfloat16, torch.float16):
        if not convert:
            raise UserError(
                f"without lora, all weights are trained, and in {str(model.dtype)[6:]} small steps "
                "are lost: load them in float32 (model.dtype: auto or float32), and take "
                "trainer.precision bf16-mixed for speed"
            )
        model = model.float()
    if (text := text_part(model)) is not None:
        head = {id(p) for p in model.get_output_embeddings().parameters()}
        for name, parameter in model.named_parameters():
            if not name.startswith(f"{text}.") and id(parameter) not in head:
                parameter.requires_grad_(False)
    return model


def trained_base(model: Any) -> str | None:
    """A weight that is trained and is not an adapter's; None without one."""
    own = (getattr(getattr(model, "base_model", None), "prefix", "lora_"), "modules_to_save")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not (is_adapted(model) and any(o in name for o in own)):
            return name
    return None


def checkpoint_activations(model: Any) -> None:
    """Let the model make its activations twice instead of keeping them."""
    # Non-reentrant: it needs no gradient of the embeddings, which a frozen base does not have.
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # transformers' newer name
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)
