"""Fine-tuning's command line, on Lightning's; importing it takes seconds."""

import atexit
import json
import logging
import os
import re
import traceback
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _load
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from torchmpo.finetune.data import PreferenceData
from torchmpo.finetune.inspect import show_pair
from torchmpo.finetune.loading import load_tokenizer
from torchmpo.finetune.model_card import next_command, push
from torchmpo.finetune.models import LoraSettings, is_adapted
from torchmpo.finetune.module import PreferenceModule
from torchmpo.finetune.moving_reference import MovingReference
from torchmpo.finetune.resume import refuse_other_best
from torchmpo.finetune.sharding import is_sharded, load_whole, strategy_name
from torchmpo.finetune.term_weights import term_weights
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError, nearest, one_line
from torchmpo.runs.files import LOCK, SOFT_LOCK, alone_in, naming
from torchmpo.runs.options import plain
from torchmpo.runs.threads import one_thread_if_tiny
from torchmpo.runs.trackers import FILES, start_trackers, trackers_of
from torchmpo.runs.yaml_text import check_yaml, parse_yaml


class LastStep(Checkpoint):
    """A checkpoint where training ends: at its last step, or where something stops it early.

    Made after fit, it would say that the epoch was over, and a resume with more max_steps would
    leave out the rest of it. A `Checkpoint`, so that Lightning calls it after those that stop.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.should_stop or trainer.global_step == trainer.estimated_stepping_batches:
            trainer.save_checkpoint(self.path, weights_only=False)

    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        """A run whose folder was moved is the same run, with the same best checkpoint so far."""
        words = getattr(getattr(trainer, "datamodule", None), "made_with", None)
        keeps_best = any(getattr(one, "monitor", None) for one in trainer.checkpoint_callbacks)
        if trainer.state.fn == "fit" and keeps_best and words is not None:
            refuse_other_best(checkpoint, words(), self.path.with_name("best.ckpt"))
        states, folder = checkpoint.get("callbacks", {}), os.path.realpath(self.path.parent)
        for callback in trainer.checkpoint_callbacks:
            state = states.get(callback.state_key)
            if state and getattr(callback, "dirpath", None) == folder != state["dirpath"]:
                states[callback.state_key] = _renamed(state, state["dirpath"], folder)

    def on_validation_end(self, trainer, *_):
        self._if_stopped(trainer)

    def on_train_epoch_end(self, trainer, *_):
        # Where a batch in mid-epoch was the last one, the checkpoint is made already.
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._if_stopped(trainer)

    def _if_stopped(self, trainer):
        if trainer.should_stop and not trainer.sanity_checking and trainer.state.fn == "fit":
            trainer.save_checkpoint(self.path, weights_only=False)


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that replace the one before when they are whole, on any disk.

    Lightning writes to the disk of temporary files and moves. To another disk, that is a copy: a
    full disk, or a kill, would leave half a checkpoint in place of a good one.
    """

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        with naming(path):
            try:
                super().save_checkpoint(checkpoint, temporary, storage_options)
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except OSError:
                with suppress(OSError):
                    temporary.unlink()
                raise


