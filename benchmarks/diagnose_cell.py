"""How long does a cell of ``python -m torchmpo.diagnose`` take, end to end, against a plain script?

    python benchmarks/diagnose_cell.py --json results.json

A cell tunes a loss over 8 settings of its hyper-parameters and trains the best one again on 5
seeds: 13 trainings of 12 epochs on 128 pairs of the three-legged ant, each judged by 16 episodes.
Ours is ``run_cell`` from call to return, with and without compilation; the data is there
beforehand. The rival is what one would write without it: an ordinary PyTorch loop (module,
autograd, Adam), one training after another, judged in Gymnasium's AsyncVectorEnv of Ant-v5 with the
same integrator and a process per episode; one of its trainings is timed and counted 13 times. They
take turns, and medians are reported. What a cell measures besides returns and curves, to say why a
loss fell, is a part of its time, which is printed, too.
"""

import argparse
import json
import platform
import statistics
import time
from functools import partial
from pathlib import Path

import gymnasium
import mujoco
import torch

from torchmpo.control import inner_loop as inner
from torchmpo.control.policy import GaussianPolicy
from torchmpo.control.testbed import prepare
from torchmpo.diagnose import suite
from torchmpo.diagnose.settings import DiagnoseConfig
from torchmpo.diagnose.setup import Setup
from torchmpo.diagnose.suite import run_cell
from torchmpo.runs.command import duration


def plain_ant(max_steps):
    env = gymnasium.make(
        "Ant-v5",
        max_episode_steps=max_steps,
        include_cfrc_ext_in_observation=False,
        contact_cost_weight=0,
    )
    env.unwrapped.model.opt.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    return env


def one_training(testbed, objective, robots, episodes):
    """Train one policy and run its episodes: the mean return."""
    data, config, like = testbed.dataset, testbed.config.inner, testbed.policy
    policy = GaussianPolicy(
        like.observation_size, like.action_size, like.hidden, mean=like.mean_kind, std=0.4
    )
    policy.load_state_dict(like.state_dict())
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)
    for _ in range(config.epochs):
        for batch in torch.randperm(len(data)).split(config.minibatch_pairs):
            rows = torch.cat([data.chosen[batch], data.rejected[batch]])
            fraction = torch.rand(len(rows), config.steps_per_trajectory)
            at = rows[:, None], (fraction * data.lengths[rows][:, None]).long()
            logps = policy.step_logps(data.observation[at], data.action[at]).mean(-1)
            fields = dict(zip(("chosen_mean_logps", "rejected_mean_logps"), logps.chunk(2)))
            loss = objective.function(**fields, **objective.hyper).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
            optimizer.step()
    observation, _ = robots.reset(seed=0)
    returns, running = torch.zeros(episodes), torch.ones(episodes, dtype=torch.bool)
    with torch.no_grad():
        while running.any():
            action = policy(torch.as_tensor(observation, dtype=torch.float32))
            observation, reward, terminated, truncated, _ = robots.step(action.numpy())
            returns += torch.as_tensor(reward) * running
            running &= ~torch.as_tensor(terminated | truncated)
    return returns.mean().item()


def timed(function, seconds):
    """The same function, whose time is noted."""

    def wrapped(*args):
        begin = time.perf_counter()
        found = function(*args)
        seconds.append(time.perf_counter() - begin)
        return found

    return wrapped


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="seconds: see that it runs")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    small = {"pairs": 4, "episode_steps": 50, "trials": 2, "seeds": 2, "compile": False}
    config = DiagnoseConfig(losses="orpo", data="base", **(small if args.smoke else {}))
    setup = Setup.of(config)
    objective, grid = setup.objectives["orpo"], setup.grids["orpo"]
    testbed = prepare([setup.testbeds["base"]])[0]
    make = partial(plain_ant, config.episode_steps)
    robots = gymnasium.vector.AsyncVectorEnv([make] * config.episodes, context="fork")
    trainings = config.trials * config.tuning_seeds + config.seeds
    cold, warm, plain, why = [], [], [], []
    for name in ("behaviour", "rankings"):
        setattr(suite, name, timed(getattr(suite, name), why))
    for _ in range(args.repeats):
        inner._PROGRAMS.clear()
        for kind in (cold, warm):
            begin = time.perf_counter()
            cell = run_cell(testbed, objective, grid, config.seeds, setup.protocol)
            kind.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        plain_return = one_training(testbed, objective, robots, config.episodes)
        plain.append((time.perf_counter() - begin) * trainings)
    robots.close()
    mean = statistics.mean(statistics.mean(row) for row in cell["returns"])
    print(f"{trainings} trainings of {config.epochs} epochs on {config.pairs} pairs")
    print(f"mean return: {mean:.0f}; the plain script's, leg 4 free of charge: {plain_return:.0f}")
    results = {}
    for name, values in (("run_cell, compiling", cold), ("run_cell again", warm)):
        ratios = [p / v for p, v in zip(plain, values)]
        results[name] = {"seconds": statistics.median(values), "speedup": statistics.median(ratios)}
        seconds, times = results[name].values()
        print(f"{name:22}{seconds:8.1f} s {times:6.1f} times as fast as the plain script")
    share = sum(why) / (sum(cold) + sum(warm))
    print(f"of which to say why: {100 * share:.2f} %")
    results["to say why"] = {"share": share}
    results["plain script"] = {"seconds": statistics.median(plain), "speedup": 1.0}
    print(f"{'plain script':22}{statistics.median(plain):8.1f} s ({duration(plain[0])})")
    if args.json:
        about = {"torch": torch.__version__, "machine": platform.processor(), **vars(args)}
        about["json"] = str(args.json)
        args.json.write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
