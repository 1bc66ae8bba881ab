"""Preference data: the judge, the kinds of data, and the store on disk."""

import json
import math
import os

import pytest
import torch
from tensordict import TensorDict

from torchmpo.control import pools
from torchmpo.control.kinds import parse_kind
from torchmpo.control.policy import load_policy
from torchmpo.control.pools import PoolConfig, pool_folder
from torchmpo.control.preferences import bradley_terry, preference_data
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import generator
from torchmpo_envs import ThreeLeggedAnt, expert_path

SMALL = PoolConfig(pairs=40, max_steps=20, behaviour_std=0.5, seed=3)
SMALL_ROWS = [0, 7, 40, 47, 80, 119]  # two of each role


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pools")
    preference_data(SMALL, "base", cache_dir=folder, progress=False)
    return folder


def data(cache, kind, config=SMALL):
    return preference_data(config, kind, cache_dir=cache, progress=False)


def roles(dataset):
    """0 for rows of the original agent, 1 for the target, 2 for either: of chosen and rejected."""
    pairs = len(dataset)
    return dataset.chosen // pairs, dataset.rejected // pairs


# --- the judge


def test_judge_without_noise_picks_the_better():
    first, second = torch.tensor([3.0, -1.0, 2.0]), torch.tensor([1.0, 0.0, 2.0])
    verdict = bradley_terry(first, second, temperature=0.0, uniform=torch.full((3,), 0.5))
    assert verdict.tolist() == [True, False, True]


@pytest.mark.parametrize("temperature", [0.5, 2.0, 1e6])
def test_judge_chooses_with_the_probability_of_bradley_and_terry(temperature):
    draws = torch.arange(10_000, dtype=torch.float64) / 10_000  # every quantile once
    first, second = torch.full_like(draws, 1.0), torch.zeros_like(draws)
    verdict = bradley_terry(first, second, temperature=temperature, uniform=draws)
    expected = 1 / (1 + math.exp(-1 / temperature))
    assert verdict.double().mean().item() == pytest.approx(expected, abs=1e-3)


def test_judge_refuses_a_negative_temperature():
    with pytest.raises(UserError, match="temperature"):
        bradley_terry(torch.zeros(1), torch.zeros(1), temperature=-1.0, uniform=torch.zeros(1))


# --- the kinds, on returns made by hand


def pick(kind, returns, seed):
    """Chosen and rejected rows of a pool of which only the returns are known."""
    config = PoolConfig(pairs=returns.shape[1], seed=seed)
    return parse_kind(kind).pairs({"returns": returns.flatten()}, config)[:2]


def returns_by_hand(pairs=2000):
    """Original agents at 0, targets at 10, the third by a coin, all with some spread."""
    torch.manual_seed(0)
    coin = torch.rand(pairs) < 0.5
    level = torch.stack([torch.zeros(pairs), torch.full((pairs,), 10.0), 10.0 * coin])
    return level + torch.rand(3, pairs), coin


def test_base_prefers_the_target_agent_and_pairs_the_same_start():
    returns, _ = returns_by_hand()
    chosen, rejected = pick("base", returns, 0)
    pairs = returns.shape[1]
    assert torch.equal(chosen, torch.arange(pairs) + pairs)
    assert torch.equal(rejected, torch.arange(pairs))


@pytest.mark.parametrize("flip_prob", [0.1, 0.3])
def test_noisy_flips_labels_of_base_at_its_rate(flip_prob):
    returns, _ = returns_by_hand()
    chosen, rejected = pick("base", returns, 0)
    noisy_chosen, noisy_rejected = pick(f"noisy:{flip_prob}", returns, 0)
    flipped = noisy_chosen == rejected
    assert torch.equal(torch.where(flipped, noisy_rejected, noisy_chosen), chosen)
    assert flipped.double().mean().item() == pytest.approx(flip_prob, abs=0.03)


def test_flips_are_nested_and_follow_from_the_seed():
    returns, _ = returns_by_hand()
    base = pick("base", returns, 0)[0]
    few, many = (pick(f"noisy:{p}", returns, 0)[0] != base for p in (0.1, 0.3))
    assert not (few & ~many).any()
    assert not torch.equal(pick("noisy:0.3", returns, 1)[0] != base, many)


