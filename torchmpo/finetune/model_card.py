"""The card beside what was trained: the loss with its equation, data, settings, results, versions.

It is the ``README.md`` that model hubs show. Folders of this machine appear by their last name
only, so that a card can be published as it is.
"""

import inspect
import json
import re
import shlex
import textwrap
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torchmpo
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.documented import NOTATION, documented, documented_parts
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.errors import UserError, missing_package, one_line
from torchmpo.runs.files import write_atomic

CARD = "README.md"
OF_THE_MODULE = ("lr", "schedule", "warmup", "weight_decay", "reference", "seed")
OF_THE_DATA = ("batch_size", "max_length", "max_prompt_length", "truncation")
OF_THE_TRAINER = ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val")
OF_LORA = ("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save")


def write_card(folder: str | Path, module: Any, *, best: tuple[int, float] | None = None) -> None:
    """Write the card of a :class:`torchmpo.finetune.PreferenceModule` into a folder.

    Args:
        folder: of the adapter or the model.
        module: trained or not; what it knows of a Trainer and its data goes into the card.
        best: of weights that are not those of the last step, their step and ``val/loss``: other
            numbers of the run are not theirs, and left out.
    """
    write_atomic(Path(folder) / CARD, card_text(Path(folder).name, module, best=best))


def card_text(name: str, module: Any, *, best: tuple[int, float] | None = None) -> str:
    """The card, in Markdown.

    Args:
        name: by which the model is loaded.
        module, best: see :func:`write_card`.
    """
    trainer = getattr(module, "_trainer", None)
    data = getattr(trainer, "datamodule", None)
    peft = getattr(module.policy.model, "peft_config", None)
    base = _public(module.source) if module.source is not None else "a model in memory"
    loss = module.objective.name
    what = "An adapter for" if peft else "All weights of"
    parts = [
        _front_matter(module, "peft" if peft else "transformers"),
        f"# {base}, trained with {loss}\n\n{what} `{base}`, trained on preference pairs with "
        f"[torchmpo](https://arxiv.org/abs/2411.06568).",
        f"## Loss\n\n{_loss(module.objective)}",
        f"## Data\n\n{_data(data)}",
        f"## Settings\n\n{_table('setting', _settings(module, data, trainer, peft, best))}",
        f"## Results\n\n{_results(trainer, best)}",
        _use(name),
        f"## Versions\n\n{_table('package', _versions())}",
    ]
    return "\n\n".join(parts) + "\n"


def next_command(folder: Path, data: Any) -> str:
    """How to go on with what was trained."""
    given = f"--model {shlex.quote(str(folder))} --prompts PROMPTS.json"
    if not data.chat and data.tokenizer.chat_template:
        given += " --format text"  # as the pairs were
    if data.chat and data.chat_template_kwargs:
        given += f" --chat_template_kwargs {shlex.quote(json.dumps(data.chat_template_kwargs))}"
    return f"next: python -m torchmpo.generate {given} --out {shlex.quote(str(folder))}_answers"


def carry_card(adapter: str | Path, folder: str | Path) -> None:
    """Write the card of an adapter's merged model: the adapter's own, but for what it is a card of.

    An adapter without a card of this library has one made that says where the model comes from.
    """
    path = Path(adapter) / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    name = _public(adapter)
    if "torchmpo" not in text:
        text = f"---\nlibrary_name: peft\n---\n\n# {name}, merged\n\nAn adapter for its base.\n"
    text = text.replace("library_name: peft\n", "library_name: transformers\n", 1)
    merged = f"The adapter `{name}` added into the weights of"
    text = re.sub(r"^An adapter for", merged, text, count=1, flags=re.MULTILINE)
    text = _renamed(text, name, Path(folder).name)
    write_atomic(Path(folder) / CARD, text)


def push(folder: str | Path, repository: str) -> str:
    """Upload a folder to the Hugging Face hub, into a private repository if there is none yet.

    Args:
        folder: of the adapter or the model.
        repository: ``user/name``.

    Returns:
        where it is.

    Raises:
        UserError: the hub refuses or cannot be reached. The folder stays as it is.
    """
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        raise missing_package(error, "llm") from error
    hub, card = HfApi(), Path(folder) / CARD
    try:
        if card.is_file():
            text = card.read_text(encoding="utf-8")
            write_atomic(card, _renamed(text, Path(folder).name, repository))
        hub.create_repo(repository, private=True, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=str(folder)))
    except Exception as error:  # of many kinds: the network's, the hub's, and those of its checks
        raise UserError(
            f"{folder} is written, but could not be pushed to {repository}: {one_line(error)}"
        ) from error


def _renamed(text: str, old: str, new: str) -> str:
    """The card of what is loaded by another name."""
    return text.replace(f'from_pretrained("{old}")', f'from_pretrained("{new}")')


