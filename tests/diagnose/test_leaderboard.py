"""The leaderboard: rows by hand, boards with gaps, and the files."""

import csv
import json
import math

import numpy as np
import pytest
from scipy import stats

from torchmpo.diagnose import leaderboard as module
from torchmpo.diagnose.leaderboard import leaderboard, plain, write_leaderboard
from torchmpo.statistics import bootstrap_interval, interquartile_mean, mean_score

ANCHORS = {"original": [900.0, 1100.0], "target": [3000.0, 3000.0, 3000.0]}  # 1000 and 3000


def cell(loss, data, returns, **other):
    """A finished cell; a seed's return stands for two episodes around it."""
    episodes = [None if r is None else [r - 10.0, r + 10.0] for r in returns]
    grid = [{"beta": 0.1}, {"beta": 1.23456789}, {"beta": 10.0}]
    return {
        "loss": loss, "task": "tla", "data": data, "grid": grid, "best": 1, "returns": episodes,
        "tuning": [[0.0]] * 3, "curves": {}, "margins": [], "seconds": 1.0,
    } | other  # fmt: skip


def rows_of(board):
    return {(row["loss"], row["data"]): row for row in board["rows"]}


# The leaderboard


def test_a_row_by_hand():
    returns = [1000.0, 2000.0, 3000.0, 4000.0, 5000.0]  # scores 0, ½, 1, 1½, 2
    board = leaderboard([cell("dpo", "base", returns)], ANCHORS)
    assert board["task"] == "tla"
    assert board["anchors"] == {
        "original": {"mean": 1000.0, "se": 100.0},
        "target": {"mean": 3000.0, "se": 0.0},
    }
    (row,) = board["rows"]
    counts = {key: row[key] for key in ("trials", "seeds", "episodes", "diverged")}
    assert counts == {"trials": 3, "seeds": 5, "episodes": 2, "diverged": 0}
    assert row["best"] == {"beta": 1.23456789}
    se = math.sqrt(2.5e6 / 5)
    t = 2.7764451 * se  # Student's t, 4 degrees of freedom
    assert row["return"] == pytest.approx(
        {"mean": 3000.0, "se": se, "low": 3000 - t, "high": 3000 + t}
    )
    assert row["score"]["mean"] == pytest.approx(1.0)
    assert row["score"]["se"] == pytest.approx(se / 2000)
    scores = [0.0, 0.5, 1.0, 1.5, 2.0]
    ends = bootstrap_interval(scores, statistic=mean_score)
    assert (row["score"]["low"], row["score"]["high"]) == pytest.approx(ends)
    ends = bootstrap_interval(scores, statistic=interquartile_mean)
    assert row["iqm"] == pytest.approx({"value": 1.0, "low": ends[0], "high": ends[1]})
    assert row["rank"] == {"best": 1, "worst": 1, "rank": 1}
    assert board["improvement"] == {"base": {"dpo": {}}}
    assert board["overall"] == [
        {
            "loss": "dpo",
            "iqm": row["iqm"],
            "score": pytest.approx(row["score"]),
            "rank": row["rank"],
        }
    ]


def three_losses():
    return [
        cell("simpo", "base", [3000.0, 3010.0, 3020.0, 3005.0, 3015.0]),
        cell("dpo", "base", [2000.0, 2010.0, 2020.0, 2005.0, 2015.0]),
        cell("ipo", "base", [2006.0, 2003.0, 2021.0, 2007.0, 2018.0]),  # dpo + 6, −7, 1, 2, 3
        cell("simpo", "noisy:0.3", [-1000.0, -1200.0, -800.0, -1100.0, -900.0]),
        cell("dpo", "noisy:0.3", [1500.0, 1600.0, 1700.0, 1550.0, 1650.0]),
    ]


def test_ranks_are_within_the_data_kind_and_rows_sorted_by_them():
    board = leaderboard(three_losses(), ANCHORS)
    found = [(row["data"], row["loss"], *row["rank"].values()) for row in board["rows"]]
    assert found == [
        ("base", "simpo", 1, 1, 1),
        ("base", "ipo", 2, 3, 2),
        ("base", "dpo", 2, 3, 2),
        ("noisy:0.3", "dpo", 1, 1, 1),
        ("noisy:0.3", "simpo", 2, 2, 2),
    ]


