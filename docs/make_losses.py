"""Writes docs/losses.md and its pictures from the losses themselves: ``make docs``.

What a card says of inputs, units, reference, coupling and defaults is read from the signature, its
prose from the docstring, and its picture is computed from the function: page and code cannot
disagree. ``tests/docs/test_loss_cards.py`` fails when this script was not run after a change.
"""

import inspect
import io
import json
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

import torchmpo.losses
from torchmpo.losses import COUPLED, LOSSES
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.inputs import is_unpaired
from torchmpo.runs.files import write_atomic

PAGE = Path(__file__).resolve().parent / "losses.md"
FIGURES = PAGE.parent / "figures" / "losses"

# The sections of a loss's docstring. `Raises` may be left out where nothing is refused.
SECTIONS = ("Args", "Returns", "Raises", "Bounds", "Defaults", "Limits", "Pitfalls", "Source")
BOUNDS = ("bounded below", "bounded", "unbounded below")

# Where the pictures are taken. Nats per step; a sum is STEPS times as large.
STEPS = 10
LOW = -3.0
REFERENCE = (-1.6, -1.2)
FIXED = {
    "chosen_lengths": STEPS,
    "rejected_lengths": STEPS,
    "ref_chosen_mean_logps": REFERENCE[0],
    "ref_rejected_mean_logps": REFERENCE[1],
    "chosen_rewards": 1.0,
    "rejected_rewards": 0.0,
    "preference_probs": 0.8,
    "gold_mean_logps": -0.5,
    "chosen_step_kl": 0.05,
    "rejected_step_kl": 0.2,
    "chosen_step_weights": 0.5,
    "rejected_step_weights": 0.5,
    "progress": 0.5,
}
# What a picture shows instead of defaults and FIXED values at which a loss is DPO, or hardly more
# than SFT.
SHOWN: dict[str, dict] = {
    "closed_form": {"sigmoid_coef": 0.5, "beta": 4.0, "softplus_coef": 0.5, "threshold": 1.0},
    "robust_dpo": {"label_smoothing": 0.2},
    "dpo_gamma": {"ref_coef": 0.5},
    "hypo": {"kl_coef": 0.3},
    "f_dpo": {"divergence": "js"},
    "mix_dpo": {"threshold": 1.0},
    "offset_dpo": {"target_margin": 2.0},
    "r_dpo": {"chosen_lengths": 90, "rejected_lengths": 10},
    "apo_zero_unpaired": {"undesirable_coef": 0.5},
    "samdpo": {"chosen_lengths": STEPS, "rejected_lengths": 3},
    "ld_dpo": {"chosen_lengths": STEPS, "rejected_lengths": 3},
}
# The other pairs of the batch, for a loss that looks at them.
COMPANIONS = {
    "chosen_mean_logps": (-0.6, -1.5, -2.2),
    "rejected_mean_logps": (-1.4, -0.9, -2.3),
    "ref_chosen_mean_logps": (-0.8, -0.9, -2.5),
    "ref_rejected_mean_logps": (-1.0, -1.5, -1.3),
}


# What a loss says of itself -----------------------------------------------------------------------


class Docstring(NamedTuple):
    """The parts of a loss's docstring; ``sections`` in the order in which they stand."""

    summary: str
    equation: str
    prose: str
    sections: dict[str, str]
    example: str


def parse(function: Callable) -> Docstring:
    """Take a docstring apart; a part that is missing is empty."""
    text, _, example = inspect.cleandoc(function.__doc__ or "").partition("\n>>> ")
    # A heading starts a line; what belongs to it is indented or follows the colon.
    head, *rest = re.split(r"^([A-Z][a-z]+):(?=\s)", text, flags=re.MULTILINE)
    summary, *paragraphs = re.split(r"\n\s*\n", head.strip())
    equation = [p for p in paragraphs if p.startswith((" ", "loss = ", "loss_k = "))]
    return Docstring(
        summary=" ".join(summary.split()),
        equation="\n\n".join(textwrap.dedent(p) for p in equation),
        prose="\n\n".join(p for p in paragraphs if p not in equation),
        sections={
            name: textwrap.dedent(body).strip()
            for name, body in zip(rest[::2], rest[1::2], strict=True)
        },
        example=">>> " + example.strip() if example else "",
    )


