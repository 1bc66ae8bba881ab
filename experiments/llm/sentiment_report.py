"""The report of ``sentiment_study.py``: numbers, figures, and a page that opens from disk."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from scipy.stats import t as student_t

from experiments.llm.pieces import read_json
from torchmpo.diagnose.report.figures import INK, LINE, MUTED, save
from torchmpo.diagnose.report.html import (
    ELEMENTS,
    Cell,
    Section,
    amount,
    document,
    figure,
    heading,
    nested,
    say,
    table,
)
from torchmpo.figures import SERIES, new_figure
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import write_atomic

# Preference losses with a term for the likelihood of chosen answers, and without one.
ANCHORED, FREE = ("slic_hf", "cpo", "orpo", "colpo"), ("dpo", "simpo")
MARKERS = "osD^vP*X"
TITLE = "Preference losses on the sentiment of film reviews"


def summary(values: NDArray, most: float = np.inf) -> dict[str, float]:
    """A mean with the 95 % interval that holds for other seeds and other prompts.

    Every seed answers the same prompts, so both are sampled: the means of the seeds spread, and so
    do the means of the prompts. The half-width is the root of the sum of the squares of the two
    t intervals' (a little too wide, since either spread has something of the other in it).

    Args:
        values: ``[seeds, prompts]``; the difference of two losses is that of their values.
        most: of shares, the largest there is; the interval stays between 0 and it.

    Returns:
        ``{"mean", "se", "low", "high"}``; of one seed, what prompts alone leave open.
    """
    mean, error, half = float(values.mean()), 0.0, 0.0
    for means in (values.mean(1), values.mean(0)):
        if (n := len(means)) > 1:
            own = float(means.std(ddof=1)) / n**0.5
            error += own**2
            half += (own * float(student_t.ppf(0.975, n - 1))) ** 2
    half, least = half**0.5, 0.0 if np.isfinite(most) else -np.inf
    low, high = max(mean - half, least), min(mean + half, most)
    return {"mean": mean, "se": error**0.5, "low": low, "high": high}


def write_report(folder: str | Path) -> str:
    """Write ``results.json``, ``results.csv``, ``figures/`` and ``report.html``.

    What is not finished is left out: a loss on a kind of data counts when all its seeds are there.

    Args:
        folder: of a run of the study.

    Returns:
        a table for the terminal.

    Raises:
        UserError: there is no run, or nothing of it is finished.
    """
    folder = Path(folder)
    about, baselines, finals, trials = _read(folder)
    results = results_of(about, baselines, finals, trials)
    results["pairs"] = read_json(folder / "pairs.json")
    write_atomic(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_atomic(folder / "results.csv", _csv(results["rows"]))
    (folder / "figures").mkdir(exist_ok=True)
    write_atomic(folder / "report.html", _page(folder, about, results, trials, finals, baselines))
    return "\n".join(markdown(results))


def _read(folder: Path):
    about = read_json(folder / "study.json")
    seeds = about["settings"]["seeds"]
    baselines = [read_json(folder / f"baselines-{seed}.json") for seed in range(1, seeds + 1)]
    finals: dict[tuple[str, str], list[dict]] = {}
    trials: dict[tuple[str, str], list[dict]] = {}
    for path in sorted((folder / "cells").glob("*.json")):
        found = read_json(path)
        of = trials if found["what"] == "trial" else finals
        of.setdefault((found["kind"], found["loss"]), []).append(found)
    finals = {key: rows for key, rows in finals.items() if len(rows) == seeds}
    if not finals:
        raise UserError(f"no loss in {folder} has all its seeds yet")
    return about, baselines, finals, trials


def results_of(about, baselines, finals, trials) -> dict[str, Any]:
    """All that the report says, ready for JSON.

    A seed that diverged loses every comparison.
    """
    prompts = about["settings"]["test"]
    wins: dict[tuple[str, str], NDArray] = {}
    rows = []
    for kind in about["settings"]["kinds"]:
        for loss in about["settings"]["losses"]:
            if (kind, loss) in finals:
                row, wins[kind, loss] = _row(finals[kind, loss], prompts)
                known = [t["validation"] for t in trials[kind, loss] if t["validation"] is not None]
                own = {"kind": kind, "loss": loss, "setting": finals[kind, loss][0]["setting"]}
                rows.append(own | {"validation": max(known, default=None)} | row)
    start = {
        name: _row([seed[name] for seed in baselines], prompts)[0]
        for name in ("original", "target")
    }
    for row in rows:
        key, sft, base = (row["kind"], row["loss"]), (row["kind"], "sft"), ("base", row["loss"])
        if sft in wins and key != sft:
            row["minus_sft"] = summary(wins[key] - wins[sft])
        if base in wins and key != base:
            row["minus_base"] = summary(wins[key] - wins[base])
    groups = {}
    for kind in about["settings"]["kinds"]:
        sides = [[(kind, loss) for loss in group] for group in (ANCHORED, FREE)]
        if all(key in wins for side in sides for key in side):
            anchored, free = (np.mean([wins[key] for key in side], axis=0) for side in sides)
            groups[kind] = summary(anchored - free)
    return {"about": about, "baselines": start, "rows": rows, "anchored_minus_free": groups}


def _row(cells: Sequence[Mapping], prompts: int) -> tuple[dict[str, Any], NDArray]:
    """One line of the table, and the wins in percent, ``[seeds, prompts]``."""
    lost = np.zeros(prompts)
    wins = np.stack([100 * np.array(c.get("preferences", lost)) for c in cells])
    row: dict[str, Any] = {
        "diverged": sum("error" in c for c in cells),
        "win_rate": summary(wins, 100.0),
        "seeds": [round(float(x), 2) for x in wins.mean(1)],
    }
    done = [c for c in cells if "error" not in c]
    if len(done) < len(cells):
        return row, wins
    lengths, before = (
        np.stack([c[name] for c in done]) for name in ("characters", "before_characters")
    )
    row["hard_win_rate"] = summary(100 * (np.sign(wins - 50) + 1) / 2, 100.0)
    row["lc_win_rate"] = _over_seeds(
        [c["lc_win_rate"] for c in done], [c["lc_error"] for c in done]
    )
    row["annotator"] = _over_seeds([c["annotator"] for c in done])
    row["characters"] = summary(lengths)
    row["before_characters"] = summary(before)
    if "vader" in done[0]:
        row["vader"] = summary(np.stack([100 * np.array(c["vader"]) for c in done]), 100.0)
    if "kl" in done[0]:
        row["kl"] = _over_seeds([c["kl"] for c in done], [c["kl_error"] for c in done])
    for name in ("ended", "distinct"):
        if name in done[0]:
            row[name] = _over_seeds([c[name] for c in done])
    return row, wins


def _over_seeds(
    values: Sequence[float], errors: Sequence[float] | None = None
) -> dict[str, float | None]:
    """Mean over seeds; its standard error, with that of a seed's prompts where it is known."""
    n = len(values)
    between = float(np.var(values, ddof=1)) / n if n > 1 else None
    if errors is not None:  # all seeds have the same prompts: more seeds do not lessen theirs
        between = (between or 0.0) + float(np.mean(np.square(errors)))
    return {"mean": float(np.mean(values)), "se": None if between is None else between**0.5}


