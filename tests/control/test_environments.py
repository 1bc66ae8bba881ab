"""Tasks of one's own against plain loops over them, whatever they are made with."""

import importlib.metadata
import re
import sys
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
import worlds
from gymnasium.envs import registration
from gymnasium.spaces import Box
from tensordict import TensorDict
from torch.testing import assert_close

from torchmpo.control import environments, pools
from torchmpo.control.environments import digest, make_environment, sizes, stepped_one_by_one
from torchmpo.control.policy import GaussianPolicy, stack_policies
from torchmpo.control.pools import PoolConfig, pool_of
from torchmpo.control.returns import evaluate_policies
from torchmpo.control.tasks import spaces_of_gymnasium
from torchmpo.control.testbed import TestbedConfig, prepare
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import generator
from torchmpo_envs import Hopper, Walker2d

make = partial(make_environment, num_threads=1)


@pytest.fixture(scope="module", autouse=True)
def end_processes():
    yield
    for processes in environments._RUNNING.values():
        processes.close()


def population(sizes, members=3):
    torch.manual_seed(0)
    policy = GaussianPolicy(*sizes, (8,), mean="linear", observation_clip=None)
    params = stack_policies(policy.trainable(), members)
    for value in params.values():
        value += 0.5 * torch.randn_like(value)
    return policy, params


def plain_return(policy, params, seed, steps):
    """One episode of the world, and how long it was."""
    place, total, length, over = worlds.start(seed), 0.0, 0, False
    while not over and length < steps:
        with torch.no_grad():
            unit = torch.func.functional_call(policy, params, (torch.from_numpy(place),)).numpy()
        action = worlds.LOW + (np.clip(unit, -1, 1) + 1) / 2 * (worlds.HIGH - worlds.LOW)
        place, reward, over = worlds.move(place, action.astype(np.float32))
        total, length = total + reward, length + 1
    return total, length


WAYS = ["worlds:Line", "worlds:Parts", "worlds:vector", "torchrl_worlds:rl"]


@pytest.mark.parametrize("task", WAYS)
def test_returns_equal_a_plain_loop_however_a_task_is_brought(task):
    assert sizes(task, 1) == (2, 2)
    policy, params = population((2, 2))
    env = make(task, 4, max_steps=20)
    assert isinstance(env, environments.Environment)
    returns = evaluate_policies(env, policy, params, 2, 5)
    seeds = env.start_states(2, generator(5, "start states")).flatten().tolist()
    lengths = set()
    for member in range(3):
        own = {name: value[member] for name, value in params.items()}
        for episode, seed in enumerate(seeds):
            expected, length = plain_return(policy, own, seed, 20)
            lengths.add(length)
            assert returns[member, episode].item() == pytest.approx(expected, abs=1e-4)
    assert min(lengths) < 20, "the test saw no episode end early"
    assert max(lengths) == 20, "the test saw no episode of full length"
    assert torch.equal(evaluate_policies(env, policy, params, 2, 5), returns)  # used again


def test_a_batch_of_torchrl_has_starts_of_its_own_that_seeds_decide():
    policy, params = population((2, 2))
    env = make("torchrl_worlds:rl_batch", 4, max_steps=20)
    first = evaluate_policies(env, policy, params, 2, 5)
    assert torch.equal(evaluate_policies(env, policy, params, 2, 5), first)
    assert not torch.equal(evaluate_policies(env, policy, params, 2, 6), first)
    starts = env.start_states(4, generator(0))
    state = env.reset(TensorDict({"start_state": starts}, [4]))["observation"]
    assert len(state.unique()) == 8
    first = env.env.seed
    assert_close(state, torch.tensor(np.stack([worlds.start(first + i) for i in range(4)])))


@pytest.mark.parametrize("task", ["torchrl_worlds:free", "torchrl_worlds:free_batch"])
def test_an_action_without_a_range_is_passed_on_as_it_is(task):
    """TorchRL writes no range as one that ends at the largest number."""
    env = make(task, 2, max_steps=20)
    begin = env.start_states(2, generator(0))
    before = env.reset(TensorDict({"start_state": begin}, [2]))
    action = torch.tensor([[0.5, -0.25], [3.0, 0.0]])
    after = env.step(before.set("action", action))["next", "observation"]
    assert_close(after - before["observation"], 0.5 * (action - 0.25), rtol=0, atol=1e-6)


