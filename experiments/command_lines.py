"""What the command lines of the studies have in common."""

import argparse
from pathlib import Path


def study_parser(doc, name):
    """Options of every study: where its results go, and whether it trains, and in earnest.

    Args:
        doc: of its module, whose first line says what it asks.
        name: of its folder.
    """
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--out", type=Path, help=f"experiments/results/{name}")
    parser.add_argument("--report", action="store_true", help="of what is finished; train nothing")
    parser.add_argument("--smoke", action="store_true", help="a minute at most: see that it runs")
    return parser


def results_folder(name, smoke):
    """Of the results; a smoke run, which says nothing, leaves none among them."""
    return Path(f"runs/{name}_smoke" if smoke else f"experiments/results/{name}")
