"""An evaluation from its files to its rates: what ``python -m torchmpo.winrate`` does."""

import hashlib
import math
import statistics
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from torchmpo.runs.errors import UserError, nearest
from torchmpo.runs.extras import how_to_install
from torchmpo.runs.files import write_atomic
from torchmpo.runs.model_folders import model_digests
from torchmpo.winrate.alpaca_files import (
    Row,
    annotations_text,
    compare,
    difficulties,
    leaderboard_text,
    probability,
    read_annotations,
    read_gamed,
    read_outputs,
)
from torchmpo.winrate.endpoint import Endpoint
from torchmpo.winrate.endpoint_judge import EndpointJudge
from torchmpo.winrate.judges import AnnotationsJudge, FunctionJudge, Judge, resolve_judge
from torchmpo.winrate.rates import FOLDS, LengthControlled, describe, length_controlled_win_rate
from torchmpo.winrate.settings import GLMS, WinRateConfig


class Evaluation(NamedTuple):
    """What an evaluation consists of, checked."""

    config: WinRateConfig
    rows: list[Row]
    judge: Judge
    difficulty: list[float] | None
    gamed: Any


def prepare(config: WinRateConfig) -> Evaluation:
    """Read the files and the judge.

    Raises:
        UserError: a setting is wrong or missing, or a file or a package is.
    """
    if config.judge is None:
        raise UserError("--judge: an annotations file, package.module:function, or a reward model")
    if config.glm not in GLMS:
        raise UserError(f"unknown glm {config.glm!r}: {nearest(config.glm, GLMS)}")
    if (config.gamed is None) != (config.glm == GLMS[0]):
        raise UserError(f"--gamed FILE goes with --glm {GLMS[1]} or {GLMS[2]}")
    if not config.timeout > 0:
        raise UserError(f"timeout must be positive; got {config.timeout}")
    if config.batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {config.batch_size}")
    if (config.outputs is None) != (config.reference is None):
        raise UserError("give both --outputs and --reference")
    if config.outputs is None or config.reference is None:
        rows = _all_annotated(config)
    else:
        reference, model = read_outputs(config.reference), read_outputs(config.outputs, config.name)
        rows = compare(reference, model, empty=config.empty)
    if len(rows) >= FOLDS and find_spec("sklearn") is None:
        # Of the length-controlled rate, which comes last: a judge may cost money.
        raise UserError(how_to_install("sklearn"))
    difficulty = gamed = None
    if config.gamed is not None:
        by_index, gamed = read_gamed(config.gamed)
        difficulty = difficulties(rows, by_index)
    judge = judge_of(config, config.judge)
    if isinstance(judge, AnnotationsJudge):
        _judged(judge, _unjudged(rows))  # what is missing is told before anything is written
    return Evaluation(config, rows, judge, difficulty, gamed if config.glm == GLMS[2] else None)


def fingerprints(evaluation: Evaluation) -> dict[str, str | None]:
    """What `judge_digests` gives of the judge."""
    return judge_digests(evaluation.config, evaluation.judge)


