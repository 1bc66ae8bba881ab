"""A trial: where training starts, and what two trials share; the fitness of objectives."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from torchmpo.control.inner_loop import InnerConfig
from torchmpo.control.pools import PoolConfig
from torchmpo.control.testbed import Trial
from torchmpo.evolve.fitness import ObjectiveFitness, check_combine, combined
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import derive_seed

INNER = InnerConfig(epochs=1, compile=False, steps_per_trajectory=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def trial(cache):
    pool = PoolConfig(pairs=4, max_steps=20)
    return Trial(pool=pool, inner=INNER, num_threads=1, cache_dir=cache)


def initial(trial, population, seed):
    """The policies before the first epoch, as training itself tells of them."""
    told = {}

    def watch(epoch, members, params):
        if epoch == 0:
            told.update({name: value.clone() for name, value in params.items()})

    trial.train(resolve("sft"), {}, population, seed, on_epoch=watch)
    return told


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def row(params, i):
    return {name: value[i] for name, value in params.items()}


# --- where training starts ---


def test_from_the_original_agent_all_members_are_alike(trial):
    start = initial(trial, 3, [1, 2, 3])
    for i in range(3):
        assert same(row(start, i), trial.policy.trainable())


@pytest.mark.parametrize("kind", ["fixed", "learned"])
def test_from_scratch_each_seed_has_weights_of_its_own(trial, kind):
    trial = replace(trial, start="scratch", policy_std=0.7, policy_std_kind=kind)
    torch.manual_seed(1)
    start = initial(trial, 3, [5, 6, 5])
    assert start.keys() == trial.policy.trainable().keys()
    assert same(row(start, 0), row(start, 2))
    weights = start["layers.0.weight"]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], trial.policy.trainable()["layers.0.weight"])
    # Again, alone, and as the shared seed of a population.
    torch.manual_seed(2)
    assert same(row(initial(trial, 1, [6]), 0), row(start, 1))
    shared = initial(trial, 2, 6)
    assert same(row(shared, 0), row(start, 1))
    assert same(row(shared, 1), row(start, 1))
    if kind == "learned":
        assert start["log_std"].exp().sub(0.7).abs().max() < 1e-6


def test_random_weights_have_the_scale_of_a_fresh_layer(trial):
    start = initial(replace(trial, start="scratch"), 1, [0])
    for i in range(3):
        weight = start[f"layers.{i}.weight"][0]
        bound = weight.shape[1] ** -0.5  # torch's own: U(−1/√n, 1/√n)
        assert 0.9 * bound < weight.abs().max() <= bound
        assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_global_random_state_is_neither_read_nor_changed(trial):
    trial = replace(trial, start="scratch")
    trial.policy  # noqa: B018  reading a file builds a policy at random first
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = trial.train(resolve("sft"), {}, 2, [1, 2])
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert same(trial.train(resolve("sft"), {}, 2, [1, 2]), first)


def test_a_scratch_policy_sees_observations_as_the_original_agent_does(trial):
    """Whitening is the task's: only the weights are fresh."""
    scratch = replace(trial, start="scratch")
    params = scratch.train(resolve("sft"), {}, 1, [0])
    assert torch.isfinite(scratch.evaluate(params, 2, 0)).all()
    assert scratch.policy.observation_std.ne(1).any()


def test_unknown_start_is_refused(trial):
    with pytest.raises(UserError, match="start must be original or scratch; got 'middle'"):
        replace(trial, start="middle")
    with pytest.raises(UserError, match="start must be"):
        trial.changed(start="middle")


# --- sharing ---


