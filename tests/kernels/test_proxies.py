"""The rival proxies against NumPy, Hessians and loops, and what all of them have in common."""

import functools
import re
from typing import get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_batch
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from nasi_jax.cells import search_space
from nasi_jax.cells.layers.conv import conv, depthwise_conv
from nasi_jax.cells.layers.norm import Norm
from nasi_jax.kernels import PROXIES
from nasi_jax.kernels.proxies.fisher import fisher
from nasi_jax.kernels.proxies.flops import flops
from nasi_jax.kernels.proxies.grad_norm import grad_norm
from nasi_jax.kernels.proxies.grasp import grasp
from nasi_jax.kernels.proxies.jacov import jacov
from nasi_jax.kernels.proxies.naswot import naswot
from nasi_jax.kernels.proxies.num_params import num_params
from nasi_jax.kernels.proxies.proxy import for_norm, norm_of
from nasi_jax.kernels.proxies.snip import snip
from nasi_jax.kernels.proxies.synflow import synflow
from nasi_jax.kernels.proxies.te_nas import linear_regions
from nasi_jax.kernels.proxies.zico import zico
from nasi_jax.kernels.relu import tap_relus
from nasi_jax.kernels.trace import batch_gradient, mean_loss
from nasi_jax.search import close_over, init_params
from nasi_jax.types import BLOCK, FEATURES, NORMALIZED, UNNORMALIZED, Batch, Loss, NetworkSpec

RIVALS = (
    *("num_params", "flops", "grad_norm", "snip", "grasp", "synflow"),
    *("fisher", "jacov", "naswot", "zico", "linear_regions"),
    *("vkdnw", "vkdnw_fisher", "meco", "near", "swap", "gradsign"),
    *("participation_ratio", "intrain", "lswag"),
)


def compiled(function, *args):
    """The result of one call, compiled."""
    return jax.jit(function)(*args)


def compute(proxy, apply_fn, params, batch, **options):
    def score(key, params, inputs):
        return proxy(key, apply_fn, params, batch._replace(inputs=inputs), **options)

    return compiled(score, jax.random.key(0), params, batch.inputs)


# A network of two ReLU layers, the first at every position, and its derivatives written out.


def two_layers(params, inputs):
    first = jax.nn.relu(inputs @ params["w1"] + params["b1"].reshape(1, 1, 1, -1))
    second = jnp.maximum(jnp.mean(first, axis=(1, 2)) @ params["w2"] + params["b2"][None], 0)
    return second @ params["w3"] + params["b3"][None]


def problem(seed=0, size=6, pixels=3):
    rng = np.random.default_rng(seed)
    shapes = {"w1": (2, 5), "b1": 5, "w2": (5, 4), "b2": 4, "w3": (4, 3), "b3": 3}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    inputs = jnp.asarray(rng.normal(size=(size, pixels, pixels, 2)))
    return params, Batch(inputs, jnp.asarray(rng.integers(3, size=size), jnp.int32))


def by_hand(params, inputs, labels, loss="cross_entropy"):
    """Activations and derivatives of the mean loss, or of the summed outputs without labels."""
    w = {name: np.asarray(values) for name, values in params.items()}
    x = np.asarray(inputs).reshape(len(inputs), -1, inputs.shape[-1])
    first = np.maximum(x @ w["w1"] + w["b1"], 0)
    mean = first.mean(axis=1)
    second = np.maximum(mean @ w["w2"] + w["b2"], 0)
    outputs = second @ w["w3"] + w["b3"]
    if labels is None:
        d_outputs = np.ones_like(outputs)
    else:
        targets = np.eye(outputs.shape[1])[np.asarray(labels)]
        powers = np.exp(outputs)
        softmax = powers / powers.sum(axis=1, keepdims=True)
        slopes = softmax - targets if loss == "cross_entropy" else 2 * (outputs - targets)
        d_outputs = slopes / len(x)
    d_second = d_outputs @ w["w3"].T
    d_mean = (d_second * (second > 0)) @ w["w2"].T
    d_first = np.repeat(d_mean[:, None], x.shape[1], axis=1) / x.shape[1]
    d_hidden = d_first * (first > 0)
    gradient = {
        "w1": np.einsum("bpc,bpf->cf", x, d_hidden),
        "b1": d_hidden.sum(axis=(0, 1)),
        "w2": mean.T @ (d_second * (second > 0)),
        "b2": (d_second * (second > 0)).sum(axis=0),
        "w3": second.T @ d_outputs,
        "b3": d_outputs.sum(axis=0),
    }
    return gradient, (first, d_first), (second, d_second), d_hidden @ w["w1"].T


