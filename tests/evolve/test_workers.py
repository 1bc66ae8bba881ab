"""Fitness by Ray actors on two nodes, some of which die: the bits of one process."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import cached_property

import pytest
import ray
import torch
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster

from torchmpo.control.inner_loop import InnerConfig
from torchmpo.control.pools import PoolConfig
from torchmpo.control.rounds import Rounds
from torchmpo.control.testbed import TestbedConfig, prepare
from torchmpo.evolve import workers
from torchmpo.evolve.cluster import capacity, ray_actors
from torchmpo.evolve.fitness import ObjectiveFitness
from torchmpo.evolve.workers import Fitness, VectorProblem, chunk_rows
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.errors import UserError
from torchmpo.runs.threads import WAIT_POLICY

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

TARGET = torch.linspace(-0.5, 0.5, 5)
INNER = InnerConfig(epochs=1, compile=False, minibatch_pairs=16, steps_per_trajectory=4)


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A busy machine may take minutes to start an actor, which is not what is tested."""
    monkeypatch.setattr(workers, "START_SECONDS", 900.0)


def quadratic(vectors, generation, streams=()):
    return -(vectors - TARGET * (1 + generation)).square().sum(1)


def fitness_of(evaluate, dim=5, population=8, chunk_size=3, **kwargs):
    chunk = chunk_rows(population, chunk_size)
    return Fitness(VectorProblem(evaluate, dim, chunk=chunk, **kwargs))


# --- in one process ---


def test_every_chunk_has_the_same_shape_and_knows_its_generation():
    calls = []

    def record(vectors, generation, streams):
        calls.append((tuple(vectors.shape), generation))
        assert streams == [0, 0, 0]
        return quadratic(vectors, generation)

    fitness = fitness_of(record, chunk_size=4)
    vectors = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    result = fitness(vectors, 3)
    assert calls == [((3, 5), 3)] * 3  # 9 rows in three chunks of 3, rather than 4, 4 and 1
    assert type(result) is torch.Tensor
    assert torch.equal(result, quadratic(vectors, 3))
    assert torch.equal(fitness(vectors[:1], 4), quadratic(vectors[:1], 4))
    assert calls[3:] == [((3, 5), 4)]
    assert fitness.bytes_sent == 0


