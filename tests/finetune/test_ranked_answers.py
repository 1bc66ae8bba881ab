"""Ranked lists and golden answers: rows, tokens, batches, losses, and whole runs."""

import csv
import json
import math

import pytest
import torch

pytest.importorskip("lightning")

from test_module import LORA, dense_logps, fit
from tiny_llm import QUIET, save_tiny, tiny_llama, tiny_pairs, tiny_tokenizer
from torch.distributions import Categorical
from torch.nn.functional import logsigmoid
from torch.utils.data import DataLoader

from torchmpo.finetune import EarlyWarning
from torchmpo.finetune.__main__ import main
from torchmpo.finetune.data import PreferenceData
from torchmpo.finetune.inspect import show_pair
from torchmpo.finetune.module import PreferenceModule
from torchmpo.finetune.pairs import clean, load_pairs, pair_from_row, unpaired
from torchmpo.finetune.reference import data_digest
from torchmpo.runs.errors import UserError

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]
ROW = {"prompt": "1 + 1 =", "responses": [" 3", " 2", " 4", " two"]}
ANSWERS = (" 2", " two", " 3", " 4")


def tiny_lists(count=8, size=4):
    """Lists whose best answer is the last one of the row."""
    rows = [tiny_pairs(count, seed=seed) for seed in range(size)]
    return [
        {
            "prompt": group[0]["prompt"],
            "responses": [f"{one['chosen']} {k}" for k, one in enumerate(group)],
            "scores": [float(k) for k in range(size)],
        }
        for group in zip(*rows, strict=True)
    ]


def tiny_triples(count=8):
    gold = tiny_pairs(count, seed=9)
    return [p | {"reference": g["chosen"] + "."} for p, g in zip(tiny_pairs(count), gold)]


def loaded(rows, **settings):
    data = PreferenceData(rows, tokenizer=tiny_tokenizer(), batch_size=4, **settings)
    data.setup()
    return data


def batch_of(rows):
    return next(loaded(rows).batches("train"))


# Rows


@pytest.mark.parametrize(
    "row",
    [
        ROW | {"ranks": [3, 1, 4, 2]},
        ROW | {"scores": [0.5, 0.9, 0.1, 0.6]},
        {
            "prompt": "1 + 1 =",
            "answers": [
                {"answer": text, "rank": rank, "model": "x"}
                for text, rank in zip(ROW["responses"], [3.0, 1.0, 4.0, 2.0], strict=True)
            ],
        },
        {
            "prompt": "1 + 1 =",
            "completions": [
                {"response": text, "overall_score": score}
                for text, score in zip(ROW["responses"], [5, 9, 1, 6], strict=True)
            ],
        },
    ],
    ids=["ranks", "scores", "Nectar", "UltraFeedback"],
)
def test_a_row_of_ranked_answers(row):
    pair = pair_from_row(row)
    assert (pair.prompt, pair.answers) == ("1 + 1 =", ANSWERS)
    assert (pair.chosen, pair.rejected) == (" 2", " 4")


def test_scores_are_the_rewards_of_the_pair_and_ranks_are_none():
    pair = pair_from_row(ROW | {"scores": [0.5, 0.9, 0.1, 0.6]})
    assert (pair.chosen_reward, pair.rejected_reward) == (0.9, 0.1)
    assert pair_from_row(ROW | {"ranks": [3, 1, 4, 2]}).chosen_reward is None


def test_answers_to_an_instruction_are_messages():
    row = {"instruction": "Add 1 and 1.", "responses": ["3", "2", "two"], "scores": [0, 2, 1]}
    pair = pair_from_row(row)
    assert pair.prompt[0].content == "Add 1 and 1."
    assert [answer[0].content for answer in pair.answers] == ["2", "two", "3"]
    messages = [[{"role": "assistant", "content": text}] for text in row["responses"]]
    assert pair_from_row(row | {"responses": messages}) == pair


def test_a_table_has_lists_as_text(tmp_path):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "responses", "ranks"])
        writer.writerow(["1 + 1 =", json.dumps(ROW["responses"]), "[3, 1, 4, 2]"])
    assert load_pairs(path)[0].answers == ANSWERS


