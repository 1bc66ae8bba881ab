"""The environments against Gymnasium's Ant-v5, known mechanics, and TorchRL's own checks."""

import copy
import pickle  # noqa: TID251, in memory, as a process is sent an environment
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from torchrl.collectors import Collector
from torchrl.envs import ConditionalSkip, TransformedEnv, check_env_specs

from torchmpo_envs import TASKS, Ant, Hopper, ThreeLeggedAnt, expert_path

GYMNASIUM = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0}


def exactly(actual, expected):
    assert_close(actual, expected, rtol=0, atol=0)


def resting(env):
    """Start states at rest, high in the air, ankles bent to the middle of their range."""
    state = torch.zeros(env.num_envs, env.model.nq + env.model.nv, dtype=torch.float64)
    state[:, 2], state[:, 3] = 100.0, 1.0
    ankles = [int(env.model.joint(f"ankle_{leg}").qposadr[0]) for leg in (1, 2, 3, 4)]
    state[:, ankles] = torch.tensor(env.model.jnt_range[[2, 4, 6, 8]].mean(-1))
    return state


def reset(env, start=None):
    if start is None:
        return env.reset()
    return env.reset(TensorDict({"start_state": start}, [env.num_envs]))


def step(env, state, action):
    return env.step(state.clone().set("action", action))["next"]


