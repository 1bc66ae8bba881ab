"""Answers while a model is trained, and how often they are preferred to others: a callback."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchmpo.finetune.answers import AnswerWriter, Sampling, batches
from torchmpo.finetune.pairs import Message
from torchmpo.finetune.sharding import is_sharded
from torchmpo.finetune.tokenize import encode_prompt
from torchmpo.runs.errors import UserError, missing_package
from torchmpo.runs.files import write_atomic
from torchmpo.winrate.alpaca_files import (
    Row,
    annotations_text,
    compare,
    probability,
    read_outputs,
    read_prompts,
)
from torchmpo.winrate.judges import FunctionJudge, Judge, resolve_judge
from torchmpo.winrate.rates import describe

try:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.utilities import rank_zero_info
except ModuleNotFoundError as error:
    raise missing_package(error, "llm") from error

START = "the start"
JUDGE_TIMEOUT = 600.0  # seconds of a call


class Samples(Callback):
    """Writes answers at the start, every so many steps and at the end, and logs a win rate.

        Trainer(callbacks=[Samples("prompts.json", judge="my_judge:prefer")])

    or in a configuration, under ``trainer``::

        callbacks:
        - class_path: torchmpo.finetune.Samples
          init_args: {prompts: prompts.json, judge: "my_judge:prefer"}

    Answers are in ``samples/step_….json`` in the folder of the log, in AlpacaEval's form. Logged
    are ``samples/length``, characters of an answer, and with a judge ``samples/win_rate``, in
    percent: against the answers in ``reference``, or else against the model's own before training,
    so that it begins at 50. Training is the same with and without it, to the bit.

    Args:
        prompts: file with ``{"instruction": …}``, as ``python -m torchmpo.generate`` takes it.
        judge: what ``python -m torchmpo.winrate --judge`` takes, or a function; None for no rate.
        reference: file of answers to the same prompts.
        every_n_steps: optimizer steps from one time to the next, ≥ 1.
        count: how many of the prompts, from the first; None for all.
        chat: whether prompts go through the chat template; by default as the pairs do.
        max_new_tokens, temperature, seed: see :class:`torchmpo.finetune.answers.Sampling`.
        batch_size: answers written at a time.
        shown: answers that are printed each time.

    Raises:
        UserError: a file, the judge or a number cannot be used. As training begins: the judge
            fails, or the strategy leaves no process with the whole model. A judge that fails later
            is a warning.
    """

    def __init__(
        self,
        prompts: str,
        *,
        judge: str | Callable[..., Any] | None = None,
        reference: str | None = None,
        every_n_steps: int = 100,
        count: int | None = None,
        chat: bool | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 8,
        shown: int = 1,
    ):
        for name, value in (("every_n_steps", every_n_steps), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name} must be at least 1; got {value}")
        if count is not None and count < 1:
            raise UserError(f"count must be at least 1; got {count}")
        self.prompts = [row["instruction"] for row in read_prompts(prompts)][:count]
        self.judge: Judge | None = None
        if isinstance(judge, str):
            self.judge = resolve_judge(judge, batch_size=batch_size, timeout=JUDGE_TIMEOUT)
        elif judge is not None:
            self.judge = FunctionJudge(judge, timeout=JUDGE_TIMEOUT)
        self.reference: list[Row] | None = None
        if reference is not None:
            known = {row["instruction"]: row for row in read_outputs(reference, "the reference")}
            if absent := [prompt for prompt in self.prompts if prompt not in known]:
                raise UserError(f"{reference} has no answer to {absent[0][:60]!r}")
            self.reference = [known[prompt] for prompt in self.prompts]
        self.sampling = Sampling(max_new_tokens, temperature, seed=seed)
        self.every, self.batch_size, self.chat, self.shown = every_n_steps, batch_size, chat, shown
        self._written = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The answers before training, or of a resumed run those that it began with."""
        if getattr(trainer.datamodule, "tokenizer", None) is None:
            raise UserError("Samples takes the tokenizer of a PreferenceData: fit(module, data)")
        if is_sharded(trainer):
            raise UserError("Samples needs the whole model in a process, which is not so here")
        if trainer.global_step > 0:
            self._written = trainer.global_step
            self._recall(trainer)
        else:
            self._write(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Answers, where it is time."""
        if trainer.global_step != self._written and trainer.global_step % self.every == 0:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The last answers."""
        if trainer.global_step != self._written:
            self._write(trainer, pl_module)

    def _write(self, trainer: Any, module: Any) -> None:
        self._written = trainer.global_step
        folder = _folder(trainer)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            self._answers(trainer, module, folder)
        trainer.strategy.barrier("samples")

    def _answers(self, trainer: Any, module: Any, folder: Path) -> None:
        step = trainer.global_step
        data = trainer.datamodule
        tokenizer = data.tokenizer
        chat = data.chat if self.chat is None else self.chat
        texts = [(Message("user", p),) if chat else p for p in self.prompts]
        encoded = [encode_prompt(text, tokenizer, data.chat_template_kwargs) for text in texts]
        writer = AnswerWriter(module.policy.model, tokenizer, self.sampling)
        writer.check(encoded)
        written: dict[int, Any] = {}
        with trainer.precision_plugin.forward_context():
            for rows in batches(
                [len(ids) for ids in encoded], range(len(encoded)), self.batch_size
            ):
                answers = writer([encoded[i] for i in rows], rows)
                written |= dict(zip(rows, answers, strict=True))
        name = f"step {step}" if step else START
        rows = [
            {"instruction": prompt, "output": written[i].text, "generator": name}
            for i, prompt in enumerate(self.prompts)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"step_{step:06d}.json", annotations_text(rows))
        if step == 0 and self.reference is None:
            self.reference = rows
        numbers = {"samples/length": sum(len(row["output"]) for row in rows) / len(rows)}
        if self.judge is not None and self.reference is not None:
            try:
                numbers["samples/win_rate"] = self._win_rate(rows, self.judge, self.reference)
            except UserError as error:
                if step == 0:
                    raise
                # A judge that fails is no reason to lose a training.
                warnings.warn(f"no win rate of step {step}: {error}", stacklevel=2)
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=step)
        for row in rows[: self.shown]:
            rank_zero_info(f"{name}: {row['instruction'][:80]!r} → {row['output'][:400]!r}")
        rank_zero_info(f"{name}: " + ", ".join(f"{k} {v:.1f}" for k, v in numbers.items()))

    def _win_rate(self, rows: list[Row], judge: Judge, reference: list[Row]) -> float:
        if reference is rows:
            row = rows[0]  # a judge that cannot be used is found out before training
            judge([row["instruction"]], [row["output"]], [row["output"]])
            return 50.0
        compared = compare(reference, rows, empty="lose")
        todo = [row for row in compared if "preference" not in row]
        columns = ("instruction", "output_1", "output_2")
        values = judge(*([row[c] for row in todo] for c in columns)) if todo else []
        for row, value in zip(todo, values, strict=True):
            row["preference"] = 1 + value
        return float(describe([probability(row["preference"]) for row in compared])["win_rate"])

    def _recall(self, trainer: Any) -> None:
        """The answers that an interrupted run began with, from its own log."""
        folder = _folder(trainer)
        if self.reference is not None or self.judge is None or not trainer.loggers:
            return
        for path in sorted(folder.parent.parent.glob("*/samples/step_000000.json"), reverse=True):
            rows = read_outputs(path)
            if [row["instruction"] for row in rows] == self.prompts:
                self.reference = rows
                return
        warnings.warn(
            "the answers from before training are not there any more: no win rate is logged",
            stacklevel=2,
        )


def _folder(trainer: Any) -> Path:
    """Where answers are; all processes must ask, because Lightning lets the first one say."""
    return Path(trainer.log_dir or trainer.default_root_dir) / "samples"
