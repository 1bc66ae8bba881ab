"""The losses of other tools, by the names that their users know."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch import ones

from torchmpo import PairLogps, resolve
from torchmpo.losses import LOSSES
from torchmpo.objectives.other_tools import LOSSES_OF

# Read from the tools' own sources in November 2026: TRL 1.16.0 (`loss_type` of DPOConfig, and of
# the CPO, KTO and TPO trainers behind their names), LLaMA-Factory 0.9.5 (`pref_loss`, and the stage
# kto), OpenRLHF 0.11.0 (train_dpo), Liger-Kernel 0.8.5 (chunked_loss; without those of rewards and
# of distillation), oxrl 1.7.2 (`alg_name` of main_sl.py, without cpt, kd, rm, online_dpo and rft,
# which are no losses of preferences).
NAMES = {
    "trl": """
        sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero
        apo_down discopop sft sigmoid_norm cpo.sigmoid cpo.hinge cpo.ipo cpo.simpo orpo kto.kto
        kto.apo_zero_unpaired tpo.sigmoid tpo.hinge tpo.ipo tpo.tpo-l
    """,
    "llamafactory": "sigmoid hinge ipo kto_pair orpo simpo kto",
    "openrlhf": "dpo ipo",
    "liger": """
        dpo.sigmoid dpo.hinge dpo.exo_pair dpo.nca_pair dpo.robust dpo.bco_pair dpo.sppo_hard
        dpo.apo_zero dpo.apo_down dpo.discopop cpo orpo simpo kto
    """,
    "oxrl": """
        sft dpo orpo kto spin ipo simpo cpo alphapo rdpo cdpo betadpo caldpo sppo aot apo nca hinge
        robust_dpo exo discopop bco odpo dpop focalpo gpo wpo fdpo hdpo dposhift cposimpo sampo
        drdpo chipo spo dpnll minor_dpo c2dpo alpha_dpo bpo
    """,
}
# The tools' own defaults, where a β of 0.1 is not all there is to say.
TPO = {
    **{"beta": 0.01, "sft_coef": 1.0, "target_margin": 0.0, "label_smoothing": 0.0},
    **{"curve": "logistic", "reduction": "sum"},
}
DEFAULTS = {
    "trl:sft": {},
    "trl:discopop": {"beta": 0.1, "tau": 0.05},
    "trl:ipo": {"beta": 0.1, "reduction": "mean"},
    "trl:robust": {"beta": 0.1, "label_smoothing": 0.0},
    "trl:sigmoid_norm": {"beta": 0.1, "label_smoothing": 0.0},
    "trl:cpo.sigmoid": {"beta": 0.1, "sft_coef": 1.0, "label_smoothing": 0.0},
    "trl:cpo.simpo": {"beta": 0.1, "target_margin": 0.5, "sft_coef": 1.0, "label_smoothing": 0.0},
    "trl:orpo": {"po_coef": 0.1},
    "trl:tpo.ipo": {**TPO, "curve": "squared", "reduction": "mean"},
    "trl:tpo.sigmoid": TPO,
    "trl:tpo.hinge": {**TPO, "curve": "hinge"},
    "trl:tpo.tpo-l": {**TPO, "target_margin": 0.5, "reduction": "mean"},
    "llamafactory:simpo": {
        **{"beta": 0.1, "target_margin": 0.5, "sft_coef": 0.0, "label_smoothing": 0.0}
    },
    "llamafactory:ipo": {"beta": 0.1, "reduction": "mean"},
    "openrlhf:ipo": {"beta": 0.1, "reduction": "sum"},
    "liger:cpo": {"beta": 0.1, "sft_coef": 1.0, "label_smoothing": 0.0},
    "liger:simpo": {"beta": 0.1, "target_margin": 0.5, "sft_coef": 1.0, "label_smoothing": 0.0},
    "oxrl:ipo": {"beta": 0.1, "reduction": "sum"},
    "oxrl:cdpo": {"beta": 0.1, "label_smoothing": 0.1},
    "oxrl:robust_dpo": {"beta": 0.1, "label_smoothing": 0.1},
    "oxrl:gpo": {"beta": 0.1, "curve": "exponential"},
    "oxrl:cposimpo": {"beta": 2.0, "target_margin": 0.5, "sft_coef": 1.0, "label_smoothing": 0.0},
    "oxrl:alphapo": {"beta": 0.1, "alpha": 1.0, "target_margin": 0.5},
    "oxrl:rdpo": {"beta": 0.1, "alpha": 0.01},
    "oxrl:betadpo": {"beta": 0.1, "alpha": 0.5, "baseline": 0.0},
    "oxrl:caldpo": {"beta": 0.1, "calibration_coef": 1.0},
    "oxrl:exo": {"beta": 0.1, "label_smoothing": 1e-3},
    "oxrl:odpo": {"beta": 0.1, "target_margin": 1.0},
    "oxrl:dpop": {"beta": 0.1, "penalty_coef": 5.0},
    "oxrl:focalpo": {"beta": 0.1, "focus": 1.0},
    "oxrl:hdpo": {"beta": 0.1, "alpha": 1.0},
    "oxrl:dposhift": {"beta": 0.1, "rejected_coef": 0.5},
    "oxrl:drdpo": {"beta": 0.1, "temperature": 1.0},
    "oxrl:dpnll": {"beta": 0.1, "sft_coef": 1.0},
    "oxrl:c2dpo": {"beta": 0.1, "constraint_coef": 2e-4},
    "oxrl:alpha_dpo": {"beta": 2.5, "alpha": 0.1, "target_margin": 2.5 * 0.3},
    "oxrl:bpo": {"beta": 0.1, "balance": 0.3},
}
KNOWN = [(tool, name) for tool, names in LOSSES_OF.items() for name in names]


def test_every_name_of_every_tool_is_a_loss_of_ours():
    assert LOSSES_OF.keys() == NAMES.keys()
    for tool, names in NAMES.items():
        assert set(names.split()) == set(LOSSES_OF[tool]), tool
    ours = {word for known in LOSSES_OF.values() for loss, _ in known.values() for word in [loss]}
    parts = {part.rpartition("*")[2] for loss in ours for part in loss.split("+")}
    assert parts - set(LOSSES) == set()


@pytest.mark.parametrize(("tool", "name"), KNOWN)
def test_a_tools_name_gives_ours_with_the_tools_defaults(tool, name):
    loss, theirs = LOSSES_OF[tool][name]
    objective = resolve(f"{tool}:{name}")
    assert objective.name == loss
    assert "+" in loss or objective.function is LOSSES[loss]
    assert theirs.items() <= objective.hyper.items()
    if "beta" in objective.hyper and f"{tool}:{name}" not in DEFAULTS:
        assert objective.hyper["beta"] == 0.1
    pair = PairLogps(**{field: -ones(2) for field in objective.inputs if "logps" in field})
    fields = {field: ones(2) for field in objective.inputs if "logps" not in field}
    assert objective(pair._replace(**fields)).shape == (2,)


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_defaults_are_the_tools(name):
    assert resolve(name).hyper == pytest.approx(DEFAULTS[name])


def test_a_hinge_and_an_sft_term_are_a_sum():
    c, r = -ones(2), -4 * ones(2)
    pair = PairLogps(chosen_logps=c, rejected_logps=r, chosen_mean_logps=c)
    assert resolve("trl:cpo.hinge")(pair).tolist() == pytest.approx([1 - 0.1 * 3 + 1] * 2)


def test_ones_own_numbers_replace_the_tools():
    assert resolve("trl:sigmoid_norm", beta=3.0).hyper["beta"] == 3.0
    assert resolve("trl:cpo.simpo").hyper["sft_coef"] == 1.0
    assert resolve("openrlhf:ipo").hyper["reduction"] == "sum"
    assert resolve("trl:ipo").hyper["reduction"] == "mean"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trl:sigmiod", "trl has no loss 'sigmiod': did you mean 'sigmoid'?"),
    ],
)
def test_what_is_not_here_is_said_in_one_line(name, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")) as caught:
        resolve(name)
    assert str(caught.value) == message


def test_what_the_page_shows():
    page = (Path(__file__).parents[2] / "docs" / "choose.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    exec(block, {})


CORE_ONLY = """
import sys
import numpy, safetensors.torch, torch

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {*sys.stdlib_module_names, "torchmpo", "torch", "numpy", "safetensors"}:
            raise ImportError(f"{name} is not a core dependency")

sys.meta_path.insert(0, Refuse())
from torchmpo import resolve
from torchmpo.losses import LOSSES
from torchmpo.objectives.resolve import discovered
assert {"tla_noisy", "tla_noisy_v1", "tla_mixed_v1", "hopper_noisy_v1"} <= set(discovered())
for name in [*LOSSES, *discovered(), "trl:sigmoid_norm"]:
    resolve(name)
"""


def test_torch_and_safetensors_are_enough_to_resolve_every_name():
    subprocess.run([sys.executable, "-c", CORE_ONLY], check=True)
