"""A sum of losses is a loss: it is bound, saved, tuned, searched and compiled like one."""

import json

import pytest
import torch
from loss_cases import make_inputs

from torchmpo import PairLogps, resolve
from torchmpo.control.grids import check_grid, grid, ranges
from torchmpo.evolve.spaces import CoefficientSpace, _hyper
from torchmpo.losses import LOSSES
from torchmpo.metrics import implicit_rewards
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.weighted_sum import parse, weighted_sum

# TRL's example of `loss_weights`, there called MPO.
WEIGHTS = {"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}


def pair_for(*names, batch=6):
    fields = {}
    for name in names:
        fields |= make_inputs(name, batch=batch)
    return PairLogps(**{k: v.requires_grad_(v.is_floating_point()) for k, v in fields.items()})


def expected(pair, weights, **hyper):
    total = 0.0
    for name, weight in weights.items():
        own = {k.removeprefix(f"{name}_"): v for k, v in hyper.items() if k.startswith(f"{name}_")}
        total = total + weight * resolve(name, **own)(pair)
    return total


@pytest.mark.parametrize(
    ("weights", "hyper"),
    [
        (WEIGHTS, {}),
        (WEIGHTS, {"dpo_beta": 0.3, "bco_pair_beta": 0.7}),
        ({"slic_hf": 0.1, "sft": 1.0}, {"slic_hf_delta": 10.0, "slic_hf_sft_coef": 0.0}),
        ({"ipo": 0.5, "simpo": 2.0}, {}),
        ({"aot": 1.0, "r_dpo": -0.5}, {}),
    ],
)
def test_value_and_gradient_are_those_of_the_sum(weights, hyper):
    objective, pair = weighted_sum(weights, **hyper), pair_for(*weights)
    actual, wanted = objective(pair), expected(pair, weights, **hyper)
    torch.testing.assert_close(actual, wanted)
    policy = [x for k, x in pair._asdict().items() if x is not None and k.startswith("chosen_m")]
    policy += [pair.chosen_logps] if pair.chosen_logps is not None else []
    for one, other in zip(
        torch.autograd.grad(actual.sum(), policy, allow_unused=True),
        torch.autograd.grad(wanted.sum(), policy, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_what_the_objective_knows():
    objective = resolve("0.8*dpo+0.2*bco_pair+sft", dpo_beta=0.3)
    assert objective.name == "0.8*dpo+0.2*bco_pair+1*sft"
    assert objective.inputs == {
        *("chosen_logps", "rejected_logps", "chosen_mean_logps"),
        *("ref_chosen_logps", "ref_rejected_logps"),
    }
    assert objective.needs_reference
    assert not objective.coupled
    assert resolve("aot+sft").coupled
    assert not resolve("simpo+sft").needs_reference
    assert objective.hyper["dpo_beta"] == 0.3
    assert objective.hyper["bco_pair_weight"] == 0.2


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("dpo+sft", {"dpo": 1.0, "sft": 1.0}),
        (" 0.8*dpo + .2*bco_pair + 1e-3*sft", {"dpo": 0.8, "bco_pair": 0.2, "sft": 1e-3}),
        ("2*dpo", {"dpo": 2.0}),
        ("dpo+-1*sft", {"dpo": 1.0, "sft": -1.0}),
    ],
)
def test_a_sum_as_text(text, weights):
    assert parse(text) == weights
    assert parse(resolve(text).name) == weights


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dpo+stf", "unknown loss 'stf' in a sum: did you mean 'sft'?"),
        ("dpo+", "'dpo+' must be a sum of losses, as in 0.8*dpo+0.2*bco_pair+sft"),
        ("dpo*2", "'dpo*2' must be a sum of losses, as in 0.8*dpo+0.2*bco_pair+sft"),
        ("dpo+sft+dpo", "dpo is in 'dpo+sft+dpo' twice"),
    ],
)
def test_mistakes_are_one_line(text, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        resolve(text)
    assert str(caught.value) == message


def test_numbers_of_the_parts_are_checked_by_the_parts():
    with pytest.raises(ValueError, match="beta must be positive"):
        resolve("dpo+sft", dpo_beta=0.0)
    with pytest.raises(ValueError, match="sft_weight must be finite"):
        resolve("dpo+sft", sft_weight=float("nan"))
    with pytest.raises(ValueError, match="no hyper-parameter 'beta'"):
        resolve("dpo+sft", beta=0.1)
    with pytest.raises(ValueError, match="needs rejected_logps"):
        resolve("dpo+sft")(PairLogps(chosen_logps=torch.zeros(2)))


def test_saved_and_loaded(tmp_path):
    objective = resolve("0.8*dpo+0.2*ipo+sft", dpo_beta=torch.tensor(0.25))
    objective.save(tmp_path, {"made": "here"})
    again = resolve(tmp_path)
    assert isinstance(again, Objective)
    assert (again.name, again.card) == (objective.name, {"made": "here"})
    assert again.hyper == objective.hyper
    pair = pair_for("dpo", "ipo", "sft")
    assert torch.equal(again(pair), objective(pair))
    content = json.loads((tmp_path / "objective.json").read_text())
    assert content["sum_of"] == ["dpo", "ipo", "sft"]
    (tmp_path / "objective.json").write_text(json.dumps(content | {"sum_of": ["dpo", "gone"]}))
    with pytest.raises(ValueError, match="not a readable saved objective"):
        resolve(tmp_path)


def test_weights_and_numbers_are_tuned_and_searched():
    objective = resolve("0.8*dpo+0.2*simpo")
    found = ranges(objective)
    assert set(found) == {
        *("dpo_weight", "dpo_beta", "dpo_label_smoothing"),
        *("simpo_weight", "simpo_beta", "simpo_target_margin"),
    }
    assert found["dpo_beta"] == ranges(resolve("dpo"))["beta"]
    assert found["simpo_beta"] == ranges(resolve("simpo"))["beta"]
    settings = grid(objective, 5)
    assert settings[0]["dpo_weight"] == 0.8
    check_grid(objective, settings)
    space = _hyper("0.8*dpo+0.2*simpo")
    assert isinstance(space, CoefficientSpace)
    middle = space.at(torch.full((space.dim,), 0.01))
    assert middle.hyper["simpo_weight"] != 0.2
    pair = pair_for("dpo", "simpo")
    assert middle(pair).shape == (6,)


def test_a_population_of_weights_compiles_into_one_graph():
    objective, pair = resolve("0.8*dpo+0.2*simpo+sft"), pair_for("dpo", "simpo", "sft")
    tree = {k: v * torch.tensor([0.5, 1.0]) for k, v in objective.parameters_tree().items()}

    def losses(tree):
        return torch.func.vmap(lambda params: objective.apply(params, pair))(tree)

    torch.compiler.reset()
    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")(tree)
    loop = [objective.apply({k: v[i] for k, v in tree.items()}, pair) for i in range(2)]
    torch.testing.assert_close(compiled, torch.stack(loop))


def test_rewards_are_those_of_the_first_part():
    pair = pair_for("dpo", "sft")
    first = implicit_rewards(resolve("dpo", beta=0.3), pair)
    torch.testing.assert_close(implicit_rewards(resolve("dpo+sft", dpo_beta=0.3), pair), first)


def test_one_part_of_weight_one_is_the_loss():
    for name in LOSSES:
        pair = pair_for(name)
        torch.testing.assert_close(weighted_sum({name: 1.0})(pair), resolve(name)(pair))


def test_a_slip_in_a_sum_is_one_line():
    x = torch.tensor([-1.0])
    function = resolve("simpo+sft").source
    with pytest.raises(ValueError, match="no hyper-parameter 'simpo_wieght'; it has simpo_weight"):
        function(x, x, simpo_wieght=0.0)
    with pytest.raises(ValueError, match="reads 2 inputs; got 3"):
        function(x, x, x)
    for weight in ("0.8", None, True):
        with pytest.raises(ValueError, match="the weight of dpo must be a number"):
            weighted_sum({"dpo": weight})