class CommandLine(LightningCLI):
    """Lightning's, with our folder of a run."""

    @staticmethod
    def subcommands():
        # Checkpoints are read with weights_only=True, come what may.
        skip = {"model", "datamodule", "weights_only"}
        return {
            "fit": skip | {"train_dataloaders", "val_dataloaders", "ckpt_path"},
            "validate": skip | {"dataloaders"},
        }

    def parse_arguments(self, parser, args):
        commands = getattr(self, "_subcommand_parsers", {})  # inspect has none
        _check_sections(commands.get(args[0] if args else "", parser), args)
        super().parse_arguments(parser, args)

    def add_arguments_to_parser(self, parser):
        parser.add_argument("--out", default="runs/finetune", help="folder of the run")
        parser.add_argument("--resume", action="store_true", help="go on with it")
        parser.add_argument(
            "--tracker", type=str, help="tensorboard, wandb, mlflow or trackio, or several"
        )
        parser.add_argument("--push_to_hub", type=str, help="user/name: upload what was trained")
        parser.add_argument(
            "--checkpoint_every", type=int, default=100, help="optimizer steps, at least 1"
        )
        parser.add_argument(
            "--keep_best",
            action="store_true",
            help="keep best.ckpt, with the lowest val/loss, and end with its weights",
        )
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    @property
    def out(self) -> Path:
        return Path(self._get(self.config, "out"))

    @property
    def resume(self) -> bool:
        return self._get(self.config, "resume")

    def before_instantiate_classes(self):
        if self.subcommand != "fit":
            return
        if self._get(self.config, "checkpoint_every") < 1:
            raise UserError("checkpoint_every must be at least 1")
        if self.resume:
            if not (self.out / "last.ckpt").is_file():
                raise UserError(f"--resume: there is no last.ckpt in {self.out}")
            check_checkpoint(self.out / "last.ckpt", training=True)
        if _first_process() and not self.resume and self.out.exists() and not self._only_logs():
            raise UserError(
                f"{self.out} exists and is not empty: go on with --resume, or choose another --out"
            )

    def _only_logs(self) -> bool:
        """Whether the folder is what a run leaves that never came to a checkpoint."""
        left = {"log", LOCK, SOFT_LOCK, *FILES}
        return self.out.is_dir() and {p.name for p in self.out.iterdir()} <= left

    def _parse_ckpt_path(self):
        """Refuse what is no checkpoint; Lightning would look for settings in it."""
        if self.config.get("subcommand") == "validate":
            path = self.config["validate"].get("ckpt_path")
            if path and Path(path).is_file():
                check_checkpoint(path)

    def instantiate_trainer(self, **kwargs: Any):
        config = self._get(self.config_init, "trainer")
        _check_devices(config["accelerator"], config["devices"])
        if isinstance(strategy := config["strategy"], str):
            kwargs["strategy"] = strategy_name(strategy)
        kwargs["default_root_dir"] = self.out
        logger = config["logger"]
        if logger in (None, True):
            logger = CSVLogger(self.out, name="log")
        if trackers := trackers_of(self._get(self.config, "tracker")):
            own = self.config.get(str(self.subcommand), self.config)
            settings = json.loads(self._parser(self.subcommand).dump(own, format="json"))
            logger = [*_list(logger or None), *start_trackers(trackers, self.out, settings)]
        kwargs["logger"] = logger
        best = [] if config["fast_dev_run"] else self._best()
        if not config["fast_dev_run"] and config["enable_checkpointing"] is not False:
            ours = [self._checkpoint(), *best, LastStep(self.out / "last.ckpt")]
            kwargs["callbacks"] = [*_list(config["callbacks"]), *ours]
        kwargs["plugins"] = [*_list(config["plugins"]), WholeCheckpoints()]
        _check_numbers(config)
        try:
            return super().instantiate_trainer(**kwargs)
        except UserError:
            raise
        except (TypeError, ValueError, ModuleNotFoundError) as error:  # Lightning's own checks
            raise UserError(f"trainer: {one_line(error)}") from error

    def _set_seed(self):
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"seed_everything: {one_line(error)}") from error

    def _checkpoint(self) -> ModelCheckpoint:
        return ModelCheckpoint(
            dirpath=self.out,
            filename="last",
            every_n_train_steps=self._get(self.config, "checkpoint_every"),
            enable_version_counter=False,  # one file, replaced whole
        )

    def _best(self) -> list[ModelCheckpoint]:
        if self.subcommand != "fit" or not self._get(self.config, "keep_best"):
            return []
        if self._get(self.config, "data")["validation"] is None:
            raise UserError("--keep_best needs validation pairs: set data.validation")
        if self._get(self.config, "trainer")["limit_val_batches"] == 0:
            raise UserError("--keep_best needs validation: leave trainer.limit_val_batches out")
        if self._get(self.config, "trainer")["enable_checkpointing"] is False:
            raise UserError("--keep_best needs checkpoints: leave trainer.enable_checkpointing out")
        return [
            ModelCheckpoint(
                dirpath=self.out, filename="best", monitor="val/loss", enable_version_counter=False
            )
        ]

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True}
        if subcommand == "fit" and self.resume:
            kwargs["ckpt_path"] = str(self.out / "last.ckpt")
        return kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        # A full disk is told by whoever met it, often without a path.
        with naming(self.out), self._held(subcommand):
            super()._run_subcommand(subcommand)

    def _held(self, subcommand: str) -> AbstractContextManager[None]:
        """The folder of a training, against another one; its first process holds it for all."""
        kept = subcommand == "fit" and not self._get(self.config, "trainer")["fast_dev_run"]
        if not kept or not _first_process():
            return nullcontext()
        self.out.mkdir(parents=True, exist_ok=True)
        return alone_in(self.out)

    def before_fit(self):
        if self._get(self.config, "keep_best") and (moves := self._what_moves()):
            raise UserError(
                f"--keep_best compares val/loss over time, which {moves} makes another function at "
                "every step: leave it out"
            )
        if self.trainer.strategy.root_device.type == "cpu":
            one_thread_if_tiny(sum(p.numel() for p in self.model.policy.parameters()))

    def _what_moves(self) -> str | None:
        """Why the loss of a later step is not to be compared with that of an earlier one."""
        objective = self.model.objective
        if term_weights(objective) is not None:
            return "a rule that weighs its terms"
        if "progress" in objective.inputs:
            return "a loss that depends on time"
        moving = any(isinstance(c, MovingReference) for c in vars(self.trainer)["callbacks"])
        return "MovingReference" if moving else None

    def after_fit(self):
        if self._get(self.config_init, "trainer")["fast_dev_run"] or self.trainer.interrupted:
            return
        # The first process decides: others may be on a machine that does not see its disk.
        last = self.out / "last.ckpt"
        there = self.trainer.strategy.broadcast(last.is_file())
        if not there and self.trainer.checkpoint_callback is not None:
            self.trainer.save_checkpoint(last, weights_only=False)  # not a step was made
        best, keep = self.out / "best.ckpt", self._get(self.config, "keep_best")
        if keep and not self.trainer.strategy.broadcast(best.is_file()):
            raise UserError(
                f"--keep_best: there is no {best}, because training ended before the first "
                "validation: set trainer.val_check_interval, or train longer with --resume "
                f"({last} has what was trained so far)"
            )
        name = "adapter" if is_adapted(self.model.policy.model) else "model"
        if self.trainer.is_global_zero or is_sharded(self.trainer):
            score = None
            if keep:
                content = _load(best, map_location="cpu", weights_only=True)
                load_whole(self.model, content["state_dict"])
                states = content["callbacks"].values()
                own = (x for x in states if Path(x.get("best_model_path", "")).name == best.name)
                score = content["global_step"], float(next(own)["best_model_score"])
            self.model.save(self.out / name, self.datamodule.tokenizer, best=score)
        if self.trainer.is_global_zero:
            self.tell(self.out / name)

    def tell(self, folder: Path) -> None:
        """Say what was made, and how to go on with it; upload it."""
        print(f"wrote {folder}")
        print(next_command(folder, self.datamodule))
        if (repository := self._get(self.config, "push_to_hub")) is not None:
            print(f"pushed to {push(folder, repository)}")


