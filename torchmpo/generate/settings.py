"""The settings of ``python -m torchmpo.generate``."""

from dataclasses import dataclass
from typing import Any

FORMATS = ("auto", "chat", "text")


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of a run.

    Args:
        model: a model's or an adapter's folder, or a hub id; with an endpoint, its name there.
        prompts: JSON list or JSON lines of {"instruction": …}, as AlpacaEval has them.
        name: whose answers they are, for the file; by default the model as given.
        format: chat puts a prompt into the model's chat template, text gives it as it is; auto is
            chat where the model has a template.
        system: a system message before each prompt.
        chat_template_kwargs: variables of the chat template, as in training:
            {enable_thinking: false}. With an endpoint they are a field of the request, which
            vLLM, SGLang and llama.cpp take, and OpenAI does not.
        max_new_tokens: longest answer, in tokens; a longer one is cut.
        temperature: 0 takes the likeliest token, 1 draws as the model predicts.
        top_p: draw among the likeliest tokens that together have this probability.
        seed: of what is drawn; an answer follows from it and from its place in the file.
        batch_size: answers written at a time; with an endpoint, requests in flight.
        dtype: of the weights, float32, bfloat16, float16, or auto, as saved; not with an endpoint.
        device: cpu, cuda, …; by default a GPU, if there is one; not with an endpoint.
        endpoint: URL of an OpenAI-compatible server, such as http://localhost:8000/v1, in place of
            a model on this machine.
        key_variable: environment variable with the endpoint's key, if it needs one.
        timeout: seconds to wait for a reply of the endpoint.
    """

    model: str | None = None
    prompts: str | None = None
    name: str | None = None
    format: str = "auto"
    system: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 8
    dtype: str = "auto"
    device: str | None = None
    endpoint: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 600.0
