import json
import math
import os
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchmpo
from torchmpo import MirrorObjective, Objective, PairLogps, resolve
from torchmpo.losses import LOSSES, cpo_loss, dpo_loss, orpo_loss, simpo_loss
from torchmpo.objectives.inputs import DRAWN

SEEDS = st.integers(0, 10_000)


def make_pair(batch=5, seed=0, dtype=torch.float32, low=-6.0, high=-0.01):
    """Every field a loss of this package may ask for."""
    gen = torch.Generator().manual_seed(seed)
    fields = {}
    for name in PairLogps._fields:
        if name.endswith("mean_logps"):
            fields[name] = (low + (high - low) * torch.rand(batch, generator=gen)).to(dtype)
    lengths = {n: torch.randint(1, 9, (batch,), generator=gen) for n in ("chosen", "rejected")}
    for side, n in lengths.items():
        fields[f"{side}_lengths"] = n
        for prefix in ("", "ref_"):
            fields[f"{prefix}{side}_logps"] = fields[f"{prefix}{side}_mean_logps"] * n
    fields["logps"], fields["ref_logps"] = fields["chosen_logps"], fields["ref_chosen_logps"]
    for side in ("chosen", "rejected"):
        for name in (f"{side}_step_logps", f"ref_{side}_step_logps"):
            fields[name] = (low + (high - low) * torch.rand(batch, 4, generator=gen)).to(dtype)
        for name in (f"{side}_step_kl", f"{side}_step_weights"):
            fields[name] = torch.rand(batch, 4, generator=gen).to(dtype)
        fields[f"{side}_mask"] = torch.ones(batch, 4, dtype=torch.bool)
    for name in ("list_logps", "ref_list_logps", *DRAWN):
        fields[name] = (low + (high - low) * torch.rand(batch, 3, generator=gen)).to(dtype)
    fields["gold_mean_logps"] = fields["chosen_mean_logps"]
    fields["desirable"] = torch.arange(batch) < 2
    for name in ("chosen_rewards", "rejected_rewards", "preference_probs"):
        fields[name] = torch.rand(batch, generator=gen).to(dtype)
    return PairLogps(**fields, progress=torch.tensor(0.3, dtype=dtype))


def population_of(pair):
    """The ``in_dims`` of a stacked pair: absent fields are not batched."""
    return PairLogps(*(None if x is None else 0 for x in pair))


def random_vector(objective, seed, scale, dtype=torch.float32):
    gen = torch.Generator().manual_seed(seed)
    return scale * torch.randn(objective.dim, generator=gen, dtype=dtype)


# Objective


def test_objective_calls_the_function_with_the_fields_it_names():
    pair = make_pair()
    objective = Objective(simpo_loss, beta=3.0)
    expected = simpo_loss(pair.chosen_mean_logps, pair.rejected_mean_logps, beta=3.0)
    assert torch.equal(objective(pair), expected)
    assert objective.inputs == {"chosen_mean_logps", "rejected_mean_logps"}
    assert not objective.needs_reference
    assert Objective(dpo_loss).needs_reference


def test_objective_passes_optional_lengths_when_the_pair_has_them():
    pair = make_pair()
    ipo = resolve("ipo")
    assert {"chosen_lengths", "rejected_lengths"} <= ipo.inputs
    means = [getattr(pair, n) for n in PairLogps._fields if n.endswith("mean_logps")]
    expected = LOSSES["ipo"](*means, reduction="sum")
    torch.testing.assert_close(ipo(pair), expected)
    without = pair._replace(chosen_lengths=None, rejected_lengths=None)
    resolve("slic_hf")(without)
    with pytest.raises(ValueError, match="needs chosen_lengths"):
        ipo(without)


def test_parameters_tree_holds_the_numbers_and_apply_replaces_them():
    objective = resolve("ipo", beta=0.5)
    tree = objective.parameters_tree()
    assert set(tree) == {"beta"}
    assert tree["beta"].shape == ()
    pair = make_pair()
    torch.testing.assert_close(objective.apply(tree, pair), objective(pair))
    other = objective.apply({"beta": torch.tensor(0.2)}, pair)
    torch.testing.assert_close(other, resolve("ipo", beta=0.2)(pair))


