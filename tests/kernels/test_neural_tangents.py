"""neural-tangents against dense Jacobians, the infinite-width recursion, and wide networks."""

import importlib.util
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_like
from jax.flatten_util import ravel_pytree

from nasi_jax.cells.layers.conv import depthwise_conv
from nasi_jax.cells.layers.norm import Norm
from nasi_jax.kernels.neural_tangents import (
    IMPLEMENTATIONS,
    infinite_width_ntk,
    neural_tangents_ntk,
)

installed = pytest.mark.skipif(
    importlib.util.find_spec("neural_tangents") is None,
    reason="neural-tangents is not installed: pip install 'nasi-jax[ntk]'",
)

CHANNELS = 4


def convolved(x, **settings):
    return nn.Conv(CHANNELS, (3, 3), param_dtype=jnp.float64, **settings)(x)


def dilated_by_ours(x):
    kernel = jnp.cos(jnp.arange(9.0 * CHANNELS)).reshape(3, 3, 1, CHANNELS)
    return depthwise_conv(convolved(x), kernel, dilation=2)


BODIES = {
    "plain": convolved,
    "depthwise": lambda x: convolved(x, feature_group_count=CHANNELS),
    "grouped": lambda x: convolved(x, feature_group_count=2),
    "dilated": lambda x: convolved(x, kernel_dilation=2),
    "strided": lambda x: convolved(x, strides=2),
    "max_pooled": lambda x: nn.max_pool(x, (3, 3), padding="SAME"),
    "average_pooled": lambda x: nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False),
    "batch_normalized": lambda x: Norm("batch", True, jnp.float64)(convolved(x)),
    "residual": lambda x: x + convolved(x),
    "concatenated": lambda x: jnp.concatenate([x, convolved(x)], axis=-1),
    "dilated_by_ours": dilated_by_ours,
}


class Network(nn.Module):
    """A body between a convolution and a linear head of three outputs."""

    body: Any

    @nn.compact
    def __call__(self, inputs):
        outputs = jnp.tanh(self.body(jnp.tanh(convolved(inputs))))
        return nn.Dense(3, param_dtype=jnp.float64)(jnp.mean(outputs, axis=(1, 2)))


def linear_model(params, inputs):
    return inputs @ params


def dense_kernel(apply_fn, params, inputs, other):
    flat, unravel = ravel_pytree(params)

    def jacobian(images):
        return jax.jacrev(lambda flat: apply_fn(unravel(flat), images))(flat)

    return jnp.einsum("bkp,clp->bkcl", jacobian(inputs), jacobian(other))


@installed
@pytest.mark.parametrize("body", BODIES)
def test_product_of_dense_jacobians(body, x64):
    network = Network(BODIES[body])
    rng = np.random.default_rng(0)
    inputs, other = (jnp.asarray(rng.normal(size=(size, 6, 6, 2))) for size in (3, 2))
    params = random_like(1, network.init(jax.random.key(0), inputs))
    params = jax.tree.map(lambda leaf: leaf / 2, params)

    def kernels(inputs, other):
        arguments = (network.apply, params, inputs)
        ours = [dense_kernel(*arguments, second) for second in (inputs, other)]
        theirs = {
            name: [neural_tangents_ntk(*arguments, x, implementation=name) for x in (None, other)]
            for name in IMPLEMENTATIONS
        }
        return ours, theirs

    ours, theirs = jax.jit(kernels)(inputs, other)
    for name in IMPLEMENTATIONS:
        for actual, desired in zip(theirs[name], ours, strict=True):
            np.testing.assert_allclose(actual, desired, rtol=1e-9, atol=1e-12, err_msg=name)


@installed
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_axes_are_example_output_example_output(implementation):
    # The Jacobian of the linear model is the inputs. With all sizes 2, no shape tells axes apart.
    rng = np.random.default_rng(0)
    inputs, other = rng.normal(size=(2, 2, 2, 5)).astype(np.float32)
    kernel = neural_tangents_ntk(
        linear_model,
        jnp.ones(5),
        jnp.asarray(inputs),
        jnp.asarray(other),
        implementation=implementation,
    )
    assert kernel.dtype == jnp.float32
    expected = np.einsum("bkp,clp->bkcl", inputs, other)
    np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-6)


@installed
def test_implementations_are_different_computations():
    def computation(name):
        def kernel(params, inputs):
            return neural_tangents_ntk(linear_model, params, inputs, implementation=name)

        return str(jax.make_jaxpr(kernel)(jnp.ones((3, 2)), jnp.ones((4, 3))))

    assert len({computation(name) for name in IMPLEMENTATIONS}) == 2


def relu_recursion(depth, inputs, other, weight_std, bias_std):
    """The arc-cosine recursion for one pair of inputs [D], as covariances [2, 2] of both."""
    both = np.stack([inputs, other])
    covariance = weight_std**2 * both @ both.T / inputs.size + bias_std**2
    kernel = covariance[0, 1]
    for _ in range(depth):
        norms = np.sqrt(np.diag(covariance))
        scale = np.outer(norms, norms)
        cosine = np.clip(np.divide(covariance, scale, out=0 * scale, where=scale > 0), -1, 1)
        angle = np.arccos(cosine)
        expected = scale * (np.sin(angle) + (np.pi - angle) * cosine) / (2 * np.pi)
        covariance = weight_std**2 * expected + bias_std**2
        kernel = kernel * weight_std**2 * (np.pi - angle[0, 1]) / (2 * np.pi) + covariance[0, 1]
    return kernel