def judge_digests(config: WinRateConfig, judge: Judge) -> dict[str, str | None]:
    """A digest of what judges, by its name: a function of one's own, annotations, a template, the
    folder of a reward model.

    None where there can be no digest. Models of the hub and behind endpoints count by their names.

    Args:
        config: by whose settings the judge was found.
        judge: from `judge_of`.
    """
    if isinstance(judge, FunctionJudge):
        from torchmpo.objectives.fingerprint import Unknowable, fingerprint  # imports torch

        try:
            return {str(config.judge): fingerprint(judge.function)}
        except Unknowable:
            return {str(config.judge): None}
    name = config.template if config.endpoint is not None else str(config.judge)
    if Path(name).is_file():
        return {name: _digest(Path(name))}
    return {} if config.endpoint is not None else {**model_digests(name)}


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def judge_of(config: WinRateConfig, name: str) -> Judge:
    """The judge of this name, behind the settings' endpoint if they have one.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    if config.endpoint is None:
        return resolve_judge(
            name,
            both_orders=config.both_orders,
            batch_size=config.batch_size,
            timeout=config.timeout,
        )
    endpoint = Endpoint(
        config.endpoint,
        name,
        key_variable=config.key_variable,
        timeout=config.timeout,
        at_once=config.batch_size,
    )
    return EndpointJudge(endpoint, template=config.template, both_orders=config.both_orders)


def run(evaluation: Evaluation, out: Path) -> None:
    """Judge what is not judged yet, write the files, print the rates."""
    config, rows, judge, difficulty, gamed = evaluation
    path = out / "annotations.json"
    if path.exists():
        before = AnnotationsJudge(read_annotations(path), str(path))
        known = [row for row in _unjudged(rows) if row in before]
        _set(known, _judged(before, known), str(config.judge))
    todo = _unjudged(rows)
    for start in range(0, len(todo), config.batch_size):
        batch = todo[start : start + config.batch_size]
        _set(batch, _judged(judge, batch), str(config.judge))
        write_atomic(path, annotations_text([row for row in rows if "preference" in row]))
    values = [probability(row["preference"]) for row in rows]
    lengths = {i: [len(row[f"output_{i}"]) for row in rows] for i in (1, 2)}
    controlled = None
    if sum(not math.isnan(p) for p in values) >= FOLDS:
        controlled = length_controlled_win_rate(
            values, lengths[2], lengths[1], difficulty=difficulty, gamed=gamed
        )
        for row, p in zip(rows, controlled.predictions.tolist(), strict=True):
            row["glm_preference"] = p
    name = str(rows[0]["generator_2"])
    board = describe(values) | {
        "mode": "community",
        "avg_length": int(sum(lengths[2]) / len(rows)),
        "length_controlled_winrate": controlled.win_rate if controlled else math.nan,
        "lc_standard_error": controlled.standard_error if controlled else math.nan,
        "lc_robust_error": controlled.robust_error if controlled else math.nan,
        "glm": config.glm,
        "reference": rows[0]["generator_1"],
        "judge": config.judge,
    }
    write_atomic(path, annotations_text(rows))
    write_atomic(out / "leaderboard.csv", leaderboard_text(name, board))
    print(summary(name, board, controlled, lengths, missing=sum(map(math.isnan, values))))
    if cut := getattr(judge, "cut", 0):
        print(f"{cut} texts were longer than the reward model takes: their beginnings were cut off")
    print(f"wrote {path} and {out / 'leaderboard.csv'}")


def summary(
    name: str,
    board: dict[str, Any],
    controlled: LengthControlled | None,
    lengths: dict[int, list[int]],
    missing: int,
) -> str:
    """A few lines for the terminal."""
    text = [
        f"{name} against {board['reference']}, {board['n_total']} comparisons by {board['judge']}",
        f"  win rate           {_rate(board['win_rate'], board['standard_error'])}   "
        f"{board['n_wins']} won, {board['n_wins_base']} lost, {board['n_draws']} drawn",
    ]
    if controlled is None:
        text.append(f"  length-controlled  needs at least {FOLDS} comparisons")
    else:
        rate = _rate(controlled.win_rate, controlled.robust_error)
        text.append(f"  length-controlled  {rate}   {board['glm']}")
        if not any(controlled.coefficients.values()):
            text.append("    (no preference stood out from its penalty, which makes it 50)")
    mine, others = (_characters(lengths[i]) for i in (2, 1))
    text.append(f"  characters         {mine} against {others}")
    if missing:
        text.append(f"  {missing} comparisons without a preference do not count")
    return "\n".join(text)


def _all_annotated(config: WinRateConfig) -> list[Row]:
    """The comparisons of an annotations file, to be judged by that file."""
    path = str(config.judge)
    if config.endpoint is not None or not path.endswith((".json", ".jsonl")):
        raise UserError("give --outputs and --reference: only annotations do without them")
    rows = read_annotations(path)
    for i in (1, 2):
        names = {str(row.get(f"generator_{i}")) for row in rows}
        if config.name is not None and i == 2:
            rows = [row | {"generator_2": config.name} for row in rows]
        elif len(names) > 1:
            shown = ", ".join(sorted(names)[:3])
            raise UserError(
                f"{path} has {len(names)} generators as generator_{i} ({shown}): one file per model"
            )
        else:
            rows = [row | {f"generator_{i}": next(iter(names))} for row in rows]
    return rows


def _unjudged(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "preference" not in row]


def _judged(judge: Judge, rows: Sequence[Row]) -> list[float]:
    columns = ("instruction", "output_1", "output_2")
    texts = [[row[name] for row in rows] for name in columns]
    return [float(p) for p in judge(*texts)] if rows else []


def _set(rows: Sequence[Row], values: Sequence[float], judge: str) -> None:
    for row, p in zip(rows, values, strict=True):
        row["annotator"] = judge
        row["preference"] = None if math.isnan(p) else 1 + p


def _rate(value: float, error: float) -> str:
    return f"{value:5.1f} ± {error:.1f} %" if math.isfinite(error) else f"{value:5.1f} %"


def _characters(lengths: Sequence[int]) -> str:
    mean = f"{statistics.fmean(lengths):,.0f}"
    if len(lengths) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(lengths) / math.sqrt(len(lengths)):,.0f}"
