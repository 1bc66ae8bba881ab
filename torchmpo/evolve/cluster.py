"""Ray around a search: on this machine alone, or a cluster that is joined and left running."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchmpo.runs.errors import UserError, one_line
from torchmpo.runs.threads import WAIT_POLICY


def capacity(num_threads: int) -> int:
    """Actors of ``num_threads`` threads each that the machines of the cluster can hold."""
    import ray

    cpus = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return sum(int(count // num_threads) for count in cpus)


def check_cluster(num_actors: int, address: str | None) -> None:
    """Refuse an address that can be none, or actors too few for a cluster.

    Raises:
        UserError: it is, or they are.
    """
    if address is None:
        return
    if num_actors < 2:
        raise UserError(f"a Ray cluster needs num_actors of at least 2; got {num_actors}")
    host, _, port = address.rpartition(":")
    if address != "auto" and (not host or not port.isdecimal() or "/" in host):
        raise UserError(f"a Ray address is host:port, or auto; got {address!r}")


def see_cluster(address: str | None) -> None:
    """See that something answers at a cluster's address; Ray itself would try for a minute.

    Raises:
        UserError: nothing does.
    """
    if address is None or address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster at {address}: {error}") from error


@contextmanager
def ray_actors(num_actors: int, num_threads: int, address: str | None = None) -> Iterator[None]:
    """Ray for the time of the block, if there are actors and it does not run yet.

    Args:
        num_actors: 0 or 1 need no Ray.
        num_threads: CPUs that an actor takes.
        address: ``host:port`` of the head of a running cluster of which this machine is part, or
            ``auto`` for the one that runs here: joined, and left running at the end. ``None``
            starts Ray on this machine only, and ends it.

    Raises:
        UserError: the cluster cannot be joined or has too few CPUs.
    """
    check_cluster(num_actors, address)
    if num_actors < 2:
        yield
        return
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # "local": not into whatever cluster happens to run, or RAY_ADDRESS names.
        cpus = num_actors * num_threads
        _keep_token()
        ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
    else:
        _join(address, quiet)
    try:
        if (room := capacity(num_threads)) < num_actors:
            raise UserError(
                f"the cluster at {address} has room for {room} actors of {num_threads} CPUs, not "
                f"for {num_actors}: lower num_actors or num_threads"
            )
        yield
    finally:
        ray.shutdown()


def _keep_token() -> None:
    """Ray on this machine alone asks for a token. Where there is none, one that this process keeps.

    Ray would write one to ~/.ray, for good, and every cluster started later would ask for it.
    """
    chosen = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    file = Path.home() / ".ray" / "auth_token"
    if not (file.exists() or any(name in os.environ for name in chosen)):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _join(address: str, quiet: dict[str, Any]) -> None:
    import ray
    from ray.exceptions import RayError

    see_cluster(address)
    # Its machines were started without this process's environment. OpenMP reads how its threads
    # wait when torch is imported, so a worker must have it from its start.
    waiting = {n: os.environ[n] for n in (WAIT_POLICY,) if n in os.environ}
    try:
        ray.init(address, runtime_env={"env_vars": waiting}, **quiet)
    except (OSError, RuntimeError, ValueError, AssertionError, RayError) as error:
        reason = one_line(error).rstrip(".")
        if os.environ.get("RAY_AUTH_MODE") == "token":
            cure = "see that its ~/.ray/auth_token and the one here are the same"
        else:  # one is there wherever Ray has made one, and asked for from then on
            cure = "if it wants a token, set RAY_AUTH_MODE=token and copy its ~/.ray/auth_token"
        raise UserError(f"cannot join the Ray cluster at {address}: {reason}; {cure}") from error
