"""On which machines a run was computed: what the last bits of its results depend on."""

import json
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torchmpo.runs.files import write_atomic
from torchmpo.runs.json_files import read_records

FILE = "machines.json"  # of a run folder: each machine once, in the order in which they worked
PACKAGES = ("torch", "numpy", "mujoco", "transformers")


def machine() -> dict[str, str | int | bool]:
    """This one: processor, its vector instructions, cores, compiler and versions of libraries.

    Sums in another order, by other instructions or another compiler, round differently. Training
    and physics amplify the last bit, so results of two machines differ as those of two seeds do,
    only less; `docs/reliability.md` has the size.
    """
    import torch

    found: dict[str, str | int | bool] = {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        "compiler": shutil.which(os.environ.get("CXX", "g++")) is not None,
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def note_machine(out: Path) -> list[dict]:
    """Add this machine to those of the run in ``out``, and say so if the run began on another.

    Returns:
        all machines of the run.
    """
    path, here = out / FILE, machine()
    known = read_records(path)
    if here in known:
        return known
    if known:
        changed = sorted(key for key in here | known[-1] if here.get(key) != known[-1].get(key))
        words = ", ".join(f"{key} {known[-1].get(key)} → {here.get(key)}" for key in changed)
        print(
            f"note: this run was computed on another machine so far ({words}); what is finished "
            "stays, what follows rounds differently, which is like another draw of the noise",
            file=sys.stderr,
        )
    write_atomic(path, json.dumps([*known, here], indent=1) + "\n")
    return [*known, here]


def _processor() -> str:
    """Its name, where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
