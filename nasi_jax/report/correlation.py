"""How well one score of architectures agrees with another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

TOP = 0.1
"""The share of architectures that `top` looks at."""

NDCG_TOP = 0.064
"""The share of architectures that nDCG looks at: 1,000 of NAS-Bench-201's 15,625 cells."""


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


def _ndcg(truth: np.ndarray, scores: np.ndarray) -> float:
    """The discounted gain of the first by score over that of the first in truth."""
    if truth.min() < 0:
        return np.nan
    count = max(1, round(NDCG_TOP * len(truth)))
    discounts = 1 / np.log2(np.arange(2, count + 2))
    # 2^truth - 1 over 2^largest, which overflows for no truth.
    gains = np.exp2(truth - truth.max()) - np.exp2(-truth.max())
    _, place, tied = np.unique(-scores, return_inverse=True, return_counts=True)
    expected = np.repeat(np.bincount(place, gains) / tied, tied)  # over breaks of ties at random
    ideal = np.sort(gains)[::-1]
    return float(discounts @ expected[:count] / (discounts @ ideal[:count]))


def _best(truth: np.ndarray, scores: np.ndarray) -> float:
    """The true value of the best by score."""
    return float(np.mean(truth[scores == scores.max()]))


Coefficient = Callable[[np.ndarray, np.ndarray], float]

# By the ranks: scipy's own functions test significance too, and take ten times as long.
COEFFICIENTS: dict[str, Coefficient] = {
    "pearson": _pearson,
    "spearman": lambda first, second: _pearson(stats.rankdata(first), stats.rankdata(second)),
    "kendall": lambda first, second: float(stats.kendalltau(first, second).statistic),
    "top_10%": _top,
}
"""The coefficients by name: Pearson's r, Spearman's rho, Kendall's tau-b, and the precision in the
top 10%: the share of one score's top tenth that is in the other's; of random scores it is 0.1."""

OF_ACCURACY: dict[str, Coefficient] = {**COEFFICIENTS, "ndcg": _ndcg, "best": _best}
"""These, and how well a score picks where the first of the two is the accuracy in percent.

`ndcg` is the normalized discounted cumulative gain of the first k by score,
`sum_i (2^accuracy_i - 1) / log2(i + 1)` over places i = 1..k, divided by what the first k by
accuracy have, so that a point of accuracy counts twice as much as the one below (VKDNW, Tybl and
Neumann, CVPR 2025). k is 6.4% of the architectures and at least 1: of NAS-Bench-201's 15,625 cells
it is VKDNW's 1,000 (of the 9,445 live ones 604). Equal scores share the mean of their gains. It is
NaN where what should be an accuracy is negative. `best` is the accuracy of the architecture that
the score ranks first, the mean where several are."""


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
    first: np.ndarray,
    second: np.ndarray,
    *,
    coefficients: Mapping[str, Coefficient] = COEFFICIENTS,
    seed: int = 0,
    num_resamples: int = 2000,
) -> dict[str, Correlation]:
    """The correlations of two scores of architectures, with intervals.

    The intervals are percentiles of the coefficients of architectures drawn again with
    replacement; they hold for these seeds, and say nothing of others. Architectures with a value
    that is NaN for some seed are left out, for Pearson's r those with an infinite one too.

    Args:
      first: `[N]`, or `[K, N]` for K seeds, each of which is compared by itself; the true one, if
        either is.
      second: `[N]` or `[K, N]`.
      coefficients: what to compute, by name.
      seed: seed of the resamples.
      num_resamples: how many, at least 2.

    Returns:
      A `Correlation` for each name in `coefficients`; NaN where fewer than three architectures are
      left or one of the scores is constant.
    """
    first, second = np.broadcast_arrays(np.atleast_2d(first), np.atleast_2d(second))
    kept = ~(np.isnan(first) | np.isnan(second)).any(axis=0)
    first, second = first[:, kept].astype(float), second[:, kept].astype(float)
    count = first.shape[1]

    if count < 3 or not _vary(*first, *second):
        return dict.fromkeys(coefficients, Correlation(np.nan, np.nan, np.nan, np.nan, count))
    found = {}
    for name, coefficient in coefficients.items():
        values = np.array([coefficient(*pair) for pair in zip(first, second, strict=True)])
        low, high = _interval(coefficient, first, second, seed, num_resamples)
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
        finite = (np.isfinite(first) & np.isfinite(second)).all(axis=0)
        num = int(finite.sum()) if coefficient is _pearson else count
        found[name] = Correlation(float(np.mean(values)), low, high, deviation, num)
    return found


def _interval(
    coefficient: Coefficient, first: np.ndarray, second: np.ndarray, seed: int, num_resamples: int
) -> tuple[float, float]:
    """Percentiles of the mean over the seeds, whose architectures are drawn together."""

    def of_resample(first: np.ndarray, second: np.ndarray) -> float:
        # A resample of one architecture over and over has no correlation.
        return coefficient(first, second) if _vary(first, second) else np.nan

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # of such resamples
        drawn = stats.bootstrap(
            (first, second),
            of_resample,
            n_resamples=num_resamples,
            batch=20,  # all resamples of a whole benchmark at once are gigabytes
            vectorized=False,
            paired=True,
            axis=1,
            method="percentile",
            random_state=np.random.default_rng(seed),  # `rng` is known to scipy 1.15 and later
        )
    means = np.mean(drawn.bootstrap_distribution, axis=0)
    means = means[np.isfinite(means)]
    low, high = np.quantile(means, (0.025, 0.975)) if len(means) else (np.nan, np.nan)
    return float(low), float(high)
