"""A search space with one coordinate more: the learning rate under which policies are trained."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmpo.control.grids import RATES
from torchmpo.evolve.spaces import SearchSpace
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import GAIN, MirrorObjective


class SearchedRate:
    """Another space, and a last coordinate θ: the learning rate is that of the start · exp(GAIN·θ).

    It stays between 3·10⁻⁵ and 3·10⁻³, where rates are looked for elsewhere, too, or at its start
    where that lies outside.

    Args:
        space: what the other coordinates mean.
    """

    def __init__(self, space: SearchSpace):
        self.space = space
        self.name, self.start_name = space.name, space.start_name
        self.dim = space.dim + 1
        self.start = torch.cat([space.start, space.start.new_zeros(1)])

    @property
    def objective(self) -> Objective | MirrorObjective:
        """That of the other space."""
        return self.space.objective

    def rates(self, vectors: Tensor, start: float) -> Tensor:
        """Learning rates ``[n]`` of vectors ``[n, dim]``, where the start's is ``start``."""
        rates = start * torch.exp(GAIN * vectors[:, -1])
        return rates.clamp(min(start, RATES.low), max(start, RATES.high))

    def parameters(self, vectors: Tensor) -> Any:
        """See :class:`~torchmpo.evolve.spaces.SearchSpace`."""
        return self.space.parameters(vectors[:, :-1])

    def at(self, vector: Tensor) -> Objective | MirrorObjective:
        """See :class:`~torchmpo.evolve.spaces.SearchSpace`; an objective has no learning rate."""
        return self.space.at(vector[:-1])

    def save(self, folder: str | Path, vector: Tensor, card: dict) -> None:
        """See :class:`~torchmpo.evolve.spaces.SearchSpace`."""
        self.space.save(folder, vector[:-1], card)
