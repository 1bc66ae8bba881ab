"""Fine-tune a language model on preference pairs with any loss.

    python -m torchmpo.finetune fit --config experiments/llm/colpo_smollm2.yaml
    python -m torchmpo.finetune fit --config …  --loss runs/evolve/objective --out runs/mine
    python -m torchmpo.finetune fit --config …  --out runs/mine --resume
    python -m torchmpo.finetune validate --config …  --ckpt_path runs/mine/last.ckpt
    python -m torchmpo.finetune online --config …  --prompts prompts.jsonl --judge my_judge:prefer
    python -m torchmpo.finetune inspect --config …  --index 3         (a pair, token by token)
    python -m torchmpo.finetune export --adapter runs/mine/adapter --out merged
    python -m torchmpo.finetune export --ckpt runs/mine/best.ckpt --out merged

or from Python

    module = PreferenceModule("path/to/model", loss="colpo", lora=LoraSettings(r=16))
    data = PreferenceData("pairs.jsonl", batch_size=2)
    Trainer(max_epochs=1, accumulate_grad_batches=8).fit(module, data)

``fit`` and ``validate`` are Lightning's command line: ``trainer.*`` are its Trainer's settings,
``model.*`` those of :class:`torchmpo.finetune.module.PreferenceModule`, ``data.*`` those of
:class:`torchmpo.finetune.data.PreferenceData`; ``--loss X`` is ``--model.loss X`` without the
``loss_args`` that the configuration has for its own loss. The folder of a run has ``last.ckpt``,
``best.ckpt`` with ``--keep_best`` (the lowest ``val/loss``, which then is what is exported),
``log/version_0/`` with ``config.yaml`` and ``metrics.csv`` (one more version per resume), and, when
it is done, ``adapter/``, or ``model/`` where all weights were trained. ``online`` is ``fit`` in
rounds, see :mod:`torchmpo.finetune.online`: ``--rounds 4`` is short for ``--online.rounds 4``, and
so are the others.
"""

import sys
from collections.abc import Sequence

from torchmpo.finetune.options import FLAGS, GROUPS, ONLINE
from torchmpo.runs.arguments import StrictParser
from torchmpo.runs.errors import UserError, exit_code, nearest
from torchmpo.runs.threads import wait_asleep

PROGRAM = "python -m torchmpo.finetune"
COMMANDS = {
    "fit": "train",
    "online": "train in rounds, on pairs of the model's own answers that a judge compares",
    "validate": "the loss and the metrics of a checkpoint",
    "inspect": "a pair, token by token",
    "export": "write the merged model of an adapter",
}
OPTIONS = tuple(name for options in GROUPS.values() for name in options)
MORE_OPTIONS = {
    "fit": {},
    "online": ONLINE,
    "validate": {"--ckpt_path": "checkpoint to look at"},
    "inspect": {"--index": "which pair, from 0", "--split": "train or validation"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2 for a mistake, told in one line."""
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_code(lambda: _run(words), extra="llm")


def _run(words: list[str]) -> None:
    command = words[0] if words else ""
    if command in ("-h", "--help"):
        print(__doc__)
        return
    if command not in COMMANDS:
        raise UserError(f"unknown command {command!r}: {nearest(command, COMMANDS)}")
    if command == "export":
        _export(words[1:])
        return
    if {"-h", "--help"} & set(words):
        parser().parse_args([command, "--help"])
    words = ["--help" if word == "--help_all" else word for word in words]
    wait_asleep()
    from torchmpo.finetune import command_line  # Lightning takes seconds

    if command == "inspect":
        command_line.inspect(PROGRAM, words[1:])
    elif command == "online":
        from torchmpo.finetune.online import online

        online(PROGRAM, words[1:])
    else:
        command_line.fit_or_validate(PROGRAM, words)


def _export(words: list[str]) -> None:
    """Write the merged model of an adapter."""
    of_adapter = not any(word.split("=")[0] == "--ckpt" for word in words)
    given = export_parser(of_adapter=of_adapter).parse_args(words)
    if given.ckpt is None:
        from torchmpo.finetune.models import export_merged  # torch and transformers take seconds

        gap = export_merged(given.adapter, given.out, dtype=given.dtype)
    else:
        from torchmpo.finetune.export import export_checkpoint

        gap = export_checkpoint(given.ckpt, given.out, config=given.config, dtype=given.dtype)
    print(
        f"wrote {given.out}: its log-probabilities are within {gap:.1g} nats per token of those of "
        "base and adapter" + ("; --dtype float32 rounds less" if gap > 1e-3 else "")
    )
    if given.push_to_hub is not None:
        from torchmpo.finetune.model_card import push

        print(f"pushed to {push(given.out, given.push_to_hub)}")


def parser() -> StrictParser:
    """The commands and the options used most; ``fit --help_all`` lists every one."""
    parser = StrictParser(prog=PROGRAM, description="Fine-tune a language model.")
    commands = parser.add_subparsers()
    for name, options in MORE_OPTIONS.items():
        of_command = commands.add_parser(
            name,
            help=COMMANDS[name],
            description=f"{COMMANDS[name]}.".capitalize(),
            usage=f"{PROGRAM} {name} [options]",
            epilog=f"{name} --help_all lists every option; trainer.* are those of Lightning's "
            "Trainer. What is in parentheses is the default.",
        )
        for group, of_group in (GROUPS | {"command": options}).items():
            titled = of_command.add_argument_group(group)
            for option, text in of_group.items():
                if option in FLAGS:
                    titled.add_argument(option, help=text, action="store_true")
                else:
                    titled.add_argument(option, help=text, metavar="")
    commands.add_parser(
        "export", help=COMMANDS["export"], parents=[export_parser()], add_help=False
    )
    return parser


def export_parser(*, of_adapter: bool = True) -> StrictParser:
    """The options of ``export``, of an adapter or of a checkpoint."""
    parser = StrictParser(
        prog=f"{PROGRAM} export", description="Write the merged model of an adapter."
    )
    source = parser if of_adapter else parser.add_mutually_exclusive_group()
    source.add_argument("--adapter", required=of_adapter, help="folder of a run's adapter")
    source.add_argument("--ckpt", help="or a checkpoint of a run, such as best.ckpt")
    parser.add_argument("--config", help="of the checkpoint's run, where it is not beside it")
    parser.add_argument("--out", required=True, help="folder of the merged model")
    parser.add_argument(
        "--dtype",
        default="auto",
        help="of its weights: float32, bfloat16, float16 or auto, as the base's",
    )
    parser.add_argument("--push_to_hub", help="user/name on the hub: upload the folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
