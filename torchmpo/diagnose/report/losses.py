"""The losses of a report, each with its equation and where it comes from."""

import re
from html import escape

from torchmpo.diagnose.report.contents import Run
from torchmpo.diagnose.report.words import name_html
from torchmpo.losses import LOSSES
from torchmpo.objectives.documented import documented


def equations(run: Run) -> str:
    """Summary, equation and source of every loss that is known by its name.

    Nothing is imported that a run names: of one's own losses there is the name alone.
    """
    lines = []
    for loss in sorted(run.losses):
        parts = []
        for name in re.split(r"[+@]", loss):
            if name in LOSSES:
                summary, equation, source = documented(LOSSES[name])
                parts.append(f"{escape(summary)}<pre>{escape(equation)}</pre>{_linked(source)}")
                parts.append(f"Card: <code>python -m torchmpo.show {escape(name)}</code>")
        text = "<br>".join(parts) or "A loss that is not of this package, or a saved objective."
        lines.append(f"<dt>{name_html(loss)}</dt><dd>{text}</dd>")
    return f"<dl>{''.join(lines)}</dl>"


def _linked(source: str) -> str:
    """A source whose arXiv numbers are links."""
    link = r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>'
    return re.sub(r"arXiv[: ](\d{4}\.\d{4,5})", link, escape(source))
