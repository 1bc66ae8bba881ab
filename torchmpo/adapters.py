"""Any loss of torchmpo, or one's own, behind the signatures that other code bases call."""

import copy
import importlib
import inspect
import re
import statistics
import warnings
from collections.abc import Callable
from dataclasses import MISSING, fields
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchmpo.early_warning import CHOSEN_FALL, check_threshold, fall_warning
from torchmpo.losses.divergence import InDivergence
from torchmpo.metrics import divides, implicit_rewards, preference_metrics
from torchmpo.objectives.balance import Balanced
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.inputs import PairLogps, made_up
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError, missing_package

Bound: TypeAlias = Objective | MirrorObjective
Logps: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None]

_SIDES, _LOGPS = ("chosen", "rejected"), ("logps", "mean_logps")
_FIELDS = {
    "sum": ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps"),
    "mean": (
        "chosen_mean_logps",
        "rejected_mean_logps",
        "ref_chosen_mean_logps",
        "ref_rejected_mean_logps",
    ),
}
_CALLER = {
    "sum": "sums over the response",
    "mean": "per-token means (average_log_prob=True)",
}
# The first TRL whose DPOTrainer computes its losses inside one method and calls no ``dpo_loss``.
WITHOUT_DPO_LOSS = (0, 29)
# What a batch of TRL's DPOTrainer has beside the arguments of the model.
_NOT_OF_THE_MODEL = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
# What the trainer makes of it for a loss.
_OF_TRL = {
    "progress",
    *(f"{side}_{name}" for side in _SIDES for name in (*_LOGPS, "lengths", "step_logps", "mask")),
    *(f"ref_{side}_{name}" for side in _SIDES for name in _LOGPS),
}
# By which likelihoods are measured: a loss may do without, and is another one then.
_MEASURE = ("chosen_log_collision", "rejected_log_collision")
# Settings of DPOConfig that belong to TRL's own losses.
_OF_TRL_LOSSES = (
    *("loss_type", "loss_weights", "beta", "label_smoothing", "f_divergence_type", "ld_alpha"),
    *("f_alpha_divergence_coef", "use_weighting", "discopop_tau"),
)


