"""How the threads of a command wait for each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

WAIT_POLICY = "OMP_WAIT_POLICY"
NUM_THREADS = "OMP_NUM_THREADS"
TINY = 1_000_000  # parameters of a model that threads have too little of to share


def wait_asleep() -> None:
    """Let a thread that waits for the others sleep instead of running in circles.

    Call it before torch is imported: OpenMP reads the setting once, when it is loaded. Its threads
    meet thousands of times a second, and by default one that has come early looks again and again
    whether the rest is there. While another process is busy, it thereby keeps the rest from a core,
    for whole time slices. What the user has set stays.
    """
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")


def one_thread_if_tiny(parameters: int) -> None:
    """Compute a model of fewer than ``TINY`` parameters in one thread, unless the user set another.

    Threads that sleep while they wait for each other, see :func:`wait_asleep`, must be woken for
    every operation, and waking takes longer than half of so small an operation.
    """
    if parameters < TINY and NUM_THREADS not in os.environ:
        import torch

        torch.set_num_threads(1)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """The physics has its own threads; for tensors this small torch's only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
