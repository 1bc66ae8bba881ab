"""How good is a preference loss, and on which data does it break? ``python -m torchmpo.diagnose``.

Every loss is tuned with the same number of trials on every kind of data, trained again on fresh
seeds, and judged by the true return. A finished cell (loss × data) is on disk at once; a run goes
on with ``--resume``, also with more losses, more data or more seeds: ``--resume --losses x`` adds x
to the losses of the run. To take a loss out of a run, take it out of its ``config.yaml``.
"""

import importlib
import json
import math
import os
import statistics as st
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torchmpo.commandline import Command, duration, read_json, words
from torchmpo.errors import UserError

if TYPE_CHECKING:
    from torchmpo.objective import MirrorObjective, Objective
    from torchmpo.suite import Protocol
    from torchmpo.trial import Trial


@dataclass(frozen=True)
class DiagnoseConfig:
    """Settings of a run.

    Args:
        losses: names, references to functions (pkg.mod:fn) or folders of objectives (judged as they
            were saved), by commas; with --resume, in addition to those of the run.
        data: kinds of preference data, by commas: base, mixed, noisy:P, bad_judge:ETA; with
            --resume, in addition to those of the run.
        task: tla, hopper or ant.
        seeds: final trainings per loss and data kind; --resume may raise their number. Seeds added
            later are those of a longer run up to rounding, which episodes amplify: the same
            distribution, not the same bits.
        trials: hyper-parameter settings tried per loss and data kind; a loss with nothing to tune
            is not tuned.
        tuning_seeds: trainings per trial.
        tuning_episodes: episodes per trial.
        episodes: episodes per final training.
        grid: YAML file of own trials, {loss: [{hyper-parameter: value}, ...]}.
        pairs: preference pairs; null for the task's own: 1,280, hopper 5,120.
        episode_steps: time limit of an episode, in data and evaluation.
        behaviour_std: standard deviation of the actions in the data.
        start: original (agent) or scratch; null for the task's own.
        policy_std: standard deviation of the trained policies' actions.
        policy_std_kind: fixed or learned.
        sample: evaluate sampled actions instead of mean actions.
        epochs: passes over the pairs.
        sft_epochs: how many of them are supervised for a loss that needs a reference.
        minibatch_pairs: pairs per update.
        learning_rate: Adam's step size.
        max_grad_norm: limit on the gradient norm.
        steps_per_trajectory: random time steps used per trajectory and update; null for all.
        chunk_size: at most this many policies are trained together.
        compile: compile the training; false starts sooner and runs slower.
        seed: everything random follows from it.
        num_threads: 0 takes every core.
        cache_dir: folder of the preference data; null for $TORCHMPO_CACHE or ~/.cache/torchmpo.
    """

    losses: str = "sft,cpo,orpo,slic_hf,simpo,dpo"
    data: str = "base,mixed,noisy:0.3"
    task: str = "tla"
    seeds: int = 5
    trials: int = 8
    tuning_seeds: int = 1
    tuning_episodes: int = 16
    episodes: int = 16
    grid: str | None = None
    pairs: int | None = 128
    episode_steps: int = 1000
    behaviour_std: float = 0.1
    start: str | None = None
    policy_std: float = 0.4
    policy_std_kind: str = "fixed"
    sample: bool = False
    epochs: int = 12
    sft_epochs: int = 10
    minibatch_pairs: int = 2
    learning_rate: float = 1e-3
    max_grad_norm: float = 1.3
    steps_per_trajectory: int | None = 250
    chunk_size: int = 16
    compile: bool = True
    seed: int = 0
    num_threads: int = 0
    cache_dir: str | None = None


