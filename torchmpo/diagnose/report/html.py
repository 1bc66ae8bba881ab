"""An HTML file that opens from disk, asks nothing of the network, and whose tables can be sorted.

Style and script are inside it. Its Content-Security-Policy forbids everything else, and without
JavaScript it can be read all the same. The markup is in ``templates/``, where every text is
escaped; what the functions here return is markup, and so is not escaped again. To keep that, put
texts together with :func:`say` and markup's own ``join``: an f-string makes plain text of it.
"""

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from torchmpo.runs.files import slug
from torchmpo.runs.markup import templates

SCRIPT = (Path(__file__).parent / "templates" / "page.js").read_text("utf-8")


class Section(NamedTuple):
    """A part of a page with a title.

    Attributes:
        title: plain text.
        note: what is to be seen, and how to read it; may be empty.
        parts: tables, figures and other content. Without any, the section is left out.
    """

    title: str
    note: str
    parts: Sequence[str]


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: what it shows.
        key: what it is sorted by; what is empty comes last.
        kind: its classes of CSS.
        style: its own CSS.
        heads: whether it names its row.
    """

    text: str
    key: Any = ""
    kind: str = ""
    style: str = ""
    heads: bool = False

    @property
    def sorted_by(self) -> str:
        """The key as text."""
        return str(self.key) if finite(self.key) else str(self.key or "")


def amount(value: Any, digits: int = 0, text: str = "") -> Cell:
    """A number in a cell, or ``text`` in its place, sorted by the number."""
    return Cell(text or number(value, digits), value, "number")


def heading(name: str, key: Any = None) -> Cell:
    """The first cell of a row; its key is its name."""
    return Cell(name, name if key is None else key, heads=True)


def document(title: str, head: str, sections: Iterable[Section]) -> str:
    """The whole file.

    Args:
        title: plain text.
        head: what stands between the title and the links to the sections.
        sections: in their order; one without content is left out.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    present = [s._replace(parts=parts) for s in sections if (parts := [p for p in s.parts if p])]
    return render(
        "document.html",
        title=title,
        head=head,
        sections=present,
        script=Markup(SCRIPT),
        digest=digest,
    )


def render(template: str, **values: Any) -> Markup:
    """A template with its values, as markup."""
    return Markup(ENVIRONMENT.get_template(template).render(values))


def say(text: str, *values: Any) -> Markup:
    """A sentence with values in its ``{}``: texts are escaped, markup is not.

    >>> say("{} is best on {}.", code("dpo"), "a<b")
    Markup('<code>dpo</code> is best on a&lt;b.')
    """
    return Markup(text).format(*values)


def code(name: str) -> Markup:
    """A name from a user; a long one may break after its dots and colons."""
    return ELEMENTS.code(re.split(r"(?<=[.:/])(?=\w)", name))


def table(
    head: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str, kind: str = "sortable"
) -> Markup:
    """A table in a box of its own that scrolls.

    A title that begins with ``#`` is of numbers, of which the highest come first.
    """
    return ELEMENTS.table(head, rows, caption, kind)


def fold(summary: str, content: str, open: bool = False) -> Markup:
    """Content that a click on its summary shows."""
    return ELEMENTS.fold(summary, content, open)


def figure(picture: str, caption: str = "") -> Markup:
    """A picture of :func:`torchmpo.diagnose.report.figures.save`."""
    return ELEMENTS.figure(picture, caption)


def nested(value: Any, caption: str = "") -> str:
    """Any JSON value: a dictionary of dictionaries as one table, the rest as it comes."""
    if isinstance(value, Mapping) and value and all(isinstance(v, Mapping) for v in value.values()):
        keys = list(dict.fromkeys(str(key) for inner in value.values() for key in inner))
        lines = [
            [heading(str(name)), *(Cell(nested(inner.get(key)), kind="number") for key in keys)]
            for name, inner in value.items()
        ]
        return table(["", *(f"#{key}" for key in keys)], lines, caption, "")
    if isinstance(value, Mapping):
        lines = [[heading(str(k)), Cell(nested(v))] for k, v in value.items()]
        return table(["setting", "value"], lines, caption, "")
    if isinstance(value, list):
        return Markup(", ").join(nested(v) for v in value)
    if isinstance(value, float):
        return (number(value) if abs(value) >= 1000 else f"{value:.4g}") if finite(value) else "–"
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return number(value) if isinstance(value, int) else str(value)


def finite(value: Any) -> bool:
    """Whether a value of a JSON file is a number that can be shown."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 0) -> str:
    """A number for a reader, ``–`` where there is none.

    >>> number(-1234.5, 1), number(-0.001, 2), number(None)
    ('−1,234.5', '0.00', '–')
    """
    if not finite(value):
        return "–"
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")


def interval(entry: Mapping, digits: int = 2) -> str:
    """``[low, high]``, or nothing where it is not known."""
    if not (finite(entry["low"]) and finite(entry["high"])):
        return ""
    return f"[{number(entry['low'], digits)}, {number(entry['high'], digits)}]"


def diverged(row: Mapping) -> str:
    """How many seeds of a row diverged."""
    return f"{row['diverged']} of {count(row['seeds'], 'seed')}"


def rank(row: Mapping) -> str:
    """The rank of a row, from best to worst where it is tied."""
    best, worst = row["rank"]["best"], row["rank"]["worst"]
    return f"{best}" if best == worst else f"{best}–{worst}"


def count(n: int, what: str) -> str:
    """``1 loss``, ``2 losses``."""
    return f"{n} {what}{'' if n == 1 else 'es' if what.endswith('s') else 's'}"


def papers(source: str) -> list[str]:
    """A source cut at its papers: every second part is the number of one on arXiv."""
    return re.split(r"arXiv[: ](\d{4}\.\d{4,5})", source)


ENVIRONMENT = templates("torchmpo.diagnose.report")
for function in (code, diverged, finite, interval, number, papers, rank, slug):
    ENVIRONMENT.filters[function.__name__] = function
ELEMENTS: Any = ENVIRONMENT.get_template("elements.html").module
