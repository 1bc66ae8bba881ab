"""What a loss says of itself: its summary, its equation and its source, from its docstring."""

import inspect
import re
from typing import Any, NamedTuple

from torchmpo.losses import LOSSES

NOTATION = (
    "c and r are the log-probabilities of the chosen and the rejected answer, c̄ and r̄ their means "
    "per token, c' and r' those of the reference; Δ = c − r, D = Δ − Δ', and LS is log σ."
)


class Documented(NamedTuple):
    """Parts of a docstring; empty where it does not have them.

    Attributes:
        summary: its first paragraph.
        equation: the paragraph before the arguments that has an equals sign, over several lines.
        source: where the loss was published, in a line.
    """

    summary: str
    equation: str
    source: str


def documented(loss: Any) -> Documented:
    """What the docstring of a loss says.

    >>> from torchmpo.losses import sft_loss
    >>> documented(sft_loss).equation, documented(sft_loss).source
    ('loss = −c̄', 'arXiv 2411.06568, Table 1.')
    """
    document = inspect.getdoc(loss) or ""
    summary, *rest = re.split(r"\n\n", document.partition("\nArgs:")[0].strip())
    equation = next((part for part in rest if "=" in part), "")
    source = re.search(r"^Source:(.*?)(?:\n\n|\Z)", document, flags=re.MULTILINE | re.DOTALL)
    return Documented(summary, equation, " ".join(source[1].split()) if source else "")


def documented_parts(name: str) -> dict[str, Documented]:
    """What the losses of this package say that a name puts together, each by its own name.

    >>> list(documented_parts("0.8*dpo+sft")), list(documented_parts("hinge_dpo@js"))
    (['dpo', 'sft'], ['hinge_dpo'])
    >>> documented_parts("my_pkg:dpo")
    {}
    """
    return {part: documented(LOSSES[part]) for part in re.split(r"[+*@]", name) if part in LOSSES}
