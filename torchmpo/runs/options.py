"""Options from a dataclass of settings, on the command line and in YAML files, by jsonargparse."""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from torchmpo.runs.errors import UserError, nearest, one_line
from torchmpo.runs.yaml_text import check_yaml, parse_yaml

# About a run and not among its settings; a file of settings may have them, too.
ABOUT_THE_RUN = ("preset", "out", "resume", "trust")


class OptionParser(ArgumentParser):
    """The options of one command.

    Args:
        program: how the command is called.
        description: one line for ``--help``.
        settings: a dataclass; each of its fields is an option.
        presets: name → settings that differ from the dataclass's defaults.
        default_preset: the one that ``--help`` shows the defaults of.
        out: the default folder of a run.
        profiles: names for ``--profile``; none for no such option.
    """

    def __init__(
        self,
        program: str,
        description: str,
        settings: type,
        presets: Mapping[str, Mapping[str, Any]],
        default_preset: str,
        out: str,
        profiles: Sequence[str] = (),
    ):
        super().__init__(
            prog=program,
            description=description,
            exit_on_error=False,
            allow_abbrev=False,
            add_help=False,
            print_config=None,
        )
        self.names = {*(field.name for field in fields(settings)), *ABOUT_THE_RUN}
        self.names |= {"profile"} if profiles else set()
        hints = get_type_hints(settings)
        self.never_null = {name for name, hint in hints.items() if type(None) not in get_args(hint)}
        self.presets, self.default_preset = presets, default_preset
        # Where a run is, and whether it goes on, as files have it.
        self.place_in_files: dict[str, Any] = {}
        self.add_argument("-h", "--help", action=_Help, help="print this and exit")
        self.add_argument("--config", action="config", help="YAML file with any of these settings")
        self.add_argument("--print_config", action="store_true", help="print the settings and exit")
        preset: Any = self.add_argument(
            "--preset", default=default_preset, help=f"one of {', '.join(self.presets)}"
        )
        preset.words = list(presets)  # for completion; as choices, they would be checked here
        if profiles:
            listed = ", ".join(profiles)
            help = f"a bundle of settings that goes before the preset: {listed}"
            named: Any = self.add_argument("--profile", default=None, help=help)
            named.words = list(profiles)
        self.add_argument("--out", default=out, help="folder of the run")
        self.add_argument("--resume", action="store_true", help="go on with the run in --out")
        self.add_argument(
            "--trust", action="store_true", help="with --resume: run code that the run's files name"
        )
        self.add_class_arguments(settings)

    def given(self, argv: Sequence[str]) -> dict[str, Any]:
        """What the command line and the files it names say, and nothing else.

        Returns:
            settings and any of ``preset``, ``out``, ``resume``, ``print_config``; what comes later
            on the command line overrides what comes before it.

        Raises:
            UserError: it cannot be understood.
            SystemExit: help was asked for and has been printed.
        """
        try:
            given = self.parse_args(argv, defaults=False).as_dict()
        except UnicodeDecodeError as error:
            raise UserError(f"--config: the file is not text ({error})") from error
        except UserError:
            raise
        except (ArgumentError, ValueError) as error:  # the latter of a number of 10,000 digits
            raise UserError(plain(error)) from error
        for name, value in self.place_in_files.items():
            if name not in given and value != self.get_default(name):
                what = "--trust" if name == "trust" else "--out and --resume"
                raise UserError(f"give {what} on the command line, not in a file")
        given.pop("config", None)
        self._refuse_nothing(given)
        return given

    def checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Settings from a file, each of its type.

        Raises:
            UserError: one is unknown or of another type.
        """
        self.refuse_unknown(values)
        self._refuse_nothing(values)
        try:
            return self.parse_object(dict(values), defaults=False).as_dict()
        except ArgumentError as error:
            raise UserError(plain(error)) from error

    def _refuse_nothing(self, values: Mapping[str, Any]) -> None:
        """Raise UserError for a null where there must be a value: of files nobody else does."""
        for name, value in values.items():
            if value is None and name in self.never_null:
                raise UserError(f"{name} must have a value; got null")

    def refuse_unknown(self, keys: Iterable[str]) -> None:
        """Raise UserError, with the nearest name, if one of the keys of a file is none of ours."""
        for key in keys:
            if key not in self.names:
                raise UserError(f"unknown key {key!r}: {nearest(str(key), self.names)}")

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """The content of a file; whether a run goes on, and where, is not for a file to say."""
        try:
            check_yaml(content)
        except ValueError as error:
            raise UserError(f"--config: {one_line(error)}") from error
        with suppress(yaml.YAMLError):  # which is told below
            if not isinstance(yaml.safe_load(content), dict):
                some = "settings such as  seed: 0"
                raise UserError(f"--config: the file must have {some}; it has {content.strip()!r}")
        namespace = super().parse_string(content, *args, **kwargs)
        self.refuse_unknown(namespace.keys())
        for name in ("out", "resume", "trust"):
            if name in namespace:
                self.place_in_files[name] = namespace.pop(name)
        return namespace

    def _parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """What is left over is a list here; ``parse_args`` would make a sentence of it."""
        namespace, unknown = super()._parse_known_args(*args, **kwargs)
        if not unknown:
            return namespace, unknown
        if not unknown[0].startswith("-"):
            raise UserError(f"unexpected argument {unknown[0]!r}")
        name = unknown[0].lstrip("-").partition("=")[0]
        raise UserError(f"unknown option --{name}: {nearest(name, {*self.names, 'config'})}")


class _Help(argparse._HelpAction):
    """Help that shows the settings of the preset that comes before it."""

    def __call__(self, parser: Any, namespace: Any, *args: Any, **kwargs: Any) -> None:
        preset = namespace.get("preset")
        parser.set_defaults(dict(parser.presets.get(preset or parser.default_preset, {})))
        super().__call__(parser, namespace, *args, **kwargs)


def plain(error: Exception) -> str:
    """What jsonargparse complains of, in a line: its key without quotes, a type by its name.

    This is for looks alone. Nothing is decided by what the message says, and one that is worded
    otherwise is shown as it is.
    """
    text = " ".join(str(error).split())
    text = re.sub(r'^(?:error: )?Parser key "([\w.]+)":', r"\1:", text)
    return re.sub(r"<class '(\w+)'>", r"\1", text)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else.
    """
    values = parse_yaml(path.read_text("utf-8"))
    if not isinstance(values, dict):
        raise ValueError("it is not a mapping")
    return values


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings as YAML, in their order."""
    return yaml.safe_dump(dict(settings), sort_keys=False)
