"""A cache of the reference's log-probabilities serves its own model and data, and no other."""

import pytest
import torch
from safetensors.torch import save_file
from tiny_llm import tiny_batch

from torchmpo.finetune.reference import (
    data_digest,
    read_reference,
    reference_table,
    with_reference,
    write_reference,
)
from torchmpo.runs.errors import UserError

DATA = tiny_batch(pairs=6)


def batches(data=DATA, size=2, padding=0):
    """The data in batches, with more padding."""
    count = len(data["index"])
    for start in range(0, count, size):
        chosen = torch.arange(start, min(start + size, count))
        both = torch.cat([chosen, chosen + count])
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        yield {
            name: torch.nn.functional.pad(data[name][both], (0, padding), value=value)
            for name, value in fill.items()
        }


def sums(batch):
    """A stand-in for a model: depends on every token."""
    weights = torch.arange(1, batch["input_ids"].shape[1] + 1)
    return -(batch["input_ids"] * batch["attention_mask"] * weights).sum(1).double()


def test_the_digest_does_not_depend_on_batches_and_padding():
    digest = data_digest(batches())
    assert digest == data_digest(batches(size=4)) == data_digest(batches(size=6, padding=3))


@pytest.mark.parametrize("name", ["input_ids", "labels"])
@pytest.mark.parametrize("row", [0, 5, 6, 11])
def test_the_digest_depends_on_every_row(name, row):
    changed = {k: v.clone() for k, v in DATA.items()}
    position = int((DATA["labels"][row] != -100).nonzero()[0])
    changed[name][row, position] = 7 if name == "input_ids" else -100
    assert data_digest(batches(changed)) != data_digest(batches())


def test_the_digest_depends_on_the_order():
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    swapped = {k: v[torch.cat([order, order + 6])] for k, v in DATA.items() if k != "index"}
    assert data_digest(batches(swapped | {"index": DATA["index"]})) != data_digest(batches())


def test_a_table_is_computed_once(tmp_path):
    path, calls = tmp_path / "new" / "train.safetensors", []

    def logps(batch):
        calls.append(1)
        return sums(batch)

    table = reference_table(path, batches, logps, "model")
    assert len(calls) == 3
    expected = sums(DATA).float()
    assert torch.equal(table, torch.stack([expected[:6], expected[6:]]))
    assert torch.equal(reference_table(path, batches, logps, "model"), table)
    assert len(calls) == 3
    assert [p.name for p in path.parent.iterdir()] == ["train.safetensors"]


def test_rows_find_their_values():
    table = torch.tensor([[0.0, 1, 2], [10, 11, 12]])
    batch = with_reference({"index": torch.tensor([2, 0])}, table, torch.tensor([2, 0]))
    assert batch["ref_logps"].tolist() == [2, 0, 12, 10]


def test_other_models_and_other_data_are_refused_in_one_line(tmp_path):
    path = tmp_path / "train.safetensors"
    key = {"model": "a", "data": "b"}
    write_reference(path, torch.zeros(2, 5), key)
    assert read_reference(path, key).shape == (2, 5)
    with pytest.raises(UserError, match=r"train.safetensors holds .* another model: delete it"):
        read_reference(path, key | {"model": "c"})
    with pytest.raises(UserError, match=r"is of other data \(5 pairs\), or of another tokenizer"):
        read_reference(path, key | {"data": "c"})


def test_a_damaged_cache_is_refused_in_one_line(tmp_path):
    path = tmp_path / "train.safetensors"
    write_reference(path, torch.zeros(2, 5), {"model": "a", "data": "b"})
    whole = path.read_bytes()
    for content in (whole[:-8], b"", b"no such thing"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a readable cache") as caught:
            read_reference(path, {"model": "a", "data": "b"})
        assert "\n" not in str(caught.value)
    save_file({"logps": torch.zeros(2, 5)}, path)  # of somebody else
    with pytest.raises(UserError, match="is not a readable cache"):
        read_reference(path, {"model": "a", "data": "b"})
