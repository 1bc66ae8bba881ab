"""How many steps per second does a batch of robots give, against the rivals, in the same run?

    python benchmarks/environments.py --json results.json               # 512 ants
    python benchmarks/environments.py --task hopper
    python benchmarks/environments.py --physics warp --num_envs 1024 4096 16384 65536   # on a GPU

Ours is ``step_and_maybe_reset`` of the environment, with everything TorchRL does around it. The
yardstick is the bare physics, ``mujoco.batch`` or MuJoCo Warp: the same model, start states and
actions, no observations, rewards or resets.
The rivals that users have are EnvPool (optional: ``make bench-environments`` installs 1.2.5, the
last for Python 3.11), Gymnasium's AsyncVectorEnv and TorchRL's ParallelEnv, all with the RK4 model
and without contact forces; the latter two take a process per environment, so they get 16 of them.
The rival of Warp is up to 1024 of our environments on the CPU's threads.
Contestants take turns, each repeat gives one ratio to bare stepping, and medians are reported: so
a busy machine changes the steps per second but hardly the ratios.
"""

import argparse
import json
import os
import platform
import statistics
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import gymnasium
import mujoco.batch
import numpy as np
import torch
from tensordict import TensorDict
from torchrl.envs import GymWrapper, ParallelEnv

from torchmpo_envs import Ant, Hopper
from torchmpo_envs.physics import start_physics

# name → our class, Gymnasium's id and settings, EnvPool's settings
TASKS = {
    "ant": (
        Ant,
        "Ant-v5",
        {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0},
        {"use_contact_force": False},
    ),
    "hopper": (Hopper, "Hopper-v5", {}, {}),
}
PROCESSES = 16  # of AsyncVectorEnv and of ParallelEnv
ON_THREADS = 1024  # environments on the CPU that Warp is measured against
BARE = {"threads": "bare mujoco.batch", "warp": "bare MuJoCo Warp"}


class Ours:
    """TorchRL's loop over our environment."""

    def __init__(self, task, num_envs, **settings):
        self.num_envs, self.env = num_envs, task(num_envs, seed=0, **settings)

    def reset(self, start):
        start = torch.from_numpy(start[: self.num_envs]).to(self.env.device)
        given = TensorDict({"start_state": start}, self.env.batch_size, device=self.env.device)
        self.state = self.env.reset(given).exclude("start_state")

    def run(self, actions):
        for action in torch.from_numpy(actions[:, : self.num_envs]).float().to(self.env.device):
            _, self.state = self.env.step_and_maybe_reset(self.state.set("action", action))
        wait_for(self.env.device)


class Bare:
    """Nothing but ``mujoco.batch``."""

    def __init__(self, task, num_envs, integrator):
        self.num_envs, self.frame_skip = num_envs, task.frame_skip
        self.model = task(1, integrator=integrator).model
        self.batch = mujoco.batch.Batch(self.model, num_envs)
        self.qpos, self.qvel, self.ctrl = (self.batch.bind(f) for f in ("qpos", "qvel", "ctrl"))

    def reset(self, start):
        self.batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE)
        self.qpos[:], self.qvel[:] = np.split(start, [self.model.nq], axis=-1)
        self.batch.forward()

    def run(self, actions):
        for action in actions:
            self.ctrl[:] = action
            self.batch.step(nstep=self.frame_skip)


class BareWarp:
    """Nothing but MuJoCo Warp's graph of kernels."""

    def __init__(self, task, num_envs, integrator, device):
        self.num_envs, self.frame_skip = num_envs, task.frame_skip
        model = task(1, integrator=integrator).model
        self.physics = start_physics("warp", model, num_envs, num_threads=0, device=device)

    def reset(self, start):
        home = self.physics.qpos.device
        everyone = torch.ones(self.num_envs, dtype=torch.bool, device=home)
        self.physics.set_state(torch.from_numpy(start).to(home), everyone)

    def run(self, actions):
        for action in torch.from_numpy(actions).to(self.physics.qpos):
            self.physics.step(action, None, self.frame_skip)
        wait_for(self.physics.qpos.device)


