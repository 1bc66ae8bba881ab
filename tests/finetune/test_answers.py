"""Answers: those of the model alone, whatever they are written with."""

import copy

import pytest
import torch
from tiny_llm import QUIET, SIZES, tiny_gemma2, tiny_llama, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from torchmpo.finetune.answers import AnswerWriter, Sampling, batches
from torchmpo.finetune.models import LoraSettings, add_lora
from torchmpo.finetune.pairs import Pair
from torchmpo.finetune.tokenize import encode_prompt, tokenize_pair
from torchmpo.runs.errors import UserError

pytestmark = QUIET
PROMPTS = ["Name a colour.", "What is the capital of France?", "Hi", "I do not know. Go away! " * 3]
SMALL = {"vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_weights_of_nan_write_nothing():
    model = tiny_llama()
    model.lm_head.weight.data.fill_(float("nan"))
    writer = AnswerWriter(model, tiny_tokenizer(), Sampling(max_new_tokens=2))
    with pytest.raises(UserError, match="the model's logits are NaN"):
        writer([[1, 6, 7], [1, 6]], [0, 1])


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3, **SMALL
    )
    return GPT2LMHeadModel(config).eval()


def neox():
    torch.manual_seed(0)
    sizes = {key: SIZES[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    config = GPTNeoXConfig(num_attention_heads=4, initializer_range=0.3, **sizes, **SMALL)
    return GPTNeoXForCausalLM(config).eval()


def opt():
    torch.manual_seed(0)
    config = OPTConfig(
        hidden_size=32,
        ffn_dim=48,
        word_embed_proj_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        init_std=0.3,
        **SMALL,
    )
    return OPTForCausalLM(config).eval()


def mamba():
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=32, num_hidden_layers=2, initializer_range=0.3, **SMALL)
    return MambaForCausalLM(config).eval()


class Forgetful(GPT2LMHeadModel):
    """Numbers its positions from the left end of the padding, as some models do."""

    def forward(self, input_ids=None, position_ids=None, **more):
        return super().forward(input_ids=input_ids, **more)


def forgetful():
    torch.manual_seed(0)
    model = Forgetful(gpt2().config).eval()
    model.load_state_dict(gpt2().state_dict())
    return model


def alone(model, ids, new, **settings):
    """transformers' own, one prompt at a time."""
    start = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            **settings,
        )
    return out[0, len(ids) :].tolist()


def encoded(tokenizer, prompts=PROMPTS):
    return [encode_prompt(prompt, tokenizer) for prompt in prompts]


def write(model, tokenizer, size, prompts=None, **sampling):
    prompts = encoded(tokenizer) if prompts is None else prompts
    writer = AnswerWriter(model, tokenizer, Sampling(**({"max_new_tokens": 12} | sampling)))
    answers = {}
    for rows in batches([len(p) for p in prompts], range(len(prompts)), size):
        answers |= dict(zip(rows, writer([prompts[i] for i in rows], rows), strict=True))
    return [answers[i] for i in range(len(prompts))], writer


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2, gpt2, neox, opt, mamba])
@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_greedy_answers_are_those_of_the_model_alone(make, pad):
    model, tokenizer = make(), tiny_tokenizer()
    tokenizer.pad_token = pad
    want = []
    for ids in encoded(tokenizer):
        new = alone(model, ids, 12)
        ended = 2 in new
        new = new[: new.index(2)] if ended else new
        text = tokenizer.decode(new, skip_special_tokens=True)
        want.append((text, "stop" if ended else "length"))
    for size in (1, 3, 4):
        got, _ = write(model, tokenizer, size)
        assert got == want
    assert len({text for text, _ in want}) == 4


def test_a_model_that_takes_no_padding_gets_none():
    model, tokenizer = forgetful(), tiny_tokenizer()
    prompts = [*encoded(tokenizer), *encoded(tokenizer, ["Bye", "Hi!"])]
    want, _ = write(model, tokenizer, 1, prompts)
    with pytest.warns(UserWarning, match="Forgetful takes no padding before a prompt"):
        got, writer = write(model, tokenizer, 6, prompts)
    assert got == want
    assert writer.pads is False


def test_an_answer_ends_at_any_end_token_of_the_model_or_the_tokenizer():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    (ids,) = encoded(tokenizer, ["Hi"])
    model.generation_config.eos_token_id = None
    new = alone(model, ids, 12)
    model.generation_config.eos_token_id = [2, new[3]]
    (answer,), _ = write(model, tokenizer, 1, [ids])
    cut = new[: new.index(new[3])]
    assert answer == (tokenizer.decode(cut, skip_special_tokens=True), "stop")


