"""Every link between pages, headings and files leads on; nothing is fetched from elsewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "tutorials").glob("*.md")]
)


def without_code(text: str) -> str:
    """Markdown without fenced blocks and literals, in which a bracket is no link."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def anchors(text: str) -> set[str]:
    """What a fragment may name: headings in lower case, blanks as hyphens, no punctuation."""
    found: set[str] = set()
    for heading in re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M
    ):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        copies = (slug if n == 0 else f"{slug}-{n}" for n in range(len(found) + 1))
        found.add(next(copy for copy in copies if copy not in found))
    return found


def content(path: Path) -> str:
    """A page with what it includes."""
    return re.sub(
        r"^```\{include\} (\S+)$.*?^```$",
        lambda match: (path.parent / match[1]).read_text(),
        path.read_text(),
        flags=re.M | re.S,
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text())):
        if target.startswith(("http://", "https://")) or target.startswith("api/"):
            continue  # the site is built with the references of docs/api, and warns
        file, _, fragment = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), f"{path.name} links to {target}"
        if fragment:
            assert fragment in anchors(content(linked)), f"{path.name} links to {target}"


def test_headings_become_anchors():
    text = "# The `x` of it\n```\n# not one\n```\n## Same\n## Same\n"
    assert anchors(text) == {"the-x-of-it", "same", "same-1"}
