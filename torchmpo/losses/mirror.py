"""Mirror preference optimisation: the pairwise loss that a mirror map generates.

Shapes: tensors are ``[batch]``, in and out. ψ and φ⁻¹ are increasing functions of a probability,
given as functions of the **log**-probability (see :mod:`torchmpo.losses.potentials`); g is an
increasing function of σ(m), given as a function of the margin m. So everything stays in log space:
g = log is ``logsigmoid``. Log-probabilities are per-step means, since the product of a thousand
densities underflows; sums may be passed where φ⁻¹ can take them.

    g            φ⁻¹      one-step                        two-step
    logsigmoid   logit    ORPO (ψ = log, po_coef = 0.1)
    logsigmoid   β·log    CPO (ψ = sft_coef·log)          DPO
"""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from torchmpo.losses.arguments import Scalar, check_non_negative, same_shape

Function: TypeAlias = Callable[[Tensor], Tensor]


def one_step_mirror_loss(
    chosen_mean_logps: Tensor,
    rejected_mean_logps: Tensor,
    *,
    psi: Function,
    phi_inv: Function,
    g: Function,
    po_coef: Scalar = 1.0,
) -> Tensor:
    """Mirror preference optimisation in one step, from the base policy and without a reference.

    loss = −ψ(c̄) − po_coef·g(φ⁻¹(c̄) − φ⁻¹(r̄))

    Args:
        chosen_mean_logps, rejected_mean_logps: ``[batch]``, nats per step.
        psi, phi_inv: increasing functions of log-probabilities, ``[batch] → [batch]``.
        g: increasing function of the margin, ``[batch] → [batch]``.
        po_coef: ≥ 0.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ, or ``po_coef`` is out of range.

    Source: arXiv 2411.06568, eq. 10.

    >>> import torch
    >>> from torch.nn.functional import logsigmoid
    >>> from torchmpo.losses.potentials import log, logit
    >>> x = torch.tensor([-2.0])
    >>> one_step_mirror_loss(x, x, psi=log, phi_inv=logit, g=logsigmoid, po_coef=0.1).tolist()
    [2.06931471824646]
    """
    same_shape(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    check_non_negative(po_coef=po_coef)
    margin = phi_inv(chosen_mean_logps) - phi_inv(rejected_mean_logps)
    return -psi(chosen_mean_logps) - po_coef * g(margin)


def two_step_mirror_loss(
    chosen_mean_logps: Tensor,
    rejected_mean_logps: Tensor,
    ref_chosen_mean_logps: Tensor,
    ref_rejected_mean_logps: Tensor,
    *,
    phi_inv: Function,
    g: Function,
) -> Tensor:
    """Mirror preference optimisation in two steps: after SFT, against the policy that SFT left.

    loss = −g(φ⁻¹(c̄) − φ⁻¹(c̄') − φ⁻¹(r̄) + φ⁻¹(r̄'))

    No gradient reaches the reference.

    Args:
        chosen_mean_logps, rejected_mean_logps: ``[batch]``, nats per step.
        ref_chosen_mean_logps, ref_rejected_mean_logps: the same under the reference policy.
        phi_inv: increasing function of log-probabilities, ``[batch] → [batch]``.
        g: increasing function of the margin, ``[batch] → [batch]``.

    Returns:
        ``[batch]``.

    Raises:
        ValueError: shapes differ.

    Source: arXiv 2411.06568, eq. 9.

    >>> import torch
    >>> from torch.nn.functional import logsigmoid
    >>> x = torch.tensor([-2.0])
    >>> two_step_mirror_loss(x, x, x, x, phi_inv=torch.exp, g=logsigmoid).tolist()
    [0.6931471824645996]
    """
    same_shape(
        chosen_mean_logps=chosen_mean_logps,
        rejected_mean_logps=rejected_mean_logps,
        ref_chosen_mean_logps=ref_chosen_mean_logps,
        ref_rejected_mean_logps=ref_rejected_mean_logps,
    )
    chosen = phi_inv(chosen_mean_logps) - phi_inv(ref_chosen_mean_logps.detach())
    rejected = phi_inv(rejected_mean_logps) - phi_inv(ref_rejected_mean_logps.detach())
    return -g(chosen - rejected)
