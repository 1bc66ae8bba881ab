"""The grammar of kinds of data, and what each modifier does to the pairs."""

import math
from dataclasses import replace

import gymnasium
import pytest
import torch

from torchmpo.control.components import effort, return_components
from torchmpo.control.kinds import PARTS, describe, listing, parse_kind
from torchmpo.control.policy import GaussianPolicy, load_policy
from torchmpo.control.pools import PoolConfig, made_by_target, pool_of
from torchmpo.control.preferences import choose_pairs, preference_data
from torchmpo.control.rollouts import line_agents
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import generator
from torchmpo_envs import ThreeLeggedAnt, expert_path

# From the version before kinds could be combined.
PINNED = {
    "base": ([6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 4, 5]),
    "noisy:0.3": ([6, 7, 8, 9, 10, 5], [0, 1, 2, 3, 4, 11]),
    "mixed": ([6, 7, 14, 15, 16, 11], [12, 13, 2, 3, 4, 17]),
    "bad_judge:1000": ([6, 7, 8, 3, 10, 11], [0, 1, 2, 9, 4, 5]),
}
PINNED_COIN = [True, False, True, False, False, False]
SMALL = PoolConfig(pairs=40, max_steps=20, behaviour_std=0.5, seed=3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("pools")


def data(cache, kind, config=SMALL):
    return preference_data(config, kind, cache_dir=cache, progress=False)


def made_up(returns, **others):
    """A pool of which only returns are known, ``[roles, pairs]``."""
    return {"returns": returns.flatten(), **others}


def gaps(pairs=4000, gap=1000.0, seed=0):
    """Original agents at 0, targets at the gap, with a spread of a third of it."""
    draws = torch.randn(3, pairs, generator=torch.Generator().manual_seed(seed)) * gap / 3
    return draws + gap * torch.tensor([[0.0], [1.0], [0.0]])


def pick(kind, returns, seed=0, **others):
    config = PoolConfig(pairs=returns.shape[1], seed=seed)
    parsed = parse_kind(kind)
    return parsed.pairs(made_up(returns, **others), parsed.pool(config))


# --- grammar


@pytest.mark.parametrize("part", [part for part in PARTS.values() if part.form != "FILE"])
def test_every_example_parses_and_is_described(part):
    assert parse_kind(part.example)
    assert part.meaning in dict(describe(part.example)).values()
    assert any(part.form in line and part.meaning in line for line in listing().splitlines())


def test_order_and_spelling_do_not_matter():
    same = ["noisy:0.3", "base+noisy:0.30", "base + noisy:3e-1"]
    assert len({parse_kind(kind) for kind in same}) == 1
    assert parse_kind("votes:5+noisy:0.1") == parse_kind("base+noisy:0.1+votes:5")
    assert parse_kind("best_of:4") == parse_kind("graded:0-0.4+best_of:4")
    assert parse_kind("bad_judge:1e+3") == parse_kind("bad_judge:1000")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("grade:0-0.4", "unknown data 'grade:0-0.4': did you mean 'graded'"),
        ("graded:0-0.4+nois:0.1", "unknown data 'nois:0.1': did you mean 'noisy'"),
        ("graded:0.4", "needs two numbers, as in 'graded:0-0.4'"),
        ("graded:0.4-0", "out of range"),
        ("graded:0-9", "out of range"),
        ("graded:-1-1", "needs two numbers"),
        ("best_of:1", "out of range"),
        ("best_of:2.5", "must be a whole one"),
        ("votes:0", "out of range"),
        ("mixture:1.1", "out of range"),
        ("cyclic:1", "takes no number"),
        ("base+mixed", "mixed is a source of trajectories, as base is"),
        ("noisy:0.1+noisy:0.2", "noisy:0.1 and noisy:0.2 set the same"),
        ("proxy:1+cyclic", "proxy:1 and cyclic set the same"),
        ("mixed+best_of:3", "best_of picks among trajectories of graded"),
        ("list:1", "out of range"),
        ("base+list:3", "list ranks trajectories of graded or degraded"),
        ("pairs.npz+list:3", "list ranks trajectories of graded or degraded"),
        ("best_of:4+list:4", "best_of:4 and list:4 set the same"),
        ("degraded:3+list:4", "differ in their noise, which has 3 levels: take degraded:4 or more"),
        ("", "unknown data ''"),
        ("base+", "unknown data 'base+'"),
        ("FILE", "unknown data 'FILE'"),
    ],
)
def test_nonsense_is_one_line(kind, message):
    with pytest.raises(UserError, match=message.replace("+", r"\+")) as error:
        parse_kind(kind)
    assert "\n" not in str(error.value)