def test_the_models_own_settings_are_not_used_and_left_as_they_are():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    want, _ = write(model, tokenizer, 2)
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0)
    before = copy.deepcopy(model.generation_config)
    model.train()
    got, _ = write(model, tokenizer, 2)
    assert got == want
    assert model.training
    assert model.generation_config == before


def test_draws_follow_from_seed_and_row_alone():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    drawn, _ = write(model, tokenizer, 4, temperature=1.0, seed=3)
    torch.manual_seed(99)
    for size in (1, 2, 3):
        assert write(model, tokenizer, size, temperature=1.0, seed=3)[0] == drawn
    assert write(model, tokenizer, 4, temperature=1.0, seed=4)[0] != drawn
    assert write(model, tokenizer, 4)[0] != drawn
    # The same prompt twice: two draws.
    prompts = encoded(tokenizer, ["Hi", "Hi"])
    first, second = write(model, tokenizer, 2, prompts, temperature=1.0)[0]
    assert first != second


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_draws_have_the_probabilities_of_the_model(temperature, top_p):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    (ids,) = encoded(tokenizer, ["Hi"])
    with torch.no_grad():
        p = (model(torch.tensor([ids])).logits[0, -1].double() / temperature).softmax(-1)
    if top_p < 1:  # by hand: the likeliest tokens until their sum reaches top_p
        order = p.argsort(descending=True)
        kept = order[: int((p[order].cumsum(0) < top_p).sum()) + 1]
        p = torch.zeros_like(p).scatter(0, kept, p[kept])
        p /= p.sum()
    n = 2000
    writer = AnswerWriter(
        model, tokenizer, Sampling(max_new_tokens=1, temperature=temperature, top_p=top_p)
    )
    rows = list(range(n))
    start, mask = writer._padded([ids] * n, len(ids))
    out = writer._generate(start, mask, 1, writer._draws(start, rows))[:, -1]
    seen = torch.bincount(out, minlength=320).double()
    assert not seen[p == 0].any()
    # χ² over tokens that are seen often enough, with its own standard deviation.
    often = p * n > 5
    chi = ((seen - n * p) ** 2 / (n * p))[often].sum().item()
    degrees = int(often.sum()) - 1
    assert abs(chi - degrees) < 5 * (2 * degrees) ** 0.5


def test_adapters_answer_with_their_weights():
    tokenizer = tiny_tokenizer()
    plain, _ = write(tiny_llama(), tokenizer, 4)
    model = add_lora(tiny_llama(), LoraSettings(r=2))
    assert write(model, tokenizer, 4)[0] == plain
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    tuned, _ = write(model, tokenizer, 4)
    assert tuned != plain
    merged = copy.deepcopy(model).merge_and_unload()
    assert write(merged, tokenizer, 4)[0] == tuned


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1; got 0"),
        ({"temperature": -1.0}, "temperature must be zero or positive"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
    ],
)
def test_numbers_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        Sampling(**settings)


def test_prompts_that_leave_no_room():
    writer = AnswerWriter(gpt2(), tiny_tokenizer(), Sampling(max_new_tokens=100))
    with pytest.raises(UserError, match=r"prompt 1 has 29 tokens, .* exceeds the model's 128"):
        writer.check([[1] * 28, [1] * 29])
    with pytest.raises(UserError, match="prompt 0 has no tokens"):
        writer.check([[]])


def sentencepiece():
    """A tokenizer of Llama-2's kind, which puts a space before a text and takes it off again."""
    words = ["Is 3 a number?", "yes", "no", "0 1 2 4 5"] * 5
    own = Tokenizer(models.BPE(unk_token="<unk>"))
    own.normalizer = normalizers.Replace(" ", "▁")
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    own.train_from_iterator(words, trainers.BpeTrainer(special_tokens=special, vocab_size=80))
    own.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    own.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=own, **names)


def test_the_text_of_an_answer_makes_its_tokens_again():
    """Or a round would train on other tokens than were drawn."""
    tokenizer = sentencepiece()
    pair = tokenize_pair(Pair("Is 3 a number?", " yes", " no"), tokenizer, 64)
    writer = AnswerWriter(tiny_llama(vocab=len(tokenizer)), tokenizer, Sampling(8))
    answer = writer._answer(pair.prompt.tolist(), pair.chosen.tolist())
    assert answer.text == " yes"
    again = tokenize_pair(Pair("Is 3 a number?", answer.text, " no"), tokenizer, 64)
    assert torch.equal(again.chosen, pair.chosen)
