"""Preference pairs for a fine-tuning run: a LightningDataModule.

Which pairs make an optimizer step follows from (seed, epoch, step) and from how many pairs it has,
and neither from how these are divided among micro-batches and processes nor from a resume.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from torchmpo.finetune.chat_template import check_variables, with_template
from torchmpo.finetune.mixture import hold_out, load_mixture, repeat
from torchmpo.finetune.models import check_length, check_tokenizer, load_tokenizer
from torchmpo.finetune.pairs import Pair, clean, unpaired
from torchmpo.finetune.ranked_answers import answers_read, check_lengths
from torchmpo.finetune.reference import (
    Batch,
    StepTable,
    reference_table,
    step_table,
    with_reference,
)
from torchmpo.finetune.reference_choice import check_reference
from torchmpo.finetune.resume import pairs_digest
from torchmpo.finetune.sharding import is_sharded
from torchmpo.finetune.supply import (
    check_batch,
    check_scores,
    needs_reference_steps,
    reads_others,
)
from torchmpo.finetune.tokenize import PairDataset, collate
from torchmpo.runs.errors import UserError, missing_package
from torchmpo.runs.seeding import generator

try:
    from lightning.pytorch import LightningDataModule
    from lightning.pytorch.utilities import rank_zero_info
except ModuleNotFoundError as error:
    raise missing_package(error, "llm") from error

MOST_WORKERS = 256  # more processes are a slip of the hand, and would fill the memory


# Steps whose pairs are sorted by length together.
NEIGHBOURS = 50


class StepSampler(DistributedSampler):
    """The rows of one process, in an order in which optimizer steps hold the same pairs everywhere.

    An epoch is one permutation of all rows, cut into steps of ``step_size`` pairs; a step is cut
    into micro-batches, and those among the processes. What is left over is not used in that epoch.

    With ``lengths``, pairs of like length come together, so that there is little padding: of every
    ``NEIGHBOURS`` steps the pairs are sorted by length before they are cut into these steps again,
    which then come in a random order. That of an epoch's longest pair comes first, so that what
    does not fit into memory shows at once.

    Args:
        rows: number of pairs.
        batch_size: pairs of one micro-batch of one process.
        accumulate: micro-batches of a step.
        rank, world: this process, and how many there are.
        seed: of the permutations.
        lengths: of the rows, in tokens, to group them by.

    Attributes:
        skip: rows of this process not to give in the next iteration.

    Raises:
        UserError: fewer pairs than one step takes.
    """

    # A DistributedSampler, so that Lightning neither replaces it nor forgets to tell the epoch.
    def __init__(
        self,
        rows: int,
        batch_size: int,
        accumulate: int,
        rank: int,
        world: int,
        seed: int,
        *,
        lengths: Sequence[int] | None = None,
    ):
        super().__init__(range(rows), world, rank, seed=seed)  # pyright: ignore[reportArgumentType]
        self.rows, self.batch_size, self.accumulate = rows, batch_size, accumulate
        self.step_size = batch_size * accumulate * world
        self.lengths = None if lengths is None else torch.as_tensor(lengths)
        self.skip = 0
        if rows < self.step_size:
            raise UserError(
                f"one step takes {self.step_size} pairs ({batch_size} per batch × {accumulate} "
                f"accumulated × {world} processes), but there are {rows}"
            )

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.rows, generator=generator(self.seed, "pairs", self.epoch))
        steps = self.rows // self.step_size
        order = order[: steps * self.step_size]
        if self.lengths is not None:
            order = self._grouped(order, self.lengths[order])
        cut = order.view(steps, self.accumulate, self.num_replicas, -1)
        skip, self.skip = self.skip, 0
        return iter(cut[:, :, self.rank].reshape(-1)[skip:].tolist())

    def _grouped(self, order: Tensor, lengths: Tensor) -> Tensor:
        """The rows of whole steps, so that those of like length come together."""
        near = NEIGHBOURS * self.step_size
        by_length = [
            rows[of_rows.argsort(descending=True, stable=True)]
            for rows, of_rows in zip(order.split(near), lengths.split(near), strict=True)
        ]
        steps = torch.cat(by_length).view(-1, self.step_size)
        longest = int(lengths.argmax())
        draw = torch.randperm(len(steps), generator=generator(self.seed, "steps", self.epoch))
        first = draw == longest // near * NEIGHBOURS
        return torch.cat([steps[draw[first]], steps[draw[~first]]]).flatten()

    def __len__(self) -> int:
        return self.rows // self.step_size * self.accumulate * self.batch_size


class ResumableLoader(DataLoader):
    """A loader whose iteration begins where the epoch at hand stopped.

    Lightning 2.6 would restore a loader's own state, but forgets to where a schedule has made it
    count the steps first. It does restore how far its loop is, so that is what is asked.

    Args:
        sampler: a :class:`StepSampler`.
        done: says how many batches of this epoch are behind us, when the first one is wanted.
        args, kwargs: see ``DataLoader``.
    """

    def __init__(self, *args: Any, sampler: StepSampler, done: Callable[[], int], **kwargs: Any):
        super().__init__(*args, sampler=sampler, **kwargs)
        self.rows, self.done = sampler, done

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # A generator: nothing of this runs before the first batch is asked for.
        self.rows.skip = self.done() * self.rows.batch_size
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Nothing; tells Lightning that this loader can be resumed."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to load."""


