"""A model's answers to prompts: ``python -m torchmpo.generate``.

    python -m torchmpo.generate --model runs/mine/adapter --prompts prompts.json --out runs/answers
    python -m torchmpo.generate --model gpt-4o --endpoint https://api.openai.com/v1 --prompts …

Prompts and answers are AlpacaEval's files, see `torchmpo.winrate.alpaca_files`. The folder of a run
has ``outputs.json``, which ``python -m torchmpo.winrate --outputs`` takes, once all answers are
there; until then ``partial.json``, from which ``--resume`` goes on.
"""

import sys
from collections.abc import Sequence

from torchmpo.generate.settings import GenerateConfig
from torchmpo.runs.command import Command

COMMAND = Command(
    program="python -m torchmpo.generate",
    description="a model's answers to prompts, in AlpacaEval's format",
    settings=GenerateConfig,
    presets={"default": {}},
    work="torchmpo.generate.run",
    extra="llm",
    out="runs/generate",
    place=("batch_size", "device", "endpoint", "key_variable", "timeout"),
)


def parser():
    """The options of the command."""
    return COMMAND.parser()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return COMMAND.main(argv)


if __name__ == "__main__":
    sys.exit(main())
