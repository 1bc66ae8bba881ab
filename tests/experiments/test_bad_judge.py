"""The temperature at which a judge errs as often as labels are flipped."""

import json
from pathlib import Path

import pytest
import torch

from experiments import bad_judge
from torchmpo.diagnose.cells import seed_scores

RECORDED = Path(bad_judge.__file__).parent / "results" / "bad_judge"


def test_the_temperature_is_the_inverse_of_the_share():
    margins = torch.tensor([3.0, -3.0])
    found = bad_judge.temperature(margins, 0.3)
    assert 3 / found == pytest.approx(torch.tensor(0.7 / 0.3).log().item(), rel=1e-3)
    spread = torch.tensor([0.1, 1.0, 4.0, 20.0])
    errs = torch.sigmoid(-spread.double() / bad_judge.temperature(spread, 0.3)).mean().item()
    assert errs == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize(
    ("difference", "word"),
    [([0.1, 0.11, 0.12], "differs"), ([0.0, 0.01, -0.01], "same"), ([0.5, -0.6], "cannot be told")],
)
def test_words(difference, word, capsys):
    bad_judge._line("sft", torch.tensor(difference))
    assert word in capsys.readouterr().out


def test_the_scores_of_seeds_have_the_means_of_the_leaderboard():
    found = seed_scores(RECORDED)
    rows = json.loads((RECORDED / "leaderboard.json").read_text())["rows"]
    assert len(found) == len(rows) == 24
    for row in rows:
        scores = found[row["loss"], row["data"]]
        assert scores.shape == (8,)
        assert scores.mean() == pytest.approx(row["score"]["mean"], abs=1e-4)