def test_kinds_of_before_keep_their_pools():
    """The names of folders that users have; the versions of the physics are part of them."""
    for kind in ("base", "mixed", "noisy:0.3", "bad_judge:1000", "votes:3", "cyclic"):
        assert parse_kind(kind).pool(SMALL) == SMALL
    assert parse_kind("list:2").pool(SMALL) == parse_kind("graded:0-0.4").pool(SMALL)
    assert parse_kind("list:4").pool(SMALL) == parse_kind("best_of:4").pool(SMALL)
    others = {
        parse_kind(k).pool(SMALL).key() for k in ("graded:0-0.4", "graded:0-0.5", "best_of:3")
    }
    assert len(others | {SMALL.key()}) == 4


# --- graded, best of, degraded


def test_graded_agents_lie_on_the_line(cache):
    """The recorded actions are those of the agent at α, by another way to compute its mean."""
    kind = parse_kind("graded:0.1-0.9")
    config = kind.pool(replace(SMALL, behaviour_std=1e-6))
    pool = pool_of(config, cache_dir=cache, progress=False)
    assert len(pool["returns"]) == 2 * SMALL.pairs
    alphas = config.rollouts.alphas(config.pairs, config.seed)
    assert 0.1 <= alphas.min() < 0.2 < 0.8 < alphas.max() <= 0.9
    ends = [load_policy(expert_path(name)) for name in (config.original, config.target)]
    for row in (0, 17, 79):
        agent = load_policy(expert_path(config.original))
        mixed = {
            name: (1 - alphas[row]) * value + alphas[row] * ends[1].state_dict()[name]
            for name, value in ends[0].state_dict().items()
        }
        agent.load_state_dict(mixed)
        steps = int(pool["lengths"][row])
        with torch.no_grad():
            mean = agent(pool["observation"][row, :steps])
        assert (mean - pool["action"][row, :steps]).abs().max() < 2e-5
    first = pool["observation"][:, 0]
    assert torch.equal(first[: SMALL.pairs], first[SMALL.pairs :])  # pairs share their start


def test_the_ends_of_the_line_are_the_agents(cache):
    base = pool_of(SMALL, cache_dir=cache, progress=False)
    for role, alpha in enumerate((0, 1)):
        config = parse_kind(f"graded:{alpha}-{alpha}").pool(SMALL)
        own = pool_of(config, cache_dir=cache, progress=False)
        actions = own["action"][: SMALL.pairs] if role == 0 else own["action"][SMALL.pairs :]
        rows = slice(role * SMALL.pairs, (role + 1) * SMALL.pairs)  # of the same noise
        assert torch.allclose(actions[:, 0], base["action"][rows, 0], atol=1e-5)


def test_an_end_of_the_line_needs_no_line():
    """Agents of other networks, and of another kind of σ, which no mean depends on."""
    small, large = GaussianPolicy(5, 2, (4,)), GaussianPolicy(5, 2, (8,), std_kind="learned")
    observation = torch.randn(3, 5)
    for end, agent in enumerate((small, large)):
        acts = line_agents(small, large, torch.full((3,), float(end)))
        torch.testing.assert_close(acts(observation), agent(observation).detach())
    with pytest.raises(UserError, match="must have one architecture"):
        line_agents(small, large, torch.tensor([0.0, 0.5, 1.0]))
    alike = GaussianPolicy(5, 2, (8,))
    assert line_agents(alike, large, torch.tensor([0.0, 0.5, 1.0]))(observation).shape == (3, 2)