def test_only_losses_with_all_data_kinds_are_pooled():
    overall = leaderboard(three_losses(), ANCHORS)["overall"]
    assert [row["loss"] for row in overall] == ["dpo", "simpo"]
    # dpo: 505 and 300 thousandths above the original on average, over 2000.
    dpo = overall[0]["score"]
    assert dpo["mean"] == pytest.approx((1010 / 2000 + 600 / 2000) / 2)
    by_seed = np.add([0, 10, 20, 5, 15], [0, 100, 200, 50, 150]) / 2 / 2000
    assert dpo["se"] == pytest.approx(np.std(by_seed, ddof=1) / math.sqrt(5))
    strata = [(np.array(x) - 1000) / 2000 for x in ([2000, 2010, 2020, 2005, 2015],
                                                    [1500, 1600, 1700, 1550, 1650])]  # fmt: skip
    iqm = overall[0]["iqm"]
    assert iqm["value"] == pytest.approx(interquartile_mean(*strata))
    ends = bootstrap_interval(*strata, statistic=interquartile_mean, paired=True)
    assert (iqm["low"], iqm["high"]) == pytest.approx(ends)


def test_kinds_of_unequal_numbers_of_seeds_are_pooled_each_by_itself():
    returns = [2000.0, 2010.0, 2020.0, 2005.0, 2015.0]
    cells = [cell("dpo", "base", returns), cell("dpo", "mixed", returns[:3])]
    (row,) = leaderboard(cells, ANCHORS)["overall"]
    first, second = (np.std(returns[:n], ddof=1) / math.sqrt(n) / 2000 for n in (5, 3))
    assert row["score"]["se"] == pytest.approx(math.hypot(first, second) / 2)
    assert row["score"]["low"] < row["score"]["mean"] < row["score"]["high"]


def test_improvement_is_there_both_ways_and_adds_up():
    improvement = leaderboard(three_losses(), ANCHORS)["improvement"]
    assert improvement["noisy:0.3"]["dpo"] == {"simpo": {"p": 1.0, "low": 1.0, "high": 1.0}}
    ab, ba = improvement["base"]["ipo"]["dpo"], improvement["base"]["dpo"]["ipo"]
    # 2006 beats 2 of dpo's five, 2003 one, 2021 five, 2007 two, 2018 four.
    assert ab["p"] == pytest.approx(14 / 25)
    assert ab["low"] < 0.5 < ab["high"]
    assert ba == pytest.approx({"p": 1 - ab["p"], "low": 1 - ab["high"], "high": 1 - ab["low"]})
    assert set(improvement["base"]["simpo"]) == {"dpo", "ipo"}


def test_order_of_cells_and_seeds_does_not_matter():
    cells = three_losses()
    cells.append(cells[1] | {"loss": "twin"})  # tied with dpo in every respect
    turned = [c | {"returns": c["returns"][::-1]} for c in reversed(cells)]
    board, other = leaderboard(cells, ANCHORS), leaderboard(iter(turned), ANCHORS)
    for matrix in other["scores"]["losses"].values():
        matrix.reverse()
    assert module._rounded(board) == module._rounded(other)


def test_a_loss_does_not_change_the_numbers_of_another():
    cells = three_losses()
    row = rows_of(leaderboard(cells, ANCHORS))["dpo", "base"]
    alone = rows_of(leaderboard(cells[1:2], ANCHORS))["dpo", "base"]
    assert row | {"rank": None} == alone | {"rank": None}


# Gaps


def test_a_diverged_seed_counts_as_the_worst_run_of_the_data_kind():
    cells = [
        cell("a", "base", [3000.0, None, 2000.0]),
        cell("b", "base", [2500.0, 1200.0, 2600.0]),
        cell("c", "mixed", [-9000.0, -9000.0, -9000.0]),  # of another data kind
    ]
    row = rows_of(leaderboard(cells, ANCHORS))["a", "base"]
    assert (row["diverged"], row["seeds"], row["episodes"]) == (1, 3, 2)
    assert row["return"]["mean"] == pytest.approx((3000 + 1200 + 2000) / 3)
    assert row["score"]["mean"] == pytest.approx((1 + 0.1 + 0.5) / 3)


