"""How good is a preference loss, and on which data does it break? ``python -m torchmpo.diagnose``.

Every loss is tuned with the same number of trials on every kind of data, trained again on fresh
seeds, and judged by the true return. A finished cell (loss × data) is on disk at once; a run goes
on with ``--resume``, also with more losses, more data or more seeds: ``--resume --losses x`` adds x
to the losses of the run. To take a loss out of a run, take it out of its ``config.yaml``.
``--data list`` prints all kinds of data.

``--vary pairs=64,256 --vary policy=categorical`` runs every cell again with one setting changed at
a time: the report has what each change does to each loss, seed by seed.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from itertools import pairwise

from torchmpo.control.settings import OLDER, PROFILES
from torchmpo.diagnose.settings import PLACE, PRESETS, DiagnoseConfig
from torchmpo.runs.command import Command
from torchmpo.runs.errors import exit_code

COMMAND = Command(
    program="python -m torchmpo.diagnose",
    description="How good is a preference loss, and on which data does it break?",
    settings=DiagnoseConfig,
    presets=PRESETS,
    work="torchmpo.diagnose.run",
    extra="diagnose",
    out="runs/diagnose",
    place=PLACE,
    default_preset="quick",
    grows=("losses", "data", "seeds", "baselines"),
    older={
        **OLDER,
        **{"data_per_seed": False, "tuning_reduction": 1, "checkpoints": 0, "vary": None},
        **{"baselines": None, "rlhf_steps": 1_000_000},
    },
    code=("losses", "task"),
    headline=("task", "data"),
    profiles=PROFILES,
)


def parser() -> ArgumentParser:
    """The options of the command."""
    return COMMAND.parser()


def _list_data() -> None:
    from torchmpo.control.kinds import listing  # which takes a second

    print(listing())


def joined(argv: Iterable[str]) -> list[str]:
    """A command line in which ``--vary`` stands once, however often it was given.

    >>> joined(["--vary", "pairs=64,256", "--seeds", "2", "--vary=bins=5"])
    ['--seeds', '2', '--vary', 'pairs=64,256;bins=5']
    """
    rest, given, follows = [], [], False
    words = list(argv)
    for word in words:
        if follows and word.startswith("--"):  # for the parser to complain of
            return words
        if follows or word.startswith("--vary="):
            given.append(word if follows else word.removeprefix("--vary="))
            follows = False
        elif word == "--vary":
            follows = True
        else:
            rest.append(word)
    if follows:  # without a value, for the parser to complain of
        return [*rest, "--vary"]
    return [*rest, "--vary", ";".join(given)] if given else rest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, or print all kinds of data; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--data=list" in words or ["--data", "list"] in map(list, pairwise(words)):
        return exit_code(_list_data, extra=COMMAND.extra)
    return COMMAND.main(joined(words))


if __name__ == "__main__":
    sys.exit(main())