def _first_process() -> bool:
    """Whether this is the one that begins a run; others find what it has begun."""
    return getattr(rank_zero_only, "rank", None) in (None, 0)


def check_checkpoint(path: str | Path, *, training: bool = False) -> None:
    """Refuse a file that is no checkpoint of Lightning's, without reading its weights.

    Args:
        path: the file.
        training: whether training is to go on from it.

    Raises:
        UserError: damaged, something else, or with objects in it that loading would have to run.
    """
    try:
        # weights_only unpickles no objects; mapped, and to no device, no weight is read.
        content = torch.load(path, map_location="meta", mmap=True, weights_only=True)  # noqa: TID251
    except Exception as error:  # what is no checkpoint fails in any way
        raise UserError(
            f"{path} is not a checkpoint that can be read: it is damaged, or holds more than "
            "tensors and plain values"
        ) from error
    needed = {"state_dict": dict, "pytorch-lightning_version": str}
    if training:
        needed |= {"loops": dict, "optimizer_states": list, "lr_schedulers": list}
    for key, kind in needed.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise UserError(f"{path} is not a checkpoint of a run: it has no {key}")


# Of the trainer's numbers that Lightning takes whatever they are, the least that has a meaning.
LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "min_epochs": 0,
    "min_steps": 0,
    "num_sanity_val_steps": -1,
    "val_check_interval": 0,
}


