"""Ranked lists of trajectories: who ranks them, what losses get of them, and files of them."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from populations import make_data, make_policy, make_population
from torch.distributions import Categorical, Normal

from torchmpo.control import compiler
from torchmpo.control.inner_loop import BETA1, BETA2, EPSILON, InnerConfig, train_policies
from torchmpo.control.kinds import parse_kind
from torchmpo.control.pair_files import read_pair_file
from torchmpo.control.pools import PoolConfig
from torchmpo.control.preferences import PreferenceDataset, choose_pairs
from torchmpo.control.rehearsal import check_kind, rehearse
from torchmpo.control.testbed import TestbedConfig
from torchmpo.diagnose.__main__ import main
from torchmpo.losses import dpo_loss, plackett_luce_loss
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError

STARTS = 3000


def pick(kind, returns, seed=0):
    config = PoolConfig(pairs=returns.shape[1], seed=seed)
    parsed = parse_kind(kind)
    return parsed.pairs({"returns": returns.flatten()}, parsed.pool(config))


def returns_of(size, starts=STARTS):
    return torch.randn(size, starts, generator=torch.Generator().manual_seed(1))


def listed(size=4, seed=0):
    """Random lists of the rows of ``make_data``."""
    data, gen = make_data(), torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.randperm(15, generator=gen)[:size] for _ in range(len(data))])
    return replace(data, lists=rows, chosen=rows[:, 0], rejected=rows[:, -1])


def distance(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# Who ranks


def test_a_judge_without_error_ranks_by_return():
    returns = returns_of(5)
    found = pick("list:5", returns)
    ranked = returns.flatten()[found.lists]
    assert (ranked[:, :-1] >= ranked[:, 1:]).all()
    assert torch.equal(found.lists % STARTS, torch.arange(STARTS)[:, None].expand(-1, 5))
    assert torch.equal(found.chosen, found.lists[:, 0])
    assert torch.equal(found.rejected, found.lists[:, -1])


@pytest.mark.parametrize("modifier", ["", "+noisy:0.3", "+votes:5", "+cyclic+bad_judge:0.5"])
def test_a_list_of_two_is_a_pair_with_the_same_bits(modifier):
    returns = returns_of(2)
    pairs, lists = (pick(f"graded:0-0.4{more}{modifier}", returns) for more in ("", "+list:2"))
    assert torch.equal(pairs.chosen, lists.chosen)
    assert torch.equal(pairs.rejected, lists.rejected)
    assert (pairs.preference_probs is None) == (lists.preference_probs is None)
    if pairs.preference_probs is not None:
        assert torch.equal(pairs.preference_probs, lists.preference_probs)


def test_flipped_comparisons_count_as_by_enumeration():
    """Of three, each comparison is wrong with probability 0.3; who wins most comes first."""
    chance = torch.zeros(3)
    for flips in itertools.product([False, True], repeat=3):
        share = math.prod(0.3 if flip else 0.7 for flip in flips)
        wins = [0, 0, 0]  # the true best, the middle, the worst
        for (i, j), flip in zip([(0, 1), (0, 2), (1, 2)], flips, strict=True):
            wins[j if flip else i] += 1
        first = [k for k in range(3) if wins[k] == max(wins)]
        for k in first:  # places are random
            chance[k] += share / len(first)
    found = pick("list:3+noisy:0.3", returns_of(3))
    truth = pick("list:3", returns_of(3)).lists
    shares = (found.lists[:, :1] == truth).double().mean(0)
    assert shares.tolist() == pytest.approx(chance.tolist(), abs=0.03)


def test_the_share_of_votes_is_that_of_the_first_against_the_last():
    returns = returns_of(4)
    found = pick("list:4+votes:2001", returns)
    flat = returns.flatten()
    margin = flat[found.chosen] - flat[found.rejected]
    spread = torch.stack([(a - b).abs() for a, b in itertools.combinations(returns, 2)]).mean()
    truth = torch.sigmoid(margin / (0.4 * spread))
    assert (found.preference_probs - truth).abs().max() < 0.06


def test_the_share_of_votes_can_be_below_one_half():
    """One vote a comparison, so a circle of three: the first was beaten by the last."""
    found = pick("list:3+votes:1", 0.01 * returns_of(3))
    assert set(found.preference_probs.tolist()) == {0.0, 1.0}
    assert 0 < (found.preference_probs == 0).double().mean() < 0.25


# What losses get


def one_update(objective, data, hyper):
    """A training of one update by all lists, and the gradient that a member's change shows."""
    policy = make_policy()
    start = make_population(policy, 2)
    config = InnerConfig(
        epochs=1, minibatch_pairs=len(data), compile=False, max_grad_norm=math.inf, chunk_size=2
    )
    own = {name: torch.full((2,), value).double() for name, value in hyper.items()}
    return policy, start, train_policies(policy, start, objective, own, data, config, 0)


