"""Preference data of any quality: pairs of trajectories with a known true return.

A *dataset* is a choice of pairs from a pool (:mod:`torchmpo.control.pools`): which rows are
``chosen``, which ``rejected``. All kinds of data over one pool share its files.

====================  ==========================================================================
``base``              original against target, judged by their returns
``noisy:p``           base with every label flipped with probability p
``mixed``             each trajectory's agent drawn at random: ¼ target–target, ½ mixed, ¼ original
``bad_judge:η``       base pairs, judged by Bradley–Terry at temperature η (units of return)
====================  ==========================================================================

Source: arXiv 2411.06568, section 4.1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from torchmpo.control.pools import ROLES, PoolConfig, pool_of
from torchmpo.runs.errors import UserError, nearest
from torchmpo.runs.seeding import generator


@dataclass(frozen=True)
class PreferenceDataset:
    """Pairs of trajectories, as rows of a pool.

    Args:
        observation: ``[trajectories, time, observation_size]``, float32, zero after the end.
        action: ``[trajectories, time, action_size]``, float32, as drawn: not clipped to the
            actuators' range, so that the Gaussian log-density of the recorded action is exact.
        lengths: ``[trajectories]``, int64, steps that count.
        returns: ``[trajectories]``, float32, undiscounted true returns.
        chosen, rejected: ``[pairs]``, int64, rows of the pool.
    """

    observation: Tensor
    action: Tensor
    lengths: Tensor
    returns: Tensor
    chosen: Tensor
    rejected: Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    def take(self, pairs: int) -> "PreferenceDataset":
        """The first ``pairs`` pairs.

        Raises:
            UserError: there are fewer.
        """
        if not 0 < pairs <= len(self):
            raise UserError(f"cannot take {pairs} pairs: the data has {len(self)}")
        return replace(self, chosen=self.chosen[:pairs], rejected=self.rejected[:pairs])


def bradley_terry(first: Tensor, second: Tensor, *, temperature: float, uniform: Tensor) -> Tensor:
    """Whether a Bradley–Terry judge prefers the first trajectory: bool ``[pairs]``.

    P(first chosen) = σ((R₁ − R₂)/η)

    Args:
        first, second: returns ``[pairs]``.
        temperature: η ≥ 0 in units of return; 0 is the judge that always picks the better one.
        uniform: ``[pairs]``, draws from [0, 1) that decide.

    Raises:
        UserError: η is negative or not a number.

    Source: arXiv 2411.06568, section 4.1.
    """
    if not temperature >= 0:
        raise UserError(f"the judge's temperature must not be negative; got {temperature}")
    if temperature == 0:
        return first >= second
    return uniform < torch.sigmoid((first - second) / temperature)


def preference_data(
    config: PoolConfig, kind: str, *, cache_dir: str | Path | None = None, progress: bool = True
) -> PreferenceDataset:
    """Preference pairs of one kind; their pool is built on first use and read from disk after.

    Args:
        config: what the pool follows from.
        kind: ``"base"``, ``"noisy:0.3"``, ``"mixed"`` or ``"bad_judge:1000"``.
        cache_dir: folder of the pools; by default ``$TORCHMPO_CACHE`` or ``~/.cache/torchmpo``.
        progress: show a progress bar while building.

    Raises:
        UserError: an unknown kind, a damaged store, or too little disk.
    """
    parse_kind(kind)
    return choose_pairs(pool_of(config, cache_dir=cache_dir, progress=progress), config, kind)


def choose_pairs(pool: dict[str, Tensor], config: PoolConfig, kind: str) -> PreferenceDataset:
    """Preference pairs of one kind among the trajectories of a pool, which are not copied.

    Raises:
        UserError: an unknown kind.
    """
    select = parse_kind(kind)
    chosen, rejected = select(pool["returns"].view(len(ROLES), -1), config.seed)
    return PreferenceDataset(**pool, chosen=chosen, rejected=rejected)


Select = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def parse_kind(kind: str) -> Select:
    """The function ``(returns [3, pairs], seed) → (chosen, rejected)`` that a kind stands for.

    Raises:
        UserError: an unknown kind, or its number missing, superfluous or out of range.
    """
    name, _, number = kind.partition(":")
    if name not in _KINDS:
        raise UserError(f"unknown data {kind!r}: {nearest(name, _KINDS)}")
    select, example = _KINDS[name]
    if example is None:
        if number:
            raise UserError(f"data {name!r} takes no number; got {kind!r}")
        return select
    try:
        value = float(number)
    except ValueError:
        raise UserError(f"data {name!r} needs a number, as in '{name}:{example}'") from None
    if not 0 <= value < math.inf or (name == "noisy" and value > 1):
        raise UserError(f"the number of {kind!r} is out of range, try '{name}:{example}'")
    return lambda returns, seed: select(returns, seed, value)


def _base(returns: Tensor, seed: int, temperature: float = 0.0) -> tuple[Tensor, Tensor]:
    pairs = returns.shape[1]
    return _judge(returns, torch.arange(pairs), torch.arange(pairs) + pairs, seed, temperature)


def _noisy(returns: Tensor, seed: int, flip_prob: float) -> tuple[Tensor, Tensor]:
    chosen, rejected = _base(returns, seed)
    # One uniform draw per pair decides at every flip_prob: the flips at 0.1 are among those at 0.2.
    flip = torch.rand(len(chosen), generator=generator(seed, "flips")) < flip_prob
    return torch.where(flip, rejected, chosen), torch.where(flip, chosen, rejected)


def _mixed(returns: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    # The second trajectory's agent was drawn by a coin when the pool was built.
    pairs = returns.shape[1]
    target = torch.rand(pairs, generator=generator(seed, "mixed")) < 0.5
    first = torch.arange(pairs) + pairs * target
    return _judge(returns, first, torch.arange(pairs) + 2 * pairs, seed, temperature=0.0)


def _judge(returns, first, second, seed, temperature) -> tuple[Tensor, Tensor]:
    flat = returns.flatten()
    uniform = torch.rand(len(first), generator=generator(seed, "judge"))
    prefers_first = bradley_terry(
        flat[first], flat[second], temperature=temperature, uniform=uniform
    )
    return torch.where(prefers_first, first, second), torch.where(prefers_first, second, first)


# name → (selection, example of its number)
_KINDS: dict[str, tuple[Callable, str | None]] = {
    "base": (_base, None),
    "noisy": (_noisy, "0.3"),
    "mixed": (_mixed, None),
    "bad_judge": (_base, "1000"),
}