@pytest.mark.parametrize("name", LOSSES)
def test_a_vmapped_grid_equals_a_loop(name):
    objective = resolve(name)
    pair = make_pair()
    tree = objective.parameters_tree()
    grid = {k: v * torch.tensor([0.5, 1.0, 2.0]) for k, v in tree.items()}
    grid["unused"] = torch.zeros(3)

    def member(params):
        return objective.apply({k: v for k, v in params.items() if k != "unused"}, pair)

    batched = torch.func.vmap(member)(grid)
    loop = torch.stack([member({k: v[i] for k, v in grid.items()}) for i in range(3)])
    torch.testing.assert_close(batched, loop)


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match="simpo needs rejected_mean_logps"):
        resolve("simpo")(PairLogps(chosen_mean_logps=torch.zeros(2)))


# resolve


def test_every_registered_name_resolves_and_runs():
    for name in LOSSES:
        objective = resolve(name)
        assert objective.name == name
        assert objective(make_pair()).shape == (5,)
    assert torchmpo.resolve is resolve


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_losses_for_test.py").write_text(
        "def good(chosen_mean_logps, progress, *, tau=2.0):\n"
        "    return -chosen_mean_logps * tau * progress\n"
        "def wrong_input(chosen_mean_logps, winner_logps):\n"
        "    return -chosen_mean_logps\n"
        "def positional_hyper(chosen_mean_logps, tau=2.0):\n"
        "    return -tau * chosen_mean_logps\n"
        "def required(chosen_mean_logps, *, tau):\n"
        "    return -tau * chosen_mean_logps\n"
        "def reduced(chosen_mean_logps):\n"
        "    return -chosen_mean_logps.mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_losses_for_test"
    sys.modules.pop("my_losses_for_test", None)


def test_a_users_own_function(user_module):
    objective = resolve(f"{user_module}:good", tau=3.0)
    pair = make_pair()
    torch.testing.assert_close(objective(pair), -pair.chosen_mean_logps * 3.0 * 0.3)
    assert objective.inputs == {"chosen_mean_logps", "progress"}
    assert set(objective.parameters_tree()) == {"tau"}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong_input", r"'winner_logps' is not an input .*ref_rejected_mean_logps.*after a '\*'"),
        ("positional_hyper", r"'tau' is not an input .*hyper-parameters go after a '\*'"),
        ("required", "needs a value for its hyper-parameter 'tau'"),
        ("reduced", r"must return one value per pair, \[batch\]; got \(\)"),
        ("goood", "has no function 'goood'; did you mean 'good'"),
    ],
)
def test_mistakes_in_a_users_function_are_told_in_one_line(user_module, function, message):
    with pytest.raises(ValueError, match=message) as caught:
        resolve(f"{user_module}:{function}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("simp", {}, "unknown loss 'simp': did you mean 'simpo'"),
        ("no_such_module_here:fn", {}, "cannot import 'no_such_module_here'"),
        ("dpo", {"bta": 0.1}, "dpo has no hyper-parameter 'bta': it has beta, label_smoothing"),
        ("sft", {"beta": 0.1}, "sft has no hyper-parameter 'beta': it has none"),
        ("dpo", {"beta": 0.0}, "beta must be positive"),
        ("orpo", {"po_coef": -1}, "po_coef"),
        ("nowhere/objective", {}, "not a readable saved objective"),
        ("my_pkg.losses.mine", {}, "did you mean 'my_pkg.losses:mine'"),
        ("losses.py", {}, "as in losses:my_loss"),
        ("my_pkg/losses.py", {}, "as in my_pkg.losses:my_loss"),
        ("experiments/results/evolve_default_seed0", {}, "what it found is experiments/.*/obj"),
    ],
)
def test_mistakes_are_told_before_any_pair_is_seen(name, hyper, message):
    with pytest.raises(ValueError, match=message):
        resolve(name, **hyper)


# MirrorObjective: the zero vector

GRID = torch.cat([torch.linspace(-50, 5, 111), torch.tensor([-1e-7, -1e-5, -1e-3, 20.0, -1e4])])


