"""Preference-optimization losses: pure functions of log-probabilities, one value per pair.

``LOSSES`` maps a loss's name to its function, which is named ``<name>_loss``; ``COUPLED`` names
those in which a pair's value depends on the rest of the batch. The two mirror losses take functions
as arguments, and :func:`logistic_preference_loss` a setting per pair, so they are imported and not
looked up by name.
"""

from collections.abc import Callable

from torch import Tensor

from torchmpo.losses.coupled import aot_loss, aot_unpaired_loss, aqfl_loss, aql_loss, dbaql_loss
from torchmpo.losses.discopop import cell_loss, discopop_loss, padll_loss, pfl_loss
from torchmpo.losses.logistic import (
    dpo_gamma_loss,
    dpo_loss,
    dpo_norm_loss,
    dpo_positive_reference_loss,
    logistic_preference_loss,
    madpo_loss,
    margin_dpo_loss,
    modpo_loss,
    r_dpo_loss,
    robust_dpo_loss,
    rpo_loss,
    smpo_loss,
    soft_label_dpo_loss,
    vpo_offline_loss,
)
from torchmpo.losses.mirror import one_step_mirror_loss, two_step_mirror_loss
from torchmpo.losses.reference_based import (
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    exo_pair_loss,
    f_dpo_loss,
    hinge_dpo_loss,
    ipo_loss,
    nca_pair_loss,
    sppo_hard_loss,
)
from torchmpo.losses.reference_free import (
    alpha_po_loss,
    closed_form_loss,
    colpo_loss,
    cpo_loss,
    lpo_loss,
    orpo_loss,
    rrhf_loss,
    sft_loss,
    simpo_loss,
    slic_hf_loss,
)

LOSSES: dict[str, Callable[..., Tensor]] = {
    loss.__name__.removesuffix("_loss"): loss
    for loss in (
        sft_loss,
        rrhf_loss,
        slic_hf_loss,
        lpo_loss,
        cpo_loss,
        orpo_loss,
        simpo_loss,
        alpha_po_loss,
        colpo_loss,
        closed_form_loss,
        dpo_loss,
        robust_dpo_loss,
        r_dpo_loss,
        dpo_norm_loss,
        rpo_loss,
        dpo_gamma_loss,
        dpo_positive_reference_loss,
        soft_label_dpo_loss,
        margin_dpo_loss,
        smpo_loss,
        madpo_loss,
        modpo_loss,
        vpo_offline_loss,
        ipo_loss,
        hinge_dpo_loss,
        exo_pair_loss,
        nca_pair_loss,
        bco_pair_loss,
        sppo_hard_loss,
        apo_zero_loss,
        apo_down_loss,
        f_dpo_loss,
        discopop_loss,
        padll_loss,
        cell_loss,
        pfl_loss,
        aot_loss,
        aot_unpaired_loss,
        aql_loss,
        aqfl_loss,
        dbaql_loss,
    )
}

COUPLED = frozenset({"aot", "aot_unpaired", "aql", "aqfl", "dbaql"})

__all__ = [
    "COUPLED",
    "LOSSES",
    "alpha_po_loss",
    "aot_loss",
    "aot_unpaired_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "aqfl_loss",
    "aql_loss",
    "bco_pair_loss",
    "cell_loss",
    "closed_form_loss",
    "colpo_loss",
    "cpo_loss",
    "dbaql_loss",
    "discopop_loss",
    "dpo_gamma_loss",
    "dpo_loss",
    "dpo_norm_loss",
    "dpo_positive_reference_loss",
    "exo_pair_loss",
    "f_dpo_loss",
    "hinge_dpo_loss",
    "ipo_loss",
    "logistic_preference_loss",
    "lpo_loss",
    "madpo_loss",
    "margin_dpo_loss",
    "modpo_loss",
    "nca_pair_loss",
    "one_step_mirror_loss",
    "orpo_loss",
    "padll_loss",
    "pfl_loss",
    "r_dpo_loss",
    "robust_dpo_loss",
    "rpo_loss",
    "rrhf_loss",
    "sft_loss",
    "simpo_loss",
    "slic_hf_loss",
    "smpo_loss",
    "soft_label_dpo_loss",
    "sppo_hard_loss",
    "two_step_mirror_loss",
    "vpo_offline_loss",
]