def actions(steps, num_envs, *, seed=0, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    noise = torch.rand(steps, num_envs, 8, generator=draw, dtype=torch.float64)
    return scale * (2 * noise - 1)


@pytest.mark.parametrize("task", TASKS.values())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_specs(task, dtype):
    check_env_specs(task(3, max_steps=5, seed=0, dtype=dtype))


# --- against Gymnasium ---------------------------------------------------------------------------


def test_rk4_is_gymnasiums_ant_step_by_step():
    count, seen = 3, {"terminated": 0, "truncated": 0}
    rivals = [gymnasium.make("Ant-v5", max_episode_steps=120, **GYMNASIUM) for _ in range(count)]
    env = Ant(count, integrator="RK4", max_steps=120, dtype=torch.float64, seed=0)
    obs = np.stack([rival.reset(seed=i)[0] for i, rival in enumerate(rivals)])

    def rival_states():
        both = [(r.unwrapped.data.qpos, r.unwrapped.data.qvel) for r in rivals]
        return torch.from_numpy(np.stack([np.concatenate(pair) for pair in both]))

    state = reset(env, rival_states())
    assert_close(state["observation"], torch.from_numpy(obs), rtol=0, atol=1e-10)
    for action in actions(1000, count):
        state = step(env, state, action)
        answers = [rival.step(a.numpy()) for rival, a in zip(rivals, action)]
        assert_close(env.state(), rival_states(), rtol=0, atol=1e-10)
        for name, column in zip(("observation", "reward", "terminated", "truncated"), range(4)):
            expected = torch.tensor(np.stack([answer[column] for answer in answers]))
            assert_close(state[name].view_as(expected), expected, rtol=0, atol=1e-10)
        done = state["done"]
        exactly(done, state["terminated"] | state["truncated"])
        for name in seen:
            seen[name] += int(state[name].sum())
        if done.any():
            for index in done.flatten().nonzero().flatten().tolist():
                rivals[index].reset()
            state = env.reset(state.clone().update({"_reset": done, "start_state": rival_states()}))
    assert min(seen.values()) > 0, f"the test saw no episode end in one of the two ways: {seen}"


def test_start_states_are_distributed_as_gymnasiums():
    env = Ant(1)
    ours = env.start_states(4000, torch.Generator().manual_seed(0))
    assert ours.dtype == torch.float64
    rival = gymnasium.make("Ant-v5", **GYMNASIUM).unwrapped
    rival.reset(seed=0)
    theirs = []
    for _ in range(400):
        rival.reset()
        theirs.append(np.concatenate([rival.data.qpos, rival.data.qvel]))
    theirs = torch.from_numpy(np.stack(theirs))
    centre = torch.from_numpy(np.concatenate([rival.init_qpos, rival.init_qvel]))
    levels = torch.tensor([0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99], dtype=torch.float64)
    nq = env.model.nq
    for part in (slice(0, nq), slice(nq, None)):
        noise, rival_noise = ((s - centre)[:, part].flatten() for s in (ours, theirs))
        assert_close(noise.quantile(levels), rival_noise.quantile(levels), rtol=0, atol=0.01)
    positions, velocities = ours[:, :nq] - centre[:nq], ours[:, nq:]
    assert 0.0999 < positions.abs().max() <= 0.1
    assert_close(velocities.std(0), torch.full((14,), 0.1).double(), rtol=0.05, atol=0)
    correlation = torch.corrcoef((ours - centre).T) - torch.eye(29)
    assert correlation.abs().max() < 0.08  # 5 standard errors


# --- known mechanics -----------------------------------------------------------------------------


@pytest.mark.parametrize("integrator", ["RK4", "Euler", "implicitfast"])
def test_free_fall(integrator):
    env = Ant(2, integrator=integrator, dtype=torch.float64)
    env.healthy_range = (0.2, 1000.0)
    start = resting(env)
    start[1, env.model.nq] = 3.0  # the second also flies forward
    state, steps = reset(env, start), 10
    # As in Gymnasium, velocity is taken from body positions, which all but RK4 leave at the state
    # before the last substep: the first step shows four fifths of the way.
    seen = [1.0 if integrator == "RK4" else 0.8] + [1.0] * (steps - 1)
    for share in seen:
        state = step(env, state, torch.zeros(2, 8))
        expected = torch.tensor([[1.0], [1.0 + 3.0 * share]], dtype=torch.float64)
        assert_close(state["reward"], expected)
    h, substeps = env.model.opt.timestep, steps * env.frame_skip
    # RK4 is exact on ½gt²; the others update the velocity first: g·h²·(1 + 2 + … + n).
    drop = 9.81 * (h * substeps) ** 2 / 2
    if integrator != "RK4":
        drop = 9.81 * h**2 * substeps * (substeps + 1) / 2
    position = env.state()[:, :3]
    assert_close(position[:, 2], start[:, 2] - drop, rtol=0, atol=1e-9)
    assert_close(position[:, 0], torch.tensor([0.0, 3.0 * h * substeps]).double())


def test_without_torque_the_ant_comes_to_rest():
    env = Ant(2, dtype=torch.float64, seed=0)
    state = reset(env)
    for _ in range(900):
        state = step(env, state, torch.zeros(2, 8))
    assert env.state()[:, env.model.nq :].abs().max() < 0.01
    assert_close(state["reward"], torch.ones(2, 1).double(), rtol=0, atol=0.01)
    assert not state["done"].any()


# --- episodes and resets -------------------------------------------------------------------------


def test_truncation_and_termination_are_told_apart_and_stand_still():
    env = Ant(3, max_steps=4, seed=0)
    start = env.start_states(3, torch.Generator().manual_seed(0))
    start[1, 2] = 5.0  # far above the healthy range
    state = reset(env, start)
    assert not state["done"].any()
    for t, action in enumerate(actions(8, 3, scale=0.3), start=1):
        before = env.state()
        state = step(env, state, action)
        over = t >= 4
        assert state["terminated"].flatten().tolist() == [False, True, False]
        assert state["truncated"].flatten().tolist() == [over, False, over]
        assert state["done"].flatten().tolist() == [over, True, over]
        moved = (env.state() != before).any(-1).tolist()
        assert moved == [t <= 4, t == 1, t <= 4]
        if t > 4:
            exactly(state["reward"], torch.zeros(3, 1))
            exactly(state["observation"], env.state()[:, 2:].float())


def test_a_step_that_ends_both_ways_says_so():
    env = Ant(1, max_steps=1)
    start = env.start_states(1, torch.Generator())
    start[0, 2] = 5.0
    state = step(env, reset(env, start), torch.zeros(1, 8))
    assert state["terminated"].all()
    assert state["truncated"].all()
    assert -1.0 < state["reward"].item() < 1.0  # no healthy reward in the step that terminates


def test_partial_reset_leaves_the_others_alone():
    mask = torch.tensor([[True], [False], [True], [False]])
    env, undisturbed = Ant(4, seed=0, max_steps=30), Ant(4, seed=0, max_steps=30)
    start = env.start_states(4, torch.Generator().manual_seed(1))
    state, other = reset(env, start), reset(undisturbed, start)
    for t, action in enumerate(actions(40, 4, scale=0.3)):
        state, other = step(env, state, action), step(undisturbed, other, action)
        if t == 10:
            new = env.start_states(4, torch.Generator().manual_seed(2))
            state = env.reset(state.clone().update({"_reset": mask, "start_state": new}))
            exactly(env.state()[mask[:, 0]], new[mask[:, 0]])
            exactly(state["observation"][mask[:, 0]], new[mask[:, 0], 2:].float())
        kept = ~mask[:, 0]
        exactly(env.state()[kept], undisturbed.state()[kept])
        for name in ("observation", "reward", "done", "terminated", "truncated"):
            if name != "reward" or t != 10:
                exactly(state[name][kept], other[name][kept])
    # The others were truncated after 30 steps, the restarted ones are in their 29th.
    assert state["done"].flatten().tolist() == [False, True, False, True]


def test_partial_reset_reports_how_the_others_ended():
    env = Ant(3, max_steps=2)
    start = env.start_states(3, torch.Generator())
    start[0, 2] = 5.0
    state = reset(env, start)
    for _ in range(2):
        state = step(env, state, torch.zeros(3, 8))
    flags = env._reset(TensorDict({"_reset": torch.tensor([[False], [True], [False]])}, [3]))
    assert flags["terminated"].flatten().tolist() == [True, False, False]
    assert flags["truncated"].flatten().tolist() == [False, False, True]
    assert flags["done"].flatten().tolist() == [True, False, True]


def test_what_a_reset_returned_does_not_change_later():
    env = Ant(2, max_steps=1, seed=0)
    step(env, env.reset(), torch.ones(2, 8))
    first = env._reset(TensorDict({"_reset": torch.tensor([[True], [False]])}, [2]))
    copy = first.clone()
    env.reset()
    for name, value in copy.items():
        exactly(first[name], value)


def test_random_starts_follow_the_seed_alone():
    def run(num_threads, seed):
        env = Ant(8, num_threads=num_threads, seed=seed, max_steps=15)
        state, history = env.reset(), []
        for action in actions(40, 8):
            data, state = env.step_and_maybe_reset(state.set("action", action))
            history.append(torch.cat([env.state(), data["next", "reward"].double()], -1))
        return torch.stack(history)

    one, two, other = run(1, 0), run(2, 0), run(2, 1)
    exactly(one, two)
    assert not torch.equal(one, other)


def test_set_seed_restarts_the_stream_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    env = Ant(2, seed=5)
    first, second = env.reset()["observation"], env.reset()["observation"]
    env.set_seed(5)
    exactly(env.reset()["observation"], first)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    exactly(torch.get_rng_state(), before)


def test_start_state_is_honoured():
    env = Ant(2, dtype=torch.float64, seed=0)
    start = env.start_states(2, torch.Generator().manual_seed(3))
    state = reset(env, start)
    exactly(env.state(), start)
    exactly(state["observation"], start[:, 2:])


@pytest.mark.parametrize("damage", ["shape", "nan"])
def test_a_bad_start_state_is_refused(damage):
    env = Ant(2, seed=0)
    start = env.start_states(2, torch.Generator())
    if damage == "shape":
        start = start[:, :-1]
    else:
        start[1, 4] = torch.nan
    with pytest.raises(ValueError, match=r"start_state must be finite and of shape \(2, 29\)"):
        reset(env, start)


# --- actions -------------------------------------------------------------------------------------


def test_actions_outside_the_range_are_clipped():
    env, start = Ant(2, seed=0), Ant(2).start_states(2, torch.Generator().manual_seed(0))
    results = []
    for scale in (1.0, 7.5):
        state = reset(env, start)
        action = scale * torch.tensor([1.0, -1.0]).repeat(2, 4)
        state = step(env, state, action)
        results.append((env.state(), state["reward"]))
    exactly(results[0], results[1])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_action_that_is_not_finite_is_refused(bad):
    env = Ant(2, seed=0)
    state = reset(env)
    before = env.state()
    action = torch.zeros(2, 8)
    action[1, 3] = bad
    with pytest.raises(ValueError, match="an action is not finite"):
        step(env, state, action)
    exactly(env.state(), before)


@pytest.mark.parametrize("shape", [(3, 1), (3,), (1, 8), (3, 7), (3, 1, 8)])
def test_an_action_of_the_wrong_shape_is_refused_not_broadcast(shape):
    env = Ant(3, seed=0)
    state = reset(env)
    before = env.state()
    data = TensorDict({"action": torch.ones(shape)}, [])
    with pytest.raises(ValueError, match=r"must be of shape \(3, 8\); got ") as caught:
        env._step(data)
    assert str(caught.value).endswith(f"got {shape}")
    if shape[0] == 3:
        with pytest.raises(ValueError, match="actions must be of shape"):
            step(env, state, torch.ones(shape))
    exactly(env.state(), before)


# --- the boundary between tensors and physics ----------------------------------------------------


def test_no_gradient_passes_the_physics_and_no_graph_grows():
    env, plain = Ant(2, seed=0), Ant(2, seed=0)
    state, other = reset(env), reset(plain)
    action = torch.full((2, 8), 0.1, requires_grad=True)
    for _ in range(3):
        state, other = step(env, state, action * 1.0), step(plain, other, action.detach())
        exactly(state["reward"], other["reward"])
        exactly(state["observation"], other["observation"])
    kept = [state["reward"], state["observation"], env.state(), env._physics.control]
    assert not any(tensor.requires_grad for tensor in kept)
    start = env.state().requires_grad_()
    reset(env, start)
    assert not env.state().requires_grad


def test_inference_mode_may_come_and_go():
    with torch.inference_mode():
        env = Ant(2, seed=0, max_steps=2)
        state = step(env, reset(env), torch.zeros(2, 8))
    state = step(env, state, torch.zeros(2, 8))
    assert state["truncated"].all()
    with torch.inference_mode():
        state = step(env, reset(env), torch.zeros(2, 8))
    exactly(step(env, state, torch.zeros(2, 8))["truncated"], torch.ones(2, 1, dtype=torch.bool))


# --- robots that skip a step ---------------------------------------------------------------------


@pytest.mark.parametrize("mask", [[True, False, True], [False, False, True]])
def test_robots_outside_the_mask_of_a_step_stand_still(mask):
    moves = torch.tensor(mask)
    env, undisturbed = Ant(3, seed=0, max_steps=3), Ant(3, seed=0, max_steps=3)
    start = env.start_states(3, torch.Generator().manual_seed(1))
    start[0, 2] = 5.0  # over after its first step
    state, other = reset(env, start), reset(undisturbed, start)
    first, second, third = actions(3, 3, scale=0.3)
    wild = first.masked_fill(~moves.unsqueeze(-1), torch.nan)  # what the others say is not read
    before, observed = env.state(), state["observation"]
    state = env.step(state.clone().update({"action": wild, "_step": moves}))["next"]
    other = step(undisturbed, other, first)
    for name in ("observation", "reward", "terminated", "truncated", "done"):
        exactly(state[name][moves], other[name][moves])
    exactly(env.state()[~moves], before[~moves])
    exactly(state["observation"][~moves], observed[~moves])
    assert not state["reward"][~moves].any()
    assert not state["done"][~moves].any()
    # The step did not count for them: their three steps are the next ones.
    for action in (second, third):
        state = step(env, state, action)
    assert state["truncated"].flatten().tolist() == [False, mask[1], mask[2]]


def test_a_skipped_robot_goes_on_as_if_nothing_had_been():
    env, undisturbed = Ant(2, seed=0), Ant(2, seed=0)
    start = env.start_states(2, torch.Generator().manual_seed(1))
    state, other = reset(env, start), reset(undisturbed, start)
    first, second = actions(2, 2)
    mask = torch.tensor([[True], [False]])
    state = env.step(state.clone().update({"action": first, "_step": mask}))["next"]
    state = step(env, state, torch.stack([second[0], first[1]]))
    other = step(undisturbed, other, first)
    exactly(env.state()[1], undisturbed.state()[1])
    exactly(state["reward"][1], other["reward"][1])
    step(undisturbed, other, second)
    exactly(env.state()[0], undisturbed.state()[0])


def test_conditional_skip():
    """Of TorchRL: the robot that is high up skips, the other does not."""
    env = Ant(2, seed=0)
    skipping = TransformedEnv(env, ConditionalSkip(lambda data: data["observation"][:, 0] > 10.0))
    start = env.start_states(2, torch.Generator().manual_seed(1))
    start[1, 2] = 20.0
    state = skipping.reset(start_state=start)
    state = step(skipping, state, torch.ones(2, 8))
    assert (env.state() != start).any(-1).tolist() == [True, False]
    data = skipping.rollout(3, auto_reset=False, tensordict=state)
    assert data["next", "reward"][0].all()
    assert not data["next", "reward"][1].any()
    exactly(env.state()[1], start[1])


@pytest.mark.parametrize("name", ["_step", "_reset"])
def test_a_mask_of_the_wrong_shape_is_refused(name):
    env = Ant(3, seed=0)
    state = reset(env).set("action", torch.zeros(3, 8))
    entries = TensorDict({**state, name: torch.ones(2, dtype=torch.bool)}, [])
    with pytest.raises(ValueError, match=rf"{name} must be of shape \(3,\); got \(2,\)"):
        (env._step if name == "_step" else env._reset)(entries)


# --- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [Ant, Hopper])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])  # noqa: S301
def test_a_copy_goes_on_from_the_same_state_to_the_same_bits(task, how):
    env = task(3, seed=0, max_steps=12, num_threads=1)
    noise = 0.3 * (2 * torch.rand(20, 3, env.model.nu) - 1)
    state = env.reset()
    for action in noise[:5]:
        _, state = env.step_and_maybe_reset(state.set("action", action))
    twin, twins = how(env), state.clone()
    assert twin._physics.num_threads == 1
    for action in noise[5:]:  # through truncations and new random starts
        data, state = env.step_and_maybe_reset(state.set("action", action))
        other, twins = twin.step_and_maybe_reset(twins.set("action", action))
        for name in ("observation", "reward", "done"):
            exactly(other["next", name], data["next", name])
        exactly(twin.state(), env.state())
    before = env.state()
    step(twin, twins, torch.ones(3, env.model.nu))
    exactly(env.state(), before)  # nothing is shared


# --- the costly leg ------------------------------------------------------------------------------


@pytest.mark.parametrize(("leg", "columns"), [(4, [0, 1]), (1, [2, 3]), (2, [4, 5]), (3, [6, 7])])
def test_three_legged_ant_charges_for_one_leg(leg, columns):
    kwargs = {"seed": 0, "dtype": torch.float64}
    ant, tla = Ant(3, **kwargs), ThreeLeggedAnt(3, leg=leg, penalty=7.0, **kwargs)
    start = ant.start_states(3, torch.Generator().manual_seed(0))
    state, tla_state = reset(ant, start), reset(tla, start)
    for action in actions(5, 3, scale=1.5):
        state, tla_state = step(ant, state, action), step(tla, tla_state, action)
        cost = 7.0 * action.clamp(-1, 1)[:, columns].square().sum(-1, keepdim=True)
        assert_close(tla_state["reward"], state["reward"] - cost, rtol=0, atol=1e-12)
        exactly(tla_state["observation"], state["observation"])


def test_leg_four_is_found_by_the_names_of_its_joints():
    env = ThreeLeggedAnt(1)
    driven = [env.model.joint(int(j)).name for j in env.model.actuator_trnid[:, 0]]
    assert [driven[index] for index in env._leg_actions] == ["hip_4", "ankle_4"]
    assert env._leg_actions == [0, 1]


# --- models and weights of one's own -------------------------------------------------------------


def test_the_weights_of_the_reward():
    weights = {"forward_reward_weight": 2.0, "healthy_reward": 0.1, "ctrl_cost_weight": 0.25}
    env = Ant(2, integrator="RK4", dtype=torch.float64, **weights)
    rival = gymnasium.make("Ant-v5", **GYMNASIUM, **weights)
    rival.reset(seed=0)
    data = rival.unwrapped.data
    start = torch.from_numpy(np.concatenate([data.qpos, data.qvel])).expand(2, -1)
    state = reset(env, start)
    for action in actions(5, 2):
        state = step(env, state, action)
        _, reward, *_, info = rival.step(action[0].numpy())
        assert state["reward"][0].item() == pytest.approx(reward, abs=1e-10)
        for name, term in env.reward_terms().items():
            assert term[0].item() == pytest.approx(info[name], abs=1e-10)


def test_a_model_of_ones_own(tmp_path):
    text = (Path(gymnasium.__file__).parent / "envs/mujoco/assets/ant.xml").read_text()
    heavy, weak, other = tmp_path / "heavy.xml", tmp_path / "weak.xml", tmp_path / "other.xml"
    heavy.write_text(text.replace('density="5.0"', 'density="50.0"'))
    assert Ant(1, xml_file=heavy).model.body_mass.sum() > 5 * Ant(1).model.body_mass.sum()
    assert Ant(1, xml_file="ant.xml").model.body_mass.sum() == Ant(1).model.body_mass.sum()
    weak.write_text(text.replace('ctrlrange="-1.0 1.0"', 'ctrlrange="-0.5 0.5"'))
    with pytest.raises(ValueError, match=r"actuators of .*weak.xml must have the range −1 to 1"):
        Ant(1, xml_file=weak)
    other.write_text(text.replace("hip_4", "shoulder"))
    with pytest.raises(ValueError, match="the model needs motors at hip_4 and ankle_4"):
        ThreeLeggedAnt(1, xml_file=other)


def test_the_data_of_a_robot_are_a_copy():
    env = Ant(2, seed=0)
    step(env, reset(env), torch.ones(2, 8))
    data, before = env.data(1), env.state()
    exactly(torch.from_numpy(np.concatenate([data.qpos, data.qvel])), before[1])
    assert data.ctrl.tolist() == [1.0] * 8
    assert data.time == pytest.approx(env.dt)
    assert data.body("torso").xpos[:2].tolist() == data.qpos[:2].tolist()
    data.qpos[:] = 0
    exactly(env.state(), before)


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"physics": "magic"}, "physics must be one of threads, warp; got 'magic'"),
        ({"integrator": "RK5"}, "integrator must be one of Euler, RK4, .*; got 'RK5'"),
        ({"num_envs": 0}, "must be positive; got 0"),
        ({"max_steps": 0}, "must be positive; got 4 and 0"),
        ({"num_threads": -1}, "num_threads must not be negative; got -1"),
        ({"leg": 5}, "leg must be 1, 2, 3 or 4; got 5"),
        ({"penalty": -1.0}, "penalty must not be negative; got -1.0"),
        ({"penalty": float("nan")}, "penalty must not be negative; got nan"),
        ({"healthy_reward": float("nan")}, "weights of the reward must be finite"),
        ({"xml_file": "nothing.xml"}, "there is no file .*nothing.xml"),
    ],
)
def test_mistakes_get_one_clear_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        ThreeLeggedAnt(**{"num_envs": 4} | settings)
    assert "\n" not in str(caught.value)


