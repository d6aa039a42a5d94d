"""The dense kernel, its trace and its spectrum against dense Jacobians in float64."""

import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import INDEPENDENT, batch_normalized, inputs, jacobian, params

from nasi_jax.kernels import (
    batch_gradient,
    condition_number,
    examples_are_coupled,
    hnas,
    lanczos_spectrum,
    ntk,
    ntk_trace,
    per_example_gradient,
    random_cotangent,
    random_cotangent_estimate,
    spectrum,
    trace_bounds,
)
from nasi_jax.types import Batch, Loss

pytestmark = pytest.mark.usefixtures("x64")

NETWORKS = {**INDEPENDENT, "batch_normalized": batch_normalized}
LABELS, OTHER_LABELS = jnp.array([2, 0, 1]), jnp.array([1, 1, 0, 2])


def jit(function, **static):
    return jax.jit(functools.partial(function, **static))


def batch():
    return Batch(inputs(), LABELS)


def proxy(measure, function, data=None, seed=0, **options):
    """A proxy of `function` at `params()`."""
    data = batch() if data is None else data
    compute = jit(lambda key, params, data: measure(key, function, params, data, **options))
    return compute(jax.random.key(seed), params(), data)


def coupled(name):
    return name == "batch_normalized"


@pytest.mark.parametrize("name", NETWORKS)
def test_kernel_trace_and_spectrum(name):
    function = NETWORKS[name]
    rows = jacobian(function, params(), inputs())
    dense = np.einsum("bkp,clp->bkcl", rows, rows)
    kernel = jit(functools.partial(ntk, function), coupled=coupled(name))(params(), inputs())
    np.testing.assert_allclose(kernel, dense, rtol=1e-9, atol=1e-9 * np.max(dense))
    trace = proxy(ntk_trace, function, coupled=coupled(name))
    np.testing.assert_allclose(trace, np.einsum("bkbk", dense), rtol=1e-10)
    found = spectrum(kernel)
    eigenvalues = np.linalg.svd(rows.reshape(9, -1), compute_uv=False) ** 2
    np.testing.assert_allclose(found.eigenvalues, eigenvalues, rtol=1e-7)
    np.testing.assert_allclose(found.condition_number, eigenvalues[0] / eigenvalues[-1], rtol=1e-7)
    np.testing.assert_allclose(found.trace, np.sum(eigenvalues), rtol=1e-10)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5])
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("name", ["own", "batch_normalized"])
def test_contractions(name, two, chunk_size):
    function = NETWORKS[name]
    other, other_labels = (inputs(1, size=4), OTHER_LABELS) if two else (None, None)
    left = jacobian(function, params(), inputs())
    right = jacobian(function, params(), other) if two else left
    dense = np.einsum("bkp,clp->bkcl", left, right)
    rows, columns = np.arange(3), np.arange(len(right))
    second = OTHER_LABELS if two else LABELS
    expected = {
        "none": dense,
        "outputs": np.einsum("bkck->bc", dense),
        "summed_logits": np.einsum("bkcl->bc", dense),
        "label": dense[rows[:, None], LABELS[:, None], columns[None], second[None]],
    }
    for contraction, kernel in expected.items():
        options = {"coupled": coupled(name), "chunk_size": chunk_size}
        compute = jit(functools.partial(ntk, function), contraction=contraction, **options)
        found = compute(params(), inputs(), other, labels=LABELS, other_labels=other_labels)
        np.testing.assert_allclose(found, kernel, rtol=1e-9, atol=1e-9 * np.max(dense))


@pytest.mark.parametrize("function", [batch_normalized, INDEPENDENT["relu"]])
def test_coupled_examples_are_seen(function):
    answer = function is batch_normalized
    assert examples_are_coupled(function, params(), inputs()) == answer
    traced = []

    @jax.jit
    def inside(params, inputs, scale):
        traced.append(examples_are_coupled(lambda p, x: scale * function(p, x), params, inputs))
        return scale

    inside(params(), inputs(), jnp.ones(()))
    assert traced == [answer]


@pytest.mark.parametrize("measure", [per_example_gradient, ntk_trace, random_cotangent])
def test_coupled_examples_are_refused_until_told(measure):
    with pytest.raises(ValueError, match=r"batch statistics.*coupled=True"):
        measure(jax.random.key(0), batch_normalized, params(), batch())
    with pytest.raises(ValueError, match=r"batch statistics.*coupled=True"):
        proxy(measure, batch_normalized)
    assert proxy(measure, batch_normalized, coupled=True) > 0


