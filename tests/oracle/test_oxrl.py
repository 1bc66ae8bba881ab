"""oxrl 1.7.2's own classes against ours, under oxrl's names and with its defaults."""

import importlib

import pytest
import torch
from samples import pairs

from torchmpo import resolve
from torchmpo.objectives.other_tools import LOSSES_OF

# Name here: the class. Left out: SFT, ORPO, CPO, CPOSimPO and DPNLL, which take a model's logits.
CLASSES = {
    "dpo": "dpo.DPO",
    "spin": "spin.SPIN",
    "ipo": "ipo.IPO",
    "cdpo": "cdpo.CDPO",
    "caldpo": "caldpo.CalDPO",
    "sppo": "sppo.SPPO",
    "aot": "aot.AOT",
    "apo": "apo.APO",
    "nca": "nca.NCA",
    "hinge": "hinge.Hinge",
    "exo": "exo.EXO",
    "discopop": "discopop.DiscoPOP",
    "bco": "bco.BCO",
    "odpo": "odpo.ODPO",
    "dpop": "dpop.DPOP",
    "gpo": "gpo.GPO",
    "fdpo": "fdpo.FDPO",
    "hdpo": "hdpo.HDPO",
    "dposhift": "dposhift.DPOShift",
    "drdpo": "drdpo.DrDPO",
    "chipo": "chipo.ChiPO",
    "minor_dpo": "minor_dpo.MinorDPO",
    "c2dpo": "c2dpo.C2DPO",
    "bpo": "bpo.BPO",
    # Before their running means have moved.
    "alpha_dpo": "alpha_dpo.AlphaDPO",
    # Of means, and without a reference.
    "simpo": "simpo.SimPO",
    "alphapo": "alphapo.AlphaPO",
}
WITHOUT_REFERENCE = ("simpo", "alphapo")
# Settings beside the defaults: theirs, ours.
OTHERS = [
    ("hdpo", {"hdpo_alpha": 0.8}, {"alpha": 0.8}),
    ("gpo", {"gpo_loss_type": "truncated_quadratic"}, {"curve": "truncated_quadratic"}),
    ("gpo", {"gpo_loss_type": "savage"}, {"curve": "savage"}),
]
CONSTANTS = {"apo": 1.0}  # theirs leaves it out
# The value agrees, and oxrl stops the gradient through the weight.
VALUE_ONLY = {"focalpo": "focalpo.FocalPO"}
# As torchmpo/objectives/other_tools.py says.
DIFFERENT = {"rdpo", "robust_dpo", "betadpo"}


def theirs(path, **settings):
    module, _, name = path.partition(".")
    cls = getattr(importlib.import_module(f"oxrl.algs.{module}"), name)
    engines = [None, None] if path.partition(".")[0] in WITHOUT_REFERENCE else [None, None, None]
    return cls(*engines, **settings)


def columns(name, objective):
    """The policy's and the reference's columns in the unit that the loss reads."""
    _, pair = pairs()
    mean = "rejected_mean_logps" in objective.inputs
    unit = "mean_logps" if mean else "logps"
    fields = [f"chosen_{unit}", f"rejected_{unit}"]
    if name not in WITHOUT_REFERENCE:
        fields += [f"ref_chosen_{unit}", f"ref_rejected_{unit}"]
    data = {field: getattr(pair, field).detach().clone() for field in fields}
    return pair, {k: x.requires_grad_(not k.startswith("ref_")) for k, x in data.items()}


def both(name, path, settings, hyper):
    objective = resolve(f"oxrl:{name}", **hyper)
    pair, data = columns(name, objective)
    expected = theirs(path, **settings).compute_loss(*data.values())
    expected = expected[0] if isinstance(expected, tuple) else expected
    actual = objective(pair._replace(**data)).mean()
    policy = [x for x in data.values() if x.requires_grad]
    slopes = [torch.stack(torch.autograd.grad(x, policy)) for x in (actual, expected)]
    return actual.detach(), expected.detach(), *slopes


@pytest.mark.parametrize(
    ("name", "settings", "hyper"), [*((name, {}, {}) for name in CLASSES), *OTHERS]
)
def test_value_and_gradient(name, settings, hyper):
    actual, expected, slope, wanted = both(name, CLASSES[name], settings, hyper)
    torch.testing.assert_close(actual, expected + CONSTANTS.get(name, 0.0))
    torch.testing.assert_close(slope, wanted)


@pytest.mark.parametrize("name", VALUE_ONLY)
def test_value(name):
    actual, expected, slope, wanted = both(name, VALUE_ONLY[name], {}, {})
    torch.testing.assert_close(actual, expected)
    assert not torch.allclose(slope, wanted)


def test_every_name_is_held_or_has_its_reason():
    of_logits = {"sft", "orpo", "cpo", "cposimpo", "dpnll"}
    assert {*CLASSES, *VALUE_ONLY, *DIFFERENT, *of_logits} == set(LOSSES_OF["oxrl"])
