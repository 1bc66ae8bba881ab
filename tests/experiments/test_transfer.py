"""The study of transfer: the language-model side, and how its numbers are held against robots'."""

import json
import math

import numpy as np
import pytest
import torch

from experiments.transfer import sentiment
from torchmpo import resolve


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
