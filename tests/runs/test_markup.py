"""Markup is in templates, where every text is escaped; modules hold none."""

import ast
import re
from pathlib import Path

from torchmpo.diagnose.report import html
from torchmpo.runs.markup import templates

ROOT = Path(__file__).parents[2]
TAG = re.compile(r"</?(?:a|b|br|code|dd|details|div|dl|dt|figure|html|i|img|li|mark|meta|nav|p|pre|"
                 r"section|small|span|style|sub|summary|table|td|th|tr|ul)\b[^<>]*>")  # fmt: skip
HOSTILE = "<script>alert('&')"
ESCAPED = "&lt;script&gt;alert(&#39;&amp;&#39;)"


def test_modules_hold_no_markup():
    found = []
    for path in sorted((ROOT / "torchmpo").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        prose = {
            node.body[0].value
            for node in ast.walk(tree)
            if isinstance(node, documented) and ast.get_docstring(node)
        }
        found += [
            f"{path.name}:{node.lineno}"
            for node in set(ast.walk(tree)) - prose
            if isinstance(node, ast.Constant) and TAG.search(str(node.value))
        ]
    assert found == []


def test_every_element_escapes_texts_and_leaves_markup():
    cell = html.Cell(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    name = html.code(HOSTILE)
    assert name == f"<code>{ESCAPED}</code>"
    made = [
        html.table([HOSTILE], [[html.heading(HOSTILE), cell]], HOSTILE, HOSTILE),
        html.fold(HOSTILE, HOSTILE),
        html.figure(HOSTILE, HOSTILE),
        html.nested({HOSTILE: [HOSTILE, 1.0]}, HOSTILE),
        html.nested({HOSTILE: {HOSTILE: HOSTILE}}, HOSTILE),
        html.say("{}", HOSTILE),
        html.document(HOSTILE, HOSTILE, [html.Section("title", HOSTILE, [HOSTILE])]),
        templates("torchmpo.runs")
        .get_template("progress.html")
        .render(title=HOSTILE, state=HOSTILE, lines=HOSTILE, again=0),
    ]
    for text in made:
        assert ESCAPED in text
        assert "<script>alert" not in text
        assert "&amp;lt;" not in text  # once is enough
    assert name in html.table(["loss"], [[html.Cell(name)]], name)
    assert name in html.say("{} fell", name)
