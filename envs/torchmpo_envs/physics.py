"""Physics back ends: many simulations of one model, their state as tensors.

A back end owns the state of all simulations; the environment reads it through live views and
writes it through two methods. Rows are simulations. Copied or pickled, a back end starts anew in
the same state. A back end chooses the device and the floating
point type of its tensors, and converts what it is given.
"""

from typing import Protocol

import mujoco
import mujoco.batch
import torch
from torch import Tensor


class Physics(Protocol):
    """What an environment needs from a simulator."""

    qpos: Tensor  # [num_envs, nq], live
    qvel: Tensor  # [num_envs, nv], live
    xpos: Tensor  # [num_envs, nbody, 3], body positions as of the last substep
    control: Tensor  # [num_envs, nu], live

    def set_state(self, states: Tensor, mask: Tensor) -> None:
        """Put the simulations in ``mask`` [num_envs] at ``states`` [mask.sum(), nq + nv]."""
        ...

    def step(self, control: Tensor, mask: Tensor | None, substeps: int) -> None:
        """Advance the simulations in ``mask`` (all if None) under ``control`` [num_envs, nu]."""
        ...

    def copy(self, source: Tensor) -> None:
        """Put every simulation into the whole state of the one in ``source`` [num_envs]."""
        ...


PHYSICS = ("threads", "warp")


def start_physics(
    name: str, model: mujoco.MjModel, num_envs: int, *, num_threads: int, device: torch.device
) -> Physics:
    """The back end ``name``, one of ``PHYSICS``, with all simulations at rest.

    Args:
        name: ``"threads"``, float64 on the CPU, or ``"warp"``, float32 on ``device``.
        model: what to simulate.
        num_envs: how many.
        num_threads: of ``"threads"``; 0 takes every core.
        device: of ``"warp"``.

    Raises:
        ImportError: ``"warp"`` without MuJoCo Warp installed.
    """
    if name == "threads":
        return Threads(model, num_envs, num_threads)
    from torchmpo_envs.warp import Warp  # optional

    return Warp(model, num_envs, device)


class Threads:
    """MuJoCo's own C++ thread pool (``mujoco.batch``): bit-identical at any number of threads."""

    def __init__(self, model: mujoco.MjModel, num_envs: int, num_threads: int = 0):
        self.num_threads = num_threads  # as asked for: a copy may live on another machine
        self._batch = mujoco.batch.Batch(model, num_envs, num_threads)
        self._state = torch.from_numpy(self._batch.state)
        self._rest = self._state[0].clone()
        self.qpos = torch.from_numpy(self._batch.bind("qpos"))
        self.qvel = torch.from_numpy(self._batch.bind("qvel"))
        self.control = torch.from_numpy(self._batch.bind("ctrl"))
        xpos = self._batch.bind("xpos")
        # torch refuses to wrap a read-only array without a warning; nothing here writes to it.
        xpos.flags.writeable = True
        self.xpos = torch.from_numpy(xpos)
        xpos.flags.writeable = False

    def set_state(self, states: Tensor, mask: Tensor) -> None:
        ids = mask.nonzero().squeeze(-1)
        # Time, controls and the solver's warm start too: nothing of the last episode remains.
        self._state[ids] = self._rest
        nq = self.qpos.shape[-1]
        self.qpos[ids], self.qvel[ids] = states[:, :nq], states[:, nq:]
        self._batch.forward(ids.numpy())

    def step(self, control: Tensor, mask: Tensor | None, substeps: int) -> None:
        self.control.copy_(control)
        self._batch.step(None if mask is None else mask.numpy(), nstep=substeps)

    def copy(self, source: Tensor) -> None:
        for field in (self._state, self.xpos):
            field.copy_(field[source])

    def __reduce__(self) -> tuple:
        model, num_envs = self._batch.get_model(0), len(self.qpos)
        state = (self._state.numpy().copy(), self.xpos.numpy().copy())
        return Threads, (model, num_envs, self.num_threads), state

    @torch.inference_mode(False)
    def __setstate__(self, state: tuple) -> None:
        # Body positions lie a substep behind the state, so they do not follow from it.
        for target, source in zip((self._state, self.xpos), state):
            target.copy_(torch.from_numpy(source))