@pytest.mark.parametrize("seed", [None, [], [1.0, None], [1.0, math.nan], [math.inf, 1.0]])
def test_whatever_is_not_a_list_of_numbers_is_a_diverged_seed(seed):
    broken = cell("a", "base", [3000.0, 2000.0])
    broken["returns"].append(seed)
    row = leaderboard([broken], ANCHORS)["rows"][0]
    assert (row["diverged"], row["seeds"]) == (1, 3)
    assert row["return"]["mean"] == pytest.approx(7000 / 3)


LOST = {
    "every seed": {"returns": [None, None, None]},
    "every setting": {"returns": [], "best": -1},
}


@pytest.mark.parametrize("lost", LOST.values(), ids=LOST.keys())
def test_a_loss_that_always_diverged_is_last_without_numbers_of_its_own(lost):
    cells = [
        cell("a", "base", [3000.0, 3100.0, 3200.0]),
        cell("b", "base", []) | lost,
        cell("b", "mixed", [2000.0, 2100.0, 2200.0]),
        cell("a", "mixed", [2000.0, 2100.0, 2200.0]),
    ]
    board = leaderboard(cells, ANCHORS)
    row = rows_of(board)["b", "base"]
    assert (row["seeds"], row["diverged"], row["episodes"]) == (3, 3, 0)
    assert row["best"] == (None if lost["returns"] == [] else {"beta": 1.23456789})
    assert set(row["return"].values()) == {None}
    assert row["score"] == {"mean": 1.0, "se": None, "low": None, "high": None}
    assert row["iqm"] == {"value": 1.0, "low": None, "high": None}
    assert row["rank"] == {"best": 2, "worst": 2, "rank": 2}
    # It ties with the worst of three and loses to the others.
    assert board["improvement"]["base"]["b"]["a"]["p"] == pytest.approx(0.5 / 3)
    overall = {row["loss"]: row["score"]["mean"] for row in board["overall"]}
    assert overall["b"] == pytest.approx((1.0 + 0.55) / 2)


def test_a_data_kind_that_no_loss_finished_says_nothing_and_spoils_nothing():
    cells = [
        cell("a", "base", [3000.0, 3100.0]),
        cell("a", "hard", [None, None]),
        cell("b", "base", [2000.0, 2100.0]),
        cell("b", "hard", [], best=-1),
    ]
    board = leaderboard(cells, ANCHORS)
    for loss in "ab":
        row = rows_of(board)[loss, "hard"]
        assert row["diverged"] == row["seeds"] == 2
        assert {*row["return"].values(), *row["score"].values(), *row["iqm"].values()} == {None}
        assert row["rank"] == {"best": 1, "worst": 2, "rank": 1}
    assert board["improvement"]["hard"]["a"]["b"] == {"p": None, "low": None, "high": None}
    assert [row["loss"] for row in board["overall"]] == ["a", "b"]
    assert board["overall"][0]["score"]["mean"] == pytest.approx(1.025)


def test_one_seed_has_a_value_and_no_interval():
    board = leaderboard([cell("a", "base", [3000.0]), cell("b", "base", [1000.0])], ANCHORS)
    assert [row["loss"] for row in board["rows"]] == ["a", "b"]  # the better first, though tied
    a, b = board["rows"]
    assert a["return"] == {"mean": 3000.0, "se": None, "low": None, "high": None}
    assert a["score"] == {"mean": 1.0, "se": None, "low": None, "high": None}
    assert a["iqm"] == {"value": 1.0, "low": None, "high": None}
    assert a["rank"] == b["rank"] == {"best": 1, "worst": 2, "rank": 1}
    assert board["improvement"]["base"]["a"]["b"] == {"p": 1.0, "low": None, "high": None}
    assert board["overall"][0]["score"] == a["score"]