def arguments(doc: Docstring) -> list[tuple[list[str], str]]:
    """The entries of ``Args``: which parameters an entry is about, and what it says."""
    entries = re.split(r"^(?=\S)", doc.sections.get("Args", ""), flags=re.MULTILINE)
    parts = [entry.partition(":") for entry in entries if entry.strip()]
    return [(re.split(r",\s*", names), description.strip()) for names, _, description in parts]


def bound(doc: Docstring) -> str:
    """The words with which ``Bounds`` starts; empty if they are none of :data:`BOUNDS`."""
    text = " ".join(doc.sections.get("Bounds", "").lower().split())
    return next((words for words in BOUNDS if re.match(rf"{words}\b", text)), "")


def problems(name: str) -> list[str]:
    """What the docstring of a loss lacks, or says otherwise than the signature."""
    doc = parse(LOSSES[name])
    sections = [s for s in SECTIONS if s != "Raises" or s in doc.sections]
    parameters = list(inspect.signature(LOSSES[name]).parameters)
    described = [parameter for names, _ in arguments(doc) for parameter in names]
    found = [f"section {s} is empty" for s, body in doc.sections.items() if not body]
    if list(doc.sections) != sections:
        found.append(f"sections must be {', '.join(sections)}; got {', '.join(doc.sections)}")
    if described != parameters:
        found.append(f"Args must describe {', '.join(parameters)}; got {', '.join(described)}")
    if not doc.equation:
        found.append("an equation, 'loss = …', must follow the summary")
    if not bound(doc):
        found.append(f"Bounds must start with one of: {', '.join(BOUNDS)}")
    if not doc.example:
        found.append("an example (>>>) must end the docstring")
    return [f"{name}: {problem}" for problem in found]


def inputs(function: Callable) -> list[str]:
    """The names of a loss's positional parameters."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]


def unit(function: Callable) -> str:
    """Which of the policy's log-probabilities a loss reads."""
    own = {name for name in inputs(function) if not name.startswith("ref_")}
    reduction = inspect.signature(function).parameters.get("reduction")
    if reduction is not None:
        return f"sums or means (default {reduction.default})"
    sums = bool(own & {"chosen_logps", "rejected_logps", "logps", "list_logps"})
    if any("_step_logps" in name for name in own):
        return "steps"
    means = bool(own & {"chosen_mean_logps", "rejected_mean_logps"})
    return " and ".join(["sums"] * sums + ["means"] * means)


# The page -----------------------------------------------------------------------------------------


