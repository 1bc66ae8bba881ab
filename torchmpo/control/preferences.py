"""Preference data of any quality: pairs of trajectories with a known true return.

A *dataset* is a choice of pairs from a pool (:mod:`torchmpo.control.pools`): which rows are
``chosen``, which ``rejected``. :mod:`torchmpo.control.kinds` says which kinds there are, and how
they are written; all kinds over one pool share its files.

Source of ``base``, ``noisy``, ``mixed`` and ``bad_judge``: arXiv 2411.06568, section 4.1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchmpo.control.annotators import bradley_terry
from torchmpo.control.kinds import Kind, parse_kind
from torchmpo.control.pair_files import array, checked_arrays, padded, write_pair_file
from torchmpo.control.pools import PoolConfig, pool_of
from torchmpo.runs.errors import UserError

__all__ = [
    "PreferenceDataset",
    "bradley_terry",
    "choose_pairs",
    "parse_kind",
    "preference_data",
]


@dataclass(frozen=True)
class PreferenceDataset:
    """Pairs or ranked lists of trajectories, as rows of a pool.

    Args:
        observation: ``[trajectories, time, observation_size]``, float32, zero after the end.
        action: ``[trajectories, time, action_size]``, float32, as drawn: not clipped to the
            actuators' range, so that the Gaussian log-density of the recorded action is exact.
        lengths: ``[trajectories]``, int64, steps that count.
        returns: ``[trajectories]``, float32, undiscounted true returns.
        chosen, rejected: ``[pairs]``, int64, rows of the pool.
        preference_probs: ``[pairs]``, float32 in [0, 1], how likely the chosen trajectory is the
            better one, by votes; ``None`` where nobody voted, and losses that ask are told 1.
        rewards: ``[trajectories]``, float32, what losses are given as rewards; ``None`` for the
            returns.
        lists: ``[pairs, n]``, int64, rows of the pool, best first, the chosen one first and the
            rejected one last; ``None`` where there are pairs only.
        begins: ``[trajectories]``, int64, steps before those that losses read, which the
            trajectories of a pair share; ``None`` for none.
    """

    observation: Tensor
    action: Tensor
    lengths: Tensor
    returns: Tensor
    chosen: Tensor
    rejected: Tensor
    preference_probs: Tensor | None = None
    rewards: Tensor | None = None
    lists: Tensor | None = None
    begins: Tensor | None = None

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def first(self) -> Tensor:
        """The first step of each trajectory that losses read, ``[trajectories]``, int64."""
        return torch.zeros_like(self.lengths) if self.begins is None else self.begins

    @property
    def counted(self) -> Tensor:
        """How many steps of each trajectory losses read, ``[trajectories]``, int64."""
        return self.lengths - self.first

    @property
    def simulated_steps(self) -> int:
        """Steps of the trajectories that are compared; what a pair or list shares, once for it."""
        ranked = self.ranked
        shared = self.first[ranked[:, 0]].sum()
        return int(self.counted[ranked.unique()].sum() + shared)

    @property
    def ranked(self) -> Tensor:
        """``lists``, or the pairs as lists of two, ``[pairs, n]``."""
        pairs = torch.stack([self.chosen, self.rejected], 1)
        return pairs if self.lists is None else self.lists

    def take(self, pairs: int) -> "PreferenceDataset":
        """The first ``pairs`` pairs.

        Raises:
            UserError: there are fewer.
        """
        if not 0 < pairs <= len(self):
            raise UserError(f"cannot take {pairs} pairs: the data has {len(self)}")
        probs = None if self.preference_probs is None else self.preference_probs[:pairs]
        lists = None if self.lists is None else self.lists[:pairs]
        chosen, rejected = self.chosen[:pairs], self.rejected[:pairs]
        return replace(self, chosen=chosen, rejected=rejected, preference_probs=probs, lists=lists)

    @staticmethod
    def joined(parts: Sequence["PreferenceDataset"]) -> "PreferenceDataset":
        """All pairs of several data sets, one after another, with the trajectories in them.

        What only some of them have is filled up as losses are told it: votes with 1, rewards with
        returns.

        Args:
            parts: of one robot, with lists of one length; their time limits may differ.
        """
        rows, ranked, first = [], [], 0
        for part in parts:
            own, places = torch.unique(part.ranked, return_inverse=True)
            rows.append(own)
            ranked.append(places + first)
            first += len(own)
        longest = max(part.action.shape[1] for part in parts)

        def of(values: Sequence[Tensor]) -> Tensor:
            taken = [value[own] for value, own in zip(values, rows, strict=True)]
            if taken[0].ndim > 1:
                taken = [pad(value, (0, 0, 0, longest - value.shape[1])) for value in taken]
            return torch.cat(taken)

        lists, probs, rewards, begins = torch.cat(ranked), None, None, None
        if any(part.preference_probs is not None for part in parts):
            told = [part.preference_probs for part in parts]
            ones = [torch.ones(len(part)) for part in parts]
            probs = torch.cat([y if x is None else x for x, y in zip(told, ones, strict=True)])
        if any(part.rewards is not None for part in parts):
            rewards = of([p.returns if p.rewards is None else p.rewards for p in parts])
        if any(part.begins is not None for part in parts):
            begins = of([part.first for part in parts])
        names = ("observation", "action", "lengths", "returns")
        return PreferenceDataset(
            **{name: of([getattr(part, name) for part in parts]) for name in names},
            chosen=lists[:, 0],
            rejected=lists[:, -1],
            preference_probs=probs,
            rewards=rewards,
            lists=None if parts[0].lists is None else lists,
            begins=begins,
        )

    @staticmethod
    def from_trajectories(
        trajectories: Sequence[Mapping[str, Any]],
        pairs: Sequence[Sequence[int]],
        preference_probs: Sequence[float] | None = None,
    ) -> "PreferenceDataset":
        """Pairs of one's own, from lists.

        Args:
            trajectories: each a mapping with ``observation [time, n]``, ``action [time, m]``, and
                either ``return``, a number, or ``rewards [time]``. Lists, NumPy arrays or tensors;
                lengths may differ.
            pairs: (chosen, rejected) as places in ``trajectories``; or ranked lists of them, all of
                one length, best first.
            preference_probs: how likely each chosen trajectory is the better one.

        Raises:
            UserError: shapes, lengths, types or numbers that are wrong; the line says which.
        """
        places = array(pairs, "pairs")
        if places.ndim != 2 or places.shape[1] < 2 or not len(places):
            raise UserError("pairs must be (chosen, rejected), at least one")
        arrays = {**padded(trajectories), "chosen": places[:, 0], "rejected": places[:, -1]}
        if places.shape[1] > 2:
            arrays["lists"] = places
        if preference_probs is not None:
            arrays["preference_probs"] = array(preference_probs, "preference_probs")
        return PreferenceDataset(**checked_arrays(arrays))

    def save(self, path: str | Path) -> None:
        """Write to a ``.npz`` or ``.safetensors`` file, which is a kind of data by its path.

        Raises:
            UserError: another suffix.
        """
        write_pair_file({f.name: getattr(self, f.name) for f in fields(self)}, path)


def preference_data(
    config: PoolConfig, kind: str, *, cache_dir: str | Path | None = None, progress: bool = True
) -> PreferenceDataset:
    """Preference pairs of one kind; their pool is built on first use and read from disk after.

    Args:
        config: what the pool follows from.
        kind: as in ``"base"``, ``"noisy:0.3"`` or ``"graded:0-0.4+votes:5"``.
        cache_dir: folder of the pools; by default ``$TORCHMPO_CACHE`` or ``~/.cache/torchmpo``.
        progress: show a progress bar while building.

    Raises:
        UserError: an unknown kind, a damaged store, or too little disk.
    """
    own = parse_kind(kind).pool(config)
    return choose_pairs(pool_of(own, cache_dir=cache_dir, progress=progress), config, kind)


def choose_pairs(
    pool: Mapping[str, Tensor], config: PoolConfig, kind: str | Kind
) -> PreferenceDataset:
    """Preference pairs of one kind among the trajectories of its pool, which are not copied.

    Raises:
        UserError: an unknown kind.
    """
    kind = parse_kind(kind) if isinstance(kind, str) else kind
    pairs = kind.pairs(pool, kind.pool(config))
    rows = {name: pool[name] for name in ("observation", "action", "lengths", "returns")}
    return PreferenceDataset(**rows, **pairs._asdict())
