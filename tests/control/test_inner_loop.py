"""The inner loop against a plain PyTorch loop, and what a population must and must not do."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from populations import ACTIONS, OBSERVATIONS, TIME, make_data, make_policy, make_population
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.nn.functional import logsigmoid, relu

from torchmpo.control import inner_loop as inner
from torchmpo.control.inner_loop import InnerConfig, train_policies
from torchmpo.control.policy import stack_policies
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.losses import apo_zero_loss, dpo_loss, orpo_loss, sft_loss, simpo_loss
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import generator


def every_input(
    chosen_logps,
    rejected_mean_logps,
    chosen_lengths,
    rejected_rewards,
    ref_chosen_mean_logps,
    rejected_step_logps,
    rejected_mask,
    progress,
    *,
    weight=0.7,
):
    """A loss that no one would use, of everything the loop can supply."""
    worst = torch.where(rejected_mask.bool(), rejected_step_logps, 0.0).square().sum(-1)
    gain = chosen_logps / chosen_lengths - ref_chosen_mean_logps
    return (
        relu(rejected_mean_logps + 3.0)
        + 0.1 * worst
        - (weight + progress) * (gain - 0.01 * gain.square() + logsigmoid(rejected_rewards * gain))
    )


def member(params, i: int):
    return {name: value[i : i + 1] for name, value in params.items()}


def distance(one, other) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def config(**settings) -> InnerConfig:
    return InnerConfig(**{"epochs": 2, "compile": False, "chunk_size": 4, **settings})


def plain_loop(policy, params, function, hyper, data, settings, seed):
    """One member, trained with nn.Module, torch.distributions, clip_grad_norm_ and Adam."""
    widths = [OBSERVATIONS, *policy.hidden, ACTIONS]
    layers = []
    for i, (a, b) in enumerate(zip(widths, widths[1:])):
        linear = nn.Linear(a, b, dtype=torch.float64)
        linear.weight.data.copy_(params[f"layers.{i}.weight"][0])
        linear.bias.data.copy_(params[f"layers.{i}.bias"][0])
        layers += [linear, nn.Tanh()]
    model = nn.Sequential(*layers)
    linears = layers[::2]
    log_std = nn.Parameter(params["log_std"][0].clone())

    def step_logps(row, time):
        obs = ((data.observation[row, time].double() - 0.2) / 1.5).clamp(-10, 10)
        normal = torch.distributions.Normal(model(obs), log_std.exp())
        return normal.log_prob(data.action[row, time].double()).sum(-1)

    def fields(pairs, offsets):
        """Field name → list over the pairs; the steps that are looked at, and no padding."""
        out = {}
        for side, rows in (("chosen", data.chosen), ("rejected", data.rejected)):
            for k, row in enumerate(rows[pairs]):
                length = int(data.lengths[row])
                time = torch.arange(length)
                if settings.steps_per_trajectory:
                    count = settings.steps_per_trajectory
                    u = offsets[k if side == "chosen" else settings.minibatch_pairs + k]
                    time = torch.tensor(
                        [int((j + float(u[j])) * length / count) for j in range(count)]
                    )
                logps = step_logps(row, time)
                values = {
                    "_mean_logps": logps.mean(),
                    "_logps": logps.mean() * length,
                    "_lengths": torch.tensor(length),
                    "_rewards": data.returns[row].double(),
                    "_step_logps": nn.functional.pad(logps, (0, data.action.shape[1] - len(logps))),
                    "_mask": (torch.arange(data.action.shape[1]) < len(logps)).double(),
                }
                for name, value in values.items():
                    out.setdefault(side + name, []).append(value)
        return {name: torch.stack(values) for name, values in out.items()}

    def phase(name, epochs, loss):
        optimizer = torch.optim.Adam([*model.parameters(), log_std], lr=settings.learning_rate)
        size = settings.minibatch_pairs
        updates = len(data) // size
        for epoch in range(epochs):
            random = generator(seed, "inner", name, epoch)
            order = torch.randperm(len(data), generator=random)[: updates * size].split(size)
            shape = (updates, 2 * size, settings.steps_per_trajectory or 0)
            offsets = torch.rand(shape, generator=random, dtype=torch.float64)
            for i in range(updates):
                optimizer.zero_grad()
                progress = torch.tensor((epoch * updates + i) / (epochs * updates))
                loss(order[i], offsets[i], progress).mean().backward()
                parameters = [p for p in (*model.parameters(), log_std) if p.grad is not None]
                norms.append(float(nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)))
                optimizer.step()

    norms: list[float] = []
    phase("sft", settings.sft_epochs, lambda p, u, _: -fields(p, u)["chosen_mean_logps"])
    frozen = [p.detach().clone() for p in (*model.parameters(), log_std)]

    def preference(pairs, offsets, progress):
        live = [p.detach().clone() for p in (*model.parameters(), log_std)]
        with torch.no_grad():
            for p, value in zip((*model.parameters(), log_std), frozen):
                p.copy_(value)
            reference = {f"ref_{k}": v for k, v in fields(pairs, offsets).items()}
            for p, value in zip((*model.parameters(), log_std), live):
                p.copy_(value)
        values = {**reference, **fields(pairs, offsets), "progress": progress}
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        return function(*(values[n] for n in names), **hyper)

    phase("preference", settings.epochs, preference)
    trained = {"log_std": log_std.detach()[None]}
    for i in range(len(policy.hidden) + 1):
        trained[f"layers.{i}.weight"] = linears[i].weight.detach()[None]
        trained[f"layers.{i}.bias"] = linears[i].bias.detach()[None]
    return trained, norms


@pytest.mark.parametrize(
    ("function", "hyper", "settings"),
    [
        (simpo_loss, {"beta": 3.0}, {}),
        (sft_loss, {}, {"steps_per_trajectory": 4}),
        (dpo_loss, {"beta": 0.3}, {"sft_epochs": 1, "steps_per_trajectory": 5}),
        (every_input, {"weight": 0.4}, {"sft_epochs": 1}),
        (every_input, {"weight": 0.4}, {"minibatch_pairs": 3}),
        (dpo_loss, {"beta": 0.3}, {"sft_epochs": 1, "minibatch_pairs": 3}),
    ],
)
def test_equals_a_plain_pytorch_loop(function, hyper, settings):
    policy, data = make_policy(std_kind="learned"), make_data()
    params = make_population(policy, 1)
    objective = Objective(function, **hyper)
    own = {k: torch.tensor([v], dtype=torch.float64) for k, v in hyper.items()}
    settings = config(epochs=3, max_grad_norm=0.8, learning_rate=3e-3, **settings)
    ours = train_policies(policy, params, objective, own, data, settings, 5)
    theirs, norms = plain_loop(policy, params, function, hyper, data, settings, 5)
    assert max(norms) > 0.8, "the test should clip somewhere"
    assert distance(ours, params) > 1e-3
    assert distance(ours, theirs) < 1e-9


@pytest.mark.parametrize("steps", [None, 6])
@pytest.mark.parametrize("seed", [3, [3, 1, 4, 1, 5]], ids=["shared", "own"])
@pytest.mark.parametrize("alike", [True, False])
def test_population_equals_members_alone_in_any_chunks(steps, seed, alike):
    policy, data, objective = make_policy(), make_data(), Objective(dpo_loss)
    start = stack_policies(policy.trainable(), 5) if alike else make_population(policy, 5)
    own = {"beta": torch.tensor([0.1, 0.2, 0.5, 1.0, 3.0], dtype=torch.float64)}
    settings = {"sft_epochs": 1, "steps_per_trajectory": steps}
    whole = train_policies(
        policy, start, objective, own, data, config(chunk_size=5, **settings), seed
    )
    assert distance(member(whole, 0), member(whole, 4)) > 1e-4
    for chunk_size in (1, 2, 3):
        chunked = config(chunk_size=chunk_size, **settings)
        parts = train_policies(policy, start, objective, own, data, chunked, seed)
        assert distance(whole, parts) < 1e-9
    for i in range(5):
        alone_seed = seed if isinstance(seed, int) else seed[i]
        alone = train_policies(
            policy,
            member(start, i),
            objective,
            member(own, i),
            data,
            config(**settings),
            alone_seed,
        )
        assert distance(member(whole, i), alone) < 1e-9


def test_compiled_float32_follows_eager_float64_and_is_compiled_once():
    policy, data, objective = make_policy(std_kind="learned"), make_data(), Objective(every_input)
    own = {"weight": torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0])}
    start = stack_policies(policy.trainable(), 5)
    exact = train_policies(policy, start, objective, own, data, config(), 0)
    policy = policy.float()
    start = {name: value.float() for name, value in start.items()}
    fast, next_own = config(compile=True, chunk_size=3), {"weight": 2 * own["weight"]}
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = train_policies(policy, start, objective, own, data, fast, 0)
        again = train_policies(policy, start, objective, next_own, data, fast, 1)
    assert all(value.dtype == torch.float32 for value in compiled.values())
    assert distance(compiled, start) > 1e-3
    assert distance(compiled, exact) < 1e-4
    assert distance(compiled, again) > 1e-4


UNCOMPILED = """
import torch
from populations import make_data, make_policy, make_population
from torchmpo.control.inner_loop import InnerConfig, train_policies
from torchmpo.losses import orpo_loss, simpo_loss
from torchmpo.objectives.bound import Objective

