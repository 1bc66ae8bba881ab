import json

import numpy as np
import pytest

from torchmpo.finetune.pairs import TURNS, Counts, Message, Pair, clean, load_pairs
from torchmpo.runs.errors import UserError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def call(city):
    """A turn that is nothing but a call of a tool."""
    function = {"name": "weather", "arguments": {"city": city}}
    calls = [{"type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def called(city):
    return Message("assistant", None, {"tool_calls": call(city)["tool_calls"]})


U, A = (lambda text: Message("user", text)), (lambda text: Message("assistant", text))
S = lambda text: Message("system", text)  # noqa: E731
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
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
    "calls of tools": (
        {"prompt": [user("Hi")], "chosen": [call("x")], "rejected": [call("y")], "tools": TOOLS},
        Pair((U("Hi"),), (called("x"),), (called("y"),), variables={"tools": TOOLS}),
    ),
    "tools as JSON, and variables of the template": (
        {
            "chosen": [user("Hi"), assistant("a")],
            "rejected": [user("Hi"), assistant("b")],
            "tools": json.dumps(TOOLS),
            "chat_template_kwargs": {"enable_thinking": False},
            "documents": [{"title": "t", "text": "x"}],
        },
        Pair(
            (U("Hi"),),
            (A("a"),),
            (A("b"),),
            variables={
                "enable_thinking": False,
                "documents": [{"title": "t", "text": "x"}],
                "tools": TOOLS,
            },
        ),
    ),
    "tools and documents that are none": (
        {"chosen": [user("Hi"), assistant("a")], "rejected": [user("Hi"), assistant("b")]}
        | {"tools": [], "documents": "a title"},
        Pair((U("Hi"),), (A("a"),), (A("b"),)),
    ),
    "text is the whole of it": (
        {"prompt": "p", "chosen": "a", "rejected": "b", "tools": TOOLS},
        Pair("p", "a", "b"),
    ),
    "content null and in parts, and what else a message has": (
        {
            "prompt": [
                {"role": "user", "content": [{"type": "text", "text": "Hi", "image": None}]}
            ],
            "chosen": [assistant(None) | {"reasoning_content": "so", "name": None, "id": 7}],
            "rejected": [assistant([])],
        },
        Pair(
            (Message("user", [{"type": "text", "text": "Hi"}]),),
            (Message("assistant", None, {"reasoning_content": "so", "id": 7}),),
            (A(""),),
        ),
    ),
    "a prompt that two answers with ids of their own begin with": (
        {
            "chosen": [user("Hi") | {"id": 1}, assistant("a")],
            "rejected": [user("Hi") | {"id": 2}, assistant("b")],
        },
        Pair((Message("user", "Hi", {"id": 1}),), (A("a"),), (A("b"),)),
    ),
    "prompts that differ in a call": (
        {
            "chosen": [user("Hi"), call("x"), assistant("a")],
            "rejected": [user("Hi"), call("y"), assistant("a")],
        },
        Pair((U("Hi"),), (called("x"), A("a")), (called("y"), A("a"))),
    ),
    # The column and the messages that both answers begin with.
    "a prompt after the system message": (
        {
            "prompt": "Capital?",
            "chosen": [system("S"), assistant("x")],
            "rejected": [system("S"), assistant("y")],
        },
        Pair((S("S"), U("Capital?")), (A("x"),), (A("y"),)),
    ),
    "a prompt before a turn that both answers have": (
        {
            "prompt": "Capital?",
            "chosen": [assistant("Hm"), user("Of Peru"), assistant("x")],
            "rejected": [assistant("Hm"), user("Of Peru"), assistant("y")],
        },
        Pair((U("Capital?"), A("Hm"), U("Of Peru")), (A("x"),), (A("y"),)),
    ),
    "a prompt that is among them": (
        {
            "prompt": " Capital? ",
            "chosen": [system("S"), user("Capital?"), assistant("x")],
            "rejected": [system("S"), user("Capital?"), assistant("y")],
        },
        Pair((S("S"), U("Capital?")), (A("x"),), (A("y"),)),
    ),
    "a prompt that is the conversation as text": (
        {
            "prompt": "Human: Capital? Assistant:",
            "chosen": [user("Capital?"), assistant("x")],
            "rejected": [user("Capital?"), assistant("y")],
        },
        Pair((U("Capital?"),), (A("x"),), (A("y"),)),
    ),
    # Other names.
    "question and system (orca_dpo_pairs)": (
        {"system": "S", "question": "Capital?", "chosen": "x", "rejected": "y"},
        Pair((S("S"), U("Capital?")), (A("x"),), (A("y"),)),
    ),
    "prompt and system (truthy-dpo)": (
        {"system": "S", "prompt": "Capital?", "chosen": "x", "rejected": "y"},
        Pair((S("S"), U("Capital?")), (A("x"),), (A("y"),)),
    ),
    "an empty system": (
        {"system": "", "prompt": "Capital?", "chosen": "x", "rejected": "y"},
        Pair("Capital?", "x", "y"),
    ),
    "a system before messages": (
        {"system": "S", "prompt": "Hi", "chosen": [assistant("x")], "rejected": [assistant("y")]},
        Pair((S("S"), U("Hi")), (A("x"),), (A("y"),)),
    ),
    "a system that is there": (
        {
            "system": "T",
            "chosen": [system("S"), user("Hi"), assistant("x")],
            "rejected": [system("S"), user("Hi"), assistant("y")],
        },
        Pair((S("S"), U("Hi")), (A("x"),), (A("y"),)),
    ),
    "instruction and input": (
        {"instruction": "Add", "input": "1, 2", "chosen": "3", "rejected": "4"},
        Pair((U("Add\n1, 2"),), (A("3"),), (A("4"),)),
    ),
    "a question, and text with turns": (
        {"question": "Hi", "system": "S", "chosen": f"{HUMAN} a", "rejected": f"{HUMAN} b"},
        Pair(HUMAN, " a", " b"),
    ),
    "conversations of from and value": (
        {
            "conversations": [
                {"from": "system", "value": "S"},
                {"from": "human", "value": "Hi"},
                {
                    "from": "function_call",
                    "value": '{"name": "weather", "arguments": {"city": "x"}}',
                },
                {"from": "observation", "value": "sun"},
            ],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        Pair((S("S"), U("Hi"), called("x"), Message("tool", "sun")), (A("a"),), (A("b"),)),
    ),
    "whole conversations of from and value": (
        {
            "chosen": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "a"}],
            "rejected": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "b"}],
        },
        Pair((U("Hi"),), (A("a"),), (A("b"),)),
    ),
    "numpy's types": (
        {
            "prompt": np.array([user("Hi")], dtype=object),
            "chosen": np.array([assistant(np.str_("a"))], dtype=object),
            "rejected": np.array([assistant("b")], dtype=object),
            "chosen_rating": np.float64(4),
            "rejected_rating": np.int32(3),
            "preference_prob": np.float32(0.75),
        },
        Pair((U("Hi"),), (A("a"),), (A("b"),), 4.0, 3.0, 0.75),
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
        PLAIN | {"prompt": [{"speaker": "human", "value": "Hi"}]},
        "prompt has a message without a role",
    ),
    "another speaker": (
        PLAIN | {"prompt": [{"from": "humn", "value": "Hi"}]},
        "prompt has a message from 'humn': did you mean 'human'",
    ),
    "a call that is no JSON": (
        PLAIN | {"prompt": [{"from": "function_call", "value": "weather"}]},
        "prompt has a function_call that is not JSON",
    ),
    "content that is a number": (PLAIN | {"prompt": [user(3)]}, "without a role and text, null or"),
    "a part without its text": (
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
    "another prompt than the answers'": (
        {
            "prompt": "Capital?",
            "chosen": [system("S"), user("Hi"), assistant("x")],
            "rejected": [system("S"), user("Hi"), assistant("y")],
        },
        "prompt is none of the messages that chosen and rejected begin with",
    ),
    "tools that are names": (
        {"chosen": [user("Hi"), assistant("a")], "rejected": [user("Hi"), assistant("b")]}
        | {"tools": "weather"},
        "tools is text and not JSON",
    ),
    "a tool that is a name": (
        {"chosen": [user("Hi"), assistant("a")], "rejected": [user("Hi"), assistant("b")]}
        | {"tools": ["weather"]},
        "tools is not a list of objects",
    ),
    "a score beyond 32 bits": (
        PLAIN | {"chosen_rating": 1e39, "rejected_rating": 4},
        "chosen_rating is beyond the range",
    ),
    "a score beyond 64 bits": (
        PLAIN | {"chosen_rating": 5, "rejected_rating": -(10**400)},
        "rejected_rating is beyond the range",
    ),
    "a score without bound": (
        PLAIN | {"chosen_rating": float("inf"), "rejected_rating": 4},
        "chosen_rating is beyond the range",
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


# Names of columns


def test_columns_by_other_names():
    row = {"q": "Hi", "good": "a", "bad": "b", "system": "S", "s": 3, "t": 2}
    names = {"prompt": "q", "chosen": "good", "rejected": "bad", "system": None}
    names |= {"chosen_reward": "s", "rejected_reward": "t"}
    assert load_pairs([row], columns=names) == [Pair("Hi", "a", "b", 3.0, 2.0)]
    # A name of ours that the data have, too, but for something else.
    assert load_pairs([PLAIN | {"q": "Hi"}], columns={"prompt": "q"}) == [Pair("Hi", "a", "b")]
    with pytest.raises(UserError, match="row 0: there is no column 'p'; its columns: q, good"):
        load_pairs([row], columns={"prompt": "p"})
    with pytest.raises(UserError, match="unknown name 'promt': did you mean 'prompt'"):
        load_pairs([row], columns={"promt": "q"})


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


def test_calls_of_tools_are_answers():
    pairs = load_pairs(
        {"prompt": [user("Hi")], "chosen": [call("x")], "rejected": [rejected], "tools": tools}
        for rejected, tools in (
            (call("y"), []),
            (call("x"), []),
            (assistant(None), []),
            (call("y"), []),
            (call("y"), TOOLS),
        )
    )
    kept, counts = clean(pairs)
    assert kept == [pairs[0], pairs[4]]
    assert counts == Counts(rows=5, identical=1, empty=1, duplicates=1)


def test_parts_are_empty_if_they_say_nothing():
    image, blank = {"type": "image", "url": "u"}, {"type": "text", "text": " "}
    pairs = load_pairs(
        {"prompt": [user("Hi")], "chosen": [assistant(parts)], "rejected": [assistant("b")]}
        for parts in ([image], [blank], [blank, image])
    )
    kept, counts = clean(pairs)
    assert kept == [pairs[0], pairs[2]]
    assert counts.empty == 1


def test_clean_of_nothing():
    assert clean([]) == ([], Counts(0, 0, 0, 0))
