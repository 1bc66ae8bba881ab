"""Messages through chat templates: the oracle is `apply_chat_template` of the tokenizer itself."""

import datetime
from dataclasses import replace

import pytest

pytest.importorskip("transformers")

from tiny_llm import TEMPLATE, tiny_tokenizer
from transformers.utils import chat_template_utils

from torchmpo.finetune import chat_template
from torchmpo.finetune.chat_template import check_variables, render, with_template
from torchmpo.finetune.pairs import Message, Pair, clean, load_pairs
from torchmpo.finetune.tokenize import PairDataset, encode_prompt, tokenize_pair
from torchmpo.runs.errors import UserError

# As those of models that call tools, think, and take content in parts.
AGENT = (
    "{{ bos_token }}{% if tools %}<|system|>{{ tools | tojson }}{% endif %}"
    "{% if documents %}<|system|>{{ documents[0].title }}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content or [] %}{{ part.text }}{% endfor %}{% endif %}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]"
    "{% endfor %}{{ m.mood }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
USER = {
    "role": "user",
    "content": [{"type": "text", "text": "Sun in "}, {"type": "text", "text": "Rome?"}],
}


def call(city, **more):
    function = {"name": "weather", "arguments": {"city": city, "unit": None}}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}], **more}


def agent():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = AGENT
    return tokenizer


ROWS = {
    "tools, and answers that are calls": {
        "prompt": [USER],
        "chosen": [call("Rome", content=None)],
        "rejected": [call("Paris")],
        "tools": TOOLS,
    },
    "a call in the prompt": {
        "prompt": [USER, call("Rome"), {"role": "tool", "content": "20", "name": "weather"}],
        "chosen": [{"role": "assistant", "content": "Yes."}],
        "rejected": [{"role": "assistant", "content": "No."}],
        "tools": TOOLS,
        "documents": [{"title": "Weather", "text": "It is."}],
    },
    "thoughts, and keys of one's own": {
        "prompt": [USER | {"mood": "glad"}],
        "chosen": [{"role": "assistant", "content": "Yes.", "reasoning_content": "It shines."}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "No."}]}],
        "chat_template_kwargs": {"enable_thinking": True},
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_what_the_tokenizer_itself_makes_of_messages(name):
    row, tokenizer = ROWS[name], agent()
    kept, _ = clean(load_pairs([row]))
    (item,) = PairDataset(kept, tokenizer, 1000)
    variables = {key: row[key] for key in ("tools", "documents") if key in row}
    variables |= row.get("chat_template_kwargs", {})
    opened = tokenizer.apply_chat_template(
        row["prompt"], add_generation_prompt=True, return_dict=False, **variables
    )
    assert item.prompt.tolist() == opened == encode_prompt(kept[0].prompt, tokenizer, variables)
    for side in ("chosen", "rejected"):
        whole = tokenizer.apply_chat_template(
            row["prompt"] + row[side], return_dict=False, **variables
        )
        assert [*item.prompt.tolist(), *getattr(item, side).tolist()] == whole
    assert not item.left_out


def test_variables_of_the_run_and_of_a_row():
    tokenizer = agent()
    (pair,) = load_pairs([ROWS["a call in the prompt"]])
    thoughtless = tokenize_pair(pair, tokenizer, 1000, variables={"enable_thinking": False})
    text = tokenizer.decode(thoughtless.prompt)
    assert text.endswith("<|assistant|>")  # the answers do not go on as the opened turn begins
    assert thoughtless.merged
    assert not tokenize_pair(pair, tokenizer, 1000).merged
    of_run = tokenize_pair(replace(pair, variables={}), tokenizer, 1000, variables=pair.variables)
    assert of_run.prompt.tolist() == tokenize_pair(pair, tokenizer, 1000).prompt.tolist()
    own = replace(pair, variables=pair.variables | {"enable_thinking": True})
    assert not tokenize_pair(own, tokenizer, 1000, variables={"enable_thinking": False}).merged


# Templates that know less


TEXT_ONLY = {
    "writes a list as Python does": TEMPLATE,
    "fails on a list": "{% for m in messages %}{{ m.role + m.content }}{% endfor %}",
    "leaves out a list": (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% endif %}{% endfor %}"
    ),
}
PARTS_ONLY = {
    "leaves out text": "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %};"
    "{% endfor %}",
    "fails on text": "{% for m in messages %}{{ m.content[0].text + ';' }}{% endfor %}",
}


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_a_template_that_takes_text_gets_text(name):
    (pair,) = load_pairs([{"prompt": [USER], "chosen": "a", "rejected": "b"}])
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEXT_ONLY[name]
    rows = [{"role": "user", "content": "Sun in Rome?"}]
    assert render(pair.prompt, tokenizer) == tokenizer.apply_chat_template(rows, tokenize=False)
    with pytest.raises(UserError, match="has no place for a part of type 'image'"):
        render([Message("user", [{"type": "image", "url": "u"}])], tokenizer)