def _check_numbers(trainer: Any) -> None:
    for name, least in LEAST.items():
        value = trainer[name]
        if isinstance(value, (int, float)) and not value >= least:  # NaN is none, either
            raise UserError(f"trainer.{name} must be at least {least}; got {value}")
    if trainer["val_check_interval"] == 0:
        raise UserError("trainer.val_check_interval must be above 0: batches, or part of an epoch")
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer[name] == 0:
            raise UserError(f"trainer.{name} is 0: nothing would be trained")


def _check_devices(accelerator: str, devices: Any) -> None:
    """On CPUs, Lightning would start any number of processes, and hang."""
    cores = os.cpu_count() or 1
    number = int(devices) if str(devices).isdigit() else 0
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    if on_cpu and number > cores:
        raise UserError(f"trainer.devices {devices}: this machine has {cores} CPU cores")


class Inspect(CommandLine):
    """Print one pair of a configuration: its tokens, and which of them count."""

    def add_arguments_to_parser(self, parser):
        super().add_arguments_to_parser(parser)
        parser.add_argument("--index", type=int, default=0, help="which pair, from 0")
        parser.add_argument("--split", default="train", help="train or validation")

    def instantiate_classes(self):
        """Data only, as the loss reads them: no model is loaded."""
        settings = self.config.data.as_dict()
        model = self.config.model
        if settings["tokenizer"] is None:
            settings["tokenizer"] = load_tokenizer(model.model, revision=model.revision)
        data, split = PreferenceData(**settings), self.config.split
        if split not in data.sources:
            raise UserError(f"unknown split {split!r}: {nearest(split, data.sources)}")
        data.sources = {split: data.sources[split]}
        try:
            data.loss_inputs = resolve(model.loss, **(model.loss_args or {})).inputs
        except ValueError as error:
            raise UserError(one_line(error)) from error
        data.setup()
        dataset, index = data.datasets[split], self.config.index
        if not 0 <= index < len(dataset):
            raise UserError(f"--index must be in 0…{len(dataset) - 1}; got {index}")
        print(show_pair(dataset, index, data.tokenizer))


def fit_or_validate(program: str, words: list[str]) -> None:
    """Train or validate.

    Args:
        program: how the command is called, for messages.
        words: ``fit`` or ``validate``, and its options.

    Raises:
        UserError: a mistake in them, or in what they name.
    """
    called(CommandLine, program, words)


def inspect(program: str, words: list[str]) -> None:
    """Print a pair; the arguments are those of `fit_or_validate`, without the command."""
    called(Inspect, program, words, run=False)


def called(
    kind: type[CommandLine], program: str, words: list[str], *, run: bool = True
) -> CommandLine:
    """A command line that has done its work.

    Args:
        kind: which.
        program, words: see `fit_or_validate`.
        run: whether the first word is a command.

    Raises:
        UserError: a mistake in them, or in what they name.
    """
    _check_files(words)
    atexit.unregister(_leave_processes)  # once, however many calls there are
    atexit.register(_leave_processes)
    return _call(lambda: kind(args=with_loss(words), run=run, **_settings(program)))


