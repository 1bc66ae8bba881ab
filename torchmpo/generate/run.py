"""All answers to a file of prompts: what ``python -m torchmpo.generate`` does."""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import NonNegativeInt
from tqdm import tqdm
from typing_extensions import TypedDict

from torchmpo.finetune.answers import Answer, Sampling
from torchmpo.generate.settings import FORMATS, GenerateConfig
from torchmpo.generate.sources import Source, endpoint_source, local_source
from torchmpo.runs.errors import UserError, nearest
from torchmpo.runs.files import write_atomic
from torchmpo.runs.json_files import read_json
from torchmpo.runs.model_folders import model_digests
from torchmpo.winrate.alpaca_files import Row, annotations_text, read_prompts

OUTPUTS, PARTIAL = "outputs.json", "partial.json"
SAVE_EVERY = 5.0  # seconds


class Generation(NamedTuple):
    """What a run consists of, checked."""

    config: GenerateConfig
    prompts: list[Row]
    source: Source


def prepare(config: GenerateConfig) -> Generation:
    """Read the prompts, load the model.

    Raises:
        UserError: a setting is wrong or missing, or a file or the model is.
    """
    if config.model is None:
        raise UserError("--model: a model's or an adapter's folder, or a hub id")
    if config.prompts is None:
        raise UserError('--prompts: a file with {"instruction": …}, JSON or JSON lines')
    if config.format not in FORMATS:
        raise UserError(f"unknown format {config.format!r}: {nearest(config.format, FORMATS)}")
    if config.batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {config.batch_size}")
    if not config.timeout > 0:
        raise UserError(f"timeout must be positive; got {config.timeout}")
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p, config.seed)
    prompts = read_prompts(config.prompts)
    make = local_source if config.endpoint is None else endpoint_source
    return Generation(config, prompts, make(config, [p["instruction"] for p in prompts], sampling))


def fingerprints(generation: Generation) -> dict[str, str]:
    """A digest of the model by its folder, and of the base of an adapter; none of a hub id."""
    config = generation.config
    return {} if config.endpoint is not None else model_digests(config.model)


def check(generation: Generation, out: Path) -> None:
    """Refuse to go on with other prompts.

    Raises:
        UserError: the answers in the folder are to other prompts.
    """
    _answered(generation.prompts, out)


def run(generation: Generation, out: Path) -> None:
    """Ask for the answers that are not there yet, write ``outputs.json``."""
    config, prompts, source = generation
    answers = _answered(prompts, out)
    todo = [row for row in range(len(prompts)) if row not in answers]
    saved = time.monotonic()
    with tqdm(
        total=len(prompts),
        initial=len(answers),
        desc="answers",
        disable=not sys.stderr.isatty(),
        leave=False,
    ) as bar:
        try:
            for row, answer in source(todo):
                answers[row] = answer
                bar.update()
                if time.monotonic() - saved > SAVE_EVERY:
                    _save(prompts, answers, out)
                    saved = time.monotonic()
        except BaseException:
            if answers:
                _save(prompts, answers, out)
            raise
    name = config.name or str(config.model).rstrip("/")
    rows = [_row(prompt, answers[i], name) for i, prompt in enumerate(prompts)]
    write_atomic(out / OUTPUTS, annotations_text(rows))
    (out / PARTIAL).unlink(missing_ok=True)
    print(summary(rows, name, out, config.max_new_tokens))


def summary(rows: Sequence[Row], name: str, out: Path, limit: int) -> str:
    """A few lines for the terminal."""
    path = out / OUTPUTS
    lines = [f"wrote {path}: {len(rows)} answers by {name}"]
    if cut := sum(row["finish_reason"] == "length" for row in rows):
        lines.append(f"  {cut} of them were cut at {limit} tokens (--max_new_tokens)")
    if empty := sum(not row["output"].strip() for row in rows):
        lines.append(f"  {empty} of them are empty")
    given = f"--outputs {shlex.quote(str(path))}"
    lines.append(f"next: python -m torchmpo.winrate {given} --reference OTHER.json --judge JUDGE")
    return "\n".join(lines)


def _row(prompt: Row, answer: Answer, name: str) -> Row:
    """A row of AlpacaEval's."""
    text = {"output": answer.text, "generator": name, "finish_reason": answer.finish_reason}
    return {"instruction": prompt["instruction"], **text} | {
        key: value for key, value in prompt.items() if key != "instruction"
    }


def _save(prompts: Sequence[Row], answers: dict[int, Answer], out: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"row": row, "instruction": prompts[row]["instruction"], **answers[row]._asdict()}
        for row in sorted(answers)
    ]
    write_atomic(out / PARTIAL, json.dumps(rows, ensure_ascii=False) + "\n")


class _Partial(TypedDict):
    row: NonNegativeInt
    instruction: str
    text: str
    finish_reason: str


class _Finished(TypedDict):
    instruction: str
    output: str
    finish_reason: str


def _answered(prompts: Sequence[Row], out: Path) -> dict[int, Answer]:
    """The answers in a folder, by row."""
    path, finished = out / PARTIAL, out / OUTPUTS
    if path.exists():
        rows = read_json(path, list[_Partial])
    elif finished.exists():
        rows = [
            {**answer, "row": row, "text": answer["output"]}  # prompts may have such columns
            for row, answer in enumerate(read_json(finished, list[_Finished]))
        ]
    else:
        return {}
    for row in rows:
        place = row["row"]
        if place >= len(prompts) or prompts[place]["instruction"] != row["instruction"]:
            raise UserError(
                f"--resume: the answers in {out} are to other prompts; choose another --out"
            )
    return {row["row"]: Answer(row["text"], row["finish_reason"]) for row in rows}
