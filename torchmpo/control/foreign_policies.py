"""Policies of other libraries as a :class:`torchmpo.control.policy.GaussianPolicy`, number by
number.

What comes in is an object that its own library has made or loaded; nothing is read from disk here,
and no other library is imported. What comes out can be saved by
:func:`torchmpo.control.policy.save_policy`. Actions are in units of the range of the actuators, −1
to 1: the mean of a policy that acts in another range is rescaled, exactly.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchmpo.control.policy import GaussianPolicy

_NAMES: dict[type[nn.Module], str] = {
    nn.Tanh: "tanh",
    nn.ReLU: "relu",
    nn.ELU: "elu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
}
STD = 0.1  # of a policy that has none, or one that changes with the state


@torch.no_grad()
def from_sequential(
    net: nn.Sequential,
    *,
    std: float | Sequence[float] | Tensor = STD,
    observation_mean: Any = None,
    observation_std: Any = None,
    observation_clip: float | None = None,
    low: Any = -1.0,
    high: Any = 1.0,
) -> GaussianPolicy:
    """A plain MLP as a policy.

    Args:
        net: ``nn.Linear`` layers with one kind of activation between them, and perhaps
            ``nn.Tanh`` at the end. It gives the mean action.
        std: σ, one for all actions or one each, in units of ``net``'s actions.
        observation_mean, observation_std: ``[observation_size]``, what observations are whitened
            by before they go into ``net``; 0 and 1 by default.
        observation_clip: the limit on whitened observations, if there is one.
        low, high: the range of the actuators, a number or ``[action_size]``. A ``net`` that ends
            in tanh acts in −1 to 1, whatever the range.

    Raises:
        ValueError: ``net`` is of another shape, σ is not positive, or the range is none.
    """
    linear: list[Any] = list(net)[0::2]  # nn.Linear, all of them, as is checked below
    between = list(net)[1::2]
    squashed = 0 < len(linear) == len(between) and isinstance(between[-1], nn.Tanh)
    if squashed:
        between = between[:-1]
    if len(linear) != len(between) + 1 or not all(type(layer) is nn.Linear for layer in linear):
        raise ValueError(
            "the network must be Linear layers with an activation between them, and perhaps Tanh "
            f"at the end; got {', '.join(type(layer).__name__ for layer in net)}"
        )
    kinds = {type(layer) for layer in between} or {nn.Tanh}
    if len(kinds) > 1 or not kinds <= _NAMES.keys() or not all(map(_plain, between)):
        raise ValueError(
            "the activations must be of one kind, with its usual settings, among "
            f"{', '.join(kind.__name__ for kind in _NAMES)}; got {', '.join(map(str, between))}"
        )
    policy = GaussianPolicy(
        linear[0].in_features,
        linear[-1].out_features,
        [layer.out_features for layer in linear[:-1]],
        mean="tanh" if squashed else "linear",
        activation=_NAMES[kinds.pop()],
        observation_clip=observation_clip,
    )
    state = policy.state_dict()
    for index, layer in enumerate(linear):
        state[f"layers.{index}.weight"].copy_(layer.weight)
        state[f"layers.{index}.bias"].copy_(torch.zeros(()) if layer.bias is None else layer.bias)
    for own, given in (
        (policy.observation_mean, observation_mean),
        (policy.observation_std, observation_std),
    ):
        if given is not None:
            own.copy_(torch.as_tensor(given).expand_as(own))
    sigma = torch.as_tensor(std, dtype=torch.float32).expand(policy.action_size)
    if not bool((sigma > 0).all()):  # catches NaN too
        raise ValueError(f"std must be positive; got {sigma.tolist()}")
    policy.log_std.copy_(sigma.log())
    return policy if squashed else _rescaled(policy, low, high)


def from_stable_baselines3(
    model: Any, *, normalize: Any = None, std: float = STD
) -> GaussianPolicy:
    """The actor of a PPO, A2C, SAC, TD3 or DDPG model with an MLP policy.

    Args:
        model: as ``PPO("MlpPolicy", …)`` or ``PPO.load(…)`` give it. Loading unpickles, so load
            what you trust.
        normalize: the ``VecNormalize`` that it was trained in, whose observation statistics go into
            the policy; None if there was none. A saved model does not hold it, nor say whether
            there was one: ``VecNormalize.load`` reads the file that its own ``save`` wrote.
        std: σ in units of the actuators' range for SAC, TD3 and DDPG, which have no constant one.

    Raises:
        ValueError: another kind of policy, action or observation; or the model is in a
            ``VecNormalize`` of observations, and ``normalize`` is None.
    """
    policy, space = model.policy, model.action_space
    shapes = [getattr(s, "shape", None) or () for s in (model.observation_space, space)]
    if [len(shape) for shape in shapes] != [1, 1] or not hasattr(space, "low"):
        raise ValueError(
            "observations and actions must be vectors of real numbers; got "
            f"{model.observation_space} and {space}"
        )
    if normalize is None and getattr(_normalization(model), "norm_obs", False):
        raise ValueError(
            "the model's environment normalizes observations: give its statistics, "
            "normalize=model.get_vec_normalize_env()"
        )
    statistics = {} if normalize is None else _statistics(normalize)
    actor: Any = getattr(policy, "actor", None)
    if actor is None and hasattr(policy, "action_net"):  # PPO, A2C
        if getattr(policy, "use_sde", False) or not isinstance(policy.log_std, nn.Parameter):
            raise ValueError("a policy with state-dependent exploration has no constant σ")
        if getattr(policy, "squash_output", False):
            raise ValueError("a squashed policy of PPO or A2C is not supported")
        layers, sigma = [*policy.mlp_extractor.policy_net, policy.action_net], policy.log_std.exp()
        own: dict[str, Any] = {"std": sigma, "low": space.low, "high": space.high}
    elif actor is not None and hasattr(actor, "latent_pi"):  # SAC
        layers, own = [*actor.latent_pi, actor.mu, nn.Tanh()], {"std": std}
        if isinstance(actor.mu, nn.Sequential):
            raise ValueError("a policy with state-dependent exploration is not supported")
    elif isinstance(mu := getattr(actor, "mu", None), nn.Sequential):  # TD3, DDPG
        layers, own = list(mu), {"std": std}
    else:
        raise ValueError(
            f"{type(policy).__name__} is not an MLP policy of PPO, A2C, SAC, TD3 or DDPG"
        )
    extractor = policy.features_extractor if actor is None else actor.features_extractor
    if list(extractor.parameters()):
        raise ValueError(f"features made by {type(extractor).__name__} are not supported")
    return from_sequential(nn.Sequential(*layers), **own, **statistics)


def _normalization(model: Any) -> Any:
    """The ``VecNormalize`` that a model is in; None for none, or where nobody knows."""
    known = getattr(model, "get_vec_normalize_env", None)
    return None if known is None else known()


def _statistics(normalize: Any) -> dict[str, Any]:
    """What a ``VecNormalize`` does to observations."""
    if not normalize.norm_obs:
        return {}
    known = normalize.obs_rms
    if isinstance(known, dict):
        raise ValueError("observations must be vectors; the VecNormalize has a dictionary of them")
    return {
        "observation_mean": torch.as_tensor(known.mean),
        "observation_std": torch.as_tensor(known.var + normalize.epsilon).sqrt(),
        "observation_clip": float(normalize.clip_obs),
    }


def _plain(layer: nn.Module) -> bool:
    """Whether an activation has the settings that torch gives it."""
    return re.sub("(, )?inplace=True", "", str(layer)) == str(type(layer)())


def _rescaled(policy: GaussianPolicy, low: Any, high: Any) -> GaussianPolicy:
    """The same policy in units of the actuators' range; one that is not bounded stays as it is."""
    bounds = [
        torch.as_tensor(bound, dtype=torch.float32).expand(policy.action_size)
        for bound in (low, high)
    ]
    bounded = (bounds[1] - bounds[0]).isfinite()  # ± the largest float32 is no range either
    half = torch.where(bounded, (bounds[1] - bounds[0]) / 2, 1.0)
    middle = torch.where(bounded, (bounds[1] + bounds[0]) / 2, 0.0)
    if not bool((half > 0).all()):
        raise ValueError(f"low must be below high; got {bounds[0].tolist()}, {bounds[1].tolist()}")
    state, last = policy.state_dict(), len(policy.layers) - 1
    state[f"layers.{last}.weight"].div_(half[:, None])
    state[f"layers.{last}.bias"].sub_(middle).div_(half)
    policy.log_std.sub_(half.log())
    return policy
