"""Look at an objective: ``python -m torchmpo.show RUN_OR_OBJECTIVE``.

Draws what a loss does to a pair, beside other losses: its functions if it is learned, its gradients
over the log-probabilities, its pull against the margin. ``--distill`` writes the closed form
nearest to it, ``--sparse`` a learned one with few hidden units, and formulas of its curves. Nothing
is trained, unless ``--visit`` asks for the log-probabilities that a training on the objective's own
data visits.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from torchmpo.runs.arguments import StrictParser
from torchmpo.runs.command import words
from torchmpo.runs.errors import exit_code
from torchmpo.runs.threads import wait_asleep
from torchmpo.show.settings import HIGH, LOW, Request


def parser() -> StrictParser:
    """The options of the command."""
    parser = StrictParser(prog="python -m torchmpo.show", description="Look at an objective.")
    parser.add_argument("what", help="folder of a run or of a saved objective, or a loss's name")
    parser.add_argument("--beside", help="losses to draw beside it, by commas, or none")
    parser.add_argument("--out", type=Path, help="folder of the figures")
    parser.add_argument("--distill", action="store_true", help="write its nearest closed form")
    parser.add_argument(
        "--sparse",
        action="store_true",
        help="of a learned objective: write it with few hidden units, and formulas of its curves",
    )
    parser.add_argument(
        "--visit",
        action="store_true",
        help="train a policy on the run's data, look at the log-probabilities it visits "
        "(about a minute, and its data is built if it is not there)",
    )
    parser.add_argument(
        "--trust", action="store_true", help="with --visit: run code that the run's files name"
    )
    parser.add_argument("--low", type=float, help=f"of mean log-probabilities; default {LOW}")
    parser.add_argument("--high", type=float, help=f"of mean log-probabilities; default {HIGH}")
    return parser


def parse(argv: Sequence[str]) -> Request:
    """The request that a command line makes.

    Raises:
        UserError: anything wrong with it.
    """
    given = vars(parser().parse_args(list(argv)))
    beside = given["beside"]
    if beside is not None:
        given["beside"] = [] if beside == "none" else words("beside", beside)
    return Request(**given)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""

    def work() -> None:
        request = parse(sys.argv[1:] if argv is None else argv)
        wait_asleep()
        from torchmpo.show.run import show  # takes seconds: --help does without

        show(request)

    return exit_code(work, extra="diagnose")


if __name__ == "__main__":
    sys.exit(main())
