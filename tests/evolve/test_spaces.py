"""What vectors mean: the start exactly, a noticeable step from there, and the way to a file."""

import json
import math

import pytest
import torch
from populations import make_data, make_policy, make_population
from ray import cloudpickle

from torchmpo import losses
from torchmpo.control.grids import ranges
from torchmpo.control.inner_loop import InnerConfig, train_policies
from torchmpo.evolve.spaces import (
    CLOSED_FORM_STARTS,
    NETWORK_STARTS,
    CoefficientSpace,
    NetworkSpace,
    space_of,
)
from torchmpo.losses import LOSSES
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.inputs import PairLogps
from torchmpo.objectives.resolve import discovered, resolve
from torchmpo.runs.errors import UserError


def pairs(count=40, seed=0):
    """Pairs of responses of one step, whose sums are means."""
    gen = torch.Generator().manual_seed(seed)
    values = {}
    for name in PairLogps._fields:
        if name.endswith("mean_logps"):
            values[name] = -4 * torch.rand(count, generator=gen) - 0.01
            if name != "gold_mean_logps":
                values[name.replace("_mean", "")] = values[name]
        elif name.endswith("lengths"):
            values[name] = torch.ones(count, dtype=torch.long)
        elif name.endswith(("rewards", "probs")):
            values[name] = torch.rand(count, generator=gen)
    c, r = values["chosen_logps"], values["rejected_logps"]
    values |= of_other_forms(c, r)
    ref = of_other_forms(values["ref_chosen_logps"], values["ref_rejected_logps"])
    values |= {f"ref_{name}": value for name, value in ref.items()}
    for side in ("chosen", "rejected"):
        values[f"{side}_step_kl"] = values[f"{side}_step_weights"] = torch.ones(count, 1)
        values[f"{side}_mask"] = torch.ones(count, 1, dtype=torch.bool)
    values["calibration_logps"] = values["rejected_logps"][:, None]
    values["desirable"] = torch.arange(2 * count) < count
    return PairLogps(**values, progress=torch.tensor(0.5))


def of_other_forms(chosen, rejected):
    """Both sides as single responses, as responses of one step, and as a list of two."""
    return {
        "logps": torch.cat([chosen, rejected]),
        "chosen_step_logps": chosen[:, None],
        "rejected_step_logps": rejected[:, None],
        "list_logps": torch.stack([chosen, rejected], -1),
        "own_logps": torch.stack([chosen, rejected], -1),
    }


def value_and_gradient(function):
    """Of a function of a pair, by the policy's means; the sums are made of them."""
    data = pairs()
    c, r = data.chosen_mean_logps.requires_grad_(), data.rejected_mean_logps.requires_grad_()
    data = data._replace(chosen_logps=c, rejected_logps=r, **of_other_forms(c, r))
    loss = function(data)
    gradient = torch.autograd.grad(loss.sum(), (c, r), allow_unused=True, materialize_grads=True)
    return torch.cat([loss.detach(), *gradient])


def on_means(name):
    """A loss with its defaults, on per-step means."""
    return lambda data: LOSSES[name](*[getattr(data, field) for field in resolve(name)._inputs])


def close(first, second):
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)


def all_settings():
    for steps, starts in NETWORK_STARTS.items():
        yield from ({"space": "network", "steps": steps, "start": s} for s in [None, *starts])
    yield from ({"space": "closed_form", "start": start} for start in [None, *CLOSED_FORM_STARTS])
    yield from ({"space": "hyper", "start": s} for s in LOSSES if ranges(resolve(s)))


SETTINGS = list(all_settings())


def setting_id(settings):
    return " ".join(str(value) for value in settings.values())


# --- the start ---


TIMED = [s | {"temporal": True} for s in SETTINGS if s["space"] == "network"]


