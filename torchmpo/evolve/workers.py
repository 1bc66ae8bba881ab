"""Where fitness is computed: in this process, or by Ray actors on any machines, to the same bits.

The unit of work is a chunk of vectors of fixed size, so no arithmetic depends on who computes it,
nor on who died while computing it. (Machines with other processors may still round differently.)
"""

import logging
import math
import os
import socket
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from evotorch import Problem, SolutionBatch
from torch import Tensor

from torchmpo.evolve.cluster import capacity
from torchmpo.runs.errors import UserError

logging.getLogger("evotorch").setLevel(logging.WARNING)  # it announces every dtype otherwise

# (vectors [chunk, dim], generation, streams of random numbers [chunk]) -> fitness [chunk]
Evaluate = Callable[[Tensor, int, list[int]], Tensor]

LIVES = 3  # actors that one chunk may take down before the chunk itself is to blame
START_SECONDS = 60.0  # for an actor to start while nobody works
AGAIN_SECONDS = 1.0  # the same, once that was in vain


def chunk_rows(population: int, chunk_size: int) -> int:
    """Rows per chunk when a generation, the centre included, is cut into the fewest equal chunks.

    >>> chunk_rows(32, 16)  # 33 rows in three chunks
    11
    """
    rows = population + 1
    return math.ceil(rows / math.ceil(rows / chunk_size))


class VectorProblem(Problem):
    """Fitness of parameter vectors, one chunk at a time.

    A row is ``(generation, stream, *vector)``. The first two, which name the random numbers, travel
    with the work: an actor has nothing else to be told.

    Args:
        evaluate: ``(vectors [chunk, dim], generation, streams [chunk]) -> fitness [chunk]``. Actors
            get a pickled copy each; if it has a method ``share(put)``, of what that returns, and
            ``put`` places tensors ``{name: tensor}`` where every machine reads them once.
        dim: length of a vector.
        chunk: rows that are evaluated together, always this many.
        num_actors: 0 or 1 evaluates here; 2 or more need
            :func:`torchmpo.evolve.cluster.ray_actors` around the run.
        num_threads: of torch, in whichever process evaluates.
    """

    def __init__(
        self, evaluate: Evaluate, dim: int, *, chunk: int, num_actors: int = 0, num_threads: int = 1
    ):
        self.member_fitness, self.dim = evaluate, dim
        self.chunk, self.num_threads = chunk, num_threads
        self.wanted_actors = num_actors if num_actors > 1 else 0
        # EvoTorch's own pool of actors ends at the first death: see _Actors.
        super().__init__(
            "max",
            solution_length=2 + dim,
            dtype=torch.float32,
            num_actors=0,
            store_solution_stats=False,
        )

    def _prepare(self) -> None:
        # Called once in the process that evaluates. Ray's workers start with one thread.
        torch.set_num_threads(self.num_threads)

    def _evaluate_batch(self, batch: SolutionBatch) -> None:
        rows = torch.as_tensor(batch.access_values(keep_evals=True))
        streams = rows[:, 1].int().tolist()
        fitness = self.member_fitness(rows[:, 2:].clone(), int(rows[0, 0]), streams)
        batch.set_evals(fitness.to(torch.float32))

    def place(self) -> str:
        """Which process this is, for people."""
        return f"process {os.getpid()} on {socket.gethostname()}"

    def shared(self) -> "VectorProblem":
        """What is sent to actors: it has no data of its own, but knows where to read them."""
        share = getattr(self.member_fitness, "share", None)
        evaluate = share(_put) if share else self.member_fitness
        return VectorProblem(evaluate, self.dim, chunk=self.chunk, num_threads=self.num_threads)


