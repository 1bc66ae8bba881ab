"""YAML of bounded size: a few lines of it can stand for more values than there are atoms.

An alias (``*a``) repeats what it names, and may repeat repetitions; brackets can be nested until
the parser's own stack ends. Settings need neither.
"""

from typing import Any

import yaml

MOST_VALUES = 100_000  # with every alias replaced by what it repeats
MOST_DEPTH = 50


def check_yaml(text: str) -> None:
    """Refuse a text that expands without end, before anything is built from it.

    Raises:
        ValueError: it is too large. What is no YAML is for those to tell who build it.
    """
    sizes: dict[str, int] = {}  # of what has a name
    inside: list[tuple[str | None, int]] = [(None, 0)]  # the open brackets, and how much they hold
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            anchor, size = getattr(event, "anchor", None), 0
            if isinstance(event, yaml.CollectionStartEvent):
                inside.append((anchor, 1))
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, size = inside.pop()
            elif isinstance(event, yaml.AliasEvent):
                if any(anchor == name for name, _ in inside):
                    raise ValueError(f"*{anchor} contains itself")
                size = sizes.get(str(anchor), 1)
            elif isinstance(event, yaml.ScalarEvent):
                size = 1
            name, held = inside[-1]
            inside[-1] = (name, held + size)
            if size and anchor is not None:
                sizes[anchor] = size
            if held + size > MOST_VALUES:
                raise ValueError(f"it stands for more than {MOST_VALUES} values")
            if len(inside) > MOST_DEPTH:
                raise ValueError(f"it is nested more than {MOST_DEPTH} deep")
    except yaml.YAMLError:
        return


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: it is no YAML, or too large.
    """
    check_yaml(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
