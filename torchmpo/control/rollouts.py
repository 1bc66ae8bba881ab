"""Who makes the trajectories of a pool, where it is not the two agents of the task themselves.

The target agent of a task was trained from the original one, and on the straight line between
their parameters, θ(α) = (1 − α)·θ_original + α·θ_target, the return changes smoothly. So there are
agents of any quality between the two.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from torchmpo.control.minari_pairs import minari_digest
from torchmpo.control.pair_files import MINARI
from torchmpo.control.policy import GaussianPolicy
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import generator


@dataclass(frozen=True)
class LineRollouts:
    """Trajectories of agents on the line between the original and the target agent.

    Args:
        low, high: each trajectory's α is uniform in [low, high].
        per_start: trajectories from every start state (≥ 2).
        levels: noise levels. The behaviour σ of a trajectory is multiplied by a whole number from
            1 to ``levels``; those of one start state differ (so ``levels`` ≥ ``per_start``), unless
            there is one level only.
    """

    low: float
    high: float
    per_start: int = 2
    levels: int = 1

    @property
    def between(self) -> bool:
        """Whether any agent but the two themselves acts."""
        return self.low != self.high or self.low not in (0.0, 1.0)

    def alphas(self, starts: int, seed: int) -> Tensor:
        """α of every trajectory, by start states within turns: ``[per_start · starts]``."""
        uniform = torch.rand(self.per_start * starts, generator=generator(seed, "alpha"))
        return self.low + (self.high - self.low) * uniform

    def noise_levels(self, starts: int, seed: int) -> Tensor:
        """Noise level of every trajectory, in the same order: ``[per_start · starts]``, int64."""
        if self.levels == 1:
            return torch.ones(self.per_start * starts, dtype=torch.int64)
        uniform = torch.rand(starts, self.levels, generator=generator(seed, "noise levels"))
        return 1 + uniform.argsort(1)[:, : self.per_start].T.flatten()


@dataclass(frozen=True)
class FileRows:
    """Trajectories from a file of the user's, or from a data set of Minari.

    Args:
        path: the file, or ``minari:ID``.
        digest: of its contents: another file is other data.
    """

    path: str
    digest: str

    @staticmethod
    def of(path: str) -> "FileRows":
        """What lies in a file.

        Raises:
            UserError: it cannot be read.
        """
        if path.startswith(MINARI):
            return FileRows(path, minari_digest(path))
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"data {path!r} cannot be read: {error.strerror}") from error
        return FileRows(path, hashlib.blake2b(content, digest_size=8).hexdigest())


def check_line(original: GaussianPolicy, target: GaussianPolicy) -> None:
    """Refuse two agents between which there is no line.

    Raises:
        UserError: they have different architectures.
    """
    # Not std_kind: on the line agents act by their means.
    first, second = (
        {name: value for name, value in agent.architecture().items() if name != "std_kind"}
        for agent in (original, target)
    )
    if differ := [f"{n} {first[n]} and {second[n]}" for n in first if first[n] != second[n]]:
        raise UserError(
            "the original and the target agent must have one architecture for trajectories of "
            f"agents between them; they have {', '.join(differ)}"
        )


def line_agents(
    original: GaussianPolicy, target: GaussianPolicy, alphas: Tensor
) -> Callable[[Tensor], Tensor]:
    """Mean actions of many agents at once, each at its own place on the line.

    Args:
        original, target: α = 0 and α = 1. Observation statistics lie on the line, too.
        alphas: ``[agents]``.

    Returns:
        ``obs [agents, observation_size] → mean action [agents, action_size]``, one row per agent.

    Raises:
        UserError: the two have different architectures, and there is an agent between them.
    """
    for end, agent in ((0.0, original), (1.0, target)):
        if bool((alphas == end).all()):  # the other agent may be of any kind
            original = target = agent
    check_line(original, target)
    ends = original.state_dict(), target.state_dict()
    params = {
        name: torch.lerp(first, ends[1][name], alphas.view(-1, *(1,) * first.ndim))
        for name, first in ends[0].items()
    }
    return partial(vmap(partial(functional_call, original)), params)
