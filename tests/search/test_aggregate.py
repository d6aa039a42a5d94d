"""Aggregates of scores, against a slow transcription."""

import math
from typing import get_args

import numpy as np
import pytest
from scipy import stats

from nasi_jax.config import Aggregate
from nasi_jax.search.aggregate import AGGREGATES, log_rank


def slow_log_rank(scores):
    """Counts who is worse, and half of who is equal, pair by pair."""
    total = [0.0] * len(scores[0])
    for row in scores:
        row = [-math.inf if math.isnan(score) else score for score in row]
        for index, own in enumerate(row):
            worse = sum(other < own for other in row)
            equal = sum(other == own for other in row)
            total[index] += math.log((worse + (equal + 1) / 2) / len(row))
    return total


@pytest.mark.parametrize("seed", range(3))
def test_log_rank_of_ties_and_of_what_is_not_finite(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 8, (4, 30)).astype(float)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    scores[0, 0] = np.inf
    np.testing.assert_allclose(log_rank(scores), slow_log_rank(scores), rtol=1e-12)


def test_log_rank_of_three():
    """0 for who is best by all; NaN and -inf share the last two places."""
    found = log_rank([[3.0, np.nan, -np.inf], [30.0, 20.0, 10.0]])
    assert found == pytest.approx([0, math.log(1.5 / 3 * 2 / 3), math.log(1.5 / 3 * 1 / 3)])


def test_one_score_leaves_the_order():
    scores = np.random.default_rng(0).normal(size=20)
    assert stats.rankdata(log_rank([scores])).tolist() == stats.rankdata(scores).tolist()


def test_who_is_last_once_does_not_win():
    """Of 4, ranks 4 and 1 have as large a sum as 3 and 2 have, and a smaller product."""
    found = log_rank([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    assert found[0] < found[1]


def test_the_settings_name_the_aggregates():
    assert set(get_args(Aggregate)) == {*AGGREGATES, "log_rank"}
