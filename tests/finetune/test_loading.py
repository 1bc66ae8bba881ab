"""What is loaded is what its folder holds, and what is exported is what was trained."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_module import fit
from tiny_llm import (
    QUIET,
    SIZES,
    save_tiny,
    tiny_batch,
    tiny_gemma3,
    tiny_llama,
    tiny_tokenizer,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
)

from torchmpo.finetune.__main__ import main
from torchmpo.finetune.models import (
    LoraSettings,
    TokenLogps,
    add_lora,
    export_merged,
    load_adapter,
    load_model,
    load_tokenizer,
    positions,
)
from torchmpo.finetune.module import PreferenceModule
from torchmpo.runs.errors import UserError

pytestmark = QUIET
DATA = tiny_batch(pairs=4)
LORA = LoraSettings(r=4, alpha=8.0)
SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


def logps(policy):
    with torch.no_grad():
        return policy(DATA["input_ids"], DATA["attention_mask"], DATA["labels"])


def one_line(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"))


# What is no causal LM


def test_a_bidirectional_model_is_refused(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(**SMALL, initializer_range=0.2)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    one_line(lambda: logps(TokenLogps(loaded)), "BertLMHeadModel is no causal LM .* a later token")
    config.is_decoder = True
    BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="does more to its logits"):
        assert logps(TokenLogps(load_model(tmp_path))).shape == (8, 13)


def test_a_classifiers_folder_is_refused(tmp_path):
    config = LlamaConfig(vocab_size=320, num_labels=1, **SIZES)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    one_line(lambda: load_model(tmp_path), "no complete LlamaForCausalLM: lm_head.weight is miss")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 1}, r"model.layers.1\.\S+ is left over"),
        ({"num_hidden_layers": 3}, r"model.layers.2\.\S+ is missing"),
        ({"vocab_size": 400}, "lm_head.weight has another shape"),
        ({"hidden_size": 64}, "has another shape"),
        ({"hidden_size": "x"}, "cannot be loaded as a causal LM"),
        ({"hidden_act": "nonsense"}, "cannot be loaded as a causal LM"),
        ({"model_type": "nonsense"}, "cannot be loaded as a causal LM"),
        ({"model_type": "gpt2"}, "is no complete GPT2LMHeadModel"),
        ({"num_hidden_layers": 10**9}, "has 21 weights, and its config.json tells of 1000000000"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(base, tmp_path, change, message):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    one_line(lambda: load_model(folder), message)


@pytest.mark.parametrize("content", [b"", b"junk", b"[1]"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_files_are_one_line(base, tmp_path, name, content):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / name).write_bytes(content)
    one_line(lambda: load_model(folder), "cannot be loaded as a causal LM")


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_folder_that_is_not_there_is_told_as_one(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no waiting for it
    (tmp_path / "weights.safetensors").write_bytes(b"")
    one_line(lambda: load("runs/mine/model"), "^there is no folder runs/mine/model$")
    one_line(lambda: load("runs/mine"), "^there is no folder runs/mine, and as a hub id it cannot")
    one_line(lambda: load(tmp_path / "none"), "^there is no folder")
    one_line(lambda: load("weights.safetensors"), "is a file: name the folder")


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_hub_that_cannot_be_reached_is_asked_once(load, tmp_path, monkeypatch):
    """Where a model of this name is not in the cache; loading itself would try six times."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = []

    def unreachable(api, name, **options):
        asked.append(name)
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    one_line(lambda: load("modle"), "no folder modle, and the hub, .* was not reached: no route")
    assert asked == ["modle"]


# Length


def test_more_tokens_than_positions_are_refused():
    for model in (
        GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2, n_positions=13)),
        tiny_llama(max_position_embeddings=13),
    ):
        one_line(lambda m=model: logps(TokenLogps(m)), "has 14 tokens, .* made for 13")
    assert logps(TokenLogps(tiny_llama(max_position_embeddings=14))).shape == (8, 13)


def test_positions_count_what_a_rope_is_scaled_by():
    assert positions(LlamaConfig(max_position_embeddings=100)) == 100
    scaled = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    scaled["original_max_position_embeddings"] = 100
    for own in (100, 400):
        config = LlamaConfig(max_position_embeddings=own, rope_parameters=scaled)
        assert positions(config) == 400
    assert positions(MambaConfig()) is None


