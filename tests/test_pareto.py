"""Pareto fronts and hypervolumes, against moocore, closed forms and a Monte-Carlo twin."""

import moocore
import numpy as np
import pytest

from torchmpo.statistics import hypervolume, pareto_front


def drawn(objectives, count=12, seed=0):
    """Points of which some are dominated, some are equal, and some are below the reference, 0."""
    points = np.random.default_rng(seed).normal(0.5, 0.6, (count, objectives)).round(1)
    return np.concatenate([points, points[:2]])


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_both_are_those_of_moocore(objectives, seed):
    points, zero = drawn(objectives, seed=seed), np.zeros(objectives)
    theirs = moocore.is_nondominated(points, maximise=True, keep_weakly=True)
    assert pareto_front(points).tolist() == theirs.tolist()
    if objectives > 1:  # moocore's volumes have two dimensions and more
        volume = moocore.hypervolume(points, ref=zero, maximise=True)
        assert hypervolume(points, zero) == pytest.approx(volume, rel=1e-12)
    else:
        assert hypervolume(points, zero) == points.max()


def test_the_volume_is_the_share_of_random_points_that_are_dominated():
    points = drawn(3, seed=9)
    random = np.random.default_rng(1).uniform(-0.2, 2.5, (200_000, 3))
    share = (random[:, None] <= points).all(-1).any(1).mean()
    error = 2.7**3 * np.sqrt(share / len(random))
    assert hypervolume(points, [-0.2] * 3) == pytest.approx(2.7**3 * share, abs=4 * error)


def test_closed_forms():
    # Corners on the line x + y = n + 1: the area of a staircase.
    stairs = [(i, 6 - i) for i in range(1, 6)]
    assert hypervolume(stairs, (0, 0)) == 15
    assert pareto_front(stairs).all()
    assert hypervolume([(2, 3, 4)], (1, 1, 1)) == 6
    assert hypervolume([(2, 3)], (2, 0)) == 0  # not above the reference in one objective
    assert hypervolume(np.empty((0, 2)), (0, 0)) == 0
