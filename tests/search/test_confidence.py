"""Margins against the delta method in NumPy; evidence under a null, and against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from nasi_jax.cells import search_space
from nasi_jax.search import Evidence, Margin, margins, one_step_ascent
from nasi_jax.search.confidence import _log_mixture

NUM_STEPS = 12


def random_updates(space, seed, num_steps=NUM_STEPS):
    rng = np.random.default_rng(seed)
    shapes = {name: values.shape for name, values in space.init_alpha().items()}
    return {
        name: rng.normal(size=(num_steps, *shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def ending(updates):
    return {name: jnp.asarray(values.sum(axis=0)) for name, values in updates.items()}


def margins_of(space, updates):
    return {margin.name: margin for margin in margins(space, ending(updates), updates)}


def log_softmax_slope(alpha, column):
    """Of the log-probability of a column in the logits of its row."""
    return np.eye(len(alpha))[column] - special.softmax(np.asarray(alpha, float))


def assert_margin(margin, gap, samples):
    """The gap, and the standard error of a sum of T independent terms."""
    np.testing.assert_allclose(margin.margin, gap, rtol=1e-4, atol=1e-5)
    error = np.sqrt(len(samples) * np.var(samples, ddof=1))
    np.testing.assert_allclose(margin.standard_error, error, rtol=1e-4)
    np.testing.assert_allclose(margin.ratio, gap / error, rtol=1e-3)


def test_nasbench201_against_the_delta_method():
    space = search_space("nasbench201")
    updates = random_updates(space, 0)
    alpha = np.asarray(ending(updates)["cell"], float)
    scores = special.log_softmax(alpha, axis=1)
    found = margins(space, ending(updates), updates)
    assert [margin.name for margin in found] == [*space.labels()["cell"][0]]
    for row, margin in enumerate(found):
        win, lose = np.argsort(-scores[row])[:2]
        assert (margin.winner, margin.runner_up) == (space.ops[win], space.ops[lose])
        slope = log_softmax_slope(alpha[row], win) - log_softmax_slope(alpha[row], lose)
        samples = updates["cell"][:, row] @ slope
        assert_margin(margin, scores[row, win] - scores[row, lose], samples)


@pytest.mark.parametrize("name", ["nasbench1shot1-1", "nasbench1shot1-2", "nasbench1shot1-3"])
def test_inputs_of_nasbench1shot1(name):
    """Of k inputs that win, the weakest is set against the strongest that loses."""
    space = search_space(name)
    updates = random_updates(space, 1)
    found = margins_of(space, updates)
    for entry, count in space.num_selected().items():
        if entry == "ops":
            continue
        order = np.argsort(-np.asarray(ending(updates)[entry][0]))
        win, lose = order[count - 1 : count + 1]
        margin = found[entry.replace("_", " of ")]
        assert (margin.winner, margin.runner_up) == (str(win), str(lose))
        differences = updates[entry][:, 0, win] - updates[entry][:, 0, lose]
        assert_margin(margin, np.sum(differences), differences)
    assert len(found) == len(space.choices(space.init_alpha()))


def test_inputs_of_darts():
    """An edge's score is the log-probability of its best operation, so its slope has the row."""
    space = search_space("darts")
    updates = random_updates(space, 2)
    found = margins_of(space, updates)
    for cell in ("normal", "reduce"):
        alpha = np.asarray(ending(updates)[cell], float)
        scores = special.log_softmax(alpha, axis=1)
        best = 1 + np.argmax(scores[:, 1:], axis=1)
        assert space.ops[0] == "none"
        strengths = scores[np.arange(14), best]
        samples = [
            updates[cell][:, row] @ log_softmax_slope(alpha[row], best[row]) for row in range(14)
        ]
        for node, first in {3: 2, 4: 5, 5: 9}.items():
            order = np.argsort(-strengths[first : first + node])
            win, lose = order[1], order[2]
            margin = found[f"{cell} inputs of {node}"]
            assert (margin.winner, margin.runner_up) == (str(win), str(lose))
            gap = strengths[first + win] - strengths[first + lose]
            assert_margin(margin, gap, samples[first + win] - samples[first + lose])
    # Node 2 reads both of the two before it.
    assert not any(name.endswith("inputs of 2") for name in found)


