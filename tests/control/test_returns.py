"""evaluate_policies against a plain loop over Gymnasium's Ant-v5."""

import functools

import gymnasium
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from torchmpo.control.components import EpisodeComponents
from torchmpo.control.policy import GaussianPolicy, stack_policies
from torchmpo.control.returns import evaluate_policies
from torchmpo.runs.seeding import generator
from torchmpo_envs import Ant

STEPS = 30
HEALTHY = (0.45, 0.9)  # narrow, so that some episodes end early


@functools.cache
def population(members=5, *, std_kind="fixed"):
    """A float64 policy and different parameters for each member."""
    torch.manual_seed(0)
    policy = GaussianPolicy(27, 8, (16,), std_kind=std_kind, std=0.3).double()
    params = stack_policies(policy.trainable(), members)
    for value in params.values():
        value += 0.2 * torch.randn_like(value)
    return policy, params


def make_env(num_envs, **settings):
    env = Ant(num_envs, max_steps=STEPS, dtype=torch.float64, seed=0, **settings)
    env.healthy_range = HEALTHY
    return env


def member(params, i):
    return {name: value[i : i + 1] for name, value in params.items()}


def gymnasium_return(policy, params, i, start, noise):
    """One episode in the plainest way: a fresh policy, one simulation, one step at a time.

    Its return, velocity, control and health; its length.
    """
    alone = GaussianPolicy(27, 8, (16,), std_kind=policy.std_kind).double()
    alone.load_state_dict(policy.state_dict() | {name: value[i] for name, value in params.items()})
    settings = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0}
    env = gymnasium.make("Ant-v5", STEPS, healthy_z_range=HEALTHY, **settings).unwrapped
    env.reset()
    env.set_state(start[:15].numpy(), start[15:].numpy())
    obs, total = np.concatenate([start[2:15], start[15:]]), np.zeros(4)
    for t in range(STEPS):
        with torch.no_grad():
            action = alone(torch.from_numpy(obs)) + noise[t] * alone.log_std.exp()
        obs, reward, terminated, _, info = env.step(action.clamp(-1, 1).numpy())
        terms = (info[f"reward_{name}"] for name in ("forward", "ctrl", "survive"))
        total += reward, *terms
        if terminated:
            break
    return total, t + 1


@pytest.mark.parametrize("sample", [False, True])
def test_returns_equal_a_plain_loop_over_gymnasium(sample):
    policy, params = population(std_kind="learned")
    episodes, seed = 3, 11
    env = make_env(6, integrator="RK4")
    parts = EpisodeComponents()
    args = (env, policy, params, episodes, seed)
    returns = evaluate_policies(*args, sample=sample, on_reward=parts.add)
    assert returns.shape == (5, episodes)
    assert returns.dtype == torch.float32
    starts = env.start_states(episodes, generator(seed, "start states"))
    draw = generator(seed, "action noise")
    noise = torch.stack([torch.randn(episodes, 8, generator=draw) for _ in range(STEPS)]) * sample
    lengths = set()
    for i, components in enumerate(parts.means(returns)):
        mean = np.zeros(4)
        for episode in range(episodes):
            start, own = starts[episode], noise[:, episode]
            expected, length = gymnasium_return(policy, params, i, start, own)
            lengths.add(length)
            mean += expected / episodes
            assert returns[i, episode].item() == pytest.approx(expected[0], abs=1e-4)
        assert list(components) == ["velocity", "health", "control"]
        told = [components[name] for name in ("velocity", "control", "health")]
        assert told == pytest.approx(mean[1:], abs=1e-4)
    assert min(lengths) < STEPS, "the test saw no episode end early"
    assert max(lengths) == STEPS, "the test saw no episode of full length"


@pytest.mark.parametrize("sample", [False, True])
def test_chunks_do_not_matter(sample):
    policy, params = population()
    results = [
        evaluate_policies(make_env(num_envs), policy, params, 2, 3, sample=sample)
        for num_envs in (2, 4, 10, 16)  # one member at once … more room than members
    ]
    for result in results[1:]:
        assert_close(result, results[0], rtol=0, atol=1e-5)