@pytest.mark.parametrize("name", PARTS_ONLY)
def test_a_template_that_takes_parts_gets_parts(name):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = PARTS_ONLY[name]
    assert render([Message("user", "Hi"), Message("assistant", "a")], tokenizer) == "Hi;a;"
    tokenizer.chat_template += "{{ messages[0].content[0].type }}"
    assert render([Message("user", [{"type": "image", "text": "u"}])], tokenizer) == "u;image"


def test_a_template_without_tools_is_told():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = AGENT.replace("{% if tools %}", "{% if false %}")
    pairs = load_pairs([ROWS["a call in the prompt"], ROWS["thoughts, and keys of one's own"]])
    dataset = PairDataset(pairs, tokenizer, 1000)
    assert [item.left_out for item in dataset] == [True, False]
    assert "leaves out tools, calls, thoughts or text of 1" in str(dataset.counts)
    assert "leaves out" not in str(PairDataset(pairs, agent(), 1000).counts)
    tokenizer.chat_template = AGENT.replace("m.tool_calls or []", "[]")
    dataset = PairDataset(pairs, tokenizer, 1000)
    assert [item.left_out for item in dataset] == [True, False]
    tokenizer.chat_template = AGENT.replace("{% if m.reasoning_content %}", "{% if false %}")
    assert [item.left_out for item in PairDataset(pairs, tokenizer, 1000)] == [False, True]
    tokenizer.chat_template = AGENT.replace("m.tool_calls or []", "[]")
    pairs = load_pairs([ROWS["tools, and answers that are calls"]])
    with pytest.raises(UserError, match="pair 0: the chat template leaves out the tool_calls of"):
        PairDataset(pairs, tokenizer, 1000)


def test_thoughts_in_the_content_that_a_template_does_not_write_are_counted():
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Q{i}"}],
            "chosen": [{"role": "assistant", "content": "<think>\nlong \n</think>Paris\n"}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": " Rome "}]}],
        }
        for i in range(3)
    ]
    tokenizer = tiny_tokenizer()
    # As DeepSeek's do.
    tokenizer.chat_template = TEMPLATE.replace(
        "m['content']", "m['content'].split('</think>')[-1] | trim"
    )
    dataset = PairDataset(load_pairs(rows), tokenizer, 1000)
    assert tokenizer.decode(dataset[0].chosen) == "Paris</s>"
    assert dataset.counts.left_out == 3
    # White space alone is no loss.
    tokenizer.chat_template = TEMPLATE.replace(
        "m['content']", "m['content'] | trim | replace('</think>', '</think>\n\n')"
    )
    dataset = PairDataset(load_pairs(rows), tokenizer, 1000)
    assert tokenizer.decode(dataset[0].chosen) == "<think>\nlong \n</think>\n\nParis</s>"
    assert dataset.counts.left_out == 0


# Thoughts of earlier turns are written until an answer follows: some of the prompt then stands
# behind the place where the two texts part.
UNTIL_ANSWERED = AGENT.replace(
    "{% if m.reasoning_content %}",
    "{% if m.reasoning_content and messages[-1].role != 'assistant' %}",
)
# The prompt ends as no turn does that others follow, and no turn is opened.
LAST_ENDS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}"
)


