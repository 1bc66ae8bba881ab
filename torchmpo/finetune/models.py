"""Causal language models: loading, LoRA, the two halves of a model, and exporting.

A model comes apart into a **body** (token ids → hidden states) and a **head** (hidden states →
logits), so that log-probabilities can be computed where they count without making all the logits.
Weights are read from safetensors only, and no code of a model's repository is run.
"""

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchmpo.finetune.model_card import carry_card
from torchmpo.linear_logps import linear_logps
from torchmpo.runs.errors import UserError, missing_package, nearest, one_line

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16}
# What a head applied by hand may differ by from the model's own logits, in units of the largest.
HEAD_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
LOW_PRECISION_TOLERANCE = 2e-2


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters: each target's weight W becomes W + (alpha / r)·B A, with B = 0 at first.

    Args:
        r: rank, ≥ 1.
        alpha: scale, > 0.
        dropout: of the adapter's input in training, in [0, 1).
        targets: names of modules, such as ``["q_proj", "v_proj"]``, or ``"all-linear"`` for all but
            the LM head.

    Raises:
        UserError: a number out of range.

    Source: Hu et al., arXiv 2106.09685.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"

    def __post_init__(self):
        if self.r < 1:
            raise UserError(f"lora.r must be at least 1; got {self.r}")
        if not self.alpha > 0:
            raise UserError(f"lora.alpha must be positive; got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout must be in [0, 1); got {self.dropout}")
        if not self.targets:
            raise UserError("lora.targets is empty: name modules, or say all-linear")


def load_model(model: str | Path, *, dtype: str = "auto") -> Any:
    """A causal LM of transformers, in evaluation mode.

    Args:
        model: a folder with ``config.json`` and safetensors, or a hub id (only then is the network
            used).
        dtype: ``"float32"``, ``"bfloat16"``, or ``"auto"``, the one it was saved in.

    Raises:
        UserError: nothing there, no causal LM, weights that are no safetensors, an unknown dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: {nearest(dtype, DTYPES)}")
    transformers = _transformers()
    _check_folder(model)
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=DTYPES[dtype], use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{model} cannot be loaded as a causal LM: {one_line(error)}") from error


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a folder or hub id, with a padding token: EOS, where it has none of its own.

    Raises:
        UserError: none there, or neither a padding nor an EOS token.
    """
    transformers = _transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{source} has no readable tokenizer: {one_line(error)}") from error
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


def add_lora(model: Any, settings: LoraSettings) -> Any:
    """The model with fresh adapters, everything else frozen: a ``peft.PeftModel``.

    Raises:
        UserError: a target the model does not have.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise missing_package(error, "llm") from error
    targets = settings.targets
    config = peft.LoraConfig(
        r=settings.r,
        # An integer where it is one: that is what adapter_config.json holds elsewhere.
        lora_alpha=int(settings.alpha) if float(settings.alpha).is_integer() else settings.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        names = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if _linear(m)}
        raise UserError(
            f"lora.targets {targets!r} does not fit this model: its linear layers are "
            f"{', '.join(sorted(names))}"
        ) from error


def is_adapted(model: Any) -> bool:
    """Whether the model has peft's adapters."""
    return hasattr(model, "peft_config")


def fresh_adapter(model: Any) -> bool:
    """Whether every adapter still adds nothing: B = 0 throughout."""
    b = [p for name, p in model.named_parameters() if ".lora_B." in name]
    return bool(b) and not any(p.detach().any().item() for p in b)


