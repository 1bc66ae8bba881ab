"""Train the agents whose trajectories become preference data, with TorchRL's PPO.

    python experiments/train_experts.py original --std_floor 0.2 --std_floor_end 0.05 \\
        --entropy 0.004                                            # Ant
    python experiments/train_experts.py target --std_floor 0.06    # from the original
    python experiments/train_experts.py target_apart --std_floor 0.2 --std_floor_end 0.05 \\
        --entropy 0.004 --penalty_grows 0.5                        # the same task, from scratch
    python experiments/train_experts.py hopper_bad --learning_rate 3e-4 --entropy 0
    python experiments/train_experts.py hopper_target --learning_rate 3e-4 --entropy 0 \\
        --steps 6000000

Hopper's two end when their return is near 900 and 2,100. Each run logs to
``runs/experts/<agent>/log.csv``, checkpoints as it goes and resumes by itself, and ends by writing
weights and card to ``envs/torchmpo_envs/experts/``. The original agent's card also records k, the
weight of the costly leg: the one at which that agent keeps 1700/6000 of its return.
"""

import argparse
import csv
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.modules import IndependentNormal, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE
from tqdm import tqdm

from torchmpo.control.policy import GaussianPolicy, load_policy, save_policy, stack_policies
from torchmpo.control.returns import evaluate_policies
from torchmpo_envs import Ant, Hopper, ThreeLeggedAnt, expert_path

NAMES = {
    "original": "ant_original",
    "target": "tla_target",
    "target_apart": "tla_target_apart",
    "hopper_bad": "hopper_bad",
    "hopper_target": "hopper_target",
}
ENVIRONMENTS = {"original": Ant, "target": ThreeLeggedAnt, "target_apart": ThreeLeggedAnt}
STOP_AT = {"hopper_bad": 900.0, "hopper_target": 2100.0}  # arXiv 2411.06568, section 4
CLOSE = 0.03  # of the return to stop at
PENALTY_SHARE = 1 - 1700 / 6000  # the part of its Ant return that the original agent loses on TLA
EPOCHS, MINIBATCHES = 4, 8
REWARD_SCALE = 0.1  # keeps the values near 1, where the critic's learning rate fits


class Actor(nn.Module):
    """Location and scale for TorchRL's distribution, from our policy."""

    def __init__(self, policy: GaussianPolicy, std_floor: float):
        super().__init__()
        self.policy, self.std_floor = policy, std_floor

    def std(self):
        return self.policy.log_std.clamp(min=math.log(self.std_floor)).exp()

    def forward(self, observation):
        mean = self.policy(observation)
        return mean, self.std().expand_as(mean)


class Critic(nn.Module):
    """Value of an observation, whitened with the policy's statistics."""

    def __init__(self, policy: GaussianPolicy, width: int = 64):
        super().__init__()
        self.whiten = policy.whiten
        sizes = (policy.observation_size, width, width)
        hidden = [m for i, o in zip(sizes, sizes[1:]) for m in (nn.Linear(i, o), nn.Tanh())]
        self.net = nn.Sequential(*hidden, nn.Linear(width, 1))

    def forward(self, observation):
        return self.net(self.whiten(observation))


class RunningStatistics:
    """Mean and variance of all observations seen so far (Chan et al. 1979)."""

    def __init__(self, size: int):
        self.count = torch.tensor(1e-4, dtype=torch.float64)
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.var = torch.ones(size, dtype=torch.float64)

    def update(self, batch: torch.Tensor) -> None:
        batch = batch.flatten(0, -2).double()
        n, total = len(batch), self.count + len(batch)
        delta = batch.mean(0) - self.mean
        spread = self.var * self.count + batch.var(0, correction=0) * n
        self.var = (spread + delta.square() * self.count * n / total) / total
        self.mean = self.mean + delta * n / total
        self.count = total

    def write_to(self, policy: GaussianPolicy) -> None:
        policy.observation_mean.copy_(self.mean)
        policy.observation_std.copy_(self.var.sqrt().clamp(min=1e-3))


