"""The command line of fine-tuning, its data, and runs that are divided, cut short or gone wrong."""

import errno
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.fabric.utilities.cloud_io import _load
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from safetensors.torch import load_file
from tiny_llm import QUIET, save_tiny, tiny_gemma, tiny_llama, tiny_pairs, tiny_tokenizer
from transformers import AutoModelForCausalLM

from torchmpo.finetune import command_line
from torchmpo.finetune.__main__ import MORE_OPTIONS, OPTIONS, main
from torchmpo.finetune.data import PreferenceData, StepSampler
from torchmpo.finetune.models import LoraSettings
from torchmpo.finetune.module import PreferenceModule
from torchmpo.finetune.options import GROUPS
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import alone_in
from torchmpo.runs.threads import TINY

ROOT = Path(__file__).parents[2]
pytestmark = [
    *QUIET,
    # LightningCLI says so whenever it is called from Python, and calls jsonargparse by an old name.
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in tiny_pairs(17)))
    return path


@pytest.fixture
def config(tmp_path, base, pairs) -> Path:
    """Four steps of four pairs in each of two epochs."""
    settings = {
        "out": str(tmp_path / "run"),
        "model": {
            "model": str(base),
            "loss": "dpo",
            "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
            "lr": 1e-2,
        },
        "data": {"train": str(pairs), "batch_size": 2, "max_length": 64},
        "trainer": {
            "max_epochs": 2,
            "accumulate_grad_batches": 2,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run(command: str, config: Path, *more: str) -> int:
    return main([command, "--config", str(config), *more])


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_same(a, b, atol=0.0):
    assert a
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol, msg=name)


def metrics(folder: Path, version: int = 0) -> list[dict[str, str]]:
    lines = (folder / f"log/version_{version}/metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    return [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]


# The order of pairs


def steps_of(rows, batch_size, accumulate, world, epoch=0, lengths=None):
    """The set of pairs of each optimizer step, over all processes."""
    parts = []
    for rank in range(world):
        sampler = StepSampler(rows, batch_size, accumulate, rank, world, seed=7, lengths=lengths)
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(sampler) == len(order)
        per_step = batch_size * accumulate
        parts.append([order[i : i + per_step] for i in range(0, len(order), per_step)])
    return [sorted(chain(*pieces)) for pieces in zip(*parts, strict=True)]


def test_a_step_has_the_same_pairs_however_it_is_divided():
    whole = steps_of(29, 8, 1, 1)
    assert len(whole) == 3
    assert len(set(chain(*whole))) == 24
    for batch_size, accumulate, world in ((4, 2, 1), (2, 4, 1), (4, 1, 2), (2, 2, 2), (1, 2, 4)):
        assert steps_of(29, batch_size, accumulate, world) == whole
    assert steps_of(29, 8, 1, 1, epoch=1) != whole


def test_grouped_by_length_a_step_has_the_same_pairs_however_it_is_divided():
    lengths = torch.randint(1, 999, (900,), generator=torch.Generator().manual_seed(0)).tolist()
    whole = steps_of(900, 8, 1, 1, lengths=lengths)
    assert len(whole) == 112
    assert len(set(chain(*whole))) == 896
    for divided in ((4, 2, 1), (2, 4, 1), (4, 1, 2), (2, 2, 2)):
        assert steps_of(900, *divided, lengths=lengths) == whole
    assert steps_of(900, 8, 1, 1, epoch=1, lengths=lengths) != whole
    # What a step pads: a tenth of that without grouping; and the longest pair is in the first one.
    padding = [
        sum(max(lengths[i] for i in step) * 8 - sum(lengths[i] for i in step) for step in steps)
        for steps in (whole, steps_of(900, 8, 1, 1))
    ]
    assert padding[0] < 0.1 * padding[1]
    assert max(lengths[i] for i in chain(*whole)) in [lengths[i] for i in whole[0]]
    # Other than that, steps come in no order.
    longest = torch.tensor([float(max(lengths[i] for i in step)) for step in whole])
    order = torch.arange(112.0)
    assert torch.corrcoef(torch.stack([longest, order]))[0, 1].abs() < 0.3


def test_grouped_micro_batches_of_a_step_are_of_like_length():
    lengths = [i % 64 for i in range(64)]
    sampler = StepSampler(64, 2, 4, 0, 1, 0, lengths=lengths)
    order = list(sampler)
    gaps = [abs(lengths[a] - lengths[b]) for a, b in zip(order[::2], order[1::2], strict=True)]
    assert set(gaps) == {1}


def test_too_few_pairs_for_a_step_are_named():
    with pytest.raises(UserError, match=r"one step takes 16 pairs .* but there are 15"):
        StepSampler(15, 2, 4, 0, 2, 0)


# A run


def test_a_run_leaves_an_adapter_its_settings_and_its_numbers(config, tmp_path, capsys):
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(p) + "\n" for p in tiny_pairs(5, seed=1)))
    more = ("--data.validation", str(tmp_path / "v.jsonl"), "--tracker", "tensorboard")
    assert run("fit", config, *more) == 0
    out = tmp_path / "run"
    assert list((out / "tensorboard").glob("events.out.tfevents.*"))
    assert yaml.safe_load((out / "tensorboard/hparams.yaml").read_text())["seed_everything"] == 0
    assert f"wrote {out / 'adapter'}" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {
        ".lock",
        "adapter",
        "last.ckpt",
        "log",
        "tensorboard",
    }
    rows = metrics(out)
    trained = [row for row in rows if row["loss"]]
    assert [int(row["step"]) for row in trained] == list(range(8))
    assert float(trained[0]["loss"]) == pytest.approx(0.6931, abs=0.05)  # dropout is on
    assert float(trained[-1]["loss"]) < 0.69
    assert [row["val/loss"] != "" for row in rows].count(True) == 2
    stored = yaml.safe_load((out / "log/version_0/config.yaml").read_text())
    assert stored["model"]["lora"]["r"] == 4
    assert stored["seed_everything"] == 0
    # What was stored is a configuration that runs.
    stored = out / "log/version_0/config.yaml"
    assert run("validate", stored, "--ckpt_path", f"{out}/last.ckpt") == 0
    assert "val/rewards/accuracies" in capsys.readouterr().out