def test_graded_pairs_are_judged_by_their_return(cache):
    found = data(cache, "graded:0-0.4")
    assert (found.returns[found.chosen] >= found.returns[found.rejected]).all()
    assert torch.equal(found.chosen % SMALL.pairs, found.rejected % SMALL.pairs)


def test_best_of_pairs_the_best_with_a_random_other_one():
    returns = torch.randn(4, 6000, generator=torch.Generator().manual_seed(1))
    pairs = pick("best_of:4", returns)
    chosen, rejected = pairs.chosen // 6000, pairs.rejected // 6000
    assert torch.equal(chosen, returns.argmax(0))
    assert (rejected != chosen).all()
    shares = torch.bincount((rejected - chosen) % 4, minlength=4) / 6000
    assert shares.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=0.02)
    # Expected maximum of four standard normals, and the mean of the other three: −max/3.
    assert returns.flatten()[pairs.chosen].mean().item() == pytest.approx(1.0294, abs=0.03)
    assert returns.flatten()[pairs.rejected].mean().item() == pytest.approx(-0.343, abs=0.03)


def test_degraded_copies_are_ordered_by_their_noise(cache):
    kind = parse_kind("degraded:3")
    config = kind.pool(SMALL)
    levels = config.rollouts.noise_levels(config.pairs, config.seed)
    first, second = levels.view(2, -1)
    assert (first != second).all()
    assert set(levels.tolist()) == {1, 2, 3}
    found = data(cache, "degraded:3")
    assert (levels[found.chosen] < levels[found.rejected]).all()
    with torch.no_grad():
        mean = load_policy(expert_path("tla_target"))(found.observation)
    running = torch.arange(SMALL.max_steps) < found.lengths[:, None]
    for level in (1, 2, 3):
        z = ((found.action - mean) / (SMALL.behaviour_std * level))[levels == level]
        z = z[running[levels == level]]
        assert z.std().item() == pytest.approx(1.0, abs=4 / (2 * z.numel()) ** 0.5)


def test_a_pool_of_graded_agents_has_the_same_bits_again(cache, tmp_path):
    one, two = (data(folder, "graded:0-0.4") for folder in (cache, tmp_path))
    assert torch.equal(one.action, two.action)
    assert torch.equal(one.chosen, two.chosen)


# --- annotators


def test_votes_give_the_majority_and_its_share():
    returns = gaps()
    pairs = pick("votes:5", returns)
    flat = returns.flatten()
    margin = flat[pairs.chosen] - flat[pairs.rejected]
    spread = (returns[0] - returns[1]).abs().mean()
    assert pairs.preference_probs.min() >= 0.6  # three of five
    assert set((5 * pairs.preference_probs).round().tolist()) == {3.0, 4.0, 5.0}
    # The share agrees with the Bradley–Terry probability of the chosen, counted over equal margins.
    many = pick("votes:2001", returns)
    flipped = many.chosen != pick("base", returns).chosen
    truth = torch.sigmoid(margin.abs() / (0.4 * spread))
    assert (many.preference_probs - truth).abs().max() < 0.06
    assert flipped.double().mean() < 0.02
    one = pick("votes:1", returns)  # is a judge of that temperature
    expected = (1 - truth).mean().item()
    wrong = (one.chosen != pick("base", returns).chosen).double().mean().item()
    assert wrong == pytest.approx(expected, abs=0.02)


def test_draws_of_votes_are_decided_by_a_coin():
    returns = torch.zeros(3, 4000)
    pairs = pick("votes:2+bad_judge:1", returns)
    draw = pairs.preference_probs == 0.5
    assert draw.double().mean().item() == pytest.approx(0.5, abs=0.03)
    first = (pairs.chosen < 4000)[draw].double().mean().item()
    assert first == pytest.approx(0.5, abs=0.04)


def test_a_flipped_label_takes_its_votes_along():
    returns = gaps()
    votes, flipped = pick("votes:5", returns), pick("votes:5+noisy:1", returns)
    assert torch.equal(flipped.chosen, votes.rejected)
    assert torch.equal(flipped.preference_probs, votes.preference_probs)


