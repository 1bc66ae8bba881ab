"""The losses of a report, each with its equation and where it comes from."""

from markupsafe import Markup

from torchmpo.diagnose.report.contents import Run
from torchmpo.diagnose.report.html import render
from torchmpo.objectives.documented import documented_parts


def equations(run: Run) -> Markup:
    """Summary, equation and source of every loss that is known by its name.

    Nothing is imported that a run names: of one's own losses there is the name alone.
    """
    losses = {loss: documented_parts(loss) for loss in sorted(run.losses)}
    return render("losses.html", losses=losses)
