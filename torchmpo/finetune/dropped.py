"""How many pairs were dropped, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """What :func:`torchmpo.finetune.pairs.clean` dropped.

    A pair counts once, by the first that applies.

    >>> print(Counts(rows=10, identical=1, empty=0, duplicates=2))
    kept 7 of 10 pairs; dropped 1 with identical answers, 0 with an empty answer, 2 duplicates
    """

    rows: int
    identical: int
    empty: int
    duplicates: int
    tied: int = 0

    @property
    def kept(self) -> int:
        """Pairs that are left."""
        return self.rows - self.identical - self.empty - self.duplicates - self.tied

    def __str__(self) -> str:
        return (
            f"kept {self.kept:,} of {self.rows:,} pairs; dropped {self.identical:,} with identical "
            f"answers, {self.empty:,} with an empty answer, {self.duplicates:,} duplicates"
            + (f", {self.tied:,} lists without a best and a worst answer" if self.tied else "")
        )
