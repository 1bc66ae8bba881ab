"""Training in rounds: one round is the offline run, own pairs are of the policies, labels equal."""

from dataclasses import replace

import pytest
import torch

from torchmpo.control.inner_loop import InnerConfig, train_policies
from torchmpo.control.kinds import Kind, parse_kind
from torchmpo.control.pools import PoolConfig
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.control.rounds import Rounds, own_pairs, own_rows, train_in_rounds
from torchmpo.control.testbed import TestbedConfig, prepare
from torchmpo.diagnose.settings import DiagnoseConfig
from torchmpo.diagnose.setup import Setup as Diagnosis
from torchmpo.evolve.settings import EvolveConfig
from torchmpo.evolve.setup import Setup as Search
from torchmpo.games.self_play import queue_win_rates
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError

INNER = InnerConfig(
    epochs=1, minibatch_pairs=2, steps_per_trajectory=5, compile=False, learning_rate=1e-3
)
POOL = PoolConfig(pairs=8, max_steps=12)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("pools"))


def bed_of(cache, data="base", *, inner=INNER, pool=POOL, **rounds):
    config = TestbedConfig(
        pool=pool, data=data, inner=inner, cache_dir=cache, num_threads=1, rounds=Rounds(**rounds)
    )
    return prepare([config])[0]


def train(bed, loss="orpo", members=2, seed=3, **more):
    objective = resolve(loss)
    tree = objective.parameters_tree()
    own = {name: torch.full((members,), float(value)) for name, value in tree.items()}
    return bed.train(objective, own, members, seed, **more)


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("loss", ["orpo", "dpo"])
def test_one_round_is_the_offline_run(cache, loss):
    inner = replace(INNER, sft_epochs=1)
    bed = bed_of(cache, inner=inner)
    objective = resolve(loss)
    own = {n: torch.full((2,), float(v)) for n, v in objective.parameters_tree().items()}
    args = (bed.policy, bed.initial(2, 3), objective, own, bed.dataset, inner, 3)
    offline = train_policies(*args)
    assert same(train(bed, loss), offline)
    assert same(train_in_rounds(bed, objective, own, bed.initial(2, 3), 3), offline)


def test_a_first_round_is_an_offline_run_on_the_first_pairs(cache):
    """And with a rate of next to nothing the rounds after it change next to nothing."""
    bed, seen = bed_of(cache, count=4), []
    train(bed, on_data=seen.append)
    assert [len(data[0]) for data in seen] == [2, 2, 2, 2]
    assert [len(data) for data in seen] == [2] * 4
    first = bed.dataset.take(2)
    assert torch.equal(seen[0][1].chosen, first.chosen)
    assert torch.equal(seen[0][0].action, first.action)


@pytest.mark.parametrize("loop", ["iterated", "spin", "extragradient", "spo"])
def test_labels_are_those_of_the_offline_run(cache, loop):
    bed, seen = bed_of(cache, count=2, loop=loop), []
    train(bed, on_data=seen.append)
    assert sum(len(data[0]) for data in seen) == len(bed.dataset)


def test_own_pairs_are_of_the_policies_and_judged_by_their_returns(cache):
    bed = bed_of(cache, "base+noisy:0")
    params = bed.initial(2, 0)
    data = own_pairs(bed, params, 4, 5)
    for own in data:
        assert (own.returns[own.chosen] >= own.returns[own.rejected]).all()
        noise = own.action - bed.policy(own.observation)
        counted = torch.arange(12) < own.lengths[:, None]
        assert noise[counted].std().item() == pytest.approx(POOL.behaviour_std, rel=0.1)
    assert torch.equal(data[0].action, data[1].action)  # equal policies, one seed
    flipped = own_pairs(bed_of(cache, "noisy:1"), params, 4, 5)
    assert torch.equal(flipped[0].chosen, data[0].rejected)
    others = own_pairs(bed, params, 4, [5, 6])
    assert torch.equal(others[0].action, data[0].action)
    assert not torch.equal(others[1].action, data[1].action)


