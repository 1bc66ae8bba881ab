"""The inner loop in bfloat16 against the same in float32."""

import logging

import pytest
import torch
from populations import ACTIONS, OBSERVATIONS, make_data, make_policy, make_population

from torchmpo.control.categorical import CategoricalPolicy
from torchmpo.control.inner_loop import InnerConfig, train_policies
from torchmpo.control.member_steps import StepKL, StepMeans, warn_of_slow_precision
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.resolve import resolve


def train(precision, loss="dpo", policy=None, *, dtype=torch.float32, **settings):
    """Two members' parameters before and after."""
    policy = (policy or make_policy(std_kind="learned")).to(dtype)
    start = {name: value.to(dtype) for name, value in make_population(policy, 2).items()}
    config = {"epochs": 3, "sft_epochs": 1, "compile": False, "chunk_size": 2, **settings}
    objective = resolve(loss) if isinstance(loss, str) else loss
    trained = train_policies(
        policy, start, objective, {}, make_data(), InnerConfig(precision=precision, **config), 0
    )
    return start, trained


def make_categorical():
    torch.manual_seed(0)
    return CategoricalPolicy(OBSERVATIONS, ACTIONS, (8, 6), bins=5)


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        ("dpo", make_policy),
        ("orpo", make_policy),
        ("tdpo", make_policy),  # which reads divergences of steps
        ("dpo", make_categorical),
        ("orpo", make_categorical),
    ],
)
def test_bfloat16_goes_where_float32_goes(loss, kind):
    start, full = train("32-true", loss, kind())
    _, half = train("bf16-mixed", loss, kind())
    for name, value in full.items():
        assert half[name].dtype == torch.float32
        moved, apart = (value - start[name]).norm(), (half[name] - value).norm()
        assert 0 < apart < 0.1 * moved, name


def test_what_a_loss_is_given_stays_float32():
    seen = set()

    def loss(chosen_step_logps, rejected_mean_logps, ref_chosen_logps, chosen_step_kl):
        values = (chosen_step_logps, rejected_mean_logps, ref_chosen_logps, chosen_step_kl)
        seen.update(value.dtype for value in values)
        return rejected_mean_logps - chosen_step_logps.mean(-1) + chosen_step_kl.mean(-1)

    train("bf16-mixed", Objective(loss))
    assert seen == {torch.float32}


def test_a_divergence_from_oneself_is_nothing():
    """Means are subtracted in float32, of whatever arithmetic they come."""
    policy, random = make_policy().float(), torch.Generator().manual_seed(0)
    whitened = torch.randn(2, 9, OBSERVATIONS, generator=random)
    args = policy.trainable(), dict(policy.named_buffers()), whitened, torch.zeros(2, 9, ACTIONS)
    means = StepMeans(policy, "bf16-mixed").at(*args)
    near = means + 3e-3  # below what bfloat16 can tell apart
    for mean, expected in ((means, 0.0), (near, ACTIONS * 0.5 * (3e-3 / 0.4) ** 2)):
        found = StepKL(policy, "bf16-mixed", mean, policy.log_std).at(*args)
        torch.testing.assert_close(found, torch.full((2, 9), expected), rtol=0.01, atol=1e-12)


def test_float64_stays_as_it_is():
    (_, one), (_, other) = (train(p, dtype=torch.float64) for p in ("32-true", "bf16-mixed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_each_precision_has_its_own_program(traced_only):
    policy, objective = make_policy().float(), resolve("simpo")
    found = [
        train(precision, objective, policy, compile=True, epochs=1)[1]["layers.0.weight"]
        for precision in ("32-true", "bf16-mixed", "32-true")
    ]
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_a_processor_without_units_for_it_is_told_of(monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    with caplog.at_level(logging.WARNING):
        warn_of_slow_precision("32-true")
        assert not caplog.records
        warn_of_slow_precision("bf16-mixed")
    assert "no units for bfloat16" in caplog.text
