"""Is the order of losses on robots their order on a language model? As PROTOCOL.md plans it.

    python -m experiments.transfer.correlate    (of what is finished in experiments/results)

Reads the two diagnoses ``transfer_anchored`` and ``transfer_llm_like``, the pieces of
``python -m experiments.transfer.sentiment`` in ``transfer_sentiment``, those of ``python -m
experiments.transfer.smollm2`` in ``transfer_smollm2``, and ``published.json``. Writes Spearman's
correlation of every regime on robots with every study of language models, with and without SimPO,
to ``transfer/correlations.json`` and ``correlations.svg``; prints a table. A regime or a study that
lacks a loss of those it plans is not finished, and left out; SmolLM2's has the losses that there
was time for, and the tables of others those they have: fewer than six are shown and not counted.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from experiments.llm.pieces import read_json
from experiments.transfer.sentiment import KINDS, SETTINGS, TransferStudy
from experiments.transfer.smollm2 import AdapterStudy
from torchmpo.diagnose.cells import seed_scores
from torchmpo.figures import new_figure
from torchmpo.runs.errors import UserError, exit_code
from torchmpo.runs.files import write_atomic
from torchmpo.runs.seeding import derive_seed

LOSSES = tuple(SETTINGS)
PROFILES = ("llm_like", "anchored")
DATA = ("best_of:4", "noisy:0.3", "base", "mixed", "graded:0-0.4")
STUDIES = {"sentiment": TransferStudy(), "smollm2": AdapterStudy()}
FEWEST = 6  # losses of a correlation that counts
DRAWS = 10_000
PRIMARY = ("llm_like, best_of:4", "sentiment, best_of")
SECONDARY = ("anchored, noisy:0.3", "sentiment, noisy:0.3")
Scores = Mapping[str, NDArray[np.float64]]  # a loss's seeds: [seeds]


def robots(results: Path) -> dict[str, Scores]:
    """The finished regimes. A seed that diverged counts as the worst run of its regime."""
    found = {}
    for profile in PROFILES:
        folder = results / f"transfer_{profile}"
        scores = seed_scores(folder) if (folder / "anchors.json").exists() else {}
        for data in DATA:
            own = {loss: scores[loss, data] for loss in LOSSES if (loss, data) in scores}
            if len(own) == len(LOSSES):
                worst = min(np.nanmin(s) for s in own.values() if not np.isnan(s).all())
                filled = {loss: np.nan_to_num(s, nan=worst) for loss, s in own.items()}
                found[f"{profile}, {data}"] = filled
    return found


def language_models(results: Path) -> dict[str, dict[str, Scores]]:
    """Win rates of the finished kinds of data, at matched divergence and plain.

    A training that diverged wins nothing.
    """
    pieces = finished_pieces(results)
    return {
        side: {
            name: {loss: _of_seeds(own, side) for loss, own in losses.items()}
            for name, losses in pieces.items()
        }
        for side in ("matched", "far")
    }


def finished_pieces(results: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """All seeds of each loss that has them, by the study and the kind of data.

    Of ``sentiment`` that is every loss or the kind is not there; of ``smollm2`` three at least.
    """
    found = {}
    for (study, planned), kind in product(STUDIES.items(), KINDS):
        folder = results / f"transfer_{study}" / kind.replace(":", "_")
        paths = {loss: sorted(folder.glob(f"{loss}-seed-*.json")) for loss in LOSSES}
        whole = {loss: own for loss, own in paths.items() if len(own) == planned.seeds}
        if len(whole) >= (3 if study == "smollm2" else len(LOSSES)):
            own = {loss: [read_json(path) for path in of] for loss, of in whole.items()}
            found[f"{study}, {kind}"] = own
    return found


def _of_seeds(pieces: Sequence[Mapping[str, Any]], side: str) -> NDArray:
    """Win rates ``[seeds]``; 0 of a training that diverged."""
    return np.array([piece.get(side, {"win_rate": 0.0})["win_rate"] for piece in pieces])


def win_rate_table(losses: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The win rates of one kind of data in Markdown, the best first."""
    rows = []
    for loss, pieces in losses.items():
        matched = _of_seeds(pieces, "matched")
        error = matched.std(ddof=1) / len(matched) ** 0.5
        plain = f"{_of_seeds(pieces, 'far').mean():.1f}"
        far = [piece["far"]["kl"] for piece in pieces if "far" in piece]  # which did not diverge
        kl = f"{np.mean(far):.1f}" if far else "–"
        mean = float(matched.mean())
        rows.append((-mean, f"| {loss} | {mean:.1f} ± {error:.1f} | {plain} | {kl} |"))
    head = ["| win rate, % | at matched KL | plain | its KL |", "|---" * 4 + "|"]
    return "\n".join(head + [row for _, row in sorted(rows)])