policy, data = make_policy(), make_data()
start = make_population(policy, 3)
for loss in (simpo_loss, orpo_loss):
    trained = [
        train_policies(
            policy, start, Objective(loss), {}, data, InnerConfig(epochs=1, compile=compiled), 0
        )
        for compiled in (True, False)
    ]
    assert not all(torch.equal(start[name], trained[0][name]) for name in start)
    print(all(torch.equal(trained[0][name], trained[1][name]) for name in start))
"""


def test_without_a_compiler_it_trains_eagerly_and_says_so_once(tmp_path):
    (tmp_path / "bin").mkdir()  # the only place where programs are looked for
    environment = {name: value for name, value in os.environ.items() if name != "CXX"}
    environment |= {
        "PATH": str(tmp_path / "bin"),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),  # nothing compiled earlier
    }
    done = subprocess.run(
        [sys.executable, "-c", UNCOMPILED], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "True"], done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("warning: no C++ compiler was found, so trainings are not comp")


def test_a_program_that_cannot_be_compiled_for_another_reason_is_an_error(monkeypatch):
    def broken(*_, **__):
        def program(*_):
            raise BackendCompilerFailed(broken, RuntimeError("no such operation"), None)

        return program

    monkeypatch.setattr(torch, "compile", broken)
    policy, data = make_policy(), make_data()
    start = stack_policies(policy.trainable(), 2)
    with pytest.raises(UserError, match=r"set compile to false.*broken"):
        train_policies(policy, start, Objective(simpo_loss), {}, data, config(compile=True), 0)


def test_sft_recovers_the_actions_of_a_known_policy():
    teacher, student = make_policy(seed=1), make_policy(seed=2, hidden=(32, 32))
    random = generator("teacher")
    obs = torch.randn(64, 50, OBSERVATIONS, generator=random, dtype=torch.float64)
    teacher.trainable()["layers.2.weight"].mul_(3.0)
    with torch.no_grad():
        mean = teacher(obs)
        action = mean + 0.1 * torch.randn(mean.shape, generator=random, dtype=torch.float64)
        before = student(obs).sub(mean).square().mean()
        rows = torch.arange(64)
        data = PreferenceDataset(obs, action, torch.full((64,), 50), rows.double(), rows, rows)
        start = stack_policies(student.trainable(), 1)
        settings = config(epochs=0, sft_epochs=20, learning_rate=5e-3)
        trained = train_policies(student, start, Objective(sft_loss), {}, data, settings, 0)
        student.load_state_dict({k: v[0] for k, v in trained.items()}, strict=False)
        after = student(obs).sub(mean).square().mean()
    assert before > 0.05
    assert after < 0.002


def test_the_same_seed_gives_the_same_bits_whatever_the_global_random_state():
    policy, data, objective = make_policy(), make_data(), Objective(simpo_loss)
    start, settings = make_population(policy, 3), config(steps_per_trajectory=4)
    own = {"beta": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)}
    first = train_policies(policy, start, objective, own, data, settings, 0)
    torch.rand(17)
    state = torch.get_rng_state()
    second = train_policies(policy, start, objective, own, data, settings, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train_policies(policy, start, objective, own, data, settings, 1)
    assert distance(first, other) > 1e-4


def test_a_member_that_becomes_nan_leaves_the_others_as_they_are():
    policy, data, objective = make_policy(), make_data(), Objective(orpo_loss)
    start = stack_policies(policy.trainable(), 4)
    own = {"po_coef": torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)}
    healthy = train_policies(policy, start, objective, own, data, config(), 0)
    own["po_coef"][1] = torch.nan
    broken = train_policies(policy, start, objective, own, data, config(), 0)
    for name, value in broken.items():
        assert value[1].isnan().all()
        assert torch.equal(value[[0, 2, 3]], healthy[name][[0, 2, 3]])


def test_a_member_whose_gradient_norm_overflows_becomes_nan():
    policy, data, objective = make_policy(), make_data(), Objective(orpo_loss)
    start = stack_policies(policy.trainable(), 2)
    own = {"po_coef": torch.tensor([0.1, 1e200], dtype=torch.float64)}
    trained = train_policies(policy, start, objective, own, data, config(), 0)
    for value in trained.values():
        assert value[0].isfinite().all()
        assert value[1].isnan().all()


@pytest.mark.parametrize("steps", [3, 8, 40])
def test_random_time_steps_estimate_the_mean_without_bias(steps):
    policy, data = make_policy(), make_data()
    time = torch.arange(TIME).expand(len(data.lengths), -1)
    data.action[..., 0] = torch.where(time < data.lengths[:, None], time, -1)
    loop = inner._Loop(
        policy, [data], config(steps_per_trajectory=steps), torch.zeros((), dtype=torch.float64)
    )
    draws = 3000
    for row in range(4):
        offsets = torch.rand((draws, 1, steps), generator=generator(row), dtype=torch.float64)
        rows = torch.tensor([row]).expand(draws, 1)
        seen = loop.gather(rows, offsets, {})["action"][..., 0].flatten().long()
        length = int(loop.lengths[row])
        share = torch.bincount(seen, minlength=length) / len(seen)  # raises on a −1
        assert len(share) == length
        # Each step is seen with probability 1/length: five binomial standard errors.
        assert (share - 1 / length).abs().max() < 5 * (1 / length / len(seen)) ** 0.5
    # The largest uniform number that is not 1 stays inside, too.
    nearly = torch.full((1, steps), 1 - 2**-53, dtype=torch.float64)
    last = loop.gather(torch.tensor([0]), nearly, {})["action"][..., 0]
    assert last.max() == loop.lengths[0] - 1


def moved(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):
    """Zero, with no gradient, as long as the policy is its reference up to rounding."""
    change = (chosen_logps - ref_chosen_logps).abs() + (rejected_logps - ref_rejected_logps).abs()
    return relu(change - 1e-8)


@pytest.mark.parametrize("steps", [None, 5])
def test_the_reference_is_the_member_itself_after_sft(steps):
    policy, data, objective = make_policy(), make_data(), Objective(moved)
    start = make_population(policy, 3)
    settings = {"sft_epochs": 2, "steps_per_trajectory": steps}
    sft = train_policies(policy, start, objective, {}, data, config(epochs=0, **settings), 0)
    assert distance(sft, start) > 1e-3
    trained = train_policies(policy, start, objective, {}, data, config(epochs=2, **settings), 0)
    assert distance(trained, sft) == 0


@pytest.mark.parametrize("steps", [None, 5])
def test_padding_is_never_read(steps):
    policy, data, objective = make_policy(), make_data(), Objective(every_input)
    start = make_population(policy, 2)
    settings = config(steps_per_trajectory=steps, sft_epochs=1)
    clean = train_policies(policy, start, objective, {}, data, settings, 0)
    dead = torch.arange(TIME) >= data.lengths[:, None]
    data.observation[dead], data.action[dead] = torch.nan, torch.nan
    dirty = train_policies(policy, start, objective, {}, data, settings, 0)
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)


class Curious:
    name = "curious"
    inputs = frozenset({"chosen_logps", "favourite_colour"})
    optional = frozenset()
    needs_reference = False


def after(name, data, **hyper):
    """A population after an epoch under a loss of the library."""
    policy = make_policy()
    start = make_population(policy, 3)
    own = {n: torch.full((3,), v, dtype=torch.float64) for n, v in hyper.items()}
    settings = config(epochs=2, steps_per_trajectory=5)
    return start, train_policies(policy, start, resolve(name), own, data, settings, 3)


def test_votes_reach_the_losses_that_ask_for_them():
    data = make_data()
    _, sure = after("soft_label_dpo", data, beta=0.3)  # nobody voted: the label is right
    assert distance(sure, after("dpo", data, beta=0.3)[1]) < 1e-12
    start, undecided = after(
        "smpo", replace(data, preference_probs=torch.full((7,), 0.5)), beta=0.3
    )
    assert distance(undecided, start) == 0.0
    probs = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 1.0, 0.2])
    _, voted = after("soft_label_dpo", replace(data, preference_probs=probs), beta=0.3)
    assert distance(voted, sure) > 1e-4
    # Conservative DPO is the same share for all.
    _, alike = after(
        "soft_label_dpo", replace(data, preference_probs=torch.full((7,), 0.8)), beta=0.3
    )
    assert distance(alike, after("dpo", data, beta=0.3, label_smoothing=0.2)[1]) < 1e-7


def test_each_pair_has_its_own_votes_and_each_member_its_own_data():
    """One pair per update, and a loss without another pair's votes, by a loss made for the test."""
    seen = []

    def tell(chosen_mean_logps, chosen_rewards, preference_probs):
        seen.append((chosen_rewards, preference_probs))
        return -chosen_mean_logps

    policy, one, two = make_policy(), make_data(seed=1), make_data(seed=2)
    one = replace(one, preference_probs=torch.arange(7) / 10)
    two = replace(two, preference_probs=torch.arange(7) / 10 + 0.05, rewards=two.returns + 100)
    table = {}
    for data, shift in ((one, 0), (two, 100)):
        scores = (data.returns[data.chosen] + shift).double()
        table |= {round(s.item(), 4): p.item() for s, p in zip(scores, data.preference_probs)}
    loop = inner._Loop(policy, [one, two], config(), torch.zeros((), dtype=torch.float64))
    order, _ = loop.draw("preference", 0, 3, [1, 2])
    order = order + loop.first_pair[:, None, None]
    rewards, probs = loop.rewards[loop.pairs[0][order]], loop.probs[order]
    for reward, prob in zip(rewards.flatten().tolist(), probs.flatten().tolist()):
        assert table[round(reward, 4)] == pytest.approx(prob)
    start = make_population(policy, 2)
    train_policies(policy, start, Objective(tell), {}, [one, two], config(epochs=1), [1, 2])
    assert seen