# Adapters


def test_all_linear_fits_a_state_space_model():
    torch.manual_seed(0)
    model = MambaForCausalLM(
        MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, state_size=8)
    )
    targets = LoraSettings(r=2, targets=["out_proj"])
    one_line(lambda: add_lora(copy.deepcopy(model), targets), "'out_proj' is incompatible with Ma")
    adapted = add_lora(model, LoraSettings(r=2))
    names = {
        n.split(".lora_")[0].rsplit(".", 1)[1] for n, p in adapted.named_parameters() if "lora" in n
    }
    assert names == {"in_proj", "x_proj", "dt_proj"}


def test_every_target_must_be_there():
    settings = LoraSettings(r=2, targets=["q_proj", "v_prj"])
    one_line(lambda: add_lora(tiny_llama(), settings), "lora.targets 'v_prj' does not fit")


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_every_trained_weight_of_a_vision_model_is_reached_by_text(lora):
    """Otherwise processes that share a step wait for the gradients of the others."""
    module = PreferenceModule(tiny_gemma3(), "sft", lora=lora)
    module.policy.train()
    module.losses(module.pair_logps(DATA)).sum().backward()
    trained = {n: p.grad for n, p in module.named_parameters() if p.requires_grad}
    assert len(trained) > 20
    assert all(grad is not None for grad in trained.values())
    assert not any("vision" in name or "projector" in name for name in trained)


def test_embeddings_that_the_head_shares_get_no_adapters():
    lora = LoraSettings(r=2, targets=["embed_tokens", "q_proj"])
    tied = tiny_llama(tie_word_embeddings=True)
    one_line(lambda: PreferenceModule(tied, "sft", lora=lora), "head shares the embeddings' weig")
    PreferenceModule(tiny_llama(), "sft", lora=lora)


def test_a_base_that_its_folder_does_not_hold_gets_no_adapters(base, tmp_path):
    """An adapter names its base: with another one there, it would be another model."""

    def load():
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    PreferenceModule(load(), "sft", lora=LORA)
    PreferenceModule(load().bfloat16(), "sft", lora=LORA)
    resized = load()
    resized.resize_token_embeddings(330)
    one_line(lambda: PreferenceModule(resized, "sft", lora=LORA), "lm_head.* is not as in .*save")
    trained = load()
    with torch.no_grad():
        trained.model.layers[1].mlp.up_proj.weight.mul_(1.001)
    one_line(lambda: PreferenceModule(trained, "sft", lora=LORA), "up_proj.weight is not as in")
    resized.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    PreferenceModule(saved, "sft", lora=LORA)


# Export


def random_adapter(base, folder, lora=LORA, seed=0):
    """The log-probabilities of the model of a random adapter, which is saved."""
    module = PreferenceModule(str(base), "sft", lora=lora)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.1)
    module.save(folder, tiny_tokenizer())
    module.policy.eval()
    return logps(module.policy)


@pytest.mark.parametrize("targets", ["all-linear", ["embed_tokens", "q_proj"]])
def test_an_exported_model_is_the_adapters(base, tmp_path, targets):
    lora = LoraSettings(r=4, alpha=8.0, targets=targets)
    expected = random_adapter(base, tmp_path / "adapter", lora)
    gap = export_merged(tmp_path / "adapter", tmp_path / "merged")
    assert gap < 1e-4
    merged = logps(TokenLogps(load_model(tmp_path / "merged")))
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-4)


def test_rounding_in_an_export_is_told_and_can_be_avoided(tmp_path, capsys):
    base = save_tiny(tmp_path / "base", tiny_llama().bfloat16())
    random_adapter(base, tmp_path / "adapter")
    arguments = ["export", "--adapter", f"{tmp_path}/adapter", "--out"]
    assert main([*arguments, f"{tmp_path}/merged"]) == 0
    assert "--dtype float32 rounds less" in capsys.readouterr().out
    assert load_model(tmp_path / "merged").dtype == torch.bfloat16
    assert main([*arguments, f"{tmp_path}/wide", "--dtype", "float32"]) == 0
    assert "--dtype" not in capsys.readouterr().out
    expected = logps(TokenLogps(load_model(tmp_path / "adapter", dtype="float32")))
    wide = logps(TokenLogps(load_model(tmp_path / "wide")))
    torch.testing.assert_close(wide, expected, rtol=0, atol=1e-4)


