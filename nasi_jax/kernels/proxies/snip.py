"""SNIP: what the loss would change by if weights were removed one by one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from nasi_jax.kernels.gradient import loss_gradient
from nasi_jax.types import ApplyFn, Batch, Loss, Params


def snip(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    loss: Loss = "cross_entropy",
) -> jax.Array:
    """sum |theta dL/dtheta| over all parameters, L the mean loss of the batch; more is better.

    From Lee et al. (ICLR 2019, arXiv:1810.02340), who prune by it; as a score of architectures,
    from Abdelfattah et al. (ICLR 2021, arXiv:2101.08134), who compute it with batch statistics
    and sum over the weights of convolutional and dense layers. All of `params` counts here;
    biases that are 0 add nothing.

    Args:
      key: not used; here for the signature of a proxy.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters theta.
      batch: inputs `[B, ...]` and integer labels `[B]`.
      loss: see `mean_loss`.

    Returns:
      A scalar, at least 0.
    """
    del key
    gradient = loss_gradient(apply_fn, params, batch, loss)
    products = jax.tree.map(lambda theta, slope: jnp.sum(jnp.abs(theta * slope)), params, gradient)
    return functools.reduce(jnp.add, jax.tree.leaves(products))
