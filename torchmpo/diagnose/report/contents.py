"""What a report shows: the files of a run, in the order in which they are shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from torchmpo.control.settings import SMALLEST
from torchmpo.diagnose.report.html import finite, interval, number


class Run:
    """The files of a run of the diagnostic suite.

    Args:
        board, cells, anchors, config, statistics, scores: contents of the files.
        commands, machines: the same, or empty.
        files: name → content of those that the page offers to be saved.
        comparisons: rows by table, see :mod:`torchmpo.diagnose.comparisons`.
        figures: folder to write to.

    Attributes:
        differences: kind of data → higher loss → lower loss → their paired difference; ``None``
            stands for all data.
        components: agent → its mean return by parts, where they are known.
        smoke: whether its settings are those that only show that everything runs.
        scaled: whether there are scores. Without, what is shown in their place are returns.
    """

    def __init__(
        self,
        board: Mapping,
        cells: Sequence[Mapping],
        anchors: Mapping,
        config: Mapping,
        statistics: Mapping,
        figures: Path,
        scores: Mapping | None = None,
        commands: Sequence[Mapping[str, str]] = (),
        machines: Sequence[Mapping] = (),
        files: Mapping[str, bytes] | None = None,
        comparisons: Mapping[str, Sequence[Mapping]] | None = None,
    ):
        self.board, self.config = board, config
        self.anchors = {a: x for a, x in anchors.items() if a != "components"}
        self.components = anchors.get("components", {})
        self.statistics, self.figures = statistics, figures
        self.commands, self.machines, self.files = commands, machines, files or {}
        self.comparisons = comparisons or {}
        # Of the preset that does everything once.
        smallest = {k: v for k, v in SMALLEST.items() if k != "compile"}
        self.smoke = all(config.get(name) == value for name, value in smallest.items())
        self.scores = {loss: np.array(x) for loss, x in (scores or {}).get("losses", {}).items()}
        self.scaled = board.get("scaled", True)
        self.differences: dict[str | None, Mapping] = {None: board.get("overall_differences", {})}
        self.differences |= board.get("differences", {})
        rows = board["rows"] if self.scaled else [r | {"score": r["return"]} for r in board["rows"]]
        self.rows = {(row["loss"], row["data"]): row for row in rows}
        self.cells = {
            (c["loss"], c["data"]): c for c in cells if (c["loss"], c["data"]) in self.rows
        }
        self.overall = {row["loss"]: row for row in board["overall"]}
        wanted = [word.strip() for word in str(config.get("data", "")).split(",")]
        kinds = dict.fromkeys(data for _, data in self.rows)
        self.kinds = sorted(kinds, key=lambda k: wanted.index(k) if k in wanted else len(wanted))
        self.losses = sorted({loss for loss, _ in self.rows}, key=self._merit)

    def _merit(self, loss: str) -> tuple:
        """Best first: by the score over all data kinds, or else the mean of those there are."""
        if finite(pooled := self.overall.get(loss, {}).get("score", {}).get("mean")):
            return 0, -pooled, loss
        scores = [row["score"]["mean"] for (name, _), row in self.rows.items() if name == loss]
        known = [x for x in scores if finite(x)]
        return (1, -sum(known) / len(known), loss) if known else (2, 0, loss)

    @property
    def zero(self) -> float:
        """What the original agent has."""
        return 0.0 if self.scaled else self.board["anchors"]["original"]["mean"]

    def score(self, row: Mapping) -> str:
        """The score of a row with its interval, where there is one."""
        digits = 2 if self.scaled else 0
        return f"{number(row['score']['mean'], digits)} {interval(row['score'], digits)}".strip()

    def on(self, kind: str) -> list[Mapping]:
        """The rows of a data kind, best first."""
        rows = [row for (_, data), row in self.rows.items() if data == kind]
        return sorted(
            rows, key=lambda r: (not finite(r["score"]["mean"]), -(r["score"]["mean"] or 0))
        )

    def cells_on(self, kind: str) -> list[Mapping]:
        """The cells of a data kind, in the order of the losses."""
        return [self.cells[loss, kind] for loss in self.losses if (loss, kind) in self.cells]

    def best(self, kind: str | None) -> list[str]:
        """The losses than which no other is shown to be better on this data, highest score first.

        ``None`` stands for all data. This is what "best" means in every sentence, table and figure.
        """
        rows = self.on(kind) if kind is not None else self.overall.values()
        return [row["loss"] for row in rows if _leads(row)]

    def marked(self, kind: str | None) -> list[str]:
        """The best where they were compared with others: what a bar or a colour points out."""
        rows = self.on(kind) if kind is not None else self.overall
        return self.best(kind) if len(rows) > 1 else []


def _leads(row: Mapping) -> bool:
    measured = row.get("return", row["score"])
    return row["rank"]["best"] == 1 and finite(measured["mean"])
