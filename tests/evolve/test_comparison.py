"""The final comparison: other data, paired seeds, rivals tuned on the data of the search."""

import math

import pytest
import torch

from torchmpo.control.inner_loop import InnerConfig
from torchmpo.control.pools import PoolConfig
from torchmpo.control.testbed import Trial
from torchmpo.control.tuning import Protocol
from torchmpo.evolve import comparison
from torchmpo.evolve.comparison import (
    Contestant,
    contestant,
    fresh_trials,
    seed_returns,
    tune_rival,
)
from torchmpo.objectives.resolve import resolve

PROTOCOL = Protocol(tuning_episodes=2, episodes=2, sft_epochs=1, seed=5)


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """Real data and training, small: two kinds of pairs of the same trajectories."""
    inner = InnerConfig(epochs=2, steps_per_trajectory=5, compile=False)
    pool = PoolConfig(task="tla", pairs=4, max_steps=20)
    cache = str(tmp_path_factory.mktemp("cache"))
    first = Trial(pool=pool, data="base", inner=inner, num_threads=1, cache_dir=cache)
    return [first, first.changed(data="noisy:0.3")]


def orpo(*coefs):
    return Contestant(resolve("orpo"), {"po_coef": torch.tensor(coefs)})


def test_fresh_data_has_other_trajectories_of_the_same_kinds(trials):
    fresh = fresh_trials(trials, 5)
    assert [t.data for t in fresh] == ["base", "noisy:0.3"]
    assert fresh[0].pool == fresh[1].pool
    assert not torch.equal(fresh[0].dataset.observation, trials[0].dataset.observation)
    assert fresh[0].pool.seed != fresh_trials(trials, 6)[0].pool.seed


def test_equal_contestants_have_equal_returns_on_every_seed(trials):
    rivals = {"one": orpo(0.1), "other": orpo(5.0), "again": orpo(0.1)}
    returns = seed_returns(trials, rivals, 3, 2, PROTOCOL, "final")
    assert list(returns) == ["one", "other", "again"]
    assert returns["one"].shape == (2, 3)
    assert torch.equal(returns["one"], returns["again"])
    assert not torch.equal(returns["one"], returns["other"])
    assert len(returns["one"].unique()) == 6  # seeds and kinds of data differ


def test_streams_are_independent(trials):
    final, held_out = (
        seed_returns(trials[:1], {"one": orpo(0.1)}, 2, 2, PROTOCOL, stream)["one"]
        for stream in ("final", "held out")
    )
    assert not torch.equal(final, held_out)


def test_a_diverged_seed_is_nan_and_touches_no_other(trials):
    rivals = {"fine": orpo(0.1), "broken": orpo(math.nan)}
    returns = seed_returns(trials[:1], rivals, 2, 2, PROTOCOL, "final")
    alone = seed_returns(trials[:1], {"fine": orpo(0.1)}, 2, 2, PROTOCOL, "final")
    assert returns["broken"].isnan().all()
    torch.testing.assert_close(returns["fine"], alone["fine"])


def test_a_loss_with_a_reference_spends_epochs_on_sft(trials, monkeypatch):
    inners = {}
    train = Trial.train

    def spy(trial, objective, *args, **kwargs):
        inners[objective.name] = (trial.inner.sft_epochs, trial.inner.epochs)
        return train(trial, objective, *args, **kwargs)

    monkeypatch.setattr(Trial, "train", spy)
    rivals = {"dpo": contestant(resolve("dpo"), {"beta": 0.1}), "orpo": orpo(0.1)}
    seed_returns(trials[:1], rivals, 2, 2, PROTOCOL, "final")
    assert inners == {"dpo": (1, 1), "orpo": (0, 2)}


SCORES = {  # kind → setting → tuning seed
    "base": [[1.0], [4.0], [3.0]],
    "noisy:0.3": [[2.0], [-4.0], [1.0]],
}


@pytest.mark.parametrize(
    ("combine", "best", "score"), [("mean", 2, 2.0), ("worst", 0, 1.0)], ids=["mean", "worst"]
)
def test_a_rival_is_tuned_for_what_the_search_maximises(trials, monkeypatch, combine, best, score):
    monkeypatch.setattr(comparison, "tune", lambda trial, *_: SCORES[trial.data])
    settings = [{"po_coef": 0.1}, {"po_coef": 0.2}, {"po_coef": 0.3}]
    monkeypatch.setattr(comparison, "grid", lambda objective, budget: settings[:budget])
    tuned = tune_rival(trials, resolve("orpo"), 3, PROTOCOL, combine)
    assert tuned == (settings[best], score, 3)


def test_a_rival_that_always_diverges_has_no_setting(trials, monkeypatch):
    monkeypatch.setattr(comparison, "tune", lambda *_: [[math.nan], [math.nan]])
    assert tune_rival(trials, resolve("sft"), 2, PROTOCOL, "mean") == ({}, None, 0)  # is not tuned
    assert tune_rival(trials, resolve("orpo"), 2, PROTOCOL, "mean") is None
