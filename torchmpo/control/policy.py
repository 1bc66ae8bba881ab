"""Gaussian policies: a bounded mean from a small MLP, fixed observation statistics, one σ per
action.

Shapes: ``obs [..., observation_size]``, ``action [..., action_size]``, log-densities ``[...]``.
A population is a dictionary ``{name: [population, ...]}`` of stacked parameters, run with
``torch.func.functional_call`` under ``torch.func.vmap``.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional


def gaussian_step_logps(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of each step's action under a diagonal Gaussian.

    log N(a; μ, σ²) = Σ_i −½((a_i − μ_i)/σ_i)² − log σ_i − ½ log 2π

    Args:
        action: ``[..., action_size]``, as drawn, before any clipping to the actuators' range.
        mean: ``[..., action_size]``.
        log_std: broadcastable to ``mean``; the log of the standard deviation.

    Returns:
        ``[...]`` in nats. A density, so it may be positive when σ is small.
    """
    z = (action - mean) * torch.exp(-log_std)
    constant = 0.5 * math.log(2 * math.pi) * action.shape[-1]
    return -0.5 * z.square().sum(-1) - log_std.expand_as(mean).sum(-1) - constant


def gaussian_step_kl(
    ref_mean: Tensor, ref_log_std: Tensor, mean: Tensor, log_std: Tensor
) -> Tensor:
    """KL(ref ‖ policy) of diagonal Gaussians, ``[...]``, nats.

    Σ_i log(σ_i/σ'_i) + (σ'_i² + (μ'_i − μ_i)²)/(2σ_i²) − ½

    Args:
        ref_mean, mean: ``[..., action_size]``, μ' and μ.
        ref_log_std, log_std: broadcastable to them; the logs of σ' and σ.

    >>> zero, one = torch.zeros(1), torch.ones(1)
    >>> gaussian_step_kl(one, zero, zero, zero).item()
    0.5
    """
    z = (ref_mean - mean) * torch.exp(-log_std)
    spread = ref_log_std - log_std
    return (0.5 * (z.square() + torch.exp(2 * spread) - 1) - spread).sum(-1)


def gaussian_log_collision(log_std: Tensor) -> Tensor:
    """log ∫π², the log-density that an action drawn from the policy has, by one measure; a scalar.

    −Σ_i log(2√π·σ_i)

    Args:
        log_std: ``[action_size]``.

    >>> round(gaussian_log_collision(torch.zeros(1)).item(), 4)          # −log(2√π)
    -1.2655
    """
    return -(log_std + math.log(2 * math.sqrt(math.pi))).sum(-1)


ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": functional.relu,
    "elu": functional.elu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}
MEANS = ("tanh", "clip", "linear")
STDS = ("fixed", "learned")