class TokenLogps(nn.Module):
    """Log-probabilities of labelled tokens under a causal LM.

    Hidden states of all tokens are made, but logits only where there is a label. Models that
    do more to logits than a matrix product, a bias and soft-capping (a scale, a transform) are
    found by a trial on four tokens, and take the plain path, which makes all logits.

    Args:
        model: a causal LM, with or without adapters; it is a submodule.
        chunk_size: see :func:`torchmpo.linear_logps`.

    Attributes:
        fused: whether logits are avoided; ``None`` before the first call.

    Raises:
        UserError: adapters on the LM head.
    """

    def __init__(self, model: Any, *, chunk_size: int | None = None):
        super().__init__()
        self.model = model
        self.chunk_size = chunk_size
        self.fused: bool | None = None
        head = self._causal().get_output_embeddings()
        if head is None:
            raise UserError(f"{type(self._causal()).__name__} has no LM head: it is no causal LM")
        if hasattr(head, "base_layer"):
            raise UserError("adapters on the LM head are not supported: choose other targets")
        config = self._causal().config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)

    def _causal(self) -> Any:
        return self.model.get_base_model() if is_adapted(self.model) else self.model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Log-probability of each labelled token, given those before it.

        Args:
            input_ids: ``[batch, time]``, padded on the right.
            attention_mask: ``[batch, time]``, 1 where there is a token.
            labels: ``[batch, time]``, as ``input_ids``, or −100 where a token does not count.

        Returns:
            ``[batch, time − 1]``, nats; position t belongs to ``labels[:, t + 1]``, 0 where it is
            −100. float32 or wider.
        """
        if self.fused is None:
            self.fused = self._head_is_plain(input_ids[:1, :4])
        targets = labels[:, 1:]
        if not self.fused:
            logits = self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits
            wide = torch.promote_types(logits.dtype, torch.float32)
            logps = torch.log_softmax(logits[:, :-1].to(wide), -1)
            index = targets.clamp(min=0)[..., None]
            own = logps.gather(-1, index).squeeze(-1)
            return torch.where(targets == -100, 0.0, own)
        hidden = self._hidden(input_ids, attention_mask)
        head = self._causal().get_output_embeddings()
        return linear_logps(
            hidden[:, :-1],
            head.weight,
            targets,
            bias=getattr(head, "bias", None),
            logit_softcap=self.softcap,
            chunk_size=self.chunk_size,
        )

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        body = self._causal().base_model
        return body(input_ids, attention_mask=attention_mask, use_cache=False)[0]

    @torch.no_grad()
    def _head_is_plain(self, input_ids: Tensor) -> bool:
        causal = self._causal()
        if causal.base_model is causal:  # a class that does not say which part is the body
            return False
        training = self.model.training
        self.model.eval()  # dropout would make the two differ
        mask = torch.ones_like(input_ids)
        expected = causal(input_ids, attention_mask=mask, use_cache=False).logits
        hidden = self._hidden(input_ids, mask)
        self.model.train(training)
        head = causal.get_output_embeddings()
        if hidden.shape[-1] != head.weight.shape[1]:
            return False
        logits = head(hidden).double()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        low = expected.dtype not in HEAD_TOLERANCE or torch.is_autocast_enabled(hidden.device.type)
        tolerance = LOW_PRECISION_TOLERANCE if low else HEAD_TOLERANCE[expected.dtype]
        gap = (logits - expected.double()).abs().max()
        plain = bool(gap <= tolerance * expected.double().abs().max())
        if not plain:
            warnings.warn(
                f"{type(causal).__name__} does more to its logits than a matrix product: they are "
                "made in full, which takes more memory",
                stacklevel=2,
            )
        return plain


def model_digest(model: Any) -> str:
    """What a model computes, in 32 hexadecimal digits: its configuration and every weight.

    Adapters are left out, so a model has the digest of its base. Two models of one shape differ,
    and so do one model's float32 and bfloat16 weights. Reads all weights (about 1 GB/s).
    """
    digest = hashlib.blake2b(digest_size=16)
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        # Where it came from, and with which version, changes nothing.
        if key not in ("_name_or_path", "transformers_version", "architectures", "use_cache")
    }
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    weights = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): value
        for name, value in model.state_dict().items()
        if ".lora_" not in name
    }
    for name in sorted(weights):
        value = weights[name].detach().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def export_merged(adapter: str | Path, folder: str | Path) -> None:
    """Write an adapter's model as an ordinary one, the adapter added into its weights.

    Args:
        adapter: folder of an adapter; its ``adapter_config.json`` names the base model.
        folder: to be made; loads with ``AutoModelForCausalLM.from_pretrained``. The tokenizer goes
            with it, from the adapter's folder or the base model's.

    Raises:
        UserError: no adapter there, its base model cannot be loaded, or ``folder`` is not empty.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise missing_package(error, "llm") from error
    adapter, folder = Path(adapter), Path(folder)
    if not (adapter / "adapter_config.json").is_file():
        raise UserError(f"{adapter} holds no adapter: adapter_config.json is missing")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: choose another folder")
    if not (adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"{adapter} holds no adapter_model.safetensors, and no pickle is read")
    base = json.loads((adapter / "adapter_config.json").read_text()).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{adapter}/adapter_config.json does not name the base model")
    model = peft.PeftModel.from_pretrained(load_model(base), str(adapter)).merge_and_unload()  # pyright: ignore[reportCallIssue]
    model.save_pretrained(folder)
    own = (adapter / "tokenizer_config.json").is_file()
    load_tokenizer(adapter if own else base).save_pretrained(folder)
    carry_card(adapter, folder)


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise missing_package(error, "llm") from error
    return transformers


def _check_folder(model: str | Path) -> None:
    """What transformers would say of a folder is a page about the hub."""
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{model} holds no model: config.json is missing")
        if not any(path.glob("*.safetensors")):
            raise UserError(f"{model} holds no *.safetensors: save the model with save_pretrained")
    elif isinstance(model, Path) or path.is_absolute() or str(model).startswith((".", "~")):
        raise UserError(f"there is no folder {model}")


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