def test_a_loss_that_diverged_on_its_one_seed_is_last():
    cells = [cell("b", "base", [3000.0]), cell("a", "base", [None]), cell("c", "base", [2000.0])]
    board = leaderboard(cells, ANCHORS)
    found = [(row["loss"], row["rank"]["best"], row["rank"]["worst"]) for row in board["rows"]]
    assert found == [("b", 1, 2), ("c", 1, 2), ("a", 3, 3)]


def test_equal_seeds_and_unequal_numbers_of_seeds():
    cells = [cell("a", "base", [2000.0] * 5), cell("b", "base", [2000.0] * 10)]
    a, b = leaderboard(cells, ANCHORS)["rows"]
    assert a["score"] == b["score"] == {"mean": 0.5, "se": 0.0, "low": 0.5, "high": 0.5}
    assert a["rank"] == b["rank"] == {"best": 1, "worst": 2, "rank": 1}


def test_no_cells_make_an_empty_board(tmp_path):
    board = leaderboard([], ANCHORS)
    assert (board["task"], board["rows"], board["overall"]) == (None, [], [])
    write_leaderboard(board, tmp_path)


def test_what_cannot_be_compared_is_refused():
    twice = [cell("a", "base", [1.0, 2.0])] * 2
    with pytest.raises(ValueError, match="two cells"):
        leaderboard(twice, ANCHORS)
    other = cell("b", "base", [1.0, 2.0], task="hopper")
    with pytest.raises(ValueError, match="hopper, tla"):
        leaderboard([twice[0], other], ANCHORS)


@pytest.mark.parametrize(
    ("original", "target"),
    [([3000.0], [3000.0]), ([3000.0, 3200.0], [1000.0]), ([math.nan], [3000.0])],
)
def test_without_a_better_target_there_are_returns_and_ranks_but_no_scores(
    tmp_path, original, target
):
    cells = [*three_losses(), cell("cpo", "base", [None, None])]
    board = leaderboard(cells, {"original": original, "target": target})
    scored = leaderboard(cells, ANCHORS)
    assert (board["scaled"], scored["scaled"]) == (False, True)
    found, expected = rows_of(board), rows_of(scored)
    assert found.keys() == expected.keys()
    for key, row in found.items():
        assert row["return"] == expected[key]["return"]
        assert set(row["score"].values()) == set(row["iqm"].values()) == {None}
    for kind, improvement in board["improvement"].items():
        for a, others in improvement.items():
            for b, entry in others.items():
                assert entry == pytest.approx(scored["improvement"][kind][a][b])
    assert board["overall"] == []
    assert board["scores"] == {"kinds": [], "losses": {}}
    assert {k: row["rank"] for k, row in found.items()} == {
        k: row["rank"] for k, row in expected.items()
    }
    assert board["differences"] == scored["differences"]
    assert found["cpo", "base"]["rank"] == {"best": 4, "worst": 4, "rank": 4}
    order = [found[r["loss"], r["data"]]["rank"]["rank"] for r in board["rows"]
             if r["data"] == "base"]  # fmt: skip
    assert order == sorted(order)
    write_leaderboard(board, tmp_path)
    line = next(csv.DictReader((tmp_path / "leaderboard.csv").read_text().splitlines()))
    assert line["score_mean"] == line["iqm_high"] == ""
    assert float(line["return_mean"])


def differ(cells, kind="base"):
    """(higher, lower) → the paired difference on a kind of data."""
    found = leaderboard(cells, ANCHORS)["differences"][kind]
    return {(a, b): entry for a, lower in found.items() for b, entry in lower.items()}


def test_losses_are_compared_seed_by_seed():
    """Seeds differ by thousands and the intervals overlap; of each seed, one loss is the better."""
    level = np.array([1000.0, 2000.0, 3000.0, 4000.0, 5000.0])
    above = level + np.array([100.0, 110.0, 90.0, 105.0, 95.0])
    cells = [cell("a", "base", level.tolist()), cell("b", "base", above.tolist())]
    rows = rows_of(leaderboard(cells, ANCHORS))
    assert rows["b", "base"]["return"]["low"] < rows["a", "base"]["return"]["mean"]
    assert [rows[loss, "base"]["rank"]["rank"] for loss in "ab"] == [2, 1]
    shuffled = [cells[0], cells[1] | {"returns": cells[1]["returns"][::-1]}]
    rows = rows_of(leaderboard(shuffled, ANCHORS))
    assert [rows[loss, "base"]["rank"]["rank"] for loss in "ab"] == [1, 1]