def test_mixed_has_a_quarter_each_of_equal_agents_and_judges_by_return():
    returns, _ = returns_by_hand()
    pairs = returns.shape[1]
    chosen, rejected = pick("mixed", returns, 0)
    flat = returns.flatten()
    assert (flat[chosen] >= flat[rejected]).all()
    assert torch.equal(chosen % pairs, rejected % pairs)
    good = (flat > 5)[chosen].int() + (flat > 5)[rejected].int()
    shares = torch.bincount(good, minlength=3) / pairs
    assert shares.tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.04)


def test_bad_judge_errs_more_the_higher_its_temperature():
    returns, _ = returns_by_hand()
    right = pick("base", returns, 0)[0]
    errors = [
        (pick(f"bad_judge:{t}", returns, 0)[0] != right).double().mean().item()
        for t in (0.0, 5.0, 1e9)
    ]
    assert errors[0] == 0.0
    assert errors[1] == pytest.approx(1 / (1 + math.exp(10 / 5)), abs=0.03)
    assert errors[2] == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nois:0.3", "did you mean 'noisy'"),
        ("noisy", "needs a number, as in 'noisy:0.3'"),
        ("noisy:x", "needs a number"),
        ("noisy:1.5", "out of range"),
        ("noisy:nan", "out of range"),
        ("base:1", "takes no number"),
        ("bad_judge:-1", "out of range"),
    ],
)
def test_a_mistyped_kind_gets_one_clear_line(kind, message):
    with pytest.raises(UserError, match=message) as error:
        parse_kind(kind)
    assert "\n" not in str(error.value)


# --- the pool, from real agents in the real environment


def test_a_trajectory_replays_in_the_environment(cache):
    """The recorded actions, from the recorded start, give the recorded observations and return."""
    dataset = data(cache, "base")
    env = ThreeLeggedAnt(7, integrator=SMALL.integrator, max_steps=SMALL.max_steps)
    start = env.start_states(SMALL.pairs, generator(SMALL.seed, "start states"))
    early = int(dataset.lengths.argmin())
    rows = torch.tensor([*SMALL_ROWS, early])
    state = env.reset(TensorDict({"start_state": start[rows % SMALL.pairs]}, env.batch_size))
    total = torch.zeros(len(rows))
    for step in range(SMALL.max_steps):
        # After its end a trajectory is zero, while the environment shows its last state.
        running = (step < dataset.lengths[rows])[:, None]
        assert torch.equal(state["observation"] * running, dataset.observation[rows, step])
        assert torch.equal(state["done"], ~running)
        state = env.step(state.set("action", dataset.action[rows, step]))["next"]
        total += state["reward"].squeeze(-1)
    assert torch.allclose(total, dataset.returns[rows])
    assert dataset.lengths.min() < SMALL.max_steps == dataset.lengths.max()


def test_actions_are_those_of_the_agents_before_clipping(cache):
    """Standardised by the agent's own mean, they are standard normal."""
    dataset = data(cache, "base")
    for role, name in enumerate(("ant_original", "tla_target")):
        rows = slice(role * SMALL.pairs, (role + 1) * SMALL.pairs)
        with torch.no_grad():
            mean = load_policy(expert_path(name))(dataset.observation[rows])
        steps = torch.arange(SMALL.max_steps) < dataset.lengths[rows, None]
        z = ((dataset.action[rows] - mean)[steps] / SMALL.behaviour_std).flatten()
        assert z.mean().abs() < 4 / len(z) ** 0.5
        assert abs(z.std() - 1) < 4 / (2 * len(z)) ** 0.5
        assert (dataset.action[rows].abs() > 1).any()


def test_pairs_start_in_the_same_state(cache):
    dataset = data(cache, "mixed")
    first = dataset.observation[:, 0]
    assert torch.equal(first[dataset.chosen], first[dataset.rejected])
    chosen, rejected = roles(dataset)
    assert ((chosen == 2) ^ (rejected == 2)).all()


