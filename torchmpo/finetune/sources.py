"""Rows of a data set: of files, folders, data frames, ``datasets``, the hub.

- ``.jsonl``, ``.json``, ``.csv``, each also as ``.gz``, and ``.parquet``.
- A folder of them, in the order of their paths; CSV counts only where there is nothing else. What
  ``datasets`` writes about its data is not data.
- A folder of ``save_to_disk``.
- A pandas ``DataFrame``, a ``datasets.Dataset`` or ``DatasetDict``, any iterable of dicts.
- A hub id, for which alone the network is used.

A split may be cut as ``datasets`` does it, whatever the source: ``train[:50%]``, ``train[100:]``,
``train+test``.
"""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torchmpo.runs.errors import UserError, missing_package, nearest, one_line

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")
# Words in file names that say of which part of a data set a file is.
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
# What is left out of a file's name to find its split: the number of one of several files.
SHARD = re.compile(
    rf"(?:[-_.](?:part|shard)?[-_.]?|{'|'.join(f'(?<={word})' for word in SPLITS)})"
    r"\d+(?:-of-\d+)?(?:-[0-9a-f]{6,})?$"
)
# What `datasets` writes beside its data.
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


class Table(NamedTuple):
    """Rows that are numbered together.

    Args:
        name: for messages.
        rows: dicts, or whatever stood in their place.
        cells: ``"json"``: as they are; ``"arrow"``: of columns that have one type each, so that a
            null may only say that another row has such a key; ``"csv"``: text.
        start: number of the first row.
    """

    name: str
    rows: list[Any]
    cells: str
    start: int = 0


def read_tables(source: Any, split: str = "train", config: str | None = None) -> list[Table]:
    """The rows of a source.

    Args:
        source: see the top of this file.
        split: of a hub id, a ``DatasetDict``, or a folder whose files name their splits
            (``train_prefs-00000-of-00001.parquet`` is of ``train_prefs``; a word of it, ``train``,
            will do where only one split has it). A file, an iterable, and a folder whose files name
            none are read whole, but for the cut in brackets.
        config: name of a hub data set's configuration.

    Raises:
        UserError: nothing there, a damaged file, an unknown split, a package that is missing.
    """
    path = isinstance(source, (str, Path))
    if path and not Path(source).expanduser().exists():
        return [Table(str(source), list(_from_hub(str(source), split, config)), "arrow")]
    if config is not None:
        what = source if path else "the data"
        raise UserError(f"config {config!r} belongs to a hub data set, and {what} is none")
    if re.search(r"[\[\]()+]", split):
        return _cut(source, split)
    return _tables(source, split)


def _tables(source: Any, split: str) -> list[Table]:
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if path.is_file():
            return [_table(path)]
        return _saved(path, split) or [_table(file) for file in _files(path, split)]
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(source, pandas.DataFrame):
        records = source.astype(object).where(source.notna(), None).to_dict("records")
        return [Table("the data", records, "arrow")]
    if isinstance(source, Mapping):  # a DatasetDict
        if split not in source:
            raise UserError(f"the data have no split {split!r}: {nearest(split, map(str, source))}")
        source = source[split]
    if not isinstance(source, Iterable):
        raise UserError(f"{source!r} is no data set: give a file, a folder, a hub id or rows")
    if hasattr(source, "with_format"):  # of datasets: tensors are no text
        return [Table("the data", list(source.with_format(None)), "arrow")]  # pyright: ignore[reportAttributeAccessIssue]
    return [Table("the data", list(source), "json")]


def _cut(source: Any, split: str) -> list[Table]:
    """The parts of the splits that are named, in the order of their names."""
    datasets = _datasets()
    names = re.findall(r"(?:^|\+)\s*(\w+)", split)
    wholes = {name: _tables(source, name) for name in dict.fromkeys(names)}
    sizes = {name: sum(len(table.rows) for table in wholes[name]) for name in wholes}
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        raise UserError(f"split {split!r} is not understood: {one_line(error)}") from error
    tables = []
    for part in parts:
        start, stop = part.from_ or 0, sizes[part.splitname] if part.to is None else part.to
        for table in wholes[part.splitname]:
            low, high = max(start, 0), max(stop, 0)
            tables.append(table._replace(rows=table.rows[low:high], start=low))
            start, stop = start - len(table.rows), stop - len(table.rows)
    return tables


# Folders


