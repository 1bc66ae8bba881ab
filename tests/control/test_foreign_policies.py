"""Policies of Stable-Baselines3 and plain networks against what these libraries answer."""

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from torchmpo.control.foreign_policies import from_sequential, from_stable_baselines3
from torchmpo.control.policy import load_policy, save_policy

OBSERVATIONS = 4 * torch.randn(200, 5, generator=torch.Generator().manual_seed(0))


class Unscaled(gymnasium.Env):
    """Five observations, and two actions of different ranges."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (5,), np.float32)
    action_space = gymnasium.spaces.Box(
        np.array([-2.0, 0.0], np.float32), np.array([2.0, 0.5], np.float32)
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.standard_normal(5).astype(np.float32), {}

    def step(self, action):
        obs = self.np_random.standard_normal(5).astype(np.float32) * np.float32([1, 2, 3, 4, 5])
        return obs, 0.0, False, False, {}


def in_range(action):
    """Of −1 to 1, as an environment takes it."""
    space = Unscaled.action_space
    low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
    return low + (action.clamp(-1, 1) + 1) / 2 * (high - low)


@pytest.fixture(scope="module")
def sb3():
    return pytest.importorskip("stable_baselines3")


def made(sb3, name, normalized, **policy):
    torch.manual_seed(1)
    env = sb3.common.vec_env.DummyVecEnv([Unscaled])
    if normalized:
        env = sb3.common.vec_env.VecNormalize(env, clip_obs=1.5)
        env.seed(0)
        env.reset()
        for _ in range(50):
            env.step(np.zeros((1, 2), np.float32))
    model = getattr(sb3, name)("MlpPolicy", env, policy_kwargs=policy or None, device="cpu", seed=0)
    with torch.no_grad():  # away from 0, where all answers are alike
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model, env if normalized else None


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("PPO", {}),
        ("PPO", {"net_arch": [8, 7, 6], "activation_fn": nn.ELU}),
        ("PPO", {"net_arch": {"pi": [16], "vf": [8]}, "activation_fn": nn.ReLU}),
        ("A2C", {}),
        ("SAC", {"net_arch": [16, 8]}),
        ("TD3", {"net_arch": [16, 8], "activation_fn": nn.Tanh}),
        ("DDPG", {"net_arch": [16]}),
    ],
)
def test_a_converted_policy_acts_as_stable_baselines3_does(sb3, tmp_path, name, policy, normalized):
    model, normalize = made(sb3, name, normalized, **policy)
    seen = OBSERVATIONS.numpy()
    if normalize is not None:
        seen = normalize.normalize_obs(seen)
    expected, _ = model.predict(seen, deterministic=True)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    save_policy(from_stable_baselines3(model, normalize=normalize), tmp_path / "p.safetensors")
    ours = load_policy(tmp_path / "p.safetensors")
    with torch.no_grad():
        assert_close(in_range(ours(OBSERVATIONS)), torch.from_numpy(expected), rtol=0, atol=3e-5)
    assert np.ptp(expected, axis=0).min() > 0.1  # the answers depend on the observation
    after = model.policy.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_statistics_of_observations_are_not_in_a_saved_model(sb3, tmp_path):
    """They are loaded by themselves, as the documentation says, or asked for where they are."""
    model, normalize = made(sb3, "PPO", normalized=True)
    with pytest.raises(ValueError, match=r"give its statistics, normalize=model\.get_vec"):
        from_stable_baselines3(model)
    expected, _ = model.predict(normalize.normalize_obs(OBSERVATIONS.numpy()), deterministic=True)
    model.save(tmp_path / "model.zip")
    normalize.save(tmp_path / "vecnormalize.pkl")
    loaded = sb3.PPO.load(tmp_path / "model.zip", device="cpu")
    assert loaded.get_vec_normalize_env() is None
    env = sb3.common.vec_env.DummyVecEnv([Unscaled])
    again = sb3.common.vec_env.VecNormalize.load(str(tmp_path / "vecnormalize.pkl"), env)
    ours = from_stable_baselines3(loaded, normalize=again)
    with torch.no_grad():
        assert_close(in_range(ours(OBSERVATIONS)), torch.from_numpy(expected), rtol=0, atol=3e-5)
    model.get_vec_normalize_env().norm_obs = False  # of rewards alone: there is nothing to take
    from_stable_baselines3(model)


def test_the_density_of_ppos_actions_is_the_same_in_other_units(sb3):
    model, _ = made(sb3, "PPO", normalized=False)
    with torch.no_grad():
        model.policy.log_std.copy_(torch.tensor([-0.4, 0.3]))
    action = torch.randn(200, 2, generator=torch.Generator().manual_seed(2))
    _, expected, _ = model.policy.evaluate_actions(OBSERVATIONS, action)
    ours = from_stable_baselines3(model)
    middle, half = torch.tensor([0.0, 0.25]), torch.tensor([2.0, 0.25])
    got = ours.step_logps(OBSERVATIONS, (action - middle) / half)
    assert_close(got - half.log().sum(), expected, rtol=0, atol=1e-3)  # dx/dy of the density


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("PPO", {"use_sde": True}, "state-dependent exploration has no constant σ"),
        ("SAC", {"use_sde": True}, "state-dependent exploration is not supported"),
    ],
)
def test_other_policies_of_stable_baselines3_are_refused(sb3, name, settings, message):
    model = getattr(sb3, name)("MlpPolicy", Unscaled(), device="cpu", **settings)
    with pytest.raises(ValueError, match=message):
        from_stable_baselines3(model)


def test_discrete_actions_are_refused(sb3):
    model = sb3.PPO("MlpPolicy", "CartPole-v1", device="cpu")
    with pytest.raises(ValueError, match="must be vectors of real numbers; got"):
        from_stable_baselines3(model)


@pytest.mark.parametrize("end", [[], [nn.Tanh()]])
@pytest.mark.parametrize(
    "activation",
    [
        nn.Tanh,
        lambda: nn.ReLU(inplace=True),
        nn.ELU,
        lambda: nn.ELU(inplace=True),
        nn.GELU,
        nn.SiLU,
    ],
)
def test_a_plain_network(end, activation):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), activation(), nn.Linear(7, 3, bias=False), *end)
    policy = from_sequential(net, std=[0.1, 0.2, 0.3])
    with torch.no_grad():
        assert_close(policy(OBSERVATIONS), net(OBSERVATIONS), rtol=0, atol=1e-6)
    assert_close(policy.log_std.exp(), torch.tensor([0.1, 0.2, 0.3]))
    whitened = from_sequential(net, observation_mean=2.0, observation_std=[1, 2, 3, 4, 5])
    with torch.no_grad():
        seen = (OBSERVATIONS - 2) / torch.arange(1, 6)
        assert_close(whitened(OBSERVATIONS), net(seen), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Linear(5, 3), nn.ReLU()], "must be Linear layers with an activation between"),
        ([nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)], "among Tanh, ReLU, ELU, GELU, SiLU"),
        ([nn.Linear(5, 4), nn.ELU(0.5), nn.Linear(4, 3)], "of one kind, with its usual settings"),
        (
            [nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)],
            "must be of one kind",
        ),
        ([], "must be Linear layers"),
    ],
)
def test_another_network_is_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        from_sequential(nn.Sequential(*layers))


def test_numbers_out_of_range_are_refused():
    net = nn.Sequential(nn.Linear(5, 3))
    with pytest.raises(ValueError, match="std must be positive"):
        from_sequential(net, std=0.0)
    with pytest.raises(ValueError, match="low must be below high"):
        from_sequential(net, low=1.0, high=1.0)
