"""A cell of the suite: what its parts give, on a task of twelve steps."""

import inspect
import json
import math
from dataclasses import replace

import pytest
import torch

from torchmpo.control.grids import grid
from torchmpo.control.inner_loop import InnerConfig
from torchmpo.control.policy import load_policy
from torchmpo.control.pools import PoolConfig
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.control.rehearsal import rehearse
from torchmpo.control.returns import evaluate_policies
from torchmpo.control.rounds import Rounds
from torchmpo.control.sample import SAMPLE_PAIRS, SAMPLE_STEPS, Sample
from torchmpo.control.testbed import Testbed, TestbedConfig, prepare, prepare_fresh
from torchmpo.control.tuning import Protocol, best_setting, race, suited, tune
from torchmpo.diagnose.suite import anchors, judge, run_cell
from torchmpo.losses import LOSSES
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.inputs import DRAWN, PairLogps
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.resolve import resolve
from torchmpo_envs import ThreeLeggedAnt, expert_path

PAIRS, STEPS, EPOCHS = 6, 12, 3
PROTOCOL = Protocol(tuning_seeds=2, tuning_episodes=16, episodes=16, sft_epochs=2)
GRID = [{"beta": 2.0, "target_margin": 0.5}, {"beta": 20.0, "target_margin": 0.0}]
# A policy is the same in any population, its rollout up to float32 rounding: how a product of
# matrices is summed depends on the place in memory, and contacts amplify.
CLOSE = {"atol": 1e-2, "rtol": 0.0}


def volatile(chosen_mean_logps, rejected_mean_logps, *, power=1.0):
    """Finite for a moderate power; above 88, exp overflows float32 and training is NaN."""
    power = torch.as_tensor(power)
    return torch.exp(power) * (rejected_mean_logps - chosen_mean_logps)


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    inner = InnerConfig(epochs=EPOCHS, compile=False, steps_per_trajectory=5, chunk_size=4)
    pool = PoolConfig(pairs=PAIRS, max_steps=STEPS)
    return prepare([TestbedConfig(pool=pool, inner=inner, num_threads=1, cache_dir=cache)])[0]


def close(one, other):
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), **CLOSE)


def spy(monkeypatch, name):
    """Calls of a method of Testbed: (positional arguments, keyword arguments)."""
    calls, method = [], getattr(Testbed, name)

    def wrapped(self, *args, **kwargs):
        calls.append((args, kwargs))
        return method(self, *args, **kwargs)

    monkeypatch.setattr(Testbed, name, wrapped)
    return calls


# --- tuning ---


def test_tuning_is_a_training_of_each_setting_alone(bed):
    objective = resolve("simpo")
    tuning = tune(bed, objective, GRID, PROTOCOL)
    assert torch.tensor(tuning).shape == (2, 2)
    for i, setting in enumerate(GRID):
        close(tuning[i], tune(bed, objective, [setting], PROTOCOL)[0])
    first = replace(PROTOCOL, tuning_seeds=1)
    assert [row[:1] for row in tuning] == tune(bed, objective, GRID, first)
    assert abs(tuning[0][0] - tuning[1][0]) > 1.0
    assert abs(tuning[0][0] - tuning[0][1]) > 1.0  # another seed


def test_all_losses_are_tuned_and_judged_in_the_same_conditions(bed, monkeypatch):
    trainings, evaluations = spy(monkeypatch, "train"), spy(monkeypatch, "evaluate")
    seen = []
    orpo = [{"po_coef": 1.0}, {"po_coef": 2.0}]
    ipo = [{"beta": 1.0}, {"beta": 100.0}]
    for name, settings in (("simpo", GRID), ("orpo", orpo), ("ipo", ipo), ("sft", [{}, {}])):
        trainings.clear()
        evaluations.clear()
        run_cell(bed, resolve(name), settings, 3, PROTOCOL)
        seeds = [args[3] for args, _ in trainings]
        states = [(args[1], args[2]) for args, _ in evaluations]
        seen.append((seeds, states))
    assert seen[0] == seen[1] == seen[2]
    assert seen[3] == (seen[0][0][-1:], seen[0][1][-2:])  # nothing to tune: the final seeds alone
    tuning, final = seen[0][0][:2], seen[0][0][2]
    assert len({*tuning, *final}) == 5  # final seeds are fresh, and none is used twice
    # Two rounds of tuning, and the final episodes, in which policies act in both ways.
    assert len({state for _, state in seen[0][1]}) == 3


