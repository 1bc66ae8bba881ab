"""A judge behind an endpoint, and what endpoints do: against a server on this machine."""

import json
import math
import sys
import types

import pytest
from fake_endpoint import completion, endpoint  # noqa: F401

from torchmpo.runs.errors import UserError
from torchmpo.winrate import __main__ as winrate
from torchmpo.winrate.endpoint import Endpoint, Reply
from torchmpo.winrate.endpoint_judge import EndpointJudge, preference, read_template

TEMPLATE = """<|im_start|>system
Be fair.
<|im_end|>
<|im_start|>user
{"instruction": \"\"\"{instruction}\"\"\",}
m: {output_1}
M: {output_2}
<|im_end|>"""
PROMPTS, FIRST, SECOND = ["one", "two"], ["a", "b"], ["c", "d"]


def made(endpoint, **settings):  # noqa: F811
    slept = []
    return Endpoint(endpoint.url, "judge", sleep=slept.append, **settings), slept


def prefers(texts, logprobs=True):
    """Says M where the second answer is among the texts, with probability 3/4."""

    def answer(body):
        content = body["messages"][-1]["content"]
        name = "M" if content.rstrip().splitlines()[-1].removeprefix("M: ") in texts else "m"
        other = "m" if name == "M" else "M"
        given = {name: math.log(0.6), other: math.log(0.2), "The": math.log(0.1)}
        return completion(name, finish="length", logprobs=given if logprobs else None)

    return answer


def test_the_preference_is_the_probability_of_the_second(endpoint, tmp_path):  # noqa: F811
    (tmp_path / "template.txt").write_text(TEMPLATE)
    endpoint.answer = prefers({"c", "b"})
    judge = EndpointJudge(made(endpoint)[0], template=str(tmp_path / "template.txt"))
    assert judge(PROMPTS, FIRST, SECOND) == pytest.approx([0.75, 0.25])
    assert len(endpoint.bodies) == 4  # each pair in both orders
    shown = {body["messages"][1]["content"] for body in endpoint.bodies}
    assert '{"instruction": """one""",}\nm: a\nM: c' in shown
    assert '{"instruction": """one""",}\nm: c\nM: a' in shown
    body = endpoint.bodies[0]
    assert body["messages"][0] == {"role": "system", "content": "Be fair."}
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 5)
    assert body["model"] == "judge"


def test_a_judge_that_likes_one_place_is_undecided(endpoint):  # noqa: F811
    endpoint.answer = lambda body: completion("M", logprobs={"M": math.log(0.9), "m": -30.0})
    there_and_back = EndpointJudge(made(endpoint)[0])(PROMPTS, FIRST, SECOND)
    assert there_and_back == pytest.approx([0.5, 0.5])
    once = EndpointJudge(made(endpoint)[0], both_orders=False)(PROMPTS, FIRST, SECOND)
    assert once == pytest.approx([1.0, 1.0])
    assert len(endpoint.bodies) == 6


def test_without_log_probabilities_the_text_counts(endpoint, tmp_path):  # noqa: F811
    (tmp_path / "template.txt").write_text(TEMPLATE)
    endpoint.answer = prefers({"c", "b"}, logprobs=False)
    judge = EndpointJudge(made(endpoint)[0], template=str(tmp_path / "template.txt"))
    assert judge(PROMPTS, FIRST, SECOND) == [1.0, 0.0]
    endpoint.answer = lambda body: completion("Both are fine")
    assert all(math.isnan(p) for p in judge(PROMPTS, FIRST, SECOND))
    endpoint.answer = lambda body: completion("Both", logprobs={"Both": -0.1, "I": -3.0})
    assert all(math.isnan(p) for p in judge(PROMPTS, FIRST, SECOND))
    endpoint.answer = lambda body: completion(" M", logprobs={" M": -0.1, " m": -0.1 - math.log(3)})
    assert EndpointJudge(made(endpoint)[0], both_orders=False)(["p"], ["a"], ["b"]) == (
        pytest.approx([0.75])
    )


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        ({" M": math.log(0.9), " m": math.log(0.02), "m": math.log(0.01)}, 0.9 / 0.93),
        ({"M": math.log(0.6), "m": math.log(0.1), "m\n": math.log(0.2)}, 0.6 / 0.9),
    ],
)
def test_names_with_and_without_a_space_are_one_name(logprobs, expected):
    assert preference(Reply("M", "stop", logprobs)) == pytest.approx(expected)


def test_tokens_that_are_written_alike_are_added_up(endpoint):  # noqa: F811
    answer = completion("M", logprobs={"M": math.log(0.5), "m": math.log(0.2)})
    answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] += [
        {"token": "M", "logprob": math.log(0.1)},
        {"token": "a", "logprob": -9999.0},
    ]
    endpoint.answer = lambda body: answer
    found = made(endpoint)[0].chat([]).first_logprobs
    assert found == pytest.approx({"M": math.log(0.6), "m": math.log(0.2), "a": -9999.0})


def test_an_answer_that_spells_a_field_stays_as_it_is(endpoint):  # noqa: F811
    endpoint.answer = lambda body: completion("m")
    EndpointJudge(made(endpoint)[0], both_orders=False)(["{output_1}"], ["{output_2}"], ["x"])
    content = endpoint.bodies[0]["messages"][1]["content"]
    assert "# Instruction\n\n{output_1}\n" in content
    assert "# Answer of model m\n\n{output_2}\n" in content
    assert "# Answer of model M\n\nx\n" in content


