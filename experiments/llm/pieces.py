"""A study in pieces, a file each: a run makes those that are missing, and says what is left."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from torchmpo.runs.errors import UserError
from torchmpo.runs.files import write_atomic


def make_missing(
    pieces: Iterable[tuple[Any, ...]],
    path_of: Callable[[Any], Path],
    make: Callable[[Any], dict[str, Any]],
    words: Callable[[dict[str, Any]], str],
) -> None:
    """Make every piece whose file is not there, one after the other, and say what came of it.

    Args:
        pieces: in their order; the last but one part of each says what it is, as in ``trial``, and
            pieces of one such kind are taken to need the same time.
        path_of: where a piece is kept.
        make: its content, which may read the pieces before it.
        words: what came of it, for people.
    """
    todo = [piece for piece in pieces if not path_of(piece).exists()]
    spent: dict[str, list[float]] = {}
    for done, piece in enumerate(todo, 1):
        started = time.perf_counter()
        found = make(piece)
        write_atomic(path_of(piece), json.dumps(found, ensure_ascii=False, indent=0) + "\n")
        spent.setdefault(piece[-2], []).append(time.perf_counter() - started)
        every = [seconds for own in spent.values() for seconds in own]
        left = sum(float(np.mean(spent.get(rest[-2], every))) for rest in todo[done:]) / 60
        which = f"{done}/{len(todo)} {' '.join(map(str, piece))}"
        took = f"{spent[piece[-2]][-1]:.0f} s  {left:.0f} min left"
        print(f"{which}  {words(found)}  {took}", flush=True)


def keep_what_it_is(out: Path, about: dict[str, Any]) -> None:
    """Write down what a folder's pieces follow from, ``study.json``.

    Raises:
        UserError: the folder holds pieces that follow from something else.
    """
    path, about = out / "study.json", json.loads(json.dumps(about))
    if path.exists() and read_json(path) != about:
        raise UserError(f"{out} holds a run with other settings or models: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(about, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """The content of a file of the study.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged: {error}") from error