def save_checkpoint(path, modules, optimiser, statistics, frames):
    """Everything the run needs to go on, as flat tensors (nothing pickled), atomically."""
    tensors = {f"modules.{k}": v.clone() for k, v in modules.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{key}": value.clone() for key, value in state.items()}
    tensors |= {f"statistics.{k}": v.clone() for k, v in vars(statistics).items()}
    save_file(tensors | {"frames": torch.tensor(frames)}, f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


def load_checkpoint(path, modules, optimiser, statistics) -> int:
    tensors = load_file(path)
    parts: dict[str, dict] = {"modules": {}, "adam": {}, "statistics": {}}
    for name, value in tensors.items():
        if "." in name:
            part, key = name.split(".", 1)
            parts[part][key] = value
    modules.load_state_dict(parts["modules"])
    state: dict[int, dict] = {}
    for name, value in parts["adam"].items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
    vars(statistics).update(parts["statistics"])
    return int(tensors["frames"])


def evaluate(policy, env_class, *, episodes=100, sample=False, **settings):
    env = env_class(episodes, **settings)
    params = stack_policies(policy.trainable(), 1)
    returns = evaluate_policies(env, policy, params, episodes, seed=2026, sample=sample)[0]
    return {
        "mean": round(returns.mean().item(), 1),
        "s.e.": round((returns.std() / episodes**0.5).item(), 1),
        "episodes": episodes,
    }


def derive_penalty(policy, episodes=100):
    """k = (1 − 1700/6000) · Ant return / Σ_t a_leg²: what the costly leg must cost the original."""
    free = evaluate(policy, ThreeLeggedAnt, penalty=0.0, episodes=episodes)["mean"]
    costly = evaluate(policy, ThreeLeggedAnt, penalty=1.0, episodes=episodes)["mean"]
    leg_use = free - costly
    return {"k": round(PENALTY_SHARE * free / leg_use, 2), "Σ a_leg²": round(leg_use, 2)}


def command():
    return "python experiments/train_experts.py " + " ".join(sys.argv[1:])


def grow_penalty(env, frames, args):
    """The leg's cost after so many steps, if it grows."""
    if args.penalty_grows:
        env.penalty = env.default_penalty * min(1, frames / (args.penalty_grows * args.steps))


def train(args, env_class):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.num_threads)
    out = Path(args.out or f"runs/experts/{args.agent}")
    out.mkdir(parents=True, exist_ok=True)
    env = env_class(args.num_envs, seed=args.seed)
    statistics = RunningStatistics(env.observation_spec["observation"].shape[-1])
    if args.agent != "target":
        sizes = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
        policy = GaussianPolicy(*sizes, mean=args.mean, std=args.std, std_kind="learned")
    else:
        policy = load_policy(args.start or expert_path("ant_original"), std=args.std)
        # Keep whitening as the original's: the two agents then share one input scale.
        statistics = None
    gaussian = Actor(policy, args.std_floor)
    actor = ProbabilisticActor(
        TensorDictModule(gaussian, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )
    critic = ValueOperator(Critic(policy), in_keys=["observation"])
    loss_module = ClipPPOLoss(
        actor,
        critic,
        clip_epsilon=0.2,
        entropy_coeff=args.entropy,
        critic_coeff=0.5,
        loss_critic_type="l2",
        normalize_advantage=True,
    )
    advantage = GAE(gamma=args.gamma, lmbda=0.95, value_network=critic)
    modules = nn.ModuleDict({"policy": policy, "critic": critic.module.net})
    optimiser = torch.optim.Adam(modules.parameters(), lr=args.learning_rate, eps=1e-5)
    checkpoint, frames = out / "checkpoint.safetensors", 0
    history = out / "history.json"
    kept = statistics or RunningStatistics(policy.observation_size)
    if checkpoint.exists():
        frames = load_checkpoint(checkpoint, modules, optimiser, kept)
        torch.manual_seed(args.seed + frames)
    # A run may go on with other settings: the card tells which steps were made with which.
    stages = json.loads(history.read_text()) if frames else []
    if frames < args.steps:
        stages.append({"from_step": frames, "command": command()})
    history.write_text(json.dumps(stages))
    batch_size = args.num_envs * args.horizon
    collector = Collector(
        env,
        actor,
        frames_per_batch=batch_size,
        total_frames=max(args.steps - frames, 0),
        auto_register_policy_transforms=False,  # a policy without a state needs none
    )
    log = (out / "log.csv").open("a", newline="")
    writer = csv.writer(log)
    if not frames:
        writer.writerow(["steps", "seconds", "return", "length", "std", "deterministic_return"])
    grow_penalty(env, frames, args)
    bar = tqdm(total=args.steps, initial=frames, unit="step", unit_scale=True, mininterval=5)
    score, length, start = float("nan"), float("nan"), time.perf_counter()
    episode_return, episode_length = torch.zeros(args.num_envs), torch.zeros(args.num_envs)
    for iteration, batch in enumerate(collector):
        # Noise keeps a gait from growing fast, so its floor and its bonus fall with the step size.
        left = max(1 - frames / args.steps, 0.02)
        for group in optimiser.param_groups:
            group["lr"] = args.learning_rate * left
        if args.std_floor_end is not None:
            gaussian.std_floor = left * args.std_floor + (1 - left) * args.std_floor_end
            loss_module.entropy_coeff.fill_(args.entropy * left)
        finished_returns, finished_lengths = [], []
        for reward, done in zip(
            batch["next", "reward"].squeeze(-1).T, batch["next", "done"].squeeze(-1).T
        ):
            episode_return += reward
            episode_length += 1
            finished_returns.append(episode_return[done])
            finished_lengths.append(episode_length[done])
            episode_return = episode_return.masked_fill(done, 0)
            episode_length = episode_length.masked_fill(done, 0)
        if len(ended := torch.cat(finished_returns)):
            score, length = ended.mean().item(), torch.cat(finished_lengths).mean().item()
        batch["next", "reward"] *= REWARD_SCALE
        with torch.no_grad():
            advantage(batch)
        rows = batch.reshape(-1).select(
            "observation", "action", "action_log_prob", "advantage", "value_target"
        )
        for _ in range(EPOCHS):
            for indices in torch.randperm(batch_size).chunk(MINIBATCHES):
                losses = loss_module(rows[indices])
                loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(modules.parameters(), 0.5)
                optimiser.step()
        if statistics is not None:
            statistics.update(batch["observation"])
            statistics.write_to(policy)
        frames += batch_size
        grow_penalty(env, frames, args)
        bar.update(batch_size)
        bar.set_postfix_str(f"return {score:.0f}, length {length:.0f}", refresh=False)
        if iteration % 10 == 9:
            deterministic = ""
            if iteration % 50 == 49:
                deterministic = evaluate(policy, env_class, episodes=16)["mean"]
                save_checkpoint(checkpoint, modules, optimiser, kept, frames)
            std = gaussian.std().mean().item()
            seconds = round(time.perf_counter() - start, 1)
            writer.writerow(
                [frames, seconds, round(score, 1), round(length, 1), round(std, 3), deterministic]
            )
            log.flush()
        if args.stop_at and iteration % 5 == 4 and score > 0.5 * args.stop_at:
            reached = evaluate(policy, env_class)["mean"]
            if abs(reached - args.stop_at) < CLOSE * args.stop_at:
                break
    bar.close()
    log.close()
    collector.shutdown()
    policy.log_std.data.clamp_(min=math.log(gaussian.std_floor))
    save_checkpoint(checkpoint, modules, optimiser, kept, frames)
    return policy, stages, frames


def settings(argv=None):
    """The options of one agent's training, with what depends on the agent filled in."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("agent", choices=NAMES)
    parser.add_argument("--steps", type=int, default=None, help="environment steps in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mean", default="tanh", help="head of the policy: tanh, clip or linear")
    parser.add_argument("--std", type=float, default=None, help="standard deviation to start from")
    parser.add_argument("--std_floor", type=float, default=0.1)
    parser.add_argument(
        "--std_floor_end", type=float, help="let the floor fall to this, and the entropy bonus to 0"
    )
    parser.add_argument(
        "--penalty_grows",
        type=float,
        help="three-legged ant: let the leg's cost grow from 0 over this part of the training; at "
        "its full cost an agent that starts from scratch learned to fall over at once",
    )
    parser.add_argument("--entropy", type=float, default=0.002)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--gamma", type=float, default=None)
    parser.add_argument("--num_envs", type=int, default=None)
    parser.add_argument(
        "--horizon", type=int, default=None, help="steps per update and environment"
    )
    parser.add_argument("--stop_at", type=float, help="hopper: end near this deterministic return")
    parser.add_argument("--num_threads", type=int, default=1, help="of torch; physics takes all")
    parser.add_argument("--start", help="target: the policy to start from")
    parser.add_argument("--out", help="where to log and checkpoint")
    parser.add_argument("--weights", help="where to write the agent; default: with the package")
    args = parser.parse_args(argv)
    hopper = args.agent.startswith("hopper")
    if args.penalty_grows and ENVIRONMENTS.get(args.agent) is not ThreeLeggedAnt:
        parser.error("--penalty_grows is for agents of the three-legged ant")
    args.std = args.std or {"target": 0.08}.get(args.agent, 0.6)
    steps = {"original": 40_000_000, "target": 10_000_000, "target_apart": 24_000_000}
    args.steps = args.steps or steps.get(args.agent, 8_000_000)
    args.gamma = args.gamma or (0.99 if hopper else 0.985)
    args.num_envs = args.num_envs or (256 if hopper else 1024)
    args.horizon = args.horizon or (64 if hopper else 24)
    args.stop_at = args.stop_at or STOP_AT.get(args.agent)
    return args


def main():
    args = settings()
    hopper = args.agent.startswith("hopper")
    policy, stages, frames = train(args, ENVIRONMENTS.get(args.agent, Hopper))
    path = Path(args.weights) if args.weights else expert_path(NAMES[args.agent])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_policy(policy, path)
    card = {
        "commands": stages,
        "settings": vars(args),
        "environment_steps": frames,
        "std": [round(s, 3) for s in policy.log_std.detach().exp().tolist()],
    }
    if args.agent == "original":
        card["penalty"] = derive_penalty(policy) | {"k used": ThreeLeggedAnt.default_penalty}
    tasks = {"hopper": Hopper} if hopper else {"ant": Ant, "tla": ThreeLeggedAnt}
    for task, env_class in tasks.items():
        card[f"{task}_return_deterministic"] = evaluate(policy, env_class)
        card[f"{task}_return_sampled"] = evaluate(policy, env_class, sample=True)
    path.with_suffix(".json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(card, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
