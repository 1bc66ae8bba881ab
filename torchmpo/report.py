"""What a run says at its end, and what an objective is: statistics, tables and figures."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from torchmpo.objective import INITIAL, MirrorObjective, Objective, PairLogps

CHOSEN, REJECTED, MUTED = "#1b6ca8", "#c8553d", "#8a8f98"
SERIES = (CHOSEN, REJECTED, "#4c956c", "#8e6bbf", "#b8860b", "#3a3f45")
TIMES = (0.0, 0.5, 1.0)  # of training, where an objective that depends on it is shown
HIGHEST = 2.0  # spikes of a pull beyond this many times its 95th percentile are cut off


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
        path: PNG to write; an SVG goes beside it.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7.0, 4.0)
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
    _save(figure, path)


def gradients(
    objective: Objective | MirrorObjective,
    chosen: Tensor,
    rejected: Tensor,
    *,
    reference: float = -2.0,
    progress: float | Tensor = 0.5,
) -> tuple[Tensor, Tensor]:
    """∂loss/∂chosen and ∂loss/∂rejected of pairs with these mean log-probabilities.

    Args:
        objective: any that reads mean or summed log-probabilities and lengths; a response counts
            as one step long, so that sums and means are the same.
        chosen, rejected: ``[n]``, nats per step.
        reference: the reference's mean log-probability of both.
        progress: in [0, 1], for all or ``[n]``.

    Returns:
        two tensors ``[n]``, float64.

    Raises:
        ValueError: the objective needs more than that, or looks at the rest of the batch.
    """
    if objective.coupled:
        raise ValueError(f"{objective.name} has no gradient of a pair: it depends on the batch")
    c, r = (x.detach().double().clone().requires_grad_() for x in (chosen, rejected))
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
        progress=torch.as_tensor(progress, dtype=torch.float64),
    )
    if isinstance(objective, MirrorObjective):
        loss = objective.apply(objective.vector.detach().double(), pair)
    else:
        loss = objective(pair)
    by_chosen, by_rejected = torch.autograd.grad(
        loss.sum(), (c, r), allow_unused=True, materialize_grads=True
    )
    return by_chosen, by_rejected


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
        chosen, rejected: ``[n]`` and ``[m]``, nats per step.
        objective, reference, progress: as for :func:`gradients`.

    Returns:
        two tensors ``[n, m]``, float64.

    Raises:
        ValueError: as :func:`gradients`.
    """
    c, r = torch.meshgrid(chosen.double(), rejected.double(), indexing="ij")
    flat = c.reshape(-1), r.reshape(-1)
    maps = gradients(objective, *flat, reference=reference, progress=progress)
    return maps[0].reshape(c.shape), maps[1].reshape(c.shape)


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
    _save(figure, path)


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
            ax.grid(alpha=0.25)
            ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("raises the chosen\n−∂loss/∂c̄, of its 95th percentile")
    axes[1, 0].set_ylabel("lowers the rejected\n∂loss/∂r̄, of its 95th percentile")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    _save(figure, path)


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
            ax.grid(alpha=0.25)
            ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("value, up to a constant")
    axes[1, 0].set_ylabel("slope")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    _save(figure, path)


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


def _save(figure, path: str | Path) -> None:
    """PNG at ``path`` and SVG beside it; the same figure is the same files."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "torchmpo"}):
        figure.savefig(path, dpi=150)
        figure.savefig(Path(path).with_suffix(".svg"), metadata={"Date": None})


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained"):
    """A figure of so many inches that needs no display and leaves pyplot's state alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure
