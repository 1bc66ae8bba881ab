"""Fine-tuning: the right numbers reach the loss, and how work is divided changes nothing."""

import copy
import math

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _load
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from tiny_llm import (
    QUIET,
    SIZES,
    save_tiny,
    tiny_batch,
    tiny_gemma,
    tiny_gemma2,
    tiny_llama,
    tiny_pairs,
    tiny_tokenizer,
)
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedTokenizerFast,
)

from torchmpo.finetune.data import PreferenceData
from torchmpo.finetune.models import (
    LoraSettings,
    TokenLogps,
    check_tokenizer,
    export_merged,
    load_model,
    load_tokenizer,
    model_digest,
)
from torchmpo.finetune.module import PreferenceModule
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.errors import UserError

pytestmark = QUIET
LORA = LoraSettings(r=4, alpha=8.0)
DATA = tiny_batch(pairs=8)


def rows(batch, pairs):
    """The batch of some of the pairs."""
    count, pairs = len(batch["index"]), torch.as_tensor(pairs)
    both = torch.cat([pairs, pairs + count])
    return {k: v[both] if len(v) == 2 * count else v[pairs] for k, v in batch.items()}


def loader(data=DATA, batch_size=4):
    count = len(data["index"])
    return DataLoader(range(count), batch_size, collate_fn=lambda items: rows(data, items))


def fit(module, data=None, ckpt_path=None, *, epochs=2, callbacks=(), **settings):
    trainer = Trainer(
        max_epochs=settings.pop("max_epochs", epochs),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        callbacks=list(callbacks),
        **settings,
    )
    trainer.fit(module, data or loader(), ckpt_path=ckpt_path)
    return trainer


class Log(Callback):
    """What was logged in every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        values = {k: float(v) for k, v in trainer.logged_metrics.items()}
        if values and (trainer.global_step > len(self.steps)):
            self.steps.append(values)


def trained(module):
    return {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}


def assert_close(a, b, atol=1e-6):
    assert a
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol, msg=name)


def dense_logps(model, batch):
    """Token log-probabilities the plain way, in float64 from the model's own logits."""
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logps = logits.double().log_softmax(-1)
    out = torch.zeros(batch["labels"][:, 1:].shape, dtype=torch.float64)
    for i, row in enumerate(batch["labels"].tolist()):
        for t, label in enumerate(row[1:]):
            if label != -100:
                out[i, t] = logps[i, t, label]
    return out


# Log-probabilities


@pytest.mark.parametrize(
    ("model", "fused"),
    [
        (tiny_llama(), True),
        (tiny_llama(tie_word_embeddings=True), True),
        (tiny_gemma(), True),
        (tiny_gemma2(), True),
    ],
    ids=["llama", "tied", "gemma", "gemma2"],
)
def test_token_logps_are_those_of_the_models_logits(model, fused):
    policy = TokenLogps(model)
    logps = policy(DATA["input_ids"], DATA["attention_mask"], DATA["labels"])
    torch.testing.assert_close(logps.double(), dense_logps(model, DATA), rtol=1e-5, atol=1e-5)
    assert policy.fused is fused


def test_a_head_that_scales_its_logits_takes_the_plain_path():
    torch.manual_seed(0)
    config = GraniteConfig(vocab_size=320, logits_scaling=4.0, initializer_range=0.2, **SIZES)
    model = GraniteForCausalLM(config).eval()
    policy = TokenLogps(model)
    with pytest.warns(UserWarning, match="GraniteForCausalLM does more to its logits"):
        logps = policy(DATA["input_ids"], DATA["attention_mask"], DATA["labels"])
    assert policy.fused is False
    torch.testing.assert_close(logps.double(), dense_logps(model, DATA), rtol=1e-5, atol=1e-5)


def test_padding_and_the_other_side_of_a_pair_change_nothing():
    module = PreferenceModule(tiny_llama(), "sft")
    whole = module.logps(DATA).sum(-1)
    for i in range(16):
        length = int(DATA["attention_mask"][i].sum())
        alone = {k: DATA[k][i : i + 1, :length] for k in ("input_ids", "attention_mask", "labels")}
        torch.testing.assert_close(module.logps(alone).sum(-1)[0], whole[i], rtol=0, atol=2e-4)


