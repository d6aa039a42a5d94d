"""How well one score of architectures agrees with another."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

TOP = 0.1
"""The share of architectures that `top` looks at."""


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1])


def _top(first: np.ndarray, second: np.ndarray) -> float:
    """How much of the top of one score is in the top of the other, ties broken at random."""
    count = max(1, round(TOP * len(first)))
    return float(_membership(first, count) @ _membership(second, count) / count)


def _membership(values: np.ndarray, count: int) -> np.ndarray:
    """Probabilities `[N]` of being among the `count` largest, ties broken at random."""
    last = np.partition(values, -count)[-count]
    above, level = values > last, values == last
    return above + level * (count - above.sum()) / level.sum()


# By the ranks: scipy's own functions test significance too, and take ten times as long.
COEFFICIENTS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pearson": _pearson,
    "spearman": lambda first, second: _pearson(stats.rankdata(first), stats.rankdata(second)),
    "kendall": lambda first, second: float(stats.kendalltau(first, second).statistic),
    "top_10%": _top,
}
"""The coefficients by name: Pearson's r, Spearman's rho, Kendall's tau-b, and the precision in the
top 10%: the share of one score's top tenth that is in the other's; of random scores it is 0.1."""


class Correlation(NamedTuple):
    """A coefficient over architectures, the mean over seeds.

    Attributes:
      value: the coefficient.
      low: the lower end of its 95% bootstrap interval.
      high: the upper end.
      deviation: standard deviation over the seeds; NaN for one seed.
    """

    value: float
    low: float
    high: float
    deviation: float


def correlations(
    first: np.ndarray, second: np.ndarray, *, seed: int = 0, num_resamples: int = 2000
) -> dict[str, Correlation]:
    """The correlations of two scores of architectures, with intervals.

    The intervals are percentiles of the coefficients of architectures drawn again with
    replacement; they hold for these seeds, and say nothing of others. Architectures with a value
    that is not finite are left out.

    Args:
      first: `[N]`, or `[K, N]` for K seeds, each of which is compared by itself.
      second: `[N]` or `[K, N]`.
      seed: seed of the resamples.
      num_resamples: how many.

    Returns:
      A `Correlation` for each name in `COEFFICIENTS`; NaN where fewer than three architectures are
      left or one of the scores is constant.
    """
    first, second = np.broadcast_arrays(np.atleast_2d(first), np.atleast_2d(second))
    kept = np.isfinite(first).all(axis=0) & np.isfinite(second).all(axis=0)
    first, second = first[:, kept].astype(float), second[:, kept].astype(float)
    count = first.shape[1]

    def varied(rows: np.ndarray) -> bool:
        return all((np.ptp(each[:, rows], axis=1) > 0).all() for each in (first, second))

    if count < 3 or not varied(np.arange(count)):
        return dict.fromkeys(COEFFICIENTS, Correlation(*[np.nan] * 4))
    draws = np.random.default_rng(seed).integers(count, size=(num_resamples, count))
    # A resample of one architecture over and over has no correlation.
    resamples = [rows for rows in draws if varied(rows)]
    found = {}
    for name, coefficient in COEFFICIENTS.items():

        def by_seed(
            rows: np.ndarray, coefficient: Callable[..., float] = coefficient
        ) -> list[float]:
            return [coefficient(a[rows], b[rows]) for a, b in zip(first, second, strict=True)]

        values = by_seed(np.arange(count))
        low, high = np.quantile([np.mean(by_seed(rows)) for rows in resamples], (0.025, 0.975))
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
        found[name] = Correlation(float(np.mean(values)), float(low), float(high), deviation)
    return found
