"""What is wrong about language models: checkpoints, weights, templates, texts, settings."""

import json
from typing import Any

from attack.case import (
    EXPORT,
    FIT,
    GENERATE,
    GO_ON,
    INSPECT,
    RESUME,
    WINRATE,
    Case,
)
from attack.damage import (
    EVIL,
    Damage,
    at,
    fit,
    put,
    removed,
    several,
    tensors,
)

PAIR = {"prompt": "1 x?", "chosen": " y", "rejected": " z"}
# Pairs that are conversations.
MESSAGES = put(
    "pairs.jsonl",
    "\n".join(
        f'{{"prompt": [{{"role": "user", "content": "x{i}"}}], '
        f'"chosen": [{{"role": "assistant", "content": "y{i}"}}], '
        f'"rejected": [{{"role": "assistant", "content": "z{i}"}}]}}'
        for i in range(8)
    ),
)


def _scaled(path: str, factor: float) -> Damage:
    def change(held: dict, _: dict) -> None:
        for name, value in held.items():
            if value.is_floating_point():
                held[name] = value * factor

    return tensors(path, change)


def _halved(path: str) -> Damage:
    def change(held: dict, _: dict) -> None:
        name = next(name for name, value in held.items() if value.ndim > 1)
        held[name] = held[name][: len(held[name]) // 2].clone()

    return tensors(path, change)


def _without(path: str) -> Damage:
    return tensors(path, lambda held, _: held.pop(sorted(held)[0]))


def _pairs(*rows: Any) -> Damage:
    """Rows of ``pairs.jsonl``, in addition to those that are there."""

    def damage(folder: Any) -> None:
        text = (folder / "pairs.jsonl").read_text()
        more = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        (folder / "pairs.jsonl").write_text(text + more)

    return damage


def _template(text: str) -> Damage:
    return several(
        put("base/chat_template.jinja", text), put("f/adapter/chat_template.jinja", text)
    )


def _checkpoint(what: str) -> Damage:
    """``last.ckpt`` of another content, written as torch writes files."""

    def damage(folder: Any) -> None:
        import torch

        path = folder / "f/last.ckpt"
        held = torch.load(path, weights_only=True)  # noqa: TID251
        if what == "list":
            held = [1, 2]
        elif what == "weights":
            held = held["state_dict"]
        elif what == "nan":
            held["state_dict"] = {k: v * float("nan") for k, v in held["state_dict"].items()}
        elif what == "optimizers":
            held["optimizer_states"] = [{}]
        elif what == "shapes":
            held["state_dict"] = {k: v[:1] for k, v in held["state_dict"].items()}
        elif what == "names":
            held["state_dict"] = {f"x{k}": v for k, v in held["state_dict"].items()}
        elif what == "loops":
            held["loops"] = {"fit_loop": 3}
        elif what == "step":
            held["global_step"] = "x"
        elif what == "epoch":
            held["epoch"] = None
        torch.save(held, path)  # noqa: TID251

    return damage


LANGUAGE: list[Case] = [
    *(
        Case(
            f"last.ckpt: {what}",
            GO_ON,
            _checkpoint(what),
            "either" if what in ("step", "epoch") else "refused",
        )
        for what in (
            "list",
            "weights",
            "nan",
            "optimizers",
            "shapes",
            "names",
            "loops",
            "step",
            "epoch",
        )
    ),
    *(
        Case(f"a model {name}", GENERATE, damage, right)
        for name, damage, right in (
            ("of not-a-numbers", _scaled("base/model.safetensors", float("nan")), "refused"),
            ("with half a matrix", _halved("base/model.safetensors"), "refused"),
            ("without a matrix", _without("base/model.safetensors"), "refused"),
            (
                "of more layers than weights",
                at("base/config.json", "num_hidden_layers", 3),
                "refused",
            ),
            (
                "of fewer layers than weights",
                at("base/config.json", "num_hidden_layers", 1),
                "refused",
            ),
            ("of a size that is not its own", at("base/config.json", "hidden_size", 64), "refused"),
            ("of fewer tokens", at("base/config.json", "vocab_size", 8), "refused"),
            ("of 10⁹ layers", at("base/config.json", "num_hidden_layers", 10**9), "refused"),
            ("that is a list", put("base/config.json", "[1]"), "refused"),
            (
                "with code of its own",
                at("base/config.json", "auto_map", {"AutoModelForCausalLM": "own.loss"}),
                "either",
            ),
            (
                "of a kind that nobody knows",
                at("base/config.json", "model_type", "nope"),
                "refused",
            ),
            (
                "as a pickle",
                several(removed("base/model.safetensors"), put("base/pytorch_model.bin", EVIL)),
                "refused",
            ),
        )
    ),
    *(
        Case(f"an adapter {name}", EXPORT, damage, right)
        for name, damage, right in (
            (
                "of not-a-numbers",
                _scaled("f/adapter/adapter_model.safetensors", float("nan")),
                "refused",
            ),
            ("with half a matrix", _halved("f/adapter/adapter_model.safetensors"), "refused"),
            ("without a matrix", _without("f/adapter/adapter_model.safetensors"), "refused"),
            ("of another rank", at("f/adapter/adapter_config.json", "r", 4), "refused"),
            (
                "of no base",
                at("f/adapter/adapter_config.json", "base_model_name_or_path", "nowhere"),
                "refused",
            ),
            (
                "of itself",
                at("f/adapter/adapter_config.json", "base_model_name_or_path", "f/adapter"),
                "refused",
            ),
            (
                "of an unknown kind",
                at("f/adapter/adapter_config.json", "peft_type", "NOPE"),
                "refused",
            ),
            (
                "of targets that are not there",
                at("f/adapter/adapter_config.json", "target_modules", ["nope"]),
                "refused",
            ),
            (
                "of a pattern without end",
                at("f/adapter/adapter_config.json", "target_modules", "(a+)+$"),
                "refused",
            ),
            (
                "as a pickle",
                several(
                    removed("f/adapter/adapter_model.safetensors"),
                    put("f/adapter/adapter_model.bin", EVIL),
                ),
                "refused",
            ),
        )
    ),
    *(
        Case(
            f"{words.split()[0]}: template {name}",
            words,
            several(_template(text), MESSAGES),
            right,
            seconds=30,
        )
        for name, text, right in (
            ("divides by zero", "{{ 1 / 0 }}", "refused"),
            (
                "loops",
                "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
                "refused",
            ),
            ("counts", "{% for i in range(10**12) %}x{% endfor %}", "refused"),
            ("powers", "{{ 9 ** (9 ** 9) }}", "refused"),
            ("repeats", "{{ 'x' * 10 ** 12 }}", "refused"),
            ("calls itself", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "refused"),
            ("breaks out", "{{ messages.__class__.__mro__[1].__subclasses__() }}", "refused"),
            ("runs code", "{{ cycler.__init__.__globals__.os.mkdir('CANARY') }}", "refused"),
            ("raises", "{{ raise_exception('no') }}", "refused"),
            ("is no template", "{% for %}", "refused"),
            ("is cut", "{{ messages[", "refused"),
            ("says nothing", "", "either"),
            ("includes a file", "{% include '/etc/passwd' %}", "refused"),
            ("names what is not there", "{{ nothing.at.all }}", "refused"),
            ("is a letter that is none", "\ud800", "refused"),
        )
        for words in (GENERATE, INSPECT)
        if words == GENERATE or name in ("divides by zero", "powers", "runs code")
    ),
    *(
        Case(
            f"pairs with {name}",
            INSPECT if right != "fit" else FIT,
            _pairs(row),
            "refused" if right == "fit" else right,
        )
        for name, row, right in (
            ("a null", {**PAIR, "chosen": None}, "refused"),
            ("a number", {**PAIR, "chosen": 3}, "refused"),
            ("a list", {**PAIR, "chosen": [1]}, "refused"),
            ("a key less", {"prompt": "x", "chosen": "y"}, "refused"),
            ("a surrogate", '{"prompt": "x", "chosen": "\\ud800", "rejected": "z"}', "refused"),
            ("a row that is a list", [1], "refused"),
            ("a row that is null", "null", "refused"),
            ("deep rows", "[" * 99999, "refused"),
            (
                "deep objects",
                '{"prompt": ' + "[" * 90000 + "]" * 90000 + ', "chosen": "", "rejected": ""}',
                "refused",
            ),
            ("no JSON", "{", "refused"),
            (
                "a role that is none",
                {"prompt": [{"role": 3, "content": "x"}], "chosen": "y", "rejected": "z"},
                "refused",
            ),
            (
                "messages without content",
                {"prompt": [{"role": "user"}], "chosen": "y", "rejected": "z"},
                "either",
            ),
            ("messages of null", {"prompt": [None], "chosen": "y", "rejected": "z"}, "refused"),
            (
                "a reward beyond a float",
                '{"prompt": "x", "chosen": "y", "rejected": "z", "chosen_reward": 1e999, '
                '"rejected_reward": 0}',
                "refused",
            ),
            (
                "a reward of 40 digits",
                '{"prompt": "x", "chosen": "y", "rejected": "z", "chosen_reward": '
                + "9" * 400
                + ', "rejected_reward": 0}',
                "refused",
            ),
            ("a reward in words", {**PAIR, "chosen_reward": "x", "rejected_reward": 0}, "refused"),
        )
    ),
    *(
        Case(f"{who} with {name}", words, put(path, text))
        for name, text in {
            "a surrogate": '[{"instruction": "\\ud800", "output": "x", "generator": "y"}]',
            "a null": '[{"instruction": null, "output": "x", "generator": "y"}]',
            "a number": '[{"instruction": 3, "output": "x", "generator": "y"}]',
            "no list": '{"instruction": "x", "output": "x", "generator": "y"}',
            "deep rows": '[{"instruction": ' + "[" * 90000 + "]" * 90000 + "}]",
            "NaN for a text": '[{"instruction": NaN, "output": NaN, "generator": "y"}]',
        }.items()
        for who, words, path in (
            ("prompts", GENERATE, "prompts.json"),
            ("answers", WINRATE, "mine.json"),
        )
        if (who, name) != ("prompts", "no list")
    ),
    *(
        Case(
            f"annotations: preference is {value}",
            RESUME["w"],
            at("w/annotations.json", "0/preference", value),
        )
        for value in (3, -1, 0.5, "x", True, [1], {}, float("inf"), 10**40)
    ),
    Case(
        "annotations: two files in one",
        RESUME["w"],
        at("w/annotations.json", "0/generator_2", "another"),
        "either",
    ),
    # Fine-tuning's settings, of which many come from files.
    *(
        Case(f"fit: {name}", FIT, fit(changes), right)
        for name, changes, right in (
            ("chunk_size 0", {"model.chunk_size": 0}, "refused"),
            ("no model", {"model.model": None}, "refused"),
            ("model is a list", {"model.model": [1]}, "refused"),
            (
                "a class as the model",
                {"model.model": {"class_path": "os.mkdir", "init_args": {"path": "CANARY"}}},
                "refused",
            ),
            ("a callback of code", {"trainer.callbacks": [{"class_path": "own.loss"}]}, "refused"),
            (
                "a logger of code",
                {"trainer.logger": {"class_path": "os.mkdir", "init_args": {"name": "CANARY"}}},
                "refused",
            ),
            ("plugins of code", {"trainer.plugins": "os.mkdir"}, "refused"),
            ("train is a list of numbers", {"data.train": [1, 2]}, "refused"),
            ("train is empty", {"data.train": []}, "refused"),
            ("train is itself", {"data.train": "pairs.jsonl,pairs.jsonl"}, "refused"),
            ("lora is a list", {"model.lora": [1]}, "refused"),
            ("lora is a word", {"model.lora": "x"}, "refused"),
            ("every learning rate", {"model.lr": 1e300}, "refused"),
            ("loss is a number", {"model.loss": 3}, "refused"),
            (
                "loss_args are code",
                {"model.loss_args": {"beta": "!!python/object/apply:os.mkdir [CANARY]"}},
                "refused",
            ),
        )
    ),
]