def test_a_loss_gets_exactly_what_it_names():
    seen = {}

    def greedy(
        chosen_logps,
        rejected_mean_logps,
        ref_rejected_mean_logps,
        rejected_lengths,
        chosen_step_logps,
        chosen_mask,
        chosen_rewards,
        progress,
    ):
        seen.update(locals())
        return chosen_logps

    model = tiny_llama()
    other = tiny_llama(seed=3)
    module = PreferenceModule(model, greedy, reference="copy")
    module.reference_policy = TokenLogps(other)
    module.progress = lambda: 0.25
    batch = DATA | {"chosen_rewards": torch.arange(8).double()}
    module.losses(module.pair_logps(batch))
    expected, ref = dense_logps(model, DATA), dense_logps(other, DATA)
    lengths = (DATA["labels"] != -100).sum(1)
    assert set(seen) - {"seen"} == set(module.objective.inputs)
    close = {"rtol": 1e-4, "atol": 1e-4, "check_dtype": False}
    torch.testing.assert_close(seen["chosen_logps"], expected[:8].sum(1), **close)
    torch.testing.assert_close(
        seen["rejected_mean_logps"], expected[8:].sum(1) / lengths[8:], **close
    )
    torch.testing.assert_close(
        seen["ref_rejected_mean_logps"], ref[8:].sum(1) / lengths[8:], **close
    )
    assert seen["rejected_lengths"].tolist() == lengths[8:].tolist()
    torch.testing.assert_close(seen["chosen_step_logps"], expected[:8], **close)
    assert seen["chosen_mask"].sum(1).tolist() == lengths[:8].tolist()
    assert seen["chosen_rewards"].tolist() == list(range(8))
    assert seen["progress"].item() == 0.25


def test_one_forward_for_both_sides():
    module, calls = PreferenceModule(tiny_llama(), "orpo"), []
    module.logps(DATA)  # the trial of the head is behind us
    module.policy.model.model.register_forward_hook(lambda *_: calls.append(1))
    module.pair_logps(DATA)
    assert len(calls) == 1


def test_a_sum_of_losses_and_another_divergence_train_like_any_loss():
    pair = PreferenceModule(tiny_llama(), "rpo", lora=LORA).pair_logps(DATA)
    both = PreferenceModule(tiny_llama(), "dpo+0.5*sft", loss_args={"dpo_beta": 0.3}, lora=LORA)
    rpo = PreferenceModule(tiny_llama(), "rpo", loss_args={"beta": 0.3, "sft_coef": 0.5}, lora=LORA)
    torch.testing.assert_close(both.losses(pair), rpo.losses(pair))
    assert both.reference == "adapter_off"
    assert PreferenceModule(tiny_llama(), "hinge_dpo@js", lora=LORA).losses(pair).shape == (8,)


def test_a_pair_without_the_scores_of_a_loss_is_found_before_training():
    rows = [row | {"chosen_reward": 1.0, "rejected_reward": 0.0} for row in tiny_pairs(8)]
    rows[6]["chosen_reward"] = rows[6]["rejected_reward"] = None
    data = PreferenceData(rows, tokenizer=tiny_tokenizer(), batch_size=1)
    module = PreferenceModule(tiny_llama(), "margin_dpo", lora=LORA)
    with pytest.raises(
        UserError, match=r"data\.train: margin_dpo .* 1 of 8 .*_reward.* pair 6 \('"
    ):
        fit(module, data)
    fit(PreferenceModule(tiny_llama(), "dpo", lora=LORA), data, epochs=1)  # reads none


def test_missing_data_for_a_loss_are_named():
    module = PreferenceModule(tiny_llama(), "margin_dpo", lora=LORA)
    with pytest.raises(UserError, match="the data have no chosen_rewards, rejected_rewards"):
        module.losses(module.pair_logps(DATA))


# The start