@pytest.mark.parametrize("settings", [*SETTINGS, *TIMED], ids=setting_id)
def test_the_start_is_the_named_loss(settings):
    space = space_of(**settings)
    default = {"network": {"one": "orpo", "two": "dpo"}.get(settings.get("steps"))}
    name = settings["start"] or default.get(settings["space"]) or "closed_form"
    expected = value_and_gradient(on_means(name))
    close(value_and_gradient(space.at(space.start)), expected)
    # And as a population trains under it.
    tree = space.parameters(space.start.expand(2, -1))
    members = torch.utils._pytree.tree_map(lambda x: x[1], tree)
    close(value_and_gradient(lambda data: space.objective.apply(members, data)), expected)


@pytest.mark.parametrize("settings", SETTINGS, ids=setting_id)
def test_a_coefficient_space_starts_at_the_very_numbers(settings):
    space = space_of(**settings)
    assert space.start.dtype == torch.float32
    assert space.start.shape == (space.dim,)
    if isinstance(space, CoefficientSpace):
        assert space.at(space.start).hyper == space.objective.hyper


def test_names_of_starts():
    found = {
        (settings["space"], settings["start"]): space_of(**settings).start_name
        for settings in SETTINGS
    }
    assert found["network", "orpo"] == "ORPO"
    assert found["network", "sft"] == found["closed_form", "sft"] == "SFT"
    assert found["network", "dpo"] == "DPO"
    assert found["closed_form", None] == "closed form"
    assert found["closed_form", "simpo"] == "SimPO"
    assert space_of("hyper", start="slic_hf").start_name == "slic_hf"
    assert space_of("hyper", start="slic_hf").name == "slic_hf"
    assert space_of().name == "mirror_one_step"


# --- the steps ---


COEFFICIENTS = [s for s in SETTINGS if s["space"] != "network"]


@pytest.mark.parametrize("settings", COEFFICIENTS, ids=setting_id)
def test_a_step_of_the_usual_size_moves_every_coordinate_and_no_other(settings):
    space = space_of(**settings)
    start = space.values(space.start)
    for k, name in enumerate(space.names):
        box = ranges(space.objective)[name]
        moved = []
        for sign in (-1, 1):
            new = space.values(0.03 * sign * torch.eye(space.dim)[k])
            assert all(new[other] == start[other] for other in space.names if other != name)
            v, w = new[name].item(), start[name].item()
            if not box.log:
                moved.append((v - w) / (box.high - box.low))
            elif min(v, w) > 0:
                moved.append(math.log(v / w) / math.log(box.high / box.low))
            else:
                moved.append(math.log(v / box.low) / math.log(box.high / box.low) if v else 0.0)
        assert moved[0] <= 0 <= moved[1]
        assert max(map(abs, moved)) > 0.02, name


def test_the_maps_by_hand():
    objective = resolve("closed_form", sft_coef=0.5, sigmoid_coef=0.0, threshold=-1.0)
    names = ["sft_coef", "sigmoid_coef", "threshold"]
    space = CoefficientSpace(objective, names)
    values = space.values(torch.tensor([[0.1, 0.1, 0.1], [-0.1, -0.1, -0.1], [9.0, 9.0, 9.0]]))
    torch.testing.assert_close(values["sft_coef"], torch.tensor([0.5 * math.e, 0.5 / math.e, 100]))
    root = math.sqrt(0.01 * 10)
    torch.testing.assert_close(values["sigmoid_coef"], torch.tensor([root, 0.0, 10.0]))
    torch.testing.assert_close(values["threshold"], torch.tensor([-0.6, -1.4, 2.0]))
    assert list(space.parameters(torch.zeros(4, 3))) == names
    assert space.at(torch.zeros(3)).hyper["beta"] == 1.0


@pytest.mark.parametrize("settings", COEFFICIENTS, ids=setting_id)
@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_every_vector_is_a_setting_that_the_loss_accepts(settings, scale):
    space = space_of(**settings)
    gen = torch.Generator().manual_seed(0)
    for vector in scale * torch.randn(20, space.dim, generator=gen):
        objective = space.at(vector)  # a number out of range would raise
        assert objective(pairs()).isfinite().all()