def test_hard_noise_flips_close_pairs():
    returns = gaps()
    base, noisy = pick("base", returns), pick("hard_noise:0.4", returns)
    margin = (returns[1] - returns[0]).abs()
    wrong = (base.chosen != noisy.chosen).double()
    expected = 0.4 * torch.exp(-margin / margin.mean())
    assert wrong.mean().item() == pytest.approx(expected.mean().item(), abs=0.02)
    near = margin < margin.quantile(0.2)
    assert wrong[near].mean().item() == pytest.approx(expected[near].mean().item(), abs=0.05)


def test_cyclic_labels_have_no_best():
    """Of thirds by return, each beats the one below it, and the lowest the highest."""
    returns = torch.rand(3, 6000, generator=torch.Generator().manual_seed(2))
    pairs = pick("cyclic", returns)
    flat = returns.flatten()
    third = (3 * flat).long().clamp(max=2)
    won = torch.zeros(3, 3)
    won.index_put_((third[pairs.chosen], third[pairs.rejected]), torch.ones(6000), accumulate=True)
    for winner, loser in ((1, 0), (2, 1), (0, 2)):
        # Uniform in thirds: ahead by less than half a turn in 7 of 8 pairs.
        share = won[winner, loser] / (won[winner, loser] + won[loser, winner])
        assert share.item() == pytest.approx(7 / 8, abs=0.03)


def test_a_proxy_judge_likes_effort():
    returns = gaps()
    action = torch.rand(returns.numel(), 5, 2, generator=torch.Generator().manual_seed(4))
    base = pick("base", returns)
    honest = pick("proxy:0", returns, action=action)
    assert torch.equal(honest.chosen, base.chosen)
    biased = pick("proxy:1000", returns, action=action)
    squares = action.square().sum((1, 2))
    assert (squares[biased.chosen] > squares[biased.rejected]).double().mean() > 0.99


def test_components_are_those_that_gymnasium_tells(cache):
    """Recorded actions, replayed in Gymnasium's own ant from the recorded start."""
    pool = pool_of(SMALL, cache_dir=cache, progress=False)
    parts = return_components("tla", SMALL.max_steps, pool)
    assert set(parts) == {"velocity", "control", "health", "leg"}
    total = sum(parts.values())
    assert torch.allclose(total, pool["returns"].double())
    ours = ThreeLeggedAnt(SMALL.pairs, max_steps=SMALL.max_steps)
    starts = ours.start_states(SMALL.pairs, generator(SMALL.seed, "start states"))
    env = gymnasium.make(
        "Ant-v5", include_cfrc_ext_in_observation=False, contact_cost_weight=0
    ).unwrapped
    env.model.opt.integrator = ours.model.opt.integrator
    early = int(pool["lengths"].argmin())
    for row in (0, 47, 90, early):
        env.reset()
        start = starts[row % SMALL.pairs].numpy()
        env.set_state(start[: env.model.nq], start[env.model.nq :])
        told = {"reward_forward": 0.0, "reward_ctrl": 0.0, "reward_survive": 0.0}
        for action in pool["action"][row, : int(pool["lengths"][row])].clamp(-1, 1).double():
            info = env.step(action.numpy())[4]
            for name in told:
                told[name] += info[name]
        assert parts["control"][row].item() == pytest.approx(told["reward_ctrl"], rel=1e-5)
        assert parts["health"][row].item() == told["reward_survive"]
        assert parts["velocity"][row].item() == pytest.approx(told["reward_forward"], abs=0.02)
    env.close()


def test_mixture_disagrees_about_the_leg(cache):
    pool = pool_of(SMALL, cache_dir=cache, progress=False)
    leg = return_components("tla", SMALL.max_steps, pool)["leg"]
    chosen = {w: data(cache, f"mixture:{w}").chosen for w in (0, 0.5, 1)}
    assert torch.equal(chosen[0], data(cache, "base").chosen)
    opposite = pool["returns"].double() - 2 * leg
    first, second = torch.arange(40), torch.arange(40) + 40
    assert torch.equal(chosen[1], torch.where(opposite[first] >= opposite[second], first, second))
    changed = chosen[0] != chosen[1]
    assert changed.any()
    half = (chosen[0] != chosen[0.5])[changed].double().mean().item()
    assert half == pytest.approx(0.5, abs=0.3)


