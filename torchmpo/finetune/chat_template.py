"""Messages to text: what the model's own chat template makes of them, and no clock in it.

A template is a program of the model's author. What it raises is told in one line, and it may use
so much CPU time and no more. Where it writes today's date (``strftime_now``), it gets ``DATE``: the
same pairs are the same tokens tomorrow.

Content goes to the template as it is: text, parts, or none at all. But a template that knows text
only may leave out parts without a word (Qwen3's does), or write them as Python does; and one that
knows parts only may leave out text. Which kind it is, is tried once, and it gets what it takes.
"""

import copy
import inspect
import json
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError

from torchmpo.finetune.pairs import Message
from torchmpo.runs.errors import UserError, one_line

# Any day would do. It is the one that Llama 3.1's template takes where it knows no other.
DATE = datetime(2024, 7, 26)
CPU_SECONDS = 5  # for one conversation, which takes a millisecond
_PROBE = "probe"


def with_template(tokenizer: Any, template: str) -> Any:
    """A copy of the tokenizer with another chat template.

    Args:
        tokenizer: of transformers.
        template: its text, or a file with it.

    Raises:
        UserError: there is no such file.
    """
    if "{" not in template:
        try:
            template = Path(template).expanduser().read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"chat_template {template} cannot be read: {error}") from error
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def check_variables(variables: Mapping[str, Any], tokenizer: Any) -> None:
    """Refuse a variable that the chat template does not have.

    Raises:
        UserError: such a variable, or one that is not the user's to set.
    """
    if not variables:
        return
    taken = {*inspect.signature(tokenizer.apply_chat_template).parameters, "messages"}
    template = tokenizer.chat_template
    text = template if isinstance(template, str) else json.dumps(template)
    for name in variables:
        if not isinstance(name, str):
            raise UserError(f"chat_template_kwargs: {name!r} is no name of a variable")
        if name in taken - {"documents", "tools"}:
            raise UserError(f"chat_template_kwargs cannot set {name!r}")
        if not re.search(rf"\b{re.escape(name)}\b", text):
            raise UserError(f"chat_template_kwargs: the chat template does not use {name!r}")


def render(
    messages: Sequence[Message],
    tokenizer: Any,
    variables: Mapping[str, Any] | None = None,
    *,
    opened: bool = False,
) -> str:
    """The text of a conversation.

    Args:
        messages: at least one.
        tokenizer: of transformers, with a chat template.
        variables: what else the template gets: ``tools``, ``documents``, ``enable_thinking``, …
        opened: whether the assistant's next turn is opened at the end.

    Raises:
        UserError: no chat template, or one that refuses the messages, fails or does not end.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "the pairs are messages and the tokenizer has no chat template: set its chat_template, "
            "or take the tokenizer of an instruction-tuned model"
        )
    variables = variables or {}
    with _told():
        template = tokenizer.get_chat_template(None, variables.get("tools"))
    _refuse_powers(template)
    template = _DATED + template if "strftime_now" in template else template
    kinds = _kinds(tokenizer, template)
    rows = [_as(row, kinds) for row in (message.as_dict() for message in messages)]
    return _apply(rows, tokenizer, template, variables, opened)


def leaves_out(
    name: str,
    messages: Sequence[Message],
    tokenizer: Any,
    variables: Mapping[str, Any],
    text: str,
    *,
    opened: bool = False,
) -> bool:
    """Whether the messages have something by this name that the template does not write.

    Args:
        name: of messages' keys and of variables.
        messages, tokenizer, variables, opened: of :func:`render`.
        text: what it makes of them.
    """
    without = [m._replace(more={k: v for k, v in m.more.items() if k != name}) for m in messages]
    fewer = {key: value for key, value in variables.items() if key != name}
    if without == list(messages) and not variables.get(name):
        return False
    try:
        return render(without, tokenizer, fewer, opened=opened) == text
    except UserError:
        return False


def _apply(
    rows: list[dict[str, Any]],
    tokenizer: Any,
    template: str,
    variables: Mapping[str, Any],
    opened: bool,
) -> str:
    with _told(), _bounded():
        return tokenizer.apply_chat_template(
            rows,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=opened,
            **variables,
        )


@contextmanager
def _told() -> Iterator[None]:
    """Whatever a program may raise, as a line."""
    try:
        yield
    except TemplateError as error:
        raise UserError(f"the chat template refuses these messages: {one_line(error)}") from error
    except ImportError:
        raise
    except Exception as error:
        raise UserError(
            f"the chat template fails on these messages: {type(error).__name__}: {one_line(error)}"
        ) from error


@lru_cache(maxsize=32)
def _refuse_powers(template: str) -> None:
    """No template needs a power, and one of whole numbers may take for ever, uninterruptibly.

    Already to compile it: what is constant is worked out then.
    """
    with _told():
        words = {(kind, text) for _, kind, text in Environment().lex(template)}
    if ("operator", "**") in words:
        raise UserError("the chat template raises to a power (**), which may take for ever")


@lru_cache(maxsize=32)
def _kinds(tokenizer: Any, template: str) -> frozenset[str]:
    """Which content the template writes: ``"text"``, ``"parts"``, both, or neither, it seems."""
    found = set()
    contents = {"text": _PROBE, "parts": [{"type": "text", "text": _PROBE}]}
    for kind, content in contents.items():
        rows = [{"role": role, "content": content} for role in ("user", "assistant")]
        try:
            text = _apply(rows, tokenizer, template, {}, False)
        except UserError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise
            continue
        # A list that is written as Python writes it has the probe in it, too.
        as_python = kind == "parts" and str(content) in text
        if text.count(_PROBE) == len(rows) and not as_python:
            found.add(kind)
    return frozenset(found)


def _as(row: dict[str, Any], kinds: frozenset[str]) -> dict[str, Any]:
    """A message with content of a kind that the template takes."""
    content = row.get("content")
    if isinstance(content, str) and kinds == {"parts"}:
        return row | {"content": [{"type": "text", "text": content}]}
    if not isinstance(content, list) or kinds != {"text"}:
        return row
    if other := [part["type"] for part in content if part["type"] != "text"]:
        raise UserError(f"the chat template has no place for a part of type {other[0]!r}")
    return row | {"content": "".join(part["text"] for part in content)}


def _dated() -> str:
    """A template's ``strftime_now`` that knows one day, in the template's own language."""
    # `%%` first, out of the way of the others.
    text = "format|replace('%%', '\\0')"
    for code in "aAbBcdDeFgGhHIjmMpRSTuUVwWxXyYZ":
        for flag in ("", "-"):
            text += f"|replace('%{flag}{code}', {DATE.strftime(f'%{flag}{code}')!r})"
    # The empty expression keeps a line feed that the template itself begins with.
    return (
        f"{{%- macro strftime_now(format) -%}}{{{{ {text}|replace('\\0', '%') }}}}{{%- endmacro %}}"
        "{{ '' }}"
    )


_DATED = _dated()


@contextmanager
def _bounded() -> Iterator[None]:
    """Only so much CPU time; without a bound in threads, which cannot be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it has not ended in {CPU_SECONDS} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
