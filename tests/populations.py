"""A small policy, data and population for tests of what trains or searches them."""

import torch

from torchmpo.control.policy import GaussianPolicy, stack_policies
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.runs.seeding import generator

OBSERVATIONS, ACTIONS, TIME, PAIRS = 5, 2, 23, 7


def make_data(*, pairs=PAIRS, time=TIME, seed=0) -> PreferenceDataset:
    """Random trajectories of random lengths; zero past the end; one row that no pair names."""
    random = generator(seed, "test data")
    rows = 2 * pairs + 1
    lengths = torch.randint(time // 3, time + 1, (rows,), generator=random)
    lengths[3] = time
    alive = (torch.arange(time) < lengths[:, None])[..., None]
    order = torch.randperm(rows, generator=random)
    return PreferenceDataset(
        observation=torch.randn(rows, time, OBSERVATIONS, generator=random) * alive,
        action=torch.randn(rows, time, ACTIONS, generator=random).mul(0.3) * alive,
        lengths=lengths,
        returns=torch.randn(rows, generator=random),
        chosen=order[:pairs],
        rejected=order[pairs : 2 * pairs],
    )


def make_policy(*, std_kind="fixed", hidden=(8, 6), seed=0) -> GaussianPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = GaussianPolicy(OBSERVATIONS, ACTIONS, hidden, std_kind=std_kind)
    policy.observation_mean.fill_(0.2)
    policy.observation_std.fill_(1.5)
    return policy.double()


def make_population(policy, population: int) -> dict[str, torch.Tensor]:
    """Members that differ from one another."""
    random = generator("test population")
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=random, dtype=value.dtype)
        for name, value in stack_policies(policy.trainable(), population).items()
    }
