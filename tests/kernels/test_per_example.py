"""Per-example gradient norms against dense Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_like
from networks import INDEPENDENT, batch_normalized, cotangents, inputs, jacobian, params

from nasi_jax.cells import search_space
from nasi_jax.kernels import ntk, squared_gradient_norms
from nasi_jax.kernels.per_example import _kernels, default_chunk
from nasi_jax.types import NetworkSpec

pytestmark = pytest.mark.usefixtures("x64")


def expected(function, params, inputs, cotangents):
    rows = np.einsum("bmk,bkp->bmp", cotangents, jacobian(function, params, inputs))
    return np.sum(rows**2, axis=-1)


def kernels_of(function):
    leaves, structure = jax.tree.flatten(params())
    found = _kernels(function, structure, leaves, inputs()[:1])
    return {name for index, name in enumerate(sorted(params())) if index in found}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_norms(name):
    function, args = INDEPENDENT[name], (params(), inputs(), cotangents())
    norms = jax.jit(lambda *args: squared_gradient_norms(function, *args))(*args)
    np.testing.assert_allclose(norms, expected(function, *args), rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "kernels"),
    {
        "plain": {"w", "head"},
        "grouped": {"w", "head"},
        "channels_first": {"w", "head"},
        "own": {"w", "own_depthwise", "head"},
        "pointwise": {"one", "head"},
        "shared": {"w", "head"},
        "jitted_twice": {"w", "head"},
        "scanned": {"w", "stack", "head"},
        "scanned_and_shared": {"w", "head"},
        "scanned_with_own": {"w", "stack", "head"},
        "carried": {"w", "head"},
        "read_and_returned": {"head"},
        "transposed_dense": {"flat"},
        "batched_dot": {"head"},
        "branched": {"head"},
    }.items(),
)
def test_which_parameters_need_no_gradient(name, kernels):
    assert kernels_of(INDEPENDENT[name]) == kernels


def test_an_output_is_a_use():
    """A kernel that the function returns, beside its layer."""

    def function(params, x):
        return (x.reshape(3, -1)[:, :4] @ params["head"])[:, :3] * 0 + params["head"][:3, :3]

    assert kernels_of(lambda params, x: params["head"]) == set()
    args = (params(), inputs(), cotangents())
    norms = squared_gradient_norms(function, *args, coupled=True)
    np.testing.assert_allclose(norms, expected(function, *args), rtol=1e-10)


def test_both_forms_are_taken():
    """Gram matrices where they take fewer operations, and only there."""

    def matrices(function):
        text = str(
            jax.make_jaxpr(lambda *args: squared_gradient_norms(function, *args, coupled=False))(
                params(), inputs(), cotangents()
            )
        )
        return {part.split("]")[0] for part in text.split("f64[3,2,")[1:]}

    assert "4,4" in matrices(INDEPENDENT["wide"])
    assert "36,36" not in matrices(INDEPENDENT["residual"])


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5])
def test_chunks(chunk_size):
    args = (params(), inputs(), cotangents())
    for function, coupled in ((INDEPENDENT["scanned"], False), (batch_normalized, True)):
        norms = squared_gradient_norms(function, *args, coupled=coupled, chunk_size=chunk_size)
        np.testing.assert_allclose(norms, expected(function, *args), rtol=1e-10)


def test_default_chunk():
    sizes = {count: default_chunk(count, 2) for count in (64, 10, 7, 3, 11)}
    assert sizes == {64: 8, 10: 5, 7: 7, 3: 3, 11: 11}


def test_default_chunk_off_the_cpu(monkeypatch):
    """All independent examples at once; of coupled ones the cotangents of one at a time."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert default_chunk(64, 2) == 2
    args = (params(), inputs(), cotangents())
    sizes = []

    def spied(function, arrays, *, batch_size):
        sizes.append(batch_size)
        return jax.vmap(function)(arrays)

    monkeypatch.setattr(jax.lax, "map", spied)
    for function, coupled in ((INDEPENDENT["own"], False), (batch_normalized, True)):
        norms = squared_gradient_norms(function, *args, coupled=coupled)
        np.testing.assert_allclose(norms, expected(function, *args), rtol=1e-10)
    assert sizes == [len(inputs()), cotangents().shape[1]]


def test_batch_statistics_are_gone_through():
    args = (params(), inputs(), cotangents())
    norms = squared_gradient_norms(batch_normalized, *args, coupled=True)
    np.testing.assert_allclose(norms, expected(batch_normalized, *args), rtol=1e-10)


def test_derivative_in_what_the_function_closes_over():
    def norms(scale, own):
        def function(params, x):
            return INDEPENDENT["scanned_with_own"](params, jnp.sin(scale * x))

        if own:
            return jnp.sum(squared_gradient_norms(function, params(), inputs(), cotangents()))
        each = jax.vmap(
            jax.vmap(
                lambda x, v: jax.grad(lambda params: function(params, x[None])[0] @ v)(params()),
                in_axes=(None, 0),
            )
        )(inputs(), cotangents())
        return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(each)), start=0.0)

    slopes = [jax.jit(jax.grad(norms), static_argnums=1)(0.7, own) for own in (True, False)]
    np.testing.assert_allclose(*slopes, rtol=1e-10)


SMALL = {
    "nasbench201": {"num_cells": 1},
    "darts": {"num_cells": 3, "ops": ("max_pool_3x3", "skip_connect", "dil_conv_3x3")},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("relaxed", [False, True])
def test_cells(name, relaxed):
    """Of random architectures, and of their supernet, whose edges are stacked in scans."""
    space = search_space(name, init_channels=2, **SMALL[name])
    spec = NetworkSpec(norm="none", param_dtype=jnp.float64)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
    if relaxed:
        weights = jax.tree.map(
            lambda leaf: jax.nn.softmax(jax.random.normal(jax.random.key(0), leaf.shape)),
            space.init_alpha(),
        )
        network, args = space.supernet(3, spec), (weights,)
    else:
        genotype = space.sample(jax.random.key(1))
        network, args = space.network(genotype, 3, spec, form="search"), ()
    shapes = jax.eval_shape(network.init, jax.random.key(2), inputs, *args)
    params = random_like(3, shapes)
    vectors = cotangents(size=2, count=1)

    def function(params, inputs):
        return network.apply(params, inputs, *args)

    def compute(params):
        return squared_gradient_norms(function, params, inputs, vectors, coupled=False)

    def directly(params):
        each = jax.vmap(
            lambda x, v: jax.grad(lambda params: function(params, x[None])[0] @ v[0])(params)
        )(inputs, vectors)
        return sum(jnp.sum(leaf.reshape(2, -1) ** 2, axis=1) for leaf in jax.tree.leaves(each))

    norms, expected = (jax.jit(function)(params) for function in (compute, directly))
    np.testing.assert_allclose(norms[:, 0], expected, rtol=1e-9)
    if not relaxed:
        rows = jacobian(function, params, inputs)
        dense = np.einsum("bkp,clp->bkcl", rows, rows)
        kernel = jax.jit(lambda params: ntk(function, params, inputs, coupled=False))(params)
        np.testing.assert_allclose(kernel, dense, rtol=1e-9, atol=1e-9 * np.max(dense))
