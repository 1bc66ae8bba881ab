"""A saved objective that was edited or made up is refused in a line, and soon."""

import json
import math
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from torchmpo import MirrorObjective, Objective, resolve
from torchmpo.losses import LOSSES
from torchmpo.objectives.resolve import DISCOVERED, discovered
from torchmpo.objectives.soundness import check_finite, check_learned


@pytest.fixture
def learned(tmp_path):
    """The folder of a small learned objective, with what edits it."""
    objective = MirrorObjective(units=4, temporal=True)
    with torch.no_grad():
        objective.vector.copy_(0.1 * torch.randn(objective.dim, generator=torch.Generator()))
    objective.save(tmp_path / "objective", {"name": "mine"})
    return tmp_path / "objective"


def edit(folder, tensors=lambda old: old, architecture=lambda old: old):
    path = folder / "objective.safetensors"
    with safe_open(str(path), framework="pt") as file:
        old = json.loads(file.metadata()["mirror_objective"])
    new = architecture(old)
    text = new if isinstance(new, str) else json.dumps(new)
    save_file(tensors(load_file(path)), path, metadata={"mirror_objective": text})


def refused(folder, reason):
    with pytest.raises(
        ValueError, match=rf"{folder} is not a readable saved objective: .*{reason}"
    ):
        resolve(folder)


def put(name, index, value):
    def change(tensors):
        tensors[name].view(-1)[index] = value
        return tensors

    return change


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (put("vector", 3, math.nan), "vector has values that are not finite"),
        (put("vector", -1, math.inf), "vector has values that are not finite"),
        (put("vector", 0, 1e38), "not finite"),
        (put("network.slope", 5, -2.0), "network.slope has negative values"),
        (put("network.slope", 5, math.nan), "network.slope has values that are not finite"),
        (put("network.offset", 5, -math.inf), "network.offset has values that are not finite"),
        (lambda t: t | {"vector": t["vector"].to(torch.float8_e4m3fn)}, "float8_e4m3fn"),
        (lambda t: t | {"vector": t["vector"].to(torch.complex64)}, "complex64"),
        (lambda t: t | {"vector": t["vector"].to(torch.int64)}, "int64"),
        (lambda t: t | {"vector": t["vector"][:-1].clone()}, "it holds "),
        (lambda t: t | {"vector": torch.zeros(0)}, "it holds "),
        (lambda t: t | {"more": torch.zeros(3)}, "it holds "),
        (lambda t: {"vector": t["vector"]}, "it holds "),
        (lambda t: {"x": torch.zeros(1)}, "it holds "),
    ],
)
def test_tensors_that_were_edited(learned, tensors, reason):
    edit(learned, tensors)
    refused(learned, reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"units": 10**9}, "at most 65536 hidden units"),
        ({"units": 4.0}, "hidden units"),
        ({"units": "4"}, ""),
        ({"units": None}, ""),
        ({"activations": ["exp"] * 100_000}, "at most 65536 hidden units"),
        ({"activations": [["exp"]]}, ""),
        ({"initial": {"g_log": math.nan}}, "must be zero or positive"),
        ({"initial": {"g_log": 1e300}}, "not finite"),
        ({"initial": {"g_log": "1"}}, ""),
        ({"initial": [1]}, ""),
        ({"temporal": "yes"}, "temporal must be true or false"),
        ({"steps": ["one"]}, ""),
        ({"learn": "psi"}, "learn: 'p' is not a function"),
        ({"more": 1}, "more"),
        (None, ""),
        ("[" * 100_000, "nested too deep"),
        ('{"units": 4, "units": 4}', "the key 'units' is there twice"),
        ("[]", ""),
        ("3", ""),
    ],
)
def test_an_architecture_that_was_edited(learned, change, reason):
    edit(learned, architecture=lambda a: a | change if isinstance(change, dict) else change)
    refused(learned, reason)