@pytest.mark.parametrize(
    ("tuning", "best"),
    [
        ([[1.0], [3.0], [2.0]], 1),
        ([[1.0, 5.0], [2.0, 2.0]], 0),
        ([[2.0], [2.0]], 0),
        ([[1.0, 1.0], [9.0, math.nan], [0.0, 0.0]], 0),
        ([[-5.0], [math.nan]], 0),
        ([[9.0], [3.0, 1.0], [2.0, 2.5]], 2),
        ([[9.0], [3.0, math.nan], [2.0, math.inf]], 0),
        ([[math.nan], [math.inf]], -1),
    ],
)
def test_best_setting(tuning, best):
    assert best_setting(tuning) == best


def test_a_race_trains_the_best_third_again():
    looks = []

    def scores(alive, k):
        looks.append((k, [*alive]))
        return [math.nan if i == 6 else float(i) - 10 * k * (i == 8) for i in alive]

    rows = race(scores, 9, replace(PROTOCOL, tuning_seeds=3, tuning_reduction=3))
    # 8 is best in the first round, and falls behind in the second.
    assert looks == [(0, [*range(9)]), (1, [5, 7, 8]), (2, [7])]
    assert [len(row) for row in rows] == [1, 1, 1, 1, 1, 2, 1, 3, 2]
    assert rows[8] == [8.0, -2.0]
    assert best_setting(rows) == 7
    assert race(scores, 5, replace(PROTOCOL, tuning_seeds=2)) == [[float(i)] * 2 for i in range(5)]


def test_a_setting_of_the_second_round_is_what_it_is_among_all(bed):
    settings = grid(resolve("simpo"), 4)
    all_of_them = tune(bed, resolve("simpo"), settings, PROTOCOL)
    raced = tune(bed, resolve("simpo"), settings, replace(PROTOCOL, tuning_reduction=2))
    assert sorted(len(row) for row in raced) == [1, 1, 2, 2]
    for row, whole in zip(raced, all_of_them, strict=True):
        close(row, whole[: len(row)])


# --- judging ---


@pytest.mark.parametrize("name", ["simpo", "dpo"])
@pytest.mark.parametrize("own_data", [False, True])
def test_a_final_seed_alone_is_what_it_is_among_five(bed, name, own_data):
    objective = resolve(name)
    bed = suited(bed, objective, PROTOCOL.sft_epochs)
    data = [prepare_fresh([bed], seed)[0].dataset for seed in range(5)] if own_data else None
    setting = {key: float(value) for key, value in objective.hyper.items()}
    five = judge(bed, objective, setting, range(5), PROTOCOL, data)
    assert torch.tensor(five["returns"]).shape == (5, PROTOCOL.episodes)
    for k in range(5):
        alone = judge(bed, objective, setting, [k], PROTOCOL, data and data[k : k + 1])
        close(alone["returns"][0], five["returns"][k])
        torch.testing.assert_close(
            torch.tensor(alone["margins"][0]), torch.tensor(five["margins"][k])
        )
        for key in ("chosen", "rejected", "accuracy"):
            torch.testing.assert_close(
                torch.tensor(alone["curves"][key][0]), torch.tensor(five["curves"][key][k])
            )
    means = torch.tensor(five["returns"]).mean(1)
    assert (means[:, None] - means).abs().add(torch.eye(5) * 9).min() > 0.1  # seeds differ


def test_curves_begin_with_the_initial_policy(bed):
    """Epoch 0 against torch.distributions on the original agent's own actions."""
    found = judge(bed, resolve("simpo"), GRID[0], [0, 1], PROTOCOL)["curves"]
    data, policy = bed.dataset, bed.policy
    logps = torch.empty(2, PAIRS)
    for side, rows in enumerate((data.chosen, data.rejected)):
        for pair, row in enumerate(rows):
            length = int(data.lengths[row])
            time = [int((i + 0.5) * length / SAMPLE_STEPS) for i in range(SAMPLE_STEPS)]
            with torch.no_grad():
                normal = torch.distributions.Normal(policy(data.observation[row, time]), 0.4)
            logps[side, pair] = normal.log_prob(data.action[row, time]).sum(-1).mean()
    for k in range(2):
        assert found["chosen"][k][0] == pytest.approx(float(logps[0].mean()), abs=1e-5)
        assert found["rejected"][k][0] == pytest.approx(float(logps[1].mean()), abs=1e-5)
        share = (logps[0] > logps[1]).float().mean()
        assert found["accuracy"][k][0] == pytest.approx(float(share))


