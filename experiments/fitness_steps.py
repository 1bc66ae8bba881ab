"""How long must the episodes of a search be? What short ones say of the whole return, and cost.

    python experiments/fitness_steps.py [--out experiments/results/fitness_steps]
    python experiments/fitness_steps.py --report

The search of ``search_study.py`` compares two opposite perturbations of its centre by the returns
of two policies. Here pairs of such policies run many more episodes than a search can afford, so
that it is known which of the two is better and by how much; and what their first T steps say of it,
in n episodes, is told by numbers: the share R² of the variance of true differences that is
explained. The report also says what racing could save, which stops a pair as soon as it is told who
is better: how many pairs are told by a few episodes. A finished centre is a file; a second start
goes on. The plan is in ``experiments/HISTORY.md``.
"""

import json
from pathlib import Path

import numpy as np
import search_study as study
import torch
from command_lines import results_folder, study_parser
from scipy import stats

from torchmpo.control.grids import RATE
from torchmpo.control.testbed import prepare
from torchmpo.control.tuning import suited
from torchmpo.runs.seeding import derive_seed, generator

# Where pairs are drawn, as (vector, seed of the search).
CENTRES = (("found", 0), ("start", 1), ("found", 1))
STEPS = (50, 100, 150, 250, 350, 500, 700, 1000)
PAIRS, EPISODES = 32, 64
TODAY, CHOSEN = (1000, 16), (250, 32)  # steps, episodes
EVALUATION = 0.58  # of the processor time of a generation of the default search
DRAWS = 2000  # of pairs with replacement, for an interval
LOOKS, CONFIDENCE = (4, 8, 16), 0.95  # after how many episodes a race would ask, and how sure it is


def sums_of(testbed, policies, episodes, seeds):
    """Rewards of the first T steps, ``[members, episodes, T]``, and mean steps ``[T]``."""
    members = len(seeds)
    total, alive = torch.zeros(members, episodes), torch.zeros(members, episodes)
    sums, steps = (torch.zeros(members, episodes, len(STEPS)) for _ in range(2))
    now = {}

    def on_step(running, step, observation, going):
        now["step"] = step + 1
        alive[running.start : running.stop] += going[: len(running)]

    def on_reward(running, terms):
        rows = slice(running.start, running.stop)
        total[rows] += sum(terms.values())[: len(running)]
        for k, last in enumerate(STEPS):
            if now["step"] <= last:
                sums[rows, :, k], steps[rows, :, k] = total[rows], alive[rows]

    testbed.evaluate(policies, episodes, seeds, on_step=on_step, on_reward=on_reward)
    return sums, steps.mean((0, 1))


def pairs_around(where, seed, args):
    """Trained policies of opposite perturbations of a centre, a chunk of pairs at a time.

    Yields:
        The testbed; policies of one sign and then of the other; their seeds.
    """
    found = study.found_of(seed, args.study)
    setup = study.setup_of(seed, args, learning_rate=found[RATE])
    space, count = setup.space, 2 * args.chunk
    bed = suited(prepare(setup.testbeds)[0], space.objective, setup.config.sft_epochs)
    centre = space.start if where == "start" else torch.tensor(found["vector"])
    random = generator(seed, "fitness steps", where)
    for first in range(0, args.pairs, args.chunk):
        noise = torch.randn(args.chunk, space.dim, generator=random) * setup.config.sigma
        own = space.parameters(torch.cat([centre + noise, centre - noise]))
        names = range(first, first + args.chunk)
        seeds = 2 * [derive_seed(seed, "fitness steps", where, k) for k in names]
        yield bed, bed.train(space.objective, own, count, seeds), seeds


def opposed(values):
    """Of each pair, the first minus the second, ``[2 × pairs, ...] → [pairs, ...]``."""
    one, other = values.chunk(2)
    return one - other


def collect(args):
    """Differences of the two policies of every pair, episode by episode, around every centre."""

    def make(where, seed):
        differences, steps = [], []
        for bed, policies, seeds in pairs_around(where, seed, args):
            sums, mean_steps = sums_of(bed, policies, args.episodes, seeds)
            differences.append(opposed(sums))
            steps.append(mean_steps)
        made = torch.cat(differences).numpy().round(1).tolist()
        return {"differences": made, "steps": torch.stack(steps).mean(0).tolist()}

    for where, seed in CENTRES[: args.centres]:
        path = args.out / f"{where}_{seed}.json"
        study.piece(path, lambda where=where, seed=seed: make(where, seed))