def logps_grid(count, dtype):
    gen = torch.Generator().manual_seed(0)
    # β·c − β·c' and β·(c − c') agree to 1e-6 in float32 while logps are of ordinary size.
    values = GRID[:111] if dtype == torch.float32 and count > 2 else GRID
    first, second = torch.cartesian_prod(values, values).T
    shuffled = [first[torch.randperm(len(first), generator=gen)] for _ in range(count - 2)]
    return [x.to(dtype).clone().requires_grad_() for x in (first, second, *shuffled)]


def zero_vector_case(steps, temporal):
    learn = ("psi", "phi_inv", "g") if steps == "one" else ("phi_inv", "g")
    return MirrorObjective(steps=steps, learn=learn, temporal=temporal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temporal", [False, True])
def test_one_step_zero_vector_is_orpo(temporal, dtype):
    c, r = logps_grid(2, dtype)
    objective = zero_vector_case("one", temporal)
    loss = objective(
        PairLogps(chosen_mean_logps=c, rejected_mean_logps=r, progress=torch.tensor(0.7))
    )
    expected = orpo_loss(c, r)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    grads = [torch.autograd.grad(x.sum(), [c, r]) for x in (loss, expected)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temporal", [False, True])
def test_two_step_zero_vector_is_dpo(temporal, dtype):
    c, r, rc, rr = logps_grid(4, dtype)
    objective = zero_vector_case("two", temporal)
    loss = objective(
        PairLogps(
            chosen_mean_logps=c,
            rejected_mean_logps=r,
            ref_chosen_mean_logps=rc,
            ref_rejected_mean_logps=rr,
            progress=torch.tensor(0.7),
        )
    )
    expected = dpo_loss(c, r, rc, rr)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    grads = [torch.autograd.grad(x.sum(), [c, r]) for x in (loss, expected)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-6)


def test_initial_coefficients_choose_another_start():
    pair = make_pair()
    objective = MirrorObjective(
        initial={"psi_log": 0.5, "phi_inv_logit": 0.0, "phi_inv_log": 2.0, "g_log": 1.0}
    )
    c, r = pair.chosen_mean_logps, pair.rejected_mean_logps
    torch.testing.assert_close(objective(pair), cpo_loss(c, r, c, beta=2.0, sft_coef=0.5))


def test_sums_on_request():
    pair = make_pair()
    objective = MirrorObjective(steps="two", reduction="sum")
    assert objective.inputs == {
        "chosen_logps",
        "rejected_logps",
        "ref_chosen_logps",
        "ref_rejected_logps",
    }
    torch.testing.assert_close(objective(pair), resolve("dpo")(pair))


# MirrorObjective: the search space


@pytest.mark.parametrize(
    ("settings_", "dim"),
    [
        ({"learn": ("psi",)}, 378 + 1),
        ({"learn": ("phi_inv",)}, 378 + 2),
        ({"learn": ("g",)}, 378 + 1),
        ({}, 379 + 380),
        ({"learn": ("g", "phi_inv", "psi")}, 379 + 380 + 379),
        ({"learn": ()}, 0),
        ({"steps": "two"}, 380),
        ({"temporal": True}, 4 * 126 * 2 + 2 * 3),
        ({"activations": ["exp", "cube"], "units": 3}, 18 + 1 + 18 + 2),
    ],
)
def test_only_learned_functions_have_parameters(settings_, dim):
    objective = MirrorObjective(**settings_)
    assert objective.dim == dim == objective.vector.numel()
    assert objective(make_pair()).shape == (5,)
    assert ("progress" in objective.inputs) == settings_.get("temporal", False)
    assert objective.needs_reference == (settings_.get("steps") == "two")


def test_functions_that_are_not_learned_stay_as_they_are():
    objective = MirrorObjective(learn=("psi",))
    functions = objective.functions(random_vector(objective, 0, 1.0))
    logps = torch.linspace(-5, -0.1, 9)
    torch.testing.assert_close(functions["phi_inv"](logps), torch.logit(logps.exp()))
    torch.testing.assert_close(functions["g"](logps), 0.1 * torch.nn.functional.logsigmoid(logps))
    assert (functions["psi"](logps) - logps).abs().min() > 0.1


def test_coefficients_move_by_exp_of_ten_theta_or_from_zero_by_relu():
    objective = MirrorObjective(learn=("psi", "phi_inv", "g"))
    vector = torch.zeros(objective.dim)
    psi, logit, log, g = 378, 379 + 378, 379 + 379, 379 + 380 + 378
    logps = torch.tensor([-2.0, -1.0])
    start = objective.functions(vector)
    for index, name, factor in ((psi, "psi", 1), (logit, "phi_inv", 1), (g, "g", 1)):
        moved = vector.clone()
        moved[index] = 0.05
        value = objective.functions(moved)[name](logps)
        torch.testing.assert_close(value, start[name](logps) * factor * math.exp(0.5))
    vector[log] = 0.3
    value = objective.functions(vector)["phi_inv"](logps)
    torch.testing.assert_close(value, start["phi_inv"](logps) + 0.3 * logps)
    vector[log] = -0.3
    assert torch.equal(objective.functions(vector)["phi_inv"](logps), start["phi_inv"](logps))
    vector[psi] = 100.0
    assert objective.functions(vector)["psi"](logps).isfinite().all()


def test_temporal_coefficients_are_affine_in_progress():
    objective = MirrorObjective(learn=("psi",), temporal=True)
    vector = torch.zeros(objective.dim)
    vector[-2:] = torch.tensor([0.02, 0.06])
    logps = torch.tensor([-2.0])
    for t in (0.0, 0.5, 1.0):
        value = objective.functions(vector, torch.tensor(t))["psi"](logps)
        assert value.item() == pytest.approx(-2 * math.exp(0.2 + 0.6 * t), rel=1e-5)


def test_probabilities_go_on_as_a_line_where_a_density_exceeds_one():
    objective = MirrorObjective(learn=("psi",), activations=["identity"], units=1)
    vector = torch.zeros(objective.dim)
    vector[0] = 1.0
    psi = objective.functions(vector)["psi"]
    half, one, two, twenty = psi(torch.tensor([math.log(0.5), 0.0, 1.0, 20.0])).tolist()
    slope = objective.network.slope.item()
    assert one - half == pytest.approx(slope * 0.5 + math.log(2), rel=1e-5)
    assert two - one == pytest.approx(slope + 1, rel=1e-5)
    assert twenty - two == pytest.approx(19 * (slope + 1), rel=1e-5)


def test_one_search_step_moves_the_loss_and_pairs_of_opposite_sign_differ():
    objective, pair = MirrorObjective(), make_pair()
    vector = random_vector(objective, 0, 0.03)
    start, plus, minus = (objective.apply(v, pair) for v in (0 * vector, vector, -vector))
    for moved in (plus - start, minus - start, plus - minus):
        assert moved.abs().max() > 0.05


@settings(max_examples=40, deadline=None)
@given(
    SEEDS,
    st.sampled_from([0.03, 0.3, 1.0, 4.0]),
    st.sampled_from(["one", "two"]),
    st.booleans(),
    st.floats(0, 1),
)
def test_every_function_is_increasing(seed, scale, steps, temporal, t):
    objective = zero_vector_case(steps, temporal).double()
    vector = random_vector(objective, seed, scale, torch.float64)
    logps = torch.linspace(-50, 5, 500, dtype=torch.float64)
    for name, function in objective.functions(vector, torch.tensor(t).double()).items():
        value = function(logps)
        assert (value.diff() >= -1e-12 * value.abs().max()).all(), name


@settings(max_examples=60, deadline=None)
@given(
    SEEDS,
    st.sampled_from([0.03, 0.3, 1.0, 4.0, 20.0]),
    st.sampled_from(["one", "two"]),
    st.booleans(),
)
def test_values_and_gradients_are_finite_in_float32(seed, scale, steps, temporal):
    objective = zero_vector_case(steps, temporal)
    gen = torch.Generator().manual_seed(seed)
    ends = torch.tensor([-1e4, -88.0, -1e-3, -1e-6, -1e-7, 0.0, 20.0])
    around = -50 + 55 * torch.rand(64, 4, generator=gen)
    grid = torch.cat([torch.cartesian_prod(ends, ends).repeat(1, 2), around])
    c, r, rc, rr = (x.clone().requires_grad_() for x in grid.T)
    loss = objective.apply(
        random_vector(objective, seed, scale),
        PairLogps(
            chosen_mean_logps=c,
            rejected_mean_logps=r,
            ref_chosen_mean_logps=rc.detach(),
            ref_rejected_mean_logps=rr.detach(),
            progress=torch.rand((), generator=gen),
        ),
    )
    assert loss.isfinite().all()
    # Squared and summed, as the norm that clips the policy's gradient will.
    for gradient in torch.autograd.grad(loss.sum(), [c, r]):
        assert gradient.square().sum().isfinite()


def test_gradient_agrees_with_finite_differences():
    objective = MirrorObjective(learn=("psi", "phi_inv", "g")).double()
    vector = random_vector(objective, 3, 0.1, torch.float64)
    c = torch.tensor([-4.0, -1.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    r = torch.tensor([-2.0, -3.3, -0.7, -0.4], dtype=torch.float64, requires_grad=True)

    def loss(c, r):
        return objective.apply(vector, PairLogps(chosen_mean_logps=c, rejected_mean_logps=r))

    assert torch.autograd.gradcheck(loss, (c, r))


def test_bfloat16_logps_are_taken_up_to_float32():
    objective = MirrorObjective(learn=("psi", "phi_inv", "g"))
    vector = random_vector(objective, 0, 0.1)
    exact = objective.apply(vector, make_pair())
    for module, v in ((objective, vector), (objective.bfloat16(), vector.bfloat16())):
        loss = module.apply(v, make_pair(dtype=torch.bfloat16))
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("steps", ["one", "two"])
@pytest.mark.parametrize("temporal", [False, True])
def test_a_vmapped_population_equals_a_loop(steps, temporal):
    objective = zero_vector_case(steps, temporal).double()
    vectors = torch.stack([random_vector(objective, k, 0.1, torch.float64) for k in range(3)])
    pairs = [make_pair(seed=k, dtype=torch.float64) for k in range(3)]
    stacked = PairLogps(
        *(None if x[0] is None else torch.stack(x) for x in zip(*pairs, strict=True))
    )
    batched = torch.func.vmap(objective.apply, in_dims=(0, population_of(stacked)))(
        vectors, stacked
    )
    loop = torch.stack([objective.apply(v, p) for v, p in zip(vectors, pairs, strict=True)])
    torch.testing.assert_close(batched, loop, rtol=1e-12, atol=1e-12)


def test_population_gradient_compiles_into_one_graph():
    objective = MirrorObjective(activations=["cube", "log", "exp"], units=4)
    vectors = torch.stack([random_vector(objective, k, 0.1) for k in range(3)])
    c, r = torch.rand(2, 3, 2) * -5 - 0.1

    def loss(c, r, vector):
        pair = PairLogps(chosen_mean_logps=c, rejected_mean_logps=r)
        return objective.apply(vector, pair).sum()

    gradient = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))
    compiled = torch.compile(gradient, fullgraph=True)
    torch.testing.assert_close(
        compiled(c, r, vectors), gradient(c, r, vectors), rtol=1e-4, atol=1e-5
    )


def test_the_largest_population_is_one_graph():
    objective = zero_vector_case("two", temporal=True)
    vectors = torch.stack([random_vector(objective, k, 0.1) for k in range(2)])
    pair = make_pair()
    population = torch.func.vmap(objective.apply, in_dims=(0, None))
    compiled = torch.compile(population, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(vectors, pair), population(vectors, pair))


def test_a_nan_stays_in_its_own_member():
    objective = MirrorObjective()
    vectors = torch.stack([random_vector(objective, k, 0.1) for k in range(2)])
    c = torch.tensor([[math.nan], [-2.0]])
    pair = PairLogps(chosen_mean_logps=c, rejected_mean_logps=torch.full((2, 1), -3.0))
    loss = torch.func.vmap(objective.apply, in_dims=(0, population_of(pair)))(vectors, pair)
    assert loss[0].isnan().all()
    assert loss[1].isfinite().all()


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"steps": "three"}, "steps must be 'one' or 'two'"),
        ({"steps": "two", "learn": ("psi",)}, "'psi' is not a function of the two-step loss"),
        ({"learn": ("phi",)}, "choose from psi, phi_inv, g"),
        ({"reduction": "max"}, "reduction must be"),
        ({"initial": {"psi_lg": 1.0}}, "did you mean 'psi_log'"),
        ({"initial": {"psi_log": -1.0}}, "psi_log must be zero or positive"),
        ({"activations": ["sqrt"]}, "unknown activation"),
    ],
)
def test_unknown_settings_are_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        MirrorObjective(**settings_)


