"""Scripts by which a shell completes commands, options and the names of presets, made by shtab."""

import argparse

import shtab

FILES = ("config", "outputs", "reference", "gamed", "grid", "ckpt_path", "ckpt", "prompts")
FOLDERS = ("out", "cache_dir", "adapter")


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for a parser with subcommands.

    Args:
        parser: of the program; it is changed, and is good for nothing else afterwards.
        shell: one of shtab's.
    """
    _prepare(parser)
    return shtab.complete(parser, shell)


def _prepare(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _prepare(below)
        elif action.dest in FILES:
            action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]
        elif action.dest in FOLDERS:
            action.complete = shtab.DIRECTORY  # pyright: ignore[reportAttributeAccessIssue]
        elif (words := getattr(action, "words", None)) is not None:
            action.choices = words