def test_both_tastes_go_by_returns_where_noise_would_decide(cache):
    """Levels of noise and returns have no unit in common, and there is one temperature."""
    kind = parse_kind("degraded:4+mixture:0.5+votes:5")
    config = kind.pool(SMALL)
    pool = pool_of(config, cache_dir=cache)
    first, second = kind._compared(pool, config)
    groups, _ = kind._judges(pool, config, first, second)
    sizes = [margin.abs().mean() for _, margin in groups]
    assert 0.1 < sizes[0] / sizes[1] < 10
    assert torch.equal(groups[0][1], (pool["returns"][first] - pool["returns"][second]))


def test_objectives_weigh_velocity_and_the_rest(cache):
    pool = pool_of(SMALL, cache_dir=cache, progress=False)
    speed = return_components("tla", SMALL.max_steps, pool)["velocity"]
    rest = pool["returns"].double() - speed
    for weight, score in ((1, speed), (0, rest), (0.5, speed + rest)):
        found = data(cache, f"objectives:{weight}")
        assert (score[found.chosen] >= score[found.rejected] - 1e-4).all()
        assert torch.allclose(found.rewards.double(), rest, atol=1e-4)
    assert data(cache, "base").rewards is None


def test_effort_counts_what_actuators_take():
    action = torch.tensor([[[3.0, 0.5], [0.0, 0.0]], [[0.5, 0.5], [-2.0, 0.0]]])
    assert effort({"action": action}).tolist() == [1.25, 1.5]


def test_an_unknown_robot_has_no_components():
    with pytest.raises(UserError, match="'own' has no known components"):
        return_components("own", 10, {})


def test_every_modifier_goes_with_every_source(cache):
    sources = ["base", "mixed", "graded:0-0.4", "degraded:2"]
    modifiers = [p.example for p in PARTS.values() if p.role not in ("source", "pick")]
    for source in sources:
        for modifier in modifiers:
            found = data(cache, f"{source}+{modifier}+noisy:0.1".replace("+noisy:0.3", ""))
            assert len(found) == (32 if modifier == "pairs:32" else SMALL.pairs)
            assert (found.chosen != found.rejected).all()
            assert (found.preference_probs is not None) == ("votes" in modifier)
    assert math.isfinite(data(cache, "best_of:3+votes:4+hard_noise:0.2").preference_probs.mean())


def test_bits_of_the_kinds_of_before():
    """Pinned: pairs that runs of earlier versions were made from."""
    returns = gaps(6, seed=5)
    config = PoolConfig(pairs=6, seed=1)
    found = {
        kind: choose_pairs_of(returns, kind, config)
        for kind in ("base", "noisy:0.3", "mixed", "bad_judge:1000")
    }
    assert found == PINNED
    assert made_by_target(config)[12:].tolist() == PINNED_COIN


def choose_pairs_of(returns, kind, config):
    nothing = torch.zeros(returns.numel(), 1, 1)
    pool = made_up(returns, observation=nothing, action=nothing, lengths=nothing[:, 0, 0].long())
    found = choose_pairs(pool, config, kind)
    return found.chosen.tolist(), found.rejected.tolist()


# --- fewer labels


def test_a_budget_of_labels_is_the_first_pairs():
    whole = pick("mixed+noisy:0.3+votes:5", gaps(40))
    part = pick("mixed+noisy:0.3+votes:5+pairs:12", gaps(40))
    for name in ("chosen", "rejected", "preference_probs"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[:12]), name
    assert len(pick("pairs:40", gaps(40)).chosen) == 40
    lists = pick("graded:0-0.4+list:3+pairs:7", torch.randn(3, 40)).lists
    assert lists is not None
    assert lists.shape == (7, 3)
    with pytest.raises(UserError, match="data pairs:41 is a part of 40 pairs: raise pairs to 41"):
        pick("base+pairs:41", gaps(40))
