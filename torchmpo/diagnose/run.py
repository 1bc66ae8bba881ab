"""A diagnosis from its first cell to its report: what ``python -m torchmpo.diagnose`` does."""

import json
import math
import os
import statistics as st
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from torchmpo.diagnose.cells import cell_path, check_cell, made_of, read_cell, write_cell
from torchmpo.diagnose.data_statistics import data_statistics, histogram_edges
from torchmpo.diagnose.leaderboard import leaderboard, write_leaderboard
from torchmpo.diagnose.report.page import write_page
from torchmpo.diagnose.setup import Setup, where
from torchmpo.diagnose.suite import anchors, run_cell
from torchmpo.runs.command import duration, read_json
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import write_atomic

prepare = Setup.of


def run(setup: Setup, out: Path) -> int:
    """Every cell that is not finished, then the report; returns the exit code."""

    config = setup.config
    torch.set_num_threads(config.num_threads or len(os.sched_getaffinity(0)))
    (out / "cells").mkdir(exist_ok=True)
    todo = check(setup, out)
    if not any((out / "cells").glob("*.json")):  # nothing vouches for what else is there
        for name in ("anchors.json", "statistics.json"):
            (out / name).unlink(missing_ok=True)
    _describe_data(setup, out)
    if not (out / "anchors.json").exists():
        first = next(iter(setup.trials.values()))
        found = anchors(first, max(config.episodes, 16), setup.protocol)
        write_atomic(out / "anchors.json", json.dumps(found) + "\n")
    failed = _cells(setup, todo, _anchors(out))
    report(setup, out)
    return 1 if failed else 0


def _anchors(out: Path) -> dict[str, list[float]]:
    found = read_json(path := out / "anchors.json")
    if not (isinstance(found, dict) and all(found.get(role) for role in ("original", "target"))):
        raise UserError(f"{path} is not the returns of two agents: delete it and --resume")
    return found


def _describe_data(setup: Setup, out: Path) -> None:
    """Write ``statistics.json`` for the kinds of data that it does not have yet."""
    path = out / "statistics.json"
    found = read_json(path) if path.exists() else {"edges": {}, "kinds": {}}
    if not (isinstance(found, dict) and {"edges", "kinds"} <= found.keys()):
        raise UserError(f"{path} is not the statistics of a run: delete it and --resume")
    missing = {kind: trial for kind, trial in setup.trials.items() if kind not in found["kinds"]}
    for kind, trial in missing.items():
        found["edges"] = histogram_edges(trial.dataset)
        found["kinds"][kind] = data_statistics(trial.pool, trial.dataset)
    if missing:
        write_atomic(path, json.dumps(found) + "\n")


class Missing(NamedTuple):
    """A cell that is not finished: what is missing, where it goes, and what there is of it."""

    loss: str
    data: str
    path: Path
    made: dict
    done: dict | None


def check(setup: Setup, out: Path) -> list[Missing]:
    """The cells to run.

    Raises:
        UserError: a finished cell is damaged, or of something else.
    """
    todo = []
    for data, trial in setup.trials.items():
        for loss, objective in setup.objectives.items():
            path, done = cell_path(out, loss, data), None
            made = made_of(loss, objective, trial)
            if path.exists():
                done = read_cell(path)
                check_cell(path, done, loss, data, setup.grids[loss], made)
            enough = done and (len(done["returns"]) >= setup.config.seeds or done["best"] < 0)
            if not enough:
                todo.append(Missing(loss, data, path, made, done))
    return todo


def _cells(setup: Setup, todo: Sequence[Missing], agents: dict) -> list[str]:
    """Run what is missing; returns a line for every loss that raised."""

    failures, seconds = [], []
    wide = max((len(cell.loss) for cell in todo), default=0)
    with tqdm(total=len(todo), desc="cells", disable=not sys.stderr.isatty(), leave=False) as bar:
        for index, (loss, data, path, made, done) in enumerate(todo):
            begin = time.perf_counter()
            try:
                cell = _cell(setup, loss, data, done)
            except UserError:
                raise
            except Exception as error:
                if ":" not in loss:
                    raise  # a loss of this package: a bug of ours
                failures.append(f"{loss} on {data}: {where(error)}")
                bar.write(f"error: {failures[-1]}", file=sys.stderr)
                continue
            seconds.append(time.perf_counter() - begin)
            cell["seconds"] = round(seconds[-1] + (done or {}).get("seconds", 0.0), 1)
            # What was begun without a record cannot be vouched for later.
            write_cell(path, cell if done else cell | {"made_of": made})
            left = duration(st.mean(seconds) * (len(todo) - index - 1))
            bar.update()
            told = f"{_summary(cell, agents)}  {seconds[-1]:.0f} s  ETA {left}"
            line = f"{loss:<{max(wide, 16)}} {data:<12} {told}"
            bar.write(line, file=sys.stdout)
            sys.stdout.flush()
    return failures


def _cell(setup: Setup, loss: str, data: str, done: dict | None) -> dict:
    objective, trial = setup.objectives[loss], setup.trials[data]
    seeds = setup.config.seeds
    cell = run_cell(trial, objective, setup.grids[loss], seeds, setup.protocol, done)
    return cell | {"loss": loss}  # all learned objectives have one name


def _summary(cell: dict, agents: dict) -> str:
    finite = [st.mean(row) for row in cell["returns"] if row is not None]
    diverged = len(cell["returns"]) - len(finite)
    if not finite:
        return "every training diverged"
    mean = st.mean(finite)
    error = f" ± {st.stdev(finite) / math.sqrt(len(finite)):<5.0f}" if len(finite) > 1 else ""
    low, high = (st.mean(agents[role]) for role in ("original", "target"))
    score = f" score {(mean - low) / (high - low):6.2f}" if low < high else ""
    note = f", {diverged} diverged" if diverged else ""
    return f"return {mean:7.0f}{error}{score}{note}"


def report(setup: Setup, out: Path) -> None:
    """Leaderboard and page of the cells that are there."""
    paths = [cell_path(out, loss, data) for data in setup.trials for loss in setup.objectives]
    cells = [read_cell(path) for path in paths if path.exists()]
    if not cells:
        return
    board = leaderboard(cells, read_json(out / "anchors.json"))
    trial = next(iter(setup.trials.values()))
    board |= {"pairs": trial.pool.pairs, "start": trial.start}  # null in the configuration
    write_leaderboard(board, out)
    if not board["scaled"]:
        low, high = (board["anchors"][agent]["mean"] for agent in ("original", "target"))
        print(
            f"note: there are no scores, because the target agent's mean return, {high:.0f}, is "
            f"not above the original's, {low:.0f}: losses are ranked by their returns",
            file=sys.stderr,
        )
    write_page(out)
    print(f"report: {out / 'report.html'}   table: {out / 'leaderboard.csv'}", flush=True)
