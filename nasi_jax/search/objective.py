"""The objective of NASI: the trace under a penalty, and the rules for its constraint nu."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


def penalized(trace: jax.Array, constraint: jax.Array, penalty: float) -> jax.Array:
    """R = x - mu * max(0, x - nu), equation (14) of the paper.

    At mu = 1 this is min(x, nu), at mu = 2 the tent nu - |x - nu|.

    Args:
      trace: x, the estimate of the trace norm.
      constraint: nu, taken as a constant.
      penalty: mu.

    Returns:
      R, of the shape of `trace`.
    """
    return trace - penalty * jnp.maximum(0.0, trace - lax.stop_gradient(constraint))


class ConstraintState(NamedTuple):
    """State of a rule for nu.

    Attributes:
      nu: the constraint of the coming step.
      total: the sum that an adaptive nu is the mean of.
      num_terms: how many terms that sum has.
    """

    nu: jax.Array
    total: jax.Array
    num_terms: jax.Array


class Constraint(NamedTuple):
    """A rule for nu.

    Attributes:
      init: makes the state from a function that maps a number of samples `n` to `[n]` values of x
        over random relaxed architectures.
      update: makes the next state from the state and the x of the step that was taken.
    """

    init: Callable[[Callable[[int], jax.Array]], ConstraintState]
    update: Callable[[ConstraintState, jax.Array], ConstraintState]


def fixed(constraint: float) -> Constraint:
    """The same nu at every step (NASI-FIX).

    Args:
      constraint: nu.

    Returns:
      The rule.
    """
    return Constraint(lambda sample: _start(jnp.asarray(constraint, jnp.float32)), _keep)


def adaptive(constraint: float) -> Constraint:
    """The running mean of x that counts the initial nu as its first term (NASI-ADA).

    nu_t = (nu_0 + x_1 + ... + x_{t-1}) / t. The paper's appendix B.1, which gives the rule, could
    not be read; this is the reading of our notes.

    Args:
      constraint: nu_0, in units of x.

    Returns:
      The rule.
    """
    return Constraint(lambda sample: _start(jnp.asarray(constraint, jnp.float32)), _average)


def quantile(level: float, *, num_samples: int = 16) -> Constraint:
    """A quantile of x over random relaxed architectures, on the first batch.

    So that nu has a meaning in any implementation: x changes scale with the width, the depth, the
    loss and the norm mode, and a nu that was tuned for another network does not carry over.

    Args:
      level: between 0 and 1.
      num_samples: number of architectures.

    Returns:
      The rule.
    """
    return Constraint(lambda sample: _start(jnp.quantile(sample(num_samples), level)), _keep)


def _start(nu: jax.Array) -> ConstraintState:
    # A sum apart from nu, in a buffer of its own: the state may be donated.
    return ConstraintState(nu, nu + 0, jnp.ones((), jnp.float32))


def _keep(state: ConstraintState, trace: jax.Array) -> ConstraintState:
    del trace
    return state


def _average(state: ConstraintState, trace: jax.Array) -> ConstraintState:
    total = state.total + lax.stop_gradient(trace)
    num_terms = state.num_terms + 1
    return ConstraintState(total / num_terms, total, num_terms)
