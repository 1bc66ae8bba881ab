"""What a bad input is: a command line, and what is done to the folder before."""

from dataclasses import dataclass

from attack.damage import Damage

SMALL = "--preset smoke --num_threads 1 --episode_steps 8 --seed 3"
EVOLVE = f"evolve {SMALL} --rivals sft --out new"
DIAGNOSE = f"diagnose {SMALL} --losses sft --data base --out new"
RESUME = {
    name: f"{command} --resume --out {name}"
    for name, command in (
        ("e", "evolve"),
        ("d", "diagnose"),
        ("g", "generate"),
        ("p", "generate"),
        ("w", "winrate --trust"),
    )
}
FIT = "finetune fit --config fit.yaml --out new"
GO_ON = "finetune fit --config fit.yaml --out f --resume"
VALIDATE = "finetune validate --config fit.yaml --ckpt_path f/last.ckpt"
INSPECT = "finetune inspect --config fit.yaml"
EXPORT = "finetune export --adapter f/adapter --out new"
GENERATE = "generate --model base --prompts prompts.json --max_new_tokens 4 --device cpu --out new"
OF_ADAPTER = GENERATE.replace("base", "f/adapter")
WINRATE = "winrate --outputs mine.json --reference theirs.json --judge own:judge --out new"


@dataclass(frozen=True)
class Case:
    """One bad input.

    Args:
        name: unlike all others.
        words: the command line.
        damage: to the folder, before.
        right: refused, accepted or either.
        says: what the one line, or what is printed, must contain.
        same: files that must end as if nothing had been damaged.
        seconds: after which it hangs.
    """

    name: str
    words: str
    damage: Damage | None = None
    right: str = "refused"
    says: str = ""
    same: tuple[str, ...] = ()
    seconds: float = 60


def hash_of(text: str) -> int:
    """A number that a text always has."""
    return sum(ord(letter) * (i + 1) for i, letter in enumerate(text))
