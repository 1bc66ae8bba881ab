"""A resumed run is the run that was stopped: the same pairs, rate, model, loss, data, or none."""

import json
import warnings
from itertools import chain

import pytest
import torch
import yaml
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _load
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer
from safetensors.torch import load_file
from tiny_llm import QUIET, save_tiny, tiny_llama, tiny_pairs

from torchmpo.finetune.__main__ import main
from torchmpo.finetune.data import PreferenceData
from torchmpo.finetune.models import LoraSettings
from torchmpo.finetune.module import PreferenceModule
from torchmpo.finetune.resume import loss_digest, loss_words
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.errors import UserError

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"))


class Seen(Callback):
    """The pairs and the rate of every optimizer step."""

    def __init__(self):
        self.pairs, self.rates, self.now = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.now += batch["index"].tolist()

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.pairs.append(sorted(self.now))
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.now = []


def fit(
    base,
    tmp_path,
    *,
    resume=False,
    batch=(4, 2),
    seed=0,
    rows=None,
    grouped=False,
    callbacks=(),
    **changes,
):
    """Four steps of eight pairs an epoch, unless told otherwise."""
    trainer_settings = {"max_epochs": 1} | changes.pop("trainer", {})
    settings = {"loss": "sft", "lora": LoraSettings(r=2, alpha=4.0), "lr": 1e-2} | changes
    module = PreferenceModule(settings.pop("model", str(base)), **settings)
    data = PreferenceData(
        rows or tiny_pairs(32),
        tokenizer=str(base),
        batch_size=batch[0],
        max_length=64,
        seed=seed,
        group_by_length=grouped,
    )
    seen = Seen()
    every = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1, enable_version_counter=False)
    trainer = Trainer(
        accumulate_grad_batches=batch[1],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[seen, every, *callbacks],
        **trainer_settings,
    )
    path = tmp_path / "last.ckpt" if resume else None
    trainer.fit(module, data, ckpt_path=path, weights_only=True)
    return seen, trainer


# Another division


@pytest.mark.parametrize(
    ("again", "grouped"), [((2, 4), False), ((8, 1), True), ((1, 8), False), ((4, 2), True)]
)
def test_a_resume_divided_otherwise_sees_each_pair_once(base, tmp_path, again, grouped):
    whole, _ = fit(base, tmp_path / "whole", grouped=grouped)
    assert len(whole.pairs) == 4
    first, _ = fit(base, tmp_path, trainer={"max_steps": 2}, grouped=grouped)
    rest, trainer = fit(base, tmp_path, resume=True, batch=again, grouped=grouped)
    assert first.pairs + rest.pairs == whole.pairs
    assert trainer.global_step == 4
    # and once more, over the end of the epoch
    epochs = {"max_epochs": 2}
    more, trainer = fit(base, tmp_path, resume=True, batch=(4, 2), trainer=epochs, grouped=grouped)
    assert len(more.pairs) == 4
    assert sorted(chain(*more.pairs)) == list(range(32))
    assert trainer.global_step == 8


class StopIn(Callback):
    """Ask for the end after some micro-batches, as a time limit does."""

    def __init__(self, batches, path):
        self.batches, self.path = batches, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx + 1 == self.batches:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


@pytest.mark.parametrize("batches", [1, 3, 6])
@pytest.mark.parametrize("again", [(2, 4), (4, 2)])
def test_a_step_that_had_only_begun_begins_again(base, tmp_path, batches, again):
    whole, done = fit(base, tmp_path / "whole", batch=again)
    stop = StopIn(batches, tmp_path / "last.ckpt")
    first, _ = fit(base, tmp_path, batch=(2, 4), callbacks=[stop])
    rest, trainer = fit(base, tmp_path, resume=True, batch=again)
    steps = batches // 4
    assert first.pairs[:steps] + rest.pairs == whole.pairs
    assert trainer.fit_loop.epoch_loop._batches_that_stepped == 4
    assert done.fit_loop.epoch_loop._batches_that_stepped == 4


# What is refused


def mine(chosen_logps, *, scale=1.0):
    return -scale * chosen_logps


