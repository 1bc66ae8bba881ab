"""Means over seeds with Student's t."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch


class Mean(NamedTuple):
    """A mean over independent seeds with its standard error and 95 % interval."""

    mean: float
    se: float
    low: float
    high: float


def mean_of(values: Sequence[float]) -> Mean:
    """Mean ± s.e. and 95 % t-interval of independent values; of one all but the mean are NaN."""
    from scipy.stats import t

    x = torch.as_tensor(values, dtype=torch.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return Mean(mean, math.nan, math.nan, math.nan)
    se = float(x.std() / math.sqrt(len(x)))
    half = float(t.ppf(0.975, len(x) - 1)) * se
    return Mean(mean, se, mean - half, mean + half)
