"""Categorical policies: every motor draws one of a few actions, as a model draws a token."""

from typing import Any

import torch
from torch import Tensor, nn

from torchmpo.control.policy import GaussianPolicy
from torchmpo.control.settings import BINS


class CategoricalPolicy(GaussianPolicy):
    """π(a | s) = Π_i Cat(a_i; softmax of bins logits), the bins evenly spaced over [−1, 1].

        logit_{i,b} = −½((x_b − μ_i(s))/σ_i)² + r_{i,b}(s)

    x_b is the middle of a bin, μ and σ are those of a Gaussian policy, and r is a linear layer on
    the last hidden one, zero at first: a new policy is the discretised Gaussian. All of it is
    trained. Probabilities are at most 1, as the theory of preference losses and ORPO assume. A
    token is one motor at one time step.

    Args:
        bins: per motor (≥ 2).
        args, kwargs: of :class:`~torchmpo.control.policy.GaussianPolicy`.

    Raises:
        ValueError: ``bins``, or what a Gaussian policy raises.
    """

    middles: Tensor

    def __init__(self, *args: Any, bins: int = BINS, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if bins < 2:
            raise ValueError(f"bins must be at least 2; got {bins}")
        self.bins, self.tokens = bins, self.action_size
        self.residual = nn.Linear(
            (self.observation_size, *self.hidden)[-1], self.action_size * bins
        )
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)
        self.register_buffer("middles", torch.linspace(-1.0, 1.0, bins))

    @classmethod
    def discretised(cls, policy: GaussianPolicy, bins: int = BINS) -> "CategoricalPolicy":
        """A Gaussian policy on bins: the same μ, σ and statistics of observations."""
        own = cls(**policy.architecture(), bins=bins)
        own.load_state_dict(policy.state_dict(), strict=False)
        return own

    def logits_from_whitened(self, whitened: Tensor) -> Tensor:
        """``[..., action_size, bins]``."""
        features = self.features_from_whitened(whitened)
        away = self.middles - self.mean_from_features(features)[..., None]
        z = away * torch.exp(-self.log_std)[..., None]
        residual = self.residual(features).unflatten(-1, (self.action_size, self.bins))
        return residual - 0.5 * z.square()

    def mean_from_whitened(self, whitened: Tensor) -> Tensor:
        """The expected action, inside [−1, 1]."""
        return self.logits_from_whitened(whitened).softmax(-1) @ self.middles

    def bin_of(self, action: Tensor) -> Tensor:
        """The bin whose middle is nearest; beyond the range of the motors the outermost."""
        return ((action.clamp(-1.0, 1.0) + 1.0) * (0.5 * (self.bins - 1))).round().long()

    def token_logps_from_whitened(self, whitened: Tensor, action: Tensor) -> Tensor:
        """log-probability of each motor's bin, ``[..., time · action_size]``, ≤ 0, nats."""
        logits = self.logits_from_whitened(whitened)
        chosen = logits.gather(-1, self.bin_of(action)[..., None]).squeeze(-1)
        return (chosen - logits.logsumexp(-1)).flatten(-2)

    def step_logps_from_whitened(self, whitened: Tensor, action: Tensor) -> Tensor:
        """log π(action | obs) of each step, the sum over its tokens: ``[...]``, nats."""
        tokens = self.token_logps_from_whitened(whitened, action)
        return tokens.unflatten(-1, (-1, self.action_size)).sum(-1)

    def forward(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """The expected action, or with standard normal ``noise`` the middle of a sampled bin."""
        if noise is None:
            return self.mean_from_whitened(self.whiten(obs))
        below = self.logits_from_whitened(self.whiten(obs)).softmax(-1).cumsum(-1)
        drawn = (below < torch.special.ndtr(noise)[..., None]).sum(-1)
        return self.middles[drawn.clamp(max=self.bins - 1)]

    def kl_to(self, other: "CategoricalPolicy", obs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """KL(π ‖ other) at each observation, summed over motors: ``[...]``, nats."""
        own, theirs = (p.logits_from_whitened(p.whiten(obs)).log_softmax(-1) for p in (self, other))
        return (own.exp() * (own - theirs)).sum((-2, -1))

    def architecture(self) -> dict:
        """What ``CategoricalPolicy(**architecture)`` needs to build this policy again."""
        return super().architecture() | {"bins": self.bins}
