"""The settings of training in rounds, on pairs that the model itself has just answered."""

from dataclasses import dataclass, fields

from torchmpo.finetune.answers import Sampling
from torchmpo.runs.errors import UserError, nearest

FORMATS = ("auto", "chat", "text")


@dataclass(frozen=True)
class OnlineSettings:
    """Settings of the rounds; those of model, data and trainer are each round's.

    Args:
        rounds: how often pairs are made and trained on, at least 1.
        pairs: of a round; so rounds times pairs are what an offline run of equal labels has.
        prompts: a file with a prompt or an instruction in each row, as JSON, JSON lines, CSV or
            parquet; or a hub id.
        judge: package.module:function, a reward model's folder or hub id, or with an endpoint a
            model's name there, as python -m torchmpo.winrate takes it.
        first: pairs of the first round, which then asks neither model nor judge.
        reference_refresh: rounds after which the policy becomes the reference; null keeps the first
            model.
        answers: to a prompt, at least 2; of more than two the best and the worst are the pair.
        max_new_tokens: longest answer, in tokens; a longer one is cut.
        temperature: of the answers, above 0; 1 draws as the model predicts.
        top_p: draw among the likeliest tokens that together have this probability.
        format: chat puts a prompt into the model's chat template, text gives it as it is; auto is
            chat where the model has a template.
        batch_size: answers written and judged at a time; after each batch they are saved.
        both_orders: ask a judging function, or an endpoint, twice, with the answers swapped.
        endpoint: URL of an OpenAI-compatible server that has the judge.
        template: what an endpoint is asked; plain, alpaca_eval, or a file.
        key_variable: environment variable with the endpoint's key, if it needs one.
        timeout: seconds that a judging function may take for a call, or an endpoint for a reply.

    Raises:
        UserError: a number out of range, or an unknown format.
    """

    rounds: int = 4
    pairs: int = 1000
    prompts: str | None = None
    judge: str | None = None
    first: str | None = None
    reference_refresh: int | None = None
    answers: int = 2
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    format: str = "auto"
    batch_size: int = 16
    both_orders: bool = True
    endpoint: str | None = None
    template: str = "plain"
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 600.0

    def __post_init__(self):
        least = {"rounds": 1, "pairs": 1, "reference_refresh": 1, "answers": 2, "batch_size": 1}
        for name, number in least.items():
            value = getattr(self, name)
            if value is not None and value < number:
                raise UserError(f"online.{name} must be at least {number}; got {value}")
        if self.temperature == 0:
            raise UserError(
                "online.temperature must be positive: at 0 the answers to a prompt are all the same"
            )
        if not self.timeout > 0:
            raise UserError(f"online.timeout must be positive; got {self.timeout}")
        if self.format not in FORMATS:
            hint = nearest(self.format, FORMATS)
            raise UserError(f"unknown online.format {self.format!r}: {hint}")
        self.sampling(0)

    @property
    def asks(self) -> bool:
        """Whether any round makes pairs of its own."""
        return self.first is None or self.rounds > 1

    def sampling(self, seed: int) -> Sampling:
        """How answers are drawn."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, seed)


NAMES = tuple(field.name for field in fields(OnlineSettings))
