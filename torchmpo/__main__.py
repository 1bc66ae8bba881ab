"""One program for all commands: ``torchmpo evolve …`` is ``python -m torchmpo.evolve …``."""

import importlib
import os
import sys
from collections.abc import Sequence

from torchmpo import __version__
from torchmpo.runs.arguments import StrictParser
from torchmpo.runs.errors import UserError, exit_code, nearest

COMMANDS = {
    "evolve": "discover a preference loss by evolution",
    "diagnose": "how good is a preference loss, and on which data does it break?",
    "show": "look at an objective: its functions, its gradients, its closed form",
    "finetune": "fine-tune a language model on preference pairs with any loss",
    "generate": "a model's answers to prompts",
    "winrate": "how often a model's answers are preferred to a reference's",
}
SHELLS = ("bash", "zsh")
HELP = """usage: torchmpo COMMAND [options]

{commands}

  torchmpo COMMAND --help      the options of a command
  torchmpo --version           the version
  torchmpo completion SHELL    a script that completes commands and options, for bash or zsh

To complete with the tab key, put  eval "$(torchmpo completion bash)"  into ~/.bashrc,
or  eval "$(torchmpo completion zsh)"  into ~/.zshrc, after compinit.
`torchmpo COMMAND` is the same as `python -m torchmpo.COMMAND`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: its name and its options; None for the process's own.

    Returns:
        the exit code: 2 for a mistake, told in one line.

    Raises:
        SystemExit: the command printed its help.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        # As `python -m` does, and an installed program does not: one's own losses are found here.
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        return importlib.import_module(f"torchmpo.{words[0]}.__main__").main(words[1:])
    return exit_code(lambda: _about(words))


def _about(words: Sequence[str]) -> None:
    """What is no command of a package."""
    if not words or words[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {n:<10} {what}" for n, what in COMMANDS.items())))
    elif words[0] == "--version":
        print(f"torchmpo {__version__}")
    elif words[0] == "completion":
        if len(words) != 2 or words[1] not in SHELLS:
            raise UserError(f"name one shell: torchmpo completion {' or '.join(SHELLS)}")
        print(_completion(words[1]))
    else:
        names = [*COMMANDS, "completion"]
        raise UserError(f"unknown command {words[0]!r}: {nearest(words[0], names)}")


def _completion(shell: str) -> str:
    from torchmpo.runs.completion import script  # only here is its package needed

    parser = StrictParser(prog="torchmpo")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers()
    for name, what in COMMANDS.items():
        module = importlib.import_module(f"torchmpo.{name}.__main__")
        of_command = module.parser()
        commands.add_parser(name, help=what, parents=[of_command], add_help=False)
    shells = commands.add_parser("completion", help="a script that completes commands and options")
    shells.add_argument("shell", choices=SHELLS)
    return script(parser, shell)


if __name__ == "__main__":
    sys.exit(main())
