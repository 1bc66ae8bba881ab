"""Reward models: they find a known reward, deterministically, and say how good they are."""

from dataclasses import replace

import pytest
import torch
from populations import ACTIONS, OBSERVATIONS, make_data, make_policy

from torchmpo.control.reward_models import RewardConfig, RewardModel, train_reward_model
from torchmpo.runs.errors import UserError

CONFIG = RewardConfig(
    **{"members": 2, "hidden": 16, "epochs": 8, "minibatch_pairs": 8},
    **{"learning_rate": 1e-2, "steps_per_trajectory": 16},
)
POLICY = make_policy().float()


def true_rewards(observation, action):
    return observation[..., 0] - action[..., 1].clamp(-1, 1)


def known(pairs=240, seed=0, **changes):
    """Pairs whose chosen trajectory has the higher sum of a known reward."""
    data = make_data(pairs=pairs, seed=seed)
    full = replace(data, lengths=torch.full_like(data.lengths, data.observation.shape[1]))
    random = torch.Generator().manual_seed(seed)
    observation = torch.randn(full.observation.shape, generator=random)
    action = torch.randn(full.action.shape, generator=random) * 0.3
    returns = true_rewards(observation, action).sum(1)
    first, second = full.chosen, full.rejected
    better = returns[first] >= returns[second]
    chosen, rejected = torch.where(better, first, second), torch.where(better, second, first)
    parts = {"observation": observation, "action": action, "returns": returns}
    return replace(full, **parts, chosen=chosen, rejected=rejected, **changes)


def test_it_finds_a_reward_of_single_steps_from_labels_of_whole_trajectories():
    data = known()
    model = train_reward_model(data, POLICY, CONFIG, seed=0)
    assert model.accuracy > 0.75
    assert len(model.member_accuracies) == 2
    found = model.rewards(data.observation[:20], data.action[:20]).flatten()
    wanted = true_rewards(data.observation[:20], data.action[:20]).flatten()
    assert torch.corrcoef(torch.stack([found, wanted]))[0, 1] > 0.85


def test_labels_at_random_are_ranked_by_chance_on_pairs_held_out():
    data = known()
    swap = torch.rand(len(data), generator=torch.Generator().manual_seed(1)) < 0.5
    chosen = torch.where(swap, data.rejected, data.chosen)
    rejected = torch.where(swap, data.chosen, data.rejected)
    wrong = replace(data, chosen=chosen, rejected=rejected)
    config = replace(CONFIG, held_out=0.3)
    assert abs(train_reward_model(wrong, POLICY, config, seed=0).accuracy - 0.5) < 0.15


def test_a_seed_names_the_model_and_the_global_state_is_left_alone():
    data, few = known(pairs=24), replace(CONFIG, epochs=1)
    state = torch.get_rng_state()
    one, same, other = (train_reward_model(data, POLICY, few, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    for name in one.params:
        assert torch.equal(one.params[name], same.params[name])
    assert not torch.equal(one.params["0.weight"], other.params["0.weight"])
    assert not torch.equal(one.params["0.weight"][0], one.params["0.weight"][1])


def test_the_worst_member_is_never_above_the_mean_and_both_are_scaled_alike():
    data = known(pairs=24)
    mean = train_reward_model(data, POLICY, replace(CONFIG, epochs=1), seed=0)
    worst = replace(mean, combine="worst")
    given = data.observation[:4], data.action[:4]
    each = (mean.member_rewards(*given) - mean.shift) / mean.scale
    torch.testing.assert_close(mean.rewards(*given), each.mean(0))
    torch.testing.assert_close(worst.rewards(*given), each.amin(0))


def test_the_lowest_trajectory_has_no_reward_and_their_spread_is_one():
    data = known(pairs=24)
    model = train_reward_model(data, POLICY, replace(CONFIG, epochs=1), seed=0)
    used = torch.cat([data.chosen, data.rejected])
    means = model.returns(data, used) / data.lengths[used]
    assert means.min() < 0.3  # among all pairs, of which a tenth was held out
    assert 0.7 < means.std() < 1.3


def test_a_margin_makes_returns_differ_by_more_where_the_true_ones_do():
    data = known()
    pairs = data.chosen, data.rejected
    slopes = []
    for margin in (0.0, 3.0):
        model = train_reward_model(data, POLICY, replace(CONFIG, margin_coef=margin), seed=0)
        model = replace(model, shift=0.0, scale=1.0)
        ahead = model.returns(data, pairs[0]) - model.returns(data, pairs[1])
        gap = data.returns[pairs[0]] - data.returns[pairs[1]]
        slopes.append(((ahead * gap).mean() / gap.square().mean()).item())
    assert slopes[1] > 1.3 * slopes[0] > 0


def test_returns_count_the_steps_of_a_trajectory_alone():
    data = make_data()
    model = RewardModel(
        POLICY,
        torch.nn.Linear(OBSERVATIONS + ACTIONS, 1),
        {"weight": torch.zeros(1, 1, OBSERVATIONS + ACTIONS), "bias": torch.ones(1, 1)},
    )
    rows = torch.arange(5)
    assert torch.equal(model.returns(data, rows), data.lengths[:5].float())


def test_pairs_that_share_a_trajectory_with_one_held_out_are_not_trained_on():
    data = known(pairs=6)
    together = replace(data, chosen=data.chosen[:1].expand(6))
    with pytest.raises(UserError, match="needs pairs to hold out: of 6, 1 were"):
        train_reward_model(together, POLICY, CONFIG, seed=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"members": 0}, "members must be at least 1; got 0"),
        ({"combine": "best"}, "combine must be one of mean, worst; got 'best'"),
        ({"held_out": 1.0}, r"held_out in \(0, 1\)"),
        ({"margin_coef": -1.0}, "margin_coef not negative"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        RewardConfig(**wrong)
