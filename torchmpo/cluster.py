"""Where fitness is computed: in this process, or spread over Ray actors, to the same bits.

The unit of work is a chunk of vectors of fixed size, so no arithmetic depends on who computes it.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from evotorch import Problem, SolutionBatch
from torch import Tensor

logging.getLogger("evotorch").setLevel(logging.WARNING)  # it announces every dtype otherwise

Evaluate = Callable[[Tensor, int], Tensor]  # (vectors [chunk, dim], generation) -> fitness [chunk]


def chunk_rows(population: int, chunk_size: int) -> int:
    """Rows per chunk when a generation, the centre included, is cut into the fewest equal chunks.

    >>> chunk_rows(32, 16)  # 33 rows in three chunks
    11
    """
    rows = population + 1
    return math.ceil(rows / math.ceil(rows / chunk_size))


class VectorProblem(Problem):
    """Fitness of parameter vectors, one chunk at a time, in this process or in Ray actors.

    A row is ``(generation, *vector)``. The generation, which names the random numbers, travels with
    the work: an actor that Ray restarted half-way has nothing else to be told.

    Args:
        evaluate: ``(vectors [chunk, dim], generation) -> fitness [chunk]``; with actors it is
            pickled to each of them once, so it should load large data by itself when first called.
        dim: length of a vector.
        chunk: rows that are evaluated together, always this many.
        num_actors: 0 or 1 evaluates here; Ray must be initialised for 2 or more.
        num_threads: of torch, in whichever process evaluates.
    """

    def __init__(
        self, evaluate: Evaluate, dim: int, *, chunk: int, num_actors: int = 0, num_threads: int = 1
    ):
        self.member_fitness, self.chunk, self.num_threads = evaluate, chunk, num_threads
        super().__init__(
            "max",
            solution_length=1 + dim,
            dtype=torch.float32,
            num_actors=num_actors,
            actor_config={"max_restarts": -1, "max_task_retries": 3, "num_cpus": num_threads},
            subbatch_size=chunk,
            store_solution_stats=False,
        )

    def _prepare(self) -> None:
        # Called once in the process that evaluates. Ray's workers start with one thread.
        torch.set_num_threads(self.num_threads)

    def _evaluate_batch(self, batch: SolutionBatch) -> None:
        rows = torch.as_tensor(batch.access_values(keep_evals=True))
        fitness = [
            self.member_fitness(piece[:, 1:].clone(), int(piece[0, 0]))
            for piece in rows.split(self.chunk)
        ]
        batch.set_evals(torch.cat(fitness).to(torch.float32))


@contextmanager
def ray_actors(num_actors: int, num_threads: int) -> Iterator[None]:
    """Ray on this machine for the time of the block, if there are actors and it does not run."""
    import ray

    if num_actors < 2 or ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        num_cpus=num_actors * num_threads,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()


class Fitness:
    """``(vectors [n, dim], generation) -> fitness [n]`` through a :class:`VectorProblem`."""

    def __init__(self, problem: VectorProblem):
        self.problem = problem
        self.evaluator = problem.make_callable_evaluator()

    def __call__(self, vectors: Tensor, generation: int) -> Tensor:
        # Copies of the first row fill the last chunk: every chunk has the same shape, so the same
        # compiled program and the same arithmetic.
        missing = -len(vectors) % self.problem.chunk
        padded = torch.cat([vectors, vectors[:1].expand(missing, -1)])
        rows = torch.cat([torch.full((len(padded), 1), float(generation)), padded], dim=1)
        return self.evaluator(rows)[: len(vectors)]
