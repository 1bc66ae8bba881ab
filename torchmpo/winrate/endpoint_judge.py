"""A language model behind an endpoint as a judge: AlpacaEval's protocol.

The model reads the prompt and both answers, which it knows as ``m`` and ``M``, and names the better
one in a token. The probability that it gives to ``M``, of that to both, is the preference. As in
AlpacaEval 2 (Dubois et al., arXiv 2404.04475), but that each pair is shown in both orders, where
``alpaca_eval`` draws one.
"""

import math
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from torchmpo.runs.errors import UserError
from torchmpo.winrate.endpoint import Endpoint, Message, Reply

FIRST, SECOND = "m", "M"
FIELDS = ("instruction", "output_1", "output_2")
ALPACA_EVAL = "alpaca_eval"
# Where alpaca_eval keeps the template of its leaderboard's judge.
IN_ALPACA_EVAL = "evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"

PLAIN = """\
<|im_start|>system
You compare two answers to one instruction, and say which a careful human reader would prefer.
<|im_end|>
<|im_start|>user
# Instruction

{instruction}

# Answer of model m

{output_1}

# Answer of model M

{output_2}

# Task

Judge how correct, helpful and relevant each answer is. Neither its place nor its length is a merit.
Reply with the name of the model whose answer is better, m or M, and with nothing else.
<|im_end|>
"""


def read_template(name: str) -> list[Message]:
    """A template as messages.

    Args:
        name: ``"plain"``, ours; ``"alpaca_eval"``, that of AlpacaEval's leaderboard, from the
            package of this name, which need only be there; or a file. A template has turns
            ``<|im_start|>role … <|im_end|>`` with ``{instruction}``, ``{output_1}`` and
            ``{output_2}``, as all of AlpacaEval's have, and asks for ``m`` or ``M``.

    Raises:
        UserError: there is none, or it lacks a turn or a field.
    """
    text = PLAIN if name == "plain" else _file(name)
    turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)\n?<\|im_end\|>", text, flags=re.DOTALL)
    if not turns:
        raise UserError(f"template {name} has no turns <|im_start|>role … <|im_end|>")
    for field in FIELDS:
        if not any(f"{{{field}}}" in content for _, content in turns):
            raise UserError(f"template {name} has no {{{field}}}")
    return [{"role": role, "content": content} for role, content in turns]


def _file(name: str) -> str:
    path = Path(name)
    if name == ALPACA_EVAL:
        spec = find_spec(ALPACA_EVAL)  # found, not imported
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                "template alpaca_eval is in the package alpaca_eval, which is not installed: pip "
                "install --no-deps alpaca_eval, or name a file"
            )
        path = Path(next(iter(spec.submodule_search_locations))) / IN_ALPACA_EVAL
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the template {path}: {reason}") from error


class EndpointJudge:
    """A judge that asks a model behind an endpoint.

    Args:
        endpoint: where the model is.
        template: see :func:`read_template`.
        both_orders: show each pair in both orders, and take the mean.
    """

    def __init__(self, endpoint: Endpoint, *, template: str = "plain", both_orders: bool = True):
        self.endpoint, self.both_orders = endpoint, both_orders
        self.template = read_template(template)

    def __call__(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> list[float]:
        """Probabilities that the second is better, NaN where the model names neither.

        Raises:
            UserError: the endpoint fails.
        """
        shown = list(zip(prompts, first, second, strict=True))
        if self.both_orders:
            shown += [(prompt, b, a) for prompt, a, b in shown]
        # One token; temperature 0 for servers that give no log-probabilities.
        settings = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 5}
        requests = [(self._messages(texts), settings) for texts in shown]
        values = [math.nan] * len(shown)
        for place, reply in self.endpoint.chats(requests):
            values[place] = preference(reply)
        if not self.both_orders:
            return values
        there, back = values[: len(prompts)], values[len(prompts) :]
        return [(p + 1 - q) / 2 for p, q in zip(there, back, strict=True)]

    def _messages(self, texts: tuple[str, str, str]) -> list[Message]:
        values: dict[str, str] = dict(zip(FIELDS, texts, strict=True))

        # In one pass: an answer that spells a field stays as it is.
        def fill(content: str) -> str:
            return re.sub(
                "|".join(rf"\{{{field}\}}" for field in FIELDS),
                lambda found: values[found[0][1:-1]],
                content,
            )

        return [{"role": m["role"], "content": fill(m["content"])} for m in self.template]


def preference(reply: Reply) -> float:
    """P(M) / (P(m) + P(M)) of a reply's first token, white space around it or not; where the server
    gives no log-probabilities, 0 or 1 by its text; NaN where neither is named.

    >>> reply = Reply("M", "stop", {"M": -0.1, "m": -2.4, "The": -9.0})
    >>> round(preference(reply), 6)                                        # 1 / (1 + e^−2.3)
    0.908877
    >>> preference(Reply(" m.", "stop", {}))
    0.0
    """
    weights = {FIRST: 0.0, SECOND: 0.0}
    for token, logprob in reply.first_logprobs.items():
        name = token.strip()  # some tokenizers put a space before
        if name in weights:
            weights[name] += math.exp(logprob)
    if total := sum(weights.values()):
        return weights[SECOND] / total
    if reply.first_logprobs:
        return math.nan
    named = re.sub(r"\W", "", reply.text)
    return {FIRST: 0.0, SECOND: 1.0}.get(named, math.nan)
