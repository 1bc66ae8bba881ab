"""Any loss of a margin, in any f-divergence."""

import json

import pytest
import torch
from loss_cases import OF_DRAWN, make_inputs

from torchmpo import PairLogps, resolve
from torchmpo.adapters import trl_signature
from torchmpo.control.grids import check_grid, grid, ranges
from torchmpo.losses import COUPLED, LOSSES, dpo_loss
from torchmpo.losses.divergence import OF_THE_MARGIN, InDivergence
from torchmpo.losses.reference_based import DIVERGENCES, f_derivative
from torchmpo.metrics import implicit_rewards


def pair_for(name):
    data = make_inputs(name)
    policy = {k: x.requires_grad_() for k, x in data.items() if k in ("chosen_logps",)}
    return PairLogps(**data | policy)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_dpo_in_a_divergence_is_f_dpo(divergence):
    pair = pair_for("dpo")
    alpha = {"divergence_alpha": 0.3} if divergence == "alpha" else {}
    actual = resolve(f"dpo@{divergence}", beta=0.3, **alpha)(pair)
    wanted = resolve("f_dpo", beta=0.3, divergence=divergence, alpha=0.3)(pair)
    torch.testing.assert_close(actual, wanted)
    slopes = [torch.autograd.grad(x.sum(), pair.chosen_logps)[0] for x in (actual, wanted)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("name", sorted(OF_THE_MARGIN))
def test_the_reverse_kl_changes_nothing(name):
    pair = pair_for(name)
    torch.testing.assert_close(resolve(f"{name}@reverse_kl")(pair), resolve(name)(pair))
    assert resolve(f"{name}@js").coupled is (name in COUPLED)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - OF_THE_MARGIN))
def test_every_other_loss_asks_for_more_than_the_margin(name):
    """Moving both log-ratios alike changes its value, or there is no reference."""
    with pytest.raises(ValueError, match=f"{name} is no loss of a margin"):
        resolve(f"{name}@js")
    data = make_inputs(name)
    if "ref_rejected_logps" not in data or name in ("aot", "aot_unpaired"):
        return
    lowered = data | {f: data[f] - 3.0 for f in ("chosen_logps", "rejected_logps")}
    moved = [LOSSES[name](*x.values()) for x in (data, lowered)]
    # They weigh the reference's margin, look at c > r, have a divergence of their own, or means, or
    # read drawn responses besides.
    others = {"dpo_gamma", "dpo_positive_reference", "h_dpo", "pfl", "f_dpo", "wpo", *OF_DRAWN}
    assert name in others or not torch.allclose(*moved)


def test_values_by_hand():
    """h = log ½ and log ¼: f' = log 2 + log(⅓) and log 2 + log(⅕); 1 − 2 and 1 − 4."""
    logs = [torch.tensor([x], dtype=torch.float64).log() for x in (0.5, 0.25, 1.0, 1.0)]
    fields = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    pair = PairLogps(**dict(zip(fields, logs, strict=True)))
    js = torch.tensor(5 / 3, dtype=torch.float64).log().item()
    assert resolve("hinge_dpo@js", beta=0.5)(pair).item() == pytest.approx(1 - 0.5 * js)
    assert resolve("hinge_dpo@forward_kl", beta=0.1)(pair).item() == pytest.approx(1 - 0.2)
    rewards = implicit_rewards(resolve("hinge_dpo@forward_kl", beta=0.1), pair)
    assert [x.item() for x in rewards] == pytest.approx([-0.1, -0.3])


def test_ipo_divides_after_the_divergence_as_trl_does():
    pair = pair_for("ipo")
    derivative = f_derivative("js", 0.5)
    scores = [
        derivative(getattr(pair, f"{side}_logps") - getattr(pair, f"ref_{side}_logps"))
        / getattr(pair, f"{side}_lengths")
        for side in ("chosen", "rejected")
    ]
    wanted = (scores[0] - scores[1] - 5).square()
    torch.testing.assert_close(resolve("ipo@js")(pair), wanted)


def test_saved_and_loaded(tmp_path):
    objective = resolve("hinge_dpo@alpha", beta=0.3, divergence_alpha=0.2)
    objective.save(tmp_path, {})
    content = json.loads((tmp_path / "objective.json").read_text())
    assert content == {
        "loss": "hinge_dpo",
        "hyper": {"beta": 0.3, "divergence_alpha": 0.2},
        "divergence": "alpha",
    }
    again = resolve(tmp_path)
    assert repr(again) == repr(objective)
    assert torch.equal(again(pair_for("hinge_dpo")), objective(pair_for("hinge_dpo")))


def test_it_is_tuned_like_its_loss():
    found = ranges(resolve("hinge_dpo@alpha"))
    assert found["beta"] == ranges(resolve("hinge_dpo"))["beta"]
    assert found["divergence_alpha"] == ranges(resolve("f_dpo"))["alpha"]
    check_grid(resolve("hinge_dpo@alpha"), grid(resolve("hinge_dpo@alpha"), 5))


def test_a_grid_compiles_into_one_graph():
    objective, pair = resolve("exo_pair@alpha"), pair_for("exo_pair")
    tree = {k: v * torch.tensor([0.5, 1.0]) for k, v in objective.parameters_tree().items()}

    def losses(tree):
        return torch.func.vmap(lambda params: objective.apply(params, pair))(tree)

    torch.compiler.reset()
    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")(tree)
    loop = [objective.apply({k: v[i] for k, v in tree.items()}, pair) for i in range(2)]
    torch.testing.assert_close(compiled, torch.stack(loop))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="divergence must be one of reverse_kl"):
        resolve("dpo@jss")
    with pytest.raises(ValueError, match="no hyper-parameter 'divergence_alpha'"):
        resolve("dpo@js", divergence_alpha=0.3)
    function = InDivergence(LOSSES["dpo"], "js")
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        function(x, x, x[:2], x)


def test_rewards_of_ipo_are_those_of_its_margin():
    """Long and likely against short: the order is that of the loss."""
    long, short = torch.tensor([100]), torch.tensor([10])
    zero = torch.zeros(1)
    pair = PairLogps(
        chosen_logps=torch.tensor([10.0]),
        rejected_logps=torch.tensor([0.5]),
        ref_chosen_logps=zero,
        ref_rejected_logps=zero,
        chosen_lengths=long,
        rejected_lengths=short,
    )
    objective = resolve("ipo@js")
    chosen, rejected = implicit_rewards(objective, pair)
    beta = objective.hyper["beta"]
    margin = (chosen - rejected) / beta
    assert margin.item() < 0
    torch.testing.assert_close(objective(pair), (margin - 1 / (2 * beta)).square())


def test_means_do_not_make_a_divergence_of_sums():
    with pytest.raises(ValueError, match="divergence of sums and divides then: pass unit='sum'"):
        trl_signature("ipo@js", unit="mean", trl=False)


def test_inputs_are_counted():
    x = torch.zeros(2)
    with pytest.raises(ValueError, match=r"reads chosen_logps, .*; got 3"):
        InDivergence(dpo_loss, "js")(x, x, x)
