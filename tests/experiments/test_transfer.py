"""The study of transfer: the language-model side, and how its numbers are held against robots'."""

import json
import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap, spearmanr

from experiments.transfer import correlate, sentiment
from torchmpo import resolve
from torchmpo.runs.errors import UserError


def test_every_loss_has_its_trials_and_takes_them():
    for loss in sentiment.SETTINGS:
        settings = sentiment.trial_settings(loss, 12)
        assert len({json.dumps(setting) for setting in settings}) == 12
        for setting in settings:
            resolve(loss, **setting["loss_args"])


def test_the_divergence_of_the_best_of_four():
    """By simulation of its bound: log n of the best minus the mean rank's loss."""
    assert sentiment.TransferStudy().divergence == pytest.approx(0.636294, abs=1e-6)
    # n − 1 of n uniform numbers are below the best, whose density is n u^(n−1).
    u = np.linspace(1e-6, 1, 200_001)
    density = 4 * u**3
    kl = np.trapezoid(density * np.log(density), u)
    assert sentiment.TransferStudy().divergence == pytest.approx(kl, abs=1e-4)


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("most", [0.7, 5.0, 400.0, math.nan, math.inf])
def test_the_place_on_the_line_is_found(power, most):
    """Of divergences that grow as a power of the weight."""
    looks = []

    def look(weight):
        looks.append(weight)
        end = most if math.isfinite(most) else 1e6
        return sentiment.Place(weight, [], end * weight**power)

    found = sentiment.matched(sentiment.Place(1.0, [], most), look, 0.64, steps=60)
    if math.isfinite(most):
        assert found.kl == pytest.approx(0.64, rel=sentiment.TOLERANCE)
        assert len(looks) <= (3 if power == 2 else 40)
    assert 0 < found.weight <= 1


def test_a_model_that_does_not_go_so_far_is_taken_as_it_is():
    far = sentiment.Place(1.0, [], 0.3)
    assert sentiment.matched(far, lambda weight: pytest.fail("no look is needed"), 0.64) is far


def test_weights_between_two_models():
    untuned, tuned = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    middle = sentiment.between(untuned, tuned, 0.25)
    assert torch.allclose(middle.weight, 0.75 * untuned.weight + 0.25 * tuned.weight)
    assert torch.equal(sentiment.between(untuned, tuned, 1.0).bias, tuned.bias)
    assert torch.equal(sentiment.between(untuned, tuned, 0.0).bias, untuned.bias)


# Correlations


def test_spearman_is_scipys_with_ties():
    random = np.random.default_rng(0)
    x, y = random.integers(5, size=(2, 20, 12)).astype(float)
    found = correlate.spearman(x, y)
    assert found == pytest.approx([spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])
    assert np.isnan(correlate.spearman(np.ones((1, 4)), y[:1, :4]))[0]


def scores_of(values, seeds=1, noise=0.0, seed=0):
    random = np.random.default_rng(seed)
    return {
        f"loss {i}": value + noise * random.standard_normal(seeds) for i, value in enumerate(values)
    }


def test_the_interval_over_losses_is_scipys():
    """Of one seed each, the interval is that of a paired percentile bootstrap."""
    random = np.random.default_rng(1)
    x = random.standard_normal(16)
    y = x + random.standard_normal(16)
    found = correlate.correlation(scores_of(x), scores_of(y), draws=20_000)
    rival = bootstrap(
        (x, y),
        lambda a, b, axis: correlate.spearman(np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1)),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=2,
    ).confidence_interval
    assert found["rho"] == pytest.approx(spearmanr(x, y).statistic)
    assert (found["low"], found["high"]) == pytest.approx((rival.low, rival.high), abs=0.03)


def test_noise_of_the_seeds_widens_the_interval():
    values = np.arange(16.0)
    sure = correlate.correlation(scores_of(values, 5), scores_of(values, 8))
    assert (sure["rho"], sure["low"], sure["high"]) == pytest.approx((1, 1, 1))
    unsure = correlate.correlation(scores_of(values, 5, noise=30.0), scores_of(values, 8))
    assert unsure["high"] - unsure["low"] > 0.5


def test_losses_are_those_of_both_sides():
    robot, model = scores_of(np.arange(9.0)), scores_of(np.arange(7.0))
    found = correlate.correlation(robot, model, without=["loss 0"])
    assert found["losses"] == 6