class Fitness:
    """``(vectors [n, dim], generation) -> fitness [n]`` of a :class:`VectorProblem`.

    With actors, one that dies is replaced where the cluster has room and its chunk is evaluated
    again, with a warning; without any left this process works. A new machine is put to use in the
    next generation. An error that ``evaluate`` raises arrives as it is, and ends the actors.

    Args:
        problem: what is evaluated.
        streams: the stream of random numbers of every row of a generation; 0 beyond their number.

    Attributes:
        bytes_sent: size of what the last call sent to actors and got back, serialized: the chunks,
            their fitness, and what was sent again. Neither data nor the start of an actor.

    Raises:
        UserError: a chunk took down ``LIVES`` actors, actors do not start, or the data do not
            fit into Ray's object store.
    """

    def __init__(self, problem: VectorProblem, streams: Sequence[int] = ()):
        self.problem, self.streams, self.bytes_sent = problem, streams, 0
        self._actors = _Actors(problem) if problem.wanted_actors else None

    def __call__(self, vectors: Tensor, generation: int) -> Tensor:
        # Copies of the first row fill the last chunk: every chunk has the same shape, so the same
        # compiled program and the same arithmetic.
        streams = torch.zeros(len(vectors), 1)
        known = torch.tensor(self.streams[: len(vectors)], dtype=streams.dtype)
        streams[: len(known), 0] = known
        rows = torch.cat([torch.full_like(streams, generation), streams, vectors], dim=1)
        missing = -len(vectors) % self.problem.chunk
        rows = torch.cat([rows, rows[:1].expand(missing, -1)])
        batches = [self._batch(piece) for piece in rows.split(self.problem.chunk)]
        if self._actors is None:
            fitness = [_evaluate(self.problem, batch) for batch in batches]
        else:
            fitness, self.bytes_sent = self._actors.evaluate(batches, generation)
        return torch.cat(fitness)[: len(vectors)]

    def _batch(self, rows: Tensor) -> SolutionBatch:
        batch = SolutionBatch(self.problem, len(rows), empty=True)
        batch.set_values(rows)
        return batch


def _evaluate(problem: VectorProblem, batch: SolutionBatch) -> Tensor:
    problem.evaluate(batch)
    return _plain(batch.access_evals())


def _plain(evals: Tensor) -> Tensor:
    return evals.as_subclass(Tensor)[:, 0]


class _Task(NamedTuple):
    actor: Any
    chunk: int | None  # None: it is starting


