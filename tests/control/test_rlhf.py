"""PPO on a learned reward: it goes where the reward is, and stays where KL keeps it."""

from dataclasses import replace

import pytest
import torch

from torchmpo.control.inner_loop import InnerConfig
from torchmpo.control.pools import PoolConfig
from torchmpo.control.reward_models import RewardModel
from torchmpo.control.rlhf import PPOConfig, check_rlhf, optimise
from torchmpo.control.testbed import TestbedConfig, prepare
from torchmpo.runs.errors import UserError

FOREIGN = PoolConfig("gymnasium:Pendulum-v1", original="ant_original", target="tla_target")
# Few steps, and a reward of the moment: much noise, and little foresight.
PPO = PPOConfig(steps=1280, num_envs=16, horizon=16, minibatches=2, looks=3, gamma=0.5, std=0.3)


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    inner = InnerConfig(epochs=1, compile=False, steps_per_trajectory=5)
    pool = PoolConfig(pairs=4, max_steps=20)
    return prepare([TestbedConfig(pool=pool, inner=inner, num_threads=1, cache_dir=cache)])[0]


def first_action(bed):
    """A reward model that knows one thing: the first motor is to push forward."""
    policy = bed.policy
    weight = torch.zeros(1, 1, policy.observation_size + policy.action_size)
    weight[..., policy.observation_size] = 1.0
    network = torch.nn.Linear(weight.shape[-1], 1)
    return RewardModel(policy, network, {"weight": weight, "bias": torch.zeros(1, 1)})


def pushed(bed, run):
    """Mean first action of each policy that was kept, at the states of the data."""
    states = bed.dataset.observation[:, :10].flatten(0, 1)
    call = torch.func.functional_call
    policies = ({n: v[k] for n, v in run.policies.items()} for k in range(len(run.steps)))
    return [call(bed.policy, own, (states,))[:, 0].mean().item() for own in policies]


def test_it_goes_where_the_learned_reward_is_and_kl_keeps_it_at_the_start(bed):
    free = {"learning_rate": 3e-3, "kl_coef": 0.0}
    run = optimise(bed, first_action(bed), free, PPO, seed=0)
    assert run.steps == [0, 512, 1280]
    moved = pushed(bed, run)
    assert moved[0] < moved[1] < moved[2]
    assert moved[2] > moved[0] + 0.1
    assert run.rewards[-1] > run.rewards[0] + 0.05
    held = optimise(bed, first_action(bed), free | {"kl_coef": 10.0}, PPO, seed=0)
    assert pushed(bed, held)[2] - moved[0] < (moved[2] - moved[0]) / 2


def test_a_seed_names_the_training_and_the_policy_of_the_testbed_stays(bed):
    setting, reward = {"learning_rate": 1e-3, "kl_coef": 0.01}, first_action(bed)
    few = replace(PPO, steps=512, epochs=1, looks=2)
    before = {name: value.clone() for name, value in bed.policy.trainable().items()}
    torch.manual_seed(5)
    undisturbed = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (optimise(bed, reward, setting, few, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), undisturbed)
    for name, values in one.policies.items():
        assert torch.equal(values, same.policies[name])
        assert torch.equal(values[0], before[name])
        assert torch.equal(bed.policy.trainable()[name], before[name])
    assert not torch.equal(one.policies["layers.0.weight"][1], other.policies["layers.0.weight"][1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "categorical"}, "set policy to gaussian"),
        ({"start": "scratch"}, "set start to original"),
        ({"sample": True}, "judged by its mean actions: set sample to false"),
        ({"pool": FOREIGN}, "trains in the shipped tasks, .*; got 'gymnasium:Pendulum-v1'"),
    ],
)
def test_what_it_cannot_train_on_is_refused_in_a_line(changes, message):
    with pytest.raises(UserError, match=message):
        check_rlhf(replace(TestbedConfig(), **changes))
