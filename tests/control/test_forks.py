"""Pairs that share a prefix: a simulator's state is copied there, and losses read the rest."""

from dataclasses import replace

import mujoco
import pytest
import torch

from torchmpo.control.inner_loop import InnerConfig, train_policies
from torchmpo.control.kinds import parse_kind
from torchmpo.control.pools import PoolConfig
from torchmpo.control.preferences import preference_data
from torchmpo.control.reward_models import RewardConfig, train_reward_model
from torchmpo.control.rounds import Rounds, own_pairs
from torchmpo.control.sample import Sample
from torchmpo.control.testbed import TestbedConfig, prepare
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError
from torchmpo_envs import Ant, Hopper, ThreeLeggedAnt

POOL = PoolConfig(pairs=6, max_steps=16)
INNER = InnerConfig(epochs=1, compile=False, learning_rate=1e-3)
FORK = 8  # of half the time limit


def the_policy():
    return TestbedConfig(POOL).load_policy()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("pools"))


def data(cache, kind, config=POOL):
    return preference_data(config, kind, cache_dir=cache, progress=False)


def shared(own, first, second):
    """How many steps two trajectories of a data set have in common, by their actions."""
    same = (own.action[first] == own.action[second]).all(-1)
    return same.long().cumprod(0).sum().item()


# --- the simulator


def mujocos_own(model, start, frame_skip, before, after, *, times=2):
    """A robot stepped by MuJoCo alone; its state is copied by MuJoCo, and copies go on apart."""
    robots = [mujoco.MjData(model) for _ in range(times)]
    nq = model.nq
    robots[0].qpos[:], robots[0].qvel[:] = start[:nq], start[nq:]
    mujoco.mj_forward(model, robots[0])

    def move(robot, actions):
        for action in actions:
            robot.ctrl[:] = action.clamp(-1, 1).double().numpy()
            mujoco.mj_step(model, robot, frame_skip)

    move(robots[0], before)
    whole = mujoco.mjtState.mjSTATE_INTEGRATION
    state = torch.zeros(mujoco.mj_stateSize(model, whole), dtype=torch.float64).numpy()
    mujoco.mj_getState(model, robots[0], state, whole)
    for robot, actions in zip(robots, after, strict=True):
        mujoco.mj_setState(model, robot, state, whole)
        move(robot, actions)
    return [torch.cat([torch.tensor(r.qpos), torch.tensor(r.qvel)]) for r in robots]


@pytest.mark.parametrize(("task", "count"), [(ThreeLeggedAnt, 30), (Ant, 30), (Hopper, 8)])
def test_a_copied_state_goes_on_as_mujocos_own_copy_does(task, count):
    """In contact with the floor, where the solver begins with what it found before."""
    env = task(4, max_steps=100, num_threads=1)
    draw = torch.Generator().manual_seed(0)
    start = env.start_states(4, draw)
    moves = 0.3 * torch.randn(2 * count, 4, env.action_size, generator=draw)
    state = env.reset(start_state=start)
    for action in moves[:count]:
        state = env.step(state.set("action", action))["next"]
    source = torch.tensor([0, 0, 2, 0])
    env.fork(source)
    state = state[source]
    for action in moves[count:]:
        state = env.step(state.set("action", action))["next"]
    assert not state["done"].any()
    args = env.model, start[0], env.frame_skip, moves[:count, 0]
    own = mujocos_own(*args, [moves[count:, k] for k in (0, 1, 3)], times=3)
    for robot, expected in zip((0, 1, 3), own, strict=True):
        assert torch.equal(env.state()[robot], expected)
    assert not torch.equal(env.state()[0], env.state()[1])
    assert not torch.equal(env.state()[2], env.state()[0])


def test_steps_and_ends_are_copied_too():
    env = Hopper(2, max_steps=6, num_threads=1)
    state = env.reset(start_state=env.start_states(2, torch.Generator().manual_seed(0)))
    still = torch.zeros(2, env.action_size)
    for _ in range(3):
        moving = torch.tensor([[True], [False]])
        state = env.step(state.update({"action": still, "_step": moving}))["next"]
    env.fork(torch.tensor([0, 0]))
    done = []
    for _ in range(3):
        state = env.step(state.exclude("_step").set("action", still))["next"]
        done.append(state["done"].flatten().tolist())
    assert done == [[False, False], [False, False], [True, True]]


@pytest.mark.parametrize("source", [[0], [0, 2], [-1, 0], [0.0, 1.0]])
def test_a_robot_that_is_not_there_cannot_be_copied(source):
    env = Hopper(2, num_threads=1)
    with pytest.raises(ValueError, match="source must be 2 numbers from 0"):
        env.fork(torch.tensor(source))