# --- joining a cluster ---


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1: .*refused"),
        ("127.0.0.1:99999", "no Ray cluster at 127.0.0.1:99999"),
        ("nonsense", "host:port, or auto; got 'nonsense'"),
        ("ray://127.0.0.1:10001", "host:port, or auto; got 'ray://"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_one_line(address, message):
    with pytest.raises(UserError, match=message) as caught, ray_actors(2, 1, address):
        pass
    assert "\n" not in str(caught.value)


def test_a_cluster_is_for_actors():
    with (
        pytest.raises(UserError, match="num_actors of at least 2; got 0"),
        ray_actors(0, 1, "auto"),
    ):
        pass
    with ray_actors(1, 1):
        assert not ray.is_initialized()


def test_actors_outside_of_ray_actors_are_refused():
    with pytest.raises(RuntimeError, match="inside of ray_actors"):
        fitness_of(quadratic, num_actors=2)(torch.zeros(3, 5), 0)
    assert not ray.is_initialized()


def test_a_row_keeps_its_stream_in_every_chunk():
    seen = []

    def record(vectors, generation, streams):
        seen.extend(streams)
        return vectors[:, 0] * 100 + torch.tensor(streams)

    streams = [1, 2, 2, 3, 3]
    fitness = Fitness(VectorProblem(record, 2, chunk=3), streams)
    vectors = torch.arange(10.0).view(5, 2)
    assert fitness(vectors, 0).tolist() == [1, 202, 402, 603, 803]
    assert seen == [1, 2, 2, 3, 3, 1]  # the last chunk is filled up with the first row
    assert fitness(vectors[:1], 1).tolist() == [1]  # the last centre, alone


# --- two nodes ---


class TwoFunctions:
    """A search space over vectors of a mirror objective."""

    name, start_name = "mirror", "ORPO"

    def __init__(self):
        self.objective = MirrorObjective(learn=("psi",))
        self.dim = self.objective.dim

    def parameters(self, vectors):
        return vectors

    def rates(self, vectors, start):
        return None


IN_ROUNDS = 5  # the generation that trains as its testbeds say; the others are offline


class Accidents:
    """Fitness that meets with the accidents whose files lie in ``folder``, in actors only."""

    def __init__(self, fitness, folder, driver=None):
        self.fitness, self.folder, self.driver = fitness, folder, driver or os.getpid()

    def of(self, generation):
        """Rounds are on one kind of data, and on half of it, because trajectories take time."""
        if generation == IN_ROUNDS:
            one = self.fitness.on(1)
            return replace(
                one, testbeds=[replace(b, dataset=b.dataset.take(32)) for b in one.testbeds]
            )
        every = self.fitness.on(-1)
        offline = [replace(b, config=replace(b.config, rounds=Rounds())) for b in every.testbeds]
        return replace(every, testbeds=offline)

    def share(self, put):
        return Accidents(self.fitness.share(put), self.folder, self.driver)

    def __call__(self, vectors, generation, streams=None):
        if os.getpid() != self.driver:
            self.meet(generation)
        return self.of(generation)(vectors, generation, streams)

    def meet(self, generation):
        node = ray.get_runtime_context().get_node_id()
        if (self.folder / f"hang-{generation}-{node}").exists():
            (self.folder / "hanging").touch()
            time.sleep(600)
        if (self.folder / f"raise-{generation}").exists():
            raise UserError("the user did this")
        try:
            os.unlink(self.folder / f"die-{generation}")  # the first to come
        except FileNotFoundError:
            return
        os._exit(1)


class Nodes:
    """A head and a second node of one CPU each, and the fitness of generations on both."""

    def __init__(self, folder):
        self.folder = folder
        # That a node is gone is noticed sooner than by default, 15 s.
        sooner = {"health_check_period_ms": 1000, "health_check_failure_threshold": 2}
        head = {"num_cpus": 1, "include_dashboard": False, "_system_config": sooner}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.second = self.cluster.add_node(num_cpus=1)
        self.cluster.wait_for_nodes()
        pool = PoolConfig(pairs=64, max_steps=50)
        own = {"rounds": Rounds(2, replay="all"), "cache_dir": str(folder)}
        config = TestbedConfig(pool=pool, inner=INNER, num_threads=1, **own)
        beds = prepare([config, replace(config, data="noisy:0.3")])
        self.space = TwoFunctions()
        self.evaluate = Accidents(ObjectiveFitness(beds, self.space, 2, seed=0), folder)
        draw = torch.Generator().manual_seed(0)
        self.vectors = 0.5 * torch.randn(9, self.space.dim, generator=draw)

    def problem(self, num_actors):
        return fitness_of(self.evaluate, self.space.dim, num_actors=num_actors)

    def check(self, generation):
        """A generation has the bits of one process, which are another one's no more."""
        expected = self.alone(self.vectors, generation)
        assert expected.isfinite().all()
        assert not torch.equal(expected, self.alone(self.vectors, generation + 1))
        assert torch.equal(self.spread(self.vectors, generation), expected)

    @cached_property
    def alone(self):
        return self.problem(0)

    @cached_property
    def spread(self):
        return self.problem(2)

    def both_work(self):
        """Wait until an actor of each node is ready for work, and let each do some."""
        deadline = time.monotonic() + 900  # a busy machine may take minutes to start an actor
        while len(self.spread._actors.idle) < 2 and time.monotonic() < deadline:
            self.spread(self.vectors, 0)
            time.sleep(0.2)
        assert len(self.spread._actors.idle) == 2
        # One that was ready after the last chunk had gone has not read its data yet.
        self.spread(self.vectors, 0)

    def stored(self):
        """Bytes ever put into each living node's object store."""
        nodes = [node for node in ray.nodes() if node["Alive"]]
        return {
            node["NodeID"]: node_stats(
                node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
            ).store_stats.cumulative_created_bytes
            for node in nodes
        }


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    nodes = Nodes(tmp_path_factory.mktemp("nodes"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(WAIT_POLICY, "active")  # which the cluster's processes do not have
        with ray_actors(2, 1, nodes.cluster.address):
            yield nodes
            nodes.spread._actors.stop()
    # The cluster was there before and is there still.
    with ray_actors(2, 1, nodes.cluster.address):
        assert ray.nodes()
    nodes.cluster.shutdown()


def test_workers_of_a_cluster_wait_as_this_process_does(nodes):
    policy = ray.remote(num_cpus=0)(lambda: os.environ.get(WAIT_POLICY)).remote()
    assert ray.get(policy) == "active"


def test_two_nodes_equal_one_process_and_fetch_the_data_once(nodes):
    before = nodes.stored()
    nodes.check(0)
    nodes.both_work()
    trajectories = nodes.evaluate.fitness.testbeds[0].materials.trajectories
    data = sum(tensor.nbytes for tensor in trajectories.values())
    assert data > 1e6
    after = nodes.stored()
    assert len(after) == 2
    for node, size in after.items():  # the pool of both kinds of data, once
        assert data <= size - before[node] < 1.1 * data
    nodes.check(1)
    nodes.check(2)
    assert nodes.stored() == after


def test_bytes_of_a_generation_grow_with_the_population_only(nodes):
    nodes.both_work()
    sizes = []
    for rows in (3, 9, 27):
        nodes.spread(nodes.vectors.repeat(3, 1)[:rows], 0)
        sizes.append(nodes.spread.bytes_sent)
    small, large = sizes[1] - sizes[0], sizes[2] - sizes[1]
    assert large == pytest.approx(3 * small, rel=0.01)
    assert sizes[0] == pytest.approx(small / 2, rel=0.01)
    numbers = 4 * nodes.space.dim  # bytes of a vector
    assert numbers * 27 < sizes[2] < numbers * 27 + 9 * 2000


def test_an_actor_that_dies_mid_generation_changes_nothing(nodes):
    nodes.both_work()
    (nodes.folder / "die-3").touch()
    with pytest.warns(UserWarning, match=r"generation 3: lost process \d+ on .*again"):
        nodes.check(3)
    assert not (nodes.folder / "die-3").exists()
    nodes.both_work()  # another one has taken its place
    nodes.check(4)


def test_a_node_that_is_lost_mid_generation_changes_nothing(nodes):
    """Of a generation whose policies train in rounds, on trajectories of their own, too."""
    nodes.both_work()
    (nodes.folder / f"hang-{IN_ROUNDS}-{nodes.second.node_id}").touch()
    seen = []
    for bed in nodes.evaluate.of(IN_ROUNDS).testbeds:
        bed.train(nodes.space.objective, nodes.vectors[:1], 1, 0, on_data=seen.append)
    assert [len(part[0]) for part in seen] == [16, 16]

    def lose():
        while not (nodes.folder / "hanging").exists():
            time.sleep(0.05)
        nodes.cluster.remove_node(nodes.second, allow_graceful=False)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    with pytest.warns(UserWarning, match=r"generation 5: lost process \d+ on .*again"):
        nodes.check(IN_ROUNDS)
    thread.join()
    nodes.check(6)
    deadline = time.monotonic() + 300
    while capacity(1) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert capacity(1) == 1
    nodes.check(7)
    nodes.second = nodes.cluster.add_node(num_cpus=1)
    nodes.both_work()  # a new node is put to use, and fetches the data
    nodes.check(8)


def test_members_that_kill_every_actor_are_given_up(nodes, monkeypatch):
    monkeypatch.setattr(workers, "LIVES", 1)
    nodes.both_work()
    (nodes.folder / "die-9").touch()
    with pytest.raises(UserError, match=r"9: 1 actors died of the same 3 members.*smaller chunk"):
        nodes.spread(nodes.vectors, 9)


def test_a_mistake_of_the_user_arrives_as_it_is(nodes, monkeypatch):
    monkeypatch.setattr(workers, "capacity", lambda num_threads: 1)  # one starts sooner than two
    (nodes.folder / "raise-10").touch()
    with pytest.raises(UserError) as caught:
        nodes.spread(nodes.vectors, 10)
    assert str(caught.value) == "the user did this"
    assert not isinstance(caught.value, ray.exceptions.RayError)
    assert nodes.spread._actors.tasks == {}


class Unreadable:
    """Fitness that cannot be unpickled where it arrives."""

    def __call__(self, vectors, generation, streams=()):
        return quadratic(vectors, generation)

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return exec, ("import a_module_that_only_this_machine_has",)


def test_actors_that_do_not_start_are_one_line(nodes):
    with pytest.warns(UserWarning, match="generation 0: an actor did not start") as warned:  # noqa: SIM117
        with pytest.raises(UserError, match=r"no actor starts: .*a_module_that") as caught:
            fitness_of(Unreadable(), num_actors=2)(torch.zeros(9, 5), 0)
    assert "\n" not in str(caught.value) + str(warned[0].message)


@pytest.mark.parametrize("room", [0, 2])
def test_without_actors_this_process_works(nodes, monkeypatch, room):
    if room == 0:
        monkeypatch.setattr(workers, "capacity", lambda num_threads: 0)
    monkeypatch.setattr(workers, "START_SECONDS", 1e-3)
    vectors = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    fitness = fitness_of(quadratic, num_actors=2)
    for generation in range(2):
        why = "no actor started" if room else "no actor is left"
        with pytest.warns(UserWarning, match=f"generation {generation}: {why}, so this process"):
            result = fitness(vectors, generation)
        assert torch.equal(result, quadratic(vectors, generation))
    fitness._actors.stop()


def test_a_busy_cluster_is_waited_for_once_and_used_when_it_is_free(nodes, monkeypatch):
    monkeypatch.setattr(workers, "START_SECONDS", 0.5)
    monkeypatch.setattr(workers, "AGAIN_SECONDS", 0.25)
    waits, wait = [], workers._Actors._wait
    monkeypatch.setattr(
        workers._Actors, "_wait", lambda self, seconds: waits.append(seconds) or wait(self, seconds)
    )
    nodes.spread._actors.stop()
    others = [ray.remote(num_cpus=1)(Nothing).remote() for _ in range(2)]
    ray.get([other.done.remote() for other in others])
    fitness = fitness_of(quadratic, num_actors=2)
    vectors = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    for generation in range(3):
        why = r"no actor started, so this process evaluates \(0 of the cluster's 2 CPUs are free"
        with pytest.warns(UserWarning, match=f"generation {generation}: {why}"):
            result = fitness(vectors, generation)
        assert torch.equal(result, quadratic(vectors, generation))
    assert waits == [0.5, 0.0, 0.0, *[0.25, 0.0, 0.0] * 2]
    for other in others:
        ray.kill(other)
    monkeypatch.setattr(fitness._actors, "patience", 900.0)
    monkeypatch.setattr(workers, "START_SECONDS", 7.0)
    assert torch.equal(fitness(vectors, 3), quadratic(vectors, 3))
    assert fitness._actors.patience == 7.0  # as long as ever
    fitness._actors.stop()


class Nothing:
    """Another's work."""

    def done(self):
        return True


def test_too_few_cpus_are_one_line(nodes):
    ray.shutdown()
    address = nodes.cluster.address
    with pytest.raises(UserError, match="room for 2 actors of 1 CPUs, not for 3"):  # noqa: SIM117
        with ray_actors(3, 1, address):
            pass
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("mode", "cure"),
    [(None, "set RAY_AUTH_MODE=token and copy its ~/.ray/auth_token"), ("token", "the same")],
)
@pytest.mark.parametrize("error", [ConnectionError, ray.exceptions.AuthenticationError])
def test_a_cluster_with_another_token_is_one_line_with_the_cure(monkeypatch, error, mode, cure):
    def refuse(*_, **__):
        raise error("Failed to connect to Ray cluster")

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match=cure) as caught, ray_actors(2, 1, "auto"):
        pass
    assert str(caught.value).startswith("cannot join the Ray cluster at auto: Failed to connect")
    assert "\n" not in str(caught.value)


# --- on this machine ---


LOCAL = """
import os
from torchmpo.evolve.cluster import ray_actors
import ray
for _ in range(2):
    with ray_actors(2, 1):
        print(ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid())
"""


def test_a_run_on_this_machine_leaves_no_token(tmp_path):
    """Ray writes one by default, and asks for it in every cluster that is started later."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LOCAL],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "True\nTrue\n", done.stderr
    assert not (tmp_path / ".ray").exists()


def test_ray_of_this_machine_alone(monkeypatch):
    """Not the cluster that runs here or that the environment names, and ended at the end."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with ray_actors(2, 3):
        assert [node["Resources"]["CPU"] for node in ray.nodes()] == [6]
    assert not ray.is_initialized()
