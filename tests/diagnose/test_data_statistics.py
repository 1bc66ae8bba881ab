"""Statistics of preference data, by hand and against the agents that made it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from torchmpo.control.kinds import parse_kind
from torchmpo.control.policy import load_policy
from torchmpo.control.pools import PoolConfig, made_by_target
from torchmpo.control.preferences import PreferenceDataset, preference_data
from torchmpo.diagnose.data_statistics import AGENTS, BINS, data_statistics, histogram_edges
from torchmpo.diagnose.run import _describe
from torchmpo.diagnose.schemas import Statistics
from torchmpo.runs.json_files import read_json
from torchmpo_envs import expert_path

PAIRS, STEPS = 40, 12


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def config():
    return PoolConfig(pairs=PAIRS, max_steps=STEPS, seed=5)


def data_of(config, kind, cache):
    return preference_data(config, kind, cache_dir=cache, progress=False)


def made_up(returns, lengths, chosen, rejected):
    """Trajectories of which only these are known."""
    nothing = torch.zeros(len(returns), 1, 1)
    pairs = torch.tensor(chosen), torch.tensor(rejected)
    return PreferenceDataset(nothing, nothing, torch.tensor(lengths), torch.tensor(returns), *pairs)


def test_the_agents_are_those_who_made_the_trajectories(config, cache):
    """By the likelihood of the recorded actions under each agent."""
    data = data_of(config, "base", cache)
    logps = {}
    for agent, name in zip(AGENTS, (config.original, config.target)):
        policy = load_policy(expert_path(name))
        with torch.no_grad():
            normal = torch.distributions.Normal(policy(data.observation[:, :4]), 0.1)
        logps[agent] = normal.log_prob(data.action[:, :4]).sum((1, 2))
    assert torch.equal(made_by_target(config), logps["target"] > logps["original"])
    other = made_by_target(PoolConfig(pairs=PAIRS, max_steps=STEPS, seed=6))
    assert not torch.equal(other, made_by_target(config))


def test_by_hand():
    # Rows: two of the original agent, two of the target, two of either, which a coin decided.
    config = PoolConfig(pairs=2, max_steps=10)
    either = made_by_target(config)[4:].tolist()
    returns = [1.0, 3.0, 5.0, 9.0, 2.0, 7.0]
    data = made_up(returns, [10, 4, 10, 10, 10, 9], chosen=[2, 1, 3], rejected=[0, 3, 3])
    found = data_statistics(config, data)
    assert found["pairs"] == 3
    assert found["pair_kinds"] == {
        "target–target": pytest.approx(1 / 3),
        "target–original": pytest.approx(2 / 3),
        "original–original": 0.0,
    }
    assert found["target_chosen"] == pytest.approx(2 / 3)
    assert found["flipped"] == pytest.approx(1 / 3)  # 3 over 9; a tie is no mistake
    assert found["chosen_return"] == pytest.approx((5 + 3 + 9) / 3)
    assert found["margin"] == {
        "mean": pytest.approx((4 - 6 + 0) / 3),
        "sd": pytest.approx(np.std([4, -6, 0], ddof=1)),
        "lowest": -6.0,
        "5 %": pytest.approx(np.quantile([4, -6, 0], 0.05)),
        "median": 0.0,
        "95 %": pytest.approx(np.quantile([4, -6, 0], 0.95)),
        "highest": 4.0,
    }
    left, right = found["margin_counts"][:BINS], found["margin_counts"][BINS:]
    assert (sum(left), sum(right), right[0]) == (1, 2, 1)  # the tie is not on the side of mistakes
    original, target = (found["agents"][agent] for agent in AGENTS)
    assert (original["trajectories"], target["trajectories"]) == (2, 2)  # row 3 counts once
    assert (original["return"]["mean"], target["return"]["mean"]) == (2.0, 7.0)
    assert (original["terminated"], target["terminated"]) == (0.5, 0.0)
    assert (original["length"]["mean"], original["length"]["lowest"]) == (7.0, 4.0)
    # The third trajectory of a start state is of the agent that the coin says.
    third = data_statistics(config, made_up(returns, [10] * 6, chosen=[4], rejected=[5]))
    assert third["agents"]["target"]["trajectories"] == sum(either)
    kinds = ("original–original", "target–original", "target–target")
    assert third["pair_kinds"][kinds[sum(either)]] == 1.0


def test_an_agent_without_trajectories_has_no_numbers():
    config = PoolConfig(pairs=2, max_steps=10)
    data = made_up([1.0, 3.0, 5.0, 9.0, 2.0, 7.0], [10] * 6, chosen=[1], rejected=[0])
    found = data_statistics(config, data)
    target = found["agents"]["target"]
    assert target["trajectories"] == 0
    assert (target["terminated"], target["return"]["mean"], target["length"]["sd"]) == (None,) * 3
    assert sum(target["return_counts"]) == 0
    assert found["margin"]["sd"] is None  # a single pair
    json.dumps(found, allow_nan=False)


def test_histograms_are_numpys_and_miss_nothing(config, cache):
    data = data_of(config, "noisy:0.4", cache)
    edges, found = histogram_edges(data), data_statistics(config, data)
    assert len(edges["return"]) == BINS + 1
    assert 0.0 in edges["margin"]
    margin = (data.returns[data.chosen] - data.returns[data.rejected]).double().numpy()
    assert found["margin_counts"] == np.histogram(margin, edges["margin"])[0].tolist()
    assert sum(found["margin_counts"]) == PAIRS
    below = sum(found["margin_counts"][:BINS])  # to the left of 0 are the flipped labels
    assert below == round(found["flipped"] * PAIRS) > 0
    for agent in AGENTS:
        entry = found["agents"][agent]
        assert sum(entry["return_counts"]) == entry["trajectories"] == PAIRS
    returns = data.returns[:PAIRS].double().numpy()
    own = found["agents"]["original"]["return_counts"]
    assert own == np.histogram(returns, edges["return"])[0].tolist()


def test_equal_returns_have_a_histogram_too():
    config = PoolConfig(pairs=2, max_steps=10)
    data = made_up([4.0] * 6, [10] * 6, chosen=[2, 3], rejected=[0, 1])
    found = data_statistics(config, data)
    assert sum(found["margin_counts"]) == 2
    assert found["flipped"] == 0.0
    assert histogram_edges(data)["return"] == sorted(set(histogram_edges(data)["return"]))


def test_each_kind_of_data_is_what_it_says(config, cache):
    found = {
        kind: data_statistics(config, data_of(config, kind, cache))
        for kind in ("base", "noisy:0.3", "noisy:1", "mixed", "bad_judge:1e9")
    }
    for kind in ("base", "noisy:0.3", "noisy:1", "bad_judge:1e9"):
        assert found[kind]["pair_kinds"]["target–original"] == 1.0
    assert found["base"]["flipped"] == found["mixed"]["flipped"] == 0.0
    assert found["noisy:1"]["flipped"] == 1.0
    assert 0 < found["noisy:0.3"]["flipped"] < 0.6
    assert 0.2 < found["bad_judge:1e9"]["flipped"] < 0.8  # a coin
    shares = found["mixed"]["pair_kinds"]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert min(shares.values()) > 0
    # The pool is one, so the edges are.
    edges = [histogram_edges(data_of(config, kind, cache)) for kind in ("base", "mixed")]
    assert edges[0] == edges[1]


def test_graded_data_says_where_imitation_ends_and_how_voters_agree(cache, config):
    own = parse_kind("graded:0-0.4+votes:5").pool(config)
    data = data_of(config, "graded:0-0.4+votes:5", cache)
    found = data_statistics(own, data)
    assert found["chosen_return"] == pytest.approx(data.returns[data.chosen].mean().item())
    assert found["agreement"] == pytest.approx(data.preference_probs.mean().item())
    assert 0.6 <= found["agreement"] <= 1
    [(maker, entry)] = found["agents"].items()
    assert maker == "0 to 0.4 of the way"
    assert entry["trajectories"] == 2 * PAIRS == sum(entry["return_counts"])
    assert (found["pair_kinds"], found["target_chosen"]) == ({}, None)
    assert found["edges"] == histogram_edges(data)
    json.dumps(found, allow_nan=False)


def test_every_pool_of_a_run_is_drawn_on_its_own_edges(config, cache, tmp_path):
    """Trajectories that share a beginning are another pool of the same two agents."""
    base = data_of(config, "base", cache)
    other = replace(base, returns=base.returns + 5000)
    beds = {
        kind: SimpleNamespace(config=SimpleNamespace(data_pool=config), dataset=data)
        for kind, data in {"base": base, "mixed": base, "base+fork:0.5": other}.items()
    }
    found = {"edges": {}, "kinds": {}}
    _describe(beds, found, tmp_path)
    read = read_json(tmp_path / "statistics.json", Statistics)
    assert read["edges"] == histogram_edges(base)
    assert "edges" not in read["kinds"]["mixed"]
    assert read["kinds"]["base+fork:0.5"]["edges"] == histogram_edges(other)
