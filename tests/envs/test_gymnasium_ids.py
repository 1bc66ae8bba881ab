"""The tasks as Gymnasium ids: Gymnasium's checker, and the same dynamics as the batch."""

import copy
import pickle  # noqa: TID251, in memory, as a process is sent an environment

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from opengl import OPENGL
from tensordict import TensorDict

from torchmpo_envs import Ant, Hopper, ThreeLeggedAnt

NAMES = {"Hopper-v0": Hopper, "Ant-v0": Ant, "ThreeLeggedAnt-v0": ThreeLeggedAnt}


def make(name, **settings):
    return gymnasium.make(f"torchmpo_envs:torchmpo/{name}", **settings)


@pytest.mark.parametrize("name", NAMES)
def test_gymnasiums_checker_has_no_complaint(name):
    """Warnings are errors here, so this is without warnings too."""
    env = make(name, render_mode="rgb_array" if OPENGL else None)
    check_env(env.unwrapped, skip_render_check=not OPENGL)


@pytest.mark.parametrize("name", NAMES)
def test_names_without_the_namespace_are_the_same_task(name):
    if name == "ThreeLeggedAnt-v0":
        env = gymnasium.make(f"torchmpo_envs:{name}")
    else:  # Gymnasium has a v5 of its own and takes this for an old version of it
        with pytest.warns(DeprecationWarning, match="out of date"):
            env = gymnasium.make(f"torchmpo_envs:{name}")
    first, other = env.reset(seed=3)[0], make(name).reset(seed=3)[0]
    np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("name", NAMES)
def test_one_robot_moves_as_one_of_the_batch(name):
    env, batch = make(name), NAMES[name](3, dtype=torch.float64)
    start = batch.start_states(3, torch.Generator().manual_seed(0))
    state = batch.reset(TensorDict({"start_state": start}, [3]))
    obs, info = env.reset(options={"start_state": start[1].numpy()})
    assert info == {}
    np.testing.assert_array_equal(obs, state["observation"][1].numpy())
    for action in 0.3 * (2 * torch.rand(12, 3, batch.model.nu) - 1):
        state = batch.step(state.set("action", action))["next"]
        obs, reward, terminated, truncated, _ = env.step(action[1].numpy())
        np.testing.assert_array_equal(obs, state["observation"][1].numpy())
        assert reward == state["reward"][1].item()
        assert terminated == state["terminated"][1].item()
        assert not truncated


@pytest.mark.parametrize(
    ("name", "rival", "settings"),
    [
        ("Hopper-v0", "Hopper-v5", {}),
        ("Ant-v0", "Ant-v5", {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0}),
    ],
)
def test_rk4_is_gymnasiums_own_robot_with_its_spaces(name, rival, settings):
    env, rival = make(name, integrator="RK4"), gymnasium.make(rival, **settings)
    theirs, _ = rival.reset(seed=0)
    data = rival.unwrapped.data
    ours, _ = env.reset(options={"start_state": np.concatenate([data.qpos, data.qvel])})
    assert env.action_space == rival.action_space
    assert env.observation_space.shape == rival.observation_space.shape
    assert env.observation_space.dtype == rival.observation_space.dtype
    assert env.spec.max_episode_steps == rival.spec.max_episode_steps
    assert env.metadata["render_fps"] == rival.metadata["render_fps"]
    rival.action_space.seed(0)
    for _ in range(20):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
        action = rival.action_space.sample().astype(np.float64)  # Gymnasium adds costs in its type
        ours, *answer = env.step(action)
        theirs, *expected = rival.step(action)
        np.testing.assert_allclose(answer[:3], expected[:3], rtol=0, atol=1e-9)
        for key in ("reward_forward", "reward_survive", "reward_ctrl", "x_position"):
            np.testing.assert_allclose(answer[3][key], expected[3][key], rtol=0, atol=1e-9)
        if expected[1]:
            break


def test_the_time_limit_truncates_and_termination_does_not_wait_for_it():
    env = make("Hopper-v0", max_episode_steps=7)
    env.reset(seed=0)
    flags = [env.step(np.zeros(3, np.float32))[2:4] for _ in range(7)]
    assert flags == [(False, False)] * 6 + [(False, True)]
    fallen = np.zeros(12)
    fallen[1] = 0.5
    env.reset(options={"start_state": fallen})
    assert env.step(np.zeros(3, np.float32))[2:4] == (True, False)
    assert make("Hopper-v0").spec.max_episode_steps == 1000


def test_seeds_choose_the_start_and_the_next_one_differs():
    env = make("Ant-v0")
    first, following = env.reset(seed=1)[0], env.reset()[0]
    assert not np.array_equal(first, following)
    assert not np.array_equal(first, env.reset(seed=2)[0])
    np.testing.assert_array_equal(env.reset(seed=1)[0], first)
    np.testing.assert_array_equal(env.reset()[0], following)


def test_settings_reach_the_task():
    action = np.zeros(8, np.float32)
    action[[2, 3]] = 1.0  # hip and ankle of leg 1
    rewards = []
    for penalty in (0.0, 5.0):
        env = make("ThreeLeggedAnt-v0", leg=1, penalty=penalty)
        env.reset(seed=0)
        rewards.append(env.step(action)[1])
    assert rewards[0] - rewards[1] == pytest.approx(10.0)