def test_alpaca_evals_template_is_read_from_its_package(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="pip install --no-deps alpaca_eval, or name a file"):
        read_template("alpaca_eval")
    folder = tmp_path / "alpaca_eval" / "evaluators_configs" / "alpaca_eval_clf_gpt4_turbo"
    folder.mkdir(parents=True)
    (folder / "alpaca_eval_clf.txt").write_text(TEMPLATE)
    (tmp_path / "alpaca_eval" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert [m["role"] for m in read_template("alpaca_eval")] == ["system", "user"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{instruction} {output_1} {output_2}", "has no turns"),
        (TEMPLATE.replace("{output_2}", ""), r"has no \{output_2\}"),
    ],
)
def test_templates_that_are_none(text, message, tmp_path):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_template(str(tmp_path / "t.txt"))
    with pytest.raises(UserError, match="cannot read the template"):
        read_template("plian")


def test_what_may_pass_is_tried_again(endpoint):  # noqa: F811
    replies = [(429, {"error": {"message": "slow down"}}), (503, "busy"), completion("fine")]
    endpoint.answer = lambda body: replies.pop(0)
    client, slept = made(endpoint)
    assert client.chat([{"role": "user", "content": "x"}]).text == "fine"
    assert slept == [1.0, 2.0]
    endpoint.more_headers = {"Retry-After": "7"}
    replies += [(429, "{}"), completion("fine")]
    assert client.chat([{"role": "user", "content": "x"}]).text == "fine"
    assert slept[2:] == [7.0]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            (401, {"error": {"message": "bad key"}}),
            r"refuses: 401 Unauthorized: bad key; the key is",
        ),
        ((400, "what?"), "refuses: 400 Bad Request: what?"),
        ((500, "oops"), r"does not answer \(2 attempts\): 500 Internal Server Error: oops"),
        ("no json", "answers no JSON"),
        ({"choices": []}, "answers something else than a chat completion"),
        ([], "answers something else than a chat completion"),
    ],
)
def test_what_will_not_pass_is_one_line(reply, message, endpoint):  # noqa: F811
    endpoint.answer = lambda body: reply
    client, _ = made(endpoint, retries=1, key_variable="NO_SUCH_VARIABLE")
    with pytest.raises(UserError, match=message) as caught:
        client.chat([])
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_or_never_replies(endpoint):  # noqa: F811
    client = Endpoint("http://127.0.0.1:9", "judge", retries=1, sleep=lambda _: None)
    with pytest.raises(UserError, match=r"127.0.0.1:9 does not answer \(2 attempts\): .*refused"):
        client.chat([])
    release = __import__("threading").Event()
    endpoint.answer = lambda body: (release.wait(20), completion("late"))[1]
    client, _ = made(endpoint, retries=0, timeout=0.05)
    with pytest.raises(UserError, match=r"no reply within 0.05 s"):
        client.chat([])
    release.set()
    for wrong in ("ftp://x", "localhost:8000"):
        with pytest.raises(UserError, match="must begin with http"):
            Endpoint(wrong, "judge")


def test_one_failure_of_many_loses_none_that_were_begun(endpoint):  # noqa: F811
    def answer(body):
        if body["messages"][0]["content"] == "3":
            return 400, "no"
        return completion(body["messages"][0]["content"])

    endpoint.answer = answer
    for at_once in (1, 4, 50):
        client, _ = made(endpoint, at_once=at_once)
        requests = [([{"role": "user", "content": str(i)}], {}) for i in range(50)]
        got = {}
        replies = (got.update({place: reply.text}) for place, reply in client.chats(requests))
        with pytest.raises(UserError, match="refuses: 400"):
            list(replies)
        assert got == {place: str(place) for place in got}
        assert {0, 1, 2} <= got.keys()
    assert list(made(endpoint)[0].chats([])) == []


def test_the_command_with_an_endpoint(endpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    for name in ("base", "mine"):
        rows = [
            {"instruction": f"p{i}", "output": f"{name} {i}", "generator": name} for i in range(6)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    (tmp_path / "template.txt").write_text(TEMPLATE)
    endpoint.answer = prefers({f"mine {i}" for i in range(6)})
    words = "--outputs mine.json --reference base.json --judge big --template template.txt"
    words += f" --endpoint {endpoint.url} --out out"
    assert winrate.main(words.split()) == 0
    rows = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [row["preference"] for row in rows] == pytest.approx([1.75] * 6)
    assert {row["annotator"] for row in rows} == {"big"}
    assert "mine against base, 6 comparisons by big\n  win rate            75.0" in (
        capsys.readouterr().out
    )
    # Nobody is asked twice.
    asked = len(endpoint.bodies)
    assert winrate.main(["--out", "out", "--resume"]) == 0
    assert len(endpoint.bodies) == asked == 12


def test_a_run_that_failed_before_any_work_does_not_claim_its_folder(
    endpoint,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.chdir(tmp_path)
    for name in ("base", "mine"):
        rows = [{"instruction": "p", "output": name, "generator": name}]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    module = types.ModuleType("my_judge")
    monkeypatch.setitem(sys.modules, "my_judge", module)
    module.prefer = lambda prompts, first, second: [{}["x"]]
    words = [
        "--outputs",
        "mine.json",
        "--reference",
        "base.json",
        "--judge",
        "my_judge:prefer",
        "--out",
        "out",
    ]
    assert winrate.main(words) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: my_judge:prefer raised KeyError: 'x' (")
    assert line.count("\n") == 1
    module.prefer = lambda prompts, first, second: [1.0]
    assert winrate.main(words) == 0
    # What has work in it is claimed.
    assert winrate.main(words) == 2
    assert "out has a run" in capsys.readouterr().err