def other_mine():
    def mine(chosen_logps, *, scale=1.0):
        return -2 * scale * chosen_logps

    mine.__module__ = __name__
    return mine


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "simpo"}, r"another loss \(sft\(\) then, simpo\(.*target_margin.* now\)"),
        ({"rows": tiny_pairs(32, seed=1)}, "other training data"),
        ({"rows": tiny_pairs(40)}, "other training data"),
        ({"seed": 1}, "another seed, and so another order"),
        ({"grouped": True}, r"another data.group_by_length, .*\(False then, True now\)"),
        ({"batch": (4, 4)}, r"another number of pairs in a step \(8 then, 16 now\)"),
        ({"lora": LoraSettings(r=2, alpha=8.0)}, r"other adapters \(r=2 lora_alpha=4 "),
        ({"lora": LoraSettings(r=4, alpha=4.0)}, r"lora.*has shape \(2, 48\) there, \(4, 48\)"),
        ({"lora": LoraSettings(r=2, alpha=4.0, targets=["q_proj"])}, "not trained here"),
        ({"lora": None}, "settings of model or lora"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_another_run_is_refused_in_one_line(base, tmp_path, changes, message):
    fit(base, tmp_path, trainer={"max_steps": 1})
    with pytest.raises(UserError, match=message) as caught:
        fit(base, tmp_path, resume=True, **changes)
    assert "\n" not in str(caught.value)


def test_another_model_is_refused(base, tmp_path):
    fit(base, tmp_path, trainer={"max_steps": 1})
    with pytest.raises(UserError, match="made with another model"):
        fit(base, tmp_path, resume=True, model=tiny_llama(seed=5))
    fit(base, tmp_path, resume=True, model=tiny_llama())


@pytest.fixture(scope="module")
def references(base, tmp_path_factory):
    """Other models, and adapters that were trained."""
    folder = tmp_path_factory.mktemp("references")
    for seed in (1, 2):
        save_tiny(folder / f"model{seed}", tiny_llama(seed=seed))
        torch.manual_seed(seed)
        trained = PreferenceModule(str(base), "sft", lora=LoraSettings(r=2, alpha=4.0))
        for name, value in trained.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(value.data)
        trained.save(folder / f"adapter{seed}")
    return folder


@pytest.mark.parametrize(
    ("start", "then", "now"),
    [
        (None, "model1", "model2"),
        (None, "model1", None),
        (None, None, "model1"),
        (None, "adapter1", "adapter2"),
        (None, "adapter1", None),
        ("adapter1", None, "copy"),
        ("adapter1", "copy", None),
    ],
)
def test_another_reference_is_refused(base, references, tmp_path, start, then, now):
    given = {} if start is None else {"model": str(references / start), "lora": None}

    def with_reference(word, *, resume=False):
        word = str(references / word) if word and (references / word).is_dir() else word
        settings = {"loss": "dpo", "reference": word, "trainer": {"max_steps": 1}} | given
        fit(base, tmp_path, resume=resume, **settings)

    with_reference(then)
    with pytest.raises(UserError, match="made with another reference"):
        with_reference(now, resume=True)
    with_reference(then, resume=True)


def test_the_same_reference_may_be_had_in_another_way(base, references, tmp_path):
    """Of adapters that begin with nothing, the start is the base."""
    fit(base, tmp_path, loss="dpo", trainer={"max_steps": 1})
    for same in ("copy", str(base)):
        fit(base, tmp_path, loss="dpo", reference=same, resume=True, trainer={"max_steps": 1})


def test_another_adapter_at_the_start_is_another_reference(base, references, tmp_path):
    start = {"loss": "dpo", "lora": None, "reference": "copy"}
    fit(base, tmp_path, model=str(references / "adapter1"), trainer={"max_steps": 1}, **start)
    with pytest.raises(UserError, match="made with another reference"):
        fit(base, tmp_path, model=str(references / "adapter2"), resume=True, **start)


def test_losses_are_told_apart_by_name_settings_code_and_learned_numbers():
    same = Objective(mine)
    assert loss_words(same).endswith("test_resume:mine(scale=1.0)")
    assert loss_words(same) != loss_words(Objective(mine, scale=2.0))
    assert loss_words(same) == loss_words(Objective(other_mine()))
    assert loss_digest(same) != loss_digest(Objective(other_mine()))
    learned, zero = MirrorObjective(), MirrorObjective()
    assert loss_digest(learned) == loss_digest(zero)
    with torch.no_grad():
        learned.vector[0] = 0.5
    assert loss_digest(learned) != loss_digest(zero)


def test_a_checkpoint_from_before_these_words_still_resumes(base, tmp_path):
    whole, _ = fit(base, tmp_path / "whole")
    first, _ = fit(base, tmp_path, trainer={"max_steps": 2})
    old = _load(tmp_path / "last.ckpt", weights_only=True)
    del old["torchmpo"]
    TorchCheckpointIO().save_checkpoint(old, tmp_path / "last.ckpt")
    rest, _ = fit(base, tmp_path, resume=True)
    assert first.pairs + rest.pairs == whole.pairs


# The learning rate


def test_the_rate_of_a_resume_is_the_one_that_is_given(base, tmp_path):
    fit(base, tmp_path, trainer={"max_steps": 2})
    rest, _ = fit(base, tmp_path, resume=True, lr=1e-5)
    assert rest.rates == [1e-5, 1e-5]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_that_is_extended_goes_on_where_the_longer_one_would_be(
    base, tmp_path, schedule
):
    whole, _ = fit(base, tmp_path / "whole", schedule=schedule, trainer={"max_epochs": 2})
    fit(base, tmp_path, schedule=schedule)
    rest, _ = fit(base, tmp_path, resume=True, schedule=schedule, trainer={"max_epochs": 2})
    assert rest.rates == pytest.approx(whole.rates[4:])
    assert rest.rates[0] == pytest.approx(0.005)  # half of the way


@pytest.mark.parametrize("schedules", [("constant", "linear"), ("linear", "constant")])
def test_another_schedule_counts_from_the_resume_on(base, tmp_path, schedules):
    before, after = schedules
    fit(base, tmp_path, schedule=before, trainer={"max_steps": 2})
    rest, trainer = fit(base, tmp_path, resume=True, schedule=after, weight_decay=0.1)
    assert rest.rates == pytest.approx([0.005, 0.0025] if after == "linear" else [0.01, 0.01])
    assert {g["weight_decay"] for g in trainer.optimizers[0].param_groups} == {0.1}


# Where a run ends


@pytest.fixture
def config(tmp_path, base):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in tiny_pairs(32)))
    settings = {
        "out": str(tmp_path / "run"),
        "model": {"model": str(base), "loss": "sft", "lora": {"r": 2, "alpha": 4}, "lr": 1e-2},
        "data": {"train": str(tmp_path / "pairs.jsonl"), "batch_size": 2, "max_length": 64},
        "trainer": {
            "max_epochs": 1,
            "accumulate_grad_batches": 4,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return str(tmp_path / "config.yaml")


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_a_time_limit_leaves_a_checkpoint_that_goes_on(config, tmp_path, monkeypatch):
    """At 1.5 steps: what had begun of the second is done again, to the same bits."""
    assert main(["fit", "--config", config]) == 0
    elapsed = iter([0.0] * 7)
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_: next(elapsed, 1e9))
    cut = str(tmp_path / "cut")
    limit = ["--trainer.max_time", "00:01:00:00"]
    assert main(["fit", "--config", config, "--out", cut, *limit]) == 0
    assert (tmp_path / "cut" / "last.ckpt").is_file()
    state = _load(tmp_path / "cut" / "last.ckpt", weights_only=True)
    assert 0 < state["global_step"] < 4
    monkeypatch.setattr(Timer, "time_elapsed", lambda self, *_: self._offset)
    assert main(["fit", "--config", config, "--out", cut, *limit, "--resume"]) == 0
    whole, resumed = adapter(tmp_path / "run"), adapter(tmp_path / "cut")
    for name in whole:
        assert torch.equal(whole[name], resumed[name])


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_early_stopping_leaves_a_checkpoint_that_goes_on(config, tmp_path):
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    settings["data"]["validation"] = settings["data"]["train"]
    early = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/loss", "stopping_threshold": 1e9},
    }
    settings["trainer"] |= {"callbacks": [early], "val_check_interval": 8, "max_epochs": 3}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", config]) == 0
    state = _load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2
    more = ["--trainer.callbacks", "null", "--trainer.max_epochs", "1", "--resume"]
    assert main(["fit", "--config", config, *more]) == 0
    state = _load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 4