def test_refusals():
    relu = INDEPENDENT["relu"]
    with pytest.raises(ValueError, match="contraction must be one of none, outputs, label"):
        ntk(relu, params(), inputs(), contraction="sum")
    with pytest.raises(ValueError, match="needs the labels"):
        ntk(relu, params(), inputs(), contraction="label")
    with pytest.raises(ValueError, match="needs the labels"):
        ntk(relu, params(), inputs(), inputs(1), contraction="label", labels=LABELS)
    with pytest.raises(ValueError, match=r"\[N, N\] or \[B, K, B, K\], got shape \(2, 8\)"):
        spectrum(jnp.zeros((2, 8)))
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="num_steps must be from 1 to B K = 9, got 10"):
        lanczos_spectrum(key, relu, params(), inputs(), num_steps=10)
    with pytest.raises(ValueError, match="num_probes must be at least 1"):
        lanczos_spectrum(key, relu, params(), inputs(), num_steps=3, num_probes=0)
    with pytest.raises(ValueError, match="over must be classes or batch"):
        random_cotangent(key, relu, params(), batch(), over="examples")
    with pytest.raises(ValueError, match="num_probes must be at least 1"):
        random_cotangent(key, relu, params(), batch(), num_probes=0)
    with pytest.raises(ValueError, match="batch_size must divide the 3 examples, got 2"):
        trace_bounds(relu, params(), batch(), batch_size=2)


def linear(params, x):
    return x @ params["w"]


def two_layers(params, x):
    return x @ params["first"] @ params["second"]


