"""Pictures of objectives: their gradients, their pull on a pair, their functions."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from torchmpo.objectives.bound import Objective
from torchmpo.objectives.gradients import gradient_map
from torchmpo.objectives.mirror import INITIAL, MirrorObjective
from torchmpo.runs.files import naming

CHOSEN, REJECTED, MUTED = "#1b6ca8", "#c8553d", "#8a8f98"
SERIES = (CHOSEN, REJECTED, "#4c956c", "#8e6bbf", "#b8860b", "#3a3f45")
TIMES = (0.0, 0.5, 1.0)  # of training, where an objective that depends on it is shown
HIGHEST = 2.0  # spikes of a pull beyond this many times its 95th percentile are cut off


def gradient_figure(
    objectives: Mapping[str, Objective | MirrorObjective],
    path: str | Path,
    *,
    low: float = -8.0,
    high: float = -0.05,
    points: int = 120,
    reference: float = -2.0,
) -> None:
    """The gradient maps of several objectives side by side, as in the paper's figure 5.

    A column is an objective; one that depends on the progress of training has three, at its start,
    middle and end. Its two maps share one scale, divided by its largest gradient (98th
    percentile), because training under a clipped Adam sees ratios and not sizes; the size is in the
    title. Negative (blue) raises the log-probability, positive (red) lowers it.

    Args:
        objectives: title → objective.
        path: PNG to write; an SVG goes beside it.
        low, high: range of mean log-probabilities, nats per step.
        reference: the reference's mean log-probability of both.
    """
    grid = torch.linspace(low, high, points, dtype=torch.float64)
    columns = [
        (title + (f", t = {t:g}" if len(times) > 1 else ""), objective, t)
        for title, objective in objectives.items()
        for times in [TIMES if "progress" in objective.inputs else (0.5,)]
        for t in times
    ]
    figure = new_figure(3.1 * len(columns) + 1.1, 6.2)
    axes = figure.subplots(2, len(columns), sharex=True, sharey=True, squeeze=False)
    for column, (title, objective, t) in enumerate(columns):
        maps = gradient_map(objective, grid, grid, reference=reference, progress=t)
        sizes = torch.stack(maps).abs().flatten()
        finite = sizes[torch.isfinite(sizes)]
        scale = max(float(torch.quantile(finite, 0.98)) if len(finite) else 0.0, 1e-12)
        for row, (gradient, name) in enumerate(zip(maps, ("chosen", "rejected"), strict=True)):
            ax = axes[row, column]
            ax.imshow(
                (gradient.T / scale).numpy(),  # chosen to the right, rejected upwards
                extent=(low, high, low, high),
                origin="lower",
                cmap="RdBu_r",
                vmin=-1,
                vmax=1,
                interpolation="bilinear",
            )
            ax.plot([low, high], [low, high], color="black", linewidth=0.7, linestyle=":")
            if row == 0:
                ax.set_title(f"{title}\n|∂| up to {scale:.3g}", fontsize=10)
            else:
                ax.set_xlabel("chosen mean log-prob.")
            if column == 0:
                ax.set_ylabel(f"∂loss/∂{name}\nrejected mean log-prob.")
    bar = figure.colorbar(axes[0, 0].images[0], ax=axes, shrink=0.7, pad=0.02)
    bar.set_label("gradient / largest in the column\n← raises   likelihood   lowers →")
    save_figure(figure, path)


def pull_figure(
    objectives: Mapping[str, Objective | MirrorObjective],
    path: str | Path,
    *,
    low: float = -8.0,
    high: float = -0.05,
    chosen: Sequence[float] | None = None,
    reference: float = -2.0,
    points: int = 200,
) -> None:
    """How hard a pair is pulled against its margin Δ̄, at fixed c̄: does the pull grow with Δ̄?

    Above, what raises the chosen likelihood, −∂loss/∂c̄; below, what lowers the rejected one,
    ∂loss/∂r̄. Each objective is divided by the 95th percentile of its own gradients in the figure,
    because training under a clipped Adam sees ratios. Where the objective depends on the progress
    of training, its lines are dotted at the start, dashed in the middle, solid at the end.

    Args:
        objectives: title → objective; the first is drawn over the others.
        path: PNG to write; an SVG goes beside it.
        low, high: range of the rejected mean log-probability, nats per step.
        chosen: one panel for each of these c̄; by default three spread over the range.
        reference: the reference's mean log-probability of both.
    """
    chosen = [low + (high - low) * f for f in (0.25, 0.5, 0.75)] if chosen is None else chosen
    rejected = torch.linspace(low, high, points, dtype=torch.float64)
    figure = new_figure(3.2 * len(chosen) + 0.6, 5.6)
    axes = figure.subplots(2, len(chosen), sharex="col", sharey=True, squeeze=False)
    for k, (title, objective) in enumerate(objectives.items()):
        temporal = "progress" in objective.inputs
        lines = dict(zip(TIMES, (":", "--", "-"), strict=True)) if temporal else {0.5: "-"}
        at = torch.tensor(chosen, dtype=torch.float64)
        maps = {
            t: gradient_map(objective, at, rejected, reference=reference, progress=t) for t in lines
        }
        sizes = torch.stack([g.abs() for pair in maps.values() for g in pair])
        sizes = sizes[torch.isfinite(sizes)]
        scale = max(float(sizes.quantile(0.95)) if len(sizes) else 0.0, 1e-12)
        style = {"color": SERIES[k % len(SERIES)], "linewidth": 2.2 if k == 0 else 1.4}
        for t, line in lines.items():
            label = f"{title}, t = {t:g}" if temporal else title
            for column, c in enumerate(chosen):
                for row, pull in enumerate((-maps[t][0][column], maps[t][1][column])):
                    x, y = (c - rejected).numpy(), (pull / scale).numpy()
                    order = len(objectives) - k + 2  # the first on top
                    own = label if (row, column) == (0, 0) else None
                    axes[row, column].plot(x, y, line, label=own, zorder=order, **style)
    for column, c in enumerate(chosen):
        axes[0, column].set_title(f"c̄ = {c:.3g}", fontsize=10)
        axes[1, column].set_xlabel("margin Δ̄ = c̄ − r̄, nats per step")
        for ax in axes[:, column]:
            low_end, high_end = ax.get_ylim()
            ax.set_ylim(max(low_end, -HIGHEST), min(high_end, HIGHEST))
            ax.axvline(0, color="black", linewidth=0.7, linestyle=":")
            light(ax)
    axes[0, 0].set_ylabel("raises the chosen\n−∂loss/∂c̄, of its 95th percentile")
    axes[1, 0].set_ylabel("lowers the rejected\n∂loss/∂r̄, of its 95th percentile")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    save_figure(figure, path)


def start_name(objective: MirrorObjective) -> str:
    """What the zero vector of a learned objective is called."""
    if objective.initial != INITIAL[objective.steps]:
        return "zero vector"
    return {"one": "ORPO", "two": "DPO"}[objective.steps]


def functions_figure(
    objective: MirrorObjective,
    path: str | Path,
    *,
    low: float = -8.0,
    high: float = -0.05,
    points: int = 400,
) -> None:
    """ψ, φ⁻¹ and g of a learned objective, their values and slopes, beside those of its start.

    ψ and φ⁻¹ over mean log-probabilities; g over the margins that this φ⁻¹ makes of them. Values
    are shown from the right end on, and those of g from margin 0 on, since a constant trains
    nothing.

    Args:
        objective: its ``vector`` is shown; grey is the zero vector, where its class begins.
        path: PNG to write; an SVG goes beside it.
        low, high: range of mean log-probabilities, nats per step.
    """
    names = {"psi": "ψ", "phi_inv": "φ⁻¹", "g": "g"}
    own, zero = objective.vector.detach().double(), torch.zeros(objective.dim, dtype=torch.float64)
    temporal = "progress" in objective.inputs
    times = TIMES if temporal else (0.5,)
    at = {t: torch.tensor(t, dtype=torch.float64) for t in times}
    logps = torch.linspace(low, high, points, dtype=torch.float64)
    scores = objective.functions(own, at[times[-1]])["phi_inv"](logps).detach()
    steps = 2 if objective.steps == "two" else 1
    widest = max(float(scores.max() - scores.min()) * steps, 1e-6)
    functions = [name for name in names if name in objective.functions(own, at[times[0]])]
    figure = new_figure(3.3 * len(functions), 5.4)
    axes = figure.subplots(2, len(functions), sharex="col", squeeze=False)
    curves = [(zero, times[-1], start_name(objective), MUTED, "-")]
    for t, line in zip(times, (":", "--", "-") if temporal else ("-",), strict=True):
        curves.append((own, t, f"learned, t = {t:g}" if temporal else "learned", CHOSEN, line))
    for column, name in enumerate(functions):
        x = torch.linspace(-widest, widest, points) if name == "g" else logps
        top, low_ax = axes[:, column]
        slopes = []
        for vector, t, label, colour, line in curves:
            value, slope = _with_slope(objective.functions(vector, at[t])[name], x.double())
            value = value - (value[points // 2] if name == "g" else value[-1])
            slopes.append(slope)
            top.plot(x, value, line, color=colour, label=label if column == 0 else None)
            low_ax.plot(x, slope, line, color=colour)
        kept = "" if name in objective.learn else ", not learned"
        top.set_title(names[name] + kept, fontsize=10)
        low_ax.set_xlabel("margin m" if name == "g" else "mean log-probability")
        _log_if_wide(low_ax, torch.stack(slopes))
        for ax in (top, low_ax):
            light(ax)
    axes[0, 0].set_ylabel("value, up to a constant")
    axes[1, 0].set_ylabel("slope")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    save_figure(figure, path)


def _with_slope(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = function(x)
    if not value.requires_grad:  # constant
        return value, torch.zeros_like(x)
    slope = torch.autograd.grad(value.sum(), x)[0]
    return value.detach(), slope


def _log_if_wide(ax, slopes: Tensor) -> None:
    """A logarithmic axis where slopes span orders of magnitude, and none is 0."""
    seen = slopes[torch.isfinite(slopes)]
    if len(seen) and float(seen.min()) > 0 and float(seen.max() / seen.min()) > 50:
        ax.set_yscale("log")


def light(axes) -> None:
    """A faint grid, and no frame at the top and on the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure, path: str | Path) -> None:
    """PNG at ``path`` and SVG beside it; the same figure is the same files."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "torchmpo"}), naming(path):
        figure.savefig(path, dpi=150)
        figure.savefig(Path(path).with_suffix(".svg"), metadata={"Date": None})


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained"):
    """A figure of so many inches that needs no display and leaves pyplot's state alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure
