"""Correlations and their intervals."""

import math

import numpy as np
import pytest

from nasi_jax.report.correlation import COEFFICIENTS, OF_ACCURACY, correlations


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


def picks(accuracy, scores, **arguments):
    found = correlations(accuracy, scores, coefficients=OF_ACCURACY, **arguments)
    return found["ndcg"], found["best"]


def slow_ndcg(accuracy, scores, places):
    """In integers of any size, as long as accuracies and scores are integers without ties."""

    def gain(values):
        order = sorted(range(len(values)), key=lambda index: -values[index])[:places]
        return sum(
            (2 ** int(accuracy[index]) - 1) / math.log2(place + 1)
            for place, index in enumerate(order, 1)
        )

    return gain(scores) / gain(accuracy)


@pytest.mark.parametrize(("size", "places"), [(5, 1), (23, 1), (24, 2), (90, 6), (91, 6)])
def test_ndcg_of_the_first_in_sixteen(size, places):
    rng = np.random.default_rng(size)
    accuracy, scores = (rng.permutation(size).astype(float) for _ in range(2))
    expected = slow_ndcg(accuracy, scores, places)
    ndcg, _ = picks(accuracy, scores, num_resamples=2)
    assert ndcg.value == pytest.approx(expected, rel=1e-12)
    assert picks(accuracy, accuracy, num_resamples=2)[0].value == pytest.approx(1)
    # Accuracies of a hundred points more lead to the same, as long as 1 is nothing beside a gain.
    far, _ = picks(accuracy + 5000, scores, num_resamples=2)
    assert far.value == pytest.approx(slow_ndcg(accuracy + 100, scores, places), rel=1e-12)


def test_ties_have_the_gain_and_the_accuracy_of_random_breaks():
    """Also where a tie reaches beyond the places that count."""
    rng = np.random.default_rng(0)
    accuracy = rng.uniform(0, 6, 100)
    scores = rng.integers(0, 12, 100).astype(float)
    ndcg, best = picks(accuracy, scores, num_resamples=2)
    broken = [picks(accuracy, scores + 0.5 * rng.random(100), num_resamples=2) for _ in range(600)]
    for tied, values in zip((ndcg, best), np.array(broken)[:, :, 0].T, strict=True):
        error = np.std(values) / np.sqrt(len(values))
        assert 0 < error < 0.1
        assert abs(np.mean(values) - tied.value) < 4 * error


def test_ndcg_is_of_no_negative_truth():
    ndcg, best = picks(-np.arange(5.0), np.arange(5.0), num_resamples=20)
    assert all(map(math.isnan, ndcg[:4])) and best.value == -4


def test_best_is_the_accuracy_of_the_first():
    accuracy = np.array([60.0, 90.0, 70.0, np.nan, 80.0])
    assert picks(accuracy, np.array([0.0, 1, 2, 9, 1]))[1].value == 70
    assert picks(accuracy, np.array([0.0, 2, 2, 9, 1]))[1].value == 80
    rng = np.random.default_rng(3)
    accuracy = rng.uniform(50, 90, 40)
    _, best = picks(accuracy, accuracy + rng.normal(size=40), num_resamples=200)
    # Of a resample the first few may be missing, and none is better.
    assert 80 < best.low < best.value <= best.high <= accuracy.max()


def test_seeds_are_compared_one_by_one():
    rng = np.random.default_rng(2)
    first, second = rng.exponential(size=12), rng.normal(size=(3, 12))
    second[1, 4] = np.nan  # one seed's value leaves the architecture out of all
    kept = np.arange(12) != 4
    found_by_name = correlations(first, second, coefficients=OF_ACCURACY, num_resamples=50)
    for name, found in found_by_name.items():
        each = [OF_ACCURACY[name](first[kept], scores[kept]) for scores in second]
        assert found.value == pytest.approx(np.mean(each))
        assert found.deviation == pytest.approx(np.std(each, ddof=1))
        assert found.low <= found.value <= found.high
