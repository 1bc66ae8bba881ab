"""Weights of a loss's two terms that follow from fine-tuning: a callback.

A loss such as ``dpo+sft@dual`` (see :mod:`torchmpo.objectives.balance`) brings it along.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from torchmpo.objectives.balance import Balanced, State
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.inputs import PairLogps
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.errors import UserError, missing_package

try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError as error:
    raise missing_package(error, "llm") from error


class TermWeights(Callback):
    """Holds the state of a balance, moves it, and weighs the terms of each batch.

    The rule ``dual`` reads values, means over all pairs of an optimizer step. The others read the
    gradients of both terms over all that is trained, one more pass backward for each term, and so
    need a step that is one batch in one process.

    The weights are logged as ``weight/dpo`` and ``weight/sft``, and the state is in checkpoints.

    Args:
        objective: a balanced sum.
    """

    def __init__(self, objective: Objective):
        assert isinstance(objective.source, Balanced)
        self.objective, self.balance = objective, objective.source
        self.state: State | None = None
        self._seen: list[tuple[int, Tensor]] = []  # pairs and terms of each micro-batch

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse to compare gradients of parts of a step."""
        parts = trainer.accumulate_grad_batches * trainer.world_size
        if self.balance.of_gradients and parts > 1:
            raise UserError(
                f"{self.objective.name} compares gradients of whole steps, and each step has "
                f"{parts} parts: raise data.batch_size instead of accumulating, take one process, "
                "or balance by @dual"
            )
        self._seen.clear()

    def losses(self, pair: PairLogps, module: nn.Module) -> Tensor:
        """The weighted sum of the terms of each pair, ``[B]``.

        With gradients switched on this is a training step, and rules of gradients take theirs.

        Args:
            module: what is trained.
        """
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        terms = self.objective.terms({}, pair)
        values = torch.stack([term.mean() for term in terms])
        if self.state is None:
            self.state = self.balance.start({name: p.detach() for name, p in trained.items()})
        state: State = tree_map(lambda value: value.to(values.device), self.state)
        if torch.is_grad_enabled():
            self._seen.append((len(terms[0]), values.detach()))
            if self.balance.of_gradients:
                gradients = [_gradient(value, trained) for value in values]
                state = self.balance.step(state, values.detach(), gradients, self.objective.hyper)
        self.state = state
        first, second = state["weights"]
        return first * terms[0] + second * terms[1]

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Log the weights of this step; let values move those of the next one."""
        pairs, values = zip(*self._seen, strict=True)
        self._seen.clear()
        assert self.state is not None
        names = list(self.balance.parts)
        weights = self.state["weights"]
        pl_module.log_dict({f"weight/{n}": w for n, w in zip(names, weights, strict=False)})
        if not self.balance.of_gradients:
            shares = values[0].new_tensor(pairs) / sum(pairs)
            mean = (torch.stack(values) * shares[:, None]).sum(0)
            if trainer.world_size > 1:
                mean = trainer.strategy.reduce(mean, reduce_op="mean")
            self.state = self.balance.step(self.state, mean, [], self.objective.hyper)

    def state_dict(self) -> dict[str, Any]:
        """The state of the rule."""
        return {"state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from it."""
        self.state = state_dict["state"]


def term_weights(objective: Objective | MirrorObjective) -> TermWeights | None:
    """What weighs the terms of a loss, where training is to."""
    if isinstance(objective, Objective) and isinstance(objective.source, Balanced):
        return TermWeights(objective)
    return None


def _gradient(value: Tensor, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(
        value, [*trained.values()], retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(trained, found, strict=True))
