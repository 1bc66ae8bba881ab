"""The fitness of objectives: returns of what they train, here and in other processes."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from torchmpo.control.inner_loop import InnerConfig
from torchmpo.control.pools import PoolConfig
from torchmpo.control.testbed import TestbedConfig, prepare
from torchmpo.evolve.fitness import ObjectiveFitness, check_combine, combined
from torchmpo.evolve.searched_rate import SearchedRate
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import derive_seed

INNER = InnerConfig(epochs=1, compile=False, steps_per_trajectory=4)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    pool = PoolConfig(pairs=4, max_steps=20)
    return TestbedConfig(pool=pool, inner=INNER, num_threads=1, cache_dir=cache)


@pytest.fixture
def bed(config):
    return prepare([config])[0]


def kinds(config, *data):
    return prepare([replace(config, data=kind) for kind in data])


class Scaled:
    """A search space: the vectors of a mirror objective, in another unit."""

    name, start_name = "scaled", "ORPO"

    def __init__(self):
        self.objective = MirrorObjective(learn=("psi",))
        self.dim = self.objective.dim

        self.start = torch.zeros(self.dim)

    def parameters(self, vectors):
        return vectors / 2

    def rates(self, vectors, start):
        return None


@pytest.fixture
def space():
    return Scaled()


@pytest.fixture
def vectors(space):
    return torch.randn(3, space.dim, generator=torch.Generator().manual_seed(0))


def test_fitness_is_the_mean_return_under_what_the_space_makes_of_a_vector(bed, space, vectors):
    params = bed.train(space.objective, vectors / 2, 3, derive_seed(7, "inner", 5))
    expected = bed.evaluate(params, 2, derive_seed(7, "episodes", 5)).mean(1)
    fitness = ObjectiveFitness([bed], space, 2, seed=7)
    assert torch.equal(fitness(vectors, 5), expected)
    assert not torch.equal(fitness(vectors, 6), expected)
    assert len(set(expected.tolist())) == 3


def test_the_first_steps_of_episodes_can_be_all_that_counts(bed, space, vectors):
    """Here and in another process; the training is the same."""
    params = bed.train(space.objective, vectors / 2, 3, derive_seed(7, "inner", 5))
    expected = bed.evaluate(params, 2, derive_seed(7, "episodes", 5), steps=5).mean(1)
    fitness = ObjectiveFitness([bed], space, 2, seed=7, steps=5)
    assert torch.equal(fitness(vectors, 5), expected)
    assert torch.equal(fitness.share(Store().put)(vectors, 5), expected)
    assert not torch.equal(ObjectiveFitness([bed], space, 2, seed=7)(vectors, 5), expected)


def test_a_searched_rate_is_the_last_coordinate(bed, space, vectors):
    """θ = 0 is the rate of the testbed; 0.1 is e times it; the range has an end."""
    rated = SearchedRate(space)
    assert rated.dim == len(rated.start) == space.dim + 1
    start = bed.config.inner.learning_rate
    rates = torch.tensor([start, start * math.e, 3e-3])
    theta = torch.tensor([[0.0], [0.1], [5.0]])
    moved = torch.cat([vectors, theta], dim=1)
    torch.testing.assert_close(rated.rates(moved, start), rates)
    seed = derive_seed(7, "inner", 5)
    params = bed.train(space.objective, vectors / 2, 3, seed, learning_rates=rates)
    expected = bed.evaluate(params, 2, derive_seed(7, "episodes", 5)).mean(1)
    found = ObjectiveFitness([bed], rated, 2, seed=7)(moved, 5)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)
    unmoved = ObjectiveFitness([bed], space, 2, seed=7)(vectors, 5)
    assert found[0] == pytest.approx(unmoved[0].item(), abs=0.01)
    assert (found[1:] - unmoved[1:]).abs().min() > 0.01


def test_members_of_one_stream_share_what_others_do_not(bed, space, vectors):
    fitness = ObjectiveFitness([bed], space, 2, seed=7)
    same = vectors[:1].expand(4, -1)
    own = fitness(same, 5, [1, 1, 2, 3])
    assert own[0] == pytest.approx(own[1].item(), abs=0.01)
    assert (own[1:] - own[[2, 3, 1]]).abs().min() > 0.1
    assert not torch.equal(own, fitness(same, 6, [1, 1, 2, 3]))
    # A vector is worth the same beside whatever others, and 0 is the stream of a whole generation.
    alone = fitness(same[:2], 5, [3, 2])
    torch.testing.assert_close(alone, own[[3, 2]], rtol=0, atol=0.01)
    assert torch.equal(fitness(vectors, 5, [0, 0, 0]), fitness(vectors, 5))


@pytest.mark.parametrize("combine", ["mean", "worst"])
def test_kinds_of_data_are_judged_on_the_same_seeds_and_combined(config, space, vectors, combine):
    beds = kinds(config, "base", "noisy:1")
    alone = [ObjectiveFitness([b], space, 2, seed=7)(vectors, 1) for b in beds]
    assert not torch.equal(*alone)
    expected = (alone[0] + alone[1]) / 2 if combine == "mean" else torch.minimum(*alone)
    together = ObjectiveFitness(beds, space, 2, seed=7, combine=combine)(vectors, 1)
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


def test_bad_fitness_is_refused(bed, space):
    with pytest.raises(UserError, match="combine must be mean or worst; got 'best'"):
        check_combine("best")
    with pytest.raises(UserError, match="combine must be"):
        ObjectiveFitness([bed], space, 2, 0, "best")
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


def test_shared_data_are_put_once_and_read_instead_of_files(config, space, vectors, monkeypatch):
    beds = kinds(config, "base", "noisy:0.5", "mixed")
    fitness, store = ObjectiveFitness(beds, space, 2, seed=7), Store()
    expected = fitness(vectors, 0)
    sent = fitness.share(store.put)
    assert len(store.put_tensors) == 1

    def no_files(*_, **__):
        raise AssertionError("read from a file")

    monkeypatch.setattr("torchmpo.control.testbed.pool_of", no_files)
    arrived = deepcopy(sent)  # goes the way of a pickle
    assert torch.equal(arrived(vectors, 0), expected)
    assert torch.equal(arrived(vectors, 0), expected)
    assert store.reads == [0]
    one, two, three = arrived._fitness.testbeds
    assert one.policy is two.policy is three.policy  # or each would compile its own update
    assert one.dataset.observation is three.dataset.observation


def test_only_settings_are_sent(config, space):
    sent = ObjectiveFitness(kinds(config, "base"), space, 2, seed=7).share(Store().put)
    assert sent.configs == [config]
    assert "_fitness" not in sent.__dict__