# --- pairs


def test_no_share_is_no_fork_to_the_bit(cache):
    for kind in ("base", "graded:0-0.4"):
        plain, forked = (data(cache, name) for name in (kind, f"{kind}+fork:0"))
        assert torch.equal(plain.action, forked.action)
        assert torch.equal(plain.chosen, forked.chosen)
        assert forked.begins is None
    assert parse_kind("fork:0").pool(POOL).key() == POOL.key()
    assert parse_kind("fork:0.5").pool(POOL).key() != POOL.key()


@pytest.mark.parametrize(
    "kind", ["fork:0.5", "mixed+fork:0.5", "graded:0-0.4+fork:0.5+list:3", "degraded:3+fork:0.5"]
)
def test_both_are_one_to_the_bit_up_to_the_fork_and_two_after_it(cache, kind, monkeypatch):
    from torchmpo.control import pools

    # Groups are not cut where a batch ends: seven simulations are two groups of three, or three.
    monkeypatch.setattr(pools, "simulations", lambda task: 7)
    own = data(cache, kind, replace(POOL, seed=1))
    for rows in own.ranked.tolist():
        for other in rows[1:]:
            assert shared(own, rows[0], other) == FORK
            observed = own.observation[rows[0]] == own.observation[other]
            assert observed[: FORK + 1].all()
            assert not observed[FORK + 1 :].all(-1).any()
        assert own.first[rows].tolist() == [FORK] * len(rows)
        assert len(own.returns[rows].unique()) == len(rows)
    # Nothing is shared with another start state.
    assert shared(own, own.chosen[0], own.chosen[1]) == 0


def test_the_shared_part_is_of_the_first_agent(cache):
    """Of base, that is the original one: what comes before the fork is as without a fork there."""
    quiet = replace(POOL, behaviour_std=1e-6)
    bed = prepare([TestbedConfig(quiet, "fork:0.5", INNER, cache_dir=cache, num_threads=1)])[0]
    noise = bed.dataset.action - bed.policy(bed.dataset.observation)  # the original agent's
    target = slice(POOL.pairs, 2 * POOL.pairs)
    assert noise[:, :FORK].abs().max() < 1e-4
    assert noise[target, FORK:].abs().amin((1, 2)).max() < noise[target, FORK:].abs().max()
    assert noise[target, FORK:].abs().mean() > 1e-2


def test_who_falls_before_the_fork_shares_nothing(cache):
    """Hoppers that shake fall early, and there is nothing to go on from."""
    config = PoolConfig("hopper", pairs=12, max_steps=60, behaviour_std=4.0)
    own = data(cache, "fork:0.5", config)
    fallen = own.lengths[: config.pairs] <= 30
    assert 0 < fallen.sum() < config.pairs
    for pair in range(config.pairs):
        rows = own.chosen[pair], own.rejected[pair]
        assert shared(own, *rows) == (0 if fallen[pair] else 30)
        assert own.first[torch.stack(rows)].tolist() == [0 if fallen[pair] else 30] * 2
    assert (own.counted > 0).all()


def test_trajectories_that_are_started_again_are_copied_with_their_starts(cache):
    config = PoolConfig("hopper", pairs=3, max_steps=80, auto_reset=True, behaviour_std=4.0)
    own = data(cache, "fork:0.5", config)
    once = data(cache, "fork:0.5", replace(config, auto_reset=False))
    assert once.lengths[:3].min() < 40  # some were put up again before the fork
    assert (own.first == 40).all()
    for pair in range(3):
        assert shared(own, own.chosen[pair], own.rejected[pair]) == 40


@pytest.mark.parametrize(("loss", "alike"), [("dpo", True), ("orpo", False), ("simpo", False)])
def test_the_log_ratio_is_that_of_whole_trajectories(cache, loss, alike):
    """Before the fork both are equal, so nothing of it is left in a difference of sums.

    It is left in means, and in what is said of one trajectory.
    """
    own = data(cache, "graded:0-0.4+fork:0.5")
    policy, objective = the_policy(), resolve(loss)
    init = {n: v[None].double() for n, v in policy.trainable().items()}
    hyper = {n: torch.full((1,), float(v)) for n, v in objective.parameters_tree().items()}
    ends = [
        train_policies(policy, init, objective, hyper, some, INNER, 0)
        for some in (own, replace(own, begins=None))
    ]
    apart = max(float((ends[0][n] - ends[1][n]).abs().max()) for n in init)
    moved = max(float((ends[0][n] - init[n]).abs().max()) for n in init)
    assert moved > 1e-3
    assert apart < 1e-9 if alike else apart > 1e-4