def stepped(start, grads):
    """Adam's first step."""
    rate = 1e-3 / (1 - BETA1)
    moments = {n: ((1 - BETA1) * g, ((1 - BETA2) * g * g / (1 - BETA2)).sqrt()) for n, g in grads}
    return {name: start[name] - rate * m / (s + EPSILON) for name, (m, s) in moments.items()}


def sums_of(policy, params, data):
    """Log-probability of every whole trajectory, by torch.distributions: ``[rows]``."""
    mean = torch.func.functional_call(policy, params, (data.observation.double(),))
    logps = Normal(mean, policy.log_std.exp()).log_prob(data.action.double()).sum(-1)
    return (logps * (torch.arange(data.action.shape[1]) < data.lengths[:, None])).sum(-1)


@pytest.mark.parametrize("name", ["plackett_luce", "tpo"])
def test_an_update_is_that_of_the_closed_form(name):
    """Plackett–Luce as picks without replacement; TPO of the second, the last and the best one."""
    data, objective = listed(), resolve(name)
    policy, start, trained = one_update(objective, data, {"beta": 0.3})
    for member in range(2):
        params = {n: v[member].clone().requires_grad_() for n, v in start.items()}
        sums = sums_of(policy, params, data)
        if name == "plackett_luce":
            s = 0.3 * (sums - sums.detach())[data.lists]
            picks = (Categorical(logits=s[:, k:]).log_prob(torch.tensor(0)) for k in range(3))
            loss = -sum(picks)
        else:
            best, second, _, last = data.lists.T
            margin = sums[second] - sums[last]
            loss = -torch.nn.functional.logsigmoid(0.3 * margin) - sums[best] / data.lengths[best]
        grads = torch.autograd.grad(loss.mean(), list(params.values()))
        expected = stepped({n: v.detach() for n, v in params.items()}, list(zip(params, grads)))
        assert distance(expected, {n: v[member] for n, v in trained.items()}) < 1e-6


@pytest.mark.parametrize("name", ["plackett_luce", "tpo", "dpo", "kto_pair"])
@pytest.mark.parametrize("steps", [None, 4])
def test_a_population_on_lists_is_its_members_alone(name, steps):
    policy, objective = make_policy(), resolve(name)
    start, sets = make_population(policy, 2), [listed(), listed(seed=1)]
    config = InnerConfig(epochs=2, compile=False, chunk_size=2, steps_per_trajectory=steps)
    own = {k: v.double().expand(2) for k, v in objective.parameters_tree().items()}
    both = train_policies(policy, start, objective, own, sets, config, [3, 4])
    assert distance(both, start) > 1e-5
    one = {n: v[1:] for n, v in start.items()}
    single = {k: v[:1] for k, v in own.items()}
    alone = train_policies(policy, one, objective, single, [sets[1]], config, [4])
    assert distance({n: v[1:] for n, v in both.items()}, alone) < 1e-9


def test_lists_of_two_train_as_pairs_do():
    policy, data = make_policy(), make_data()
    start, config = make_population(policy, 2), InnerConfig(compile=False, steps_per_trajectory=4)
    own = {"beta": torch.tensor([0.1, 0.3]).double()}
    lists = replace(data, lists=torch.stack([data.chosen, data.rejected], 1))
    for loss in (dpo_loss, plackett_luce_loss):
        args = (policy, start, Objective(loss), own)
        pairs, two = (train_policies(*args, own_data, config, 0) for own_data in (data, lists))
        assert distance(pairs, two) == 0