@pytest.mark.parametrize("reference", ["adapter_off", "copy", "cache"])
def test_untrained_lora_is_its_reference_and_dpo_starts_at_ln_2(reference):
    log, model = Log(), tiny_llama()
    data = DATA
    if reference == "cache":
        data = DATA | {"ref_logps": dense_logps(model, DATA).sum(1).float()}
    module = PreferenceModule(model, "dpo", lora=LORA, reference=reference, lr=1e-2)
    fit(module, loader(data), callbacks=[log])
    first = log.steps[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    for name in ("rewards/chosen", "rewards/margins", "displacement/chosen"):
        assert abs(first[name]) < 1e-4
    assert log.steps[-1]["loss"] < first["loss"] - 0.01
    assert log.steps[-1]["rewards/margins"] > 0.01


def test_full_training_takes_a_frozen_copy_for_its_reference():
    module = PreferenceModule(tiny_llama(), "dpo", lr=1e-3)
    before = {n: p.clone() for n, p in module.reference_policy.named_parameters()}
    log = Log()
    fit(module, callbacks=[log])
    assert module.reference == "copy"
    assert log.steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert log.steps[-1]["loss"] < log.steps[0]["loss"]
    assert_close(before, dict(module.reference_policy.named_parameters()), atol=0)


def test_a_reference_of_another_model_is_noticed_before_the_first_step():
    wrong = dense_logps(tiny_llama(seed=9), DATA).sum(1).float()
    module = PreferenceModule(tiny_llama(), "dpo", lora=LORA, reference="cache")
    before = trained(module)
    with pytest.raises(UserError, match="before the first step, policy and reference"):
        fit(module, loader(DATA | {"ref_logps": wrong}))
    assert_close(before, trained(module), atol=0)


@pytest.mark.parametrize(
    ("model", "own_tokens", "words"),
    [
        ({}, False, None),
        ({"vocab": 200}, False, "ids up to 309, the model embeds 200"),
        ({"max_position_embeddings": 8}, False, "the model is made for 8"),
        ({}, True, r"another vocabulary than the data's tokenizer \("),
    ],
    ids=["same", "small", "short", "family"],
)
def test_a_reference_of_another_family_is_refused_before_training(
    model, own_tokens, words, tmp_path
):
    tokenizer = theirs = tiny_tokenizer()
    if own_tokens:
        words_only = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="</s>"))
        theirs = PreTrainedTokenizerFast(tokenizer_object=words_only, eos_token="</s>")
    folder = save_tiny(tmp_path / "other", tiny_llama(seed=5, **model), theirs)
    data = PreferenceData(tiny_pairs(4), tokenizer=tokenizer, batch_size=4)
    module = PreferenceModule(tiny_llama(), "dpo", lora=LORA, reference=str(folder))
    if words is None:
        fit(module, data, epochs=1)
        return
    with pytest.raises(UserError, match=rf"model\.reference .*other.*{words}"):
        fit(module, data, epochs=1)
    assert module.global_step == 0


def test_another_model_may_be_the_reference_on_purpose(tmp_path):
    folder = save_tiny(tmp_path / "other", tiny_llama(seed=9))
    module = PreferenceModule(tiny_llama(), "dpo", lora=LORA, reference=str(folder))
    expected = dense_logps(tiny_llama(seed=9), DATA).sum(1)
    close = {"rtol": 1e-5, "atol": 1e-3, "check_dtype": False}
    torch.testing.assert_close(module.reference_logps(DATA), expected, **close)
    fit(module, epochs=1)


def test_a_base_that_is_trained_is_no_reference():
    model = PreferenceModule(tiny_llama(), "sft", lora=LORA).policy.model
    model.base_model.model.model.norm.weight.requires_grad_(True)
    with pytest.raises(UserError, match=r"adapter_off needs a frozen base, but .*norm.weight"):
        PreferenceModule(model, "dpo")
    assert PreferenceModule(model, "dpo", reference="copy").reference == "copy"


def test_dropout_is_on_in_training_and_off_in_the_reference_and_validation():
    class Seen(Callback):
        def on_validation_batch_start(self, trainer, module, *_):
            assert not module.policy.training

        def on_train_batch_start(self, trainer, module, *_):
            assert all(m.training for m in module.policy.modules())
            assert not any(m.training for m in module.reference_policy.modules())

    dropout = LoraSettings(r=4, alpha=8.0, dropout=0.5)
    module = PreferenceModule(tiny_llama(), "dpo", lora=dropout, reference="copy", lr=1e-2)
    fit(module, callbacks=[Seen()])
    module.policy.train()
    assert not torch.equal(module.logps(DATA), module.logps(DATA))
    assert torch.equal(module.reference_logps(DATA), module.reference_logps(DATA))
    assert module.policy.training
    # Some models have dropout of their own.
    adapter_off = PreferenceModule(tiny_llama(attention_dropout=0.5), "dpo", lora=dropout)
    adapter_off.policy.train()
    assert not torch.equal(adapter_off.logps(DATA), adapter_off.logps(DATA))
    assert torch.equal(adapter_off.reference_logps(DATA), module.reference_logps(DATA))
    assert adapter_off.policy.training


