"""A testbed: where training starts, and what two testbeds share."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from torchmpo.control.inner_loop import InnerConfig
from torchmpo.control.pools import PoolConfig
from torchmpo.control.testbed import TestbedConfig, prepare, prepare_fresh
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import derive_seed

INNER = InnerConfig(epochs=1, compile=False, steps_per_trajectory=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def config(cache):
    pool = PoolConfig(pairs=4, max_steps=20)
    return TestbedConfig(pool=pool, inner=INNER, num_threads=1, cache_dir=cache)


@pytest.fixture
def bed(config):
    return prepare([config])[0]


def initial(bed, population, seed):
    """The policies before the first epoch, as training itself tells of them."""
    told = {}

    def watch(epoch, members, params):
        if epoch == 0:
            told.update({name: value.clone() for name, value in params.items()})

    bed.train(resolve("sft"), {}, population, seed, on_epoch=watch)
    return told


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def row(params, i):
    return {name: value[i] for name, value in params.items()}


# --- where training starts ---


def test_from_the_original_agent_all_members_are_alike(bed):
    start = initial(bed, 3, [1, 2, 3])
    for i in range(3):
        assert same(row(start, i), bed.policy.trainable())


@pytest.mark.parametrize("kind", ["fixed", "learned"])
def test_from_scratch_each_seed_has_weights_of_its_own(config, kind):
    config = replace(config, start="scratch", policy_std=0.7, policy_std_kind=kind)
    bed = prepare([config])[0]
    torch.manual_seed(1)
    start = initial(bed, 3, [5, 6, 5])
    assert start.keys() == bed.policy.trainable().keys()
    assert same(row(start, 0), row(start, 2))
    weights = start["layers.0.weight"]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], bed.policy.trainable()["layers.0.weight"])
    # Again, alone, and as the shared seed of a population.
    torch.manual_seed(2)
    assert same(row(initial(bed, 1, [6]), 0), row(start, 1))
    shared = initial(bed, 2, 6)
    assert same(row(shared, 0), row(start, 1))
    assert same(row(shared, 1), row(start, 1))
    if kind == "learned":
        assert start["log_std"].exp().sub(0.7).abs().max() < 1e-6


def test_random_weights_have_the_scale_of_a_fresh_layer(bed):
    start = initial(bed.changed(start="scratch"), 1, [0])
    for i in range(3):
        weight = start[f"layers.{i}.weight"][0]
        bound = weight.shape[1] ** -0.5  # torch's own: U(−1/√n, 1/√n)
        assert 0.9 * bound < weight.abs().max() <= bound
        assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_global_random_state_is_neither_read_nor_changed(bed):
    bed = bed.changed(start="scratch")
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = bed.train(resolve("sft"), {}, 2, [1, 2])
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert same(bed.train(resolve("sft"), {}, 2, [1, 2]), first)


def test_a_scratch_policy_sees_observations_as_the_original_agent_does(bed):
    """Whitening is the task's: only the weights are fresh."""
    scratch = bed.changed(start="scratch")
    params = scratch.train(resolve("sft"), {}, 1, [0])
    assert torch.isfinite(scratch.evaluate(params, 2, 0)).all()
    assert scratch.policy.observation_std.ne(1).any()


def test_unknown_start_is_refused(config, bed):
    with pytest.raises(UserError, match="start must be original or scratch; got 'middle'"):
        replace(config, start="middle")
    with pytest.raises(UserError, match="start must be"):
        bed.changed(start="middle")


# --- what testbeds share ---


def test_testbeds_prepared_together_share_what_is_loaded(config):
    bed, noisy = prepare([config, replace(config, data="noisy:0.9")])
    assert noisy.policy is bed.policy
    assert noisy.dataset.observation is bed.dataset.observation
    assert not torch.equal(noisy.dataset.chosen, bed.dataset.chosen)
    assert torch.equal(noisy.dataset.returns, bed.dataset.returns)
    assert noisy.materials.environment(config, 2) is bed.materials.environment(config, 2)
    alone = prepare([replace(config, data="noisy:0.9")])[0]
    assert torch.equal(alone.dataset.chosen, noisy.dataset.chosen)


def test_other_training_on_the_same_data(bed):
    params = bed.train(resolve("sft"), {}, 1, 0)
    before = bed.evaluate(params, 2, 0)
    longer = bed.changed(inner=replace(INNER, epochs=2))
    assert (longer.config.inner.epochs, bed.config.inner.epochs) == (2, 1)
    assert longer.policy is bed.policy
    assert longer.dataset is bed.dataset
    assert torch.equal(longer.evaluate(params, 2, 0), before)
    other = longer.train(resolve("sft"), {}, 1, 0)
    assert not torch.equal(other["layers.0.weight"], params["layers.0.weight"])


