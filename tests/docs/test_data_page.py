"""The page of kinds of data has each of them, with the picture that the script draws."""

from pathlib import Path

import pytest

from torchmpo.control.kinds import FILES, PARTS
from torchmpo.runs.files import slug

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "data.md").read_text()


@pytest.mark.parametrize("name", PARTS)
def test_every_kind_is_explained_with_a_picture(name):
    part = PARTS[name]
    assert f"### `{part.form}`" in PAGE
    if name not in FILES:
        picture = f"figures/kinds/{slug(part.example)}.svg"
        assert f"![Returns and margins of {part.example}]({picture})" in PAGE
        assert (DOCS / picture).exists()


def test_the_example_of_lists_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(PAGE.split("```python\n")[1].split("```")[0], {})
    assert Path("pairs.npz").exists()