def test_the_end_of_a_range_is_the_largest_number_only_if_there_is_none():
    largest = float(np.finfo(np.float32).max)
    actions = Box(np.array([-largest, -1, -np.inf], np.float32), np.float32(largest), (3,))
    spaces = spaces_of_gymnasium("mine", Box(-1, 1, (2,)), actions)
    assert spaces.low.tolist() == [-np.inf, -1, -np.inf]
    assert spaces.high.tolist() == [np.inf] * 3
    spaces = spaces_of_gymnasium("mine", Box(-1, 1, (2,)), Box(-3, 3, (2,), np.int64))
    assert spaces.low.tolist() == [-3, -3]


def test_a_pool_is_made_with_as_many_processes_as_were_asked_for(tmp_path, monkeypatch):
    asked = []

    def make_nothing(*_, num_threads, **settings):
        asked.append(num_threads)
        raise KeyboardInterrupt

    monkeypatch.setattr(pools, "make_environment", make_nothing)
    config = TestbedConfig(PoolConfig(pairs=2, max_steps=5), num_threads=3, cache_dir=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        prepare([config])
    assert asked == [3]


def test_the_number_of_processes_changes_no_bit():
    policy, params = population((2, 2), members=5)
    found = [
        evaluate_policies(
            make_environment("worlds:Line", 10, max_steps=20, num_threads=count),
            policy, params, 2, 5, sample=True,
        )
        for count in (1, 3)
    ]  # fmt: skip
    assert torch.equal(*found)


def test_what_is_over_stands_still_without_reward():
    env = make("worlds:Line", 3, max_steps=20)
    state = env.reset(TensorDict({"start_state": torch.tensor([[1], [2], [3]])}, [3]))
    seen = []
    for _ in range(20):
        state = env.step(state.set("action", torch.tensor([[0.1, -0.5], [1.0, 1.0], [-1, 1]])))
        seen.append(state["next"])
        state = state["next"]
    reward = torch.stack([s["reward"] for s in seen]).squeeze(-1)
    done = torch.stack([s["done"] for s in seen]).squeeze(-1)
    last = done.int().argmax(0)
    assert last[0] == 19  # the time limit
    for i in (1, 2):
        assert 0 < last[i] < 10
        assert done[last[i] :, i].all()
        assert (reward[last[i] + 1 :, i] == 0).all()
        assert (reward[: last[i] + 1, i] != 0).all()
        after = torch.stack([s["observation"][i] for s in seen[last[i] :]])
        assert (after == after[:1]).all()


@pytest.mark.parametrize("task", ["gymnasium:Pendulum-v1", "gymnasium:InvertedPendulum-v5"])
def test_an_id_of_gymnasium_equals_gymnasium(task):
    env = make(task, 2, max_steps=30)
    seeds = env.start_states(2, generator(1, "start states"))
    policy, params = population(sizes(task, 1), members=1)
    returns = evaluate_policies(env, policy, params, 2, 1)[0]
    own = {name: value[0] for name, value in params.items()}
    for episode, seed in enumerate(seeds.flatten().tolist()):
        plain = gymnasium.make(task.removeprefix("gymnasium:"), max_episode_steps=30)
        (obs, _), total, over = plain.reset(seed=seed), 0.0, False
        low, high = plain.action_space.low, plain.action_space.high
        while not over:
            seen = torch.from_numpy(np.asarray(obs, np.float32))
            with torch.no_grad():
                unit = torch.func.functional_call(policy, own, (seen,)).clamp(-1, 1).numpy()
            action = (low + (unit + 1) / 2 * (high - low)).astype(np.float32)
            obs, reward, terminated, truncated, _ = plain.step(action)
            total, over = total + reward, terminated or truncated
        assert returns[episode].item() == pytest.approx(total, rel=1e-3, abs=1e-2)


def test_a_robot_of_ours_under_its_own_name_makes_the_same_pool(tmp_path):
    """Also the path of a pool, by agents and a task that are one's own in name only."""
    settings = {"pairs": 3, "max_steps": 15, "original": "ant_original", "target": "tla_target"}
    ours = PoolConfig(task="tla", **settings)
    own = PoolConfig(task="torchmpo_envs:ThreeLeggedAnt", **settings)
    assert ours.key() != own.key()
    pools = [pool_of(c, cache_dir=tmp_path, progress=False) for c in (ours, own)]
    for name, value in pools[0].items():
        assert torch.equal(pools[1][name], value), name


@pytest.mark.parametrize(("name", "robot"), [("Hopper-v5", Hopper), ("Walker2d-v5", Walker2d)])
def test_robots_that_are_gymnasiums_step_by_step_are_batched(name, robot):
    env = make(f"gymnasium:{name}", 3)
    assert type(env) is robot
    assert isinstance(env, environments.Environment)
    assert env.model.opt.integrator == 1  # RK4
    assert not stepped_one_by_one(f"gymnasium:{name}")
    limits = [make(f"gymnasium:{name}", 1, max_steps=steps).max_steps for steps in (900, 1500)]
    assert limits == [900, 1000]  # which is registered with the id
    message = f"episode_steps must be at most 1000, where gymnasium:{name} ends; got 1001"
    with pytest.raises(UserError, match=message):
        PoolConfig(task=f"gymnasium:{name}", max_steps=1001)


def test_a_robot_of_ours_by_its_id_of_gymnasium_is_stepped_in_a_batch():
    task = "gymnasium:torchmpo_envs:torchmpo/Hopper-v0"
    env = make(task, 3, max_steps=10)
    assert type(env).__name__ == "_GymnasiumBatch"
    assert (env.observation_size, env.action_size) == (11, 3)
    policy, params = population((11, 3))
    assert evaluate_policies(env, policy, params, 1, 0).isfinite().all()


def test_an_observation_that_is_not_finite_ends_the_episode():
    policy, params = population((2, 2), members=1)
    returns = evaluate_policies(make("worlds:Wild", 2, max_steps=5), policy, params, 2, 0)
    assert (returns == 0).all()


# --- mistakes ---


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("worlds", "unknown task 'worlds': choose from: ant, hopper, tla"),
        ("worlds.Line", "a task of your own has a colon: did you mean 'worlds:Line'?"),
        ("trl:Line", "unknown task 'trl:Line': choose from"),
        ("worlds:Lin", "task 'worlds:Lin': worlds has no function 'Lin'; "),
        ("no_such_worlds:Line", "task 'no_such_worlds:Line': cannot import 'no_such_worlds'"),
        ("worlds.py:Line", "worlds.py has no function|cannot import 'worlds.py'"),
        ("a/worlds:Line", "must be package.module:function, with dots, and without a path"),
        ("gymnasium:Walker3d-v5", "task 'gymnasium:Walker3d-v5': Environment `Walker3d`"),
        ("gymnasium:nowhere:Robot-v0", "task 'gymnasium:nowhere:Robot-v0': "),
        ("gymnasium:broken_world:Robot-v0", r"broken_world:Robot-v0: RuntimeError: no world"),
        ("gymnasium:.x:Robot-v0", "gymnasium:.x:Robot-v0: TypeError: "),
        ("gymnasium:CartPole-v1", "policies here act by real numbers"),
        ("worlds:Discrete", "has actions of Discrete.3.: policies here act by real numbers"),
        ("worlds:fails", r"worlds:fails: ValueError: no world today \(.*worlds.py, line \d+\)"),
        ("worlds:number", "made a int: it must make an environment of Gymnasium or of TorchRL"),
        ("worlds:too_few", "was asked for 1 environments and made 2"),
    ],
)
def test_a_task_that_is_none_is_told_in_one_line(task, message, tmp_path, monkeypatch):
    (tmp_path / "broken_world.py").write_text("raise RuntimeError('no world')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        sizes(task, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("worlds:Breaks", r"worlds:Breaks: RuntimeError: the motor is broken \(.*worlds.py, line"),
        ("worlds:Dies", "worlds:Dies: a process that steps it has ended"),
    ],
)
def test_an_environment_that_fails_in_a_step_is_told_in_one_line(task, message, capfd):
    policy, params = population((2, 2), members=1)
    with pytest.raises(UserError, match=message) as caught:
        evaluate_policies(make(task, 2, max_steps=5), policy, params, 2, 0)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ("I am dying\n" if task == "worlds:Dies" else "")


