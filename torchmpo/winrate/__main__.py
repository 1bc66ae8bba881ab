"""How often a model's answers are preferred to a reference's: ``python -m torchmpo.winrate``.

    python -m torchmpo.winrate --outputs mine.json --reference base.json --judge my_judge:prefer
    python -m torchmpo.winrate --outputs mine.json --reference base.json --judge reward_model/
    python -m torchmpo.winrate --judge results/annotations.json
    python -m torchmpo.winrate --outputs mine.json --reference base.json \\
        --judge gpt-4-turbo --endpoint https://api.openai.com/v1 --template alpaca_eval

A judging function gives the probability that the *second* answer is better. Files are AlpacaEval's,
in and out, see `torchmpo.winrate.alpaca_files`; the numbers are in `torchmpo.winrate.rates`, the
judges in `torchmpo.winrate.judges`. The folder of a run has ``annotations.json`` and
``leaderboard.csv``, which ``alpaca_eval`` reads. The rates are those of AlpacaEval only with its
prompts, its reference, its judge and ``length_controlled_v1``.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from torchmpo.runs.command import Command
from torchmpo.winrate.settings import WinRateConfig

COMMAND = Command(
    program="python -m torchmpo.winrate",
    description="win rates of a model's answers against a reference's, in AlpacaEval's format",
    settings=WinRateConfig,
    presets={"default": {}},
    work="torchmpo.winrate.run",
    extra="winrate",
    out="runs/winrate",
    place=("batch_size", "endpoint", "key_variable", "timeout"),
    older={
        "endpoint": None,
        "template": "plain",
        "key_variable": "OPENAI_API_KEY",
        "timeout": 600.0,
    },
    code=("judge",),
)


def parser() -> ArgumentParser:
    """The options of the command."""
    return COMMAND.parser()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return COMMAND.main(argv)


if __name__ == "__main__":
    sys.exit(main())
