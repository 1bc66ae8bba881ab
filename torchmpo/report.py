"""What a run says at its end: the statistics of the comparison, and the figures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from torchmpo.objective import MirrorObjective, Objective, PairLogps

CHOSEN, REJECTED, MUTED = "#1b6ca8", "#c8553d", "#8a8f98"


class Mean(NamedTuple):
    """A mean over independent seeds with its standard error and 95 % interval."""

    mean: float
    se: float
    low: float
    high: float


def mean_of(values: Sequence[float]) -> Mean:
    """Mean ± s.e. and 95 % t-interval of independent values (at least two)."""
    from scipy.stats import t

    x = torch.as_tensor(values, dtype=torch.float64)
    mean, se = float(x.mean()), float(x.std() / math.sqrt(len(x)))
    half = float(t.ppf(0.975, len(x) - 1)) * se
    return Mean(mean, se, mean - half, mean + half)


def compare(scores: Mapping[str, Sequence[float]]) -> dict:
    """Mean score of each objective, and of the first minus each other one, paired by seed.

    Args:
        scores: objective → one score per seed (the same seeds in the same order for all), the one
            to be judged first. NaN where a training diverged.

    Returns:
        ``{"objectives": {name: {mean, se, low, high, diverged}}, "differences": {…}}``, made of
        python numbers, ready for JSON; numbers are ``None`` where NaN leaves nothing to say.
    """
    first, *others = scores
    failed = {name: sum(map(math.isnan, values)) for name, values in scores.items()}

    def summary(values: Sequence[float], diverged: int) -> dict:
        numbers = dict.fromkeys(Mean._fields) if diverged else mean_of(values)._asdict()
        return {**numbers, "diverged": diverged}

    objectives = {name: summary(values, failed[name]) for name, values in scores.items()}
    differences = {}
    for other in others:
        paired = [a - b for a, b in zip(scores[first], scores[other], strict=True)]
        differences[other] = summary(paired, sum(map(math.isnan, paired)))
    return {"objectives": objectives, "differences": differences}


def verdict(comparison: Mapping) -> str:
    """One honest line per rival: better, worse, or no improvement shown."""
    lines = []
    for name, difference in comparison["differences"].items():
        if difference["diverged"]:
            lines.append(f"vs {name}: not comparable, {difference['diverged']} trainings diverged")
            continue
        if difference["low"] > 0:
            word = "improvement"
        elif difference["high"] < 0:
            word = "worse"
        else:
            word = "no improvement (the interval contains 0)"
        lines.append(
            f"vs {name}: {word}, {difference['mean']:+.0f} "
            f"[{difference['low']:+.0f}, {difference['high']:+.0f}]"
        )
    return "\n".join(lines)


def table(comparison: Mapping) -> str:
    """Mean ± s.e. per objective and paired difference with its 95 % interval, as text."""
    width = max(map(len, comparison["objectives"]))
    lines = [f"{'objective':<{width}}  {'return':>16}   first minus this one, 95 % interval"]
    for name, own in comparison["objectives"].items():
        value = (
            f"{own['diverged']} diverged"
            if own["diverged"]
            else f"{own['mean']:8.0f} ± {own['se']:<5.0f}"
        )
        line = f"{name:<{width}}  {value:>16}"
        if (d := comparison["differences"].get(name)) and not d["diverged"]:
            line += f"   {d['mean']:+.0f} [{d['low']:+.0f}, {d['high']:+.0f}]"
        lines.append(line.rstrip())
    return "\n".join(lines)


def fitness_figure(log: Sequence[Mapping], path: str | Path) -> None:
    """Fitness of the centre, the population's mean and its best member over the generations.

    Args:
        log: rows of ``log.csv`` with numbers or ``None``.
        path: PNG to write.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(7.0, 4.0)
    axes = figure.subplots()
    styles = {
        "best": ("best member", MUTED, "--"),
        "mean": ("population mean", REJECTED, "-"),
        "centre": ("centre", CHOSEN, "-"),
    }
    for column, (label, colour, style) in styles.items():
        points = [(r["generation"], r[column]) for r in log if r[column] is not None]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, style, color=colour, label=label, marker="o", markersize=3.5)
    failed = [(r["generation"], r["nan"]) for r in log if r["nan"]]
    axes.set(xlabel="generation", ylabel="fitness (mean return)", title="Search")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if failed:
        axes.set_title(f"{sum(n for _, n in failed)} members failed (NaN)", loc="right", fontsize=8)
    axes.legend(frameon=False, loc="best")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def gradient_map(
    objective: Objective | MirrorObjective,
    chosen: Tensor,
    rejected: Tensor,
    *,
    reference: float = -2.0,
    progress: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """∂loss/∂chosen and ∂loss/∂rejected at every combination of mean log-probabilities.

    Args:
        objective: any that reads mean or summed log-probabilities and lengths; a response counts
            as one step long, so that sums and means are the same.
        chosen, rejected: ``[n]`` and ``[m]``, nats per step.
        reference: the reference's mean log-probability of both.
        progress: in [0, 1].

    Returns:
        two tensors ``[n, m]``, float64.
    """
    c, r = torch.meshgrid(chosen.double(), rejected.double(), indexing="ij")
    c, r = c.reshape(-1).requires_grad_(), r.reshape(-1).requires_grad_()
    ref, one = torch.full_like(c, reference).detach(), torch.ones_like(c).detach()
    pair = PairLogps(
        chosen_logps=c,
        rejected_logps=r,
        chosen_mean_logps=c,
        rejected_mean_logps=r,
        chosen_lengths=one,
        rejected_lengths=one,
        ref_chosen_logps=ref,
        ref_rejected_logps=ref,
        ref_chosen_mean_logps=ref,
        ref_rejected_mean_logps=ref,
        progress=torch.tensor(progress, dtype=torch.float64),
    )
    if isinstance(objective, MirrorObjective):
        loss = objective.apply(objective.vector.detach().double(), pair)
    else:
        loss = objective(pair)
    grads = torch.autograd.grad(loss.sum(), (c, r), allow_unused=True, materialize_grads=True)
    shape = (len(chosen), len(rejected))
    return grads[0].reshape(shape), grads[1].reshape(shape)


def gradient_figure(
    objectives: Mapping[str, Objective | MirrorObjective],
    path: str | Path,
    *,
    low: float = -8.0,
    high: float = -0.05,
    points: int = 120,
) -> None:
    """The gradient maps of several objectives side by side, as in the paper's figure 5.

    A column is an objective. Its two maps share one scale, divided by its largest gradient (98th
    percentile), because training under a clipped Adam sees ratios and not sizes; the size is in the
    title. Negative (blue) raises the log-probability, positive (red) lowers it.

    Args:
        objectives: title → objective.
        path: PNG to write.
        low, high: range of mean log-probabilities, nats per step.
    """
    grid = torch.linspace(low, high, points, dtype=torch.float64)
    figure = _figure(3.1 * len(objectives) + 1.1, 6.2)
    axes = figure.subplots(2, len(objectives), sharex=True, sharey=True, squeeze=False)
    for column, (title, objective) in enumerate(objectives.items()):
        maps = gradient_map(objective, grid, grid)
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
    figure.savefig(path, dpi=150)


def _figure(width: float, height: float):
    """A figure that needs no display and leaves pyplot's state alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
