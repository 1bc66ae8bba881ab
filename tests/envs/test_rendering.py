"""Pictures of the robots. Where OpenGL is missing, only the message that says so is tested."""

import subprocess
import sys
from pathlib import Path

import imageio.v3
import numpy as np
import pytest
import torch
from opengl import OPENGL
from tensordict import TensorDict

from torchmpo_envs import TASKS, Ant, Hopper, rendering

SCRIPT = Path(__file__).parents[2] / "experiments" / "make_video.py"


def test_a_clip_needs_agents_that_know_the_task(tmp_path):
    options = ("--task", "hopper", "--agents", "ant_original", "tla_target")
    command = [sys.executable, SCRIPT, *options, "--out", str(tmp_path / "clip.gif")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    expected = "error: ant_original does not know the task hopper: its observations have 27 numbers"
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1


def test_without_opengl_one_line_says_what_to_install(monkeypatch):
    def missing(width, height):
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setenv("MUJOCO_GL", "egl")  # then MuJoCo's own choice is asked
    monkeypatch.setattr(rendering.mujoco.gl_context, "GLContext", missing, raising=False)
    with pytest.raises(RuntimeError, match=r"needs OpenGL: install .* libegl1") as caught:
        Hopper(1).render()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [{"height": 0}, {"width": -3}])
def test_a_size_must_be_positive(size):
    with pytest.raises(ValueError, match="height and width must be positive"):
        Hopper(1).render(**size)


if OPENGL:

    @pytest.mark.parametrize("task", TASKS.values())
    def test_a_picture_shows_the_robot(task):
        env = task(2, seed=0)
        env.reset()
        picture = env.render(1, height=120, width=160)
        assert picture.shape == (120, 160, 3)
        assert picture.dtype == torch.uint8
        # Both robots and the floor are lit: neither a black nor an even picture.
        assert picture.float().mean() > 20
        assert picture.float().std() > 10
        assert torch.equal(picture, env.render(1, height=120, width=160))
        env.close()

    def test_a_picture_is_of_the_environment_asked_for_and_of_now():
        env = Hopper(2, seed=0)
        start = env.start_states(2, torch.Generator().manual_seed(0))
        start[1, 2] = 1.0  # leans forward
        state = env.reset(TensorDict({"start_state": start}, [2]))
        size = {"height": 120, "width": 160}
        first, second = env.render(0, **size), env.render(1, **size)
        assert not torch.equal(first, second)
        for _ in range(10):
            state = env.step(state.set("action", torch.ones(2, 3)))["next"]
        assert not torch.equal(env.render(0, **size), first)
        with pytest.raises(IndexError):
            env.render(2, **size)
        env.close()

    def test_the_sky_is_above_the_floor():
        env = Hopper(1)
        env.reset()
        picture = env.render(height=120, width=160).float()
        # The sky is a blue gradient, the floor grey tiles.
        sky, floor = picture[:10].mean((0, 1)), picture[-10:].mean((0, 1))
        assert sky[2] - sky[0] > 10
        assert abs(floor[2] - floor[0]) < 10
        env.close()

    def test_sizes_beyond_the_models_own_and_a_change_of_size():
        env = Hopper(1)
        env.reset()
        for height, width in ((600, 800), (10, 20), (600, 800)):
            assert env.render(height=height, width=width).shape == (height, width, 3)
        env.close()
        assert env.render(height=10, width=20).shape == (10, 20, 3)  # opens again
        env.close()

    def test_rendering_does_not_touch_the_simulation():
        def run(render):
            env = Ant(2, seed=0)
            state = env.reset()
            for _ in range(5):
                state = env.step(state.set("action", torch.full((2, 8), 0.3)))["next"]
                if render:
                    env.render(1, height=8, width=8)
            env.close()
            return env.state()

        assert torch.equal(run(True), run(False))

    def test_an_unknown_camera_is_named_with_those_there_are():
        env = Ant(1)
        with pytest.raises(ValueError, match="no camera 'moon'; choose from track"):
            env.render(camera="moon")
        env.close()

    def test_python_ends_in_silence_with_a_renderer_open():
        code = "from torchmpo_envs import Hopper; env = Hopper(1); env.render()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_a_clip_of_two_agents(tmp_path):
        clip = tmp_path / "clip.gif"
        options = ("--seconds", "0.4", "--out", str(clip))
        done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        frames = np.stack(list(imageio.v3.imiter(clip))).astype(float)
        assert frames.shape == (8, 240, 640, 3)  # 20 a second, two sides of 320
        # Both agents move, and not alike.
        left, right = frames[:, :, :320], frames[:, :, 320:]
        for side in (left, right):
            assert np.abs(side[-1] - side[0]).mean() > 0.5
        assert np.abs(left[-1, 30:] - right[-1, 30:]).mean() > 0.5  # below the captions
        assert np.abs(left[0, 30:] - right[0, 30:]).mean() < 0.5  # from the same start

else:

    def test_pictures_are_not_tested_because_opengl_is_missing():
        """The name is the message: this test stands in the report for those left out."""