def test_an_export_that_would_be_another_model_is_refused(tmp_path, capsys):
    """Adapters made elsewhere: on tied embeddings, or for a tokenizer that the base lacks."""
    import peft

    base = save_tiny(tmp_path / "base", tiny_llama(tie_word_embeddings=True))
    model = AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False)
    with pytest.warns(UserWarning, match="tied"):
        peft.get_peft_model(model, config).save_pretrained(
            tmp_path / "tied", save_embedding_layers=False
        )
    call = ["export", "--out", f"{tmp_path}/merged", "--adapter"]
    assert main([*call, f"{tmp_path}/tied"]) == 2
    assert "the model is another one: log-probabilities change" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()

    random_adapter(base, tmp_path / "adapter")
    more = tiny_tokenizer()
    more.add_tokens([f"<new{i}>" for i in range(20)])
    more.save_pretrained(tmp_path / "adapter")
    assert main([*call, f"{tmp_path}/adapter"]) == 2
    assert "do not belong together" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def json_change(**changes):
    def change(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def without_a_weight(folder):
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    del weights[min(weights)]
    save_file(weights, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "adapter_config.json").write_text("junk"), "is no adapter's configuration"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "is no adapter's configuration"),
        (json_change(base_model_name_or_path=None), "does not name the base model"),
        (json_change(base_model_name_or_path="runs/no/base"), "there is no folder runs/no/base"),
        (json_change(peft_type="NONSENSE"), "cannot be loaded"),
        (json_change(target_modules=["nonsense"]), "cannot be loaded"),
        (json_change(target_modules=["q_proj"]), "is left over"),
        (json_change(r=2), "cannot be loaded"),
        (without_a_weight, "is missing"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"junk"), "cannot be loaded"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "no pickle is read"),
    ],
)
def test_an_adapter_that_is_not_whole_is_one_line(base, tmp_path, change, message, capsys):
    folder = tmp_path / "adapter"
    random_adapter(base, folder)
    change(folder)
    assert main(["export", "--adapter", str(folder), "--out", f"{tmp_path}/merged"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_training_goes_on_from_an_adapters_folder(base, tmp_path):
    expected = random_adapter(base, tmp_path / "adapter")
    module = PreferenceModule(str(tmp_path / "adapter"), "dpo")
    assert module.reference == "adapter_off"
    trained = [n for n, p in module.named_parameters() if p.requires_grad]
    assert len(trained) == 28
    assert all(".lora_" in name for name in trained)
    torch.testing.assert_close(logps(module.policy), expected, rtol=0, atol=1e-5)


def test_modules_trained_as_a_whole_go_with_the_adapter(base, tmp_path):
    lora = LoraSettings(r=2, targets=["q_proj"], modules_to_save=["lm_head"])
    module = PreferenceModule(str(base), "dpo", lora=lora)
    start = logps(module.policy)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    module.policy.eval()
    changed = logps(module.policy)
    assert module.policy.fused
    assert (changed - start).abs().max() > 0.1
    # the copy is off where the adapter is, and what counts is what the model says by itself
    torch.testing.assert_close(module.reference_logps(DATA), start.sum(1), rtol=0, atol=1e-4)
    with torch.no_grad():
        plain = module.policy.model(DATA["input_ids"], attention_mask=DATA["attention_mask"])
    labels = DATA["labels"][:, 1:]
    own = plain.logits[:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(changed, own * (labels != -100), rtol=0, atol=1e-4)
    module.save(tmp_path / "adapter", tiny_tokenizer())
    export_merged(tmp_path / "adapter", tmp_path / "merged")
    merged = logps(TokenLogps(load_model(tmp_path / "merged")))
    torch.testing.assert_close(merged, changed, rtol=0, atol=1e-4)
    tied = tiny_llama(tie_word_embeddings=True)
    lora = LoraSettings(r=2, targets=["q_proj"], modules_to_save=["embed_tokens"])
    one_line(lambda: PreferenceModule(tied, "sft", lora=lora), "head shares the embeddings' weig")


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_modules_trained_as_a_whole_are_float32_in_a_bfloat16_model(tmp_path, name):
    """Steps too small for bfloat16 are made, saved, taken up again, and exported."""
    base = save_tiny(tmp_path / "base", tiny_llama().bfloat16())
    lora = LoraSettings(r=2, targets=["q_proj"], modules_to_save=[name])
    module = PreferenceModule(str(base), "sft", lora=lora, lr=1e-5)
    assert {p.dtype for p in module.parameters() if p.requires_grad} == {torch.float32}
    assert module.policy.model.dtype == torch.bfloat16

    def whole(policy):
        found = [p for n, p in policy.named_parameters() if f"{name}.modules_to_save" in n]
        return found[0].detach().clone()

    start = whole(module.policy)
    fit(module, precision="bf16-mixed", epochs=1)
    moved = whole(module.policy)
    assert 0 < (moved - start).abs().max() < 1e-4
    module.save(tmp_path / "adapter", tiny_tokenizer())
    again = load_adapter(tmp_path / "adapter")
    torch.testing.assert_close(whole(again), moved, rtol=0, atol=0)
    with torch.no_grad():  # without autocast, as answers are written
        again(DATA["input_ids"], attention_mask=DATA["attention_mask"])
    assert export_merged(tmp_path / "adapter", tmp_path / "merged") < 0.5
    exported = load_file(tmp_path / "merged" / "model.safetensors")
    assert {value.dtype for value in exported.values()} == {torch.bfloat16}


def test_how_a_model_is_loaded(base):
    model = load_model(base, dtype="float16", attn_implementation="eager")
    assert (model.dtype, model.config._attn_implementation) == (torch.float16, "eager")
    one_line(lambda: load_model(base, revision="main"), "a revision is of a hub id")
    one_line(lambda: load_model(base, attn_implementation="nonsense"), "cannot be loaded")
    wrong = {"load_in_4bits": True}
    one_line(lambda: load_model(base, quantization=wrong), "did you mean 'load_in_4bit'")
    one_line(lambda: load_model(base, quantization={}), "neither load_in_4bit: true nor")
    settings = {"quantization": {"load_in_4bit": True}}
    one_line(lambda: PreferenceModule(str(base), "sft", **settings), "set lora, and train adapters")
    module = PreferenceModule(str(base), "dpo", lora=LORA, dtype="float16")
    assert {p.dtype for p in module.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.filterwarnings("ignore:bitsandbytes")  # of its kernels for CPUs
@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_on_a_quantized_base_train(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    wide = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32}
    base = save_tiny(tmp_path, tiny_llama(**wide))
    settings = {"lora": LORA, "quantization": {f"load_in_{bits}bit": True}, "dtype": "float32"}
    module = PreferenceModule(str(base), "dpo", **settings)
    assert module.policy.model.is_quantized
    loss = module.losses(module.pair_logps(DATA)).mean()
    assert loss.item() == pytest.approx(0.6931, abs=0.01)
    loss.backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore:bitsandbytes")
def test_weights_that_cannot_be_packed_are_one_line(tmp_path):
    pytest.importorskip("bitsandbytes")
    base = save_tiny(tmp_path, tiny_llama(hidden_size=32, head_dim=8))
    one_line(lambda: load_model(base, quantization={"load_in_4bit": True}), "multiples of 64")


def test_an_adapter_without_a_tokenizer_has_its_bases(tmp_path, monkeypatch):
    base, adapter = save_tiny(tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    content = {"base_model_name_or_path": str(base), "revision": "v2"}
    (adapter / "adapter_config.json").write_text(json.dumps(content))
    asked, load = [], AutoTokenizer.from_pretrained

    def recorded(source, **options):
        asked.append((str(source), options))
        return load(source, **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", recorded)
    assert load_tokenizer(adapter).get_vocab() == load_tokenizer(base).get_vocab()
    assert asked[0] == (str(base), {"revision": "v2"})
