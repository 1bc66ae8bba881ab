"""A folder with a finished run of every command, so small that it is made in seconds."""

import json
import os
from pathlib import Path

SMALL = "--preset smoke --num_threads 1 --episode_steps 8 --seed 3"
RUNS = (
    f"evolve {SMALL} --out e --rivals sft",
    f"diagnose {SMALL} --losses sft,orpo --data base --out d",
    "finetune fit --config fit.yaml --out f",
    "generate --model base --prompts prompts.json --max_new_tokens 4 --device cpu --out g",
    "winrate --outputs mine.json --reference theirs.json --judge own:judge --out w",
)
FIT = {
    "model": {
        "model": "base",
        "loss": "dpo",
        "lora": {"r": 2, "alpha": 4, "dropout": 0.1},
        "lr": 1e-2,
    },
    "data": {"train": "pairs.jsonl", "batch_size": 2, "max_length": 64},
    "trainer": {
        "max_epochs": 1,
        "accumulate_grad_batches": 2,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "checkpoint_every": 1,
}
# A user's own module: good and bad losses and judges.
OWN = """
import time

def loss(chosen_logps, rejected_logps, *, beta=0.1):
    return -beta * (chosen_logps - rejected_logps)

def recursive(chosen_logps):
    return recursive(chosen_logps)

def attribute(chosen_logps):
    return chosen_logps.nothing

def division(chosen_logps):
    return chosen_logps * (1 / 0)

def leaves(chosen_logps):
    raise SystemExit(0)

def key(chosen_logps):
    return {}[chosen_logps]

def wrong_shape(chosen_logps):
    return chosen_logps.mean()

def number(chosen_logps):
    return 3.0

def keeps(chosen_logps, *, seen=[]):
    seen.append(0)
    return -chosen_logps * len(seen)

def unknown(chosen):
    return chosen

not_callable = 3

def judge(prompts, first, second):
    return [0.25 if len(a) > len(b) else 0.75 for a, b in zip(first, second)]

def raises(prompts, first, second):
    return {}["missing"]

def endless(prompts, first, second):
    while True:
        time.sleep(0.01)

def few(prompts, first, second):
    return [0.5]

def beyond(prompts, first, second):
    return [2.0 for _ in prompts]

def not_a_number(prompts, first, second):
    return ["x" for _ in prompts]

def exits(prompts, first, second):
    raise SystemExit(0)
"""
BROKEN = {
    "syntax.py": "def loss(:\n",
    "raises.py": "1 / 0\n",
    "attribute.py": "import os\nos.nothing\n",
    "imports.py": "import nothing_of_this_name\n",
    "leaves.py": "raise SystemExit(0)\n",
    "deep.py": "def f():\n    return f()\nf()\n",
    "surrogate.py": "# \ud800\n",
    "nul.py": "x = '\0'\n",
}
COLUMNS = "gamed_c"


def rows(generator: str, count: int = 12) -> list[dict]:
    return [
        {
            "instruction": f"prompt {i}",
            "output": f"{generator} {i}" + "!" * i,
            "generator": generator,
        }
        for i in range(count)
    ]


def write_files(folder: Path) -> None:
    """What the user brings."""
    import yaml
    from tiny_llm import save_tiny, tiny_pairs

    save_tiny(folder / "base")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in tiny_pairs(9)))
    (folder / "fit.yaml").write_text(yaml.safe_dump(FIT))
    (folder / "prompts.json").write_text(
        json.dumps([{"instruction": w} for w in ("Hi", "Go away!")])
    )
    (folder / "mine.json").write_text(json.dumps(rows("mine")))
    (folder / "theirs.json").write_text(json.dumps(rows("theirs")))
    (folder / "own.py").write_text(OWN)
    for name, text in BROKEN.items():
        (folder / f"broken_{name}").write_bytes(text.encode("utf-8", "surrogatepass"))
    (folder / "grid.yaml").write_text("orpo: [{beta: 0.1}, {beta: 1.0}]\n")
    (folder / "settings.yaml").write_text("population: 4\nsigma: 0.1\n")
    (folder / "text.txt").write_text("nothing\n")
    (folder / "empty").mkdir()


def build(path: str) -> int:
    """Make it, in this process; returns the number of what went wrong."""
    from attack.warm import command
    from torchmpo import resolve
    from torchmpo.control.preferences import PreferenceDataset

    folder = Path(path)
    write_files(folder)
    wrong = 0
    for words in RUNS:
        print(words, flush=True)
        wrong += command(words) != 0
    resolve("simpo", beta=2.0).save(folder / "o", {"name": "simpo"})
    step = {"observation": [[0.1] * 27] * 3, "action": [[0.1] * 8] * 3}
    PreferenceDataset.from_trajectories(
        [step | {"return": 1.0}, step | {"return": 0.0}], [(0, 1), (1, 0)] * 4
    ).save(folder / "pairs.safetensors")
    answers = json.loads((folder / "g/outputs.json").read_text())
    (folder / "p").mkdir()
    for name in ("config.yaml", "made_of.json"):
        (folder / "p" / name).write_text((folder / "g" / name).read_text())
    text = [
        {"row": 0, "instruction": a["instruction"], "text": a["output"], "finish_reason": "length"}
        for a in answers[:1]
    ]
    (folder / "p/partial.json").write_text(json.dumps(text))
    os.sync()
    return wrong
