"""Labelled answers in place of pairs: rows, tokens, batches, losses, and whole runs."""

import json
import math

import pytest
import torch

pytest.importorskip("lightning")

from test_module import LORA, dense_logps, fit, trained
from tiny_llm import QUIET, save_tiny, tiny_batch, tiny_llama, tiny_pairs, tiny_tokenizer
from torch.utils.data import DataLoader

from torchmpo.finetune.__main__ import main
from torchmpo.finetune.data import PreferenceData
from torchmpo.finetune.mismatched import mismatched
from torchmpo.finetune.module import PreferenceModule
from torchmpo.finetune.pairs import Pair, clean, load_pairs, pair_from_row, unpaired
from torchmpo.finetune.reference import data_digest
from torchmpo.runs.errors import UserError

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]
ROWS = [
    {"prompt": pair["prompt"], "completion": pair["chosen"], "label": k % 3 > 0}
    for k, pair in enumerate(tiny_pairs(12))
]


def loaded(rows, **settings):
    data = PreferenceData(rows, tokenizer=tiny_tokenizer(), batch_size=4, **settings)
    data.setup()
    return data


def labelled_batch(count=4):
    batch = tiny_batch(pairs=count)
    rows = {name: batch[name][:count] for name in ("input_ids", "attention_mask", "labels")}
    return {**rows, "index": batch["index"], "desirable": torch.arange(count) % 2 == 0}


# Rows


def test_a_row_of_text():
    pair = pair_from_row({"prompt": "1 + 1 =", "completion": " 2", "label": True})
    assert pair == Pair("1 + 1 =", " 2", " 2", label=True)


def test_a_row_of_messages():
    row = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Go away."}],
        "label": False,
    }
    pair = pair_from_row(row)
    assert pair.label is False
    assert pair.chosen == pair.rejected
    assert pair.chosen[0].content == "Go away."


@pytest.mark.parametrize(
    ("label", "found"), [(1, True), (0, False), ("True", True), ("false", False), ("0", False)]
)
def test_labels_as_tables_have_them(label, found):
    assert pair_from_row({"prompt": "a", "completion": " b", "label": label}).label is found


@pytest.mark.parametrize("label", [None, "yes", 2, [True]])
def test_a_label_that_is_none(label):
    with pytest.raises(UserError, match="there must be a label, true or false"):
        pair_from_row({"prompt": "a", "completion": " b", "label": label})


def test_columns_of_other_names():
    rows = [{"question": "a", "answer": " b", "good": True}]
    names = {"prompt": "question", "completion": "answer", "label": "good"}
    assert load_pairs(rows, columns=names)[0].label is True


def test_what_is_dropped():
    good, bad = Pair("a", " b", " b", label=True), Pair("a", " b", " b", label=False)
    kept, counts = clean([good, bad, good, Pair("a", " ", " ", label=True)])
    assert kept == [good, bad]
    assert (counts.duplicates, counts.empty, counts.identical) == (1, 1, 0)


def test_a_pair_becomes_two_answers_and_keeps_its_weight():
    pair = Pair("a", " b", " c", 1.0, 2.0, 0.7, weight=2.0)
    good, bad = unpaired([pair])
    assert (good.chosen, good.rejected, good.label) == (" b", " b", True)
    assert (bad.chosen, bad.rejected, bad.label) == (" c", " c", False)
    assert good.weight == bad.weight == 2.0
    assert good.chosen_reward is good.preference_prob is None
    assert unpaired([good]) == [good]


# Batches


def test_a_batch_has_each_answer_once():
    data = loaded(ROWS)
    assert len(data.datasets["train"]) == 12
    first = next(data.batches("train"))
    assert first["input_ids"].shape[0] == 4
    assert first["desirable"].tolist() == [False, True, True, False]
    text = data.tokenizer.decode(first["input_ids"][1][first["labels"][1] != -100])
    assert text == ROWS[1]["completion"] + "</s>"


