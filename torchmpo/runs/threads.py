"""How the threads of a command wait for each other."""

import os

WAIT_POLICY = "OMP_WAIT_POLICY"


def wait_asleep() -> None:
    """Let a thread that waits for the others sleep instead of running in circles.

    Call it before torch is imported: OpenMP reads the setting once, when it is loaded. Its threads
    meet thousands of times a second, and by default one that has come early looks again and again
    whether the rest is there. While another process is busy, it thereby keeps the rest from a core,
    for whole time slices. What the user has set stays.
    """
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")