@pytest.mark.usefixtures("x64")
def test_the_derivatives_by_hand_are_right():
    params, batch = problem()
    for loss in get_args(Loss):
        gradient, *_ = by_hand(params, *batch, loss)
        expected = compiled(
            jax.grad(lambda p: mean_loss(two_layers(p, batch.inputs), batch.labels, loss)), params
        )
        chex.assert_trees_all_close(gradient, expected, rtol=1e-12)
    *_, d_inputs = by_hand(params, batch.inputs, None)
    expected = compiled(jax.grad(lambda x: jnp.sum(two_layers(params, x))), batch.inputs)
    np.testing.assert_allclose(d_inputs.reshape(expected.shape), expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("loss", get_args(Loss))
def test_grad_norm_snip_and_fisher_against_numpy(loss):
    params, batch = problem()
    gradient, *relus, _ = by_hand(params, *batch, loss)

    norms = sum(np.sqrt(np.sum(slope**2)) for slope in gradient.values())
    result = compute(grad_norm, two_layers, params, batch, loss=loss)
    np.testing.assert_allclose(result, norms, rtol=1e-12)

    products = sum(np.sum(np.abs(np.asarray(params[name]) * gradient[name])) for name in params)
    result = compute(snip, two_layers, params, batch, loss=loss)
    np.testing.assert_allclose(result, products, rtol=1e-12)

    channels = 0.0
    for active, slope in relus:
        for channel in range(active.shape[-1]):
            sums = [
                np.sum(active[example, ..., channel] * slope[example, ..., channel])
                for example in range(len(active))
            ]
            channels += np.mean(np.square(sums)) / 2
    result = compute(fisher, two_layers, params, batch, loss=loss)
    np.testing.assert_allclose(result, channels, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("loss", get_args(Loss))
def test_grasp_against_the_hessian(loss):
    params, batch = problem()
    flat, unflatten = jax.flatten_util.ravel_pytree(params)

    def loss_of(flat):
        return mean_loss(two_layers(unflatten(flat), batch.inputs), batch.labels, loss)

    hessian, gradient = jax.jit(lambda flat: (jax.hessian(loss_of)(flat), jax.grad(loss_of)(flat)))(
        flat
    )
    expected = -flat @ hessian @ gradient
    result = compute(grasp, two_layers, params, batch, loss=loss)
    np.testing.assert_allclose(result, expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_grasp_of_a_network_whose_scale_is_normalized_away_is_the_squared_gradient():
    params, batch = problem()
    norm = Norm("batch", affine=False)

    def normalized(params, inputs):
        active = jax.nn.relu(norm.apply({}, 1000 * inputs @ params["w1"]))
        return jnp.mean(norm.apply({}, 1000 * active @ params["w2"]) ** 3, axis=(1, 2))

    kernels = {"w1": params["w1"], "w2": params["w2"]}
    result = compute(grasp, normalized, kernels, batch)
    np.testing.assert_allclose(
        result, compute(batch_gradient, normalized, kernels, batch), rtol=1e-4
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_batches", [2, 3])
def test_zico_against_numpy(num_batches):
    params, batch = problem()
    inputs, labels = (np.split(np.asarray(array), num_batches) for array in batch)
    gradients = [by_hand(params, *part)[0] for part in zip(inputs, labels, strict=True)]
    expected = 0.0
    for name in params:
        stacked = np.stack([gradient[name] for gradient in gradients])
        deviations = np.std(stacked, axis=0)
        means = np.mean(np.abs(stacked), axis=0)
        expected += np.log(np.sum(means[deviations > 0] / deviations[deviations > 0]))
    result = compute(zico, two_layers, params, batch, num_batches=num_batches)
    np.testing.assert_allclose(result, expected, rtol=1e-12)


@pytest.mark.parametrize("num_batches", [1, 4])
def test_zico_refuses_parts_that_are_not(num_batches):
    params, batch = problem()
    with pytest.raises(ValueError, match="num_batches"):
        compute(zico, two_layers, params, batch, num_batches=num_batches)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("pixels", [2, 1])
def test_jacov_against_numpy(pixels):
    """With one pixel there are fewer inputs than examples, so that eigenvalues are 0."""
    params, batch = problem(seed=1, pixels=pixels)
    *_, jacobian = by_hand(params, batch.inputs, None)
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(jacobian.reshape(len(jacobian), -1)))
    expected = -np.sum(np.log(eigenvalues + 1e-5) + 1 / (eigenvalues + 1e-5))
    result = compute(jacov, two_layers, params, batch)
    np.testing.assert_allclose(result, expected, rtol=1e-9)


def test_jacov_in_float32_when_gradients_are_nearly_alike():
    """Eigenvalues of about 1e-7, which the correlation matrix in float32 does not have."""
    rng = np.random.default_rng(0)
    kernels = jnp.asarray(1 + 1e-3 * rng.normal(size=(8, 50)) + rng.normal(size=50), jnp.float32)
    batch = Batch(jnp.zeros((8, 50)), jnp.zeros(8, jnp.int32))

    def linear(params, inputs):
        return jnp.sum(params * inputs, axis=1, keepdims=True)

    eigenvalues = np.linalg.eigvalsh(np.corrcoef(np.asarray(kernels, float)))
    assert eigenvalues[0] < 1e-6
    expected = -np.sum(np.log(eigenvalues + 1e-5) + 1 / (eigenvalues + 1e-5))
    np.testing.assert_allclose(compute(jacov, linear, kernels, batch), expected, rtol=1e-3)


def codes(params, inputs):
    _, *relus, _ = by_hand(params, inputs, None)
    return np.concatenate([active.reshape(len(active), -1) > 0 for active, _ in relus], axis=1)


@pytest.mark.usefixtures("x64")
def test_naswot_against_numpy():
    params, batch = problem()
    rows = codes(params, batch.inputs)
    kernel = [[np.sum(left == right) for right in rows] for left in rows]
    result = compute(naswot, two_layers, params, batch)
    np.testing.assert_allclose(result, np.linalg.slogdet(np.array(kernel, float))[1], rtol=1e-12)


@pytest.mark.parametrize("num_inputs", [None, 200])
def test_linear_regions_against_a_set(num_inputs):
    params, batch = problem(size=50, pixels=1)
    result = compute(linear_regions, two_layers, params, batch, num_inputs=num_inputs)
    key, _ = jax.random.split(jax.random.key(0))
    inputs = jax.random.normal(key, (num_inputs or 50, 1, 1, 2), batch.inputs.dtype)
    expected = len({tuple(row) for row in codes(params, inputs)})
    assert 10 < expected < len(inputs)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_linear_regions_refuses_no_inputs():
    with pytest.raises(ValueError, match="num_inputs"):
        compute(linear_regions, two_layers, *problem(), num_inputs=0)


@pytest.mark.usefixtures("x64")
def test_synflow_against_the_sum_over_kernels():
    params, batch = problem()
    positive = jax.tree.map(jnp.abs, params)
    gradient, *_ = by_hand(positive, np.ones((1, 3, 3, 2)), None)
    flow = sum(np.sum(np.asarray(positive[name]) * gradient[name]) for name in ("w1", "w2", "w3"))
    np.testing.assert_allclose(
        compute(synflow, two_layers, params, batch), np.log(flow), rtol=1e-12
    )


def test_synflow_of_flows_beyond_the_largest_float():
    """Fifty layers with skip connections and biases, in float32, against float64."""
    rng = np.random.default_rng(0)
    kernels, biases = 0.6 * rng.normal(size=(50, 32, 32)), 1e9 * rng.normal(size=(50, 32))

    def deep(params, inputs):
        def layer(states, slices):
            kernel, bias = slices
            return states + jax.nn.relu(states @ kernel + bias[None]), None

        return lax.scan(layer, inputs, params)[0]

    states, lengths = np.ones(32), np.zeros(32)
    for kernel, bias in zip(np.abs(kernels), np.abs(biases), strict=True):
        passed = states @ kernel
        # The sum over paths of their values times the kernels on them.
        lengths = lengths + lengths @ kernel + passed
        states = states + passed + bias
    assert 1e70 < np.sum(lengths) < 1e72

    params = jnp.asarray(kernels, jnp.float32), jnp.asarray(biases, jnp.float32)
    batch = Batch(jnp.ones((2, 32)), jnp.zeros(2, jnp.int32))
    result = compute(synflow, deep, params, batch)
    np.testing.assert_allclose(result, np.log(np.sum(lengths)), rtol=1e-6)
    too_large = jax.tree.map(lambda leaf: 3 * leaf, params)
    assert compute(synflow, deep, too_large, batch) == np.inf


def many_layers(params, inputs):
    """One layer of every kind; of the parameters, `unused` are not."""

    def cell(states, kernel):
        return jax.nn.relu(conv(states, kernel)), None

    def lax_conv(states, kernel, groups=1, window_dilation=1, gap=1):
        return lax.conv_general_dilated(
            states,
            kernel,
            (1, 1),
            "SAME",
            lhs_dilation=(gap, gap),
            rhs_dilation=(window_dilation, window_dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    states = depthwise_conv(inputs, params["depthwise"], stride=2)  # 4x4 pixels from here
    states = lax_conv(states, params["dense"], window_dilation=2)
    states = lax_conv(states, params["grouped"], groups=2)
    kernels = jnp.stack([0.5 * params["cells"][name] for name in "abc"])
    states, _ = lax.scan(jax.checkpoint(cell), states, kernels)
    states = depthwise_conv(states, jnp.ones((3, 3, 1, 4), states.dtype))  # a pool: no layer
    features = jnp.sum(jnp.einsum("bhwc,cwk->bhwk", states, params["rows"]), axis=2)
    gram = jnp.einsum("bhk,bjk->bhj", features, features)  # of activations: no layer
    return jnp.sum(gram, axis=1) @ params["head"] + 0 * jnp.sum(inputs) * params["unused"][:1, :3]


MANY_LAYERS = {
    "depthwise": (3, 3, 1, 2),
    "dense": (3, 3, 2, 4),
    "grouped": (3, 3, 2, 4),
    "cells": {name: (3, 3, 4, 4) for name in "abc"},
    "rows": (4, 4, 5),
    "head": (4, 3),
    "unused": (5, 3),
}


def test_flops_and_num_params_in_closed_form():
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        MANY_LAYERS,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )
    batch = Batch(jnp.asarray(rng.normal(size=(7, 8, 8, 2)), jnp.float32), None)
    expected = 16 * (9 * 2 + 9 * 2 * 4 + 9 * 2 * 4 + 3 * 9 * 4 * 4) + 4 * 4 * 4 * 5 + 4 * 3
    assert compute(flops, many_layers, params, batch) == expected
    expected = 9 * 2 + 9 * 2 * 4 + 9 * 2 * 4 + 3 * 9 * 4 * 4 + 4 * 4 * 5 + 4 * 3
    assert compute(num_params, many_layers, params, batch) == expected


def test_flops_of_a_transposed_convolution_and_without_any_layer():
    def transposed(params, inputs):
        outputs = lax.conv_general_dilated(
            inputs,
            params,
            (1, 1),
            ((2, 1), (2, 1)),
            lhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return outputs.reshape(len(inputs), -1)

    batch = Batch(jnp.ones((2, 3, 3, 2)), None)
    kernel = jnp.ones((3, 3, 2, 4))
    assert compute(flops, transposed, kernel, batch) == 36 * 9 * 2 * 4
    assert compute(flops, lambda params, inputs: inputs[:, 0, 0] * params, jnp.ones(()), batch) == 0


# Which ReLUs are found.


def dense_relu(relu, kernel, inputs):
    return relu(inputs @ kernel) @ kernel


RELUS = {
    "nn": jax.nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "first": lambda x: jnp.maximum(0.0, x),
    "jit": jax.jit(lambda x: jax.nn.relu(x)),
    "checkpoint": jax.checkpoint(jax.nn.relu),
    "vmap": jax.vmap(jax.nn.relu),
    "scan": lambda x: lax.scan(lambda x, _: (jax.nn.relu(x), None), x, None, 1)[0],
}


@pytest.mark.parametrize("name", RELUS)
def test_relus_are_found(name):
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(5, 5)), jnp.float32)
    batch = Batch(jnp.asarray(rng.normal(size=(4, 5)), jnp.float32), None)
    signs = np.asarray(batch.inputs @ kernel) > 0
    agreements = [[np.sum(left == right) for right in signs] for left in signs]
    expected = np.linalg.slogdet(np.array(agreements, float))[1]
    result = compute(naswot, functools.partial(dense_relu, RELUS[name]), kernel, batch)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "activation", [jnp.tanh, jax.nn.relu6, jax.nn.leaky_relu, lambda x: jnp.maximum(x, 1)]
)
def test_what_is_no_relu_is_refused(activation):
    batch = Batch(jnp.ones((4, 5)), jnp.zeros(4, jnp.int32))
    for proxy in (naswot, fisher, linear_regions):
        with pytest.raises(ValueError, match="must have a ReLU"):
            compute(proxy, functools.partial(dense_relu, activation), jnp.ones((5, 5)), batch)


def test_a_relu_without_a_batch_axis_is_refused():
    batch = Batch(jnp.ones((4, 5)), None)
    with pytest.raises(ValueError, match=r"of shape \(5, 4\)"):
        compute(naswot, lambda params, x: jax.nn.relu(x.T).T * params, jnp.ones(()), batch)


# What all proxies have in common.


def gated(params, inputs, gate=None):
    """A network in a scan and, behind a gate, an operation that is not in it."""

    def layer(states, kernel):
        # Names for layers of normalization that are not there.
        return checkpoint_name(checkpoint_name(conv(states, kernel), UNNORMALIZED), NORMALIZED)

    def cell(states, kernel):
        return checkpoint_name(states + jax.nn.relu(layer(states, kernel)), BLOCK), None

    states = layer(inputs, params["stem"])
    if gate is not None:
        states += gate * jax.nn.relu(layer(jax.nn.relu(inputs), params["extra"]))
    states, _ = lax.scan(cell, checkpoint_name(states, BLOCK), params["cells"])
    return jnp.mean(checkpoint_name(states, FEATURES), axis=(1, 2)) @ params["head"]


def gated_problem(dtype=np.float32, depth=2):
    rng = np.random.default_rng(0)
    shapes = {
        "stem": (3, 3, 2, 4),
        "extra": (3, 3, 2, 4),
        "cells": (depth, 3, 3, 4, 4),
        "head": (4, 3),
    }
    params = {
        name: jnp.asarray(rng.normal(size=shape) * (2 / np.prod(shape[-4:-1])) ** 0.5, dtype)
        for name, shape in shapes.items()
    }
    inputs = jnp.asarray(rng.normal(size=(4, 6, 6, 2)), dtype)
    return params, Batch(inputs, jnp.asarray(rng.integers(3, size=4), jnp.int32))


@pytest.mark.parametrize("name", PROXIES)
def test_the_contract(name):
    """Eager equals compiled; one trace for all architectures; what is not in one adds nothing."""
    (params, batch), traces = gated_problem(), []

    @jax.jit
    def score(key, gate):
        traces.append(1)
        return PROXIES[name](key, functools.partial(gated, gate=gate), params, batch)

    without, again, with_extra = (score(jax.random.key(0), jnp.float32(gate)) for gate in (0, 0, 1))
    assert len(traces) == 1
    chex.assert_shape(without, ())
    assert without.dtype == jnp.float32
    assert np.isfinite(without) and np.isfinite(with_extra)
    assert without == again
    if name not in ("linear_regions", "swap"):  # which are at their largest for four inputs
        assert without != with_extra
    eager = PROXIES[name](jax.random.key(0), gated, params, batch)
    np.testing.assert_allclose(eager, without, rtol=1e-4)


@pytest.mark.parametrize("name", PROXIES)
def test_batch_statistics(name):
    """Under the default norm mode every proxy is told that examples are coupled."""
    params, batch = gated_problem()
    mode = norm_of(PROXIES[name], "batch")
    norm = Norm(mode, affine=False)

    def normalized(params, inputs):
        return gated(params, norm.apply({}, inputs))

    proxy = for_norm(PROXIES[name], mode)
    score = jax.eval_shape(lambda key: proxy(key, normalized, params, batch), jax.random.key(0))
    chex.assert_shape(score, ())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PROXIES)
def test_the_derivative_in_a_weight(name):
    params, batch = gated_problem(np.float64)

    def score(gate, key):
        return PROXIES[name](key, functools.partial(gated, gate=gate), params, batch)

    derivatives = jax.jit(jax.value_and_grad(score))
    gates = (0.5, 0.5 - 1e-6, 0.5 + 1e-6, 0.0)
    results = [derivatives(jnp.float64(gate), jax.random.key(0)) for gate in gates]
    (_, slope), (below, _), (above, _), (_, at_zero) = results
    np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-5, atol=1e-8)
    assert np.isfinite(at_zero)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PROXIES)