def test_warp_without_its_packages_says_which_extra_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchmpo_envs.warp", raising=False)
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)  # cannot be imported
    with pytest.raises(ImportError, match=r"pip install 'torchmpo\[warp\]'"):
        Ant(2, physics="warp")


def test_unknown_expert():
    assert expert_path("ant_original").name == "ant_original.safetensors"
    with pytest.raises(ValueError, match="choose from ant_original, tla_target"):
        expert_path("octopus")


# --- TorchRL's loops -----------------------------------------------------------------------------


def test_rollout_resets_by_itself():
    env = Ant(3, max_steps=4, seed=0)
    data = env.rollout(10, break_when_any_done=False)
    assert data.shape == (3, 10)
    truncated = data["next", "truncated"][..., 0]
    expected = torch.zeros(3, 10, dtype=torch.bool)
    expected[:, [3, 7]] = True
    exactly(truncated, expected)
    # After a truncation the next step begins at a new start state, at most 0.1 from rest.
    height = data["observation"][..., 0]
    assert (height[:, [0, 4, 8]] - 0.75).abs().max() <= 0.1 + 1e-6
    exactly(data["next", "observation"][:, 0], data["observation"][:, 1])


def test_automatic_resets_do_not_reuse_a_given_start():
    env = Ant(2, max_steps=1, seed=0)
    start = env.start_states(2, torch.Generator().manual_seed(3))
    state = reset(env, start)
    _, state = env.step_and_maybe_reset(state.set("action", torch.zeros(2, 8)))
    assert not (env.state() == start).any()


def test_collector():
    env = ThreeLeggedAnt(4, max_steps=6, seed=0)
    collector = Collector(env, None, frames_per_batch=40, total_frames=80)
    batches = [batch.clone() for batch in collector]
    collector.shutdown()
    assert [batch.shape for batch in batches] == [(4, 10), (4, 10)]
    for batch in batches:
        assert batch["observation"].shape == (4, 10, 27)
        assert batch["action"].shape == (4, 10, 8)
        assert batch["action"].abs().max() <= 1.0
        assert batch["next", "reward"].shape == (4, 10, 1)
        for flag in ("done", "terminated", "truncated"):
            assert batch["next", flag].shape == (4, 10, 1)
    ends = torch.cat([batch["next", "truncated"][..., 0] for batch in batches], -1)
    assert ends.nonzero()[:, 1].unique().tolist() == [5, 11, 17]