def _saved(folder: Path, split: str) -> list[Table]:
    """What ``save_to_disk`` wrote there, if it did: a data set, or one for each split."""
    if (folder / "dataset_dict.json").is_file():
        names = [path.name for path in folder.iterdir() if (path / "state.json").is_file()]
        if split not in names:
            raise UserError(f"{folder} has no split {split!r}: {nearest(split, names)}")
    places = [place for place in (folder, folder / split) if (place / "state.json").is_file()]
    if not places:
        return []
    try:
        rows = list(_datasets().load_from_disk(str(places[0])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{places[0]} cannot be loaded from disk: {one_line(error)}") from error
    return [Table(str(places[0]), rows, "arrow")]


def _files(folder: Path, split: str) -> list[Path]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if _suffix(path)
        and path.name not in ABOUT
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    files = [file for file in files if ".csv" not in _suffix(file)] or files
    if not files:
        raise UserError(f"{folder} holds no {', '.join(SUFFIXES)}")
    return _of_split(folder, files, split)


def _of_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    """The files of a split; all of them where none names one.

    A folder per split is as common as a file per split. The whole of a name counts before a word
    in it: ``train`` is not ``train_prefs``, unless there is no other ``train``.
    """
    names = {file: _names(file.relative_to(folder)) for file in files}
    # What follows the word for the split: train_sft and train_prefs are two, en_train is one more
    # part of train.
    ends = {file: _after(_words(split.lower()), own) for file, own in names.items()}
    chosen = {file: end for file, end in ends.items() if end is not None}
    if "" in chosen.values():
        return [file for file, end in chosen.items() if end == ""]
    several = sorted({f"{split}_{end}" for end in chosen.values()})
    if len(several) > 1:
        raise UserError(
            f"{folder} has several splits that {split!r} may mean: say which of "
            f"{', '.join(several)}, or {'+'.join(several[:2])} for two of them"
        )
    found = sorted({name for own in names.values() for name in map(_split_of, own) if name})
    if found and not chosen:
        raise UserError(f"{folder} has no file for split {split!r}: {nearest(split, found)}")
    return [*chosen] or files


def _names(path: Path) -> list[list[str]]:
    """What may name the split of a file, in words: the folders it is in, and its own name."""
    stem = path.name.lower().removesuffix(_suffix(path))
    parts = [*(part.lower() for part in path.parent.parts), *SHARD.sub("", stem).split(".")]
    return [_words(part) for part in parts]


def _words(name: str) -> list[str]:
    """Without numbers, which are those of parts."""
    words = (word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", name))
    return [word for word in words if word.isalpha()]


def _split_of(words: list[str]) -> str | None:
    """The name of a split, from the word for it on."""
    at = next((k for k, word in enumerate(words) if word in SPLITS), None)
    return None if at is None else "_".join(words[at:])


def _after(split: list[str], names: list[list[str]]) -> str | None:
    """What follows the words of a split in the last name that has them; None where none has."""
    for words in reversed(names):
        for k in range(len(words) - len(split) + 1):
            if split and words[k : k + len(split)] == split:
                return "_".join(words[k + len(split) :])
    return None


def _suffix(path: str | Path) -> str:
    return next((suffix for suffix in SUFFIXES if str(path).lower().endswith(suffix)), "")


# Files


def _table(path: Path) -> Table:
    kind = _suffix(path).removesuffix(".gz")
    if kind == ".parquet":
        return Table(str(path), _parquet(path), "arrow")
    if kind == ".csv":
        return Table(str(path), _csv(path), "csv")
    if not kind:
        raise UserError(f"{path} is none of {', '.join(SUFFIXES)}")
    return Table(str(path), _json(path, kind), "json")


def _text(path: Path, newline: str | None = None) -> str:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        # Some editors begin a file with a byte order mark.
        with opened(path, "rt", encoding="utf-8-sig", newline=newline) as file:
            return file.read()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _json(path: Path, kind: str) -> list[Any]:
    text = _text(path)
    # Many a .json holds one object per line, too.
    if kind == ".json" and text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not valid JSON: {error}") from error
    rows = []
    # Not splitlines(): JSON may hold U+2028 as it is.
    for number, line in enumerate(text.split("\n"), 1):
        line = line.lstrip("\ufeff")  # of a file that was appended to another
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: not valid JSON: {error}") from error
    return rows


def _csv(path: Path) -> list[Any]:
    text = _text(path, newline="")
    limit = csv.field_size_limit(len(text) + 1)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise UserError(f"{path} is not valid CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)
    for i, row in enumerate(rows):
        if None in row:
            raise UserError(f"{path}, row {i} has more cells than the header has names")
    return rows


def _parquet(path: Path) -> list[Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise missing_package(error, "llm") from error
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable parquet file: {one_line(error)}") from error


# The hub


def _from_hub(name: str, split: str, config: str | None) -> Iterable[Any]:
    # What looks like a path is one that is not there.
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or _suffix(name):
        raise UserError(f"there is no file or folder {name}")
    datasets = _datasets()
    try:
        which = () if config is None else (config,)
        return datasets.load_dataset(name, *which, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        unnamed = "Config name is missing" in str(error)
        hint = f"; say which: {{source: {name}, config: …}}" if unnamed else ""
        raise UserError(
            f"{name} is no file or folder here, and cannot be loaded from the hub: "
            f"{one_line(error)}{hint}"
        ) from error


def _datasets() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise missing_package(error, "llm") from error
    return datasets