def test_float64(name):
    result = jax.eval_shape(
        lambda *args: PROXIES[name](jax.random.key(0), gated, *args), *gated_problem(np.float64)
    )
    assert result.dtype == (jnp.float32 if name in ("num_params", "flops") else jnp.float64)


@pytest.mark.parametrize("name", RIVALS)
def test_thirty_layers_and_gradients_whose_squares_vanish(name):
    def plain(params, inputs, scale):
        def cell(states, kernel):
            return jax.nn.relu(conv(states, kernel)), None

        states, _ = lax.scan(cell, conv(inputs, params["stem"]), params["cells"])
        return jnp.mean(states, axis=(1, 2)) @ params["head"] * scale

    params, batch = gated_problem(depth=30)

    @jax.jit
    def score(key, scale):
        return PROXIES[name](key, functools.partial(plain, scale=scale), params, batch)

    value, of_small = (score(jax.random.key(0), jnp.float32(scale)) for scale in (1, 1e-25))
    assert np.isfinite(value) and np.isfinite(of_small)
    if name in ("num_params", "flops", "jacov", "naswot", "zico", "linear_regions"):
        np.testing.assert_allclose(of_small, value, rtol=0.05)
    elif name not in ("fisher", "grasp"):  # themselves of the order of the squares
        assert of_small != 0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["num_params", "flops", "grad_norm", "zico"])
