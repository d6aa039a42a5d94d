"""The loss (4) and the bound (6): exact where they are exact, close where a network is wide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from proposition1 import compare, init, linear_loss, loss_bound, network

pytestmark = pytest.mark.usefixtures("x64")


def data(num_examples, num_inputs, num_outputs):
    """Inputs of norm at most 1, targets in [0, 1]."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(num_examples, num_inputs))
    inputs /= np.linalg.norm(inputs, axis=1).max()
    return jnp.asarray(inputs), jnp.asarray(rng.uniform(size=(num_examples, num_outputs)))


def test_loss_is_exact_for_a_model_that_is_linear_in_its_parameters():
    """It starts from outputs that are not 0, and its outputs are correlated."""
    inputs, targets = data(3, 5, 2)
    mixing = jnp.array([[1.0, 0.5], [0.0, 2.0]])
    params = jax.random.normal(jax.random.key(0), (5, 2))
    found = compare(
        lambda params, inputs: inputs @ params @ mixing,
        params,
        inputs,
        targets,
        rate=0.9,
        num_steps=50,
    )
    assert found.actual[-1] < 0.1 * found.actual[0]
    np.testing.assert_allclose(found.actual, found.predicted, rtol=1e-10)


def test_bound_of_one_output_is_its_loss_until_half_a_step():
    times = np.array([0, 0.2, 0.4, 0.5, 1, 2])
    loss = linear_loss(np.array([2.0]), np.eye(1), np.ones((1, 1)), 0.3, times)
    bound = loss_bound(2.0, 1, 1, 0.3, times)
    np.testing.assert_allclose(loss, 0.4 ** (2 * times))
    np.testing.assert_allclose(bound[:4], loss[:4])
    np.testing.assert_allclose(bound[4:], 0.4)


def test_bound_is_met_where_all_but_one_direction_is_learnt_at_once():
    """Y lies along the eigenvalue 0; the limit eta = 1 / lambda_max."""
    eigenvectors = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    times = np.array([0.5, 1, 5])
    loss = linear_loss(np.array([0.0, 1.0]), eigenvectors, np.ones((2, 1)), 1.0, times)
    np.testing.assert_allclose(loss, 1)
    np.testing.assert_allclose(loss_bound(0.5, 2, 1, 1.0, times), loss)
    assert loss_bound(0.5, 2, 3, 1.0, times[0]) == 2 * 3**2 * 0.5


def test_wide_network_trains_as_its_kernel_says():
    inputs, targets = data(6, 4, 2)

    def train(width):
        params = init(jax.random.key(2), (4, width, width, 2))
        return compare(network("tanh"), params, inputs, targets, rate=0.5, num_steps=60)

    narrow, wide = train(32), train(1024)
    for found in narrow, wide:
        assert found.eigenvalues[0] > 0
        assert found.actual[-1] < 0.3 * found.actual[0]
        assert np.all(found.actual <= found.bound)
        after_a_step = 1 - 0.5 * np.mean(found.eigenvalues) / np.max(found.eigenvalues)
        np.testing.assert_allclose(found.bound[:2], [6 * 2**2, 6 * 2**2 * after_a_step])
    # In NTK parameterization the kernel does not grow with the width.
    np.testing.assert_allclose(narrow.eigenvalues[-1], wide.eigenvalues[-1], rtol=0.5)
    # Twice the most of eight initializations.
    assert wide.deviation() < 0.01
    # As 1 / width in the mean; epsilon is as 1 / sqrt(width), which all eight fell faster than.
    assert wide.deviation() < narrow.deviation() / 32**0.5