def test_dropout_differs_between_steps_and_not_between_runs():
    same = {k: v[:1].repeat(8, 1) if v.dim() > 1 else v for k, v in DATA.items()}
    same = {k: v.repeat(2, 1) if v.dim() > 1 else v for k, v in same.items()}

    def losses(seed):
        log = Log()
        model = tiny_llama(attention_dropout=0.5)
        module = PreferenceModule(model, "sft", lora=LORA, lr=1e-12, seed=seed)
        fit(module, loader(same), callbacks=[log])
        return [step["loss"] for step in log.steps]

    assert len(set(losses(0))) == 4
    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


# Training


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_accumulated_gradients_are_those_of_one_large_batch(lora):
    results = []
    for batch_size, parts in ((4, 1), (2, 2), (1, 4)):
        log = Log()
        module = PreferenceModule(tiny_llama(), "simpo", lora=lora, lr=1e-3, schedule="linear")
        fit(
            module,
            loader(batch_size=batch_size),
            accumulate_grad_batches=parts,
            callbacks=[log],
            gradient_clip_val=0.5,
        )
        assert len(log.steps) == 4
        results.append((trained(module), log.steps))
    for weights, steps in results[1:]:
        # Adam divides by the gradient's size: what is next to zero may differ by more.
        assert_close(weights, results[0][0], atol=2e-6)
        for mine, whole in zip(steps, results[0][1]):
            assert mine == pytest.approx(whole, rel=2e-4, abs=2e-5)