def test_a_vector_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\), expected \(759,\)"):
        MirrorObjective().apply(torch.zeros(3), make_pair())


def test_temporal_needs_progress():
    with pytest.raises(ValueError, match="needs progress"):
        MirrorObjective(temporal=True)(make_pair()._replace(progress=None))


# Saving


def saved(tmp_path, **settings_):
    objective = MirrorObjective(**settings_)
    objective.vector.data.copy_(random_vector(objective, 0, 0.1))
    objective.save(tmp_path / "run" / "objective", {"fitness": 3.5, "how": "found"})
    return objective, tmp_path / "run" / "objective"


@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"steps": "two", "temporal": True, "learn": ("phi_inv", "g"), "reduction": "sum"},
        {"activations": ["exp", "log"], "units": 3, "initial": {"g_log": 0.7}},
    ],
)
def test_a_saved_objective_comes_back_the_same(tmp_path, settings_):
    objective, folder = saved(tmp_path, **settings_)
    for again in (resolve(folder), resolve(str(folder)), MirrorObjective.load(folder)):
        assert again.architecture() == objective.architecture()
        assert torch.equal(again.vector, objective.vector)
        assert torch.equal(again(make_pair()), objective(make_pair()))
        assert again.card == {"fitness": 3.5, "how": "found"}
    assert sorted(os.listdir(folder)) == ["card.json", "objective.safetensors"]
    assert json.loads((folder / "card.json").read_text())["fitness"] == 3.5


