"""Two agents side by side, from the same start state, as a short clip.

    python experiments/make_video.py                            # runs/video/tla.gif
    python experiments/make_video.py --out clip.mp4             # needs: pip install imageio-ffmpeg

Pictures are drawn off screen; where OpenGL is missing, the error says what to install. Each side
shows an agent's name, its return so far and, once its episode has ended, the last picture.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import imageio.v3
import numpy as np
import torch
from PIL import Image, ImageDraw
from tensordict import TensorDict
from tqdm import tqdm

from torchmpo.control.policy import load_policy
from torchmpo_envs import EXPERTS, TASKS, expert_path

HEIGHT, WIDTH = 240, 320  # of each side
FPS = 25  # at most


def captioned(picture, text):
    image = Image.fromarray(picture.numpy())
    ImageDraw.Draw(image).text((8, 8), text, fill="white", stroke_width=1, stroke_fill="black")
    return np.asarray(image)


@torch.no_grad()
def film(task, agents, seconds, seed):
    """Frames ``[height, width of both, 3]`` and how many of them make a second."""
    env = TASKS[task](len(agents), seed=seed)
    policies = [load_policy(expert_path(agent)) for agent in agents]
    size = env.observation_spec["observation"].shape[-1]
    for agent, policy in zip(agents, policies):
        if policy.observation_size != size:
            raise ValueError(
                f"{agent} does not know the task {task}: its observations have "
                f"{policy.observation_size} numbers, not {size}"
            )
    stride = max(1, round(1 / (FPS * env.dt)))
    start = env.start_states(1, torch.Generator().manual_seed(seed)).expand(len(agents), -1)
    state = env.reset(TensorDict({"start_state": start}, env.batch_size))
    returns, frames = torch.zeros(len(agents)), []
    for step in tqdm(range(min(env.max_steps, round(seconds / env.dt))), unit="step"):
        if step % stride == 0:
            sides = [
                captioned(env.render(index, height=HEIGHT, width=WIDTH), f"{agent}: {score:,.0f}")
                for index, (agent, score) in enumerate(zip(agents, returns.tolist()))
            ]
            frames.append(np.concatenate(sides, 1))
        action = torch.stack([p(o) for p, o in zip(policies, state["observation"])])
        state = env.step(state.set("action", action))["next"]
        returns += state["reward"].squeeze(-1)
    env.close()
    return frames, 1 / (stride * env.dt)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, default="tla")
    parser.add_argument(
        "--agents", nargs=2, choices=EXPERTS, default=["ant_original", "tla_target"]
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of simulated time")
    parser.add_argument("--seed", type=int, default=0, help="of the start state")
    parser.add_argument("--out", type=Path, help=".gif or .mp4; default: runs/video/<task>.gif")
    args = parser.parse_args()
    out = args.out or Path("runs/video") / f"{args.task}.gif"
    if out.suffix not in (".gif", ".mp4"):
        parser.error(f"--out must end in .gif or .mp4; got {out}")
    if out.suffix == ".mp4" and find_spec("imageio_ffmpeg") is None:
        parser.error("an .mp4 needs imageio-ffmpeg: pip install imageio-ffmpeg, or write a .gif")
    try:
        frames, fps = film(args.task, args.agents, args.seconds, args.seed)
    except (RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".gif":
        imageio.v3.imwrite(out, frames, duration=1000 / fps, loop=0)  # milliseconds; for ever
    else:
        imageio.v3.imwrite(out, frames, fps=fps)
    print(f"{out}: {len(frames)} frames, {fps:.0f} a second, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
