"""The penalized trace and the rules for its constraint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasi_jax.search import adaptive, fixed, penalized, quantile

TRACES = np.linspace(0.0, 5.0, 26)
NU = 2.05


def objectives(penalty):
    traces, nu = jnp.asarray(TRACES, jnp.float32), jnp.asarray(NU, jnp.float32)
    return jax.vmap(lambda trace: penalized(trace, nu, penalty))(traces)


def test_tent_at_two():
    np.testing.assert_allclose(objectives(2.0), NU - np.abs(TRACES - NU), rtol=1e-5, atol=1e-6)


def test_cap_at_one():
    np.testing.assert_allclose(objectives(1.0), np.minimum(TRACES, NU), rtol=1e-6)


def test_no_penalty_at_zero():
    np.testing.assert_allclose(objectives(0.0), TRACES, rtol=1e-6)


@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0, 2.0])
def test_derivative(penalty):
    """1 - mu above nu and 1 below; nu is a constant."""
    slope = jax.vmap(jax.grad(penalized, argnums=(0, 1)), in_axes=(0, None, None))
    traces, nu = jnp.asarray(TRACES, jnp.float32), jnp.asarray(NU, jnp.float32)
    in_trace, in_constraint = slope(traces, nu, penalty)
    np.testing.assert_array_equal(in_trace, 1 - penalty * (TRACES > NU))
    np.testing.assert_array_equal(in_constraint, 0)


def constraints(rule, traces):
    """nu of every step, and of the one after the last."""
    state = jax.jit(lambda: rule.init(None))()
    nus = [float(state.nu)]
    for trace in traces:
        state = jax.jit(rule.update)(state, jnp.asarray(trace, jnp.float32))
        nus.append(float(state.nu))
    return nus


def test_fixed_stays():
    assert constraints(fixed(100.0), [3.0, 1e6, 0.0]) == [100.0] * 4


def test_adaptive_is_the_mean_with_the_first_nu():
    traces = [3.0, 1000.0, 0.0, 20.0]
    expected = [np.mean([500.0, *traces[:step]]) for step in range(5)]
    np.testing.assert_allclose(constraints(adaptive(500.0), traces), expected, rtol=1e-6)


def test_no_derivative_through_nu():
    def nu(trace):
        return adaptive(1.0).update(adaptive(1.0).init(None), trace).nu

    assert jax.grad(nu)(3.0) == 0


@pytest.mark.parametrize("level", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("num_samples", [1, 6])
def test_quantile_of_as_many_samples_as_asked_for(level, num_samples):
    asked = []

    def sample(count):
        asked.append(count)
        return jnp.asarray(np.random.default_rng(0).lognormal(size=count), jnp.float32)

    rule = quantile(level, num_samples=num_samples)
    state = rule.init(sample)
    assert asked == [num_samples]
    np.testing.assert_allclose(state.nu, np.quantile(sample(num_samples), level), rtol=1e-6)
    assert rule.update(state, jnp.asarray(1e6)).nu == state.nu
