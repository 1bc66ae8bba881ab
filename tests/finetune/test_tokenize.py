from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("transformers")

from tiny_llm import tiny_pairs, tiny_tokenizer
from tokenizers import processors

from torchmpo.finetune.inspect import show_pair
from torchmpo.finetune.pairs import Message, Pair, load_pairs
from torchmpo.finetune.tokenize import (
    PairDataset,
    TokenCounts,
    collate,
    encode_prompt,
    tokenize_pair,
)
from torchmpo.runs.errors import UserError

BOS, EOS = 1, 2
# As SmolLM2 and Qwen write a conversation: a line feed after each EOS; as Gemma does, which ends
# turns by a token other than EOS; and with neither BOS nor EOS.
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|system|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BARE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TINY = tiny_tokenizer().chat_template
CHAT = Pair(
    (Message("user", "Name a colour."),),
    (Message("assistant", "Blue."),),
    (Message("assistant", "I do not know."),),
)
TEXT = Pair("Name a colour.", " Blue.", " I do not know.")


def adding_bos(tokenizer):
    """As Llama's and Gemma's: BOS before whatever text is given, templates' text included."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    assert tokenizer("a")["input_ids"][0] == BOS
    return tokenizer


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def tokens(pair, tokenizer, max_length=1000, *args, **kwargs):
    found = tokenize_pair(pair, tokenizer, max_length, *args, **kwargs)
    assert found is not None
    return found.prompt.tolist(), found.chosen.tolist(), found.rejected.tolist()


def test_text():
    tokenizer = tiny_tokenizer()
    prompt, chosen, rejected = tokens(TEXT, tokenizer)
    assert prompt == ids(tokenizer, "Name a colour.")
    assert chosen == [*ids(tokenizer, " Blue."), EOS]
    assert rejected == [*ids(tokenizer, " I do not know."), EOS]


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(
    ("template", "bos", "end"),
    [(TINY, True, ""), (CHATML, False, ""), (GEMMA, True, "<|system|>\n"), (BARE, False, "")],
)
def test_one_bos_and_one_eos_whatever_the_template_writes(template, bos, end, adds):
    tokenizer = adding_bos(tiny_tokenizer()) if adds else tiny_tokenizer()
    tokenizer.chat_template = template
    prompt, chosen, rejected = tokens(CHAT, tokenizer)
    text = tokenizer.decode(prompt)
    assert text.startswith("<s><|user|>" if bos or adds else "<|user|>")
    assert text.endswith("<|assistant|>")
    assert prompt.count(BOS) == (bos or adds)
    assert tokenizer.decode(chosen) == f"Blue.{end}</s>"
    assert tokenizer.decode(rejected) == f"I do not know.{end}</s>"


@pytest.mark.parametrize("adds", [False, True])
def test_bos_and_eos_that_a_text_spells_are_not_doubled(adds):
    tokenizer = adding_bos(tiny_tokenizer()) if adds else tiny_tokenizer()
    pair = Pair("<s><s>Name a colour.", " Blue.</s>", " I do not know.</s>\n</s> \n")
    prompt, chosen, rejected = tokens(pair, tokenizer)
    assert prompt == [BOS, *ids(tokenizer, "Name a colour.")]
    assert chosen == [*ids(tokenizer, " Blue."), EOS]
    assert rejected == [*ids(tokenizer, " I do not know."), EOS]
    assert prompt == encode_prompt(pair.prompt, tokenizer)


def test_eos_that_the_tokenizer_adds_does_not_end_the_prompt():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    for pair in (TEXT, CHAT):
        prompt, chosen, _ = tokens(pair, tokenizer)
        assert prompt.count(BOS) == 1
        assert prompt[-1] != EOS
        assert chosen.count(EOS) == 1
        assert prompt == encode_prompt(pair.prompt, tokenizer)


def test_what_follows_an_inner_eos_stays():
    tokenizer = tiny_tokenizer()
    _, chosen, rejected = tokens(Pair("p", " a</s> b\n", " a\n"), tokenizer)
    assert tokenizer.decode(chosen) == " a</s> b\n</s>"
    assert tokenizer.decode(rejected) == " a\n</s>"  # the answer's own


def test_an_answer_without_text_is_its_eos():
    tokenizer = tiny_tokenizer()
    assert tokens(Pair("p", "", " b"), tokenizer)[1] == [EOS]
    assert tokens(Pair("p", "</s>", " b"), tokenizer)[1] == [EOS]


@pytest.mark.parametrize("ends", [("ance", "og"), ("og", "ance")])
def test_a_prompt_that_merges_with_one_answer_ends_earlier_for_both(ends):
    tokenizer = tiny_tokenizer()
    assert len(ids(tokenizer, " France")) == 1  # while " Frog" begins with a token " Fr"
    pair = Pair("the Fr", *ends)
    found = tokenize_pair(pair, tokenizer, 100)
    assert found is not None
    assert found.merged
    # The same tokens as those of the whole texts, and the same text before both answers.
    for side, end in zip((found.chosen, found.rejected), ends):
        assert [*found.prompt.tolist(), *side.tolist()] == [*ids(tokenizer, f"the Fr{end}"), EOS]
        assert tokenizer.decode(side) == f" Fr{end}</s>"
    assert not tokenize_pair(TEXT, tokenizer, 100).merged


def test_a_template_that_writes_the_opened_turn_otherwise():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = BARE.replace("<|assistant|>{% endif %}", "<|assistant|>Go{% endif %}")
    found = tokenize_pair(CHAT, tokenizer, 100)
    assert found.merged
    assert tokenizer.decode(found.prompt).endswith("<|assistant|>")
    assert tokenizer.decode(found.chosen) == "Blue.</s>"


def test_later_turns_of_an_answer_count():
    tokenizer = tiny_tokenizer()
    more = (*CHAT.chosen, Message("user", "No."), Message("assistant", "red"))
    _, chosen, _ = tokens(replace(CHAT, chosen=more), tokenizer)
    assert tokenizer.decode(chosen) == "Blue.</s><|user|>No.</s><|assistant|>red</s>"


def test_training_and_generating_put_the_same_prompt():
    tokenizer = adding_bos(tiny_tokenizer())
    for pair in (TEXT, CHAT):
        assert encode_prompt(pair.prompt, tokenizer) == tokens(pair, tokenizer)[0]


# Length, by letters


class Letters:
    """A token per letter."""

    bos_token_id, eos_token_id, chat_template = 1, 2, None

    def __init__(self, bos=True):
        self.bos = bos

    def __call__(self, texts, add_special_tokens=True, verbose=True):
        if isinstance(texts, str):
            start = [BOS] * (self.bos and add_special_tokens)
            return {"input_ids": [*start, *texts.encode()]}
        return {"input_ids": [self(text, add_special_tokens)["input_ids"] for text in texts]}

    def decode(self, tokens, skip_special_tokens=False):
        return bytes(tokens).decode()


PAIR = Pair("abcdef", "ghij", "kl")  # with BOS and EOS: 7 + 5 and 7 + 3 tokens
CUTS = {
    # max_length, truncation, max_prompt_length, bos: prompt, chosen, rejected; ^ is BOS, $ EOS
    (12, "keep_start", None, True): ("^abcdef", "ghij$", "kl$"),
    (11, "keep_start", None, True): ("^abcdef", "ghij", "kl$"),
    (9, "keep_start", None, True): ("^abcdef", "gh", "kl"),
    (8, "keep_start", None, True): ("^abcdef", "g", "k"),
    (7, "keep_start", 4, True): ("^def", "ghi", "kl$"),
    (9, "keep_start", 1, True): ("^", "ghij$", "kl$"),
    (9, "keep_start", 2, False): ("ef", "ghij$", "kl$"),
    (11, "keep_end", None, True): ("^bcdef", "ghij$", "kl$"),
    (8, "keep_end", None, True): ("^ef", "ghij$", "kl$"),
    (8, "keep_end", None, False): ("def", "ghij$", "kl$"),
    (6, "keep_end", None, True): ("^", "ghij$", "kl$"),
    (5, "keep_end", None, True): ("^", "hij$", "kl$"),
    (3, "keep_end", None, True): ("^", "j$", "l$"),
    (4, "keep_end", None, False): ("f", "ij$", "kl$"),
    (11, "keep_end", 3, True): ("^ef", "ghij$", "kl$"),
    (12, "drop", None, True): ("^abcdef", "ghij$", "kl$"),
    (12, "drop", 7, True): ("^abcdef", "ghij$", "kl$"),
    (12, "drop", 6, True): None,
    (11, "drop", None, True): None,
}


@pytest.mark.parametrize("case", CUTS)
def test_truncation(case):
    max_length, truncation, max_prompt_length, bos = case
    found = tokenize_pair(PAIR, Letters(bos), max_length, truncation, max_prompt_length)
    if CUTS[case] is None:
        assert found is None
        return
    assert found is not None
    expected = [part.translate({94: BOS, 36: EOS}).encode() for part in CUTS[case]]
    parts = [found.prompt, found.chosen, found.rejected]
    assert [bytes(part.tolist()) for part in parts] == expected
    assert found.prompt_cut == (len(found.prompt) < 6 + bos)
    assert found.answer_cut == (len(found.chosen) < 5 or len(found.rejected) < 3)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("truncation", ["keep_start", "keep_end", "drop"])
def test_no_answer_is_ever_empty_or_too_long(truncation, bos):
    for max_length in range(2, 14):
        for limit in (None, *range(1, 9)):
            arguments = (PAIR, Letters(bos), max_length, truncation, limit)
            if truncation == "keep_start" and min(limit or 9, 6 + bos) >= max_length:
                with pytest.raises(UserError, match="no room for an answer"):
                    tokenize_pair(*arguments)
                continue
            found = tokenize_pair(*arguments)
            if found is None:
                # Two answers that are $ alone, where 2 tokens are kept of the end, teach nothing.
                assert truncation == "drop" or (truncation == "keep_end" and max_length == 2)
                continue
            assert len(found.prompt) >= 1
            assert (found.prompt[0] == BOS) == bos
            for answer in (found.chosen, found.rejected):
                assert 1 <= len(answer) <= max_length - len(found.prompt)


def test_answers_that_become_the_same_are_dropped():
    pair = Pair("ab", "cdef", "cdeg")
    assert tokenize_pair(pair, Letters(), 5) is None
    assert tokenize_pair(pair, Letters(), 7) is not None


ERRORS = {
    "no template": (CHAT, {"chat_template": None}, {}, "no chat template"),
    "the template refuses": (
        replace(CHAT, prompt=(Message("system", "Be kind."), *CHAT.prompt)),
        {"chat_template": GEMMA},
        {},
        "refuses these messages: System role not supported",
    ),
    "no EOS": (TEXT, {"eos_token": None}, {}, "no EOS token"),
    "an empty prompt": (replace(TEXT, prompt=""), {}, {}, "prompt is empty"),
    "truncation": (TEXT, {}, {"truncation": "keepend"}, "did you mean 'keep_end'?"),
    "max_length": (TEXT, {}, {"max_length": 1}, "max_length must be at least 2; got 1"),
    "max_prompt_length": (TEXT, {}, {"max_prompt_length": 0}, "max_prompt_length must be"),
    "a long prompt": (TEXT, {}, {"max_length": 2}, "no room for an answer in max_length 2"),
    "half a character": (replace(TEXT, chosen=" Blue\ud83d."), {}, {}, r"half a character, \ud83d"),
    "half a character in a message": (
        replace(CHAT, rejected=(Message("assistant", [{"type": "text", "text": "\ud83d"}]),)),
        {},
        {},
        r"half a character, \ud83d",
    ),
    "half text": (replace(TEXT, prompt=CHAT.prompt), {}, {}, "three strings or three lists"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line(name):
    pair, attributes, settings, message = ERRORS[name]
    tokenizer = tiny_tokenizer()
    for key, value in attributes.items():
        setattr(tokenizer, key, value)
    settings = {"max_length": 100} | settings
    for call in (
        lambda: tokenize_pair(pair, tokenizer, **settings),
        lambda: PairDataset([TEXT] * 300 + [pair], tokenizer, **settings),
    ):
        with pytest.raises(UserError) as raised:
            call()
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
    if name in ("no template", "the template refuses", "an empty prompt") or "half" in name:
        assert str(raised.value).startswith("pair 300: ")


def test_an_empty_prompt_is_bos_where_there_is_one():
    assert tokens(replace(TEXT, prompt=""), adding_bos(tiny_tokenizer()))[0] == [BOS]


# Data set and batch


def test_the_data_set_gives_what_tokenize_pair_gives():
    tokenizer = tiny_tokenizer()
    pairs = [*load_pairs(tiny_pairs(600)), replace(CHAT, chosen_reward=2.0, rejected_reward=1.0)]
    limits = (40, "drop", 20)
    dataset = PairDataset(pairs, tokenizer, *limits)
    found = [(row, tokenize_pair(pair, tokenizer, *limits)) for row, pair in enumerate(pairs)]
    kept = [(row, item) for row, item in found if item is not None]
    assert 0 < len(kept) < len(pairs)
    assert len(dataset) == len(kept) == dataset.counts.kept
    assert dataset.rows.tolist() == [row for row, _ in kept]
    for i, (_, item) in enumerate(kept):
        for name, value in vars(item).items():
            own = getattr(dataset[i], name)
            if isinstance(value, torch.Tensor):
                assert own.dtype == value.dtype == torch.int32
                assert own.tolist() == value.tolist()
            else:
                assert own == (i if name == "index" else value)
    assert dataset.counts.too_long + dataset.counts.identical == len(pairs) - len(kept)
    assert [item.index for item in dataset] == list(range(len(dataset)))  # iterates, and ends


def test_counts():
    pairs = [
        PAIR,
        Pair("ab", "cd", "e"),  # fits
        Pair("ab", "cdefghi", "c"),  # answer cut
        Pair("ab", "cdefgh", "cdefgi"),  # the same after cutting
        Pair("abcdefghi", "j", "k"),  # prompt cut
    ]
    dataset = PairDataset(pairs, Letters(), 8, max_prompt_length=5)
    assert dataset.counts == TokenCounts(4, 0, 1, prompts_cut=2, answers_cut=2, merged=0)
    assert "\n" not in str(dataset.counts)
    dataset = PairDataset(pairs, Letters(), 8, "drop")
    assert dataset.counts == TokenCounts(1, 4, 0, 0, 0, 0)
    assert dataset.rows.tolist() == [1]
    assert len(PairDataset([], Letters(), 8)) == 0


def test_collate():
    pairs = [Pair("ab", "c", "de"), Pair("f", "ghi", "j")]
    batch = collate(list(PairDataset(pairs, Letters(), 20)), pad_token_id=EOS)
    texts = ["^abc$==", "^fghi$=", "^abde$=", "^fj$==="]  # = is padding, which is EOS as well
    answers = ["...c$..", "..ghi$.", "...de$.", "..j$..."]
    assert batch["input_ids"].tolist() == [
        [{"^": BOS, "$": EOS, "=": EOS}.get(c, ord(c)) for c in text[:-1]] for text in texts
    ]
    assert batch["attention_mask"].tolist() == [[int(c != "=") for c in t[:-1]] for t in texts]
    assert batch["labels"].tolist() == [
        [{".": -100, "$": EOS}.get(c, ord(c)) for c in answer[:-1]] for answer in answers
    ]
    assert batch["index"].tolist() == [0, 1]
    assert {value.dtype for value in batch.values()} == {torch.int64}
    assert set(batch) == {"input_ids", "attention_mask", "labels", "index"}


def test_scores_are_in_the_batch_if_every_pair_has_them():
    one = Pair("a", "b", "c", 3.0, 1.5, 0.75)
    other = Pair("d", "e", "f", 0.0, -2.0, None)
    batch = collate(list(PairDataset([one, other], Letters(), 20)), 0)
    assert batch["chosen_rewards"].tolist() == [3.0, 0.0]
    assert batch["rejected_rewards"].tolist() == [1.5, -2.0]
    assert batch["chosen_rewards"].dtype == torch.float32
    assert "preference_probs" not in batch
    batch = collate(list(PairDataset([one], Letters(), 20)), 0)
    assert batch["preference_probs"].tolist() == [0.75]


def test_a_tokenizer_without_padding_is_refused():
    with pytest.raises(UserError, match="no padding token"):
        collate(list(PairDataset([PAIR], Letters(), 20)), None)


def test_the_data_set_goes_to_worker_processes():
    dataset = PairDataset([PAIR] * 3 + [TEXT], tiny_tokenizer(), 100)
    # Where workers are spawned and not forked, the function is pickled too.
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=2, num_workers=1, collate_fn=partial(collate, pad_token_id=0)
    )
    assert [batch["index"].tolist() for batch in loader] == [[0, 1], [2, 3]]


# Inspection


def test_show_pair():
    tokenizer = tiny_tokenizer()
    long = replace(CHAT, chosen=(Message("assistant", "Blue\nis a colour " * 9),))
    pair = replace(CHAT, chosen_reward=4.5, rejected_reward=2.0)
    dataset = PairDataset([long, pair], tokenizer, 20, "drop")
    lines = show_pair(dataset, 0, tokenizer).splitlines()
    prompt, chosen, _ = tokens(pair, tokenizer)
    assert lines[0] == "pair 0 of 1 (row 1 before any was dropped)"
    assert lines[1:3] == ["chosen reward: 4.5", "rejected reward: 2"]
    size = len(prompt) + len(chosen)
    assert lines[3] == f"chosen: {size} tokens, {len(prompt)} masked, {len(chosen)} counted"
    assert lines[4].split("  ")[1].strip() == "masked"
    assert lines[4].split("|")[0].endswith("<s>")
    assert lines[4].endswith("<|assistant|>")
    assert lines[5].split()[0] == "counted"
    assert lines[5].replace("|", "").endswith("Blue.</s>")
    assert lines[8].endswith("</s>")
    assert len(lines) == 9
    dataset = PairDataset([long], tokenizer, 20)
    text = show_pair(dataset, 0, tokenizer)
    assert "answers were cut" in text.splitlines()[0]
    assert "\\n" in text
    for i in (-1, 1):
        with pytest.raises(UserError, match=f"no pair {i}: the data set has 1"):
            show_pair(dataset, i, tokenizer)


def test_parts_of_characters_are_shown_as_the_vocabulary_has_them():
    tokenizer = tiny_tokenizer()
    text = show_pair(PairDataset([Pair("p", "é", "b")], tokenizer, 20), 0, tokenizer)
    assert "Ã|©|</s>" in text
    assert "\ufffd" not in text