def trl_signature(
    loss: str | Path | Callable[..., Tensor] | Bound,
    *,
    unit: str = "sum",
    trl: bool = True,
    **hyper: object,
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """A loss as the function that DPO trainers have a method for.

        (policy_chosen_logps, policy_rejected_logps,
         reference_chosen_logps, reference_rejected_logps)
            → (losses, chosen_rewards, rejected_rewards)

    all ``[batch]``; the rewards are :func:`~torchmpo.metrics.implicit_rewards`, detached. A
    reference-free loss may be given ``None`` for the reference's, or nothing. TRL 0.29 and later
    never call a ``dpo_loss``: use :func:`trl_trainer` there. In TRL up to 0.28 (which may pass more
    arguments), and in trainers derived from it::

        loss = trl_signature("dpo", beta=0.1)

        class Trainer(DPOTrainer):
            def dpo_loss(self, chosen, rejected, ref_chosen, ref_rejected, *unused):
                return loss(chosen, rejected, ref_chosen, ref_rejected)

    Args:
        loss: whatever :func:`torchmpo.resolve` takes, a function like those it finds, or an
            objective.
        unit: what the caller's log-probabilities are: ``"sum"`` over the response, or ``"mean"``
            per token. A loss with ``reduction="mean"`` is given means as they are.
        trl: whether TRL's trainer is to call it. False says that another one does, or you do, and
            that it does not matter which TRL is installed.
        **hyper: hyper-parameters of the loss; an objective has its own.

    Raises:
        UserError: the TRL that is installed would never call it.
        ValueError: the loss needs what this signature cannot carry, another ``unit``,
            hyper-parameters for an objective, or what :func:`torchmpo.resolve` refuses. From the
            function: a reference that is ``None`` and needed, or shapes that differ.

    >>> loss = trl_signature("dpo", beta=0.5)
    >>> x = torch.tensor([-20.0])
    >>> [y.tolist() for y in loss(x, x, x - 4, x - 4)]
    [[0.6931471824645996], [2.0], [2.0]]
    >>> trl_signature("simpo")
    Traceback (most recent call last):
    ValueError: simpo needs chosen_mean_logps, rejected_mean_logps, which trl_signature with \
unit='sum' does not carry: pass unit='mean' if the caller's log-probabilities are per-token means \
(average_log_prob=True)
    """
    if unit not in _FIELDS:
        raise ValueError(f"unit must be 'sum' or 'mean'; got {unit!r}")
    if trl:
        _refuse_a_trl_that_ignores_it()
    objective = _frozen(resolve(loss, **hyper))
    if rule := _rule(objective):
        raise ValueError(rule)
    missing = _missing(objective, unit)
    if missing:
        raise ValueError(
            f"{objective.name} needs {', '.join(missing)}, which trl_signature with "
            f"unit={unit!r} does not carry: {_remedy(objective, unit)}"
        )

    def signature(
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        pair = _pair(
            objective,
            unit,
            (
                policy_chosen_logps,
                policy_rejected_logps,
                reference_chosen_logps,
                reference_rejected_logps,
            ),
        )
        if isinstance(objective, MirrorObjective):
            objective.to(policy_chosen_logps.device)
        return objective(pair), *implicit_rewards(objective, pair)

    return signature


def _frozen(objective: Bound) -> Bound:
    """The same, and what was learned in it is nobody else's and stays as it is."""
    if isinstance(objective, MirrorObjective):
        return copy.deepcopy(objective).requires_grad_(False)
    return objective


def trl_trainer(loss: str | Path | Callable[..., Tensor] | Bound, **hyper: object) -> Any:
    """TRL's ``DPOTrainer`` with another loss: a subclass, for TRL 1.x.

        Trainer = trl_trainer("simpo", beta=2.0)
        Trainer(model, args=DPOConfig(…), train_dataset=…, processing_class=…).train()

    Data, reference, precision, accumulation and checkpoints are TRL's. The loss may read sums,
    means and steps of both responses, with their masks and lengths, the reference's sums and means,
    and the progress of training; a reference-free one keeps no reference model. Logged are ``loss``
    and :func:`torchmpo.metrics.preference_metrics`.

    Args:
        loss: whatever :func:`torchmpo.resolve` takes, a function like those it finds, or an
            objective.
        **hyper: hyper-parameters of the loss; an objective has its own.

    Raises:
        UserError: TRL is not installed or too old, or the loss needs what TRL's batches do not
            carry, or has a rule that weighs its terms. From the trainer: a setting of
            ``DPOConfig`` that belongs to TRL's own losses, or a loss that couples the pairs of a
            batch, and a step of several batches.
        ValueError: what :func:`torchmpo.resolve` refuses.
    """
    objective = resolve(loss, **hyper)
    _refuse_what_trl_lacks(objective)
    try:
        module: Any = importlib.import_module("trl.trainer.dpo_trainer")
    except ModuleNotFoundError as error:
        raise UserError("trl is not installed: pip install 'trl>=1,<2'") from error
    if hasattr(module.DPOTrainer, "dpo_loss"):
        raise UserError("trl_trainer needs TRL 1.x; for older ones there is trl_signature")
    objective = _frozen(objective)
    fused = hasattr(module, "add_fused_lm_head")  # since 1.15: no logits are made
    with_model = "model" in inspect.signature(module.DPOTrainer.compute_ref_log_probs).parameters

    class PreferenceTrainer(module.DPOTrainer):
        """TRL's trainer of preference pairs with a loss of torchmpo."""

        _name, _paper, _tag_names = objective.name, {}, ("trl", "torchmpo")

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            _check_trl_settings(self.args, objective)
            if isinstance(objective, MirrorObjective):
                objective.to(self.accelerator.device)
            if not objective.needs_reference and not self.args.sync_ref_model:
                self.ref_model = None

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            routed = getattr(self, "aux_loss_enabled", False)
            mask = inputs["completion_mask"][:, 1:] != 0
            out, logps = _forward(model, inputs, fused, routed)
            ref = None
            if objective.needs_reference:
                ref = [inputs.get(f"ref_{side}_logps") for side in ("chosen", "rejected")]
                if ref[0] is None:
                    asked = (self.ref_model or self.model, inputs) if with_model else (inputs,)
                    ref = self.compute_ref_log_probs(*asked)
            progress = self.state.global_step / max(1, self.state.max_steps)
            pair = _pair_of_batch(logps[:, -mask.shape[1] :].float(), mask, ref, progress)
            with torch.autocast(mask.device.type, enabled=False):
                value = objective(pair).mean()
            log = self._metrics["train" if self.model.training else "eval"]
            for name, number in _metrics(objective, pair).items():
                log[name].append(self.accelerator.gather(number).mean().item())
            if routed:
                value = value + self.router_aux_loss_coef * out.aux_loss
            if return_outputs:  # with logits, which a fused head does not make
                return value, _forward(model, inputs, False, routed)[0]
            return value

    return PreferenceTrainer


def early_warning(
    threshold: float = CHOSEN_FALL, *, window: int = 5, length: float | None = None
) -> Any:
    """A ``TrainerCallback`` that warns once, in words, when chosen responses become unlikely.

        DPOTrainer(model, args=DPOConfig(…), …, callbacks=[early_warning()])

    For any trainer of transformers that logs ``logps/chosen``, as TRL's do, or
    ``mean_logps/chosen``, as :func:`trl_trainer` does besides. The last logs are compared with the
    first ones, which are of other responses: it warns where the difference is beyond the threshold
    by two standard errors of the logs. (:class:`torchmpo.finetune.EarlyWarning` compares the same
    responses.)

    **The default threshold was measured on robots, not on language models**: see
    :mod:`torchmpo.early_warning`.

    Args:
        threshold: how far they may fall, nats per token, > 0.
        window: logs at the start, and as many at the end, that are compared, ≥ 2.
        length: tokens per chosen response, by which ``logps/chosen`` is divided; 1 where the
            trainer logs means. By default it is that of the first hundred ``chosen_ids`` of the
            training data, which TRL's ``DPOTrainer`` keeps there.

    Raises:
        UserError: transformers is not installed; from the callback at the first log, nobody knows
            the length.
        ValueError: a number is out of its range.
    """
    check_threshold(threshold)
    if not isinstance(window, int) or window < 2 or (length is not None and not length > 0):
        raise ValueError(
            f"window must be a whole number from 2, length positive; got {window}, {length}"
        )
    try:
        base: Any = importlib.import_module("transformers").TrainerCallback
    except ModuleNotFoundError as error:
        raise missing_package(error, "llm") from error

    class EarlyWarning(base):
        """Reads what a trainer has logged so far, also before a resume."""

        warned, tokens = False, length

        def on_log(self, args, state, control, train_dataloader=None, **kwargs):
            tokens, key = 1.0, "mean_logps/chosen"
            values = [row[key] for row in state.log_history if key in row]
            if not values:
                values = [row["logps/chosen"] for row in state.log_history if "logps/chosen" in row]
                if values and self.tokens is None:  # at once: later, work would be lost
                    self.tokens = _mean_length(train_dataloader)
                tokens = self.tokens
            if len(values) < 2 * window or self.warned:
                return
            first, last = values[:window], values[-window:]
            noise = sum(statistics.variance(part) / window for part in (first, last)) ** 0.5
            fell = (statistics.mean(first) - statistics.mean(last)) / tokens
            if fall_warning(fell - 2 * noise / tokens, threshold):
                message = fall_warning(fell, threshold)
                self.warned = True
                warnings.warn(f"step {state.global_step}: {message}", stacklevel=2)

    return EarlyWarning()


def _mean_length(train_dataloader: Any) -> float:
    """Tokens per chosen response of TRL's training data."""
    data: Any = getattr(train_dataloader, "dataset", None)
    try:
        return statistics.mean(len(data[k]["chosen_ids"]) for k in range(min(100, len(data))))
    except (KeyError, TypeError, NotImplementedError, statistics.StatisticsError) as error:
        raise UserError(
            "early_warning cannot see how long the chosen responses are: pass length, their mean "
            "number of tokens, or 1 if logps/chosen are per-token means"
        ) from error


def _refuse_a_trl_that_ignores_it() -> None:
    """A method that is never called would train on TRL's own loss, without a word."""
    try:
        release = metadata.version("trl")
    except metadata.PackageNotFoundError:
        return
    if tuple(int(part) for part in re.findall(r"\d+", release)[:2]) >= WITHOUT_DPO_LOSS:
        raise UserError(
            f"TRL {release} never calls a dpo_loss: use torchmpo.adapters.trl_trainer(loss); if "
            "another trainer calls this function, or you do, pass trl=False"
        )


def _rule(objective: Bound) -> str | None:
    """Why a sum whose weights follow from training cannot be had as a function of a batch."""
    if not isinstance(getattr(objective, "source", None), Balanced):
        return None
    return (
        f"{objective.name} weighs its terms while it is trained, which a trainer has to do: take "
        "torchmpo.finetune, or weights that stay, as in dpo+0.1*sft"
    )


def _refuse_what_trl_lacks(objective: Bound) -> None:
    if rule := _rule(objective):
        raise UserError(rule)
    absent, why = sorted(objective.inputs - _OF_TRL), None
    if not absent:
        return
    try:
        objective(PairLogps(**made_up(objective.inputs & _OF_TRL, pairs=2, steps=3)))
    except ValueError as error:
        why = error
    if why or any(name in _MEASURE for name in absent):
        raise UserError(
            f"{objective.name} needs {', '.join(absent)}, which TRL's batches do not carry: "
            "torchmpo.finetune has them"
        ) from why


def _check_trl_settings(args: Any, objective: Bound) -> None:
    for field in fields(args):
        if field.name not in _OF_TRL_LOSSES:
            continue
        usual = field.default if field.default_factory is MISSING else field.default_factory()
        if getattr(args, field.name) != usual:
            raise UserError(
                f"DPOConfig's {field.name} belongs to TRL's own losses and would change nothing: "
                "leave it out, and give hyper-parameters to trl_trainer"
            )
    batches = args.gradient_accumulation_steps * args.world_size
    if objective.coupled and batches > 1:
        raise UserError(
            f"{objective.name} couples the pairs of a batch, and each of the {batches} parts of a "
            "step would be a batch of its own: raise per_device_train_batch_size instead"
        )


def _forward(model: Any, inputs: Any, fused: bool, routed: bool) -> tuple[Any, Tensor]:
    """What the model gives, and the log-probabilities ``[2 × pairs, time]``, with those of tokens
    that prompt-learning adapters put before the others."""
    given = {k: v for k, v in inputs.items() if k not in _NOT_OF_THE_MODEL} | {"use_cache": False}
    if routed:
        given["output_router_logits"] = True
    targets = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    if fused:
        out = model(**given, labels=targets, fused_lm_head=True)
        return out, out.log_probs
    out = model(**given)
    return out, _token_logps(out.logits, targets)


@torch.no_grad()
def _metrics(objective: Bound, pair: PairLogps) -> dict[str, Tensor]:
    return preference_metrics(pair, *implicit_rewards(objective, pair))


def _token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target but the first ``[batch, time − 1]``, 0 where it is −100."""
    targets = targets[:, 1:]
    logits = logits[:, -targets.shape[1] - 1 : -1]
    losses = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), targets, reduction="none", ignore_index=-100
    )
    return -losses


def _pair_of_batch(logps: Tensor, mask: Tensor, ref: Any, progress: float) -> PairLogps:
    """A batch of the chosen responses before the rejected ones, as pairs.

    Args:
        logps, mask: ``[2 × pairs, time]``, nats, and whether a token counts.
        ref: the reference's sums of both sides, ``[pairs]`` each, or None.
        progress: fraction of training done.
    """
    sums, lengths = logps.sum(-1), mask.sum(-1).clamp(min=1)  # of an answer without tokens, too
    values = {"logps": sums, "mean_logps": sums / lengths, "lengths": lengths}
    values |= {"step_logps": logps, "mask": mask}
    if ref is not None:
        ref_sums = torch.cat([side.to(sums) for side in ref])
        values |= {"ref_logps": ref_sums, "ref_mean_logps": ref_sums / lengths}
    named = {"progress": sums.new_tensor(progress)}
    for name, both in values.items():
        prefix = "ref_" if name.startswith("ref_") else ""
        for side, value in zip(("chosen", "rejected"), both.chunk(2), strict=True):
            named[f"{prefix}{side}_{name.removeprefix(prefix)}"] = value
    return PairLogps(**named)


def _pair(objective: Bound, unit: str, logps: Logps) -> PairLogps:
    if unit == "mean" and divides(objective):
        if isinstance(objective.source, InDivergence):
            raise ValueError(
                f"{objective.name} takes the divergence of sums and divides then: pass unit='sum'"
            )
        # The loss divides sums by lengths; a mean is the sum over a response of one step.
        ones = torch.ones_like(logps[0])
        sums = dict(zip(_FIELDS["sum"], logps, strict=True))
        return PairLogps(**sums, chosen_lengths=ones, rejected_lengths=ones)
    return PairLogps(**dict(zip(_FIELDS[unit], logps, strict=True)))


def _missing(objective: Bound, unit: str) -> list[str]:
    """What the loss cannot be called without and the signature does not carry."""
    x = torch.full((2,), -1.0)
    pair = _pair(objective, unit, (x, x, x, x))
    absent = [n for n in PairLogps._fields if n in objective.inputs and getattr(pair, n) is None]
    if isinstance(objective, MirrorObjective) or not absent:
        return absent
    parameters = inspect.signature(objective.function).parameters
    required = [name for name in absent if parameters[name].default is not None]
    if required:
        return required
    if measured := [name for name in absent if name in _MEASURE]:
        return measured
    # Whether an optional input can be left out depends on the hyper-parameters.
    try:
        objective(pair)
    except ValueError:
        return absent
    return []


def _remedy(objective: Bound, unit: str) -> str:
    remedies = []
    other = "mean" if unit == "sum" else "sum"
    if isinstance(objective, Objective) and "reduction" in objective.hyper:
        for reduction in ("sum", "mean"):
            hyper = objective.hyper | {"reduction": reduction}
            changed = Objective(objective.function, name=objective.name, **hyper)
            if not _missing(changed, unit):
                remedies.append(f"pass reduction={reduction!r}")
    if not _missing(objective, other):
        remedies.append(
            f"pass unit={other!r} if the caller's log-probabilities are {_CALLER[other]}"
        )
    if remedies:
        return ", or ".join(remedies)
    carried = {name for names in _FIELDS.values() for name in names}
    if objective.inputs <= carried:
        reason = "it needs sums and means at once"
    else:
        reason = "it needs more than log-probabilities"
    return f"{reason}; call the objective itself, with a PairLogps"
