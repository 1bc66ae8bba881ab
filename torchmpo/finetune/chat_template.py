"""Messages to text: what the model's own chat template makes of them, and no clock in it.

A template is a program of the model's author. What it raises is told in one line, and it may use
so much CPU time and no more. Where it writes today's date (``strftime_now``), it gets ``DATE``: the
same pairs are the same tokens tomorrow.

Content in parts goes to the template as it is. A template that knows only text gets the texts of
the parts joined.
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
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from torchmpo.finetune.pairs import Message
from torchmpo.runs.errors import UserError, one_line

# Any day would do. It is the one that Llama 3.1's template takes where it knows no other.
DATE = datetime(2024, 7, 26)
CPU_SECONDS = 10  # for one conversation, which takes a millisecond


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
        if name in taken - {"documents"}:
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
    rows = [message.as_dict() for message in messages]
    parts = [row["content"] for row in rows if isinstance(row.get("content"), list)]
    try:
        text = _apply(rows, tokenizer, variables or {}, opened)
    except UserError as error:
        if not parts or isinstance(error.__cause__, TimeoutError):
            raise
    else:
        # A template that takes content for text writes a list as Python does.
        if not any(str(content) in text for content in parts):
            return text
    return _apply([_as_text(row) for row in rows], tokenizer, variables or {}, opened)


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
    rows: list[dict[str, Any]], tokenizer: Any, variables: Mapping[str, Any], opened: bool
) -> str:
    try:
        with _bounded():
            template = tokenizer.get_chat_template(None, variables.get("tools"))
            if "strftime_now" in template:
                template = _DATED + template
            return tokenizer.apply_chat_template(
                rows,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=opened,
                **variables,
            )
    except TemplateError as error:
        raise UserError(f"the chat template refuses these messages: {one_line(error)}") from error
    except ImportError:
        raise
    except Exception as error:  # whatever a program may raise
        raise UserError(
            f"the chat template fails on these messages: {type(error).__name__}: {one_line(error)}"
        ) from error


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


def _as_text(row: dict[str, Any]) -> dict[str, Any]:
    content = row.get("content")
    if not isinstance(content, list):
        return row
    if other := [part["type"] for part in content if part["type"] != "text"]:
        raise UserError(f"the chat template has no place for a part of type {other[0]!r}")
    return row | {"content": "".join(part["text"] for part in content)}


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