def test_mistakes_are_told_before_anything_runs():
    policy, data, objective = make_policy(), make_data(), Objective(dpo_loss)
    start, own = stack_policies(policy.trainable(), 3), {"beta": torch.ones(3)}

    def train(**changes):
        settings = {k: changes.pop(k) for k in list(changes) if hasattr(InnerConfig, k)}
        given = {"init_params": start, "objective": objective, "objective_params": own, "seed": 0}
        return train_policies(policy, dataset=data, config=config(**settings), **given | changes)

    with pytest.raises(ValueError, match="7 pairs, fewer than one minibatch of 8"):
        train(minibatch_pairs=8)
    with pytest.raises(ValueError, match="one population size; got 2, 3"):
        train(objective_params={"beta": torch.ones(2)})
    with pytest.raises(ValueError, match="one population size; got 3, 4"):
        train(seed=[1, 2, 3, 4])
    with pytest.raises(
        ValueError, match=r"curious: .* cannot supply favourite_colour; .*chosen_mean_logps"
    ):
        train(objective=Curious())
    with pytest.raises(ValueError, match="init_params should be"):
        train(init_params={name: value[0] for name, value in start.items()})
    data.lengths[data.chosen[2]] = 0
    with pytest.raises(ValueError, match="length 0"):
        train()


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": -1},
        {"minibatch_pairs": 0},
        {"steps_per_trajectory": 0},
        {"chunk_size": 0},
        {"learning_rate": 0.0},
        {"max_grad_norm": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        InnerConfig(**settings)


# --- being told of every epoch ---


def watched(policy, start, objective, own, data, settings, seed):
    """What training returns, and what it tells: (epochs done, members, parameters) of each call."""
    told = []

    def on_epoch(epoch, members, params):
        told.append((epoch, members, {name: value.clone() for name, value in params.items()}))

    final = train_policies(policy, start, objective, own, data, settings, seed, on_epoch=on_epoch)
    return final, told


@pytest.mark.parametrize("seed", [3, [3, 1, 4, 1, 5]], ids=["shared", "own"])
@pytest.mark.parametrize("sft_epochs", [0, 2])
def test_every_epoch_of_every_chunk_is_told_in_order(seed, sft_epochs):
    policy, data, objective = make_policy(), make_data(), Objective(simpo_loss)
    start = make_population(policy, 5)
    own = {"beta": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)}
    settings = config(epochs=3, sft_epochs=sft_epochs, chunk_size=3)
    final, told = watched(policy, start, objective, own, data, settings, seed)
    total = sft_epochs + 3
    assert [epoch for epoch, _, _ in told] == [*range(total + 1)] * 2
    # The last chunk is filled up from the front.
    assert [members for _, members, _ in told] == [[0, 1, 2]] * (total + 1) + [[3, 4, 0]] * (
        total + 1
    )
    unwatched = train_policies(policy, start, objective, own, data, settings, seed)
    for name in final:
        assert torch.equal(final[name], unwatched[name])
    for epoch, members, params in told:
        assert params.keys() == start.keys()
        for name, value in params.items():
            if epoch == 0:
                assert torch.equal(value, start[name][members])
            elif epoch == total and members[-1] == 2:
                assert torch.equal(value, final[name][members])
            elif epoch == total:  # the copy of member 0 is of another chunk
                assert torch.equal(value[:2], final[name][members[:2]])
                assert (value[2] - final[name][0]).abs().max() < 1e-9


