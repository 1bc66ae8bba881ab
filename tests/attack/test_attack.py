"""Bad inputs of every command and bad calls; `benchmarks/attack.py` has all of them.

A case is a process that is forked from one that has imported everything.
"""

import json

import pytest

from attack.calls import RIGHT, every, fault
from attack.cases import CASES, Case
from attack.judged import attacked
from attack.warm import calls, finish, start
from attack.world import build

# What is accepted runs to its end, and takes seconds.
QUICK = [case for case in CASES if case.right == "refused" and case.seconds <= 60][::5]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a finished run of every command."""
    folder = tmp_path_factory.mktemp("world")
    printed = folder.parent / "printed"
    ended = finish(start(build, str(folder), folder=folder, printed=printed), printed, 600)
    assert ended.code == 0, ended.err
    return folder


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_a_bad_input_is_one_line_or_right(case: Case, world, tmp_path):
    verdict = attacked(case, world, tmp_path / "work")
    assert verdict.fault == "", verdict.text


def test_a_bad_call_is_one_line_or_right(world, tmp_path):
    todo = [*every(), *RIGHT]
    answers, printed = tmp_path / "answers.jsonl", tmp_path / "printed"
    process = start(calls, todo, str(answers), folder=world, printed=printed)
    ended = finish(process, printed, 600)
    told = {line[0]: line[1:] for line in map(json.loads, answers.read_text().splitlines())}
    assert told.keys() == {*todo}, ended.err
    wrong = {call: text for call in todo if (text := fault(call, told[call]))}
    assert wrong == {}
    # What it needs must not be missed: the tables have these.
    assert len(todo) > 1000


def test_the_judge_of_cases_finds_faults(world, tmp_path):
    """A damage that is none is not refused, and a command that works does not say why not."""
    good = "generate --model base --prompts prompts.json --max_new_tokens 1 --device cpu --out new"
    for case, found in (
        (Case("good", good), "accepted"),
        (Case("bad", "generate", right="accepted"), "refused"),
        (Case("late", good, right="accepted", seconds=0.01), "it hangs"),
        (Case("other", good, right="accepted", says="nothing of it"), "it does not say"),
    ):
        assert found in attacked(case, world, tmp_path / "work").fault
