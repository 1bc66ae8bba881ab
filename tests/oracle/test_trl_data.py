"""What TRL 0.24 makes of a pair against ours, token by token; and where they differ, and why.

What TRL trains on is computed by TRL: ``DPOTrainer._prepare_dataset`` makes columns of tokens, its
collator a batch, and ``concatenated_forward`` puts prompt and answer together and truncates. A
model that only remembers what it is given sees the tokens; which of them count shows in the sum of
the log-probabilities, as those are random numbers.
"""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl_methods import dpo_trainer

from torchmpo.finetune.pairs import load_pairs
from torchmpo.finetune.tokenize import PairDataset, collate

# Each is the name of a test below.
DISAGREEMENTS = {
    "bos_of_text": "TRL puts no BOS before plain text, even if the tokenizer does. Ours does then",
    "bos_cut": "with max_prompt_length, TRL cuts BOS with the prompt's start. Ours stays",
    "eos_after_a_line_feed": (
        "TRL appends EOS to whatever the template wrote: <eos>\\n<eos> after a ChatML turn. "
        "Ours ends at the template's own"
    ),
    "eos_doubled": "TRL appends EOS to answers that end with one. Ours does not",
    "merging": (
        "TRL tokenizes prompt and answers apart; ours takes the tokens of the whole text, and ends "
        "the prompt where both answers' tokens have not parted from it"
    ),
    "keep_end": (
        "TRL cuts each side's start by itself, so that the two answers follow different prompts, "
        "or none. Ours cuts one prompt for both, and keeps BOS"
    ),
    "keep_start_empty": (
        "under keep_start, TRL leaves an empty answer where the prompt fills max_length. Ours says "
        "so"
    ),
    "implicit_prompt_of_text": (
        "TRL ends the prompt of two texts at their first different letter, within a word if need "
        "be. Ours ends it at a turn"
    ),
    "prompt_repeated": (
        "where answers repeat a prompt that is a column of its own, TRL puts it twice. Ours does "
        "not"
    ),
}

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHATML = TEMPLATE.replace("{{ bos_token }}", "").replace("{{ eos_token }}", "{{ eos_token }}\n")
GEMMA = TEMPLATE.replace("{{ eos_token }}", "<|end|>\n")
BOS, EOS = 1, 2
SENTENCES = ["The capital of France is Paris.", "Blue is a colour, and red is one as well."] * 2


def toy_tokenizer(template=TEMPLATE, adds_bos=False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
    )