@pytest.mark.parametrize("seed", [3, [3, 1]], ids=["shared", "own"])
def test_what_is_told_between_is_a_shorter_training(seed):
    """SimPO does not look at the progress, so its first epochs do not know how many there are."""
    policy, data, objective = make_policy(), make_data(), Objective(simpo_loss)
    start, own = make_population(policy, 2), {"beta": torch.ones(2, dtype=torch.float64)}
    settings = config(epochs=3, sft_epochs=2)
    _, told = watched(policy, start, objective, own, data, settings, seed)
    for epoch, _, params in told:
        shorter = config(sft_epochs=min(epoch, 2), epochs=max(epoch - 2, 0))
        expected = train_policies(policy, start, objective, own, data, shorter, seed)
        assert distance(params, expected) < 1e-12
    moves = [distance(a, b) for (_, _, a), (_, _, b) in zip(told, told[1:])]
    assert min(moves) > 1e-4


def test_of_a_shared_sft_phase_only_the_end_is_told():
    policy, data, objective = make_policy(), make_data(), Objective(dpo_loss)
    start = stack_policies(policy.trainable(), 3)
    own = {"beta": torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)}
    settings = config(epochs=1, sft_epochs=2, chunk_size=2)
    final, told = watched(policy, start, objective, own, data, settings, 0)
    assert [(epoch, members) for epoch, members, _ in told] == [
        (2, [0, 1]),
        (3, [0, 1]),
        (2, [2, 0]),
        (3, [2, 0]),
    ]
    sft = train_policies(policy, start, objective, own, data, config(epochs=0, sft_epochs=2), 0)
    for epoch, members, params in told:
        for name, value in params.items():
            assert value.shape[0] == 2
            if epoch == 2:
                assert (value - sft[name][members]).abs().max() < 1e-12
            else:
                assert (value - final[name][members]).abs().max() < 1e-9
    # With streams of their own, members have SFT phases of their own.
    _, told = watched(policy, start, objective, own, data, settings, [0, 1, 2])
    assert [epoch for epoch, _, _ in told] == [0, 1, 2, 3] * 2


