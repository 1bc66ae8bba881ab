"""Preference-optimization losses: pure functions of log-probabilities, one value per pair.

``LOSSES`` maps a loss's name to its function, which is named ``<name>_loss``. The two mirror losses
take functions as arguments, so they are imported and not looked up by name.
"""

from collections.abc import Callable

from torch import Tensor

from torchmpo.losses.mirror import one_step_mirror_loss, two_step_mirror_loss
from torchmpo.losses.reference_based import dpo_loss, ipo_loss
from torchmpo.losses.reference_free import (
    cpo_loss,
    lpo_loss,
    orpo_loss,
    sft_loss,
    simpo_loss,
    slic_hf_loss,
)

LOSSES: dict[str, Callable[..., Tensor]] = {
    "sft": sft_loss,
    "slic_hf": slic_hf_loss,
    "lpo": lpo_loss,
    "cpo": cpo_loss,
    "orpo": orpo_loss,
    "simpo": simpo_loss,
    "dpo": dpo_loss,
    "ipo": ipo_loss,
}

__all__ = [
    "LOSSES",
    "cpo_loss",
    "dpo_loss",
    "ipo_loss",
    "lpo_loss",
    "one_step_mirror_loss",
    "orpo_loss",
    "sft_loss",
    "simpo_loss",
    "slic_hf_loss",
    "two_step_mirror_loss",
]