def _leave_processes() -> None:
    """Leave the group of processes before this one ends, which Lightning does for NCCL only.

    Else gloo's threads may still run when the interpreter is taken down, which now and then aborts
    a process whose work is done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _check_files(words: list[str]) -> None:
    """Refuse a configuration that expands without end, which jsonargparse would do."""
    for path in _files(words):
        try:
            check_yaml(path.read_text())
        except ValueError as error:
            raise UserError(f"--config: {path}: {one_line(error)}") from error


def _files(words: list[str]) -> list[Path]:
    """The configuration files that are named."""
    paths = [
        Path(after if word == "--config" else word.removeprefix("--config="))
        for word, after in pairwise([*words, ""])
        if word.startswith("--config")
    ]
    return [path for path in paths if path.is_file()]


def _check_sections(parser: Any, words: list[str]) -> None:
    """Refuse a section that is unknown and empty, which jsonargparse passes over in silence."""
    options = [action.dest.split(".") for action in parser._actions]
    options += [["model", "lora", field.name] for field in fields(LoraSettings)]
    for path in _files(words):
        content: Any = None
        with suppress(ValueError):  # what is no YAML, jsonargparse says better
            content = parse_yaml(path.read_text())
        for section in _empty_sections(content):
            for depth, name in enumerate(section):
                beside = [option for option in options if option[:depth] == section[:depth]]
                known = {option[depth] for option in beside if len(option) > depth}
                if known and name not in known:
                    full, which = ".".join(section[: depth + 1]), nearest(name, known)
                    raise UserError(f"--config: {path}: unknown section {full!r}: {which}")


def _empty_sections(value: Any) -> list[list[str]]:
    """The keys that lead to each ``{}`` in a value."""
    if not isinstance(value, dict):
        return []
    return [
        [str(name), *below]
        for name, inner in value.items()
        for below in ([[]] if inner == {} else _empty_sections(inner))
    ]


def with_loss(words: list[str]) -> list[str]:
    """``--loss`` spelled out: a configuration's hyper-parameters belong to the loss named there."""
    out = [re.sub(r"^--loss(?==|$)", "--model.loss", word) for word in words]
    if out != words and not any(word.startswith("--model.loss_args") for word in words):
        out += ["--model.loss_args", "null"]
    return out


def _settings(program: str) -> dict[str, Any]:
    quiet = {"exit_on_error": False, "allow_abbrev": False}
    return {
        "model_class": PreferenceModule,
        "datamodule_class": PreferenceData,
        "seed_everything_default": 0,
        "trainer_defaults": {"log_every_n_steps": 1},  # short runs have numbers, too
        "auto_configure_optimizers": False,
        "load_from_checkpoint_support": False,
        "parser_kwargs": quiet | {"prog": program, "fit": dict(quiet), "validate": dict(quiet)},
    }


def _call(command_line: Callable[[], CommandLine]) -> CommandLine:
    # The words are given and not read from sys.argv, which may begin with another command; the
    # processes that Lightning starts repeat the whole of it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # that a CPU could have more kernels
    for text in (
        "LightningCLI's args parameter",
        "Checkpoint directory .* exists and is not empty",  # a log, or a run that goes on
        "The dirpath has changed from",  # a folder that was moved
        ".ModelCheckpoint.monitor='val/loss'.. could not find",  # told at the end, if it stays so
        "`is_gradient_checkpointing` is deprecated",  # peft's and Lightning's own
        "`isinstance.treespec, LeafSpec.` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=text)
    try:
        return command_line()
    except Exception as error:
        # A setting's own complaint comes wrapped in jsonargparse's, and has causes of its own.
        told, reason = None, error
        while reason is not None:
            told, reason = reason if isinstance(reason, UserError) else told, reason.__cause__
        if told is not None:
            raise UserError(one_line(told, 10_000)) from error
        if _restoring(error):
            raise UserError(
                "the checkpoint is damaged, or of another version of Lightning: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error
        if (text := _refused(error)) is not None:
            raise UserError(text if len(text) <= 300 else f"{text[:300]}…") from error
        raise


def _restoring(error: Exception) -> bool:
    """Whether it was raised where Lightning takes up what a checkpoint holds."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.filename.endswith("checkpoint_connector.py") for frame in frames)


def _refused(error: Exception) -> str | None:
    """What Lightning or its command line has to say of a setting; None for any other error."""
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    trace = first.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    told = (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException)
    if where.startswith("lightning.") and isinstance(first, told):
        return one_line(first, 300)
    # Of a class with its arguments, the list of all that could stand in its place says nothing.
    given = r"Problem with given class_path '[^']*':.*?(?=\n *- |\nGiven)"
    if found := re.search(given, str(error), flags=re.DOTALL):
        return " ".join(found[0].split())
    too_long = "integer string conversion" in str(error)  # a number of 10,000 digits
    if too_long or isinstance(error, (ArgumentError, MisconfigurationException)):
        return plain(error)
    return None


def _renamed(value: Any, old: str, new: str) -> Any:
    """The state of a callback with a folder by its new name."""
    if isinstance(value, dict):
        return {_renamed(k, old, new): _renamed(v, old, new) for k, v in value.items()}
    if isinstance(value, str) and (value == old or value.startswith(old + os.sep)):
        return new + value[len(old) :]
    return value


def _list(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
