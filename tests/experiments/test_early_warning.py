"""The rule is read from recorded cells; areas are counted by hand."""

import numpy as np
import pytest

from experiments.early_warning import auc, main, threshold


def test_the_area_and_the_threshold_are_right():
    fell = np.array([True, True, False, False, False])
    sign = np.array([-3.0, 1.0, 0.0, 2.0, 3.0])
    # Of six pairs of one that fell and one that did not, five are in order.
    assert auc(fell, sign) == pytest.approx(5 / 6)
    assert auc(fell, -sign) == pytest.approx(1 / 6)
    assert threshold(fell, sign) == 2.0  # both that fell are below it, one other is


def test_the_recorded_cells_are_told_by_the_chosen_likelihood(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["early_warning"])
    main()
    printed = capsys.readouterr().out
    areas = {line[:38].strip(): float(line[38:44]) for line in printed.splitlines()[4:]}
    assert areas["chosen: its log-probability per step"] > 0.9
    assert areas["margin: what it gained"] < 0.6