def test_saving_again_replaces_both_files(tmp_path):
    objective, folder = saved(tmp_path)
    objective.vector.data.zero_()
    objective.save(folder, {})
    assert resolve(folder).vector.abs().max() == 0
    assert resolve(folder).card == {}


def test_a_failed_save_leaves_the_old_objective(tmp_path, monkeypatch):
    objective, folder = saved(tmp_path)
    before = objective.vector.clone()
    objective.vector.data.zero_()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        objective.save(folder, {})
    monkeypatch.undo()
    assert torch.equal(resolve(folder).vector, before)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def garble(path):
    path.write_bytes(b"\x80\x04not what it was" + path.read_bytes())


@pytest.mark.parametrize("damage", [truncate, garble, os.unlink])
@pytest.mark.parametrize("file", ["objective.safetensors", "card.json"])
def test_damaged_or_missing_files_are_told_in_one_line(tmp_path, damage, file):
    objective = MirrorObjective()
    objective.save(tmp_path, {"text": "x" * 200})
    damage(tmp_path / file)
    with pytest.raises(ValueError, match="is not a readable saved objective") as caught:
        resolve(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"vector": torch.zeros(3)}, tmp_path / "objective.safetensors")
    with pytest.raises(ValueError, match="not a readable saved objective"):
        resolve(tmp_path)


def test_a_saved_objective_takes_no_hyper_parameters(tmp_path):
    _, folder = saved(tmp_path)
    with pytest.raises(ValueError, match="takes no hyper-parameters; got beta"):
        resolve(folder, beta=0.1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hypo_loss", "it is called 'hypo' here$"),
        ("HyPO", "it is called 'hypo' here$"),
        ("sigmoid", "it is called 'dpo' here$"),
        ("cdpo", "'dpo' here, with label_smoothing above 0"),
        ("cposimpo", "'simpo' here, with sft_coef above 0"),
        ("wpo@wpo", "weighs its pairs already"),
    ],
)
def test_other_names_lead_to_the_loss_that_is_meant(name, said):
    with pytest.raises(ValueError, match=said):
        resolve(name)
