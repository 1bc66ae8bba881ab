"""What other tools call their losses: ``resolve("trl:sigmoid_norm")`` is ours, as theirs runs.

``LOSSES_OF`` has, by tool and by the tool's own name, a loss of ``torchmpo.losses.LOSSES`` and
the hyper-parameters that the tool has by default. A trainer with several losses stands before a
dot, as in ``trl:cpo.simpo``. Names and defaults are of November 2026: TRL 1.16.0, LLaMA-Factory
0.9.5, OpenRLHF 0.11.0, Liger-Kernel 0.8.5, oxrl 1.7.2.

Where a tool computes something else than the paper it names, ours is the paper's:

- oxrl's ``rdpo`` subtracts the length term that ``r_dpo`` adds, its ``robust_dpo`` adds the flipped
  term that is subtracted here, its ``fdpo`` adds the reverse KL to the forward one and forgets β
  in the Jensen–Shannon case, and its ``focalpo`` stops the gradient through the weight.
- oxrl's ``kto`` takes −LS in place of 1 − S, and its z₀ is a running mean over desirable responses.
- oxrl's ``wpo`` divides by the batch's sum of weights, and its ``sampo`` draws the steps at random.
- oxrl's ``spo`` is −x·S(x), which has no minimum; the paper describes one that has.
- oxrl's ``betadpo`` and ``alpha_dpo`` keep running means, and so does LLaMA-Factory's BCO term.
- The SFT term of a trainer is a mean over the tokens of a batch; ours is one over each response.
- TRL 1.16's α of an α-divergence is 1 − α of ``f_dpo`` and of ``@alpha``, and its ``sigmoid_norm``
  takes a divergence of sums and divides then, where ``dpo_norm@js`` takes it of means.
"""

from typing import Any, NamedTuple

from torchmpo.runs.errors import nearest
from torchmpo.runs.own_code import LIGER, LLAMA_FACTORY, OPENRLHF, OXRL, TRL


class Known(NamedTuple):
    """A loss of ours, or a sum, and the hyper-parameters with which it is another tool's."""

    loss: str
    hyper: dict[str, Any]


def _at(hyper: dict[str, Any], names: str) -> dict[str, Known]:
    """Pairs ``theirs=ours``, or one name for both, all with the same hyper-parameters."""
    pairs = [word.partition("=") for word in names.split()]
    return {theirs: Known(ours or theirs, hyper) for theirs, _, ours in pairs}


_BETA = {"beta": 0.1}
# What TRL's DPOTrainer and Liger's DPO loss share.
_DPO_TRAINER = {
    **_at(
        _BETA,
        "sigmoid=dpo hinge=hinge_dpo exo_pair nca_pair robust=robust_dpo bco_pair sppo_hard "
        "apo_zero apo_down",
    ),
    **_at(_BETA | {"tau": 0.05}, "discopop"),
}
_KTO = Known("kto", {"beta": 0.1, "desirable_coef": 1.0, "undesirable_coef": 1.0})
_CPO = Known("cpo", {"beta": 0.1, "sft_coef": 1.0})
_ORPO = Known("orpo", {"po_coef": 0.1})
_TPO = Known("tpo", {"beta": 0.01, "sft_coef": 1.0})
_CPO_SIMPO = Known("simpo", {"beta": 0.1, "target_margin": 0.5, "sft_coef": 1.0})

