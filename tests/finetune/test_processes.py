"""Two processes end where one does, with any strategy, and either goes on where the other was."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.fabric.utilities.cloud_io import _load
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from safetensors.torch import load_file
from tiny_llm import QUIET, save_tiny, tiny_llama, tiny_pairs

from torchmpo.finetune import command_line
from torchmpo.finetune.__main__ import main
from torchmpo.finetune.sharding import FullySharded, check_strategy, strategy_name
from torchmpo.runs.errors import UserError

ROOT = Path(__file__).parents[2]
pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]
CACHE = {"model.reference": "cache", "data.reference_cache": "cache"}
FULL = {"model.lora": "null", "model.lr": "1e-3"}
# What is fitted by one process and by two, beside the strategy: four steps of eight pairs.
CASES = {
    "lora": {
        "model.lora": "{r: 1, alpha: 2, modules_to_save: [lm_head]}",
        "model.activation_checkpointing": "true",
        "trainer.callbacks": "[{class_path: torchmpo.finetune.EarlyWarning}]",
    },
    "lora-cache": CACHE
    | {"data.validation": "val.jsonl", "keep_best": None, "model.schedule": "linear"},
    "full": FULL
    | {
        "model.model": "tied",
        "model.reference": "copy",
        "trainer.gradient_clip_val": "0.5",
    },
    "full-cache": FULL | CACHE,
    # Two micro-batches, where four make a step.
    "incomplete": {"trainer.limit_train_batches": "2", "model.dtype": "bfloat16"},
}
HALF = {"trainer.max_steps": "2"}


def words(name, case, *, two="", out=None):
    """``fit`` for one process, or for two with a strategy; with ``out`` a run there goes on."""
    settings = case | {"out": out or f"{two or 'one'}-{name}"}
    if "data.reference_cache" in case:
        settings["data.reference_cache"] = f"cache-of-{settings['out']}"
    if two:
        settings |= {"trainer.strategy": two, "trainer.num_nodes": "2", "trainer.devices": "1"}
        settings["trainer.accumulate_grad_batches"] = "2"
        if "trainer.limit_train_batches" in case:
            settings["trainer.limit_train_batches"] = "1"
    given = ["fit", "--config", "config.yaml"] + ["--resume"] * (out is not None)
    for key, value in settings.items():
        given += [f"--{key}"] if value is None else [f"--{key}", value]
    return given


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every run: of one process here, of two by torchrun, all of them at once."""
    folder = tmp_path_factory.mktemp("processes")
    save_tiny(folder / "base")
    save_tiny(folder / "tied", tiny_llama(tie_word_embeddings=True))
    for name, count, seed in (("pairs", 32, 0), ("val", 6, 1)):
        rows = tiny_pairs(count, seed=seed)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model": {"model": "base", "loss": "dpo", "lora": {"r": 4, "alpha": 8}, "lr": 1e-2},
        "data": {"train": "pairs.jsonl", "batch_size": 2, "max_length": 64},
        "trainer": {
            "max_epochs": 1,
            "accumulate_grad_batches": 4,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    before = Path.cwd()
    os.chdir(folder)
    try:
        halves = {name: CASES[name] | HALF for name in ("lora", "full")}
        for name, case in CASES.items():
            assert main(words(name, case)) == 0
        for name, case in halves.items():
            assert main(words(f"{name}-half", case)) == 0
        shutil.copytree("one-lora-half", "ddp-lora-half")
        _torchrun(
            [
                *(words(name, case, two="fsdp") for name, case in CASES.items()),
                *(words(f"{name}-cut", case, two="fsdp") for name, case in halves.items()),
                words("full-cache-cut", CASES["full-cache"] | HALF, two="ddp"),
                *(
                    words(f"{name}-half", CASES[name], two="fsdp", out=f"one-{name}-half")
                    for name in halves
                ),
                words("lora-half", CASES["lora"], two="ddp", out="ddp-lora-half"),
            ]
        )
        for cut in ("fsdp-lora-cut", "fsdp-full-cut", "ddp-full-cache-cut"):
            name = cut.removesuffix("-cut").split("-", 1)[1]
            assert main(words(cut, CASES[name], out=cut)) == 0
    finally:
        os.chdir(before)
    return folder


def _torchrun(fits):
    """As on two machines: each has a torchrun, and one process."""
    Path("fits.json").write_text(json.dumps(fits))
    port = str(_free_port())
    both = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
                *("--node-rank", str(rank), "--nproc-per-node", "1"),
                *("--master-addr", "127.0.0.1", "--master-port", port),
                *(str(Path(__file__).with_name("fit_all.py")), "fits.json"),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'envs'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    with ThreadPoolExecutor(2) as pool:
        said = [pool.submit(process.communicate) for process in both]
        for process in both if wait(said, timeout=300).not_done else ():
            process.kill()  # what both had said tells which one was waited for
        texts = [one.result()[0][-5000:] for one in said]
    assert [process.returncode for process in both] == [0, 0], "\n\n".join(texts)


def _free_port():
    """One that no program is given by chance before it is used: Linux gives those from 32768 on."""
    for port in random.Random(os.getpid()).sample(range(20_000, 32_000), 100):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def numbers(folder):
    """What was logged, of all versions of a run."""
    rows = []
    for path in sorted(folder.glob("log/version_*/metrics.csv")):
        names, *lines = path.read_text().splitlines()
        for line in lines:
            row = dict(zip(names.split(","), line.split(","), strict=True))
            rows.append({k: float(v) for k, v in row.items() if v})
    assert rows
    return rows


def assert_same_run(one, two, kind):
    for a, b in zip(numbers(one), numbers(two), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
    names = {"model": "model/model.safetensors", "adapter": "adapter/adapter_model.safetensors"}
    a, b = (load_file(path / names[kind]) for path in (one, two))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        *((f"one-{name}", f"fsdp-{name}") for name in CASES),
        # Two go on where one stopped, and one where two did.
        ("one-lora", "one-lora-half"),
        ("one-full", "one-full-half"),
        ("one-lora", "ddp-lora-half"),
        ("one-lora", "fsdp-lora-cut"),
        ("one-full", "fsdp-full-cut"),
        ("one-full-cache", "ddp-full-cache-cut"),
    ],
)
def test_two_processes_end_where_one_does(folder, one, two):
    assert_same_run(folder / one, folder / two, "model" if "full" in one else "adapter")


