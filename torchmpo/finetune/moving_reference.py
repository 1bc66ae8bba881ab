"""A reference that follows the policy while it is trained: a callback."""

import copy
from typing import Any

import torch
from torch import Tensor

from torchmpo.finetune.sharding import is_sharded
from torchmpo.runs.errors import UserError, missing_package

try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError as error:
    raise missing_package(error, "llm") from error

NEEDS = "MovingReference needs reference: copy, a copy of the model itself"


class MovingReference(Callback):
    """Every so many steps the reference takes a step towards the policy, as in TR-DPO.

        Trainer(callbacks=[MovingReference(every_n_steps=512)])           # becomes the policy
        Trainer(callbacks=[MovingReference(every_n_steps=1, mix=0.01)])   # a moving average

    or in a configuration, under ``trainer``::

        callbacks:
        - class_path: torchmpo.finetune.MovingReference
          init_args: {every_n_steps: 512}

    The module needs ``reference: copy``: what moves is a second model, of which the trained weights
    are in the checkpoints.

    Args:
        every_n_steps: optimizer steps from one time to the next, ≥ 1.
        mix: the size of the step, in (0, 1]; 1 makes the reference the policy.

    Raises:
        UserError: a number is out of its range. As training begins: the reference is no copy of
            the model, or the model is sharded.

    Source: arXiv 2404.09656, eq. 8 and 9.
    """

    def __init__(self, every_n_steps: int = 512, mix: float = 1.0):
        if every_n_steps < 1:
            raise UserError(f"every_n_steps must be at least 1; got {every_n_steps}")
        if not 0 < mix <= 1:
            raise UserError(f"mix must be in (0, 1]; got {mix}")
        self.every, self.mix = every_n_steps, mix
        self._moved, self._loaded = 0, False
        self._weights: dict[str, Tensor] = {}  # of the reference, by the names of the policy's

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the reference weights like those that are trained, before a checkpoint is loaded."""
        if stage != "fit":
            return
        if not pl_module.starts_at_reference:
            raise UserError(NEEDS)
        self._prepare(trainer, pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Take up the reference of a checkpoint, to compare with what training compared with."""
        self._take_up(trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take up the reference of a run that goes on."""
        self._take_up(trainer, pl_module)
        self._moved = trainer.global_step

    def _prepare(self, trainer: Any, module: Any) -> None:
        """Let the reference have every weight that is trained."""
        if module.reference != "copy":
            raise UserError(NEEDS)
        if is_sharded(trainer):
            raise UserError("MovingReference needs the whole model in a process: take ddp")
        trained, own = self._trained(module)
        if not trained.keys() <= own.keys():  # adapters, which change nothing yet
            model = copy.deepcopy(module.policy.model)
            module.reference_policy.model = model.requires_grad_(False).eval()

    def _take_up(self, trainer: Any, module: Any) -> None:
        """Set the reference to what was loaded, once."""
        if not self._loaded:
            return
        self._prepare(trainer, module)
        own = dict(module.reference_policy.named_parameters())
        with torch.no_grad():
            for name, value in self._weights.items():
                own[name].copy_(value)
        self._loaded = False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """A step of the reference, where it is time."""
        step = trainer.global_step
        if step == self._moved or step % self.every:
            return
        self._moved = step
        trained, reference = self._trained(pl_module)
        with torch.no_grad():
            for name, value in trained.items():
                reference[name].lerp_(value.to(reference[name].dtype), self.mix)
        self._weights = {name: reference[name] for name in trained}

    def state_dict(self) -> dict[str, Any]:
        """The reference's weights, where they moved."""
        return {"weights": {name: value.cpu().clone() for name, value in self._weights.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up again as training or validation begins."""
        self._weights = state_dict["weights"]
        self._loaded = bool(self._weights)

    @staticmethod
    def _trained(module: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights that are trained, and all of the reference, by name."""
        named = module.policy.named_parameters()
        trained = {name: value for name, value in named if value.requires_grad}
        return trained, dict(module.reference_policy.named_parameters())
