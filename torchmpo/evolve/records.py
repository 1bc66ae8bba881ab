"""What the JSON files of a search hold, and what in it is not of this package."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, Field, FiniteFloat
from typing_extensions import TypedDict

from torchmpo.control.grids import RATE
from torchmpo.control.rollouts import FileRows
from torchmpo.evolve.setup import Setup
from torchmpo.evolve.several_tasks import FILE, names, read_agents
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.fingerprint import Unknowable
from torchmpo.objectives.fingerprint import made_of as digest
from torchmpo.objectives.resolve import is_own
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import is_folder
from torchmpo.runs.json_files import read_json


class _Tuned(TypedDict):
    setting: dict[str, FiniteFloat]
    score_in_tuning: FiniteFloat | None
    trials: Annotated[int, Field(ge=0)]


class _Against(TypedDict):
    setting: dict[str, FiniteFloat]
    mean_return: FiniteFloat


class _LearningRate(TypedDict):
    learning_rate: Annotated[FiniteFloat, Field(gt=0)]


def _of_a_training(value: float) -> float:
    """A return: NaN where the training diverged, and never infinite."""
    if math.isinf(value):
        raise ValueError("a return is not infinite")
    return value


_Return = Annotated[float, AfterValidator(_of_a_training)]


class _Returns(TypedDict):
    mean_return_by_seed: Annotated[dict[str, list[_Return]], Field(min_length=1)]


class _Comparison(_Returns):
    data: NotRequired[dict[str, _Returns]]


def read_rivals(path: Path, rivals: Mapping[str, Objective]) -> dict[str, dict | None]:
    """``rivals.json``: the best setting of each rival; none where there is no such file.

    Raises:
        UserError: it is damaged, or its settings are not of these rivals.
    """
    if not path.exists():
        return {}
    tuned = read_json(path, dict[str, _Tuned | None])
    for name in tuned.keys() & rivals.keys():
        setting = (tuned[name] or {}).get("setting", {})
        if wrong := sorted(setting.keys() - {*rivals[name].hyper, RATE}):
            raise UserError(f"{path}: {name} has no {wrong[0]!r}: delete it and --resume")
    return tuned


def read_comparison(path: Path, seeds: int) -> dict[str, Any]:
    """``comparison.json``: returns by seed; NaN where a training diverged.

    Raises:
        UserError: it is damaged, or of another number of seeds.
    """

    def of_these_seeds(content: dict[str, Any]) -> dict[str, Any]:
        for part in (content, *content.get("data", {}).values()):
            if any(len(row) != seeds for row in part["mean_return_by_seed"].values()):
                raise ValueError(f"returns of {seeds} seeds are expected")
        return content

    return read_json(path, Annotated[_Comparison, AfterValidator(of_these_seeds)])


def read_learning_rate(path: Path) -> float:
    """``learning_rate.json``: the rate that was best for the start.

    Raises:
        UserError: it is damaged.
    """
    return read_json(path, _LearningRate)[RATE]


def read_antagonist(path: Path, kinds: Sequence[str]) -> dict[str, float]:
    """``antagonist.json``: the mean return of the tuned antagonist, on some of the kinds of data.

    Raises:
        UserError: it is damaged, or of other kinds.
    """
    if not path.exists():
        return {}
    known = read_json(path, dict[str, _Against])
    if other := sorted(known.keys() - set(kinds)):
        raise UserError(f"{path} is of {other[0]}, too: delete it and --resume")
    return {kind: known[kind]["mean_return"] for kind in known}


def check_records(setup: Setup, out: Path) -> None:
    """Refuse files in the folder of a run that it could not go on with, before it does.

    Raises:
        UserError: which one.
    """
    read_rivals(out / "rivals.json", setup.rivals)
    if (path := out / "comparison.json").exists():
        read_comparison(path, setup.config.final_seeds)
    if (path := out / "learning_rate.json").exists():
        read_learning_rate(path)
    if setup.antagonist is not None:
        read_antagonist(out / "antagonist.json", names(setup.testbeds))
    if (path := out / FILE).exists():
        read_agents(path)


def fingerprints(setup: Setup) -> dict[str, str | None]:
    """A digest of every function of one's own and of every saved objective in a search, by name.

    They are among the rivals, or the search begins there. None where there can be no digest. So of
    files of data, and of a task of one's own, the agents, and versions of the physics.
    """
    named: dict[str, Any] = dict(setup.rivals)
    if setup.antagonist is not None:
        named[setup.config.antagonist] = setup.antagonist
    if setup.config.warm_start is not None:
        named[setup.config.warm_start] = setup.space.objective
    files = (bed.data_pool.rollouts for bed in setup.testbeds)
    found: dict[str, str | None] = {f.path: f.digest for f in files if isinstance(f, FileRows)}
    for bed in setup.testbeds:
        found |= bed.pool.world()
    for name, objective in named.items():
        if is_own(name) or is_folder(name):
            try:
                found[name] = digest(name, objective)
            except Unknowable:
                found[name] = None
    return found