@pytest.mark.parametrize("settings", SETTINGS, ids=setting_id)
def test_a_vector_alone_is_that_vector_in_a_population(settings):
    space = space_of(**settings)
    vectors = 0.05 * torch.randn(3, space.dim, generator=torch.Generator().manual_seed(1))
    data = pairs()
    together = torch.vmap(lambda p: space.objective.apply(p, data))(space.parameters(vectors))
    alone = torch.stack([space.at(vector)(data).detach() for vector in vectors])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("start", CLOSED_FORM_STARTS)
def test_the_terms_that_a_start_has_not_are_one_step_away(start):
    space = space_of("closed_form", start=start)
    here = value_and_gradient(space.at(space.start))
    for k, name in enumerate(space.names):
        if name.endswith("_coef"):
            there = value_and_gradient(space.at(0.03 * torch.eye(space.dim)[k]))
            assert (there - here)[40:].abs().max() > 0.01, name


def test_sft_is_one_step_from_a_preference_term():
    space = space_of(start="sft")
    assert value_and_gradient(space.at(space.start))[-40:].abs().max() == 0
    vectors = 0.03 * torch.randn(8, space.dim, generator=torch.Generator().manual_seed(0))
    pulls = [value_and_gradient(space.at(vector))[-40:].abs().mean() for vector in vectors]
    assert min(pulls) > 1e-3


@pytest.mark.parametrize("settings", [{}, {"space": "closed_form"}], ids=str)
def test_a_population_trains_under_its_vectors(settings):
    space = space_of(**settings, start="sft")
    vectors = torch.stack([space.start, space.start + 0.05])
    policy, data = make_policy(), make_data()
    init = make_population(policy, 2)
    training = (data, InnerConfig(epochs=2, minibatch_pairs=2, compile=False), 0)
    found = train_policies(policy, init, space.objective, space.parameters(vectors), *training)
    sft = train_policies(policy, init, resolve("sft"), {}, *training)
    for name, value in found.items():
        torch.testing.assert_close(value[0], sft[name][0], atol=1e-5, rtol=1e-5)
    assert any((value[1] - sft[name][1]).abs().max() > 1e-3 for name, value in found.items())


# --- independence and files ---


@pytest.mark.parametrize(
    "settings",
    [{}, {"temporal": True}, {"space": "closed_form"}, {"space": "hyper", "start": "slic_hf"}],
    ids=str,
)
def test_what_is_saved_is_what_was_found(settings, tmp_path):
    space = space_of(**settings)
    vector = 0.03 * torch.randn(space.dim, generator=torch.Generator().manual_seed(0))
    space.save(tmp_path / "run" / "objective", vector, {"score": 1.5})
    found = resolve(tmp_path / "run" / "objective")
    assert torch.equal(found(pairs()), space.at(vector)(pairs()))
    assert (found.name, found.inputs) == (space.objective.name, space.objective.inputs)
    assert found.card == {"score": 1.5}
    # It is a start of the same space, to the bit.
    again = space_of(**settings | {"start": str(tmp_path / "run" / "objective")})
    assert again.start_name == "run"
    assert torch.equal(again.at(again.start)(pairs()), found(pairs()))
    assert again.at(again.start).card == {}


@pytest.mark.parametrize("settings", [{"space": "closed_form"}, {"space": "hyper"}], ids=str)
def test_a_loss_that_is_trained_after_sft_stays_one(settings, tmp_path):
    started = space_of("closed_form").objective
    started.after_sft = True
    started.save(tmp_path / "start", {})
    space = space_of(**settings, start=str(tmp_path / "start"))
    space.save(tmp_path / "found", space.start, {})
    assert space.objective.after_sft
    assert space.at(space.start).after_sft
    assert resolve(tmp_path / "found").after_sft


def test_a_found_objective_shares_nothing_with_its_space():
    space = space_of()
    first, second = space.at(space.start), space.at(space.start + 0.1)
    with torch.no_grad():
        first.vector.add_(1.0)
    assert space.objective.vector.abs().max() == 0
    assert space.start.abs().max() == 0
    torch.testing.assert_close(second.vector.detach(), space.start + 0.1)