def test_own_trajectories_return_what_the_simulation_gives(cache):
    """Replayed in an environment of its own, action by action."""
    from tensordict import TensorDict

    from torchmpo.control.environments import make_environment
    from torchmpo.runs.seeding import generator

    bed = bed_of(cache)
    rows = own_rows(bed, bed.initial(1, 0), 3, 2, 9)[0]
    env = make_environment("tla", 6, max_steps=12, num_threads=1)
    start = env.start_states(3, generator(9, "start states")).repeat(2, 1)
    state = env.reset(TensorDict({"start_state": start}, [6]))
    total = torch.zeros(6)
    for step in range(12):
        assert torch.equal(state["observation"], rows["observation"][:, step])
        state = env.step(state.set("action", rows["action"][:, step]))["next"]
        total += state["reward"].squeeze(-1)
    assert torch.equal(total, rows["returns"])


def test_own_trajectories_do_not_depend_on_how_many_run_at_once(cache, monkeypatch):
    from torchmpo.control import rounds

    bed = bed_of(cache)
    params = {
        name: value + 0.01 * torch.randn(value.shape) for name, value in bed.initial(3, 0).items()
    }
    whole = own_rows(bed, params, 4, 2, [1, 2, 3])
    monkeypatch.setattr(rounds, "simulations", lambda task: 8)
    for one, other in zip(whole, own_rows(bed, params, 4, 2, [1, 2, 3]), strict=True):
        torch.testing.assert_close(one["action"], other["action"], rtol=0, atol=1e-4)
        assert torch.equal(one["lengths"], other["lengths"])


def test_a_member_does_not_depend_on_the_others(cache):
    bed = bed_of(cache, count=2)
    both, one = train(bed, seed=[3, 4]), train(bed, members=1, seed=[4])
    for name, value in one.items():
        torch.testing.assert_close(both[name][1], value[0], rtol=1e-4, atol=1e-5)


def test_the_reference_is_the_policy_of_the_last_refresh(cache):
    """Under a loss of the reference alone there is a difference in the second round only."""
    inner = replace(INNER, sft_epochs=1, learning_rate=1e-2)
    beds = [bed_of(cache, inner=inner, count=2, reference_refresh=m) for m in (1, 0)]
    seen = []
    fresh, frozen = (train(bed, "dpo", on_data=seen.append) for bed in beds)
    assert all(torch.equal(seen[1][k].action, seen[3][k].action) for k in range(2))
    assert not same(fresh, frozen)
    assert same(train(beds[0], "orpo"), train(beds[1], "orpo"))  # it has no reference


@pytest.mark.parametrize("a", [0.0, 0.5, 0.8])
def test_extrapolation_gains_what_a_geometric_series_does(cache, monkeypatch, a):
    """Where a round moves a policy by 1, the moves between rounds grow to 1/(1 − a)."""
    from torchmpo.control import rounds

    ends = []

    def one_further(policy, params, *args, **settings):
        ends.append({name: value + 1 for name, value in params.items()})
        return ends[-1]

    monkeypatch.setattr(rounds, "train_policies", one_further)
    monkeypatch.setattr(rounds, "own_pairs", lambda bed, *args: [bed.dataset] * 2)
    pool = replace(POOL, pairs=96)
    last = train(bed_of(cache, pool=pool, count=48, extrapolation=a))
    name = next(iter(last))
    moves = [float((y[name] - x[name]).mean()) for x, y in zip(ends, ends[1:], strict=False)]
    assert moves[0] == pytest.approx(1, abs=1e-4)
    assert moves[-1] == pytest.approx(1 / (1 - a), rel=1e-3)
    assert same(last, ends[-1])  # nothing after the last round


def test_self_play_sets_the_datas_chosen_trajectories_against_own_ones(cache):
    seen = []
    bed = bed_of(cache, count=2, loop="spin")
    train(bed, on_data=seen.append)
    for part, begin in zip(seen, (0, 4), strict=True):
        own = part[0]
        rows = bed.dataset.chosen[begin : begin + 4]
        assert torch.equal(own.action[own.chosen], bed.dataset.action[rows])
        assert not torch.isin(own.returns[own.rejected], bed.dataset.returns).any()


