"""MuJoCo Warp against ``mujoco.batch``; on a GPU too where there is one.

The first run on a machine takes a minute more, in which Warp compiles its kernels.
"""

import copy
import subprocess
import sys

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from torchrl.envs import check_env_specs

pytest.importorskip("mujoco_warp", reason="MuJoCo Warp is not installed: torchmpo[warp]")

import mujoco
import warp
from scipy.stats import ks_2samp

from torchmpo.control.policy import load_policy, stack_policies
from torchmpo.control.returns import evaluate_policies
from torchmpo_envs import Ant, Hopper, ThreeLeggedAnt, expert_path
from torchmpo_envs.physics import Threads
from torchmpo_envs.warp import Warp

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
on_each_device = pytest.mark.parametrize("device", DEVICES)


def reset(env, start):
    return env.reset(TensorDict({"start_state": start}, [env.num_envs], device=env.device))


def step(env, state, action):
    return env.step(state.clone().set("action", action.to(env.device)))["next"]


def actions(env, steps, *, scale=1.0):
    draw = torch.Generator().manual_seed(0)
    return scale * (2 * torch.rand(steps, env.num_envs, env.model.nu, generator=draw) - 1)


@on_each_device
@pytest.mark.parametrize("integrator", ["implicitfast", "RK4"])
def test_hoppers_follow_the_same_trajectories(device, integrator):
    """Most fall on the way, so contacts, terminations and standing still are all in it.

    Of 16, one may part a little: a contact that begins within a step is seen a substep late.
    """
    ours = Hopper(16, physics="warp", integrator=integrator, device=device)
    batch = Hopper(16, integrator=integrator)
    start = batch.start_states(16, torch.Generator().manual_seed(0))
    state, expected = reset(ours, start), reset(batch, start)
    for action in actions(batch, 50, scale=0.5):
        state, expected = step(ours, state, action), step(batch, expected, action)
        pairs = [(ours.state(), batch.state())]
        pairs += [(state[name], expected[name]) for name in ("observation", "reward")]
        for one, other in pairs:
            differences = (one.cpu() - other).abs().amax(-1).sort().values
            assert differences[-2] < 2e-4
            assert differences[-1] < 0.05
        for name in ("done", "terminated", "truncated"):
            assert torch.equal(state[name].cpu(), expected[name])
    assert 4 < expected["done"].sum() < 16


@on_each_device
@pytest.mark.parametrize("integrator", ["implicitfast", "RK4"])
def test_ants_take_the_same_steps_where_friction_is_the_same_in_all_directions(device, integrator):
    """An ant's trajectory is chaotic, so each of 50 steps starts from the same state in both.

    Warp aligns the friction pyramid of a steep capsule differently; an elliptic cone has no
    direction to align. A contact that begins or ends within a step may be seen a substep late.
    """
    env = Ant(32)
    env.model.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    env.model.opt.integrator = getattr(mujoco.mjtIntegrator, f"mjINT_{integrator.upper()}")
    ours, batch = Warp(env.model, 32, device), Threads(env.model, 32, 1)
    everyone, differences = torch.ones(32, dtype=torch.bool), []
    batch.set_state(env.start_states(32, torch.Generator().manual_seed(0)), everyone)
    for action in actions(env, 50, scale=0.3):
        state = torch.cat([batch.qpos, batch.qvel], -1)
        ours.set_state(state.to(device), everyone.to(device))
        for physics in (ours, batch):
            physics.step(action.to(physics.qpos), None, env.frame_skip)
        for name in ("qpos", "qvel", "xpos"):
            pair = getattr(ours, name).cpu(), getattr(batch, name)
            differences.append((pair[0] - pair[1]).abs().flatten(1).amax(-1))
    assert batch.qpos[:, 2].min() < 0.7  # they have landed
    assert torch.cat(differences).quantile(0.99) < 2e-4


@on_each_device
def test_hoppers_returns_are_the_same_episode_by_episode(device):
    returns = []
    for physics in ({"physics": "warp", "device": device}, {}):
        env = Hopper(64, **physics)
        start = env.start_states(64, torch.Generator().manual_seed(1))
        state, total = reset(env, start), torch.zeros(64)
        for action in actions(env, 60, scale=0.7):
            state = step(env, state, action)
            total += state["reward"].squeeze(-1).cpu()
        assert state["done"].float().mean() > 0.9
        returns.append(total)
    assert returns[1].std() > 3
    assert_close(returns[0], returns[1], rtol=0, atol=2e-3)


def test_an_agents_returns_have_the_same_distribution():
    policy = load_policy(expert_path("ant_original"))
    params = stack_policies(policy.trainable(), 1)
    ours, batch = (
        evaluate_policies(Ant(64, physics=p, max_steps=150), policy, params, 64, seed=0)[0]
        for p in ("warp", "threads")
    )
    assert batch.mean() > 200  # it runs
    spread = (ours.var() / 64 + batch.var() / 64).sqrt()
    assert (ours.mean() - batch.mean()).abs() < 3 * spread
    assert ks_2samp(ours.numpy(), batch.numpy()).pvalue > 0.01


