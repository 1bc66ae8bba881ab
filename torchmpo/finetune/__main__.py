"""Fine-tune a language model on preference pairs with any loss.

    python -m torchmpo.finetune fit --config experiments/llm/colpo_smollm2.yaml
    python -m torchmpo.finetune fit --config …  --loss runs/evolve/objective --out runs/mine
    python -m torchmpo.finetune fit --config …  --out runs/mine --resume
    python -m torchmpo.finetune validate --config …  --ckpt_path runs/mine/last.ckpt
    python -m torchmpo.finetune inspect --config …  --index 3         (a pair, token by token)
    python -m torchmpo.finetune export --adapter runs/mine/adapter --out merged

or from Python

    module = PreferenceModule("path/to/model", loss="colpo", lora=LoraSettings(r=16))
    data = PreferenceData("pairs.jsonl", batch_size=2)
    Trainer(max_epochs=1, accumulate_grad_batches=8).fit(module, data)

``fit`` and ``validate`` are Lightning's command line: ``trainer.*`` are its Trainer's settings,
``model.*`` those of :class:`torchmpo.finetune.module.PreferenceModule`, ``data.*`` those of
:class:`torchmpo.finetune.data.PreferenceData`; ``--loss X`` is ``--model.loss X`` without the
``loss_args`` that the configuration has for its own loss. The folder of a run has ``last.ckpt``,
``log/version_0/`` with ``config.yaml`` and ``metrics.csv`` (one more version per resume), and, when
it is done, ``adapter/``, or ``model/`` where all weights were trained.
"""

import sys
from collections.abc import Sequence

from torchmpo.runs.arguments import StrictParser
from torchmpo.runs.errors import UserError, exit_code, nearest

PROGRAM = "python -m torchmpo.finetune"
COMMANDS = ("fit", "validate", "inspect", "export")


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
    from torchmpo.finetune import command_line  # Lightning takes seconds

    if command == "inspect":
        command_line.inspect(PROGRAM, words[1:])
    else:
        command_line.fit_or_validate(PROGRAM, words)


def _export(words: list[str]) -> None:
    """Write the merged model of an adapter."""
    given = export_parser().parse_args(words)
    from torchmpo.finetune.models import export_merged  # torch and transformers take seconds

    export_merged(given.adapter, given.out)
    print(f"wrote {given.out}")


def export_parser() -> StrictParser:
    """The options of ``export``."""
    parser = StrictParser(
        prog=f"{PROGRAM} export", description="Write the merged model of an adapter."
    )
    parser.add_argument("--adapter", required=True, help="folder of a run's adapter")
    parser.add_argument("--out", required=True, help="folder of the merged model")
    return parser


if __name__ == "__main__":
    sys.exit(main())