PRESETS: dict[str, dict] = {
    "quick": {},
    # Seconds: does everything once, says nothing.
    "smoke": {
        "losses": "sft,dpo",
        "data": "base,noisy:0.3",
        "seeds": 2,
        "trials": 2,
        "tuning_episodes": 2,
        "episodes": 2,
        "pairs": 4,
        "episode_steps": 50,
        "epochs": 2,
        "sft_epochs": 1,
        "steps_per_trajectory": 10,
        "compile": False,
    },
    # arXiv 2411.06568, section 4.1; its Table 2, and CoLPO.
    "full": {
        "losses": "rrhf,slic_hf,dpo,ipo,cpo,orpo,r_dpo,simpo,sft,lpo,colpo",
        "data": "base,mixed,noisy:0.1,noisy:0.2,noisy:0.3",
        "pairs": None,
        "steps_per_trajectory": None,
        "episodes": 100,
    },
}
MOST_THREADS = 1024
# What may change on --resume: where a run is computed.
PLACE = ("num_threads", "cache_dir")


@dataclass(frozen=True)
class Setup:
    """Everything a run consists of, checked, before anything is computed."""

    config: DiagnoseConfig
    objectives: "dict[str, Objective | MirrorObjective]"
    grids: dict[str, list[dict[str, float]]]
    trials: "dict[str, Trial]"
    protocol: "Protocol"

    @staticmethod
    def of(config: DiagnoseConfig) -> "Setup":
        """Build it.

        Raises:
            UserError: anything in ``config`` that could not work.
        """
        from torchmpo.grids import check_grid, grid
        from torchmpo.inner import check_inputs
        from torchmpo.objective import Objective, resolve
        from torchmpo.preferences import check_space, parse_kind
        from torchmpo.suite import Protocol, rehearse
        from torchmpo.trial import trial_of

        counts = ("seeds", "trials", "tuning_seeds", "tuning_episodes", "episodes", "epochs")
        for name in counts:
            if getattr(config, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(config, name)}")
        if config.sft_epochs < 0:
            raise UserError("sft_epochs must not be negative")
        if not 0 <= config.num_threads <= MOST_THREADS:
            raise UserError(f"num_threads must be between 0, for all, and {MOST_THREADS}")
        own = _own_grids(config.grid)
        try:
            objectives, grids = {}, {}
            for name in words("losses", config.losses):
                with _blame(name):
                    objectives[name] = objective = resolve(name)
                    check_inputs(objective)
                    theirs = own.pop(name, None)
                    grids[name] = theirs or grid(objective, config.trials)
                    if isinstance(objective, Objective):
                        with _suggest_grid(name, built_in=not theirs):
                            check_grid(objective, grids[name])
                    elif any(grids[name]):
                        raise UserError(f"--grid: {name} is learned; it has no hyper-parameters")
            if own:
                raise UserError(f"--grid: {', '.join(own)} is not among the losses")
            kinds = words("data", config.data)
            for kind in kinds:
                parse_kind(kind)
            _check_names(objectives, kinds)
            # SFT is for losses that need a reference only, see cell_trial.
            settings = replace(config, sft_epochs=0)
            trial = trial_of(settings, data=kinds[0], num_threads=config.num_threads)
            trial.policy  # noqa: B018  a damaged file of the agent shows here
            trials = {kind: trial.changed(data=kind) for kind in kinds}
            for name, objective in objectives.items():
                with _blame(name):
                    rehearse(objective, grids[name], trial)
            check_space(trial.pool, config.cache_dir)
        except ValueError as error:
            raise UserError(" ".join(str(error).split())) from error
        protocol = Protocol(**{f.name: getattr(config, f.name) for f in fields(Protocol)})
        return Setup(config, objectives, grids, trials, protocol)


def _check_names(losses: Iterable[str], kinds: Iterable[str]) -> None:
    """Two losses must not share files, and data must not count twice."""
    from torchmpo.cells import cell_path

    taken: dict[Path, str] = {}
    for loss in losses:
        other = taken.setdefault(cell_path(Path(), loss, ""), loss)
        if other != loss:
            raise UserError(f"losses: {other} and {loss} would share a file of results; rename one")
    same: dict[tuple, str] = {}
    for kind in kinds:
        name, _, number = kind.partition(":")
        if (other := same.setdefault((name, number and float(number)), kind)) != kind:
            raise UserError(f"data: {other} and {kind} are the same; name one of them")