@installed
@pytest.mark.parametrize("weight_std, bias_std", [(2**0.5, 0.0), (1.2, 0.7)])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_infinite_width_recursion(depth, weight_std, bias_std, x64):
    rng = np.random.default_rng(0)
    inputs, other = rng.normal(size=(5, 2, 3)), rng.normal(size=(4, 2, 3))
    other[:3] = [inputs[0], -inputs[0], 2 * inputs[1]]
    other = np.concatenate([other, np.zeros((1, 2, 3))])
    for second in (None, other):
        columns = inputs if second is None else second
        kernel = infinite_width_ntk(
            depth,
            jnp.asarray(inputs),
            None if second is None else jnp.asarray(second),
            weight_std=weight_std,
            bias_std=bias_std,
        )
        expected = [
            [relu_recursion(depth, x.ravel(), y.ravel(), weight_std, bias_std) for y in columns]
            for x in inputs
        ]
        # The angle between equal inputs is the root of a rounding error.
        np.testing.assert_allclose(kernel, expected, rtol=1e-7, atol=1e-7)


@installed
def test_wide_networks_tend_to_infinite_width():
    depth, width, outputs, networks, bias_std = 2, 1024, 2, 32, 1.0
    inputs = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    sizes = [8, *[width] * depth, outputs]

    def apply_fn(params, inputs):
        for layer, (kernel, bias) in enumerate(params):
            inputs = jnp.sqrt(2 / len(kernel)) * inputs @ kernel + bias_std * bias[None, :]
            inputs = inputs if layer == depth else jax.nn.relu(inputs)
        return inputs

    def kernel(key):
        params = []
        for layer in range(depth + 1):
            kernel_key, bias_key = jax.random.split(jax.random.fold_in(key, layer))
            shape = sizes[layer : layer + 2]
            kernel = jax.random.normal(kernel_key, shape)
            params.append((kernel, jax.random.normal(bias_key, shape[1:])))
        return neural_tangents_ntk(apply_fn, params, jnp.asarray(inputs))

    keys = jax.random.split(jax.random.key(0), networks)
    empirical = jnp.mean(jax.jit(lambda keys: jax.lax.map(kernel, keys))(keys), axis=0)
    infinite = np.asarray(infinite_width_ntk(depth, jnp.asarray(inputs), bias_std=bias_std))
    norms = np.sqrt(np.diag(infinite))
    difference = empirical - np.einsum("bc,kl->bkcl", infinite, np.eye(outputs))
    relative = difference / np.outer(norms, norms)[:, None, :, None]
    # Each hidden layer enters as a mean over its width, of terms like relu(u)^2 and w^2 relu'(u),
    # whose variance, for normal u and w, is 5 times their squared mean.
    assert np.abs(relative).max() < 4 * np.sqrt(5 * depth / (width * networks))


def test_wrong_arguments_are_named():
    inputs = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"implementation must be one of .*got 'auto'"):
        neural_tangents_ntk(linear_model, jnp.ones((3, 1)), inputs, implementation="auto")
    with pytest.raises(ValueError, match="depth must be at least 0, got -1"):
        infinite_width_ntk(-1, inputs)


@installed
def test_outputs_of_wrong_rank():
    with pytest.raises(ValueError, match=r"must return \[B, K\], got shape \(2,\)"):
        neural_tangents_ntk(linear_model, jnp.ones(3), jnp.ones((2, 3)))


def test_absent_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "neural_tangents", None)
    inputs = jnp.ones((2, 3))
    calls = [
        lambda: neural_tangents_ntk(linear_model, jnp.ones((3, 1)), inputs),
        lambda: infinite_width_ntk(1, inputs),
    ]
    for call in calls:
        with pytest.raises(ModuleNotFoundError) as caught:
            call()
        message = str(caught.value)
        assert message == "neural-tangents is not installed: pip install 'nasi-jax[ntk]'"
    assert "jax.util" not in sys.modules
    assert "Jaxpr" not in vars(jax.core)


def run_in_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_is_not_imported_before_it_is_needed():
    run_in_new_process(
        """
import sys
import nasi_jax.kernels.neural_tangents
assert not {"neural_tangents", "tensorflow", "jax.util"} & set(sys.modules)
"""
    )


@installed
def test_jax_is_left_as_it_was_found():
    run_in_new_process(
        """
import sys
import jax
import jax.numpy as jnp
from jax.interpreters import ad
from nasi_jax.kernels.neural_tangents import neural_tangents_ntk

def state():
    modules = dict(vars(jax.core)), dict(vars(ad))
    return *modules, "jax.util" in sys.modules, hasattr(jax, "util"), dict(jax.config.values)

before = state()
neural_tangents_ntk(lambda params, inputs: inputs @ params, jnp.ones((3, 1)), jnp.ones((2, 3)))
assert "neural_tangents" in sys.modules
assert state() == before
"""
    )
