"""Physics on a GPU: MuJoCo Warp, its state shared with torch.

Warp computes in float32 and, on a GPU, adds in no fixed order. A Hopper follows the same trajectory
as with :class:`torchmpo_envs.physics.Threads`, to 10⁻⁵ over tens of steps. An Ant follows the same
distribution of trajectories only: it is chaotic, and where a leg stands steeper than 60°, MuJoCo
Warp 3.17 gives the sides of its friction pyramid other directions than MuJoCo does.
A simulation that diverges becomes NaN, is thereby unhealthy, and ends alone. Warp runs on a CPU
too, slowly, which lets tests compare the two.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import mujoco
import torch
from torch import Tensor

try:
    import mujoco_warp  # pyright: ignore[reportMissingImports]
    import warp  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError("physics='warp' needs MuJoCo Warp: pip install 'torchmpo[warp]'") from error

# An ant on its back has 25 contacts of 4 rows each and 8 joint limits; what does not fit is lost.
_MAX_CONTACTS, _MAX_CONSTRAINTS = 32, 128


class Warp:
    """All simulations in one kernel launch per stage; all substeps in one graph.

    Args:
        model: what to simulate.
        num_envs: how many.
        device: where simulations and tensors are. The first use on a machine compiles the kernels
            (half a minute), which Warp then keeps.

    Raises:
        ImportError: on importing this module, if MuJoCo Warp is not installed.
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int, device: torch.device | str = "cpu"):
        with _only_warnings():
            warp.init()
            self._device = warp.device_from_torch(torch.device(device))
            with warp.ScopedDevice(self._device):
                self._model = mujoco_warp.put_model(model)
                self._data = mujoco_warp.make_data(
                    model, num_envs, nconmax=_MAX_CONTACTS, njmax=_MAX_CONSTRAINTS
                )
                # Load every kernel now: a CUDA graph can record none that is not loaded.
                mujoco_warp.step(self._model, self._data)
            warp.synchronize_device(self._device)
        self._graphs: dict[int, warp.Graph] = {}
        fields = ("qpos", "qvel", "xpos", "ctrl", "qacc_warmstart")
        views = (warp.to_torch(getattr(self._data, name)) for name in fields)
        self.qpos, self.qvel, self.xpos, self.control, self._warmstart = views
        self._made_of = (model, num_envs, device)
        self._changing = (self.qpos, self.qvel, self.xpos, self._warmstart)
        rest = torch.cat([torch.from_numpy(model.qpos0), torch.zeros(model.nv)])
        everyone = torch.ones(num_envs, dtype=torch.bool, device=self.qpos.device)
        self.set_state(rest.to(self.qpos).expand(num_envs, -1), everyone)

    def set_state(self, states: Tensor, mask: Tensor) -> None:
        nq = self.qpos.shape[-1]
        self.qpos[mask] = states[:, :nq].to(self.qpos)
        self.qvel[mask] = states[:, nq:].to(self.qvel)
        # Nothing of the last episode remains, not even where the solver starts.
        self._warmstart[mask] = 0
        # The others' body positions stay as of their last substep.
        with self._on_torchs_stream(), _only_in(mask, self.xpos):
            mujoco_warp.kinematics(self._model, self._data)

    def step(self, control: Tensor, mask: Tensor | None, substeps: int) -> None:
        self.control.copy_(control)
        with self._on_torchs_stream(), _only_in(mask, *self._changing):
            warp.capture_launch(self._graph(substeps))

    def copy(self, source: Tensor) -> None:
        for field in (*self._changing, self.control):
            field.copy_(field[source])

    def __reduce__(self) -> tuple:
        return Warp, self._made_of, [field.cpu() for field in (*self._changing, self.control)]

    @torch.inference_mode(False)
    def __setstate__(self, state: list[Tensor]) -> None:
        for target, source in zip((*self._changing, self.control), state):
            target.copy_(source)

    def _graph(self, substeps: int) -> "warp.Graph":
        """The kernels of so many substeps, recorded: far fewer calls from Python."""
        if substeps not in self._graphs:
            nobody = torch.zeros_like(self.qpos[:, 0], dtype=torch.bool)
            # A CPU moves the simulations while it records. torch's default stream cannot record.
            with _only_in(nobody, *self._changing), self._own_stream():
                with warp.ScopedCapture() as capture:
                    for _ in range(substeps):
                        mujoco_warp.step(self._model, self._data)
                self._graphs[substeps] = capture.graph
        return self._graphs[substeps]

    def _own_stream(self) -> AbstractContextManager:
        if self._device.is_cuda:
            return warp.ScopedStream(warp.Stream(self._device))
        return nullcontext()

    def _on_torchs_stream(self) -> AbstractContextManager:
        """Warp's kernels run in order with torch's, without waiting for the device."""
        if self._device.is_cuda:
            return warp.ScopedStream(warp.stream_from_torch(self.qpos.device))
        return warp.ScopedDevice(self._device)


@contextmanager
def _only_in(mask: Tensor | None, *fields: Tensor) -> Iterator[None]:
    """``fields`` change in the rows of ``mask`` (None: in all) and are put back in the others."""
    if mask is None:
        yield
        return
    before = [field.clone() for field in fields]
    yield
    for field, old in zip(fields, before):
        rows = mask.view(-1, *[1] * (field.dim() - 1))
        field.copy_(torch.where(rows, field, old))


@contextmanager
def _only_warnings() -> Iterator[None]:
    """Warp prints a line for each kernel it loads."""
    level = warp.config.log_level
    warp.config.log_level = warp.LOG_WARNING
    try:
        yield
    finally:
        warp.config.log_level = level