def test_a_second_call_reads_the_same_store(cache, monkeypatch):
    monkeypatch.setattr(pools, "_build", lambda *_: pytest.fail("built twice"))
    assert torch.equal(data(cache, "noisy:0.3").returns, data(cache, "mixed").returns)


def test_a_rebuilt_pool_has_the_same_bits(cache, tmp_path):
    again = data(tmp_path, "base")
    for name in ("observation", "action", "lengths", "returns"):
        assert torch.equal(getattr(again, name), getattr(data(cache, "base"), name)), name


def test_another_setting_is_another_pool(cache):
    folders = {
        pool_folder(PoolConfig(**{**vars(SMALL), name: value}), cache)
        for name, value in {"seed": 4, "pairs": 41, "behaviour_std": 0.3, "task": "ant"}.items()
    }
    assert len(folders | {pool_folder(SMALL, cache)}) == 5


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove", "card", "no card"])
def test_a_damaged_store_is_refused_with_the_way_out(tmp_path, damage):
    config = PoolConfig(pairs=2, max_steps=3)
    data(tmp_path, "base", config)
    folder = pool_folder(config, tmp_path)
    file = folder / "action.memmap"
    if damage == "truncate":
        os.truncate(file, file.stat().st_size - 4)
    elif damage == "alter":
        content = bytearray(file.read_bytes())
        content[17] ^= 1
        file.write_bytes(content)
    elif damage == "remove":
        file.unlink()
    elif damage == "no card":
        (folder / "pool.json").unlink()
    else:
        (folder / "pool.json").write_text(json.dumps({"shapes": {}}))
    with pytest.raises(UserError, match=r"damaged.*delete that folder and run again") as error:
        data(tmp_path, "base", config)
    assert str(folder) in str(error.value)


def test_an_interrupted_build_leaves_nothing_and_the_next_one_succeeds(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    config = PoolConfig(pairs=2, max_steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(pools, "roll_out", interrupt)
        with pytest.raises(KeyboardInterrupt):
            data(tmp_path, "base", config)
    assert not list(tmp_path.iterdir())
    # What a killed build leaves behind is cleared away by the next one.
    for number in range(2):
        (tmp_path / f"{config.key()}.{number}.partial").mkdir()
    assert len(data(tmp_path, "base", config)) == 2
    assert [path.name for path in tmp_path.iterdir()] == [config.key()]


def test_two_builds_of_one_pool_do_not_clear_each_other_away(tmp_path, monkeypatch):
    config = PoolConfig(pairs=2, max_steps=3)
    roll_out, folders = pools.roll_out, []

    def another_comes(*args):
        if not folders:  # in the midst of a build, which it must survive
            folders.append([path.name for path in tmp_path.iterdir()])
            assert len(data(tmp_path, "base", config)) == 2
        return roll_out(*args)

    monkeypatch.setattr(pools, "roll_out", another_comes)
    assert len(data(tmp_path, "base", config)) == 2
    assert len(folders[0]) == 1
    assert [path.name for path in tmp_path.iterdir()] == [config.key()]


def test_too_little_disk_is_told_before_any_compute(tmp_path, monkeypatch):
    full = type("usage", (), {"free": 1000})
    monkeypatch.setattr(pools.shutil, "disk_usage", lambda _: full)
    monkeypatch.setattr(pools, "roll_out", lambda *_: pytest.fail("computed"))
    with pytest.raises(UserError, match="MB are free"):
        data(tmp_path, "base", PoolConfig(pairs=2, max_steps=3))


def test_take_keeps_the_first_pairs(cache):
    dataset = data(cache, "base")
    assert torch.equal(dataset.take(5).chosen, dataset.chosen[:5])
    with pytest.raises(UserError, match="has 40"):
        dataset.take(41)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "tal"}, "did you mean 'tla'"),
        ({"pairs": 0}, "pairs"),
        ({"behaviour_std": 0}, "std"),
    ],
)
def test_bad_pool_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        PoolConfig(**settings)
