"""From the settings of a diagnosis to its parts, checked before anything is computed."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from torchmpo.control.grids import RATE, check_grid, grid, with_rates
from torchmpo.control.inner_loop import check_inputs
from torchmpo.control.kinds import check_kinds_differ, parse_kind
from torchmpo.control.pools import check_space
from torchmpo.control.rehearsal import check_kind, rehearse, unlike
from torchmpo.control.settings import check_sizes
from torchmpo.control.testbed import TestbedConfig, configure
from torchmpo.control.tuning import Protocol
from torchmpo.diagnose.baselines import BASELINES, check_baseline
from torchmpo.diagnose.cells import cell_path
from torchmpo.diagnose.settings import DiagnoseConfig
from torchmpo.diagnose.variants import variants
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.resolve import is_own, resolve
from torchmpo.runs.command import words
from torchmpo.runs.errors import UserError
from torchmpo.runs.own_code import OwnCodeRaised, own_code_raised
from torchmpo.runs.trackers import trackers_of
from torchmpo.runs.yaml_text import parse_yaml

MOST_THREADS = 1024


@dataclass(frozen=True)
class Setup:
    """Everything a run consists of, checked, before anything is computed."""

    config: DiagnoseConfig
    objectives: dict[str, Objective | MirrorObjective]
    grids: dict[str, list[dict[str, float]]]
    testbeds: dict[str, TestbedConfig]
    protocol: Protocol
    baselines: dict[str, list[dict[str, float]]]
    variants: Mapping[str, "Setup"]
    trackers: dict[str, str]

    @staticmethod
    def of(config: DiagnoseConfig) -> "Setup":
        """Build it.

        Raises:
            UserError: anything in ``config`` that could not work.
        """
        check_sizes(config)
        counts = ("seeds", "trials", "tuning_seeds", "tuning_reduction", "tuning_episodes")
        counts += ("episodes", "epochs", "rlhf_steps")
        for name in counts:
            if getattr(config, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(config, name)}")
        if config.checkpoints < 0 or config.checkpoints == 1:
            raise UserError(f"checkpoints must be 0 or at least 2; got {config.checkpoints}")
        if config.sft_epochs < 0:
            raise UserError("sft_epochs must not be negative")
        if not 0 <= config.num_threads <= MOST_THREADS:
            raise UserError(f"num_threads must be between 0, for all, and {MOST_THREADS}")
        trackers = trackers_of(config.tracker)
        own = _own_grids(config.grid)
        tunes_rate = config.learning_rate is None
        try:
            objectives, grids = {}, {}
            for name in words("losses", config.losses):
                with _blame(name):
                    objectives[name] = objective = resolve(name)
                    check_inputs(objective, config.policy)
                    theirs = own.get(name)
                    if theirs and tunes_rate:
                        theirs = with_rates(theirs, config.trials)
                    grids[name] = theirs or grid(objective, config.trials, rate=tunes_rate)
                    if isinstance(objective, Objective):
                        with _suggest_grid(name, built_in=not theirs):
                            check_grid(objective, grids[name])
                    elif theirs and any(setting.keys() - {RATE} for setting in theirs):
                        raise UserError(f"--grid: {name} is learned; it has no hyper-parameters")
            if unknown := [name for name in own if name not in objectives]:
                raise UserError(f"--grid: {', '.join(unknown)} is not among the losses")
            kinds = words("data", config.data)
            for kind in kinds:
                parse_kind(kind)
                for objective in objectives.values():
                    check_kind(objective, kind)
            testbed = configure(config, kinds[0], config.num_threads)
            contestants = words("baselines", config.baselines) if config.baselines else []
            for name in contestants:
                check_baseline(name, testbed)
            _check_names([*objectives, *contestants], kinds)
            testbed.load_policy()  # a damaged file shows here
            testbeds = {kind: testbed.on(kind) for kind in kinds}
            for name, objective in objectives.items():
                with _blame(name):
                    for one in unlike(testbeds.values()):
                        rehearse(objective, grids[name], one)
            pools = 1 + config.seeds * config.data_per_seed
            data_pools = [testbed.data_pool for testbed in testbeds.values()]
            check_space(data_pools, config.cache_dir, pools=pools)
        except ValueError as error:
            raise UserError(" ".join(str(error).split())) from error
        protocol = Protocol(**{f.name: getattr(config, f.name) for f in fields(Protocol)})
        others = {}
        for name, other in variants(config).items():
            try:
                if other.learning_rate != config.learning_rate:
                    _check_rates_are_free(own)
                others[name] = Setup.of(other)
            except UserError as error:
                raise UserError(f"vary {name}: {error}") from error
        baselines = {name: BASELINES[name] for name in contestants}
        return Setup(config, objectives, grids, testbeds, protocol, baselines, others, trackers)


LONGEST_CELL = 200  # bytes of a file's name, with room for the kind of data


def _check_names(losses: Iterable[str], kinds: Iterable[str]) -> None:
    """Two losses must not share files, and data must not count twice."""
    taken: dict[Path, str] = {}
    for loss in losses:
        other = taken.setdefault(cell_path(Path(), loss, ""), loss)
        if len(cell_path(Path(), loss, "").name.encode()) > LONGEST_CELL:
            raise UserError(f"losses: {loss[:40]}… is too long for the name of a file; move it")
        if other != loss:
            raise UserError(f"losses: {other} and {loss} would share a file of results; rename one")
    kinds, files = list(kinds), {}
    check_kinds_differ(kinds)
    for kind in kinds:
        if (other := files.setdefault(cell_path(Path(), "", kind), kind)) != kind:
            raise UserError(f"data: {other} and {kind} would share files of results; rename one")


def _own_grids(path: str | None) -> dict[str, list[dict[str, float]]]:
    if path is None:
        return {}
    try:
        grids = parse_yaml(Path(path).read_text("utf-8"))
        if not isinstance(grids, dict):
            raise ValueError("give {loss: [{hyper-parameter: value}, ...]}")
        found = {}
        for name, settings in grids.items():
            mappings = isinstance(settings, list) and all(isinstance(s, dict) for s in settings)
            if not mappings or len({frozenset(s) for s in settings}) != 1:
                raise ValueError(f"{name}: give a list of settings with the same keys")
            if other := [key for key in settings[0] if not isinstance(key, str)]:
                raise ValueError(f"{name}: {other[0]!r} is no name of a hyper-parameter")
            # YAML takes 1e-3, without a point, for a word.
            if any(isinstance(value, bool) for s in settings for value in s.values()):
                raise ValueError(f"{name}: true and false are no numbers")
            found[str(name)] = own = [{key: float(s[key]) for key in settings[0]} for s in settings]
            if not all(math.isfinite(value) for setting in own for value in setting.values()):
                raise ValueError(f"{name}: a number of a setting is not finite")
    except (OSError, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--grid: {path} is not a file of trials: {reason}") from error
    return found


def _check_rates_are_free(grids: Mapping[str, list[dict[str, float]]]) -> None:
    """Refuse another learning rate for losses whose own trials have theirs."""
    if own := [name for name, settings in grids.items() if RATE in settings[0]]:
        raise UserError(
            f"the file of --grid has a {RATE} for {', '.join(own)}, which would stay: leave it out "
            "there, or do not vary it"
        )


@contextmanager
def _suggest_grid(loss: str, *, built_in: bool) -> Iterator[None]:
    """A value that the suite chose and the loss refuses is not a mistake in the loss."""
    try:
        yield
    except ValueError as error:
        said = error.__cause__ if isinstance(error, OwnCodeRaised) else error
        if not built_in or not isinstance(said, ValueError):
            raise
        raise UserError(
            f"{loss}: {said}; this value is from the suite's own trials: give others by --grid"
        ) from error


@contextmanager
def _blame(loss: str) -> Iterator[None]:
    """Anything that a user's own loss leads to when it is tried is their mistake."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, ValueError) and (not is_own(loss) or loss in str(error)):
            raise  # says what is wrong with the settings
        if not is_own(loss):
            raise  # a loss of this package: a bug of ours
        raise own_code_raised(loss, error) from error
