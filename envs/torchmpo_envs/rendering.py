"""Pictures of a robot, drawn off screen with OpenGL."""

import atexit
import os
import sys
import weakref

import mujoco
import mujoco.gl_context
import numpy as np
import torch
from torch import Tensor

_NO_OPENGL = (
    "rendering needs OpenGL: install a driver with EGL (on Debian and Ubuntu: apt install libegl1 "
    "libgl1-mesa-dri), or set MUJOCO_GL to what this machine has: egl, osmesa or glfw"
)


class Renderer:
    """Draws states of one model in one size.

    Args:
        model: what to draw.
        height, width: of the pictures, in pixels.

    Raises:
        RuntimeError: OpenGL is missing.
        ValueError: a size that is not positive.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int):
        if height < 1 or width < 1:
            raise ValueError(f"height and width must be positive; got {height} and {width}")
        self.size = (height, width)
        self._model, self._data = model, mujoco.MjData(model)
        # MuJoCo makes its buffer as large as the model says.
        screen = model.vis.global_
        screen.offwidth = max(width, screen.offwidth)
        screen.offheight = max(height, screen.offheight)
        self._gl, self._context = _open(model, height, width)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        # A context that outlives OpenGL's own clean-up complains while Python shuts down.
        atexit.register(_close, weakref.ref(self))

    def draw(self, position: Tensor, velocity: Tensor, camera: str) -> Tensor:
        """The robot at ``position`` [nq] and ``velocity`` [nv]: ``[height, width, 3]``, uint8.

        Raises:
            ValueError: the model has no such ``camera``.
        """
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if view.fixedcamid < 0:
            names = [self._model.camera(i).name for i in range(self._model.ncam)]
            raise ValueError(f"no camera {camera!r}; choose from {', '.join(names)}")
        self._data.qpos[:], self._data.qvel[:] = position.cpu(), velocity.cpu()
        mujoco.mj_forward(self._model, self._data)
        if self._gl is None:
            raise RuntimeError("the renderer is closed")
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        everything, options = mujoco.mjtCatBit.mjCAT_ALL, mujoco.MjvOption()
        mujoco.mjv_updateScene(
            self._model, self._data, options, None, view, everything, self._scene
        )
        height, width = self.size
        rectangle = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(rectangle, self._scene, self._context)
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, rectangle, self._context)
        return torch.from_numpy(pixels[::-1].copy())  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free the graphics card's memory; nothing can be drawn afterwards."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None


def _open(model: mujoco.MjModel, height: int, width: int):
    """OpenGL's context and MuJoCo's in it: of MuJoCo's own choice where there is a display or the
    user chose, otherwise of EGL."""
    try:
        headless = sys.platform == "linux" and not os.environ.get("DISPLAY")
        if headless and not os.environ.get("MUJOCO_GL"):
            from mujoco.egl import GLContext
        else:
            GLContext = mujoco.gl_context.GLContext
        gl = GLContext(width, height)
        gl.make_current()
        return gl, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    # Missing libraries show as import errors, missing attributes, or errors of the back end's own.
    except Exception as error:
        raise RuntimeError(_NO_OPENGL) from error


def _close(renderer: "weakref.ref[Renderer]") -> None:
    if (alive := renderer()) is not None:
        alive.close()
