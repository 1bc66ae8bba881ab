"""What a loss may ask for about pairs: the vocabulary of its parameters."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class PairLogps(NamedTuple):
    """What a loss may ask for about a batch of pairs; a field nobody asked for stays ``None``.

    ``*_logps`` are summed over steps and ``*_mean_logps`` divided by the length, ``[batch]``, nats;
    ``ref_*`` the same under the frozen reference; ``*_lengths`` the steps that count, ``[batch]``;
    ``progress`` the fraction of training done, a scalar in [0, 1]; ``*_rewards`` scores,
    ``[batch]``; ``preference_probs`` how likely the chosen response is the better one, ``[batch]``,
    in [0, 1]; ``*_step_logps`` and ``*_mask`` (bool, whether a step counts) per step,
    ``[batch, time]``, and so are ``*_step_kl``, KL(π_ref ‖ π) of a step's whole distribution
    (nats, with gradients), and ``*_step_weights``, which fine-tuning learns and robots do not have;
    ``*_log_collision`` is the mean over the steps of log Σ_v π(v)², ``[batch]``, an integral for
    densities. ``gold_mean_logps`` is of a third response, ``[batch]``; ``list_logps`` and
    ``ref_list_logps`` of a ranked list of responses, best first, ``[batch, n]``: a pair is a list
    of two. ``own_logps`` and ``ref_own_logps`` are of n responses that the policy draws as it is
    now, ``calibration_logps`` the policy's of n that the reference drew, ``[batch, n]``: only code
    of one's own has these.

    A loss of single responses reads others instead, with ``[batch]`` responses: ``logps`` and
    ``ref_logps``, as above, and ``desirable`` (bool), the label; ``mismatched_logps`` and
    ``ref_mismatched_logps``, of each prompt with another one's response. A pair is two such
    responses, its chosen one desirable.
    """

    chosen_logps: Tensor | None = None
    rejected_logps: Tensor | None = None
    chosen_mean_logps: Tensor | None = None
    rejected_mean_logps: Tensor | None = None
    chosen_lengths: Tensor | None = None
    rejected_lengths: Tensor | None = None
    ref_chosen_logps: Tensor | None = None
    ref_rejected_logps: Tensor | None = None
    ref_chosen_mean_logps: Tensor | None = None
    ref_rejected_mean_logps: Tensor | None = None
    progress: Tensor | None = None
    chosen_rewards: Tensor | None = None
    rejected_rewards: Tensor | None = None
    preference_probs: Tensor | None = None
    chosen_step_logps: Tensor | None = None
    rejected_step_logps: Tensor | None = None
    chosen_mask: Tensor | None = None
    rejected_mask: Tensor | None = None
    ref_chosen_step_logps: Tensor | None = None
    ref_rejected_step_logps: Tensor | None = None
    chosen_step_kl: Tensor | None = None
    rejected_step_kl: Tensor | None = None
    chosen_step_weights: Tensor | None = None
    rejected_step_weights: Tensor | None = None
    chosen_log_collision: Tensor | None = None
    rejected_log_collision: Tensor | None = None
    gold_mean_logps: Tensor | None = None
    list_logps: Tensor | None = None
    ref_list_logps: Tensor | None = None
    own_logps: Tensor | None = None
    ref_own_logps: Tensor | None = None
    calibration_logps: Tensor | None = None
    logps: Tensor | None = None
    ref_logps: Tensor | None = None
    desirable: Tensor | None = None
    mismatched_logps: Tensor | None = None
    ref_mismatched_logps: Tensor | None = None


# Of responses that are drawn while a policy learns, n for every pair.
DRAWN = ("own_logps", "ref_own_logps", "calibration_logps")


def is_unpaired(inputs: Iterable[str]) -> bool:
    """Whether a loss with these inputs is one of single responses.

    >>> is_unpaired({"logps", "ref_logps", "desirable"}), is_unpaired({"chosen_logps"})
    (True, False)
    """
    return not {"logps", "desirable", "mismatched_logps"}.isdisjoint(inputs)


def ranks_read(inputs: Iterable[str], responses: int, *, gold: bool = False) -> list[int]:
    """Which responses of a ranked list a loss reads, by their ranks, 0 the best.

    The chosen one comes first, then the rejected one, then the others. The pair of a list is its
    best and its worst response. A loss with a golden response takes the best for that, and the
    second best for the chosen one, as the authors of TPO made their data (arXiv 2405.16681).

    Args:
        inputs: of the loss.
        responses: n ≥ 2.
        gold: whether the list is a golden response and a pair, which then is the pair for all.

    >>> ranks_read({"chosen_logps", "rejected_logps"}, 4), ranks_read({"list_logps"}, 4)
    ([0, 3], [0, 3, 1, 2])
    >>> ranks_read({"chosen_logps", "rejected_logps", "gold_mean_logps"}, 4)
    [1, 3, 0]
    """
    wants_gold = any("gold_" in name for name in inputs) and responses > 2
    first = 1 if gold or wants_gold else 0
    found = [first, responses - 1, *([0] if wants_gold else [])]
    if any("list_" in name for name in inputs) and not gold:
        found += [rank for rank in range(responses) if rank not in found]
    return found


def take(pair: PairLogps, name: str, objective: str) -> Tensor:
    """A field of a pair.

    Raises:
        ValueError: the pair does not have it; the message names the objective that needs it.
    """
    value = getattr(pair, name, None)
    if value is None:
        raise ValueError(f"{objective} needs {name}, which this pair does not have")
    return value


def made_up(
    names: Iterable[str], pairs: int, steps: int, *, responses: int = 2
) -> dict[str, Tensor]:
    """Values of some fields of :class:`PairLogps`, to try a loss with before any compute.

    Args:
        names: the fields.
        pairs: the batch.
        steps: of every response.
        responses: of every list.
    """
    values = {}
    for name in names:
        by_step = "_step_" in name or name.endswith("_mask")
        value = torch.ones((pairs, steps) if by_step else pairs)
        if "list_" in name or name in DRAWN:
            value = torch.ones(pairs, responses)
        if name == "desirable":
            value = torch.arange(pairs) % 2 == 0
        if name.endswith("_mask"):
            value = value.bool()
        elif name.endswith("_lengths"):
            value = value.long() * steps
        elif name.endswith("logps"):
            value = -value
        values[name] = torch.tensor(0.5) if name == "progress" else value
    return values
