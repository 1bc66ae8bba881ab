"""The Gaussian policy against torch.distributions, and its file against damage."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch.distributions import Independent, Normal
from torch.func import functional_call, vmap
from torch.testing import assert_close

from torchmpo.control.policy import GaussianPolicy, load_policy, save_policy, stack_policies


def make(seed=0, dtype=torch.float64, **settings):
    torch.manual_seed(seed)
    policy = GaussianPolicy(5, 3, (16, 8), **settings).to(dtype)
    policy.observation_mean.normal_()
    policy.observation_std.uniform_(0.5, 2.0)
    with torch.no_grad():
        policy.layers[-1].weight.mul_(20)  # means beyond ±1, were they free
    return policy


def observations(*shape, seed=1):
    return 3 * torch.randn(*shape, 5, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("mean", ["tanh", "clip", "linear"])
@pytest.mark.parametrize("std_kind", ["fixed", "learned"])
def test_log_density(mean, std_kind):
    policy = make(mean=mean, std=0.3, std_kind=std_kind)
    with torch.no_grad():
        policy.log_std.add_(torch.tensor([0.0, 0.4, -0.7]))
    obs, action = observations(4, 7), torch.randn(4, 7, 3, dtype=torch.float64)
    expected = Independent(Normal(policy(obs), policy.log_std.exp()), 1).log_prob(action)
    assert expected.shape == (4, 7)
    assert_close(policy.step_logps(obs, action), expected, rtol=0, atol=1e-12)


def test_mean_is_the_network_written_out():
    policy = make(mean="tanh")
    obs = observations(6)
    x = ((obs - policy.observation_mean) / policy.observation_std).clip(-10, 10)
    for i in range(3):
        x = torch.tanh(x @ policy.layers[i].weight.T + policy.layers[i].bias)
    assert_close(policy(obs), x, rtol=0, atol=1e-14)
    assert_close(policy.mean_from_whitened(policy.whiten(obs)), x, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("activation", "written_out"),
    [
        ("relu", lambda x: x * (x > 0)),
        ("elu", lambda x: torch.where(x > 0, x, x.exp() - 1)),
        ("gelu", lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2),
        ("silu", lambda x: x / (1 + torch.exp(-x))),
    ],
)
@pytest.mark.parametrize("clip", [0.5, None])
def test_other_activations_and_limits_written_out(activation, written_out, clip):
    policy = make(mean="linear", activation=activation, observation_clip=clip)
    obs = 20 * observations(6)
    x = (obs - policy.observation_mean) / policy.observation_std
    if clip:
        x = x.clip(-clip, clip)
    for i in range(2):
        x = written_out(x @ policy.layers[i].weight.T + policy.layers[i].bias)
    x = x @ policy.layers[2].weight.T + policy.layers[2].bias
    assert_close(policy(obs), x, rtol=1e-12, atol=1e-12)


def test_a_file_without_the_later_fields_is_as_it_was(tmp_path):
    policy, path = make(dtype=torch.float32), tmp_path / "policy.safetensors"
    fields = {"observation_size": 5, "action_size": 3, "hidden": [16, 8], "mean": "tanh"}
    save_file(policy.state_dict(), path, metadata={"gaussian_policy": json.dumps(fields)})
    loaded = load_policy(path)
    assert (loaded.activation, loaded.observation_clip) == ("tanh", 10.0)
    obs = observations(3).float()
    assert torch.equal(loaded(obs), policy(obs))


def test_bounded_means_stay_in_the_range_of_the_actuators():
    largest = {}
    for mean in ("tanh", "clip", "linear"):
        largest[mean] = make(mean=mean)(observations(500)).abs().max().item()
    assert largest["tanh"] <= 1.0
    assert largest["clip"] == 1.0
    assert largest["linear"] > 2.0  # the test can fail


def test_whitened_observations_are_limited():
    policy = make()
    wild = torch.tensor([[1e9, -1e9, 1e9, -1e9, 0.0]]).double()
    assert policy.whiten(wild)[0, :4].tolist() == [10.0, -10.0, 10.0, -10.0]


def test_from_a_std_of_0p4_no_density_exceeds_one():
    obs = observations(100)
    for std, bounded in (
        (0.3, False),
        (1 / math.sqrt(2 * math.pi), True),
        (0.4, True),
        (2.0, True),
    ):
        policy = make(std=std)
        peak = policy.step_logps(obs, policy(obs)).max().item()  # the density is highest at μ
        assert (peak <= 1e-12) is bounded


def test_fixed_std_is_no_parameter_and_learned_std_is_one():
    fixed, learned = make(), make(std_kind="learned")
    assert "log_std" not in fixed.trainable()
    assert learned.trainable().keys() == fixed.trainable().keys() | {"log_std"}
    assert not any(value.requires_grad for value in learned.trainable().values())


def test_a_population_is_a_batch_dimension():
    policy = make(std_kind="learned")
    stacked = stack_policies(policy.trainable(), 4)
    draw = torch.Generator().manual_seed(2)
    for value in stacked.values():
        value += 0.3 * torch.randn(value.shape, generator=draw, dtype=value.dtype)
    assert not torch.equal(stacked["log_std"][0], policy.log_std)  # copies, not views
    obs, action = observations(4, 6), torch.zeros(4, 6, 3, dtype=torch.float64)

    class Logps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.policy = policy

        def forward(self, obs, action):
            return self.policy.step_logps(obs, action)

    named = {f"policy.{name}": value for name, value in stacked.items()}
    together = vmap(lambda p, o, a: functional_call(Logps(), p, (o, a)))(named, obs, action)
    for i in range(4):
        alone = make(std_kind="learned")
        alone.load_state_dict({name: value[i] for name, value in stacked.items()}, strict=False)
        assert_close(together[i], alone.step_logps(obs[i], action[i]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"mean": "tanh"},
        {"mean": "clip", "std_kind": "learned", "std": 0.7},
        {"mean": "linear", "activation": "relu", "observation_clip": None},
        {"activation": "silu", "observation_clip": 2.5},
    ],
)
def test_save_and_load(tmp_path, settings):
    policy = make(dtype=torch.float32, **settings)
    save_policy(policy, tmp_path / "policy.safetensors")
    loaded = load_policy(tmp_path / "policy.safetensors")
    assert loaded.architecture() == policy.architecture()
    expected = policy.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert_close(value, expected[name], rtol=0, atol=0)


def test_load_may_replace_the_std(tmp_path):
    path = tmp_path / "policy.safetensors"
    policy = make(dtype=torch.float32, std=0.4)
    save_policy(policy, path)
    loaded = load_policy(path, std=0.2, std_kind="learned")
    assert_close(loaded.log_std.detach(), torch.full((3,), math.log(0.2)))
    assert "log_std" in loaded.trainable()
    obs = observations(3).float()
    assert_close(loaded(obs), policy(obs), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"std must be positive; got 0\.0"):
        load_policy(path, std=0.0)


def damaged(path, how):
    policy = make(dtype=torch.float32)
    save_policy(policy, path)
    content = path.read_bytes()
    tensors = policy.state_dict()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[:-10])
    elif how == "header cut":
        path.write_bytes(content[:20])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("weights")
    elif how == "no architecture":
        save_file(tensors, path)
    elif how == "architecture no JSON":
        save_file(tensors, path, metadata={"gaussian_policy": "{"})
    elif how == "architecture a list":
        save_file(tensors, path, metadata={"gaussian_policy": "[1]"})
    elif how == "unknown setting":
        save_file(tensors, path, metadata={"gaussian_policy": '{"depth": 3}'})
    elif how == "other shapes":
        other = '{"observation_size": 6, "action_size": 3, "hidden": [16, 8]}'
        save_file(tensors, path, metadata={"gaussian_policy": other})
    elif how == "unknown activation":
        other = json.dumps(policy.architecture() | {"activation": "exp"})
        save_file(tensors, path, metadata={"gaussian_policy": other})
    elif how in ("not finite", "no spread"):
        name, value = ("layers.0.bias", math.nan) if how == "not finite" else ("observation_std", 0)
        tensors[name][1] = value
        save_file(tensors, path, {"gaussian_policy": json.dumps(policy.architecture())})
    elif how == "tensor missing":
        metadata = {"gaussian_policy": json.dumps(policy.architecture())}
        save_file({k: v for k, v in tensors.items() if k != "layers.0.bias"}, path, metadata)


@pytest.mark.parametrize(
    "how",
    [
        "missing",
        "truncated",
        "header cut",
        "empty",
        "text",
        "no architecture",
        "architecture no JSON",
        "architecture a list",
        "unknown setting",
        "other shapes",
        "unknown activation",
        "not finite",
        "no spread",
        "tensor missing",
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, how):
    path = tmp_path / "policy.safetensors"
    damaged(path, how)
    with pytest.raises(ValueError, match=r"policy\.safetensors is not a readable policy") as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": "relu"}, "mean must be one of tanh, clip, linear; got 'relu'"),
        ({"std_kind": "state"}, "std_kind must be one of fixed, learned; got 'state'"),
        ({"activation": "exp"}, "activation must be one of tanh, relu, elu, gelu, silu; got 'exp'"),
        ({"observation_clip": 0.0}, r"observation_clip must be positive; got 0\.0"),
        ({"std": 0.0}, r"std must be positive; got 0\.0"),
        ({"std": float("nan")}, "std must be positive; got nan"),
    ],
)
def test_mistakes_get_one_clear_line(settings, message):
    with pytest.raises(ValueError, match=message):
        GaussianPolicy(5, 3, **settings)