def test_how_often_a_logit_is_clamped_is_watched(bed):
    narrow = prepare([replace(bed.config, policy_std=0.05)])[0]  # densities far above 1
    found = judge(narrow, resolve("sft"), {}, [0, 1], PROTOCOL)["curves"]
    sample = Sample.of(narrow.dataset)
    with torch.no_grad():
        normal = torch.distributions.Normal(narrow.policy(sample.observation), 0.05)
    logps = normal.log_prob(sample.action).sum(-1).mean(-1)
    share = float((logps > -1e-6).float().mean())
    assert 0 < share < 1
    assert [curve[0] for curve in found["clamped"]] == pytest.approx([share, share])
    wide = judge(bed, resolve("sft"), {}, [0], PROTOCOL)["curves"]
    assert set(wide["clamped"][0]) == {0.0}  # no density exceeds 1 at σ 0.4


def test_curves_end_with_the_margins(bed):
    found = judge(bed, resolve("simpo"), GRID[1], range(5), PROTOCOL)
    curves, margins = found["curves"], torch.tensor(found["margins"])
    assert curves["epoch"] == list(range(EPOCHS + 1))
    assert margins.shape == (5, PAIRS)
    for key in ("chosen", "rejected", "accuracy"):
        assert torch.tensor(curves[key]).shape == (5, EPOCHS + 1)
    last = {key: torch.tensor(curves[key])[:, -1] for key in ("chosen", "rejected", "accuracy")}
    torch.testing.assert_close(margins.mean(1), last["chosen"] - last["rejected"])
    torch.testing.assert_close((margins > 0).float().mean(1), last["accuracy"])
    first = torch.tensor(curves["accuracy"])[:, 0]
    assert (last["accuracy"] >= first).all()  # which is what SimPO is for


def test_a_loss_with_a_reference_has_its_first_epochs_of_sft(bed):
    assert suited(bed, resolve("simpo"), 2) is bed
    with_sft = suited(bed, resolve("dpo"), 2)
    assert (with_sft.config.inner.sft_epochs, with_sft.config.inner.epochs) == (2, 1)
    assert with_sft.dataset is bed.dataset
    # At least one epoch is left for the loss itself.
    for most, sft in ((0, 0), (1, 1), (10, EPOCHS - 1)):
        inner = suited(bed, resolve("dpo"), most).config.inner
        assert (inner.sft_epochs, inner.epochs) == (sft, EPOCHS - sft)


def test_curves_include_the_epochs_of_sft(bed):
    with_sft = suited(bed, resolve("dpo"), 2)
    setting = {"beta": 0.1, "label_smoothing": 0.0}
    found = judge(with_sft, resolve("dpo"), setting, [0, 1], PROTOCOL)["curves"]
    assert found["epoch"] == list(range(EPOCHS + 1))
    other = judge(with_sft, resolve("ipo"), {"beta": 100.0}, [0, 1], PROTOCOL)["curves"]
    for key in ("chosen", "rejected"):
        mine, theirs = torch.tensor(found[key]), torch.tensor(other[key])
        torch.testing.assert_close(mine[:, :3], theirs[:, :3])  # the loss has no say yet
        assert (mine[:, 3] - theirs[:, 3]).abs().min() > 1e-3
    chosen = torch.tensor(found["chosen"])
    assert (chosen[:, 2] > chosen[:, 0]).all()


# --- whole cells ---


def test_a_cell_is_what_its_parts_give(bed):
    objective = resolve("simpo")
    cell = run_cell(bed, objective, GRID, 2, PROTOCOL)
    keys = {"loss", "task", "data", "grid", "tuning", "best", "edge"}
    keys |= {"returns", "components", "other_returns", "curves", "margins", "why"}
    keys |= {"labels", "environment_steps"}
    assert cell.keys() == keys
    assert (cell["loss"], cell["task"], cell["data"]) == ("simpo", "tla", "base")
    assert cell["grid"] == GRID
    assert cell["tuning"] == tune(bed, objective, GRID, PROTOCOL)
    assert cell["best"] == best_setting(cell["tuning"])
    parts = judge(bed, objective, GRID[cell["best"]], [0, 1], PROTOCOL)
    assert {key: cell[key] for key in parts} == parts
    assert json.loads(json.dumps(cell, allow_nan=False)) == cell


