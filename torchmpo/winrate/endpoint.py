"""Chat completions of an OpenAI-compatible endpoint, many at a time, with retries.

The network is used here and only here, and only where a user names an endpoint.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

from torchmpo.runs.errors import UserError, one_line

# Too many requests, and what a server says when it is down or overloaded.
WORTH_ANOTHER_TRY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
LONGEST_PAUSE = 60.0  # seconds

Message = Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """What a model said.

    Args:
        text: of the answer.
        finish_reason: ``"stop"``, ``"length"`` where it was cut, or what else the server says.
        first_logprobs: log-probability in nats of the likeliest first tokens, by token; empty where
            none were asked for, or the server gives none.
    """

    text: str
    finish_reason: str
    first_logprobs: Mapping[str, float]


class Endpoint:
    """An OpenAI-compatible server, such as vLLM's, llama.cpp's, or OpenAI's own.

    Args:
        url: up to ``/v1``, such as ``http://localhost:8000/v1``.
        model: its name there.
        key_variable: environment variable with the key, if one is needed.
        timeout: seconds to wait for a reply, > 0.
        retries: how often a request is repeated that failed for a reason that may pass, ≥ 0.
        at_once: requests in flight, ≥ 1.
        sleep: waits so many seconds.

    Raises:
        UserError: the URL is none, or a number is out of range.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 600.0,
        retries: int = 5,
        at_once: int = 16,
        sleep: Callable[[float], None] = time.sleep,
    ):
        if not re.match(r"https?://[^/\s]", url):
            raise UserError(
                f"endpoint must begin with http:// or https://, and a host; got {url!r}"
            )
        if not timeout > 0:
            raise UserError(f"timeout must be positive; got {timeout}")
        if at_once < 1:
            raise UserError(f"batch_size must be at least 1; got {at_once}")
        self.url, self.model = url.rstrip("/"), model
        self.key = os.environ.get(key_variable, "")
        self.key_variable = key_variable
        self.timeout, self.retries, self.at_once = timeout, retries, at_once
        self.sleep = sleep

    def chat(self, messages: Sequence[Message], **settings: Any) -> Reply:
        """The model's answer to a conversation.

        Args:
            messages: ``{"role", "content"}``.
            **settings: of the request, such as ``temperature``, ``max_tokens``, ``top_logprobs``.

        Raises:
            UserError: the server cannot be reached, refuses, or answers something else.
        """
        body = {"model": self.model, "messages": [dict(m) for m in messages], **settings}
        answer = self._post("/chat/completions", body)
        try:
            choice = answer["choices"][0]
            text = choice["message"].get("content") or ""
            tokens = (choice.get("logprobs") or {}).get("content") or []
            top = (tokens[0].get("top_logprobs") or [tokens[0]]) if tokens else []
            given = dict.fromkeys((str(t["token"]), float(t["logprob"])) for t in top)
            logprobs: dict[str, float] = {}
            for token, logprob in given:  # those that are written alike, as `▁M` and `M`, add up
                logprobs[token] = float(np.logaddexp(logprobs.get(token, -np.inf), logprob))
            return Reply(str(text), str(choice.get("finish_reason") or "stop"), logprobs)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.url} answers something else than a chat completion: "
                f"{json.dumps(answer)[:200]}"
            ) from error

    def chats(self, requests: Sequence[tuple[Sequence[Message], Mapping[str, Any]]]) -> Iterator:
        """Replies to several requests, as they come: ``(place among the requests, reply)``.

        Args:
            requests: messages and settings of each, see :meth:`chat`.

        Raises:
            UserError: as :meth:`chat`, once those that were in flight have come in.
        """
        pool = ThreadPoolExecutor(self.at_once)
        try:
            places = {
                pool.submit(self.chat, messages, **settings): place
                for place, (messages, settings) in enumerate(requests)
            }
            left = set(places)
            for future in as_completed(places):
                if future.exception() is not None:
                    break
                left.remove(future)
                yield places[future], future.result()
            if not left:
                return
            # One failed: none are begun any more, and those that were are not lost.
            begun = [future for future in left if not future.cancel()]
            errors = [future.exception() for future in begun]
            for future, error in zip(begun, errors, strict=True):
                if error is None:
                    yield places[future], future.result()
            raise next(error for error in errors if error is not None)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = Request(self.url + path, json.dumps(body).encode(), headers)
        for attempt in range(self.retries + 1):
            pause = min(LONGEST_PAUSE, 2.0**attempt)
            try:
                with urlopen(request, timeout=self.timeout) as response:
                    return json.loads(response.read())
            except HTTPError as error:
                reason = f"{error.code} {error.reason}: {_message(error)}"
                if error.code == 401 and not self.key:
                    reason += f"; the key is read from the environment variable {self.key_variable}"
                if error.code not in WORTH_ANOTHER_TRY:
                    raise UserError(f"{self.url} refuses: {reason}") from error
                pause = _asked_pause(error, pause)
            except TimeoutError:
                reason = f"no reply within {self.timeout:g} s"
            except (OSError, HTTPException) as error:  # URLError is an OSError
                reason = one_line(error)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{self.url} answers no JSON: {one_line(error)}") from error
            if attempt < self.retries:
                self.sleep(pause)
        raise UserError(f"{self.url} does not answer ({self.retries + 1} attempts): {reason}")


def _message(error: HTTPError) -> str:
    """What the server says of a refusal, as a line."""
    text = error.read().decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        text = json.loads(text)["error"]["message"]
    return " ".join(str(text).split())[:200]


def _asked_pause(error: HTTPError, pause: float) -> float:
    """Seconds that the server asks to wait, or else ``pause``."""
    try:
        return min(LONGEST_PAUSE, max(0.0, float(error.headers.get("Retry-After", pause))))
    except ValueError:  # a date
        return pause
