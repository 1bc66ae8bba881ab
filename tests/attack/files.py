"""Files that are damaged: as a whole, and place by place."""

from attack.case import (
    DIAGNOSE,
    EVOLVE,
    EXPORT,
    GENERATE,
    GO_ON,
    INSPECT,
    OF_ADAPTER,
    RESUME,
    VALIDATE,
    WINRATE,
    Case,
    hash_of,
)
from attack.damage import (
    LITTLE,
    VALUES,
    WHOLE,
    at,
    folder_at,
    removed,
    spoiled,
    twice,
)

# The path, the command that reads it, and what is right where it is damaged as a whole.
CELLS = ("d/cells/sft__base.json", "d/cells/orpo__base.json")
FILES = [
    *((path, RESUME["d"], "refused") for path in (*CELLS, "d/anchors.json", "d/statistics.json")),
    ("d/made_of.json", RESUME["d"], "refused"),
    ("d/machines.json", RESUME["d"], "either"),
    ("d/config.yaml", RESUME["d"], "refused"),
    *(
        (f"e/{name}.json", RESUME["e"], "refused")
        for name in ("rivals", "comparison", "learning_rate", "made_of")
    ),
    ("e/machines.json", RESUME["e"], "either"),
    ("e/config.yaml", RESUME["e"], "refused"),
    ("e/checkpoints/000003.safetensors", RESUME["e"], "accepted"),
    ("e/objective/objective.safetensors", "show e", "refused"),
    ("e/objective/card.json", "show e", "refused"),
    ("o/objective.json", "show o", "refused"),
    ("o/card.json", "show o", "refused"),
    ("pairs.safetensors", DIAGNOSE.replace("base", "pairs.safetensors"), "refused"),
    ("settings.yaml", f"{EVOLVE} --config settings.yaml", "refused"),
    ("grid.yaml", DIAGNOSE.replace("sft", "orpo") + " --grid grid.yaml", "refused"),
    ("f/last.ckpt", GO_ON, "refused"),
    ("f/last.ckpt", VALIDATE, "refused"),
    ("f/adapter/adapter_config.json", EXPORT, "refused"),
    ("f/adapter/adapter_model.safetensors", EXPORT, "refused"),
    ("f/adapter/tokenizer.json", OF_ADAPTER, "refused"),
    ("f/adapter/tokenizer_config.json", OF_ADAPTER, "either"),
    ("fit.yaml", INSPECT, "refused"),
    ("pairs.jsonl", INSPECT, "refused"),
    ("base/config.json", GENERATE, "refused"),
    ("base/model.safetensors", GENERATE, "refused"),
    ("base/tokenizer.json", GENERATE, "refused"),
    ("base/tokenizer_config.json", GENERATE, "either"),
    ("base/generation_config.json", GENERATE, "either"),
    ("base/chat_template.jinja", GENERATE, "either"),
    ("prompts.json", GENERATE, "refused"),
    ("g/outputs.json", RESUME["g"], "refused"),
    ("p/partial.json", RESUME["p"], "refused"),
    ("g/config.yaml", RESUME["g"], "refused"),
    ("mine.json", WINRATE, "refused"),
    ("theirs.json", WINRATE, "refused"),
    ("w/annotations.json", RESUME["w"], "refused"),
    ("w/annotations.json", "winrate --judge w/annotations.json --out new", "refused"),
    ("w/config.yaml", RESUME["w"], "refused"),
]
# Damage that is none: nothing has been answered yet, or nothing is asked.
HARMLESS = {
    ("p/partial.json", "list"),
    ("g/outputs.json", "list"),
    ("o/card.json", "object"),
    ("e/objective/card.json", "object"),
    ("settings.yaml", "object"),
    ("grid.yaml", "object"),
}
# What every file is put to; of the other ways, each file is put to a quarter.
ALWAYS = ("empty", "half", "pickle", "deep", "list of lists")
# Files of other programs, which take a key that is there twice as they like.
THEIRS = ("prompts", "mine", "theirs", "outputs", "partial", "annotations", "base/", "f/")


