"""Fine-tune a language model on preference pairs with any loss.

    python -m torchmpo.finetune fit --config experiments/llm/colpo_smollm2.yaml
    python -m torchmpo.finetune fit --config …  --loss runs/evolve/objective --out runs/mine
    python -m torchmpo.finetune fit --config …  --out runs/mine --resume
    python -m torchmpo.finetune validate --config …  --ckpt_path runs/mine/last.ckpt
    python -m torchmpo.finetune inspect --config …  --index 3         (a pair, token by token)
    python -m torchmpo.finetune export --adapter runs/mine/adapter --out merged

or from Python

    module = PreferenceModule("path/to/model", loss="colpo", lora=LoraSettings(r=16))
    data = PreferenceData("pairs.jsonl", batch_size=2)
    Trainer(max_epochs=1, accumulate_grad_batches=8).fit(module, data)

``fit`` and ``validate`` are Lightning's command line: ``trainer.*`` are its Trainer's settings,
``model.*`` those of :class:`torchmpo.finetune.module.PreferenceModule`, ``data.*`` those of
:class:`torchmpo.finetune.data.PreferenceData`; ``--loss X`` is ``--model.loss X`` without the
``loss_args`` that the configuration has for its own loss. The folder of a run has ``last.ckpt``,
``log/version_0/`` with ``config.yaml`` and ``metrics.csv`` (one more version per resume), and, when
it is done, ``adapter/``, or ``model/`` where all weights were trained.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchmpo.runs.errors import UserError, disk_line, nearest

PROGRAM = "python -m torchmpo.finetune"
COMMANDS = ("fit", "validate", "inspect", "export")


def _fit_or_validate(argv: list[str] | None) -> None:
    """Lightning's command line with our folder of a run."""
    _command_line()(args=argv, **_settings())


def _inspect(argv: list[str]) -> None:
    """Print one pair of a configuration: its tokens, and which of them count."""
    from torchmpo.finetune.data import PreferenceData
    from torchmpo.finetune.inspect import show_pair

    class Inspect(_command_line()):
        def add_arguments_to_parser(self, parser):
            super().add_arguments_to_parser(parser)
            parser.add_argument("--index", type=int, default=0, help="which pair, from 0")
            parser.add_argument("--split", default="train", help="train or validation")

        def instantiate_classes(self):
            """Data only: no model is loaded."""
            settings = self.config.data.as_dict()
            settings["tokenizer"] = settings["tokenizer"] or self.config.model.model
            data, split = PreferenceData(**settings), self.config.split
            if split not in data.sources:
                raise UserError(f"unknown split {split!r}: {nearest(split, data.sources)}")
            data.sources = {split: data.sources[split]}
            data.setup()
            dataset, index = data.datasets[split], self.config.index
            if not 0 <= index < len(dataset):
                raise UserError(f"--index must be in 0…{len(dataset) - 1}; got {index}")
            print(show_pair(dataset, index, data.tokenizer))

    Inspect(args=argv, run=False, **_settings())