@pytest.mark.parametrize("name", ["kto", "bco_unpaired", "apo_zero_unpaired"])
def test_a_cell_of_a_loss_of_single_responses(bed, name):
    objective = resolve(name)
    cell = run_cell(bed, objective, grid(objective, 2), 2, PROTOCOL)
    assert {"beta", "desirable_coef", "undesirable_coef"} <= cell["grid"][0].keys()
    assert torch.tensor(cell["returns"]).isfinite().all()
    first = cell["grid"][0]
    other = judge(bed, objective, first | {"undesirable_coef": 0.0}, [0], PROTOCOL)
    assert other["margins"] != judge(bed, objective, first, [0], PROTOCOL)["margins"]


def test_the_same_cell_twice_is_the_same(bed):
    objective, setting = resolve("ipo"), [{"beta": 0.1}, {"beta": 1.0}]
    first = run_cell(bed, objective, setting, 2, PROTOCOL)
    torch.rand(7)
    state = torch.get_rng_state()
    again = replace(bed)  # loads everything anew
    again.policy  # noqa: B018
    torch.set_rng_state(state)
    assert run_cell(again, objective, setting, 2, PROTOCOL) == first
    assert torch.equal(torch.get_rng_state(), state)
    other = run_cell(bed, objective, setting, 2, replace(PROTOCOL, seed=1))
    assert other["tuning"] != first["tuning"]
    assert other["returns"] != first["returns"]


@pytest.mark.parametrize("name", ["simpo", "dpo"])
@pytest.mark.parametrize("start", ["original", "scratch"])
def test_more_seeds_later_are_the_seeds_of_all_at_once(bed, name, start):
    objective = resolve(name)
    bed = bed.changed(start=start)
    settings = [{key: float(value) for key, value in objective.hyper.items()}]
    two = run_cell(bed, objective, settings, 2, PROTOCOL)
    before = json.dumps(two)
    four = run_cell(bed, objective, settings, 4, PROTOCOL, json.loads(before))
    at_once = run_cell(bed, objective, settings, 4, PROTOCOL)
    for key in ("grid", "tuning", "best"):
        assert four[key] == two[key] == at_once[key]
    assert (four["returns"][:2], four["margins"][:2]) == (two["returns"], two["margins"])
    close(four["returns"], at_once["returns"])
    assert four["curves"]["epoch"] == at_once["curves"]["epoch"]
    for key in ("chosen", "rejected", "accuracy"):
        assert four["curves"][key][:2] == two["curves"][key]
        torch.testing.assert_close(
            torch.tensor(four["curves"][key]), torch.tensor(at_once["curves"][key])
        )
    assert len(four["margins"]) == 4
    assert json.dumps(two) == before


def test_what_is_finished_is_not_done_again(bed, monkeypatch):
    objective = resolve("simpo")
    cell = run_cell(bed, objective, GRID[:1], 3, PROTOCOL) | {"seconds": 1.0}
    trainings = spy(monkeypatch, "train")
    for seeds in (3, 2):
        assert run_cell(bed, objective, GRID[:1], seeds, PROTOCOL, cell) == cell
    assert trainings == []
    run_cell(bed, objective, GRID, 4, PROTOCOL, cell)
    assert [args[2] for args, _ in trainings] == [1]  # one policy, and no tuning


def test_a_learned_objective_has_a_cell_too(bed):
    objective = MirrorObjective(units=4)
    cell = run_cell(bed, objective, [{}, {}], 2, PROTOCOL)
    orpo = run_cell(bed, resolve("orpo"), [{"po_coef": 0.1}], 2, PROTOCOL)
    close(cell["returns"], orpo["returns"])  # at first, a learned objective is ORPO


