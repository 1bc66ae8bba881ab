"""What moved in training, against closed forms."""

import math

import pytest
import torch

from torchmpo.control.categorical import CategoricalPolicy
from torchmpo.control.policy import GaussianPolicy, stack_policies
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.diagnose.behaviour import Visited, behaviour, distance

OBS, ACTIONS = 3, 2


def data_of(states):
    """One pair of trajectories, which see these states."""
    observation = states.view(2, -1, OBS)
    zeros = torch.zeros(*observation.shape[:2], ACTIONS)
    lengths = torch.full((2,), observation.shape[1])
    one = torch.tensor([0]), torch.tensor([1])
    return PreferenceDataset(observation, zeros, lengths, torch.zeros(2), *one)


@pytest.mark.parametrize("kind", [GaussianPolicy, CategoricalPolicy])
def test_divergences_are_those_of_torch(kind):
    torch.manual_seed(0)
    one, other = kind(OBS, ACTIONS, (8,), std=0.3), kind(OBS, ACTIONS, (8,), std=0.6)
    obs = torch.randn(20, OBS)
    if kind is GaussianPolicy:
        ours, theirs = (torch.distributions.Normal(p(obs), p.log_std.exp()) for p in (one, other))
    else:
        ours, theirs = (
            torch.distributions.Categorical(logits=p.logits_from_whitened(p.whiten(obs)))
            for p in (one, other)
        )
    want = torch.distributions.kl_divergence(ours, theirs).sum(-1)
    torch.testing.assert_close(one.kl_to(other, obs), want)


def test_what_moved_is_told_of_each_member_and_a_lost_one_is_none():
    torch.manual_seed(0)
    policy = GaussianPolicy(OBS, ACTIONS, (), mean="linear", std=0.5)
    starts = stack_policies(policy.trainable(), 3)
    params = {name: value.clone() for name, value in starts.items()}
    params["layers.0.bias"][1] += 0.1  # two actions, each 0.2 σ further
    params["layers.0.bias"][2] = math.nan
    states = torch.randn(100, OBS)
    visited = Visited(3)
    for step in range(60):
        going = torch.tensor([[True], [True], [step == 0]])
        visited.look(range(3), step, states[step].expand(3, 1, OBS), going)
    start_logps = torch.tensor([[[-1.0, -2.0, -3.0], [-2.0, -1.0, -4.0]]]).expand(3, 2, 3)
    logps = start_logps + torch.tensor([[[0.5, -1.5, 1.0], [0.0, -3.0, 3.0]]])
    still, further, lost = behaviour(
        policy, starts, params, visited, [data_of(states)], start_logps, logps
    )
    assert lost is None
    assert still["kl_to_start"] == 0
    assert further["kl_to_start"] == pytest.approx(2 * 0.5 * 0.2**2, rel=1e-4)
    assert still["chosen"] == still["rejected"] == 0
    # Margins 1, −1, 1 became 1.5, 0.5, −1.
    assert (still["learned"], still["unlearned"]) == pytest.approx((1 / 3, 1 / 3))
    assert still["distance"] == 0  # it sees what the data sees


def test_a_state_of_the_data_has_no_distance_from_it():
    """A matrix product rounds otherwise on another processor, and most where states are large."""
    torch.manual_seed(0)
    data = 100 + torch.randn(300, 27)
    assert distance(data[:50], data) == 0
    assert distance(100 + torch.randn(100, 27), data) == pytest.approx(1, abs=0.15)


def test_distance_is_measured_in_that_of_the_data_to_itself():
    torch.manual_seed(0)
    data, more = torch.randn(1000, 4), torch.randn(300, 4)
    assert distance(more, data) == pytest.approx(1, abs=0.15)
    assert distance(more + 10, data) > 10
