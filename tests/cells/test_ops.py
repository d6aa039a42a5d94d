from typing import get_args

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nasi_jax.cells.darts import DARTS_OPS
from nasi_jax.cells.layers.conv import max_pool
from nasi_jax.cells.layers.norm import Norm
from nasi_jax.cells.layers.ops import (
    Conv,
    ConvNormRelu,
    DepthwiseConv,
    FactorizedReduce,
    Head,
    LayerSpec,
    ReluConvNorm,
    SeparableConv,
    avg_pool,
    darts_op,
    halving_avg_pool,
    halving_max_pool,
    kernel_init,
)
from nasi_jax.types import NORM_MODES, Initializer

BARE = LayerSpec(norm="none")
MARGIN = [(1, 1), (1, 1)]


def normal(*shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def integers(*shape, seed=0):
    """Few values, so that windows hold ties."""
    return jnp.asarray(np.random.default_rng(seed).integers(-2, 2, shape), jnp.float32)


def kernel_of(variables, *path):
    values = variables["params"]
    for name in path:
        values = values[name]
    return values["kernel"]


def lax_conv(x, w, stride=1, dilation=1, groups=1):
    half = dilation * (w.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        [(half, half), (half, half)],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def standardized(x):
    """Batch normalization in NumPy."""
    x = np.asarray(x, np.float64)
    variance = x.var(axis=(0, 1, 2), keepdims=True)
    return (x - x.mean(axis=(0, 1, 2), keepdims=True)) / np.sqrt(variance + 1e-5)


# Pools


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("values", [normal, integers, lambda *s: -5 - jnp.abs(normal(*s))])
def test_max_pool(stride, values):
    x = values(2, 8, 6, 3)
    expected = nn.max_pool(x, (3, 3), (stride, stride), MARGIN)
    np.testing.assert_array_equal(max_pool(x, stride=stride), expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_avg_pool(stride):
    x = normal(2, 8, 6, 3)
    expected = nn.avg_pool(x, (3, 3), (stride, stride), MARGIN, count_include_pad=False)
    np.testing.assert_allclose(avg_pool(x, stride=stride), expected, rtol=1e-5, atol=1e-6)
    ones = avg_pool(jnp.ones((1, 8, 6, 2)), stride=stride)
    np.testing.assert_allclose(ones, np.ones_like(ones), rtol=1e-6)


def first_of_the_largest(x, g, size, stride, margin):
    """Gradient of a pool whose windows pass it on to the first of their largest values."""
    padded = np.pad(x, ((0, 0), *[(margin, margin)] * 2, (0, 0)), constant_values=-np.inf)
    gradient = np.zeros_like(padded)
    for image, i, j, channel in np.ndindex(g.shape):
        top, left = stride * i, stride * j
        window = padded[image, top : top + size, left : left + size, channel]
        row, column = np.unravel_index(np.argmax(window), window.shape)
        gradient[image, top + row, left + column, channel] += g[image, i, j, channel]
    return gradient[:, margin : margin + x.shape[1], margin : margin + x.shape[2]]


@pytest.mark.parametrize("values", [normal, integers, lambda *shape: jnp.zeros(shape)])
@pytest.mark.parametrize(
    ("pool", "size", "stride", "margin"),
    [
        (max_pool, 3, 1, 1),
        (lambda x: max_pool(x, stride=2), 3, 2, 1),
        (halving_max_pool, 2, 2, 0),
    ],
    ids=["stride 1", "stride 2", "halving"],
)
def test_max_pool_gradient_goes_to_the_first_of_equal_values(pool, size, stride, margin, values):
    x = values(2, 6, 4, 2)
    y, pull = jax.vjp(pool, x)
    g = normal(*y.shape, seed=1)
    expected = first_of_the_largest(np.asarray(x), np.asarray(g), size, stride, margin)
    np.testing.assert_allclose(pull(g)[0], expected, rtol=1e-5, atol=1e-6)
    # The forward mode is the transpose of it.
    tangent = normal(*x.shape, seed=2)
    slope = jnp.vdot(jax.jvp(pool, (x,), (tangent,))[1], g)
    np.testing.assert_allclose(slope, np.vdot(tangent, expected), rtol=1e-4, atol=1e-5)


def test_halving_pools():
    x = normal(2, 8, 6, 3)
    np.testing.assert_array_equal(halving_max_pool(x), nn.max_pool(x, (2, 2), (2, 2)))
    mean = nn.avg_pool(x, (2, 2), (2, 2), count_include_pad=False)
    np.testing.assert_allclose(halving_avg_pool(x), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", [max_pool, avg_pool, halving_max_pool, halving_avg_pool])
def test_pools_keep_the_dtype(pool, x64):
    for dtype in (jnp.float32, jnp.float64):
        x = jnp.ones((1, 4, 4, 2), dtype)
        assert pool(x).dtype == jax.grad(lambda x: jnp.sum(pool(x)))(x).dtype == dtype


# Operations


class Op(nn.Module):
    op: str
    stride: int
    spec: LayerSpec = BARE
    pool_norm: bool = False

    @nn.compact
    def __call__(self, inputs):
        return darts_op(
            self.op, inputs, stride=self.stride, spec=self.spec, pool_norm=self.pool_norm
        )


def shapes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("op", DARTS_OPS[1:])
def test_shape_of_every_darts_op(op, stride):
    x = normal(2, 8, 8, 4)
    output, _ = Op(op, stride).init_with_output(jax.random.key(0), x)
    assert output.shape == (2, 8 // stride, 8 // stride, 4)
    assert np.isfinite(output).all()


@pytest.mark.parametrize(
    ("op", "stride", "kernels"),
    [
        ("max_pool_3x3", 1, []),
        ("avg_pool_3x3", 2, []),
        ("skip_connect", 1, []),
        ("skip_connect", 2, [(1, 1, 4, 2)] * 2),
        ("sep_conv_3x3", 1, [(3, 3, 1, 4)] * 2 + [(1, 1, 4, 4)] * 2),
        ("sep_conv_5x5", 2, [(5, 5, 1, 4)] * 2 + [(1, 1, 4, 4)] * 2),
        ("dil_conv_3x3", 2, [(3, 3, 1, 4), (1, 1, 4, 4)]),
        ("dil_conv_5x5", 1, [(5, 5, 1, 4), (1, 1, 4, 4)]),
    ],
)
def test_kernels_of_the_darts_ops(op, stride, kernels):
    variables = jax.eval_shape(Op(op, stride).init, jax.random.key(0), normal(2, 8, 8, 4))
    assert sorted(leaf.shape for leaf in jax.tree.leaves(variables)) == sorted(kernels)


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("stride", [1, 2])
def test_pool_ops_and_their_normalization(pool, stride):
    x = normal(2, 8, 8, 4)
    plain = {"max": max_pool, "avg": avg_pool}[pool](x, stride=stride)
    spec = LayerSpec(norm="batch", affine=True)
    for pool_norm, expected in ((False, plain), (True, standardized(plain))):
        op = Op(f"{pool}_pool_3x3", stride, spec, pool_norm)
        output, variables = op.init_with_output(jax.random.key(0), x)
        assert not jax.tree.leaves(variables)  # never a scale and a shift
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_skip_connect_is_the_identity():
    x = normal(2, 8, 8, 4)
    np.testing.assert_array_equal(Op("skip_connect", 1).apply({}, x), x)


def separable(x, kernels, stride, dilation):
    for depthwise, pointwise in kernels:
        x = lax_conv(jnp.maximum(x, 0), depthwise, stride, dilation, x.shape[-1])
        x = jnp.asarray(standardized(lax_conv(x, pointwise)), x.dtype)
        stride = 1
    return x


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize(("dilation", "repeats"), [(1, 2), (2, 1)])
def test_separable_conv(size, stride, dilation, repeats):
    x = normal(2, 8, 8, 4)
    module = SeparableConv(size, LayerSpec(), stride, dilation, repeats)
    output, variables = module.init_with_output(jax.random.key(0), x)
    kernels = [
        (kernel_of(variables, f"depthwise_{i}"), kernel_of(variables, f"pointwise_{i}"))
        for i in range(repeats)
    ]
    expected = separable(x, kernels, stride, dilation)
    np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-4)
    name = f"{'sep' if repeats == 2 else 'dil'}_conv_{size}x{size}"
    same = Op(name, stride, LayerSpec()).apply({"params": {name: variables["params"]}}, x)
    np.testing.assert_allclose(same, output, rtol=1e-6)


@pytest.mark.parametrize("features", [4, 5])
def test_factorized_reduce(features):
    x = normal(2, 8, 6, 3)
    module = FactorizedReduce(features, LayerSpec())
    output, variables = module.init_with_output(jax.random.key(0), x)
    active = np.maximum(np.asarray(x), 0)
    even = active[:, ::2, ::2] @ np.asarray(kernel_of(variables, "even"))[0, 0]
    odd = active[:, 1::2, 1::2] @ np.asarray(kernel_of(variables, "odd"))[0, 0]
    assert output.shape == (2, 4, 3, features)
    expected = standardized(np.concatenate([even, odd], axis=-1))
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_relu_conv_norm(size, stride):
    x = normal(2, 8, 8, 3)
    module = ReluConvNorm(4, size, LayerSpec(), stride)
    output, variables = module.init_with_output(jax.random.key(0), x)
    expected = standardized(lax_conv(jnp.maximum(x, 0), kernel_of(variables, "conv"), stride))
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_conv_norm_relu(size):
    x = normal(2, 8, 8, 3)
    output, variables = ConvNormRelu(4, size, LayerSpec()).init_with_output(jax.random.key(0), x)
    expected = np.maximum(standardized(lax_conv(x, kernel_of(variables, "conv"))), 0)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_head():
    x = normal(2, 4, 4, 3)
    variables = {"params": {"kernel": normal(3, 5, seed=1), "bias": normal(5, seed=2)}}
    kernel, bias = map(np.asarray, (variables["params"]["kernel"], variables["params"]["bias"]))
    expected = np.asarray(x).mean(axis=(1, 2)) @ kernel + bias
    np.testing.assert_allclose(Head(5, BARE).apply(variables, x), expected, rtol=1e-4, atol=1e-5)
    initial = Head(5, BARE).init(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(initial["bias"], np.zeros(5))


def test_spec_reaches_the_parameters(x64):
    spec = LayerSpec(affine=True, init="pytorch", param_dtype=jnp.float64)
    x = normal(2, 8, 8, 4, dtype=np.float64)
    for module in (SeparableConv(3, spec, 1, 1, 2), FactorizedReduce(4, spec), Head(3, spec)):
        output, variables = module.init_with_output(jax.random.key(0), x)
        leaves = jax.tree.leaves(variables)
        assert output.dtype == jnp.float64 and {leaf.dtype for leaf in leaves} == {output.dtype}
    kernel = Conv(64, 3, spec).init(jax.random.key(0), x)["params"]["kernel"]
    assert 0.98 / 6 < np.abs(kernel).max() <= 1 / 6


# Normalization


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("mode", NORM_MODES)
def test_norm_formula(mode, affine):
    x = 3 * normal(4, 3, 3, 2) + jnp.array([5.0, -2.0]).reshape(1, 1, 1, 2)
    module = Norm(mode, affine)
    output, variables = module.init_with_output(jax.random.key(0), x)
    expected = np.asarray(x) if mode == "none" else standardized(x)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    if affine:
        scale, shift = jnp.array([2.0, -1.0]), jnp.array([0.5, 7.0])
        moved = {**variables, "params": {"scale": scale, "bias": shift}}
        expected = expected * np.asarray(scale) + np.asarray(shift)
        np.testing.assert_allclose(module.apply(moved, x), expected, rtol=1e-5, atol=1e-5)


def test_every_derivative_of_batch_norm(x64):
    """Against those that JAX finds of the formula, in float64."""

    def formula(x):
        mean = jnp.mean(x, axis=(0, 1, 2), keepdims=True)
        variance = jnp.mean(jnp.square(x - mean), axis=(0, 1, 2), keepdims=True)
        return (x - mean) / jnp.sqrt(variance + 1e-5)

    # Variances of 1e-4 and less, where epsilon is a part of them.
    x, direction = (
        0.01 * normal(4, 3, 3, 2, seed=seed, dtype=np.float64) * jnp.array([[[[1.0, 0.1]]]])
        for seed in (0, 1)
    )

    def derivatives(function):
        def scalar(x):
            return jnp.sum(jnp.sin(function(x)) * jnp.cos(x))

        gradient = jax.grad(scalar)
        return {
            "jvp": jax.jvp(function, (x,), (direction,)),
            "gradient": gradient(x),
            "forward over reverse": jax.jvp(gradient, (x,), (direction,))[1],
            "reverse over forward": jax.grad(lambda x: jax.jvp(scalar, (x,), (direction,))[1])(x),
            "third": jax.grad(
                lambda x: jnp.sum(jnp.square(jax.jvp(gradient, (x,), (direction,))[1]))
            )(x),
        }

    ours = derivatives(lambda x: Norm("batch", False).apply({}, x))
    for name, expected in derivatives(formula).items():
        chex.assert_trees_all_close(ours[name], expected, rtol=1e-9)


@pytest.mark.parametrize("mode", NORM_MODES)
def test_collections_of_norm(mode):
    frozen = {"batch_stats": {"mean": (1, 1, 1, 2), "variance": (1, 1, 1, 2)}}
    affine = {"params": {"scale": (2,), "bias": (2,)}}
    for is_affine in (False, True):
        variables = Norm(mode, is_affine).init(jax.random.key(0), normal(4, 3, 3, 2))
        expected = (frozen if mode == "frozen" else {}) | (affine if is_affine else {})
        assert shapes(dict(variables)) == expected


def test_epsilon():
    x = 1e-3 * normal(4, 3, 3, 2)
    np.testing.assert_allclose(Norm("batch", False).apply({}, x), standardized(x), rtol=1e-3)
    constant = Norm("batch", False).apply({}, jnp.full((4, 3, 3, 2), 7.0))
    np.testing.assert_array_equal(constant, np.zeros((4, 3, 3, 2)))


def test_frozen_statistics_are_those_of_the_reference_batch():
    module = Norm("frozen", False)
    first, second = normal(4, 3, 3, 2), 2 * normal(4, 3, 3, 2, seed=1) + 3
    variables = module.init(jax.random.key(0), first)
    output, named = module.apply(variables, second, mutable=["batch_stats"])
    np.testing.assert_allclose(output, standardized(second), rtol=1e-5, atol=1e-5)
    for stats, reference in ((variables, first), (named, second)):
        mean, variance = stats["batch_stats"]["mean"], stats["batch_stats"]["variance"]
        reference = np.asarray(reference)
        np.testing.assert_allclose(mean.ravel(), reference.mean((0, 1, 2)), rtol=1e-5)
        np.testing.assert_allclose(variance.ravel(), reference.var((0, 1, 2)), rtol=1e-5)
        for x in (first, second, first[:1]):
            expected = (np.asarray(x) - np.asarray(mean)) / np.sqrt(np.asarray(variance) + 1e-5)
            np.testing.assert_allclose(module.apply(stats, x), expected, rtol=1e-5, atol=1e-5)


def example_jacobian(apply, x):
    """`[B, B]`: the largest derivative of one example's output in another's input."""
    jacobian = np.asarray(jax.jacrev(apply)(x))
    pairs = np.abs(jacobian).reshape(x.shape[0], x[0].size, x.shape[0], x[0].size)
    return pairs.max(axis=(1, 3))


@pytest.mark.parametrize("mode", NORM_MODES)
def test_examples_are_coupled_by_batch_statistics_only(mode):
    x = normal(3, 2, 2, 2)
    module = Norm(mode, True)
    variables = module.init(jax.random.key(0), normal(3, 2, 2, 2, seed=1))
    pairs = example_jacobian(lambda x: module.apply(variables, x), x)
    others = pairs[~np.eye(3, dtype=bool)]
    assert (np.diag(pairs) > 0.1).all()
    if mode == "batch":
        assert (others > 1e-3).all()
    else:
        np.testing.assert_array_equal(others, np.zeros(6))


def test_batch_statistics_are_differentiated_through(x64):
    x, g = normal(3, 2, 2, 2, dtype=np.float64), normal(3, 2, 2, 2, seed=1, dtype=np.float64)
    module = Norm("batch", False)
    gradient = jax.grad(lambda x: jnp.vdot(module.apply({}, x), g))(x)
    step = 1e-6
    for index in np.ndindex(x.shape):
        shift = np.zeros(x.shape)
        shift[index] = step
        up, down = standardized(x + shift), standardized(x - shift)
        np.testing.assert_allclose(gradient[index], np.vdot(up - down, g) / (2 * step), atol=1e-7)


def test_running_norm_trains_by_the_batch_and_is_tested_by_what_is_kept():
    module = Norm("running", False)
    x, other = normal(4, 3, 3, 2), 2 * normal(4, 3, 3, 2, seed=1) + 3
    kept = module.init(jax.random.key(0), x)
    output, new = module.apply(kept, other, mutable=["batch_stats"])
    np.testing.assert_allclose(output, standardized(other), rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(new, Norm("frozen", False).init(jax.random.key(0), other))
    expected = Norm("frozen", False).apply(kept, other)
    np.testing.assert_array_equal(module.apply(kept, other), expected)

    def gradient(mode, variables, mutable):
        def total(x):
            output = Norm(mode, False).apply(variables, x, mutable=mutable)
            return jnp.vdot(output[0] if mutable else output, other)

        return jax.grad(total)(x)

    trained = gradient("running", kept, ["batch_stats"])
    np.testing.assert_allclose(trained, gradient("batch", {}, False), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        gradient("running", kept, False), gradient("frozen", kept, False), rtol=1e-6
    )


@pytest.mark.parametrize("mode", ["batch", "running"])
def test_groups_of_examples_have_statistics_of_their_own(mode):
    x = normal(6, 3, 3, 2) * jnp.arange(1.0, 7.0).reshape(6, 1, 1, 1)
    module = Norm(mode, False, group=2)
    output, variables = module.init_with_output(jax.random.key(0), x)
    parts = np.split(np.asarray(x), 3)
    expected = np.concatenate([standardized(part) for part in parts])
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    if mode == "running":
        means, variances = zip(
            *((part.mean((0, 1, 2)), part.var((0, 1, 2))) for part in parts), strict=True
        )
        kept = variables["batch_stats"]
        np.testing.assert_allclose(kept["mean"].ravel(), np.mean(means, 0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(kept["variance"].ravel(), np.mean(variances, 0), rtol=1e-5)


# Initial kernels

CONV_SHAPE, DEPTHWISE_SHAPE, DENSE_SHAPE = (3, 3, 40, 60), (5, 5, 1, 1000), (200, 150)
FANS = {CONV_SHAPE: (360, 540), DEPTHWISE_SHAPE: (25, 25_000), DENSE_SHAPE: (200, 150)}
VARIANCE = {
    "he_normal": lambda fan_in, fan_out: 2 / fan_in,
    "he_uniform": lambda fan_in, fan_out: 2 / fan_in,
    "xavier_normal": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "lecun_normal": lambda fan_in, fan_out: 1 / fan_in,
    "pytorch": lambda fan_in, fan_out: 1 / (3 * fan_in),
}


def test_every_initializer_has_its_formula():
    assert set(VARIANCE) == set(get_args(Initializer))


@pytest.mark.parametrize("shape", FANS, ids=str)
@pytest.mark.parametrize("name", get_args(Initializer))
def test_distribution_of_initial_kernels(name, shape):
    kernel = kernel_init(name)(jax.random.key(0), shape, jnp.float32)
    sample = np.asarray(kernel, np.float64).ravel()
    variance = VARIANCE[name](*FANS[shape])
    size = sample.size
    # Standard errors over sigma^k: mean 1, variance kurtosis - 1 (3 normal, 9/5 uniform).
    uniform = name in ("he_uniform", "pytorch")
    kurtosis = 9 / 5 if uniform else 3
    assert abs(sample.mean()) < 4 * np.sqrt(variance / size)
    assert abs(np.mean(sample**2) / variance - 1) < 4 * np.sqrt((kurtosis - 1) / size)
    largest = np.abs(sample).max() / np.sqrt(variance)
    if uniform:
        assert largest <= np.sqrt(3) * (1 + 1e-6)
    else:
        assert largest > 3.5  # of 20,000 normal values some are; a truncated one never is


def test_depthwise_module_has_a_fan_in_of_its_window():
    x = normal(1, 8, 8, 2000)
    kernel = DepthwiseConv(5, LayerSpec(init="pytorch")).init(jax.random.key(0), x)
    largest = np.abs(kernel["params"]["kernel"]).max()
    assert 0.99 / 5 < largest <= 1 / 5