@pytest.mark.parametrize("settings", [[{}], [{}, {}, {}]])
def test_a_loss_with_nothing_to_tune_is_not_tuned(bed, monkeypatch, settings):
    trainings = spy(monkeypatch, "train")
    cell = run_cell(bed, resolve("sft"), settings, 2, PROTOCOL)
    assert [args[2] for args, _ in trainings] == [2]  # two policies, and no others
    assert (cell["grid"], cell["tuning"], cell["best"]) == ([{}], [], 0)
    assert cell["returns"] == judge(bed, resolve("sft"), {}, [0, 1], PROTOCOL)["returns"]
    # A cell that was tuned in vain, as they once were, gains seeds like any other.
    old = cell | {"grid": [{}] * 8, "tuning": [[1.0]] * 8, "best": 3}
    more = run_cell(bed, resolve("sft"), settings, 3, PROTOCOL, old)
    assert (more["grid"], more["tuning"], more["best"]) == ([{}] * 8, [[1.0]] * 8, 3)
    assert more["returns"][:2] == cell["returns"]
    assert len(more["returns"]) == 3


def test_the_only_setting_may_diverge(bed):
    cell = run_cell(bed, Objective(volatile), [{"power": 100.0}] * 2, 2, PROTOCOL)
    assert (cell["best"], cell["tuning"]) == (0, [])
    assert cell["returns"] == cell["margins"] == [None, None]


def same_size(chosen_mean_logps, rejected_mean_logps):
    """Right for three pairs, on which a loss is tried when it is found."""
    return (rejected_mean_logps - chosen_mean_logps).mean() + torch.zeros(3)


def branches(chosen_mean_logps, *, power=1.0):
    """Fine outside vmap."""
    return -power * chosen_mean_logps if chosen_mean_logps.sum() < 0 else chosen_mean_logps


def test_a_rehearsal_finds_what_would_fail_in_training_only(bed):
    with pytest.raises(ValueError, match=r"one value per pair, \[2\] in training; got \(3,\)"):
        rehearse(Objective(same_size), [{}, {}], bed.config)
    with pytest.raises(RuntimeError, match="data-dependent control flow"):
        rehearse(Objective(branches), [{"power": 1.0}], bed.config)


def test_a_rehearsal_passes_what_can_be_trained(bed):
    for name in LOSSES:
        rehearse(resolve(name), grid(resolve(name), 3), bed.config)
    for objective in (MirrorObjective(units=4), MirrorObjective(steps="two", temporal=True)):
        rehearse(objective, [{}, {}], bed.config)
    all_steps = bed.changed(inner=replace(bed.config.inner, steps_per_trajectory=None))
    rehearse(resolve("simpo"), GRID, all_steps.config)


@pytest.mark.parametrize("unpaired", [False, True])
def test_a_rehearsal_gives_what_training_gives(bed, unpaired):
    single = {"logps", "ref_logps", "desirable"}
    own = ("mismatched", "_step_weights", "gold_", *DRAWN)  # what no pair of robots has
    names = [n for n in PairLogps._fields if not any(word in n for word in own)]
    names = [n for n in names if (n in single) == unpaired]
    seen = []

    def every(*values):
        seen.append({n: (v.shape, v.dtype) for n, v in zip(names, values)})
        return -values[names.index("logps" if unpaired else "chosen_mean_logps")]

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    every.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])
    objective = Objective(every)
    seen.clear()
    rehearse(objective, [{}], bed.config)
    rehearsed = seen[0]
    bed.train(objective, {}, 1, 0)
    assert seen[-1] == rehearsed