def test_reliability_is_what_two_halves_of_the_seeds_have_in_common():
    """With many seeds: Spearman and Brown's formula, from the correlation of the halves."""
    scores = scores_of(np.random.default_rng(3).standard_normal(400), seeds=8, noise=3.0)
    halves = np.array([[v[:4].mean(), v[4:].mean()] for v in scores.values()])
    r = np.corrcoef(halves.T)[0, 1]
    assert correlate.reliability(scores) == pytest.approx(2 * r / (1 + r), abs=0.05)
    shared = np.linspace(-50, 50, 8)  # what a seed does to all alike
    moved = {loss: values + shared for loss, values in scores.items()}
    assert correlate.reliability(moved) == pytest.approx(correlate.reliability(scores))
    assert correlate.reliability(scores_of([1.0, 2.0])) is None


@pytest.mark.parametrize(
    ("rho", "low", "less_rho", "less_low", "word"),
    [
        (0.9, 0.5, 0.85, 0.4, "transfers"),
        (0.9, 0.5, 0.7, 0.4, "says something"),
        (0.9, 0.5, 0.85, -0.1, "says something"),
        (0.6, 0.1, 0.6, 0.1, "says something"),
        (0.9, -0.1, 0.9, 0.1, "not shown"),
    ],
)
def test_the_words_of_the_protocol(rho, low, less_rho, less_low, word):
    assert correlate.verdict({"rho": rho, "low": low}, {"rho": less_rho, "low": less_low}) == word


def test_what_is_finished_is_correlated(tmp_path, capsys):
    """A made-up regime on robots, one kind of sentiment, and the tables of others."""
    with pytest.raises(UserError, match="no regime in"):
        correlate.collect(tmp_path)
    folder = tmp_path / "transfer_llm_like"
    (folder / "cells").mkdir(parents=True)
    (folder / "anchors.json").write_text(json.dumps({"original": [0.0], "target": [100.0]}))
    pieces = tmp_path / "transfer_sentiment/best_of"
    pieces.mkdir(parents=True)
    for i, loss in enumerate(correlate.LOSSES):
        returns = [[10.0 * i], [10.0 * i + 1], None]  # the last seed diverged
        cell = {"loss": loss, "data": "best_of:4", "returns": returns}
        (folder / "cells" / f"{loss}.json").write_text(json.dumps(cell))
        for seed in range(1, correlate.STUDIES["sentiment"].seeds + 1):
            piece = {"matched": {"win_rate": 50.0 + i}, "far": {"win_rate": 60.0 - i, "kl": 2.0}}
            piece = {"error": "diverged"} if i == 0 else piece
            (pieces / f"{loss}-seed-{seed}.json").write_text(json.dumps(piece))
    few = tmp_path / "transfer_smollm2/best_of"  # four losses, and two seeds of a fifth
    few.mkdir(parents=True)
    for loss, seed in [*product(correlate.LOSSES[:4], (1, 2, 3)), ("dpop", 1), ("dpop", 2)]:
        rates = {
            side: {"win_rate": 50.0 + seed + len(loss), "kl": 2.0} for side in ("matched", "far")
        }
        (few / f"{loss}-seed-{seed}.json").write_text(json.dumps(rates))
    assert correlate.main(["--results", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "transfer/correlations.json").read_text())
    rows = {row["models"]: row for row in found["correlations"]}
    assert rows["sentiment, best_of"]["rho"] == pytest.approx(1.0)
    assert rows["sentiment, best_of"]["pair"] == "primary"
    assert rows["sentiment, best_of"]["verdict"] == "transfers"
    assert rows["sentiment, best_of, plain"]["rho"] < 0
    assert [rows[name]["losses"] for name in correlate.published()] == [9, 9]
    assert rows["sentiment, best_of"]["counted"]
    assert (rows["smollm2, best_of"]["losses"], rows["smollm2, best_of"]["counted"]) == (4, False)
    assert {"smollm2, best_of", "sentiment, best_of"} not in [
        set(row["models"]) for row in found["between_models"]
    ]
    # The worst run stands for the seed that diverged: 0 of the first loss.
    assert found["means"]["llm_like, best_of:4"]["dpo"] == pytest.approx(
        (0.1 + 0.11 + 0.0) / 3, abs=1e-4
    )
    told = capsys.readouterr().out
    assert "| primary: transfers |" in told
    assert "too few losses to count" in told
    # The best first; of the loss that diverged everywhere there is no KL.
    names, table = (
        list(correlate.LOSSES),
        told[told.index("| win rate, %") :].split("\n\n")[0].split("\n"),
    )
    assert table[2] == f"| {names[-1]} | 65.0 ± 0.0 | 45.0 | 2.0 |"
    assert table[-1] == f"| {names[0]} | 0.0 ± 0.0 | 0.0 | – |"
    assert (tmp_path / "transfer/correlations.svg").stat().st_size > 0


def test_published_losses_are_of_the_protocol():
    for scores in correlate.published().values():
        assert set(scores) <= set(correlate.LOSSES)
        assert len(scores) >= 6  # fewer are not counted
