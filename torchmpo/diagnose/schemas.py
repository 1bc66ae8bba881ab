"""What the JSON files of a diagnosis hold, and what of it must fit together."""

from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, Field, FiniteFloat
from typing_extensions import TypedDict

from torchmpo.diagnose.data_statistics import PAIR_KINDS

Row = Annotated[list[FiniteFloat], Field(min_length=1)]
Holes = list[FiniteFloat | None]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)] | None
Counts = list[Annotated[int, Field(ge=0)]]


class _MadeOf(TypedDict):
    pool: str
    source: str | None
    fingerprint: NotRequired[str]
    unknowable: NotRequired[str]
    world: NotRequired[dict[str, str]]


_Path = TypedDict(
    "_Path",
    {
        "epoch": list[FiniteFloat],
        "return": list[FiniteFloat],
        "kl": list[FiniteFloat],
        "judged": NotRequired[list[FiniteFloat]],
        "learned": NotRequired[list[FiniteFloat]],
    },
)


_Count = Annotated[int, Field(ge=0)]


class _Cell(TypedDict):
    loss: str
    task: str
    data: str
    grid: Annotated[list[dict[str, FiniteFloat]], Field(min_length=1)]
    tuning: list[Annotated[Holes, Field(min_length=1)]]
    best: int
    edge: NotRequired[list[str]]
    returns: list[Row | None]
    other_returns: NotRequired[list[Row | None]]
    curves: dict[str, list[Holes | FiniteFloat | None]]  # epochs are numbers
    margins: list[Holes | None]
    why: NotRequired[list[dict[str, FiniteFloat] | None]]
    components: NotRequired[list[dict[str, FiniteFloat] | None]]
    checkpoints: NotRequired[list[_Path | None]]
    labels: NotRequired[list[_Count | None]]
    environment_steps: NotRequired[list[_Count | None]]
    judged_returns: NotRequired[list[Row | None]]
    baseline: NotRequired[list[dict[str, FiniteFloat]]]
    seconds: NotRequired[Annotated[FiniteFloat, Field(ge=0)]]
    made_of: NotRequired[_MadeOf]


def _fits(cell: dict[str, Any]) -> dict[str, Any]:
    """Refuse numbers that are not of one and the same cell."""
    grid, tuning, best, returns = (cell[k] for k in ("grid", "tuning", "best", "returns"))
    curves = {name: rows for name, rows in cell["curves"].items() if name != "epoch"}
    epochs = len(cell["curves"].get("epoch", ()))
    paths = [path for path in cell.get("checkpoints", ()) if path]
    lists = [row for rows in curves.values() for row in rows if row is not None]
    for wrong, said in (
        (not -1 <= best < len(grid), f"best is {best}, of {len(grid)} settings"),
        (tuning and len(tuning) != len(grid), "as many rows of tuning as settings"),
        (best < 0 and returns, "returns of no setting"),
        (best > 0 and not tuning, "the best of settings that were not tried"),
        (len({frozenset(setting) for setting in grid}) > 1, "settings of different numbers"),
        (len(cell.get("judged_returns", returns)) != len(returns), "judged returns of other seeds"),
        (len({len(row) for row in returns if row}) > 1, "seeds differ in episodes"),
        (len(cell["margins"]) != len(returns), "as many rows of margins as of returns"),
        (len(cell.get("why", returns)) != len(returns), "as many dictionaries of why as returns"),
        (len(cell.get("components", returns)) != len(returns), "components of other seeds"),
        (len(cell.get("checkpoints", returns)) != len(returns), "checkpoints of other seeds"),
        (len(cell.get("labels", returns)) != len(returns), "labels of other seeds"),
        (len(cell.get("environment_steps", returns)) != len(returns), "steps of other seeds"),
        (any(len({*map(len, path.values())}) > 1 for path in paths), "uneven checkpoints"),
        (len(cell.get("other_returns", returns)) != len(returns), "other returns of other seeds"),
        (any(len(rows) != len(returns) for rows in curves.values()), "curves of other seeds"),
        (any(not isinstance(row, list) or len(row) != epochs for row in lists), "uneven curves"),
    ):
        if wrong:
            raise ValueError(said)
    return cell


class _Anchors(TypedDict):
    original: Row
    target: Row
    start: NotRequired[Row]
    components: NotRequired[dict[str, dict[str, FiniteFloat]]]


_Summary = TypedDict(
    "_Summary",
    {
        "mean": FiniteFloat | None,
        "sd": FiniteFloat | None,
        "lowest": FiniteFloat | None,
        "5 %": FiniteFloat | None,
        "median": FiniteFloat | None,
        "95 %": FiniteFloat | None,
        "highest": FiniteFloat | None,
    },
)
_Agent = TypedDict(
    "_Agent",
    {
        "trajectories": int,
        "return": _Summary,
        "return_counts": Counts,
        "length": _Summary,
        "terminated": Share,
    },
)


class _Kind(TypedDict):
    pairs: int
    pair_kinds: dict[str, Share]
    target_chosen: Share
    flipped: Share
    chosen_return: NotRequired[FiniteFloat]
    margin: _Summary
    margin_counts: Counts
    agents: Annotated[dict[str, _Agent], Field(min_length=1)]
    agreement: NotRequired[Share]
    edges: NotRequired[dict[str, Row]]


class _Statistics(TypedDict):
    edges: dict[str, Row]
    kinds: dict[str, _Kind]


def _counted(found: dict[str, Any]) -> dict[str, Any]:
    """Refuse histograms that do not have a bin between two edges, and other kinds of pairs."""
    for kind in found["kinds"].values():
        edges = kind.get("edges", found["edges"])
        bins = {name: len(values) - 1 for name, values in edges.items()}
        counts = [("margin", kind["margin_counts"])]
        counts += [("return", agent["return_counts"]) for agent in kind["agents"].values()]
        if any(len(values) != bins.get(name) for name, values in counts):
            raise ValueError("histograms without their edges")
        # Of trajectories of others than the two agents, which have edges of their own, no pair is
        # of a kind.
        known = ({*PAIR_KINDS}, set()) if "edges" in kind else ({*PAIR_KINDS},)
        if kind["pair_kinds"].keys() not in known:
            raise ValueError(f"the kinds of pairs are {', '.join(PAIR_KINDS)}")
    return found


# The files: a cell, see :func:`torchmpo.diagnose.suite.run_cell`; the returns of the two agents
# that made the data; what the data turned out to be, see :mod:`torchmpo.diagnose.data_statistics`.
Cell = Annotated[_Cell, AfterValidator(_fits)]
Anchors = _Anchors
Statistics = Annotated[_Statistics, AfterValidator(_counted)]
