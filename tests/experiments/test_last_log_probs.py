"""The ends of two trainings are paired by seed."""

import json

import pytest

from experiments.last_log_probs import KINDS, LOSSES, RESULTS, rows
from torchmpo.diagnose.cells import cell_path


def test_ends_are_paired_by_seed(tmp_path):
    for loss, add in zip(LOSSES, (0.1, 0.0), strict=True):
        for kind in KINDS:
            cell = json.loads(cell_path(RESULTS, loss, kind).read_text())
            for side, end in (("chosen", -0.5 + add), ("rejected", -1.0 - add)):
                for seed, curve in enumerate(cell["curves"][side]):
                    curve[-1] = end + 0.01 * seed
            path = cell_path(tmp_path, loss, kind)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(cell))
    found = list(rows(tmp_path))
    assert len(found) == 3 * len(KINDS)
    for kind, side, own, other, difference in found:
        assert kind in KINDS
        assert own - other == pytest.approx(difference.mean)
        expected = {"chosen": 0.1, "rejected": -0.1, "margin": 0.2}[side]
        assert difference.mean == pytest.approx(expected)
        assert difference.low == pytest.approx(expected, abs=1e-6)
