"""Episodes that are started again within one budget of steps, against plain loops."""

from dataclasses import replace

import gymnasium
import pytest
import torch
from worlds import move, start

from torchmpo.control.components import EpisodeComponents
from torchmpo.control.environments import make_environment
from torchmpo.control.policy import GaussianPolicy, stack_policies
from torchmpo.control.pools import PoolConfig, pool_of
from torchmpo.control.preferences import preference_data
from torchmpo.control.returns import evaluate_policies
from torchmpo.control.testbed import configure
from torchmpo.diagnose.settings import DiagnoseConfig
from torchmpo.evolve.settings import PRESETS, EvolveConfig
from torchmpo.evolve.setup import Setup
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import generator
from torchmpo_envs import Hopper

STEPS, EPISODES, SEED = 60, 3, 5


def population(observations, actions, members=3):
    torch.manual_seed(1)
    policy = GaussianPolicy(observations, actions, (8,), std=0.3).double()
    params = stack_policies(policy.trainable(), members)
    for value in params.values():
        value += 0.7 * torch.randn_like(value)
    return policy, params


def alone(policy, params, i):
    own = GaussianPolicy(policy.observation_size, policy.action_size, (8,), std=0.3).double()
    own.load_state_dict(policy.state_dict() | {name: value[i] for name, value in params.items()})
    return own


def starts_of(env, episode):
    """Where one episode begins, and goes on after each of its ends."""
    yield env.start_states(EPISODES, generator(SEED, "start states"))[episode]
    for end in range(STEPS):
        yield env.start_states(EPISODES, generator(SEED, "restarts", end))[episode]


@pytest.mark.parametrize("sample", [False, True])
def test_the_return_is_the_sum_of_a_plain_loop_with_resets(sample):
    policy, params = population(11, 3)
    env = Hopper(6, max_steps=STEPS, integrator="RK4", dtype=torch.float64, num_threads=1)
    parts, ends = EpisodeComponents(), []
    how = {"sample": sample, "auto_reset": True, "on_reward": parts.add}
    returns = evaluate_policies(env, policy, params, EPISODES, SEED, **how)
    draw = generator(SEED, "action noise")
    noise = torch.stack([torch.randn(EPISODES, 3, generator=draw) for _ in range(STEPS)]) * sample
    plain = gymnasium.make("Hopper-v5").unwrapped
    for i in range(3):
        agent, speed = alone(policy, params, i), 0.0
        for episode in range(EPISODES):
            starts, total, over = starts_of(env, episode), 0.0, True
            ends.append(0)
            for t in range(STEPS):
                if over:
                    ends[-1] += t > 0
                    state = next(starts).numpy()
                    plain.reset()
                    plain.set_state(state[:6], state[6:])
                    obs = plain._get_obs()
                with torch.no_grad():
                    mean = agent(torch.from_numpy(obs))
                action = mean + noise[t, episode] * agent.log_std.exp()
                obs, reward, over, _, info = plain.step(action.clamp(-1, 1).numpy())
                total, speed = total + reward, speed + info["reward_forward"]
            assert returns[i, episode].item() == pytest.approx(total, abs=1e-3)
        assert parts.means(returns)[i]["velocity"] == pytest.approx(speed / EPISODES, abs=1e-3)
    assert max(ends) > 1, "the test saw nobody start twice again"
    once = evaluate_policies(env, policy, params, EPISODES, SEED, sample=sample)
    assert (once < returns).any()


def test_neither_chunks_nor_what_others_do_matter():
    policy, params = population(11, 3)
    for_all = []
    for at_once in (1, 2, 3):
        env = Hopper(at_once * EPISODES, max_steps=STEPS, dtype=torch.float64, num_threads=1)
        args = (env, policy, params, EPISODES, SEED)
        for_all.append(evaluate_policies(*args, auto_reset=True))
    broken = {name: value.clone() for name, value in params.items()}
    broken["layers.0.bias"][1] = torch.nan
    found = evaluate_policies(env, policy, broken, EPISODES, SEED, auto_reset=True)
    assert found.isnan().all(1).tolist() == [False, True, False]
    for other in (for_all[1], for_all[2], torch.where(found.isnan(), for_all[0], found)):
        torch.testing.assert_close(other, for_all[0], rtol=0, atol=1e-5)


