"""Several scores of architectures as one: the sum of the logarithms of their ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

AGGREGATES: dict[str, tuple[str, ...]] = {
    "az_nas": ("expressivity", "progressivity", "trainability", "flops"),
    "vkdnw_agg": ("vkdnw", "expressivity", "trainability", "flops", "jacov"),
}
"""The proxies whose `log_rank` is an aggregate of the literature: AZ-NAS (Lee and Ham, CVPR 2024),
and VKDNW_agg (Tybl and Neumann, CVPR 2025) as it is on NAS-Bench-201."""


def log_rank(scores: ArrayLike) -> np.ndarray:
    """The sum of the logarithms of ranks, `S = sum_k log(rank_k / N)` (Lee and Ham, CVPR 2024).

    `rank_k` is that among the N architectures by score k, N for the best; equal scores share the
    mean of their ranks. A product of ranks: who is last in one score is not good by the others. As
    S depends on all N, a search computes it anew over its whole history whenever that grows.

    Args:
      scores: `[K, N]`, K scores of N architectures, all of them higher is better. NaN and -inf are
        last, and equal to one another.

    Returns:
      `[N]`, higher is better: 0 for an architecture that alone is best by every score, else less.
    """
    scores = np.asarray(scores, float)
    ranks = stats.rankdata(np.where(np.isnan(scores), -np.inf, scores), axis=1)
    return np.sum(np.log(ranks / scores.shape[1]), axis=0)