LOSSES_OF: dict[str, dict[str, Known]] = {
    TRL: {
        **_DPO_TRAINER,
        **_at(_BETA, "ipo aot aot_unpaired sigmoid_norm=dpo_norm"),
        "sft": Known("sft", {}),
        "cpo.sigmoid": _CPO,
        # max(0, 1 − βΔ) = β·max(0, 1/β − Δ)
        "cpo.hinge": Known("0.1*slic_hf+1*sft", {"slic_hf_delta": 10.0, "slic_hf_sft_coef": 0.0}),
        "cpo.simpo": _CPO_SIMPO,
        "orpo": _ORPO,
        "cpo.ipo": Known("cpo_ipo", {"beta": 0.1, "sft_coef": 1.0}),
        "tpo.sigmoid": _TPO,
        "tpo.hinge": Known("tpo", {**_TPO.hyper, "curve": "hinge"}),
        "tpo.ipo": Known("tpo", {**_TPO.hyper, "curve": "squared", "reduction": "mean"}),
        "tpo.tpo-l": Known("tpo", {**_TPO.hyper, "target_margin": 0.5, "reduction": "mean"}),
        "kto.kto": _KTO,
        "kto.apo_zero_unpaired": _KTO._replace(loss="apo_zero_unpaired"),
    },
    LLAMA_FACTORY: {
        **_at(_BETA, "sigmoid=dpo hinge=hinge_dpo ipo kto_pair"),
        "orpo": _ORPO,
        "simpo": Known("simpo", {"beta": 0.1, "target_margin": 0.5}),
        "kto": _KTO,
    },
    OPENRLHF: {
        **_at(_BETA, "dpo"),
        "ipo": Known("ipo", {"beta": 0.1, "reduction": "sum"}),
    },
    LIGER: {
        **{f"dpo.{name}": known for name, known in _DPO_TRAINER.items()},
        "cpo": _CPO,
        "orpo": _ORPO,
        "simpo": _CPO_SIMPO,
        "kto": _KTO,
    },
    OXRL: {
        **_at(
            _BETA,
            "dpo spin=dpo sppo=sppo_hard aot=aot_unpaired apo=apo_zero nca=nca_pair "
            "hinge=hinge_dpo bco=bco_pair minor_dpo fdpo=f_dpo",
        ),
        **_at(_BETA | {"reduction": "sum"}, "ipo"),
        **_at(_BETA | {"label_smoothing": 0.1}, "cdpo=dpo robust_dpo"),
        **_at(_BETA | {"curve": "exponential"}, "gpo"),
        "sft": Known("sft", {}),
        "orpo": _ORPO,
        "kto": _KTO,
        "cpo": _CPO,
        "simpo": Known("simpo", {"beta": 0.1, "target_margin": 0.5}),
        "cposimpo": Known("simpo", {"beta": 2.0, "target_margin": 0.5, "sft_coef": 1.0}),
        "alphapo": Known("alpha_po", {"beta": 0.1, "alpha": 1.0, "target_margin": 0.5}),
        "rdpo": Known("r_dpo", _BETA | {"alpha": 0.01}),
        "betadpo": Known("beta_dpo", _BETA | {"alpha": 0.5}),
        "caldpo": Known("cal_dpo", _BETA | {"calibration_coef": 1.0}),
        "exo": Known("exo_pair", _BETA | {"label_smoothing": 1e-3}),
        "discopop": Known("discopop", _BETA | {"tau": 0.05}),
        "odpo": Known("offset_dpo", _BETA | {"target_margin": 1.0}),
        "dpop": Known("dpop", _BETA | {"penalty_coef": 5.0}),
        "focalpo": Known("focal_po", _BETA | {"focus": 1.0}),
        "hdpo": Known("h_dpo", _BETA | {"alpha": 1.0}),
        "dposhift": Known("dpo_shift", _BETA | {"rejected_coef": 0.5}),
        "drdpo": Known("dr_dpo", _BETA | {"temperature": 1.0}),
        "chipo": Known("f_dpo", _BETA | {"divergence": "chi_squared"}),
        "dpnll": Known("rpo", _BETA | {"sft_coef": 1.0}),
        "c2dpo": Known("c2_dpo", _BETA | {"constraint_coef": 2e-4}),
        "alpha_dpo": Known("alpha_dpo", {"beta": 2.5, "alpha": 0.1, "target_margin": 0.75}),
        "spo": Known("spo_silu", _BETA),
        "wpo": Known("wpo", _BETA),
        "sampo": Known("samdpo", _BETA),
        "bpo": Known("bpo_min", _BETA | {"balance": 0.3}),
    },
}


def known_to(tool: str, name: str) -> Known:
    """A loss by another tool's name.

    Args:
        tool: in ``LOSSES_OF``.
        name: as the tool writes it.

    Raises:
        ValueError: the tool has no such loss.

    >>> known_to("trl", "sigmoid_norm")
    Known(loss='dpo_norm', hyper={'beta': 0.1})
    >>> known_to("trl", "sigmiod")
    Traceback (most recent call last):
    ValueError: trl has no loss 'sigmiod': did you mean 'sigmoid'?
    """
    if name in LOSSES_OF[tool]:
        return LOSSES_OF[tool][name]
    raise ValueError(f"{tool} has no loss {name!r}: {nearest(name, LOSSES_OF[tool])}")
