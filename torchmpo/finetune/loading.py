"""Loading a causal LM, its tokenizer or an adapter from a folder, and refusing what is none.

Weights are read from safetensors only, and no code of a model's repository is run.
"""

import inspect
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmpo.finetune.whole_modules import float_trained
from torchmpo.runs.errors import UserError, missing_package, nearest, one_line
from torchmpo.runs.json_files import parse_json
from torchmpo.runs.model_folders import is_adapter
from torchmpo.runs.output import quiet

# peft's, where embeddings that the head shares have adapters: refused where it matters.
TIED_WARNING = "Model (has|with) `tie_word_embeddings=True`"
DTYPES = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_model(
    model: str | Path,
    *,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    revision: str | None = None,
    quantization: dict[str, Any] | None = None,
) -> Any:
    """A causal LM of transformers, in evaluation mode.

    Args:
        model: a folder with ``config.json`` and safetensors, or a hub id (only then is the network
            used); or the folder of an adapter, which names its base model.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``, the one it was saved in.
        attn_implementation: a name that transformers knows, such as ``"sdpa"``; by default its
            choice.
        revision: branch, tag or commit of a hub id.
        quantization: arguments of transformers' ``BitsAndBytesConfig``, such as
            ``{"load_in_4bit": True}``; needs bitsandbytes.

    Returns:
        the model; a ``peft.PeftModel`` whose adapter can be trained, for an adapter's folder.

    Raises:
        UserError: nothing there, no causal LM, weights that are no safetensors or not those that
            the configuration describes, an unknown dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: {nearest(dtype, DTYPES)}")
    transformers = _transformers()
    if is_adapter(model):
        if revision is not None:
            raise UserError(f"{model} is an adapter, which has its base's revision: leave it out")
        return load_adapter(
            model,
            dtype=dtype,
            attn_implementation=attn_implementation,
            quantization=quantization,
        )
    _check_folder(model)
    if revision is not None and Path(model).is_dir():
        raise UserError(f"{model} is a folder, and a revision is of a hub id: leave it out")
    _ask_hub(model, revision)
    options: dict[str, Any] = {"attn_implementation": attn_implementation, "revision": revision}
    options = {name: value for name, value in options.items() if value is not None}
    try:
        if quantization is not None:
            options["quantization_config"] = _quantization(transformers, quantization)
        with quiet(transformers):
            loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
                model,
                dtype=DTYPES[dtype],
                use_safetensors=True,
                **options,
                ignore_mismatched_sizes=True,  # reported below, in a line
                output_loading_info=True,
            )
    except UserError:
        raise
    except Exception as error:  # a folder that is no model fails in any way
        raise UserError(_not_loaded(model, "as a causal LM", error)) from error
    _check_complete(model, loaded, report)
    if quantization is not None:
        _try_quantized(model, loaded)
    return loaded


def _quantization(transformers: Any, settings: dict[str, Any]) -> Any:
    """transformers' own configuration, which passes over what it does not know."""
    known = set(inspect.signature(transformers.BitsAndBytesConfig).parameters) - {"kwargs"}
    for name in settings:
        if name not in known:
            raise UserError(f"unknown setting {name!r} of quantization: {nearest(name, known)}")
    if not (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        raise UserError("quantization says neither load_in_4bit: true nor load_in_8bit: true")
    return transformers.BitsAndBytesConfig(**settings)


def _try_quantized(source: str | Path, model: Any) -> None:
    """One token: bitsandbytes complains of widths that it cannot pack when it first computes."""
    try:
        with torch.no_grad():
            model(torch.zeros(1, 1, dtype=torch.long, device=model.device))
    except Exception as error:  # of any kind: asserts, shapes, kernels
        raise UserError(
            f"{source} cannot compute with quantized weights here ({one_line(error)}): on a CPU, "
            "4 bits need widths that are multiples of 64; leave quantization out"
        ) from error


def _check_complete(source: str | Path, model: Any, report: dict[str, Any]) -> None:
    """Refuse weights that transformers made up, left out or could not fit in."""
    # Beside the body there may be more, such as the value head of a reward model.
    body = f"{model.base_model_prefix}."
    wrong = {
        "is missing": report["missing_keys"],
        "has another shape": [key for key, *_ in report["mismatched_keys"]],
        "is left over": [k for k in report["unexpected_keys"] if k.startswith(body)],
    }
    for what, names in wrong.items():
        if names:
            raise UserError(
                f"{source} is no complete {type(model).__name__}: {min(names)} {what}. Its weights "
                "are not a causal LM's, or its config.json does not describe them"
            )


def load_tokenizer(source: str | Path, *, revision: str | None = None) -> Any:
    """The tokenizer of a folder or hub id, with a padding token: EOS, where it has none of its own.

    An adapter's folder without one stands for its base model, in the adapter's revision.

    Raises:
        UserError: none there, or neither a padding nor an EOS token.
    """
    transformers = _transformers()
    files = {name: Path(source) / f"{name}_config.json" for name in ("adapter", "tokenizer")}
    if files["adapter"].is_file() and not files["tokenizer"].is_file():
        return load_tokenizer(adapter_base(source), revision=_setting(source, "revision"))
    _check_path(source)
    _ask_hub(source, revision)
    try:
        with quiet(transformers):
            options = {} if revision is None else {"revision": revision}
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:  # broken files fail in any way
        if Path(source).is_dir():
            line = f"{source} has no readable tokenizer: {one_line(error)}"
        else:
            line = _not_loaded(source, "as a tokenizer", error)
        raise UserError(line) from error
    if not isinstance(tokenizer.model_max_length, (int, float)):
        raise UserError(f"the tokenizer of {source} has a model_max_length that is no number")
    if tokenizer.eos_token is None:
        raise UserError(f"the tokenizer of {source} has no EOS token, so answers could not end")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_tokenizer(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer with ids that the model has no embedding for.

    A model may have more rows than its tokenizer has tokens: many are padded to a round number.

    Raises:
        UserError: the tokenizer does not belong to the model.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if (highest := max(tokenizer.get_vocab().values())) >= rows:
        raise UserError(
            f"the tokenizer has ids up to {highest}, the model embeds {rows} tokens: "
            "they do not belong together"
        )


def load_adapter(folder: str | Path, *, dtype: str = "auto", **options: Any) -> Any:
    """An adapter and its base model, which its ``adapter_config.json`` names: a ``PeftModel``.

    Args:
        folder: of the adapter.
        dtype: of the base model; adapters, and modules trained as a whole, are float32.
        options: of the base model, see :func:`load_model`; its revision is the adapter's.

    Raises:
        UserError: no adapter there, one that does not fit, or its base model cannot be loaded.
    """
    try:
        import peft
        from peft.utils import get_peft_model_state_dict
    except ModuleNotFoundError as error:
        raise missing_package(error, "llm") from error
    from safetensors import safe_open
    from safetensors.torch import load_file

    folder = Path(folder)
    if not is_adapter(folder):
        raise UserError(f"{folder} holds no adapter: adapter_config.json is missing")
    if not (weights := folder / "adapter_model.safetensors").is_file():
        raise UserError(f"{folder} holds no adapter_model.safetensors, and no pickle is read")
    name, revision = adapter_base(folder), _setting(folder, "revision")
    if is_adapter(name):
        raise UserError(f"{folder} is an adapter on an adapter, {name}: export that one first")
    base = load_model(name, dtype=dtype, revision=revision, **options)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # see below
            warnings.filterwarnings("ignore", message=TIED_WARNING)
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            model: Any = peft.PeftModel.from_pretrained(base, str(folder), is_trainable=True)
            if float_trained(model):  # peft has rounded what it loaded
                peft.set_peft_model_state_dict(model, load_file(weights))
        with safe_open(str(weights), framework="pt") as file:
            stored = set(file.keys())
    except Exception as error:  # a damaged file or another configuration fails in any way
        raise UserError(f"the adapter in {folder} cannot be loaded: {one_line(error)}") from error
    own = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if absent := own - stored or {name for name in stored - own if ".lora_" in name}:
        raise UserError(
            f"the adapter in {folder} is not what its adapter_config.json says: {min(absent)} is "
            f"{'missing' if own - stored else 'left over'}"
        )
    return model.eval()


def adapter_base(folder: str | Path) -> str:
    """The folder or hub id of an adapter's base model.

    Raises:
        UserError: ``adapter_config.json`` does not name one.
    """
    base = _setting(folder, "base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise UserError(f"{Path(folder) / 'adapter_config.json'} does not name the base model")
    return base


def _setting(folder: str | Path, name: str) -> Any:
    path = Path(folder) / "adapter_config.json"
    try:
        return dict(parse_json(path.read_bytes()).items()).get(name)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is no adapter's configuration: {one_line(error)}") from error


def check_saved(model: Any) -> None:
    """Refuse to train adapters on weights that the model's folder does not hold.

    An adapter is saved with the name of its base model, and is added to what is found there: not
    to embeddings that were resized, or weights that were trained, in memory only. Looks at shapes
    and at the first row of each weight; a hub id is not looked up.

    Raises:
        UserError: model and folder differ.
    """
    from safetensors import safe_open

    folder = Path(model.name_or_path)
    if not model.name_or_path or not folder.is_dir():
        return
    weights = {plain_name(name): value for name, value in model.state_dict().items()}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.startswith("adapter_"):
            continue
        with safe_open(str(path), framework="pt") as file:
            for name in sorted(set(file.keys()) & weights.keys()):
                stored, own = file.get_slice(name), weights[name]
                if list(own.shape) != stored.get_shape() or not _same(own, stored):
                    raise UserError(
                        f"{name} is not as in {folder}, and an adapter's base model is read from "
                        "there: save the model with save_pretrained, and train from that folder"
                    )


def _same(own: Tensor, stored: Any) -> bool:
    if not own.dim() or not own.is_floating_point():
        return True  # quantised weights are laid out in other ways
    own, first = own[:1].detach().cpu(), stored[:1]
    if torch.promote_types(own.dtype, first.dtype) == own.dtype:
        return torch.equal(own.to(first.dtype), first)
    return torch.allclose(own.to(first.dtype), first, rtol=1e-2)


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise missing_package(error, "llm") from error
    return transformers


def _check_path(source: str | Path) -> None:
    """What cannot be a hub id is a folder."""
    path = Path(source)
    if path.is_file():
        raise UserError(f"{source} is a file: name the folder it is in")
    folder = isinstance(source, Path) or path.is_absolute() or str(source).startswith((".", "~"))
    if not path.is_dir() and (folder or str(source).count("/") > 1):
        raise UserError(f"there is no folder {source}")


def _ask_hub(source: str | Path, revision: str | None) -> None:
    """Where there is no network, say so at once: loading would try again for most of a minute."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    if Path(source).is_dir() or constants.HF_HUB_OFFLINE:
        return
    try:
        if not isinstance(try_to_load_from_cache(str(source), "config.json"), str):
            HfApi().model_info(str(source), revision=revision, timeout=10)
    except HfHubHTTPError:
        return  # the hub answers; transformers says what is wrong
    except Exception as error:  # of the network, or of a name that can be none on the hub
        raise UserError(
            f"there is no folder {source}, and the hub, where it might be an id, was not reached: "
            f"{one_line(error)}"
        ) from error


def _check_folder(model: str | Path) -> None:
    """What transformers would say of a folder is a page about the hub."""
    _check_path(model)
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{model} holds no model: config.json is missing")
        if not any(path.glob("*.safetensors")):
            raise UserError(f"{model} holds no *.safetensors: save the model with save_pretrained")
        _check_layers(path)


def _check_layers(folder: Path) -> None:
    """Refuse a configuration of more layers than there are weights: all would be made first."""
    from safetensors import SafetensorError, safe_open

    try:
        config = parse_json((folder / "config.json").read_bytes())
        weights = 0
        for path in folder.glob("*.safetensors"):
            with safe_open(str(path), framework="pt") as file:
                weights += len(file.keys())
    except (OSError, ValueError, SafetensorError):
        return  # transformers says what is wrong
    if not isinstance(config, dict):
        return
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        layers = part.get("num_hidden_layers")
        if isinstance(layers, int) and layers > weights:
            raise UserError(
                f"{folder} has {weights} weights, and its config.json tells of {layers} layers"
            )


def _not_loaded(source: str | Path, what: str, error: Exception) -> str:
    if Path(source).is_dir():
        return f"{source} cannot be loaded {what}: {one_line(error)}"
    # A misspelt folder looks like a hub id.
    return (
        f"there is no folder {source}, and as a hub id it cannot be loaded {what}: "
        f"{one_line(error)}"
    )


def plain_name(name: str) -> str:
    """The name of a weight without what peft adds to it."""
    name = name.removeprefix("base_model.model.")
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def of_adapter(name: str) -> bool:
    """Whether a weight is an adapter's, or a copy that is trained in place of one of the base's."""
    return ".lora_" in name or ".modules_to_save." in name