def introduction() -> str:
    """What stands above the cards."""
    chosen, rejected = map(minus, REFERENCE)
    others = [
        "(" + ", ".join(map(minus, pair)) + ")" for pair in zip(*COMPANIONS.values(), strict=True)
    ]
    return f"""\
# The losses

<!-- Written by `make docs` from torchmpo/losses/: edit the docstrings there. -->
<!-- fmt: off -->

A loss is a pure function: log-probabilities first and by position, hyper-parameters by keyword, one
value per pair out, to be minimised. `from torchmpo.losses import simpo_loss` gives the function,
`torchmpo.resolve("simpo", beta=2.0)` the function with its hyper-parameters bound. The mean over
the batch is left to the caller. This page says what each loss is; the cards are written from the
code.

## How to read a card

| sign | code | meaning |
|---|---|---|
| c, r | `chosen_logps`, `rejected_logps` | log π(y\\|x) of the whole response: the **sum** over \
its steps (tokens, or actions of a trajectory); nats |
| c̄, r̄ | `chosen_mean_logps`, `rejected_mean_logps` | the same divided by the number of steps; \
nats per step |
| c', r', c̄', r̄' | `ref_chosen_logps`, … | the same under the frozen reference policy |
| n_c, n_r | `chosen_lengths`, `rejected_lengths` | how many steps were summed |
| R_c, R_r | `chosen_rewards`, `rejected_rewards` | scores of a reward model or a judge |
| s_i | `list_logps`, `ref_list_logps` | β times the log-ratio of response i of a ranked list |
| ḡ | `gold_mean_logps` | of a third response |
| y_i | `own_logps`, `ref_own_logps`, `calibration_logps` | responses drawn while a policy learns: \
its own, and others; in pictures those of the pair |
| h_t | `chosen_step_logps`, `ref_chosen_step_logps`, … | the log-ratio of a single step |
| K_t | `chosen_step_kl`, … | KL(π_ref ‖ π) of a step's whole distribution |
| p | `preference_probs` | probability that the chosen response is the better one |
| y, y' | `logps`, `ref_logps` | of single responses: the sum, and the same under the reference |
| λ, ± | `desirable` | the label of a single response: whether it is a good one |
| h_c, h_r, h | | log-ratios to the reference, c − c', r − r' and y − y' |
| Δ, Δ̄, Δ₀ | | c − r, c̄ − r̄, and the reference's c' − r' |
| D, x | | D = h_c − h_r = Δ − Δ₀, the margin against the reference; x = βD |
| S, LS | | the logistic function and its logarithm |

Feed log-probabilities of what the policy produced and of nothing else: a response's tokens without
prompt and padding, a trajectory's actions as they were sampled, before clipping. Sums and means
differ by the length, so a β for one is not a β for the other. The reference's log-probabilities are
data: compute them without dropout; no gradient flows into them. Types: float32, float64, or
bfloat16; convert float16 with `.float()` first, since some losses exceed its range.

- **Reads** sums or means of log-probabilities, or those of single steps, as the names of its inputs
  demand.
- **Reference**: whether log-probabilities of a reference policy are among its inputs.
- **Coupled**: whether a pair's value depends on the other pairs of its batch. Such a loss becomes
  another loss when a batch is split, as gradient accumulation does.
- **Bounded**: for log-probabilities ≤ 0, a given reference and the default hyper-parameters.
  *Unbounded below* means that some direction pays for ever.
- **Picture**: the chosen response's log-probability grows to the right, the rejected one's upwards;
  below the dotted diagonal the policy prefers the chosen one. Left, the value of the loss. Middle
  and right, how gradient descent pushes the two log-probabilities, −∂loss/∂chosen and
  −∂loss/∂rejected, on one scale: blue raises a likelihood, red lowers it, white leaves it alone.
  Triangles at the ends of the colour bar say that larger values occur. Hyper-parameters have their
  defaults, unless the card says otherwise. Both responses have {STEPS} steps, so a picture over
  sums shows the same policies as one over means. The reference (×) prefers the rejected response,
  c̄' = {chosen} and r̄' = {rejected}; the policy agrees with it on the dashed line, D = 0. Of a
  coupled loss the picture shows the sum over a batch of {1 + len(others)} pairs; the others
  stay at (c̄, r̄, c̄', r̄') = \
{", ".join(others)}.
"""


def minus(number: float) -> str:
    """A number as prose writes it."""
    return f"{number:g}".replace("-", "−")


def markdown(text: str) -> str:
    """A docstring's prose as Markdown: a line per paragraph, indented blocks as code."""

    def role(match: re.Match) -> str:
        target = match[1].split(".")[-1]
        loss = target.removesuffix("_loss")
        return f"[`{loss}`](#{loss})" if LOSSES.get(loss) else f"`{match[1]}`"

    blocks = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if paragraph.startswith("    "):
            blocks.append(f"```text\n{textwrap.dedent(paragraph)}\n```")
            continue
        line = " ".join(paragraph.split())
        line = re.sub(r":\w+:`([^`]+)`", role, line).replace("``", "`")
        blocks.append(re.sub(r"<(?=[A-Za-z/!])", r"\\<", line))
    return "\n\n".join(blocks)


def cell(text: str) -> str:
    """Text that stands in a table."""
    return text.replace("|", "\\|")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


class Facts(NamedTuple):
    """What the table and the card say of a loss without its prose."""

    reads: str
    reference: bool
    coupled: bool
    bounded: str


def facts(function: Callable) -> Facts:
    """The facts about a registered loss, from its signature; ``bounded`` from its docstring."""
    objective = Objective(function)
    return Facts(
        unit(function), objective.needs_reference, objective.coupled, bound(parse(function))
    )


def traits(function: Callable) -> str:
    """The facts as a line."""
    reads, reference, coupled, bounded = facts(function)
    return " · ".join(
        [
            f"Reads {reads}",
            "needs a reference" if reference else "no reference",
            "**coupled**: looks at the rest of the batch" if coupled else "each pair by itself",
            bounded,
        ]
    )


