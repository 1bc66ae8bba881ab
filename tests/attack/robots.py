"""What is wrong about losses on robots: objectives, runs, settings, trials, pairs of one's own."""

import json
from typing import Any

from attack.case import (
    DIAGNOSE,
    EVOLVE,
    FIT,
    GENERATE,
    RESUME,
    WINRATE,
    Case,
)
from attack.damage import (
    EVIL,
    Damage,
    at,
    line,
    put,
    tensors,
)

LEARNED = "e/objective/objective.safetensors"
FORGED = "own:loss"
VISIT = "show e --visit"


def _bomb(levels: int = 40) -> str:
    text = "[ha]"
    for k in range(levels):
        text = f"[&n{k} {text}, {', '.join([f'*n{k}'] * 8)}]"
    return text


def _vector(value: Any) -> Damage:
    """All numbers of the learned objective are this one."""
    return tensors(LEARNED, lambda held, _: held["vector"].fill_(value))


def _to(dtype: str) -> Damage:
    def change(held: dict, _: dict) -> None:
        import torch

        held["vector"] = held["vector"].to(getattr(torch, dtype))

    return tensors(LEARNED, change)


def _form(**changes: Any) -> Damage:
    """What the learned objective says of itself."""

    def change(_: dict, metadata: dict) -> None:
        form = json.loads(metadata["mirror_objective"]) | changes
        metadata["mirror_objective"] = json.dumps(form)

    return tensors(LEARNED, change)


def _slope(held: dict, _: dict) -> None:
    held["network.slope"].neg_()


def _spare(held: dict, _: dict) -> None:
    held["spare"] = held["vector"].clone()


def _transposed(held: dict, _: dict) -> None:
    held["network.slope"] = held["network.slope"].T.contiguous()


