"""Who answers: a model on this machine, or one behind an endpoint.

A source is called with rows, and gives each row with its answer, in any order.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch

from torchmpo.finetune.answers import Answer, AnswerWriter, Sampling, batches
from torchmpo.finetune.chat_template import check_variables
from torchmpo.finetune.loading import check_tokenizer, load_model, load_tokenizer
from torchmpo.finetune.pairs import Message
from torchmpo.finetune.tokenize import encode_prompt
from torchmpo.generate.settings import GenerateConfig
from torchmpo.runs.errors import UserError
from torchmpo.runs.seeding import derive_seed
from torchmpo.winrate.endpoint import Endpoint

Source: TypeAlias = Callable[[Sequence[int]], Iterator[tuple[int, Answer]]]


def local_source(config: GenerateConfig, prompts: Sequence[str], sampling: Sampling) -> Source:
    """A model loaded here.

    Raises:
        UserError: no such model, a prompt too long for it, or no way to format a conversation. From
            the source: too little memory.
    """
    model, tokenizer = load_answering(str(config.model), config.dtype)
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = model.eval().to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {device!r} cannot be used: {' '.join(str(error).split())}"
        ) from error
    chat = config.format == "chat" or (config.format == "auto" and bool(tokenizer.chat_template))
    if config.system is not None and not chat:
        raise UserError("a system message needs --format chat, and a model with a chat template")
    variables = config.chat_template_kwargs or {}
    check_variables(variables, tokenizer)
    encoded = [encode_prompt(_text(p, config.system, chat), tokenizer, variables) for p in prompts]
    writer = AnswerWriter(model, tokenizer, sampling)
    writer.check(encoded)

    def source(rows: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        for batch in batches([len(ids) for ids in encoded], rows, config.batch_size):
            try:
                answers = writer([encoded[i] for i in batch], batch)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"{len(batch)} answers at a time do not fit into memory: use a "
                    "smaller --batch_size"
                ) from error
            yield from zip(batch, answers, strict=True)

    return source


def endpoint_source(config: GenerateConfig, prompts: Sequence[str], sampling: Sampling) -> Source:
    """A model behind an OpenAI-compatible endpoint, which applies its own chat template.

    Raises:
        UserError: a setting that only a model on this machine has, or no URL.
    """
    if config.format == "text":
        raise UserError("--format text: an endpoint's chat completions are chat")
    for name, value, default in (
        ("dtype", config.dtype, "auto"),
        ("device", config.device, None),
    ):
        if value != default:
            raise UserError(
                f"--{name} {value}: a model behind an endpoint runs where and as its server says; "
                f"leave it out, or say --{name} {'null' if default is None else default}"
            )
    endpoint = Endpoint(
        str(config.endpoint),
        str(config.model),
        key_variable=config.key_variable,
        timeout=config.timeout,
        at_once=config.batch_size,
    )
    before = [] if config.system is None else [{"role": "system", "content": config.system}]
    settings: dict[str, Any] = {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
    }
    if sampling.top_p < 1:
        settings["top_p"] = sampling.top_p
    if config.chat_template_kwargs:
        # Beside the fields of OpenAI's, where vLLM, SGLang and llama.cpp read it.
        settings["chat_template_kwargs"] = _as_json(config.chat_template_kwargs)

    def source(rows: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        requests = []
        for row in rows:
            messages = [*before, {"role": "user", "content": prompts[row]}]
            drawn = {"seed": derive_seed(sampling.seed, "answer", row) % 2**31}
            requests.append((messages, settings | (drawn if sampling.temperature else {})))
        for place, reply in endpoint.chats(requests):
            yield rows[place], Answer(reply.text, reply.finish_reason)

    return source


def _as_json(variables: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(variables, allow_nan=False))
    except (TypeError, ValueError) as error:  # YAML has dates, and numbers that are not finite
        raise UserError(f"chat_template_kwargs cannot be sent as JSON: {error}") from error


def load_answering(source: str, dtype: str) -> tuple[Any, Any]:
    """A model, or an adapter on its base model, and its tokenizer.

    Raises:
        UserError: there is none, it cannot be loaded, or the two do not belong together.
    """
    model, tokenizer = load_model(source, dtype=dtype), load_tokenizer(source)
    check_tokenizer(model, tokenizer)
    return model, tokenizer


def _text(prompt: str, system: str | None, chat: bool) -> Any:
    if not chat:
        return prompt
    before = () if system is None else (Message("system", system),)
    return (*before, Message("user", prompt))