@pytest.mark.parametrize("content", ["[]", "null", '"card"', "", "[" * 100_000, '{"a": 1, "a": 1}'])
@pytest.mark.parametrize("kind", ["learned", "loss"])
def test_a_card_that_is_none(learned, content, kind):
    if kind == "loss":
        shutil.rmtree(learned)
        resolve("simpo").save(learned, {})
    (learned / "card.json").write_text(content)
    refused(learned, "")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", ""),
        ("3", ""),
        ("{}", "loss"),
        ({"loss": "simp", "hyper": {}}, "simp"),
        ({"loss": ["simpo"], "hyper": {}}, ""),
        ({"loss": "simpo", "hyper": []}, "the hyper-parameters are not an object"),
        ({"loss": "simpo", "hyper": {"bete": 1.0}}, "no hyper-parameter 'bete'"),
        ({"loss": "simpo", "hyper": {"beta": "1"}}, "beta is a str, not a number"),
        ({"loss": "simpo", "hyper": {"beta": True}}, "beta is a bool, not a number"),
        ({"loss": "simpo", "hyper": {"beta": None}}, "beta is a NoneType, not a number"),
        ({"loss": "simpo", "hyper": {"beta": [1.0]}}, "beta is a list, not a number"),
        ({"loss": "simpo", "hyper": {"beta": {"a": 1}}}, "beta is a dict, not a number"),
        ({"loss": "simpo", "hyper": {"beta": math.nan}}, "beta is nan, which is no number"),
        (
            {"loss": "simpo", "hyper": {"beta": math.inf}},
            "beta must be positive and finite; got inf",
        ),
        ({"loss": "simpo", "hyper": {"beta": 10**400}}, ""),
        ({"loss": "simpo", "hyper": {"beta": 1e308}}, "not finite"),
        ({"loss": "simpo", "hyper": {"beta": -1.0}}, "beta must be positive"),
        ({"loss": "ipo", "hyper": {"reduction": 1}}, "reduction is a number, not a str"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_a_loss_with_numbers_that_was_edited(tmp_path, content, reason):
    resolve("simpo").save(tmp_path / "mine", {})
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "mine" / "objective.json").write_text(text)
    refused(tmp_path / "mine", reason)


def test_a_function_that_does_not_increase_is_found():
    objective = MirrorObjective(units=4)
    find = objective.functions

    def falling(vector, progress=None):
        return find(vector, progress) | {"phi_inv": lambda x: -x}

    objective.functions = falling  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="phi_inv is not increasing"):
        check_learned(objective)


@pytest.mark.parametrize("steps", ["one", "two"])
@pytest.mark.parametrize("temporal", [False, True])
def test_whatever_a_search_may_find_is_sound(steps, temporal):
    everything = ("psi", "phi_inv", "g") if steps == "one" else ("phi_inv", "g")
    for learn in ((), everything[:1], everything):
        objective = MirrorObjective(steps=steps, temporal=temporal, learn=learn)
        for k, spread in enumerate((0.0, 0.1, 1.0, 10.0)):
            with torch.no_grad():
                noise = torch.randn(objective.dim, generator=torch.Generator().manual_seed(k))
                objective.vector.copy_(spread * noise)
            check_learned(objective)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_was_saved_in_another_type_is_read(tmp_path, dtype):
    MirrorObjective(units=4).to(dtype).save(tmp_path / "mine", {})
    assert resolve(tmp_path / "mine").vector.dtype == dtype


def test_what_the_library_has_is_sound():
    for name in discovered():
        resolve(DISCOVERED / name)
    for loss in LOSSES.values():
        check_finite(Objective(loss))


def test_an_infinite_threshold_is_saved_and_loaded(tmp_path):
    objective = resolve("colpo", threshold=math.inf)
    objective.save(tmp_path / "mine", {"name": "mine"})
    assert resolve(tmp_path / "mine").hyper["threshold"] == math.inf