def published() -> dict[str, Scores]:
    """The tables of others: one number to a loss."""
    tables = json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))
    return {
        name: {loss: np.array([value]) for loss, value in table["values"].items()}
        for name, table in tables.items()
    }


def spearman(x: NDArray, y: NDArray) -> NDArray[np.float64]:
    """Of each row, ``[draws]``, ties sharing their mean rank; NaN where all of a side are equal."""
    ranks = [rankdata(side, axis=-1) for side in (x, y)]
    a, b = (r - r.mean(-1, keepdims=True) for r in ranks)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def correlation(
    robot: Scores, model: Scores, draws: int = DRAWS, without: Sequence[str] = ()
) -> dict[str, Any]:
    """Spearman's ρ of the losses' means, with the 95 % percentile interval of a bootstrap.

    Losses are drawn with replacement, and the seeds of each loss within it. A draw in which all
    values of a side are equal is left out.

    Returns:
        ``{"rho", "low", "high", "losses"}``.
    """
    names = [loss for loss in robot if loss in model and loss not in without]
    random = np.random.default_rng(derive_seed(0, "transfer", *names))
    drawn = random.integers(len(names), size=(draws, len(names)))
    sides, means = [], []
    for scores in (robot, model):
        values = [scores[name] for name in names]
        means.append(np.array([v.mean() for v in values]))
        again = np.stack(  # [draws, losses]: each loss's mean over seeds drawn anew
            [v[random.integers(len(v), size=(draws, len(v)))].mean(1) for v in values], 1
        )
        sides.append(np.take_along_axis(again, drawn, 1))
    resampled = spearman(*sides)
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    rho = float(spearman(*(m[None] for m in means))[0])
    return {"rho": rho, "low": float(low), "high": float(high), "losses": len(names)}


def reliability(scores: Scores) -> float | None:
    """The share of the variance of losses' means that is not noise of their seeds, at most 1.

    What a seed does to all losses alike is no noise: it leaves their order alone. The root of the
    share is the correlation that a perfect predictor has with these means, on average. None where
    there is one number to a loss.
    """
    values = np.stack([*scores.values()])  # [losses, seeds]
    losses, seeds = values.shape
    if seeds < 2:
        return None
    values = values - values.mean(0)
    means = values.mean(1)
    left = ((values - means[:, None]) ** 2).sum() / ((losses - 1) * (seeds - 1))
    return float(1 - left / seeds / means.var(ddof=1))


def verdict(found: Mapping[str, Any], without_simpo: Mapping[str, Any]) -> str:
    """The protocol's three words; "transfers" needs the number with SimPO and without."""
    if found["low"] <= 0:
        return "not shown"
    both = (found, without_simpo)
    return "transfers" if all(f["rho"] >= 0.8 and f["low"] > 0 for f in both) else "says something"