def test_policies_act_in_both_ways(bed):
    objective, few = resolve("simpo"), replace(PROTOCOL, episodes=PROTOCOL.episodes // 4)
    acted = bed, bed.changed(sample=True)
    both = [judge(one, objective, GRID[0], [0, 1], PROTOCOL)["other_returns"] for one in acted]
    alone = [judge(one, objective, GRID[0], [0, 1], few)["returns"] for one in reversed(acted)]
    assert both == alone
    assert both[0] != both[1]


def test_from_scratch_the_seeds_start_apart(bed):
    scratch = bed.changed(start="scratch")
    curves = judge(scratch, resolve("simpo"), GRID[0], [0, 1], PROTOCOL)["curves"]
    assert abs(curves["chosen"][0][0] - curves["chosen"][1][0]) > 1e-4
    curves = judge(bed, resolve("simpo"), GRID[0], [0, 1], PROTOCOL)["curves"]
    assert curves["chosen"][0][0] == curves["chosen"][1][0]


# --- what diverges ---


def test_a_setting_that_diverges_leaves_the_others_as_they_are(bed):
    objective = Objective(volatile)
    settings = [{"power": 1.0}, {"power": 100.0}, {"power": -1.0}]
    cell = run_cell(bed, objective, settings, 2, PROTOCOL)
    assert cell["tuning"][1] == [None, None]
    assert cell["best"] in (0, 2)
    for i in (0, 2):
        close(cell["tuning"][i], tune(bed, objective, [settings[i]], PROTOCOL)[0])
    assert None not in cell["returns"]
    json.dumps(cell, allow_nan=False)


def test_when_every_setting_diverges_there_is_nothing_to_judge(bed, monkeypatch):
    objective = Objective(volatile)
    cell = run_cell(bed, objective, [{"power": 100.0}, {"power": 200.0}], 2, PROTOCOL)
    assert cell["tuning"] == [[None, None], [None, None]]
    assert cell["best"] == -1
    assert (cell["returns"], cell["curves"], cell["margins"]) == ([], {}, [])
    trainings = spy(monkeypatch, "train")
    assert run_cell(bed, objective, cell["grid"], 5, PROTOCOL, cell) == cell
    assert trainings == []


def test_a_final_seed_that_diverges_is_null_and_the_others_are_as_they_were(bed, monkeypatch):
    objective = resolve("simpo")
    healthy = run_cell(bed, objective, GRID[:1], 3, PROTOCOL)
    train = Testbed.train

    def spoil(params, members):
        where = torch.tensor([m == 1 for m in members])
        return {
            name: value.masked_fill(where.view(-1, *(1,) * (value.ndim - 1)), math.nan)
            for name, value in params.items()
        }

    def spoiled(self, objective, params, population, seed, *, on_epoch=None, **rates):
        """Seed 1 becomes NaN in the last epoch."""

        def told(epoch, members, params):
            on_epoch(epoch, members, spoil(params, members) if epoch == EPOCHS else params)

        watch = on_epoch and told
        policies = train(self, objective, params, population, seed, on_epoch=watch, **rates)
        return spoil(policies, range(population)) if on_epoch else policies

    monkeypatch.setattr(Testbed, "train", spoiled)
    cell = run_cell(bed, objective, GRID[:1], 3, PROTOCOL)
    assert cell["returns"] == [healthy["returns"][0], None, healthy["returns"][2]]
    assert cell["margins"] == [healthy["margins"][0], None, healthy["margins"][2]]
    for key in ("chosen", "rejected", "accuracy"):
        was, now = healthy["curves"][key], cell["curves"][key]
        assert (now[0], now[2]) == (was[0], was[2])
        assert now[1] == [*was[1][:-1], None], key
    assert cell["tuning"] == healthy["tuning"]
    # It stays so when seeds are added.
    monkeypatch.setattr(Testbed, "train", train)
    more = run_cell(bed, objective, GRID[:1], 4, PROTOCOL, json.loads(json.dumps(cell)))
    assert more["returns"][:3] == cell["returns"]
    assert len(more["returns"][3]) == PROTOCOL.episodes


# --- the agents, and the sample ---


def test_anchors_are_the_agents_in_the_start_states_of_the_final_evaluation(bed, monkeypatch):
    evaluations = spy(monkeypatch, "evaluate")
    judge(bed, resolve("sft"), {}, [0], PROTOCOL)
    found = anchors(bed, 4, PROTOCOL)
    assert len({args[2] for args, _ in evaluations}) == 1
    assert list(found) == ["original", "target", "components"]
    env = ThreeLeggedAnt(4, integrator="implicitfast", max_steps=STEPS, num_threads=1)
    for role, name in (("original", "ant_original"), ("target", "tla_target")):
        agent = load_policy(expert_path(name))
        params = {key: value[None] for key, value in agent.trainable().items()}
        expected = evaluate_policies(env, agent, params, 4, evaluations[0][0][2])
        close(found[role], expected[0].tolist())
    assert found["original"] != found["target"]
    assert anchors(bed.changed(start="scratch"), 4, PROTOCOL) == found
    # Sampled actions have the σ of training, which the agents need not have.
    sampled = bed.changed(sample=True)
    start = {key: value[None] for key, value in sampled.policy.trainable().items()}
    expected = sampled.evaluate(start, 4, evaluations[0][0][2])
    close(anchors(sampled, 4, PROTOCOL)["start"], expected[0].tolist())
    assert "start" not in anchors(sampled.changed(start="scratch"), 4, PROTOCOL)


def trajectories(lengths, time):
    """Trajectories whose observations are the time step, NaN past the end, and pairs of them."""
    step = torch.arange(time).float().expand(len(lengths), -1)
    observation = torch.where(step < torch.tensor(lengths)[:, None], step, math.nan)[..., None]
    rows = torch.arange(len(lengths))
    half = len(lengths) // 2
    zeros = torch.zeros(len(lengths))
    return PreferenceDataset(
        observation, observation, torch.tensor(lengths), zeros, rows[:half], rows[half:]
    )


def test_sampled_steps_are_within_each_trajectory_and_spread_over_it():
    lengths = [1, 2, 3, 63, 64, 65, 200, 999, 1000, 7]
    sample = Sample.of(trajectories(lengths, 1000))
    assert sample.observation.shape == (5, 2, SAMPLE_STEPS, 1)
    for i, length in enumerate(lengths):
        pair, side = (i, 0) if i < 5 else (i - 5, 1)
        steps = sample.observation[pair, side, :, 0].tolist()
        assert all(0 <= step < length for step in steps), length  # false for NaN, too
        assert steps == sorted(steps)
        gaps = [b - a for a, b in zip([-1, *steps], [*steps, length])]
        assert max(gaps) <= math.ceil(length / SAMPLE_STEPS) + 1
        assert len(set(steps)) == min(length, SAMPLE_STEPS)


@pytest.mark.parametrize("pairs", [1, 5, SAMPLE_PAIRS, SAMPLE_PAIRS + 1, 300, 1280])
def test_sampled_pairs_are_spread_over_the_data(pairs):
    data = trajectories([3] * (2 * pairs), 4)
    data.observation[..., 0] = torch.arange(2 * pairs)[:, None]  # the row itself
    rows = Sample.of(data).observation[:, :, 0, 0]
    assert len(rows) == min(pairs, SAMPLE_PAIRS)
    assert torch.equal(rows[:, 1], rows[:, 0] + pairs)  # each with its own partner
    assert (rows[0, 0], rows[-1, 0]) == (0, pairs - 1)
    assert len(rows) < 2 or rows[:, 0].diff().max() <= math.ceil(pairs / SAMPLE_PAIRS) + 1


def test_likelihoods_under_a_learned_sigma_are_each_members_own(bed):
    bed = prepare([replace(bed.config, policy_std_kind="learned")])[0]
    sample = Sample.of(bed.dataset)
    params = {
        name: value.expand(6, *value.shape).clone()
        for name, value in bed.policy.trainable().items()
    }
    params["log_std"] += torch.arange(6)[:, None]
    logps = sample.mean_logps(bed.policy, params)
    assert logps.shape == (6, 2, PAIRS)
    for i in range(6):
        with torch.no_grad():
            mean = bed.policy(sample.observation)
        std = 0.4 * math.exp(i)
        normal = torch.distributions.Normal(mean, std)
        expected = normal.log_prob(sample.action).sum(-1).mean(-1).T
        torch.testing.assert_close(logps[i], expected)


def test_every_part_of_the_protocol_is_used(bed):
    protocol = Protocol(tuning_seeds=1, tuning_episodes=1, episodes=3, sft_epochs=1, seed=5)
    cell = run_cell(bed, resolve("ipo"), [{"beta": 0.1}, {"beta": 1.0}], 1, protocol)
    assert [len(row) for row in cell["tuning"]] == [1, 1]
    assert [len(row) for row in cell["returns"]] == [3]


def test_a_cell_says_what_it_has_cost(bed):
    """Offline, the pairs and their trajectories; in rounds as many pairs of others."""
    objective = resolve("orpo")
    setting = {"po_coef": 0.1}
    own = bed.dataset
    steps = int(own.lengths[torch.cat([own.chosen, own.rejected])].sum())
    found = judge(bed, objective, setting, [0, 1], PROTOCOL)
    assert (found["labels"], found["environment_steps"]) == ([PAIRS] * 2, [steps] * 2)
    several = replace(bed, config=replace(bed.config, rounds=Rounds(3)))
    found = judge(several, objective, setting, [0, 1], PROTOCOL)
    assert found["labels"] == [PAIRS] * 2
    assert all(0 < steps <= 2 * PAIRS * STEPS for steps in found["environment_steps"])
    assert found["curves"]["epoch"] == list(range(3 * EPOCHS + 1))