def test_pairs_are_split_on_request():
    pairs = tiny_pairs(5)
    split = loaded(pairs, unpair=True)
    rows = [
        {"prompt": p["prompt"], "completion": p[side], "label": side == "chosen"}
        for p in pairs
        for side in ("chosen", "rejected")
    ]
    assert data_digest(split.batches("train")) == data_digest(loaded(rows).batches("train"))


def test_pairs_beside_labelled_answers_are_refused():
    data = loaded([*ROWS[:2], *tiny_pairs(2)])
    with pytest.raises(UserError, match=r"pairs beside labelled answers: set data\.unpair"):
        next(data.batches("train"))
    assert len(loaded([*ROWS[:2], *tiny_pairs(2)], unpair=True).datasets["train"]) == 6


def test_mismatched_answers_are_those_of_the_row_before():
    batch = labelled_batch()
    other = mismatched(batch)
    for i in range(4):
        prompt = batch["input_ids"][i][: int((batch["labels"][i] != -100).nonzero()[0])]
        answer = batch["labels"][i - 1][batch["labels"][i - 1] != -100]
        whole = torch.cat([prompt, answer])
        assert other["input_ids"][i][: len(whole)].tolist() == whole.tolist()
        assert other["attention_mask"][i].sum() == len(whole)
        assert other["labels"][i][other["labels"][i] != -100].tolist() == answer.tolist()


@pytest.mark.parametrize("positions", [4096, 40])
def test_mismatched_answers_are_cut_like_the_data(positions, monkeypatch):
    """A long prompt gets a long answer of another row; max_length limits memory there, too."""
    rows = [
        {"prompt": "a " * 30, "completion": "b", "label": True},
        {"prompt": "c ", "completion": "d " * 30, "label": False},
    ]
    data = PreferenceData(rows, tokenizer=tiny_tokenizer(), batch_size=2, max_length=40)
    module = PreferenceModule(tiny_llama(max_position_embeddings=positions), "kto", lora=LORA)
    widths = []

    def logps(batch, policy=None):
        widths.append(batch["input_ids"].shape[1])
        return PreferenceModule.logps(module, batch, policy)

    monkeypatch.setattr(module, "logps", logps)
    fit(module, data, epochs=1)
    assert max(widths) == 40
    whole, cut = (mismatched(next(data.batches("train")), n)["labels"] for n in (None, 40))
    assert whole.shape[1] > 60
    torch.testing.assert_close(cut, whole[:, :40])


# Losses


@pytest.mark.parametrize("loss", ["kto", "bco_unpaired", "apo_zero_unpaired"])
def test_losses_are_those_of_the_models_own_logits(loss):
    """The formulas of TRL 1.16's KTO trainer, and the first step of its BCO trainer."""
    batch, other = labelled_batch(), tiny_llama(seed=5)
    module = PreferenceModule(tiny_llama(), loss, lora=None, reference="copy")
    module.reference_policy.model.load_state_dict(other.state_dict())

    def log_ratios(rows):
        sums = [dense_logps(m, rows).sum(-1) for m in (module.policy.model, other)]
        return sums[0] - sums[1]

    h, sign = log_ratios(batch), torch.tensor([1, -1, 1, -1])
    if loss == "kto":
        z = log_ratios(mismatched(batch)).mean().clamp(min=0)
        expected = 1 - torch.sigmoid(sign * 0.1 * (h - z))
    elif loss == "bco_unpaired":
        expected = -torch.nn.functional.logsigmoid(sign * 0.1 * (h - h.mean()))
    else:
        expected = 1 - torch.sigmoid(sign * 0.1 * h)
    with torch.no_grad():
        found = module.losses(module.pair_logps(batch))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_kind_of_data_must_be_that_of_the_loss():
    pairs, single = tiny_batch(pairs=4), labelled_batch()
    with pytest.raises(UserError, match=r"kto is of labelled responses.*set data\.unpair"):
        PreferenceModule(tiny_llama(), "kto", lora=LORA).pair_logps(pairs)
    with pytest.raises(UserError, match=r"simpo is of pairs.*take another loss, such as kto"):
        PreferenceModule(tiny_llama(), "simpo", lora=LORA).pair_logps(single)


