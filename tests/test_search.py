"""Algorithm 1 against transcriptions in NumPy, on a space that compiles in a moment."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Toy, flat, random_batch

import nasi_jax as nasi
from nasi_jax.search import fixed, penalised

SPACE = Toy()
T = 4


def batches(step):
    return random_batch(step)


def algorithm(optimizer=None, **settings):
    settings = {"penalty": 1.0, "constraint": nasi.adaptive(10.0), **settings}
    optimizer = nasi.one_step_ascent(T) if optimizer is None else optimizer
    return nasi.nasi(SPACE, num_classes=4, optimizer=optimizer, **settings)


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("nu", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("x", [0.2, 0.9, 1.4, 3.0])
def test_objective(x, nu):
    x, nu = np.float32(x), np.float32(nu)
    np.testing.assert_allclose(penalised(x, nu, 2.0), nu - abs(x - nu), rtol=1e-6)
    np.testing.assert_allclose(penalised(x, nu, 1.0), min(x, nu), rtol=1e-6)
    for mu in (0.5, 1.0, 2.0):
        slopes = jax.grad(penalised, argnums=(0, 1))(jnp.array(x), jnp.array(nu), mu)
        np.testing.assert_allclose(slopes[0], 1 - mu * (x > nu) if x != nu else slopes[0])
        assert slopes[1] == 0


def transcription(gradients, xi=1.0):
    """Equation (18), as it is printed."""
    delta, largest = np.zeros_like(gradients[0]), 0.0
    for gradient in gradients:
        largest = max(largest, np.linalg.norm(gradient))
        if largest > 0:
            delta = delta + xi / len(gradients) * gradient / largest
    return delta


@pytest.mark.parametrize("zeros", [0, 2, 6])
def test_equation_18(zeros):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(6, 12)) * 10 ** rng.normal(size=(6, 1))
    gradients[:zeros] = 0
    update = nasi.one_step_ascent(6, radius=0.7)
    alpha = {"a": jnp.zeros((2, 3)), "b": jnp.zeros((1, 6))}
    state = update.init(alpha)
    for gradient in gradients:
        ascent = jnp.asarray(-gradient, jnp.float32)
        tree = {"a": ascent[:6].reshape(2, 3), "b": ascent[6:].reshape(1, 6)}
        steps, state = update.update(tree, state)
        alpha = optax.apply_updates(alpha, steps)
    result = np.concatenate([alpha["a"].ravel(), alpha["b"].ravel()])
    np.testing.assert_allclose(result, transcription(gradients, 0.7), rtol=1e-5, atol=1e-7)
    assert np.linalg.norm(result) <= 0.7 * (1 + 1e-6)


@pytest.fixture(scope="module")
def finished():
    seen = []
    search = algorithm()
    run = nasi.run(
        jax.random.key(0),
        search,
        batches,
        T,
        on_step=lambda run: seen.append(len(run.step_seconds)),
    )
    assert seen == list(range(1, T + 1))
    return run


def test_a_loop_of_ones_own_is_the_run(finished):
    search, key = algorithm(), jax.random.key(0)
    state = jax.jit(search.init)(jax.random.fold_in(key, 0), batches(0))
    step = jax.jit(search.step)
    for t in range(T):
        state, info = step(jax.random.fold_in(key, t + 1), state, batches(t))
        same(info.trace, finished.info.trace[t])
    same(state, finished.state)


def test_algorithm_1_step_by_step(finished):
    """The gradients, all at alpha_0 = 0, summed by the transcription; nu by its rule."""
    params = finished.state.params
    supernet = SPACE.supernet(4)
    key, gradients, traces, nus, nu = jax.random.key(0), [], [], [], 10.0
    for t in range(T):
        sample_key, _ = jax.random.split(jax.random.fold_in(key, t + 1))
        batch = batches(t)

        def trace(alpha, sample_key=sample_key, batch=batch):
            weights = nasi.gumbel_softmax(sample_key, alpha)

            def loss(params):
                logits = supernet.apply({"params": params}, batch.inputs, weights)
                chosen = jnp.arange(len(batch.labels))
                return -jnp.mean(jax.nn.log_softmax(logits)[chosen, batch.labels])

            gradient = jax.grad(loss)(params)
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))

        x, slope = jax.value_and_grad(trace)(SPACE.init_alpha())
        gradients.append(flat(slope) * float(x <= nu))
        nus.append(nu)
        traces.append(float(x))
        nu = (10.0 + sum(traces)) / (t + 2)
    np.testing.assert_allclose(finished.info.trace, traces, rtol=1e-4)
    np.testing.assert_allclose(finished.info.constraint, nus, rtol=1e-4)
    norms = [np.linalg.norm(gradient) for gradient in gradients]
    np.testing.assert_allclose(finished.info.gradient_norm, norms, rtol=1e-3)
    objective = np.minimum(finished.info.trace, finished.info.constraint)
    np.testing.assert_allclose(finished.info.objective, objective, rtol=1e-5)
    expected = transcription(np.array(gradients))
    np.testing.assert_allclose(flat(finished.state.alpha), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("done", [1, 2, 3, 4])
def test_resume_is_bit_for_bit(finished, done):
    kept = []

    def keep(run):
        if len(run.step_seconds) == done:
            kept.append(run._replace(state=jax.tree.map(jnp.copy, run.state)))

    nasi.run(jax.random.key(0), algorithm(), batches, T, on_step=keep)
    resumed = nasi.run(jax.random.key(0), algorithm(), batches, T, start=kept[0])
    same(resumed.state, finished.state)
    same(resumed.info, finished.info)


def trace_of_step(search, state):
    return float(jax.jit(search.step)(jax.random.key(2), state, batches(1))[1].trace)


# optax.adam itself mixes integers and floats.
standard_promotion = jax.numpy_dtype_promotion("standard")


@standard_promotion
def test_theta_stays_and_alpha_0_too():
    search = algorithm()
    state = search.init(jax.random.key(1), batches(0))
    moved = state._replace(alpha=jax.tree.map(lambda leaf: leaf + 0.3, state.alpha))
    after, info = jax.jit(search.step)(jax.random.key(2), state, batches(1))
    _, info_moved = jax.jit(search.step)(jax.random.key(2), moved, batches(1))
    same(info, info_moved)
    same(after.params, state.params)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(info.update))
    search = algorithm(optax.adam(0.1), move_alpha=True)
    state = search.init(jax.random.key(1), batches(0))
    moved = state._replace(alpha={**state.alpha, "ops": state.alpha["ops"].at[0, 0].add(1.0)})
    assert trace_of_step(search, state) != trace_of_step(search, moved)


@standard_promotion
def test_adam_moves_alpha():
    optimizer = optax.adam(0.1)
    search = algorithm(optimizer, move_alpha=True)
    state = search.init(jax.random.key(2), batches(0))
    step = jax.jit(search.step)
    alpha, opt_state = state.alpha, optimizer.init(state.alpha)
    probe = algorithm(optax.identity(), move_alpha=True)
    for t in range(3):
        at_alpha = state._replace(opt_state=optax.identity().init(alpha))
        gradient = jax.jit(probe.step)(jax.random.key(t), at_alpha, batches(t))[1].update
        updates, opt_state = optimizer.update(gradient, opt_state)
        alpha = optax.apply_updates(alpha, updates)
        state, _ = step(jax.random.key(t), state, batches(t))
        np.testing.assert_allclose(flat(state.alpha), flat(alpha), rtol=1e-4, atol=1e-6)


def test_the_step_is_traced_once():
    search = algorithm()
    traced = []

    def step(key, state, batch):
        traced.append(1)
        return search.step(key, state, batch)

    nasi.run(jax.random.key(0), search._replace(step=step), batches, 10)
    assert len(traced) == 1


def test_a_trace_that_is_not_finite_names_its_step():
    def proxy(key, apply_fn, params, batch):
        outputs = jnp.mean(apply_fn(params, batch.inputs))
        return jnp.where(batch.labels[0] == batches(2).labels[0], jnp.nan, 1.0) * outputs

    first = next(t for t in range(T) if batches(t).labels[0] == batches(2).labels[0])
    with pytest.raises(FloatingPointError, match=f"at step {first + 1} "):
        nasi.run(jax.random.key(0), algorithm(proxy=proxy), batches, T)


def test_constraint_rules():
    x = np.array([3.0, 1.0, 7.0, 2.0])
    adaptive, constant = nasi.adaptive(100.0), fixed(100.0)
    state, still = adaptive.init(None), constant.init(None)
    for t in range(4):
        np.testing.assert_allclose(state.nu, (100 + x[:t].sum()) / (t + 1), rtol=1e-6)
        assert still.nu == 100
        state, still = adaptive.update(state, x[t]), constant.update(still, x[t])


def test_quantile_rule_is_of_the_traces_of_random_architectures():
    search = algorithm(constraint=nasi.quantile(0.25, num_samples=8))
    state = search.init(jax.random.key(3), batches(0))
    sample_key = jax.random.split(jax.random.key(3))[1]
    probe = algorithm()
    traces = [
        probe.step(subkey, state, batches(0))[1].trace for subkey in jax.random.split(sample_key, 8)
    ]
    np.testing.assert_allclose(state.constraint.nu, np.quantile(traces, 0.25), rtol=1e-4)


def test_frozen_norm_takes_its_statistics_from_the_first_batch():
    search = algorithm(norm="frozen")
    state = search.init(jax.random.key(4), batches(0))
    same(state.reference, batches(0).inputs)
    other = state._replace(reference=batches(2).inputs)
    assert trace_of_step(search, state) != trace_of_step(search, other)


@pytest.mark.parametrize("count", [1, 2])
def test_hard_samples(count):
    logits = jnp.asarray(np.log([0.5, 0.3, 0.15, 0.05]), jnp.float32)[None]
    sample = functools.partial(nasi.gumbel_softmax, hard=True, num_selected={"a": count})
    keys = jax.random.split(jax.random.key(5), 4000)
    weights = np.array(jax.vmap(lambda key: sample(key, {"a": logits})["a"][0])(keys))
    np.testing.assert_allclose(np.sort(weights, axis=1)[:, -count:], 1, atol=1e-6)
    np.testing.assert_allclose(np.sum(weights, axis=1), count, atol=1e-5)
    if count == 1:
        probabilities = np.array([0.5, 0.3, 0.15, 0.05])
        error = np.abs(weights.mean(axis=0) - probabilities)
        assert np.all(error < 4 * np.sqrt(probabilities * (1 - probabilities) / 4000))
    hard, soft = (
        jax.grad(
            lambda a, hard=hard: nasi.gumbel_softmax(jax.random.key(0), {"a": a}, hard=hard)["a"][
                0, 1
            ]
        )(logits)
        for hard in (True, False)
    )
    np.testing.assert_allclose(hard, soft, rtol=1e-6)


def test_soft_samples():
    alpha = {"a": jnp.zeros((3, 4)), "b": jnp.ones((1, 2))}
    soft = nasi.gumbel_softmax(jax.random.key(6), alpha)
    for name in alpha:
        np.testing.assert_allclose(np.sum(soft[name], axis=1), 1, rtol=1e-6)
    cold = nasi.gumbel_softmax(jax.random.key(6), alpha, temperature=1e-3)
    hard = nasi.gumbel_softmax(jax.random.key(6), alpha, hard=True)
    for name in alpha:
        np.testing.assert_allclose(cold[name], hard[name], atol=1e-3)
        assert np.array_equal(np.argmax(soft[name], 1), np.argmax(hard[name], 1))


def test_standard_errors_are_calibrated():
    """Over many simulated searches (margin - truth) / standard error has variance one."""
    space = nasi.search_space("nasbench201")
    rng = np.random.default_rng(7)
    mean = rng.normal(size=(6, 5)) / 30
    ratios = []
    for _ in range(30):
        updates = (mean / 60 + rng.normal(size=(60, 6, 5)) * 0.002).astype(np.float32)
        alpha = {"cell": jnp.asarray(updates.sum(axis=0))}
        for row, margin in enumerate(nasi.margins(space, alpha, {"cell": updates})):
            win, lose = space.ops.index(margin.winner), space.ops.index(margin.runner_up)
            scores = np.asarray(alpha["cell"][row])
            assert np.argsort(-scores)[:2].tolist() == [win, lose]
            np.testing.assert_allclose(
                margin.margin, scores[win] - scores[lose], rtol=1e-3, atol=1e-6
            )
            samples = updates[:, row, win] - updates[:, row, lose]
            expected = np.sqrt(60 * np.var(samples, ddof=1))
            np.testing.assert_allclose(margin.standard_error, expected, rtol=1e-3)
            truth = mean[row, win] - mean[row, lose]
            ratios.append((margin.margin - truth) / margin.standard_error)
    # The winner is picked for its noise, so the mean is above 0; the spread is what is checked.
    assert 0.7 < np.std(ratios) < 1.2


def test_margins_after_one_step_have_no_error():
    space = nasi.search_space("nasbench201")
    updates = {"cell": np.random.default_rng(8).normal(size=(1, 6, 5)).astype(np.float32)}
    found = nasi.margins(space, {"cell": jnp.asarray(updates["cell"][0])}, updates)
    assert all(np.isnan(margin.standard_error) for margin in found)


def test_score_traces_once_and_is_the_proxy_of_the_network():
    ops = ("none", "skip_connect", "nor_conv_1x1")
    space = nasi.search_space("nasbench201", init_channels=2, num_cells=1, ops=ops)
    supernet, batch = space.supernet(4), random_batch(9)
    genotypes = [space.sample(key) for key in jax.random.split(jax.random.key(9), 5)]
    weights = space.one_hot(genotypes[0])
    params = nasi.init_params(jax.random.key(10), supernet, batch.inputs, weights)
    traced = []

    def proxy(key, apply_fn, params, batch):
        traced.append(1)
        return nasi.batch_gradient(key, apply_fn, params, batch)

    score = nasi.score_fn(space, supernet, proxy=proxy)
    values = [float(score(jax.random.key(0), params, each, batch)) for each in genotypes]
    assert len(traced) == 1
    inherited = space.inherit({"params": params})["params"]
    for genotype, value in zip(genotypes[:2], values[:2], strict=True):
        network = space.network(genotype, 4, form="search")

        def apply_fn(params, inputs, network=network):
            return network.apply({"params": params}, inputs)

        expected = nasi.batch_gradient(jax.random.key(0), apply_fn, inherited, batch)
        np.testing.assert_allclose(value, expected, rtol=1e-4)
