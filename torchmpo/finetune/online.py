"""Training in rounds: the model answers, a judge compares, and what it prefers is trained on.

    OUT/
      config.yaml, made_of.json    the settings, and what must not change
      rounds/1/judged.json         the pairs while they are made
               pairs.jsonl         and when they are, as ``data.train``
               config.yaml         of the round's training: ``fit --config`` takes it
               fit/                its folder, as ``fit`` leaves it, without its checkpoint
               metrics.json        when the round is done
      metrics.csv                  a line for each round
      adapter/ or model/           of the last round, with its card

A round is a run of ``fit``, from the weights of the round before, with an optimizer, a learning
rate schedule and an order of pairs of its own.
"""

import csv
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from torchmpo.finetune.answers import Answer, AnswerWriter
from torchmpo.finetune.chat_template import check_variables, with_template
from torchmpo.finetune.command_line import CommandLine, called
from torchmpo.finetune.judged_pairs import (
    Judged,
    encoded_prompts,
    judged_pairs,
    read_prompt_texts,
)
from torchmpo.finetune.loading import check_tokenizer, load_model, load_tokenizer
from torchmpo.finetune.model_card import CARD, next_command, push
from torchmpo.finetune.module import objective_of
from torchmpo.finetune.moving_reference import MovingReference
from torchmpo.finetune.online_settings import NAMES, OnlineSettings
from torchmpo.finetune.supply import check_batch
from torchmpo.runs import made_of
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import LOCK, SOFT_LOCK, alone_in, write_atomic
from torchmpo.runs.json_files import read_json
from torchmpo.runs.model_folders import is_adapter, model_digests
from torchmpo.runs.options import settings_text
from torchmpo.runs.seeding import derive_seed
from torchmpo.runs.threads import one_thread_if_tiny
from torchmpo.winrate.judges import FunctionJudge, Judge
from torchmpo.winrate.run import judge_digests, judge_of
from torchmpo.winrate.settings import WinRateConfig

PROGRAM = "python -m torchmpo.finetune"
ROUNDS = "rounds"
# What may be another when a run goes on: where and how it runs, and how long.
FREE = ("out", "resume", "tracker", "push_to_hub", "checkpoint_every")
FREE_ONLINE = ("rounds", "endpoint", "key_variable", "timeout")
OF_FIT = ("seed_everything", "checkpoint_every", "keep_best", "tracker")


class OnlineCommandLine(CommandLine):
    """The settings of fit, and those of the rounds; no model is loaded."""

    def add_arguments_to_parser(self, parser):
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(OnlineSettings, "online")
        # The rounds make it. A default, since the data module has none.
        parser.set_defaults({"data.train": [], "out": "runs/online"})

    def instantiate_classes(self):
        """Nothing: every round makes its own."""

    def plain(self) -> dict[str, Any]:
        """All settings, as YAML has them."""
        settings = json.loads(self.parser.dump(self.config, format="json", skip_unset=False))
        return {name: value for name, value in settings.items() if name != "config"}


class RoundFit(CommandLine):
    """fit, but that the next command is that of the whole."""

    def tell(self, folder: Path) -> None:
        """Nothing: the round's line does."""


class Asking(NamedTuple):
    """What pairs are made from."""

    judge: Judge
    prompts: list[str]
    encoded: list[list[int]]


def online(program: str, words: list[str]) -> None:
    """Train in rounds: the command.

    Args:
        program: how it is called, for messages.
        words: its options.

    Raises:
        UserError: a mistake in them, or in what they name.
    """
    _train(program, words, None)


