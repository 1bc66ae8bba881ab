"""Several sources as one data set, and a share of a data set held out.

Neither draws random numbers: which pairs are held out, and which of a source count that counts in
part, follows from the pairs alone. So it is the same for every seed, at a resume, and, but for a
few, with more data.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torchmpo.finetune.pairs import Pair, digest, load_pairs
from torchmpo.runs.errors import UserError, nearest


@dataclass(frozen=True)
class Source:
    """Where pairs come from.

    Args:
        source: see :mod:`torchmpo.finetune.sources`.
        split: or None for that of the whole mixture.
        config: name of a hub data set's configuration.
        columns: see :func:`torchmpo.finetune.pairs.load_pairs`; None for those of the mixture.
        weight: how often each of its pairs counts in an epoch, > 0: 2 is twice, 0.5 is half of
            them once.

    Raises:
        UserError: a weight out of range.
    """

    source: Any
    split: str | None = None
    config: str | None = None
    columns: Mapping[str, str | None] | None = None
    weight: float = 1.0

    def __post_init__(self):
        number = isinstance(self.weight, (int, float)) and not isinstance(self.weight, bool)
        if not number or not 0 < self.weight < math.inf:
            raise UserError(f"weight of {self.source} must be a positive number; got {self.weight}")


def sources_of(given: Any) -> list[Source]:
    """What a setting names: one source, the fields of one (as a dict or a :class:`Source`), or a
    list of them.

    Raises:
        UserError: a dict with other fields.

    >>> [source.weight for source in sources_of(["a.jsonl", {"source": "b.jsonl", "weight": 2}])]
    [1.0, 2]
    """
    for item in given if isinstance(given, (list, tuple)) else (given,):
        _refuse_misspelt(item)
    if isinstance(given, (list, tuple)) and given and all(map(_names_source, given)):
        return [_source(item) for item in given]
    return [_source(given)]


def load_mixture(
    given: Any, split: str = "train", columns: Mapping[str, str | None] | None = None
) -> list[Pair]:
    """The pairs of all sources in their order, nothing dropped yet, each with its weight.

    Args:
        given: see :func:`sources_of`.
        split, columns: of sources that do not say so themselves.

    Raises:
        UserError: as :func:`torchmpo.finetune.pairs.load_pairs` does.
    """
    pairs = []
    for one in sources_of(given):
        own = columns if one.columns is None else one.columns
        loaded = load_pairs(one.source, one.split or split, config=one.config, columns=own)
        pairs += [replace(pair, weight=one.weight) for pair in loaded]
    return pairs


def hold_out(pairs: Sequence[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """Two parts without a common prompt, each in order: what is left, and what is held out.

    Args:
        pairs: with at least two prompts.
        share: of the prompts, in (0, 1); at least one is held out, and one is left.

    Raises:
        UserError: there are fewer prompts.
    """
    prompts = [digest(pair.prompt) for pair in pairs]
    # A digest is as good as a random number, and the same tomorrow.
    ranked = sorted(set(prompts))
    if len(ranked) < 2:
        raise UserError(
            f"data.validation: a share of {share} needs two prompts; there are {len(ranked)}"
        )
    out = set(ranked[: min(max(round(share * len(ranked)), 1), len(ranked) - 1)])
    left = [pair for pair, prompt in zip(pairs, prompts) if prompt not in out]
    return left, [pair for pair, prompt in zip(pairs, prompts) if prompt in out]


def repeat(pairs: Sequence[Pair]) -> list[Pair]:
    """Each pair as often as its weight says; of those with equal weights, so many once more."""
    times = [int(pair.weight) for pair in pairs]
    for weight in {pair.weight for pair in pairs if pair.weight != int(pair.weight)}:
        rows = [row for row, pair in enumerate(pairs) if pair.weight == weight]
        rows.sort(key=lambda row: digest(pairs[row].prompt, pairs[row].chosen, pairs[row].rejected))
        for row in rows[: round((weight - int(weight)) * len(rows))]:
            times[row] += 1
    return [pair for pair, count in zip(pairs, times) for _ in range(count)]


def _names_source(item: Any) -> bool:
    if isinstance(item, Mapping):  # a row of a data set may have a column of this name, too
        return "source" in item and not {"chosen", "rejected"} & set(item)
    return isinstance(item, (str, Path, Source))


def _refuse_misspelt(item: Any) -> None:
    """Refuse what would be taken for a row of a data set, but has no key that is not like ours."""
    names = [field.name for field in fields(Source)]
    if isinstance(item, Mapping) and item and "source" not in item:
        unlike = [key for key in item if not get_close_matches(str(key), names)]
        if not unlike:
            absent = next((str(key) for key in item if key not in names), None)
            told = "it names none" if absent is None else f"{absent!r} is no key of it"
            raise UserError(f"a source is {{source: …}} with any of {', '.join(names[1:])}: {told}")


def _source(item: Any) -> Source:
    if isinstance(item, Source):
        return item
    if not isinstance(item, Mapping) or not _names_source(item):
        return Source(item)
    names = [field.name for field in fields(Source)]
    for name in item:
        if name not in names:
            raise UserError(f"a source has no {name!r}: {nearest(name, names)}")
    return Source(**item)
