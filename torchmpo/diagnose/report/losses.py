"""The losses of a report, each with its equation and where it comes from."""

import re

from markupsafe import Markup

from torchmpo.diagnose.report.contents import Run
from torchmpo.diagnose.report.html import render
from torchmpo.losses import LOSSES
from torchmpo.objectives.documented import documented


def equations(run: Run) -> Markup:
    """Summary, equation and source of every loss that is known by its name.

    Nothing is imported that a run names: of one's own losses there is the name alone.
    """
    losses = {
        loss: [_told(name) for name in re.split(r"[+@]", loss) if name in LOSSES]
        for loss in sorted(run.losses)
    }
    return render("losses.html", losses=losses)


def _told(name: str) -> dict:
    summary, equation, source = documented(LOSSES[name])
    papers = re.split(r"arXiv[: ](\d{4}\.\d{4,5})", source)
    return {"name": name, "summary": summary, "equation": equation, "source": papers}
