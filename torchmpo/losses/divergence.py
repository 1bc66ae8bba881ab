"""A loss of DPO's margin, in another divergence from the reference than the reverse KL."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchmpo.losses.arguments import check_choice, check_finite, log_ratio, same_shape
from torchmpo.losses.reference_based import DIVERGENCES, f_derivative

# The losses, by name, that depend on the two log-ratios by their difference only.
OF_THE_MARGIN = frozenset(
    {
        *("dpo", "robust_dpo", "r_dpo", "dpo_norm", "rpo", "soft_label_dpo", "margin_dpo"),
        *("smpo", "madpo", "modpo", "mix_dpo", "ipo", "hinge_dpo", "exo_pair", "gpo", "sym_po"),
        *("bregman_po", "focal_po", "offset_dpo", "discopop", "padll", "cell", "aql", "aqfl"),
        *("dbaql", "dr_dpo", "beta_dpo", "spo_silu"),
    }
)


class InDivergence:
    """A loss with f'(e^{h_c}) and f'(e^{h_r}) in place of the log-ratios h_c and h_r.

    With ``dpo`` it is :func:`torchmpo.losses.f_dpo_loss`, whose docstring lists the f'.

    Args:
        loss: one of a margin against a reference (``OF_THE_MARGIN`` has the names).
        divergence: as for ``f_dpo``.

    Raises:
        ValueError: an unknown divergence.

    >>> from torchmpo.losses import hinge_dpo_loss
    >>> x = torch.tensor([-20.0])
    >>> InDivergence(hinge_dpo_loss, "js")(x, x, x, x, beta=0.1).tolist()
    [1.0]
    """

    def __init__(self, loss: Callable[..., Tensor], divergence: str):
        check_choice("divergence", divergence, DIVERGENCES)
        self.loss, self.divergence = loss, divergence
        self.__name__ = f"{getattr(loss, '__name__', 'loss')}@{divergence}"
        signature = inspect.signature(loss)
        parameters = list(signature.parameters.values())
        self._inputs = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        if divergence == "alpha":
            parameters.append(
                inspect.Parameter("divergence_alpha", inspect.Parameter.KEYWORD_ONLY, default=0.5)
            )
        self.__signature__ = signature.replace(parameters=parameters)

    def __call__(self, *data: Tensor, divergence_alpha: Any = 0.5, **hyper: Any) -> Tensor:
        """The loss of each pair, ``[batch]``.

        Raises:
            ValueError: as the loss does, or ``divergence_alpha`` is not finite.
        """
        check_finite(divergence_alpha=divergence_alpha)
        if len(data) != len(self._inputs):
            raise ValueError(f"{self.__name__} reads {', '.join(self._inputs)}; got {len(data)}")
        fields = dict(zip(self._inputs, data))
        same_shape([k for k, x in fields.items() if x is None], **fields)
        derivative = f_derivative(self.divergence, divergence_alpha)
        for name in self._inputs:
            if name.startswith("ref_"):
                policy = name.removeprefix("ref_")
                fields[policy] = derivative(log_ratio(fields[policy], fields[name]))
                fields[name] = torch.zeros_like(fields[policy])
        return self.loss(*fields.values(), **hyper)