def test_without_an_epoch_the_start_is_told_once_as_the_end():
    policy, data = make_policy(), make_data()
    start = make_population(policy, 2)
    settings = config(epochs=0)
    _, told = watched(policy, start, Objective(sft_loss), {}, data, settings, [1, 2])
    assert [(epoch, members) for epoch, members, _ in told] == [(0, [0, 1])]
    assert distance(told[0][2], start) == 0


# --- a learning rate for each member ---


@pytest.mark.parametrize("compiled", [False, True])
def test_a_member_learns_at_its_own_rate(compiled, traced_only):
    data, policy = make_data(), make_policy()
    init = make_population(policy, 3)
    config = InnerConfig(epochs=2, compile=compiled, chunk_size=3)
    objective, params = resolve("simpo"), {"beta": torch.tensor([2.0, 2.0, 2.0])}
    rates = [1e-2, 3e-3, 1e-3]
    together = train_policies(
        policy, init, objective, params, data, config, 0, learning_rates=torch.tensor(rates)
    )
    for i, rate in enumerate(rates):
        alone = train_policies(
            policy,
            {name: value[i : i + 1] for name, value in init.items()},
            objective,
            {"beta": torch.tensor([2.0])},
            data,
            replace(config, learning_rate=rate),
            0,
        )
        for name in init:
            torch.testing.assert_close(together[name][i], alone[name][0])


