"""`trl_trainer` in TRL 1.16: its losses are TRL's own, and those that TRL does not have train.

``make test-trl`` installs TRL in an environment of its own and runs this folder there.
"""

import json
import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_llm import save_tiny, tiny_pairs, tiny_tokenizer
from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer

from experiments.llm.train_with_trl import main
from torchmpo import MirrorObjective
from torchmpo.adapters import early_warning, trl_signature, trl_trainer
from torchmpo.runs.errors import UserError

STEPS = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"))


def trained(trainer, base, folder, *, lora=False, pairs=12, **settings):
    """What TRL logged in each step, and the trainer."""
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
    } | settings
    args = DPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    made = trainer(
        str(base),
        args=args,
        train_dataset=Dataset.from_list(tiny_pairs(pairs)),
        eval_dataset=Dataset.from_list(tiny_pairs(4, seed=1)),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
    )
    made.train()
    return [row for row in made.state.log_history if "loss" in row], made


COMPARED = ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/chosen")


@pytest.mark.parametrize(
    ("name", "hyper", "theirs"),
    [
        ("dpo", {"beta": 0.3}, {"loss_type": ["sigmoid"], "beta": 0.3}),
        ("hinge_dpo", {"beta": 0.3}, {"loss_type": ["hinge"], "beta": 0.3}),
        ("ipo", {"beta": 0.5}, {"loss_type": ["ipo"], "beta": 0.5}),
    ],
)
@pytest.mark.parametrize("way", ["full", "lora", "precomputed", "logits"])
def test_steps_are_those_of_trl(name, hyper, theirs, way, base, tmp_path, monkeypatch):
    settings = {"lora": way == "lora", "precompute_ref_log_probs": way == "precomputed"}
    want, reference = trained(DPOTrainer, base, tmp_path / "a", **settings, **theirs)
    made = trl_trainer(name, **hyper)
    if way == "logits":  # TRL before 1.15 has no fused head
        with monkeypatch.context() as context:
            context.delattr(dpo_trainer, "add_fused_lm_head")
            made = trl_trainer(name, **hyper)
    got, trainer = trained(made, base, tmp_path / "b", **settings)
    assert len(got) == len(want) == STEPS
    for ours, row in zip(got, want, strict=True):
        for key in COMPARED:
            # Implicit rewards of a loss of means are means; TRL's logs have sums. And whether 0 is
            # above 0 is rounding where the policy takes another path than the reference.
            skipped = name == "ipo" or (way == "logits" and key == "rewards/accuracies")
            if not (skipped and key.startswith("rewards")):
                assert ours[key] == pytest.approx(row[key], rel=1e-4, abs=1e-5), key
    weights = reference.model.state_dict()
    for key, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, weights[key], rtol=1e-3, atol=1e-4)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        reference.evaluate()["eval_loss"], rel=1e-3, abs=1e-4
    )


def test_dpo_begins_at_ln_2_and_gives_logits_where_they_are_asked_for(base, tmp_path):
    got, trainer = trained(trl_trainer("dpo"), base, tmp_path, learning_rate=1e-3, pairs=4)
    assert got[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert got[-1]["loss"] < 0.6
    value, out = trainer.compute_loss(
        trainer.model, next(iter(trainer.get_eval_dataloader())), return_outputs=True
    )
    assert out.logits.shape[-1] == 320
    assert value.isfinite()


@pytest.mark.parametrize(
    ("loss", "hyper"),
    [
        ("simpo", {"beta": 2.0}),
        ("cpo", {}),
        ("tla_noisy", {}),
        (MirrorObjective(steps="two", temporal=True), {}),
    ],
)
def test_losses_that_trl_does_not_have_train(loss, hyper, base, tmp_path):
    got, trainer = trained(
        trl_trainer(loss, **hyper), base, tmp_path, max_steps=12, learning_rate=3e-3, pairs=4
    )
    assert got[-1]["loss"] < got[0]["loss"]
    assert trainer.ref_model is None or "two" in type(trainer)._name


def test_the_old_recipe_is_refused_where_it_would_be_ignored():
    with pytest.raises(UserError, match=r"TRL 1\.16\.0 never calls a dpo_loss: use .*trl_trainer"):
        trl_signature("dpo", beta=0.1)
    x = torch.tensor([-20.0])
    assert trl_signature("dpo", trl=False)(x, x, x, x)[0].item() == pytest.approx(0.693147)


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        ("dpo", {"beta": 0.5}, "beta belongs to TRL's own losses"),
        ("dpo", {"loss_type": ["ipo"]}, "loss_type belongs to TRL's own losses"),
        ("dpo", {"ld_alpha": 0.5}, "ld_alpha belongs to TRL's own losses"),
        ("aot", {}, "aot.* couples the pairs of a batch, and each of the 2 parts"),
    ],
)
def test_settings_that_would_change_nothing_are_refused(loss, settings, message, base, tmp_path):
    with pytest.raises(UserError, match=message):
        trained(trl_trainer(loss), base, tmp_path, **settings)


def test_a_loss_of_scores_is_refused():
    with pytest.raises(UserError, match=r"margin_dpo needs .*, which TRL's batches do not carry"):
        trl_trainer("margin_dpo")


def test_the_example_trains(base, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in tiny_pairs(8)))
    words = ["--model", str(base), "--pairs", str(pairs), "--out", str(tmp_path / "out")]
    trainer = main([*words, "--lora", "--cpu", "--max_steps", "2", "--lr", "0.01"])
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert "rewards/margins" in trainer.state.log_history[0]


@pytest.mark.parametrize("make", [lambda: DPOTrainer, lambda: trl_trainer("simpo", beta=20.0)])
@pytest.mark.parametrize("rate", [0.3, 1e-6])
def test_chosen_responses_that_become_unlikely_are_warned_of(make, rate, base, tmp_path):
    def trainer(*args, **kwargs):
        return make()(*args, **kwargs, callbacks=[early_warning(window=2)])

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trained(trainer, base, tmp_path, learning_rate=rate, max_steps=12)
    said = [w for w in told if "the chosen responses have become less likely" in str(w.message)]
    assert len(said) == (rate > 0.1)
