"""What could a search follow instead of returns? Numbers that need no physics, held against them.

    python experiments/fitness_proxies.py [--out experiments/results/fitness_proxies]
    python experiments/fitness_proxies.py --report

The pairs of opposite perturbations of ``fitness_steps.py`` are trained again, and each policy gets
numbers from a fresh set of pairs with right labels: how far its actions are from those of the
better agent, and how it ranks the pairs. The true differences are those of the recorded episodes;
whether these are the same policies is seen from their first steps. A number that asks the better
agent is of use where there is one, as on these robots. A finished centre is a file; a second start
goes on. The plan is in ``experiments/HISTORY.md`` and was written before the first result.
"""

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path

import fitness_steps as lengths
import numpy as np
import search_study as study
import torch
from command_lines import results_folder, study_parser
from torch.func import functional_call, vmap

from torchmpo.control.agents import load_agent
from torchmpo.control.testbed import prepare
from torchmpo.runs.seeding import derive_seed

CHOSEN, OF_BOTH = "distance to the target", "the same, states of both"
PROXIES = (CHOSEN, OF_BOTH, "log-likelihood", "accuracy", "margin")
STATES = 64  # of each trajectory
SHARE = 0.02  # of a generation of the default search: what the numbers take, rounded up
CHECK = 50  # steps, by which policies are known again


@functools.cache
def fresh_pairs(config):
    """States and actions ``[2, pairs, STATES, size]`` of chosen and rejected, rightly labelled."""
    pool = replace(config.pool, seed=derive_seed("fitness proxies"))
    data = prepare([replace(config, pool=pool).on("base")])[0].dataset
    rows = torch.stack([data.chosen, data.rejected])[..., None]
    steps = (torch.linspace(0, 1, STATES) * (data.lengths[rows] - 1)).long()
    return data.observation[rows, steps], data.action[rows, steps]


def proxies_of(policy, members, target, observation, action):
    """``[members, len(PROXIES)]``, all of them higher for a better policy.

    Args:
        policy: what the members have in common, and where they began.
        members: parameters ``{name: [members, ...]}``.
        target: the better agent.
        observation, action: ``[2, pairs, states, size]``, chosen and rejected.
    """
    want = target(observation)

    def of(own):
        mean = functional_call(policy, own, (observation,))
        scaled = (action - mean) * torch.exp(-policy.log_std)
        return -(mean - want).square().sum(-1), -0.5 * scaled.square().sum(-1)

    with torch.no_grad():
        nearness, logps = vmap(of)(members)
        ratio = (logps - of(policy.trainable())[1]).mean(-1)
    margin = ratio[:, 0] - ratio[:, 1]
    numbers = (
        nearness[:, 0].mean((1, 2)),
        nearness.mean((1, 2, 3)),
        logps[:, 0].mean((1, 2)),
        (margin > 0).float().mean(1),
        margin.mean(1),
    )
    return torch.stack(numbers, 1)


def check_the_same(differences, known, where, seed):
    """Refuse policies that are not those of the recorded episodes."""
    recorded = np.array(known["differences"])[:, :, lengths.STEPS.index(CHECK)]
    off = np.abs(recorded - differences.numpy()).max()
    if off > 1:
        sys.exit(
            f"{where}, seed {seed}: the first {CHECK} steps give other returns than recorded (by "
            f"{off:.1f}); on this machine run experiments/fitness_steps.py with a new --out first, "
            "and give it as --lengths"
        )


def collect(args):
    """Differences of the two policies of every pair in every number, around every centre."""

    def make(where, seed):
        known = json.loads((args.lengths / f"{where}_{seed}.json").read_text())
        first_steps, numbers = [], []
        for bed, policies, seeds in lengths.pairs_around(where, seed, args):
            short = bed.evaluate(policies, args.episodes, seeds, steps=CHECK)
            first_steps.append(lengths.opposed(short))
            target = load_agent(bed.config.pool.target)
            pairs = fresh_pairs(bed.config)
            own = proxies_of(bed.policy, policies, target, *pairs)
            numbers.append(lengths.opposed(own))
        check_the_same(torch.cat(first_steps), known, where, seed)
        return dict(zip(PROXIES, torch.cat(numbers).T.tolist(), strict=True))

    for where, seed in lengths.CENTRES[: args.centres]:
        path = args.out / f"{where}_{seed}.json"
        study.piece(path, lambda where=where, seed=seed: make(where, seed))


def explained(proxy, whole):
    """R² of the true difference by a number.

    Args:
        proxy: ``[pairs]``.
        whole: returns of whole episodes, ``[pairs, episodes]``. Their variance is estimated from
            two halves, so that their noise does not count as truth.
    """
    if not np.ptp(proxy):
        return float("nan")  # it tells nothing of anything
    halves = [whole[:, i::2].mean(1) for i in range(2)]
    true = np.cov(*halves)[0, 1]
    return np.cov(proxy, whole.mean(1))[0, 1] ** 2 / (true * np.var(proxy, ddof=1))


def per_time(share):
    """An R² without physics, per processor time of a generation of the default search."""
    return share / (1 - lengths.EVALUATION + SHARE)


def report(args):
    """R² of every number and of today's episodes, and what decides."""
    random, logs, draws = np.random.default_rng(0), {}, {}
    for where, seed in lengths.CENTRES:
        path = args.out / f"{where}_{seed}.json"
        if not path.exists():
            continue
        numbers = {name: np.array(v) for name, v in json.loads(path.read_text()).items()}
        known = json.loads((args.lengths / path.name).read_text())
        differences = np.array(known["differences"])
        today = lengths.explained(differences, -1, lengths.TODAY[1])
        yield f"{where}, seed {seed}: R² of {lengths.TODAY[1]} whole episodes {today:.2f}"
        rows = random.integers(len(differences), size=(lengths.DRAWS, len(differences)))
        drawn_today = [lengths.explained(differences[own], -1, lengths.TODAY[1]) for own in rows]
        for name, proxy in numbers.items():
            if not np.ptp(proxy):
                yield f"  {name:<26} the same for both policies of every pair"
                continue
            share = explained(proxy, differences[:, :, -1])
            drawn = [explained(proxy[own], differences[own][:, :, -1]) for own in rows]
            logs.setdefault(name, []).append(np.log(per_time(share) / today))
            draws.setdefault(name, []).append(np.log(per_time(np.array(drawn)) / drawn_today))
            sign = np.corrcoef(proxy, differences[:, :, -1].mean(1))[0, 1]
            yield f"  {name:<26} R² {share:.2f}, correlation {sign:+.2f}"
    for name, values in logs.items():
        low, high = np.exp(np.nanquantile(np.mean(draws[name], axis=0), [0.025, 0.975]))
        ratio = f"{np.exp(np.mean(values)):.2f} [{low:.2f}, {high:.2f}]"
        yield f"{name}: R² per processor time over today's {ratio}, {len(values)} centres"


def main():
    parser = study_parser(__doc__, "fitness_proxies")
    parser.add_argument("--study", type=Path, default=Path("experiments/results/search_study"))
    parser.add_argument("--lengths", type=Path, help="results of fitness_steps.py")
    args = parser.parse_args()
    args.out = args.out or results_folder("fitness_proxies", args.smoke)
    args.lengths = args.lengths or results_folder("fitness_steps", args.smoke)
    lengths.set_size(args)
    torch.set_num_threads(1)
    if not args.report:
        collect(args)
    print("\n".join(report(args)))


if __name__ == "__main__":
    main()
