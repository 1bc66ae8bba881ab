"""AlpacaEval's files: answers of a model, comparisons of two with preferences, a leaderboard.

Answers are a JSON list (or JSON lines) of ``{"instruction", "output", "generator", …}``;
comparisons (``annotations.json``) of ``{"instruction", "output_1", "output_2", "generator_1",
"generator_2", "annotator", "preference", …}``, where 1 is the reference and 2 the model, and the
preference goes from 1 (the reference's is better) to 2 (the model's is); 1.5, and in old files 0,
is a draw, and null a judge that could not tell.
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchmpo.runs.errors import UserError
from torchmpo.winrate.rates import Gamed

Row = dict[str, Any]

# Columns of comparisons: those of this name that answers bring along are of other comparisons.
OURS = {
    *("instruction", "output", "generator", "annotator", "preference", "glm_preference"),
    *(f"{name}_{i}" for name in ("output", "generator") for i in (1, 2)),
}


def read_outputs(path: str | Path, name: str | None = None) -> list[Row]:
    """The answers of one model.

    Args:
        path: JSON list or JSON lines.
        name: of the model, in place of the file's ``generator``.

    Returns:
        rows with ``instruction``, ``output``, ``generator`` and what else the file has.

    Raises:
        UserError: unreadable, no such rows, several generators, or none and no name.
    """
    rows = _read_rows(path, ("instruction", "output"))
    named = [row["generator"] for row in rows if row.get("generator")]
    if odd := [name for name in named if not isinstance(name, str)]:
        raise UserError(f"{path}: a generator is a text; got {odd[0]!r:.40}")
    generators = list(dict.fromkeys(named))
    if name is None and len(generators) > 1:
        raise UserError(
            f"{path} has outputs of {len(generators)} generators ({_first(generators)}): "
            "one file per model, please"
        )
    if name is None and not generators:
        raise UserError(f"{path} has no generator: say whose outputs they are with --name")
    return [row | {"generator": name or generators[0]} for row in rows]


def read_prompts(path: str | Path) -> list[Row]:
    """Prompts; of a file of answers, without the answers.

    Args:
        path: JSON list or JSON lines.

    Returns:
        rows with ``instruction`` and what else the file has.

    Raises:
        UserError: unreadable, or no such rows.
    """
    answer = ("output", "generator", "finish_reason")
    rows = _read_rows(path, ("instruction",))
    return [{key: value for key, value in row.items() if key not in answer} for row in rows]


def read_annotations(path: str | Path) -> list[Row]:
    """Comparisons with preferences.

    Raises:
        UserError: unreadable, no such rows, or a preference that is none.
    """
    rows = _read_rows(path, ("instruction", "output_1", "output_2"))
    for i, row in enumerate(rows):
        if "preference" not in row:
            raise UserError(f"{path}: row {i} has no preference")
        try:
            probability(row["preference"])
        except UserError as error:
            raise UserError(f"{path}: row {i}: {error}") from error
    return rows


def probability(preference: float | None) -> float:
    """That the model's answer is better, in [0, 1], NaN where there is no preference.

    Raises:
        UserError: it is neither 0, null, nor from 1 to 2.

    >>> probability(1.25), probability(0)
    (0.25, 0.5)
    """
    if preference is None:
        return math.nan
    number = isinstance(preference, (int, float)) and not isinstance(preference, bool)
    if number and math.isnan(preference):
        return math.nan
    if number and preference == 0:
        return 0.5
    if not number or not 1 <= preference <= 2:
        raise UserError(f"preference {preference!r} is neither in [1, 2], 0 (a draw) nor null")
    return preference - 1.0


def compare(reference: Sequence[Row], model: Sequence[Row], *, empty: str = "refuse") -> list[Row]:
    """One row per instruction, in the reference's order, without preferences.

    An instruction that occurs more than once is matched occurrence by occurrence. Columns that
    both have are kept once where they agree, and with ``_1`` and ``_2`` where they do not; those
    that comparisons have themselves are left out.

    Args:
        reference, model: of :func:`read_outputs`.
        empty: what to do with empty answers: ``"refuse"``, or ``"lose"``: they lose against any
            other without a judge.

    Returns:
        rows with ``instruction``, ``output_1``, ``generator_1`` of the reference, ``output_2``,
        ``generator_2`` of the model; a ``preference`` where no judge is needed: 1.5 between equal
        answers, and against empty ones.

    Raises:
        UserError: the files do not have the same instructions, both are by the same generator, or
            an answer is empty.
    """
    if empty not in ("refuse", "lose"):
        raise UserError(f"empty must be refuse or lose; got {empty!r}")
    names = reference[0]["generator"], model[0]["generator"]
    if names[0] == names[1]:
        raise UserError(
            f"both files are by generator {names[0]!r}; if they are two models, say --name"
        )
    left, right = _by_occurrence(reference), _by_occurrence(model)
    for have, miss, name in ((left, right, names[1]), (right, left, names[0])):
        if absent := [key[0] for key in have if key not in miss]:
            raise UserError(
                f"{len(absent)} of {len(have)} instructions have no output by {name!r}: "
                f"{_first(absent)}"
            )
    if empty == "refuse":
        for rows, name in ((reference, names[0]), (model, names[1])):
            if blank := [row["instruction"] for row in rows if not row["output"].strip()]:
                raise UserError(
                    f"{len(blank)} outputs by {name!r} are empty ({_first(blank)}); "
                    "--empty lose counts them as losses"
                )
    return [_merged(row, right[key]) for key, row in left.items()]


def read_gamed(path: str | Path) -> tuple[dict[int, float], Gamed]:
    """AlpacaEval's ``df_gamed.csv``: the prompts' difficulties, and the gamed baselines.

    Returns:
        difficulty by the index of the prompt in AlpacaEval's set, and the baselines.

    Raises:
        UserError: unreadable, or without its columns.
    """
    wanted = ("index", "instruction_difficulty", "std_delta_len", "preference")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        if missing := [name for name in wanted if not rows or name not in rows[0]]:
            raise ValueError(f"it has no {missing[0]}")
        columns = {name: [float(row[name] or "nan") for row in rows] for name in wanted}
        index = [int(i) for i in columns["index"]]
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        raise UserError(f"{path} is no df_gamed.csv: {error}") from error
    difficulty = dict(zip(reversed(index), reversed(columns["instruction_difficulty"])))
    gamed = Gamed(
        columns["std_delta_len"], columns["instruction_difficulty"], columns["preference"]
    )
    return difficulty, gamed


def difficulties(rows: Sequence[Row], difficulty: Mapping[int, float]) -> list[float]:
    """Each row's difficulty: by its ``index``, or else by its place, if all prompts are there.

    The package goes by the place without a look at the prompts, so that a subset of them, or
    another order, silently gets the difficulties of others.

    Raises:
        UserError: neither is possible.
    """
    if all(isinstance(row.get("index"), int) for row in rows):
        index = [row["index"] for row in rows]
    elif len(rows) == len(difficulty):
        index = list(range(len(rows)))
    else:
        raise UserError(
            f"there are difficulties of {len(difficulty)} prompts, and {len(rows)} comparisons "
            'without an "index" of theirs; use --glm length_controlled_minimal'
        )
    if absent := [i for i in index if i not in difficulty]:
        raise UserError(f"no difficulty is known of prompt {absent[0]}")
    return [difficulty[i] for i in index]


def annotations_text(rows: Sequence[Row]) -> str:
    """``annotations.json``; a NaN is null."""
    return json.dumps([_plain(row) for row in rows], indent=2, ensure_ascii=False) + "\n"


def leaderboard_text(name: str, row: Mapping[str, Any]) -> str:
    """``leaderboard.csv`` of one model, as the package reads it."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["", *row])
    writer.writerow([name, *("" if v != v else v for v in row.values())])  # NaN is left empty
    return file.getvalue()


