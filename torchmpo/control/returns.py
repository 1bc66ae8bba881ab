"""Returns of a population of policies in the environment, undiscounted."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.func import functional_call, vmap

from torchmpo.control.policy import GaussianPolicy
from torchmpo.control.restarts import Restarts
from torchmpo.runs.seeding import generator

if TYPE_CHECKING:
    from torchmpo.control.environments import Environment

OnStep = Callable[[Sequence[int], int, Tensor, Tensor], None]
OnReward = Callable[[Sequence[int], Mapping[str, Tensor]], None]


@torch.no_grad()
def evaluate_policies(
    env: "Environment",
    policy: GaussianPolicy,
    params: dict[str, Tensor],
    episodes: int,
    seed: int | Sequence[int],
    *,
    sample: bool = False,
    auto_reset: bool = False,
    steps: int | None = None,
    on_step: OnStep | None = None,
    on_reward: OnReward | None = None,
) -> Tensor:
    """Return of each member in ``episodes`` episodes.

    Args:
        env: its ``num_envs`` must be a multiple of ``episodes``; ``num_envs / episodes`` members
            run at once.
        policy: the architecture and what members have in common.
        params: ``{name: [population, ...]}``.
        episodes: per member.
        seed: of the start states, and of the noise if ``sample``, which all members share; or one
            seed per member.
        sample: draw actions from the policy instead of taking its mean.
        auto_reset: start an episode that ends early again, from another start state that all
            members share, until ``env.max_steps`` steps are done in all; the return is the sum over
            them. Otherwise nothing is added after its end.
        steps: of each episode that count, the first ones (≥ 1); None for all.
        on_step: called before every step with its number, the members that run, what they see
            ``[members, episodes, observation_size]`` and whether their episodes go on ``[members,
            episodes]``.
        on_reward: called after every step with the members that run and the terms of their rewards
            by name, ``[members, episodes]``; none where the environment does not tell them.

    Returns:
        ``[population, episodes]``, float32. A member with a parameter that is not finite, or whose
        actions become so, has NaN and does not disturb the others.

    Raises:
        ValueError: ``env.num_envs`` is not a multiple of ``episodes``, or ``steps`` is below 1.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    if episodes < 1 or env.num_envs % episodes:
        raise ValueError(
            f"env.num_envs must be a multiple of episodes; got {env.num_envs} and {episodes}"
        )
    population = next(iter(params.values())).shape[0]
    at_once = env.num_envs // episodes
    returns = torch.empty(population, episodes)
    for first in range(0, population, at_once):
        # The last chunk is filled up with copies, so that every pass has the shape of the batch.
        members = torch.arange(first, first + at_once).clamp(max=population - 1)
        chunk = {name: value[members] for name, value in params.items()}
        own = seed if isinstance(seed, int) else [seed[i] for i in members.tolist()]
        count = min(at_once, population - first)
        running = range(first, first + count)
        watch = None if on_step is None else partial(on_step, running)
        told = None if on_reward is None else partial(on_reward, running)
        hooks = watch, told
        how = sample, auto_reset, min(steps or env.max_steps, env.max_steps)
        result = _run_chunk(env, policy, chunk, episodes, own, *how, *hooks)
        returns[first : first + count] = result[:count]
    return returns


def _run_chunk(
    env, policy, params, episodes, seed, sample, auto_reset, steps, watch, told
) -> Tensor:
    """One episode, or budget of steps, in every simulation: ``[members, episodes]``."""
    members = env.num_envs // episodes
    finite = torch.stack([v.flatten(1).isfinite().all(1) for v in params.values()]).all(0)
    act = vmap(lambda own, *given: functional_call(policy, own, given))
    seeds = [seed] if isinstance(seed, int) else seed

    def starts(*stream: str | int) -> Tensor:
        own = [env.start_states(episodes, generator(s, *stream)) for s in seeds]
        return torch.cat(own).repeat(members // len(seeds), 1)

    state = env.reset(TensorDict({"start_state": starts("start states")}, [env.num_envs]))
    begin_again = Restarts(env, partial(starts, "restarts"))
    draws = [generator(s, "action noise") for s in seeds]
    terms = getattr(env, "reward_terms", dict)  # the shipped robots have it
    total = torch.zeros(members, episodes)
    done = torch.zeros(members, episodes, dtype=torch.bool)
    for step in range(steps):
        obs = state["observation"].view(members, episodes, -1)
        if watch is not None:
            watch(step, obs, ~done)
        given = [obs]
        if sample:
            noise = [torch.randn(episodes, policy.action_size, generator=draw) for draw in draws]
            given.append(torch.stack(noise).expand(members, -1, -1))
        action = act(params, *given)
        finite &= action.flatten(1).isfinite().all(1)
        action = torch.where(finite[:, None, None], action, 0.0)
        state = env.step(state.set("action", action.flatten(0, 1)))["next"]
        total += state["reward"].view(members, episodes)
        if told is not None:
            told({name: value.view(members, episodes) for name, value in terms().items()})
        done = ~finite[:, None].expand(-1, episodes)
        if not auto_reset:
            done = done | state["done"].view(members, episodes)
        elif step + 1 < steps:
            state = begin_again(state)
        if done.all():
            break
    return torch.where(finite[:, None], total, torch.nan)