def test_the_merged_model_loads(config, tmp_path, base):
    assert run("fit", config, "--trainer.max_epochs", "1") == 0
    given = ["export", "--adapter", f"{tmp_path}/run/adapter", "--out", f"{tmp_path}/merged"]
    assert main(given) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    names = [n for n, p in merged.named_parameters() if not torch.equal(p, start.get_parameter(n))]
    assert len(names) == 14  # seven linear layers in each of two blocks


def test_full_training_leaves_a_model(config, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(command_line, "one_thread_if_tiny", sizes.append)
    assert run("fit", config, "--model.lora", "null", "--trainer.max_epochs", "1") == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert 0 < sizes[0] < TINY


def test_a_run_that_went_on_after_a_stop_in_mid_epoch_ends_in_the_same_bits(config, tmp_path):
    assert run("fit", config, "--trainer.max_steps", "7") == 0
    cut = f"{tmp_path}/cut"
    assert run("fit", config, "--trainer.max_steps", "3", "--out", cut) == 0
    assert run("fit", config, "--trainer.max_steps", "7", "--out", cut, "--resume") == 0
    assert_same(adapter(tmp_path / "run"), adapter(tmp_path / "cut"))
    assert len(metrics(tmp_path / "cut")) == 3
    assert [int(row["step"]) for row in metrics(tmp_path / "cut", 1)] == [3, 4, 5, 6]


class Crash(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 5:
            raise RuntimeError("power cut")


def test_a_run_that_crashed_in_mid_epoch_ends_in_the_same_bits(tmp_path, base, pairs):
    def fit(ckpt_path=None, callbacks=()):
        lora = LoraSettings(r=4, alpha=8.0, dropout=0.1)
        module = PreferenceModule(
            str(base), "orpo", lora=lora, lr=1e-2, warmup=0.2, schedule="cosine"
        )
        data = PreferenceData(str(pairs), batch_size=2, max_length=64)
        every = ModelCheckpoint(
            tmp_path, "last", every_n_train_steps=1, enable_version_counter=False
        )
        trainer = Trainer(
            max_epochs=3,
            accumulate_grad_batches=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[every, *callbacks],
        )
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        assert trainer.global_step == 12
        return {n: p for n, p in module.named_parameters() if p.requires_grad}

    whole = fit()
    with pytest.raises(RuntimeError, match="power cut"):
        fit(callbacks=[Crash()])
    assert_same(whole, fit(ckpt_path=tmp_path / "last.ckpt"))


@pytest.mark.parametrize("kind", ["function", "folder"])
def test_ones_own_loss_and_a_discovered_one(kind, config, tmp_path, monkeypatch):
    if kind == "function":
        (tmp_path / "shy_losses.py").write_text(
            "def shy_loss(chosen_logps, *, scale=1.0):\n    return -scale * chosen_logps\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        loss = ("shy_losses:shy_loss", "--model.loss_args", "{scale: 0.0}")
    else:
        MirrorObjective(temporal=True).save(tmp_path / "objective", card={})
        loss = (str(tmp_path / "objective"),)
    assert run("fit", config, "--trainer.max_steps", "1", "--model.loss", *loss) == 0
    value = float(metrics(tmp_path / "run")[0]["loss"])
    assert value == 0 if kind == "function" else value > 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def loss(:", "odd_losses:loss: SyntaxError: invalid syntax (odd_losses.py, line 1)"),
        (
            "def loss(chosen_logps):\n    if len(chosen_logps) != 3:\n        1 / 0\n"
            "    return -chosen_logps",
            "odd_losses:loss: ZeroDivisionError: division by zero (HERE, line 3)",
        ),
    ],
)
def test_what_ones_own_loss_raises_is_one_line(
    text, message, config, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "odd_losses", raising=False)
    (tmp_path / "odd_losses.py").write_text(text)
    assert run("fit", config, "--loss", "odd_losses:loss") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert lines == [f"error: {message.replace('HERE', str(tmp_path / 'odd_losses.py'))}"]
    sys.modules.pop("odd_losses", None)


# The reference's cache


def test_a_cached_reference_trains_the_same_adapter(config, tmp_path, capsys):
    cache = ("--model.reference", "cache", "--data.reference_cache", f"{tmp_path}/ref")
    assert run("fit", config, "--trainer.max_epochs", "1") == 0
    once = ("--trainer.max_epochs", "1", *cache)
    assert run("fit", config, "--out", f"{tmp_path}/a", *once) == 0
    assert_same(adapter(tmp_path / "run"), adapter(tmp_path / "a"), atol=1e-5)
    written = (tmp_path / "ref" / "train.safetensors").stat().st_mtime_ns
    assert run("fit", config, "--out", f"{tmp_path}/b", *once) == 0
    assert_same(adapter(tmp_path / "a"), adapter(tmp_path / "b"))
    assert (tmp_path / "ref" / "train.safetensors").stat().st_mtime_ns == written
    capsys.readouterr()
    assert run("fit", config, "--out", f"{tmp_path}/c", *once, "--data.max_length", "40") == 2
    assert "is of other data (17 pairs), or of another tokenizer" in capsys.readouterr().err


FULL = ("--model.lora", "null", "--model.reference", "cache")


def untrained(path, folder, count):
    """What a table of the first pairs of a file must hold: the model alone says it."""
    data = PreferenceData(str(path), tokenizer=str(folder), max_length=64, batch_size=count)
    data.setup()
    (batch,) = data.batches("train")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    own = logits[:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (own * (labels != -100)).sum(1).reshape(2, -1)


def test_the_reference_of_full_training_is_the_untrained_model(config, tmp_path, base, pairs):
    """Also where validation begins late, of a checkpoint, and of a resume that lost its cache."""
    few = tmp_path / "v.jsonl"
    few.write_text("".join(json.dumps(p) + "\n" for p in tiny_pairs(5, seed=1)))
    cache = tmp_path / "ref"
    more = (*FULL, "--data.validation", str(few), "--data.reference_cache", str(cache))
    late = ("--trainer.check_val_every_n_epoch", "2", "--trainer.num_sanity_val_steps", "0")
    assert run("fit", config, *more, *late) == 0
    expected = {"train": untrained(pairs, base, 17), "validation": untrained(few, base, 5)}

    def check(names):
        for name in names:
            table = load_file(cache / f"{name}.safetensors")["logps"]
            torch.testing.assert_close(table, expected[name], rtol=0, atol=1e-4)

    check(expected)
    last = [row for row in metrics(tmp_path / "run") if row["val/loss"]][-1]
    assert abs(float(last["val/rewards/margins"])) > 1e-3
    shutil.rmtree(cache)
    assert run("validate", config, *more, "--ckpt_path", f"{tmp_path}/run/last.ckpt") == 0
    check(["validation"])
    shutil.rmtree(cache)
    assert run("fit", config, *more, *late, "--resume", "--trainer.max_epochs", "3") == 0
    check(expected)


def test_a_trained_model_makes_no_reference(tmp_path, base, pairs):
    module = PreferenceModule(str(base), "dpo", reference="cache", lr=1e-2)

    def trainer():
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        return Trainer(max_steps=1, accelerator="cpu", enable_checkpointing=False, **quiet)

    def data(folder):
        return PreferenceData(
            str(pairs), str(pairs), max_length=64, reference_cache=str(tmp_path / folder)
        )

    trainer().fit(module, data("a"))
    trainer().validate(module, data("a"), verbose=False)
    with pytest.raises(UserError, match="has been trained, and so cannot be its own reference"):
        trainer().validate(module, data("b"), verbose=False)


# Exporting a checkpoint


@pytest.mark.parametrize(
    ("lora", "lr"), [((), "3"), (("--model.lora", "null"), "0.3")], ids=["lora", "full"]
)
def test_the_best_checkpoint_is_kept_and_exported(lora, lr, config, tmp_path, capsys):
    few = tmp_path / "v.jsonl"
    few.write_text("".join(json.dumps(p) + "\n" for p in tiny_pairs(5, seed=1)))
    # Far too large a rate: validation is not best at the end.
    more = ("--data.validation", str(few), "--keep_best", "--model.lr", lr, *lora)
    every = ("--trainer.val_check_interval", "2", "--trainer.max_epochs", "1")
    assert run("fit", config, *more, *every, "--model.loss", "sft") == 0
    out = tmp_path / "run"
    best, last = (_load(out / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
    rows = [row for row in metrics(out) if row["val/loss"]]
    validated = [(float(row["val/loss"]), int(row["step"])) for row in rows]
    assert best["global_step"] == min(validated)[1] + 1 < last["global_step"]
    card = (out / ("model" if lora else "adapter") / "README.md").read_text()
    assert f"| optimizer steps | {best['global_step']} |" in card
    results = card.split("## Results")[1].split("## Use")[0]
    assert re.findall(r"^\| (\S*\w.*) \| (.*) \|$", results, flags=re.MULTILINE) == [
        ("val/loss", f"{min(validated)[0]:.4g}")
    ]
    name = max(best["state_dict"], key=lambda key: best["state_dict"][key].numel())
    assert not torch.equal(best["state_dict"][name], last["state_dict"][name])
    for kind in ("best", "last"):
        arguments = ("--ckpt", f"{out}/{kind}.ckpt", "--out", f"{tmp_path}/{kind}")
        assert main(["export", *arguments]) == 0
    exported = {k: load_file(tmp_path / k / "model.safetensors") for k in ("best", "last")}
    if lora:
        own = load_file(out / "model" / "model.safetensors")
    else:
        assert main(["export", "--adapter", f"{out}/adapter", "--out", f"{tmp_path}/own"]) == 0
        own = load_file(tmp_path / "own" / "model.safetensors")
    assert_same(own, exported["best"])
    assert any(not torch.equal(own[n], exported["last"][n]) for n in own)
    assert main(["export", *arguments[:2], "--out", f"{tmp_path}/half", "--dtype", "bfloat16"]) == 0
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in half.values()} == {torch.bfloat16}
    if lora:
        assert_same({n: value.bfloat16() for n, value in exported["last"].items()}, half)
    # The run goes on in another place, and what is worse is not taken for the best.
    moved = ("--out", str(out.rename(tmp_path / "moved")), "--resume", "--trainer.max_steps")
    step = (str(last["global_step"] + 1), "--trainer.max_epochs", "2", "--model.loss", "sft")
    assert run("fit", config, *more, *every[:2], *moved, *step) == 0
    rows = [row for row in metrics(tmp_path / "moved", 1) if row["val/loss"]]
    validated += [(float(row["val/loss"]), int(row["step"])) for row in rows]
    few.write_text("".join(json.dumps(p) + "\n" for p in tiny_pairs(5, seed=2)))
    best_so_far = (tmp_path / "moved" / "best.ckpt").read_bytes()
    assert run("fit", config, *more, *every[:2], *moved, "99", *step[1:]) == 2
    assert "best.ckpt was the best on other validation pairs" in capsys.readouterr().err
    assert (tmp_path / "moved" / "best.ckpt").read_bytes() == best_so_far
    again = _load(tmp_path / "moved" / "best.ckpt", weights_only=True)
    assert again["global_step"] == min(validated)[1] + 1
    (tmp_path / "moved").rename(out)
    capsys.readouterr()
    assert main(["export", "--ckpt", "none.ckpt", "--out", f"{tmp_path}/x"]) == 2
    assert "there is no checkpoint none.ckpt" in capsys.readouterr().err
    both = ("--ckpt", f"{out}/best.ckpt", "--adapter", "there")
    assert main(["export", *both, "--out", f"{tmp_path}/x"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


# The experiments


def experiments():
    return sorted((ROOT / "experiments" / "llm").glob("*.yaml"))


def test_there_are_experiments():
    assert {"colpo_smollm2.yaml", "gemma7b_dpo_mix.yaml"} <= {p.name for p in experiments()}


@pytest.mark.parametrize("path", experiments(), ids=lambda path: path.stem)
def test_an_experiment_takes_a_step_on_a_tiny_model(path, tmp_path):
    """Everything as in the file but for model, data and where it runs."""
    gemma = "gemma" in path.stem
    folder = save_tiny(tmp_path / "model", tiny_gemma() if gemma else tiny_llama())
    data = tmp_path / "pairs.jsonl"
    rows = [
        {
            "chosen": [
                {"role": "user", "content": pair["prompt"]},
                {"role": "assistant", "content": pair["chosen"]},
            ],
            "rejected": [
                {"role": "user", "content": pair["prompt"]},
                {"role": "assistant", "content": pair["rejected"]},
            ],
        }
        for pair in tiny_pairs(70)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        *("--model.model", str(folder), "--data.tokenizer", str(folder)),
        *("--data.train", str(data), "--data.validation", str(data)),
        *("--out", f"{tmp_path}/run", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"),
        *("--trainer.limit_val_batches", "2", "--trainer.enable_progress_bar", "false"),
        *("--trainer.enable_model_summary", "false"),
    ]
    assert run("fit", path, *arguments) == 0
    settings = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    if gemma:
        assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (128, 256, 0.05)
    losses = [float(row["loss"]) for row in metrics(tmp_path / "run") if row["loss"]]
    assert len(losses) == (1 if gemma else 8)
    assert all(abs(loss) < 100 for loss in losses)


# Other commands, and mistakes


def test_inspect_prints_a_pair_without_loading_the_model(config, capsys, monkeypatch):
    monkeypatch.setattr(
        "torchmpo.finetune.module.load_model", lambda *a, **k: pytest.fail("loaded")
    )
    assert run("inspect", config, "--index", "3") == 0
    printed = capsys.readouterr().out
    assert tiny_pairs(4)[3]["chosen"].split()[0] in printed
    assert run("inspect", config, "--index", "99") == 2
    assert "--index must be in 0…16; got 99" in capsys.readouterr().err
    assert run("inspect", config, "--split", "validation") == 2


def test_help_names_the_commands(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for command in ("fit", "validate", "inspect", "export"):
        assert f"torchmpo.finetune {command}" in printed


@pytest.mark.parametrize("command", MORE_OPTIONS)
def test_a_shell_completes_options_that_there_are(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help_all"])
    printed = capsys.readouterr().out.split()
    for option in {*OPTIONS, *MORE_OPTIONS[command]} - {"--loss"}:  # short for --model.loss
        assert option in {word.strip("[],") for word in printed}


def test_help_is_short_and_needs_no_lightning():
    code = (
        "import sys, torchmpo.finetune.__main__ as m\n"
        "try: m.main(['fit', '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'lightning', 'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) < 150
    first = [line.strip().split()[0] for line in lines if line.strip().startswith("--")]
    assert first[0] == "--data.train"
    assert set(first) >= set(OPTIONS)


def test_help_names_every_option_of_model_and_data():
    for group, kind in (("model", PreferenceModule), ("data", PreferenceData)):
        own = set(inspect.signature(kind).parameters) - {"seed"}  # seed_everything is for both
        assert {f"--{group}.{name}" for name in own} == set(GROUPS[group]) - {"--loss"}


BEST = ("--keep_best", "--data.validation", "0.2")
MOVING = "torchmpo.finetune.MovingReference, init_args: {every_n_steps: 1}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--resum"], "--resum"),
        (["fit", "--checkpoint", "5"], "--checkpoint"),
        (["fot"], "unknown command 'fot': did you mean 'fit'?"),
        ([], "unknown command '': choose from"),
        (["fit", "--model.loss", "simp"], "unknown loss 'simp': did you mean 'simpo'?"),
        (["fit", "--loss", "simp"], "unknown loss 'simp': did you mean 'simpo'?"),
        (["fit", "--loss=simp"], "unknown loss 'simp': did you mean 'simpo'?"),
        (["fit", "--tracker", "tensorbord"], "unknown tracker 'tensorbord': did you mean"),
        (["fit", "--model.lr", "fast"], "model.lr"),
        (["fit", "--model.lerning_rate", "1"], "model.lerning_rate"),
        (["fit", "--model.lora.r", "0"], "lora.r must be at least 1, and at most 65536; got 0"),
        (["fit", "--model.lora.targets", "q_prj"], "lora.targets 'q_prj' does not fit"),
        (["fit", "--model.model", "./nowhere"], "there is no folder ./nowhere"),
        (["fit", "--data.validation", "nowhere.jsonl"], "nowhere.jsonl"),
        (["fit", "--model.reference", "cache"], "set data.reference_cache"),
        (["fit", "--model.loss", "aot"], "aot couples the pairs of a batch"),
        (["fit", "--model.loss", "margin_dpo"], "the data have no chosen_rewards"),
        (["fit", "--data.batch_size", "0"], "data.batch_size must be at least 1"),
        (["fit", "--data.batch_size", "20"], "one step takes 40 pairs"),
        (["fit", "--resume"], "there is no last.ckpt in"),
        (["fit", "--model.lora.modules_to_save", "[lm_hea]"], "lora.modules_to_save 'lm_hea' does"),
        (["fit", "--keep_best"], "--keep_best needs validation pairs"),
        (["fit", *BEST, "--trainer.limit_val_batches", "0"], "--keep_best needs validation: leave"),
        (["fit", *BEST, "--trainer.enable_checkpointing", "false"], "keep_best needs checkpoints"),
        (["fit", *BEST, "--trainer.max_steps", "1"], "training ended before the first validation"),
        (["fit", *BEST, "--loss", "simpo+sft@dual"], "which a rule that weighs its terms makes"),
        (
            ["fit", *BEST, "--trainer.callbacks", f"[{{class_path: {MOVING}}}]"],
            "which MovingReference makes another function",
        ),
        # What Lightning itself refuses.
        (["fit", "--trainer.logger", "lightning.pytorch.loggers.CometLogger"], "comet"),
        (["fit", "--trainer.accelerator", "gpuu"], "invalid accelerator name"),
        (["fit", "--trainer.devices", "x"], "`devices` selected with `CPUAccelerator`"),
        (
            ["fit", "--trainer.strategy", "dpp"],
            "unknown trainer.strategy 'dpp': did you mean 'ddp'",
        ),
        (
            ["fit", "--trainer.strategy", "deepspeed"],
            "deepspeed is not supported, because it needs",
        ),
        (["fit", *BEST, "--trainer.val_check_interval", "99"], "`val_check_interval` (99) must be"),
        (
            ["fit", "--trainer.callbacks", "[{class_path: EarlyStopping}]"],
            "EarlyStopping': the following arguments are required: monitor",
        ),
        (
            [
                *("fit", "--trainer.callbacks"),
                "[{class_path: EarlyStopping, init_args: {monitor: loss, mode: x}}]",
            ],
            "`mode` can be min, max",
        ),
        (["fit", "--checkpoint_every", "0"], "checkpoint_every must be at least 1"),
        (["fit", "--trainer.gradient_clip_val", "-1"], "gradient_clip_val must be at least 0; got"),
        (["fit", "--trainer.accumulate_grad_batches", "0"], "accumulate_grad_batches must be at"),
        (["fit", "--trainer.check_val_every_n_epoch", "0"], "check_val_every_n_epoch must be at"),
        (["fit", "--trainer.num_sanity_val_steps", "-3"], "num_sanity_val_steps must be at"),
        (["fit", "--trainer.val_check_interval", "0"], "val_check_interval must be above 0"),
        (["fit", "--trainer.max_steps", "0"], "max_steps is 0: nothing would be trained"),
        (["fit", "--trainer.max_epochs", "0"], "max_epochs is 0: nothing would be trained"),
        (["fit", "--config", "none.yaml"], "none.yaml"),
        (["export", "--adapter", "none", "--out", "there"], "none holds no adapter"),
        (["export"], "adapter"),
    ],
    ids=lambda value: " ".join(value[1:3]) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(arguments, message, config, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if arguments[:1] == ["fit"]:
        arguments = ["fit", "--config", str(config), *arguments[1:]]
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trianer: {}", "unknown section 'trianer': did you mean 'trainer'?"),
        ("trianer: {max_epochs: {}}", "unknown section 'trianer': did you mean 'trainer'?"),
        ("trainer: {max_epochz: {}}", "unknown section 'trainer.max_epochz': did you mean 'max_e"),
        ("model: {lora: {tragets: {}}}", "section 'model.lora.tragets': did you mean 'targets'?"),
        ("data: {colums: {}}", "unknown section 'data.colums': did you mean 'columns'?"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "inspect"])
def test_an_unknown_section_that_is_empty_is_named(text, message, command, config, capsys):
    more = config.with_name("more.yaml")
    more.write_text(text)
    assert run(command, config, "--config", str(more)) == 2
    error = capsys.readouterr().err
    assert "more.yaml: unknown section" in error
    assert message in error


def test_a_known_section_may_be_empty(config, capsys):
    more = config.with_name("more.yaml")
    more.write_text("trainer: {}\nmodel: {loss_args: {}}\ndata: {chat_template_kwargs: {}}")
    assert run("inspect", config, f"--config={more}") == 0


def test_a_configuration_that_expands_without_end(tmp_path, capsys):
    text = "[ha]"
    for k in range(40):
        text = f"[&n{k} {text}, {', '.join([f'*n{k}'] * 8)}]"
    (tmp_path / "endless.yaml").write_text(f"model: {text}\n")
    for words in (["--config", f"{tmp_path}/endless.yaml"], [f"--config={tmp_path}/endless.yaml"]):
        assert main(["fit", *words]) == 2
        error = capsys.readouterr().err
        assert "endless.yaml: it stands for more than 100000 values" in error
        assert error.count("\n") == 1


def test_a_run_is_not_overwritten(config, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    assert run("fit", config) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert (tmp_path / "run" / "mine.txt").read_text() == "precious"


def test_a_folder_is_trained_in_by_one_process(config, tmp_path, capsys):
    """A second fit that begins in it is refused, whether it starts anew or goes on."""
    (tmp_path / "run").mkdir()
    with alone_in(tmp_path / "run"):
        assert run("fit", config) == 2
        assert "another process is at work in" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*.ckpt"))
    assert run("fit", config, "--trainer.max_steps=1") == 0
    with alone_in(tmp_path / "run"):
        assert run("fit", config, "--resume") == 2


def test_a_run_that_never_came_to_a_checkpoint_is_no_obstacle(config):
    assert run("fit", config, "--data.batch_size", "20", "--tracker", "tensorboard") == 2
    assert run("fit", config, "--trainer.max_steps", "1") == 0


def test_a_tokenizer_of_another_model_is_refused(config, tmp_path, capsys):
    folder = save_tiny(tmp_path / "small", tiny_llama(vocab=100), tiny_tokenizer())
    assert run("fit", config, "--model.model", str(folder)) == 2
    assert "do not belong together" in capsys.readouterr().err


def test_a_full_disk_is_one_line(config, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "last.ckpt")

    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", full)
    assert run("fit", config, "--checkpoint_every", "1") == 2
    assert "error: No space left on device: last.ckpt" in capsys.readouterr().err


def test_a_disk_that_is_full_keeps_the_checkpoint_before(config, tmp_path, capsys, monkeypatch):
    """Temporary files are often on another disk, to which a move is a copy that may stop midway."""
    assert run("fit", config, "--trainer.max_steps", "1") == 0
    path = tmp_path / "run/last.ckpt"
    before = path.read_bytes()

    def half(checkpoint, path):
        Path(path).write_bytes(before[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", half)
        assert run("fit", config, "--trainer.max_steps", "2", "--resume") == 2
    assert f"error: No space left on device: {path}\n" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert {p.name for p in path.parent.iterdir()} == {".lock", "adapter", "last.ckpt", "log"}
    assert run("fit", config, "--trainer.max_steps", "2", "--resume") == 0


def test_an_adapter_has_the_same_bytes_in_every_process(config, tmp_path):
    """What peft keeps as a set would be written in an order that Python draws."""
    assert run("fit", config, "--trainer.max_steps", "1") == 0
    text = (tmp_path / "run/adapter/adapter_config.json").read_text()
    targets = json.loads(text)["target_modules"]
    assert targets == sorted(targets)
    assert len(targets) > 1


def test_a_missing_package_names_the_extra(config, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # cannot be imported
    assert run("fit", config) == 2
    assert "peft is not installed: pip install 'torchmpo[llm]'" in capsys.readouterr().err


def test_a_checkpoint_that_would_run_code_is_refused(config, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    assert run("fit", config, "--trainer.max_steps", "1") == 0
    trainer = pl.Trainer(logger=False, enable_checkpointing=False)
    path = tmp_path / "run" / "last.ckpt"
    trainer.strategy.checkpoint_io.save_checkpoint({"state_dict": Evil()}, path)
    assert run("fit", config, "--resume") == 2
    assert "is not a checkpoint that can be read" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_another_loss_leaves_the_hyper_parameters_of_the_configurations_own(config, tmp_path):
    settings = yaml.safe_load(config.read_text())
    settings["model"] |= {"loss": "simpo", "loss_args": {"target_margin": 0.3}}
    config.write_text(yaml.safe_dump(settings))
    short = ("--trainer.max_steps", "1")
    assert run("fit", config, *short, "--loss", "tla_noisy") == 0
    ours = ("--loss", "cpo", "--model.loss_args", "{beta: 0.3}")
    assert run("fit", config, *short, "--out", str(tmp_path / "other"), *ours) == 0
    stored = yaml.safe_load((tmp_path / "other/log/version_0/config.yaml").read_text())
    assert stored["model"]["loss_args"] == {"beta": 0.3}
