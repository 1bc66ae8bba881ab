"""Discover a preference loss by evolution: ``python -m torchmpo.evolve``.

Policies are trained on preference data under a population of candidate losses; the mean return of
each trained policy is the fitness of its loss; an evolution strategy moves towards the fittest.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import fields

from torchmpo.control.settings import OLDER, PROFILES
from torchmpo.evolve.settings import PLACE, PRESETS, EvolveConfig
from torchmpo.runs.command import Command

COMMAND = Command(
    program="python -m torchmpo.evolve",
    description="Discover a preference loss by evolution.",
    settings=EvolveConfig,
    presets=PRESETS,
    work="torchmpo.evolve.run",
    extra="evolve",
    out="runs/evolve",
    place=PLACE,
    grows=("rivals", "generations"),
    older={
        **OLDER,
        "tuning_seeds": 1,
        "tuning_reduction": 1,
        "streams": "shared",
        "search_rate": False,
        "final_data_per_seed": False,
        "curriculum": "off",
        "antagonist": "slic_hf",
        "fitness_steps": None,
        # Of formulas, which no older run has.
        **{
            field.name: field.default
            for field in fields(EvolveConfig)
            if field.name in ("nodes", "reads", "require") or field.name.startswith("proposer")
        },
    },
    code=("rivals", "antagonist", "task"),
    commands=("proposer",),
    headline=("task", "data"),
    profiles=PROFILES,
)


def parser() -> ArgumentParser:
    """The options of the command."""
    return COMMAND.parser()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    return COMMAND.main(argv)


if __name__ == "__main__":
    sys.exit(main())