def figure_lines(name: str) -> str:
    """A card's picture, and what it keeps fixed that a reader cannot guess."""
    fixed = [f for f in inputs(LOSSES[name]) if f in FIXED and not f.startswith("ref_")]
    values = {field: FIXED[field] for field in fixed} | SHOWN.get(name, {})
    notes = [
        f"`{field}` = {value if isinstance(value, str) else minus(value)}"
        for field, value in values.items()
    ]
    if is_unpaired(inputs(LOSSES[name])):
        notes.append("two single responses, the chosen one desirable and the rejected one not")
    if "list_logps" in inputs(LOSSES[name]):
        notes.append("a list of three, the last of which stays at −1.4, and its reference at −1")
    if name in COUPLED:
        notes.append(f"the sum over a batch of {1 + len(COMPANIONS['chosen_mean_logps'])} pairs")
    caption = f"\n\nPicture: {', '.join(notes)}." if notes else ""
    return f"![{name}: value and gradients](figures/losses/{name}.png){caption}"


def argument_table(function: Callable) -> str:
    """What ``Args`` says, with the defaults of the signature."""
    signature, rows = inspect.signature(function).parameters, []
    for names, description in arguments(parse(function)):
        parameters = [signature[name] for name in names]
        keyword = parameters[0].kind is inspect.Parameter.KEYWORD_ONLY
        defaults = [f"`{p.default!r}`" for p in parameters if p.default is not p.empty]
        rows.append(
            [
                ", ".join(f"`{name}`" for name in names),
                "hyper-parameter" if keyword else "input",
                ", ".join(dict.fromkeys(defaults)) or "–",
                markdown(description),
            ]
        )
    return table(["argument", "kind", "default", "what it is"], rows)


def example(function: Callable) -> str:
    """The doctest, with the imports that it finds in its module."""
    text = parse(function).example
    imports = [f">>> from torchmpo.losses import {function.__name__}"]
    if "torch." in text and ">>> import torch\n" not in text:
        imports.insert(0, ">>> import torch")
    return "\n".join([*imports, text])


def card(function: Callable) -> str:
    """All about one loss; about one that is not in ``LOSSES``, what its docstring has."""
    doc = parse(function)
    name = {f: name for name, f in LOSSES.items()}.get(function)
    titles = {
        "Bounds": "Bounded",
        "Defaults": "Defaults",
        "Limits": "Limits and identities",
        "Pitfalls": "Known to get wrong",
        "Source": "Source",
    }
    sections = [
        f"- **{title}:** {markdown(doc.sections[section])}"
        for section, title in titles.items()
        if section in doc.sections
    ]
    parts = [
        f"### {name or function.__name__}",
        markdown(doc.summary),
        traits(function) if name else "",
        f"```text\n{doc.equation}\n```",
        figure_lines(name) if name else "",
        argument_table(function),
        markdown(doc.prose),
        "\n".join(sections),
        f"```pycon\n{example(function)}\n```",
    ]
    return "\n\n".join(part for part in parts if part)


def families() -> dict[str, list[Callable]]:
    """The public losses by the module they are in, registered ones first."""
    public = [vars(torchmpo.losses)[n] for n in torchmpo.losses.__all__ if n.endswith("_loss")]
    groups: dict[str, list[Callable]] = {}
    for function in dict.fromkeys([*LOSSES.values(), *public]):
        groups.setdefault(function.__module__, []).append(function)
    return groups


def page() -> str:
    """docs/losses.md."""
    rows = []
    for name, function in LOSSES.items():
        reads, reference, coupled, bounded = facts(function)
        # The first line of the equation, without its left side.
        equation = parse(function).equation.split("\n")[0].partition(" = ")[2]
        marks = ["yes" if fact else "–" for fact in (reference, coupled)]
        rows.append([f"[{name}](#{name})", f"`{equation}`", reads, *marks, bounded])
    head = ["name", "loss", "reads", "reference", "coupled", "bounded"]
    parts = [introduction(), f"## All losses\n\n{table(head, rows)}\n"]
    for module, functions in families().items():
        title, _, text = inspect.cleandoc(import_module(module).__doc__ or "").partition("\n\n")
        parts.append(f"## {' '.join(title.split()).rstrip('.')}\n\n{markdown(text)}\n")
        parts += [f"{card(function)}\n" for function in functions]
    return "\n".join(parts)