def test_columns_of_other_names():
    rows = [{"query": "1 + 1 =", "samples": ROW["responses"], "rewards": [5, 9, 1, 6]}]
    names = {"prompt": "query", "responses": "samples", "scores": "rewards"}
    assert load_pairs(rows, columns=names)[0].answers == ANSWERS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "beside responses there must be their ranks .* or scores"),
        ({"scores": [1, 2]}, "scores is not a list of 4 numbers"),
        ({"ranks": [1, 2, 3, None]}, "ranks is not a list of 4 numbers"),
        ({"ranks": [1, 2, 3, math.nan]}, "ranks is not a list of 4 numbers"),
        ({"responses": [" 2"], "ranks": [1]}, "responses is not a list of two or more answers"),
        ({"responses": " 2", "ranks": [1]}, "responses is not a list of two or more answers"),
    ],
)
def test_what_is_no_list_is_one_line(change, message):
    with pytest.raises(UserError, match=message):
        pair_from_row(ROW | change)


def test_rows_with_a_chosen_answer_are_pairs_as_before():
    row = {"prompt": "a", "chosen": " b", "rejected": " c", "responses": ["x"], "ranks": None}
    assert pair_from_row(row).answers == (" b", " c")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": " b", "rejected": " c", "reference": " d"},
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b",
            "rejected": "\n\nHuman: a\n\nAssistant: c",
            "reference": "\n\nHuman: a\n\nAssistant: d",
        },
    ],
)
def test_a_golden_answer_of_text(row):
    assert pair_from_row(row).answers == (" d", " b", " c")


@pytest.mark.parametrize("gold", ["d", [{"role": "assistant", "content": "d"}], "whole"])
def test_a_golden_answer_of_messages(gold):
    user = {"role": "user", "content": "a"}
    answer = [{"role": "assistant", "content": text} for text in "bcd"]
    if gold == "whole":
        gold = [user, answer[2]]
    row = {"chosen": [user, answer[0]], "rejected": [user, answer[1]], "reference": gold}
    pair = pair_from_row(row)
    assert [one[0].content for one in pair.answers] == ["d", "b", "c"]
    assert pair.prompt[0].content == "a"


@pytest.mark.parametrize("chosen", [" 2", [{"role": "assistant", "content": "2"}]])
def test_a_reference_that_is_no_answer_can_be_left_out(chosen):
    row = {"prompt": "1 + 1 =", "chosen": chosen, "rejected": chosen, "reference": ["arithmetic"]}
    with pytest.raises(UserError, match=r"leave it out \(columns: {reference: null}\)"):
        load_pairs([row])
    assert load_pairs([row], columns={"reference": None})[0].gold is None


def test_what_is_dropped():
    rows = [
        ROW | {"ranks": [3, 1, 4, 2]},
        ROW | {"scores": [1, 1, 1, 1]},
        {"prompt": "a", "responses": [" b", " c", " b"], "ranks": [1, 2, 3]},
        {"prompt": "a", "responses": [" b", " ", " c"], "ranks": [1, 2, 3]},
        ROW | {"ranks": [3, 1, 4, 2]},
        ROW | {"ranks": [3, 2, 4, 1]},
    ]
    kept, counts = clean(map(pair_from_row, rows))
    assert [pair.answers for pair in kept] == [ANSWERS, (" two", " 2", " 3", " 4")]
    assert (counts.tied, counts.identical, counts.empty, counts.duplicates) == (1, 1, 1, 1)
    assert "1 lists without a best and a worst answer" in str(counts)


def test_a_list_is_split_into_its_best_and_its_worst():
    good, bad = unpaired([pair_from_row(ROW | {"ranks": [3, 1, 4, 2]})])
    assert (good.chosen, good.label, good.between) == (" 2", True, ())
    assert (bad.chosen, bad.label) == (" 4", False)


# Batches


