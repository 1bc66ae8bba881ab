"""The command line: files in, files out, mistakes in one line, a resume that asks nobody twice."""

import csv
import importlib
import json
import linecache
import math
import sys
import types
from dataclasses import asdict

import pytest
import yaml

from torchmpo.runs.errors import UserError
from torchmpo.winrate import __main__ as winrate
from torchmpo.winrate.alpaca_files import (
    annotations_text,
    compare,
    difficulties,
    probability,
    read_annotations,
    read_gamed,
    read_outputs,
)
from torchmpo.winrate.judges import ScoreJudge
from torchmpo.winrate.rates import length_controlled_win_rate
from torchmpo.winrate.settings import WinRateConfig


def answers(generator, suffix, count=12):
    return [
        {
            "instruction": f"prompt {i}",
            "output": f"answer{suffix * (i % 4)}",
            "generator": generator,
        }
        for i in range(count)
    ]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Folder with base.json and mine.json; judge `asked:judge` counts the pairs it is asked of."""
    (tmp_path / "base.json").write_text(json.dumps(answers("base", "!")))
    (tmp_path / "mine.json").write_text(json.dumps(answers("mine", " more")[::-1]))
    module = types.ModuleType("asked")
    module.pairs = []

    def judge(prompts, first, second):
        module.pairs += prompts
        if len(module.pairs) > module.limit:
            raise KeyboardInterrupt
        return [0.25 if len(b) > len(a) + 6 else 0.75 for a, b in zip(first, second)]

    judge.symmetric = True
    module.judge, module.limit = judge, 100
    monkeypatch.setitem(sys.modules, "asked", module)
    monkeypatch.chdir(tmp_path)
    return module


COMMON = ["--outputs", "mine.json", "--reference", "base.json"]
ARGS = [*COMMON, "--judge", "asked:judge", "--out", "out"]


def test_a_file_of_one_json_line_has_one_row(tmp_path):
    (tmp_path / "one.jsonl").write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")
    assert read_outputs(tmp_path / "one.jsonl", "m")[0]["output"] == "b"
    (tmp_path / "odd.json").write_text('[{"instruction": "a", "output": "b", "generator": ["m"]}]')
    with pytest.raises(UserError, match=r"a generator is a text; got \['m'\]"):
        read_outputs(tmp_path / "odd.json")


def test_a_table_without_an_index_is_one_line(tmp_path):
    head = "index,instruction_difficulty,std_delta_len,preference"
    (tmp_path / "df_gamed.csv").write_text(f"{head}\n,0.5,0.1,1\n")
    with pytest.raises(UserError, match=r"is no df_gamed\.csv: cannot convert float NaN"):
        read_gamed(tmp_path / "df_gamed.csv")


def test_from_answers_to_a_leaderboard(files, capsys, tmp_path):
    assert winrate.main(ARGS) == 0
    rows = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [row["instruction"] for row in rows] == [f"prompt {i}" for i in range(12)]
    assert rows[3]["output_1"] == "answer!!!"
    assert rows[3]["output_2"] == "answer more more more"
    assert rows[3]["generator_1"] == "base"
    assert rows[3]["generator_2"] == "mine"
    # i % 4: 0 equal answers, 1 ' more' against '!', 2 and 3 more than 6 longer
    assert [row["preference"] for row in rows[:4]] == [1.5, 1.75, 1.25, 1.25]
    assert rows[3]["annotator"] == "asked:judge"
    assert len(files.pairs) == 9  # equal answers are a draw without a judge
    with open(tmp_path / "out" / "leaderboard.csv", newline="") as file:
        board = next(csv.DictReader(file))
    assert board[""] == "mine"
    assert board["reference"] == "base"
    assert float(board["win_rate"]) == pytest.approx(100 * (0.5 + 0.75 + 0.25 + 0.25) / 4)
    assert (board["n_wins"], board["n_wins_base"], board["n_draws"]) == ("3", "6", "3")
    want = length_controlled_win_rate(
        [row["preference"] - 1 for row in rows],
        [len(row["output_2"]) for row in rows],
        [len(row["output_1"]) for row in rows],
    )
    assert float(board["length_controlled_winrate"]) == pytest.approx(want.win_rate, abs=1e-9)
    assert rows[0]["glm_preference"] == pytest.approx(want.win_rate / 100)
    assert int(board["avg_length"]) == int(6 + 5 * 1.5)
    printed = capsys.readouterr().out
    assert printed.startswith("mine against base, 12 comparisons by asked:judge\n")
    assert "win rate            43.8 ±" in printed
    assert "3 won, 6 lost, 3 drawn" in printed


def test_annotations_alone_give_the_same_board(files, tmp_path):
    assert winrate.main(ARGS) == 0
    assert winrate.main(["--judge", "out/annotations.json", "--out", "again"]) == 0
    boards = []
    for folder in ("out", "again"):
        with open(tmp_path / folder / "leaderboard.csv", newline="") as file:
            boards.append(next(csv.DictReader(file)) | {"judge": ""})
    assert boards[0] == boards[1]
    # and as a judge of the answers
    args = [*COMMON, "--judge", "out/annotations.json", "--out", "third"]
    assert winrate.main(args) == 0
    third = json.loads((tmp_path / "third" / "annotations.json").read_text())
    first = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [row["preference"] for row in third] == [row["preference"] for row in first]


def test_a_judge_that_only_the_files_of_a_run_name_is_not_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "bad_judges.py").write_text("open('ran', 'w').close()\n")
    (tmp_path / "run").mkdir()
    config = asdict(WinRateConfig(outputs="none.json", judge="bad_judges:judge"))
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    assert winrate.main(["--out", "run", "--resume"]) == 2
    error = capsys.readouterr().err
    assert "run/config.yaml names code to run, bad_judges:judge" in error
    assert not (tmp_path / "ran").exists()


def test_an_edited_judge_is_noticed(files, tmp_path, monkeypatch, capsys):
    """A function by its text and helpers, annotations by their content; nothing new is judged."""
    monkeypatch.syspath_prepend(str(tmp_path))
    judge = tmp_path / "edited_judges.py"
    text = "def better(a, b):\n    return float(a < b)\n\n"
    text += "def judge(prompts, first, second):\n    return list(map(better, first, second))\n"
    judge.write_text(text)
    args = [*COMMON, "--judge", "edited_judges:judge", "--out", "own"]
    assert winrate.main(args) == 0
    before = (tmp_path / "own" / "annotations.json").read_bytes()
    assert winrate.main([*args, "--resume"]) == 0
    judge.write_text(text.replace("a < b", "b < a"))
    monkeypatch.delitem(sys.modules, "edited_judges")
    linecache.clearcache()
    importlib.invalidate_caches()
    assert winrate.main([*args, "--resume"]) == 2
    assert (
        "edited_judges:judge has changed since the run in own was made" in capsys.readouterr().err
    )
    assert (tmp_path / "own" / "annotations.json").read_bytes() == before

    args = [*COMMON, "--judge", "own/annotations.json", "--out", "again"]
    assert winrate.main(args) == 0
    rows = json.loads(before)
    rows[0]["preference"] = 3 - rows[0]["preference"]
    (tmp_path / "own" / "annotations.json").write_text(json.dumps(rows))
    assert winrate.main([*args, "--resume"]) == 2
    assert "own/annotations.json has changed since the run in again" in capsys.readouterr().err


def test_another_reward_model_in_the_same_folder_is_noticed(files, tmp_path, monkeypatch, capsys):
    """The weights decide, not the name; a run of before they were recorded goes on."""
    folder = tmp_path / "reward"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    longer = ScoreJudge(lambda prompts, texts: [len(text) / 9 for text in texts])
    monkeypatch.setattr("torchmpo.winrate.run.resolve_judge", lambda name, **_: longer)
    args = [*COMMON, "--judge", "reward", "--out", "out"]
    assert winrate.main(args) == 0
    record = tmp_path / "out" / "made_of.json"
    assert list(json.loads(record.read_text())["losses"]) == ["reward"]
    record.write_text(json.dumps(json.loads(record.read_text()) | {"losses": {}}))
    assert winrate.main(["--out", "out", "--resume"]) == 0
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    capsys.readouterr()
    assert winrate.main(["--out", "out", "--resume"]) == 2
    assert "reward has changed since the run in out was made" in capsys.readouterr().err


def test_scikit_learn_is_missed_before_the_judge_is_asked(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # for import statements,
    monkeypatch.setattr("torchmpo.winrate.run.find_spec", lambda name: None)  # and for questions
    assert winrate.main(ARGS) == 2
    line = "error: scikit-learn is not installed: pip install 'torchmpo[winrate]'\n"
    assert capsys.readouterr().err == line
    assert files.pairs == []
    assert not (tmp_path / "out").exists()
    for name, suffix in (("base", "!"), ("mine", " more")):  # four have no such rate
        (tmp_path / f"{name}.json").write_text(json.dumps(answers(name, suffix, 4)))
    assert winrate.main(ARGS) == 0


def test_resume_asks_only_what_is_left(files, tmp_path, capsys):
    files.limit = 4
    assert winrate.main([*ARGS, "--batch_size", "2"]) == 130
    assert "--out out --resume" in capsys.readouterr().err
    partial = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert sum(row["preference"] != 1.5 for row in partial) == 4
    files.pairs.clear()
    files.limit = 100
    assert winrate.main([*ARGS, "--resume"]) == 0
    assert len(files.pairs) == 5
    assert winrate.main([*ARGS[:-1], "whole"]) == 0
    whole, resumed = (
        (tmp_path / name / "annotations.json").read_text() for name in ("whole", "out")
    )
    assert whole == resumed


def test_difficulties_and_gamed_baselines(files, tmp_path):
    lines = ["model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    for model, sign in (("a", 1), ("b", -1)):
        lines += [f"{model},{i},0.{i % 9},{sign * (i % 5 - 2)},{i / 10},False" for i in range(12)]
    (tmp_path / "df_gamed.csv").write_text("\n".join(lines) + "\n")
    extra = ["--glm", "length_controlled_v1", "--gamed", "df_gamed.csv"]
    assert winrate.main([*ARGS, *extra]) == 0
    rows = json.loads((tmp_path / "out" / "annotations.json").read_text())
    by_index, gamed = read_gamed("df_gamed.csv")
    assert by_index[7] == 0.7
    assert len(gamed.deltas) == 24
    want = length_controlled_win_rate(
        [row["preference"] - 1 for row in rows],
        [len(row["output_2"]) for row in rows],
        [len(row["output_1"]) for row in rows],
        difficulty=[i / 10 for i in range(12)],
        gamed=gamed,
    )
    assert [row["glm_preference"] for row in rows] == pytest.approx(want.predictions)


def test_difficulties_belong_to_prompts():
    """A subset must say which prompts it is; the package would take the first ones'."""
    known = {0: 0.0, 1: 0.1, 2: 0.2}
    assert difficulties([{}, {}, {}], known) == [0.0, 0.1, 0.2]
    assert difficulties([{"index": 2}, {"index": 0}], known) == [0.2, 0.0]
    with pytest.raises(UserError, match='3 prompts, and 2 comparisons without an "index"'):
        difficulties([{}, {}], known)
    with pytest.raises(UserError, match="no difficulty is known of prompt 5"):
        difficulties([{"index": 5}], known)


