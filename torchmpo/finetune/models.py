"""Causal language models: LoRA, the two halves of a model, and exporting.

A model comes apart into a **body** (token ids → hidden states) and a **head** (hidden states →
logits), so that log-probabilities can be computed where they count without making all the logits.
"""

import hashlib
import json
import re
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchmpo.finetune.loading import (
    TIED_WARNING,
    check_tokenizer,
    load_adapter,
    load_model,
    load_tokenizer,
    of_adapter,
    plain_name,
)
from torchmpo.finetune.model_card import carry_card
from torchmpo.finetune.whole_modules import as_base, float_trained
from torchmpo.linear_logps import linear_logps
from torchmpo.runs.errors import UserError, missing_package, nearest, one_line

__all__ = [
    "LoraSettings",
    "TokenLogps",
    "add_lora",
    "check_length",
    "check_tokenizer",
    "export_merged",
    "fresh_adapter",
    "is_adapted",
    "load_adapter",
    "load_model",
    "load_tokenizer",
    "lora_settings",
    "model_digest",
    "positions",
    "text_part",
]

# What a head applied by hand may differ by from the model's own logits, in units of the largest.
HEAD_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
LOW_PRECISION_TOLERANCE = 2e-2
# Eight-bit layers find outliers over a whole batch, so that tokens do meet a little.
QUANTIZED_TOLERANCE = 2e-1
# What an exported model's log-probabilities may differ by from its adapter's model, in nats. Adding
# an adapter into bfloat16 weights rounds them: that much is told and not refused.
EXPORT_TOLERANCE = 1e-4
LOW_PRECISION_EXPORT_TOLERANCE = 0.5
# peft refuses adapters on these layers of state-space models: their weights bypass `forward`.
STATE_SPACE_MODELS = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
STATE_SPACE_LAYERS = ("conv1d", "out_proj")


MOST_RANK = 65_536  # wider than any layer


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters: each target's weight W becomes W + (alpha / r)·B A, with B = 0 at first.

    Args:
        r: rank, ≥ 1.
        alpha: scale, > 0.
        dropout: of the adapter's input in training, in [0, 1).
        targets: names of modules, such as ``["q_proj", "v_proj"]``, or ``"all-linear"`` for all but
            the LM head.
        modules_to_save: modules to train as a whole beside the adapters, such as ``["lm_head"]``;
            they are saved with them.

    Raises:
        UserError: a number out of range.

    Source: Hu et al., arXiv 2106.09685.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"
    modules_to_save: list[str] | None = None

    def __post_init__(self):
        if not 1 <= self.r <= MOST_RANK:
            raise UserError(f"lora.r must be at least 1, and at most {MOST_RANK}; got {self.r}")
        if not self.alpha > 0:
            raise UserError(f"lora.alpha must be positive; got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout must be in [0, 1); got {self.dropout}")
        if not self.targets:
            raise UserError("lora.targets is empty: name modules, or say all-linear")


def lora_settings(given: Any) -> LoraSettings | None:
    """Settings as such, however they are given.

    Raises:
        UserError: something else, or a name that is none of theirs.
    """
    if given is None or isinstance(given, LoraSettings):
        return given
    if not isinstance(given, dict):
        raise UserError(f"lora must be LoraSettings, a dict or None; got {given!r}")
    names = [field.name for field in fields(LoraSettings)]
    for name in given:
        if name not in names:
            raise UserError(f"lora has no {name!r}: {nearest(name, names)}")
    return LoraSettings(**given)


def positions(config: Any) -> int | None:
    """The longest sequence, in tokens, that a model of transformers is made for; None if any is."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    factor = rope.get("factor") if isinstance(rope, dict) else None
    start = rope.get("original_max_position_embeddings") or limit if factor else limit
    return max(limit, int(start * (factor or 1)))


def check_length(model: Any, longest: int) -> None:
    """Refuse sequences with more tokens than the model has positions.

    Raises:
        UserError: it has fewer.
    """
    limit = positions(model.config)
    if limit is not None and longest > limit:
        raise UserError(
            f"the longest pair has {longest} tokens, and the model is made for {limit}: set "
            f"data.max_length to at most {limit}"
        )


def add_lora(model: Any, settings: LoraSettings) -> Any:
    """The model with fresh adapters in float32, everything else frozen: a ``peft.PeftModel``.

    Layers that text does not reach, such as those of a vision tower, get none.

    Raises:
        UserError: a target the model does not have, or one that cannot be adapted.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise missing_package(error, "llm") from error
    targets = settings.targets
    names = {name for name, _ in model.named_modules()}
    named = {"targets": [] if isinstance(targets, str) else targets}
    named["modules_to_save"] = settings.modules_to_save or []
    for setting, modules in named.items():
        for module in modules:
            if not any(name == module or name.endswith(f".{module}") for name in names):
                raise _no_target(model, module, setting)
    config = peft.LoraConfig(
        r=settings.r,
        # An integer where it is one: that is what adapter_config.json holds elsewhere.
        lora_alpha=int(settings.alpha) if float(settings.alpha).is_integer() else settings.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=_excluded(model, targets),
        modules_to_save=settings.modules_to_save,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=TIED_WARNING)  # TokenLogps refuses it
            adapted = peft.get_peft_model(model, config)
    except (ValueError, re.error) as error:
        if "not found in the base model" in str(error):
            raise _no_target(model, targets) from error
        raise UserError(f"lora.targets {targets!r}: {one_line(error)}") from error
    float_trained(adapted)
    return adapted


