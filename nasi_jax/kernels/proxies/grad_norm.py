"""GradNorm: gradient norms summed over layers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from nasi_jax.kernels.gradient import loss_gradient
from nasi_jax.kernels.stacks import by_layer
from nasi_jax.types import ApplyFn, Batch, Loss, Params


def grad_norm(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    loss: Loss = "cross_entropy",
) -> jax.Array:
    """sum_l ||grad_l L||, the norms not squared, L the mean loss of the batch; more is better.

    From Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS" (ICLR 2021,
    arXiv:2101.08134), who compute it with batch statistics. A layer is an array of `params` here,
    or a slice of one that a scan reads slice by slice. Theirs are the weights of convolutional
    and dense layers; they leave out biases, and scales and shifts of normalization.

    Args:
      key: not used; here for the signature of a proxy.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters that the gradient is taken at.
      batch: inputs `[B, ...]` and integer labels `[B]`.
      loss: see `mean_loss`.

    Returns:
      A scalar, at least 0.
    """
    del key
    gradient = loss_gradient(apply_fn, params, batch, loss)
    layers = by_layer(apply_fn, params, batch.inputs, gradient)
    return functools.reduce(jnp.add, (jnp.sum(_norms(each)) for each in layers))


def _norms(rows: jax.Array) -> jax.Array:
    """Norms, of zeros 0 with derivative 0; squares neither overflow nor vanish."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(rows), axis=1))
    scale = jnp.where(largest > 0, largest, 1)
    squares = jnp.sum(jnp.square(rows / scale[:, None]), axis=1)
    return jnp.where(largest > 0, scale * jnp.sqrt(jnp.where(largest > 0, squares, 1)), 0)
