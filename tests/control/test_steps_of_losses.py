"""What the inner loop supplies of single steps: the reference's, divergences, collisions."""

import math

import pytest
import torch
from populations import make_data, make_policy, make_population
from torch.distributions import MultivariateNormal, kl_divergence

from torchmpo.control import inner_loop as inner
from torchmpo.control.inner_loop import InnerConfig, train_policies
from torchmpo.control.policy import gaussian_log_collision, gaussian_step_kl
from torchmpo.losses import dpo_loss
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError


def distance(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_divergence_and_collision_are_those_of_torch_distributions():
    gen = torch.Generator().manual_seed(0)
    mean, ref_mean, log_std, ref_log_std = torch.randn(4, 5, 3, generator=gen).double()
    log_std, ref_log_std = log_std[0], ref_log_std[0]
    policy = MultivariateNormal(mean, torch.diag(log_std.exp() ** 2))
    reference = MultivariateNormal(ref_mean, torch.diag(ref_log_std.exp() ** 2))
    torch.testing.assert_close(
        gaussian_step_kl(ref_mean, ref_log_std, mean, log_std), kl_divergence(reference, policy)
    )
    # ∫π² is the density of a − b at 0, for a and b drawn from the policy: σ² twice.
    zero = MultivariateNormal(torch.zeros(3).double(), torch.diag(2 * log_std.exp() ** 2))
    expected = zero.log_prob(torch.zeros(3).double())
    torch.testing.assert_close(gaussian_log_collision(log_std), expected)


def train(objective, hyper, *, std_kind="learned", **settings):
    policy, data = make_policy(std_kind=std_kind), make_data()
    start = make_population(policy, 3)
    config = InnerConfig(
        **{"epochs": 1, "compile": False, "chunk_size": 2, "sft_epochs": 1} | settings
    )
    own = {k: torch.tensor(v, dtype=torch.float64) for k, v in hyper.items()}
    return train_policies(policy, start, objective, own, data, config, 3), start


@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize("std_kind", ["fixed", "learned"])
def test_tdpo_without_its_divergence_is_dpo(steps, std_kind):
    betas = {"beta": [0.05, 0.2, 1.0]}
    settings = {"steps_per_trajectory": steps, "std_kind": std_kind}
    dpo, start = train(Objective(dpo_loss), betas, **settings)
    tdpo, _ = train(resolve("tdpo"), betas | {"alpha": [0.0] * 3}, **settings)
    assert distance(dpo, start) > 1e-3
    assert distance(dpo, tdpo) < 1e-9
    other, _ = train(resolve("tdpo"), betas | {"alpha": [1.0] * 3}, **settings)
    assert distance(tdpo, other) > 1e-5


@pytest.mark.parametrize("name", ["tdpo", "tb_po", "ld_dpo", "bvpo", "wpo", "samdpo", "sft@wpo"])
def test_a_population_is_its_members_alone(name):
    policy, data, objective = make_policy(), make_data(), resolve(name)
    start = make_population(policy, 3)
    config = InnerConfig(epochs=1, compile=False, chunk_size=3, steps_per_trajectory=5)
    own = {k: v.double().expand(3) for k, v in objective.parameters_tree().items()}
    both = train_policies(policy, start, objective, own, data, config, 3)
    assert distance(both, start) > 1e-5
    one = {name: value[1:2] for name, value in start.items()}
    alone = train_policies(
        policy, one, objective, {k: v[:1] for k, v in own.items()}, data, config, 3
    )
    assert distance({name: value[1:2] for name, value in both.items()}, alone) < 1e-9


def test_the_divergence_holds_a_policy_where_it_started():
    def held(chosen_mean_logps, chosen_step_kl, ref_chosen_logps, *, weight=0.0):
        return weight * chosen_step_kl.sum(-1) - chosen_mean_logps

    free, start = train(Objective(held), {"weight": [0.0] * 3}, epochs=5, sft_epochs=0)
    close, _ = train(Objective(held), {"weight": [1e4] * 3}, epochs=5, sft_epochs=0)
    assert distance(close, start) < 0.5 * distance(free, start)


@pytest.mark.parametrize("name", ["plackett_luce", "self_po", "lambda_po"])
def test_a_pair_is_a_list_of_two(name):
    betas = {"beta": [0.05, 0.2, 1.0]}
    dpo, start = train(Objective(dpo_loss), betas, steps_per_trajectory=4)
    listed, _ = train(resolve(name), betas, steps_per_trajectory=4)
    assert distance(dpo, start) > 1e-3
    assert distance(dpo, listed) < 1e-6


def test_weights_of_steps_are_ones_own():
    with pytest.raises(UserError, match="cannot supply chosen_step_weights, rejected_step_weights"):
        inner.check_inputs(resolve("sparse_po"))


def test_the_weight_of_a_density_is_what_its_own_draws_have_on_average():
    std = torch.tensor([0.4])
    policy = MultivariateNormal(torch.zeros(1), torch.diag(std**2))
    draws = policy.sample((200_000,))
    mean = policy.log_prob(draws).exp().mean().item()
    assert math.log(mean) == pytest.approx(gaussian_log_collision(std.log()).item(), abs=0.01)