# Text ---------------------------------------------------------------------------------------------


def markdown(results: Mapping[str, Any]) -> list[str]:
    """The table of win rates, loss × data, then what the SFT term does."""
    rows = {(row["kind"], row["loss"]): row for row in results["rows"]}
    kinds = list(dict.fromkeys(kind for kind, _ in rows))
    losses = list(dict.fromkeys(loss for _, loss in rows))
    lines = ["| | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for loss in losses:
        texts = [_cell_text(rows.get((kind, loss))) for kind in kinds]
        lines.append(f"| {loss} | " + " | ".join(texts) + " |")
    for name, row in results["baselines"].items():
        lines.append(f"| {name} | {interval_text(row['win_rate'])}" + " |" * len(kinds))
    for kind, found in results["anchored_minus_free"].items():
        lines.append(f"anchored − unanchored on {kind}: {interval_text(found)}")
    return lines


def _cell_text(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    lost = f", {row['diverged']} diverged" if row["diverged"] else ""
    kl = f", KL {row['kl']['mean']:.1f}" if "kl" in row else ""
    return interval_text(row["win_rate"]) + kl + lost


def interval_text(found: Mapping[str, float]) -> str:
    """A mean with its interval."""
    return f"{found['mean']:.1f} [{found['low']:.1f}, {found['high']:.1f}]".replace("-", "−")


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in row.items():
        if name == "setting":
            out["lr"] = value["lr"]
            out["loss_args"] = setting_text(value["loss_args"])
        elif isinstance(value, Mapping):
            out |= {f"{name}_{k}": None if v is None else round(v, 4) for k, v in value.items()}
        elif isinstance(value, list):
            out[name] = " ".join(map(str, value))
        else:
            out[name] = value
    return out


def setting_text(values: Mapping[str, float]) -> str:
    """``beta = 0.1, …``, or a dash."""
    return ", ".join(f"{name} = {value:g}" for name, value in values.items()) or "–"


# Figures ------------------------------------------------------------------------------------------


def win_rate_figure(results: Mapping[str, Any]):
    """Win rates with their intervals, a panel for each kind of data."""
    rows = results["rows"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    losses = list(dict.fromkeys(row["loss"] for row in rows))
    figure = new_figure(1.0 + 2.3 * len(kinds), 1.0 + 0.28 * len(losses))
    panels = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    target = results["baselines"]["target"]["win_rate"]
    for ax, kind in zip(panels, kinds, strict=True):
        ax.set_title(kind)
        ax.axvline(50, color=LINE)
        ax.axvspan(target["low"], target["high"], color=LINE, alpha=0.6, linewidth=0)
        for row in (row for row in rows if row["kind"] == kind):
            y, found = losses.index(row["loss"]), row["win_rate"]
            ax.plot([found["low"], found["high"]], [y, y], color=SERIES[0], linewidth=2)
            ax.plot(row["seeds"], [y] * len(row["seeds"]), "|", color=MUTED, markersize=9)
            ax.plot(found["mean"], y, "o", color=SERIES[0], markersize=5)
        ax.set_xlabel("win rate, %")
        ax.set_yticks(range(len(losses)), losses)
        ax.grid(axis="y", color=LINE, linewidth=0.4)
    panels[0].set_ylim(len(losses) - 0.4, -0.6)
    return figure


def kl_figure(results: Mapping[str, Any]):
    """Win rate against divergence from the untuned LM, a point for each loss and kind of data."""
    rows = [row for row in results["rows"] if "kl" in row]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    losses = list(dict.fromkeys(row["loss"] for row in rows))
    figure = new_figure(6.8, 4.2)
    ax = figure.subplots()
    ax.axhline(50, color=LINE)
    for row in rows:
        found, kl = row["win_rate"], row["kl"]
        colour = SERIES[kinds.index(row["kind"]) % len(SERIES)]
        marker = MARKERS[losses.index(row["loss"]) % len(MARKERS)]
        ax.plot([kl["mean"]] * 2, [found["low"], found["high"]], color=colour, linewidth=0.8)
        ax.plot(kl["mean"], found["mean"], marker, color=colour, markersize=6)
    for i, kind in enumerate(kinds):
        ax.plot([], [], "s", color=SERIES[i % len(SERIES)], label=kind)
    for i, loss in enumerate(losses):
        ax.plot([], [], MARKERS[i % len(MARKERS)], color=INK, label=loss)
    if rows and min(row["kl"]["mean"] for row in rows) > 0:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
    ax.set_xlabel("KL divergence from the untuned LM, nats per answer")
    ax.set_ylabel("win rate against it, %")
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


# The page -----------------------------------------------------------------------------------------


def _page(folder: Path, about, results, trials, finals, baselines) -> str:
    pictures, settings = folder / "figures", about["settings"]
    rates = save(pictures, "win_rates", "Win rates", win_rate_figure, results)
    scatter = save(pictures, "win_rate_kl", "Win rate against KL", kl_figure, results)
    sections = [
        Section(
            "Win rates",
            "Against the untuned LM, by the judge; 95 % intervals over seeds and prompts, seeds as "
            "grey strokes. The band is the best of several plain samples, by the annotator. These "
            "are not AlpacaEval’s numbers: another judge, other prompts, a model of "
            f"{about['lm']['parameters'] / 1e6:.1f} million parameters. An answer is cut after "
            f"{settings['new_tokens']} tokens; “ended” is the share that come to an end before.",
            [figure(rates), _main_table(results)],
        ),
        Section(
            "How far from the untuned LM",
            "Divergence on the model’s own answers, summed over their tokens.",
            [figure(scatter)],
        ),
        Section(
            "The term for chosen answers",
            f"Mean win rate of {', '.join(ANCHORED)}, which have one, minus that of "
            f"{' and '.join(FREE)}, which do not.",
            [_group_table(results)],
        ),
        Section("Samples", "The same prompts, first seed.", [_samples(finals, baselines)]),
        Section("Tuning", "Win rate by the annotator on validation prompts.", [_tuning(trials)]),
        Section("Data", "Pairs of the first seed.", [nested(results["pairs"], "Preference pairs")]),
        Section("Settings", "", [nested({k: v for k, v in about.items() if k != "grid"})]),
    ]
    lead = (
        f"{settings['pairs']} pairs, {settings['trials']} trials for each loss and kind of data, "
        f"{settings['seeds']} fresh seeds, {settings['test']} test prompts."
    )
    return document(TITLE, ELEMENTS.paragraphs([lead]), sections)


def _main_table(results) -> Markup:
    head = ["loss", "data", "#win rate", "#length-controlled", "#wins", "#VADER", "#annotator"]
    head += [
        "#minus sft",
        "#minus base",
        "#KL, nats",
        "#characters",
        "#ended",
        "#distinct pairs",
        "setting",
    ]
    lines = []
    named = [(name, row | {"kind": "–"}) for name, row in results["baselines"].items()]
    for name, row in [(row["loss"], row) for row in results["rows"]] + named:
        lost = f"✕ {row['diverged']} diverged" * bool(row["diverged"])
        own = row.get("setting")
        setting = f"lr = {own['lr']:g}, {setting_text(own['loss_args'])}" if own else ""
        columns = [
            heading(name),
            Cell(row["kind"]),
            amount(
                row["win_rate"]["mean"],
                text=ELEMENTS.with_note(interval_text(row["win_rate"]), lost),
            ),
            *(
                _plus_minus(row.get(k))
                for k in ("lc_win_rate", "hard_win_rate", "vader", "annotator")
            ),
            *(_with_interval(row.get(k)) for k in ("minus_sft", "minus_base")),
            _plus_minus(row.get("kl"), 2),
            _plus_minus(row.get("characters")),
            _plus_minus(row.get("ended"), 2),
            _plus_minus(row.get("distinct"), 3),
            Cell(setting, setting, "text"),
        ]
        lines.append(columns)
    return table(head, lines, "Percent, against the untuned LM; ± one standard error")


def _plus_minus(found: Mapping[str, Any] | None, digits: int = 1) -> Cell:
    if found is None:
        return amount(None)
    error = "" if found["se"] is None else f" ± {found['se']:.{digits}f}"
    return amount(found["mean"], text=f"{found['mean']:.{digits}f}{error}")


def _with_interval(found: Mapping[str, Any] | None) -> Cell:
    return amount(found["mean"], text=interval_text(found)) if found else amount(None)


def _group_table(results) -> str:
    lines = [
        [heading(kind), _with_interval(found)]
        for kind, found in results["anchored_minus_free"].items()
    ]
    return table(["data", "#difference"], lines, "Percentage points", "") if lines else "–"


def _tuning(trials) -> Markup:
    lines = []
    for (kind, loss), rows in trials.items():
        rates = [-1 if row["validation"] is None else row["validation"] for row in rows]
        for row, rate in zip(rows, rates, strict=True):
            own = row["setting"]
            text = "diverged" if rate < 0 else f"{rate:.1f}"
            text = ELEMENTS.marked(text, best=rates.index(max(rates)) == rates.index(rate))
            cells = [heading(loss), Cell(kind), amount(own["lr"], text=f"{own['lr']:g}")]
            lines.append([*cells, Cell(setting_text(own["loss_args"])), amount(rate, text=text)])
    head = ["loss", "data", "#learning rate", "setting", "#validation win rate"]
    return table(head, lines, "The best of each is marked")


def _samples(finals, baselines) -> Markup:
    lines = []
    prompts = baselines[0]["original"]["samples"]
    named = [
        ("untuned", "–", baselines[0]["original"]),
        ("best of several", "–", baselines[0]["target"]),
    ]
    named += [(loss, kind, cells[0]) for (kind, loss), cells in finals.items()]
    for i in range(min(3, len(prompts))):
        for name, kind, found in named:
            if i < len(found.get("samples", [])):
                text = say("<b>{}</b>{}", *found["samples"][i])
                lines.append([heading(name), Cell(kind), Cell(text, i, "text")])
    return table(["loss", "data", "answer"], lines, "Prompt in bold")
