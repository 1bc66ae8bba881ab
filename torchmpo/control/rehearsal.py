"""Try a loss as training will call it, before any compute."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from torchmpo.control.inner_loop import check_lists
from torchmpo.control.kinds import parse_kind
from torchmpo.control.pair_files import file_of
from torchmpo.control.testbed import TestbedConfig
from torchmpo.control.tuning import stack_settings
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.inputs import PairLogps, is_unpaired, made_up
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.seeding import generator

_IMPURE = (
    "answers differently when it is called again: a loss is a pure function of its arguments, it "
    "keeps nothing from one call to the next and draws no random numbers"
)


def check_kind(objective: Objective | MirrorObjective, kind: str) -> None:
    """Refuse a kind of data that has less than an objective reads. A file shows it when it is read.

    Raises:
        UserError: an unknown kind, or pairs for an objective that reads a third response.
    """
    responses = parse_kind(kind).responses
    if not file_of(kind)[0]:
        check_lists(objective, responses, kind)


def unlike(testbeds: Iterable[TestbedConfig]) -> list[TestbedConfig]:
    """Those on which a loss is called in different ways: one for each number of responses."""
    return [*{parse_kind(testbed.data).responses: testbed for testbed in testbeds}.values()]


def rehearse(
    objective: Objective | MirrorObjective, grid: Sequence[dict[str, float]], config: TestbedConfig
) -> None:
    """Call the loss as training will, on made-up log-probabilities: many would fail only there.

    It is called again after other populations: a loss with state or random numbers would carry
    something from tuning into the trainings that count, and be another one where it is compiled.

    Raises:
        ValueError: it does not return one value per pair for the pairs of an update, what it
            returns has no gradient, or it answers differently when it is called again.
        Exception: whatever the loss raises, under ``vmap`` or for these shapes.
    """
    unpaired = is_unpaired(objective.inputs)
    size = config.inner.minibatch_pairs * (2 if unpaired else 1)
    what = "response" if unpaired else "pair"
    steps = config.inner.steps_per_trajectory or config.pool.max_steps
    responses = parse_kind(config.data).responses
    fields = made_up(objective.inputs, size, steps, responses=responses)
    random = [name for name in fields if name.endswith("logps")]

    def of_member(params: Any, logps: dict[str, Tensor]) -> Tensor:
        loss = objective.apply(params, PairLogps(**{**fields, **logps}))
        if not isinstance(loss, Tensor) or loss.shape != (size,):
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"{objective.name} must return one value per {what}, [{size}] in training; "
                f"got {got}"
            )
        if not loss.is_floating_point():
            raise ValueError(f"{objective.name} must return floating-point numbers; {loss.dtype}")
        return loss

    def answer(settings: Sequence[dict[str, float]], draw: int) -> Tensor:
        """``[settings, size]`` on random log-probabilities, the same at every call."""
        numbers = generator("rehearsal", draw)
        shapes = {name: (len(settings), *fields[name].shape) for name in random}
        members = {n: -torch.rand(s, generator=numbers) for n, s in shapes.items()}
        members = {name: value.requires_grad_() for name, value in members.items()}
        # Without hyper-parameters the tree is empty, and vmap has the log-probabilities to go by.
        return vmap(of_member)(stack_settings(objective, settings), members)

    first = answer(grid, 0)
    if not first.requires_grad:
        raise ValueError(
            f"{objective.name} has no gradient: its value does not depend on log-probabilities, or "
            "was cut off from them by detach() or no_grad()"
        )
    try:
        answer(grid, 1)
        answer(grid[:1], 2)
        again = answer(grid, 0)
        pure = torch.allclose(first, again, rtol=0, atol=0, equal_nan=True)
    except Exception as error:
        raise ValueError(f"{objective.name} {_IMPURE} (then it raised: {error})") from error
    if not pure:
        raise ValueError(f"{objective.name} {_IMPURE}")
