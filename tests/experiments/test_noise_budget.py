"""Variance components against what made the numbers."""

import json
import sys

import numpy as np
import pytest

from experiments.noise_budget import components, error, main

PARTS = ("data", "stream", "start", "data×stream", "data×start", "stream×start")


def drawn(sizes, spread, rng):
    """A table of crossed random effects of these standard deviations."""
    d, s, e = sizes
    shapes = [(d, 1, 1), (1, s, 1), (1, 1, e), (d, s, 1), (d, 1, e), (1, s, e), (d, s, e)]
    return sum(sd * rng.normal(size=shape) for sd, shape in zip(spread, shapes, strict=True))


def test_components_are_right_on_average():
    spread = (3.0, 1.0, 2.0, 4.0, 0.0, 1.5, 2.5)
    rng = np.random.default_rng(0)
    found = [list(components(drawn((5, 4, 6), spread, rng)).values()) for _ in range(3000)]
    mean, of_mean = np.mean(found, 0), np.std(found, 0) / len(found) ** 0.5
    assert (abs(mean - np.square(spread)) < 4 * of_mean).all()
    assert (of_mean < 0.35).all()  # so that the line above can fail


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_factor_alone_is_its_own_variance(axis):
    effect = np.array([0.0, 2.0, 7.0, 1.0])
    shape = [1, 1, 1]
    shape[axis] = 4
    table = np.broadcast_to(effect.reshape(shape), [4 if a == axis else 3 for a in range(3)])
    found = components(table)
    assert found[PARTS[axis]] == pytest.approx(effect.var(ddof=1))
    assert sum(abs(v) for v in found.values()) == pytest.approx(effect.var(ddof=1))


def test_error_of_a_design_is_that_of_its_mean():
    """Data sets with streams of their own, and these with start states of their own."""
    parts = dict(zip((*PARTS, "data×stream×start"), (9.0, 1.0, 4.0, 16.0, 0.0, 2.0, 6.0)))
    rng = np.random.default_rng(1)
    shapes = ((5, 1, 1), (5, 3, 1), (5, 3, 2))
    variances = (9.0, 1.0 + 16.0, 4.0 + 0.0 + 2.0 + 6.0)
    means = [
        sum(v**0.5 * rng.normal(size=s) for v, s in zip(variances, shapes)).mean()
        for _ in range(20000)
    ]
    assert np.std(means) == pytest.approx(error(parts, 5, 3, 2), rel=0.03)


def test_another_behaviour_is_asked_of_its_data_sets_only(tmp_path, monkeypatch, capsys):
    """They have the same start states; the actions are other ones."""
    monkeypatch.setenv("TORCHMPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("experiments.noise_budget.LOSSES", ("sft", "orpo"))
    monkeypatch.chdir(tmp_path)
    for std in ("0.1", "0.03"):
        words = ["--smoke", "--data_sets", "2", "--behaviour_std", std]
        monkeypatch.setattr("experiments.noise_budget.ARITHMETIC", {})
        monkeypatch.setattr("sys.argv", ["noise_budget", *words])
        main()
        assert "4/4 orpo__1" in capsys.readouterr().out
    loud, quiet = (
        json.loads((tmp_path / "runs" / name / "pieces" / "sft__0.json").read_text())["returns"]
        for name in ("noise_budget_smoke", "noise_budget_smoke_0.03")
    )
    assert loud != quiet


def test_the_study_runs_goes_on_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHMPO_CACHE", str(tmp_path / "cache"))
    arithmetic = {"eager": {"compile": False}}
    monkeypatch.setattr("experiments.noise_budget.ARITHMETIC", arithmetic)
    monkeypatch.setattr("experiments.noise_budget.LOSSES", ("sft", "orpo"))
    monkeypatch.setattr("sys.argv", ["noise_budget", "--smoke", "--out", str(tmp_path / "out")])
    main()
    assert "6/6 orpo__eager" in (out := capsys.readouterr().out)
    assert "from 2 data sets" in out
    (tmp_path / "out" / "pieces" / "orpo__1.json").unlink()
    monkeypatch.setattr("sys.argv", [*sys.argv, "--report"])
    with pytest.raises(SystemExit, match="two data sets at least"):
        main()
