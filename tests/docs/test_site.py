"""What docs/conf.py does to docstrings; needs Sphinx, which `make site` installs."""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
CONF = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "conf.py"))


def readable(docstring: str) -> str:
    lines = docstring.split("\n")
    CONF["readable"](None, "function", "name", None, {}, lines)
    return "\n".join(lines)


@pytest.mark.parametrize("equation", ["loss = |x|\nx = 1", "    loss = |x|\n    x = 1"])
def test_an_equation_keeps_its_lines(equation):
    found = readable(f"Summary.\n\n{equation}\n\nProse.")
    assert found == "Summary.\n\n::\n\n    loss = |x|\n    x = 1\n\nProse."


def test_a_bar_in_prose_is_no_substitution():
    assert readable("Where |J| > 0, ``a|b``.") == "Where \\|J\\| > 0, ``a|b``."


def test_sections_and_examples_stay_as_they_are():
    docstring = "Summary.\n\nArgs:\n    x: one.\n\n    More of it.\n\n>>> 1 | 2\n3"
    assert readable(docstring) == docstring


def test_every_package_has_a_page(tmp_path):
    class App:
        srcdir = tmp_path

    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "gone.rst").touch()
    CONF["api_pages"](App)
    pages = {path.stem: path.read_text() for path in (tmp_path / "api").iterdir()}
    assert "gone" not in pages
    assert ".. automodule:: torchmpo.losses.logistic" in pages["torchmpo.losses"]
    assert "   torchmpo.losses\n" in pages["torchmpo"]
    assert not any("__main__" in page for page in pages.values())