def test_a_batch_has_the_best_answers_first():
    rows = tiny_lists()
    batch = batch_of(rows)
    assert batch["input_ids"].shape[0] == 16
    for row in range(16):
        text = tiny_tokenizer().decode(batch["labels"][row][batch["labels"][row] != -100])
        assert text == rows[row % 4]["responses"][3 - row // 4] + "</s>"
    assert batch["chosen_rewards"].tolist() == [3.0] * 4


def test_golden_answers_come_first_and_are_marked():
    rows = tiny_triples()
    batch = batch_of(rows)
    assert batch["gold"].tolist() == [True] * 4
    for row, name in ((0, "reference"), (4, "chosen"), (8, "rejected")):
        text = tiny_tokenizer().decode(batch["labels"][row][batch["labels"][row] != -100])
        assert text == rows[0][name] + "</s>"


def test_lists_of_two_are_pairs():
    lists = [
        {"prompt": p["prompt"], "responses": [p["rejected"], p["chosen"]], "ranks": [2, 1]}
        for p in tiny_pairs(6)
    ]
    one, other = (data_digest(loaded(rows).batches("train")) for rows in (lists, tiny_pairs(6)))
    assert one == other


def test_a_cut_list_keeps_one_prompt_and_its_order():
    data = loaded(tiny_lists(), max_length=12, truncation="keep_end")
    for pair in data.datasets["train"]:
        assert len(pair.prompt) + max(map(len, pair.answers)) <= 12
        assert len(pair.answers) == 4


@pytest.mark.parametrize("rows", [[*tiny_lists(2), *tiny_lists(2, 3)], tiny_triples(2)])
def test_prompts_have_equally_many_answers(rows):
    rows = [*rows, *tiny_pairs(2, seed=4)] if len(rows) == 2 else rows
    with pytest.raises(UserError, match=r"data\.train has prompts with \d and \d answers that the"):
        loaded(rows)


def test_inspect_shows_every_answer():
    data = loaded(tiny_lists())
    text = show_pair(data.datasets["train"], 0, data.tokenizer)
    names = ["chosen:", "answer 2:", "answer 3:", "rejected:"]
    assert all(f"\n{name}" in text for name in names)


def test_inspect_shows_what_the_loss_trains_on(tmp_path, capsys):
    """Of lists that differ in length, or only in what lies between, as fit sees them."""
    base = save_tiny(tmp_path / "base")
    rows = [
        {"prompt": "zero", "responses": [" a", " b", " b", " c"], "ranks": [1, 2, 3, 4]},
        {"prompt": "one", "responses": [" aa", " bb", " cc"], "ranks": [1, 2, 3]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["inspect", f"--model.model={base}", f"--data.train={tmp_path / 'rows.jsonl'}"]
    assert main([*words, "--model.loss=dpo"]) == 0
    text = capsys.readouterr().out
    assert "pair 0 of 2" in text
    assert "answer 2" not in text
    assert "zero" in text.replace("|", "")
    # One that reads lists does not read the list with two identical answers.
    assert main([*words, "--model.loss=plackett_luce"]) == 0
    text = capsys.readouterr().out
    assert "pair 0 of 1" in text
    assert "answer 2" in text
    assert main([*words, "--model.loss=dpoo"]) == 2
    assert "unknown loss 'dpoo'" in capsys.readouterr().err


# Losses


def away(loss, **settings):
    """A module whose policy has left its reference."""
    module = PreferenceModule(tiny_llama(), loss, lora=None, reference="copy", **settings)
    if module.reference_policy is not None:
        module.reference_policy.model.load_state_dict(tiny_llama(seed=5).state_dict())
    return module


def found(module, batch):
    with torch.no_grad():
        return module.losses(module.pair_logps(batch)).double()


def test_plackett_luce_is_that_of_the_models_own_logits():
    """The likelihood of the order as picks without replacement."""
    batch, module = batch_of(tiny_lists()), away("plackett_luce", loss_args={"beta": 0.3})
    models = (module.policy.model, tiny_llama(seed=5))
    own, ref = (dense_logps(model, batch).sum(-1).view(4, 4) for model in models)
    s = 0.3 * (own - ref)  # [rank, row]
    picks = (Categorical(logits=s[k:].T).log_prob(torch.zeros(4)) for k in range(3))
    torch.testing.assert_close(found(module, batch), -sum(picks), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [tiny_lists(), tiny_triples()], ids=["list", "reference"])
def test_tpo_is_that_of_the_models_own_logits(rows):
    """TRL 1.16's TPO trainer; of a list the best, the second and the last, as TPO's authors do."""
    batch, module = batch_of(rows), away("tpo", loss_args={"beta": 0.3})
    logps = dense_logps(module.policy.model, batch)
    blocks = logps.sum(-1).split(4)
    lengths = (batch["labels"][:4, 1:] != -100).sum(-1)
    expected = -logsigmoid(0.3 * (blocks[1] - blocks[-1])) - blocks[0] / lengths
    torch.testing.assert_close(found(module, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["dpo", "cpo", "tdpo", "wpo"])
def test_a_loss_of_pairs_gets_the_best_and_the_worst(loss):
    lists, module = tiny_lists(), away(loss)
    pairs = [
        {"prompt": r["prompt"], "chosen": r["responses"][3], "rejected": r["responses"][0]}
        for r in lists
    ]
    values = [found(module, batch_of(rows)) for rows in (lists, pairs)]
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)
    triples = [found(module, batch_of(rows)) for rows in (tiny_triples(), tiny_pairs(8))]
    torch.testing.assert_close(*triples, rtol=1e-5, atol=1e-5)


def test_a_golden_answer_is_in_no_list():
    module, plain = away("plackett_luce"), away("dpo")
    batch = batch_of(tiny_triples())
    torch.testing.assert_close(found(module, batch), found(plain, batch), rtol=1e-4, atol=1e-5)


# Runs


@pytest.mark.parametrize("loss", ["plackett_luce", "tpo"])
def test_training_puts_a_list_in_order(loss):
    module = PreferenceModule(tiny_llama(), loss, lora=LORA, lr=1e-2, loss_args={"beta": 0.5})
    data = PreferenceData(tiny_lists(), tokenizer=tiny_tokenizer(), batch_size=8)
    before = found(module, batch_of(tiny_lists(4))).mean().item()
    trainer = fit(module, data, epochs=8)
    assert trainer.logged_metrics["loss"] < before - 0.1
    with torch.no_grad():
        logps = module.logps(next(data.batches("train"))).sum(-1).view(4, 8)
        start = dense_logps(tiny_llama(), next(data.batches("train"))).sum(-1).view(4, 8)
    gain = (logps - start).mean(1)
    assert gain.argmin() == 3
    assert loss == "tpo" or gain.tolist() == sorted(gain.tolist(), reverse=True)


def test_a_loss_of_pairs_reads_nothing_else_of_a_list():
    module = PreferenceModule(tiny_llama(), "dpo", lora=LORA)
    data = PreferenceData(tiny_lists(), tokenizer=tiny_tokenizer(), batch_size=8)
    fit(module, data, epochs=1)
    assert next(data.batches("train"))["input_ids"].shape[0] == 16


@pytest.mark.parametrize(
    ("loss", "rows", "rank"),
    [("plackett_luce", tiny_lists(), 0), ("tpo", tiny_lists(), 1), ("tpo", tiny_triples(), 1)],
)
def test_a_warning_of_a_list_looks_at_its_chosen_answer_alone(loss, rows, rank):
    batch, module = batch_of(rows), PreferenceModule(tiny_llama(), loss)
    module.policy.eval()
    with torch.no_grad():
        means = module.logps(batch).sum(-1) / (batch["labels"][:, 1:] != -100).sum(-1)
    size, callback = len(batch["index"]), EarlyWarning(1e9)
    fit(module, DataLoader([0], collate_fn=lambda _: batch), epochs=1, callbacks=[callback])
    chosen = float(means[rank * size :][:size].mean())
    assert callback.chosen[0][1] == pytest.approx(chosen, abs=1e-5)


@pytest.mark.parametrize("loss", ["plackett_luce", "ld_dpo"])
def test_a_cache_of_lists_gives_what_the_reference_gives(tmp_path, loss):
    logged = []
    for reference in ("copy", "cache", "cache"):
        module = PreferenceModule(tiny_llama(), loss, lora=None, reference=reference, lr=1e-3)
        data = PreferenceData(
            tiny_lists(6),
            tokenizer=tiny_tokenizer(),
            batch_size=2,
            reference_cache=str(tmp_path / "cache"),
        )
        trainer = fit(module, data, epochs=2)
        logged.append({k: float(v) for k, v in trainer.logged_metrics.items()})
    assert logged[0] == pytest.approx(logged[1], rel=1e-4, abs=1e-5)
    assert logged[1] == logged[2]


def test_pairs_have_no_third_answer():
    module = PreferenceModule(tiny_llama(), "tpo", lora=LORA)
    with pytest.raises(UserError, match="the data have no gold_mean_logps"):
        module.losses(module.pair_logps(batch_of(tiny_pairs(8))))


@pytest.mark.parametrize(("loss", "rows"), [("lambda_po", tiny_lists()), ("tpo", tiny_triples())])
def test_a_run_from_the_command_line(tmp_path, loss, rows):
    base = save_tiny(tmp_path / "base")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        *("fit", f"--out={tmp_path / 'run'}", f"--model.model={base}", f"--model.loss={loss}"),
        *(f"--data.train={path}", "--data.batch_size=4", "--data.max_length=64"),
        *("--model.lora.r=4", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"),
        "--trainer.log_every_n_steps=1",
    ]
    assert main(arguments) == 0
    (log,) = (tmp_path / "run").glob("**/metrics.csv")
    names, *lines = [line.split(",") for line in log.read_text().splitlines()]
    losses = [float(line[names.index("loss")]) for line in lines if line[names.index("loss")]]
    assert losses
    assert all(math.isfinite(value) for value in losses)
