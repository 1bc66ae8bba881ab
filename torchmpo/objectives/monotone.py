"""The learned class of increasing functions: a one-layer network with non-negative weights.

    f(x, t) = Σ_j v_j σ_j(w_j x + u_j t + b_j),    v, w ≥ 0,  σ_j increasing,

where x is a probability and t the progress of training. The hidden units are split equally among
the activations. A flat parameter vector θ holds, in this order, [v; w; b] or, with t, [v; w; b; u],
each ``[activations × units]``:

    v = relu(θ_v)    w = relu(w₀ + θ_w)    b = b₀ + θ_b    u = θ_u

so that f is 0 at θ = 0, and a perturbation of v answers at once.

Activations as published have slopes or values without bound (roots and log at 0, eˣ and x³ far
out), and one pair of trajectories that lands there ruins every member of a population. Here each
has a bounded slope: roots and log are shifted by EPSILON, powers and exponentials go on as straight
lines beyond LIMIT. All stay increasing, and none is ever evaluated where its gradient overflows.

Source: arXiv 2411.06568, section 3.1; the list of activations and ε are reconstructed from the
paper's description.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from torchmpo.runs.errors import nearest

EPSILON = 1e-3
LIMIT = 4.0
MOST_UNITS = 65_536  # hidden units of a function: hundreds of times what was ever searched
# The fixed spread from which hidden units start: slopes geometric, offsets even. Activations that
# flatten out start steep as well, so that some units tell small probabilities apart: the density of
# an action of eight numbers is about e⁻⁴. Growing ones would then drown everything near p = 1.
FLATTENING = ("square_root", "cube_root", "log", "tanh", "logit")
SLOPES = (0.5, 4.0)
SLOPES_FLATTENING = (0.5, 64.0)
OFFSETS = (-1.0, 1.0)


def _identity(z: Tensor) -> Tensor:
    return z


def _square(z: Tensor) -> Tensor:
    z = torch.relu(z)
    inside = z.clamp(max=LIMIT)
    return inside * inside + 2 * LIMIT * (z - inside)


def _cube(z: Tensor) -> Tensor:
    inside = z.clamp(-LIMIT, LIMIT)
    return inside * inside * inside + 3 * LIMIT**2 * (z - inside)


def _square_root(z: Tensor) -> Tensor:
    return torch.sqrt(torch.relu(z) + EPSILON) - EPSILON**0.5


def _cube_root(z: Tensor) -> Tensor:
    return torch.pow(torch.relu(z) + EPSILON, 1 / 3) - EPSILON ** (1 / 3)


def _log(z: Tensor) -> Tensor:
    return torch.log(torch.relu(z) + EPSILON)


def _exp(z: Tensor) -> Tensor:
    inside = z.clamp(max=LIMIT)
    return torch.exp(inside) * (1 + (z - inside))


def _logit(z: Tensor) -> Tensor:
    inside = z.clamp(EPSILON, 1 - EPSILON)
    return torch.log(inside / (1 - inside))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": _identity,
    "square": _square,
    "cube": _cube,
    "square_root": _square_root,
    "cube_root": _cube_root,
    "log": _log,
    "exp": _exp,
    "tanh": torch.tanh,
    "logit": _logit,
}


class MonotoneNetwork(nn.Module):
    """f(x, t) = Σ_j v_j σ_j(w_j x + u_j t + b_j), increasing in x at every t.

    It holds the fixed spread w₀, b₀ only; θ is an argument, so one network serves every function
    and every member of a population.

    Args:
        activations: names from ``ACTIVATIONS``; each gets ``units`` hidden units.
        units: hidden units per activation, ≥ 1.
        temporal: whether f depends on t.

    Raises:
        ValueError: unknown activation, none at all, ``units`` < 1, or more than `MOST_UNITS` in
            all.

    >>> network = MonotoneNetwork()
    >>> network.dim
    378
    >>> network(torch.zeros(378), torch.tensor([0.2, 0.9])).tolist()
    [0.0, 0.0]
    """

    slope: Tensor
    offset: Tensor

    def __init__(
        self,
        activations: Sequence[str] = tuple(ACTIVATIONS),
        units: int = 14,
        *,
        temporal: bool = False,
    ):
        super().__init__()
        if not isinstance(activations, (list, tuple)) or not isinstance(units, int):
            raise ValueError(
                "activations must be a list of names, and units the whole number of hidden units "
                f"of each; got a {type(activations).__name__} and {units!r}"
            )
        for name in activations:
            if name not in ACTIVATIONS:
                raise ValueError(f"unknown activation {name!r}: {nearest(name, ACTIVATIONS)}")
        if not activations or units < 1:
            raise ValueError("a monotone network needs at least one activation and one unit")
        if len(activations) * units > MOST_UNITS:
            raise ValueError(
                f"a monotone network has at most {MOST_UNITS} hidden units; got {units} of each of "
                f"{len(activations)} activations"
            )
        self.activations, self.units, self.temporal = tuple(activations), units, temporal
        shape = (len(self.activations), units)
        self.dim = (4 if temporal else 3) * shape[0] * shape[1]
        # Offsets in another order than slopes, and in another one for each activation, so that
        # steep and shallow units have their kinks all over (0, 1).
        k = torch.arange(units)
        order = (torch.arange(shape[0])[:, None] + 5 * k) % units
        spreads = [SLOPES_FLATTENING if n in FLATTENING else SLOPES for n in self.activations]
        low, high = torch.tensor(spreads)[..., None].unbind(1)
        self.register_buffer("slope", low * (high / low) ** ((k + 0.5) / units))
        offset = OFFSETS[0] + (OFFSETS[1] - OFFSETS[0]) * (order + 0.5) / units
        self.register_buffer("offset", offset)

    def forward(self, theta: Tensor, x: Tensor, progress: Tensor | None = None) -> Tensor:
        """f at x.

        Args:
            theta: ``[dim]``, any real numbers.
            x: ``[...]``, usually in [0, 1]; finite far outside as well.
            progress: scalar or ``[...]``, in [0, 1]; needed when temporal.

        Returns:
            ``[...]``, in the wider of the two floating-point types.

        Raises:
            ValueError: temporal, and no ``progress``.
        """
        v, w, b, *u = theta.unflatten(0, (-1, *self.slope.shape)).unbind(0)
        z = torch.relu(self.slope + w) * x[..., None, None] + (self.offset + b)
        if u:
            if progress is None:
                raise ValueError("a temporal objective needs the pair's progress")
            z = z + u[0] * progress[..., None, None]
        v = torch.relu(v)
        # Summed over activations first: one elementwise pass and a single reduction.
        hidden = zip(self.activations, v.unbind(0), z.unbind(-2), strict=True)
        terms = [v_k * ACTIVATIONS[name](z_k) for name, v_k, z_k in hidden]
        return functools.reduce(torch.add, terms).sum(-1)