def test_a_used_environment_gives_the_same_returns():
    policy, params = population()
    env = make_env(4)
    first = evaluate_policies(env, policy, params, 2, 3)
    evaluate_policies(env, policy, params, 2, 4)
    assert_close(evaluate_policies(env, policy, params, 2, 3), first, rtol=0, atol=0)


@pytest.mark.parametrize("auto_reset", [False, True])
def test_the_first_steps_are_those_of_shorter_episodes(auto_reset):
    policy, params = population()
    how = {"auto_reset": auto_reset}
    shorter = Ant(10, max_steps=9, dtype=torch.float64, seed=0)
    shorter.healthy_range = HEALTHY
    expected = evaluate_policies(shorter, policy, params, 2, 3, **how)
    found = evaluate_policies(make_env(10), policy, params, 2, 3, steps=9, **how)
    assert_close(found, expected, rtol=0, atol=0)
    whole = evaluate_policies(make_env(10), policy, params, 2, 3, **how)
    assert not torch.equal(whole, found)
    beyond = evaluate_policies(make_env(10), policy, params, 2, 3, steps=STEPS + 5, **how)
    assert_close(beyond, whole, rtol=0, atol=0)
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        evaluate_policies(make_env(10), policy, params, 2, 3, steps=0, **how)


@pytest.mark.parametrize("sample", [False, True])
def test_members_share_start_states_and_noise(sample):
    policy, params = population()
    same = stack_policies({name: value[1] for name, value in params.items()}, 3)
    returns = evaluate_policies(make_env(4), policy, same, 2, 3, sample=sample)
    assert_close(returns, returns[:1].expand(3, 2), rtol=0, atol=0)
    assert returns[0, 0] != returns[0, 1]
    other = evaluate_policies(make_env(4), policy, same, 2, 4, sample=sample)
    assert not torch.equal(returns, other)


@pytest.mark.parametrize("sample", [False, True])
def test_members_with_seeds_of_their_own_are_as_evaluated_alone(sample):
    policy, params = population()
    seeds = [3, 4, 3, 5, 6]
    returns = evaluate_policies(make_env(4), policy, params, 2, seeds, sample=sample)
    for i, seed in enumerate(seeds):
        alone = evaluate_policies(make_env(2), policy, member(params, i), 2, seed, sample=sample)
        assert_close(returns[i : i + 1], alone, rtol=0, atol=1e-5)


def test_sampled_actions_differ_from_the_mean():
    policy, params = population()
    mean = evaluate_policies(make_env(10), policy, params, 2, 3)
    sampled = evaluate_policies(make_env(10), policy, params, 2, 3, sample=True)
    assert (mean != sampled).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("sample", [False, True])
def test_a_diverged_member_is_nan_and_disturbs_nobody(bad, sample):
    policy, params = population(std_kind="learned")
    healthy = evaluate_policies(make_env(4), policy, params, 2, 3, sample=sample)
    broken = {name: value.clone() for name, value in params.items()}
    broken["layers.0.bias"][1, 3] = bad
    broken["log_std"][4, 0] = bad
    parts = EpisodeComponents()
    args = (make_env(4), policy, broken, 2, 3)
    returns = evaluate_policies(*args, sample=sample, on_reward=parts.add)
    assert [found is None for found in parts.means(returns)] == [False, True, False, False, True]
    assert returns.isnan().all(1).tolist() == [False, True, False, False, True]
    rest = [0, 2, 3]
    assert_close(returns[rest], healthy[rest], rtol=0, atol=0)


def test_finite_parameters_with_infinite_actions_are_nan():
    torch.manual_seed(0)
    policy = GaussianPolicy(27, 8, (16,), mean="linear").double()
    params = stack_policies(policy.trainable(), 2)
    params["layers.1.weight"][0] = 1e308
    returns = evaluate_policies(make_env(4), policy, params, 2, 3)
    assert returns.isnan().all(1).tolist() == [True, False]


@pytest.mark.parametrize("episodes", [3, 5, 0, -1])
def test_episodes_must_divide_the_environments(episodes):
    policy, params = population()
    message = f"env.num_envs must be a multiple of episodes; got 4 and {episodes}"
    with pytest.raises(ValueError, match=message):
        evaluate_policies(make_env(4), policy, params, episodes, 0)
