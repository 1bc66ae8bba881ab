"""How should sixteen trainings be spent on the tuning of a loss? A simulation on measured trials.

    python experiments/tuning_budget.py [experiments/results/diagnose_quick_tla]

From the cells of a diagnosis: the spread between tuning seeds of one setting is the noise of a
training, and the scores of a loss's settings, averaged over their tuning seeds, stand for true
values, after those of the better half were drawn together by as much as that noise has spread them.
Each rule draws settings from them with replacement, sees scores with that noise, and
chooses one. What counts is the true value of its choice, less the best of the loss's settings.
"""

import argparse
import json
from pathlib import Path

import numpy as np

# Rounds of (settings that are trained once more in it); the rest is out of the race.
RULES = {
    "16 settings once": (16,),
    "8 settings twice": (8, 8),
    "5 settings thrice": (5, 5, 5),
    "4 settings four times": (4, 4, 4, 4),
    "halving: 8, 4, 2, 2": (8, 4, 2, 2),
    "halving: 10, 4, 2": (10, 4, 2),
    "halving: 12, 4": (12, 4),
}
DRAWS = 4000


def regret(values, noise, rounds, random):
    """By how much the chosen setting's true value is below the best one's: ``[DRAWS]``."""
    settings = random.choice(values, (DRAWS, rounds[0]))
    total = np.zeros_like(settings)
    alive = np.ones_like(settings, dtype=bool)
    for number, count in enumerate(rounds, 1):
        worst = np.where(alive, total, -np.inf)
        keep = np.argsort(-worst, axis=1)[:, :count]
        alive = np.zeros_like(alive)
        np.put_along_axis(alive, keep, True, axis=1)
        seen = settings + random.normal(0, noise, settings.shape)
        total = np.where(alive, total + (seen - total) / number, total)
    chosen = np.argmax(np.where(alive, total, -np.inf), axis=1)
    return values.max() - settings[np.arange(DRAWS), chosen]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = Path("experiments/results/diagnose_quick_tla")
    parser.add_argument("run", type=Path, nargs="?", default=default)
    args = parser.parse_args()
    rows = {rule: [] for rule in RULES}
    noises = []
    for path in sorted((args.run / "cells").glob("*.json")):
        tried = np.array(json.loads(path.read_text())["tuning"], dtype=float)
        if tried.ndim != 2 or tried.shape[1] < 2:
            continue
        tried = tried[np.isfinite(tried).all(1)]
        # The better half decides; settings that fail altogether are noisier than those.
        values, half = tried.mean(1), np.argsort(-tried.mean(1))[: max(2, len(tried) // 2)]
        noise = float(np.sqrt(tried[half].var(1, ddof=1).mean()))
        noises.append(noise)
        by_noise = noise**2 / tried.shape[1] / max(values[half].var(ddof=1), 1e-9)
        centre = values[half].mean()
        values[half] = centre + (values[half] - centre) * max(0.0, 1 - by_noise) ** 0.5
        for rule, rounds in RULES.items():
            random = np.random.default_rng(0)
            rows[rule].append(regret(values, noise, rounds, random).mean())
    print(f"{len(noises)} cells, noise of a training {np.median(noises):.0f} (median)")
    base = np.array(rows["8 settings twice"])
    print(f"{'rule':<24}trainings   lost: mean   beside 8 × 2, ± s.e. over cells")
    for rule, rounds in RULES.items():
        lost = np.array(rows[rule])
        change = lost - base
        error = change.std(ddof=1) / len(change) ** 0.5
        print(f"{rule:<24}{sum(rounds):>6}{lost.mean():14.0f}{change.mean():+14.0f} ± {error:.0f}")


if __name__ == "__main__":
    main()
