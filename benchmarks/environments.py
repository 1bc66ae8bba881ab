"""How many ant steps per second does 512 environments give, against the rivals, in the same run?

    python benchmarks/environments.py --json results.json

Ours is ``Ant.step_and_maybe_reset``, with everything TorchRL does around it. The yardstick is bare
``mujoco.batch``: the same model, start states and actions, no observations, rewards or resets. The
rivals that users have are EnvPool (optional: ``pip install envpool==1.2.5``, the last for Python
3.11) and Gymnasium's AsyncVectorEnv, both with the RK4 model and without contact forces; the latter
takes a process per environment, so it gets 16 of them.
Contestants take turns, each repeat gives one ratio to bare stepping, and medians are reported: so
a busy machine changes the steps per second but hardly the ratios.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import gymnasium
import mujoco.batch
import numpy as np
import torch
from tensordict import TensorDict

from torchmpo_envs import Ant

PROCESSES = 16  # of AsyncVectorEnv


class Ours:
    """TorchRL's loop over our environment."""

    def __init__(self, num_envs, integrator):
        self.num_envs, self.env = num_envs, Ant(num_envs, integrator=integrator, seed=0)

    def reset(self, start):
        start = {"start_state": torch.from_numpy(start)}
        self.state = self.env.reset(TensorDict(start, self.env.batch_size)).exclude("start_state")

    def run(self, actions):
        for action in torch.from_numpy(actions).float():
            _, self.state = self.env.step_and_maybe_reset(self.state.set("action", action))


class Bare:
    """Nothing but the physics."""

    def __init__(self, num_envs, integrator):
        self.num_envs, self.model = num_envs, Ant(1, integrator=integrator).model
        self.batch = mujoco.batch.Batch(self.model, num_envs)
        self.qpos, self.qvel, self.ctrl = (self.batch.bind(f) for f in ("qpos", "qvel", "ctrl"))

    def reset(self, start):
        self.batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE)
        self.qpos[:], self.qvel[:] = np.split(start, [self.model.nq], axis=-1)
        self.batch.forward()

    def run(self, actions):
        for action in actions:
            self.ctrl[:] = action
            self.batch.step(nstep=Ant.frame_skip)


class VectorEnv:
    """A rival with Gymnasium's vector interface, which draws its own start states."""

    def __init__(self, env, num_envs):
        self.env, self.num_envs = env, num_envs

    def reset(self, start):
        self.env.reset()

    def run(self, actions):
        for action in actions[:, : self.num_envs]:
            self.env.step(action)


def gymnasium_ant():
    return gymnasium.make("Ant-v5", include_cfrc_ext_in_observation=False, contact_cost_weight=0)


def contestants(num_envs):
    """(integrator, name) → contestant; bare stepping first in each group."""
    # TorchRL sets "spawn", with which every process would import torch and TorchRL again, at some
    # hundred MB each. So fork, before any thread exists.
    ants = gymnasium.vector.AsyncVectorEnv([gymnasium_ant] * PROCESSES, context="fork")
    processes = VectorEnv(ants, PROCESSES)
    found = {}
    for integrator in ("RK4", "implicitfast"):
        found[integrator, "bare mujoco.batch"] = Bare(num_envs, integrator)
        found[integrator, "torchmpo_envs.Ant"] = Ours(num_envs, integrator)
    try:
        import envpool
    except ImportError:
        print("EnvPool is left out: not installed (pip install envpool==1.2.5)")
    else:
        settings = {"num_envs": num_envs, "num_threads": os.cpu_count(), "seed": 0}
        pool = envpool.make_gymnasium("Ant-v5", use_contact_force=False, **settings)
        found["RK4", "EnvPool"] = VectorEnv(pool, num_envs)
    found["RK4", "Gymnasium AsyncVectorEnv"] = processes
    return found


def measure(num_envs, steps, repeats):
    """Steps per second of each contestant, one number per repeat."""
    speeds, draw = {}, torch.Generator().manual_seed(0)
    found = contestants(num_envs)
    some_env = found["RK4", "torchmpo_envs.Ant"].env
    for repeat in range(repeats + 1):
        start = some_env.start_states(num_envs, draw).numpy()
        # float32 numbers, so that all act alike.
        actions = (2 * torch.rand(steps, num_envs, 8, generator=draw) - 1).double().numpy()
        for key, contestant in found.items():
            contestant.reset(start)
            begin = time.perf_counter()
            contestant.run(actions)
            seconds = time.perf_counter() - begin
            if repeat > 0:  # the first warms up
                speeds.setdefault(key, []).append(contestant.num_envs * steps / seconds)
    found["RK4", "Gymnasium AsyncVectorEnv"].env.close()
    return speeds


def summarise(speeds):
    rows = []
    for (integrator, name), values in speeds.items():
        ratios = [v / b for v, b in zip(values, speeds[integrator, "bare mujoco.batch"])]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        row = {
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
    parser.add_argument("--num_envs", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20, help="of every environment, per repeat")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    args = parser.parse_args()
    if args.repeats < 2:
        parser.error("--repeats must be at least 2")
    rows = summarise(measure(args.num_envs, args.steps, args.repeats))
    print(f"{'integrator':14}{'':28}{'steps/s':>10}{'of bare':>10}  (quartiles)")
    for row in rows:
        low, high = row["ratio_quartiles"]
        head = f"{row['integrator']:14}{row['name']:28}{row['steps_per_second']:10,.0f}"
        print(f"{head}{row['ratio_to_bare']:10.1%}  ({low:.1%} – {high:.1%})")
    if args.json:
        setting = {"num_envs": args.num_envs, "steps": args.steps, "repeats": args.repeats}
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        packages = {name: version(name) for name in ("mujoco", "torch", "torchrl", "gymnasium")}
        answer = {"setting": setting, "machine": machine, "versions": packages, "results": rows}
        args.json.write_text(json.dumps(answer, indent=2) + "\n")


if __name__ == "__main__":
    main()
