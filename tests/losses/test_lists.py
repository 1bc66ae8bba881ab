"""Losses of ranked lists: by hand, what they have to do with DPO, and the third response."""

import itertools
import math

import pytest
import torch
from loss_cases import OF_LISTS, make_inputs

from torchmpo import losses as L
from torchmpo.losses import LOSSES

LOG2 = math.log(2)


def softplus(x):
    return math.log(1 + math.exp(x))


def lists(n, batch=20):
    gen = torch.Generator().manual_seed(0)
    policy, ref = -5 * torch.rand(2, batch, n, dtype=torch.float64, generator=gen)
    return policy.requires_grad_(), ref


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plackett_luce", math.log((math.e + 3) / math.e) + LOG2),
        ("self_po", 2 * softplus(-1) + LOG2),
    ],
)
def test_by_hand(name, expected):
    """s = 1, 0, 0 (with log 1 + 1 + e at the first place)."""
    s = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    if name == "plackett_luce":
        expected = math.log(math.e + 2) - 1 + LOG2
    assert LOSSES[name](s, 0 * s, beta=1.0).tolist() == [pytest.approx(expected, rel=1e-12)]


def test_lambda_po_by_hand():
    """Gains 1, √2 − 1, 0; the policy ranks the list backwards: discounts 1/log of 4, 3, 2."""
    s = torch.tensor([[0.0, 1.0, 3.0]], dtype=torch.float64)
    gain, discount = (1, math.sqrt(2) - 1, 0), [1 / math.log(k) for k in (4, 3, 2)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    weights = [(gain[i] - gain[j]) * (discount[j] - discount[i]) for i, j in pairs]
    losses = [softplus(1), softplus(3), softplus(2)]
    expected = sum(w * x for w, x in zip(weights, losses, strict=True)) * 3 / sum(weights)
    assert L.lambda_po_loss(s, 0 * s, beta=1.0).tolist() == [pytest.approx(expected, rel=1e-6)]


@pytest.mark.parametrize("name", OF_LISTS)
def test_a_list_of_two_is_a_pair_of_dpo(name):
    policy, ref = lists(2)
    loss = LOSSES[name](policy, ref, beta=0.3)
    dpo = L.dpo_loss(policy[:, 0], policy[:, 1], ref[:, 0], ref[:, 1], beta=0.3)
    torch.testing.assert_close(loss, dpo)
    grads = [torch.autograd.grad(x.sum(), policy)[0] for x in (loss, dpo)]
    torch.testing.assert_close(*grads)


def test_plackett_luce_is_a_distribution_over_orders():
    policy, ref = lists(4, batch=1)
    orders = [list(order) for order in itertools.permutations(range(4))]
    losses = [L.plackett_luce_loss(policy[:, o], ref[:, o], beta=0.7) for o in orders]
    assert torch.stack(losses).neg().exp().sum().item() == pytest.approx(1)


def test_every_response_is_worth_log_n_factorial_at_the_start():
    x = torch.zeros(1, 5)
    assert L.plackett_luce_loss(x, x).item() == pytest.approx(math.log(math.factorial(5)))
    for name in ("self_po", "lambda_po"):
        assert LOSSES[name](x, x).item() == pytest.approx(10 * LOG2)


@pytest.mark.parametrize("name", OF_LISTS)
def test_the_first_is_raised_and_the_last_lowered(name):
    policy, ref = lists(4)
    (slope,) = torch.autograd.grad(LOSSES[name](policy, ref).sum(), policy)
    assert (slope[:, 0] < 0).all()
    assert (slope[:, -1] > 0).all()
    torch.testing.assert_close(slope.sum(-1), torch.zeros(20, dtype=torch.float64))


@pytest.mark.parametrize("name", OF_LISTS)
def test_one_response_is_no_list(name):
    x = torch.zeros(3, 1)
    with pytest.raises(ValueError, match=r"must be \[batch, n\], n at least 2; got shape \(3, 1\)"):
        LOSSES[name](x, x)


def test_tpo_of_the_chosen_response_is_cpo():
    data = make_inputs("cpo")
    c, r, mean = data.values()
    tpo = L.tpo_loss(c, r, mean, beta=0.3, sft_coef=0.7, label_smoothing=0.1)
    torch.testing.assert_close(
        tpo, L.cpo_loss(*data.values(), beta=0.3, sft_coef=0.7, label_smoothing=0.1)
    )


def test_tpo_l_is_simpo_and_an_imitation():
    c, r, gold, nc, nr = make_inputs("tpo").values()
    tpo = L.tpo_loss(c, r, gold, nc, nr, beta=2.0, target_margin=0.5, reduction="mean")
    simpo = L.simpo_loss(c / nc, r / nr, beta=2.0, target_margin=0.5)
    torch.testing.assert_close(tpo, simpo - gold)
