"""What losses read of a policy's steps, for one member of a population, in a chosen arithmetic.

Under ``bf16-mixed`` the network's matrix products and activations are computed in bfloat16, as
``torch.autocast`` does it. Parameters, log-probabilities, losses, gradients of parameters and
Adam's moments keep their dtype.
"""

import logging

import torch
from torch import Tensor
from torch.func import functional_call

from torchmpo.control.policy import GaussianPolicy, TokenLogps, gaussian_step_kl
from torchmpo.runs.errors import UserError

FULL, HALF = "32-true", "bf16-mixed"  # Lightning's names
PRECISIONS = (FULL, HALF)


def check_precision(precision: str) -> None:
    """Refuse a precision that is none.

    Raises:
        UserError: which there are.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision must be {' or '.join(PRECISIONS)}; got {precision!r}")


def warn_of_slow_precision(precision: str) -> None:
    """Tell of a processor on which bfloat16 is emulated, where torch knows its units."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    if precision == HALF and known and not (known.get("amx_bf16") or known.get("avx512_bf16")):
        logging.getLogger(__name__).warning(
            "warning: this processor has no units for bfloat16, so precision bf16-mixed is slower "
            "here than 32-true"
        )


class StepLogps(TokenLogps):
    """Log-probabilities of steps, or tokens, for ``functional_call``.

    Args:
        policy: the architecture.
        precision: one of ``PRECISIONS``; float64 stays float64 under either.
    """

    def __init__(self, policy: GaussianPolicy, precision: str = FULL):
        super().__init__(policy)
        self.precision = precision

    def at(
        self,
        params: dict[str, Tensor],
        buffers: dict[str, Tensor],
        whitened: Tensor,
        action: Tensor,
    ) -> Tensor:
        """``[R, S · tokens]`` of one member."""
        tensors = {f"policy.{name}": value for name, value in (buffers | params).items()}
        # Without the cache, which would hold casts of tensors that are being traced.
        arithmetic = torch.autocast(
            whitened.device.type,
            torch.bfloat16,
            enabled=self.precision == HALF,
            cache_enabled=False,
        )
        with arithmetic:
            return functional_call(self, tensors, (whitened, action))


class StepMeans(StepLogps):
    """The mean of the action at each step, ``[R, S, actions]``, in the dtype of log σ."""

    def forward(self, whitened: Tensor, action: Tensor) -> Tensor:
        # Means that are close are subtracted from one another, which bfloat16 would not survive.
        return self.policy.mean_from_whitened(whitened).to(self.policy.log_std.dtype)


class StepKL(StepMeans):
    """KL(π_ref ‖ π) of each step, ``[R, S]``, of Gaussians that are given by mean and log σ.

    Args:
        policy, precision: as in :class:`StepLogps`.
        mean, log_std: of the reference.
    """

    def __init__(self, policy: GaussianPolicy, precision: str, mean: Tensor, log_std: Tensor):
        super().__init__(policy, precision)
        self.mean, self.log_std = mean, log_std

    def forward(self, whitened: Tensor, action: Tensor) -> Tensor:
        mean = super().forward(whitened, action)
        return gaussian_step_kl(self.mean, self.log_std, mean, self.policy.log_std)
