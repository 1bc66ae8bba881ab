"""Which model a folder holds, as a digest: training further writes over it.

Into the digest goes what decides a model's answers: its weights (``*.safetensors``), configuration,
tokenizer and chat template, by name, size and content; no times, which change when a folder is
copied, and no cards, logs or states of an optimizer. A file of weights above 256 MiB counts by its
size and by 64 pieces of 64 KiB, evenly spread from its first byte, where safetensors name every
weight, to its last.
"""

import hashlib
from pathlib import Path

from torchmpo.runs.json_files import parse_json

CONFIGS = ("config.json", "adapter_config.json")
NAMES = {
    *(*CONFIGS, "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    "chat_template.json",
}
SUFFIXES = (".safetensors", ".jinja", ".model")
WHOLE = 2**28  # bytes of a file that is read from end to end
PIECE, PIECES = 2**16, 64


def is_adapter(model: str | Path) -> bool:
    """Whether a model is a folder with an adapter, which names its base model."""
    return (Path(model) / "adapter_config.json").is_file()


def model_digests(*names: str | Path | None) -> dict[str, str]:
    """A digest of each of these models that is a folder, and of the base of an adapter that is one.

    Args:
        names: folders; hub ids and None, which have no digest.
    """
    found: dict[str, str] = {}
    left = list(names)
    while left:
        name = left.pop(0)
        if name is None or str(name) in found:
            continue
        folder = Path(name)
        if any((folder / config).is_file() for config in CONFIGS):
            found[str(name)] = _digest(folder)
            left.append(_base(folder))
    return found


def _digest(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.iterdir()):
        if (path.name in NAMES or path.suffix in SUFFIXES) and path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            _add(digest, path, size)
    return digest.hexdigest()


def _add(digest: "hashlib.blake2b", path: Path, size: int) -> None:
    with path.open("rb") as file:
        if size <= WHOLE:
            while piece := file.read(2**20):
                digest.update(piece)
            return
        for k in range(PIECES):
            file.seek(k * (size - PIECE) // (PIECES - 1))
            digest.update(file.read(PIECE))


def _base(folder: Path) -> str | None:
    """What an adapter is on."""
    try:
        return str(parse_json((folder / CONFIGS[1]).read_bytes())["base_model_name_or_path"])
    except (OSError, ValueError, TypeError, LookupError):
        return None  # no adapter; or none that can be loaded, which loading says
