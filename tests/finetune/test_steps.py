"""What a loss may ask for of single tokens: the reference's, divergences, collisions, a cache."""

import pytest
import torch

pytest.importorskip("lightning")

from safetensors.torch import load_file
from test_module import DATA, LORA, dense_logps, fit, loader
from tiny_llm import QUIET, tiny_llama, tiny_pairs, tiny_tokenizer

from torchmpo.finetune.data import PreferenceData
from torchmpo.finetune.module import PreferenceModule
from torchmpo.finetune.reference import step_table
from torchmpo.finetune.token_weights import TokenWeights
from torchmpo.runs.errors import UserError

pytestmark = QUIET
MASK = DATA["labels"][:, 1:] != -100


def away(loss, **settings):
    """A module whose policy has left its reference."""
    module = PreferenceModule(tiny_llama(), loss, reference="copy", **settings)
    module.reference_policy.model.load_state_dict(tiny_llama(seed=5).state_dict())
    return module


def dense(model):
    logits = model(DATA["input_ids"], attention_mask=DATA["attention_mask"]).logits
    return logits[:, :-1].double().log_softmax(-1)


def test_divergences_are_those_of_the_models_own_logits():
    module = away("tdpo")
    pair = module.pair_logps(DATA)
    with torch.no_grad():
        own, ref = dense(module.policy.model), dense(module.reference_policy.model)
    kl = torch.where(MASK, (ref.exp() * (ref - own)).sum(-1), 0.0)
    both = torch.cat([pair.chosen_step_kl, pair.rejected_step_kl]).double()
    torch.testing.assert_close(both, kl, rtol=1e-4, atol=1e-5)
    assert (kl[MASK] > 0).all()
    steps = torch.cat([pair.ref_chosen_step_logps, pair.ref_rejected_step_logps]).double()
    expected = dense_logps(module.reference_policy.model, DATA)
    torch.testing.assert_close(steps, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pair.ref_chosen_logps, steps[:8].sum(-1).float())
    assert both.requires_grad
    assert not steps.requires_grad


def test_the_weight_of_wpo_is_trls():
    """TRL 1.16, use_weighting: exp of the mean of log p − log Σp², of both sides, multiplied."""
    module = away("wpo")
    with torch.no_grad():
        pair = module.pair_logps(DATA)
        own = dense(module.policy.model)
    aligned = dense_logps(module.policy.model, DATA) - torch.logsumexp(2 * own, -1)
    weights = torch.where(MASK, aligned, 0.0).sum(-1).div(MASK.sum(-1)).exp()
    weight = weights[:8] * weights[8:]
    plain = away("dpo")
    with torch.no_grad():
        dpo = plain.losses(plain.pair_logps(DATA))
    torch.testing.assert_close(module.losses(pair), (weight * dpo).float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["tdpo", "tb_po", "ld_dpo", "bvpo", "samdpo", "wpo", "simpo@wpo"])
def test_training_lowers_every_loss_of_steps(loss):
    module = PreferenceModule(tiny_llama(), loss, lora=LORA, lr=1e-2, loss_args={"beta": 0.5})
    with torch.no_grad():
        before = module.losses(module.pair_logps(DATA)).mean().item()
    trainer = fit(module, loader(batch_size=8), epochs=3)
    assert trainer.logged_metrics["rewards/margins"] > 0
    if "wpo" not in loss:  # its weights grow with what is learned
        assert trainer.logged_metrics["loss"] < before - 0.05


@pytest.mark.parametrize("loss", ["ld_dpo", "bvpo"])
def test_a_cache_of_tokens_gives_what_the_reference_gives(tmp_path, loss):
    logged = []
    for reference in ("copy", "cache", "cache"):
        module = PreferenceModule(tiny_llama(), loss, lora=None, reference=reference, lr=1e-3)
        data = PreferenceData(
            tiny_pairs(8),
            tokenizer=tiny_tokenizer(),
            batch_size=2,
            reference_cache=str(tmp_path / "cache"),
        )
        trainer = fit(module, data, epochs=2)
        logged.append({k: float(v) for k, v in trainer.logged_metrics.items()})
    assert logged[0] == pytest.approx(logged[1], rel=1e-4, abs=1e-5)
    assert logged[1] == logged[2]
    stored = load_file(tmp_path / "cache" / "train_steps.safetensors")
    assert stored["lengths"].shape == (2, 8)
    assert len(stored["logps"]) == stored["lengths"].sum()


def test_a_table_of_tokens_gives_each_row_its_own(tmp_path):
    steps = torch.where(MASK, torch.arange(MASK.numel()).reshape(MASK.shape).float(), 0.0)
    table = step_table(tmp_path / "t.safetensors", lambda: [DATA], lambda batch: steps, "model")
    for rows in ([0, 1, 2, 3, 4, 5, 6, 7], [5, 2]):
        both = torch.tensor([*rows, *(8 + row for row in rows)])
        batch = {name: DATA[name][both] for name in ("input_ids", "attention_mask", "labels")}
        found = table.of(batch, rows)
        assert torch.equal(found["ref_step_logps"], steps[both])
        assert torch.equal(found["ref_logps"], steps[both].sum(-1))