def test_a_changed_trial_shares_what_is_loaded(trial):
    policy, dataset = trial.policy, trial.dataset
    params = trial.train(resolve("sft"), {}, 1, 0)
    before = trial.evaluate(params, 2, 0)
    fields = trial.__getstate__()
    longer = trial.changed(inner=replace(INNER, epochs=2))
    noisy = trial.changed(data="noisy:0.9")
    assert longer.inner.epochs == 2
    assert longer.policy is noisy.policy is policy
    assert longer.dataset is dataset
    assert noisy.dataset is not dataset
    assert not torch.equal(noisy.dataset.chosen, dataset.chosen)
    assert torch.equal(noisy.dataset.returns, dataset.returns)
    assert longer._environment(2) is trial._environment(2)
    assert torch.equal(longer.evaluate(params, 2, 0), before)
    # The original is as it was.
    assert trial.__getstate__() == fields
    assert trial.dataset is dataset
    assert (trial.data, trial.inner.epochs) == ("base", 1)


def test_a_changed_trial_that_was_loaded_late_agrees_with_a_new_one(trial):
    early = trial.changed(data="mixed")
    new = replace(trial, data="mixed")
    assert torch.equal(early.dataset.chosen, new.dataset.chosen)


def test_nothing_is_shared_that_a_change_concerns(trial):
    trial.dataset  # noqa: B018
    params = trial.train(resolve("sft"), {}, 1, 0)
    trial.evaluate(params, 2, 0)
    shorter = trial.changed(pool=replace(trial.pool, max_steps=5))
    assert shorter.dataset.action.shape[1] == 5
    fresh = Trial(pool=shorter.pool, inner=INNER, num_threads=1, cache_dir=trial.cache_dir)
    assert torch.equal(shorter.evaluate(params, 2, 0), fresh.evaluate(params, 2, 0))
    assert trial.policy.log_std.exp()[0] == pytest.approx(0.4)
    assert trial.changed(policy_std=0.9).policy.log_std.exp()[0] == pytest.approx(0.9)


def test_only_settings_are_pickled(trial):
    trial.dataset  # noqa: B018
    trial = replace(trial, start="scratch").changed(data="mixed")
    trial.dataset  # noqa: B018
    copy = deepcopy(trial)  # goes the way of a pickle
    assert copy == trial
    assert copy.__dict__ == trial.__getstate__()


def test_evaluation_of_another_policy(trial):
    """Its own weights, statistics and architecture, in the same start states."""
    params = {name: value[None] for name, value in trial.policy.trainable().items()}
    assert torch.equal(
        trial.evaluate(params, 2, 0), trial.evaluate(params, 2, 0, policy=trial.policy)
    )
    other = replace(trial, policy_std=0.5).policy
    other.observation_mean.add_(1.0)
    assert not torch.equal(trial.evaluate(params, 2, 0), trial.evaluate(params, 2, 0, policy=other))


def test_seeds_of_other_streams_are_not_reused(trial):
    """A member's weights and its minibatches come from one seed by two names."""
    start = initial(replace(trial, start="scratch"), 1, [9])
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(9))
        naive = torch.nn.Linear(*reversed(start["layers.0.weight"].shape[1:])).weight
    assert not torch.equal(start["layers.0.weight"][0], naive)


# --- the fitness of objectives ---


class Scaled:
    """A search space: the vectors of a mirror objective, in another unit."""

    name, start_name = "scaled", "ORPO"

    def __init__(self):
        self.objective = MirrorObjective(learn=("psi",))
        self.dim = self.objective.dim

    def parameters(self, vectors):
        return vectors / 2


@pytest.fixture
def space():
    return Scaled()


@pytest.fixture
def vectors(space):
    return torch.randn(3, space.dim, generator=torch.Generator().manual_seed(0))


def test_fitness_is_the_mean_return_under_what_the_space_makes_of_a_vector(trial, space, vectors):
    params = trial.train(space.objective, vectors / 2, 3, derive_seed(7, "inner", 5))
    expected = trial.evaluate(params, 2, derive_seed(7, "episodes", 5)).mean(1)
    fitness = ObjectiveFitness([trial], space, 2, seed=7)
    assert torch.equal(fitness(vectors, 5), expected)
    assert not torch.equal(fitness(vectors, 6), expected)
    assert len(set(expected.tolist())) == 3


