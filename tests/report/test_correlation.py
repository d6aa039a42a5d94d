"""Correlations and their intervals."""

import numpy as np
import pytest

from nasi_jax.report.correlation import COEFFICIENTS, correlations


def same(first, second):
    """Whether they are equal, of one seed each: without the deviations, which are NaN."""
    return {name: each[:3] for name, each in first.items()} == {
        name: each[:3] for name, each in second.items()
    }


def test_values_on_known_pairs():
    first, second = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 8.0, 9.0, 7.0])
    found = correlations(first, second, num_resamples=50)
    ranks = np.array([1.0, 3.0, 4.0, 2.0])
    assert found["pearson"].value == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert found["spearman"].value == pytest.approx(np.corrcoef(first, ranks)[0, 1])
    # Of six pairs four are in order.
    assert found["kendall"].value == pytest.approx((4 - 2) / 6)


def test_intervals_cover_the_truth():
    """Of 60 samples of a Gaussian with correlation 0.6, 57 give or take three binomial errors."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        first = rng.normal(size=80)
        second = 0.6 * first + 0.8 * rng.normal(size=80)
        found = correlations(first, second, num_resamples=100)["pearson"]
        assert found.low <= found.value <= found.high
        covered += found.low < 0.6 < found.high
    assert 57 - 3 * np.sqrt(60 * 0.95 * 0.05) <= covered <= 60


def test_the_seed_decides():
    rng = np.random.default_rng(1)
    pairs = rng.normal(size=(2, 20))
    first, again, other = (correlations(*pairs, seed=seed, num_resamples=50) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)


def test_what_is_not_finite():
    """NaN is left out; what is infinite has a rank, but no place in Pearson's sums."""
    first, second = np.arange(6.0), np.array([-np.inf, 2.0, 1.0, 3.0, np.inf, np.nan])
    found = correlations(first, second, num_resamples=50)
    assert {name: each.num for name, each in found.items()} == {
        "pearson": 3,
        "spearman": 5,
        "kendall": 5,
        "top_10%": 5,
    }
    assert found["pearson"].value == pytest.approx(np.corrcoef(first[1:4], second[1:4])[0, 1])
    assert found["spearman"].value == pytest.approx(0.9)  # 1 3 2 4 5 against 1 2 3 4 5
    assert all(np.isfinite(each.low) for each in found.values())


@pytest.mark.parametrize("first", [[1.0, 2.0], [1.0, 1.0, 1.0], [np.nan, 1.0, 2.0, np.nan]])
def test_undefined(first):
    found = correlations(np.array(first), np.arange(len(first)) * 1.0)
    assert found.keys() == COEFFICIENTS.keys()
    assert all(np.isnan(value) for each in found.values() for value in each[:4])


def top(first, second):
    return correlations(first, second, num_resamples=50)["top_10%"].value


def test_precision_in_the_top_tenth():
    """Of 20 the two best: in common one, or with ties as many as a random break of them gives."""
    first = np.arange(20.0)
    second = np.where(first == 18, 0.5, first)
    assert top(first, second) == 0.5
    assert top(first, first) == 1
    assert top(first, -first) == 0
    # 18 and 19 share the first place with two others: each is in with probability 1/2.
    tied = np.where(np.isin(first, (0, 1, 18, 19)), 30.0, first)
    assert top(first, tied) == pytest.approx((0.5 + 0.5) / 2)


def test_the_top_tenth_is_rounded():
    """That of 16 is two, of which these scores have one in common."""
    first = np.arange(16.0)
    second = np.where(first == 14, 0.5, first)
    assert top(first, second) == 0.5


@pytest.mark.parametrize("size", [20, 200])
def test_copies_in_a_resample_are_no_ties(size):
    """A score agrees with itself in every resample."""
    first = np.random.default_rng(0).normal(size=size)
    found = correlations(first, 3 * first, num_resamples=200)["top_10%"]
    assert (found.low, found.value, found.high) == (1, 1, 1)


def test_seeds_are_compared_one_by_one():
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=12), rng.normal(size=(3, 12))
    second[1, 4] = np.nan  # one seed's value leaves the architecture out of all
    kept = np.arange(12) != 4
    for name, found in correlations(first, second, num_resamples=50).items():
        each = [COEFFICIENTS[name](first[kept], scores[kept]) for scores in second]
        assert found.value == pytest.approx(np.mean(each))
        assert found.deviation == pytest.approx(np.std(each, ddof=1))
        assert found.low <= found.value <= found.high
