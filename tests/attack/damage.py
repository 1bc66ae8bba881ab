"""Ways in which a file can be wrong: each is a function of the folder that the file is in."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attack.warm import CANARY

Damage = Callable[[Path], None]
DEEP = 100_000


# A pickle that makes a folder where it is read, as plain text.
EVIL = f"cos\nmkdir\n(S'{CANARY}'\ntR.".encode()

# Whole files: what is in place of one, or what becomes of its bytes.
WHOLE: dict[str, bytes | Callable[[bytes], bytes]] = {
    "empty": b"",
    "one line end": b"\n",
    "zeros": bytes(4096),
    "no text": b"\x93\xfe\xff\x00binary",
    "pickle": EVIL,
    "half": lambda content: content[: len(content) // 2],
    "null": b"null",
    "number": b"3",
    "text": b'"text"',
    "list": b"[]",
    "list of lists": b"[[]]",
    "object": b"{}",
    "deep": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a long number": b"9" * 10_000,
    "html": b"<!doctype html><html><body>404</body></html>",
}
# Values in a place of a JSON file.
VALUES: dict[str, Any] = {
    "null": None,
    "text": "text",
    "no text": "\ud800",
    "true": True,
    "minus one": -1,
    "huge": 10**40,
    "nan": float("nan"),
    "infinite": float("inf"),
    "list": [],
    "lists": [[]],
    "object": {},
}
LITTLE = ("null", "text", "nan", "huge", "lists")


def put(path: str, content: bytes | str) -> Damage:
    """A file of this content."""
    text = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content

    def damage(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text)

    return damage


def spoiled(path: str, how: str) -> Damage:
    """A file that is damaged in one of the `WHOLE` ways."""

    def damage(folder: Path) -> None:
        new, file = WHOLE[how], folder / path
        file.write_bytes(new if isinstance(new, bytes) else new(file.read_bytes()))

    return damage


def removed(*paths: str) -> Damage:
    """Files, or folders, that are gone."""

    def damage(folder: Path) -> None:
        for path in paths:
            if (folder / path).is_dir():
                shutil.rmtree(folder / path)
            else:
                (folder / path).unlink()

    return damage


def folder_at(path: str) -> Damage:
    """A folder where a file should be."""

    def damage(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        (folder / path).mkdir()

    return damage


def at(path: str, place: str, value: Any) -> Damage:
    """Another value in a place, ``a/0/b``, of a JSON file; with `removed` as the value, none."""

    def damage(folder: Path) -> None:
        content = holder = json.loads((folder / path).read_text())
        *before, last = [int(part) if part.isdigit() else part for part in place.split("/")]
        for part in before:
            holder = holder[part]
        if value is removed:
            del holder[last]
        else:
            holder[last] = value
        (folder / path).write_text(json.dumps(content))

    return damage


def twice(path: str) -> Damage:
    """The first key of a JSON object, a second time."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / path).read_text())
        first = next(iter(content))
        text = json.dumps(content)
        (folder / path).write_text(
            f"{text[:-1]}, {json.dumps(first)}: {json.dumps(content[first])}}}"
        )

    return damage


def line(path: str, key: str, value: str) -> Damage:
    """Another value of a key of a plain YAML file."""

    def damage(folder: Path) -> None:
        lines = (folder / path).read_text().splitlines()
        changed = [f"{key}: {value}" if row.startswith(f"{key}:") else row for row in lines]
        assert changed != lines, f"{path} has no {key}"
        (folder / path).write_text("\n".join(changed) + "\n")

    return damage


def fit(changes: dict[str, Any]) -> Damage:
    """Other settings in ``fit.yaml``: ``{"model.lr": 3}``."""

    def damage(folder: Path) -> None:
        import yaml

        settings = yaml.safe_load((folder / "fit.yaml").read_text())
        for name, value in changes.items():
            group, _, key = name.partition(".")
            settings.setdefault(group, {})[key] = value
        (folder / "fit.yaml").write_text(yaml.safe_dump(settings))

    return damage


def tensors(path: str, change: Callable[[dict[str, Any], dict[str, str]], Any]) -> Damage:
    """Other tensors, or other metadata, in a safetensors file; changed in place."""

    def damage(folder: Path) -> None:
        from safetensors import safe_open
        from safetensors.torch import save_file

        with safe_open(folder / path, framework="pt") as file:
            held = {name: file.get_tensor(name) for name in file.keys()}
            metadata = dict(file.metadata() or {})
        change(held, metadata)
        whole = {name: value.contiguous().clone() for name, value in held.items()}
        save_file(whole, folder / path, metadata)

    return damage


def several(*damages: Damage) -> Damage:
    """One after the other."""

    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)

    return damage