def test_differences_are_scipys_corrected_within_the_kind():
    draw = np.random.default_rng(0)
    runs = {loss: draw.normal(1000 + 60 * i, 50, size=7) for i, loss in enumerate("abcd")}
    cells = [cell(loss, "base", x.tolist()) for loss, x in runs.items()]
    found = differ([*cells, *(c | {"data": "mixed"} for c in cells[:2])])
    assert len(found) == 6
    plain_p = []
    for (a, b), entry in found.items():
        test = stats.ttest_rel(runs[a], runs[b])
        low, high = test.confidence_interval()
        assert entry["mean"] == pytest.approx((runs[a] - runs[b]).mean())
        assert entry["mean"] > 0
        assert (entry["low"], entry["high"]) == pytest.approx((low, high))
        assert entry["p"] == pytest.approx(test.pvalue)
        assert entry["wilcoxon"] == pytest.approx(stats.wilcoxon(runs[a], runs[b])[1])
        plain_p.append(entry["p"])
    smallest = min(found.values(), key=lambda entry: entry["p"])
    assert smallest["corrected"] == pytest.approx(6 * min(plain_p))
    assert len(differ(cells[:2])) == 1
    alone = differ(cells[:2])["b", "a"]
    assert alone["corrected"] == alone["p"]


def test_a_loss_that_never_finished_is_not_compared_and_costs_nothing():
    cells = three_losses()[:3]
    assert differ([*cells, cell("cpo", "base", [None, None])]) == differ(cells)


def test_ranks_over_all_data_are_by_the_means_of_seeds():
    """On either kind alone a is not shown to be better: what it loses there it gains here."""
    up = [[3000.0 + 50 * k for k in range(5)], [2900.0 + 10 * k for k in range(5)]]
    swing = [400.0, -300.0, 200.0, -100.0, 0.0]
    cells = [
        cell("a", "base", [x + s + 102 for x, s in zip(up[0], swing)]),
        cell("b", "base", up[0]),
        cell("a", "mixed", [x - s + 98 + k for k, (x, s) in enumerate(zip(up[1], swing))]),
        cell("b", "mixed", up[1]),
    ]
    board = leaderboard(cells, ANCHORS)
    assert {row["rank"]["rank"] for row in board["rows"]} == {1}
    assert [(row["loss"], row["rank"]["rank"]) for row in board["overall"]] == [("a", 1), ("b", 2)]
    entry = board["overall_differences"]["a"]["b"]
    assert entry["mean"] == pytest.approx(202 / 2 / 2000)
    assert entry["corrected"] < 1e-3


def test_trials_are_those_of_tuning():
    """A loss with nothing to tune has one setting and had no trial."""
    cells = [
        cell("dpo", "base", [1.0, 2.0]),
        cell("sft", "base", [1.0, 2.0], grid=[{}], tuning=[], best=0),
    ]
    rows = rows_of(leaderboard(cells, ANCHORS))
    assert {loss: row["trials"] for (loss, _), row in rows.items()} == {"dpo": 3, "sft": 0}
    assert rows["sft", "base"]["best"] == {}
    assert rows["sft", "base"]["score"] == rows["dpo", "base"]["score"]


def test_plain_values_have_no_nan():
    assert plain({"a": (1.0, math.inf), "b": [math.nan, {"c": "x"}], "d": None}) == {
        "a": [1.0, None],
        "b": [None, {"c": "x"}],
        "d": None,
    }


# Files


