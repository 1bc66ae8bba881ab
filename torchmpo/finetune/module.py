"""Fine-tuning a causal LM on preference pairs with any loss: a LightningModule.

Chosen and rejected responses go through the model in one forward pass, logits are made for
completion tokens only (:class:`torchmpo.finetune.models.TokenLogps`), and the loss gets exactly the
inputs that its parameters name.

    module = PreferenceModule("path/to/model", loss="colpo", lora=LoraSettings(r=16))
    data = PreferenceData("pairs.jsonl", batch_size=2)
    Trainer(max_epochs=1, accumulate_grad_batches=8).fit(module, data)

A batch is a dict of tensors for B pairs, the B chosen responses before the B rejected ones:
``input_ids``, ``attention_mask`` and ``labels`` ``[2B, T]`` (labels are −100 outside completions,
and not shifted; padding is on the right), ``index`` ``[B]``, and where the data have them
``ref_logps`` ``[2B]``, ``chosen_rewards``, ``rejected_rewards`` and ``preference_probs`` ``[B]``.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchmpo.finetune.model_card import write_card
from torchmpo.finetune.models import (
    LoraSettings,
    TokenLogps,
    add_lora,
    fresh_adapter,
    is_adapted,
    load_model,
    model_digest,
)
from torchmpo.metrics import implicit_rewards, preference_metrics
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.inputs import PairLogps
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import Diverged, UserError, missing_package, nearest
from torchmpo.runs.seeding import derive_seed

try:
    from lightning.pytorch import LightningModule
except ModuleNotFoundError as error:
    raise missing_package(error, "llm") from error

Batch = dict[str, Tensor]
REFERENCES = ("adapter_off", "copy", "cache")
SCHEDULES = ("constant", "linear", "cosine")
# |D| that an untrained policy may show, per 100 nats of log-probability: what float32 sums lose,
# and what bfloat16 does when a batch is padded differently than it was for a cache.
START_TOLERANCE = 1e-4
LOW_PRECISION_START_TOLERANCE = 1e-1


class PreferenceModule(LightningModule):
    """A causal LM, a loss, and how they meet.

    A training step's loss is the mean over its pairs. Numbers logged are means over all pairs of an
    optimizer step, over micro-batches and processes: ``loss``, those of
    :func:`torchmpo.metrics.preference_metrics`, ``grad_norm`` (before clipping) and ``lr``;
    validation logs the first two under ``val/``.

    Dropout's random numbers follow from (seed, epoch, batch, process), so a resumed run draws what
    an uninterrupted one draws; torch's global generator is set in every step.

    A checkpoint holds trainable weights only (adapters, under LoRA), and nothing but tensors and
    plain values: ``weights_only=True`` loads it.

    Args:
        model: folder or hub id of a causal LM, or the model itself, adapters included or not.
        loss: a name of ``torchmpo.losses.LOSSES``, ``"package.module:function"``, the folder of a
            saved objective, a function, or an objective.
        loss_args: hyper-parameters of the loss.
        lora: adapters to add; None trains every weight, or, where the model comes with adapters,
            those.
        reference: for losses that have one. ``"adapter_off"``, the model without its adapters;
            ``"copy"``, a second model, frozen as it was at the start; ``"cache"``, ``ref_logps`` in
            the batches, computed once (see :class:`torchmpo.finetune.data.PreferenceData`); or the
            folder or hub id of another model. By default adapter_off with adapters, else copy.
        lr: peak learning rate of AdamW, > 0.
        warmup: share of all steps in which the rate rises linearly to ``lr``, in [0, 1).
        schedule: after it, ``"constant"``, ``"linear"`` or ``"cosine"``; the last two end at 0.
        weight_decay: ≥ 0, of matrices only.
        dtype: of the frozen weights: ``"float32"``, ``"bfloat16"`` or ``"auto"``, as saved.
            Adapters are float32; go with ``Trainer(precision="bf16-mixed")`` for a bfloat16 base.
        activation_checkpointing: make activations twice instead of keeping them.
        allow_coupled: let a loss that couples the pairs of a batch (AOT, …) see micro-batches.
        chunk_size: tokens per tile of logits, see :func:`torchmpo.linear_logps`.
        seed: of adapters' initial values and of dropout.

    Attributes:
        objective: the loss; its parameters, if it is a learned one, stay as they are.
        policy: a :class:`~torchmpo.finetune.models.TokenLogps`; ``policy.model`` is the model.
        reference: one of the three words, or None if the loss has none.
        base_digest: of the model before training, where ``reference`` is ``"cache"``.

    Raises:
        UserError: an unknown loss or setting, no such model, a reference that cannot be had.
    """

    def __init__(
        self,
        model: str | nn.Module,
        loss: str | Callable[..., Tensor] | Objective | MirrorObjective = "dpo",
        *,
        loss_args: dict[str, Any] | None = None,
        lora: LoraSettings | None = None,
        reference: str | None = None,
        lr: float = 5e-5,
        warmup: float = 0.0,
        schedule: str = "constant",
        weight_decay: float = 0.0,
        dtype: str = "auto",
        activation_checkpointing: bool = False,
        allow_coupled: bool = False,
        chunk_size: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        _check_numbers(lr, warmup, schedule, weight_decay)
        self.lr, self.warmup, self.schedule, self.weight_decay = lr, warmup, schedule, weight_decay
        self.allow_coupled, self.seed = allow_coupled, seed
        # Before the model: a misspelt loss should not have to wait for 17 GB of weights.
        self.objective = _objective(loss, loss_args or {})
        self.source = model if isinstance(model, (str, Path)) else None
        loaded: Any = model if self.source is None else load_model(self.source, dtype=dtype)
        adapters = lora is not None or is_adapted(loaded)
        self.reference, other = self._choose_reference(reference, adapters)
        self.base_digest = model_digest(loaded) if self.reference == "cache" else None
        frozen = None
        if self.reference == "copy":
            frozen = copy.deepcopy(loaded) if other is None else load_model(other, dtype=dtype)
            frozen.requires_grad_(False).eval()
        if lora is not None:
            if is_adapted(loaded):
                raise UserError("the model has adapters already: leave lora out to train those")
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(seed, "lora"))
                loaded = add_lora(loaded, lora)
        if activation_checkpointing:
            _checkpoint_activations(loaded)
        self.policy = TokenLogps(loaded, chunk_size=chunk_size)
        self.reference_policy = (
            None if frozen is None else TokenLogps(frozen, chunk_size=chunk_size)
        )
        self._starts_at_reference = other is None and (not adapters or fresh_adapter(loaded))
        # Adapters' checkpoints lack the base model, and are loaded over it.
        self.strict_loading = False
        self._micro_batches: list[dict[str, Tensor]] = []

    def _choose_reference(self, reference: str | None, adapters: bool) -> tuple[Any, str | None]:
        """The word for it, and the folder or hub id of another model."""
        if not self.objective.needs_reference:
            return None, None
        if reference is None:
            return ("adapter_off" if adapters else "copy"), None
        if reference == "adapter_off" and not adapters:
            raise UserError("reference: adapter_off needs adapters: set lora, or take copy")
        if reference in REFERENCES:
            return reference, None
        if "/" not in reference and not Path(reference).is_dir():
            hint = nearest(reference, REFERENCES)
            raise UserError(f"unknown reference {reference!r}: {hint}; or a model's folder")
        return "copy", reference

    # From batches to a loss

    def logps(self, batch: Batch, policy: TokenLogps | None = None) -> Tensor:
        """Log-probability of every token that counts, ``[2B, T − 1]``; 0 where none does."""
        policy = self.policy if policy is None else policy
        return policy(batch["input_ids"], batch["attention_mask"], batch["labels"])

    @torch.no_grad()
    def reference_logps(self, batch: Batch) -> Tensor:
        """Summed log-probabilities under the reference, ``[2B]``, nats, without dropout.

        With ``reference="cache"`` those of the batch, if it has any, else of the untrained model.
        """
        if self.reference == "cache" and "ref_logps" in batch:
            return batch["ref_logps"]
        if self.reference_policy is not None:
            return self.logps(batch, self.reference_policy).sum(-1)
        with self._no_dropout(), self._adapter_off():
            return self.logps(batch).sum(-1)

    def pair_logps(self, batch: Batch) -> PairLogps:
        """Everything known of the batch's pairs, gradients included."""
        token_logps, mask = self.logps(batch), batch["labels"][:, 1:] != -100
        sums, lengths = token_logps.sum(-1), mask.sum(-1)
        values = _sides("logps", sums) | _sides("mean_logps", sums / lengths.clamp(min=1))
        values |= _sides("lengths", lengths)
        values |= _sides("step_logps", token_logps) | _sides("mask", mask)
        if self.reference is not None:
            if self.reference == "cache" and "ref_logps" not in batch:
                raise UserError("reference: cache needs ref_logps in batches: use PreferenceData")
            ref = self.reference_logps(batch).to(sums.dtype)
            values |= _sides("logps", ref, "ref_")
            values |= _sides("mean_logps", ref / lengths.clamp(min=1), "ref_")
        for name in ("chosen_rewards", "rejected_rewards", "preference_probs"):
            if name in batch:
                values[name] = batch[name].to(sums.dtype)
        if "progress" in self.objective.inputs:
            values["progress"] = sums.new_tensor(self.progress())
        return PairLogps(**values)

    def progress(self) -> float:
        """Share of all optimizer steps done, in [0, 1]."""
        return min(1.0, self.global_step / max(1, self._total_steps()))

    def losses(self, pair: PairLogps) -> Tensor:
        """The loss of each pair, ``[B]``, in float32 or wider.

        Raises:
            UserError: the loss needs what the data do not have.
        """
        asked = {name: getattr(pair, name) for name in self.objective.inputs}
        try:
            # Autocast would round the matrix products of a loss that has any.
            with torch.autocast(self.device.type, enabled=False):
                return self.objective(PairLogps(**asked))
        except ValueError as error:
            absent = sorted(name for name, value in asked.items() if value is None)
            if not absent:
                raise
            raise UserError(f"{error}: the data have no {', '.join(absent)}") from error

    def _step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        pair = self.pair_logps(batch)
        loss = self.losses(pair).mean()
        detached = PairLogps(*(None if x is None else x.detach() for x in pair))
        rewards = implicit_rewards(self.objective, detached)
        return loss, {"loss": loss.detach()} | preference_metrics(detached, *rewards)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of the batch's pairs."""
        torch.manual_seed(
            derive_seed(self.seed, "dropout", self.current_epoch, batch_idx, self.global_rank)
        )
        if self._starts_at_reference and self.reference is not None and self.global_step == 0:
            self._check_start(batch)
        self._starts_at_reference = False
        loss, metrics = self._step(batch)
        self._refuse_nonfinite(loss, "the loss", batch_idx, batch)
        self._micro_batches.append(metrics)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the means over all validation pairs."""
        _, metrics = self._step(batch)
        values = {f"val/{name}": value for name, value in metrics.items()}
        self.log_dict(values, batch_size=len(batch["index"]), sync_dist=True)

    # What is checked

    @torch.no_grad()
    def _check_start(self, batch: Batch) -> None:
        """An untrained policy is its reference: D = 0, so that DPO's loss is ln 2."""
        with self._no_dropout():
            logps = self.logps(batch).sum(-1)
        gap = (logps - self.reference_logps(batch)).abs().max().item()
        scale = max(1.0, logps.abs().max().item() / 100)
        low = self.policy.model.dtype != torch.float32 or "32" not in str(self.trainer.precision)
        tolerance = LOW_PRECISION_START_TOLERANCE if low else START_TOLERANCE
        if not gap <= tolerance * scale:
            raise UserError(
                f"before the first step, policy and reference ({self.reference}) differ by "
                f"{gap:.3g} nats on a response: the reference is not the model that is trained"
            )

    def _refuse_nonfinite(self, value: Tensor, what: str, batch_idx: int, batch: Batch) -> None:
        if torch.isfinite(value):
            return
        saved = getattr(self.trainer.checkpoint_callback, "last_model_path", "")
        saved = saved or getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        rows = ", ".join(str(i) for i in batch["index"].tolist())
        raise Diverged(
            f"{what} is {value.item()} in epoch {self.current_epoch}, batch {batch_idx} "
            f"(pairs {rows}; step {self.global_step}): "
            + (f"the last good checkpoint is {saved}" if saved else "there is no checkpoint yet")
            + "; a smaller lr or gradient_clip_val may help"
        )

    def on_fit_start(self) -> None:
        """Refuse what would silently train on something else."""
        batches = self.trainer.accumulate_grad_batches * self.trainer.world_size
        if self.objective.coupled and batches > 1 and not self.allow_coupled:
            raise UserError(
                f"{self.objective.name} couples the pairs of a batch, and each of the {batches} "
                "parts of a step would be a batch of its own: raise data.batch_size instead, or "
                "set allow_coupled"
            )
        # Lightning trains modules in the mode they are in; transformers loads them without dropout.
        self.policy.train()
        if self.reference_policy is not None:
            self.reference_policy.eval()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Remember the batch, for messages."""
        self._batch, self._batch_idx = batch, batch_idx

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Log the step's means; stop before NaN gradients reach the weights."""
        keys = list(self._micro_batches[0])
        rows = torch.stack([torch.stack([m[k].float() for k in keys]) for m in self._micro_batches])
        self._micro_batches.clear()
        means = rows.mean(0)
        if self.trainer.world_size > 1:
            means = self.trainer.strategy.reduce(means, reduce_op="mean")
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        # A gradient scaler expects infinities now and then, and skips the step itself.
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            self._refuse_nonfinite(norm, "the gradient's norm", self._batch_idx, self._batch)
        values = dict(zip(keys, means, strict=True)) | {
            "grad_norm": norm,
            "lr": optimizer.param_groups[0]["lr"],
        }
        self.log("loss", values.pop("loss"), prog_bar=True)
        self.log_dict(values)

    # Optimizer

    def configure_optimizers(self) -> Any:
        """AdamW with a schedule in optimizer steps."""
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.lr)
        if self.schedule == "constant" and self.warmup == 0:
            return optimizer
        total = self._total_steps()
        rate = partial(self._rate, total=total)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _rate(self, step: int, total: int) -> float:
        """Factor of the learning rate in the step after ``step`` steps."""
        warm = round(self.warmup * total)
        if step < warm:
            return (step + 1) / warm
        if self.schedule == "constant":
            return 1.0
        left = max(0.0, (total - step) / max(1, total - warm))
        return left if self.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))

    def _total_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise UserError("the number of steps must be known: set max_epochs or max_steps")
        return int(total)

    # Saving

    def _trained(self) -> set[str]:
        return {name for name, p in self.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what training does not change."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in self._trained()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another model's checkpoint, which non-strict loading would accept in part."""
        stored, trained = set(checkpoint["state_dict"]), self._trained()
        if absent := trained - stored or stored - trained:
            raise UserError(
                f"the checkpoint was made with other settings of model or lora: {min(absent)} is "
                f"{'missing' if trained - stored else 'not trained here'}"
            )

    def save(self, folder: str | Path, tokenizer: Any = None) -> None:
        """Write what was trained: an adapter, for ``PeftModel.from_pretrained``, or a whole model;
        and its card.

        Args:
            folder: made if it does not exist.
            tokenizer: goes with it.
        """
        model = self.policy.model
        if is_adapted(model):
            # Otherwise peft asks the hub whether the vocabulary has grown.
            model.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            model.save_pretrained(str(folder))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        write_card(folder, self)

    @contextmanager
    def _no_dropout(self) -> Iterator[None]:
        training = self.policy.training
        self.policy.eval()
        try:
            yield
        finally:
            self.policy.train(training)

    def _adapter_off(self) -> Any:
        model = self.policy.model
        return model.disable_adapter() if is_adapted(model) else nullcontext()


def _sides(name: str, both: Tensor, prefix: str = "") -> dict[str, Tensor]:
    chosen, rejected = both.chunk(2)
    return {f"{prefix}chosen_{name}": chosen, f"{prefix}rejected_{name}": rejected}


def _objective(loss: Any, loss_args: dict[str, Any]) -> Objective | MirrorObjective:
    try:
        objective = resolve(loss, **loss_args)
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error
    if isinstance(objective, MirrorObjective):
        objective = copy.deepcopy(objective).requires_grad_(False)
    return objective


def _check_numbers(lr: float, warmup: float, schedule: str, weight_decay: float) -> None:
    if not 0 < lr < math.inf:
        raise UserError(f"lr must be positive; got {lr}")
    if not 0 <= warmup < 1:
        raise UserError(f"warmup is a share of all steps, in [0, 1); got {warmup}")
    if schedule not in SCHEDULES:
        raise UserError(f"unknown schedule {schedule!r}: {nearest(schedule, SCHEDULES)}")
    if not 0 <= weight_decay < math.inf:
        raise UserError(f"weight_decay must be zero or positive; got {weight_decay}")


def _checkpoint_activations(model: Any) -> None:
    # Non-reentrant: it needs no gradient of the embeddings, which a frozen base does not have.
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # transformers' newer name
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)