class Process:
    """What a table asks of Lightning's strategy: a rank, and what the first process has."""

    def __init__(self, rank, sent):
        self.global_rank, self.world_size, self.sent = rank, 2, sent

    def broadcast(self, value):
        if self.global_rank == 0:
            self.sent.append(value)
            return value
        return self.sent.pop(0)


def test_the_first_process_reads_a_table_of_tokens_for_all(tmp_path):
    path, seen = tmp_path / "t.safetensors", []

    def table(rank, sent, model="model"):
        steps = torch.where(MASK, 1.0, 0.0)
        return step_table(
            path, lambda: [DATA], lambda _: steps, model, strategy=Process(rank, sent)
        )

    written = table(0, seen)
    path.rename(tmp_path / "elsewhere")  # the second process is on a machine without the disk
    assert torch.equal(table(1, seen).logps, written.logps)
    (tmp_path / "elsewhere").rename(path)
    read = table(0, seen)
    path.unlink()
    assert torch.equal(table(1, seen).logps, read.logps)
    assert torch.equal(read.logps, written.logps)
    table(0, [])
    with pytest.raises(UserError, match="of another model"):
        table(0, seen, "other")
    path.unlink()
    with pytest.raises(UserError, match="of another model"):  # and does not go on alone
        table(1, seen, "other")


def test_no_cache_has_distributions():
    with pytest.raises(UserError, match="as a whole distribution at every token, which no cache"):
        PreferenceModule(tiny_llama(), "tdpo", lora=LORA, reference="cache")


@pytest.mark.parametrize("loss", ["plackett_luce", "self_po", "lambda_po"])
def test_a_pair_is_a_list_of_two(loss):
    module, plain = away(loss), away("dpo")
    with torch.no_grad():
        expected = plain.losses(plain.pair_logps(DATA))
        found = module.losses(module.pair_logps(DATA))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_pairs_have_no_third_response():
    module = PreferenceModule(tiny_llama(), "tpo", lora=LORA)
    with pytest.raises(UserError, match="the data have no gold_mean_logps"):
        module.losses(module.pair_logps(DATA))


def test_weights_of_tokens_that_are_all_1_change_nothing():
    module, plain = away("sparse_po"), away("tdpo", loss_args={"variant": "tdpo1"})
    for layer in module.token_weights.eval().layers:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.ones_(layer.bias)
    pair = module.pair_logps(DATA)
    torch.testing.assert_close(module.losses(pair), plain.losses(plain.pair_logps(DATA)))
    assert plain.token_weights is None


def test_weights_of_tokens_are_the_published_formula_of_the_references_states():
    module = away("sparse_po")
    weights = module.token_weights.eval()
    torch.nn.init.normal_(weights.norm.weight, generator=torch.Generator().manual_seed(0))
    pair = module.pair_logps(DATA)
    asked = {"input_ids": DATA["input_ids"], "attention_mask": DATA["attention_mask"]}
    output = module.reference_policy.model(**asked, output_hidden_states=True)
    total = 0.0
    for layer, states in zip(weights.layers, output.hidden_states[1:], strict=True):
        x = states[:, :-1].double()
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = x * weights.norm.weight.double() + weights.norm.bias.double()
        total = total + (x @ layer.weight[0].double() + layer.bias.double()).clamp(min=0)
    expected = (total / len(weights.layers)).clamp(min=0)
    found = torch.cat([pair.chosen_step_weights, pair.rejected_step_weights]).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found[MASK] > 0).any()


def test_weights_of_tokens_are_learned_and_saved_with_the_model(tmp_path):
    settings = {"lora": LORA, "lr": 1e-2, "loss_args": {"beta": 0.5, "sparsity_coef": 1e-3}}
    module = PreferenceModule(tiny_llama(), "sparse_po", **settings)
    before = {k: v.clone() for k, v in module.token_weights.state_dict().items()}
    trainer = fit(module, loader(batch_size=8), epochs=6)
    assert trainer.logged_metrics["rewards/margins"] > 0
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    stored = checkpoint["state_dict"]
    module.save(tmp_path)
    saved = load_file(tmp_path / "token_weights.safetensors")
    assert saved.keys() == before.keys()
    for name, value in module.token_weights.state_dict().items():
        assert not torch.equal(value, before[name]), name
        assert torch.equal(value, saved[name])
        assert torch.equal(value, stored[f"token_weights.{name}"])
    again = PreferenceModule(tiny_llama(), "sparse_po", **settings)
    again.load_state_dict(stored, strict=False)
    assert torch.equal(again.token_weights.mix, module.token_weights.mix)


def test_weights_of_tokens_are_not_sharded(monkeypatch):
    module = PreferenceModule(tiny_llama(), "sparse_po", lora=LORA)
    monkeypatch.setattr("torchmpo.finetune.module.is_sharded", lambda trainer: True)
    with pytest.raises(UserError, match="sparse_po learns weights of tokens: train it unsharded"):
        module.configure_model()


def test_weights_of_tokens_are_float32_under_autocast():
    weights = TokenWeights(layers=2, size=4)
    hidden = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = weights.eval()(hidden)
    assert found.dtype == torch.float32
    assert torch.equal(found, weights(hidden))