@pytest.mark.parametrize("settings", [{}, {"space": "closed_form", "start": "sft"}], ids=str)
def test_a_space_travels_to_another_process(settings):
    space = space_of(**settings)
    other = cloudpickle.loads(cloudpickle.dumps(space))
    vector = space.start + 0.02
    assert torch.equal(other.at(vector)(pairs()), space.at(vector)(pairs()))


def scaled_loss(chosen_mean_logps, *, scale=2.0):
    return -scale * chosen_mean_logps


def test_a_loss_of_ones_own_is_searched_but_not_saved(tmp_path):
    space = CoefficientSpace(Objective(scaled_loss))
    assert space.at(torch.tensor([0.1])).hyper["scale"] == pytest.approx(2 * math.e)
    with pytest.raises(ValueError, match="scaled_loss cannot be saved: it is not one of the lib"):
        space.save(tmp_path / "new", torch.tensor([0.1]), {})
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="cannot be saved"):
        Objective(torch.compile(losses.simpo_loss)).save(tmp_path, {})


@pytest.mark.parametrize("start", ["0.8*dpo+0.2*sft", "simpo+sft@dual"])
def test_a_found_sum_has_its_own_weights_in_its_name(start, tmp_path):
    """Whoever copies the name gets what was found, and not where the search began."""
    space = space_of("hyper", start=start)
    vector = torch.full((space.dim,), 0.1)
    found = space.at(vector)
    weights = {name: value for name, value in found.hyper.items() if name.endswith("_weight")}
    begun = resolve(start).hyper
    assert all(abs(begun[name] - value) > 0.01 for name, value in weights.items())
    copied = resolve(found.name).hyper
    assert {name: copied[name] for name in weights} == pytest.approx(weights, rel=1e-4)
    space.save(tmp_path / "found", vector, {})
    assert resolve(tmp_path / "found").hyper == found.hyper


@pytest.mark.parametrize(
    ("start", "name"), [("dpo@alpha", "divergence_alpha"), ("simpo@wpo", "beta")]
)
def test_a_modified_loss_is_searched(start, name, tmp_path):
    space = space_of("hyper", start=start)
    assert name in space.names
    assert space.start_name == start
    space.save(tmp_path, torch.full((space.dim,), 0.03), {})
    assert resolve(tmp_path).name == start
    assert resolve(tmp_path).hyper[name] > resolve(start).hyper[name]


def test_hyper_parameters_of_all_kinds_come_back(tmp_path):
    resolve("f_dpo", divergence="js", beta=torch.tensor(0.25)).save(tmp_path, {})
    assert resolve(tmp_path).hyper == {"beta": 0.25, "divergence": "js", "alpha": 0.5}
    assert resolve(tmp_path).name == "f_dpo"
    content = json.loads((tmp_path / "objective.json").read_text())
    assert content["loss"] == "f_dpo"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"loss": "nothing", "hyper": {}}',
        '{"loss": ["dpo"], "hyper": {}}',
        '{"loss": "dpo", "hyper": {"betta": 1}}',
        '{"loss": "dpo", "hyper": {"beta": -1}}',
        '{"loss": "dpo", "hyper": {"name": "x"}}',
        '{"loss": "dpo", "hyper": 3}',
    ],
)
def test_a_damaged_file_of_a_loss_is_one_line(content, tmp_path):
    resolve("dpo").save(tmp_path, {})
    (tmp_path / "objective.json").write_text(content)
    with pytest.raises(ValueError, match="is not a readable saved objective") as caught:
        resolve(tmp_path)
    assert "\n" not in str(caught.value)


# --- what the user can get wrong ---