def test_threads_of_the_physics_change_no_bit(bed):
    params = bed.train(resolve("sft"), {}, 1, 0)
    two = bed.changed(num_threads=2)
    assert torch.equal(two.evaluate(params, 2, 0), bed.evaluate(params, 2, 0))
    assert len(bed.materials.environments) == 2


@pytest.mark.parametrize("setting", ["data", "pool", "policy_std"])
def test_other_data_or_another_policy_is_another_testbed(bed, config, setting):
    with pytest.raises(ValueError, match=f"{setting}: prepare another testbed"):
        bed.changed(**{setting: getattr(config, setting)})


def test_testbeds_that_differ_in_more_than_data_share_only_their_trajectories(config):
    wider, mixed = replace(config, policy_std=0.9), replace(config, data="mixed")
    beds = prepare([config, wider, mixed])
    assert [bed.config for bed in beds] == [config, wider, mixed]
    assert beds[0].policy is beds[2].policy
    assert beds[1].policy is not beds[0].policy
    assert all(bed.materials.trajectories is beds[0].materials.trajectories for bed in beds)


def test_a_scale_is_the_way_between_two_returns(bed):
    params = bed.train(resolve("sft"), {}, 2, 0)
    returns = bed.evaluate(params, 2, 0)
    scaled = bed.changed(scale=(10.0, 30.0)).evaluate(params, 2, 0)
    torch.testing.assert_close(scaled, (returns - 10) / 20 * 100)


def test_a_kind_of_data_is_checked_before_anything_is_built(config, monkeypatch):
    monkeypatch.setattr("torchmpo.control.testbed.pool_of", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(UserError, match=r"unknown data 'nosy:0\.3'"):
        prepare([config, replace(config, data="nosy:0.3")])


def test_a_testbed_follows_from_its_settings(config):
    shorter = replace(config, pool=replace(config.pool, max_steps=5))
    bed = prepare([shorter])[0]
    assert bed.dataset.action.shape[1] == 5
    assert bed.policy.log_std.exp()[0] == pytest.approx(0.4)
    wide = prepare([replace(config, policy_std=0.9)])[0]
    assert wide.policy.log_std.exp()[0] == pytest.approx(0.9)


def test_settings_are_all_that_another_process_needs(config):
    copy = deepcopy(config)  # goes the way of a pickle
    assert copy == config
    params = {n: v[None] for n, v in config.load_policy().trainable().items()}
    here, there = prepare([config])[0], prepare([copy])[0]
    assert torch.equal(here.evaluate(params, 2, 0), there.evaluate(params, 2, 0))


def test_fresh_testbeds_have_other_trajectories_and_other_flips(config):
    beds = prepare([config, replace(config, data="noisy:0.5")])
    fresh = prepare_fresh(beds, 5)
    assert [bed.config.data for bed in fresh] == ["base", "noisy:0.5"]
    assert fresh[0].dataset.observation is fresh[1].dataset.observation
    assert not torch.equal(fresh[0].dataset.returns, beds[0].dataset.returns)
    assert fresh[0].policy is beds[0].policy
    alone = prepare([replace(config, pool=replace(config.pool, seed=5))])[0]
    assert torch.equal(fresh[0].dataset.returns, alone.dataset.returns)
    assert torch.equal(fresh[0].dataset.chosen, alone.dataset.chosen)


def test_trajectories_can_be_read_from_elsewhere(config, bed, monkeypatch):
    monkeypatch.setattr("torchmpo.control.testbed.pool_of", lambda *_, **__: pytest.fail("a file"))
    arrived = prepare([config], read=lambda: bed.materials.trajectories)[0]
    assert torch.equal(arrived.dataset.chosen, bed.dataset.chosen)


def test_evaluation_of_another_policy(bed, config):
    """Its own weights, statistics and architecture, in the same start states."""
    params = {name: value[None] for name, value in bed.policy.trainable().items()}
    assert torch.equal(bed.evaluate(params, 2, 0), bed.evaluate(params, 2, 0, policy=bed.policy))
    other = replace(config, policy_std=0.5).load_policy()
    other.observation_mean.add_(1.0)
    assert not torch.equal(bed.evaluate(params, 2, 0), bed.evaluate(params, 2, 0, policy=other))


def test_seeds_of_other_streams_are_not_reused(bed):
    """A member's weights and its minibatches come from one seed by two names."""
    start = initial(bed.changed(start="scratch"), 1, [9])
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(9))
        naive = torch.nn.Linear(*reversed(start["layers.0.weight"].shape[1:])).weight
    assert not torch.equal(start["layers.0.weight"][0], naive)