def _own_grids(path: str | None) -> dict[str, list[dict[str, float]]]:
    import yaml

    if path is None:
        return {}
    try:
        grids = yaml.safe_load(Path(path).read_text())
        if not isinstance(grids, dict):
            raise ValueError("give {loss: [{hyper-parameter: value}, ...]}")
        found = {}
        for name, settings in grids.items():
            if not (isinstance(settings, list) and len({frozenset(s) for s in settings}) == 1):
                raise ValueError(f"{name}: give a list of settings with the same keys")
            # YAML takes 1e-3, without a point, for a word.
            found[str(name)] = [{key: float(s[key]) for key in settings[0]} for s in settings]
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--grid: {path} is not a file of trials: {reason}") from error
    return found


def run(setup: Setup, out: Path) -> int:
    """Every cell that is not finished, then the report; returns the exit code."""
    import torch

    from torchmpo.files import write_atomic
    from torchmpo.suite import anchors

    config = setup.config
    torch.set_num_threads(config.num_threads or len(os.sched_getaffinity(0)))
    (out / "cells").mkdir(exist_ok=True)
    todo = _missing(setup, out)
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
    from torchmpo.data_statistics import data_statistics, histogram_edges
    from torchmpo.files import write_atomic

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


def _missing(setup: Setup, out: Path) -> list[Missing]:
    """The cells to run.

    Raises:
        UserError: a finished cell is damaged, or of something else.
    """
    from torchmpo.cells import cell_path, check_cell, made_of, read_cell

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
    from tqdm import tqdm

    from torchmpo.cells import write_cell

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
                failures.append(f"{loss} on {data}: {_where(error)}")
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
    from torchmpo.suite import run_cell

    objective, trial = setup.objectives[loss], setup.trials[data]
    seeds = setup.config.seeds
    cell = run_cell(trial, objective, setup.grids[loss], seeds, setup.protocol, done)
    return cell | {"loss": loss}  # all learned objectives have one name


@contextmanager
def _suggest_grid(loss: str, *, built_in: bool) -> Iterator[None]:
    """A value that the suite chose and the loss refuses is not a mistake in the loss."""
    try:
        yield
    except ValueError as error:
        if not built_in:
            raise
        raise UserError(
            f"{loss}: {error}; this value is from the suite's own trials: give others by --grid"
        ) from error


@contextmanager
def _blame(loss: str) -> Iterator[None]:
    """Anything a user's own loss raises when it is imported and tried is their mistake."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, ValueError) and (":" not in loss or loss in str(error)):
            raise  # says what is wrong with the settings
        if ":" not in loss:
            raise  # a loss of this package: a bug of ours
        raise UserError(f"{loss}: {_where(error)}") from error


def _where(error: BaseException) -> str:
    """What a user's loss raised, and in which line of theirs."""
    # Not theirs: this package, and what imports a module.
    others = (f"{Path(__file__).parent}{os.sep}", str(Path(importlib.__file__).parent), "<frozen")
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [
        f for f in frames if not f.filename.startswith(others) and "/torch/" not in f.filename
    ]
    text = " ".join(str(error).split()) or "no message"
    place = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {text[:300]}{place}"


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
    from torchmpo.cells import cell_path, read_cell
    from torchmpo.page import write_page
    from torchmpo.statistics import leaderboard, write_leaderboard

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


COMMAND = Command(
    program="python -m torchmpo.diagnose",
    description="How good is a preference loss, and on which data does it break?",
    settings=DiagnoseConfig,
    presets=PRESETS,
    out="runs/diagnose",
    place=PLACE,
    default_preset="quick",
    grows=("losses", "data", "seeds"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    return COMMAND.main(argv, Setup.of, run, check=_missing)


if __name__ == "__main__":
    sys.exit(main())
