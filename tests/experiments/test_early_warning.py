"""The rule is read from recorded cells; areas are counted by hand."""

import re

import numpy as np
import pytest

from experiments.early_warning import auc, main, quiet, threshold
from torchmpo import early_warning
from torchmpo.early_warning import CHOSEN_FALL


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
    out = capsys.readouterr().out
    tables = out.split("\n\n")[1:]
    first, second = ({row[:38].strip(): row for row in table.splitlines()[1:]} for table in tables)
    areas = {rule: float(row[38:44]) for rule, row in first.items()}
    assert areas["chosen: its log-probability per step"] > 0.9
    assert areas["margin: what it gained"] < 0.6
    # The threshold of the callbacks is this one.
    assert float(second["chosen: what it gained"].split()[-1]) == -CHOSEN_FALL
    # So are the numbers of its docstring.
    told = re.findall(r"(\d+)%", second["chosen: what it gained"])
    words = " ".join(early_warning.__doc__.split())
    cells = re.match(r"\d+ cells", out)[0]
    assert all(number in words for number in (cells, f"{told[0]} %", f"{told[1]} %"))


def test_a_quiet_warning_is_for_few_of_the_others():
    fell = np.arange(50) < 10
    sign = np.concatenate([np.full(10, -9.0), np.arange(40.0)])
    assert quiet(fell, sign) == 2.0  # 0 and 1, of forty, are below it