class Remembering(torch.nn.Module):
    """Keeps what it is given; its logits are random numbers."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, input_ids, attention_mask, **_):
        generator = torch.Generator().manual_seed(0)
        shape = (*input_ids.shape, self.size)
        self.logits = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.input_ids, self.attention_mask = input_ids, attention_mask
        return SimpleNamespace(logits=self.logits.clone())

    def side(self, row, logps):
        """The tokens of a row, and how many at its end have these log-probabilities in sum."""
        size = int(self.attention_mask[row].sum())
        assert self.attention_mask[row, :size].all()  # padding is on the right
        ids = self.input_ids[row, :size]
        own = self.logits[row, : size - 1].log_softmax(-1).gather(-1, ids[1:, None]).squeeze(-1)
        sums = [0.0, *own.flip(0).cumsum(0).tolist()]
        (counted,) = [n for n, total in enumerate(sums) if abs(total - logps) < 1e-6]
        return ids.tolist(), counted


def trl_tokens(
    rows, tokenizer, tmp_path, *, max_length=None, max_prompt_length=None, mode="keep_end"
):
    """For each row, both sides: (tokens, how many at the end count)."""
    args = DPOConfig(
        output_dir=str(tmp_path), max_prompt_length=max_prompt_length, report_to=[], bf16=False
    )
    trainer = dpo_trainer(
        "sigmoid",
        is_vision_model=False,
        pad_token_id=tokenizer.pad_token_id,
        max_length=max_length,
        truncation_mode=mode,
        label_pad_token_id=-100,
    )
    data = trainer._prepare_dataset(Dataset.from_list(rows), tokenizer, args, "toy")
    model = Remembering(len(tokenizer))
    found = []
    for row in data:
        batch = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)([row])
        out = trainer.concatenated_forward(model, batch)
        names = ("chosen_logps", "rejected_logps")
        found.append(tuple(model.side(row, out[name].item()) for row, name in enumerate(names)))
    return found


def our_tokens(rows, tokenizer, *, max_length=10**6, max_prompt_length=None, mode="keep_end"):
    dataset = PairDataset(load_pairs(rows), tokenizer, max_length, mode, max_prompt_length)
    found = []
    for i in range(len(dataset)):
        batch = collate([dataset[i]], tokenizer.pad_token_id)
        sides = []
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"]):
            counted = labels != -100
            start, size = int(counted.int().argmax()), int(mask.sum())
            assert counted[start:size].all()  # one run, to the end
            assert int(counted.sum()) == size - start
            sides.append((ids[:size].tolist(), size - start))
        found.append(tuple(sides))
    return found


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


STRINGS = [
    {"prompt": "What is the capital?", "chosen": " Paris.", "rejected": " I do not know."},
    {"prompt": "The colour:", "chosen": " Blue is a colour\n", "rejected": " red"},
    {"prompt": "A longer prompt, which is cut before others are.", "chosen": " é", "rejected": "…"},
]
MESSAGES = [
    {
        "prompt": [{"role": "system", "content": "Be kind."}, user("What is the capital?")],
        "chosen": [assistant("Paris.")],
        "rejected": [assistant("I do not know.")],
    },
    {
        "prompt": [user("Hi"), assistant("Yes?"), user("The colour?")],
        "chosen": [assistant("Blue"), user("Sure?"), assistant("One is.")],
        "rejected": [assistant("red, and one as well")],
    },
]
IMPLICIT = [
    {
        "chosen": row["prompt"] + row["chosen"],
        "rejected": row["prompt"] + row["rejected"],
    }
    for row in MESSAGES
]


def same_tokens(rows, tokenizer, tmp_path, **settings):
    ours = our_tokens(rows, tokenizer, **settings)
    trls = trl_tokens(rows, tokenizer, tmp_path, **settings)
    assert len(ours) == len(rows)
    assert ours == trls


def test_text(tmp_path):
    same_tokens(STRINGS, toy_tokenizer(), tmp_path)


@pytest.mark.parametrize("template", [GEMMA, TEMPLATE.replace("{{ eos_token }}", "")])
@pytest.mark.parametrize("rows", [MESSAGES, IMPLICIT])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_conversations(rows, template, adds_bos, tmp_path):
    same_tokens(rows, toy_tokenizer(template, adds_bos), tmp_path)


@pytest.mark.parametrize("length", [2, 5, 20])
def test_prompts_cut(length, tmp_path):
    tokenizer = toy_tokenizer(GEMMA.replace("{{ bos_token }}", ""))
    same_tokens(STRINGS, tokenizer, tmp_path, max_prompt_length=length)
    same_tokens(MESSAGES, tokenizer, tmp_path, max_prompt_length=length)


@pytest.mark.parametrize("rows", [STRINGS, MESSAGES])
@pytest.mark.parametrize("more", [1, 3, 10])
def test_keep_start(rows, more, tmp_path):
    tokenizer = toy_tokenizer(GEMMA)
    for row in rows:
        (ids, counted), _ = our_tokens([row], tokenizer)[0]
        length = len(ids) - counted + more
        if sides := our_tokens([row], tokenizer, max_length=length, mode="keep_start"):
            assert sides == trl_tokens(
                [row], tokenizer, tmp_path, max_length=length, mode="keep_start"
            )


def test_keep_end_of_answers_of_the_same_length(tmp_path):
    tokenizer = toy_tokenizer(GEMMA.replace("{{ bos_token }}", ""))
    row = {"prompt": "What is the capital of France", "chosen": " xyz", "rejected": " qwv"}
    assert len({len(ids) for ids, _ in our_tokens([row], tokenizer)[0]}) == 1
    same_tokens([row], tokenizer, tmp_path, max_length=8)


# Where they differ


def both(rows, tokenizer, tmp_path, **settings):
    """The first row's tokens, ours and TRL's."""
    ours = our_tokens(rows, tokenizer, **settings)[0]
    return ours, trl_tokens(rows, tokenizer, tmp_path, **settings)[0]


def test_bos_of_text(tmp_path):
    tokenizer = toy_tokenizer(adds_bos=True)
    for ours, trls in zip(our_tokens(STRINGS, tokenizer), trl_tokens(STRINGS, tokenizer, tmp_path)):
        assert ours == tuple(([BOS, *ids], counted) for ids, counted in trls)


def test_bos_cut(tmp_path):
    ours, trls = both(MESSAGES, toy_tokenizer(GEMMA), tmp_path, max_prompt_length=5)
    for (own, counted), (other, same) in zip(ours, trls):
        assert counted == same
        assert own[0] == BOS
        assert BOS not in other
        assert own[1:] == other[1:]  # in both, five tokens before the answer


def test_eos_after_a_line_feed(tmp_path):
    tokenizer = toy_tokenizer(CHATML)
    ours, trls = both(MESSAGES, tokenizer, tmp_path)
    for (own, counted), (other, more) in zip(ours, trls):
        assert tokenizer.decode(other).endswith(".</s>\n</s>")
        assert tokenizer.decode(own).endswith(".</s>")
        assert own == other[:-2]
        assert counted == more - 2


def test_eos_doubled(tmp_path):
    text = [{"prompt": "p", "chosen": " a</s>", "rejected": " b</s>"}]
    for rows in (MESSAGES, text):
        ours, trls = both(rows, toy_tokenizer(), tmp_path)
        for (own, counted), (other, more) in zip(ours, trls):
            assert other[-2:] == [EOS, EOS]
            assert own == other[:-1]
            assert counted == more - 1


def test_merging(tmp_path):
    tokenizer = toy_tokenizer()
    rows = [{"prompt": "The cap", "chosen": "ital", "rejected": "s"}]
    ours, trls = both(rows, tokenizer, tmp_path)
    whole = [tokenizer(f"The cap{end}")["input_ids"] for end in ("ital", "s")]
    apart = [tokenizer("The cap")["input_ids"] + tokenizer(e)["input_ids"] for e in ("ital", "s")]
    assert [ids[:-1] for ids, _ in ours] == whole
    assert [ids[:-1] for ids, _ in trls] == apart
    assert whole != apart
    # Ours: the same tokens before both answers, which then are the same text in TRL's.
    starts = [ids[: len(ids) - counted] for ids, counted in ours]
    assert starts[0] == starts[1]
    assert [tokenizer.decode(a) for a, _ in ours] == [tokenizer.decode(b) for b, _ in trls]


def test_keep_end(tmp_path):
    tokenizer = toy_tokenizer()
    row = {
        "prompt": "What is the capital of France, pray tell?",
        "chosen": " x y z",
        "rejected": " w",
    }
    ours, trls = both([row], tokenizer, tmp_path, max_length=12)
    assert [len(ids) for ids, _ in trls] == [12, 12]
    prompts = [[ids[: len(ids) - n] for ids, n in side] for side in (ours, trls)]
    assert prompts[0][0] == prompts[0][1]
    assert prompts[1][0] != prompts[1][1]
    assert ours[0] == trls[0]  # the longer answer's side
    # An answer that is too long by itself is left without any prompt.
    ours, trls = both([row], tokenizer, tmp_path, max_length=4)
    assert trls[0][1] == 3  # four tokens of an answer, the first of which nothing predicts
    assert len(trls[0][0]) == 4
    assert ours[0] == (tokenizer(row["prompt"])["input_ids"][-1:] + trls[0][0][1:], 3)


def test_keep_start_empty(tmp_path):
    tokenizer = toy_tokenizer()
    row, length = STRINGS[2], 10
    (_, chosen), (_, rejected) = trl_tokens(
        [row], tokenizer, tmp_path, max_length=length, mode="keep_start"
    )[0]
    assert (chosen, rejected) == (0, 0)
    with pytest.raises(ValueError, match="no room for an answer"):
        our_tokens([row], tokenizer, max_length=length, mode="keep_start")


def test_implicit_prompt_of_text(tmp_path):
    tokenizer = toy_tokenizer()
    start = "\n\nHuman: Which colour?\n\nAssistant:"
    row = {"chosen": f"{start} red, I say", "rejected": f"{start} real"}
    answers = [
        [tokenizer.decode(ids[len(ids) - n :]) for ids, n in sides]
        for sides in both([row], tokenizer, tmp_path)
    ]
    assert answers == [[" red, I say</s>", " real</s>"], ["d, I say</s>", "al</s>"]]


def test_prompt_repeated(tmp_path):
    tokenizer = toy_tokenizer(GEMMA)
    row = MESSAGES[0] | IMPLICIT[0]
    ours, trls = both([row], tokenizer, tmp_path)
    assert ours == our_tokens(MESSAGES[:1], tokenizer)[0]
    assert [tokenizer.decode(ids).count("Be kind.") for ids, _ in ours] == [1, 1]
    assert [tokenizer.decode(ids).count("Be kind.") for ids, _ in trls] == [2, 2]


def test_every_difference_has_its_test():
    assert all(f"test_{name}" in globals() for name in DISAGREEMENTS)
