"""Losses of drawn responses: HyPO's gradient by enumeration, and which way VPO's sign goes."""

import itertools

import pytest
import torch
from loss_cases import make_inputs

from torchmpo import losses as L
from torchmpo.control.inner_loop import check_inputs
from torchmpo.losses.online import kl_surrogate
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError

REFERENCE = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("count", [2, 3])
def test_the_surrogates_gradient_is_the_gradient_of_the_kl_over_all_draws(count):
    """Of every tuple of answers, weighed by how likely a categorical policy draws it."""
    logits = torch.tensor([0.3, -1.0, 0.8, 0.0], dtype=torch.float64, requires_grad=True)
    logps = logits.log_softmax(0)
    kl = (logps.exp() * (logps - REFERENCE.log())).sum()
    (expected,) = torch.autograd.grad(kl, logits, retain_graph=True)
    draws = torch.tensor([*itertools.product(range(4), repeat=count)])
    likely = logps.detach().exp()[draws].prod(1)
    surrogate = (likely * kl_surrogate(logps[draws], REFERENCE.log()[draws])).sum()
    (found,) = torch.autograd.grad(surrogate, logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert expected.abs().max() > 0.05


def test_hypo_is_dpo_and_lambda_times_the_surrogate_and_dpo_at_the_start():
    c, r, rc, rr, own, ref = make_inputs("hypo").values()
    loss = L.hypo_loss(c, r, rc, rr, own, ref, beta=0.3, kl_coef=0.5)
    expected = L.dpo_loss(c, r, rc, rr, beta=0.3) + 0.5 * kl_surrogate(own, ref)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(L.hypo_loss(c, r, rc, rr, own, own), L.dpo_loss(c, r, rc, rr))
    torch.testing.assert_close(
        L.hypo_loss(c, r, rc, rr, own, ref, kl_coef=0.0), L.dpo_loss(c, r, rc, rr)
    )


def test_vpo_online_has_the_other_sign_than_offline():
    c, r, rc, rr, _ = make_inputs("vpo_online").values()
    dpo = L.dpo_loss(c, r, rc, rr)
    offline = L.vpo_offline_loss(c, r, rc, rr, alpha=0.4) - dpo
    online = L.vpo_online_loss(c, r, rc, rr, c[:, None], alpha=0.4) - dpo
    # Of the chosen response itself, up to a constant.
    torch.testing.assert_close(online, -offline + 0.4 * 0.1 * rc)


def test_vpo_online_explores_and_offline_does_not():
    """With no preference to learn, optimism leaves what the reference does; pessimism stays."""
    logits = REFERENCE.log().clone().requires_grad_()
    logps, zero = logits.log_softmax(0), torch.zeros(1, dtype=torch.float64)
    loss = L.vpo_online_loss(zero, zero, zero, zero, logps.expand(1, 4)[:, :1], alpha=1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient[0] > 0  # descent lowers what was drawn
    offline = L.vpo_offline_loss(logits.log_softmax(0)[:1], zero, zero, zero, alpha=1.0)
    assert torch.autograd.grad(offline.sum(), logits)[0][0] < 0


@pytest.mark.parametrize(
    ("name", "field"), [("hypo", "own_logps, ref_own_logps"), ("vpo_online", "calibration_logps")]
)
def test_a_loop_that_draws_nothing_refuses_them_in_a_line(name, field):
    with pytest.raises(UserError, match=f"{name}: the inner loop cannot supply {field};"):
        check_inputs(resolve(name))


def test_one_own_response_has_nothing_to_be_compared_with():
    data = make_inputs("hypo")
    data |= {name: data[name][:, :1] for name in ("own_logps", "ref_own_logps")}
    with pytest.raises(ValueError, match=r"own_logps must be \[batch, n\], n at least 2"):
        L.hypo_loss(*data.values())
