"""Options of every command, and values that are none."""

import shlex

from attack.case import (
    DIAGNOSE,
    EVOLVE,
    EXPORT,
    FIT,
    GENERATE,
    INSPECT,
    WINRATE,
    Case,
)

OPTIONS = {
    EVOLVE: {
        "population": "5 0 -2 nan 1e9 many [] null 1000000000",
        "generations": "0 -1 nan 2000000 x null",
        "episodes": "0 -1 100000 x",
        "sigma": "0 -1 nan inf 1e400 x null",
        "sigma_decay": "0 -1 nan inf",
        "outer_learning_rate": "0 -1 nan inf",
        "learning_rate": "0 -1 nan inf x",
        "pairs": "0 1 -1 x 100000000000",
        "episode_steps": "0 -1 x 100000000",
        "behaviour_std": "0 -1 nan inf",
        "policy_std": "0 -1 nan inf",
        "epochs": "0 -1 100000000",
        "sft_epochs": "-1 100000000",
        "minibatch_pairs": "0 -1 100",
        "max_grad_norm": "0 -1 nan",
        "precision": "16 32 ''",
        "steps_per_trajectory": "0 -1 x",
        "chunk_size": "0 -1 x",
        "num_threads": "-1 99999 x",
        "num_actors": "-1 99999",
        "seed": "x null 1.5 10000000000000000000000000",
        "task": "tlaa '' null",
        "data": "'' noizy:0.3 noisy noisy:2 noisy:nan noisy:-1 graded:1-0 base,base+ , "
        "missing.npz text.txt "
        "pairs.safetensors+votes:1000000000 noisy:1e-400 graded:nan-1 best_of:0 best_of:1000000000",
        "space": "networks '' hyper",
        "steps": "three",
        "learn": "[ps] [] x",
        "optimizer": "adam ''",
        "warm_start": "simpo nowhere e d empty own:nothing broken_syntax:loss",
        "rivals": "'' , nope sft+ own:nothing own:recursive own:attribute own:division "
        "own:leaves own:key "
        "own:wrong_shape own:number own:keeps own:unknown own:not_callable own: :loss a.b.c:d "
        "broken_syntax:loss broken_raises:loss broken_attribute:loss broken_imports:loss "
        "broken_leaves:loss "
        "broken_deep:loss broken_surrogate:loss broken_nul:loss 0*sft 1e400*sft nan*sft "
        "e/objective d trl:nope "
        "dpo@nope simpo@js ../x:y",
        "rival_trials": "0 -1 1000000000",
        "tuning_seeds": "0 1000000000",
        "tuning_reduction": "0 -1",
        "final_seeds": "1 0 1000000000",
        "held_out_every": "-1",
        "held_out_seeds": "0 1000000000",
        "final_episodes": "0 1000000000",
        "combine": "max",
        "streams": "own",
        "fitness_shaping": "x",
        "ray_address": "nowhere 1.2.3.4 x:y",
        "cache_dir": "text.txt text.txt/below /proc/nowhere",
        "out": "e d text.txt text.txt/below /proc/nowhere base ''",
        "config": "'' nothing.yaml empty base/model.safetensors pairs.safetensors prompts.json "
        "text.txt",
        "preset": "smok '' null",
        "trials": "5",
        "wandb": "''",
    },
    DIAGNOSE: {
        "losses": "'' , nope sft+nope own:nothing own:recursive own:attribute own:division "
        "own:leaves own:key "
        "own:wrong_shape own:number own:keeps own:unknown own:not_callable own: broken_syntax:loss "
        "broken_raises:loss broken_attribute:loss broken_imports:loss broken_leaves:loss "
        "broken_deep:loss "
        "broken_surrogate:loss broken_nul:loss nan*sft d e/checkpoints empty text.txt own.py",
        "data": "'' noizy noisy:nan base,base missing.npz text.txt empty own.py mine.json",
        "seeds": "0 -1 1000000000 x",
        "trials": "0 1000000000 nan",
        "tuning_seeds": "0 1000000000",
        "tuning_episodes": "0 1000000000",
        "episodes": "0 1000000000",
        "learning_rate": "0 nan -1",
        "grid": "nothing.yaml text.txt empty base/model.safetensors grid.yaml",
        "num_threads": "-1 99999",
        "chunk_size": "0",
        "compile": "maybe",
        "cache_dir": "text.txt",
        "out": "d e text.txt",
        "config": "'' nothing.yaml empty pairs.safetensors",
    },
    "show": {
        "": "'' nope own:nothing own:recursive own:division own:leaves own:unknown own:number "
        "broken_syntax:loss "
        "broken_leaves:loss broken_deep:loss d empty text.txt e/checkpoints base f aot_unpaired "
        "'[' '\\0'",
        "beside": "'orpo --beside nope' 'orpo --beside ,' 'orpo --beside own:division'",
        "low": "'orpo --low nan' 'orpo --low 1 --high 0' 'orpo --high inf' 'orpo --low -1e400' "
        "'orpo --low x'",
        "out": "'orpo --out text.txt' 'orpo --out text.txt/below' 'orpo --out /proc/nowhere'",
        "visit": "'orpo --visit' 'o --visit'",
        "distill": "'aot --distill' 'own:division --distill'",
    },
    GENERATE: {
        "model": "nowhere empty text.txt f d base/config.json '' own.py",
        "prompts": "nothing.json empty text.txt base/model.safetensors own.py fit.yaml ''",
        "format": "chatty",
        "max_new_tokens": "0 -1 x 1000000000",
        "temperature": "-1 nan inf x",
        "top_p": "0 -1 2 nan",
        "batch_size": "0 -1 x",
        "seed": "x 1.5",
        "dtype": "float99 int8 ''",
        "device": "gpu cuda:99 '' meta:x tpu",
        "chat_template_kwargs": "x 3 [1] '{1: 2}' '{messages: 3}' '{add_generation_prompt: 3}' "
        "'{tokenize: x}'",
        "endpoint": "x http:// http://127.0.0.1:1/v1 ftp://x file:///etc/passwd",
        "timeout": "0 -1 nan",
        "out": "g text.txt f",
        "name": "''",
    },
    WINRATE: {
        "outputs": "nothing.json text.txt empty base/model.safetensors pairs.jsonl prompts.json "
        "own.py",
        "reference": "nothing.json text.txt empty prompts.json",
        "judge": "'' own:nothing own:raises own:few own:beyond own:not_a_number own:exits "
        "own:not_callable "
        "broken_syntax:judge broken_raises:judge broken_leaves:judge broken_deep:judge "
        "broken_surrogate:judge "
        "mine.json text.txt base nowhere empty prompts.json own: 'own:endless --timeout 0.5'",
        "glm": "x length_controlled_v1",
        "gamed": "nothing.csv own.py",
        "empty": "x",
        "both_orders": "maybe",
        "batch_size": "0 -1",
        "timeout": "0 -1 nan x",
        "endpoint": "x http://127.0.0.1:1/v1",
        "template": "nothing.txt",
        "out": "w text.txt",
    },
    FIT: {
        "model.model": "nowhere empty text.txt f d ''",
        "model.loss": "nope '' own:nothing own:recursive own:attribute own:division own:leaves "
        "own:key own:wrong_shape "
        "own:number own:unknown own:not_callable broken_syntax:loss broken_raises:loss "
        "broken_attribute:loss "
        "broken_leaves:loss broken_deep:loss broken_nul:loss d empty aot nan*dpo",
        "model.loss_args": "x '{beta: nan}' '{beta: -1}' '{nope: 1}' '{beta: x}' '{beta: [1]}' [1]",
        "model.lr": "nan -1 inf x 0",
        "model.lora.r": "0 -1 1000000000 x",
        "model.lora.alpha": "x nan",
        "model.lora.dropout": "2 -1 nan",
        "model.lora.targets": "q_prj '' '['",
        "model.reference": "nowhere cache '' empty",
        "model.chunk_size": "0 -1 x",
        "model.dtype": "float99 ''",
        "model.warmup": "-1 nan 2",
        "model.weight_decay": "-1 nan",
        "model.max_grad_norm": "-1 nan",
        "data.train": "nothing.jsonl text.txt empty own.py base/model.safetensors prompts.json ''",
        "data.validation": "nothing.jsonl 0 1.5 -1 nan",
        "data.batch_size": "0 -1 100 x",
        "data.num_workers": "-1 x 1000000000",
        "data.max_length": "0 1 -1 2",
        "data.seed": "x",
        "trainer.devices": "99 0 -2 x [] [99]",
        "trainer.accelerator": "gpu tpu x",
        "trainer.max_steps": "x -7 nan",
        "trainer.max_epochs": "-7 x",
        "trainer.accumulate_grad_batches": "0 -1 x 100",
        "trainer.precision": "x 17 64-bit",
        "trainer.strategy": "x",
        "trainer.gradient_clip_val": "nan x",
        "trainer.limit_train_batches": "-1 2.5",
        "trainer.num_nodes": "0 -1",
        "trainer.val_check_interval": "-1 x",
        "seed_everything": "x -1 99999999999999999999",
        "checkpoint_every": "0 -1 x",
        "out": "f text.txt base /proc/nowhere",
        "config": "'' nothing.yaml empty base/model.safetensors pairs.jsonl text.txt",
        "keep_best": "maybe",
        "nothing": "3",
    },
    INSPECT: {"index": "-1 99 x", "split": "x validation"},
    EXPORT: {
        "adapter": "nowhere base empty text.txt ''",
        "dtype": "float99 int8",
        "out": "text.txt/below f base /proc/nowhere",
        "ckpt": "f/last.ckpt",
    },
}
# Values that are as good as others, in the tables above.
FINE = {
    "evolve --seed 10000000000000000000000000",
    "evolve --data noisy:1e-400",
    "evolve --rivals '0*sft'",
    "diagnose --data base,base",
    "generate --device ''",
    "generate --name ''",
    "winrate --template nothing.txt",
}


def of_options() -> list[Case]:

    cases = []
    for words, options in OPTIONS.items():
        who = " ".join(words.split()[: 2 if words.startswith("finetune") else 1])
        for option, values in options.items():
            for value in shlex.split(values):
                given = shlex.quote(value) if who != "show" else value or "''"
                flag = f" --{option}" if option and who != "show" else ""
                name = f"{who}{flag} {given}" if who != "show" else f"show {given}"
                right = "accepted" if name in FINE else "refused"
                seconds = 180 if "127.0.0.1" in given else 60  # it is tried again a few times
                cases.append(Case(name, f"{words}{flag} {given}", None, right, seconds=seconds))
    return cases