@pytest.mark.parametrize("steps", [None, 4])
def test_losses_read_the_steps_from_the_fork_on(cache, steps):
    """What lies before it may be anything, in training and where likelihoods are watched."""
    own = data(cache, "base+fork:0.5")
    changed = own.action.clone()
    changed[:, :FORK] += 1.0
    other, inner = replace(own, action=changed), replace(INNER, steps_per_trajectory=steps)
    policy, objective = the_policy(), resolve("orpo")
    init = {n: v[None] for n, v in policy.trainable().items()}
    hyper = {n: torch.full((1,), float(v)) for n, v in objective.parameters_tree().items()}
    ends = [train_policies(policy, init, objective, hyper, x, inner, 0) for x in (own, other)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in init)
    sample = Sample.of(other)
    assert torch.equal(sample.mean_logps(policy, init), Sample.of(own).mean_logps(policy, init))
    assert (sample.lengths == own.lengths[own.ranked] - FORK).all()
    seen = Sample.of(own).observation  # of 64 evenly spread steps, the first and the last ones
    assert torch.equal(seen[:, 0, 0], own.observation[own.chosen, FORK])
    assert torch.equal(seen[:, 0, -1], own.observation[own.chosen, 15])


def test_a_reward_model_reads_them_too(cache):
    own = data(cache, "base+fork:0.5")
    changed = own.action.clone()
    changed[:, :FORK] += 1.0
    config = RewardConfig(members=1, hidden=4, epochs=1, minibatch_pairs=2)
    models = [
        train_reward_model(some, the_policy(), config, 0)
        for some in (own, replace(own, action=changed))
    ]
    for name, value in models[0].params.items():
        assert torch.equal(models[1].params[name], value)


def test_what_is_shared_is_simulated_once(cache):
    own = data(cache, "base+fork:0.5")
    assert own.simulated_steps == 6 * (FORK + 2 * (16 - FORK))  # nobody falls
    assert data(cache, "base").simulated_steps == 6 * 2 * 16


def test_a_file_keeps_where_trajectories_begin(cache, tmp_path):
    own = data(cache, "base+fork:0.5")
    for name in ("pairs.npz", "pairs.safetensors"):
        own.save(tmp_path / name)
        assert torch.equal(data(cache, str(tmp_path / name)).first, own.first)
    with pytest.raises(UserError, match="begins must be from 0 to below lengths"):
        replace(own, begins=own.lengths).save(tmp_path / "pairs.npz")


# --- rounds


def test_own_pairs_are_forked_and_judged_from_the_same_state(cache):
    settings = TestbedConfig(
        POOL, "base+fork:0.5", replace(INNER, minibatch_pairs=2), cache_dir=cache, num_threads=1
    )
    bed = prepare([replace(settings, rounds=Rounds(3))])[0]
    own = own_pairs(bed, bed.initial(2, 0), 4, [3, 4])
    for found in own:
        for first, second in zip(found.chosen, found.rejected, strict=True):
            assert shared(found, first, second) == FORK
            assert found.returns[first] > found.returns[second]
    assert shared(own[0], 0, 1) == 0
    assert not torch.equal(own[0].action, own[1].action)
    seen: list = []
    objective = resolve("dpo")
    hyper = {n: torch.full((1,), float(v)) for n, v in objective.parameters_tree().items()}
    bed.train(objective, hyper, 1, 0, on_data=seen.append)
    assert [(part[0].first == FORK).all().item() for part in seen] == [True] * 3


# --- mistakes


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("fork:1", "'fork:1' is out of range"),
        ("fork:-0.1", "out of range"),
        ("fork", "needs a number, as in 'fork:0.5'"),
        ("fork:0.1+fork:0.2", "set the same"),
        ("pairs.npz+fork:0.5", "fork makes trajectories in a simulator, and pairs.npz has its own"),
    ],
)
def test_nonsense_is_one_line(kind, message):
    with pytest.raises(UserError, match=message):
        parse_kind(kind)


def test_other_mistakes_are_told(cache):
    foreign = PoolConfig("gymnasium:Pendulum-v1", original="ant_original", target="tla_target")
    with pytest.raises(UserError, match="fork copies the state of a simulator, which task 'gymn"):
        parse_kind("fork:0.5").pool(foreign)
    with pytest.raises(UserError, match=r"fork must be in \[0, 1\); got 1"):
        PoolConfig(fork=1.0)
    with pytest.raises(UserError, match=r"loop spin .* share no beginning"):
        Rounds(2, loop="spin").check(8, 2, "base+fork:0.5")
