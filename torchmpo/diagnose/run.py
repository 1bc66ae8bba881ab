"""A diagnosis from its first cell to its report: what ``python -m torchmpo.diagnose`` does."""

import json
import math
import os
import statistics as st
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from torchmpo.control.preferences import PreferenceDataset
from torchmpo.control.rlhf import PPOConfig
from torchmpo.control.testbed import Testbed, fresh_data
from torchmpo.control.testbed import prepare as prepare_testbeds
from torchmpo.diagnose.baselines import run_baseline
from torchmpo.diagnose.cells import cell_path, check_cell, made_of, read_cell, write_cell
from torchmpo.diagnose.comparisons import write_comparisons
from torchmpo.diagnose.data_statistics import data_statistics, histogram_edges
from torchmpo.diagnose.leaderboard import leaderboard, write_leaderboard
from torchmpo.diagnose.report.page import write_page
from torchmpo.diagnose.schemas import Anchors, Statistics
from torchmpo.diagnose.setup import Setup
from torchmpo.diagnose.suite import anchors, run_cell
from torchmpo.diagnose.variants import folder
from torchmpo.objectives.resolve import is_own
from torchmpo.runs.command import duration
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import write_atomic
from torchmpo.runs.json_files import read_json
from torchmpo.runs.machine import note_machine
from torchmpo.runs.own_code import OwnCodeRaised, where
from torchmpo.runs.seeding import derive_seed
from torchmpo.runs.trackers import tag, tracked

prepare = Setup.of
FAR_START = 0.1  # of the scale from the original to the target agent


def run(setup: Setup, out: Path) -> int:
    """Every cell that is not finished, then the report; returns the exit code."""
    note_machine(out)
    torch.set_num_threads(setup.config.num_threads or len(os.sched_getaffinity(0)))
    failed = work(setup, out)
    for name, variant in setup.variants.items():
        print(f"vary: {name}", flush=True)
        failed |= work(variant, folder(out, name))
    report(setup, out)
    return int(failed)


def work(setup: Setup, out: Path) -> bool:
    """Every cell that is not finished, in a folder that need not exist; whether a loss raised."""
    (out / "cells").mkdir(parents=True, exist_ok=True)
    todo = check(setup, out)
    if not any((out / "cells").glob("*.json")):  # nothing vouches for what else is there
        for name in ("anchors.json", "statistics.json"):
            (out / name).unlink(missing_ok=True)
    described, path = _described(out), out / "anchors.json"
    missing = setup.testbeds.keys() - described["kinds"].keys()
    testbeds: dict[str, Testbed] = {}
    if todo or missing or not path.exists():
        print("data: reading it, or making it where there is none", flush=True)
        testbeds = dict(zip(setup.testbeds, prepare_testbeds([*setup.testbeds.values()])))
        _describe({kind: bed for kind, bed in testbeds.items() if kind in missing}, described, out)
    # Runs of before do not have the parts of the agents' returns.
    if not path.exists() or (testbeds and "components" not in read_json(path, Anchors)):
        first = next(iter(testbeds.values()))
        found = anchors(first, max(setup.config.episodes, 16), setup.protocol)
        write_atomic(path, json.dumps(found) + "\n")
    final = _final_data(setup, testbeds, todo)
    agents = read_json(path, Anchors)
    with tracked(setup.trackers, out, asdict(setup.config)) as loggers:
        return bool(_cells(setup, testbeds, todo, final, agents, loggers))


def _described(out: Path) -> dict:
    """What ``statistics.json`` says of kinds of data so far."""
    path = out / "statistics.json"
    return read_json(path, Statistics) if path.exists() else {"edges": {}, "kinds": {}}


def _describe(testbeds: Mapping[str, Testbed], found: dict, out: Path) -> None:
    """Add kinds of data to ``statistics.json``."""
    for kind, testbed in testbeds.items():
        edges = histogram_edges(testbed.dataset)
        found["edges"] = found["edges"] or edges
        found["kinds"][kind] = data_statistics(testbed.config.data_pool, testbed.dataset)
        if edges != found["edges"]:  # a kind of another pool
            found["kinds"][kind]["edges"] = edges
    if testbeds:
        write_atomic(out / "statistics.json", json.dumps(found) + "\n")