def test_closed_forms():
    """tr = K sum ||x||^2, and sum_b K ||x_b W_1||^2 + ||x_b||^2 ||W_2||_F^2."""
    rng = np.random.default_rng(0)
    x, first, second = (rng.normal(size=shape) for shape in ((5, 4), (4, 6), (6, 3)))
    data, key = Batch(jnp.asarray(x), jnp.zeros(5, int)), jax.random.key(0)
    trace = ntk_trace(key, linear, {"w": jnp.zeros((4, 3))}, data)
    np.testing.assert_allclose(trace, 3 * np.sum(x**2), rtol=1e-12)
    layers = {"first": jnp.asarray(first), "second": jnp.asarray(second)}
    expected = 3 * np.sum((x @ first) ** 2) + np.sum(x**2) * np.sum(second**2)
    np.testing.assert_allclose(ntk_trace(key, two_layers, layers, data), expected, rtol=1e-12)
    kernel = ntk(linear, {"w": jnp.zeros((4, 3))}, data.inputs)
    expected = np.einsum("bi,ci,kl->bkcl", x, x, np.eye(3))
    np.testing.assert_allclose(kernel, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", get_args(Loss))
def test_per_example_gradient(loss):
    function = INDEPENDENT["own"]
    singles = [jax.tree.map(lambda array, i=i: array[i : i + 1], batch()) for i in range(3)]
    total = sum(proxy(batch_gradient, function, one, loss=loss) for one in singles)
    found = proxy(per_example_gradient, function, loss=loss)
    np.testing.assert_allclose(found, total, rtol=1e-10)


@pytest.mark.parametrize("over", ["classes", "batch"])
def test_random_cotangents(over):
    """4,096 probes are unbiased within their error; a bias of a tenth is not."""
    exact = proxy(ntk_trace, INDEPENDENT["own"])
    value, error = proxy(random_cotangent_estimate, INDEPENDENT["own"], over=over, num_probes=4096)
    assert abs(value - exact) < 4 * error
    assert abs(1.1 * value - exact) > 4 * error


@pytest.mark.parametrize("over", ["classes", "batch"])
def test_standard_errors_cover_the_trace(over):
    """Within one error in 68% of runs, within two in 95%, of 400: to three binomial errors."""
    exact = proxy(ntk_trace, INDEPENDENT["own"])

    def estimates(key, *args, **options):
        keys = jax.random.split(key, 400)
        return jax.lax.map(lambda key: random_cotangent_estimate(key, *args, **options), keys)

    options = {"over": over, "num_probes": 64, "coupled": False}
    values, errors = proxy(estimates, INDEPENDENT["own"], **options)
    distance = np.abs(np.asarray(values) - float(exact)) / np.asarray(errors)
    for width, rate in ((1, 0.683), (2, 0.954)):
        tolerance = 3 * np.sqrt(rate * (1 - rate) / 400) + 0.01
        assert abs(np.mean(distance < width) - rate) < tolerance


def test_one_probe_has_no_error():
    found = proxy(random_cotangent_estimate, INDEPENDENT["own"], num_probes=1)
    assert np.isnan(found.standard_error) and found.value > 0


def test_estimates_through_batch_statistics():
    rows = jacobian(batch_normalized, params(), inputs())
    options = {"over": "batch", "num_probes": 1024}
    value, error = proxy(random_cotangent_estimate, batch_normalized, **options)
    assert abs(value - np.sum(rows**2)) < 4 * error


@pytest.mark.parametrize("loss", get_args(Loss))
@pytest.mark.parametrize("lipschitz", [None, 2.0])
def test_trace_bounds(loss, lipschitz):
    function, size = INDEPENDENT["own"], 6
    data = Batch(inputs(size=size), jnp.arange(size) % 3)
    rows = jacobian(function, params(), data.inputs)
    outputs = function(params(), data.inputs)
    one_hot = np.eye(3)[data.labels]
    slopes = 2 * (outputs - one_hot) if loss == "mse" else jax.nn.softmax(outputs) - one_hot
    gradients = np.einsum("bk,bkp->bp", slopes, rows)
    gamma = np.max(np.linalg.norm(slopes, axis=1)) if lipschitz is None else lipschitz
    options = {"batch_size": 2, "loss": loss, "lipschitz": lipschitz, "chunk_size": 4}
    found = jit(functools.partial(trace_bounds, function), **options)(params(), data)
    means = gradients.reshape(3, 2, -1).mean(axis=1)
    expected = (
        np.sum(rows**2),
        np.sum(gradients**2) / gamma**2,
        2 * np.sum(means**2) / gamma**2,
        6 * np.sum(means[0] ** 2) / gamma**2,
        gamma,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert found.trace >= found.per_example >= found.mini_batch


def test_lanczos():
    """With as many steps as rows, a probe's quadrature is exact; its extremes are the kernel's."""
    function = INDEPENDENT["own"]
    exact = np.asarray(spectrum(ntk(function, params(), inputs())).eigenvalues)
    found = lanczos_spectrum(
        jax.random.key(0), function, params(), inputs(), num_steps=9, num_probes=400
    )
    np.testing.assert_allclose(found.nodes[0], exact[::-1], rtol=1e-6)
    np.testing.assert_allclose(np.sum(found.weights, axis=1), 1, rtol=1e-9)
    for values, total in ((found.nodes, np.sum(exact)), (found.nodes**2, np.sum(exact**2))):
        value, error = found.sum_of(values)
        assert abs(value - total) < 4 * error
    few = lanczos_spectrum(jax.random.key(0), batch_normalized, params(), inputs(), num_steps=4)
    largest = spectrum(ntk(batch_normalized, params(), inputs(), coupled=True)).largest
    np.testing.assert_allclose(np.max(few.nodes), largest, rtol=1e-2)
    assert np.isnan(
        lanczos_spectrum(
            jax.random.key(0), function, params(), inputs(), num_steps=2, num_probes=1
        ).sum_of(jnp.ones((1, 2)))[1]
    )


@pytest.mark.parametrize("name", ["own", "batch_normalized"])
def test_condition_numbers(name):
    """Of TE-NAS, whose rows are gradients of summed logits, and of HNAS, with the label's."""
    rows = jacobian(NETWORKS[name], params(), inputs())
    eigenvalues = np.linalg.svd(rows.sum(axis=1), compute_uv=False) ** 2
    found = proxy(condition_number, NETWORKS[name], coupled=coupled(name))
    np.testing.assert_allclose(found, -eigenvalues[0] / eigenvalues[-1], rtol=1e-7)
    eigenvalues = np.linalg.svd(rows[np.arange(3), LABELS], compute_uv=False) ** 2
    mean = np.mean(eigenvalues)
    expected = -(0.3 * abs(mean - 2.0**2) + eigenvalues[0] / eigenvalues[-1] / np.sqrt(mean))
    found = proxy(hnas, NETWORKS[name], mu=0.3, nu=2.0, coupled=coupled(name), chunk_size=2)
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_spectrum_of_known_matrices():
    found = spectrum(jnp.diag(jnp.array([1.0, 4.0, 2.0])))
    np.testing.assert_allclose(found.eigenvalues, [4, 2, 1])
    assert (found.trace, found.largest, found.smallest, found.condition_number) == (7, 4, 1, 4)
    shares = np.array([4, 2, 1]) / 7
    np.testing.assert_allclose(found.effective_rank, np.exp(-np.sum(shares * np.log(shares))))
    np.testing.assert_allclose(spectrum(3 * jnp.eye(5)).effective_rank, 5)
    singular = spectrum(jnp.ones((2, 2)) - 1e-3 * jnp.eye(2))
    assert singular.condition_number == np.inf
    np.testing.assert_allclose(singular.effective_rank, 1)


def test_float32_sums_are_compensated():
    """One array of large products, then many small ones that float32 would lose."""
    many = 200

    def function(params, x):
        small = sum(x * leaf for leaf in params["small"])
        return 4096 * x * params["large"] + small

    with jax.enable_x64(False):
        tree = {"large": jnp.ones((1, 1)), "small": [jnp.ones((1, 1))] * many}
        kernel = jit(functools.partial(ntk, function), coupled=False)(tree, jnp.ones((1, 1)))
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel[0, 0, 0, 0], np.float32(4096.0**2 + many))