def of_files() -> list[Case]:
    """Files that are something else, folders, or gone."""
    cases = []
    for path, words, right in FILES:
        who = " ".join(words.split()[:2]).replace(" --resume", "").replace(" --losses", "")
        # A checkpoint that is damaged is passed over for the one before.
        same = ("e/comparison.json", "e/log.csv") if "checkpoints" in path else ()
        ways = [how for how in WHOLE if how in ALWAYS or hash_of(path + how) % 4 == 0]
        for how in ways:
            wanted = "accepted" if (path, how) in HARMLESS else right
            damage = spoiled(path, how)
            name = f"{who}: {path} is {how}"
            cases.append(Case(name, words, damage, wanted, same=same))
        more = {"is a folder": (folder_at(path), right), "is gone": (removed(path), "either")}
        if same:
            del more["is a folder"]  # nothing that a user would do
        if (
            path.endswith(".json")
            and right == "refused"
            and not any(name in path for name in THEIRS)
        ):
            more["has a key twice"] = (twice(path), right)
        for what, (damage, wanted) in more.items():
            cases.append(Case(f"{who}: {path} {what}", words, damage, wanted))
    return cases


# Places in JSON files, and the command that reads each file.
PLACES = {
    **dict.fromkeys(
        CELLS,
        (
            RESUME["d"],
            "loss task data grid grid/0 grid/0/learning_rate tuning tuning/0 tuning/0/0 "
            "best returns returns/0 returns/0/0 curves curves/epoch curves/chosen curves/chosen/0 "
            "curves/chosen/0/0 margins margins/0 margins/0/0 seconds made_of made_of/pool "
            "made_of/source",
        ),
    ),
    "d/anchors.json": (RESUME["d"], "original original/0 target target/3"),
    "d/statistics.json": (
        RESUME["d"],
        "edges edges/return edges/return/0 edges/margin kinds "
        "kinds/base kinds/base/pairs kinds/base/margin kinds/base/margin/mean kinds/base/agents",
    ),
    "d/made_of.json": (RESUME["d"], "settings settings/seed settings/task losses"),
    "e/rivals.json": (
        RESUME["e"],
        "sft sft/setting sft/setting/learning_rate sft/score_in_tuning sft/trials",
    ),
    "e/comparison.json": (
        RESUME["e"],
        "mean_return_by_seed mean_return_by_seed/discovered "
        "mean_return_by_seed/discovered/0 objectives differences",
    ),
    "e/learning_rate.json": (RESUME["e"], "learning_rate score_in_tuning trials"),
    "e/made_of.json": (RESUME["e"], "settings settings/seed settings/population losses"),
    "e/objective/card.json": ("show e", "name"),
    "o/objective.json": ("show o", "loss hyper hyper/beta hyper/target_margin"),
    "f/adapter/adapter_config.json": (
        EXPORT,
        "base_model_name_or_path peft_type r target_modules "
        "lora_alpha task_type bias rank_pattern revision modules_to_save lora_dropout use_dora",
    ),
    "base/config.json": (
        GENERATE,
        "model_type vocab_size hidden_size num_hidden_layers "
        "num_attention_heads num_key_value_heads head_dim hidden_act rms_norm_eps rope_parameters "
        "max_position_embeddings tie_word_embeddings architectures dtype eos_token_id "
        "intermediate_size",
    ),
    "base/tokenizer_config.json": (
        GENERATE,
        "eos_token bos_token pad_token tokenizer_class model_max_length",
    ),
    "base/generation_config.json": (GENERATE, "eos_token_id pad_token_id use_cache"),
    "prompts.json": (GENERATE, "0 0/instruction"),
    "g/outputs.json": (RESUME["g"], "0 0/instruction 0/output 0/finish_reason"),
    "p/partial.json": (RESUME["p"], "0 0/row 0/instruction 0/text 0/finish_reason"),
    "mine.json": (WINRATE, "0 0/instruction 0/output 0/generator"),
    "w/annotations.json": (
        RESUME["w"],
        "0 0/instruction 0/output_1 0/generator_2 0/preference 0/annotator",
    ),
}


def of_places() -> list[Case]:
    """Other values in JSON files, of which many are as good as those they replace."""
    cases = []
    for path, (words, places) in PLACES.items():
        for place in places.split():
            for how in (*VALUES, "gone"):
                if hash_of(path + place + how) % (4 if how in (*LITTLE, "gone") else 8):
                    continue  # a quarter of these, an eighth of those
                value = removed if how == "gone" else VALUES[how]
                name = f"{words.split()[0]}: {path} {place} is {how}"
                cases.append(Case(name, words, at(path, place, value), "either"))
    return cases