def test_self_play_on_trajectories_of_another_time_limit(cache, tmp_path):
    longer = bed_of(cache, pool=replace(POOL, max_steps=20)).dataset
    longer.save(tmp_path / "pairs.npz")
    bed = bed_of(cache, str(tmp_path / "pairs.npz"), count=2, loop="spin")
    assert all(value.isfinite().all() for value in train(bed).values())


def test_self_play_on_trajectories_that_count_from_a_later_step_is_refused(cache, tmp_path):
    own = bed_of(cache).dataset
    replace(own, begins=torch.ones_like(own.lengths)).save(tmp_path / "pairs.npz")
    bed = bed_of(cache, str(tmp_path / "pairs.npz"), count=2, loop="spin")
    with pytest.raises(UserError, match="loop spin compares whole trajectories"):
        train(bed)


def test_an_extragradient_round_steps_from_where_its_half_step_began(cache, monkeypatch):
    from torchmpo.control import rounds

    begins, real = [], rounds.train_policies

    def spy(policy, params, *args, **settings):
        begins.append({name: value.clone() for name, value in params.items()})
        return real(policy, params, *args, **settings)

    monkeypatch.setattr(rounds, "train_policies", spy)
    train(bed_of(cache, count=2, loop="extragradient"), "ipo")
    assert same(begins[0], begins[1])
    assert same(begins[2], begins[3])
    assert not same(begins[1], begins[2])


def test_what_is_watched_at_the_end_is_what_training_gives(cache):
    """With extrapolation, too: margins and returns are of the same policies."""
    seen = {}

    def watch(epoch, members, params):
        for place, member in enumerate(members):
            seen[epoch, member] = {name: value[place].clone() for name, value in params.items()}

    end = train(bed_of(cache, count=2, extrapolation=0.5), on_epoch=watch)
    for member in range(2):
        assert same(seen[2, member], {name: value[member] for name, value in end.items()})


def test_own_ones_against_chosen_ones_show_losses_the_same_rewards(cache):
    """What the kind lets losses see, and not the returns, whoever made the trajectory."""
    from torchmpo.control.components import return_components

    bed, seen = bed_of(cache, "objectives:0.7", count=2, loop="spin"), []
    train(bed, on_data=seen.append)
    own = seen[1][0]
    rows = {n: getattr(own, n) for n in ("observation", "action", "lengths", "returns")}
    rest = own.returns - return_components("tla", 12, rows)["velocity"]
    torch.testing.assert_close(own.rewards, rest.to(own.rewards), rtol=0, atol=1e-4)
    assert torch.equal(own.rewards[own.chosen], bed.dataset.rewards[bed.dataset.chosen[4:]])


def test_lists_of_a_file_go_on_as_lists(cache, tmp_path):
    path = tmp_path / "lists.npz"
    bed_of(cache, "graded:0-0.4+list:3").dataset.save(path)
    bed, seen = bed_of(cache, str(path), count=2), []
    train(bed, "plackett_luce", on_data=seen.append)
    assert [tuple(data[0].lists.shape) for data in seen] == [(4, 3), (4, 3)]


def test_a_kept_reference_moves_on_from_where_it_is(cache):
    """A step of next to no size leaves it there, and does not make it the policy."""
    frozen = replace(INNER, learning_rate=1e-2)
    moved = replace(frozen, reference_sync=1, reference_mix=1e-6)
    beds = [bed_of(cache, inner=inner, count=2, reference_refresh=0) for inner in (frozen, moved)]
    ends = [train(bed, "dpo") for bed in beds]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-4)


def test_rounds_of_a_smaller_budget_are_refused_before_training(cache):
    with pytest.raises(UserError, match="2 pairs in 2 rounds are too few for updates of 2"):
        bed_of(cache, "pairs:2", count=2)


