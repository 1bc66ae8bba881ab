"""The settings of ``python -m torchmpo.winrate``."""

from dataclasses import dataclass

GLMS = ("length_controlled_minimal", "length_controlled_noreg", "length_controlled_v1")


@dataclass(frozen=True)
class WinRateConfig:
    """Settings of an evaluation.

    Args:
        outputs: the model's answers, JSON; null with annotations as the judge: all of theirs.
        reference: the reference model's answers to the same instructions, JSON.
        judge: an annotations file (.json), package.module:function, a reward model's folder or hub
            id, or with an endpoint a model's name there. A function is called with the lists
            (prompts, first answers, second answers) of a batch and gives for each the probability
            in [0, 1] that the SECOND answer is better, None where it cannot tell; or it takes one
            prompt and two answers and gives one probability.
        name: of the model, in place of the generator in the file of outputs.
        glm: length_controlled_minimal, or, with difficulties, length_controlled_noreg, or
            length_controlled_v1, which AlpacaEval's leaderboard has.
        gamed: AlpacaEval's df_gamed.csv, for the latter two.
        empty: refuse empty answers, or let them lose.
        both_orders: ask a judging function, or an endpoint, twice, with the answers swapped.
        batch_size: comparisons at a time; after each of them the annotations are saved.
        endpoint: URL of an OpenAI-compatible server, such as http://localhost:8000/v1.
        template: what an endpoint is asked; plain, alpaca_eval (of the package of this name), or a
            file in the form of AlpacaEval's.
        key_variable: environment variable with the endpoint's key, if it needs one.
        timeout: seconds that a judging function may take for a call, or an endpoint for a reply.
    """

    outputs: str | None = None
    reference: str | None = None
    judge: str | None = None
    name: str | None = None
    glm: str = "length_controlled_minimal"
    gamed: str | None = None
    empty: str = "refuse"
    both_orders: bool = True
    batch_size: int = 16
    endpoint: str | None = None
    template: str = "plain"
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 600.0