def test_other_rates_need_no_other_program(traced_only):
    data, policy = make_data(), make_policy()
    init, objective = make_population(policy, 2), resolve("sft")
    config = InnerConfig(epochs=1)
    for rate in (1e-3, 1e-4):
        train_policies(policy, init, objective, {}, data, replace(config, learning_rate=rate), 0)
    rates = torch.tensor([1e-2, 1e-5])
    train_policies(policy, init, objective, {}, data, config, 0, learning_rates=rates)
    assert len(inner._PROGRAMS) == 1


def test_sft_is_shared_by_members_of_one_rate_only():
    """Equal members on one stream part in their SFT epochs, if their rates differ."""
    data, policy = make_data(), make_policy()
    init = stack_policies(policy.trainable(), 2)
    config = InnerConfig(epochs=0, sft_epochs=2, compile=False)
    args = policy, init, resolve("dpo"), {"beta": torch.ones(2)}, data, config, 0
    apart = train_policies(*args, learning_rates=torch.tensor([1e-2, 1e-3]))
    alike = train_policies(*args, learning_rates=torch.tensor([1e-2, 1e-2]))
    name = "layers.0.weight"
    torch.testing.assert_close(apart[name][0], alike[name][0])
    assert not torch.equal(apart[name][0], apart[name][1])
    assert torch.equal(alike[name][0], alike[name][1])


