"""One setting of a run changed at a time: ``--vary pairs=64,256``."""

from dataclasses import fields, replace
from pathlib import Path

from torchmpo.control.settings import TestbedSettings
from torchmpo.diagnose.settings import DiagnoseConfig
from torchmpo.runs.errors import UserError, nearest
from torchmpo.runs.files import slug
from torchmpo.runs.options import OptionParser

# What a variant shares with its run, so that seeds can be compared one by one, or what changes no
# result.
_SHARED = (
    "task",
    "original",
    "target",
    "seed",
    "num_threads",
    "cache_dir",
    "chunk_size",
    "tracker",
)
FOLDER = "vary"


def variants(config: DiagnoseConfig) -> dict[str, DiagnoseConfig]:
    """The settings of each variant by what it is called, as in ``pairs=64``.

    Those that are the run's own settings are left out.

    Raises:
        UserError: a setting that cannot vary, no value for it, or one that it cannot have.
    """
    if not config.vary:
        return {}
    able = [f.name for f in fields(TestbedSettings) if f.name not in _SHARED]
    parser = OptionParser("diagnose", "", DiagnoseConfig, {"": {}}, "", "", [])
    found: dict[str, DiagnoseConfig] = {}
    for part in filter(None, map(str.strip, config.vary.split(";"))):
        name, equals, values = part.partition("=")
        if name not in able:
            raise UserError(f"vary: {name!r} cannot vary: {nearest(name, able)}")
        if not equals or not values.strip(","):
            raise UserError(f"vary: give {name} values, as in {name}=VALUE,VALUE")
        for text in filter(None, map(str.strip, values.split(","))):
            value = parser.given([f"--{name}={text}"])[name]
            if value != getattr(config, name):
                # Baselines are of the run itself: no table compares them between settings.
                changed = {"vary": None, "baselines": None, name: value}
                found[f"{name}={value}"] = replace(config, **changed)
    return found


def folder(out: Path, variant: str) -> Path:
    """Where the cells of a variant are."""
    return out / FOLDER / slug(variant)
