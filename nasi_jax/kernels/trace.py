"""Estimates of the trace norm of the neural tangent kernel."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
from jax import lax

from nasi_jax.types import ApplyFn, Batch, Derivative, Loss, Params


def mean_loss(outputs: jax.Array, labels: jax.Array, loss: Loss = "cross_entropy") -> jax.Array:
    """Mean loss over a batch.

    Args:
      outputs: `[B, K]`.
      labels: integers `[B]`.
      loss: `cross_entropy` of the softmax, or `mse`: `||one_hot(label) - output||^2`, summed over
        the outputs as in equation (4) of the paper.

    Returns:
      A scalar.
    """
    if loss == "mse":
        targets = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
        return jnp.mean(jnp.sum(jnp.square(targets - outputs), axis=-1))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))


def batch_gradient(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    loss: Loss = "cross_entropy",
    derivative: Derivative = "reverse",
) -> jax.Array:
    """NASI's estimate of the NTK's trace norm: the squared norm of one mini-batch gradient.

    x = || b^-1 sum_i grad_theta L_i ||^2, summed over all parameters. This is the only quantity
    that the paper computes (its definition stands between equations (11) and (12)). It is a lower
    bound of the trace up to constants, and the quadratic form of the kernel of the batch in the
    gradient of the loss, not its trace.

    Args:
      key: not used; here for the signature of a proxy.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters theta that the gradient is taken at.
      batch: inputs `[B, ...]` and integer labels `[B]`.
      loss: see `mean_loss`.
      derivative: how the estimate is itself differentiated, once, in what `apply_fn` closes over.
        `reverse` differentiates the squared norm as it stands. `forward` uses that, with
        v = grad_theta L held constant, d||grad_theta L||^2 = 2 d<grad_theta L, v>, where
        <grad_theta L, v> is a forward-mode derivative of L: no backward pass is differentiated,
        and the parameters get no second cotangent. A second differentiation of `forward` is
        wrong.

    Returns:
      A scalar, at least 0.
    """
    del key

    def loss_of(params: Params) -> jax.Array:
        return mean_loss(apply_fn(params, batch.inputs), batch.labels, loss)

    gradient = jax.grad(loss_of)(params)
    if derivative == "reverse":
        return _squared_norm(gradient)
    direction = lax.stop_gradient(gradient)
    _, slope = jax.jvp(loss_of, (params,), (direction,))
    return _squared_norm(direction) + 2 * (slope - lax.stop_gradient(slope))


def _squared_norm(tree: Params) -> jax.Array:
    return functools.reduce(jnp.add, (jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)))