@pytest.mark.parametrize("rates", [[1e-3], [1e-3, 0.0], [1e-3, math.nan], [1e-3, -1.0]])
def test_bad_rates_are_refused(rates):
    data, policy = make_data(), make_policy()
    init, config = make_population(policy, 2), InnerConfig(compile=False)
    args = policy, init, resolve("sft"), {}, data, config, 0
    with pytest.raises(UserError, match=r"learning.rates"):
        train_policies(*args, learning_rates=torch.tensor(rates))


def test_a_shared_rate_gives_the_bits_of_one_number():
    """Runs of before members had rates of their own go on to the same bits."""
    corrections = 1 - torch.tensor(0.9) ** torch.arange(1.0, 2000.0)
    for rate in (1e-3, 3e-4, 7e-5):
        rates = torch.full((3,), rate)
        of_members = rates * corrections[:, None].reciprocal()
        assert torch.equal(of_members, (rate / corrections)[:, None].expand(-1, 3))


@pytest.mark.parametrize("settings", [{}, {"steps_per_trajectory": 3}, {"sft_epochs": 1}])
@pytest.mark.parametrize("function", [orpo_loss, every_input])
def test_members_with_data_of_their_own_are_as_trained_alone(function, settings):
    """Chunks of two, one data set twice, and data sets of different numbers of trajectories."""
    data = [make_data(pairs=6, seed=seed) for seed in range(3)]
    data[1] = replace(data[1], rejected=data[1].rejected[:1].expand(6))
    data = [data[0], data[1], data[0], data[2]]
    objective, policy = Objective(function), make_policy()
    hyper = dict.fromkeys(objective.hyper, torch.ones(4, dtype=torch.float64))
    init, seeds, settings = make_population(policy, 4), [3, 4, 5, 6], config(**settings)
    together = train_policies(
        policy, init, objective, hyper, data, replace(settings, chunk_size=2), seeds
    )
    for i, own in enumerate(data):
        start = member(init, i)
        alone = train_policies(
            policy, start, objective, member(hyper, i), own, settings, seeds[i : i + 1]
        )
        assert distance(alone, start) > 1e-3
        assert distance(alone, member(together, i)) < 1e-9


