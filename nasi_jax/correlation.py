"""How well one score of architectures agrees with another."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1])


# By the ranks: scipy's own functions test significance too, and take ten times as long.
COEFFICIENTS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pearson": _pearson,
    "spearman": lambda first, second: _pearson(stats.rankdata(first), stats.rankdata(second)),
    "kendall": lambda first, second: float(stats.kendalltau(first, second).statistic),
}
"""The coefficients by name: Pearson's r, Spearman's rho, Kendall's tau-b."""


class Correlation(NamedTuple):
    """A coefficient, and the ends of its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def correlations(
    first: np.ndarray, second: np.ndarray, *, seed: int = 0, num_resamples: int = 2000
) -> dict[str, Correlation]:
    """Pearson's, Spearman's and Kendall's correlation of two scores, with intervals.

    The intervals are percentiles of the coefficients of architectures drawn again with
    replacement. Pairs with a value that is not finite are left out.

    Args:
      first: `[N]`.
      second: `[N]`.
      seed: seed of the resamples.
      num_resamples: how many.

    Returns:
      A `Correlation` for each name in `COEFFICIENTS`; NaN where fewer than three pairs are left
      or one of the scores is constant.
    """
    kept = np.isfinite(first) & np.isfinite(second)
    first, second = np.asarray(first, float)[kept], np.asarray(second, float)[kept]
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return dict.fromkeys(COEFFICIENTS, Correlation(np.nan, np.nan, np.nan))
    draws = np.random.default_rng(seed).integers(len(first), size=(num_resamples, len(first)))
    # A resample of one architecture over and over has no correlation.
    varied = [rows for rows in draws if np.ptp(first[rows]) > 0 and np.ptp(second[rows]) > 0]
    found = {}
    for name, coefficient in COEFFICIENTS.items():
        samples = [coefficient(first[rows], second[rows]) for rows in varied]
        low, high = np.quantile(samples, (0.025, 0.975))
        found[name] = Correlation(coefficient(first, second), float(low), float(high))
    return found