def test_repeated_instructions_are_matched_one_to_one():
    def rows(name, *texts):
        return [{"instruction": "same", "output": t, "generator": name} for t in texts]

    got = compare(rows("a", "1", "2"), rows("b", "3", "4"))
    assert [(row["output_1"], row["output_2"]) for row in got] == [("1", "3"), ("2", "4")]
    with pytest.raises(UserError, match="1 of 2 instructions have no output by 'b'"):
        compare(rows("a", "1", "2"), rows("b", "3"))


def test_answers_may_bring_columns_of_other_comparisons():
    more = {"output_1": "old", "generator_2": "old", "preference": 2.0, "annotator": "old"}
    one = [{"instruction": "i", "output": "x", "generator": "a", "dataset": "d", **more}]
    two = [{"instruction": "i", "output": "y", "generator": "b", "dataset": "d"}]
    want = {"instruction": "i", "output_1": "x", "output_2": "y"}
    assert compare(one, two) == [want | {"generator_1": "a", "generator_2": "b", "dataset": "d"}]


def test_empty_answers_lose_if_asked_to():
    def rows(name, *texts):
        return [
            {"instruction": str(i), "output": t, "generator": name} for i, t in enumerate(texts)
        ]

    one, two = rows("a", "x", "", " ", "x"), rows("b", "", "x", "", "y")
    got = [row.get("preference") for row in compare(one, two, empty="lose")]
    assert got == [1.0, 2.0, 1.5, None]
    with pytest.raises(UserError, match=r"2 outputs by 'a' are empty .*--empty lose"):
        compare(one, two)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_and_line_separators_in_text(encoding, tmp_path):
    """U+2028 may stand in JSON as it is, and is a line feed to Python's splitlines."""
    rows = [row | {"output": "one\u2028two\u0085three"} for row in answers("m", "?", 3)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for text in (lines, lines.replace("\n", "\r\n"), json.dumps(rows, ensure_ascii=False)):
        (tmp_path / "rows").write_bytes(text.encode(encoding))
        assert read_outputs(tmp_path / "rows") == rows
    pair = {"instruction": "i", "output_1": "a\u2028b", "output_2": "b", "preference": 2}
    text = 2 * (json.dumps(pair, ensure_ascii=False) + "\n")
    (tmp_path / "rows").write_text(text, encoding=encoding)
    assert read_annotations(tmp_path / "rows") == [pair, pair]
    table = "index,instruction_difficulty,std_delta_len,preference\n0,0.5,1,0\n"
    (tmp_path / "df_gamed.csv").write_text(table, encoding=encoding)
    assert read_gamed(tmp_path / "df_gamed.csv")[0] == {0: 0.5}


def test_json_lines_and_null_preferences(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in answers("m", "?", 3)))
    assert len(read_outputs(path)) == 3
    assert read_outputs(path, "other")[0]["generator"] == "other"
    assert math.isnan(probability(None))
    assert json.loads(annotations_text([{"preference": math.nan}])) == [{"preference": None}]


