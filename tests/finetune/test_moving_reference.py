"""A reference that moves, against a training with the references it should have had."""

import pytest
import torch

pytest.importorskip("lightning")

from lightning.pytorch import Trainer
from test_module import DATA, LORA, fit, loader
from tiny_llm import QUIET, save_tiny, tiny_llama, tiny_tokenizer

from torchmpo.finetune import MovingReference, PreferenceModule
from torchmpo.runs.errors import UserError

pytestmark = QUIET


def module_of(**settings):
    return PreferenceModule(tiny_llama(), "dpo", reference="copy", lr=1e-3, **settings)


def weights(module):
    named = module.policy.named_parameters()
    return {name: value.detach().clone() for name, value in named if value.requires_grad}


@pytest.mark.parametrize("settings", [{}, {"lora": LORA}], ids=["full", "lora"])
def test_it_becomes_the_policy(settings):
    module = module_of(**settings)
    fit(module, callbacks=[MovingReference(every_n_steps=1)])
    pair = module.pair_logps(DATA)
    torch.testing.assert_close(pair.chosen_logps, pair.ref_chosen_logps)
    still = module_of(**settings)
    fit(still)
    pair = still.pair_logps(DATA)
    assert (pair.chosen_logps - pair.ref_chosen_logps).abs().max() > 1e-3


def test_a_step_is_of_its_size():
    """After the last of so many steps: the mean of start and policy."""
    module, start = module_of(), weights(module_of())
    steps = 2 * len(loader())
    fit(module, callbacks=[MovingReference(every_n_steps=steps, mix=0.25)])
    own = dict(module.reference_policy.named_parameters())
    for name, value in weights(module).items():
        torch.testing.assert_close(own[name], 0.75 * start[name] + 0.25 * value)


@pytest.mark.parametrize("settings", [{}, {"lora": LORA}], ids=["full", "lora"])
def test_a_run_that_goes_on_has_the_reference_it_had(settings, tmp_path):
    every = len(loader())  # once an epoch
    whole = module_of(**settings)
    fit(whole, epochs=3, callbacks=[MovingReference(every)])
    half = module_of(**settings)
    trainer = fit(half, epochs=2, max_epochs=2, callbacks=[MovingReference(every)])
    path = tmp_path / "half.ckpt"
    trainer.save_checkpoint(path)
    rest = module_of(**settings)
    fit(rest, ckpt_path=path, epochs=3, callbacks=[MovingReference(every)])
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(rest)[name], value, msg=name)


@pytest.mark.parametrize("settings", [{}, {"lora": LORA}], ids=["full", "lora"])
def test_validation_of_a_checkpoint_has_the_reference_it_had(settings, tmp_path):
    path, every = tmp_path / "last.ckpt", 1 + len(loader())  # once, in the second epoch
    trainer = fit(module_of(**settings), callbacks=[MovingReference(every)])
    trainer.save_checkpoint(path)
    trainer.validate(dataloaders=loader(), ckpt_path=path, verbose=False)
    logged = dict(trainer.callback_metrics)
    assert abs(logged["val/displacement/chosen"]) > 1e-3
    again = Trainer(accelerator="cpu", logger=False, callbacks=[MovingReference(every)])
    again.validate(module_of(**settings), loader(), ckpt_path=path, verbose=False)
    for name, value in again.callback_metrics.items():
        torch.testing.assert_close(value, logged[name], msg=name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be at least 1"),
        ({"mix": 0.0}, r"mix must be in \(0"),
    ],
)
def test_numbers_out_of_range(settings, words):
    with pytest.raises(UserError, match=words):
        MovingReference(**settings)


def test_a_copy_of_a_trained_adapter_moves(tmp_path):
    """Training goes on with an adapter, and the reference begins as the model with it."""
    base = save_tiny(tmp_path / "base")
    before = PreferenceModule(str(base), "dpo", lora=LORA, lr=1e-2)
    fit(before)
    before.save(tmp_path / "adapter", tiny_tokenizer())
    module = PreferenceModule(str(tmp_path / "adapter"), "dpo", reference="copy", lr=1e-2)
    assert any(value.any() for name, value in weights(module).items() if "lora_B" in name)
    fit(module, callbacks=[MovingReference(every_n_steps=1)])
    pair = module.pair_logps(DATA)
    torch.testing.assert_close(pair.chosen_logps, pair.ref_chosen_logps)


def test_only_a_copy_moves():
    module = PreferenceModule(tiny_llama(), "dpo", lora=LORA)  # adapters are switched off for it
    with pytest.raises(UserError, match="needs reference: copy"):
        fit(module, callbacks=[MovingReference()])
