"""Average ranks over many blocks, Friedman's test, and groups that are not told apart.

This is what a critical-difference diagram shows: Demšar, *Statistical Comparisons of Classifiers
over Multiple Data Sets*, Journal of Machine Learning Research 7 (2006).

Demšar's blocks are data sets, which are independent. Seeds on kinds of data are not: a seed has the
same minibatches on all kinds. Where equal losses' scores on two kinds have a correlation of 0.4,
Nemenyi's test over seeds × kinds tells some of 6 losses (3 kinds, 5 seeds) apart in 22 % of 4,000
cases, and some of 11 (5 kinds) in 61 %, instead of 5 %. So the groups here come from the paired
differences of seeds (:mod:`.pairwise`), and Friedman's test is given seeds.

scikit-posthocs draws such diagrams and would bring pandas, statsmodels and seaborn for these lines.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import friedmanchisquare, rankdata

from torchmpo.statistics.pairwise import shown


def average_ranks(blocks: Mapping[str, ArrayLike]) -> dict[str, float]:
    """Average rank of every loss, 1 the best, in rising order.

    Args:
        blocks: loss → score in each block ``[blocks]``, higher is better, finite. Equal scores
            share the mean of their ranks.

    >>> average_ranks({"a": [1.0, 2.0], "b": [3.0, 2.0]})
    {'b': 1.25, 'a': 1.75}
    """
    scores = np.array([np.asarray(values, dtype=float) for values in blocks.values()])
    average = dict(zip(blocks, rankdata(-scores, axis=0).mean(1).tolist(), strict=True))
    return dict(sorted(average.items(), key=lambda item: item[1]))


def friedman(blocks: Mapping[str, ArrayLike]) -> float:
    """p-value of Friedman's test that no loss differs from another.

    Args:
        blocks: as for `average_ranks`, but independent of each other.

    Returns:
        in [0, 1]; NaN for fewer than three losses, or where all are equal in every block.
    """
    scores = np.array([np.asarray(values, dtype=float) for values in blocks.values()])
    if len(scores) < 3 or not np.ptp(scores, axis=0).any():
        return math.nan
    return float(friedmanchisquare(*scores).pvalue)


def cliques(
    order: Sequence[str], differences: Mapping[str, Mapping[str, Mapping]]
) -> list[list[str]]:
    """Neighbours of whom none is shown to be better than another.

    Args:
        order: losses, best first.
        differences: from :func:`~torchmpo.statistics.pairwise.paired_differences`.

    Returns:
        the longest such runs of two losses and more, in the given order; they may share losses.

    >>> cliques("abc", {"a": {"c": {"corrected": 0.01}, "b": {"corrected": 0.2}}})
    [['a', 'b'], ['b', 'c']]
    """
    apart = {
        frozenset((a, b)) for a, lower in differences.items() for b in lower if shown(lower[b])
    }
    found, end = [], 0
    for start in range(len(order)):
        stop = start + 1
        while stop < len(order) and not any(
            frozenset((one, order[stop])) in apart for one in order[start:stop]
        ):
            stop += 1
        if stop > max(end, start + 1):
            found.append(list(order[start:stop]))
            end = stop
    return found
