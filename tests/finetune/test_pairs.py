import json
import sys

import pytest

from torchmpo.finetune.pairs import TURNS, Counts, Message, Pair, clean, load_pairs
from torchmpo.runs.errors import UserError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


U, A = (lambda text: Message("user", text)), (lambda text: Message("assistant", text))
HUMAN = "\n\nHuman: Hi\n\nAssistant:"

# Columns, and the pair they hold.
FORMATS = {
    "strings": (
        {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"},
        Pair("1 + 1 =", " 2", " 3"),
    ),
    "messages": (
        {"prompt": [user("Hi")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        Pair((U("Hi"),), (A("a"),), (A("b"),)),
    ),
    "messages, and the prompt again in the answers": (
        {
            "prompt": [user("Hi")],
            "chosen": [user("Hi"), assistant("a")],
            "rejected": [user("Hi"), assistant("b")],
        },
        Pair((U("Hi"),), (A("a"),), (A("b"),)),
    ),
    "ultrafeedback_binarized": (
        {
            "prompt": "Hi",
            "chosen": [user("Hi"), assistant("a")],
            "rejected": [user("Hi"), assistant("b")],
            "score_chosen": 8,
            "score_rejected": 2.5,
        },
        Pair((U("Hi"),), (A("a"),), (A("b"),), 8.0, 2.5),
    ),
    "a prompt as text, answers as messages": (
        {"prompt": "Hi", "chosen": [assistant("a")], "rejected": [assistant("b")]},
        Pair((U("Hi"),), (A("a"),), (A("b"),)),
    ),
    "a prompt as messages, answers as text": (
        {"prompt": [user("Hi")], "chosen": "a", "rejected": "b"},
        Pair((U("Hi"),), (A("a"),), (A("b"),)),
    ),
    "dpo-mix-7k": (
        {
            "dataset": "capybara",
            "chosen": [user("Hi"), assistant("Yes?"), user("2?"), assistant("two")],
            "rejected": [user("Hi"), assistant("Yes?"), user("2?"), assistant("2")],
            "chosen_rating": 5.0,
            "rejected_rating": 4.0,
        },
        Pair((U("Hi"), A("Yes?"), U("2?")), (A("two"),), (A("2"),), 5.0, 4.0),
    ),
    "conversations that part early": (
        {
            "chosen": [user("Hi"), assistant("a"), user("x"), assistant("y")],
            "rejected": [user("Hi"), assistant("b")],
        },
        Pair((U("Hi"),), (A("a"), U("x"), A("y")), (A("b"),)),
    ),
    "identical conversations": (
        {"chosen": [user("Hi"), assistant("a")], "rejected": [user("Hi"), assistant("a")]},
        Pair((U("Hi"),), (A("a"),), (A("a"),)),
    ),
    "text with turns: answers that begin alike": (
        {"chosen": f"{HUMAN} The cat", "rejected": f"{HUMAN} The dog"},
        Pair(HUMAN, " The cat", " The dog"),
    ),
    "text with turns: an empty answer": (
        {"chosen": f"{HUMAN} The cat", "rejected": HUMAN},
        Pair(HUMAN, " The cat", ""),
    ),
    "text with turns: the last one they share": (
        {
            "chosen": f"{HUMAN} Yes?{HUMAN} a{HUMAN} c",
            "rejected": f"{HUMAN} Yes?{HUMAN} b{HUMAN} c",
        },
        Pair(f"{HUMAN} Yes?{HUMAN}", f" a{HUMAN} c", f" b{HUMAN} c"),
    ),
    "a probability, and scores that are not there": (
        {
            "prompt": "p",
            "chosen": "a",
            "rejected": "b",
            "chosen_rating": 4.0,
            "rejected_rating": float("nan"),
            "preference_prob": 0.75,
        },
        Pair("p", "a", "b", preference_prob=0.75),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name):
    row, pair = FORMATS[name]
    assert load_pairs([row]) == [pair]


@pytest.mark.parametrize("turn", TURNS)
def test_turns(turn):
    rows = [{"chosen": f"Hi{turn} same, yes", "rejected": f"Hi{turn} same, no"}]
    assert load_pairs(rows)[0].prompt == f"Hi{turn}"


PLAIN = {"prompt": "p", "chosen": "a", "rejected": "b"}
# A row that fits no format, and what the message says of it.
MISFITS = {
    "no chosen": ({"prompt": "p", "response": "a"}, "no column 'chosen'"),
    "numbers": (PLAIN | {"chosen": 3}, "chosen is neither text nor a list of messages"),
    "a list of text": (PLAIN | {"rejected": ["b"]}, "rejected is neither text nor a list"),
    "text and messages": (PLAIN | {"chosen": [assistant("a")]}, "one is text and the other"),
    "other keys": (
        PLAIN | {"prompt": [{"from": "human", "value": "Hi"}]},
        "prompt has a message without a role",
    ),
    "content in parts": (
        {"chosen": [{"role": "user", "content": [{"type": "text"}]}], "rejected": []},
        "chosen has a message without a role and text",
    ),
    "no turn": ({"chosen": "The cat", "rejected": "The dog"}, "share no turn such as"),
    "half a turn": ({"chosen": "Hi\n\nAssistant: a", "rejected": "Hi\n\nAssist"}, "share no turn"),
    "no common message": (
        {"chosen": [assistant("a")], "rejected": [assistant("b")]},
        "share no first message",
    ),
    "a user's answer": (
        {"chosen": [user("Hi"), user("a")], "rejected": [user("Hi"), assistant("b")]},
        "chosen begins with a message of role 'user'",
    ),
    "no answer": (
        {"prompt": [user("Hi")], "chosen": [], "rejected": [assistant("b")]},
        "chosen is empty",
    ),
    "a score as text": (PLAIN | {"chosen_rating": "5", "rejected_rating": 4}, "not a number"),
    "a probability of 2": (PLAIN | {"preference_prob": 2}, r"must be in \[0, 1\]; got 2"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_row_that_fits_no_format_is_named_with_its_columns(name):
    row, message = MISFITS[name]
    with pytest.raises(UserError, match=message) as raised:
        load_pairs([PLAIN, row])
    text = str(raised.value)
    assert "row 1" in text
    assert text.endswith(f"its columns: {', '.join(row)}")
    assert "\n" not in text


def test_what_is_no_row_is_named():
    with pytest.raises(UserError, match="row 1: not an object"):
        load_pairs([PLAIN, "text"])


# Sources

ROWS = [{"prompt": f"{i}\u2028é", "chosen": "a", "rejected": "b"} for i in range(3)]
EXPECTED = [Pair(f"{i}\u2028é", "a", "b") for i in range(3)]


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


def test_parquet_of_messages(tmp_path):
    row, pair = FORMATS["dpo-mix-7k"]
    write_parquet(tmp_path / "a.parquet", [row, row])
    assert load_pairs(tmp_path / "a.parquet") == [pair, pair]


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
    for name in ("strings", "dpo-mix-7k", "ultrafeedback_binarized"):
        row, pair = FORMATS[name]
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
    "f.csv": ("a,b", "none of .jsonl, .json, .parquet"),
    "g.jsonl": (b"\xff\xfe", "UTF-8"),
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


# Cleaning


def test_clean_counts_what_it_drops_once():
    messages = FORMATS["messages"][1]
    pairs = [
        Pair("p", "a", "b"),
        Pair("p", "b", "a"),  # another preference, not a duplicate
        Pair("p", "a", "b", chosen_reward=1.0, rejected_reward=0.0),  # other scores, same texts
        Pair("q", "a", "b"),
        Pair("p", "a", "a"),
        Pair("p", "", ""),
        Pair("p", " \n", "b"),
        Pair((U("p"),), (A("a"),), (A(" "),)),
        messages,
        messages,
    ]
    kept, counts = clean(pairs)
    assert kept == [pairs[0], pairs[1], pairs[3], messages]
    assert counts == Counts(rows=10, identical=2, empty=2, duplicates=2)
    assert counts.kept == len(kept)
    assert "\n" not in str(counts)


def test_clean_of_nothing():
    assert clean([]) == ([], Counts(0, 0, 0, 0))