def test_the_iterations_of_a_scan_are_layers(name):
    def unrolled(params, inputs):
        states = conv(inputs, params["stem"])
        for kernel in params["cells"]:
            states += jax.nn.relu(conv(states, kernel))
        return jnp.mean(states, axis=(1, 2)) @ params["head"]

    params, batch = gated_problem(np.float64, depth=3)
    apart = {**params, "cells": list(params["cells"])}
    result = compute(PROXIES[name], gated, params, batch)
    expected = compute(PROXIES[name], unrolled, apart, batch)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


# Through a supernet.

CASES = {
    "nasbench201": (
        {"num_cells": 2, "ops": ("none", "skip_connect", "nor_conv_1x1")},
        "none",
        (num_params, flops, grad_norm, snip, synflow, fisher, naswot, zico, linear_regions),
    ),
    "nasbench1shot1-2": (
        {"num_cells": 1, "ops": ("conv1x1-bn-relu", "maxpool3x3")},
        "batch",
        (num_params, flops, naswot),
    ),
}


@pytest.mark.parametrize(
    ("name", "one_hot"),
    [
        ("nasbench201", True),
        ("nasbench1shot1-2", True),
        pytest.param("nasbench1shot1-2", False, marks=pytest.mark.slow),
    ],
)
def test_one_hot_weights_score_as_the_network(name, one_hot):
    fields, norm, proxies = CASES[name]
    space = search_space(name, init_channels=2, **fields)
    supernet, batch = space.supernet(4, NetworkSpec(norm=norm), one_hot=one_hot), random_batch(0)
    genotype = space.sample(jax.random.key(3))
    network = space.network(genotype, 4, NetworkSpec(norm=norm), form="search")
    weights = space.one_hot(genotype)
    keys = jax.random.split(jax.random.key(0), len(proxies))
    params = compiled(
        lambda key, weights: init_params(key, supernet, batch.inputs, weights),
        jax.random.key(1),
        weights,
    )

    def of_supernet(keys, params, weights):
        apply_fn = close_over(supernet, params, weights, norm=norm)
        pairs = zip(proxies, keys, strict=True)
        return [proxy(key, apply_fn, params, batch) for proxy, key in pairs]

    def of_network(keys, params):
        def apply_fn(params, inputs):
            return network.apply({"params": params}, inputs)

        pairs = zip(proxies, keys, strict=True)
        return [proxy(key, apply_fn, params, batch) for proxy, key in pairs]

    inherited = space.inherit({"params": params})["params"]
    result = compiled(of_supernet, keys, params, weights)
    expected = compiled(of_network, keys, inherited)
    assert np.all(np.isfinite(expected))
    np.testing.assert_allclose(result, expected, rtol=1e-4)
    # The supernet has more than the network.
    assert expected[0] < sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["darts", "nasbench201", "nasbench1shot1-2"])
def test_the_relus_of_every_space_are_found(name):
    """Inside of scans, and in the checkpointed cells of DARTS; traced, not compiled."""
    space, batch = search_space(name, init_channels=4, num_cells=3), random_batch(0)
    supernet, weights = space.supernet(4), space.init_alpha()
    params = jax.eval_shape(
        lambda key: init_params(key, supernet, batch.inputs, weights), jax.random.key(0)
    )

    def apply_fn(params, inputs):
        return supernet.apply({"params": params}, inputs, weights)

    def tapped_relus(params, inputs):
        return tap_relus(lambda active, cotangent: cotangent, 0.0, apply_fn, params, inputs)

    before, after = (
        str(jax.make_jaxpr(function)(params, batch.inputs)) for function in (apply_fn, tapped_relus)
    )
    relus = len(re.findall(r"custom_jvp_call\[\s*name=relu", before))
    assert after.count("custom_vjp_call[") == relus > 3