def test_no_cache_has_mismatched_answers():
    with pytest.raises(UserError, match="which no cache has: take reference adapter_off or copy"):
        PreferenceModule(tiny_llama(), "kto", lora=LORA, reference="cache")


def test_a_response_is_never_measured_against_itself():
    def run(loss, validation, size):
        data = PreferenceData(ROWS, validation, tokenizer=tiny_tokenizer(), batch_size=size)
        return fit(PreferenceModule(tiny_llama(), loss, lora=LORA), data, epochs=1)

    for loss in ("kto", "bco_unpaired"):
        with pytest.raises(UserError, match=rf"{loss} measures .* set data\.batch_size to 2"):
            run(loss, None, 1)
    with pytest.raises(UserError, match=r"data\.validation has one response"):
        run("kto", ROWS[:1], 6)
    # Of seven, the last one would be a batch of its own.
    assert run("kto", ROWS[:7], 6).num_val_batches == [1]
    assert run("kto", ROWS[:8], 6).num_val_batches == [2]
    assert run("apo_zero_unpaired", ROWS[:7], 6).num_val_batches == [2]
    with pytest.warns(UserWarning, match="kto measures a batch of one response against itself"):
        PreferenceModule(tiny_llama(), "kto", lora=LORA).pair_logps(labelled_batch(1))


# Runs


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_training_tells_good_answers_from_bad_ones(loss):
    batch = labelled_batch(8)
    module = PreferenceModule(tiny_llama(), loss, lora=LORA, lr=1e-2)
    before = module.losses(module.pair_logps(batch)).mean().item()
    assert before == pytest.approx(0.5, abs=1e-4)
    rows = DataLoader([0], collate_fn=lambda _: batch)
    trainer = fit(module, rows, epochs=15)
    metrics = trainer.logged_metrics
    assert metrics["loss"] < 0.4
    assert metrics["rewards/accuracies"] == 1
    assert metrics["rewards/signed"] > 0.1


def test_accumulated_answers_are_one_batch():
    batch = labelled_batch(8)

    def part(items):
        items = torch.as_tensor(items)
        return {name: value[items] for name, value in batch.items()}

    weights = []
    for size in (8, 2):
        module = PreferenceModule(tiny_llama(), "apo_zero_unpaired", lora=LORA, lr=1e-2)
        rows = DataLoader(range(8), size, collate_fn=part)
        fit(module, rows, epochs=2, accumulate_grad_batches=8 // size)
        weights.append(trained(module))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("loss", "more"),
    [
        ("kto", {}),
        ("apo_zero_unpaired", {"reference": "cache"}),
        ("bco_unpaired", {"unpair": True}),
    ],
)
def test_a_run_from_the_command_line(tmp_path, loss, more):
    base = save_tiny(tmp_path / "base")
    rows = tiny_pairs(8) if "unpair" in more else ROWS
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        *("fit", f"--out={tmp_path / 'run'}", f"--model.model={base}", f"--model.loss={loss}"),
        *(f"--data.train={path}", "--data.batch_size=4", "--data.max_length=64"),
        *("--model.lora.r=4", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"),
        "--trainer.log_every_n_steps=1",
    ]
    if "reference" in more:
        arguments += ["--model.reference=cache", f"--data.reference_cache={tmp_path / 'cache'}"]
    if "unpair" in more:
        arguments.append("--data.unpair=true")
    assert main(arguments) == 0
    (log,) = (tmp_path / "run").glob("**/metrics.csv")
    names, *lines = [line.split(",") for line in log.read_text().splitlines()]
    losses = [float(line[names.index("loss")]) for line in lines if line[names.index("loss")]]
    assert losses
    assert all(math.isfinite(value) for value in losses)
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