def test_no_turn_of_the_prompt_counts_as_an_answer():
    prompt = [USER, call("Rome", reasoning_content="ask"), {"role": "tool", "content": "20"}]
    answers = {
        "chosen": [{"role": "assistant", "content": "Yes."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    pairs = load_pairs([{"prompt": prompt, **answers}])
    tokenizer = agent()
    (item,) = PairDataset(pairs, tokenizer, 1000)
    assert tokenizer.decode(item.chosen) == "Yes.</s>"
    tokenizer.chat_template = UNTIL_ANSWERED
    with pytest.raises(UserError, match="pair 0: the chat template writes the prompt otherwise"):
        PairDataset(pairs, tokenizer, 1000)
    calm = load_pairs([{"prompt": [USER, call("Rome"), prompt[-1]], **answers}])
    (item,) = PairDataset(calm, tokenizer, 1000)
    assert tokenizer.decode(item.chosen) == "Yes.</s>"
    tokenizer.chat_template = LAST_ENDS
    (item,) = PairDataset(load_pairs([{"prompt": [USER], **answers}]), tokenizer, 1000)
    assert tokenizer.decode(item.chosen) == "<|assistant|>Yes.</s>"
    tokenizer.chat_template = AGENT + "{% if add_generation_prompt %}<think>\nWell, {% endif %}"
    (item,) = PairDataset(calm, tokenizer, 1000)
    assert item.merged
    assert tokenizer.decode(item.chosen) == "Yes.</s>"


FAILING = {
    "{{ 1 / 0 }}": "fails on these messages: ZeroDivisionError: division by zero",
    "{{ 'a' + 1 }}": "fails on these messages: TypeError",
    "{{ range(1000000000) }}": "fails on these messages: OverflowError",
    "{{ 9 ** (9 ** 9) }}": "raises to a power (**), which may take for ever",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "fails on these messages: RecursionError",
    "{% if %}": "refuses these messages",
    "{{ messages[0].nothing.at_all }}": "refuses these messages",
    "{{ messages[0].__class__.mro() }}": "refuses these messages",
    "{{ raise_exception('two\nlines') }}": "refuses these messages: two lines",
}


@pytest.mark.parametrize("template", FAILING)
def test_a_template_that_fails_is_one_line(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UserError) as raised:
        render([Message("user", "Hi")], tokenizer)
    assert FAILING[template] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_template_that_does_not_end(monkeypatch):
    monkeypatch.setattr(chat_template, "CPU_SECONDS", 0.1)
    tokenizer = tiny_tokenizer()
    loop = "{% for i in range(99999) %}"
    tokenizer.chat_template = 4 * loop + 4 * "{% endfor %}"
    with pytest.raises(UserError, match=r"TimeoutError: it has not ended in 0\.1 s of CPU"):
        render([Message("user", [{"type": "text", "text": "Hi"}])], tokenizer)
    tokenizer.chat_template = TEMPLATE
    for _ in range(3):  # and the clock no longer runs
        assert render([Message("user", "Hi")], tokenizer) == "<s><|user|>Hi</s>"


# Dates


class Clock(datetime.datetime):
    """A day on which a template asks for the date."""

    day = 1

    @classmethod
    def now(cls, tz=None):
        return datetime.datetime(2031, 5, cls.day)


DATED = [
    ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
    ("{{ strftime_now('%Y-%m-%d, %A %-d %B, 100%%Y') }}", "2024-07-26, Friday 26 July, 100%Y"),
    ("{% set now = strftime_now %}{{ now('%F') }}", "2024-07-26"),
    ("{% if strftime_now is defined %}{{ strftime_now('%y') }}{% else %}?{% endif %}", "24"),
    ("\n{% for m in messages %}{{ strftime_now('%j') }}{% endfor %}", "\n208"),
    ("{{ date_string or strftime_now('%d %b %Y') }}", "1 May"),
]


@pytest.mark.parametrize(("template", "expected"), DATED)
def test_a_template_that_asks_for_the_date_gets_the_same_every_day(template, expected, monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    variables = {"date_string": "1 May"} if "date_string" in template else {}
    messages = [Message("user", "Hi")]
    if not variables:  # the template would write another date
        rows = [message.as_dict() for message in messages]
        assert expected != tokenizer.apply_chat_template(rows, tokenize=False)
    for day in (1, 2):
        monkeypatch.setattr(Clock, "day", day)
        assert render(messages, tokenizer, variables) == expected


# A template and variables of one's own


def test_a_template_of_ones_own(tmp_path):
    tokenizer = tiny_tokenizer()
    (tmp_path / "my.jinja").write_text("\ufeff" + AGENT, encoding="utf-8")
    for given in (AGENT, str(tmp_path / "my.jinja")):
        assert with_template(tokenizer, given).chat_template == AGENT
    assert tokenizer.chat_template == TEMPLATE
    with pytest.raises(UserError, match=r"chat_template no\.jinja cannot be read"):
        with_template(tokenizer, "no.jinja")


def test_named_templates():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": "plain", "tool_use": "with tools"}
    assert render([Message("user", "Hi")], tokenizer) == "plain"
    assert render([Message("user", "Hi")], tokenizer, {"tools": TOOLS}) == "with tools"
    tokenizer.chat_template = {"tool_use": "with tools"}
    with pytest.raises(UserError, match="fails on these messages: ValueError"):
        render([Message("user", "Hi")], tokenizer)


def test_variables_that_cannot_be():
    tokenizer = agent()
    check_variables({"enable_thinking": True, "documents": [], "tools": TOOLS}, tokenizer)
    check_variables({}, object())
    for name in ("tokenize", "messages", "add_generation_prompt", "chat_template"):
        with pytest.raises(UserError, match=f"chat_template_kwargs cannot set '{name}'"):
            check_variables({name: True}, tokenizer)
    for template in (AGENT, None, {"default": AGENT}):
        tokenizer.chat_template = template
        with pytest.raises(UserError, match="does not use 'enable_thinkin'"):
            check_variables({"enable_thinkin": True}, tokenizer)
    with pytest.raises(UserError, match="fails on these messages: TypeError"):
        render([Message("user", "Hi")], agent(), {"tokenize": True})


def test_pairs_with_other_variables_are_no_duplicates():
    a, b = Message("assistant", "a"), Message("assistant", "b")
    pair = Pair((Message("user", "Hi"),), (a,), (b,))
    kept, counts = clean([pair, replace(pair, variables={"tools": TOOLS}), pair])
    assert len(kept) == 2
    assert counts.duplicates == 1