@pytest.mark.parametrize("combine", ["mean", "worst"])
def test_kinds_of_data_are_judged_on_the_same_seeds_and_combined(trial, space, vectors, combine):
    trials = [trial, trial.changed(data="noisy:1")]
    alone = [ObjectiveFitness([t], space, 2, seed=7)(vectors, 1) for t in trials]
    assert not torch.equal(*alone)
    expected = (alone[0] + alone[1]) / 2 if combine == "mean" else torch.minimum(*alone)
    together = ObjectiveFitness(trials, space, 2, seed=7, combine=combine)(vectors, 1)
    torch.testing.assert_close(together, expected)


@pytest.mark.parametrize(
    ("combine", "expected"), [("mean", [2.0, torch.nan]), ("worst", [1.0, torch.nan])]
)
def test_a_failure_on_one_kind_is_a_failure(combine, expected):
    for returns in ([[1.0, torch.nan], [3.0, 5.0]], [[3.0, 5.0], [1.0, torch.nan]]):
        result = combined(torch.tensor(returns), combine)
        torch.testing.assert_close(result, torch.tensor(expected), equal_nan=True)


def test_one_kind_is_its_own_combination():
    returns = torch.randn(1, 5)
    for combine in ("mean", "worst"):
        assert torch.equal(combined(returns, combine), returns[0])


def test_bad_fitness_is_refused(trial, space):
    with pytest.raises(UserError, match="combine must be mean or worst; got 'best'"):
        check_combine("best")
    with pytest.raises(UserError, match="combine must be"):
        ObjectiveFitness([trial], space, 2, 0, "best")
    with pytest.raises(UserError, match="at least one kind"):
        ObjectiveFitness([], space, 2, 0)


class Store:
    """A place for tensors that other processes could read."""

    def __init__(self):
        self.put_tensors, self.reads = [], []

    def put(self, tensors):
        number = len(self.put_tensors)
        self.put_tensors.append({name: t.clone() for name, t in tensors.items()})
        return Reference(self, number)


class Reference:
    def __init__(self, store, number):
        self.store, self.number = store, number

    def __call__(self):
        self.store.reads.append(self.number)
        return self.store.put_tensors[self.number]

    def __deepcopy__(self, memo):  # what is pickled is a reference, not the store
        return self


def test_shared_data_are_put_once_and_read_instead_of_files(trial, space, vectors, monkeypatch):
    trials = [trial, trial.changed(data="noisy:0.5"), trial.changed(data="mixed")]
    fitness, store = ObjectiveFitness(trials, space, 2, seed=7), Store()
    expected = fitness(vectors, 0)
    shared = fitness.share(store.put)
    assert len(store.put_tensors) == 1
    assert fitness.trials == shared.trials  # where data lie is no part of what a trial is

    def no_files(*_, **__):
        raise AssertionError("read from a file")

    monkeypatch.setattr("torchmpo.control.testbed.pool_of", no_files)
    arrived = deepcopy(shared)  # goes the way of a pickle
    assert set(arrived.__dict__) == {"trials", "space", "episodes", "seed", "combine"}
    assert torch.equal(arrived(vectors, 0), expected)
    assert torch.equal(arrived(vectors, 0), expected)
    assert store.reads == [0]
    one, two, three = arrived._shared_trials
    assert one.policy is two.policy is three.policy  # or each would compile its own update
    assert one.dataset.observation is three.dataset.observation


def test_pools_that_differ_are_shared_apart(trial, space):
    other = trial.changed(pool=replace(trial.pool, seed=5))
    store = Store()
    shared = ObjectiveFitness([trial, other], space, 2, seed=7).share(store.put)
    assert len(store.put_tensors) == 2
    for own, sent in zip((trial, other), shared.trials):
        assert torch.equal(sent.trajectories["returns"], own.trajectories["returns"])


def test_another_pool_is_not_read_where_this_one_lies(trial):
    stored = trial.changed(source=lambda: {"returns": torch.zeros(3)})
    assert stored.changed(data="mixed").source is stored.source
    fresh = stored.changed(pool=replace(trial.pool, seed=5))
    assert fresh.source is None
    assert not torch.equal(fresh.dataset.returns, trial.dataset.returns)
