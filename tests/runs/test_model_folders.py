"""What tells a model's folder from another: content, and neither times nor what is beside it."""

import json
import os

import pytest

from torchmpo.runs import model_folders
from torchmpo.runs.model_folders import model_digests


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return tmp_path / "model"


def changed(path, place, value):
    content = bytearray(path.read_bytes())
    content[place] = value
    path.write_bytes(content)


def test_content_counts_and_times_and_cards_do_not(model):
    before = model_digests("model")
    assert list(before) == ["model"]
    for path in model.iterdir():
        os.utime(path, (1, 1))
    for name in ("README.md", "optimizer.pt", "trainer_state.json", "notes.txt"):
        (model / name).write_text("x")
    (model / "checkpoint-1").mkdir()
    assert model_digests("model") == before
    changed(model / "model.safetensors", 5000, 0)
    found = [before, model_digests("model")]
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        (model / name).write_text("another")
        found.append(model_digests("model"))
    assert len({digest["model"] for digest in found}) == 6


def test_large_weights_count_by_their_size_and_by_pieces(model, monkeypatch):
    monkeypatch.setattr(model_folders, "WHOLE", 10_000)  # the file has 10,240 bytes
    monkeypatch.setattr(model_folders, "PIECE", 64)
    monkeypatch.setattr(model_folders, "PIECES", 5)
    found = [model_digests("model")]
    for place in (0, 10_239, 2_560):  # in the first, the last and the second piece
        changed(model / "model.safetensors", place, 77)
        found.append(model_digests("model"))
    assert len({str(digest) for digest in found}) == 4
    changed(model / "model.safetensors", 1_000, 77)  # between pieces
    assert model_digests("model") == found[-1]
    with (model / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert model_digests("model") != found[-1]


def test_an_adapter_brings_its_base(model, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"x")
    for base, names in (("model", ["adapter", "model"]), ("org/hub-id", ["adapter"])):
        text = json.dumps({"base_model_name_or_path": base})
        (adapter / "adapter_config.json").write_text(text)
        assert list(model_digests("adapter", None)) == names
    (adapter / "adapter_config.json").write_text("[")
    assert list(model_digests(adapter)) == [str(adapter)]


def test_what_is_no_folder_of_a_model_has_none(model, tmp_path):
    (tmp_path / "empty").mkdir()
    assert model_digests("org/hub-id", None, "empty", "model/config.json") == {}