def test_simulations_in_processes_begin_again_one_by_one():
    policy, params = population(2, 2, members=1)
    env = make_environment("worlds:Line", EPISODES, max_steps=STEPS, num_threads=2)
    returns = evaluate_policies(env, policy, params, EPISODES, SEED, auto_reset=True)
    agent, ends = alone(policy, params, 0), 0
    for episode in range(EPISODES):
        starts, total, over = starts_of(env, episode), 0.0, True
        for t in range(STEPS):
            if over:
                ends += t > 0
                place = start(int(next(starts)))
            with torch.no_grad():
                unit = agent(torch.from_numpy(place).double()).clamp(-1, 1).numpy()
            action = [-2 + 2 * (unit[0] + 1), (unit[1] + 1) / 2]
            place, reward, over = move(place, torch.tensor(action, dtype=torch.float32).numpy())
            total += reward
        assert returns[0, episode].item() == pytest.approx(total, abs=1e-3)
    assert ends > EPISODES


def test_trajectories_go_on_through_the_budget(tmp_path):
    """A recorded trajectory replays in one robot that is set up again where it fell."""
    config = PoolConfig(task="hopper", pairs=3, max_steps=80, seed=SEED, behaviour_std=0.9)
    again = replace(config, auto_reset=True)
    assert again.key() != config.key()
    pool = pool_of(again, cache_dir=tmp_path, progress=False)
    assert (pool["lengths"] == 80).all()
    once = pool_of(config, cache_dir=tmp_path, progress=False)
    assert (once["lengths"] < 80).any()
    env = Hopper(1, max_steps=80, num_threads=1)
    for row in range(9):
        ends, total = 0, 0.0
        first = env.start_states(3, generator(SEED, "start states"))[row % 3]
        state = env.reset(start_state=first[None])
        for t in range(80):
            assert torch.equal(state["observation"][0], pool["observation"][row, t])
            after = env.step(state.set("action", pool["action"][row, t][None]))["next"]
            total, state = total + after["reward"].item(), after
            if after["done"]:
                start = env.start_states(3, generator(SEED, "restarts", ends))[row % 3]
                state, ends = env.reset(start_state=start[None]), ends + 1
        assert pool["returns"][row].item() == pytest.approx(total, abs=1e-3)
        short = int(once["lengths"][row])  # and before the first end it is the same trajectory
        assert torch.equal(once["action"][row, :short], pool["action"][row, :short])


# --- settings


def test_null_is_what_the_paper_did():
    for task, auto_reset in (("hopper", True), ("ant", False), ("tla", False)):
        config = DiagnoseConfig(task=task, auto_reset=None)
        assert configure(config, "base", 1).pool.auto_reset is auto_reset
        assert configure(replace(config, auto_reset=False), "base", 1).pool.auto_reset is False
    config = EvolveConfig(**PRESETS["smoke"], task="hopper", auto_reset=True)
    assert all(bed.pool.auto_reset for bed in Setup.of(config).testbeds)


def test_what_cannot_begin_again_is_told_in_a_line(tmp_path):
    policy = GaussianPolicy(2, 2, (4,))
    from torchmpo import save_policy

    save_policy(policy, tmp_path / "agent.safetensors")
    agent = str(tmp_path / "agent.safetensors")
    own = {"task": "worlds:vector", "original": agent, "target": agent}
    with pytest.raises(UserError, match="auto_reset: task 'worlds:vector' makes its simulations"):
        configure(DiagnoseConfig(auto_reset=True, **own), "base", 1)
    pool = PoolConfig(task="hopper", pairs=2, auto_reset=True)
    with pytest.raises(UserError, match="leave out --auto_reset"):
        preference_data(pool, "objectives:0.5", cache_dir=tmp_path)
