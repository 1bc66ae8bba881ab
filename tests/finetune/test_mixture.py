import json

import pytest

from torchmpo.finetune.mixture import Source, hold_out, load_mixture, repeat, sources_of
from torchmpo.finetune.pairs import Message, Pair
from torchmpo.runs.errors import UserError

PAIRS = [Pair(f"p{i // 2}", f"a{i}", "b") for i in range(40)]  # two pairs per prompt
ROW = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, prompt in (("a", "q"), ("b", "prompt")):
        rows = [{prompt: f"{name}{i}", "chosen": "x", "rejected": "y"} for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_one_source_or_several(folder):
    # A row of a data set may have a column "source".
    for given in ("a.jsonl", [ROW], [ROW | {"source": "web"}], {"train": [ROW]}):
        assert sources_of(given) == [Source(given)]
    two = [Source("a.jsonl", weight=2), Source([ROW])]
    assert sources_of(two) == two
    assert sources_of(two[1]) == two[1:]
    (one,) = sources_of({"source": "a.jsonl", "columns": {"prompt": "q"}, "weight": 3})
    assert one == Source("a.jsonl", columns={"prompt": "q"}, weight=3)
    given = [{"source": "a.jsonl", "columns": {"prompt": "q"}, "split": "train[:2]"}, "b.jsonl"]
    pairs = load_mixture(given, "train[1:]")
    assert [pair.prompt for pair in pairs] == ["a0", "a1", "b1", "b2", "b3"]
    columns = {"prompt": "q"}
    pairs = load_mixture(["a.jsonl", {"source": "b.jsonl", "columns": {}}], columns=columns)
    assert [pair.prompt for pair in pairs][3:5] == ["a3", "b0"]
    assert {pair.weight for pair in pairs} == {1.0}


def test_mistakes(folder):
    with pytest.raises(UserError, match="a source has no 'wieght': did you mean 'weight'"):
        sources_of([{"source": "a.jsonl", "wieght": 2}])
    for misspelt in ({"sorce": "a.jsonl"}, {"sorce": "a.jsonl", "weight": 2}):
        for given in (misspelt, [misspelt, "b.jsonl"]):
            with pytest.raises(UserError, match=r"a source is .* 'sorce' is no key of it"):
                sources_of(given)
    for weight in (0, -1, float("inf"), float("nan"), "2", True):
        with pytest.raises(UserError, match=r"weight of a\.jsonl must be a positive number"):
            Source("a.jsonl", weight=weight)
    with pytest.raises(UserError, match="row 0: not an object"):
        load_mixture([1, 2])


@pytest.mark.parametrize(
    ("weight", "times"),
    [(1, 10 * [1]), (2, 10 * [2]), (0.3, 7 * [0] + 3 * [1]), (1.5, 5 * [1] + 5 * [2])],
)
def test_a_weight_is_how_often_a_pair_counts(weight, times):
    pairs = [Pair(f"p{i}", "a", "b", weight=weight) for i in range(10)]
    others = [Pair(f"q{i}", "a", "b", weight=0.5) for i in range(10)]
    found = repeat(pairs + others)
    assert sorted(found.count(pair) for pair in pairs) == times
    assert sum(found.count(pair) for pair in others) == 5
    assert repeat(others[::-1] + pairs[::-1]) == found[::-1]  # whatever their order


@pytest.mark.parametrize(("share", "prompts"), [(0.25, 5), (0.001, 1), (0.999, 19)])
def test_a_share_is_held_out_by_prompts(share, prompts):
    left, out = hold_out(PAIRS, share)
    assert len(out) == 2 * prompts
    assert not {pair.prompt for pair in left} & {pair.prompt for pair in out}
    assert sorted(left + out, key=PAIRS.index) == PAIRS
    assert left == sorted(left, key=PAIRS.index)
    assert out == sorted(out, key=PAIRS.index)
    # Of messages as of text, and the same whatever the order.
    backward = hold_out(PAIRS[::-1], share)
    assert (backward[0][::-1], backward[1][::-1]) == (left, out)


def test_a_share_stays_almost_the_same_with_more_data():
    _, out = hold_out(PAIRS, 0.25)
    _, more = hold_out([*PAIRS, Pair("new", "a", "b")], 0.25)
    assert len([pair for pair in out if pair not in more]) <= 2


def test_a_share_of_messages():
    pairs = [
        Pair((Message("user", f"p{i // 2}"),), (Message("assistant", str(i)),), ())
        for i in range(8)
    ]
    left, out = hold_out(pairs, 0.5)
    assert len(left) == len(out) == 4
    assert not [pair for pair in left if pair.prompt in [other.prompt for other in out]]


def test_a_share_of_one_prompt_cannot_be():
    with pytest.raises(UserError, match=r"a share of 0\.5 needs two prompts; there are 1"):
        hold_out(PAIRS[:2], 0.5)