def test_mistakes_get_one_clear_line():
    with pytest.raises(ValueError, match="integrator must be one of"):
        make("Hopper-v0", integrator="RK5")
    with pytest.raises(ValueError, match="render_mode must be None or 'rgb_array'; got 'depth'"):
        make("Hopper-v0").unwrapped.__class__("Hopper-v0", render_mode="depth")
    env = make("Hopper-v0").unwrapped
    env.reset()
    with pytest.raises(ValueError, match=r"an action must be of shape \(3,\); got \(1,\)"):
        env.step(np.zeros(1, np.float32))


def test_no_picture_is_drawn_without_a_render_mode():
    assert make("Hopper-v0").unwrapped.render() is None


def test_the_terms_are_the_reward_and_the_leg_is_one_of_them():
    env = make("ThreeLeggedAnt-v0", penalty=3.0)
    env.reset(seed=0)
    action = np.full(8, 0.5, np.float32)
    for _ in range(3):
        *_, reward, _, _, info = env.step(action)
        terms = {name: value for name, value in info.items() if name.startswith("reward_")}
        assert sum(terms.values()) == pytest.approx(reward, abs=1e-12)
        assert terms["reward_leg"] == -1.5
        assert terms["reward_ctrl"] == -1.0
        assert info["x_position"] == env.unwrapped.data.qpos[0]


def test_model_and_data_are_of_the_robot():
    env = make("Hopper-v0")
    env.reset(seed=0)
    obs, *_ = env.step(np.ones(3, np.float32))
    data = env.unwrapped.data
    np.testing.assert_array_equal(np.concatenate([data.qpos[1:], data.qvel.clip(-10, 10)]), obs)
    assert env.unwrapped.model.nu == 3
    assert make("Hopper-v0", xml_file="hopper.xml", healthy_reward=2.0).unwrapped.model.nu == 3


@pytest.mark.parametrize("name", NAMES)
def test_actions_of_any_layout_are_the_same_action(name):
    env = make(name).unwrapped
    start, size = env._env.start_states(1, torch.Generator())[0].numpy(), env.model.nu
    plain = np.linspace(-0.5, 0.5, size)
    frozen = plain.copy()
    frozen.flags.writeable = False
    layouts = [plain, plain[::-1].copy()[::-1], frozen, np.repeat(plain, 2)[::2], list(plain)]
    layouts += [plain.astype(">f8"), torch.from_numpy(plain.copy()).requires_grad_()]
    answers = []
    for action in layouts:
        env.reset(options={"start_state": start[::-1].copy()[::-1]})
        answers.append(env.step(action)[0])
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


@pytest.mark.parametrize("how", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])  # noqa: S301
def test_a_copy_has_the_state_and_the_random_numbers(how):
    env = make("Hopper-v0", max_episode_steps=5)
    env.reset(seed=0)
    action = np.full(3, 0.1, np.float32)
    env.step(action)
    twin = how(env)
    for _ in range(4):
        ours, theirs = env.step(action), twin.step(action)
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]
    assert ours[3]  # the time limit is copied, too
    np.testing.assert_array_equal(env.reset()[0], twin.reset()[0])


# --- many at once --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Hopper-v0", "ThreeLeggedAnt-v0"])
def test_the_batch_is_gymnasiums_own_vector_of_single_ones(name):
    identifier, settings = f"torchmpo_envs:torchmpo/{name}", {"max_episode_steps": 6}
    ours = gymnasium.make_vec(identifier, num_envs=3, **settings)
    rival = gymnasium.make_vec(identifier, num_envs=3, vectorization_mode="sync", **settings)
    assert type(ours).__name__ == "VectorEnv"
    for space in ("observation_space", "action_space", "single_action_space"):
        assert getattr(ours, space) == getattr(rival, space)
    assert ours.metadata["autoreset_mode"] == rival.metadata["autoreset_mode"]
    model = ours.unwrapped.model
    fallen = np.zeros((3, model.nq + model.nv))
    fallen[:, 1 if name == "Hopper-v0" else 2] = [1.25, 0.1, 1.25]  # the second is over at once
    both = [env.reset(seed=4)[0] for env in (ours, rival)]
    np.testing.assert_array_equal(*both)
    ours.reset(options={"start_state": fallen})
    for env, start in zip(rival.envs, fallen):
        env.reset(options={"start_state": start})
    ended = 0
    for action in 0.3 * np.random.default_rng(0).uniform(-1, 1, (20, 3, model.nu)):
        mine, theirs = ours.step(action), rival.step(action)
        for one, other in zip(mine[:4], theirs[:4]):
            np.testing.assert_array_equal(one, other)
        assert mine[4].keys() == theirs[4].keys()
        for key in theirs[4]:
            np.testing.assert_array_equal(mine[4][key], theirs[4][key])
        ended += int((mine[2] | mine[3]).sum())
    assert ended > 6
    mask = np.array([True, False, True])
    both = [env.reset(seed=9, options={"reset_mask": mask})[0] for env in (ours, rival)]
    np.testing.assert_array_equal(*both)


def test_mistakes_with_many_get_one_clear_line():
    env = gymnasium.make_vec("torchmpo_envs:torchmpo/Hopper-v0", num_envs=2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must be of shape \(2, 3\); got \(2, 1\)"):
        env.step(np.zeros((2, 1)))
    with pytest.raises(ValueError, match="reset wants 2 seeds; got 3"):
        env.reset(seed=[1, 2, 3])
    assert env.render() is None
    env.close()