@on_each_device
def test_torch_sees_the_state_itself_not_a_copy(device):
    physics = Warp(Hopper(1).model, 4, device)
    assert physics.qpos.device.type == device
    for name in ("qpos", "qvel", "xpos"):
        assert getattr(physics, name).data_ptr() == getattr(physics._data, name).ptr
    physics.qvel[2, 0] = 3.0
    physics.step(torch.zeros(4, 3, device=device), None, 4)
    assert physics.qpos[:, 0].cpu().tolist() == pytest.approx([0.0, 0.0, 0.024, 0.0], abs=1e-3)
    assert warp.to_torch(physics._data.qpos)[2, 0] == physics.qpos[2, 0]


@on_each_device
@pytest.mark.parametrize("task", [Hopper, Ant, ThreeLeggedAnt])
def test_specs_and_rollout(task, device):
    env = task(3, physics="warp", max_steps=4, seed=0, device=device)
    check_env_specs(env)
    data = env.rollout(10, break_when_any_done=False)
    assert data.device.type == device
    assert data["next", "truncated"][..., 0].sum(-1).tolist() == [2, 2, 2]


@on_each_device
def test_a_partial_reset_leaves_the_others_alone(device):
    env = Ant(4, physics="warp", seed=0, device=device)
    undisturbed = Ant(4, physics="warp", seed=0, device=device)
    mask = torch.tensor([[True], [False], [True], [False]], device=device)
    start, new = (env.start_states(4, torch.Generator().manual_seed(i)) for i in (1, 2))
    state, other = reset(env, start), reset(undisturbed, start)
    for t, action in enumerate(actions(env, 25, scale=0.3)):
        state, other = step(env, state, action), step(undisturbed, other, action)
        if t == 10:
            again = {"_reset": mask, "start_state": new.to(device)}
            state = env.reset(state.clone().update(again))
            rows = mask[:, 0]
            assert_close(env.state()[rows].float(), new.to(device)[rows].float(), rtol=0, atol=0)
        if device == "cpu":  # a GPU adds in no fixed order
            assert torch.equal(env.state()[[1, 3]], undisturbed.state()[[1, 3]])
        if t != 10:
            assert_close(state["reward"][[1, 3]], other["reward"][[1, 3]], rtol=0, atol=1e-3)


@on_each_device
def test_after_a_reset_an_episode_is_as_the_first(device):
    env = Hopper(2, physics="warp", device=device)
    start, history = env.start_states(2, torch.Generator().manual_seed(0)), []
    for _ in range(2):
        state = reset(env, start)
        for action in actions(env, 20):
            state = step(env, state, action)
        history.append(env.state())
    assert_close(history[0], history[1], rtol=0, atol=0 if device == "cpu" else 1e-4)


def test_a_simulation_that_diverges_ends_alone_and_is_paid_nothing_more():
    env = Hopper(2, physics="warp")
    state = reset(env, env.start_states(2, torch.Generator().manual_seed(0)))
    env._physics.qvel[1] = torch.nan
    state = step(env, state, torch.zeros(2, 3))
    assert state["terminated"].flatten().tolist() == [False, True]
    assert state["reward"].isnan().flatten().tolist() == [False, True]
    state = step(env, state, torch.zeros(2, 3))
    assert state["reward"][1] == 0
    assert state["reward"].isfinite().all()


def test_what_warp_prints_of_itself_is_not_printed():
    code = "from torchmpo_envs import Hopper; Hopper(1, physics='warp').rollout(3)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""


@on_each_device
def test_a_copy_goes_on_from_the_same_state(device):
    env = Hopper(4, physics="warp", device=device, seed=0)
    state = env.reset()
    first, *rest = actions(env, 6, scale=0.3)
    state = step(env, state, first)
    twin, other = copy.deepcopy(env), state.clone()
    for action in rest:
        state, other = step(env, state, action), step(twin, other, action)
        assert_close(twin.state(), env.state(), rtol=0, atol=0 if device == "cpu" else 1e-5)
    before = env.state()
    step(twin, other, rest[0])
    assert_close(env.state(), before, rtol=0, atol=0)


@on_each_device
def test_a_fork_goes_on_from_the_state_of_another_robot(device):
    env = Hopper(3, physics="warp", device=device, seed=0)
    state = env.reset()
    for action in actions(env, 5, scale=0.3):
        state = step(env, state, action)
    before, source = env.state(), torch.tensor([0, 0, 2], device=env.device)
    env.fork(source)
    state = state[source]
    assert_close(env.state(), before[source], rtol=0, atol=0)
    for action in actions(env, 6, scale=0.3):
        state = step(env, state, action[[0, 0, 2]])
    assert_close(env.state()[1], env.state()[0], rtol=0, atol=0 if device == "cpu" else 1e-5)
    assert (env.state()[2] != env.state()[0]).any()


@on_each_device
def test_robots_outside_the_mask_stand_still_and_no_gradient_passes(device):
    env = Hopper(4, physics="warp", device=device, seed=0)
    state = env.reset()
    before, moves = env.state(), torch.tensor([True, False, True, False])
    action = actions(env, 1)[0].requires_grad_()
    state = env.step(state.set("action", action.to(env.device)).set("_step", moves))["next"]
    assert (env.state() != before).any(-1).tolist() == moves.tolist()
    assert not state["reward"].requires_grad
    assert not env.state().requires_grad
