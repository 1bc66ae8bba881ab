"""Comparing losses over few seeds: paired differences, ranks, scores, bootstrap intervals.

:mod:`.means` has Student's t, :mod:`.one_and_others` holds one objective against its rivals, and
:mod:`.pairwise` says which of many losses are shown to be better than which, and so their ranks.
:mod:`.scores` sums up runs, :mod:`.average_ranks` and :mod:`.profiles` are two more views of them.
:mod:`.pareto` is for several objectives at once.

The conventions are those of Agarwal et al., *Deep Reinforcement Learning at the Edge of the
Statistical Precipice* (2021, arXiv:2108.13264) and of their library rliable: a *run* is one seed,
its score the mean over its episodes, normalised so that the original agent is 0 and the target
agent 1; runs are summed up by their mean and their interquartile mean, losses compared by the
probability of improvement, and intervals are percentile bootstraps over runs. The anchors count as
known.

Where data kinds are pooled, rliable resamples each by itself. Here seed k has the same minibatches
on every kind, and the flips of one noisy kind are among those of the next, so its scores on
different kinds rise and fall together (correlations of 0.4 between noisy kinds in the committed
runs): seeds are resampled with their scores on all kinds.

**Percentile bootstraps of few seeds are too narrow.** Of 4,000 sets of normal runs, nominal 95 %
intervals contained the truth in:

============================  =====  =====  =====  =====  =====
seeds                             3      5     10     20     40
============================  =====  =====  =====  =====  =====
mean, bootstrap                76 %   84 %   91 %   92 %   93 %
interquartile mean             76 %   90 %   94 %   94 %   94 %
probability of improvement     76 %   89 %   93 %   94 %   94 %
mean, Student's t              95 %   95 %   95 %   95 %   95 %
============================  =====  =====  =====  =====  =====

So read "score" at five seeds as an interval of about 84 %; "return", beside it in a
leaderboard, has Student's t, which holds its level for normal runs, however few. Ranks rest on
neither: they are paired over seeds and corrected, see :mod:`.pairwise`. Two losses whose runs do
not overlap at all get a probability of improvement of 1 with the interval [1, 1], however few the
runs: a bootstrap cannot see what was never drawn.
"""

from torchmpo.statistics.average_ranks import average_ranks, cliques, friedman
from torchmpo.statistics.means import Mean, mean_of
from torchmpo.statistics.one_and_others import compare, table, verdict
from torchmpo.statistics.pairwise import holm, least_shown, paired_differences, ranks, shown
from torchmpo.statistics.pareto import hypervolume, pareto_front
from torchmpo.statistics.profiles import performance_profile
from torchmpo.statistics.scores import (
    NAN,
    bootstrap_interval,
    diverged_as_worst,
    interquartile_mean,
    mean_score,
    probability_of_improvement,
)

__all__ = [
    "NAN",
    "Mean",
    "average_ranks",
    "bootstrap_interval",
    "cliques",
    "compare",
    "diverged_as_worst",
    "friedman",
    "holm",
    "hypervolume",
    "interquartile_mean",
    "least_shown",
    "mean_of",
    "mean_score",
    "paired_differences",
    "pareto_front",
    "performance_profile",
    "probability_of_improvement",
    "ranks",
    "shown",
    "table",
    "verdict",
]
