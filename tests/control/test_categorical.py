"""The categorical policy against torch's own distribution, and in the inner loop."""

import pytest
import torch
from populations import ACTIONS, OBSERVATIONS, make_data
from torch.distributions import Categorical

from torchmpo.control.categorical import CategoricalPolicy
from torchmpo.control.inner_loop import InnerConfig, train_policies
from torchmpo.control.policy import GaussianPolicy, save_policy, stack_policies
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError


@pytest.fixture
def policy():
    torch.manual_seed(0)
    own = CategoricalPolicy(5, 3, (16,), std=0.3, bins=7)
    torch.nn.init.normal_(own.residual.weight)
    return own


def test_with_one_motor_it_is_no_gaussian():
    """Whose tokens are whole steps, so that their number does not tell the two apart."""
    own = CategoricalPolicy(5, 1, (16,), bins=7)
    params = stack_policies(own.trainable(), 1)
    with pytest.raises(UserError, match="which a categorical policy does not supply"):
        train_policies(own, params, resolve("wpo"), {}, make_data(), InnerConfig(), 0)


def test_log_probabilities_are_those_of_torch(policy):
    obs, action = torch.randn(2, 4, 5), torch.empty(2, 4, 3).uniform_(-1.4, 1.4)
    logits = policy.logits_from_whitened(policy.whiten(obs))
    nearest = (action[..., None] - policy.middles).abs().argmin(-1)
    want = Categorical(logits=logits).log_prob(nearest)
    tokens = policy.token_logps_from_whitened(policy.whiten(obs), action)
    torch.testing.assert_close(tokens, want.flatten(-2))
    torch.testing.assert_close(policy.step_logps(obs, action), want.sum(-1))
    assert (tokens <= 0).all()


def test_at_first_it_is_the_discretised_gaussian():
    torch.manual_seed(0)
    gaussian = GaussianPolicy(5, 3, (16,), std=0.3)
    own, obs = CategoricalPolicy.discretised(gaussian, bins=101), torch.randn(50, 5)
    probs = own.logits_from_whitened(own.whiten(obs)).softmax(-1)
    density = torch.distributions.Normal(gaussian(obs)[..., None], 0.3).log_prob(own.middles).exp()
    torch.testing.assert_close(probs, density / density.sum(-1, keepdim=True))


def test_sampled_actions_have_its_probabilities(policy):
    obs, draws = torch.randn(5), 200_000
    actions = policy(obs.expand(draws, 5), torch.randn(draws, 3))
    counts = (actions[..., None] == policy.middles).float().mean(0)
    probs = policy.logits_from_whitened(policy.whiten(obs)).softmax(-1)
    torch.testing.assert_close(counts, probs, atol=0.006, rtol=0)
    torch.testing.assert_close(policy(obs), actions.mean(0), atol=0.006, rtol=0)


def test_without_hidden_layers_it_is_the_discretised_gaussian_too():
    gaussian = GaussianPolicy(5, 2, hidden=())
    policy, observation = CategoricalPolicy.discretised(gaussian), torch.randn(7, 5)
    spread = policy.logits_from_whitened(observation).argmax(-1)
    assert torch.equal(spread, policy.bin_of(gaussian.mean_from_whitened(observation)))


def test_it_has_no_file_of_its_own(policy, tmp_path):
    with pytest.raises(ValueError, match="a file of a policy holds a Gaussian one"):
        save_policy(policy, tmp_path / "policy.safetensors")
    assert not any(tmp_path.iterdir())


def test_two_bins_or_none():
    with pytest.raises(ValueError, match="bins must be at least 2; got 1"):
        CategoricalPolicy(5, 3, bins=1)


class BySteps(CategoricalPolicy):
    """The same policy, of which losses see steps instead of tokens."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tokens = 1

    def token_logps_from_whitened(self, whitened, action):
        tokens = super().token_logps_from_whitened(whitened, action)
        return tokens.unflatten(-1, (-1, self.action_size)).sum(-1)

    step_logps_from_whitened = token_logps_from_whitened


@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize("seed", [5, [5, 6]], ids=["shared", "own"])
@pytest.mark.parametrize(
    ("loss", "by_tokens", "by_steps"),
    [
        ("dpo", {"beta": 0.3}, {"beta": 0.3}),  # sums are the same
        ("simpo", {"beta": 2.0 * ACTIONS}, {"beta": 2.0}),  # means are of so many times more tokens
    ],
)
def test_a_token_is_a_motor_at_a_step(loss, by_tokens, by_steps, seed, steps):
    trained = []
    for kind, hyper in ((CategoricalPolicy, by_tokens), (BySteps, by_steps)):
        torch.manual_seed(0)
        policy = kind(OBSERVATIONS, ACTIONS, (8,), std=0.5, bins=5).double()
        params = stack_policies(policy.trainable(), 2)
        own = {name: torch.full((2,), value, dtype=torch.float64) for name, value in hyper.items()}
        config = InnerConfig(epochs=3, compile=False, steps_per_trajectory=steps, max_grad_norm=1e9)
        data = make_data()
        data = [data, data] if isinstance(seed, list) else data
        trained.append(train_policies(policy, params, resolve(loss), own, data, config, seed))
    one, other = trained
    assert (one["residual.weight"] - params["residual.weight"]).abs().max() > 1e-4
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], msg=name)
