"""The learning rate of a step, and numbers of training that are refused."""

import math
from typing import Any

from torchmpo.runs.errors import UserError, missing_package, nearest

try:
    from lightning.pytorch.utilities import rank_zero_info
except ModuleNotFoundError as error:
    raise missing_package(error, "llm") from error

SCHEDULES = ("constant", "linear", "cosine")
MOST_RATE = 1e6  # beyond any use; AdamW's own arithmetic overflows at some point


def rate(step: int, total: int, warmup: float, schedule: str) -> float:
    """Factor of the learning rate in the step after ``step`` steps of ``total``, in [0, 1].

    Args:
        warmup: share of all steps in which it rises linearly to 1, in [0, 1).
        schedule: after it, one of ``SCHEDULES``; the last two end at 0.
    """
    warm = round(warmup * total)
    if step < warm:
        return (step + 1) / warm
    if schedule == "constant":
        return 1.0
    left = max(0.0, (total - step) / max(1, total - warm))
    return left if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def check_numbers(lr: float, warmup: float, schedule: str, weight_decay: float) -> None:
    """Refuse numbers out of their ranges.

    Raises:
        UserError: which one.
    """
    if not 0 < lr <= MOST_RATE:
        raise UserError(f"lr must be positive, and at most {MOST_RATE:g}; got {lr}")
    if not 0 <= warmup < 1:
        raise UserError(f"warmup is a share of all steps, in [0, 1); got {warmup}")
    if schedule not in SCHEDULES:
        raise UserError(f"unknown schedule {schedule!r}: {nearest(schedule, SCHEDULES)}")
    if not 0 <= weight_decay < math.inf:
        raise UserError(f"weight_decay must be zero or positive; got {weight_decay}")


def take_over(trainer: Any, lr: float, weight_decay: float, factor: float) -> None:
    """Let a resumed run's own learning rate, schedule and weight decay count from here on.

    Args:
        trainer: whose optimizers and schedulers are as a checkpoint left them.
        lr, weight_decay: see :class:`torchmpo.finetune.PreferenceModule`.
        factor: of the learning rate, in the next step.
    """
    scheduled = trainer.lr_scheduler_configs
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            before = group.get("initial_lr", group["lr"])
            if before != lr and group is optimizer.param_groups[0]:
                rank_zero_info(f"the learning rate was {before:g}; from here on {lr:g}")
            group["lr"] = lr * factor
            if scheduled:
                group["initial_lr"] = lr
            matrices = group["params"][0].dim() >= 2
            group["weight_decay"] = weight_decay if matrices else 0.0
    for config in scheduled:
        config.scheduler.base_lrs = [lr] * len(config.scheduler.base_lrs)
        config.scheduler.last_epoch = trainer.global_step
