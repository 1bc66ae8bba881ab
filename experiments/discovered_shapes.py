"""What the objectives of the five default searches have in common: does their pull grow with Δ̄?

    python experiments/discovered_shapes.py

arXiv 2411.06568 (section 5) says of what it found: gradients grow with the margin, where those of
hand-made losses shrink, and on noisy data only the SFT term acts while the margin is negative. Here
are, of each search of ``search_study.py`` and of its start, the pull on the rejected trajectory,
∂L/∂r̄ at margins Δ̄ = c̄ − r̄ that training sees, averaged over likelihoods c̄ of the chosen one:
Spearman's correlation with Δ̄, and how large it is at negative margins beside positive ones.
"""

import json
from pathlib import Path

import torch
from scipy.stats import spearmanr

from torchmpo.evolve.settings import EvolveConfig
from torchmpo.evolve.setup import Setup
from torchmpo.objectives.gradients import gradient_map
from torchmpo.statistics import mean_of

CHOSEN = torch.linspace(-1.2, -0.25, 20)  # per step: from the start of training to its end
MARGINS = torch.linspace(-0.2, 0.8, 51)  # so that all log-probabilities are below 0


def pull(objective):
    """∂L/∂r̄ at every margin, averaged over ``CHOSEN``: ``[margins]``."""

    slopes = []
    for chosen in CHOSEN:
        _, rejected = gradient_map(objective, chosen[None].double(), chosen - MARGINS.double())
        slopes.append(rejected.flatten())
    return torch.stack(slopes).mean(0)


def shape(slopes):
    """(Spearman's correlation with the margin, mean pull at Δ̄ < 0 over that at Δ̄ > 0)."""
    ratio = slopes[MARGINS < 0].mean() / slopes[MARGINS > 0].mean()
    return float(spearmanr(MARGINS, slopes).statistic), float(ratio)


def main():
    folder = Path("experiments/results/search_study")
    rows = {}
    for seed in range(5):
        content = json.loads((folder / f"search__seed_{seed}.json").read_text())
        space = Setup.of(EvolveConfig(**content["config"])).space
        rows["start"] = shape(pull(space.at(space.start)))
        rows[f"seed {seed}"] = shape(pull(space.at(torch.tensor(content["vector"]))))
    print(f"{'':8}  with Δ̄    Δ̄ < 0 over Δ̄ > 0")
    for name, (correlation, ratio) in rows.items():
        print(f"{name:8}  {correlation:+.2f}    {ratio:.2f}")
    found = [row for name, row in rows.items() if name != "start"]
    for place, what in enumerate(("correlation with Δ̄", "ratio")):
        mean = mean_of([row[place] for row in found])
        print(f"{what}: {mean.mean:+.2f} [{mean.low:+.2f}, {mean.high:+.2f}] over five searches")


if __name__ == "__main__":
    main()
