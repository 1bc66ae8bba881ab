"""The shape of a pull is told of losses whose pull is known in closed form."""

import pytest
import torch

from experiments.discovered_shapes import MARGINS, pull, shape
from torchmpo.objectives.resolve import resolve


def test_the_pull_of_a_sigmoid_of_the_margin_shrinks():
    slopes = pull(resolve("simpo", beta=2.0, target_margin=0.5))
    expected = 2 * torch.sigmoid(0.5 - 2 * MARGINS.double())
    torch.testing.assert_close(slopes, expected, rtol=1e-5, atol=1e-6)
    correlation, ratio = shape(slopes)
    assert correlation == pytest.approx(-1)
    assert ratio == pytest.approx(float(slopes[:10].mean() / slopes[11:].mean()), rel=0.02)
