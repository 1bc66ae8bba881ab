"""The reference's log-probabilities, computed once and kept in a file that knows what it is of.

A loss with a reference needs its log-probability of every response, which does not change in
training: with this cache no reference is run or held in memory. The file names the model (its
configuration and weights) and the data (every token, in order, and which of them count), so that
another tokenizer, template, truncation, data set or model is noticed, and refused.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

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
        batches: in order, ``input_ids``, ``attention_mask`` and ``labels`` ``[2B, T]``, of lists
            ``[nB, T]``, and ``index`` ``[B]``; of labelled answers ``[B, T]``, and ``desirable``.
    """
    digest = hashlib.blake2b(digest_size=16)
    for batch in batches:
        rows = torch.arange(len(batch["input_ids"])).reshape(_answers(batch), -1)
        for row in rows.T.reshape(-1).tolist():
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
    *,
    strategy: Any = None,
) -> Tensor:
    """The reference's log-probabilities of a data set, from the file or, without one, into it.

    Each of several processes computes a share, and the first one reads or writes the file.

    Args:
        path: the file; its folder is made if it does not exist.
        batches: the whole data set in order, as often as it is called.
        logps: summed log-probabilities ``[2B]`` of a batch under the reference.
        model_digest: see :func:`torchmpo.finetune.models.model_digest`.
        strategy: Lightning's, where there are several processes; all of them must ask.

    Returns:
        ``[2, pairs]`` float32, nats: chosen, rejected; ``[1, answers]`` of labelled ones,
        ``[n, lists]`` of lists.

    Raises:
        UserError: the file is damaged, or of another model or other data.
    """

    def make() -> Tensor:
        return torch.cat(_sides(batches(), logps, strategy), 1)

    kept = read_reference, write_reference
    return _read_or_made(path, model_digest, batches, strategy, make, *kept)


def _read_or_made(
    path: str | Path,
    model_digest: str,
    batches: Callable[[], Iterable[Batch]],
    strategy: Any,
    make: Callable[[], Any],
    read: Callable[[Path, dict[str, str]], Any],
    write: Callable[[Path, Any, dict[str, str]], None],
) -> Any:
    """A table: from the file, or made by all processes. The first one reads or writes for all."""
    path = Path(path)
    there = path.exists() if strategy is None else strategy.broadcast(path.exists())
    table = None if there else make()
    if strategy is None or strategy.global_rank == 0:
        key = {"model": model_digest, "data": data_digest(batches())}
        try:
            if table is None:
                table = read(path, key)
            else:
                write(path, table, key)
        except UserError as error:
            table = error  # for all to raise: none may go on waiting for this one
    if strategy is not None:
        table = strategy.broadcast(table)
    if isinstance(table, UserError):
        raise table
    return table


def _sides(
    batches: Iterable[Batch], logps: Callable[[Batch], Tensor], strategy: Any
) -> list[Tensor]:
    """``[2, pairs]`` of each batch, in order."""
    world, rank = (1, 0) if strategy is None else (strategy.world_size, strategy.global_rank)
    count, mine, left = 0, [], iter(batches)
    while together := list(islice(left, world)):
        count += len(together)
        # Of a sharded model none may compute alone: in the last round, some do what another does.
        batch = together[min(rank, len(together) - 1)]
        mine.append(logps(batch).float().cpu().reshape(_answers(batch), -1))
    if world == 1:
        return mine
    everyones: list[Any] = [None] * world
    torch.distributed.all_gather_object(everyones, mine)
    return [side for of_round in zip(*everyones, strict=True) for side in of_round][:count]


def _answers(batch: Batch) -> int:
    """To each prompt: one where answers have labels, else the two of a pair or those of a list."""
    if "desirable" in batch:
        return 1
    return len(batch["input_ids"]) // len(batch["index"]) if "index" in batch else 2


def write_reference(path: str | Path, table: Tensor, key: dict[str, str]) -> None:
    """Write a table and what it is of; the file is there whole or not at all."""
    _write(path, {"logps": table}, key)


