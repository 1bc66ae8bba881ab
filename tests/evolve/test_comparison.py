"""The final comparison: other data, paired seeds, rivals tuned on the data of the search."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from torchmpo.control.grids import rate_grid, start_setting
from torchmpo.control.inner_loop import InnerConfig
from torchmpo.control.pools import PoolConfig
from torchmpo.control.testbed import Testbed, TestbedConfig, prepare, prepare_fresh
from torchmpo.control.tuning import Protocol
from torchmpo.evolve import comparison
from torchmpo.evolve.comparison import (
    Contestant,
    contestant,
    seed_returns,
    tune_rival,
)
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.seeding import derive_seed
from torchmpo.statistics import compare, verdict

PROTOCOL = Protocol(tuning_episodes=2, episodes=2, sft_epochs=1, seed=5)


@pytest.fixture(scope="module")
def beds(tmp_path_factory):
    """Real data and training, small: two kinds of pairs of the same trajectories."""
    inner = InnerConfig(epochs=2, steps_per_trajectory=5, compile=False)
    pool = PoolConfig(task="tla", pairs=4, max_steps=20)
    cache = str(tmp_path_factory.mktemp("cache"))
    first = TestbedConfig(pool=pool, data="base", inner=inner, num_threads=1, cache_dir=cache)
    return prepare([first, replace(first, data="noisy:0.3")])


def orpo(*coefs):
    return Contestant(resolve("orpo"), {"po_coef": torch.tensor(coefs)})


def test_equal_contestants_have_equal_returns_on_every_seed(beds):
    rivals = {"one": orpo(0.1), "other": orpo(5.0), "again": orpo(0.1)}
    returns = seed_returns(beds, rivals, 3, 2, PROTOCOL, "final")
    assert list(returns) == ["one", "other", "again"]
    assert returns["one"].shape == (2, 3)
    assert torch.equal(returns["one"], returns["again"])
    assert not torch.equal(returns["one"], returns["other"])
    assert len(returns["one"].unique()) == 6  # seeds and kinds of data differ


@pytest.mark.parametrize("loss", ["orpo", "dpo"])
def test_seeds_with_data_of_their_own_are_as_on_that_data_alone(beds, loss, tmp_path):
    fresh = [prepare_fresh(beds, seed, cache_dir=str(tmp_path)) for seed in (8, 9)]
    assert [d.name for d in tmp_path.iterdir()] != []
    objective = resolve(loss)
    rivals = {loss: contestant(objective, start_setting(objective))}
    data = [[own[kind].dataset for own in fresh] for kind in range(2)]
    both = seed_returns(beds, rivals, 2, 2, PROTOCOL, "final", data=data)[loss]
    for i, own in enumerate(fresh):
        on_it = seed_returns(own, rivals, 2, 2, PROTOCOL, "final")[loss]
        torch.testing.assert_close(both[:, i], on_it[:, i])
    on_one = seed_returns(beds, rivals, 2, 2, PROTOCOL, "final")[loss]
    assert not (on_one == both).any()


def test_streams_are_independent(beds):
    final, held_out = (
        seed_returns(beds[:1], {"one": orpo(0.1)}, 2, 2, PROTOCOL, stream)["one"]
        for stream in ("final", "held out")
    )
    assert not torch.equal(final, held_out)


def test_a_diverged_seed_is_nan_and_touches_no_other(beds):
    rivals = {"fine": orpo(0.1), "broken": orpo(math.nan)}
    returns = seed_returns(beds[:1], rivals, 2, 2, PROTOCOL, "final")
    alone = seed_returns(beds[:1], {"fine": orpo(0.1)}, 2, 2, PROTOCOL, "final")
    assert returns["broken"].isnan().all()
    torch.testing.assert_close(returns["fine"], alone["fine"])


def test_a_loss_with_a_reference_spends_epochs_on_sft(beds, monkeypatch):
    inners = {}
    train = Testbed.train

    def spy(bed, objective, *args, **kwargs):
        inners[objective.name] = (bed.config.inner.sft_epochs, bed.config.inner.epochs)
        return train(bed, objective, *args, **kwargs)

    monkeypatch.setattr(Testbed, "train", spy)
    rivals = {"dpo": contestant(resolve("dpo"), {"beta": 0.1}), "orpo": orpo(0.1)}
    seed_returns(beds[:1], rivals, 2, 2, PROTOCOL, "final")
    assert inners == {"dpo": (1, 1), "orpo": (0, 2)}


SCORES = {  # kind → po_coef → score
    "base": {0.1: 1.0, 0.2: 4.0, 0.3: 3.0},
    "noisy:0.3": {0.1: 2.0, 0.2: -4.0, 0.3: 1.0},
}


def known_scores(bed, objective, settings, protocol, k):
    return torch.tensor([SCORES[bed.config.data][setting["po_coef"]] for setting in settings])


@pytest.mark.parametrize(
    ("combine", "best", "score"), [("mean", 2, 2.0), ("worst", 0, 1.0)], ids=["mean", "worst"]
)
def test_a_rival_is_tuned_for_what_the_search_maximises(beds, monkeypatch, combine, best, score):
    monkeypatch.setattr(comparison, "tuning_scores", known_scores)
    settings = [{"po_coef": 0.1}, {"po_coef": 0.2}, {"po_coef": 0.3}]
    monkeypatch.setattr(comparison, "grid", lambda objective, budget, rate: settings[:budget])
    tuned = tune_rival(beds, resolve("orpo"), 3, PROTOCOL, combine)
    assert tuned == (settings[best], score, 3)


def test_a_rival_that_always_diverges_has_no_setting(beds, monkeypatch):
    monkeypatch.setattr(comparison, "tuning_scores", lambda *_: torch.full((2,), math.nan))
    assert tune_rival(beds, resolve("sft"), 2, PROTOCOL, "mean") == ({}, None, 0)  # is not tuned
    assert tune_rival(beds, resolve("orpo"), 2, PROTOCOL, "mean") is None


def test_a_rival_is_tuned_over_rates_and_trained_at_its_own(beds):
    tuned = tune_rival(beds, resolve("sft"), 4, PROTOCOL, "mean", rate=True)
    assert tuned.trials == 4
    assert tuned.setting in rate_grid(4)
    slow, fast = (contestant(resolve("sft"), {"learning_rate": rate}) for rate in (1e-9, 1e-2))
    assert slow.params == {}
    returns = seed_returns(beds[:1], {"slow": slow, "fast": fast}, 2, 2, PROTOCOL, "final")
    untrained = beds[0].config.inner
    still = beds[0].changed(inner=replace(untrained, epochs=0))
    params = still.train(resolve("sft"), {}, 1, 0)
    start = derive_seed(PROTOCOL.seed, "final episodes", 0)
    expected = still.evaluate(params, 2, start).mean()
    torch.testing.assert_close(returns["slow"][0, 0], expected, atol=0.1, rtol=0.0)
    assert not torch.equal(returns["slow"], returns["fast"])


def unlearn(chosen_mean_logps):
    """Away from what was preferred."""
    return chosen_mean_logps


def test_a_conclusion_does_not_depend_on_the_arithmetic(beds):
    """The sums of members trained together, one by one and in float64: other bits, one verdict."""
    rivals = {
        "sft": contestant(resolve("sft"), {}),
        "away": contestant(Objective(unlearn), {}),
        "again": contestant(resolve("sft"), {}),
    }
    bed = beds[0]
    alone = bed.changed(inner=replace(bed.config.inner, chunk_size=1))
    double = replace(
        bed, materials=replace(bed.materials, policy=copy.deepcopy(bed.policy).double())
    )
    returns, words = [], []
    for own in (bed, alone, double):
        scores = seed_returns([own], rivals, 6, 8, PROTOCOL, "final")
        returns.append(scores["sft"])
        judged = compare({name: values[0].tolist() for name, values in scores.items()})
        words.append([line.split(",")[0] for line in verdict(judged).splitlines()])
    assert not torch.equal(returns[0], returns[2])
    expected = ["vs away: improvement", "vs again: no improvement (the interval contains 0)"]
    assert words == [expected] * 3
