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

Of ranked lists there are n answers to each prompt, the B best ones first, ``[nB, T]``; of pairs
with a third, golden response the golden ones come first, and ``gold`` ``[B]`` says so.

A loss of single responses (``kto``) takes a batch of B labelled ones: ``[B, T]``, ``[B]`` and no
second half, and ``desirable`` ``[B]``, bool.
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

from torchmpo.finetune import resume
from torchmpo.finetune.loading import check_saved
from torchmpo.finetune.model_card import write_card
from torchmpo.finetune.models import (
    LoraSettings,
    TokenLogps,
    add_lora,
    fresh_adapter,
    is_adapted,
    load_model,
    lora_settings,
    model_digest,
)
from torchmpo.finetune.reference_choice import choose_reference
from torchmpo.finetune.schedule import check_numbers, rate, take_over
from torchmpo.finetune.sharding import check_strategy, is_sharded, shard, whole, whole_state
from torchmpo.finetune.supply import check_cache, supply
from torchmpo.finetune.term_weights import TermWeights, term_weights
from torchmpo.finetune.token_weights import token_weights
from torchmpo.finetune.trained import all_trained, checkpoint_activations, trained_base
from torchmpo.metrics import implicit_rewards, labelled_metrics, preference_metrics
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.inputs import PairLogps
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import Diverged, UserError, missing_package
from torchmpo.runs.seeding import derive_seed

try:
    from lightning.pytorch import LightningModule
except ModuleNotFoundError as error:
    raise missing_package(error, "llm") from error

Batch = dict[str, Tensor]
# |D| that an untrained policy may show, per 100 nats of log-probability: what float32 sums lose,
# and what bfloat16 does when a batch is padded differently than it was for a cache.
START_TOLERANCE = 1e-4
LOW_PRECISION_START_TOLERANCE = 1e-1