def _final_data(
    setup: Setup, testbeds: Mapping[str, Testbed], todo: Sequence["Missing"]
) -> dict[str, list[PreferenceDataset]] | None:
    """By kind of data, that of every final seed; None where all seeds share the data of tuning."""
    if not (setup.config.data_per_seed and todo):
        return None
    seeds = [derive_seed(setup.config.seed, "final data", k) for k in range(setup.config.seeds)]
    return dict(zip(testbeds, fresh_data([*testbeds.values()], seeds), strict=True))


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
        UserError: a finished cell, or one of a variant, is damaged, or of something else, or of
            more seeds.
    """
    todo = []
    for name, variant in setup.variants.items():
        check(variant, folder(out, name))
    for data, testbed in setup.testbeds.items():
        for loss, grid in (setup.grids | setup.baselines).items():
            path, done = cell_path(out, loss, data), None
            made = made_of(loss, setup.objectives.get(loss), testbed.data_pool)
            if path.exists():
                done = read_cell(path)
                check_cell(path, done, loss, data, grid, made)
                if done["task"] != testbed.pool.task:
                    raise UserError(f"{path} is of {done['task']}, not of {testbed.pool.task}")
                if (seeds := len(done["returns"])) > setup.config.seeds:
                    raise UserError(
                        f"{out / 'config.yaml'} has been changed: seeds is {setup.config.seeds}, "
                        f"but {path} has {seeds}; put it back, or choose another --out"
                    )
            enough = done and (len(done["returns"]) >= setup.config.seeds or done["best"] < 0)
            if not enough:
                todo.append(Missing(loss, data, path, made, done))
    return todo


def _cells(
    setup: Setup,
    testbeds: Mapping[str, Testbed],
    todo: Sequence[Missing],
    data: Mapping[str, Sequence[PreferenceDataset]] | None,
    agents: dict,
    loggers: Sequence[Any],
) -> list[str]:
    """Run what is missing; returns a line for every loss that raised."""

    failures, seconds = [], []
    if todo:
        compiled = ", the first of which compiles the training" * setup.config.compile
        print(f"cells: {len(todo)} to do{compiled}", flush=True)
    wide = max((len(cell.loss) for cell in todo), default=0)
    with tqdm(total=len(todo), desc="cells", disable=not sys.stderr.isatty(), leave=False) as bar:
        for index, (loss, kind, path, made, done) in enumerate(todo):
            begin = time.perf_counter()
            try:
                own = None if data is None else data[kind]
                cell = _cell(setup, testbeds[kind], loss, done, own)
            except Exception as error:
                raised = isinstance(error, OwnCodeRaised)
                if not is_own(loss) or (isinstance(error, UserError) and not raised):
                    raise  # a loss of this package: a bug of ours
                failures.append(f"{loss} on {kind}: {where((raised and error.__cause__) or error)}")
                bar.write(f"error: {failures[-1]}", file=sys.stderr)
                continue
            seconds.append(time.perf_counter() - begin)
            cell["seconds"] = round(seconds[-1] + (done or {}).get("seconds", 0.0), 1)
            # What was begun without a record cannot be vouched for later.
            write_cell(path, cell if done else cell | {"made_of": made})
            _log(loggers, cell, kind, index)
            left = duration(st.mean(seconds) * (len(todo) - index - 1))
            bar.update()
            result = f"{_summary(cell, agents)}  {seconds[-1]:.0f} s  ETA {left}"
            line = f"{loss:<{max(wide, 16)}} {kind:<12} {result}"
            bar.write(line, file=sys.stdout)
            sys.stdout.flush()
    return failures


def _cell(
    setup: Setup,
    testbed: Testbed,
    loss: str,
    done: dict | None,
    datasets: Sequence[PreferenceDataset] | None,
) -> dict:
    seeds = setup.config.seeds
    if loss in setup.baselines:
        ppo = PPOConfig.of(setup.config.rlhf_steps)
        return run_baseline(testbed, seeds, setup.protocol, ppo, done, datasets)
    objective = setup.objectives[loss]
    rest = setup.protocol, done, datasets, setup.config.checkpoints
    cell = run_cell(testbed, objective, setup.grids[loss], seeds, *rest)
    return cell | {"loss": loss}  # all learned objectives have one name


def _log(loggers: Sequence[Any], cell: dict, kind: str, index: int) -> None:
    """Tell trackers a cell: its mean return, and what was watched in each epoch, over its seeds."""
    name = tag(f"{cell['loss']} on {kind}")
    returns = [st.mean(row) for row in cell["returns"] if row is not None]
    numbers = {"diverged": len(cell["returns"]) - len(returns)}
    numbers |= {"return": st.mean(returns)} if returns else {}
    rows = [(index, numbers)]
    curves = cell.get("curves") or {"epoch": []}
    for i, epoch in enumerate(curves["epoch"]):
        known = {
            key: [seed[i] for seed in curves[key] if seed and seed[i] is not None]
            for key in ("chosen", "rejected", "accuracy")
        }
        rows.append((epoch, {key: st.mean(values) for key, values in known.items() if values}))
    for logger in loggers:
        for step, values in rows:
            logger.log_metrics({f"{name}/{key}": value for key, value in values.items()}, step)


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
    if about := cell.get("baseline"):
        note += f", held-out accuracy {st.mean(s['held_out_accuracy'] for s in about):.2f}"
    return f"return {mean:7.0f}{error}{score}{note}"


def _tell_start(agents: Mapping[str, Mapping[str, float]]) -> None:
    """Say so where training does not start at a score of about 0, whatever the loss."""
    low, high, start = (agents[who]["mean"] for who in ("original", "target", "start"))
    score = (start - low) / (high - low)
    if abs(score) > FAR_START:
        print(
            f"note: training starts at a score of {score:.2f}, not at the original agent's 0: "
            "actions are drawn with another σ (--policy_std), or of other bins, than the agent's; "
            "a score below or above 0 says little by itself",
            file=sys.stderr,
        )


def report(setup: Setup, out: Path) -> None:
    """Leaderboard and page of the cells that are there."""
    names = [*setup.objectives, *setup.baselines]
    paths = [cell_path(out, loss, data) for data in setup.testbeds for loss in names]
    cells = [read_cell(path) for path in paths if path.exists()]
    if not cells:
        return
    board = leaderboard(cells, read_json(out / "anchors.json", Anchors))
    testbed = next(iter(setup.testbeds.values()))
    pool = testbed.pool  # what may be null in the configuration
    board |= {"pairs": pool.pairs, "start": testbed.start, "auto_reset": pool.auto_reset}
    write_leaderboard(board, out)
    if not board["scaled"]:
        low, high = (board["anchors"][agent]["mean"] for agent in ("original", "target"))
        print(
            f"note: there are no scores, because the target agent's mean return, {high:.0f}, is "
            f"not above the original's, {low:.0f}: losses are ranked by their returns",
            file=sys.stderr,
        )
    elif "start" in board["anchors"]:
        _tell_start(board["anchors"])
    write_comparisons(setup, cells, out)
    write_page(out)
    print(f"report: {out / 'report.html'}   table: {out / 'leaderboard.csv'}", flush=True)
