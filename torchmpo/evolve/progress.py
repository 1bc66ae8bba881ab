"""How far a search is, for whoever watches it: lines, a bar, loggers."""

import statistics
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from torchmpo.runs.command import duration


class Progress:
    """A line per generation, a bar below them when somebody is watching, and the loggers."""

    def __init__(self, generations: int, loggers: Sequence[Any] = ()):
        self.generations, self.loggers = generations, loggers
        self.seconds: list[float] = []

    def __enter__(self) -> "Progress":
        self.bar = tqdm(
            total=self.generations + 1, desc="search", disable=not sys.stderr.isatty(), leave=False
        )
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def __call__(self, row: dict, seconds: float) -> None:
        generation = row["generation"]
        words = ("generation", "regime")  # which are no numbers to draw
        numbers = {k: v for k, v in row.items() if k not in words and v is not None}
        for logger in self.loggers:
            logger.log_metrics(numbers | {"seconds": seconds}, generation)
        if row["mean"] is None:
            line = f"final centre    {row['centre']:9.1f}{_held_out(row)}"
        else:
            self.seconds.append(seconds)
            left = (self.generations - generation - 1) * statistics.median(self.seconds)
            line = (
                f"generation {generation + 1:>3}/{self.generations}  centre {row['centre']:8.1f}  "
                f"mean {row['mean']:8.1f}  best {row['best']:8.1f}  σ {row['sigma']:.4f}  "
                f"failed {row['nan']}{_held_out(row)}{_regime(row)}  {seconds:.1f} s  "
                f"ETA {duration(left)}"
            )
        self.bar.initial = self.bar.n = generation  # after a resume, too
        self.bar.update()
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()


def _regime(row: dict) -> str:
    kind = row.get("regime")
    return "" if kind is None else f"  on {kind}"


def _held_out(row: dict) -> str:
    value = row.get("held_out")
    return "" if value is None else f"  held out {value:.1f}"