def with_rows(change):
    def make(folder):
        rows = answers("mine", " more")
        change(rows)
        (folder / "mine.json").write_text(json.dumps(rows))

    return make


def write(text):
    return lambda folder: (folder / "mine.json").write_text(text)


JUDGE = ["--judge", "asked:judge"]
MISTAKES = {
    "no judge": (None, COMMON, "--judge: an annotations file, package.module:function, or"),
    "no reference": (None, ["--outputs", "mine.json", *JUDGE], "give both --outputs and"),
    "no outputs": (None, JUDGE, "give --outputs and --reference: only annotations do without"),
    "no file": (
        None,
        ["--outputs", "x.json", "--reference", "base.json", *JUDGE],
        "read x.json: N",
    ),
    "no JSON": (write("{"), [*COMMON, *JUDGE], "mine.json is neither JSON nor JSON lines"),
    "no list": (write("{}"), [*COMMON, *JUDGE], "mine.json must be a list of at least one row"),
    "no output": (
        write('[{"instruction": "a", "response": "b"}]'),
        [*COMMON, *JUDGE],
        "mine.json: row 0 has no text 'output'; it has instruction, response",
    ),
    "missing prompts": (
        with_rows(lambda rows: rows.pop(3)),
        [*COMMON, *JUDGE],
        "1 of 12 instructions have no output by 'mine': 'prompt 3'",
    ),
    "other instructions": (
        with_rows(lambda rows: rows.append(rows[0] | {"instruction": "another"})),
        [*COMMON, *JUDGE],
        "1 of 13 instructions have no output by 'base': 'another'",
    ),
    "two generators": (
        with_rows(lambda rows: rows[2].update(generator="other")),
        [*COMMON, *JUDGE],
        "mine.json has outputs of 2 generators ('mine', 'other'): one file per model",
    ),
    "no generator": (
        with_rows(lambda rows: [row.pop("generator") for row in rows]),
        [*COMMON, *JUDGE],
        "mine.json has no generator: say whose outputs they are with --name",
    ),
    "itself": (
        None,
        ["--outputs", "base.json", "--reference", "base.json", *JUDGE],
        "both files are by generator 'base'; if they are two models, say --name",
    ),
    "empty output": (
        with_rows(lambda rows: rows[2].update(output=" ")),
        [*COMMON, *JUDGE],
        "1 outputs by 'mine' are empty ('prompt 2'); --empty lose counts them as losses",
    ),
    "no such glm": (
        None,
        [*COMMON, *JUDGE, "--glm", "length_controlled_v2"],
        "unknown glm 'length_controlled_v2': did you mean 'length_controlled_v1'?",
    ),
    "no difficulties": (
        None,
        [*COMMON, *JUDGE, "--glm", "length_controlled_v1"],
        "--gamed FILE goes with --glm",
    ),
    "no df_gamed": (
        None,
        [*COMMON, *JUDGE, "--glm", "length_controlled_v1", "--gamed", "base.json"],
        "base.json is no df_gamed.csv: it has no index",
    ),
    "empty what": (None, [*COMMON, *JUDGE, "--empty", "win"], "empty must be refuse or lose"),
    "batch": (None, [*COMMON, *JUDGE, "--batch_size", "0"], "batch_size must be at least 1"),
    "judge of others": (
        lambda folder: (folder / "old.json").write_text(
            json.dumps([{"instruction": "a", "output_1": "b", "output_2": "c", "preference": 1}])
        ),
        [*COMMON, "--judge", "old.json"],
        "old.json has no preference between these two outputs for 'prompt 1' and 8 others",
    ),
    "preference 3": (
        lambda folder: (folder / "old.json").write_text(
            json.dumps([{"instruction": "a", "output_1": "b", "output_2": "c", "preference": 3}])
        ),
        ["--judge", "old.json"],
        "old.json: row 0: preference 3 is neither in [1, 2], 0 (a draw) nor null",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_before_any_compute(case, files, capsys, tmp_path):
    make, args, message = MISTAKES[case]
    if make:
        make(tmp_path)
    assert winrate.main([*args, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not files.pairs
    assert not (tmp_path / "out").exists()


def test_few_comparisons_have_no_length_controlled_rate(files, tmp_path, capsys):
    for name, suffix in (("base", "!"), ("mine", " more")):
        (tmp_path / f"{name}.json").write_text(json.dumps(answers(name, suffix, 4)))
    assert winrate.main(ARGS) == 0
    assert "needs at least 5 comparisons" in capsys.readouterr().out
    with open(tmp_path / "out" / "leaderboard.csv", newline="") as file:
        assert next(csv.DictReader(file))["length_controlled_winrate"] == ""


def test_a_run_of_before_there_were_endpoints_goes_on(files, tmp_path):
    assert winrate.main(ARGS) == 0
    path = tmp_path / "out" / "config.yaml"
    newer = ("endpoint", "template", "key_variable", "timeout")
    lines = [line for line in path.read_text().splitlines(True) if line.split(":")[0] not in newer]
    path.write_text("".join(lines))
    path.with_name("made_of.json").unlink()  # which such a run has not either
    assert winrate.main(["--out", "out", "--resume", "--trust"]) == 0