class StepTable(NamedTuple):
    """The reference's log-probability of every token that counts.

    Attributes:
        logps: ``[tokens]`` float32, nats: the chosen answers one after another, then the others.
        lengths: ``[answers, rows]`` int64, the tokens of each: see :func:`reference_table`.
    """

    logps: Tensor
    lengths: Tensor

    def of(self, batch: Batch, rows: Sequence[int] | Tensor) -> Batch:
        """The batch with ``ref_step_logps`` ``[2B, T − 1]``, and ``ref_logps``, their sums."""
        mask = batch["labels"][:, 1:] != -100
        ends = self.lengths.reshape(-1).cumsum(0).reshape(self.lengths.shape)
        own = torch.as_tensor(rows)
        last, count = ends[:, own].reshape(-1), self.lengths[:, own].reshape(-1)
        parts = [
            self.logps[end - n : end] for end, n in zip(last.tolist(), count.tolist(), strict=True)
        ]
        steps = torch.zeros(mask.shape).masked_scatter(mask, torch.cat(parts))
        return batch | {"ref_step_logps": steps, "ref_logps": steps.sum(-1)}


def step_table(
    path: str | Path,
    batches: Callable[[], Iterable[Batch]],
    step_logps: Callable[[Batch], Tensor],
    model_digest: str,
    *,
    strategy: Any = None,
) -> StepTable:
    """As :func:`reference_table`, of every token. Each process computes all of it, and the
    first one reads or writes the file.

    Args:
        path, batches, model_digest, strategy: as there.
        step_logps: log-probabilities ``[2B, T − 1]`` of a batch under the reference.

    Raises:
        UserError: the file is damaged, or of another model or other data.
    """

    def make() -> StepTable:
        return _step_table(batches(), step_logps)

    def read(path: Path, key: dict[str, str]) -> StepTable:
        return StepTable(**_read(path, key, StepTable._fields))

    def write(path: Path, table: StepTable, key: dict[str, str]) -> None:
        _write(path, table._asdict(), key)

    return _read_or_made(path, model_digest, batches, strategy, make, read, write)


def _step_table(batches: Iterable[Batch], step_logps: Callable[[Batch], Tensor]) -> StepTable:
    found: defaultdict[int, list[Tensor]] = defaultdict(list)
    for batch in batches:
        mask = (batch["labels"][:, 1:] != -100).cpu()
        values = step_logps(batch).float().cpu()
        size = len(values) // _answers(batch)
        for k, (value, own) in enumerate(zip(values, mask, strict=True)):
            found[k // size].append(value[own])
    sides = [found[k] for k in sorted(found)]
    lengths = torch.tensor([[len(row) for row in side] for side in sides])
    return StepTable(torch.cat([row for side in sides for row in side]), lengths)


def _write(path: str | Path, tensors: dict[str, Tensor], key: dict[str, str]) -> None:
    from safetensors.torch import save

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: value.contiguous() for name, value in tensors.items()}
    write_atomic(path, save(plain, metadata={FORMAT: json.dumps(key)}))


def read_reference(path: str | Path, key: dict[str, str]) -> Tensor:
    """Read what :func:`write_reference` wrote.

    Args:
        path: the file.
        key: ``model`` and ``data``, digests of what it should be of.

    Raises:
        UserError: the file is damaged, or of another model or other data.
    """
    return _read(path, key, ("logps",))["logps"]


def _read(path: str | Path, key: dict[str, str], names: Sequence[str]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            stored: dict[str, Any] = checked(
                parse_json((file.metadata() or {})[FORMAT]), dict[str, str]
            )
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a readable cache of a reference: delete it") from error
    again = "delete it to compute it again, or name another data.reference_cache"
    if stored.get("model") != key["model"]:
        raise UserError(f"{path} holds log-probabilities of another model: {again}")
    if stored.get("data") != key["data"]:
        raise UserError(
            f"{path} is of other data ({_rows(tensors)} pairs), or of another tokenizer, template "
            f"or truncation: {again}"
        )
    return tensors


def _rows(tensors: dict[str, Tensor]) -> int:
    return tensors["lengths" if "lengths" in tensors else "logps"].shape[1]


def with_reference(batch: Batch, table: Tensor, rows: Sequence[int] | Tensor) -> Batch:
    """The batch with ``ref_logps`` of its answers, the columns ``rows`` ``[B]`` of the table."""
    return batch | {"ref_logps": table[:, torch.as_tensor(rows)].reshape(-1)}
