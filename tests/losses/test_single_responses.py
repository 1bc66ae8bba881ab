"""Losses of single responses: what they have to do with those of pairs, and with TRL's."""

import oracles
import pytest
import torch
from loss_cases import make_inputs

from torchmpo import losses as L
from torchmpo import resolve
from torchmpo.losses import LOSSES
from torchmpo.losses.weighted_sum import WeightedSum
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.weighted_sum import weighted_sum

BOTH = {"beta": 0.4, "desirable_coef": 1.3, "undesirable_coef": 0.7}


def gradients(loss, variables):
    return torch.autograd.grad(loss.sum(), variables)


def as_labelled(c, r, rc, rr):
    good = torch.arange(2 * len(c)) < len(c)
    return torch.cat([c, r]), torch.cat([rc, rr]), good


@pytest.fixture
def pair():
    c, r, rc, rr = make_inputs("dpo", batch=20).values()
    return c.requires_grad_(), r.requires_grad_(), rc, rr


def test_two_responses_of_apo_zero_unpaired_are_a_pair_of_apo_zero(pair):
    single = L.apo_zero_unpaired_loss(*as_labelled(*pair), beta=0.4)
    whole = L.apo_zero_loss(*pair, beta=0.4)
    torch.testing.assert_close(single[:20] + single[20:], whole)
    torch.testing.assert_close(gradients(single, pair[:2]), gradients(whole, pair[:2]))


def test_two_responses_of_bco_unpaired_are_a_pair_of_bco_pair_where_the_mean_is_zero(pair):
    c, r, rc, rr = pair
    rc = rc + ((c - rc) + (r - rr)).mean().detach()  # the mean of h is 0
    single = L.bco_unpaired_loss(*as_labelled(c, r, rc, rr), beta=0.4)
    whole = L.bco_pair_loss(c, r, rc, rr, beta=0.4)
    torch.testing.assert_close(single[:20] + single[20:], whole)
    torch.testing.assert_close(gradients(single, [c, r]), gradients(whole, [c, r]))


def test_kto_below_its_baseline_is_apo_zero_unpaired():
    data = make_inputs("apo_zero_unpaired", batch=30)
    ys = data["logps"].requires_grad_()
    lower = data["logps"].detach() - 5
    kto = L.kto_loss(*data.values(), lower, data["logps"].detach(), **BOTH)
    apo = L.apo_zero_unpaired_loss(*data.values(), **BOTH)
    torch.testing.assert_close(kto, apo)
    torch.testing.assert_close(gradients(kto, [ys]), gradients(apo, [ys]))


def test_the_weights_multiply_their_own_label_only():
    data = make_inputs("kto", batch=30)
    plain = L.kto_loss(*data.values(), beta=0.4)
    factor = torch.where(data["desirable"], 1.3, 0.7)
    torch.testing.assert_close(L.kto_loss(*data.values(), **BOTH), plain * factor)


@pytest.mark.parametrize("good", [0, 1, 7, 8])
def test_kto_is_trls_whatever_the_labels_of_a_batch(good):
    """TRL 1.16, KTOTrainer._compute_loss: the two kinds apart, joined, and averaged."""
    y, ref, _, my, mref = make_inputs("kto", batch=8).values()
    y.requires_grad_()
    label, beta = torch.arange(8) < good, BOTH["beta"]
    kl = (my - mref).mean().detach().clamp(min=0)
    chosen = 1 - torch.sigmoid(beta * ((y - ref)[label] - kl))
    rejected = 1 - torch.sigmoid(beta * (kl - (y - ref)[~label]))
    theirs = torch.cat([1.3 * chosen, 0.7 * rejected])
    ours = L.kto_loss(y, ref, label, my, mref, **BOTH)
    torch.testing.assert_close(ours.mean(), theirs.mean())
    torch.testing.assert_close(gradients(ours, [y]), gradients(theirs, [y]))


def test_kto_pushes_both_ways_where_the_baseline_is():
    """Its slope is largest at h = z₀, and pushes by the label."""
    h = torch.tensor([2.0, 2.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)
    loss = L.kto_loss(h, zero, torch.tensor([True, False]), zero + 2, zero, beta=1.0)
    assert loss.tolist() == [0.5, 0.5]
    assert gradients(loss, [h])[0].tolist() == [-0.25, 0.25]


def test_labels_may_be_numbers():
    data = make_inputs("kto")
    as_numbers = data | {"desirable": data["desirable"].double()}
    assert torch.equal(L.kto_loss(*as_numbers.values()), L.kto_loss(*data.values()))


def test_a_sum_of_single_responses_is_one_and_a_mixed_one_is_refused():
    objective = weighted_sum({"kto": 0.5, "apo_zero_unpaired": 2.0})
    assert objective.unpaired
    assert objective.coupled
    assert objective.optional == {"mismatched_logps", "ref_mismatched_logps"}
    with pytest.raises(ValueError, match=r"is of single responses.*cannot read chosen_mean_logps"):
        resolve("kto+sft")
    assert not Objective(WeightedSum({"dpo": L.dpo_loss})).unpaired


def test_the_twin_without_mismatched_responses():
    data = make_inputs("kto", batch=9)
    y, ref, good = (data[name] for name in ("logps", "ref_logps", "desirable"))
    expected = oracles.kto(y.tolist(), ref.tolist(), good.tolist(), **BOTH)
    assert L.kto_loss(y, ref, good, **BOTH).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired", "bco_unpaired"])
def test_labels_may_be_bools_or_numbers_of_any_custom(name):
    """1 and 0, 1 and −1, probabilities."""
    x, ref = torch.tensor([-10.0, -12.0]), torch.tensor([-20.0, -9.0])
    wanted = LOSSES[name](x, ref, torch.tensor([True, False]))
    for labels in ([1, 0], [1, -1], [1.0, -1.0], [0.9, 0.1]):
        assert torch.equal(LOSSES[name](x, ref, torch.tensor(labels)), wanted)