@pytest.mark.parametrize("batches", [[4], [4, 4, 1]], ids=["fewer", "uneven"])
def test_a_step_of_fewer_pairs_is_their_mean(batches):
    """The last step of an epoch, or of a loader that gives its last pairs as a smaller batch."""
    count = sum(batches)
    data = rows(tiny_batch(pairs=9), range(count))
    log, module = Log(), PreferenceModule(tiny_llama(), "sft", lora=LORA, lr=1e-3)
    module.policy.train()
    loss = module.losses(module.pair_logps(data)).mean()
    loss.backward()
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    module.zero_grad()
    fit(module, loader(data), epochs=1, accumulate_grad_batches=4, callbacks=[log])
    assert len(log.steps) == 1
    assert log.steps[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert log.steps[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)


def moved(dtype, lr=5e-7, **settings):
    """The share of all weights that 20 steps of full training change."""
    model = tiny_llama().bfloat16().to(dtype)
    before = copy.deepcopy(model)
    module = PreferenceModule(model, "sft", lr=lr, **settings)
    fit(module, epochs=10)
    pairs = zip(module.policy.model.parameters(), before.parameters(), strict=True)
    changed = [(a != b).float().flatten() for a, b in pairs]
    return torch.cat(changed).mean().item()


def test_full_training_of_a_bfloat16_checkpoint_moves_what_float32_moves(tmp_path):
    folder = save_tiny(tmp_path / "half", tiny_llama().bfloat16())
    module = PreferenceModule(str(folder), "sft", lr=5e-7)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    fit(module, epochs=10)
    before = load_model(folder).float()
    pairs = zip(module.policy.model.parameters(), before.parameters(), strict=True)
    share = torch.cat([(a != b).float().flatten() for a, b in pairs]).mean().item()
    assert share == pytest.approx(moved(torch.float32), abs=0.01)
    assert share > 0.5
    # the same at the speed of bfloat16
    log = Log()
    fit(PreferenceModule(str(folder), "dpo", lr=1e-3), callbacks=[log], precision="bf16-mixed")
    assert log.steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert log.steps[-1]["loss"] < log.steps[0]["loss"]


def test_training_in_bfloat16_is_refused(tmp_path):
    folder = str(save_tiny(tmp_path / "half", tiny_llama().bfloat16()))
    with pytest.raises(UserError, match="in bfloat16 small steps are lost: load them in float32"):
        PreferenceModule(folder, "sft", dtype="bfloat16")
    with pytest.raises(UserError, match="in bfloat16 small steps are lost"):
        PreferenceModule(tiny_llama().bfloat16(), "sft")
    for lora in (LORA, None):
        module = PreferenceModule(folder, "sft", lora=lora)
        with pytest.raises(UserError, match=r"would be trained in bfloat16.* bf16-mixed"):
            fit(module, precision="bf16-true")


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_in_the_same_bits(tmp_path):
    def module():
        lora = LoraSettings(r=4, alpha=8.0, dropout=0.2)
        return PreferenceModule(
            tiny_llama(), "dpo", lora=lora, lr=1e-2, schedule="cosine", warmup=0.3
        )

    whole = module()
    fit(whole, epochs=3)
    cut = module()
    # At the end of each epoch: the third one, cut short, starts anew.
    with pytest.raises(SystemExit):
        fit(cut, epochs=3, callbacks=[ModelCheckpoint(tmp_path, "last"), StopAt(5)])
    resumed = module()
    again = ModelCheckpoint(tmp_path, "last")
    trainer = fit(resumed, epochs=3, ckpt_path=tmp_path / "last.ckpt", callbacks=[again])
    assert trainer.global_step == 6
    assert_close(trained(whole), trained(resumed), atol=0)


def test_a_checkpoint_is_small_and_holds_plain_values_only(tmp_path):
    saved = ModelCheckpoint(dirpath=tmp_path, filename="last")
    module = PreferenceModule(
        tiny_llama(), MirrorObjective(temporal=True), lora=LORA, schedule="linear"
    )
    fit(module, callbacks=[saved])
    checkpoint = _load(tmp_path / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == set(trained(module))
    assert all(".lora_" in name for name in checkpoint["state_dict"])
    other = PreferenceModule(tiny_llama(), "sft", lora=LoraSettings(r=4, targets=["q_proj"]))
    with pytest.raises(UserError, match="made with other settings of model or lora"):
        fit(other, ckpt_path=tmp_path / "last.ckpt", callbacks=[ModelCheckpoint(tmp_path)])


def test_a_temporal_loss_is_told_how_far_training_is():
    seen = []

    def timed(chosen_logps, progress):
        seen.append(progress.item())
        return -chosen_logps

    module = PreferenceModule(tiny_llama(), timed, lora=LORA)
    fit(module, loader(batch_size=2), accumulate_grad_batches=2)
    # Twice a trial call of the loss, then two micro-batches in each of four steps.
    assert seen[-8:] == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


@pytest.mark.parametrize("length", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 4}])
def test_validation_is_told_how_far_training_was(tmp_path, length):
    def timed(chosen_logps, progress):
        return -chosen_logps * (1 + progress)

    def module():
        return PreferenceModule(tiny_llama(), timed, lora=LORA)

    def validated(module, trainer=None, path=None):
        trainer = trainer or Trainer(**quiet)
        return trainer.validate(module, loader(), ckpt_path=path, verbose=False)[0]["val/loss"]

    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False} | length
    first, trainer, path = module(), Trainer(**quiet), tmp_path / "last.ckpt"
    trainer.fit(first, loader(), loader())
    loss = pytest.approx(float(trainer.callback_metrics["val/loss"]))
    trainer.save_checkpoint(path)
    assert validated(module(), path=path) == loss
    assert validated(first, trainer) == validated(first) == loss
    old = _load(path, weights_only=True)
    del old["torchmpo"]["progress"]
    TorchCheckpointIO().save_checkpoint(old, path)
    with pytest.raises(UserError, match="does not say it: it is of an older version"):
        validated(module(), path=path)


def test_a_learned_loss_is_not_trained_and_not_touched():
    objective = MirrorObjective(steps="two", temporal=True)
    module = PreferenceModule(tiny_llama(), objective, lora=LORA, lr=1e-2)
    fit(module, epochs=1)
    assert objective.vector.requires_grad
    assert module.objective.vector.abs().sum() == 0
    assert not any("objective" in name for name in trained(module))


def test_autocast_does_not_round_a_loss():
    def product(chosen_logps):
        return chosen_logps @ torch.eye(len(chosen_logps))

    module = PreferenceModule(tiny_llama(), product)
    pair = module.pair_logps(DATA)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module.losses(pair), pair.chosen_logps)


def test_schedules():
    module = PreferenceModule(tiny_llama(), "sft", warmup=0.2, schedule="cosine")
    rates = [module._rate(step, 10) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(0.0)
    module.schedule = "linear"
    assert [module._rate(s, 10) for s in (2, 6, 10)] == pytest.approx([1.0, 0.5, 0.0])
    module.schedule = "constant"
    assert module._rate(9, 10) == 1.0


def test_the_logged_rate_is_the_schedules():
    log = Log()
    module = PreferenceModule(tiny_llama(), "sft", lora=LORA, lr=1.0e-3, warmup=0.5)
    fit(module, callbacks=[log])
    assert [s["lr"] for s in log.steps] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3])


