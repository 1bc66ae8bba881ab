"""A world of one's own, from two agents to a report: Gymnasium's Walker2d-v5.

    python experiments/walker2d.py            # minutes on two cores that have nothing else to do
    python experiments/walker2d.py --smoke    # seconds: does everything once, says nothing

No agent of the walker is shipped. So PPO trains one: what it is after a part of its steps is the
worse agent, and what it is at the end the better one. Their files, in the format that
`torchmpo.save_policy` writes, are all that a diagnosis needs besides the name of the task:

    python -m torchmpo.diagnose --task gymnasium:Walker2d-v5 \\
        --original runs/walker2d/worse.safetensors --target runs/walker2d/better.safetensors

Agents are trained on the fast integrator and judged on Gymnasium's own. What is done already, in
`--out`, is not done again. Other options are those of a diagnosis, as in `--episode_steps 300`.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from experiments.train_experts import settings, train
from torchmpo.control.environments import make_environment
from torchmpo.control.policy import load_policy, save_policy, stack_policies
from torchmpo.control.returns import evaluate_policies
from torchmpo.diagnose.__main__ import main as diagnose
from torchmpo_envs import Walker2d

TASK = "gymnasium:Walker2d-v5"
ENVS, HORIZON = 64, 64  # steps of an update of PPO
STEPS = {"worse": 50 * ENVS * HORIZON, "better": 300 * ENVS * HORIZON}
# Small enough for the time there is; the options of a diagnosis that should be believed are larger.
DIAGNOSIS = (
    "--losses sft,cpo,orpo,slic_hf,simpo --data base,graded:0-0.4,base+noisy:0.3 --pairs 64 "
    "--behaviour_std 0.05 --trials 6 --tuning_seeds 1 --tuning_episodes 8 --seeds 4 --episodes 16 "
    "--data_per_seed false --compile false"
)
SMOKE = "--preset smoke --data base,graded:0-0.4 --num_threads 1"


def train_agents(out: Path, steps: dict[str, int], envs: int) -> None:
    """One run of PPO, written down twice."""
    for name, until in steps.items():
        if (out / f"{name}.safetensors").exists():
            continue
        ppo = settings(
            f"hopper_target --learning_rate 3e-4 --entropy 0 --steps {until} --num_envs {envs} "
            f"--horizon {HORIZON} --out {out / 'ppo'}".split()
        )
        ppo.stop_at = None
        policy, _, _ = train(ppo, Walker2d)  # goes on from its checkpoint
        save_policy(policy, out / f"{name}.safetensors")


def report_agents(out: Path, names, episodes: int) -> None:
    env = make_environment(TASK, episodes)
    for name in names:
        policy = load_policy(out / f"{name}.safetensors")
        params = stack_policies(policy.trainable(), 1)
        returns = evaluate_policies(env, policy, params, episodes, seed=0)
        print(f"{name}: return {returns.mean():.0f} ± {returns.std():.0f} on {TASK}", flush=True)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="runs/walker2d")
    parser.add_argument("--smoke", action="store_true")
    args, more = parser.parse_known_args(argv)
    begin, threads = time.perf_counter(), torch.get_num_threads()
    args.out = args.out or Path("runs/walker2d_smoke" if args.smoke else "runs/walker2d")
    args.out.mkdir(parents=True, exist_ok=True)
    steps = {"worse": HORIZON, "better": 2 * HORIZON} if args.smoke else STEPS
    train_agents(args.out, steps, 1 if args.smoke else ENVS)
    torch.set_num_threads(threads)
    report_agents(args.out, steps, 2 if args.smoke else 32)
    print(f"agents after {time.perf_counter() - begin:.0f} s", flush=True)
    run = args.out / "diagnosis"
    argv = f"--task {TASK} --out {run} " + (SMOKE if args.smoke else DIAGNOSIS)
    for role, name in (("original", "worse"), ("target", "better")):
        argv += f" --{role} {args.out / name}.safetensors"
    begun = (run / "config.yaml").exists()
    code = diagnose([*(f"--resume --out {run}" if begun else argv).split(), *more])
    print(f"all after {time.perf_counter() - begin:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