def test_a_task_without_agents_says_what_it_needs():
    with pytest.raises(UserError, match=r"no agents of its own: give --original FILE and --tar"):
        PoolConfig(task="worlds:Line")
    with pytest.raises(
        UserError, match=r"original: there is no file gone\.safetensors, and no agent"
    ):
        PoolConfig(original="gone.safetensors")


def test_another_text_is_another_task(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for number, text in enumerate(("x = 1\ndef make(): return x", "x = 2\ndef make(): return x")):
        (tmp_path / f"world{number}.py").write_text(text)
        found.append(digest(f"world{number}:make"))
    assert found[0] != found[1]
    assert digest("tla") is None
    version = f"gymnasium {gymnasium.__version__}"
    assert re.fullmatch(rf"{version} [0-9a-f]{{16}}", digest("gymnasium:Pendulum-v1"))
    assert digest("gymnasium:Hopper-v5") == version  # which is batched, whatever is registered


REGISTERED = """
import gymnasium
class Robot(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Box(-1, 1, (2,))
    reward = {reward}
gymnasium.register("Robot{reward}-v0", entry_point="robot{reward}:Robot")
"""


def test_an_edited_environment_of_gymnasiums_registry_is_another_task(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for reward in (1, 2):
        (tmp_path / f"robot{reward}.py").write_text(REGISTERED.format(reward=reward))
        found.append(digest(f"gymnasium:robot{reward}:Robot{reward}-v0"))
    assert len(set(found)) == 2
    assert all(re.fullmatch("[0-9a-f]{16}", of) for of in found)
    other = importlib.metadata.version("pyyaml")  # whose modules are not imported by its name
    assert environments._versioned("yaml") == f"yaml {other}"


OF_OTHERS = "gymnasium.envs.mujoco.hopper_v5:HopperEnv"
AROUND = "gymnasium.wrappers:RescaleAction"


@pytest.fixture
def digest_of(tmp_path, monkeypatch):
    """The digest of a registration, in a registry that is as it was afterwards."""
    monkeypatch.setattr(registration, "registry", dict(registration.registry))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "parts", raising=False)
    (tmp_path / "parts.py").write_text(PARTS)

    def of(entry_point=OF_OTHERS, **settings):
        registration.registry.pop("Mine-v0", None)
        gymnasium.register("Mine-v0", entry_point=entry_point, **settings)
        digest.cache_clear()  # as in another process
        return digest("gymnasium:Mine-v0")

    return of


PARTS = """
from functools import partial
import gymnasium
from gymnasium.vector import SyncVectorEnv

class Robot(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Box(-1, 1, (2,))

class Near(gymnasium.Wrapper): pass
class Far(gymnasium.Wrapper): pass

def vector(num_envs, max_episode_steps=None, size=1): return SyncVectorEnv([Robot] * num_envs)
def other_vector(num_envs): return SyncVectorEnv([Robot] * num_envs)
"""


@pytest.mark.parametrize("entry_point", [OF_OTHERS, "parts:Robot"])
def test_all_that_is_registered_is_part_of_an_id(digest_of, entry_point):
    def around(name, kwargs):
        return (registration.WrapperSpec("around", name, kwargs),)

    made = [
        {},
        {"kwargs": {"forward_reward_weight": 2}},
        {"kwargs": {"forward_reward_weight": 5}},
        {"max_episode_steps": 100},
        {"max_episode_steps": 200},
        {"additional_wrappers": around("parts:Near", {})},
        {"additional_wrappers": around("parts:Far", {})},
        {"additional_wrappers": around(AROUND, {"min_action": -1, "max_action": 1})},
        {"additional_wrappers": around(AROUND, {"min_action": -2, "max_action": 1})},
    ]
    found = [digest_of(entry_point, **settings) for settings in made]
    assert len(set(found)) == len(made)
    assert [digest_of(entry_point, **settings) for settings in made] == found
    assert digest_of("parts:Robot") != digest_of(OF_OTHERS)


def test_the_class_counts_and_not_its_package_alone(digest_of):
    assert digest_of() != digest_of("gymnasium.envs.mujoco.walker2d_v5:Walker2dEnv")


def test_of_an_id_with_a_batch_of_its_own_the_batch_counts(digest_of):
    vector = digest_of("parts:Robot", vector_entry_point="parts:vector")
    assert vector != digest_of("parts:Robot", vector_entry_point="parts:other_vector")
    assert vector == digest_of(None, vector_entry_point="parts:vector")  # it alone runs
    assert vector != digest_of(None, vector_entry_point="parts:vector", kwargs={"size": 2})
    assert make("gymnasium:Mine-v0", 3).observation_size == 2


def test_an_entry_point_that_is_not_there_is_told_in_one_line(digest_of):
    with pytest.raises(UserError, match=r"Mine-v0: AttributeError: .* no attribute 'Non"):
        digest_of("parts:None_such")


def test_speed_says_both():
    said = environments.speed("worlds:Line", 1)
    assert said.startswith("worlds:Line: ")
    assert "steps/s in 1 process; the bare environment alone: " in said