def wait_for(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class VectorEnv:
    """A rival with Gymnasium's vector interface, which draws its own start states."""

    def __init__(self, env, num_envs):
        self.env, self.num_envs = env, num_envs

    def reset(self, start):
        self.env.reset()

    def run(self, actions):
        for action in actions[:, : self.num_envs]:
            self.env.step(action)


def wrapped(make):
    return GymWrapper(make())


class Processes:
    """TorchRL's loop over a process per environment of Gymnasium; draws its own start states."""

    def __init__(self, make, num_envs):
        self.num_envs = num_envs
        self.env = ParallelEnv(num_envs, partial(wrapped, make), mp_start_method="fork")
        self.env.start()

    def reset(self, start):
        self.state = self.env.reset()

    def run(self, actions):
        for action in torch.from_numpy(actions[:, : self.num_envs]).float():
            _, self.state = self.env.step_and_maybe_reset(self.state.set("action", action))


def on_threads(task, num_envs):
    """(integrator, name) → contestant; bare stepping first in each group."""
    ours, name, settings, envpool_settings = TASKS[task]
    make_rival = partial(gymnasium.make, name, **settings)
    # TorchRL sets "spawn", with which every process would import torch and TorchRL again, at some
    # hundred MB each. So fork, before any thread exists.
    robots = gymnasium.vector.AsyncVectorEnv([make_rival] * PROCESSES, context="fork")
    processes = VectorEnv(robots, PROCESSES)
    torchrl = Processes(make_rival, PROCESSES)
    found = {}
    for integrator in ("RK4", "implicitfast"):
        found[integrator, BARE["threads"]] = Bare(ours, num_envs, integrator)
        found[integrator, "torchmpo_envs"] = Ours(ours, num_envs, integrator=integrator)
    try:
        import envpool
    except ImportError:
        print("EnvPool is left out: not installed (make bench-environments installs it)")
    else:
        threads = {"num_envs": num_envs, "num_threads": os.cpu_count(), "seed": 0}
        pool = envpool.make_gymnasium(name, **threads, **envpool_settings)
        found["RK4", "EnvPool"] = VectorEnv(pool, num_envs)
    found["RK4", "Gymnasium AsyncVectorEnv"] = processes
    found["RK4", "TorchRL ParallelEnv"] = torchrl
    return found


def on_warp(task, num_envs, device):
    """As :func:`on_threads`, for MuJoCo Warp."""
    ours, found = TASKS[task][0], {}
    for integrator in ("RK4", "implicitfast"):
        settings = {"integrator": integrator}
        found[integrator, BARE["warp"]] = BareWarp(ours, num_envs, integrator, device)
        found[integrator, "torchmpo_envs, warp"] = Ours(
            ours, num_envs, physics="warp", device=device, **settings
        )
        count = min(num_envs, ON_THREADS)
        found[integrator, f"torchmpo_envs, {count} on threads"] = Ours(ours, count, **settings)
    return found


def measure(task, found, num_envs, steps, repeats):
    """Steps per second of each contestant, one number per repeat."""
    speeds, draw = {}, torch.Generator().manual_seed(0)
    some_env = TASKS[task][0](1)
    for repeat in range(repeats + 1):
        start = some_env.start_states(num_envs, draw).numpy()
        # float32 numbers, so that all act alike.
        noise = torch.rand(steps, num_envs, some_env.model.nu, generator=draw)
        actions = (2 * noise - 1).double().numpy()
        for key, contestant in found.items():
            contestant.reset(start)
            begin = time.perf_counter()
            contestant.run(actions)
            seconds = time.perf_counter() - begin
            if repeat > 0:  # the first warms up
                speeds.setdefault(key, []).append(contestant.num_envs * steps / seconds)
    for contestant in found.values():
        if isinstance(contestant, (VectorEnv, Processes)):
            contestant.env.close()
    return speeds


def summarise(speeds, num_envs, bare):
    rows = []
    for (integrator, name), values in speeds.items():
        ratios = [v / b for v, b in zip(values, speeds[integrator, bare])]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        row = {
            "num_envs": num_envs,
            "integrator": integrator,
            "name": name,
            "steps_per_second": statistics.median(values),
        }
        rows.append(row | {"ratio_to_bare": ratio, "ratio_quartiles": [low, high]})
    return sorted(rows, key=lambda row: (row["integrator"], -row["steps_per_second"]))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, default="ant")
    parser.add_argument("--physics", choices=BARE, default="threads")
    parser.add_argument("--device", help="of Warp; default: the GPU where there is one")
    parser.add_argument("--num_envs", type=int, nargs="+", default=[512], help="several for Warp")
    parser.add_argument("--steps", type=int, default=20, help="of every environment, per repeat")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    args = parser.parse_args()
    if args.repeats < 2:
        parser.error("--repeats must be at least 2")
    if args.physics == "threads" and len(args.num_envs) > 1:
        parser.error("several --num_envs need --physics warp")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"{'num_envs':>9}  {'integrator':14}{'':32}{'steps/s':>11}{'of bare':>10}  (quartiles)")
    rows = []
    for num_envs in args.num_envs:
        if args.physics == "threads":
            found = on_threads(args.task, num_envs)
        else:
            found = on_warp(args.task, num_envs, device)
        speeds = measure(args.task, found, num_envs, args.steps, args.repeats)
        for row in summarise(speeds, num_envs, BARE[args.physics]):
            low, high = row["ratio_quartiles"]
            head = f"{num_envs:9,}  {row['integrator']:14}{row['name']:32}"
            numbers = f"{row['steps_per_second']:11,.0f}{row['ratio_to_bare']:10.1%}"
            print(f"{head}{numbers}  ({low:.1%} – {high:.1%})", flush=True)
            rows.append(row)
    if args.json:
        names = ("task", "physics", "num_envs", "steps", "repeats")
        setting = {name: getattr(args, name) for name in names}
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        packages = ["mujoco", "torch", "torchrl", "gymnasium"]
        packages += ["envpool"] * any(row["name"] == "EnvPool" for row in rows)
        if args.physics == "warp":
            packages += ["mujoco-warp", "warp-lang"]
            if device.type == "cuda":
                machine["gpu"] = torch.cuda.get_device_name(device)
        versions = {name: version(name) for name in packages}
        answer = {"setting": setting, "machine": machine, "versions": versions, "results": rows}
        args.json.write_text(json.dumps(answer, indent=2) + "\n")


if __name__ == "__main__":
    main()