def test_validation_metrics_are_means_over_all_pairs():
    module = PreferenceModule(tiny_llama(), "dpo", lora=LORA)
    with torch.no_grad():
        module.policy.model.base_model.model.model.layers[0].self_attn.q_proj.lora_B[
            "default"
        ].weight.normal_()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    (uneven,) = trainer.validate(module, loader(batch_size=3), verbose=False)
    (whole,) = trainer.validate(module, loader(batch_size=8), verbose=False)
    assert uneven == pytest.approx(whole, rel=1e-4, abs=1e-5)
    assert {"val/loss", "val/rewards/accuracies", "val/logps/chosen"} <= uneven.keys()
    assert abs(uneven["val/rewards/chosen"]) > 1e-3


def test_activation_checkpointing_changes_no_gradient():
    def gradients(**settings):
        module = PreferenceModule(tiny_llama(), "cpo", lora=LORA, **settings)
        module.policy.train()
        module.losses(module.pair_logps(DATA)).sum().backward()
        return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}

    assert_close(gradients(), gradients(activation_checkpointing=True), atol=1e-5)


def test_low_precision_base_with_float32_adapters_trains():
    log = Log()
    module = PreferenceModule(tiny_llama().bfloat16(), "dpo", lora=LORA, lr=1e-2)
    fit(module, callbacks=[log], precision="bf16-mixed")
    assert {p.dtype for p in trained(module).values()} == {torch.float32}
    assert log.steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log.steps[-1]["loss"] < log.steps[0]["loss"]


# What is refused


def nan_in_third_call():
    calls = []

    def broken(chosen_logps):
        calls.append(1)
        return chosen_logps * (math.nan if len(calls) == 1 + 3 else 1.0)

    return broken


def test_a_nan_loss_stops_and_names_the_pairs_and_the_checkpoint(tmp_path):
    saved = ModelCheckpoint(
        dirpath=tmp_path, filename="last", every_n_train_steps=1, enable_version_counter=False
    )
    module = PreferenceModule(tiny_llama(), nan_in_third_call(), lora=LORA)
    with pytest.raises(UserError, match=r"the loss is nan in epoch 1, batch 0 .pairs 0, 1, 2, 3;"):
        fit(module, callbacks=[saved])
    checkpoint = _load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert_close(checkpoint["state_dict"], trained(module), atol=0)


def test_a_nan_gradient_stops_before_it_reaches_the_weights():
    def kinked(chosen_logps):
        return (chosen_logps - chosen_logps).abs().sqrt()  # 0, with a gradient of 0·∞

    module = PreferenceModule(tiny_llama(), kinked, lora=LORA)
    before = trained(module)
    with pytest.raises(UserError, match=r"the gradient's norm is nan in epoch 0, batch 0"):
        fit(module)
    assert_close(before, trained(module), atol=0)