def _halved(path: str) -> Damage:
    def change(held: dict, _: dict) -> None:
        name = next(name for name, value in held.items() if value.ndim > 1)
        held[name] = held[name][: len(held[name]) // 2].clone()

    return tensors(path, change)


def _without(path: str) -> Damage:
    return tensors(path, lambda held, _: held.pop(sorted(held)[0]))


def _array(name: str, value: float | int, place: int = 0) -> Damage:
    """A number of the user's own pairs of trajectories."""

    def change(held: dict, _: dict) -> None:
        held[name].view(-1)[place] = value

    return tensors("pairs.safetensors", change)


def _stored(name: str, content: bytes) -> Damage:
    """A file of every pool of trajectories."""

    def damage(folder: Any) -> None:
        for path in (folder / "cache").glob(f"*/{name}"):
            path.write_bytes(content)

    return damage


# Pairs that are conversations.


ROBOTS: list[Case] = [
    # Objectives that somebody made up or damaged.
    *(
        Case(f"objective: {name}", words, damage)
        for name, damage in {
            "not a number": _vector(float("nan")),
            "infinite": _vector(float("inf")),
            "enormous": _vector(1e30),
            "decreasing": tensors(LEARNED, _slope),
            "8-bit": _to("float8_e4m3fn"),
            "complex": _to("complex64"),
            "whole numbers": _to("int64"),
            "one tensor more": tensors(LEARNED, _spare),
            "one tensor less": _without(LEARNED),
            "another shape": tensors(LEARNED, _transposed),
            "no description": tensors(LEARNED, lambda _, metadata: metadata.clear()),
            "10⁹ units": _form(units=10**9),
            "no units": _form(units=0),
            "minus one unit": _form(units=-1),
            "half a unit": _form(units=1.5),
            "units in words": _form(units="many"),
            "10⁶ activations": _form(activations=["exp"] * 10**6),
            "unknown activation": _form(activations=["os.system"] * 9),
            "activations are a number": _form(activations=3),
            "steps are three": _form(steps="three"),
            "learns nothing known": _form(learn=["os"]),
            "learns a number": _form(learn=3),
            "temporal is a word": _form(temporal="x"),
            "initial is negative": _form(initial={"psi_log": -1.0}),
            "initial is not a number": _form(initial={"psi_log": float("nan")}),
            "initial is a word": _form(initial={"psi_log": "x"}),
            "an argument more": _form(shell="rm"),
            "the card is a list": put("e/objective/card.json", "[1, 2]"),
            "the card is deep": put("e/objective/card.json", '{"a":' * 99999),
            "two objectives": put("e/objective/objective.json", "{}"),
        }.items()
        for words in ("show e",)
    ),
    Case(
        "objective as a rival: not a number",
        f"{EVOLVE} --warm_start e/objective",
        _vector(float("nan")),
    ),
    Case(
        "objective in a diagnosis: decreasing",
        DIAGNOSE.replace("sft", "e/objective"),
        tensors(LEARNED, _slope),
    ),
    Case("objective in fine-tuning: enormous", f"{FIT} --model.loss e/objective", _vector(1e30)),
    *(
        Case(f"closed form: {name}", "show o", damage)
        for name, damage in {
            "names code": at("o/objective.json", "loss", FORGED),
            "names another": at("o/objective.json", "loss", "nope"),
            "a hyper-parameter more": at("o/objective.json", "hyper/shell", 1),
            "beta is not a number": at("o/objective.json", "hyper/beta", float("nan")),
            "beta is negative": at("o/objective.json", "hyper/beta", -1.0),
            "beta is enormous": at("o/objective.json", "hyper/beta", 1e300),
            "a sum of nothing": at("o/objective.json", "sum_of", []),
            "a sum of code": at("o/objective.json", "sum_of", [FORGED]),
            "a divergence of none": at("o/objective.json", "divergence", "js"),
        }.items()
    ),
    # Runs that name code, and other settings than those of the run.
    Case(
        "a resumed search names code",
        RESUME["e"],
        line("e/config.yaml", "rivals", FORGED),
        says="--trust",
    ),
    Case(
        "a resumed diagnosis names code",
        RESUME["d"],
        line("d/config.yaml", "losses", FORGED),
        says="--trust",
    ),
    Case("a resumed evaluation names code", "winrate --resume --out w", says="--trust"),
    Case("a search begins with code", RESUME["e"], line("e/config.yaml", "warm_start", FORGED)),
    Case(
        "a search's card names code as its data",
        VISIT,
        at("e/objective/card.json", "config/data", FORGED),
    ),
    Case(
        "a search's card names code as its task",
        VISIT,
        at("e/objective/card.json", "config/task", FORGED),
    ),
    Case(
        "a card whose settings are nonsense",
        VISIT,
        at("e/objective/card.json", "config/pairs", "x"),
    ),
    Case(
        "a card whose settings are enormous",
        VISIT,
        at("e/objective/card.json", "config/pairs", 10**12),
    ),
    Case(
        "a card whose policy has no end",
        VISIT,
        at("e/objective/card.json", "config/episode_steps", 10**7),
    ),
    Case(
        "a card whose start is a path",
        VISIT,
        at("e/objective/card.json", "config/start", "/etc/passwd"),
    ),
    Case(
        "a card with a list for a rate",
        VISIT,
        at("e/objective/card.json", "config/learning_rate", [1]),
    ),
    *(
        Case(
            f"{run}: {key} is {value} in config.yaml",
            RESUME[run],
            line(f"{run}/config.yaml", key, value),
        )
        for run, changes in {
            "e": "seed=4 sigma=0.5 population=8 pairs=8 task=ant data=base learning_rate=0.1 "
            "optimizer=cmaes "
            "final_seeds=3 episodes=3 compile=true minibatch_pairs=1 seed=x seed=null sigma=nan "
            "generations=1 "
            "space=closed_form",
            "d": "seed=4 pairs=8 task=ant learning_rate=0.1 trials=3 episodes=3 seed=null seeds=1",
            "g": "seed=4 max_new_tokens=5 temperature=1.0 model=f/adapter prompts=mine.json "
            "format=text",
            "w": "glm=x outputs=theirs.json both_orders=false empty=lose",
        }.items()
        for key, value in (change.split("=") for change in changes.split())
    ),
    Case(
        "a cell is of another task",
        RESUME["d"],
        at("d/cells/sft__base.json", "task", "ant"),
        says="is of ant, not of tla",
    ),
    # Settings that expand without end.
    *(
        Case(
            f"{words.split()[0]}: {name} as settings",
            f"{words} --config bomb.yaml",
            put("bomb.yaml", text),
        )
        for words in (EVOLVE, DIAGNOSE, GENERATE, WINRATE, FIT)
        for name, text in {
            "a bomb": f"seed: {_bomb()}\n",
            "an alias of itself": "seed: &a [*a]\n",
            "code": "seed: !!python/object/apply:os.mkdir [CANARY]\n",
            "a new object": "seed: !!python/object/new:os.mkdir [CANARY]\n",
            "brackets": "seed: " + "[" * 100_000,
            "a list": "- 1\n- 2\n",
            "a letter that is none": "seed: \ud800\n",
            "a class": "seed: {class_path: os.mkdir, init_args: {path: CANARY}}\n",
        }.items()
    ),
    Case(
        "trials that expand without end",
        DIAGNOSE.replace("sft", "orpo") + " --grid b.yaml",
        put("b.yaml", f"orpo: {_bomb()}"),
    ),
    *(
        Case(
            f"trials: {text}",
            DIAGNOSE.replace("sft", "orpo") + " --grid b.yaml",
            put("b.yaml", text),
        )
        for text in (
            "orpo: []",
            "orpo: 3",
            "orpo: [3]",
            "orpo: [{beta: x}]",
            "orpo: [{beta: .nan}]",
            "orpo: [{nope: 1}]",
            "orpo: [{beta: 1}, {lr: 2}]",
            "nope: [{beta: 1}]",
            "orpo: [{po_coef: -1}]",
            "orpo: [{po_coef: 1e400}]",
            "orpo: {po_coef: [1]}",
            "orpo: [[1]]",
            "orpo: [null]",
            "orpo: [{learning_rate: 0}]",
            "orpo: [{learning_rate: -1}]",
            "- orpo",
            "orpo: [{po_coef: [1]}]",
            "orpo: [{1: 1}]",
        )
    ),
    # Pairs of one's own, for robots.
    *(
        Case(f"own pairs: {name}", DIAGNOSE.replace("base", "pairs.safetensors"), damage)
        for name, damage in {
            "observation is not a number": _array("observation", float("nan")),
            "action is infinite": _array("action", float("inf")),
            "return is not a number": _array("returns", float("nan")),
            "length is none": _array("lengths", 0),
            "length is beyond": _array("lengths", 10**9),
            "chosen is beyond": _array("chosen", 99),
            "chosen is negative": _array("chosen", -1),
            "both the same": _array("chosen", 1),
            "an array is gone": _without("pairs.safetensors"),
            "half an array": _halved("pairs.safetensors"),
            "an array more": tensors(
                "pairs.safetensors", lambda h, _: h.update(spare=h["returns"])
            ),
            "other words": tensors(
                "pairs.safetensors", lambda h, _: h.update(action=h["action"].bool())
            ),
            "other robots": tensors(
                "pairs.safetensors",
                lambda h, _: h.update(observation=h["observation"][..., :5].clone()),
            ),
        }.items()
    ),
    Case("own pairs: a pickle in .npz", DIAGNOSE.replace("base", "x.npz"), put("x.npz", EVIL)),
    # Data that is there already.
    *(
        Case(f"stored data: {name}", DIAGNOSE, damage, "either")
        for name, damage in {
            "a file is short": _stored("action.memmap", b"short"),
            "a file of zeros": _stored("action.memmap", bytes(3072)),
            "no description": _stored("pool.json", b""),
            "deep description": _stored("pool.json", b"[" * 99999),
            "another description": _stored("pool.json", b"{}"),
            "description of numbers": _stored(
                "pool.json", b'{"config": 1, "shapes": 2, "crc32": 3}'
            ),
        }.items()
    ),
]