def test_scores_are_the_matrix_behind_the_leaderboard(tmp_path):
    """In rliable's shape, runs × kinds; its mean and interquartile mean are the leaderboard's."""
    cells = [*three_losses(), cell("cpo", "base", [1000.0, None, 2000.0, 1500.0, 3000.0])]
    cells += [cell("cpo", "noisy:0.3", [None] * 5), cell("cpo", "hard", [None] * 5)]
    board = leaderboard(cells, ANCHORS)
    write_leaderboard(board, tmp_path)
    read = json.loads((tmp_path / "scores.json").read_text())
    assert read["kinds"] == ["base", "noisy:0.3"]  # nobody finished the hard one
    assert set(read["losses"]) == {"cpo", "dpo", "simpo"}  # ipo was not run on noisy:0.3
    rows, overall = rows_of(board), {row["loss"]: row for row in board["overall"]}
    for loss, matrix in read["losses"].items():
        scores = np.array(matrix)
        assert scores.shape == (5, 2)
        for kind, column in zip(read["kinds"], scores.T):
            assert column.mean() == pytest.approx(rows[loss, kind]["score"]["mean"], abs=1e-5)
        # As in rliable: aggregate_mean and aggregate_iqm.
        assert scores.mean(0).mean() == pytest.approx(overall[loss]["score"]["mean"], abs=1e-5)
        iqm = stats.trim_mean(scores.ravel(), 0.25)
        assert iqm == pytest.approx(overall[loss]["iqm"]["value"], abs=1e-5)
    assert read["losses"]["dpo"][1] == [0.505, 0.3]  # of one seed: 2010 and 1600


def test_scores_of_unequal_numbers_of_seeds_are_those_of_the_seeds_all_have():
    cells = [cell("a", "base", [2000.0, 3000.0, 1000.0]), cell("b", "base", [1000.0, 2000.0])]
    assert leaderboard(cells, ANCHORS)["scores"]["losses"] == {
        "a": [[0.5], [1.0]],
        "b": [[0.0], [0.5]],
    }


def test_files_hold_the_board_rounded(tmp_path):
    cells = [*three_losses(), cell("cpo", "base", [None, 1 / 3, 2 / 3])]
    board = leaderboard(cells, ANCHORS)
    write_leaderboard(board, tmp_path)
    text = (tmp_path / "leaderboard.json").read_text()
    read = json.loads(text)
    assert list(read) == sorted(read)
    assert [r["loss"] for r in read["rows"]] == [r["loss"] for r in board["rows"]]
    for row, exact in zip(read["rows"], board["rows"]):
        assert row["best"] == {"beta": 1.23456789}  # not rounded
        for part in ("return", "score", "iqm"):
            assert row[part] == {key: round(value, 6) for key, value in exact[part].items()}
    with open(tmp_path / "leaderboard.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(read["rows"])
    for line, row in zip(table, read["rows"]):
        assert (line["task"], line["data"], line["loss"]) == ("tla", row["data"], row["loss"])
        assert float(line["score_low"]) == row["score"]["low"]
        assert float(line["iqm_value"]) == row["iqm"]["value"]
        assert float(line["return_mean"]) == row["return"]["mean"]
        assert int(line["rank"]) == row["rank"]["rank"]
        assert int(line["diverged"]) == row["diverged"]
        assert json.loads(line["best"]) == row["best"]
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert names == ["leaderboard.csv", "leaderboard.json", "scores.json"]


def test_missing_numbers_are_null_in_json_and_empty_in_csv(tmp_path):
    write_leaderboard(leaderboard([cell("a", "base", [None])], ANCHORS), tmp_path)
    read = json.loads((tmp_path / "leaderboard.json").read_text(), parse_constant=pytest.fail)
    assert read["rows"][0]["score"]["mean"] is None
    with open(tmp_path / "leaderboard.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["score_mean"] == line["iqm_low"] == line["return_se"] == ""


def test_files_are_the_same_however_often_and_in_whatever_order(tmp_path):
    for name, cells in (("one", three_losses()), ("two", three_losses()[::-1])):
        (tmp_path / name).mkdir()
        write_leaderboard(leaderboard(cells, ANCHORS), tmp_path / name)
    for file in ("leaderboard.json", "leaderboard.csv", "scores.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_failure_to_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_leaderboard(leaderboard(three_losses(), ANCHORS), tmp_path)
    before = (tmp_path / "leaderboard.json").read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("torchmpo.runs.files.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_leaderboard(leaderboard(three_losses()[:1], ANCHORS), tmp_path)
    assert (tmp_path / "leaderboard.json").read_bytes() == before