def test_coupled_losses_are_refused_under_accumulation():
    def module(**settings):
        return PreferenceModule(tiny_llama(), "aot", lora=LORA, **settings)

    with pytest.raises(UserError, match="aot couples the pairs of a batch"):
        fit(module(), accumulate_grad_batches=2)
    fit(module(), epochs=1)
    fit(module(allow_coupled=True), epochs=1, accumulate_grad_batches=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "simp"}, "unknown loss 'simp': did you mean 'simpo'?"),
        ({"loss": "simpo", "loss_args": {"bta": 1}}, "no hyper-parameter 'bta'"),
        ({"reference": "adapter_of"}, "unknown reference 'adapter_of': did you mean 'adapter_off'"),
        ({"reference": "adapter_off"}, "adapter_off needs adapters"),
        ({"lora": LoraSettings(targets=["q_prj"])}, r"linear layers are .*q_proj"),
        ({"lora": LoraSettings(targets=["lm_head"])}, "LM head are not supported"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"warmup": 10}, "warmup is a share"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
    ],
)
def test_mistakes_are_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        PreferenceModule(tiny_llama(), **({"loss": "dpo"} | settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", [{"r": 0}, {"alpha": 0}, {"dropout": 1.0}, {"targets": []}])
def test_lora_settings_out_of_range(setting):
    with pytest.raises(UserError, match=f"lora.{next(iter(setting))}"):
        LoraSettings(**setting)


def test_lora_settings_as_a_dict():
    module = PreferenceModule(tiny_llama(), "sft", lora={"r": 2, "targets": ["q_proj"]})  # pyright: ignore[reportArgumentType]
    assert module.policy.model.peft_config["default"].r == 2
    for given, message in (({"rank": 2}, "lora has no 'rank'"), (8, "lora must be LoraSettings")):
        with pytest.raises(UserError, match=message):
            PreferenceModule(tiny_llama(), "sft", lora=given)  # pyright: ignore[reportArgumentType]


def test_folders_without_a_model_are_one_line(tmp_path):
    for folder, message in (
        (tmp_path / "none", "there is no folder"),
        (tmp_path, "config.json is missing"),
    ):
        with pytest.raises(UserError, match=message):
            load_model(str(folder))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(UserError, match=r"holds no \*.safetensors"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="unknown dtype 'float8'"):
        load_model(tmp_path, dtype="float8")
    with pytest.raises(UserError, match="no readable tokenizer"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_another_model_is_noticed():
    check_tokenizer(tiny_llama(), tiny_tokenizer())
    with pytest.raises(UserError, match="do not belong together"):
        check_tokenizer(tiny_llama(vocab=100), tiny_tokenizer())


# Saving


def test_an_adapter_loads_with_peft_and_its_merged_model_with_transformers(tmp_path):
    import peft

    base = save_tiny(tmp_path / "base")
    module = PreferenceModule(str(base), "orpo", lora=LORA, lr=1e-2)
    fit(module)
    module.save(tmp_path / "adapter", tiny_tokenizer())
    module.policy.eval()
    expected = module.logps(DATA)
    assert not torch.allclose(expected.double(), dense_logps(tiny_llama(), DATA), atol=0.1)
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names

    again = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    again = peft.PeftModel.from_pretrained(again, tmp_path / "adapter")
    close = {"rtol": 1e-5, "atol": 1e-4, "check_dtype": False}
    torch.testing.assert_close(dense_logps(again, DATA), expected, **close)

    export_merged(tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(dense_logps(merged, DATA), expected, **close)
    assert load_tokenizer(tmp_path / "merged").get_vocab() == tiny_tokenizer().get_vocab()
    with pytest.raises(UserError, match="is not empty"):
        export_merged(tmp_path / "adapter", tmp_path / "merged")
    with pytest.raises(UserError, match="holds no adapter"):
        export_merged(base, tmp_path / "more")


def test_training_can_go_on_from_an_adapter(caplog):
    first = PreferenceModule(tiny_llama(), "sft", lora=LORA, lr=1e-2)
    fit(first, epochs=1)
    with caplog.at_level("INFO"):
        second = PreferenceModule(first.policy.model, "dpo")
    assert second.reference == "adapter_off"
    assert "the base model without the adapter that training begins with" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        PreferenceModule(tiny_llama(), "dpo", lora=LORA)
        PreferenceModule(first.policy.model, "dpo", reference="adapter_off")
    assert "reference" not in caplog.text
    fit(second, epochs=1)  # D is not 0 here, and that is no mistake
    with pytest.raises(UserError, match="has adapters already"):
        PreferenceModule(first.policy.model, "dpo", lora=LORA)


def test_the_digest_of_a_model_is_of_its_weights_and_settings():
    model = tiny_llama()
    digest = model_digest(model)
    assert digest == model_digest(tiny_llama())
    assert digest != model_digest(tiny_llama(seed=1))
    assert digest != model_digest(copy.deepcopy(model).bfloat16())
    assert digest == model_digest(PreferenceModule(tiny_llama(), "sft", lora=LORA).policy.model)
    model.config.rms_norm_eps = 1e-3
    assert digest != model_digest(model)


def test_another_model_as_reference_is_as_precise_as_the_policy(tmp_path):
    """All weights are trained in float32; in bfloat16 the same model would be another one."""
    folder = save_tiny(tmp_path / "half", tiny_llama().bfloat16())
    module = PreferenceModule(folder, "dpo", reference=str(folder))
    assert {p.dtype for p in module.reference_policy.parameters()} == {torch.float32}
    pair = module.pair_logps(tiny_batch())
    assert torch.equal(pair.chosen_logps, pair.ref_chosen_logps)
