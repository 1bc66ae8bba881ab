"""A model of a checkpoint of a run: what the run would have written had it ended there."""

import tempfile
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.cloud_io import _load

from torchmpo.finetune.chat_template import with_template
from torchmpo.finetune.loading import DTYPES, load_tokenizer
from torchmpo.finetune.models import LoraSettings, export_merged, is_adapted
from torchmpo.finetune.module import PreferenceModule
from torchmpo.runs.errors import UserError, nearest, one_line
from torchmpo.runs.yaml_text import parse_yaml


def export_checkpoint(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    config: str | Path | None = None,
    dtype: str = "auto",
) -> float:
    """Write the model of a checkpoint as an ordinary one, adapters added into its weights.

    Args:
        checkpoint: a file of a run, such as ``best.ckpt``.
        folder: to be made, see :func:`torchmpo.finetune.models.export_merged`.
        config: the run's configuration; by default the newest in the folder of the checkpoint.
        dtype: of the weights written: ``"auto"``, as the base model was saved, or, where all
            weights were trained, as they were trained; ``"float32"`` or ``"bfloat16"``.

    Returns:
        see :func:`torchmpo.finetune.models.export_merged`; 0 where all weights were trained.

    Raises:
        UserError: no such checkpoint or configuration, or one of another run.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    if not checkpoint.is_file():
        raise UserError(f"there is no checkpoint {checkpoint}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: choose another folder")
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: {nearest(dtype, DTYPES)}")
    settings = _settings(checkpoint, config)
    module = PreferenceModule(**settings["model"])
    try:
        content: Any = _load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint fails in any way
        raise UserError(f"{checkpoint} is not a checkpoint that can be read") from error
    content["state_dict"] = {  # a loss's weights of tokens are no part of the model
        k: v for k, v in content["state_dict"].items() if not k.startswith("token_weights.")
    }
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"], strict=False)
    data = settings.get("data") or {}
    if own := data.get("tokenizer"):
        tokenizer = load_tokenizer(own)
    else:
        tokenizer = load_tokenizer(settings["model"]["model"], revision=module.revision)
    if data.get("chat_template") is not None:
        tokenizer = with_template(tokenizer, data["chat_template"])
    if not is_adapted(module.policy.model):
        if dtype != "auto":
            module.policy.model.to(DTYPES[dtype])
        module.save(folder, tokenizer)
        return 0.0
    with tempfile.TemporaryDirectory() as adapter:
        module.save(adapter, tokenizer)
        return export_merged(adapter, folder, dtype=dtype)


def _settings(checkpoint: Path, config: str | Path | None) -> dict[str, Any]:
    """The configuration of the run, with a model's settings as Python has them."""
    if config is None:
        versions = checkpoint.parent.glob("log/version_*/config.yaml")
        config = max(versions, key=lambda path: int(path.parent.name[8:]), default=None)
        if config is None:
            raise UserError(
                f"{checkpoint} has no configuration of its run beside it: give --config"
            )
    try:
        settings = parse_yaml(Path(config).read_text(encoding="utf-8"))
        model = dict(settings["model"])
        if model.get("lora") is not None:
            model["lora"] = LoraSettings(**model["lora"])
        # What training needs, and may not be there any more, is not needed for the weights.
        model |= {"loss": "sft", "loss_args": None, "reference": None}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config} is not a run's configuration: {one_line(error)}") from error
    return settings | {"model": model}