class _Actors:
    """EvoTorch's evaluation actors for one problem, and what each of them is doing."""

    def __init__(self, problem: VectorProblem):
        self.problem = problem
        self.sent: VectorProblem | None = None
        self.started = False  # any of them, ever
        self.patience = START_SECONDS
        self.tasks: dict[Any, _Task] = {}  # by the reference to the result
        self.idle: list = []
        self.places: dict[Any, str] = {}

    def evaluate(self, batches: list[SolutionBatch], generation: int) -> tuple[list[Tensor], int]:
        """The fitness of every batch, and the bytes that went over the network for it."""
        try:
            return self._evaluate(batches, f"generation {generation}")
        except BaseException:
            self.stop()  # what is still computed would meet the next call
            raise

    def _evaluate(self, batches: list[SolutionBatch], when: str) -> tuple[list[Tensor], int]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        todo, done = deque(range(len(batches))), {}
        deaths, traffic, patience = Counter(), 0, self.patience
        self.fill()
        while len(done) < len(batches):
            while self.idle and todo:
                actor, chunk = self.idle.pop(), todo.popleft()
                traffic += _size(batches[chunk])
                self.tasks[actor.evaluate_batch.remote(batches[chunk])] = _Task(actor, chunk)
            working = any(task.chunk is not None for task in self.tasks.values())
            ready = self._wait(None if working else patience)
            if not ready:
                if patience:
                    why = "no actor started" if self.tasks else "no actor is left"
                    warnings.warn(
                        f"{when}: {why}, so this process evaluates ({self._room()})", stacklevel=2
                    )
                    # A cluster that is busy with other work may be so for many generations.
                    patience, self.patience = 0.0, min(AGAIN_SECONDS, self.patience)
                chunk = todo.popleft()
                done[chunk] = _evaluate(self.problem, batches[chunk])
                continue
            actor, chunk = self.tasks.pop(ready[0])
            try:
                result: Any = ray.get(ready[0])
            except RayError as error:
                if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError):
                    raise error.cause from error
                if chunk is not None:
                    todo.appendleft(chunk)
                deaths[chunk] += 1
                self._lost(actor, chunk, deaths[chunk], error, when)
                continue
            self.idle.append(actor)
            if chunk is None:
                self.places[actor], self.started = result, True
                self.patience = START_SECONDS
            else:
                traffic += _size(result)
                done[chunk] = _plain(result)
        return [done[chunk] for chunk in range(len(batches))], traffic

    def _room(self) -> str:
        """What the cluster has free, for people."""
        import ray

        free, total = (
            f"{resources.get('CPU', 0):g}"
            for resources in (ray.available_resources(), ray.cluster_resources())
        )
        takes = self.problem.num_threads
        return f"{free} of the cluster's {total} CPUs are free; an actor takes {takes}"

    def _wait(self, seconds: float | None) -> list:
        import ray

        return ray.wait(list(self.tasks), timeout=seconds)[0] if self.tasks else []

    def _lost(self, actor: Any, chunk: int | None, deaths: int, error: Exception, when: str):
        """Replace an actor; give up where that has not helped."""
        import ray

        ray.kill(actor)  # one that merely cannot be reached must not go on
        reason = _reason(error)
        if chunk is None:  # another would hardly do better before the next generation
            if not self.tasks and not self.started:
                raise UserError(f"no actor starts: {reason}") from error
            warnings.warn(f"{when}: an actor did not start ({reason})", stacklevel=2)
            return
        if deaths >= LIVES:
            raise UserError(
                f"{when}: {deaths} actors died of the same {self.problem.chunk} members; if memory "
                f"ran out, use fewer actors or a smaller chunk_size ({reason})"
            ) from error
        place = self.places.pop(actor)
        warnings.warn(
            f"{when}: lost {place}; its members are evaluated again ({reason})", stacklevel=2
        )
        self.fill()

    def fill(self) -> None:
        """Start actors until there are as many as are wanted, or as the cluster can hold."""
        import ray
        from evotorch.core import EvaluationActor

        if not ray.is_initialized():
            raise RuntimeError("Ray does not run: evaluate inside of ray_actors(...)")
        if self.sent is None:
            self.sent = self.problem.shared()
        threads = self.problem.num_threads
        room = min(self.problem.wanted_actors, capacity(threads))
        for _ in range(room - len(self.idle) - len(self.tasks)):
            # A restart by Ray itself would wait for ever where a machine is gone.
            options = EvaluationActor.options(num_cpus=threads, max_restarts=0, max_task_retries=0)
            actor = options.remote(self.sent, 0, (0, 0, 0, 0), {})
            self.tasks[actor.call.remote("place", [], {})] = _Task(actor, None)

    def stop(self) -> None:
        """End all actors."""
        import ray

        for actor in [*self.idle, *(task.actor for task in self.tasks.values())]:
            ray.kill(actor)
        self.idle, self.tasks, self.places = [], {}, {}


def _size(value: Any) -> int:
    from ray import cloudpickle  # as Ray itself sends it

    return len(cloudpickle.dumps(value))  # pyright: ignore[reportPrivateImportUsage]


def _reason(error: Exception) -> str:
    """The one line of Ray's page that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1 if "creation task" in lines[0] else 0].rstrip(".") if lines else repr(error)


@dataclass(frozen=True)
class _Stored:
    """Tensors in Ray's object store. Each machine fetches them once; processes map its copy."""

    reference: Any

    def __call__(self) -> dict[str, Tensor]:
        import ray

        arrays: Any = ray.get(self.reference)
        with warnings.catch_warnings():
            # Mapped read-only, which PyTorch cannot express; nobody writes to data.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _put(tensors: Mapping[str, Tensor]) -> _Stored:
    import ray
    from ray.exceptions import ObjectStoreFullError, OutOfDiskError

    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    try:
        return _Stored(ray.put(arrays))
    except (ObjectStoreFullError, OutOfDiskError) as error:
        needed = sum(array.nbytes for array in arrays.values()) / 1e6
        raise UserError(
            f"the data, {needed:.0f} MB, do not fit into Ray's object store: use fewer pairs, or "
            "start Ray with a larger --object-store-memory"
        ) from error