# The pictures -------------------------------------------------------------------------------------


def surface(
    name: str, chosen: Tensor, rejected: Tensor, settings: Mapping = MappingProxyType({})
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, −∂loss/∂chosen and −∂loss/∂rejected at every combination of log-probabilities.

    Args:
        name: in ``LOSSES``.
        chosen, rejected: ``[n]`` and ``[m]``, nats per step.
        settings: hyper-parameters instead of the defaults, inputs instead of ``FIXED`` ones.

    Returns:
        three tensors ``[n, m]``, float64. Derivatives are with respect to sums where the loss reads
        sums, else to means; means that it reads beside sums move along.
    """
    function, coupled = LOSSES[name], name in COUPLED
    steps = 1 if unit(function) == "means" else STEPS
    grid = torch.meshgrid(steps * chosen.double(), steps * rejected.double(), indexing="ij")
    c, r = (logps.flatten().requires_grad_() for logps in grid)
    batch = {}  # [n·m, pairs]; a coupled loss looks at its own batch, so each point has one
    hyper = {key: value for key, value in settings.items() if key not in FIXED}
    fields = (
        FIXED | dict(settings) | {"chosen_mean_logps": c / steps, "rejected_mean_logps": r / steps}
    )
    for field, value in fields.items():
        if field in hyper:
            continue
        own = torch.as_tensor(value, dtype=torch.double).expand(len(c))
        others = COMPANIONS.get(field, [value] * 3) if coupled else []
        rest = torch.tensor(others, dtype=torch.double).expand(len(c), -1)
        batch[field] = torch.cat([own[:, None], rest], dim=1)
        if field.endswith("_mean_logps"):
            batch[field.replace("_mean", "")] = batch[field] * STEPS
    for prefix in ("", "ref_"):
        sides = [batch[f"{prefix}{side}_logps"] for side in ("chosen", "rejected")]
        batch[f"{prefix}logps"] = torch.cat(sides, dim=1)
    batch["desirable"] = torch.arange(batch["logps"].shape[1]) < batch["chosen_logps"].shape[1]
    batch["desirable"] = batch["desirable"].expand(len(c), -1)
    for side in ("chosen", "rejected"):
        place = torch.arange(STEPS)
        batch[f"{side}_mask"] = place < batch[f"{side}_lengths"][..., None]
        for field in (f"{side}_step_logps", f"ref_{side}_step_logps"):  # alike at every step
            mean = batch[field.replace("_step", "_mean")]
            batch[field] = mean[..., None].expand(*mean.shape, STEPS)
        for field in (f"{side}_step_kl", f"{side}_step_weights"):
            batch[field] = batch[field][..., None].expand(*batch[field].shape, STEPS)
    for prefix, third in (("", -1.4), ("ref_", -1.0)):
        sides = [batch[f"{prefix}{side}_mean_logps"] for side in ("chosen", "rejected")]
        listed = torch.stack([*sides, torch.full_like(sides[0], third)], -1)
        batch[f"{prefix}list_logps"] = listed * STEPS
        batch[f"{prefix}own_logps"] = torch.stack(sides, -1) * STEPS  # drawn: those of the pair
    batch["calibration_logps"] = batch["own_logps"]
    # An input that may be left out is.
    data = {field: batch[field] for field in inputs(function) if field in batch}
    value = torch.vmap(lambda pairs: function(**pairs, **hyper).sum())(data)
    # SFT does not look at the rejected response.
    gradients = torch.autograd.grad(value.sum(), (c, r), allow_unused=True, materialize_grads=True)
    value, by_chosen, by_rejected = (x.detach().reshape(grid[0].shape) for x in (value, *gradients))
    return value, -by_chosen, -by_rejected


def samples(name: str) -> list[list[float]]:
    """Value and gradients on a coarse grid: what a picture carries to show that it is not stale."""
    # Grids of different size stay clear of the lines where losses jump: Δ = 0 and D = 0.
    maps = surface(name, middles(7), middles(6), SHOWN.get(name, {}))
    return [[float(f"{x:.6g}") for x in values.flatten().tolist()] for values in maps]


def middles(points: int) -> Tensor:
    """The middles of ``points`` equal cells of [LOW, 0]."""
    return LOW * (1 - (torch.arange(points, dtype=torch.float64) + 0.5) / points)


def picture(name: str) -> bytes:
    """A PNG of a loss's value and gradients, with :func:`samples` as its text chunk ``samples``."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from PIL import Image, PngImagePlugin

    steps = 1 if unit(LOSSES[name]) == "means" else STEPS
    figure = Figure(figsize=(9.0, 2.9), dpi=100, layout="compressed")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3, sharex=True, sharey=True)

    def draw(ax, title: str, values: Tensor, levels, colours: str) -> None:
        # Bands, whose edges are contours. The palest and darkest colours would hide the lines.
        bands = colormaps[colours](torch.linspace(0.1, 0.9, len(levels) - 1).numpy())
        ax.imshow(
            values.T.numpy(),
            extent=(LOW * steps, 0, LOW * steps, 0),
            origin="lower",
            cmap=ListedColormap(bands),
            norm=BoundaryNorm(levels, len(bands)),
        )
        ax.axline((0, 0), slope=1, color="black", linewidth=0.9, linestyle=":")
        if Objective(LOSSES[name]).needs_reference:
            c, r = (steps * x for x in REFERENCE)
            ax.axline((c, r), slope=1, color="black", linewidth=0.9, linestyle="--")
            ax.plot([c], [r], "x", color="black", markersize=5)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("chosen: c (nats)" if steps > 1 else "chosen: c̄ (nats per step)", fontsize=9)
        ax.tick_params(labelsize=8)

    # So many points that none is exactly where a loss jumps.
    value, *pushes = surface(name, middles(358), middles(358), SHOWN.get(name, {}))
    floor, top = float(value.min()), robust_max(value - value.min())
    levels = MaxNLocator(12).tick_values(floor, floor + top)
    draw(axes[0], f"{name}: loss", value, levels, "YlGnBu")
    axes[0].set_ylabel("rejected: r" if steps > 1 else "rejected: r̄", fontsize=9)
    beyond = "max" if value.max() > levels[-1] else "neither"
    figure.colorbar(axes[0].images[0], ax=axes[0], extend=beyond, aspect=25, pad=0.02)

    sizes = torch.stack(pushes).abs()
    levels = MaxNLocator(16, symmetric=True).tick_values(-robust_max(sizes), robust_max(sizes))
    for ax, push, side in zip(axes[1:], pushes, ("chosen", "rejected"), strict=True):
        shown = torch.where(push == 0, torch.nan, push)  # NaN is white
        draw(ax, f"−∂loss/∂{side}", shown, levels, "RdBu")
    beyond = "both" if sizes.max() > levels[-1] else "neither"
    figure.colorbar(axes[2].images[0], ax=axes[1:], extend=beyond, aspect=25, pad=0.01)
    for ax in figure.axes[3:]:
        ax.tick_params(labelsize=8)

    canvas.draw()
    # Its 256 most frequent colours as a palette, which all bands are among: a third of the size.
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.int32)
    colours, place, counts = pixels.unique(return_inverse=True, return_counts=True)
    colours = colours.view(torch.uint8).reshape(-1, 4)[:, :3]
    palette = colours[counts.argsort(descending=True, stable=True)[:256]]
    nearest = torch.cdist(colours.double(), palette.double()).argmin(dim=1)
    size = canvas.get_width_height()
    image = Image.frombytes("P", size, nearest[place].to(torch.uint8).numpy().tobytes())
    image.putpalette(palette.flatten().tolist())
    text, file = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_text("samples", json.dumps(samples(name)))
    image.save(file, "PNG", optimize=True, pnginfo=text)
    return file.getvalue()


def robust_max(values: Tensor) -> float:
    """The largest value, or the 98th percentile where a few values are far larger than that."""
    ordered = values.flatten().sort().values
    usual, largest = float(ordered[int(0.98 * len(ordered))]), float(ordered[-1])
    return usual if 0 < 1.5 * usual < largest else largest


def main() -> int:
    """Write the page and all pictures; remove pictures of losses that are gone."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    for path in FIGURES.glob("*.png"):
        if path.stem not in LOSSES:
            path.unlink()
    for name in LOSSES:
        write_atomic(FIGURES / f"{name}.png", picture(name))
    write_atomic(PAGE, page())
    found = [problem for name in LOSSES for problem in problems(name)]
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