def test_standard_errors_are_calibrated():
    """Updates with a known mean and covariance: (margin - truth) / error has variance one."""
    space, num_steps, num_searches = search_space("nasbench201"), 60, 40
    rng = np.random.default_rng(3)
    # So far apart that no search ranks the operations in another order.
    mean = np.array([rng.permutation(5) for _ in range(6)]) / num_steps
    factor = 0.004 * rng.normal(size=(5, 5))
    standardized, errors = [], []
    for _ in range(num_searches):
        noise = rng.normal(size=(num_steps, 6, 5)) @ factor.T
        updates = {"cell": (mean + noise).astype(np.float32)}
        for row, margin in enumerate(margins(space, ending(updates), updates)):
            win, lose = np.argsort(-mean[row])[:2]
            assert (margin.winner, margin.runner_up) == (space.ops[win], space.ops[lose])
            truth = np.sqrt(num_steps) * np.linalg.norm(factor[win] - factor[lose])
            # Neighbors in the order of the means are 1 apart.
            standardized.append((margin.margin - 1) / margin.standard_error)
            errors.append(margin.standard_error / truth)
    # 240 values of Student's t with 59 degrees of freedom: variance 1.035 +- 0.095.
    assert abs(np.var(standardized) - 1.035) < 4 * 0.095
    assert abs(np.mean(standardized)) < 4 / np.sqrt(240)
    # An error from 60 samples is off by 1 / sqrt(118), the mean of 240 by 0.006.
    assert abs(np.mean(errors) - 1) < 0.03


def test_after_one_step_there_is_no_standard_error():
    space = search_space("nasbench201")
    found = margins_of(space, random_updates(space, 4, num_steps=1))
    assert all(
        np.isnan(margin.standard_error) and np.isnan(margin.ratio) for margin in found.values()
    )
    assert all(margin.margin > 0 for margin in found.values())


def test_ties():
    """At alpha_0 all scores are equal: the first option wins, by nothing."""
    space = search_space("nasbench201")
    updates = {"cell": np.zeros((3, 6, 5), np.float32)}
    for margin in margins_of(space, updates).values():
        assert (margin.winner, margin.runner_up) == space.ops[:2]
        assert margin.margin == margin.standard_error == margin.ratio == 0


def test_ratio():
    assert Margin("0->1", "a", "b", 3.0, 2.0).ratio == 1.5
    assert Margin("0->1", "a", "b", 0.0, np.nan).ratio == 0
    # Updates that are all the same leave no doubt.
    assert Margin("0->1", "a", "b", 3.0, 0.0).ratio == np.inf


def test_one_operation_leaves_nothing_to_choose():
    space = search_space("nasbench201", ops=("skip_connect",))
    assert margins(space, space.init_alpha(), random_updates(space, 5)) == []
    space = search_space("darts", ops=("none", "skip_connect"))
    assert [*margins_of(space, random_updates(space, 6))] == [
        f"{cell} inputs of {node}" for cell in ("normal", "reduce") for node in (3, 4, 5)
    ]


@jax.jit
def scanned(gradients):
    num_steps = len(next(iter(gradients.values())))
    optimizer = one_step_ascent(num_steps)

    def step(state, gradient):
        update, state = optimizer.update(gradient, state)
        return state, update

    first = jax.tree.map(lambda leaf: leaf[0], gradients)
    return jax.lax.scan(step, optimizer.init(first), gradients)[1]


def ascents(space, seed, num_steps, drift=None):
    """Updates of equation (18) from gradients of heavy tails in which no option is better.

    Each gradient is normal with another, log-normal scale; `drift` is added before the scale.
    """
    rng = np.random.default_rng(seed)
    shapes = {name: leaf.shape for name, leaf in space.init_alpha().items()}
    noise = {name: rng.normal(size=(num_steps, *shape)) for name, shape in shapes.items()}
    if drift is not None:
        noise = {name: values + drift[name] for name, values in noise.items()}
    scale = rng.lognormal(sigma=1.5, size=(num_steps, 1, 1))
    gradients = {name: np.float32(-scale * values) for name, values in noise.items()}

    return jax.device_get(scanned(gradients))


