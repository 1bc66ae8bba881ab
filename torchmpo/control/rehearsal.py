"""Try a loss as training will call it, before any compute."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.func import vmap

from torchmpo.control.testbed import TestbedConfig
from torchmpo.control.tuning import stack_settings
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.inputs import PairLogps, made_up
from torchmpo.objectives.mirror import MirrorObjective


def rehearse(
    objective: Objective | MirrorObjective, grid: Sequence[dict[str, float]], config: TestbedConfig
) -> None:
    """Call the loss as training will, on made-up log-probabilities: many would fail only there.

    Raises:
        ValueError: it does not return one value per pair for the pairs of an update, or what it
            returns has no gradient.
        Exception: whatever the loss raises, under ``vmap`` or for these shapes.
    """
    pairs = config.inner.minibatch_pairs
    steps = config.inner.steps_per_trajectory or config.pool.max_steps
    fields = made_up(objective.inputs, pairs, steps)
    members = {
        name: value.expand(len(grid), *value.shape).clone().requires_grad_()
        for name, value in fields.items()
        if name.endswith("logps")
    }

    def of_member(params: Any, logps: dict[str, Tensor]) -> Tensor:
        loss = objective.apply(params, PairLogps(**{**fields, **logps}))
        if loss.shape != (pairs,):
            raise ValueError(
                f"{objective.name} must return one value per pair, [{pairs}] in training; "
                f"got {tuple(loss.shape)}"
            )
        if not loss.is_floating_point():
            raise ValueError(f"{objective.name} must return floating-point numbers; {loss.dtype}")
        return loss

    # Without hyper-parameters the tree is empty, and vmap has the log-probabilities to go by.
    if not vmap(of_member)(stack_settings(objective, grid), members).requires_grad:
        raise ValueError(
            f"{objective.name} has no gradient: its value does not depend on log-probabilities, or "
            "was cut off from them by detach() or no_grad()"
        )
