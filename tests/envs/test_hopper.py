"""The hopper against Gymnasium's Hopper-v5, by hand, and in TorchRL's loops."""

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from torchrl.envs import check_env_specs

from torchmpo_envs import Hopper

REST = [0.0, 1.25, 0.0, 0.0, 0.0, 0.0] + [0.0] * 6


def starts(*states):
    return TensorDict({"start_state": torch.tensor(states, dtype=torch.float64)}, [len(states)])


def actions(steps, num_envs, *, scale=1.0):
    draw = torch.Generator().manual_seed(0)
    return scale * (2 * torch.rand(steps, num_envs, 3, generator=draw, dtype=torch.float64) - 1)


def changed(**entries):
    """The rest state with some of its numbers, given as ``q1=…`` or ``v0=…``, replaced."""
    state = list(REST)
    for name, value in entries.items():
        state[int(name[1]) + 6 * (name[0] == "v")] = value
    return state


def test_specs():
    check_env_specs(Hopper(3, max_steps=5, seed=0))


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_rk4_is_gymnasiums_hopper_step_by_step(scale):
    """Large actions topple the hopper, small ones let it stand until the time limit."""
    count, ended, limit = 4, {"terminated": 0, "truncated": 0}, 30
    rivals = [gymnasium.make("Hopper-v5", max_episode_steps=limit) for _ in range(count)]
    env = Hopper(count, integrator="RK4", max_steps=limit, dtype=torch.float64, seed=0)
    obs = np.stack([rival.reset(seed=i)[0] for i, rival in enumerate(rivals)])

    def rival_states():
        both = [(r.unwrapped.data.qpos, r.unwrapped.data.qvel) for r in rivals]
        return torch.from_numpy(np.stack([np.concatenate(pair) for pair in both]))

    state = env.reset(TensorDict({"start_state": rival_states()}, [count]))
    assert_close(state["observation"], torch.from_numpy(obs), rtol=0, atol=1e-10)
    for action in actions(600, count, scale=scale):
        state = env.step(state.clone().set("action", action))["next"]
        answers = [rival.step(a.numpy()) for rival, a in zip(rivals, action)]
        assert_close(env.state(), rival_states(), rtol=0, atol=1e-10)
        for name, column in zip(("observation", "reward", "terminated", "truncated"), range(4)):
            expected = torch.tensor(np.stack([answer[column] for answer in answers]))
            assert_close(state[name].view_as(expected), expected, rtol=0, atol=1e-10)
        done = state["done"]
        for name in ended:
            ended[name] += int(state[name].sum())
        if done.any():
            for index in done.flatten().nonzero().flatten().tolist():
                rivals[index].reset()
            again = {"_reset": done, "start_state": rival_states()}
            state = env.reset(state.clone().update(again))
    assert ended["terminated" if scale == 1.0 else "truncated"] > 50, ended


def test_start_states_are_distributed_as_gymnasiums():
    ours = Hopper(1).start_states(4000, torch.Generator().manual_seed(0))
    rival = gymnasium.make("Hopper-v5").unwrapped
    rival.reset(seed=0)
    theirs = []
    for _ in range(400):
        rival.reset()
        theirs.append(np.concatenate([rival.data.qpos, rival.data.qvel]))
    theirs = torch.from_numpy(np.stack(theirs))
    centre = torch.tensor(REST, dtype=torch.float64)
    levels = torch.tensor([0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99], dtype=torch.float64)
    for part in (slice(0, 6), slice(6, 12)):
        noise, rival_noise = ((s - centre)[:, part].flatten() for s in (ours, theirs))
        assert_close(noise.quantile(levels), rival_noise.quantile(levels), rtol=0, atol=5e-4)
        # Positions and velocities alike are uniform; a Gaussian would go beyond.
        assert 0.00499 < noise.abs().max() <= 0.005
    correlation = torch.corrcoef((ours - centre).T) - torch.eye(12)
    assert correlation.abs().max() < 0.08  # 5 standard errors


@pytest.mark.parametrize(
    ("state", "healthy"),
    [
        (REST, True),
        (changed(q1=0.70001), True),
        (changed(q1=0.7), False),
        (changed(q1=500.0), True),  # no upper bound on the height
        (changed(q0=-500.0), True),  # nor any on the way
        (changed(q2=0.1999), True),
        (changed(q2=0.2), False),
        (changed(q2=-0.2), False),
        (changed(v3=99.9), True),
        (changed(v3=100.0), False),
        (changed(v0=-100.0), False),
        (changed(q4=-100.0), False),
    ],
)
def test_healthy_is_what_gymnasium_says(state, healthy):
    env, rival = Hopper(1), gymnasium.make("Hopper-v5").unwrapped
    env.reset(starts(state))
    rival.set_state(np.array(state[:6]), np.array(state[6:]))
    assert env._healthy().item() is healthy
    assert bool(rival.is_healthy) is healthy


def test_observed_velocities_are_clipped_and_states_are_not():
    env = Hopper(1, dtype=torch.float64)
    state = env.reset(starts(changed(q0=7.0, q3=-0.5, v0=12.0, v1=-30.0, v2=9.5)))
    expected = torch.tensor([[1.25, 0.0, -0.5, 0.0, 0.0, 10.0, -10.0, 9.5, 0.0, 0.0, 0.0]])
    assert_close(state["observation"], expected.double(), rtol=0, atol=0)
    assert env.state()[0, 6:9].tolist() == [12.0, -30.0, 9.5]


def test_reward_by_hand():
    env = Hopper(2, dtype=torch.float64)
    # The second starts below the healthy height, so it is paid for nothing but its way.
    state = env.reset(starts(REST, changed(q1=0.5)))
    before = env.state()[:, 0]
    action = torch.tensor([[0.5, -1.0, 4.0], [0.0, 0.0, 0.0]])  # 4 is clipped to 1
    reward = env.step(state.set("action", action))["next", "reward"][:, 0]
    velocity = (env.state()[:, 0] - before) / 0.008
    paid = [1.0 - 1e-3 * (0.25 + 1.0 + 1.0), 0.0]
    expected = velocity + torch.tensor(paid, dtype=torch.float64)
    assert_close(reward, expected, rtol=0, atol=1e-12)
    assert env.dt == pytest.approx(0.008)


def test_a_hopper_that_stands_scores_one_a_step_and_a_fallen_one_stops():
    env = Hopper(2, max_steps=40, seed=0)
    state = env.reset(starts(REST, changed(q2=0.19, v2=3.0)))
    total = torch.zeros(2, 1)
    for _ in range(40):
        state = env.step(state.set("action", torch.zeros(2, 3)))["next"]
        total += state["reward"]
    assert state["terminated"].flatten().tolist() == [False, True]
    assert state["truncated"].flatten().tolist() == [True, False]
    assert 39.0 < total[0] < 41.0
    assert total[1] < 5.0