def evidence_of(space, updates):
    evidence = Evidence(space)
    for step in range(len(next(iter(updates.values())))):
        evidence.add({name: values[step] for name, values in updates.items()})
    return evidence


def claims(evidence):
    return int(np.sum(evidence._better != 0))


@pytest.mark.parametrize("name", ["nasbench201", "nasbench1shot1-2"])
def test_where_no_option_is_better_hardly_any_search_claims_it(name):
    """In 200 searches of 150 steps, looked at after every one, at most 5% claim anything at all."""
    space = search_space(name)
    found = [claims(evidence_of(space, ascents(space, seed, 150))) for seed in range(200)]
    assert np.sum(np.array(found) > 0) <= 0.05 * 200


def test_what_is_better_is_found_out():
    """One option a row, by a standard deviation; and all that is claimed is true."""
    space = search_space("nasbench201")
    drift = {"cell": 1.0 * (np.arange(5) == np.arange(6)[:, None] % 5)}
    early, late = (evidence_of(space, ascents(space, 0, steps, drift)) for steps in (60, 1200))
    assert not any(verdict.sure for verdict in early.verdicts())
    assert (early.all_sure, late.all_sure) == (False, True)
    verdicts = late.verdicts()
    assert all(verdict.sure and verdict.steps_to_sure == 0 for verdict in verdicts)
    assert [verdict.name for verdict in verdicts] == [*space.labels()["cell"][0]]
    for left, right, better in zip(late._left, late._right, late._better, strict=True):
        best = [int(each // 5 % 5 == each % 5) for each in (left, right)]
        assert better == best[0] - best[1] or better == 0


def test_evidence_against_its_formula():
    """Two options: a sum of differences over the root of the mean square of those before."""
    space = search_space("nasbench201", ops=("skip_connect", "nor_conv_3x3"))
    updates = ascents(space, 1, 30, {"cell": np.array([0.4, 0.0])})
    evidence = evidence_of(space, updates)
    # The slope of log-softmax differences is that of the logits, wherever alpha stands.
    differences = updates["cell"][..., 0].astype(float) - updates["cell"][..., 1]
    squares = np.cumsum(np.square(differences), axis=0)[:-1]
    terms = differences[1:] / np.sqrt(squares / np.arange(1, 30)[:, None])
    total, variance = np.sum(terms, axis=0), np.sum(np.square(terms), axis=0)
    rates, spread = np.linspace(-8, 8, 4001), np.sqrt(0.1)
    density = np.exp(-np.square(rates / spread) / 2) / np.sqrt(2 * np.pi) / spread
    bets = np.exp(np.outer(total, rates) - np.outer(variance, np.square(rates)) / 2)
    mixture = np.sum(density * bets, axis=1) * (rates[1] - rates[0])
    np.testing.assert_allclose(np.exp(_log_mixture(total, variance)), mixture, rtol=1e-6)
    np.testing.assert_allclose(evidence._sum, total, rtol=1e-4)
    np.testing.assert_allclose(evidence._variance, variance, rtol=1e-4)
    assert evidence.num_steps == 30


def test_more_steps_as_foretold():
    """At the average so far the foretold step is the first to reach the threshold."""
    space = search_space("nasbench201", ops=("skip_connect", "nor_conv_3x3"))
    evidence = evidence_of(space, ascents(space, 2, 40, {"cell": np.array([0.3, 0.0])}))
    foretold = [verdict.steps_to_sure for verdict in evidence.verdicts()]
    assert any(more is not None and more > 0 for more in foretold)
    winners = [int(np.argmax(choice.scores)) for choice in space.choices(evidence._alpha)]
    for row, more in enumerate(foretold):
        total = evidence._sum[row] * (1 if winners[row] == 0 else -1)
        if more is None:
            assert total <= 0
        elif more:
            for steps, reached in ((40 + more, True), (40 + more - 1, False)):
                share = steps / 40
                value = _log_mixture(share * total, share * evidence._variance[row])
                assert (value >= np.log(6 / 0.05)) == reached


def test_no_evidence_without_a_difference():
    space = search_space("nasbench201")
    evidence = evidence_of(space, {"cell": np.zeros((5, 6, 5), np.float32)})
    assert all(not each.sure and each.steps_to_sure is None for each in evidence.verdicts())
