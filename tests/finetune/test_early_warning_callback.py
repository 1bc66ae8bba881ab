"""A training that spoils the chosen responses is warned of; one that learns them is not."""

import re
import warnings

import pytest

pytest.importorskip("lightning")

import test_samples
import torch
from test_module import DATA, LORA, fit, loader, rows, trained
from tiny_llm import QUIET, register_half_attention, tiny_llama
from torch.utils.data import DataLoader

from torchmpo.finetune import EarlyWarning, PreferenceModule
from torchmpo.finetune.__main__ import main
from torchmpo.runs.errors import UserError

pytestmark = QUIET
SAYS = r"step \d+: the chosen responses have become less likely, by .* nats per token"


def simpo():
    return PreferenceModule(tiny_llama(), "simpo", loss_args={"beta": 20.0}, lr=0.1)


def test_simpo_at_a_high_rate_is_warned_of_once_and_changes_no_bit():
    callback, module, alone = EarlyWarning(), simpo(), simpo()
    with pytest.warns(UserWarning, match=SAYS) as told:
        fit(module, epochs=4, callbacks=[callback])
    assert len([w for w in told if "less likely" in str(w.message)]) == 1
    steps, values = zip(*callback.chosen, strict=True)
    assert steps == tuple(range(9))  # eight steps, and the start
    assert values[-1] < values[0] - callback.threshold
    fit(alone, epochs=4)
    for name, value in trained(module).items():
        assert torch.equal(value, trained(alone)[name])


def test_it_is_silent_about_sft():
    callback = EarlyWarning(every_n_steps=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=SAYS)
        fit(PreferenceModule(tiny_llama(), "sft", lr=1e-3), epochs=4, callbacks=[callback])
    steps, values = zip(*callback.chosen, strict=True)
    assert steps == (0, 2, 4, 6, 8)
    assert values[-1] > values[0] + 0.1


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_it_measures_the_first_chosen_responses_without_dropout(loss):
    data = next(iter(loader()))
    rows = slice(0, 4)
    if loss == "kto":
        data = {k: v[:4] for k, v in data.items()} | {"desirable": torch.arange(4) % 2 == 0}
        rows = [0, 2]
    module = PreferenceModule(tiny_llama(attention_dropout=0.5), loss, lora=LORA)
    module.policy.eval()
    with torch.no_grad():
        logps = module.logps(data)[rows]
    counts = (data["labels"][rows, 1:] != -100).sum(-1)
    callback = EarlyWarning(1e9)
    one = DataLoader([0], collate_fn=lambda _: data)
    fit(module, one, epochs=1, callbacks=[callback])
    assert callback.chosen[0][1] == pytest.approx(float((logps.sum(-1) / counts).mean()), abs=1e-5)
    assert module.policy.training


def test_it_looks_in_the_precision_of_training():
    """So that an attention that knows no float32 can be watched, too."""
    model, callback = tiny_llama(), EarlyWarning(1e9, every_n_steps=1)
    model.set_attn_implementation(register_half_attention())
    fit(PreferenceModule(model, "sft"), epochs=1, precision="bf16-mixed", callbacks=[callback])
    assert len(callback.chosen) == 3


def test_a_run_that_goes_on_compares_with_its_start(tmp_path):
    first, then, path = EarlyWarning(1e9), EarlyWarning(1e9), tmp_path / "half.ckpt"
    fit(simpo(), epochs=2, callbacks=[first]).save_checkpoint(path)
    fit(simpo(), loader(), ckpt_path=path, epochs=4, callbacks=[then])
    assert then.chosen[: len(first.chosen)] == first.chosen
    assert then.chosen[-1][0] == 8
    for name, value in then._batches[0].items():
        assert torch.equal(value, next(iter(loader(DATA)))[name])


def test_a_run_of_two_processes_goes_on_in_one_with_the_batches_of_both():
    module, callback = PreferenceModule(tiny_llama(), "dpo", lora=LORA, lr=1e-12), EarlyWarning()
    one, two = rows(DATA, [0, 1, 2, 3, 4]), rows(DATA, [5, 6, 7])
    callback.load_state_dict({"chosen": [(0, 0.0)], "batches": [one, two], "warned": True})
    fit(module, epochs=1, callbacks=[callback])
    module.policy.eval()
    with torch.no_grad():
        means = module.logps(DATA).sum(-1)[:8] / (DATA["labels"][:8, 1:] != -100).sum(-1)
    assert callback.chosen[-1][1] == pytest.approx(float(means.mean()), abs=1e-5)


folder = test_samples.folder


def test_a_configuration_names_it(folder):
    callbacks = [{"class_path": "torchmpo.finetune.EarlyWarning", "init_args": {"threshold": 1e-9}}]
    path = test_samples.config(folder, callbacks)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert main(["fit", "--config", path, "--model.loss", "simpo", "--model.lr", "1"]) == 0
    assert any(re.match(SAYS, str(warning.message)) for warning in told)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threshold": 0.0}, "threshold must be positive"),
        ({"threshold": float("nan")}, "threshold must be positive"),
        ({"every_n_steps": 0}, "every_n_steps must be at least 1"),
    ],
)
def test_numbers_out_of_range(settings, words):
    with pytest.raises(UserError, match=words):
        EarlyWarning(**settings)
