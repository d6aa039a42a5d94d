"""How well one score of architectures agrees with another."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

TOP = 0.1
"""The share of architectures that `top` looks at."""


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Over the pairs that are finite."""
    finite = np.isfinite(first) & np.isfinite(second)
    first, second = first[finite], second[finite]
    return float(np.corrcoef(first, second)[0, 1]) if _vary(first, second) else np.nan


def _vary(*scores: np.ndarray) -> bool:
    return all(len(each) > 1 and each.min() < each.max() for each in scores)


def _top(first: np.ndarray, second: np.ndarray) -> float:
    """How much of the top of one score is in the top of the other, ties broken at random."""
    # A bootstrap has copies, which are in the top of both or of none: ties of another kind.
    pairs, copies = np.unique(np.stack([first, second], axis=1), axis=0, return_counts=True)
    count = max(1, round(TOP * len(first)))
    (in_first, tied), (in_second, tied_too) = (_shares(each, copies, count) for each in pairs.T)
    both = in_first * in_second if tied or tied_too else np.minimum(in_first, in_second)
    return float(copies @ both / count)


def _shares(values: np.ndarray, copies: np.ndarray, count: int) -> tuple[np.ndarray, bool]:
    """Which share of each one's copies is among the `count` largest, and if several share a tie."""
    order = np.argsort(-values, kind="stable")
    last = values[order][np.searchsorted(np.cumsum(copies[order]), count)]
    above, level = values > last, values == last
    rest = count - copies[above].sum()
    return above + level * rest / copies[level].sum(), bool(level.sum() > 1)


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
      num: how many architectures were compared.
    """

    value: float
    low: float
    high: float
    deviation: float
    num: int


def correlations(
    first: np.ndarray, second: np.ndarray, *, seed: int = 0, num_resamples: int = 2000
) -> dict[str, Correlation]:
    """The correlations of two scores of architectures, with intervals.

    The intervals are percentiles of the coefficients of architectures drawn again with
    replacement; they hold for these seeds, and say nothing of others. Architectures with a value
    that is NaN for some seed are left out, for Pearson's r those with an infinite one too.

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
    kept = ~(np.isnan(first) | np.isnan(second)).any(axis=0)
    first, second = first[:, kept].astype(float), second[:, kept].astype(float)
    count = first.shape[1]

    def varied(rows: np.ndarray) -> bool:
        return _vary(*first[:, rows], *second[:, rows])

    if count < 3 or not varied(np.arange(count)):
        return dict.fromkeys(COEFFICIENTS, Correlation(np.nan, np.nan, np.nan, np.nan, count))
    draws = np.random.default_rng(seed).integers(count, size=(num_resamples, count))
    # A resample of one architecture over and over has no correlation.
    resamples = [rows for rows in draws if varied(rows)]
    found = {}
    for name, coefficient in COEFFICIENTS.items():

        def by_seed(
            rows: np.ndarray, coefficient: Callable[..., float] = coefficient
        ) -> np.ndarray:
            pairs = zip(first[:, rows], second[:, rows], strict=True)
            return np.array([coefficient(*pair) for pair in pairs])

        values = by_seed(np.arange(count))
        means = np.array([np.mean(by_seed(rows)) for rows in resamples])
        means = means[np.isfinite(means)]
        low, high = np.quantile(means, (0.025, 0.975)) if len(means) else (np.nan, np.nan)
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
        finite = (np.isfinite(first) & np.isfinite(second)).all(axis=0)
        num = int(finite.sum()) if coefficient is _pearson else count
        found[name] = Correlation(float(np.mean(values)), float(low), float(high), deviation, num)
    return found
