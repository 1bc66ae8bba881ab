"""docs/finetune_data.md: its Python prints what the page shows, its settings are settings."""

import pytest
import yaml

pytest.importorskip("lightning")

from pages import blocks_of

from torchmpo.finetune.data import PreferenceData
from torchmpo.finetune.mixture import sources_of
from torchmpo.finetune.pairs import COLUMNS

PAGE = "../finetune_data.md"


def test_it_prints_what_it_shows(page):
    page.run(PAGE)


@pytest.mark.parametrize("source", [text for name, text in blocks_of(PAGE) if name == "yaml"])
def test_its_settings_are_settings(source):
    settings = yaml.safe_load(source)["data"]
    data = PreferenceData(**{"train": "sums.jsonl", **settings})
    assert sources_of(data.sources["train"][0])
    assert {*(data.columns or {})} <= {*COLUMNS}
