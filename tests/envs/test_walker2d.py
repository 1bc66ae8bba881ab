"""The walker against Gymnasium's Walker2d-v5, step by step."""

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from torchrl.envs import check_env_specs

from torchmpo_envs import Walker2d


def test_specs():
    check_env_specs(Walker2d(3, max_steps=5, seed=0))


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_rk4_is_gymnasiums_walker_step_by_step(scale):
    count, ended, limit = 4, {"terminated": 0, "truncated": 0}, 40
    rivals = [gymnasium.make("Walker2d-v5", max_episode_steps=limit) for _ in range(count)]
    env = Walker2d(count, integrator="RK4", max_steps=limit, dtype=torch.float64, seed=0)
    obs = np.stack([rival.reset(seed=i)[0] for i, rival in enumerate(rivals)])

    def rival_states():
        both = [(r.unwrapped.data.qpos, r.unwrapped.data.qvel) for r in rivals]
        return torch.from_numpy(np.stack([np.concatenate(pair) for pair in both]))

    state = env.reset(TensorDict({"start_state": rival_states()}, [count]))
    assert_close(state["observation"], torch.from_numpy(obs), rtol=0, atol=1e-10)
    draw = torch.Generator().manual_seed(0)
    for _ in range(150):
        action = scale * (2 * torch.rand(count, 6, generator=draw, dtype=torch.float64) - 1)
        state = env.step(state.clone().set("action", action))["next"]
        answers = [rival.step(a.numpy()) for rival, a in zip(rivals, action)]
        assert_close(env.state(), rival_states(), rtol=0, atol=1e-10)
        for name, column in zip(("observation", "reward", "terminated", "truncated"), range(4)):
            expected = torch.tensor(np.stack([answer[column] for answer in answers]))
            assert_close(state[name].view_as(expected), expected, rtol=0, atol=1e-10)
        done = state["done"]
        for name in ended:
            ended[name] += int(state[name].sum())
        for i in done.flatten().nonzero().flatten().tolist():
            rivals[i].reset()
        if done.any():
            start = TensorDict({"start_state": rival_states(), "_reset": done}, [count])
            state = env.reset(start)
    assert ended["terminated" if scale == 1 else "truncated"] > 0


def test_start_states_are_gymnasiums():
    """Uniform on both sides of the rest pose, on positions and on velocities."""
    starts = Walker2d(1).start_states(4000, torch.Generator().manual_seed(0))
    spread = starts - starts.mean(0)
    assert_close(starts.mean(0)[:2], torch.tensor([0.0, 1.25]).double(), rtol=0, atol=3e-4)
    assert spread.abs().max() <= 5.3e-3
    assert_close(spread.std(0), torch.full((18,), 5e-3 / 3**0.5).double(), rtol=0.05, atol=0)
