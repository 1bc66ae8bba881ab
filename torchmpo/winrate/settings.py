"""The settings of ``python -m torchmpo.winrate``."""

from dataclasses import dataclass

GLMS = ("length_controlled_minimal", "length_controlled_noreg", "length_controlled_v1")


@dataclass(frozen=True)
class WinRateConfig:
    """Settings of an evaluation.

    Args:
        outputs: the model's answers, JSON; null with annotations as the judge: all of theirs.
        reference: the reference model's answers to the same instructions, JSON.
        judge: an annotations file (.json), package.module:function, or a reward model's folder or
            hub id.
        name: of the model, in place of the generator in the file of outputs.
        glm: length_controlled_minimal, or, with difficulties, length_controlled_noreg, or
            length_controlled_v1, which AlpacaEval's leaderboard has.
        gamed: AlpacaEval's df_gamed.csv, for the latter two.
        empty: refuse empty answers, or let them lose.
        both_orders: ask a judging function twice, with the answers swapped.
        batch_size: comparisons at a time; after each of them the annotations are saved.
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