class PreferenceModule(LightningModule):
    """A causal LM, a loss, and how they meet.

    A training step's loss is the mean over its pairs, also where the last step of an epoch has
    fewer micro-batches than the others, or a micro-batch fewer pairs. Numbers logged are means over
    all pairs of an optimizer step, over micro-batches and processes: ``loss``, those of
    :func:`torchmpo.metrics.preference_metrics`, ``grad_norm`` (before clipping) and ``lr``;
    validation logs the first two under ``val/``.

    Dropout's random numbers follow from (seed, epoch, batch, process), so a resumed run draws what
    an uninterrupted one draws; torch's global generator is set in every step.

    A checkpoint holds trainable weights only (adapters, under LoRA), and nothing but tensors and
    plain values: ``weights_only=True`` loads it. A run that goes on from it may have another
    learning rate, schedule, weight decay, length and division into micro-batches and processes, and
    these are what counts from there on; with another model, loss, reference, data or number of
    pairs in a step it is refused.

    Args:
        model: folder or hub id of a causal LM, the folder of an adapter, or the model itself,
            adapters included or not.
        loss: a name of ``torchmpo.losses.LOSSES``, ``"package.module:function"``, the folder of a
            saved objective, a function, or an objective.
        loss_args: hyper-parameters of the loss.
        lora: adapters to add, in Python also as a dict of their settings; None trains every
            weight, or, where the model comes with adapters, those.
        reference: for losses that have one. ``"adapter_off"``, the model without its adapters;
            ``"copy"``, a second model, frozen as it was at the start; ``"cache"``, ``ref_logps`` in
            the batches, computed once, before training (see
            :class:`torchmpo.finetune.data.PreferenceData`); or the
            folder or hub id of another model. By default adapter_off with adapters, else copy.
        lr: peak learning rate of AdamW, > 0.
        warmup: share of all steps in which the rate rises linearly to ``lr``, in [0, 1).
        schedule: after it, ``"constant"``, ``"linear"`` or ``"cosine"``; the last two end at 0.
        weight_decay: ≥ 0, of matrices only.
        dtype: of the frozen weights: ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"auto"``, as
            saved. What is trained, adapters or all weights, is float32: small steps are lost in
            bfloat16. Go with ``Trainer(precision="bf16-mixed")`` for a bfloat16 base, and for
            speed.
        attn_implementation, revision, quantization: see
            :func:`torchmpo.finetune.models.load_model`; the last one needs ``lora``.
        activation_checkpointing: make activations twice instead of keeping them.
        allow_coupled: let a loss that couples the pairs of a batch (AOT, …) see micro-batches.
        chunk_size: tokens per tile of logits, see :func:`torchmpo.linear_logps`.
        seed: of adapters' initial values and of dropout.

    Attributes:
        objective: the loss; its parameters, if it is a learned one, stay as they are.
        policy: a :class:`~torchmpo.finetune.models.TokenLogps`; ``policy.model`` is the model.
        reference: one of the three words, or None if the loss has none.
        reference_source: folder or hub id of the reference, where it is another model.
        base_digest: of the model before training, where ``reference`` is ``"cache"``.
        trains_base: whether weights are trained that the reference would have to keep.

    Raises:
        UserError: an unknown loss or setting, no such model, a reference that cannot be had,
            weights that would be trained in bfloat16.
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
        attn_implementation: str | None = None,
        revision: str | None = None,
        quantization: dict[str, Any] | None = None,
        activation_checkpointing: bool = False,
        allow_coupled: bool = False,
        chunk_size: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        check_numbers(lr, warmup, schedule, weight_decay)
        lora = lora_settings(lora)
        self.lr, self.warmup, self.schedule, self.weight_decay = lr, warmup, schedule, weight_decay
        self.allow_coupled, self.seed = allow_coupled, seed
        # Before the model: a misspelt loss should not have to wait for 17 GB of weights.
        self.objective = objective_of(loss, loss_args or {})
        self.term_weights = term_weights(self.objective)
        self.source = model if isinstance(model, (str, Path)) else None
        if quantization is not None and lora is None:
            raise UserError("quantization is of frozen weights: set lora, and train adapters")
        self.revision = revision
        loading: dict[str, Any] = {
            "dtype": dtype,
            "attn_implementation": attn_implementation,
            "quantization": quantization,
        }
        loaded: Any = model
        if self.source is not None:
            loaded = load_model(self.source, revision=revision, **loading)
        adapters = lora is not None or is_adapted(loaded)
        if not adapters:
            loaded = all_trained(loaded, convert=self.source is not None and dtype == "auto")
        elif self.source is None:
            check_saved(loaded)
        self.reference, other = choose_reference(self.objective, reference, loaded, adapters)
        self.reference_source = other
        check_cache(self.objective, self.reference)
        self.base_digest = model_digest(loaded) if self.reference == "cache" else None
        frozen = None
        if self.reference == "copy":
            frozen = copy.deepcopy(loaded) if other is None else load_model(other, **loading)
            if not adapters and dtype == "auto":
                frozen.float()  # as the policy is, or the two would differ before the first step
            frozen.requires_grad_(False).eval()
        if lora is not None:
            if is_adapted(loaded):
                raise UserError("the model has adapters already: leave lora out to train those")
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(seed, "lora"))
                loaded = add_lora(loaded, lora)
            loaded.peft_config["default"].revision = revision
        trained = trained_base(loaded)
        self.trains_base = trained is not None
        if self.reference == "adapter_off" and trained is not None:
            raise UserError(
                f"reference: adapter_off needs a frozen base, but {trained} is trained: take copy"
            )
        if activation_checkpointing:
            checkpoint_activations(loaded)
        self._made_with: dict[str, Any] = {
            "model": resume.weights_digest(loaded),
            "adapters": resume.adapter_words(loaded),
            "loss": resume.loss_words(self.objective),
            "loss_digest": resume.loss_digest(self.objective),
        }
        if self.reference is not None:
            of = resume.reference_digests(frozen, self._made_with["model"], other=other is not None)
            self._made_with |= of
        self.policy = TokenLogps(loaded, chunk_size=chunk_size)
        self.reference_policy = (
            None if frozen is None else TokenLogps(frozen, chunk_size=chunk_size)
        )
        self.token_weights = token_weights(self.objective, frozen or loaded, seed)
        own = self.reference == "copy" or not adapters or fresh_adapter(loaded)
        self.starts_at_reference = other is None and own
        # Adapters' checkpoints lack the base model, and are loaded over it.
        self.strict_loading = False
        self._resumed = self._sharded = False
        self._progress = 0.0  # as it was when training, or a checkpoint, ended
        self._micro_batches: list[tuple[int, dict[str, Tensor]]] = []

    # From batches to a loss

    def logps(self, batch: Batch, policy: TokenLogps | None = None) -> Tensor:
        """Log-probability of every token that counts, ``[2B, T − 1]``; 0 where none does."""
        policy = self.policy if policy is None else policy
        return policy(batch["input_ids"], batch["attention_mask"], batch["labels"])

    @torch.no_grad()
    def under_reference(self, compute: Callable[[TokenLogps], Tensor]) -> Tensor:
        """What ``compute`` gives of the reference, without dropout.

        With ``reference="cache"`` it is the model as it is, adapters off: see
        :meth:`check_untrained`.
        """
        if self.reference_policy is not None:
            return compute(self.reference_policy)
        with self._no_dropout(), self._adapter_off():
            return compute(self.policy)

    def reference_logps(self, batch: Batch) -> Tensor:
        """Summed log-probabilities under the reference, ``[2B]``, nats; of a cache, the batch's."""
        if self.reference == "cache" and "ref_logps" in batch:
            return batch["ref_logps"]
        return self.under_reference(lambda policy: self.logps(batch, policy).sum(-1))

    def reference_step_logps(self, batch: Batch) -> Tensor:
        """The same of every token, ``[2B, T − 1]``; 0 where none counts."""
        if self.reference == "cache" and "ref_step_logps" in batch:
            return batch["ref_step_logps"]
        return self.under_reference(lambda policy: self.logps(batch, policy))

    def check_untrained(self) -> None:
        """Refuse to compute a reference from weights that are not those training begins with.

        Raises:
            UserError: training, or a checkpoint, has changed them.
        """
        if self.trains_base and model_digest(self.policy.model) != self.base_digest:
            raise UserError(
                "reference: cache: the model has been trained, and so cannot be its own reference: "
                "let the cache be made before, by a fit or validate that begins with the model as "
                "it was"
            )

    def pair_logps(self, batch: Batch) -> PairLogps:
        """Everything known of the batch's pairs, or labelled responses, gradients included."""
        return supply(self, batch)

    def progress(self) -> float:
        """Share of all optimizer steps done, in [0, 1]; after training, of those it was to do."""
        if self.trainer.state.fn == "fit":
            self._progress = min(1.0, self.global_step / max(1, self._total_steps()))
        return self._progress

    def _timed(self) -> bool:
        return "progress" in self.objective.inputs

    def losses(self, pair: PairLogps) -> Tensor:
        """The loss of each pair, ``[B]``, in float32 or wider.

        Raises:
            UserError: the loss needs what the data do not have.
        """
        asked = {name: getattr(pair, name) for name in self.objective.inputs}
        try:
            # Autocast would round the matrix products of a loss that has any.
            with torch.autocast(self.device.type, enabled=False):
                if self.term_weights is not None:
                    return self.term_weights.losses(PairLogps(**asked), self)
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
        if self.objective.unpaired:
            assert isinstance(self.objective, Objective)
            return loss, {"loss": loss.detach()} | labelled_metrics(self.objective, detached)
        rewards = implicit_rewards(self.objective, detached)
        return loss, {"loss": loss.detach()} | preference_metrics(detached, *rewards)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of the batch's pairs."""
        torch.manual_seed(
            derive_seed(self.seed, "dropout", self.current_epoch, batch_idx, self.global_rank)
        )
        if self.starts_at_reference and self.reference is not None and self.global_step == 0:
            self._check_start(batch)
        self.starts_at_reference = False
        loss, metrics = self._step(batch)
        self._refuse_nonfinite(loss, "the loss", batch_idx, batch)
        pairs = len(batch["index"])
        self._micro_batches.append((pairs, metrics))
        first = self._micro_batches[0][0]
        return loss if pairs == first else loss * (pairs / first)

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
        model = self.policy.model
        low = model.dtype != torch.float32 or getattr(model, "is_quantized", False)
        low |= "32" not in str(self.trainer.precision)
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

    def configure_callbacks(self) -> list[TermWeights]:
        """What moves the weights of a loss's terms, where it has such."""
        return [] if self.term_weights is None else [self.term_weights]

    def setup(self, stage: str) -> None:
        """Refuse a strategy that cannot be followed."""
        check_strategy(self.trainer)

    def configure_model(self) -> None:
        """Where the Trainer's strategy is sharded, divide the model among the processes."""
        if not is_sharded(self._trainer) or self._sharded:
            return
        if self.token_weights is not None:
            raise UserError(f"{self.objective.name} learns weights of tokens: train it unsharded")
        self._sharded = True
        strategy: Any = self.trainer.strategy
        for policy in (self.policy, self.reference_policy):
            if policy is not None:
                shard(policy, strategy.device_mesh["data_parallel"])
        prepare = getattr(getattr(self.trainer, "datamodule", None), "prepare_reference", None)
        if prepare is not None:
            prepare(self)

    def on_fit_start(self) -> None:
        """Refuse what would silently train on something else, or not at all."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
                raise UserError(
                    f"{name} would be trained in {str(parameter.dtype).removeprefix('torch.')}, "
                    "where small steps are lost: take trainer.precision bf16-mixed, and float32 "
                    "for what is trained"
                )
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

    def on_train_start(self) -> None:
        """After a resume, let this run's learning rate, schedule and weight decay count."""
        self._micro_batches.clear()
        if not self._resumed:
            return
        self._resumed = False
        scheduled = self.trainer.lr_scheduler_configs
        factor = self._rate(self.global_step, self._total_steps()) if scheduled else 1.0
        take_over(self.trainer, self.lr, self.weight_decay, factor)

    def on_train_end(self) -> None:
        """Keep how far training came, for what is validated from here on."""
        if self._timed():
            self.progress()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Remember the batch, for messages."""
        self._batch, self._batch_idx = batch, batch_idx

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Log the step's means; stop before NaN gradients reach the weights."""
        pairs, metrics = zip(*self._micro_batches, strict=True)
        keys = list(metrics[0])
        rows = torch.stack([torch.stack([m[k].float() for k in keys]) for m in metrics])
        self._micro_batches.clear()
        means = rows.mean(0)
        if len(set(pairs)) > 1:
            means = (rows * rows.new_tensor(pairs)[:, None]).sum(0) / sum(pairs)
        # Lightning has divided by the micro-batches of a whole step, all as large as the first.
        part = self.trainer.accumulate_grad_batches * pairs[0] / sum(pairs)
        if self.trainer.world_size > 1:
            means = self.trainer.strategy.reduce(means, reduce_op="mean")
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        if part != 1:
            for grad in grads:
                grad.mul_(part)
        norm = whole(torch.nn.utils.get_total_norm(grads))
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
        return rate(step, total, self.warmup, self.schedule)

    def _total_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise UserError("the number of steps must be known: set max_epochs or max_steps")
        return int(total)

    # Saving

    def _trained(self) -> set[str]:
        return {name for name, p in self.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what training does not change; say what the run is."""
        checkpoint[resume.KEY] = self._made_with | self._data_words()
        if self._timed():
            checkpoint[resume.KEY]["progress"] = self.progress()
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in self._trained()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run; go on with this one after its last whole step."""
        weights, own = checkpoint["state_dict"], self.state_dict()
        stored, trained = set(weights), self._trained()
        if absent := trained - stored or stored - trained:
            raise UserError(
                f"the checkpoint was made with other settings of model or lora: {min(absent)} is "
                f"{'missing' if trained - stored else 'not trained here'}"
            )
        if other := sorted(k for k in trained if weights[k].shape != own[k].shape):
            raise UserError(
                f"the checkpoint was made with other settings of model or lora: {other[0]} has "
                f"shape {tuple(weights[other[0]].shape)} there, {tuple(own[other[0]].shape)} here"
            )
        if other := sorted(k for k in trained if not weights[k].isfinite().all()):
            raise UserError(f"the checkpoint is damaged: {other[0]} is not finite")
        trainer = self._trainer
        training = trainer is not None and trainer.state.fn == "fit"
        made_with = checkpoint.get(resume.KEY, {})
        if "seed" in made_with:  # older checkpoints do not say
            made_with.setdefault("group_by_length", False)
        now = self._made_with | (self._data_words() if training else {})
        resume.refuse_other(made_with, now, training=training)
        if self._timed() and not training:
            if "progress" not in made_with:
                raise UserError(
                    f"{self.objective.name} depends on how far training was, and the checkpoint "
                    "does not say it: it is of an older version, or of another loss"
                )
            self._progress = made_with["progress"]
        if training:
            self._resumed = True
            if {"accumulate"} <= made_with.keys() & now.keys():
                loop = checkpoint["loops"]["fit_loop"]
                resume.redivide(loop, made_with["accumulate"], now["accumulate"])
            # trainer.max_time is of this process: counted on, a run it ended could not go on.
            checkpoint.get("callbacks", {}).pop("Timer", None)

    def _data_words(self) -> dict[str, Any]:
        """What :mod:`torchmpo.finetune.resume` compares of a data module that says it."""
        words = getattr(getattr(self.trainer, "datamodule", None), "made_with", None)
        return {} if words is None else words()

    def save(
        self, folder: str | Path, tokenizer: Any = None, *, best: tuple[int, float] | None = None
    ) -> None:
        """Write what was trained: an adapter, for ``PeftModel.from_pretrained``, or a whole model;
        and its card. Where the model is sharded, all processes must ask, and the first one writes.

        Args:
            folder: made if it does not exist.
            tokenizer: goes with it.
            best: of weights that are not those of the last step, their step and ``val/loss``.
        """
        model = self.policy.model
        options: dict[str, Any] = {}
        if self._sharded:
            options["state_dict"] = whole_state(model)
            if self.global_rank > 0:
                return
        if is_adapted(model):
            for config in model.peft_config.values():
                if isinstance(config.target_modules, set):  # written in an order that varies
                    config.target_modules = sorted(config.target_modules)
            # Otherwise peft asks the hub whether the vocabulary has grown.
            options["save_embedding_layers"] = False
        model.save_pretrained(str(folder), **options)
        if self.token_weights is not None:
            self.token_weights.save(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        write_card(folder, self, best=best)

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


def objective_of(loss: Any, loss_args: dict[str, Any]) -> Objective | MirrorObjective:
    """The objective that a loss stands for, whose numbers no training changes.

    Raises:
        UserError: there is no such loss, or its arguments are wrong.
    """
    try:
        objective = resolve(loss, **loss_args)
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error
    if isinstance(objective, MirrorObjective):
        objective = copy.deepcopy(objective).requires_grad_(False)
    return objective