def _front_matter(module: Any, library: str) -> str:
    lines = [f"library_name: {library}", "pipeline_tag: text-generation"]
    if module.source is not None and not Path(module.source).exists():
        lines.append(f"base_model: {module.source}")
    tag = re.sub(r"[^A-Za-z0-9_.-]+", "-", module.objective.name)
    lines += ["tags:", "- torchmpo", "- preference-optimization", f"- {tag}"]
    return "\n".join(["---", *lines, "---"])


def _loss(objective: Objective | MirrorObjective) -> str:
    if isinstance(objective, MirrorObjective):
        return _mirror(objective)
    summary, equation, source = documented(objective.source)
    summary = re.sub(r":\w+:`([^`]+)`", r"`\1`", summary)
    parts = [f"`{objective.name}`" + (f": {summary}" if summary else "")]
    if of_parts := {} if equation else documented_parts(objective.name):
        for name, part in of_parts.items():
            parts += [f"`{name}`: {part.summary}", _code(part.equation)]
            parts += [f"Source: {part.source}"] if part.source else []
        parts.append(NOTATION)
    elif equation:
        parts += [_code(equation), NOTATION]
    else:
        parts.append(_code(_source(objective.source), "python"))
    if source:
        parts.append(f"Source: {source}")
    if objective.hyper:
        parts.append(_table("hyper-parameter", objective.hyper))
    return "\n\n".join(parts)


def _mirror(objective: MirrorObjective) -> str:
    document = inspect.getdoc(MirrorObjective) or ""
    line = rf"^\s*{objective.steps} steps? \(.*?\)\s+(.*)$"
    found = re.search(line, document, flags=re.MULTILINE)
    assert found is not None
    card = objective.card.get("name")
    learned = ", ".join(objective.learn) or "nothing"
    parts = [
        f"`{objective.name}`: a mirror loss" + (f", {card}." if card else "."),
        _code(f"loss = {found[1]}"),
        NOTATION + f" Learned by a search: {learned} ({objective.dim} parameters); the rest is in "
        "closed form.",
        _table("coefficient at the start", objective.initial),
    ]
    return "\n\n".join(parts)


def _source(function: Any) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return f"{getattr(function, '__module__', '')}:{getattr(function, '__name__', function)}"


def _data(data: Any) -> str:
    if data is None:
        return "Not recorded: it was trained without a `PreferenceData`."
    lines = []
    for name, (source, split) in data.sources.items():
        shown = _public(source) if isinstance(source, (str, Path)) else type(source).__name__
        line = f"- {name}: `{shown}`"
        if isinstance(source, str) and not Path(source).exists():
            line += f", split `{split}`"
        if name in data.datasets:
            line += f"; {data.datasets[name].counts}"
        lines.append(line)
    return "\n".join(lines)


def _settings(
    module: Any, data: Any, trainer: Any, peft: Any, best: tuple[int, float] | None
) -> dict[str, Any]:
    values = {name: getattr(module, name) for name in OF_THE_MODULE}
    if isinstance(values["reference"], str):
        values["reference"] = _public(values["reference"])
    values["dtype"] = str(module.policy.model.dtype).removeprefix("torch.")
    for config in (peft or {}).values():
        values |= {f"lora {name}": getattr(config, name, None) for name in OF_LORA}
    if data is not None:
        values |= {name: getattr(data, name) for name in OF_THE_DATA}
    if trainer is not None:
        values |= {name: getattr(trainer, name, None) for name in OF_THE_TRAINER}
        values |= {
            "precision": trainer.precision,
            "processes": trainer.world_size,
            "optimizer steps": trainer.global_step if best is None else best[0],
        }
    return values


def _results(trainer: Any, best: tuple[int, float] | None) -> str:
    if best is not None:
        said = f"A mean over all validation pairs, at step {best[0]}, where it was lowest."
        return f"{said}\n\n{_table('metric', {'val/loss': f'{best[1]:.4g}'})}"
    numbers = {} if trainer is None else dict(trainer.callback_metrics)
    if not numbers:
        return "None were logged."
    values = {name: f"{float(value):.4g}" for name, value in sorted(numbers.items())}
    said = (
        "`val/…` are means over all validation pairs, at the last validation; the others are of "
        "the last optimizer step."
    )
    return f"{said}\n\n{_table('metric', values)}"


def _use(name: str) -> str:
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")  # an adapter needs peft\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
    )
    return f"## Use\n\n{_code(code, 'python')}"


def _versions() -> dict[str, str]:
    found = {"torchmpo": torchmpo.__version__}
    for package in ("torch", "transformers", "peft", "lightning"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _table(head: str, values: Mapping[str, Any]) -> str:
    rows = [f"| {head} | |", "|---|---|"]
    for name, value in values.items():
        shown = ", ".join(sorted(map(str, value))) if isinstance(value, (set, list)) else str(value)
        rows.append(f"| {name} | {shown.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def _code(text: str, language: str = "text") -> str:
    return f"```{language}\n{textwrap.dedent(text).strip()}\n```"


def _public(source: Any) -> str:
    """A hub id as it is; of a folder or file of this machine, its last name."""
    path = Path(source)
    return path.resolve().name if path.exists() or path.is_absolute() else str(source)