def test_a_loss_of_lists_is_refused_where_rounds_have_pairs(cache):
    with pytest.raises(UserError, match="loop spin compares two trajectories"):
        bed_of(cache, "graded:0-0.4+list:3", count=2, loop="spin")
    bed, seen = bed_of(cache, "graded:0-0.4", count=2, loop="spin"), []
    with pytest.raises(UserError, match="a round of loop spin has pairs"):
        train(bed, "tpo", on_data=seen.append)
    assert not seen  # before anything is trained


def test_a_policy_that_diverged_disturbs_nobody(cache):
    bed = bed_of(cache)
    params = bed.initial(2, 0)
    for value in params.values():
        value[1] = torch.nan
    rows = own_rows(bed, params, 2, 2, 5)
    alone = own_rows(bed, bed.initial(1, 0), 2, 2, 5)[0]
    assert rows[1]["action"].isfinite().all()
    torch.testing.assert_close(rows[0]["action"], alone["action"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("data", ["base+best_of:3", "graded:0-0.4+best_of:3"])
def test_the_best_of_own_ones(cache, data):
    if data.startswith("base"):
        with pytest.raises(UserError):
            bed_of(cache, data)
        return
    own = own_pairs(bed_of(cache, data), bed_of(cache).initial(1, 0), 4, 5)[0]
    assert len(own.returns) == 12
    best = own.returns.view(3, 4).max(0).values
    assert torch.equal(own.returns[own.chosen], best)


def rows_of(data):
    """The actions of the trajectories of every pair or list, ``[pairs, n, time, actions]``."""
    return data.action[data.ranked]


@pytest.mark.parametrize(
    ("loop", "data"), [("iterated", "votes:3"), ("spin", "base"), ("spo", "base")]
)
def test_a_round_may_train_on_all_pairs_so_far(cache, monkeypatch, loop, data):
    """In as many updates, and every label is paid for once."""
    from torchmpo.control import inner_loop, rounds

    told, trained, updates, real = [], [], [], rounds.train_policies
    draw = inner_loop._Loop.draw

    def spy(policy, params, objective, tree, given, *args, **settings):
        trained.append(given[0] if isinstance(given, list) else given)
        return real(policy, params, objective, tree, given, *args, **settings)

    def count(self, phase, epoch, number, seed):
        updates.append(number)
        return draw(self, phase, epoch, number, seed)

    monkeypatch.setattr(rounds, "train_policies", spy)
    monkeypatch.setattr(inner_loop._Loop, "draw", count)
    bed = bed_of(cache, data, pool=replace(POOL, pairs=9), count=3, loop=loop, replay="all")
    train(bed, seed=3, on_data=told.append)
    assert [len(part[0]) for part in told] == [3, 3, 3]
    assert [len(part) for part in trained] == [3, 6, 9]
    assert set(updates) == {1}
    for k, part in enumerate(trained):
        so_far = torch.cat([rows_of(own[0]) for own in told[: k + 1]])
        assert torch.equal(rows_of(part), so_far)
    if data == "votes:3":
        probs = torch.cat([own[0].preference_probs for own in told])
        assert torch.equal(trained[-1].preference_probs, probs)
    updates.clear()
    train(bed_of(cache, data, pool=replace(POOL, pairs=9), count=3, loop=loop), seed=3)
    assert set(updates) == {1}


def test_every_epoch_draws_from_all_pairs(cache):
    """Of an epoch that is smaller than the data, no pair comes twice; each comes at some time."""
    from torchmpo.control.inner_loop import _Loop

    bed = bed_of(cache)
    loop = _Loop(bed.policy, [bed.dataset], INNER, next(iter(bed.initial(1, 0).values())))
    epochs = [loop.draw("preference", epoch, 2, 0)[0].flatten().tolist() for epoch in range(30)]
    assert all(len(set(epoch)) == 4 for epoch in epochs)
    assert {pair for epoch in epochs for pair in epoch} == set(range(8))


def test_data_sets_are_joined_with_what_only_some_have(cache, tmp_path):
    voted = bed_of(cache, "base+votes:3+fork:0.5").dataset
    longer = bed_of(cache, "objectives:0.7", pool=replace(POOL, max_steps=20)).dataset.take(3)
    both = PreferenceDataset.joined([voted, longer])
    assert both.action.shape[:2] == (16 + 6, 20)
    assert torch.equal(both.action[both.chosen[8:]], longer.action[longer.chosen])
    assert torch.equal(both.action[both.rejected[:8], :12], voted.action[voted.rejected])
    assert torch.equal(both.preference_probs[:8], voted.preference_probs)
    assert both.preference_probs[8:].tolist() == [1.0] * 3
    assert torch.equal(both.rewards[both.chosen[8:]], longer.rewards[longer.chosen])
    assert torch.equal(both.rewards[both.chosen[:8]], voted.returns[voted.chosen])
    assert torch.equal(both.first[both.chosen], torch.cat([torch.full((8,), 6), torch.zeros(3)]))
    alone = PreferenceDataset.joined([bed_of(cache, "graded:0-0.4+list:3").dataset] * 2)
    assert alone.lists.shape == (16, 3)
    assert alone.preference_probs is alone.rewards is alone.begins is None


# --- self-play with win rates


def test_win_rates_of_a_judge_without_error_are_the_order_of_returns(cache):
    """So the lists are those of list:N, and the pair is of the best and the worst."""
    spo = bed_of(cache, "graded:0-0.4+list:5", count=2, loop="spo")
    params = spo.initial(1, 0)
    own = own_pairs(spo, params, 4, 5)[0]
    assert own.lists.shape == (4, 5)
    returns = own.returns[own.lists]
    assert (returns[:, :-1] > returns[:, 1:]).all()
    assert torch.equal(own.rewards[own.lists], torch.tensor([[1, 0.75, 0.5, 0.25, 0]] * 4))
    listed = own_pairs(bed_of(cache, "graded:0-0.4+list:5", count=2), params, 4, 5)[0]
    assert torch.equal(own.lists, listed.lists)
    assert torch.equal(own.action, listed.action)


@pytest.mark.parametrize(("data", "count"), [("base", 4), ("graded:0-0.4+best_of:3", 3)])
def test_self_play_with_win_rates_is_of_own_trajectories_in_every_round(cache, data, count):
    seen = []
    bed = bed_of(cache, data, count=2, loop="spo")
    train(bed, on_data=seen.append)
    for own, _ in seen:
        assert own.lists.shape == (4, count)
        assert not torch.isin(own.returns, bed.dataset.returns).any()
        assert own.simulated_steps == own.lengths.sum()
    assert not torch.equal(seen[1][0].action, seen[0][0].action)


def spo_pairs(kind, returns):
    """Of made-up trajectories ``[n, starts]``."""
    n, starts = returns.shape
    judged = Kind("base", (), (*parse_kind(kind).modifiers, ("list", n)))
    return judged.by_win_rate({"returns": returns.flatten()}, PoolConfig(pairs=starts))


def test_win_rates_under_a_cyclic_judge_are_the_closed_form():
    """Styles are ranks as parts of a turn, and m = m̄·sin 2π(q − q′)."""
    returns = torch.tensor([[1.0, 2.0], [5.0, 3.0], [4.0, 6.0]])
    found = spo_pairs("cyclic+bad_judge:2", returns)
    q = (returns.flatten()[:, None] > returns.flatten()).sum(1).view(3, 2) / 6
    sizes = torch.stack([(returns[i] - returns[j]).abs() for i, j in ((0, 1), (0, 2), (1, 2))])
    margins = sizes.mean() * torch.sin(2 * torch.pi * (q[:, None] - q[None]))
    expected = (torch.sigmoid(margins / 2).sum(1) - 0.5) / 2  # without itself
    torch.testing.assert_close(found.rewards.view(3, 2), expected)
    order = expected.argsort(0, descending=True).T
    assert torch.equal(found.lists, order * 2 + torch.arange(2)[:, None])
    # Three that beat each other in a circle win a half each, however sure the judge is.
    circle = torch.tensor([[1.0], [2.0], [3.0]])
    for judge in ("cyclic", "cyclic+bad_judge:0.5"):
        torch.testing.assert_close(spo_pairs(judge, circle).rewards, torch.full((3,), 0.5))


@pytest.mark.parametrize(
    ("kind", "beats"),
    [
        ("bad_judge:2", lambda m: torch.sigmoid(m / 2)),
        ("noisy:0.2", lambda m: torch.where(m > 0, 0.8, 0.2)),
        ("bad_judge:2+noisy:0.2", lambda m: 0.2 + 0.6 * torch.sigmoid(m / 2)),
    ],
)
def test_an_erring_judges_probabilities_are_averaged_over_the_others(kind, beats):
    """A queue of the others, see the games' win rates."""
    returns = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 3
    found = spo_pairs(kind, returns)
    rates = found.rewards.view(5, 40)
    for start in (0, 7):
        for k in range(5):
            others = torch.cat([returns[:k, start], returns[k + 1 :, start]])
            own = returns[k : k + 1, start]
            rate = queue_win_rates(lambda a, b: beats(a - b), own, others)[0]
            assert rates[k, start].item() == pytest.approx(rate.item(), abs=1e-5)
    assert torch.equal(found.chosen % 40, torch.arange(40))
    assert torch.equal(rates.max(0).values, found.rewards[found.chosen])


def test_votes_are_cast_and_their_share_is_known():
    returns = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    found = spo_pairs("votes:3", returns)
    thirds = found.preference_probs * 3
    torch.testing.assert_close(thirds, thirds.round())
    assert ((found.rewards * 9 - (found.rewards * 9).round()).abs() < 1e-4).all()
    assert thirds.mean() > 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "rounds must be at least 1"),
        ({"count": 2, "loop": "nash"}, "unknown loop 'nash'"),
        ({"count": 2, "extrapolation": 1.0}, r"extrapolation must be in \[0, 1\)"),
        ({"count": 2, "reference_refresh": -1}, "must not be negative"),
        ({"loop": "spin"}, "for rounds of 2 or more"),
        ({"replay": "all"}, "for rounds of 2 or more"),
        ({"count": 2, "replay": "some"}, "unknown replay 'some'"),
        ({"count": 2, "replay": "all", "loop": "extragradient"}, "so replay must be new"),
    ],
)
def test_mistakes_are_told(settings, message):
    with pytest.raises(UserError, match=message):
        Rounds(**settings)