@pytest.fixture
def saved(tmp_path):
    """Folders of three saved objectives."""
    space_of(learn=("psi",), steps="one").save(tmp_path / "psi", torch.zeros(379), {})
    space_of(steps="two").save(tmp_path / "two", torch.zeros(space_of(steps="two").dim), {})
    resolve("dpo").save(tmp_path / "dpo", {})
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": "net"}, "unknown space 'net'.*network"),
        ({"steps": "three"}, "steps must be 'one' or 'two'"),
        ({"steps": "three", "start": "orpo"}, "steps must be 'one' or 'two'"),
        ({"learn": ["phi"]}, "'phi' is not a function"),
        ({"learn": []}, "learn is empty"),
        ({"start": "simpo"}, "neither a loss of this space.*holds orpo, sft, cpo"),
        ({"start": "dpo"}, "one-step network holds orpo, sft, cpo"),
        ({"steps": "two", "start": "orpo"}, "two-step network holds dpo, dpo_norm"),
        ({"start": "sft", "learn": ["psi", "phi_inv"]}, "learn must include g"),
        ({"start": "{}/psi", "learn": ["g"]}, "saved with learn psi: ask"),
        ({"start": "{}/two"}, "saved with steps two: ask"),
        ({"start": "{}/psi", "temporal": True}, "saved with temporal False: ask"),
        ({"start": "{}/dpo"}, "no learned objective but dpo; a one-step network holds orpo"),
        ({"start": "{}/empty"}, "is not a readable saved objective"),
        ({"start": "math:sin"}, "neither a loss of this space nor the folder"),
        ({"space": "closed_form", "start": "orpo"}, "closed_form holds closed_form, sft, lpo"),
        ({"space": "closed_form", "start": "{}/dpo"}, "no saved closed_form but dpo"),
        ({"space": "closed_form", "start": "{}/psi"}, "no saved closed_form but mirror_one_step"),
        ({"space": "closed_form", "temporal": True, "steps": "two"}, "steps, temporal belong to"),
        ({"space": "hyper", "start": "dpo", "learn": ["g"]}, "learn belong"),
        ({"space": "hyper"}, "needs --warm_start"),
        ({"space": "hyper", "start": "sft"}, "sft has no hyper-parameter to search"),
        ({"space": "hyper", "start": "slic"}, "did you mean 'slic_hf'"),
        ({"space": "hyper", "start": "{}/psi"}, "learned objective: --space network"),
    ],
    ids=str,
)
def test_mistakes_are_told_in_one_line(settings, message, saved):
    if "start" in settings:
        settings = settings | {"start": settings["start"].format(saved)}
    with pytest.raises(UserError, match=message) as caught:
        space_of(**settings)
    assert "\n" not in str(caught.value)


def test_a_saved_network_needs_no_other_setting_repeated(saved):
    space = space_of(start=str(saved / "psi"))
    assert isinstance(space, NetworkSpace)
    assert space.objective.learn == ("psi",)
    assert space_of(start=str(saved / "psi"), learn=["psi"]).dim == space.dim
    assert space_of(steps="two", start=str(saved / "two")).start_name == "two"


def test_names_of_hyper_parameters_are_checked():
    with pytest.raises(UserError, match=r"'betta'.*did you mean 'beta'"):
        CoefficientSpace(resolve("simpo"), ["betta"])
    with pytest.raises(UserError, match="it has none"):
        CoefficientSpace(resolve("sft"), ["beta"])
    with pytest.raises(ValueError, match="expected"):
        CoefficientSpace(resolve("simpo")).values(torch.zeros(3))


# --- what is shipped ---


@pytest.mark.parametrize("name", discovered())
def test_a_shipped_objective_has_a_name_and_says_what_it_beat(name):
    objective = resolve(name)
    x = torch.tensor([-1.0, -2.0])
    pair = PairLogps(chosen_mean_logps=x, rejected_mean_logps=x.flip(0))
    assert objective(pair).isfinite().all()
    comparison = objective.card["comparison"]
    assert comparison["objectives"]["discovered"]["diverged"] == 0
    rivals = [name for name in comparison["differences"] if name.endswith(", tuned")]
    assert rivals
    assert objective.card["config"]["seed"] is not None


def test_shipped_objectives_are_named_like_losses():
    assert "tla_noisy" in discovered()
    with pytest.raises(ValueError, match="did you mean 'tla_noisy'"):
        resolve("tla_noise")
    with pytest.raises(ValueError, match="takes no hyper-parameters; got beta"):
        resolve("tla_noisy", beta=1.0)