def explained(differences, k, episodes):
    """R² of the true difference over whole episodes by ``episodes`` of ``STEPS[k]`` steps.

    Args:
        differences: ``[pairs, episodes, len(STEPS)]``. The true variance and covariance are
            estimated from two halves of the episodes, so that their noise does not count as truth.
    """
    halves = [differences[:, i::2].mean(1) for i in range(2)]
    centred = [half - half.mean(0) for half in halves]
    count = len(differences) - 1

    def covariance(a, b):
        products = centred[0][:, a] * centred[1][:, b] + centred[1][:, a] * centred[0][:, b]
        return products.sum() / (2 * count)

    noise = differences[:, :, k].var(axis=1, ddof=1).mean() / episodes
    whole = covariance(-1, -1)
    return covariance(k, -1) ** 2 / (whole * (covariance(k, k) + noise))


def told(differences, episodes):
    """Share of trials that tell the two policies of a pair apart, rightly or wrongly, by a t test.

    Every run of so many whole episodes is one trial. Where two policies are alike, ``1 −
    CONFIDENCE`` of the trials tell them apart nevertheless.

    Args:
        differences: ``[pairs, episodes, len(STEPS)]``.
    """
    whole = differences[:, : differences.shape[1] // episodes * episodes, -1]
    trials = whole.reshape(-1, episodes)
    return (stats.ttest_1samp(trials, 0, axis=1).pvalue < 1 - CONFIDENCE).mean()


def cost(steps, k, episodes):
    """Of a generation, in generations of the default search."""
    physics = episodes * steps[k] / (TODAY[1] * steps[-1])
    return 1 - EVALUATION + EVALUATION * physics


def per_second(found, way):
    """R² of a way (steps, episodes) per processor time of a generation of the default search."""
    k, n = STEPS.index(way[0]), way[1]
    return explained(found["differences"], k, n) / cost(found["steps"], k, n)


def report(args):
    """R² of today's way and of others, and what decides."""
    random, pooled = np.random.default_rng(0), []
    for where, seed in CENTRES:
        path = args.out / f"{where}_{seed}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        found["differences"] = all_pairs = np.array(found["differences"])
        yield f"{where}, seed {seed}: R² of n episodes of T steps, and its processor time"
        for last in STEPS:
            k, words = STEPS.index(last), []
            for n in (8, 16, 32, 64):
                share = explained(all_pairs, k, n), cost(found["steps"], k, n)
                words.append(f"n {n:>2}: {share[0]:.2f} at {share[1]:.2f}")
            yield f"  T {last:>4}  {'   '.join(words)}"
        looks = "   ".join(
            f"{n:>2}: {told(all_pairs, n):.3f}" for n in LOOKS if n <= all_pairs.shape[1]
        )
        yield f"  pairs told apart at {CONFIDENCE:.0%} after so many whole episodes   {looks}"
        ratios = []
        for _ in range(DRAWS):
            rows = random.integers(len(all_pairs), size=len(all_pairs))
            drawn = found | {"differences": all_pairs[rows]}
            ratios.append(np.log(per_second(drawn, CHOSEN) / per_second(drawn, TODAY)))
        ratio = per_second(found, CHOSEN) / per_second(found, TODAY)
        low, high = np.exp(np.nanquantile(ratios, [0.025, 0.975]))
        yield f"  R² per second, {CHOSEN} over {TODAY}: {ratio:.2f} [{low:.2f}, {high:.2f}]"
        pooled.append((np.log(ratio), ratios))
    if len(pooled) == len(CENTRES):
        mean = np.exp(np.mean([own for own, _ in pooled]))
        draws = np.mean([draws for _, draws in pooled], axis=0)
        low, high = np.exp(np.nanquantile(draws, [0.025, 0.975]))
        yield f"all together: {mean:.2f} [{low:.2f}, {high:.2f}]"


def set_size(args):
    """How many centres, pairs and episodes there are."""
    args.centres, args.pairs, args.chunk, args.episodes = len(CENTRES), PAIRS, 8, EPISODES
    if args.smoke:
        args.centres, args.pairs, args.chunk, args.episodes = 1, 4, 2, 4


def main():
    parser = study_parser(__doc__, "fitness_steps")
    parser.add_argument("--study", type=Path, default=Path("experiments/results/search_study"))
    args = parser.parse_args()
    args.out = args.out or results_folder("fitness_steps", args.smoke)
    set_size(args)
    torch.set_num_threads(1)
    if not args.report:
        collect(args)
    print("\n".join(report(args)))


if __name__ == "__main__":
    main()