def _read_rows(path: str | Path, texts: tuple[str, ...]) -> list[Row]:
    try:
        content = Path(path).read_text(encoding="utf-8-sig")  # some begin with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}") from error
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as whole:  # the second from brackets without end
        try:
            # Not splitlines(): JSON may hold U+2028 as it is.
            rows = [json.loads(line) for line in content.split("\n") if line.strip()]
        except (ValueError, RecursionError):
            raise UserError(f"{path} is neither JSON nor JSON lines: {whole}") from whole
    if isinstance(rows, dict) and {*texts} <= rows.keys():  # one JSON line
        rows = [rows]
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} must be a list of at least one row")
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {i} is no object of named values")
        for name in texts:
            if not isinstance(row.get(name), str):
                has = ", ".join(row) or "nothing"
                raise UserError(f"{path}: row {i} has no text {name!r}; it has {has}")
    return rows


def _by_occurrence(rows: Sequence[Row]) -> dict[tuple[str, int], Row]:
    seen: Counter[str] = Counter()
    out = {}
    for row in rows:
        text = row["instruction"]
        out[text, seen[text]] = row
        seen[text] += 1
    return out


def _merged(reference: Row, model: Row) -> Row:
    row: Row = {"instruction": reference["instruction"]}
    for name in ("output", "generator"):
        row |= {f"{name}_1": reference[name], f"{name}_2": model[name]}
    for name in dict.fromkeys([*reference, *model]):
        if name in OURS:
            continue
        values = [side[name] for side in (reference, model) if name in side]
        if len(values) == 2 and values[0] != values[1]:
            row |= {f"{name}_1": values[0], f"{name}_2": values[1]}
        else:
            row[name] = values[0]
    one, two = (not row[f"output_{i}"].strip() for i in (1, 2))
    if row["output_1"] == row["output_2"] or (one and two):
        row["preference"] = 1.5
    elif one or two:
        row["preference"] = 2.0 if one else 1.0
    return row


def _first(texts: Sequence[Any], count: int = 2) -> str:
    shown = ", ".join(repr(t if len(str(t)) <= 60 else f"{str(t)[:57]}…") for t in texts[:count])
    return shown + (", …" if len(texts) > count else "")


def _plain(row: Row) -> Row:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