class GaussianPolicy(nn.Module):
    """π(a | s) = N(a; μ(s), diag σ²), with μ an MLP on whitened observations.

    Args:
        observation_size, action_size: widths of an observation and of an action.
        hidden: widths of the hidden layers.
        mean: ``"tanh"`` and ``"clip"`` keep μ inside [−1, 1], the range of the actuators;
            ``"linear"`` leaves it free.
        std: σ, the same for all actions at first, in actuator units (> 0).
        std_kind: ``"fixed"`` keeps σ constant; ``"learned"`` makes log σ a parameter. At a fixed
            σ ≥ (2π)^(−1/2) ≈ 0.4 no density exceeds 1, so log-probabilities are bounded above by 0,
            as a language model's are.
        activation: of the hidden layers, one of ``ACTIVATIONS``.
        observation_clip: whitened observations are limited to ± this (> 0); ``None`` for no limit.

    Raises:
        ValueError: unknown ``mean``, ``std_kind`` or ``activation``, or a number that is not
            positive.
    """

    observation_mean: Tensor
    observation_std: Tensor
    tokens = 1  # per time step

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: Sequence[int] = (64, 64),
        *,
        mean: str = "tanh",
        std: float = 0.4,
        std_kind: str = "fixed",
        activation: str = "tanh",
        observation_clip: float | None = 10.0,
    ):
        super().__init__()
        if mean not in MEANS:
            raise ValueError(f"mean must be one of {', '.join(MEANS)}; got {mean!r}")
        if std_kind not in STDS:
            raise ValueError(f"std_kind must be one of {', '.join(STDS)}; got {std_kind!r}")
        if not std > 0:  # catches NaN too
            raise ValueError(f"std must be positive; got {std}")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}"
            )
        if observation_clip is not None and not observation_clip > 0:
            raise ValueError(f"observation_clip must be positive; got {observation_clip}")
        self.observation_size, self.action_size = observation_size, action_size
        self.hidden, self.mean_kind, self.std_kind = tuple(hidden), mean, std_kind
        self.activation, self.observation_clip = activation, observation_clip
        widths = (observation_size, *hidden, action_size)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths, widths[1:]))
        self.register_buffer("observation_mean", torch.zeros(observation_size))
        self.register_buffer("observation_std", torch.ones(observation_size))
        log_std = torch.full((action_size,), math.log(std))
        if std_kind == "learned":
            self.log_std = nn.Parameter(log_std)
        else:
            self.register_buffer("log_std", log_std)

    def whiten(self, obs: Tensor) -> Tensor:
        """(obs − mean)/std with the stored statistics, limited to ±``observation_clip``."""
        whitened = (obs - self.observation_mean) / self.observation_std
        limit = self.observation_clip
        return whitened if limit is None else whitened.clamp(-limit, limit)

    def features_from_whitened(self, whitened: Tensor) -> Tensor:
        """The last hidden layer: ``[..., hidden[-1]]``."""
        x, activation = whitened, ACTIVATIONS[self.activation]
        for layer in self.layers[:-1]:
            x = activation(layer(x))
        return x

    def mean_from_features(self, features: Tensor) -> Tensor:
        """μ, from the last hidden layer."""
        x = self.layers[-1](features)
        if self.mean_kind == "tanh":
            return torch.tanh(x)
        return x.clamp(-1.0, 1.0) if self.mean_kind == "clip" else x

    def mean_from_whitened(self, whitened: Tensor) -> Tensor:
        """μ for observations that went through :meth:`whiten` already."""
        return self.mean_from_features(self.features_from_whitened(whitened))

    def step_logps_from_whitened(self, whitened: Tensor, action: Tensor) -> Tensor:
        """log π(action | obs) of each step, for observations already whitened: ``[...]``, nats."""
        return gaussian_step_logps(action, self.mean_from_whitened(whitened), self.log_std)

    def token_logps_from_whitened(self, whitened: Tensor, action: Tensor) -> Tensor:
        """Log-probabilities of what a loss takes for tokens, ``[..., time · tokens]``, nats.

        Here a step is one token: its action is drawn as a whole.
        """
        return self.step_logps_from_whitened(whitened, action)

    def forward(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """μ(obs), or a sampled action if there is standard normal noise ``[..., action_size]``."""
        mean = self.mean_from_whitened(self.whiten(obs))
        return mean if noise is None else mean + torch.exp(self.log_std) * noise

    def step_logps(self, obs: Tensor, action: Tensor) -> Tensor:
        """log π(action | obs) of each step: ``[...]``, nats."""
        return self.step_logps_from_whitened(self.whiten(obs), action)

    def kl_to(self, other: "GaussianPolicy", obs: Tensor) -> Tensor:
        """KL(π ‖ other) at each observation, of one architecture: ``[...]``, nats."""
        return gaussian_step_kl(self(obs), self.log_std, other(obs), other.log_std)

    def trainable(self) -> dict[str, Tensor]:
        """The parameters by name, detached: what a population stacks."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def architecture(self) -> dict:
        """What ``GaussianPolicy(**architecture)`` needs to build this policy again."""
        return {
            "observation_size": self.observation_size,
            "action_size": self.action_size,
            "hidden": list(self.hidden),
            "mean": self.mean_kind,
            "std_kind": self.std_kind,
            "activation": self.activation,
            "observation_clip": self.observation_clip,
        }


class TokenLogps(nn.Module):
    """A policy whose forward gives token log-probabilities, for ``functional_call``.

    Its parameters are those of the policy with ``policy.`` before their names.
    """

    def __init__(self, policy: GaussianPolicy):
        super().__init__()
        self.policy = policy

    def forward(self, whitened: Tensor, action: Tensor) -> Tensor:
        return self.policy.token_logps_from_whitened(whitened, action)


def stack_policies(params: dict[str, Tensor], population: int) -> dict[str, Tensor]:
    """``population`` copies of one policy's parameters: ``{name: [population, ...]}``."""
    return {name: value.expand(population, *value.shape).clone() for name, value in params.items()}


def save_policy(policy: GaussianPolicy, path: str | Path) -> None:
    """Write weights, observation statistics and architecture to one safetensors file.

    The format is in ``docs/file_formats.md``; :mod:`torchmpo.control.foreign_policies` makes a
    policy of a network of another library.

    Raises:
        ValueError: the policy is no Gaussian one, which this format is for.
    """
    from safetensors.torch import save_file

    if "bins" in policy.architecture():
        raise ValueError(
            "a file of a policy holds a Gaussian one: of a categorical policy, keep its "
            "state_dict() and its number of bins"
        )
    tensors = {name: value.detach().contiguous() for name, value in policy.state_dict().items()}
    save_file(tensors, str(path), metadata={"gaussian_policy": json.dumps(policy.architecture())})


def load_policy(
    path: str | Path, *, std: float | None = None, std_kind: str | None = None
) -> GaussianPolicy:
    """Read a policy that :func:`save_policy` wrote, or anything else in that format.

    Args:
        path: the safetensors file; ``docs/file_formats.md`` says what is in it.
        std, std_kind: replace the stored σ, and whether it is trained (the mean stays as it is).

    Raises:
        ValueError: the file is missing, damaged, or not a policy.
    """
    from safetensors import SafetensorError, safe_open

    damage = OSError, SafetensorError, LookupError, TypeError, RuntimeError, ValueError
    if std is not None and not std > 0:
        raise ValueError(f"std must be positive; got {std}")
    if std_kind is not None and std_kind not in STDS:
        raise ValueError(f"std_kind must be one of {', '.join(STDS)}; got {std_kind!r}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        architecture = json.loads(metadata["gaussian_policy"])
        policy = GaussianPolicy(**architecture | ({"std_kind": std_kind} if std_kind else {}))
        policy.load_state_dict(tensors)
        for name, value in policy.state_dict().items():
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name} is not finite")
        if not bool((policy.observation_std > 0).all()):
            raise ValueError("observation_std must be positive")
    except damage as error:
        reason = " ".join(str(error).split())  # torch reports over several lines
        raise ValueError(f"{path} is not a readable policy file: {reason}") from error
    if std is not None:
        policy.log_std.data.fill_(math.log(std))
    return policy
