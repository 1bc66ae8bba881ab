"""What the command lines share: settings from a dataclass, presets, files, run folders, errors.

A command has a frozen dataclass of settings. Its command line takes each of them as an option, and
besides a YAML file of any of them (``--config``), a named set (``--preset``), the folder of the run
(``--out``) and ``--resume``. Mistakes are one line on stderr and exit code 2, before any compute.
"""

import importlib
import json
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from torchmpo.runs.errors import UserError, exit_code, nearest
from torchmpo.runs.files import alone_in, write_atomic


@dataclass(frozen=True)
class Command:
    """One command line.

    Args:
        program: how it is called, for messages.
        description: one line for ``--help``.
        settings: the dataclass.
        presets: name → settings that differ from the dataclass's defaults; has ``"default"``.
        work: module, or its name, which is imported when the command line has been understood,
            so that ``--help`` and a misspelt option are answered at once. It has
            ``prepare(settings)``, which returns all that the run consists of, checked;
            ``run(prepared, out)``, which does it and returns the exit code, or None for 0; and
            where the folder may hold what the run cannot go on with, ``check(prepared, out)``,
            which refuses before anything is written there.
        extra: of this package, whose dependencies ``work`` needs.
        out: the default folder of a run.
        place: settings that may change on ``--resume``: where a run is computed, or how far.
        grows: settings to which ``--resume`` adds: words by commas, and counts, which may rise.
    """

    program: str
    description: str
    settings: type
    presets: Mapping[str, Mapping[str, Any]]
    work: Any
    extra: str
    out: str
    place: Collection[str]
    default_preset: str = "default"
    grows: Collection[str] = ()

    def parser(self, defaults: Mapping[str, Any]):
        """The parser, with ``defaults`` in place of those of the dataclass."""
        parser = ArgumentParser(
            prog=self.program,
            description=self.description,
            exit_on_error=False,
            allow_abbrev=False,
        )
        parser.add_argument(
            "--config", action="config", help="YAML file with any of these settings"
        )
        parser.add_argument(
            "--preset", default=self.default_preset, help=f"one of {', '.join(self.presets)}"
        )
        parser.add_argument("--out", default=self.out, help="folder of the run")
        parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
        parser.add_class_arguments(self.settings)
        parser.set_defaults(dict(defaults))
        return parser

    def parse(self, argv: Sequence[str]) -> tuple[Any, Path, bool]:
        """Settings, run folder and whether to resume, with the folder checked against them.

        Raises:
            UserError: anything wrong with the command line or the folder.
        """
        first = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
        first.add_argument("--preset", default=None, type=str | None)
        first.add_argument("--out", default=self.out)
        first.add_argument("--resume", action="store_true")
        first.add_argument("--config", default=None, type=str | None)
        own = ("--preset", "--out", "--resume", "--config")
        given = self._readable(first.parse_args, _only(argv, own))
        out, resume = Path(given.out), given.resume
        preset = given.preset or _preset_in(given.config)
        if preset is not None and preset not in self.presets:
            raise UserError(f"unknown preset {preset!r}: {nearest(preset, self.presets)}")
        stored = self._stored(out) if resume else None
        defaults = self.presets[preset or self.default_preset]
        if stored is not None and preset is None:
            defaults = stored
        namespace = self._readable(self.parser(defaults).parse_args, list(argv))
        if (namespace.out, namespace.resume) != (given.out, given.resume):
            raise UserError("give --out and --resume on the command line, after --config")
        config = self._config(namespace)
        if stored is not None:
            for name, value in asdict(config).items():
                if name not in {*self.place, *self.grows} and value != stored[name]:
                    raise UserError(
                        f"--resume: {name} is {value!r}, but the run in {out} has "
                        f"{stored[name]!r}; drop that setting, or choose another --out"
                    )
            given = self._config(self._readable(self.parser(stored).parse_args, list(argv)))
            config = replace(config, **self._grown(given, stored, out))
        elif (out / "config.yaml").exists():
            raise UserError(f"{out} has a run: go on with --resume, or choose another --out")
        elif out.exists() and (not out.is_dir() or any(_visible(out))):
            raise UserError(f"{out} exists and is not an empty folder: choose another --out")
        return config, out, resume

    def main(
        self,
        argv: Sequence[str] | None = None,
    ) -> int:
        """Parse, check, write ``config.yaml``, run.

        Args:
            argv: the command line; None for the process's own.

        Returns:
            the exit code.
        """
        out = None

        def work() -> int | None:
            nonlocal out
            config, out, _ = self.parse(sys.argv[1:] if argv is None else argv)
            module = self._work()
            prepared = module.prepare(config)
            out.mkdir(parents=True, exist_ok=True)
            with alone_in(out):
                if hasattr(module, "check"):
                    module.check(prepared, out)
                write_atomic(out / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
                return module.run(prepared, out)

        def interrupted() -> str:
            begun = out is not None and (out / "config.yaml").exists()
            folder = shlex.quote(str(out))
            how = f"; go on with: {self.program} --out {folder} --resume" if begun else ""
            return f"interrupted{how}"

        return exit_code(work, interrupted)

    def _work(self) -> Any:
        if not isinstance(self.work, str):
            return self.work
        try:
            return importlib.import_module(self.work)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{error.name} is not installed: pip install 'torchmpo[{self.extra}]'"
            ) from error

    def _grown(self, config: Any, stored: Mapping[str, Any], out: Path) -> dict[str, Any]:
        """Each count as given now, and the words of the run before those given now, each once.

        Args:
            config: where nothing is given, what is stored; what a preset says is not given.
        """
        grown = {}
        for name in self.grows:
            given, known = getattr(config, name), stored[name]
            if isinstance(given, str) and given != known:
                grown[name] = ",".join(dict.fromkeys(words(name, known) + words(name, given)))
            elif isinstance(given, int) and given < known:
                raise UserError(
                    f"--resume: {name} is {given}, but the run in {out} has {known} and can only "
                    "grow; drop that setting, or choose another --out"
                )
            else:
                grown[name] = given
        return grown

    def _config(self, namespace) -> Any:
        values = namespace.as_dict()
        return self.settings(**{f.name: values[f.name] for f in fields(self.settings)})

    def _stored(self, out: Path) -> dict:
        path = out / "config.yaml"
        if not path.exists():
            empty = not out.exists() or (out.is_dir() and not any(_visible(out)))
            instead = "start one without --resume" if empty else "choose another --out"
            raise UserError(f"--resume: there is no run in {out}; {instead}")
        try:
            values = yaml.safe_load(path.read_text())
            if not isinstance(values, dict):
                raise ValueError("it is not a mapping")
            if missing := {f.name for f in fields(self.settings)} - values.keys():
                raise ValueError(f"{sorted(missing)[0]} is missing")
            return asdict(self._config(self._readable(self.parser({}).parse_object, values)))
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path} is not the configuration of a run of {self.program}: {reason}"
            ) from error

    def _readable(self, parse, argument):
        """Run a parser; its complaint becomes one line that names the nearest valid key."""
        keys = [f.name for f in fields(self.settings)] + ["preset", "out", "resume", "config"]
        try:
            return parse(argument)
        except UnicodeDecodeError as error:
            raise UserError(f"--config: the file is not text ({error})") from error
        except (ArgumentError, KeyError, TypeError) as error:
            text = " ".join(str(error).split())
            if match := re.search(r"unrecognized arguments: (\S+)", text):
                if not match[1].startswith("-"):
                    raise UserError(f"unexpected argument {match[1]!r}") from error
                name = match[1].lstrip("-").partition("=")[0]
                raise UserError(f"unknown option --{name}: {nearest(name, keys)}") from error
            if match := re.search(r"Option '([^']+)' is not accepted", text):
                raise UserError(f"unknown key {match[1]!r}: {nearest(match[1], keys)}") from error
            text = re.sub(r"^Parser key \"(\w+)\":", r"\1:", text)
            raise UserError(re.sub(r"<class '(\w+)'>", r"\1", text)) from error


def words(name: str, text: str) -> list[str]:
    """The parts of a comma-separated setting, each once.

    Raises:
        UserError: there are none.
    """
    parts = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not parts:
        raise UserError(f"{name} is empty: name at least one, separated by commas")
    return parts


def read_json(path: Path) -> Any:
    """A file of a run folder.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and --resume") from error


def duration(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``.

    >>> duration(3700)
    '1:01:40'
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _preset_in(path: str | None) -> str | None:
    """The preset that a configuration file names; the real parser complains of a bad file."""
    try:
        values = yaml.safe_load(Path(path).read_text()) if path else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return str(values["preset"]) if isinstance(values, dict) and "preset" in values else None


def _only(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """The options ``names`` with their values, so that the rest is left to the real parser."""
    kept = []
    for i, word in enumerate(argv):
        name, equals, _ = word.partition("=")
        if name in names:
            kept.append(word)
            if not equals and name != "--resume":
                kept += argv[i + 1 : i + 2]
    return kept


def _visible(folder: Path) -> list[Path]:
    """What a user would see; a kill may leave a temporary file behind."""
    return [p for p in folder.iterdir() if not p.name.startswith(".")]
