"""Annotators against closed forms and counting."""

import math

import pytest
import torch

from torchmpo.control.annotators import (
    biased_scores,
    cyclic_margin,
    hard_flip_probability,
    preference_probability,
    rank_fraction,
    vote_shares,
)
from torchmpo.runs.errors import UserError

DRAWS = torch.Generator().manual_seed(0)


def test_the_judge_is_a_logistic_function_of_the_margin():
    margin = torch.tensor([0.0, 1.0, -3.0], dtype=torch.float64)
    expected = [1 / (1 + math.exp(-m / 2)) for m in (0.0, 1.0, -3.0)]
    assert preference_probability(margin, temperature=2.0).tolist() == pytest.approx(expected)
    assert preference_probability(margin, temperature=0.0).tolist() == [1.0, 1.0, 0.0]
    with pytest.raises(UserError, match="temperature must not be negative"):
        preference_probability(margin, temperature=math.nan)


def test_two_fifths_of_the_gap_flip_eight_percent():
    wrong = 1 - preference_probability(torch.tensor(1.0), temperature=0.4).item()
    assert wrong == pytest.approx(0.0759, abs=1e-4)


def test_votes_are_binomial():
    pairs, votes, p = 20_000, 5, 0.7
    shares = vote_shares(torch.full((pairs,), p), torch.rand(pairs, votes, generator=DRAWS))
    counts = torch.bincount((shares * votes).round().long(), minlength=votes + 1) / pairs
    expected = [math.comb(votes, v) * p**v * (1 - p) ** (votes - v) for v in range(votes + 1)]
    assert counts.tolist() == pytest.approx(expected, abs=0.012)
    many = vote_shares(torch.tensor([p]), torch.rand(1, 40_000, generator=DRAWS))
    assert many.item() == pytest.approx(p, abs=0.01)


def test_three_styles_beat_each_other_in_a_circle():
    styles = torch.tensor([0.0, 1 / 3, 2 / 3], dtype=torch.float64)
    score = cyclic_margin(styles[:, None], styles)
    assert torch.equal((score > 1e-9).int(), torch.tensor([[0, 0, 1], [1, 0, 0], [0, 1, 0]]).int())
    assert torch.allclose(score, -score.T)
    assert score[1, 0].item() == pytest.approx(math.sqrt(3) / 2)
    u = torch.stack([(2 * math.pi * styles).cos(), (2 * math.pi * styles).sin()], 1)
    skew = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(u @ skew @ u.T, score, atol=1e-12)


def test_opposite_groups_leave_no_single_judge_better_than_a_coin():
    """Bradley–Terry on two opposite groups has risk ln 2; whoever knows the group has almost 0."""
    margin = torch.linspace(-30, 30, 61, dtype=torch.float64)
    groups = [preference_probability(sign * margin, temperature=1.0) for sign in (1, -1)]
    mixed = 0.5 * groups[0] + 0.5 * groups[1]

    def risk(truth, said):
        said = said.clamp(1e-15, 1 - 1e-15)
        return -(truth * said.log() + (1 - truth) * (1 - said).log())

    best = min(risk(mixed, torch.sigmoid(s * margin)).mean().item() for s in (-1, -0.1, 0, 0.1, 1))
    assert best == pytest.approx(math.log(2))
    aware = sum(risk(group, group)[0].item() for group in groups) / 2
    assert aware < 1e-10


def test_ranks_are_parts_of_one():
    assert rank_fraction(torch.tensor([30.0, 10.0, 20.0, 40.0])).tolist() == [0.5, 0.0, 0.25, 0.75]


def test_equal_scores_have_one_rank():
    assert rank_fraction(torch.tensor([1.0, 0.0, 1.0, 0.0])).tolist() == [0.5, 0.0, 0.5, 0.0]


def test_a_proxy_judge_is_biased_by_as_much_as_it_says():
    returns, feature = torch.randn(2, 5000, generator=DRAWS, dtype=torch.float64)
    returns = 500 * returns + 2000
    assert torch.equal(biased_scores(returns, feature, 0.0), returns)
    bias = biased_scores(returns, 7 * feature - 3, 0.5) - returns
    assert bias.std(correction=0) == pytest.approx(0.5 * returns.std(correction=0))
    assert torch.corrcoef(torch.stack([bias, feature]))[0, 1].item() == pytest.approx(1.0)
    assert torch.equal(biased_scores(returns, torch.ones(5000), 9.0), returns)


def test_close_pairs_are_mislabelled_more_often():
    found = hard_flip_probability(torch.tensor([0.0, 100.0, -100.0, 1e6]), 0.4, 100.0)
    assert found.tolist() == pytest.approx([0.4, 0.4 / math.e, 0.4 / math.e, 0.0])
