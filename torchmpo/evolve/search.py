"""The outer loop: evolution of a vector.

It maximises any function of vectors and the generation, such as a
:class:`torchmpo.evolve.workers.Fitness`.
"""

import csv
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from torchmpo.evolve.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from torchmpo.evolve.curriculum import ALL, Curriculum
from torchmpo.evolve.optimizers import Optimizer, SearchConfig, State, optimizer_of
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import naming, write_atomic

LOG_COLUMNS = ("generation", "centre", "mean", "best", "sigma", "nan")


class Found(NamedTuple):
    """The result of a search.

    ``vector [dim]`` is the last centre: to pick the one that scored best would pick the luckiest
    seeds. ``log`` has one dictionary per generation.
    """

    vector: Tensor
    log: list[dict]


def search(
    fitness: Callable[[Tensor, int], Tensor],
    centre: Tensor,
    config: SearchConfig,
    folder: str | Path,
    *,
    on_generation: Callable[[dict, float], None] = lambda row, seconds: None,
    held_out: Callable[[Tensor, int], float] | None = None,
    every: int = 10,
    curriculum: Curriculum | None = None,
    optimizer: Optimizer | None = None,
) -> Found:
    """Search from ``centre``, or go on from the newest checkpoint in ``folder``, beyond the end of
    a shorter search, too.

    Each generation evaluates the centre and the population, steps, and writes a checkpoint; a last
    row of the log evaluates the final centre alone. ``log.csv`` is written whole from the log in
    the checkpoint, so after a kill the two cannot disagree, and everything in them follows from
    ``config`` and ``fitness``. Wall-clock times go to ``timings.csv``.

    Args:
        fitness: of vectors ``[n, dim]`` in a generation: ``[n]``, higher is better, NaN for a
            failure.
        centre: ``[dim]``, where to start.
        folder: of the run; ``checkpoints/``, ``log.csv`` and ``timings.csv`` go there.
        on_generation: called with each new row of the log and the seconds it took.
        held_out: a score of the centre ``[dim]`` in a generation that the search does not see; the
            log gets a column ``held_out`` for it, ``None`` where it was not asked.
        curriculum: draws the kind of data of each generation, for a fitness that takes it; the log
            gets a column ``regime``, and the final centre is judged on all kinds.
        optimizer: how it moves; by default the one that ``config`` names.
        every: generations from one ``held_out`` to the next (≥ 1); the final centre has one, too.

    Raises:
        UserError: the checkpoint is another search's, or ``every`` < 1.
    """
    if every < 1:
        raise UserError(f"every must be at least 1; got {every}")
    folder, optimizer = Path(folder), optimizer or optimizer_of(config)
    state, log = _newest(folder, optimizer.start(centre))
    if log and log[-1]["mean"] is None and log[-1]["generation"] < config.generations:
        log.pop()  # the end of a shorter search; the state is that before it
    columns = LOG_COLUMNS
    if held_out is not None or any("held_out" in row for row in log):
        columns += ("held_out",)
    if curriculum is not None:
        columns += ("regime",)
    log = [{column: row.get(column) for column in columns} for row in log]
    _write_log(folder, columns, log)
    for generation in range(len(log), config.generations + 1):
        began = time.perf_counter()
        centre = state["centre"]
        row = {"generation": generation, "sigma": optimizer.sigma(state)}
        last, judge = generation == config.generations, fitness
        if curriculum is not None:
            row["regime"] = ALL if last else curriculum.choose(log, generation)
            judge = curriculum.on(row["regime"], fitness)
        if last:
            row["centre"] = float(judge(centre[None], generation)[0])
        else:
            members = optimizer.ask(state, generation)
            scores = judge(torch.cat([centre[None], members]), generation)
            state = optimizer.tell(state, generation, members, scores[1:])
            row |= {"centre": float(scores[0]), **_summary(scores[1:])}
        if held_out is not None and (last or generation % every == 0):
            row["held_out"] = float(held_out(centre, generation))
        log.append({column: row.get(column) for column in columns})
        save_checkpoint(folder / "checkpoints", Checkpoint(len(log), state, log))
        _write_log(folder, columns, log)
        seconds = time.perf_counter() - began
        _append_timing(folder, generation, seconds, getattr(fitness, "bytes_sent", 0))
        on_generation(log[-1], seconds)
    return Found(state["centre"], log)


def _newest(folder: Path, start: State) -> tuple[State, list[dict]]:
    """State and log of the newest checkpoint; ``start`` and an empty log where there is none."""
    checkpoint = load_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        return start, []
    _check_same_search(start, checkpoint, folder)
    return checkpoint.tensors, checkpoint.info


def _summary(scores: Tensor) -> dict:
    """What the log says of the members' ``scores [population]``."""
    finite = scores[torch.isfinite(scores)].double()
    best = float(finite.max()) if len(finite) else math.nan
    return {"mean": float(finite.mean()), "best": best, "nan": len(scores) - len(finite)}


def _check_same_search(state: State, checkpoint: Checkpoint, folder: Path) -> None:
    def shapes(tensors: State) -> dict:
        return {name: tuple(value.shape) for name, value in tensors.items()}

    if shapes(state) != shapes(checkpoint.tensors):
        raise UserError(
            f"{folder} holds a search by another optimizer or over another number of parameters: "
            "choose another folder"
        )


def _write_log(folder: Path, columns: tuple[str, ...], log: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(log)
    write_atomic(folder / "log.csv", text.getvalue())


def _append_timing(folder: Path, generation: int, seconds: float, sent: int) -> None:
    path = folder / "timings.csv"
    header = "" if path.exists() else "generation,seconds,bytes_sent\n"
    with naming(path), open(path, "a") as file:
        file.write(f"{header}{generation},{seconds:.3f},{sent}\n")