def train_online(
    settings: Mapping[str, Any],
    *,
    out: str | Path = "runs/online",
    judge: Callable[..., Any] | None = None,
    resume: bool = False,
) -> Path:
    """Train a model in rounds, on pairs of its own answers that a judge has compared.

        train_online(
            {
                "model": {"model": "path/to/model", "loss": "dpo", "lora": {"r": 16}},
                "data": {"batch_size": 4},
                "trainer": {"max_epochs": 1},
                "online": {"rounds": 4, "pairs": 250, "prompts": "prompts.jsonl"},
            },
            judge=prefer,
        )

    Args:
        settings: what a configuration of ``python -m torchmpo.finetune online`` has, section by
            section; ``online`` is :class:`torchmpo.finetune.online_settings.OnlineSettings`.
        out: folder of the run.
        judge: a function of prompts, first and second answers that gives the probabilities that
            the second is better, in place of the judge's name.
        resume: go on with the run in the folder.

    Returns:
        the folder of the adapter, or of the model where all weights are trained.

    Raises:
        UserError: a setting is wrong or missing, or a file, the model or the judge is.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(settings_text(settings), "utf-8")
        words = ["--config", str(path), "--out", str(out), *(["--resume"] if resume else [])]
        return _train(PROGRAM, words, judge)


def with_sections(words: list[str]) -> list[str]:
    """Options of the rounds spelled out: ``--rounds`` is ``--online.rounds``.

    >>> with_sections(["--rounds", "2", "--judge=my:judge", "--out", "x"])
    ['--online.rounds', '2', '--online.judge=my:judge', '--out', 'x']
    """
    return [re.sub(rf"^--({'|'.join(NAMES)})(?==|$)", r"--online.\1", word) for word in words]


def _train(program: str, words: list[str], judge: Callable[..., Any] | None) -> Path:
    command = called(OnlineCommandLine, program, with_sections(words), run=False)
    assert isinstance(command, OnlineCommandLine)
    settings = command.plain()
    rounds = OnlineSettings(**settings["online"])
    out = command.out
    _check(settings, rounds)
    if not command.resume and out.exists() and not _is_empty(out):
        raise UserError(
            f"{out} exists and is not empty: go on with --resume, or choose another --out"
        )
    if command.resume and not (out / made_of.FILE).is_file():
        raise UserError(f"--resume: there is no run in {out}")
    if (out / ROUNDS / str(rounds.rounds + 1)).exists():
        raise UserError(
            f"--resume: {out} has begun more rounds than --rounds {rounds.rounds}: raise --rounds"
        )
    run = Run(program, settings, rounds, out, judge)
    out.mkdir(parents=True, exist_ok=True)
    with alone_in(out):
        run.note()
        for number in range(1, rounds.rounds + 1):
            run.round(number)
        return run.finish()


class Run:
    """A run of rounds.

    Args:
        program: how the command is called.
        settings: all of them.
        rounds: those of the rounds.
        out: its folder.
        judge: a function, in place of the judge that is named.

    Raises:
        UserError: prompts, judge or tokenizer cannot be had.
    """

    def __init__(
        self,
        program: str,
        settings: Mapping[str, Any],
        rounds: OnlineSettings,
        out: Path,
        judge: Callable[..., Any] | None,
    ):
        self.program, self.settings, self.rounds, self.out = program, settings, rounds, out
        self.seed = int(settings["seed_everything"])
        model, data = settings["model"], settings["data"]
        source = data["tokenizer"] or model["model"]
        own = None if data["tokenizer"] else model["revision"]
        self.tokenizer = load_tokenizer(source, revision=own)
        if data["chat_template"] is not None:
            self.tokenizer = with_template(self.tokenizer, data["chat_template"])
        self.variables = data["chat_template_kwargs"] or {}
        check_variables(self.variables, self.tokenizer)
        has_template = bool(self.tokenizer.chat_template)
        self.chat = rounds.format == "chat" or (rounds.format == "auto" and has_template)
        self.asking = self._asking(judge) if rounds.asks else None

    def _asking(self, function: Callable[..., Any] | None) -> Asking:
        rounds = self.rounds
        columns = self.settings["data"]["columns"] or {}
        if rounds.prompts is None:
            raise UserError("--prompts: a file of prompts, such as JSON lines of {prompt: …}")
        prompts = read_prompt_texts(rounds.prompts, columns.get("prompt") or "prompt")
        encoded = encoded_prompts(prompts, self.tokenizer, chat=self.chat, variables=self.variables)
        if function is not None:
            judge: Judge = FunctionJudge(
                function, both_orders=rounds.both_orders, timeout=rounds.timeout
            )
        elif rounds.judge is None:
            raise UserError("--judge: package.module:function, or a reward model")
        else:
            judge = judge_of(self._judging(), rounds.judge)
        return Asking(judge, prompts, encoded)

    def _judging(self) -> WinRateConfig:
        """The settings of the rounds that are a judge's."""
        rounds = self.rounds
        return WinRateConfig(
            judge=rounds.judge,
            both_orders=rounds.both_orders,
            batch_size=rounds.batch_size,
            endpoint=rounds.endpoint,
            template=rounds.template,
            key_variable=rounds.key_variable,
            timeout=rounds.timeout,
        )

    def note(self) -> None:
        """Refuse to go on with another run; write what this one is.

        Raises:
            UserError: a setting, the prompts, the judge or the model's folder are others.
        """
        settings = {n: v for n, v in self.settings.items() if n not in FREE and n != "online"}
        fixed = {k: v for k, v in self.settings["online"].items() if k not in FREE_ONLINE}
        settings = _leaves(settings | {"online": fixed})
        model = self.settings["model"]
        digests: dict[str, str | None] = {**model_digests(model["model"], model["reference"])}
        if self.asking is not None:
            text = json.dumps(self.asking.prompts)
            settings["prompts' digest"] = derive_seed(text)
            # One that is given in Python may keep a state, such as a count of its calls.
            if self.rounds.judge is not None:
                found = judge_digests(self._judging(), self.asking.judge)
                digests |= {name: digest for name, digest in found.items() if digest is not None}
        made_of.check_settings(self.out, settings)
        made_of.check_losses(self.out, digests)
        made_of.write(self.out, settings, digests)
        write_atomic(self.out / "config.yaml", settings_text(self.settings))

    def round(self, number: int) -> None:
        """Make the pairs of a round, train on them, write what came of it; what is done stays."""
        folder = self.folder(number)
        if not (folder / "metrics.json").is_file():
            self._make(number, folder)
        # A run that was killed here does these when it goes on.
        (folder / "fit" / "last.ckpt").unlink(missing_ok=True)
        self._table()

    def _make(self, number: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        first = number == 1 and self.rounds.first is not None
        found = None if first else self._pairs(number)
        write_atomic(folder / "config.yaml", settings_text(self.of_fit(number)))
        trained, metrics = self._fit(folder)
        if found is None:
            size = len(trained.datamodule.datasets["train"])
            found = Judged(stop=0, labels=size, answers=0, cut=0, pairs=[{}] * size)
        told = {"round": number, "stop": found["stop"], **_numbers(found)} | metrics
        write_atomic(folder / "metrics.json", json.dumps(told, indent=1) + "\n")
        shown = ", ".join(f"{metrics[n]:.3f} {n}" for n in ("loss", "val/loss") if n in metrics)
        print(
            f"round {number}/{self.rounds.rounds}: {told['pairs']} pairs, {told['labels']} labels"
            + (f", {shown}" if shown else ""),
            flush=True,
        )

    def _fit(self, folder: Path) -> tuple[CommandLine, dict[str, float]]:
        """Train as a round's configuration says; the numbers are those of the last step."""
        fit, words = folder / "fit", ["fit", "--config", str(folder / "config.yaml")]
        metrics: dict[str, float] = {}
        trained = None
        if (fit / "last.ckpt").is_file():
            trained, metrics = self._called([*words, "--resume"], fit)
        # Not one step was left to make: where its numbers were to be, they are not any more.
        if trained is None or "loss" not in metrics:
            shutil.rmtree(fit, ignore_errors=True)
            trained, metrics = self._called(words, fit)
        return trained, metrics

    def _called(self, words: list[str], fit: Path) -> tuple[CommandLine, dict[str, float]]:
        trained = called(RoundFit, self.program, words)
        if trained.trainer.interrupted or _trained(fit) is None:
            raise UserError(f"the training in {fit} was interrupted: go on with --resume")
        numbers = sorted(trained.trainer.callback_metrics.items())
        return trained, {name: float(value) for name, value in numbers}

    def folder(self, number: int) -> Path:
        """Of a round."""
        return self.out / ROUNDS / str(number)

    def start(self, number: int) -> str:
        """The model or adapter that a round begins with."""
        if number == 1:
            return self.settings["model"]["model"]
        trained = _trained(self.folder(number - 1) / "fit")
        assert trained is not None
        return str(trained)

    def of_fit(self, number: int) -> dict[str, Any]:
        """The settings of a round's training."""
        model, data = dict(self.settings["model"]), dict(self.settings["data"])
        seed = self.seed
        if number > 1:
            seed = derive_seed(self.seed, "round", number) % 2**32
            reference = self._reference(number)
            model |= {"model": self.start(number), "reference": reference}
            model |= {"lora": None, "revision": None}
        if number == 1 and self.rounds.first is not None:
            data["train"] = self.rounds.first
        else:
            pairs = str(self.folder(number) / "pairs.jsonl")
            # Columns that others' data have are not those of ours.
            data["train"] = {"source": pairs, "columns": {}} if data["columns"] else pairs
            data["train_split"] = "train"
        own = {name: self.settings[name] for name in OF_FIT} | {"seed_everything": seed}
        own |= {"model": model, "data": data, "trainer": self.settings["trainer"]}
        return own | {"out": str(self.folder(number) / "fit")}

    def _reference(self, number: int) -> str | None:
        """Of a later round: the first model, or that of the last refresh."""
        model, every = self.settings["model"], self.rounds.reference_refresh
        given = model["reference"]
        if every is not None and (since := number - (number - 1) % every) > 1:
            return "copy" if since == number else self.start(since)
        adapter = is_adapter(model["model"])
        if given not in (None, "adapter_off", "copy"):
            return given
        if model["lora"] is not None or (adapter and given != "copy"):
            return "adapter_off"
        return model["model"]

    def _pairs(self, number: int) -> Judged:
        """The pairs of a round, from its file or made now."""
        assert self.asking is not None
        folder, rounds = self.folder(number), self.rounds
        path = folder / "pairs.jsonl"
        if path.is_file():
            return read_json(folder / "judged.json", Judged)
        given, source = self.settings["model"], self.start(number)
        model = load_model(
            source,
            dtype=given["dtype"],
            attn_implementation=given["attn_implementation"],
            revision=given["revision"] if number == 1 else None,
        )
        check_tokenizer(model, self.tokenizer)
        cuda = self.settings["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available()
        model = model.to("cuda" if cuda else "cpu")
        # As the training does, so that a round has the same answers in a process of its own.
        if not cuda:
            one_thread_if_tiny(sum(p.numel() for p in model.parameters()))
        seed = derive_seed(self.seed, "online")
        writer = AnswerWriter(model, self.tokenizer, rounds.sampling(seed))
        writer.check(self.asking.encoded)

        def write(prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> list[Answer]:
            with _precision(self.settings["trainer"]["precision"], model.device.type):
                return writer(prompts, rows)

        start = 0
        if number > 1:
            start = read_json(self.folder(number - 1) / "metrics.json")["stop"]
        with tqdm(
            total=rounds.pairs,
            desc=f"pairs of round {number}",
            disable=not sys.stderr.isatty(),
            leave=False,
        ) as bar:

            def told(judged: Judged) -> None:
                bar.n = len(judged["pairs"])
                bar.refresh()

            found = judged_pairs(
                folder / "judged.json",
                write,
                self.asking.judge,
                self.asking.prompts,
                self.asking.encoded,
                chat=self.chat,
                pairs=rounds.pairs,
                answers=rounds.answers,
                start=start,
                batch_size=rounds.batch_size,
                seed=seed,
                told=told,
            )
        lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in found["pairs"]]
        write_atomic(path, "".join(lines))
        return found

    def _done(self) -> list[dict[str, Any]]:
        """What the rounds came to, as many as are done."""
        paths = [self.folder(n) / "metrics.json" for n in range(1, self.rounds.rounds + 1)]
        return [read_json(path) for path in paths if path.is_file()]

    def _table(self) -> None:
        rows = self._done()
        names = list(dict.fromkeys(name for row in rows for name in row if name != "stop"))
        file = io.StringIO()
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.out / "metrics.csv", file.getvalue())

    def finish(self) -> Path:
        """The folder of what was trained: a copy of the last round's, with a card of the whole."""
        last = _trained(self.folder(self.rounds.rounds) / "fit")
        assert last is not None
        folder, partial = self.out / last.name, self.out / f".{last.name}.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(last, partial)
        card = partial / CARD
        write_atomic(card, self._card(card.read_text("utf-8"), last.name))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        print(f"wrote {folder}")
        print(
            next_command(
                folder,
                SimpleNamespace(
                    chat=self.chat,
                    tokenizer=self.tokenizer,
                    chat_template_kwargs=self.variables,
                ),
            )
        )
        if (repository := self.settings["push_to_hub"]) is not None:
            print(f"pushed to {push(folder, repository)}")
        return folder

    def _card(self, text: str, name: str) -> str:
        """The card of the last round's training as one of all rounds."""
        source, rows = self.settings["model"]["model"], self._done()
        here = Path(source).exists()
        base = Path(source).resolve().name if here else source
        if self.rounds.rounds > 1:
            text = text.replace(f"# {name}, trained", f"# {base}, trained", 1)
            text = text.replace(f" `{name}`, trained", f" `{base}`, trained", 1)
            if not here:
                text = text.replace("\ntags:\n", f"\nbase_model: {source}\ntags:\n", 1)
        every = self.rounds.reference_refresh
        given = [row["labels"] for row in rows if self.rounds.first is not None][:1]
        labels = sum(row["labels"] for row in rows) - sum(given)
        sentences = [f"{sum(given)} pairs were given, for the first round."] if given else []
        if self.asking is not None:
            judge = str(getattr(self.asking.judge, "name", self.rounds.judge))
            judge = Path(judge).name if Path(judge).exists() else judge
            sentences += [f"{labels} labels by `{judge}`, of answers of the model of each round."]
        sentences += [
            "Reference, where the loss has one: "
            + ("the first model." if every is None else f"another one after {every} rounds."),
            "The other sections are of the last round.",
        ]
        table = [f"| {row['round']} | {row['pairs']} | {row['labels']} |" for row in rows]
        lines = ["| round | pairs | labels |", "|---|---|---|", *table]
        rounds = "\n".join(["## Rounds", "", " ".join(sentences), "", *lines])
        return text.replace("## Data\n", f"{rounds}\n\n## Data\n", 1)


def _check(settings: Mapping[str, Any], rounds: OnlineSettings) -> None:
    """Refuse what rounds cannot follow, before any work."""
    model, data, trainer = (settings[name] for name in ("model", "data", "trainer"))
    if data["train"] != []:
        raise UserError(
            "data.train: the rounds make their pairs; for pairs of the first round, --first FILE"
        )
    if model["reference"] == "cache":
        raise UserError(
            "model.reference: cache: the pairs of a round are new, so nothing could be kept: take "
            "adapter_off or copy"
        )
    if model["quantization"] is not None:
        raise UserError("model.quantization: rounds go on from weights in full: leave it out")
    refreshed = rounds.reference_refresh is not None
    if refreshed and model["reference"] not in (None, "adapter_off", "copy"):
        raise UserError("online.reference_refresh would replace model.reference: give one of both")
    source, kept = model["model"], rounds.rounds > 1 and rounds.reference_refresh != 1
    named = "/" in source or Path(source).is_dir()
    if kept and model["lora"] is None and (model["revision"] is not None or not named):
        raise UserError(
            f"model.model: the first model ({source}) stays the reference: give it as a folder, or "
            "as user/name without a revision; or set lora, or online.reference_refresh 1"
        )
    _check_moving(model, trainer, rounds)
    if trainer["devices"] not in ("auto", 1, "1") or trainer["num_nodes"] != 1:
        raise UserError("online trains in one process: trainer.devices 1 and trainer.num_nodes 1")
    if trainer["fast_dev_run"]:
        raise UserError("trainer.fast_dev_run leaves no model for the next round: leave it out")
    check_batch(objective_of(model["loss"], model["loss_args"] or {}), data["batch_size"])
    step = data["batch_size"] * trainer["accumulate_grad_batches"]
    if rounds.asks and rounds.pairs < step:
        raise UserError(
            f"online.pairs {rounds.pairs}: a step takes {step} pairs (data.batch_size × "
            "trainer.accumulate_grad_batches)"
        )


def _precision(given: Any, device: str) -> AbstractContextManager[Any]:
    """The precision of training, for the model's answers: some attentions know no other."""
    mixed = {"bf16": torch.bfloat16, "16": torch.float16}.get(str(given).removesuffix("-mixed"))
    return nullcontext() if mixed is None else torch.autocast(device, mixed)


def _check_moving(
    model: Mapping[str, Any], trainer: Mapping[str, Any], rounds: OnlineSettings
) -> None:
    """Refuse a reference that moves where a round's reference would be no copy of its model."""
    callbacks = trainer["callbacks"] or []
    named = [
        one["class_path"] for one in ([callbacks] if isinstance(callbacks, dict) else callbacks)
    ]
    if not any(name.rsplit(".", 1)[-1] == MovingReference.__name__ for name in named):
        return
    adapters = model["lora"] is not None or is_adapter(model["model"])
    copied = model["reference"] == "copy" or (model["reference"] is None and not adapters)
    if not copied or (rounds.rounds > 1 and rounds.reference_refresh != 1):
        raise UserError(
            "MovingReference moves a copy of the model that a round begins with: set "
            "model.reference copy and online.reference_refresh 1, or leave it out"
        )


def _numbers(found: Judged) -> dict[str, Any]:
    """What the pairs of a round say of it."""
    own: dict[str, Any] = {"pairs": len(found["pairs"]), "labels": found["labels"]}
    if found["answers"]:
        own |= {"answers": found["answers"], "answers_cut": found["cut"]}
        sure = [pair["preference_prob"] for pair in found["pairs"]]
        own["preference_prob"] = sum(sure) / len(sure)
        if "chosen_reward" in found["pairs"][0]:
            for name in ("chosen_reward", "rejected_reward"):
                own[name] = sum(pair[name] for pair in found["pairs"]) / len(sure)
    return own


def _trained(folder: Path) -> Path | None:
    """What a training has left in its folder."""
    return next((folder / n for n in ("adapter", "model") if (folder / n / CARD).is_file()), None)


def _leaves(settings: Any, name: str = "") -> dict[str, Any]:
    """A nested dict as one, by dotted names."""
    if not isinstance(settings, dict):
        return {name: settings}
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        leaves |= _leaves(value, f"{name}.{key}" if name else str(key))
    return leaves


def _is_empty(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} <= {LOCK, SOFT_LOCK}
