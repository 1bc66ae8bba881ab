"""YAML of bounded size: a few lines of it can stand for more values than there are atoms.

An alias (``*a``) repeats what it names, and may repeat repetitions; brackets can be nested until
the parser's own stack ends. Settings need neither.
"""

from typing import Any

import yaml

MOST_VALUES = 100_000  # with every alias replaced by what it repeats
MOST_DEPTH = 50


def check_yaml(text: str) -> None:
    """Refuse a text that expands without end, before anything is built from it, and a key that is
    there twice, of which the first would be lost.

    Raises:
        ValueError: it is too large, or says a thing twice. What is no YAML is for those to tell who
            build it.
    """
    sizes: dict[str, int] = {}  # of what has a name
    inside: list[tuple[str | None, int]] = [(None, 0)]  # the open brackets, and how much they hold
    keys = _Keys()
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            keys.see(event)
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


class _Keys:
    """Refuses a key that an open mapping has already."""

    def __init__(self):
        self.known: list[set[str] | None] = []  # of each open bracket; None for a list
        self.is_key: list[bool] = []  # whether its next value is one

    def see(self, event: yaml.Event) -> None:
        """The next event of a text."""
        if isinstance(event, yaml.NodeEvent) and self.known:
            known = self.known[-1]
            if known is not None and self.is_key[-1] and isinstance(event, yaml.ScalarEvent):
                if event.value in known:
                    raise ValueError(f"{event.value} is given twice")
                known.add(event.value)
            self.is_key[-1] = not self.is_key[-1]
        if isinstance(event, yaml.CollectionStartEvent):
            self.known.append(set() if isinstance(event, yaml.MappingStartEvent) else None)
            self.is_key.append(True)
        elif isinstance(event, yaml.CollectionEndEvent):
            self.known.pop()
            self.is_key.pop()


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
