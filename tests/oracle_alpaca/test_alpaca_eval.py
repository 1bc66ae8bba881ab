"""Win rates against alpaca_eval 0.6.6's own, to 1e-6 points, in both directions of the files.

`python tests/oracle_alpaca/test_alpaca_eval.py` writes expected.json for the ordinary tests.
"""

import json
import logging
import math
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from samples import CASES, GAMED_COLUMNS, GLMS, comparisons, gamed_rows

KEYS = (
    "win_rate",
    "standard_error",
    "n_wins",
    "n_wins_base",
    "n_draws",
    "n_total",
    "discrete_win_rate",
    "length_controlled_winrate",
    "lc_standard_error",
)


def gamed_file(folder):
    path = Path(folder) / "df_gamed.csv"
    pd.DataFrame(gamed_rows(), columns=list(GAMED_COLUMNS)).to_csv(path, index=False)
    return path


def theirs(rows, glm, gamed):
    """The package's row of the leaderboard, and its predictions."""
    from alpaca_eval.metrics import glm_winrate

    glm_winrate.hf_hub_download = lambda **_: str(gamed)
    frame = pd.DataFrame(rows)
    logging.disable(logging.WARNING)
    metrics = glm_winrate.get_length_controlled_winrate(frame, glm_name=glm, save_weights_dir=None)
    return {key: float(metrics[key]) for key in KEYS}, frame["glm_preference"].tolist()


def ours(rows, glm, gamed):
    from torchmpo.winrate import alpaca_files
    from torchmpo.winrate import rates as win_rates

    values = [alpaca_files.probability(row["preference"]) for row in rows]
    difficulty, baselines = alpaca_files.read_gamed(gamed)
    controlled = win_rates.length_controlled_win_rate(
        values,
        [len(row["output_2"]) for row in rows],
        [len(row["output_1"]) for row in rows],
        difficulty=[difficulty[i] for i in range(len(rows))] if glm != GLMS[0] else None,
        gamed=baselines if glm == GLMS[2] else None,
    )
    return win_rates.describe(values) | {
        "length_controlled_winrate": controlled.win_rate,
        "lc_standard_error": controlled.standard_error,
    }, controlled.predictions


@pytest.mark.parametrize("glm", GLMS)
@pytest.mark.parametrize("case", CASES)
def test_all_numbers_are_the_packages(case, glm, tmp_path):
    rows, gamed = comparisons(case), gamed_file(tmp_path)
    expected, predictions = theirs(rows, glm, gamed)
    got, mine = ours(rows, glm, gamed)
    assert got == pytest.approx(expected, abs=1e-6, rel=0)
    np.testing.assert_allclose(mine, predictions, rtol=0, atol=1e-8)


def test_the_package_reads_our_files(tmp_path):
    from alpaca_eval import utils

    from torchmpo.winrate import alpaca_files

    rows = comparisons("draws and missing")
    for row in rows:
        if row["preference"]:
            row["preference"] = 1 + alpaca_files.probability(row["preference"])
    (tmp_path / "annotations.json").write_text(alpaca_files.annotations_text(rows))
    read = utils.load_or_convert_to_dataframe(tmp_path / "annotations.json")
    gamed = gamed_file(tmp_path)
    got, _ = theirs(read.to_dict("records"), GLMS[0], gamed)
    # pandas reads floats to the last digit but one
    assert got == pytest.approx(theirs(rows, GLMS[0], gamed)[0], rel=1e-12, abs=1e-12)

    row = {"win_rate": 51.25, "standard_error": 1.5, "lc_standard_error": math.nan, "mode": "x"}
    (tmp_path / "leaderboard.csv").write_text(alpaca_files.leaderboard_text("a, b", row))
    board, _ = utils.get_precomputed_leaderboard(tmp_path / "leaderboard.csv", None, None)
    assert board["a, b"] == pytest.approx(row, nan_ok=True)


def test_we_read_the_packages_files(tmp_path):
    from torchmpo.winrate import alpaca_files

    rows = comparisons("draws and missing")
    frame = pd.DataFrame(rows)
    frame.to_json(tmp_path / "annotations.json", orient="records", indent=2)
    read = alpaca_files.read_annotations(tmp_path / "annotations.json")
    assert [r["output_2"] for r in read] == [r["output_2"] for r in rows]
    got = [alpaca_files.probability(r["preference"]) for r in read]
    want = [alpaca_files.probability(r["preference"]) for r in rows]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)  # pandas writes ten digits


def test_pairs_are_merged_as_the_package_does():
    """Columns of both files, and who is 1 and who is 2; no annotator is asked."""
    from alpaca_eval.annotators import PairwiseAnnotator

    from torchmpo.winrate import alpaca_files

    reference = [
        {"instruction": "b", "output": "x", "generator": "r", "dataset": "d", "seed": 1},
        {"instruction": "a", "output": "y", "generator": "r", "dataset": "d", "seed": 1},
    ]
    model = [
        {"instruction": "a", "output": "u", "generator": "m", "dataset": "d", "seed": 2, "z": 0},
        {"instruction": "b", "output": "v", "generator": "m", "dataset": "d", "seed": 2, "z": 1},
    ]
    merged = PairwiseAnnotator.annotate_head2head(_Recorder(), reference, model)
    columns = sorted(merged[0])
    assert [sorted(row) for row in alpaca_files.compare(reference, model)] == [columns] * 2
    assert alpaca_files.compare(reference, model) == merged


class _Recorder:
    input_keys = ("instruction",)

    def __call__(self, frame, **_):
        return frame.to_dict("records")


def test_expected_json_is_what_the_package_gives(tmp_path):
    stored = json.loads((Path(__file__).parent / "expected.json").read_text())
    for name, expected in stored.items():
        case, glm = name.split(" / ")
        assert theirs(comparisons(case), glm, gamed_file(tmp_path))[0] == pytest.approx(expected)


def write_expected():
    with tempfile.TemporaryDirectory() as folder:
        gamed = gamed_file(folder)
        numbers = {
            f"{case} / {glm}": theirs(comparisons(case), glm, gamed)[0]
            for case in CASES
            for glm in GLMS
        }
    path = Path(__file__).parent / "expected.json"
    path.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    write_expected()
