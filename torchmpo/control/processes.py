"""Simulations of a task of one's own that are not batched, stepped in parallel processes.

``python -m torchmpo.control.processes TASK DESCRIPTOR`` is one of the processes: it answers
requests on that end of a pipe until the other end is closed. It takes nothing from the program that
started it but its search path, so a script that starts it needs no guard.
"""

import os
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np

from torchmpo.control.tasks import Simulation, Spaces, simulation
from torchmpo.runs.errors import UserError
from torchmpo.runs.own_code import own_code_raised

BARE_SECONDS = 0.5  # for which the bare environment is timed


class Processes:
    """Processes with any number of simulations among them.

    Simulations are made when they are first reset. One is decided by its seed alone, so nothing
    depends on the number of processes.

    Args:
        task: of one's own, see :mod:`torchmpo.control.tasks`.
        count: of processes.

    Raises:
        UserError: in any method, what the code of the task raises.
    """

    def __init__(self, task: str, count: int):
        self.task, self.count = task, count
        self.ends, children = [], []
        for _ in range(count):
            ours, theirs = Pipe()
            with theirs:
                children.append(_start(task, theirs))
            self.ends.append(ours)
        self._close = weakref.finalize(self, _end, self.ends, children)
        self.spaces = Spaces(*self._ask([("spaces",)] * count)[0])

    @property
    def closed(self) -> bool:
        """Whether the processes have ended."""
        return not self._close.alive

    def close(self) -> None:
        """End the processes."""
        self._close()

    def reset(self, seeds: Sequence[int | None]) -> np.ndarray:
        """Start an episode in as many simulations as there are seeds: ``[n, observation_size]``.

        One whose seed is None goes on, and has its last observation.
        """
        observations = np.zeros((len(seeds), self.spaces.observation_size), np.float32)
        parts = [seeds[k :: self.count] for k in range(self.count)]
        for k, answer in enumerate(self._ask([("reset", list(part)) for part in parts])):
            observations[k :: self.count] = answer
        return observations

    def step(
        self, actions: np.ndarray, moving: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One step of the simulations that move; the others stay as they are, without reward.

        Args:
            actions: ``[n, action_size]``, in the environment's own units.
            moving: ``[n]``, bool.

        Returns:
            observations ``[n, observation_size]``, rewards ``[n]``, and whether each is over
            ``[n]``. A simulation whose observation or reward is not finite is over.
        """
        n = len(actions)
        observations = np.zeros((n, self.spaces.observation_size), np.float32)
        rewards, over = np.zeros(n, np.float32), np.zeros(n, bool)
        every = [slice(k, None, self.count) for k in range(self.count)]
        answers = self._ask([("step", actions[part], moving[part]) for part in every])
        for part, answer in zip(every, answers, strict=True):
            observations[part], rewards[part], over[part] = answer
        return observations, rewards, over

    def bare_speed(self) -> float:
        """Steps per second of one simulation alone, with nothing around it."""
        return self._ask([("time",)] + [("spaces",)] * (self.count - 1))[0]

    def _ask(self, requests: Sequence[tuple]) -> list:
        """The answers of all processes, to a request for each."""
        try:
            for end, request in zip(self.ends, requests, strict=True):
                end.send(request)
            answers = [end.recv() for end in self.ends]
        except (EOFError, OSError) as error:
            self.close()
            raise UserError(
                f"{self.task}: a process that steps it has ended; what it said stands above"
            ) from error
        for said, value in answers:
            if said == "error":
                self.close()
                raise UserError(value)
        return [value for _, value in answers]


def _start(task: str, end: Connection) -> subprocess.Popen:
    """A process that answers on this end of a pipe."""
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    return subprocess.Popen(
        [sys.executable, "-m", "torchmpo.control.processes", task, str(end.fileno())],
        pass_fds=[end.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=2,  # what an environment prints is no result
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def _end(ends: Sequence[Connection], children: Sequence[subprocess.Popen]) -> None:
    for end in ends:
        end.close()
    for child in children:
        try:
            child.wait(1)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def serve(task: str, end: Connection) -> None:
    """Answer requests until the other end is closed."""
    simulations: list[Simulation] = []
    last = np.zeros((0, 0), np.float32)  # observation of each simulation in use
    while True:
        try:
            name, *given = end.recv()
        except EOFError:
            return
        try:
            if not simulations:
                simulations.append(simulation(task))
            if name == "reset":
                while len(simulations) < len(given[0]):
                    simulations.append(simulation(task))
                first = [
                    last[i] if seed is None else simulations[i].reset(seed)
                    for i, seed in enumerate(given[0])
                ]
                size = simulations[0].spaces.observation_size
                answer = last = np.array(first, np.float32).reshape(-1, size)
            elif name == "step":
                answer = _step(simulations, last, *given)
            else:
                answer = _bare(simulations[0]) if name == "time" else tuple(simulations[0].spaces)
            end.send(("answer", answer))
        except UserError as error:
            end.send(("error", str(error)))
        except Exception as error:
            end.send(("error", str(own_code_raised(task, error))))


def _step(
    simulations: Sequence[Simulation], last: np.ndarray, actions: np.ndarray, moving: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rewards, over = np.zeros(len(moving), np.float32), np.zeros(len(moving), bool)
    before = last.copy()
    for i in moving.nonzero()[0].tolist():
        last[i], rewards[i], over[i] = simulations[i].step(actions[i])
    wild = ~(np.isfinite(rewards) & np.isfinite(last).all(1))
    last[wild], rewards[wild], over[wild] = before[wild], 0.0, True
    return last, rewards, over


def _bare(one: Simulation) -> float:
    """Steps per second under the middle action, and a reset where an episode ends."""
    low, high = one.spaces.low, one.spaces.high
    action = np.where(np.isfinite(low + high), (low + high) / 2, 0.0).astype(np.float32)
    one.reset(0)
    steps, begin = 0, time.perf_counter()
    while (seconds := time.perf_counter() - begin) < BARE_SECONDS:
        steps += 1
        if one.step(action)[2]:
            one.reset(steps)
    return steps / seconds


if __name__ == "__main__":
    serve(sys.argv[1], Connection(int(sys.argv[2])))
