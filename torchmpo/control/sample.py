"""A fixed part of the data on which likelihoods are watched."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from torchmpo.control.policy import GaussianPolicy, TokenLogps
from torchmpo.control.preferences import PreferenceDataset

SAMPLE_PAIRS, SAMPLE_STEPS = 128, 64  # what curves and margins are measured on


@dataclass(frozen=True)
class Sample:
    """A fixed part of the training data on which likelihoods are watched.

    Args:
        observation: ``[pairs, 2, time, observation_size]``, of chosen and rejected trajectories.
        action: ``[pairs, 2, time, action_size]``.
        pairs: ``[pairs]``, int64, which pairs of the data these are.
        lengths: ``[pairs, 2]``, steps of the whole trajectories that losses read.
        rewards: ``[pairs, 2]``, what losses are given as rewards.
        preference_probs: ``[pairs]``, what losses are told: 1 where nobody voted.
    """

    observation: Tensor
    action: Tensor
    pairs: Tensor
    lengths: Tensor
    rewards: Tensor
    preference_probs: Tensor

    @staticmethod
    def of(data: PreferenceDataset) -> "Sample":
        """Evenly spread pairs and, of each trajectory, evenly spread time steps."""
        pairs = torch.linspace(0, len(data) - 1, min(SAMPLE_PAIRS, len(data))).long().unique()
        rows = torch.stack([data.chosen[pairs], data.rejected[pairs]], 1)  # [pairs, 2]
        fraction = (torch.arange(SAMPLE_STEPS) + 0.5) / SAMPLE_STEPS
        lengths = data.counted[rows]
        time = data.first[rows][..., None] + (fraction * lengths[..., None]).long()
        at = rows[..., None], time
        rewards = data.returns if data.rewards is None else data.rewards
        probs = data.preference_probs
        probs = torch.ones(len(pairs)) if probs is None else probs[pairs]
        about = pairs, lengths, rewards[rows], probs
        return Sample(data.observation[at], data.action[at], *about)

    @torch.no_grad()
    def mean_logps(self, policy: GaussianPolicy, params: dict[str, Tensor]) -> Tensor:
        """Log-probability per token of each trajectory: ``[members, 2, pairs]``, nats."""

        def of_member(params: dict[str, Tensor]) -> Tensor:
            return functional_call(tokens, params, (whitened, self.action)).mean(-1)

        tokens, whitened = TokenLogps(policy), policy.whiten(self.observation)
        params = {f"policy.{name}": value for name, value in params.items()}
        return vmap(of_member, chunk_size=4)(params).transpose(1, 2)

    @torch.no_grad()
    def step_logps(self, policy: GaussianPolicy, params: dict[str, Tensor]) -> Tensor:
        """The same of each token, of one member: ``[2, pairs, time · tokens]``, nats.

        Args:
            params: ``{name: [...]}``, of that member alone.
        """
        tensors = {f"policy.{name}": value for name, value in params.items()}
        whitened = policy.whiten(self.observation)
        logps = functional_call(TokenLogps(policy), tensors, (whitened, self.action))
        return logps.transpose(0, 1)