def test_rounds_of_fewer_pairs_than_an_update_are_refused():
    with pytest.raises(UserError, match="8 pairs in 5 rounds are too few for updates of 2"):
        Rounds(5).check(8, 2)
    with pytest.raises(UserError, match="too few"):
        Rounds(4, loop="extragradient").check(8, 2)
    Rounds(4).check(8, 2)
    with pytest.raises(UserError, match="loop spin compares two trajectories, and"):
        Rounds(2, loop="spin").check(8, 2, "graded:0-0.4+list:4")


def test_a_judge_of_levels_of_noise_judges_no_further_round():
    with pytest.raises(UserError, match=r"bad_judge in degraded:4.* is in levels of noise"):
        Rounds(2).check(8, 2, "degraded:4+bad_judge:0.5")
    for rounds, kind in ((1, "degraded:4+bad_judge:0.5"), (2, "base+bad_judge:0.5")):
        Rounds(rounds).check(8, 2, kind)


@pytest.mark.parametrize("setup", [Diagnosis, Search])
@pytest.mark.parametrize("data", ["base,graded:0-0.4+list:4", "base,base+fork:0.5"])
def test_every_kind_of_data_must_suit_the_loop(setup, data):
    config = (DiagnoseConfig if setup is Diagnosis else EvolveConfig)(
        data=data, loop="spin", rounds=2
    )
    with pytest.raises(UserError, match=r"loop spin compares t"):
        setup.of(config)
