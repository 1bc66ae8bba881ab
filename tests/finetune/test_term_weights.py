"""Fine-tuning under two terms whose weights follow from training."""

import pytest
import torch

pytest.importorskip("lightning")

from test_module import LORA, Log, fit, loader
from tiny_llm import QUIET, tiny_llama

from torchmpo.finetune import PreferenceModule
from torchmpo.objectives.balance import RULES
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError

pytestmark = QUIET
TERMS = {"dual": "cpo+sft", "min_norm": "cpo+sft", "dynamic": "cpo+sft", "meta": "cpo+sft+orpo"}


def module_of(loss, **hyper):
    return PreferenceModule(tiny_llama(), loss, loss_args=hyper, lora=LORA, lr=1e-2)


def weights(module):
    named = module.policy.named_parameters()
    return {name: value.detach().clone() for name, value in named if value.requires_grad}


def assert_same(one, other):
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(other)[name], value, msg=name)


@pytest.mark.parametrize(
    ("rule", "hyper", "plain"),
    [
        ("dual", {"weight_lr": 0.0}, "cpo+sft"),
        ("dynamic", {"weight_lr": 0.0}, "0.5*cpo+0.5*sft"),
        ("meta", {"weight_lr": 0.0}, "0.5*cpo+0.5*sft"),
    ],
)
def test_weights_that_stay_are_those_of_the_plain_sum(rule, hyper, plain):
    balanced, same = module_of(f"{TERMS[rule]}@{rule}", **hyper), module_of(plain)
    fit(balanced)
    fit(same)
    assert_same(balanced, same)


def test_the_multiplier_follows_the_steps_of_an_accumulated_batch():
    """λ ← λ + lr·(NLL − κ), with the mean over the pairs of the step, in however many parts."""
    logs = []
    modules = [module_of("cpo+sft@dual", weight_lr=0.5, kappa=0.0) for _ in range(2)]
    for module, size, parts in zip(modules, (4, 2), (1, 2), strict=True):
        logs.append(Log())
        data = loader(batch_size=size)
        fit(module, data, callbacks=[logs[-1]], accumulate_grad_batches=parts)
    assert_same(*modules)
    whole, divided = ({s["weight/sft"] for s in log.steps if "weight/sft" in s} for log in logs)
    assert sorted(whole) == pytest.approx(sorted(divided))
    first = module_of("cpo+sft")
    batch = next(iter(loader()))
    nll = resolve("sft")(first.pair_logps(batch)).mean().item()
    assert sorted(whole)[:2] == pytest.approx([1.0, 1.0 + 0.5 * nll], rel=1e-3)


def test_gradients_of_both_terms_are_compared():
    """The first step's weight, against gradients that autograd gives of each term alone."""
    log, module = Log(), module_of("cpo+sft@min_norm")
    fit(module, callbacks=[log], epochs=1)
    batch, rows = next(iter(loader())), []
    for loss in ("cpo", "sft"):
        alone = module_of(loss)
        alone.policy.train()
        trained = [p for p in alone.policy.parameters() if p.requires_grad]
        alone.losses(alone.pair_logps(batch)).mean().backward()
        rows.append(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))
    first, second = rows
    alpha = ((second - first) @ second / (second - first).square().sum()).clamp(0, 1)
    assert log.steps[0]["weight/cpo"] == pytest.approx(alpha.item(), abs=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_goes_on_has_the_weights_it_had(rule, tmp_path):
    text = f"{TERMS[rule]}@{rule}"
    hyper = {} if rule == "min_norm" else {"weight_lr": 0.3}
    whole = module_of(text, **hyper)
    fit(whole)
    half = module_of(text, **hyper)
    fit(half, epochs=1, max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    rest = module_of(text, **hyper)
    fit(rest, ckpt_path=tmp_path / "half.ckpt")
    assert_same(whole, rest)


def test_parts_of_a_step_have_no_gradients_to_compare():
    with pytest.raises(UserError, match=r"each step has 2 parts: raise data\.batch_size"):
        fit(module_of("cpo+sft@min_norm"), accumulate_grad_batches=2)
