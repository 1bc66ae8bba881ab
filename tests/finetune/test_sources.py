import gzip
import json
import sys

import pytest

from torchmpo.finetune.pairs import Message, Pair, load_pairs
from torchmpo.runs.errors import UserError

# U+2028 is a line feed to Python's splitlines, and may stand in JSON as it is.
ROWS = [{"prompt": f"{i}\u2028é", "chosen": "a", "rejected": "b"} for i in range(3)]
EXPECTED = [Pair(f"{i}\u2028é", "a", "b") for i in range(3)]


PLAIN = {"prompt": "p", "chosen": "a", "rejected": "b"}


def jsonl(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"


def write_parquet(path, rows):
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(rows), path)


def test_json_files(tmp_path):
    (tmp_path / "a.jsonl").write_text(jsonl(ROWS), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (tmp_path / "c.json").write_text(jsonl(ROWS), encoding="utf-8")
    for file in tmp_path.iterdir():
        assert load_pairs(file) == load_pairs(str(file)) == EXPECTED
    assert load_pairs(tmp_path) == 3 * EXPECTED


MESSAGES = {
    "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}],
    "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "b"}],
    "chosen_rating": 5.0,
    "rejected_rating": 4.0,
}
OF_MESSAGES = Pair(
    (Message("user", "Hi"),), (Message("assistant", "a"),), (Message("assistant", "b"),), 5.0, 4.0
)


def test_parquet_of_messages(tmp_path):
    row, pair = MESSAGES, OF_MESSAGES
    write_parquet(tmp_path / "a.parquet", [row, row])
    assert load_pairs(tmp_path / "a.parquet") == [pair, pair]


def test_a_split_is_the_whole_name_before_a_word_of_it(tmp_path):
    """A folder as the hub has them: ultrafeedback_binarized."""
    data = tmp_path / "data"
    data.mkdir()
    names = ["train_prefs-00000-of-00002", "train_prefs-00001-of-00002", "train_sft", "test_prefs"]
    rows = [{**PLAIN, "prompt": name} for name in names]
    for name, row in zip(names, rows):
        (data / f"{name}.jsonl").write_text(json.dumps(row))

    def prompts(split):
        return [pair.prompt for pair in load_pairs(tmp_path, split=split)]

    assert prompts("train_prefs") == names[:2]
    assert prompts("train_prefs[1:]+test_prefs") == [names[1], names[3]]
    assert prompts("test") == prompts("test_prefs") == names[3:]  # there is one only
    with pytest.raises(UserError, match=r"several splits that 'train' may mean.*_prefs, train_sft"):
        prompts("train")
    with pytest.raises(UserError, match=r"no file for split 'train_gen'"):
        prompts("train_gen")
    (data / "train-00000-of-00001-0a1b2c3d4e5f6a7b.jsonl").write_text(json.dumps(rows[0]))
    (data / "validation0.jsonl").write_text(json.dumps(rows[1]))
    (data / "more.train2.jsonl").write_text(json.dumps(rows[3]))
    assert prompts("train") == [names[3], names[0]]
    assert prompts("validation") == names[1:2]


def test_a_folder_whose_files_name_their_splits(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "train.json").write_text("not read")
    (tmp_path / "dataset_infos.json").write_text("not read")
    for name, row in zip(("train-00001-of-00002", "train-00000-of-00002", "test"), ROWS):
        (tmp_path / "data" / f"{name}.jsonl").write_text(jsonl([row]), encoding="utf-8")
    assert load_pairs(tmp_path) == [EXPECTED[1], EXPECTED[0]]
    assert load_pairs(tmp_path, split="test") == [EXPECTED[2]]
    with pytest.raises(UserError, match=r"no file for split 'validation'.*test, train"):
        load_pairs(tmp_path, split="validation")


def test_a_dataset_and_a_dict_of_them():
    datasets = pytest.importorskip("datasets")
    for row, pair in ((ROWS[0], EXPECTED[0]), (MESSAGES, OF_MESSAGES)):
        data = datasets.Dataset.from_list([row])
        assert load_pairs(data) == [pair]
        both = datasets.DatasetDict(train=data, test=data.select([]))
        assert load_pairs(both) == [pair]
        assert load_pairs(both, split="test") == []
        with pytest.raises(UserError, match=r"no split 'tset': did you mean 'test'\?"):
            load_pairs(both, split="tset")


def test_a_hub_id(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if name == "nobody/nothing":
            raise ConnectionError("no\nroute")  # what offline machines see is an OSError, too
        return [ROWS[0]]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_pairs("argilla/dpo-mix-7k", split="test") == EXPECTED[:1]
    assert asked == [("argilla/dpo-mix-7k", "test")]
    with pytest.raises(UserError, match=r"nobody/nothing .* cannot be loaded from the hub: no rou"):
        load_pairs("nobody/nothing")


@pytest.mark.parametrize(
    "path", ["none.jsonl", "a/none.parquet", "./none", "/none/at/all", "a/b/c"]
)
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no file or folder"):
        load_pairs(path)


DAMAGED = {
    "a.jsonl": ('{"prompt": "p"\n', "line 1: not valid JSON"),
    "b.jsonl": (jsonl(ROWS[:1]) + "{\n", "line 3: not valid JSON"),
    "c.json": ("[1, 2", "not valid JSON"),
    "d.json": ("[1, 2]", "row 0: not an object"),
    "e.parquet": ("no parquet", "not a readable parquet file"),
    "f.txt": ("a,b", "none of .jsonl, .json, .parquet, .csv"),
    "g.jsonl": (b"\xff\xfe", "UTF-8"),
    "h.jsonl.gz": ("no gzip", "UTF-8"),
    "i.jsonl.gz": (gzip.compress(b"{}" * 99)[:-9], "UTF-8"),
    "j.jsonl": ("[" * 100_000, "line 1: not valid JSON"),
    "k.csv": ("prompt,chosen,rejected\np,a,b,c\n", "row 0 has more cells"),
    "l.csv": ('prompt,chosen,rejected\np,"a', "not valid CSV"),
    "m.csv": ("prompt,chosen\np,a\n", "row 0: there is no column 'rejected'"),
    "n.csv": ("chosen,rejected\n\"[{'role': 'user'}]\",b\n", "chosen is text and not JSON"),
    "o.csv": (
        "prompt,chosen,rejected,chosen_rating,rejected_rating\np,a,b,good,1\n",
        "chosen_rating is not a number",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(name, tmp_path):
    content, message = DAMAGED[name]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as raised:
        load_pairs(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_without_data(tmp_path):
    (tmp_path / "readme.txt").write_text("none")
    with pytest.raises(UserError, match=r"holds no \.jsonl, \.json, \.parquet"):
        load_pairs(tmp_path)


@pytest.mark.parametrize(("package", "source"), [("datasets", "a/b"), ("pyarrow", "a.parquet")])
def test_a_missing_package_names_the_extra(package, source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"pip install 'torchmpo\[llm\]'"):
        load_pairs(source)


# Marks, compression, tables


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_and_gzip(name, packed, tmp_path):
    rows = [{"prompt": "p\u2028é", "chosen": "a", "rejected": "b"}] * 2
    text = {
        "a.jsonl": jsonl(rows[:1]) + "\ufeff" + jsonl(rows[1:]),  # two files, one after the other
        "a.json": json.dumps(rows),
        "a.csv": "prompt,chosen,rejected\r\n" + 2 * "p\u2028é,a,b\r\n",
    }[name]
    content = text.encode("utf-8-sig")
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert load_pairs(path) == load_pairs(tmp_path) == 2 * [Pair("p\u2028é", "a", "b")]


def test_csv(tmp_path):
    long = "x" * 200_000  # the csv module's own limit is 131,072
    answer = json.dumps([{"role": "assistant", "content": "a"}])
    cells = [
        ["prompt", "chosen", "rejected", "chosen_rating", "rejected_rating"],
        ["1\n2", '{"a": 1} is JSON', long, "5", " 4.5"],
        ["Hi", answer, answer.replace('"a"', '"b"'), "", "nan"],
    ]
    quoted = "\n".join(",".join('"' + c.replace('"', '""') + '"' for c in row) for row in cells)
    (tmp_path / "a.csv").write_text(quoted)
    a, b = (Message("assistant", text) for text in "ab")
    assert load_pairs(tmp_path / "a.csv") == [
        Pair("1\n2", '{"a": 1} is JSON', long, 5.0, 4.5),
        Pair((Message("user", "Hi"),), (a,), (b,)),
    ]


def test_csv_in_a_folder_counts_only_where_there_is_nothing_else(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\np,a,b\n")
    assert load_pairs(tmp_path) == [Pair("p", "a", "b")]
    (tmp_path / "b.jsonl").write_text(jsonl(ROWS), encoding="utf-8")
    assert load_pairs(tmp_path) == EXPECTED


def test_a_data_frame(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame([*ROWS, ROWS[0] | {"chosen_rating": 2, "rejected_rating": 1}])
    assert load_pairs(frame) == [*EXPECTED, Pair("0\u2028é", "a", "b", 2.0, 1.0)]
    with pytest.raises(UserError, match="row 0: chosen is neither text"):
        load_pairs(frame.assign(chosen=None))
    # Of parquet, lists are arrays, and every message has the keys of all others.
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    row = MESSAGES | {"tools": [{"name": "f"}, {"name": "g", "parameters": {"type": "object"}}]}
    row["chosen"] = [*row["chosen"][:1], {"role": "assistant", "tool_calls": [call]}]
    write_parquet(tmp_path / "a.parquet", [row])
    for source in (pandas.read_parquet(tmp_path / "a.parquet"), tmp_path / "a.parquet"):
        (pair,) = load_pairs(source)
        assert pair.prompt == OF_MESSAGES.prompt
        assert pair.chosen == (Message("assistant", None, {"tool_calls": [call]}),)
        assert pair.variables == {"tools": row["tools"]}


def test_nulls_of_json_are_values(tmp_path):
    """A column has one type, so that its nulls may be fillers; an object of JSON has its own."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": None}}}
    row = MESSAGES | {
        "chosen": [MESSAGES["chosen"][0], {"role": "assistant", "tool_calls": [call]}]
    }
    (tmp_path / "a.jsonl").write_text(jsonl([row]))
    (pair,) = load_pairs(tmp_path / "a.jsonl")
    assert pair.chosen[0].more == {"tool_calls": [call]}


# Folders that `datasets` wrote


def test_save_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    assert load_pairs(tmp_path / "one") == EXPECTED
    both = datasets.DatasetDict(train=data, test=data.select([2]))
    both.save_to_disk(str(tmp_path / "both"))
    assert load_pairs(tmp_path / "both") == EXPECTED
    assert load_pairs(tmp_path / "both", split="test") == EXPECTED[2:]
    with pytest.raises(UserError, match=r"no split 'validation'.*test, train"):
        load_pairs(tmp_path / "both", split="validation")
    data.save_to_disk(str(tmp_path / "apart" / "train"))
    assert load_pairs(tmp_path / "apart") == EXPECTED
    (tmp_path / "one" / "data-00000-of-00001.arrow").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be loaded from disk"):
        load_pairs(tmp_path / "one")


@pytest.mark.parametrize("about", ["dataset_infos.json", "dataset_info.json"])
def test_what_is_about_data_is_no_data(about, tmp_path):
    write_parquet(tmp_path / "0000.parquet", ROWS)
    (tmp_path / about).write_text('{"default": {"features": {}}}')
    assert load_pairs(tmp_path) == EXPECTED
    (tmp_path / "0000.parquet").unlink()
    with pytest.raises(UserError, match="holds no"):
        load_pairs(tmp_path)


def test_a_configuration_of_a_hub_data_set(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, split: [ROWS[0] | {"x": names}])
    assert load_pairs("a/b", config="small", columns={"prompt": "prompt"}) == EXPECTED[:1]
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, split: asked.append(names) or [])
    load_pairs("a/b", config="small")
    assert asked == [("a/b", "small")]

    def unnamed(name, split):
        raise ValueError("Config name is missing.\nPlease pick one among: ['big', 'small']")

    monkeypatch.setattr(datasets, "load_dataset", unnamed)
    with pytest.raises(UserError, match=r"\['big', 'small'\]; say which: {source: a/b, config: …}"):
        load_pairs("a/b")
    (tmp_path / "a.jsonl").write_text(jsonl(ROWS))
    with pytest.raises(UserError, match=r"config 'small' belongs to a hub data set"):
        load_pairs(tmp_path / "a.jsonl", config="small")


# Cuts

CUTS = {
    "train[:50%]": [0, 1, 2, 3, 4],
    "train[7:]": [7, 8, 9],
    "train[-2:]": [8, 9],
    "train[8:]+train[:1]": [8, 9, 0],
    "train[90%:]+test[1:]": [9, 1],
    "train+test": [*range(10), 0, 1],
}


@pytest.mark.parametrize("split", CUTS)
def test_a_split_is_cut_as_datasets_cuts_it(split, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(10)]
    expected = [str(i) for i in CUTS[split]]
    both = datasets.DatasetDict(
        train=datasets.Dataset.from_list(rows), test=datasets.Dataset.from_list(rows[:2])
    )
    assert [pair.prompt for pair in load_pairs(both, split)] == expected
    # A folder with two files of a split, one of them cut through.
    for name, part in (("train-0", rows[:4]), ("train-1", rows[4:]), ("test", rows[:2])):
        (tmp_path / f"{name}.jsonl").write_text(jsonl(part))
    assert [pair.prompt for pair in load_pairs(tmp_path, split)] == expected
    if "test" not in split:  # a file is a split by itself, whatever it is called
        (tmp_path / "all.jsonl").write_text(jsonl(rows))
        assert [pair.prompt for pair in load_pairs(tmp_path / "all.jsonl", split)] == expected
        assert [pair.prompt for pair in load_pairs(rows, split)] == expected


def test_a_cut_that_is_none(tmp_path):
    pytest.importorskip("datasets")
    for split in ("train[:5", "train[a:b]", "[:5]", "train(5)"):
        with pytest.raises(UserError, match="is not understood"):
            load_pairs([PLAIN] * 3, split)
    with pytest.raises(UserError, match="row 2: there is no column 'chosen'"):
        load_pairs([PLAIN, PLAIN, {"prompt": "p"}], "train[1:]")