class PreferenceData(LightningDataModule):
    """Pairs from files to batches.

    Args:
        train: what :mod:`torchmpo.finetune.sources` reads: a JSONL, JSON, CSV or parquet file, a
            folder of them, a ``datasets`` hub id, a list of dicts, a data frame or a data set; or a
            dict ``{source, split, config, columns, weight}`` around one (see
            :class:`torchmpo.finetune.mixture.Source`), or a list of such dicts and files.
        validation: the same; or the share of ``train`` to hold out, in (0, 1), by prompts; or None
            for no validation.
        train_split, validation_split: of a source that has splits.
        columns: names that the data have for ours: ``{prompt: question}``.
        chat_template: text of a chat template, or a file with it, in place of the tokenizer's. Of
            pairs that are messages, not text; saved with the model in either case.
        chat_template_kwargs: variables of it: ``{enable_thinking: false}``.
        tokenizer: folder or hub id, or a tokenizer; by default the model's.
        max_length: tokens of prompt and answer together, ≥ 2.
        max_prompt_length: tokens of the prompt, or None for no limit of its own.
        truncation: ``"keep_start"``, ``"keep_end"`` or ``"drop"``, see
            :func:`torchmpo.finetune.tokenize.tokenize_pair`.
        batch_size: pairs in one micro-batch of one process, ≥ 1; ≥ 2 labelled responses where the
            loss measures one against others (``kto``, ``bco_unpaired``).
        group_by_length: let pairs of like length come together: less padding, so faster, but an
            epoch's order is not quite as random. See :class:`StepSampler`.
        num_workers: processes that make batches.
        unpair: make two labelled answers of each pair, for a loss such as ``kto``.
        reference_cache: folder of the reference's log-probabilities, for
            ``PreferenceModule(reference="cache")``; computed into it if they are not there.
        seed: of the order of pairs.

    Attributes:
        datasets: by ``"train"`` and ``"validation"``, after :meth:`setup`.
        chat: whether the pairs are messages, after :meth:`setup`.
        loss_inputs: without a Trainer, names of the inputs of a loss, which say which answers of a
            list it reads; None for all answers. A Trainer's module says it itself.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        train: Any,
        validation: Any = None,
        *,
        train_split: str = "train",
        validation_split: str = "test",
        columns: dict[str, str | None] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        tokenizer: Any = None,
        max_length: int = 1024,
        max_prompt_length: int | None = None,
        truncation: str = "keep_start",
        batch_size: int = 4,
        group_by_length: bool = False,
        num_workers: int = 0,
        reference_cache: str | None = None,
        unpair: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size must be at least 1; got {batch_size}")
        if not 0 <= num_workers <= MOST_WORKERS:
            raise UserError(f"data.num_workers must be 0 to {MOST_WORKERS}; got {num_workers}")
        if max_length < 2:
            raise UserError(f"data.max_length must be at least 2; got {max_length}")
        # How the validation pairs are found: a share of the training pairs, or a source.
        share = isinstance(validation, (int, float))
        if share and not 0 < validation < 1:
            raise UserError(f"data.validation as a share must be in (0, 1); got {validation}")
        self.held_out: float | None = validation if share else None
        self.sources = {"train": (train, train_split)}
        if validation is not None:
            self.sources["validation"] = (
                (train, train_split) if share else (validation, validation_split)
            )
        self.columns = columns
        self.chat_template, self.chat_template_kwargs = chat_template, chat_template_kwargs or {}
        self.tokenizer = tokenizer
        self.max_length, self.max_prompt_length = max_length, max_prompt_length
        self.truncation = truncation
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.group_by_length = group_by_length
        self.reference_cache = reference_cache
        self.unpair = unpair
        self.datasets: dict[str, Any] = {}
        self.chat = False
        self.loss_inputs: Iterable[str] | None = None
        self._tables: dict[str, Tensor | StepTable] = {}
        self._digest: str | None = None
        self._validation_digest: str | None = None

    def setup(self, stage: str | None = None) -> None:
        """Load, clean and tokenize what has not been yet.

        Raises:
            UserError: an unreadable source, a tokenizer of another model, no pair left.
        """
        if self.tokenizer is None or isinstance(self.tokenizer, (str, Path)):
            module = None if self.trainer is None else self.trainer.lightning_module
            own = self.tokenizer is None  # the model's, of the same revision
            revision = getattr(module, "revision", None) if own else None
            self.tokenizer = load_tokenizer(self._tokenizer_source(), revision=revision)
        if self.chat_template is not None:
            self.tokenizer = with_template(self.tokenizer, self.chat_template)
        check_variables(self.chat_template_kwargs, self.tokenizer)
        if self.trainer is not None:
            module: Any = self.trainer.lightning_module
            check_tokenizer(module.policy.model, self.tokenizer)
            objective = getattr(module, "objective", None)
            if objective is not None:
                check_batch(objective, self.batch_size)
            if stage == "fit" and "validation" not in self.sources:
                self.trainer.limit_val_batches = 0
        for name, (source, split) in self.sources.items():
            # Validating needs no training data, but says so only by its stage.
            if name not in self.datasets and not (name == "train" and stage == "validate"):
                self.datasets[name] = self._dataset(name, source, split)
        if self.trainer is not None:
            module = self.trainer.lightning_module
            longest = max((max(_lengths(rows)) for rows in self.datasets.values()), default=0)
            check_length(module.policy.model, longest)
            check_reference(module, self.tokenizer, longest)
            if not is_sharded(self.trainer) and module.trains_base:
                self.prepare_reference(module)

    def prepare_reference(self, module: Any) -> None:
        """Compute the cache of a reference that is the model as it is now: before a checkpoint is
        loaded or training begins; of a sharded model, once it is.
        """
        if getattr(module, "reference", None) == "cache":
            for name in self.datasets:
                self._table(name)

    def made_with(self) -> dict[str, Any]:
        """What :mod:`torchmpo.finetune.resume` compares: pairs, their order, those of a step."""
        trainer = self.trainer
        if trainer is None or "train" not in self.datasets:
            return {}
        if self._digest is None:
            self._digest = pairs_digest(self.datasets["train"])
        accumulate = trainer.accumulate_grad_batches
        validation = {}
        if "validation" in self.datasets:
            if self._validation_digest is None:
                self._validation_digest = pairs_digest(self.datasets["validation"])
            validation["validation"] = self._validation_digest
        return validation | {
            "data": self._digest,
            "seed": self.seed,
            "group_by_length": self.group_by_length,
            "step": self.batch_size * accumulate * trainer.world_size,
            "accumulate": accumulate,
        }

    def _tokenizer_source(self) -> str | Path:
        if self.tokenizer is not None:
            return self.tokenizer
        source = getattr(getattr(self.trainer, "lightning_module", None), "source", None)
        if source is None:
            raise UserError("the model is no folder or hub id: give PreferenceData a tokenizer")
        return source

    def _pairs(self, name: str, source: Any, split: str) -> list[Pair]:
        loaded = load_mixture(source, split, self.columns)
        objective = getattr(getattr(self.trainer, "lightning_module", None), "objective", None)
        inputs = self.loss_inputs if objective is None else objective.inputs
        if inputs is not None:
            loaded = answers_read(loaded, inputs)
        pairs, counts = clean(loaded)
        rank_zero_info(f"{name}: {counts}")
        if not pairs:
            raise UserError(f"no pair of data.{name} is left: {counts}")
        if self.held_out is not None:
            left, out = hold_out(pairs, self.held_out)
            rank_zero_info(f"{name}: {len(out):,} pairs are held out, {len(left):,} are left")
            pairs = left if name == "train" else out
        pairs = unpaired(pairs) if self.unpair else pairs
        check_lengths(pairs, f"data.{name}")
        if objective is not None:
            check_scores(objective, pairs, f"data.{name}")
        return repeat(pairs) if name == "train" else pairs

    def _dataset(self, name: str, source: Any, split: str) -> Any:
        pairs = self._pairs(name, source, split)
        self.chat = any(not isinstance(pair.prompt, str) for pair in pairs[:1])
        given = [n for n in ("chat_template", "chat_template_kwargs") if getattr(self, n)]
        if given and all(isinstance(pair.prompt, str) for pair in pairs):
            settings = " and ".join(f"data.{n}" for n in given)
            rank_zero_info(f"{name}: {settings} not used: all pairs are text, and none is messages")
        dataset = PairDataset(
            pairs,
            self.tokenizer,
            self.max_length,
            truncation=self.truncation,
            max_prompt_length=self.max_prompt_length,
            variables=self.chat_template_kwargs,
        )
        rank_zero_info(f"{name}: {dataset.counts}")
        if not len(dataset):
            raise UserError(f"no pair of data.{name} is left: {dataset.counts}")
        return dataset

    def _collate(self) -> Callable[[list[Any]], Batch]:
        return partial(collate, pad_token_id=self.tokenizer.pad_token_id)

    def batches(self, name: str) -> Iterator[Batch]:
        """All pairs of a data set, in order."""
        yield from _ordered(self.datasets[name], self.batch_size, self._collate())

    def train_dataloader(self) -> DataLoader:
        """Micro-batches of this process."""
        trainer: Any = self.trainer
        dataset = self.datasets["train"]
        if trainer is None:
            raise UserError("train_dataloader belongs to a Trainer; batches() needs none")
        if trainer.overfit_batches:  # the same few batches in every epoch, so in their own order
            return DataLoader(
                dataset,
                batch_size=self.batch_size,
                collate_fn=self._with_table("train"),
                drop_last=self._last_is_alone("train"),
            )
        progress = trainer.fit_loop.epoch_loop.batch_progress
        sampler = StepSampler(
            len(dataset),
            self.batch_size,
            trainer.accumulate_grad_batches,
            trainer.global_rank,
            trainer.world_size,
            self.seed,
            lengths=_lengths(dataset) if self.group_by_length else None,
        )
        return ResumableLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            done=lambda: progress.current.ready,
            collate_fn=self._with_table("train"),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> Any:
        """Validation pairs; over several processes, the last few may count twice.

        A last batch of one is left out where the loss measures a response against others.
        """
        if "validation" not in self.datasets:
            raise UserError("there are no validation pairs: set data.validation")
        return DataLoader(
            self.datasets["validation"],
            batch_size=self.batch_size,
            collate_fn=self._with_table("validation"),
            drop_last=self._last_is_alone("validation"),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def _last_is_alone(self, name: str) -> bool:
        """Whether the last batch has one response, and the loss measures it against others."""
        trainer = self.trainer
        objective = getattr(getattr(trainer, "lightning_module", None), "objective", None)
        if trainer is None or objective is None or not reads_others(objective):
            return False
        rows = math.ceil(len(self.datasets[name]) / trainer.world_size)  # of one process
        if rows == 1:
            raise UserError(
                f"data.{name} has one response for each process, and {objective.name} measures it "
                "against others: give more"
            )
        alone = rows % self.batch_size == 1
        if alone:
            rank_zero_info(f"{name}: the last response is left out: {objective.name} needs two")
        return alone

    def _with_table(self, name: str) -> Callable[[list[Any]], Batch]:
        table = self._table(name)
        return self._collate() if table is None else _CollateWithReference(self._collate(), table)

    def _table(self, name: str) -> Tensor | StepTable | None:
        """The reference's log-probabilities of a data set; all processes must ask."""
        trainer = self.trainer
        module: Any = trainer.lightning_module if trainer is not None else None
        if getattr(module, "reference", None) != "cache":
            return None
        if name not in self._tables:
            if self.reference_cache is None:
                raise UserError("reference: cache needs a folder: set data.reference_cache")
            steps = needs_reference_steps(module.objective)
            path = Path(self.reference_cache) / f"{name}{'_steps' * steps}.safetensors"
            assert trainer is not None
            strategy = trainer.strategy if trainer.world_size > 1 else None
            there = path.exists() if strategy is None else strategy.broadcast(path.exists())
            if not there:
                module.check_untrained()
            logps = module.reference_step_logps if steps else module.reference_logps
            args = (path, partial(self.batches, name), partial(self._reference, logps))
            make = step_table if steps else reference_table
            self._tables[name] = make(*args, module.base_digest, strategy=strategy)
        return self._tables[name]

    def _reference(self, logps: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        trainer = self.trainer
        assert trainer is not None
        module: Any = trainer.lightning_module
        # Where all weights are trained, it is too early for Lightning to have moved them.
        if module.trains_base and not is_sharded(trainer):
            module.policy.to(trainer.strategy.root_device)
        with trainer.precision_plugin.val_step_context():
            return logps(trainer.strategy.batch_to_device(batch))


def _lengths(dataset: Any) -> list[int]:
    """Tokens of the longest answer to each prompt, with it."""
    return [len(p.prompt) + max(map(len, p.answers)) for p in dataset]


class _CollateWithReference:
    """Picklable, for worker processes."""

    def __init__(self, plain: Callable[[list[Any]], Batch], table: Tensor | StepTable):
        self.plain, self.table = plain, table

    def __call__(self, items: list[Any]) -> Batch:
        batch = self.plain(items)
        if isinstance(self.table, StepTable):
            return self.table.of(batch, batch["index"])
        return with_reference(batch, self.table, batch["index"])


def _ordered(
    dataset: Dataset, batch_size: int, collate: Callable[[list[Any]], Batch]
) -> Iterator[Batch]:
    rows: Any = dataset
    for start in range(0, len(rows), batch_size):
        stop = min(start + batch_size, len(rows))
        yield collate([rows[i] for i in range(start, stop)])