def test_overfitting_a_few_batches(config, tmp_path):
    few = ["--trainer.overfit_batches", "2", "--trainer.max_epochs", "3"]
    assert main(["fit", "--config", config, *few]) == 0
    lines = (tmp_path / "run/log/version_0/metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("loss")
    losses = [float(line.split(",")[column]) for line in lines[1:]]
    assert len(losses) == 3  # one step of two micro-batches in each epoch
    assert losses[2] < losses[1] < losses[0]


def lists(path):
    TorchCheckpointIO().save_checkpoint([1, 2], path)


def without_loops(path):
    TorchCheckpointIO().save_checkpoint(
        {"state_dict": {}, "pytorch-lightning_version": "2.6"}, path
    )


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "not a checkpoint that can be read"),
        (lambda path: path.write_bytes(b"junk" * 99), "not a checkpoint that can be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-300]), "not a checkpoint that can be"),
        (lambda path: path.write_bytes(b"\x80\x04}."), "not a checkpoint that can be read"),
        (lists, "not a checkpoint of a run: it has no state_dict"),
        (without_loops, "not a checkpoint of a run: it has no loops"),
    ],
    ids=["empty", "junk", "cut", "raw pickle", "list", "no loops"],
)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_what_is_no_checkpoint_is_one_line(config, tmp_path, write, message, command, capsys):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "last.ckpt"
    path.write_bytes(bytes(1000))
    write(path)
    if command == "fit":
        arguments = ["--resume"]
    else:
        if "loops" in message:
            message = "other settings of model or lora"  # enough for a look at its weights
        arguments = ["--ckpt_path", str(path), "--data.validation", str(tmp_path / "pairs.jsonl")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([command, "--config", config, *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.devices", "99"], "trainer.devices 99: this machine has"),
        (["--data.num_workers", "-1"], "data.num_workers must be 0 to 256; got -1"),
        (["--model.chunk_size", "0"], "chunk_size must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_one_line(config, arguments, message, capsys):
    assert main(["fit", "--config", config, *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