def _no_target(model: Any, targets: Any, setting: str = "targets") -> UserError:
    names = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if _linear(m)}
    return UserError(
        f"lora.{setting} {targets!r} does not fit this model: its linear layers are "
        f"{', '.join(sorted(names))}"
    )


def _excluded(model: Any, targets: str | list[str]) -> str | None:
    """A regular expression of the modules that get no adapters whatever the targets say."""
    parts = []
    if (text := text_part(model)) is not None:
        parts.append(rf"(?!{re.escape(text)}\.).*")
    if targets == "all-linear" and model.config.model_type in STATE_SPACE_MODELS:
        parts.append(rf".*\.({'|'.join(STATE_SPACE_LAYERS)})")
    return "|".join(parts) or None


def text_part(model: Any) -> str | None:
    """The name of the module that reads text in a model that reads pictures or sound, too.

    None where the whole model reads text.
    """
    if model.config.get_text_config() is model.config or not hasattr(model, "get_decoder"):
        return None
    decoder = model.get_decoder()
    return next((name for name, module in model.named_modules() if module is decoder), "") or None


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
    found by a trial on four tokens, and take the plain path, which makes all logits. The same trial
    finds models in which a token changes what was predicted before it.

    Args:
        model: a causal LM, with or without adapters; it is a submodule.
        chunk_size: see :func:`torchmpo.linear_logps`.

    Attributes:
        fused: whether logits are avoided; ``None`` before the first call.

    Raises:
        UserError: no LM head, adapters on it or on embeddings that it shares, a chunk size below 1;
            in the first call, a model that is not causal.
    """

    def __init__(self, model: Any, *, chunk_size: int | None = None):
        super().__init__()
        if chunk_size is not None and chunk_size < 1:
            raise UserError(f"chunk_size must be at least 1, or None; got {chunk_size}")
        self.model = model
        self.chunk_size = chunk_size
        self.fused: bool | None = None
        head = self._head()
        if head is None:
            raise UserError(f"{type(self._causal()).__name__} has no LM head: it is no causal LM")
        if hasattr(head, "base_layer"):
            raise UserError("adapters on the LM head are not supported: choose other targets")
        embeddings = self._causal().get_input_embeddings()
        adapted = getattr(embeddings, "base_layer", getattr(embeddings, "original_module", None))
        if adapted is not None and self._causal().config.get_text_config().tie_word_embeddings:
            # Merged into the weights, the adapter would change the head, too.
            raise UserError(
                "the LM head shares the embeddings' weights, so they cannot have adapters: choose "
                "other targets"
            )
        self.positions = positions(self._causal().config)
        config = self._causal().config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)

    def _causal(self) -> Any:
        return self.model.get_base_model() if is_adapted(self.model) else self.model

    def _head(self) -> Any:
        head: Any = self._causal().get_output_embeddings()
        if not hasattr(head, "modules_to_save"):
            return head
        # A copy of it is trained, and is used while adapters are.
        return head.original_module if head.disable_adapters else head.modules_to_save["default"]

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
        if self.positions is not None and input_ids.shape[1] > self.positions:
            check_length(self._causal(), input_ids.shape[1])
        if self.fused is None:
            self.fused = self._try(input_ids[:1, :4])
        targets = labels[:, 1:]
        if not self.fused:
            logits = self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits
            wide = torch.promote_types(logits.dtype, torch.float32)
            logps = torch.log_softmax(logits[:, :-1].to(wide), -1)
            index = targets.clamp(min=0)[..., None]
            own = logps.gather(-1, index).squeeze(-1)
            return torch.where(targets == -100, 0.0, own)
        hidden = self._hidden(input_ids, attention_mask)
        head = self._head()
        return linear_logps(
            hidden[:, :-1],
            head.weight,
            targets,
            bias=getattr(head, "bias", None),
            logit_softcap=self.softcap,
            chunk_size=self.chunk_size,
        )

    def distributions(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Log-probabilities of the whole vocabulary at each labelled token, in order of rows.

        Args:
            input_ids, attention_mask, labels: as for :meth:`forward`.

        Returns:
            ``[labelled tokens, vocab]``, float32 or wider: they are all in memory.
        """
        logits = self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits
        counted = logits[:, :-1][labels[:, 1:] != -100]
        return torch.log_softmax(counted.to(torch.promote_types(logits.dtype, torch.float32)), -1)

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What each layer makes of the tokens before each label.

        Args:
            input_ids, attention_mask: as for :meth:`forward`.

        Returns:
            ``[layers, batch, time − 1, size]``; position t is where token t + 1 is predicted.
        """
        output = self.model(
            input_ids, attention_mask=attention_mask, use_cache=False, output_hidden_states=True
        )
        return torch.stack(output.hidden_states[1:])[:, :, :-1]

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        body = self._causal().base_model
        return body(input_ids, attention_mask=attention_mask, use_cache=False)[0]

    @torch.no_grad()
    def _try(self, input_ids: Tensor) -> bool:
        """Whether logits can be avoided; refuses a model that is not causal."""
        training = self.model.training
        self.model.eval()  # dropout would make any two passes differ
        try:
            causal, mask = self._causal(), torch.ones_like(input_ids)
            expected = causal(input_ids, attention_mask=mask, use_cache=False).logits
            self._check_causal(input_ids, expected)
            # A class may not say which part is its body.
            plain = causal.base_model is not causal and self._head_is_plain(input_ids, expected)
        finally:
            self.model.train(training)
        return plain

    def _check_causal(self, input_ids: Tensor, expected: Tensor) -> None:
        """A later token changes nothing before it."""
        other = input_ids.clone()
        rows = expected.shape[-1]
        other[:, -1] = (other[:, -1] + rows // 2) % rows
        mask = torch.ones_like(input_ids)
        changed = self._causal()(other, attention_mask=mask, use_cache=False).logits
        if not self._close(changed[:, :-1], expected[:, :-1]):
            raise UserError(
                f"{type(self._causal()).__name__} is no causal LM as it is configured: a later "
                "token changes the log-probabilities of those before it"
            )

    def _head_is_plain(self, input_ids: Tensor, expected: Tensor) -> bool:
        causal = self._causal()
        hidden = self._hidden(input_ids, torch.ones_like(input_ids))
        head = self._head()
        if hidden.shape[-1] != head.weight.shape[1]:
            return False
        logits = head(hidden).double()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        plain = self._close(logits, expected)
        if not plain:
            warnings.warn(
                f"{type(causal).__name__} does more to its logits than a matrix product: they are "
                "made in full, which takes more memory",
                stacklevel=2,
            )
        return plain

    def _close(self, logits: Tensor, expected: Tensor) -> bool:
        if not expected.numel():
            return True
        low = expected.dtype not in HEAD_TOLERANCE or torch.is_autocast_enabled(logits.device.type)
        tolerance = LOW_PRECISION_TOLERANCE if low else HEAD_TOLERANCE[expected.dtype]
        if getattr(self.model, "is_quantized", False):
            tolerance = QUANTIZED_TOLERANCE
        gap = (logits.double() - expected.double()).abs().max()
        return bool(gap <= tolerance * expected.double().abs().max())


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
        plain_name(name): value
        for name, value in model.state_dict().items()
        if not of_adapter(name)
    }
    for name in sorted(weights):
        value = weights[name].detach()
        if hasattr(value, "full_tensor"):  # sharded
            value = value.full_tensor()
        value = value.contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def export_merged(adapter: str | Path, folder: str | Path, *, dtype: str = "auto") -> float:
    """Write an adapter's model as an ordinary one, the adapter added into its weights.

    Args:
        adapter: folder of an adapter; its ``adapter_config.json`` names the base model.
        folder: to be made; loads with ``AutoModelForCausalLM.from_pretrained``. The tokenizer goes
            with it, from the adapter's folder or the base model's.
        dtype: of the weights written: ``"auto"``, as the base model was saved, ``"float32"`` or
            ``"bfloat16"``.

    Returns:
        what log-probabilities of single tokens differ by from those of base and adapter, in nats,
        at most over a few tokens: about 1e-6 in float32, and in bfloat16 what rounding costs.

    Raises:
        UserError: no adapter there, its base model cannot be loaded, the merged model would be
            another one, the tokenizer has more tokens than it, or ``folder`` is not empty.
    """
    adapter, folder = Path(adapter), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: choose another folder")
    model = load_adapter(adapter, dtype=dtype)
    tokenizer = load_tokenizer(adapter)
    check_tokenizer(model, tokenizer)
    expected = _sample_logps(model)
    as_base(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=TIED_WARNING)  # refused below
        merged = model.merge_and_unload()
    gap = (_sample_logps(merged) - expected).abs().max().item()
    low = merged.dtype not in HEAD_TOLERANCE
    tolerance = LOW_PRECISION_EXPORT_TOLERANCE if low else EXPORT_TOLERANCE
    if not gap <= tolerance * max(1.0, expected.abs().max().item() / 10):
        raise UserError(
            f"with the adapter in {adapter} added into its weights, the model is another one: "
            f"log-probabilities change by up to {gap:.2g} nats per token. Use base and adapter as "
            "they are"
        )
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    carry_card(adapter, folder)
    return gap


@torch.no_grad()
def _sample_logps(model: Any) -> Tensor:
    """Log-probabilities of all tokens after each of some, ``[8, vocabulary]``, nats."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, rows - 1, 8).long()[None]
    return (
        model(ids, attention_mask=torch.ones_like(ids), use_cache=False)
        .logits[0]
        .double()
        .log_softmax(-1)
    )


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
