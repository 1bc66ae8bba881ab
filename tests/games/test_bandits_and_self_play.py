"""Bandits: online DPO ends at the KL optimum, SPO's order is the reward's, APO's gain 1/(1 − a)."""

import pytest
import torch

from torchmpo.games.bandits import dpo_round, kl_optimum
from torchmpo.games.self_play import extrapolated, queue_win_rates

REWARD = torch.tensor([0.0, 0.5, 1.0, -0.5], dtype=torch.float64)
REFERENCE = torch.tensor([0.4, 0.3, 0.1, 0.2], dtype=torch.float64)
BETA = 0.5


@pytest.mark.parametrize("online", [True, False])
def test_dpo_ends_at_the_optimum_with_kl_from_own_pairs_and_from_given_ones(online):
    end = dpo_round(REWARD, REFERENCE, beta=BETA, online=online)
    torch.testing.assert_close(end, kl_optimum(REWARD, REFERENCE, beta=BETA), atol=1e-4, rtol=0)


def test_dpo_from_drawn_pairs_comes_near_it():
    end = dpo_round(REWARD, REFERENCE, beta=BETA, pairs=256)
    torch.testing.assert_close(end, kl_optimum(REWARD, REFERENCE, beta=BETA), atol=0.03, rtol=0)


def test_rounds_with_the_reference_refreshed_go_on_as_one_with_a_smaller_beta():
    policy = REFERENCE
    for _ in range(3):
        policy = dpo_round(REWARD, policy, beta=3 * BETA)
    torch.testing.assert_close(policy, kl_optimum(REWARD, REFERENCE, beta=BETA), atol=1e-3, rtol=0)


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.8])
def test_extrapolation_between_rounds_has_the_gain_one_over_one_minus_a(factor):
    # A round ends where its optimum is: log π* = log π_ref + r/β, up to a constant.
    before = after = {"logits": REFERENCE.log()}
    for _ in range(80):
        start = extrapolated(before, after, factor)["logits"]
        end = kl_optimum(REWARD, start.softmax(0), beta=50 * BETA).log()
        before, after = after, {"logits": end}
    went = after["logits"] - before["logits"]
    plain = REWARD / (50 * BETA)
    gain = (went - went.mean()) / (plain - plain.mean())
    torch.testing.assert_close(gain, torch.full_like(gain, 1 / (1 - factor)), rtol=1e-3, atol=0)


def test_win_rates_against_a_queue_have_the_order_of_the_return_where_the_judge_is_transitive():
    generator = torch.Generator().manual_seed(0)
    returns, queue = torch.randn(2, 50, generator=generator, dtype=torch.float64)

    def judge(first, second):
        return torch.sigmoid((first - second) / 0.3)

    rewards = queue_win_rates(judge, returns, queue)
    assert torch.equal(rewards.argsort(), returns.argsort())
    assert rewards.min() >= 0
    assert rewards.max() <= 1


def test_win_rates_against_a_queue_follow_the_queue_where_the_judge_goes_in_a_circle():
    beats = torch.tensor([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])

    def judge(first, second):
        return beats[first, second]

    answers = torch.arange(3)
    for opponent, best in ((0, 1), (1, 2), (2, 0)):
        queue = torch.full((4,), opponent)
        assert queue_win_rates(judge, answers, queue).argmax() == best


def test_what_cannot_be_extrapolated_or_compared_is_refused():
    one = {"w": torch.ones(1)}
    with pytest.raises(ValueError, match=r"must be in \[0, 1\); got 1"):
        extrapolated(one, one, 1.0)
    with pytest.raises(ValueError, match="the same parameters"):
        extrapolated(one, {}, 0.5)
    with pytest.raises(ValueError, match="at least one answer"):
        queue_win_rates(torch.sub, torch.ones(2), torch.ones(0))