def test_one_program_for_each_length_of_lists(monkeypatch):
    """Two lists of four trajectories have the shapes of four pairs."""
    monkeypatch.setattr(compiler, "compiled", lambda update, args: update)
    policy, objective = make_policy(), resolve("plackett_luce")
    start = make_population(policy, 1)
    own = {"beta": torch.tensor([0.3]).double()}
    for size, batch in ((4, 2), (2, 4)):
        results = []
        for compiled in (True, False):
            config = InnerConfig(epochs=1, minibatch_pairs=batch, compile=compiled)
            results.append(train_policies(policy, start, objective, own, listed(size), config, 0))
        assert distance(*results) == 0


def test_a_pair_has_no_third_trajectory():
    with pytest.raises(UserError, match=r"tpo reads gold_mean_logps, of a third trajectory, and "):
        one_update(resolve("tpo"), make_data(), {"beta": 0.1})
    for kind in ("base", "best_of:4", "list:2"):
        with pytest.raises(UserError, match=rf"and {kind} has pairs: take lists"):
            check_kind(resolve("tpo"), kind)
    check_kind(resolve("tpo"), "degraded:4+list:3")
    check_kind(resolve("tpo"), "pairs.npz")  # shows when it is read


def test_a_loss_is_tried_on_lists_of_the_length_it_will_get():
    seen = set()

    def loss(list_logps):
        seen.add(list_logps.shape[-1])
        return -list_logps[..., 0]

    rehearse(Objective(loss), [{}, {}], TestbedConfig(data="list:4"))
    assert 4 in seen


def test_a_run_tries_its_losses_on_lists_of_every_length(tmp_path, monkeypatch, capsys):
    """One that fails on the lists of the second kind says so before any data is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    body = "    assert list_logps.shape[-1] < 4\n    return -list_logps[..., 0]\n"
    (tmp_path / "short_lists.py").write_text(f"def loss(list_logps):\n{body}")
    words = ["--preset", "smoke", "--losses", "short_lists:loss", "--out", "run", "--data"]
    assert main([*words, "list:3,list:4"]) == 2
    assert "short_lists:loss" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_lists_of_unequal_lengths_are_no_population():
    policy, objective = make_policy(), resolve("plackett_luce")
    own = {"beta": torch.tensor([0.1, 0.1]).double()}
    args = (policy, make_population(policy, 2), objective, own, [listed(3), listed(4)])
    with pytest.raises(UserError, match=r"must have lists of one length: \{3, 4\}"):
        train_policies(*args, InnerConfig(compile=False), [0, 1])


# Files


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_file_keeps_lists(tmp_path, suffix):
    data, path = listed(), str(tmp_path / f"lists.{suffix}")
    data.save(path)
    pool, config = read_pair_file(path), PoolConfig(pairs=1)
    same = choose_pairs(pool, config, path)
    assert torch.equal(same.ranked, data.lists)
    assert torch.equal(same.take(3).ranked, data.lists[:3])
    flipped = choose_pairs(pool, config, f"{path}+noisy:1")
    assert torch.equal(flipped.lists, data.lists.flip(1))
    judged = choose_pairs(pool, config, f"{path}+bad_judge:0")
    ranked = data.returns[judged.lists]
    assert (ranked[:, :-1] >= ranked[:, 1:]).all()


def test_lists_from_python():
    rows = [{"observation": [[0.1]], "action": [[k]], "return": k} for k in (1.0, 2.0, 3.0)]
    data = PreferenceDataset.from_trajectories(rows, [(2, 1, 0), (1, 2, 0)])
    assert data.lists.tolist() == [[2, 1, 0], [1, 2, 0]]
    assert (data.chosen.tolist(), data.rejected.tolist()) == ([2, 1], [0, 0])
    with pytest.raises(UserError, match="list 1 has a trajectory twice"):
        PreferenceDataset.from_trajectories(rows, [(2, 1, 0), (1, 1, 0)])
    with pytest.raises(UserError, match="lists must name trajectories, from 0 to 2"):
        PreferenceDataset.from_trajectories(rows, [(2, 3, 0)])