def collect(results: Path) -> dict[str, Any]:
    """All correlations of what is finished.

    Raises:
        UserError: nothing is.
    """
    regimes, studies = robots(results), language_models(results)
    columns = studies["matched"] | {f"{n}, plain": s for n, s in studies["far"].items()}
    columns |= published()
    rows = []
    for regime, robot in regimes.items():
        for study, model in columns.items():
            found = correlation(robot, model)
            less = correlation(robot, model, without=("simpo",))
            counted = found["losses"] >= FEWEST
            rows.append({"robots": regime, "models": study, **found, "counted": counted})
            rows[-1]["without_simpo"] = less
            if (regime, study) in (PRIMARY, SECONDARY):
                which = "primary" if (regime, study) == PRIMARY else "secondary"
                rows[-1] |= {"pair": which, "verdict": verdict(found, less)}
    if not rows:
        raise UserError(f"no regime in {results} has all its {len(LOSSES)} losses yet")
    between = [
        {"models": [one, other], **correlation(columns[one], columns[other])}
        for one, other in combinations(columns, 2)
        if len(columns[one].keys() & columns[other].keys()) >= FEWEST
    ]
    means = {
        name: {loss: round(float(values.mean()), 4) for loss, values in scores.items()}
        for name, scores in (regimes | columns).items()
    }
    sure = {name: reliability(scores) for name, scores in (regimes | columns).items()}
    return {"correlations": rows, "between_models": between, "reliability": sure, "means": means}


def heat_map(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Every correlation as a cell with its interval; the planned pairs in bold."""
    regimes, studies = (
        list(dict.fromkeys(row[side] for row in rows)) for side in ("robots", "models")
    )
    at = {(row["robots"], row["models"]): row for row in rows}
    values = np.array([[at[regime, study]["rho"] for study in studies] for regime in regimes])
    figure = new_figure(width=2.2 + 1.1 * len(studies), height=1.8 + 0.42 * len(regimes))
    axes = figure.subplots()
    image = axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for i, regime in enumerate(regimes):
        for j, study in enumerate(studies):
            row = at[regime, study]
            shown = f"{row['rho']:.2f}\n[{row['low']:.2f}, {row['high']:.2f}]".replace("-", "−")
            color = "white" if abs(row["rho"]) > 0.6 else "black"
            weight = "bold" if "pair" in row else "normal"
            axes.text(j, i, shown, ha="center", va="center", fontsize=7, color=color, weight=weight)
    axes.set_xticks(range(len(studies)), [s.replace(", ", "\n") for s in studies], fontsize=8)
    axes.set_yticks(range(len(regimes)), regimes, fontsize=8)
    axes.set_title("Spearman's ρ of losses, robots (rows) and language models", fontsize=9)
    figure.colorbar(image, ax=axes, fraction=0.03)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def text_of(found: Mapping[str, float]) -> str:
    """``0.53 [0.02, 0.84]``, with signs that are not hyphens."""
    return f"{found['rho']:.2f} [{found['low']:.2f}, {found['high']:.2f}]".replace("-", "−")


def main(argv: Sequence[str] | None = None) -> int:
    """Correlate what is finished, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--results", type=Path, default=Path("experiments/results"), help="folder of the studies"
    )
    args = parser.parse_args(argv)

    def work() -> None:
        found = collect(args.results)
        out = args.results / "transfer"
        out.mkdir(exist_ok=True)
        write_atomic(out / "correlations.json", json.dumps(found, indent=1) + "\n")
        heat_map(found["correlations"], out / "correlations.svg")
        print("| robots | language models | losses | ρ | ρ without simpo | |\n" + "|---" * 6 + "|")
        for row in found["correlations"]:
            which = f"{row['pair']}: {row['verdict']}" if "pair" in row else ""
            which = which if row["counted"] else "too few losses to count"
            print(
                f"| {row['robots']} | {row['models']} | {row['losses']} | {text_of(row)} | "
                f"{text_of(row['without_simpo'])} | {which} |"
            )
        for row in found["between_models"]:
            print(f"{' and '.join(row['models'])}: {text_of(row)}, {row['losses']} losses")
        for name, share in found["reliability"].items():
            if share is not None:
                print(f"{name}: {100 * share:.0f} % of the variance of the losses' means is theirs")
        for name, losses in finished_pieces(args.results).items():
            print(f"\n{name}\n\n{win_rate_table(losses)}")

    return exit_code(work, lambda: "interrupted")


if __name__ == "__main__":
    sys.exit(main())