def _export(argv: list[str]) -> None:
    """Write the merged model of an adapter."""
    from jsonargparse import ArgumentParser

    from torchmpo.finetune.models import export_merged

    parser = ArgumentParser(prog=f"{PROGRAM} export", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--adapter", type=str, required=True, help="folder of a run's adapter")
    parser.add_argument("--out", type=str, required=True, help="folder of the merged model")
    given = parser.parse_args(argv)
    export_merged(given.adapter, given.out)
    print(f"wrote {given.out}")


def _settings() -> dict[str, Any]:
    from torchmpo.finetune.data import PreferenceData
    from torchmpo.finetune.module import PreferenceModule

    quiet = {"exit_on_error": False}
    return {
        "model_class": PreferenceModule,
        "datamodule_class": PreferenceData,
        "seed_everything_default": 0,
        "auto_configure_optimizers": False,
        "load_from_checkpoint_support": False,
        "parser_kwargs": quiet | {"prog": PROGRAM, "fit": dict(quiet), "validate": dict(quiet)},
    }


def _command_line() -> Any:
    """The class, made when it is needed: Lightning takes seconds to import."""
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.utilities import rank_zero_only

    class LastStep(Callback):
        """A checkpoint of the last step, made while the loop is in it.

        Made after fit, it would say that the epoch was over, and a resume with more max_steps would
        leave out the rest of it.
        """

        def __init__(self, path: Path):
            self.path = path

        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == trainer.estimated_stepping_batches:
                trainer.save_checkpoint(self.path)

    class CommandLine(LightningCLI):
        @staticmethod
        def subcommands():
            # Checkpoints are read with weights_only=True, come what may.
            skip = {"model", "datamodule", "weights_only"}
            return {
                "fit": skip | {"train_dataloaders", "val_dataloaders", "ckpt_path"},
                "validate": skip | {"dataloaders"},
            }

        def add_arguments_to_parser(self, parser):
            parser.add_argument("--out", default="runs/finetune", help="folder of the run")
            parser.add_argument("--resume", action="store_true", help="go on with it")
            parser.add_argument(
                "--checkpoint_every", type=int, default=100, help="optimizer steps, at least 1"
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
            if self.resume and not (self.out / "last.ckpt").is_file():
                raise UserError(f"--resume: there is no last.ckpt in {self.out}")
            # The other processes of a run find what the first one has begun.
            first = getattr(rank_zero_only, "rank", None) in (None, 0)
            if first and not self.resume and self.out.exists() and not self._only_logs():
                raise UserError(
                    f"{self.out} exists and is not empty: go on with --resume, or choose another "
                    "--out"
                )

        def _only_logs(self) -> bool:
            """Whether the folder is what a run leaves that never came to a checkpoint."""
            return self.out.is_dir() and {p.name for p in self.out.iterdir()} <= {"log"}

        def instantiate_trainer(self, **kwargs: Any):
            config = self._get(self.config_init, "trainer")
            kwargs["default_root_dir"] = self.out
            if config["logger"] in (None, True):
                kwargs["logger"] = CSVLogger(self.out, name="log")
            if not config["fast_dev_run"] and config["enable_checkpointing"] is not False:
                ours = [self._checkpoint(), LastStep(self.out / "last.ckpt")]
                kwargs["callbacks"] = [*_list(config["callbacks"]), *ours]
            return super().instantiate_trainer(**kwargs)

        def _checkpoint(self) -> ModelCheckpoint:
            return ModelCheckpoint(
                dirpath=self.out,
                filename="last",
                every_n_train_steps=self._get(self.config, "checkpoint_every"),
                enable_version_counter=False,  # one file, replaced whole
            )

        def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
            kwargs = super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True}
            if subcommand == "fit" and self.resume:
                kwargs["ckpt_path"] = str(self.out / "last.ckpt")
            return kwargs

        def after_fit(self):
            from torchmpo.finetune.models import is_adapted

            if self._get(self.config_init, "trainer")["fast_dev_run"] or self.trainer.interrupted:
                return
            if self.trainer.is_global_zero:
                name = "adapter" if is_adapted(self.model.policy.model) else "model"
                self.model.save(self.out / name, self.datamodule.tokenizer)
                print(f"wrote {self.out / name}")

    return CommandLine


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2 for a mistake, told in one line."""
    words = sys.argv[1:] if argv is None else list(argv)
    words = _with_loss(words)
    if argv is None:
        sys.argv[1:] = words  # which Lightning's command line reads itself
    try:
        if not words or words[0] not in (*COMMANDS, "-h", "--help"):
            name = words[0] if words else ""
            raise UserError(f"unknown command {name!r}: {nearest(name, COMMANDS)}")
        if words[0] in ("-h", "--help"):
            print(__doc__)
        elif words[0] == "inspect":
            _inspect(words[1:])
        elif words[0] == "export":
            _export(words[1:])
        else:
            _fit_or_validate(None if argv is None else words)
        return 0
    except UserError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed: pip install 'torchmpo[llm]'"
    except OSError as error:
        message = disk_line(error)
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        message = told
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _with_loss(words: list[str]) -> list[str]:
    """``--loss`` spelled out: a configuration's hyper-parameters belong to the loss named there."""
    out = [re.sub(r"^--loss(?==|$)", "--model.loss", word) for word in words]
    if out != words and not any(word.startswith("--model.loss_args") for word in words):
        out += ["--model.loss_args", "null"]
    return out


def _told(error: BaseException) -> str | None:
    """What jsonargparse or Lightning complains of; None if it is no mistake of the user's."""
    # A setting's own complaint comes wrapped in jsonargparse's.
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    if isinstance(root, UserError):
        return str(root)
    if type(error).__name__ not in ("ArgumentError", "MisconfigurationException"):
        return None
    text = " ".join(str(error).split())
    text = re.sub(r"^(error: )?Parser key \"([\w.]+)\":", r"\2:", text)
    return text if len(text) <= 300 else f"{text[:300]}…"


def _list(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]


if __name__ == "__main__":
    sys.exit(main())
