"""A warning while a model is trained: the chosen responses become unlikely. A callback."""

import math
from typing import Any

import torch
from torch import Tensor

from torchmpo.early_warning import CHOSEN_FALL, check_threshold, fall_warning
from torchmpo.finetune.supply import with_read_answers
from torchmpo.runs.errors import UserError, missing_package

try:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.utilities import rank_zero_warn
except ModuleNotFoundError as error:
    raise missing_package(error, "llm") from error

TIMES = 10  # looks in a training, where nothing else is asked for
_KEPT = ("input_ids", "attention_mask", "labels", "desirable", "index", "gold")


class EarlyWarning(Callback):
    """Warns once, in words, when chosen responses have become less likely than they were.

        Trainer(callbacks=[EarlyWarning()])

    or in a configuration, under ``trainer``::

        callbacks:
        - class_path: torchmpo.finetune.EarlyWarning
          init_args: {threshold: 0.1}

    What is compared are the same responses at both times, those of the first batch of
    each process, without dropout; with a loss of single responses, the desirable ones. The mean
    log-probability per token is kept in ``chosen``. It costs a forward pass of one batch at every
    look; of several, where a run goes on in fewer processes.

    **The default threshold was measured on robots, not on language models**: see
    :mod:`torchmpo.early_warning`.

    Args:
        threshold: how far they may fall, nats per token, > 0.
        every_n_steps: optimizer steps from one look to the next, ≥ 1; by default a tenth of
            training.

    Attributes:
        chosen: ``[(step, mean log-probability per token)]``, from step 0 on.

    Raises:
        UserError: a number is out of its range. As training begins: nobody knows how many steps it
            has, and ``every_n_steps`` was not given.
    """

    def __init__(self, threshold: float = CHOSEN_FALL, every_n_steps: int | None = None):
        try:
            check_threshold(threshold)
        except ValueError as error:
            raise UserError(str(error)) from error
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"every_n_steps must be at least 1; got {every_n_steps}")
        self.threshold, self.every = threshold, every_n_steps
        self.chosen: list[tuple[int, float]] = []
        self._batches: list[dict[str, Tensor]] = []  # the first ones of all processes, in each
        self._warned = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find out when to look."""
        if self.every is None:
            steps = trainer.estimated_stepping_batches
            if steps == float("inf"):
                raise UserError("EarlyWarning: set max_epochs or max_steps, or every_n_steps")
            self.every = max(1, round(steps / TIMES))

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the first batches, and measure them before anything is learned."""
        if not self._batches:
            own = {name: batch[name].cpu() for name in _KEPT if name in batch}
            broadcast, ranks = trainer.strategy.broadcast, range(trainer.world_size)
            self._batches = [broadcast(own, rank) for rank in ranks]
            self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Measure it again, where it is time, and warn."""
        assert self.every is not None
        if trainer.global_step % self.every or trainer.global_step == self.chosen[-1][0]:
            return
        self._look(trainer, pl_module)
        fell = self.chosen[0][1] - self.chosen[-1][1]
        message = fall_warning(fell, self.threshold)
        if message and not self._warned:
            self._warned = True
            rank_zero_warn(f"step {trainer.global_step}: {message}")

    @torch.no_grad()
    def _look(self, trainer: Any, module: Any) -> None:
        count, world = len(self._batches), trainer.world_size
        total: Any = 0.0
        # As many in each process, where the model is sharded; what is one too many is not counted.
        for place in range(trainer.global_rank, world * math.ceil(count / world), world):
            with trainer.precision_plugin.forward_context():  # as in training
                found = self._chosen(module, self._batches[place % count])
            sums = torch.stack([found.sum(), found.new_tensor(float(len(found)))])
            total = total + sums * (place < count)
        if world > 1:
            total = trainer.strategy.reduce(total, reduce_op="sum")
        self.chosen.append((trainer.global_step, float(total[0] / total[1])))

    def _chosen(self, module: Any, batch: dict[str, Tensor]) -> Tensor:
        """Mean log-probability per token of each chosen response."""
        batch = {name: value.to(module.device) for name, value in batch.items()}
        if "desirable" not in batch:  # of lists there may be more answers than the loss reads
            batch, _ = with_read_answers(module, batch)
        training = module.policy.training
        module.policy.eval()
        logps = module.logps(batch).sum(-1)
        module.policy.train(training)
        means = logps / (batch["labels"][:, 1:] != -100).sum(-1).clamp(min=1)
        if "desirable" in batch:  # a process may have none
            return means[batch["desirable"].bool()]
        return means[: len(batch["index"])]

    def state_dict(self) -> dict[str, Any]:
        """What was measured, and on what, so that a run that goes on compares with its start."""
        return {"chosen": self.chosen, "batches": self._batches, "warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again, in any number of processes."""
        self.chosen = [(step, value) for step, value in state_dict["chosen"]]
        if "batch" in state_dict:  # of an older version: the first process's only
            state_dict["batches"] = [state_dict["batch"]]
        self._batches, self._warned = state_dict["batches"], state_dict["warned"]
