"""A command with settings: its options, its YAML files and presets, the folder of a run.

A command has a frozen dataclass of settings. Its command line takes each of them as an option, and
besides a YAML file of any of them (``--config``), a named set (``--preset``), the folder of the run
(``--out``) and ``--resume``. Mistakes are one line on stderr and exit code 2, before any compute.
"""

import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torchmpo.runs import commands, live_page, made_of
from torchmpo.runs.errors import UserError, exit_code, nearest
from torchmpo.runs.files import alone_in, write_atomic
from torchmpo.runs.own_code import names_code
from torchmpo.runs.threads import wait_asleep

# What a folder has when a run begins.
BEFORE_ANY_WORK = ("config.yaml", made_of.FILE, commands.FILE, live_page.FILE)


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
            which refuses before anything is written there; and where users bring losses that no
            other record vouches for, ``fingerprints(prepared)``, a digest of each by name.
        extra: of this package, whose dependencies ``work`` needs.
        out: the default folder of a run.
        place: settings that may change on ``--resume``: where a run is computed, or how far.
        default_preset: the one that counts if none is named.
        grows: settings to which ``--resume`` adds: words by commas, and counts, which may rise.
        older: settings that runs of an older version do not have, with the values by which they
            were made.
        code: settings by which users name code of their own, ``package.module:function``, by
            commas. Where it is the files of a run that name it, ``--resume`` asks for ``--trust``.
        headline: settings that the first line of a run names; none for no such line.
        commands: settings that are a command to run; likewise.
        profiles: folder of YAML files, each a named bundle of settings for ``--profile``; None for
            no such option. A profile overrides the preset, an option overrides the profile.
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
    older: Mapping[str, Any] = field(default_factory=dict)
    code: Collection[str] = ()
    commands: Collection[str] = ()
    headline: Sequence[str] = ()
    profiles: Path | None = None

    def parser(self) -> Any:
        """The parser of the options."""
        from torchmpo.runs.options import OptionParser  # which --help can do without

        return OptionParser(
            self.program,
            self.description,
            self.settings,
            self.presets,
            self.default_preset,
            self.out,
            [path.stem for path in self._profiles()],
        )

    @cached_property
    def _of_files(self) -> Any:
        """A parser of what files have; one of a command line notes what it saw."""
        return self.parser()

    def _profiles(self) -> list[Path]:
        return sorted(self.profiles.glob("*.yaml")) if self.profiles else []

    def _profile(self, name: str) -> dict[str, Any]:
        """The settings of a named bundle."""
        paths = {path.stem: path for path in self._profiles()}
        if name not in paths:
            raise UserError(f"unknown profile {name!r}: {nearest(name, paths)}")
        from torchmpo.runs.options import read_settings

        return read_settings(paths[name])

    def parse(self, argv: Sequence[str]) -> tuple[Any, Path, bool]:
        """Settings, run folder and whether to resume, with the folder checked against them.

        Raises:
            UserError: anything wrong with the command line or the folder.
            SystemExit: help or the settings were asked for and have been printed.
        """
        given = self.parser().given(argv)
        out, resume = Path(given.pop("out", self.out)), given.pop("resume", False)
        trust = given.pop("trust", False)
        preset, only_print = given.pop("preset", None), given.pop("print_config", False)
        if (profile := given.pop("profile", None)) is not None:
            given = self._profile(profile) | given
        if preset is not None and preset not in self.presets:
            raise UserError(f"unknown preset {preset!r}: {nearest(str(preset), self.presets)}")
        stored = self._stored(out) if resume else None
        if stored is not None and preset is None:
            defaults = stored
        else:
            defaults = self.presets[preset or self.default_preset]
            if stored is not None:  # where it is computed, the preset does not say
                defaults = {**defaults, **{name: stored[name] for name in self.place}}
        config = self.settings(**{**defaults, **given})
        if only_print:
            print(_text(config), end="")
            raise SystemExit(0)
        if stored is not None:
            made_of.check_settings(out, self._fixed(stored))
            for name, value in asdict(config).items():
                if name not in {*self.place, *self.grows} and value != stored[name]:
                    raise UserError(
                        f"--resume: {name} is {value!r}, but the run in {out} has "
                        f"{stored[name]!r}; drop that setting, or choose another --out"
                    )
            config = replace(config, **self._grown(given, stored, out))
            if not trust:
                self._refuse_code(config, given, out)
        else:
            self._refuse_begun(out)
            if out.exists() and (not out.is_dir() or any(_visible(out))):
                raise UserError(f"{out} exists and is not an empty folder: choose another --out")
        return config, out, resume

    def _refuse_begun(self, out: Path) -> None:
        if (out / "config.yaml").exists():
            raise UserError(f"{out} has a run: go on with --resume, or choose another --out")

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Parse, check, write ``config.yaml``, run.

        Args:
            argv: the command line; None for the process's own.

        Returns:
            the exit code.
        """
        out, code = None, False
        words = sys.argv[1:] if argv is None else argv

        def work() -> int | None:
            nonlocal out, code
            needed = ("jsonargparse", "yaml")
            if {"-h", "--help"} & set(words) and None in map(find_spec, needed):
                return print(self._help())
            config, out, resumed = self.parse(words)
            code = bool(self._own_code(config))
            if self.headline:  # imports take seconds
                print(self._first_line(config, out, resumed), flush=True)
            wait_asleep()
            module = importlib.import_module(self.work) if isinstance(self.work, str) else self.work
            prepared = module.prepare(config)
            losses = module.fingerprints(prepared) if hasattr(module, "fingerprints") else {}
            out.mkdir(parents=True, exist_ok=True)
            with alone_in(out):
                if not resumed:  # another run may have come first
                    self._refuse_begun(out)
                made_of.check_losses(out, losses)
                if hasattr(module, "check"):
                    module.check(prepared, out)
                write_atomic(out / "config.yaml", _text(config))
                made_of.write(out, self._fixed(asdict(config)), losses)
                commands.note_command(out, self.program, words)
                try:
                    with live_page.live_page(out, self._first_line(config, out, resumed)):
                        code_of_run = module.run(prepared, out)
                except Exception:
                    # A run that failed before any work does not claim its folder.
                    if not resumed and {p.name for p in _visible(out)} == {*BEFORE_ANY_WORK}:
                        for name in BEFORE_ANY_WORK:
                            (out / name).unlink()
                    raise
                if not (out / "config.yaml").exists():
                    raise UserError(f"{out} was removed while the run was at work: begin it again")
                return code_of_run

        def interrupted() -> str:
            begun = out is not None and (out / "config.yaml").exists()
            folder = shlex.quote(str(out))
            trust = " --trust" if code else ""
            how = f"; go on with: {self.program} --out {folder} --resume{trust}" if begun else ""
            return f"interrupted{how}"

        return exit_code(work, interrupted, self.extra)

    def _fixed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that must not change on ``--resume``."""
        free = {*self.place, *self.grows}
        return {name: value for name, value in settings.items() if name not in free}

    def _help(self) -> str:
        """Help where jsonargparse is not installed: what the dataclass says of its settings."""
        explained = [
            inspect.cleandoc(part.__doc__ or "")
            for part in reversed(self.settings.__mro__)
            if is_dataclass(part)
        ]
        usage = f"usage: {self.program} [--config FILE] [--preset NAME] [--out FOLDER] [--resume]"
        return "\n\n".join(
            [
                f"{usage} [--SETTING VALUE ...]",
                self.description,
                f"NAME is one of {', '.join(self.presets)}; FOLDER is {self.out} by default.",
                *explained,
            ]
        )

    def _first_line(self, config: Any, out: Path, resumed: bool) -> str:
        """What begins."""
        what = ", ".join(str(getattr(config, name)).replace(",", ", ") for name in self.headline)
        again = ", resumed" if resumed else ""
        name = self.program.replace(".", " ").split()[-1]
        return f"{name}: {what} → {out}{again}"

    def _own_code(self, config: Any) -> dict[str, str]:
        """Functions of the user's own that settings name, each with its setting."""
        values = {s: getattr(config, s) for s in self.code}
        named = {n: s for s, value in values.items() if value for n in words(s, value)}
        if getattr(config, "endpoint", None) is not None:  # a name there is the endpoint's
            return {}
        found = {n: s for n, s in named.items() if names_code(n)}
        return found | {getattr(config, s): s for s in self.commands if getattr(config, s)}

    def _refuse_code(self, config: Any, given: Mapping[str, Any], out: Path) -> None:
        """Raise UserError for code that nobody but the files of a run has named: they may have come
        from somewhere else, and to import is to run.
        """
        for name, setting in self._own_code(config).items():
            said = str(given.get(setting, ""))
            if name not in (said, *map(str.strip, said.split(","))):
                raise UserError(
                    f"--resume: {out / 'config.yaml'} names code to run, {name}: if the run is "
                    f"yours or you trust it, add --trust, or name it yourself, --{setting} "
                    + (shlex.quote(name) if setting in self.commands else name)
                )

    def _grown(self, given: Mapping[str, Any], stored: Mapping[str, Any], out: Path) -> dict:
        """Each count as given now, and the words of the run before those given now, each once.

        Args:
            given: on the command line and in files; what a preset says is not given.
        """
        grown = {}
        for name in self.grows:
            known = stored[name]
            value = given.get(name, known)
            if isinstance(value, str) and value != known:
                both = dict.fromkeys((words(name, known) if known else []) + words(name, value))
                grown[name] = ",".join(map(word, both))
            elif isinstance(value, int) and value < known:
                raise UserError(
                    f"--resume: {name} is {value}, but the run in {out} has {known} and can only "
                    "grow; drop that setting, or choose another --out"
                )
            else:
                grown[name] = value
        return grown

    def _stored(self, out: Path) -> dict[str, Any]:
        """The settings of the run in a folder."""
        from torchmpo.runs.options import read_settings

        path = out / "config.yaml"
        if not path.exists():
            empty = not out.exists() or (out.is_dir() and not any(_visible(out)))
            instead = "start one without --resume" if empty else "choose another --out"
            raise UserError(f"--resume: there is no run in {out}; {instead}")
        names = [field.name for field in fields(self.settings)]
        try:
            values = read_settings(path)
            values = {**self.older, **values}
            if missing := set(names) - values.keys():
                raise ValueError(f"{sorted(missing)[0]} is missing")
            checked = self._of_files.checked(values)
            return {name: checked[name] for name in names}
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path} is not the configuration of a run of {self.program}: {reason}"
            ) from error


def _text(config: Any) -> str:
    from torchmpo.runs.options import settings_text

    return settings_text(asdict(config))


def words(name: str, text: str) -> list[str]:
    r"""The parts of a comma-separated setting, each once; ``\,`` is a comma within a part.

    Raises:
        UserError: there are none.

    >>> words("losses", r"orpo, runs/a\,b/objective,orpo")
    ['orpo', 'runs/a,b/objective']
    """
    parts = (part.strip().replace(r"\,", ",") for part in re.split(r"(?<!\\),", text))
    if not (found := list(dict.fromkeys(filter(None, parts)))):
        raise UserError(f"{name} is empty: name at least one, separated by commas")
    return found


def word(part: str) -> str:
    """A part of a comma-separated setting as it is written there, see :func:`words`."""
    return part.replace(",", r"\,")


def duration(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``.

    >>> duration(3700)
    '1:01:40'
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _visible(folder: Path) -> list[Path]:
    """What a user would see; a kill may leave a temporary file behind."""
    return [p for p in folder.iterdir() if not p.name.startswith(".")]
