"""Train a language model in TRL's own trainer, with any loss of this library, or one's own.

    python -m experiments.llm.train_with_trl --model folder --pairs pairs.jsonl --loss simpo
    python -m experiments.llm.train_with_trl --model folder --pairs pairs.jsonl \\
        --loss runs/evolve/objective --out runs/trl

``pairs.jsonl`` has a JSON object a line with prompt, chosen and rejected, as TRL takes them. The
loss is whatever ``torchmpo.resolve`` takes; its hyper-parameters are ``--loss_args '{"beta": 2}'``.
TRL 1.x is needed: ``pip install 'trl>=1,<2' peft``.
"""

import argparse
import json

from torchmpo.adapters import trl_trainer


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--pairs", required=True, help="JSON lines: prompt, chosen, rejected")
    parser.add_argument("--loss", default="simpo", help="what torchmpo.resolve takes")
    parser.add_argument("--loss_args", type=json.loads, default={}, help="JSON")
    parser.add_argument("--out", default="runs/trl")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--max_steps", type=int, default=-1, help="-1: one epoch")
    parser.add_argument("--lora", action="store_true", help="adapters only")
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args(argv)

    # The loss first: a misspelt one should not have to wait for a model.
    trainer_class = trl_trainer(args.loss, **args.loss_args)

    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import DPOConfig

    with open(args.pairs, encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file if line.strip()]
    trainer = trainer_class(
        args.model,
        args=DPOConfig(
            output_dir=args.out,
            learning_rate=args.lr,
            per_device_train_batch_size=args.batch_size,
            max_steps=args.max_steps,
            num_train_epochs=1,
            logging_steps=1,
            report_to="none",
            use_cpu=args.cpu,
            bf16=not args.cpu,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
        if args.lora
        else None,
    )
    trainer.train()
    trainer.save_model(args.out)
    return trainer


if __name__ == "__main__":
    main()
