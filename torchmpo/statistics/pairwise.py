"""Which losses are shown to be better than which: paired over seeds, corrected for their number.

Seed k of every loss has the same minibatches and start states, so two losses are compared by the
differences of their seeds. A loss is *shown to be better* than another if Student's t of these
differences has p < 0.05 after Holm's correction over all pairs of losses. One correction serves
ranks, the best losses and every table, so that no two places can disagree.

**Student's t decides, Wilcoxon's signed rank test checks.** Of n differences Wilcoxon's p cannot be
below 2·2⁻ⁿ: 0.0625 at five seeds, where it can decide nothing, and 0.031 at six. Of 20,000
(Wilcoxon: 4,000) sets of differences with standard deviation 1, so many had p < 0.05 where their
mean was 0 / 1 / 2; the first is the share of false positives, which should be 5 %:

=====  =================  =================  ==================  =================
seeds  normal: t          normal: Wilcoxon   skewed: t           skewed: Wilcoxon
=====  =================  =================  ==================  =================
5      5 / 40 / 91 %      0 / 0 / 0 %        12 / 46 / 97 %      0 / 0 / 0 %
6      5 / 51 / 97 %      3 / 36 / 88 %      11 / 64 / 100 %     7 / 100 / 100 %
10     5 / 80 / 100 %     5 / 79 / 100 %     10 / 96 / 100 %     9 / 100 / 100 %
20     5 / 99 / 100 %     4 / 98 / 100 %     8 / 100 / 100 %     13 / 100 / 100 %
=====  =================  =================  ==================  =================

"Skewed" differences are exponential, the worst case: one loss has rare outliers and the other none.
Wilcoxon is not the cure, as it is about the median. Losses with equal tails have symmetric
differences, also where each loss is skewed.

**What the correction costs, and how many seeds it takes.** Of 3,000 sets of losses with normal
runs whose paired differences have standard deviation 1: how often any two equal losses are told
apart; and how often a loss that is better than all others by 2, or by 4, is shown to be better than
a given one:

==================  =====  =====  =====  =====  =====  =====
losses                  6      6      6     11     11     11
seeds                   5     10     20      5     10     20
==================  =====  =====  =====  =====  =====  =====
false, uncorrected   44 %   40 %   38 %   83 %   75 %   72 %
false, corrected      4 %    5 %    4 %    5 %    4 %    4 %
better by 2, shown   32 %   98 %  100 %   11 %   87 %  100 %
better by 4, shown   94 %  100 %  100 %   63 %  100 %  100 %
==================  =====  =====  =====  =====  =====  =====

With exponential runs the corrected share of false statements was 2 %.
"""

import itertools
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student
from scipy.stats import wilcoxon

from torchmpo.statistics.means import mean_of

LEVEL = 0.05
WILCOXON_SEEDS = 6  # from here on Wilcoxon's p can be below LEVEL

Differences = dict[str, dict[str, dict[str, float]]]


def holm(p: ArrayLike) -> NDArray:
    """Holm's corrected p-values: below α, the chance of any false one among them is at most α.

    Args:
        p: p-values ``[n]``.

    Returns:
        ``[n]``, in the same order.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)
    steps = p[order] * np.arange(len(p), 0, -1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def students_p(mean: float, se: float, n: int) -> float:
    """Two-sided p-value of a mean of ``n`` differences with its standard error; NaN of one seed."""
    if n < 2 or math.isnan(se):
        return math.nan
    if se > 0:
        return float(2 * student.sf(abs(mean) / se, n - 1))
    return float(mean == 0)  # the same on every seed


def paired_differences(runs: Mapping[str, ArrayLike]) -> Differences:
    """Every loss minus every loss of a lower mean, paired by seed.

    Args:
        runs: loss → one number per seed ``[seeds]``, finite, seed k of all in place k. Of unequal
            numbers of seeds a pair has those that both have.

    Returns:
        higher loss → lower loss → ``mean`` of the differences (not negative), ``se``, ``low`` and
        ``high`` (95 % interval of Student's t, of this pair by itself), ``p`` (two-sided),
        ``corrected`` (Holm's over all pairs here), and ``wilcoxon``, the p-value of the signed rank
        test, not corrected. NaN is what cannot be had: all but the mean of one seed, Wilcoxon's p
        of fewer than six.

    >>> found = paired_differences({"a": [1.0, 2.0, 3.0], "b": [5.0, 6.5, 8.0]})
    >>> found["b"]["a"]["mean"], round(found["b"]["a"]["corrected"], 3), found["a"]
    (4.5, 0.004, {})
    """
    found: Differences = {name: {} for name in runs}
    for a, b in itertools.combinations(runs, 2):
        n = min(len(np.asarray(runs[name])) for name in (a, b))
        difference = np.asarray(runs[a], dtype=float)[:n] - np.asarray(runs[b], dtype=float)[:n]
        if difference.mean() < 0:
            found[b][a] = _paired(-difference)
        else:
            found[a][b] = _paired(difference)
    entries = [entry for lower in found.values() for entry in lower.values()]
    known = [entry for entry in entries if math.isfinite(entry["p"])]
    for entry, corrected in zip(known, holm([entry["p"] for entry in known]), strict=True):
        entry["corrected"] = float(corrected)
    return found


def _paired(difference: NDArray) -> dict[str, float]:
    """Both tests of differences ``[seeds]``."""
    nan = math.nan
    n, mean = len(difference), float(difference.mean())
    entry = {"mean": mean, "se": nan, "low": nan, "high": nan, "p": nan}
    if n > 1:
        entry |= mean_of(difference.tolist())._asdict()
        entry["p"] = students_p(mean, entry["se"], n)
    check = nan
    if n >= WILCOXON_SEEDS:
        check = wilcoxon(difference).pvalue if difference.any() else 1.0  # pyright: ignore
    return entry | {"corrected": nan, "wilcoxon": float(check)}


def shown(entry: Mapping) -> bool:
    """Whether an entry of `paired_differences` shows its loss to be better than the lower one."""
    p = entry["corrected"]
    return p is not None and p < LEVEL


def least_shown(seeds: int, losses: int) -> float:
    """The least difference that can be the first to be shown, in its standard errors.

    Args:
        seeds: two or more.
        losses: compared with each other, two or more.

    >>> [round(least_shown(seeds, 11), 1) for seeds in (5, 10, 20)]
    [8.8, 4.8, 3.9]
    """
    pairs = losses * (losses - 1) // 2
    return float(student.isf(LEVEL / 2 / pairs, seeds - 1))


def ranks(differences: Mapping[str, Mapping[str, Mapping]]) -> dict[str, dict[str, int]]:
    """Ranks from 1, tied where no difference is shown.

    Args:
        differences: from `paired_differences`.

    Returns:
        loss → ``best``, one more than the number of losses shown to be better; ``worst``, the
        number of losses not shown to be worse; and ``rank``, the one to print: the best. What is
        not shown is not transitive, so a rank does not name a group.
    """
    pairs = [(a, b) for a, lower in differences.items() for b in lower if shown(lower[b])]
    result = {}
    for name in differences:
        best = 1 + sum(b == name for _, b in pairs)
        worst = len(differences) - sum(a == name for a, _ in pairs)
        result[name] = {"best": best, "worst": worst, "rank": best}
    return result
