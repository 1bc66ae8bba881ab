"""The reference's log-probabilities, computed once and kept in a file that knows what it is of.

A loss with a reference needs its log-probability of every response, which does not change in
training: with this cache no reference is run or held in memory. The file names the model (its
configuration and weights) and the data (every token, in order, and which of them count), so that
another tokenizer, template, truncation, data set or model is noticed, and refused.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmpo.runs.errors import UserError
from torchmpo.runs.files import write_atomic
from torchmpo.runs.json_files import checked, parse_json

Batch = dict[str, Tensor]
FORMAT = "torchmpo_reference_logps"


def data_digest(batches: Iterable[Batch]) -> str:
    """What a data set holds, in 32 hexadecimal digits: tokens, and which of them are labelled.

    The same however the data are split into batches and padded.

    Args:
        batches: in order, ``input_ids``, ``attention_mask`` and ``labels`` ``[2B, T]``.
    """
    digest = hashlib.blake2b(digest_size=16)
    for batch in batches:
        pairs = len(batch["input_ids"]) // 2
        for row in (row for i in range(pairs) for row in (i, i + pairs)):
            kept = batch["attention_mask"][row].bool()
            for name in ("input_ids", "labels"):
                values = batch[name][row][kept].to(torch.int64)
                digest.update(len(values).to_bytes(8, "little"))
                digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()


def reference_table(
    path: str | Path,
    batches: Callable[[], Iterable[Batch]],
    logps: Callable[[Batch], Tensor],
    model_digest: str,
) -> Tensor:
    """The reference's log-probabilities of a data set, from the file or, without one, into it.

    Args:
        path: the file; its folder is made if it does not exist.
        batches: the whole data set in order, as often as it is called.
        logps: summed log-probabilities ``[2B]`` of a batch under the reference.
        model_digest: see :func:`torchmpo.finetune.models.model_digest`.

    Returns:
        ``[2, pairs]`` float32, nats: chosen, rejected.

    Raises:
        UserError: the file is damaged, or of another model or other data.
    """
    path = Path(path)
    key = {"model": model_digest, "data": data_digest(batches())}
    if path.exists():
        return read_reference(path, key)
    sides = [logps(batch).float().cpu().reshape(2, -1) for batch in batches()]
    table = torch.cat(sides, 1)
    write_reference(path, table, key)
    return table


def write_reference(path: str | Path, table: Tensor, key: dict[str, str]) -> None:
    """Write ``[2, pairs]`` and what it is of; the file is there whole or not at all."""
    from safetensors.torch import save

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save({"logps": table.contiguous()}, metadata={FORMAT: json.dumps(key)}))


def read_reference(path: str | Path, key: dict[str, str]) -> Tensor:
    """Read what :func:`write_reference` wrote.

    Args:
        path: the file.
        key: ``model`` and ``data``, digests of what it should be of.

    Raises:
        UserError: the file is damaged, or of another model or other data.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            stored: dict[str, Any] = checked(
                parse_json((file.metadata() or {})[FORMAT]), dict[str, str]
            )
            table = file.get_tensor("logps")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a readable cache of a reference: delete it") from error
    again = "delete it to compute it again, or name another data.reference_cache"
    if stored.get("model") != key["model"]:
        raise UserError(f"{path} holds log-probabilities of another model: {again}")
    if stored.get("data") != key["data"]:
        raise UserError(
            f"{path} is of other data ({table.shape[1]} pairs), or of another tokenizer, template "
            f"or truncation: {again}"
        )
    return table


def with_reference(batch: Batch, table: Tensor, rows: Sequence[int] | Tensor) -> Batch:
    """The batch with ``ref_logps`` ``[2B]``, the columns ``rows`` ``[B]`` of the table."""
    return batch | {"ref_logps": table[:, torch.as_tensor(rows)].reshape(-1)}
