"""An HTML file that opens from disk, asks nothing of the network, and whose tables can be sorted.

Style and script are inside it. Its Content-Security-Policy forbids everything else, and without
JavaScript it can be read all the same.
"""

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from torchmpo.runs.files import slug

HERE = Path(__file__).parent
STYLE = (HERE / "html.css").read_text("utf-8")
SCRIPT = (HERE / "html.js").read_text("utf-8")


def document(title: str, head: str, sections: Iterable[tuple[str, str, str]]) -> str:
    """The whole file.

    Args:
        title: plain text.
        head: HTML that stands between the title and the links to the sections.
        sections: title, explanation and content of each, as HTML; one without content is left out.
    """
    present = [(*section, slug(section[0])) for section in sections if section[2]]
    links = " ".join(f'<a href="#{anchor}">{name}</a>' for name, _, _, anchor in present)
    body = "\n".join(
        f'<section id="{anchor}"><h2>{name}</h2>\n{_note(note)}{content}</section>'
        for name, note, content, anchor in present
    )
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    policy += f"; script-src 'sha256-{digest}'"
    title = escape(title)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{STYLE}</style></head>
<body><header><h1>{title}</h1>
{head}
<nav>{links}</nav></header>
<main>
{body}
</main>
<script>{SCRIPT}</script></body></html>
"""


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>\n' if text else ""


def cell(text: str, key: Any = "", kind: str = "", style: str = "") -> str:
    """A ``<td>``; ``key`` is what it is sorted by, ``text`` is HTML."""
    key = key if finite(key) else escape(str(key or ""))
    extra = f' class="{kind}"' * bool(kind) + f' style="{style}"' * bool(style)
    return f'<td data-sort="{key}"{extra}>{text}</td>'


def table(head: Sequence[str], rows: Iterable[str], caption: str, kind: str = "sortable") -> str:
    """A table in a box of its own that scrolls; ``head`` and ``rows`` are HTML.

    A title that begins with ``#`` is of numbers, of which the highest come first.
    """
    titles = []
    for title in head:
        mark = ' class="number" data-first="descending"' if title.startswith("#") else ""
        titles.append(f'<th scope="col"{mark}>{title.removeprefix("#")}</th>')
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="{kind}"><caption>{caption}</caption>'
        f"<thead><tr>{''.join(titles)}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def fold(summary: str, content: str, open: bool = False) -> str:
    """Content that a click on its summary shows."""
    return f"<details{' open' * open}><summary>{summary}</summary>{content}</details>"


def nested(value: Any, caption: str = "") -> str:
    """Any JSON value: a dictionary of dictionaries as one table, the rest as it comes."""
    if isinstance(value, Mapping) and value and all(isinstance(v, Mapping) for v in value.values()):
        keys = list(dict.fromkeys(key for inner in value.values() for key in inner))
        lines = [
            f'<th scope="row">{escape(str(name))}</th>'
            + "".join(cell(nested(inner.get(key)), inner.get(key), "number") for key in keys)
            for name, inner in value.items()
        ]
        return table(["", *(f"#{escape(str(key))}" for key in keys)], lines, caption, "")
    if isinstance(value, Mapping):
        lines = [
            f'<th scope="row">{escape(str(k))}</th>{cell(nested(v))}' for k, v in value.items()
        ]
        return table(["setting", "value"], lines, caption, "")
    if isinstance(value, list):
        return ", ".join(nested(v) for v in value)
    if isinstance(value, float):
        return (number(value) if abs(value) >= 1000 else f"{value:.4g}") if finite(value) else "–"
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return number(value) if isinstance(value, int) else escape(str(value))


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