@pytest.mark.parametrize(
    ("whole", "gone_on"),
    [
        ("one-lora", "one-lora-half"),  # from one process to two
        ("one-lora", "ddp-lora-half"),
        ("fsdp-lora", "fsdp-lora-cut"),  # from two to one
    ],
)
def test_an_early_warning_compares_the_same_responses_in_any_number_of_processes(
    folder, whole, gone_on
):
    a, b = (
        _load(folder / name / "last.ckpt", weights_only=True)["callbacks"]["EarlyWarning"]["chosen"]
        for name in (whole, gone_on)
    )
    assert [step for step, _ in a] == [step for step, _ in b] == [0, 1, 2, 3, 4]
    assert [x for _, x in a] == pytest.approx([x for _, x in b], abs=1e-4)


def test_a_checkpoint_of_sharded_processes_holds_what_one_process_writes(folder):
    one, two = (
        _load(folder / name / "last.ckpt", weights_only=True) for name in ("one-full", "fsdp-full")
    )
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for a, b in zip(one["optimizer_states"], two["optimizer_states"], strict=True):
        assert a["state"].keys() == b["state"].keys()
        for number, values in a["state"].items():
            for name, value in values.items():
                torch.testing.assert_close(b["state"][number][name], value, rtol=1e-2, atol=1e-4)


def test_a_cache_of_two_processes_is_that_of_one(folder):
    one = load_file(folder / "cache-of-one-full-cache" / "train.safetensors")["logps"]
    for two in ("fsdp-full-cache", "fsdp-lora-cache", "ddp-full-cache-cut"):
        path = folder / f"cache-of-{two}" / "train.safetensors"
        torch.testing.assert_close(load_file(path)["logps"], one, rtol=0, atol=1e-4)


# What is refused


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("deepspeed_stage_2", "deepspeed_stage_2 is not supported, because it needs a GPU, shows"),
        ("lightning.pytorch.strategies.FSDPStrategy", "writes checkpoints for itself only: take"),
        ("fsdp_cpu_offload", "unknown trainer.strategy 'fsdp_cpu_offload': did you mean|choose"),
        ("ddp_spawn", "unknown trainer.strategy 'ddp_spawn': choose from: auto, ddp, "),
    ],
)
def test_strategies_that_cannot_be_followed_are_one_line(word, message):
    with pytest.raises(UserError, match=message) as caught:
        strategy_name(word)
    assert "\n" not in str(caught.value)


def test_a_strategy_given_in_python_is_checked_too():
    with pytest.raises(UserError, match=r"ModelParallelStrategy is not supported.*take fsdp2"):
        check_strategy(SimpleNamespace(strategy=ModelParallelStrategy()))
    for fine in (FullySharded(), DDPStrategy(), SingleDeviceStrategy()):
        check_strategy(SimpleNamespace(strategy=fine))
    assert strategy_name("fsdp") == strategy_name("fsdp2") == "fsdp2"


def test_a_process_leaves_the_others_before_it_ends(tmp_path, monkeypatch):
    """Else it is aborted now and then, once all its work is done."""
    at_exit = []
    monkeypatch.setattr(command_line.atexit, "register", at_exit.append)
    for _ in range(2):
        assert main(["fit", "--config", str(tmp_path / "none.yaml")]) == 2
    assert {*at_exit} == {command_line._leave_processes}
    at_exit[0]()  # alone
    group = {"world_size": 1, "rank": 0, "init_method": f"file://{tmp_path}/meet"}
    torch.distributed.init_process_group("gloo", **group)
    at_exit[0]()
    assert not torch.distributed.is_initialized()