def test_data_of_ones_own_may_share_a_stream():
    data = [make_data(pairs=6, seed=seed) for seed in range(2)]
    policy = make_policy()
    args = (policy, make_population(policy, 2), Objective(sft_loss), {}, data, config())
    assert distance(train_policies(*args, 3), train_policies(*args, [3, 3])) == 0


@pytest.mark.parametrize(
    ("pairs", "words"), [((6, 6, 6), "one population size"), ((6, 5), "equally many pairs")]
)
def test_data_of_ones_own_must_fit_the_population(pairs, words):
    policy, data = make_policy(), [make_data(pairs=count) for count in pairs]
    start = make_population(policy, 2)
    with pytest.raises(UserError, match=words):
        train_policies(policy, start, Objective(sft_loss), {}, data, config(), 0)


def halved_apo_zero(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1
):
    return apo_zero_loss(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta
    ).div(2)


def kto_by_hand(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    good, bad = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    moved = torch.cat([good, bad]).detach().mean().clamp(min=0)
    return (torch.sigmoid(beta * (moved - good)) + torch.sigmoid(beta * (bad - moved))) / 2


@pytest.mark.parametrize(
    ("single", "paired"), [("apo_zero_unpaired", halved_apo_zero), ("kto", kto_by_hand)]
)
@pytest.mark.parametrize("steps", [None, 4])
def test_a_loss_of_single_responses_gets_both_trajectories_of_each_pair(single, paired, steps):
    policy, data = make_policy(), make_data()
    start = make_population(policy, 3)
    own = {"beta": torch.tensor([0.05, 0.2, 1.0], dtype=torch.float64)}
    settings = config(sft_epochs=1, steps_per_trajectory=steps)
    trained = [
        train_policies(policy, start, objective, own, data, settings, 3)
        for objective in (resolve(single), Objective(paired))
    ]
    assert distance(trained[0], start) > 1e-3
    assert distance(*trained) < 1e-9


def test_what_only_language_models_have_is_refused():
    def of_others(logps, desirable, mismatched_logps):
        return logps - mismatched_logps

    with pytest.raises(UserError, match="of_others: the inner loop cannot supply mismatched_logps"):
        inner.check_inputs(Objective(of_others))


@pytest.mark.parametrize("seed", [3, [3, 5]], ids=["shared", "own"])
def test_a_reference_that_follows_at_once_leaves_the_slope_at_zero(seed):
    """Where the reference is the policy of the update before, D = 0 and DPO pulls with β/2."""

    def linear(chosen_logps, rejected_logps):
        return -0.15 * (chosen_logps - rejected_logps)

    policy, data = make_policy(), make_data()
    params, own = make_population(policy, 2), {"beta": torch.full((2,), 0.3).double()}
    settings = config(steps_per_trajectory=None)
    follows = replace(settings, reference_sync=1)
    dpo = resolve("dpo")
    actual = train_policies(policy, params, dpo, own, data, follows, seed)
    wanted = train_policies(policy, params, Objective(linear), {}, data, settings, seed)
    stays = train_policies(policy, params, dpo, own, data, settings, seed)
    assert distance(actual, wanted) < 1e-9 < 1e-5 < distance(actual, stays)


def test_a_reference_moves_by_its_mix_after_so_many_updates():
    """Between two steps of the reference, training is that from the policy with a fixed one."""
    policy, data = make_policy(), make_data()
    params, own = make_population(policy, 2), {"beta": torch.full((2,), 0.3).double()}
    settings, dpo = config(epochs=3, steps_per_trajectory=5), resolve("dpo")
    stays = train_policies(policy, params, dpo, own, data, settings, 3)

    def trained(**moving):
        return train_policies(policy, params, dpo, own, data, replace(settings, **moving), 3)

    assert distance(trained(reference_sync=10_000), stays) == 0
    much = distance(trained(reference_sync=2), stays)
    little = distance(trained(reference_sync=2, reference_mix=1e-6), stays)
    assert 0 < little < 1e-4 * much
    for bad in ({"reference_sync": 0}, {"reference_mix": 0.0}, {"reference_mix": 1.5}):
        with pytest.raises(UserError, match=next(iter(bad))):
            replace(settings, **bad)
